//! Chunks of floats: differences of time differences, and values as XOR with the value before.
//!
//! Why this code and no better one: it is Prometheus' own, so cutting a block copies the bytes and every tool of
//! that world reads them. The picture is in `docs/formats/chunk.md`.
//!
//! Differences wrap: a sample at the first millisecond of [`Millis`] followed by one at the last is stored and read
//! back exactly.
//!
//! Source: Gorilla (VLDB 2015) §4.1; `prometheus tsdb/docs/format/chunks.md`.

use engram_model::Millis;

use super::bits::{BitReader, Free, NEAR_BITS, NO_WINDOW, Xor, fits, signed};
use crate::codec::{Broken, Reader, put_uvarint, put_varint};

/// Bytes asked for when the buffer of a new chunk is made: its first samples.
const BYTES_FIRST: usize = 24;
/// Most bytes one sample takes: 68 bits of time and 77 of value, and the odd bits before.
const SAMPLE_BYTES_MAX: usize = 20;

/// A chunk that still takes samples.
#[derive(Clone, Debug)]
pub(crate) struct XorOpen {
    bytes: Vec<u8>,
    first: Millis,
    last: Millis,
    delta: u64,
    value: u64,
    count: u16,
    free: Free,
    leading: u8,
    trailing: u8,
}

impl XorOpen {
    /// A chunk of one sample.
    pub(crate) fn new(at: Millis, value: f64) -> Self {
        let mut bytes = Vec::with_capacity(BYTES_FIRST);
        bytes.extend_from_slice(&[0, 1]);
        put_varint(&mut bytes, at);
        bytes.extend_from_slice(&value.to_bits().to_be_bytes());
        Self {
            bytes,
            first: at,
            last: at,
            delta: 0,
            value: value.to_bits(),
            count: 1,
            free: Free::default(),
            leading: NO_WINDOW,
            trailing: 0,
        }
    }

    /// Appends a sample later than all before; the caller has checked the order and the room.
    #[inline]
    pub(crate) fn append(&mut self, at: Millis, value: f64) {
        assert!(self.count < u16::MAX, "a chunk counts its samples in two bytes");
        self.reserve();
        let delta = at.wrapping_sub(self.last).cast_unsigned();
        if self.count == 1 {
            put_uvarint(&mut self.bytes, delta);
        } else {
            self.put_time(delta.wrapping_sub(self.delta).cast_signed());
        }
        let mut xor = Xor { bits: self.value, leading: self.leading, trailing: self.trailing };
        xor.put(&mut self.free, &mut self.bytes, value.to_bits());
        (self.value, self.leading, self.trailing) = (xor.bits, xor.leading, xor.trailing);
        (self.last, self.delta) = (at, delta);
        self.count += 1;
        self.bytes[..2].copy_from_slice(&self.count.to_be_bytes());
    }

    #[inline]
    fn put_time(&mut self, dod: i64) {
        let raw = dod.cast_unsigned();
        let (bytes, free) = (&mut self.bytes, &mut self.free);
        if dod == 0 {
            free.put(bytes, 0, 1);
        } else if fits(dod, 14) {
            free.put(bytes, 0b10 << 14 | raw & 0x3fff, 16);
        } else if fits(dod, 17) {
            free.put(bytes, 0b110 << 17 | raw & 0x1_ffff, 20);
        } else if fits(dod, 20) {
            free.put(bytes, 0b1110 << 20 | raw & 0xf_ffff, 24);
        } else {
            free.put(bytes, 0b1111, 4);
            free.put(bytes, raw, 64);
        }
    }

    /// Grows by a quarter and not by doubling: a million open chunks are mostly their slack.
    #[inline]
    fn reserve(&mut self) {
        if self.bytes.capacity() - self.bytes.len() < SAMPLE_BYTES_MAX {
            self.bytes.reserve_exact((self.bytes.len() / 4).max(SAMPLE_BYTES_MAX + 4));
        }
    }

    /// Time of the first sample.
    pub(crate) fn first(&self) -> Millis {
        self.first
    }

    /// Time of the last sample.
    pub(crate) fn last(&self) -> Millis {
        self.last
    }

    /// The last sample's value.
    pub(crate) fn value(&self) -> f64 {
        f64::from_bits(self.value)
    }

    /// How many samples.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// The chunk's bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory the buffer takes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Appends all samples of a chunk to the two columns; on failure the columns are as before.
///
/// # Errors
/// The bytes are no chunk.
pub(crate) fn decode(bytes: &[u8], times: &mut Vec<Millis>, values: &mut Vec<f64>) -> Result<(), Broken> {
    let (times_before, values_before) = (times.len(), values.len());
    let done = decode_all(bytes, times, values);
    if done.is_err() {
        times.truncate(times_before);
        values.truncate(values_before);
    }
    done
}

fn decode_all(bytes: &[u8], times: &mut Vec<Millis>, values: &mut Vec<f64>) -> Result<(), Broken> {
    let mut head = Reader::new(bytes);
    let count = usize::from(head.u16()?);
    if count == 0 {
        return Ok(());
    }
    let mut at = head.varint()?;
    let mut xor = Xor::new(head.u64()?);
    times.push(at);
    values.push(f64::from_bits(xor.bits));
    if count == 1 {
        return Ok(());
    }
    let delta = head.uvarint()?;
    let mut bits = BitReader::new(bytes, head.at());
    if (count - 2) * 2 >= bits.left() {
        return Err(bits.broken("chunk counts more samples than it has bits"));
    }
    xor.read(&mut bits)?;
    at = at.wrapping_add_unsigned(delta);
    times.push(at);
    values.push(f64::from_bits(xor.bits));

    let more = count - 2;
    let (times_from, values_from) = (times.len(), values.len());
    times.resize(times_from + more, 0);
    values.resize(values_from + more, 0.0);
    let from = Start { at, delta, value: xor.bits, window: Window::of(xor) };
    fill(bits, from, &mut times[times_from..], &mut values[values_from..])
}

/// What a sample is decoded from, besides its bits: the one before.
struct Start {
    at: Millis,
    delta: u64,
    value: u64,
    window: Window,
}

/// Reads as many samples as the columns, which are of one length, have room for, to the end of `bits`.
///
/// Why branches and no arithmetic that covers all forms: where the next sample begins is then guessed by the processor
/// and not worked out from bits that must be loaded first, so several samples are worked on at once. Scrapes come on
/// time, and a window once found lasts: the guesses are mostly right. Times are written once the step changes, many
/// together.
fn fill(mut bits: BitReader<'_>, from: Start, times: &mut [Millis], values: &mut [f64]) -> Result<(), Broken> {
    let Start { mut at, mut delta, mut value, mut window } = from;
    let count = times.len().min(values.len());
    let (times, values) = (&mut times[..count], &mut values[..count]);
    // Values up to `next` are there, times up to `timed`.
    let (mut next, mut timed) = (0, 0);
    while next < count {
        let word = bits.near();
        match word >> 61 {
            0b010 if window.is_near(3) => {
                // On time and in the window, one after the other: the commonest of all.
                let (window, used, mut word) = (window, 3 + window.width, word);
                loop {
                    value ^= window.place(word << 3);
                    values[next] = f64::from_bits(value);
                    bits.skip(used);
                    next += 1;
                    if next == count {
                        break;
                    }
                    word = bits.near();
                    if word >> 61 != 0b010 {
                        break;
                    }
                }
                continue;
            }
            0b000 | 0b001 => {
                // The same step and the same value, so many times over.
                let seen = (word.leading_zeros().min(NEAR_BITS) / 2) as usize;
                let run = seen.min(count - next);
                values[next..next + run].fill(f64::from_bits(value));
                bits.pass(run * 2);
                next += run;
                continue;
            }
            0b010 | 0b011 => bits.skip(1),
            _ => {
                at = march(&mut times[timed..next], at, delta);
                delta = delta.wrapping_add_signed(read_step(word, &mut bits));
                at = at.wrapping_add_unsigned(delta);
                times[next] = at;
                timed = next + 1;
            }
        }
        value ^= window.read(&mut bits)?;
        values[next] = f64::from_bits(value);
        next += 1;
    }
    march(&mut times[timed..], at, delta);
    bits.finish()
}

/// Writes times that follow `at` in equal steps, and says the last.
#[inline]
fn march(times: &mut [Millis], mut at: Millis, delta: u64) -> Millis {
    for time in times {
        at = at.wrapping_add_unsigned(delta);
        *time = at;
    }
    at
}

/// The window of [`Xor`], made for reading: a width of 0 is none yet.
#[derive(Clone, Copy)]
struct Window {
    leading: u32,
    width: u32,
    mask: u64,
}

impl Window {
    fn new(leading: u32, width: u32) -> Self {
        let mask = u64::MAX >> leading & u64::MAX << (64 - leading - width);
        Self { leading, width, mask }
    }

    fn of(xor: Xor) -> Self {
        if xor.leading == NO_WINDOW {
            return Self { leading: 0, width: 0, mask: 0 };
        }
        let leading = u32::from(xor.leading);
        Self::new(leading, 64 - leading - u32::from(xor.trailing))
    }

    /// Whether [`BitReader::near`] sees all of its bits and `before` more.
    #[inline]
    fn is_near(self, before: u32) -> bool {
        self.width.wrapping_sub(1) < NEAR_BITS - before
    }

    /// The bits at the front of `word`, at their place.
    #[inline]
    fn place(self, word: u64) -> u64 {
        word >> self.leading & self.mask
    }

    /// Reads the XOR that `bits` stand before.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "five and six bits")]
    fn read(&mut self, bits: &mut BitReader<'_>) -> Result<u64, Broken> {
        let word = bits.near();
        if word >> 63 == 0 {
            bits.skip(1);
            return Ok(0);
        }
        if word >> 62 == 0b10 && self.is_near(2) {
            bits.skip(2 + self.width);
            return Ok(self.place(word << 2));
        }
        if word >> 62 == 0b10 {
            bits.skip(2);
            if self.width == 0 {
                return Err(bits.broken("xor window is used before it is set"));
            }
        } else {
            let leading = (word >> 57) as u32 & 31;
            let width = (((word >> 51) as u32).wrapping_sub(1) & 63) + 1; // 0 in six bits is 64
            if leading + width > 64 {
                return Err(bits.broken("xor window is wider than a float"));
            }
            bits.skip(13);
            *self = Self::new(leading, width);
        }
        let xor = self.place(bits.peek());
        bits.skip(self.width);
        Ok(xor)
    }
}

/// The difference of differences that `bits` stand before; `word` begins with the next 64 bits, the first of them set.
#[inline]
fn read_step(word: u64, bits: &mut BitReader<'_>) -> i64 {
    if word >> 62 == 0b10 {
        bits.skip(16);
        return signed(word << 2 >> 50, 14);
    }
    let (start, width) = match word.leading_ones() {
        2 => (3, 17),
        3 => (4, 20),
        _ => (4, 64),
    };
    bits.skip(start);
    signed(bits.read(width), width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(samples: &[(Millis, f64)]) -> XorOpen {
        let mut open = XorOpen::new(samples[0].0, samples[0].1);
        for (at, value) in &samples[1..] {
            open.append(*at, *value);
        }
        open
    }

    fn round(samples: &[(Millis, f64)]) -> Vec<(Millis, u64)> {
        let open = encode(samples);
        let (mut times, mut values) = (Vec::new(), Vec::new());
        decode(open.bytes(), &mut times, &mut values).unwrap();
        times.into_iter().zip(values.into_iter().map(f64::to_bits)).collect()
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-1000_i32..1000).prop_map(f64::from),
            Just(engram_model::sample::stale_nan()),
            Just(0.0),
            Just(-0.0)
        ]
    }

    proptest! {
        #[test]
        fn samples_come_back_bit_by_bit(samples in proptest::collection::vec((any::<i64>(), 0_u32..64, value()), 1..200)) {
            let samples: Vec<_> = samples.into_iter().map(|(at, shift, v)| (at >> shift, v)).collect();
            let expected: Vec<_> = samples.iter().map(|(at, v)| (*at, v.to_bits())).collect();
            prop_assert_eq!(round(&samples), expected);
        }

        #[test]
        fn regular_steps_come_back(start: i64, step in 1_i64..100_000, jitter in proptest::collection::vec((-5_i64..5, value()), 1..150)) {
            let samples: Vec<_> = jitter.iter().zip(0_i64..).map(|((j, v), i)| (start.wrapping_add(i * step + j), *v)).collect();
            let expected: Vec<_> = samples.iter().map(|(at, v)| (*at, v.to_bits())).collect();
            prop_assert_eq!(round(&samples), expected);
        }

        #[test]
        fn damage_is_an_error_or_other_samples_but_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut times, mut values) = (vec![1], vec![1.0]);
            if decode(&bytes, &mut times, &mut values).is_err() {
                prop_assert_eq!((times.len(), values.len()), (1, 1));
            }
        }

        #[test]
        fn a_chunk_cut_short_is_an_error(cut in 1_usize..100) {
            let samples: Vec<_> = (0..100).map(|i| (i64::from(i) * 15_000, f64::from(i * i))).collect();
            let open = encode(&samples);
            let bytes = &open.bytes()[..open.bytes().len().saturating_sub(cut)];
            prop_assert!(decode(bytes, &mut Vec::new(), &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        let samples = [(i64::MIN, 1.0), (i64::MAX, 2.0), (i64::MIN, 3.0), (0, 4.0), (i64::MAX, 5.0)];
        assert_eq!(round(&samples), samples.map(|(at, v)| (at, v.to_bits())));
    }

    /// Worked out by hand from the format's text, so that the encoder and decoder cannot be wrong together.
    #[test]
    fn the_bytes_are_those_of_prometheus() {
        let open = encode(&[(1000, 1.0), (2000, 1.0), (3000, 2.0), (4001, 2.0)]);
        let one = 1.0_f64.to_bits().to_be_bytes();
        let mut expected = vec![0, 4, 0xd0, 0x0f];
        expected.extend_from_slice(&one);
        expected.extend_from_slice(&[0xe8, 0x07]);
        // bits: 0 (same value) | 0 (same step) 11 00001 001011 11111111111 (1.0 ^ 2.0: 1 leading zero, 11 bits)
        // | 10 00000000000001 (one later) 0 (same value)
        let bits = ["0", "0", "11", "00001", "001011", "11111111111", "10", "00000000000001", "0"].concat();
        for byte in bits.as_bytes().chunks(8) {
            expected.push(byte.iter().enumerate().fold(0, |sum, (i, bit)| sum | (bit - b'0') << (7 - i)));
        }
        assert_eq!(open.bytes(), expected);
    }
}
