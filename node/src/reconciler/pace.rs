//! How fast copies are made, and so how long the rest will take.

use std::time::Duration;

use tokio::time::Instant;

use super::round::Left;
use crate::members::proto::Backfill;

/// Time in which what was measured before counts half.
const HALF_AFTER: Duration = Duration::from_secs(10);

/// What was left at the last look, and the pace since.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    last: Option<(Instant, Left)>,
    /// Bytes a second; none while nothing was seen to be copied.
    rate: Option<f64>,
}

impl Pace {
    /// Takes a look. What is added by a new plan counts neither way.
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn look(&mut self, now: Instant, left: Left) -> Backfill {
        if left.copies == 0 {
            *self = Self::default();
        } else if let Some((before, had)) = self.last {
            let seconds = now.saturating_duration_since(before).as_secs_f64();
            let copied = had.bytes.saturating_sub(left.bytes) as f64;
            if seconds > 0.0 && (copied > 0.0 || self.rate.is_some()) {
                let fresh = copied / seconds;
                let keep = 0.5_f64.powf(seconds / HALF_AFTER.as_secs_f64());
                self.rate = Some(self.rate.map_or(fresh, |rate| rate * keep + fresh * (1.0 - keep)));
            }
        }
        self.last = (left.copies > 0).then_some((now, left));
        let rate = self.rate.filter(|rate| *rate > 1.0);
        let seconds_left = match (left.copies, rate) {
            (0, _) => 0.0,
            (_, Some(rate)) => left.bytes as f64 / rate,
            (_, None) => -1.0,
        };
        Backfill { copies: left.copies, bytes_left: left.bytes, seconds_left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_pace_says() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let left = |copies, bytes| Left { copies, bytes };
        assert_eq!(pace.look(at(0), left(4, 1000)).seconds_left, -1.0);
        assert_eq!(pace.look(at(2), left(4, 800)).seconds_left, 8.0);
        // More work is no progress backwards, and a pause makes the rest longer, not endless.
        let after = pace.look(at(4), left(6, 1800));
        assert!(after.seconds_left > 18.0 && after.seconds_left < 25.0, "{after:?}");
        assert_eq!(pace.look(at(6), left(0, 0)), Backfill::default());
        assert_eq!(pace.look(at(8), left(1, 500)).seconds_left, -1.0);
    }
}
