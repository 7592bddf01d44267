//! What requests to the store cost: counted by kind of request, read at scrape time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// An object, or a part of one, is written.
    Put,
    /// An object or a range of one is read.
    Get,
    /// An object is asked for its size.
    Head,
    /// Names are listed.
    List,
    /// An object is removed.
    Delete,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Delete];

    /// Its name in metrics and errors.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// Counters of one kind of request.
#[derive(Debug, Default)]
pub struct OpMetrics {
    /// Requests that have ended, well or not; what was sent again by itself counts once.
    pub requests: AtomicU64,
    /// Those that failed.
    pub errors: AtomicU64,
    /// Time they took, in nanoseconds, waiting for their turn included.
    pub nanos: AtomicU64,
    /// Bytes they carried.
    pub bytes: AtomicU64,
}

/// Counters of a store.
#[derive(Debug, Default)]
pub struct StoreMetrics([OpMetrics; Op::ALL.len()]);

impl StoreMetrics {
    /// Of one kind of request.
    #[must_use]
    pub fn of(&self, op: Op) -> &OpMetrics {
        &self.0[op as usize]
    }

    pub(super) fn count(&self, op: Op, took: Duration, bytes: u64, is_error: bool) {
        let own = self.of(op);
        own.requests.fetch_add(1, Ordering::Relaxed);
        own.errors.fetch_add(u64::from(is_error), Ordering::Relaxed);
        own.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        own.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
