//! What one select takes out of a head, in few pieces.
//!
//! Why: a select of a hundred thousand series spent a third of its time in the allocator, for small lists of chunks and
//! copies of open ones, all of which go at once when the query ends. Here all copies lie one after the other in one
//! buffer, all references to full chunks in one list, and a series knows its share of both.

use std::ops::Range;
use std::sync::Arc;

use engram_model::series::{Columns, ReadError, SampleSource};
use engram_model::{Labels, Millis, TimeRange};

use super::Series;
use crate::chunk::{self, Chunk, Kind};

/// All chunks of a select.
#[derive(Debug, Default)]
pub(super) struct Picked {
    full: Vec<Chunk>,
    open: Vec<u8>,
}

/// The copy of an open chunk: where in the buffer.
#[derive(Clone, Debug)]
struct OpenPart {
    first: Millis,
    last: Millis,
    bytes: Range<usize>,
    kind: Kind,
}

/// A series' share.
#[derive(Debug)]
pub(super) struct Share {
    hash: u128,
    full: Range<usize>,
    open: Option<OpenPart>,
}

/// A series whose chunks lie with those of others.
struct PickedSeries {
    picked: Arc<Picked>,
    share: Share,
}

impl Picked {
    /// Takes the chunks of a series that may hold samples of the range; `None`: it has none.
    pub(super) fn take(&mut self, series: &Series, range: TimeRange) -> Option<Share> {
        let from = self.full.len();
        self.full.extend_from_slice(series.full_in(range));
        let open = series.open.in_range(range).map(|(kind, bounds, bytes)| {
            let at = self.open.len();
            self.open.extend_from_slice(bytes);
            OpenPart { first: bounds.0, last: bounds.1, bytes: at..self.open.len(), kind }
        });
        let full = from..self.full.len();
        (open.is_some() || !full.is_empty()).then(|| Share { hash: series.hash(), full, open })
    }

    /// Makes the shares readable.
    pub(super) fn share_out(self, shares: Vec<(Labels, Share)>) -> impl Iterator<Item = engram_model::series::Series> {
        let picked = Arc::new(self);
        shares.into_iter().map(move |(labels, share)| engram_model::series::Series {
            labels,
            source: Arc::new(PickedSeries { picked: Arc::clone(&picked), share }),
        })
    }
}

impl SampleSource for PickedSeries {
    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        let reaches = |first: Millis, last: Millis| first < range.end && range.start <= last;
        let broken = |broken: crate::codec::Broken| ReadError::Corrupt {
            series: format!("{:032x}", self.share.hash),
            what: broken.to_string(),
        };
        let full = &self.picked.full[self.share.full.clone()];
        for one in full.iter().filter(|one| reaches(one.first, one.last)) {
            one.read(self.share.hash, out)?;
        }
        match &self.share.open {
            Some(open) if reaches(open.first, open.last) => {
                chunk::decode(open.kind, &self.picked.open[open.bytes.clone()], out).map_err(broken)
            }
            _ => Ok(()),
        }
    }

    fn series_hash(&self) -> Option<u128> {
        Some(self.share.hash)
    }
}
