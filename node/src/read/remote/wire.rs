//! Protobuf's wire format, as far as remote read needs it: fields read one by one, and written.
//!
//! Why by hand: the messages are few and flat, and a generated decoder would make a string of every label before
//! anything could be refused.

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// A number of seven-bit pieces.
    Number(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Four bytes.
    Fixed32(u32),
    /// A text, a message, or packed numbers.
    Bytes(&'a [u8]),
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protobuf: {0}")]
pub struct Malformed(pub &'static str);

/// Reads the fields of one message in order.
#[derive(Clone, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Of a whole message.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// Number and content of the next field; none at the end.
    ///
    /// # Errors
    /// The bytes end early, or are of a kind (groups) that the protocols do not use.
    pub fn next_field(&mut self) -> Result<Option<(u64, Field<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        if tag < 8 || tag > u64::from(u32::MAX) {
            return Err(Malformed("field number out of range"));
        }
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let len = self.number()?;
                let len = usize::try_from(len).ok().filter(|len| *len <= self.0.len());
                let (bytes, rest) = self.0.split_at(len.ok_or(Malformed("field is longer than its message"))?);
                self.0 = rest;
                Field::Bytes(bytes)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Err(Malformed("unknown wire type")),
        };
        Ok(Some((tag >> 3, field)))
    }

    /// A number that stands alone: a piece of packed ones, or a length.
    ///
    /// # Errors
    /// The bytes end early, or it is longer than 64 bits.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (i, &byte) in self.0.iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return Err(Malformed("varint is longer than 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err(Malformed(if self.0.len() < 10 { "varint ends early" } else { "varint is longer than 64 bits" }))
    }

    /// What is left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("number ends early"))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

impl<'a> Field<'a> {
    /// A number, or a wrong kind.
    ///
    /// # Errors
    /// It is of another kind.
    pub fn as_number(self) -> Result<u64, Malformed> {
        if let Self::Number(number) = self { Ok(number) } else { Err(Malformed("field has another wire type")) }
    }

    /// Bytes, or a wrong kind.
    ///
    /// # Errors
    /// It is of another kind.
    pub fn as_bytes(self) -> Result<&'a [u8], Malformed> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Malformed("field has another wire type")) }
    }

    /// A text.
    ///
    /// # Errors
    /// It is of another kind or no UTF-8.
    pub fn as_text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.as_bytes()?).map_err(|_| Malformed("a text is not UTF-8"))
    }
}

/// Appends a number of seven-bit pieces.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

/// Appends a field that is a number; one that is 0 is left out, as the format says.
pub fn put_number(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        put_number_always(out, field, number);
    }
}

/// Appends a field that is a number, also when it is 0: one of a choice is there or not.
pub fn put_number_always(out: &mut Vec<u8>, field: u32, number: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, number);
}

/// Appends a field that is a signed number, small ones of either sign short.
pub fn put_zigzag(out: &mut Vec<u8>, field: u32, number: i64) {
    put_number(out, field, zigzag(number));
}

/// A signed number with its sign in the lowest bit.
#[must_use]
pub fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// Appends a field that is a float; positive zero is left out.
pub fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    if value.to_bits() != 0 {
        put_double_always(out, field, value);
    }
}

/// Appends a field that is a float, also when it is 0.
pub fn put_double_always(out: &mut Vec<u8>, field: u32, value: f64) {
    put_varint(out, u64::from(field) << 3 | 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

/// Appends a field of bytes.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_come_back(numbers in proptest::collection::vec(any::<u64>(), 0..8), text in ".{0,40}", float: f64) {
            let mut out = Vec::new();
            for number in &numbers {
                put_number_always(&mut out, 1, *number);
            }
            put_bytes(&mut out, 2, text.as_bytes());
            put_double_always(&mut out, 3000, float);
            let mut fields = Fields::new(&out);
            for number in &numbers {
                prop_assert_eq!(fields.next_field(), Ok(Some((1, Field::Number(*number)))));
            }
            prop_assert_eq!(fields.next_field(), Ok(Some((2, Field::Bytes(text.as_bytes())))));
            prop_assert_eq!(fields.next_field(), Ok(Some((3000, Field::Fixed64(float.to_bits())))));
            prop_assert_eq!(fields.next_field(), Ok(None));
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut fields = Fields::new(&bytes);
            let mut steps = 0;
            while let Ok(Some(_)) = fields.next_field() {
                steps += 1;
            }
            prop_assert!(steps <= bytes.len());
        }
    }

    #[test]
    fn what_ends_early_or_is_too_long_is_refused() {
        for bytes in [&[0x08][..], &[0x08, 0x80], &[0x09, 1, 2], &[0x12, 5, 1], &[0x0b], &[0x00], &[0x0d, 1, 2, 3]] {
            assert!(Fields::new(bytes).next_field().is_err(), "{bytes:?}");
        }
        let long: Vec<u8> = [&[0x08][..], &[0xff; 9], &[0x02]].concat();
        assert_eq!(Fields::new(&long).next_field(), Err(Malformed("varint is longer than 64 bits")));
        assert_eq!((zigzag(0), zigzag(-1), zigzag(1), zigzag(i64::MIN)), (0, 1, 2, u64::MAX));
    }
}
