//! The bytes of everything this room writes: a format byte, then MessagePack with field names.
//!
//! Why names: rows and entries outlive the binary that wrote them. A field that is added later with
//! `#[serde(default)]` reads old rows, which a positional encoding cannot promise. JSON would do the same at twice
//! the size and would spell digests and bytes as text. The encoding of one value is always the same bytes (no
//! unordered map is ever encoded), so equal states are equal bytes. Drawn in `docs/formats/raft.md`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// The first byte of every encoded value.
pub(crate) const FORMAT: u8 = 1;

/// The bytes of a value.
///
/// # Errors
/// [`Error::Corrupt`] if the value cannot be encoded: our bug.
pub(crate) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, Error> {
    let mut out = vec![FORMAT];
    let mut serializer = rmp_serde::Serializer::new(&mut out).with_struct_map();
    value.serialize(&mut serializer).map_err(|e| Error::Corrupt { what, why: e.to_string() })?;
    Ok(out)
}

/// The value of bytes.
///
/// # Errors
/// [`Error::Corrupt`]: the bytes are damaged, or a newer version of Engram wrote them.
pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => rmp_serde::from_slice(rest).map_err(|e| Error::Corrupt { what, why: e.to_string() }),
        Some((format, _)) => Err(Error::Corrupt { what, why: format!("format {format}, known is {FORMAT}") }),
        None => Err(Error::Corrupt { what, why: "no bytes".to_owned() }),
    }
}
