//! What was set aside for a seal, on its way: a promise, then series in frames. Drawn in `docs/formats/wire.md`.
//!
//! ```text
//! promise := 0 | 1  number (u64)  start (time)  end (time)  digests
//! frame   := series+                                              as in `series.rs`, in order of labels
//! ```

use std::collections::BTreeMap;

use engram_model::digest::Digest;
use engram_model::series::{Columns, ReadError};
use engram_model::{Millis, TimeRange};
use engram_storage::codec::{Broken, Reader, put_u64, put_varint};

use super::series::{put_digests, put_series, read_digests};
use crate::peer::SetAside;
use engram_model::series::Series;

/// Kind of the frame that comes first.
pub const PROMISE: u32 = 3;
/// Kind of the frames after it.
pub const SERIES: u32 = 2;

/// What a part will hold when all of it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The seal's number.
    pub number: u64,
    /// Its window.
    pub window: TimeRange,
    /// The digest of each slot that holds samples.
    pub digests: BTreeMap<Millis, Digest>,
}

/// The promise of a part; none: it was forgotten.
#[must_use]
pub fn put_promise(part: Option<&SetAside>) -> Vec<u8> {
    let Some(part) = part else { return vec![0] };
    let mut out = vec![1];
    put_u64(&mut out, part.number);
    put_varint(&mut out, part.window.start);
    put_varint(&mut out, part.window.end);
    let digests: Vec<(Millis, Digest)> = part.digests.iter().map(|(slot, digest)| (*slot, *digest)).collect();
    out.extend_from_slice(&put_digests(&digests));
    out
}

/// A promise that has arrived.
///
/// # Errors
/// The bytes are none.
pub fn read_promise(bytes: &[u8]) -> Result<Option<Promise>, Broken> {
    let mut r = Reader::new(bytes);
    if r.u8()? == 0 {
        return Ok(None);
    }
    let number = r.u64()?;
    let window = TimeRange { start: r.varint()?, end: r.varint()? };
    let digests = read_digests(&bytes[r.at()..])?.into_iter().collect();
    Ok(Some(Promise { number, window, digests }))
}

/// Encodes series into frames, each sent when it has grown to so many bytes.
#[derive(Debug)]
pub struct Frames {
    window: TimeRange,
    frame_bytes: usize,
    frame: Vec<u8>,
    columns: Columns,
}

impl Frames {
    /// Of series with samples of `window`.
    #[must_use]
    pub fn new(window: TimeRange, frame_bytes: usize) -> Self {
        Self { window, frame_bytes, frame: Vec::new(), columns: Columns::default() }
    }

    /// Takes one series; the frame that is full with it.
    ///
    /// # Errors
    /// Stored bytes do not decode.
    pub fn put(&mut self, series: &Series) -> Result<Option<Vec<u8>>, ReadError> {
        put_series(&mut self.frame, series, self.window, &mut self.columns)?;
        Ok((self.frame.len() >= self.frame_bytes).then(|| std::mem::take(&mut self.frame)))
    }

    /// What is left at the end.
    #[must_use]
    pub fn rest(self) -> Option<Vec<u8>> {
        (!self.frame.is_empty()).then_some(self.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Frozen;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_promise_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = read_promise(&bytes);
        }
    }

    #[test]
    fn what_is_promised_comes_back() {
        let digests = BTreeMap::from([(-300_000, Digest { count: 2, low: 1, high: 9 }), (0, Digest::EMPTY)]);
        let window = TimeRange { start: -300_000, end: 9 };
        let part = SetAside::from(Frozen { number: 4, window, digests: digests.clone(), series: Vec::new() });
        let back = read_promise(&put_promise(Some(&part))).unwrap();
        assert_eq!(back, Some(Promise { number: 4, window, digests }));
        assert!(read_promise(&put_promise(None)).unwrap().is_none());
        assert!(read_promise(&[]).is_err());
    }
}
