//! Any bytes as what the log holds for a head: no harm, and a head that took it can be looked at.
//!
//! The input is the first payloads of a real head, edited, as records of two bytes of length and the payload; what cannot
//! be read ends it, as it ends a recovery.

use std::sync::Arc;

use engram_model::TimeRange;
use engram_storage::codec::Reader;
use engram_storage::head::{Head, HeadOptions, Symbols};

/// One case.
pub fn run(data: &[u8]) {
    let mut head = Head::new(Arc::new(Symbols::default()), HeadOptions::default());
    let mut records = Reader::new(data);
    while let Ok(len) = records.u16() {
        let Ok(payload) = records.bytes(usize::from(len)) else { break };
        if head.replay(payload).is_err() {
            return;
        }
    }
    let _digests = head.recompute_digests();
    let _range: Option<TimeRange> = head.min_time().zip(head.max_time()).map(|(a, b)| TimeRange::closed(a, b));
    let _counts = (head.series_count(), head.sample_count());
}
