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

use super::bits::{BitReader, Free, NO_WINDOW, Xor, fits, signed};
use crate::codec::{Broken, Reader, put_uvarint, put_varint};

/// Bytes asked for when the buffer of a new chunk is made: its first samples.
const BYTES_FIRST: usize = 24;
/// Most bytes one sample takes: 68 bits of time and 77 of value, and the odd bits before.
const SAMPLE_BYTES_MAX: usize = 20;
/// Most bits of a step in time but for the longest form.
const STEP_SHORT_MAX: u32 = 24;

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
    let mut delta = head.uvarint()?;
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
    let mut window = Window::of(xor);
    let mut value = xor.bits;
    for (time, out) in times[times_from..].iter_mut().zip(&mut values[values_from..]) {
        let (mut word, front) = bits.peek_wide();
        if front == 0 {
            bits.skip(2); // the same step and the same value: most of what is stored
        } else if front == 0b01 {
            // The same step: scrapes on time come in long runs, so this is guessed right, and the value is not kept
            // waiting until the length of the step is known.
            let (xor, more) = window.read(word << 1);
            value ^= xor;
            bits.skip(1 + more);
        } else {
            let (step, used) = read_step(word);
            delta = delta.wrapping_add_signed(step);
            if used > STEP_SHORT_MAX {
                bits.skip(used);
                word = bits.peek_wide().0;
            } else {
                word <<= used;
            }
            let (xor, more) = window.read(word);
            value ^= xor;
            bits.skip(if used > STEP_SHORT_MAX { more } else { used + more });
        }
        at = at.wrapping_add_unsigned(delta);
        *time = at;
        *out = f64::from_bits(value);
    }
    if window.is_broken {
        return Err(bits.broken("xor window is wider than a float"));
    }
    bits.finish()
}

/// The window of [`Xor`], kept so that old and new windows take the same path: which of the two comes next is chance,
/// and a wrong guess of the processor costs more than the arithmetic. Damage is noted and told at the end.
struct Window {
    width: u32,
    trailing: u32,
    is_broken: bool,
}

impl Window {
    fn of(xor: Xor) -> Self {
        if xor.leading == NO_WINDOW {
            return Self { width: 0, trailing: 0, is_broken: false };
        }
        let (leading, trailing) = (u32::from(xor.leading), u32::from(xor.trailing));
        Self { width: 64 - leading - trailing, trailing, is_broken: false }
    }

    /// The XOR at the front of `word`, and how many bits it takes.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "five and six bits, and upper halves")]
    fn read(&mut self, word: u128) -> (u64, u32) {
        let head = (word >> 96) as u32;
        if head >> 31 == 0 {
            return (0, 1);
        }
        let fresh = head >> 30 == 0b11;
        let (leading, width) = (head >> 25 & 31, ((head >> 19).wrapping_sub(1) & 63) + 1); // 0 in six bits is 64
        self.is_broken |= fresh && leading + width > 64;
        let trailing = 64_u32.wrapping_sub(leading + width) & 63;
        self.width = if fresh { width } else { self.width };
        self.trailing = if fresh { trailing } else { self.trailing };
        self.is_broken |= self.width == 0; // an old window before any new one
        let control = if fresh { 13 } else { 2 };
        let raw = ((word << control >> 64) as u64).wrapping_shr(64 - self.width);
        (raw << self.trailing, control + self.width)
    }
}

/// The difference of differences at the front of `word`, and how many bits it takes. The short forms share one path
/// without branches.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the upper half is meant")]
fn read_step(word: u128) -> (i64, u32) {
    const BITS: [u32; 4] = [1, 14, 17, 20];
    let head = (word >> 64) as u64;
    let ones = head.leading_ones();
    let Some(&bits) = BITS.get(ones as usize) else {
        return (((word << 4 >> 64) as u64).cast_signed(), 68);
    };
    // Without a one the single bit is the code itself, a zero; else the number follows the ones and a zero.
    let start = ones + u32::from(ones > 0);
    (signed((head << start) >> (64 - bits), bits), start + bits)
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
