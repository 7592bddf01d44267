//! The name of a block.
//!
//! Why a type here: metadata names blocks it never opens, storage opens blocks whose metadata it never sees, and both
//! must mean the same. The name is a ULID: 48 bits of milliseconds, then 80 bits of chance, written as 26 letters of
//! Crockford's alphabet, because every tool of the block format expects that as the directory's name.
//!
//! Source: `github.com/ulid/spec`.

use std::fmt;
use std::str::FromStr;

use crate::time::Millis;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Letters of a name: five bits each, the first holds only three.
const LETTERS: usize = 26;

/// The name of a block. Sorts by the time it was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockId(pub u128);

/// A text that names no block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a block (26 letters of a ULID)")]
pub struct NotBlockId(String);

impl BlockId {
    /// Of the time it is made (0 when before 1970 or after 10889) and 80 bits of `chance`; higher bits are cut off.
    #[must_use]
    pub fn new(at: Millis, chance: u128) -> Self {
        let at = u128::try_from(at).ok().filter(|at| *at < 1 << 48).unwrap_or(0);
        Self(at << 80 | chance & ((1 << 80) - 1))
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters: String = (0..LETTERS)
            .rev()
            .map(|place| char::from(ALPHABET[usize::try_from(self.0 >> (place * 5) & 31).unwrap_or(0)]))
            .collect();
        f.pad(&letters)
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<BlockId> for String {
    fn from(id: BlockId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for BlockId {
    type Error = NotBlockId;

    fn try_from(text: String) -> Result<Self, NotBlockId> {
        text.parse()
    }
}

/// Takes the form [`fmt::Display`] writes and no other: two spellings of one name would be two directories.
impl FromStr for BlockId {
    type Err = NotBlockId;

    fn from_str(text: &str) -> Result<Self, NotBlockId> {
        let bad = || NotBlockId(text.chars().take(64).collect());
        if text.len() != LETTERS || text.as_bytes()[0] > b'7' {
            return Err(bad());
        }
        let digit = |letter: u8| ALPHABET.iter().position(|have| *have == letter);
        text.bytes().try_fold(0_u128, |sum, letter| Some(sum << 5 | digit(letter)? as u128)).map(Self).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_come_back_and_sort_as_numbers(a: u128, b: u128) {
            let (a, b) = (BlockId(a), BlockId(b));
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn other_texts_are_refused(text in ".{0,30}") {
            if let Ok(id) = text.parse::<BlockId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn the_example_of_the_specification() {
        let id: BlockId = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        assert_eq!(id.0 >> 80, 1_469_922_850_259);
        assert_eq!(BlockId::new(1_469_922_850_259, id.0), id);
        assert!("81ARZ3NDEKTSV4RRFFQ69G5FAV".parse::<BlockId>().is_err(), "more than 128 bits");
    }
}
