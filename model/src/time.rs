//! Time and chance, handed in instead of taken.
//!
//! Why: a test that moves the clock is fast and exact; one that sleeps is neither. `SystemTime::now` and
//! `Instant::now` are banned everywhere but here.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z; negative before it.
pub type Millis = i64;

/// A half-open range of time: `start` belongs to it, `end` does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct TimeRange {
    /// First millisecond inside.
    pub start: Millis,
    /// First millisecond outside.
    pub end: Millis,
}

impl TimeRange {
    /// Everything that can be said in [`Millis`], less the last millisecond.
    pub const ALL: Self = Self { start: Millis::MIN, end: Millis::MAX };

    /// The range from `start` up to, and without, `end`.
    #[must_use]
    pub fn new(start: Millis, end: Millis) -> Self {
        Self { start, end }
    }

    /// The range from `start` to `last`, both inside: how PromQL and block files speak.
    #[must_use]
    pub fn closed(start: Millis, last: Millis) -> Self {
        Self { start, end: last.saturating_add(1) }
    }

    /// Whether `at` lies inside.
    #[must_use]
    pub fn contains(&self, at: Millis) -> bool {
        self.start <= at && at < self.end
    }

    /// Whether any millisecond lies in both.
    #[must_use]
    pub fn overlaps(&self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether nothing lies inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// Where the time comes from. Cheap to clone; every clone shows the same clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The machine's clock, shifted by a number of milliseconds (chaos runs skew nodes with it).
    Real { offset_ms: i64 },
    /// A clock that stands still until a test moves it.
    Test(Arc<AtomicI64>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Real { offset_ms: 0 }
    }
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn real() -> Self {
        Self::default()
    }

    /// The machine's clock, shifted.
    #[must_use]
    pub fn real_with_offset(offset_ms: i64) -> Self {
        Self(Source::Real { offset_ms })
    }

    /// A clock that stands at `at` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn test(at: Millis) -> Self {
        Self(Source::Test(Arc::new(AtomicI64::new(at))))
    }

    /// Wall-clock time.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one place that may read the machine's clock")]
    pub fn now(&self) -> Millis {
        match &self.0 {
            Source::Real { offset_ms } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX).saturating_add(*offset_ms)
            }
            Source::Test(at) => at.load(Ordering::SeqCst),
        }
    }

    /// Moves a test clock forward; the machine's clock does not listen.
    pub fn advance(&self, by_ms: i64) {
        if let Source::Test(at) = &self.0 {
            at.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}

/// A stopwatch for durations: never goes back, means nothing outside this process.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts counting.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one place that may read the monotonic clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// The instant it was started at, for runtimes that want deadlines as instants.
    #[must_use]
    pub fn started_at(&self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_range_holds_its_last_millisecond() {
        let range = TimeRange::closed(10, 20);
        assert!(range.contains(20) && !range.contains(21) && !range.contains(9));
        assert!(range.overlaps(TimeRange::closed(20, 30)) && !range.overlaps(TimeRange::closed(21, 30)));
    }

    #[test]
    fn a_test_clock_moves_only_when_told() {
        let clock = Clock::test(5);
        let twin = clock.clone();
        clock.advance(7);
        assert_eq!(twin.now(), 12);
    }
}
