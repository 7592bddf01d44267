//! What the log counts. Plain atomics: the node turns them into metrics, `storage` knows no registry.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of [`LogMetrics::sync_buckets`], in microseconds; one more bucket is for all above.
pub const SYNC_BOUNDS_US: [u64; 12] =
    [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 512_000, 2_048_000];

/// Counts since the log was opened; all only grow, except [`Self::segments`] and
/// [`Self::waits_for_room`].
#[derive(Debug, Default)]
pub struct LogMetrics {
    /// Groups written, each with one sync.
    pub groups: AtomicU64,
    /// Records written; records / groups is how well group commit works.
    pub records: AtomicU64,
    /// Bytes of payloads.
    pub payload_bytes: AtomicU64,
    /// Bytes given to the disk, with headers and padding.
    pub disk_bytes: AtomicU64,
    /// Time spent in syncs, in nanoseconds.
    pub sync_nanos: AtomicU64,
    /// Syncs by how long they took, see [`SYNC_BOUNDS_US`]; not cumulative.
    pub sync_buckets: [AtomicU64; SYNC_BOUNDS_US.len() + 1],
    /// Segments rolled.
    pub rolls: AtomicU64,
    /// Segments on disk now.
    pub segments: AtomicU64,
    /// Appends refused because the queue was full.
    pub refused_full: AtomicU64,
    /// Whether the log waits for room on a full disk.
    pub waits_for_room: AtomicBool,
}

impl LogMetrics {
    pub(super) fn synced(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sync_nanos.fetch_add(nanos, Ordering::Relaxed);
        let bucket = SYNC_BOUNDS_US.iter().position(|&bound| nanos <= bound * 1_000).unwrap_or(SYNC_BOUNDS_US.len());
        self.sync_buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, records: usize, payload_bytes: usize, disk_bytes: usize) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        self.payload_bytes.fetch_add(payload_bytes as u64, Ordering::Relaxed);
        self.disk_bytes.fetch_add(disk_bytes as u64, Ordering::Relaxed);
    }
}
