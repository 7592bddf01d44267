//! Bits in the order of Prometheus' chunks: most significant first, and its three codes for small numbers.
//!
//! Why not a struct that owns the buffer: every series holds one open chunk, so the writer's state is two bytes
//! beside the buffer and nothing else. The reader loads eight bytes at once; past the end it reads zeros, which
//! keeps the inner loops free of checks: [`BitReader::finish`] tells afterwards whether the end was passed.
//!
//! Source: `prometheus tsdb/docs/format/chunks.md` (`varbit_int`, `varbit_uint`, `varbit_xor`).

use crate::codec::Broken;

/// What no run of leading zeros can be: no XOR was written with a window yet.
pub(super) const NO_WINDOW: u8 = 0xff;
/// Payload bits behind 0, 1, … 8 leading ones of a varbit number.
const VARBIT_BITS: [u32; 9] = [0, 3, 6, 9, 12, 18, 25, 56, 64];

/// How many bits [`BitReader::near`] knows at least.
pub(super) const NEAR_BITS: u32 = 57;

/// Where the next bit goes: how many bits of the last byte are still free.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Free(u8);

impl Free {
    /// Appends the low `n` (at most 64) bits of `value`, most significant first.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "shifted so that only the wanted low bits are left")]
    pub(super) fn put(&mut self, bytes: &mut Vec<u8>, value: u64, n: u32) {
        debug_assert!(n <= 64, "{n} bits are more than a word");
        if n == 0 {
            return;
        }
        let mut left = n;
        let mut word = value << (64 - n);
        if self.0 > 0
            && let Some(last) = bytes.last_mut()
        {
            let take = u32::from(self.0).min(left);
            *last |= ((word >> (64 - take)) << (u32::from(self.0) - take)) as u8;
            self.0 -= take as u8;
            left -= take;
            if left == 0 {
                return;
            }
            word <<= take;
        }
        let whole = left.div_ceil(8);
        bytes.extend_from_slice(&word.to_be_bytes()[..whole as usize]);
        self.0 = (whole * 8 - left) as u8;
    }

    /// Appends a signed number: `varbit_int`.
    pub(super) fn put_int(&mut self, bytes: &mut Vec<u8>, value: i64) {
        let ones = match value {
            0 => 0,
            _ => (1..8).find(|&ones| fits(value, VARBIT_BITS[ones])).unwrap_or(8),
        };
        self.put_varbit(bytes, value.cast_unsigned(), ones);
    }

    /// Appends an unsigned number: `varbit_uint`.
    pub(super) fn put_uint(&mut self, bytes: &mut Vec<u8>, value: u64) {
        let ones = match value {
            0 => 0,
            _ => (1..8).find(|&ones| value < 1 << VARBIT_BITS[ones]).unwrap_or(8),
        };
        self.put_varbit(bytes, value, ones);
    }

    fn put_varbit(&mut self, bytes: &mut Vec<u8>, value: u64, ones: usize) {
        match ones {
            0 => self.put(bytes, 0, 1),
            8 => self.put(bytes, 0xff, 8),
            _ => self.put(bytes, (1 << (ones + 1)) - 2, u32::try_from(ones).unwrap_or(0) + 1),
        }
        self.put(bytes, value, VARBIT_BITS[ones]);
    }
}

/// Whether Prometheus holds `value` to fit in `bits`: one more value above zero than below.
#[inline]
pub(super) fn fits(value: i64, bits: u32) -> bool {
    let half = 1_i64 << (bits - 1);
    -(half - 1) <= value && value <= half
}

/// The other way of [`fits`]: `bits` read bits as a signed number.
#[inline]
pub(super) fn signed(raw: u64, bits: u32) -> i64 {
    if bits < 64 && raw > 1 << (bits - 1) { raw.wrapping_sub(1 << bits).cast_signed() } else { raw.cast_signed() }
}

/// A float that is written as the XOR with the one before it (`varbit_xor`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Xor {
    /// Bits of the float before.
    pub(super) bits: u64,
    /// Leading zeros of the window, [`NO_WINDOW`] before the first.
    pub(super) leading: u8,
    /// Trailing zeros of the window.
    pub(super) trailing: u8,
}

impl Xor {
    /// Starts with a float that is stored whole.
    pub(super) fn new(bits: u64) -> Self {
        Self { bits, leading: NO_WINDOW, trailing: 0 }
    }

    /// Appends the next float.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "counts of zeros are at most 64")]
    pub(super) fn put(&mut self, free: &mut Free, bytes: &mut Vec<u8>, bits: u64) {
        let xor = bits ^ self.bits;
        self.bits = bits;
        if xor == 0 {
            free.put(bytes, 0, 1);
            return;
        }
        let leading = xor.leading_zeros().min(31) as u8;
        let trailing = xor.trailing_zeros() as u8;
        if self.leading != NO_WINDOW && leading >= self.leading && trailing >= self.trailing {
            let width = 64 - u32::from(self.leading) - u32::from(self.trailing);
            free.put(bytes, 0b10, 2);
            free.put(bytes, xor >> self.trailing, width);
            return;
        }
        (self.leading, self.trailing) = (leading, trailing);
        let width = 64 - u32::from(leading) - u32::from(trailing);
        // 64 does not fit in six bits and is written as 0, which no XOR that differs can mean.
        let head = 0b11 << 11 | u64::from(leading) << 6 | u64::from(width & 63);
        free.put(bytes, head, 13);
        free.put(bytes, xor >> trailing, width);
    }

    /// Reads the next float into `self.bits`.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "five and six bits")]
    pub(super) fn read(&mut self, from: &mut BitReader<'_>) -> Result<(), Broken> {
        let word = from.peek();
        if word >> 63 == 0 {
            from.skip(1);
            return Ok(());
        }
        if word >> 62 == 0b11 {
            let leading = (word >> 57) as u8 & 31;
            let width = match (word >> 51) as u8 & 63 {
                0 => 64,
                width => width,
            };
            if leading + width > 64 {
                return Err(from.broken("xor window is wider than a float"));
            }
            (self.leading, self.trailing) = (leading, 64 - leading - width);
            from.skip(13);
        } else {
            if self.leading == NO_WINDOW {
                return Err(from.broken("xor window is used before it is set"));
            }
            from.skip(2);
        }
        let width = 64 - u32::from(self.leading) - u32::from(self.trailing);
        self.bits ^= from.read(width) << self.trailing;
        Ok(())
    }
}

/// The next 64 bits from bit `at` on, which lies in the last eight bytes or behind them. Takes no reader: one
/// that is lent to a call lives in memory and not in registers.
#[cold]
fn tail(bytes: &[u8], at: usize) -> u64 {
    let last = match bytes.last_chunk::<8>() {
        Some(last) => u64::from_be_bytes(*last),
        None => bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    let left = (bytes.len() * 8).saturating_sub(at);
    if left == 0 { 0 } else { last << (64 - left.min(64)) }
}

/// Reads bits; past the end there are zeros.
#[derive(Clone, Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    /// From byte `at` of `bytes`.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at * 8 }
    }

    /// The next 64 bits, most significant first.
    #[inline]
    pub(super) fn peek(&self) -> u64 {
        let (byte, shift) = (self.at >> 3, self.at & 7);
        match self.bytes.get(byte..byte + 9) {
            Some(&[a, b, c, d, e, f, g, h, last]) => {
                u64::from_be_bytes([a, b, c, d, e, f, g, h]) << shift | u64::from(last) >> (8 - shift)
            }
            _ => tail(self.bytes, self.at),
        }
    }

    /// The next [`NEAR_BITS`] bits, most significant first, and zeros or more bits after them; cheaper than
    /// [`Self::peek`].
    #[inline]
    pub(super) fn near(&self) -> u64 {
        let byte = self.at >> 3;
        match self.bytes.get(byte..byte + 8) {
            Some(&[a, b, c, d, e, f, g, h]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]) << (self.at & 7),
            _ => tail(self.bytes, self.at),
        }
    }

    /// Passes over `n` bits.
    #[inline]
    pub(super) fn skip(&mut self, n: u32) {
        self.at += n as usize;
    }

    /// Passes over any number of bits that are there.
    #[inline]
    pub(super) fn pass(&mut self, n: usize) {
        self.at += n;
    }

    /// The next `n` (1 to 64) bits.
    #[inline]
    pub(super) fn read(&mut self, n: u32) -> u64 {
        let word = self.peek() >> (64 - n);
        self.skip(n);
        word
    }

    /// A signed number: `varbit_int`.
    #[inline]
    pub(super) fn int(&mut self) -> i64 {
        let (raw, bits) = self.varbit();
        signed(raw, bits.max(1))
    }

    /// An unsigned number: `varbit_uint`.
    #[inline]
    pub(super) fn uint(&mut self) -> u64 {
        self.varbit().0
    }

    #[inline]
    fn varbit(&mut self) -> (u64, u32) {
        let ones = self.peek().leading_ones().min(8);
        self.skip((ones + 1).min(8));
        let bits = VARBIT_BITS[ones as usize];
        (if bits == 0 { 0 } else { self.read(bits) }, bits)
    }

    /// Bits that are left, none when the end was passed.
    pub(super) fn left(&self) -> usize {
        (self.bytes.len() * 8).saturating_sub(self.at)
    }

    /// An error at this place.
    #[inline]
    pub(super) fn broken(&self, what: &'static str) -> Broken {
        Broken { at: self.at / 8, what }
    }

    /// Checks that what was read was there.
    ///
    /// # Errors
    /// The end was passed.
    pub(super) fn finish(&self) -> Result<(), Broken> {
        if self.at <= self.bytes.len() * 8 { Ok(()) } else { Err(self.broken("chunk ends early")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(numbers in proptest::collection::vec((any::<i64>(), 0_u32..64, any::<u64>()), 1..60)) {
            let (mut bytes, mut free) = (Vec::new(), Free::default());
            let mut xor = Xor::new(7);
            for (int, shift, float) in &numbers {
                free.put_int(&mut bytes, int >> shift);
                free.put_uint(&mut bytes, int.cast_unsigned() >> shift);
                xor.put(&mut free, &mut bytes, float << shift);
                free.put(&mut bytes, float & 1, 1);
            }
            let mut r = BitReader::new(&bytes, 0);
            let mut xor = Xor::new(7);
            for (int, shift, float) in &numbers {
                prop_assert_eq!(r.int(), int >> shift);
                prop_assert_eq!(r.uint(), int.cast_unsigned() >> shift);
                prop_assert_eq!(xor.read(&mut r), Ok(()));
                prop_assert_eq!(xor.bits, float << shift);
                prop_assert_eq!(r.read(1), float & 1);
            }
            prop_assert_eq!(r.finish(), Ok(()));
            prop_assert!(r.left() < 8);
        }
    }

    #[test]
    fn edges_of_each_width_come_back() {
        for bits in [3, 6, 9, 12, 14, 17, 18, 20, 25, 56] {
            let half = 1_i64 << (bits - 1);
            for value in [half, half + 1, -half, -half + 1, half - 1, i64::MAX, i64::MIN] {
                let (mut bytes, mut free) = (Vec::new(), Free::default());
                free.put_int(&mut bytes, value);
                assert_eq!(BitReader::new(&bytes, 0).int(), value);
            }
        }
    }
}
