//! Protobuf's wire format, walked without copying.
//!
//! A [`Cursor`] is a range of the body; nested messages are cursors of their own, so every offset is one in the body
//! and can be kept as a [`Text`]. Wire types 3 and 4 (groups) are not used by either protocol and refused.

use engram_model::batch::Text;

use super::DecodeError;

/// A number of seven-bit pieces.
pub(super) const VARINT: u64 = 0;
/// Eight bytes.
pub(super) const FIXED64: u64 = 1;
/// A length and that many bytes.
pub(super) const BYTES: u64 = 2;
/// Four bytes.
const FIXED32: u64 = 5;

/// What a field begins with.
pub(super) struct Tag {
    pub(super) field: u64,
    pub(super) wire: u64,
    /// Where it stands.
    pub(super) at: usize,
}

/// Reads one message.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    body: &'a [u8],
    at: usize,
    /// At most `body.len()`.
    end: usize,
}

fn malformed<T>(at: usize, what: &'static str) -> Result<T, DecodeError> {
    Err(DecodeError::Malformed { at, what })
}

impl<'a> Cursor<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0, end: body.len() }
    }

    #[inline]
    pub(super) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        match *self.rest() {
            [byte, ..] if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            [low, high, ..] if high < 0x80 => {
                self.at += 2;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.varint_long(),
        }
    }

    fn varint_long(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for (i, &byte) in self.rest().iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return malformed(self.at, "varint is longer than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        malformed(self.at, if self.rest().len() < 10 { "varint ends early" } else { "varint is longer than 64 bits" })
    }

    /// What is left.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..self.end).unwrap_or_default()
    }

    /// The next field's tag, `None` at the end of the message.
    #[inline]
    pub(super) fn tag(&mut self) -> Result<Option<Tag>, DecodeError> {
        if self.is_empty() {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        if tag < 8 || tag > u64::from(u32::MAX) {
            return malformed(at, "field number out of range");
        }
        Ok(Some(Tag { field: tag >> 3, wire: tag & 7, at }))
    }

    /// A length-delimited field's bytes as a message of its own.
    #[inline]
    pub(super) fn message(&mut self, tag: &Tag) -> Result<Self, DecodeError> {
        want(tag, BYTES)?;
        let len = self.varint()?;
        let left = self.end - self.at;
        match usize::try_from(len) {
            Ok(len) if len <= left => {
                let inner = Self { body: self.body, at: self.at, end: self.at + len };
                self.at += len;
                Ok(inner)
            }
            _ => malformed(tag.at, "field is longer than its message"),
        }
    }

    /// A length-delimited field's bytes by their place.
    #[inline]
    pub(super) fn text(&mut self, tag: &Tag) -> Result<Text, DecodeError> {
        let inner = self.message(tag)?;
        Ok(place(inner.at, inner.end - inner.at))
    }

    /// A number.
    #[inline]
    pub(super) fn number(&mut self, tag: &Tag) -> Result<u64, DecodeError> {
        want(tag, VARINT)?;
        self.varint()
    }

    /// A signed number, two's complement.
    #[inline]
    pub(super) fn signed(&mut self, tag: &Tag) -> Result<i64, DecodeError> {
        Ok(self.number(tag)?.cast_signed())
    }

    /// A signed number of 32 bits, zigzag.
    #[inline]
    pub(super) fn zigzag32(&mut self, tag: &Tag) -> Result<i32, DecodeError> {
        match i32::try_from(zigzag(self.number(tag)?)) {
            Ok(value) => Ok(value),
            Err(_) => malformed(tag.at, "number does not fit into 32 bits"),
        }
    }

    /// A float, bit for bit.
    #[inline]
    pub(super) fn double(&mut self, tag: &Tag) -> Result<f64, DecodeError> {
        want(tag, FIXED64)?;
        self.fixed64()
    }

    #[inline]
    fn fixed64(&mut self) -> Result<f64, DecodeError> {
        let Some(bytes) = self.rest().first_chunk::<8>() else { return malformed(self.at, "float ends early") };
        self.at += 8;
        Ok(f64::from_bits(u64::from_le_bytes(*bytes)))
    }

    /// A repeated number, packed or one by one.
    pub(super) fn each_varint(
        &mut self,
        tag: &Tag,
        mut each: impl FnMut(usize, u64) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        if tag.wire == VARINT {
            let at = self.at;
            return each(at, self.varint()?);
        }
        let mut packed = self.message(tag)?;
        while !packed.is_empty() {
            let at = packed.at;
            each(at, packed.varint()?)?;
        }
        Ok(())
    }

    /// A repeated float, packed or one by one.
    pub(super) fn each_double(
        &mut self,
        tag: &Tag,
        mut each: impl FnMut(f64) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        if tag.wire == FIXED64 {
            return each(self.fixed64()?);
        }
        let mut packed = self.message(tag)?;
        while !packed.is_empty() {
            each(packed.fixed64()?)?;
        }
        Ok(())
    }

    /// Steps over a field that we do not know.
    pub(super) fn skip(&mut self, tag: &Tag) -> Result<(), DecodeError> {
        let len = match tag.wire {
            VARINT => return self.varint().map(|_| ()),
            BYTES => return self.message(tag).map(|_| ()),
            FIXED64 => 8,
            FIXED32 => 4,
            _ => return malformed(tag.at, "unknown wire type"),
        };
        if self.end - self.at < len {
            return malformed(self.at, "field ends early");
        }
        self.at += len;
        Ok(())
    }
}

/// A place in the body, which is not larger than 4 GiB: `decode` has checked.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "offsets lie in a body whose length was checked to fit 32 bits")]
pub(super) fn place(at: usize, len: usize) -> Text {
    debug_assert!(at + len <= u32::MAX as usize, "offset {at} + {len} outside a body of 32 bits");
    Text { at: at as u32, len: len as u32 }
}

#[inline]
fn want(tag: &Tag, wire: u64) -> Result<(), DecodeError> {
    if tag.wire == wire { Ok(()) } else { malformed(tag.at, "field has another wire type than expected") }
}

#[inline]
pub(super) fn zigzag(raw: u64) -> i64 {
    (raw >> 1).cast_signed() ^ -((raw & 1).cast_signed())
}
