//! Why a whole body is refused. Each is the sender's to change: repeating the request cannot help.

use engram_model::{Class, Classed};

/// A body that cannot be read, or asks for too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than a body may be.
    #[error("body of {len} bytes after decompression exceeds the limit of {max}")]
    TooLarge {
        /// Its size or what it declares.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It declares more than its bytes can hold.
    #[error("snappy block of {compressed} bytes declares {len} bytes, more than it can hold")]
    Expansion {
        /// What it declares.
        len: usize,
        /// What was sent.
        compressed: usize,
    },
    /// Not snappy's block format.
    #[error("snappy: {0}")]
    Snappy(#[from] snap::Error),
    /// Not the protobuf message it should be.
    #[error("protobuf at byte {at}: {what}")]
    Malformed {
        /// Offset in the decompressed body.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A reference to a symbol that is not there.
    #[error("protobuf at byte {at}: symbol {index} of {symbols}")]
    NoSymbol {
        /// Offset in the decompressed body.
        at: usize,
        /// The reference.
        index: u64,
        /// How many symbols there are.
        symbols: usize,
    },
    /// The message of the other version.
    #[error("protobuf at byte {at}: field {field} belongs to {other}, the content type says otherwise")]
    WrongVersion {
        /// Offset in the decompressed body.
        at: usize,
        /// The field's number.
        field: u64,
        /// The message it is of.
        other: &'static str,
    },
    /// More of something than one request may hold.
    #[error("more than {max} {what} in one request")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

impl Classed for DecodeError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}
