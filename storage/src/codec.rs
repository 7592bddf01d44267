//! Bounded reading and writing of bytes.
//!
//! Why: bytes from disk are the world's, so each read may fail and none may panic, run past the end or believe a
//! length it has not checked. All our own formats are written with the `put_*` here and read with [`Reader`].
//! Integers are big-endian; varints are those of Go and protobuf (seven bits a byte, low first, at most ten bytes).
//!
//! It knows no file: [`Broken`] says where in the slice, the caller says in which file (`Error::broken`).

/// Where in a slice, and why, reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Broken {
    /// Offset in the slice.
    pub at: usize,
    /// What was expected.
    pub what: &'static str,
}

/// Reads forward through a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { all: bytes, at: 0 }
    }

    /// Offset of the next byte.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// What is left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        &self.all[self.at..]
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.all.len()
    }

    fn broken(&self, what: &'static str) -> Broken {
        Broken { at: self.at, what }
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// Fewer are left.
    #[inline]
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Broken> {
        let found = self.rest().get(..len).ok_or(self.broken("bytes end early"))?;
        self.at += len;
        Ok(found)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let found = *self.rest().first_chunk::<N>().ok_or(self.broken("number ends early"))?;
        self.at += N;
        Ok(found)
    }

    /// One byte.
    ///
    /// # Errors
    /// None is left.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Broken> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Two bytes, big-endian.
    ///
    /// # Errors
    /// Fewer are left.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, Broken> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four bytes, big-endian.
    ///
    /// # Errors
    /// Fewer are left.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Broken> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes, big-endian.
    ///
    /// # Errors
    /// Fewer are left.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Sixteen bytes, big-endian.
    ///
    /// # Errors
    /// Fewer are left.
    #[inline]
    pub fn u128(&mut self) -> Result<u128, Broken> {
        Ok(u128::from_be_bytes(self.array()?))
    }

    /// Eight bytes, big-endian, two's complement.
    ///
    /// # Errors
    /// Fewer are left.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, Broken> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A float by its bits, big-endian: every NaN comes back as it was.
    ///
    /// # Errors
    /// Fewer than eight bytes are left.
    #[inline]
    pub fn f64(&mut self) -> Result<f64, Broken> {
        Ok(f64::from_bits(self.u64()?))
    }

    /// An unsigned varint.
    ///
    /// # Errors
    /// It ends early, or says more than 64 bits.
    #[inline]
    pub fn uvarint(&mut self) -> Result<u64, Broken> {
        let mut value = 0_u64;
        for (i, &byte) in self.rest().iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return Err(self.broken("varint is longer than 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err(self.broken("varint ends early"))
    }

    /// A signed varint, zigzag, as Go's `binary.PutVarint` writes it.
    ///
    /// # Errors
    /// As [`Self::uvarint`].
    #[inline]
    pub fn varint(&mut self) -> Result<i64, Broken> {
        let raw = self.uvarint()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// An unsigned varint that counts things or bytes, at most `max`.
    ///
    /// # Errors
    /// As [`Self::uvarint`], or it is above `max`: nothing may be allocated for it.
    #[inline]
    pub fn length(&mut self, max: usize) -> Result<usize, Broken> {
        let at = self.at;
        let said = self.uvarint()?;
        match usize::try_from(said) {
            Ok(len) if len <= max => Ok(len),
            _ => Err(Broken { at, what: "length is above its limit" }),
        }
    }

    /// A varint length and that many bytes.
    ///
    /// # Errors
    /// As [`Self::uvarint`], or fewer bytes are left than it says.
    #[inline]
    pub fn prefixed(&mut self) -> Result<&'a [u8], Broken> {
        let len = self.length(usize::MAX)?;
        self.bytes(len)
    }

    /// As [`Self::prefixed`], as text.
    ///
    /// # Errors
    /// As [`Self::prefixed`], or the bytes are not UTF-8.
    pub fn str(&mut self) -> Result<&'a str, Broken> {
        let at = self.at;
        std::str::from_utf8(self.prefixed()?).map_err(|_| Broken { at, what: "text is not UTF-8" })
    }

    /// Checks that all was read.
    ///
    /// # Errors
    /// Something is left.
    pub fn end(&self) -> Result<(), Broken> {
        if self.is_empty() { Ok(()) } else { Err(self.broken("bytes after the end")) }
    }
}

/// Appends an unsigned varint.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "masked to seven bits before the cast")]
pub fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed varint, zigzag.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    put_uvarint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends a varint length and the bytes.
#[inline]
pub fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends two bytes, big-endian.
#[inline]
pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends four bytes, big-endian.
#[inline]
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends eight bytes, big-endian.
#[inline]
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends sixteen bytes, big-endian.
#[inline]
pub fn put_u128(out: &mut Vec<u8>, value: u128) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a float by its bits.
#[inline]
pub fn put_f64(out: &mut Vec<u8>, value: f64) {
    put_u64(out, value.to_bits());
}

/// CRC-32C (Castagnoli) of `bytes`, with the processor's instruction where it has one.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// The CRC-32C of what was summed to `crc` followed by `bytes`.
#[inline]
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_read(a: u64, b: i64, c: u32, d: u16, e: u128, f: u64, text in ".{0,40}", small in 0_u64..300) {
            let mut out = Vec::new();
            put_uvarint(&mut out, a);
            put_uvarint(&mut out, small);
            put_varint(&mut out, b);
            put_u32(&mut out, c);
            put_u16(&mut out, d);
            put_u128(&mut out, e);
            put_f64(&mut out, f64::from_bits(f));
            put_prefixed(&mut out, text.as_bytes());
            let mut r = Reader::new(&out);
            prop_assert_eq!(r.uvarint(), Ok(a));
            prop_assert_eq!(r.uvarint(), Ok(small));
            prop_assert_eq!(r.varint(), Ok(b));
            prop_assert_eq!(r.u32(), Ok(c));
            prop_assert_eq!(r.u16(), Ok(d));
            prop_assert_eq!(r.u128(), Ok(e));
            prop_assert_eq!(r.f64().map(f64::to_bits), Ok(f));
            prop_assert_eq!(r.str(), Ok(text.as_str()));
            prop_assert_eq!(r.end(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut r = Reader::new(&bytes);
            while !r.is_empty() && r.uvarint().is_ok() {}
            let mut r = Reader::new(&bytes);
            while !r.is_empty() && r.prefixed().is_ok() {}
            prop_assert!(r.at() <= bytes.len());
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        let mut bytes = [0xff_u8; 10];
        bytes[9] = 2;
        assert_eq!(Reader::new(&bytes).uvarint(), Err(Broken { at: 0, what: "varint is longer than 64 bits" }));
        bytes[9] = 1;
        assert_eq!(Reader::new(&bytes).uvarint(), Ok(u64::MAX));
        assert!(Reader::new(&[0x80; 12]).uvarint().is_err());
    }

    #[test]
    fn a_length_above_its_limit_is_refused() {
        assert_eq!(Reader::new(&[5]).length(4), Err(Broken { at: 0, what: "length is above its limit" }));
        assert_eq!(Reader::new(&[5]).length(5), Ok(5));
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_append(crc32c(b"1234"), b"56789"), 0xe306_9283);
    }
}
