//! Clocks that are wrong: they jump, they twitch, they go too fast or too slow.

use super::proof::Proof;
use crate::cluster::{Cluster, FakeClock};
use crate::error::Error;
use engram_model::time::Stopwatch;
use std::fmt;
use std::time::Duration;
use tokio::task::JoinSet;

/// How often a clock that twitches does.
const TWITCH: Duration = Duration::from_millis(10);

/// How a clock is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// Off by so many milliseconds; in every second round the other way.
    Jump(i64),
    /// So many milliseconds ahead and behind in turn, a hundred times a second.
    Twitch(i64),
    /// At so many hundredths of the true speed; in every second round the inverse of that.
    Pace(u32),
}

impl Shift {
    pub(super) fn in_round(self, round: u32) -> Self {
        match self {
            Self::Jump(ms) if round % 2 == 1 => Self::Jump(-ms),
            Self::Pace(percent) if round % 2 == 1 => Self::Pace(10_000 / percent.max(1)),
            other => other,
        }
    }
}

impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(ms) if *ms < 0 => write!(f, "{} s behind", ms.unsigned_abs() / 1000),
            Self::Jump(ms) => write!(f, "{} s ahead", ms / 1000),
            Self::Twitch(ms) => write!(f, "twitches by {ms} ms"),
            Self::Pace(percent) => write!(f, "at {percent} % of its speed"),
        }
    }
}

/// Sets a clock wrong; one that twitches does so as long as `strobes` lives.
pub(super) fn put(clock: &FakeClock, shift: Shift, strobes: &mut JoinSet<()>) -> Result<(), Error> {
    match shift {
        Shift::Jump(ms) => clock.set(ms),
        Shift::Pace(percent) => clock.pace(percent),
        Shift::Twitch(ms) => {
            let (clock, mut by) = (clock.clone(), ms);
            clock.set(by)?;
            strobes.spawn(async move {
                // A disk that does not take it leaves the clock as it is, which is wrong enough.
                while clock.set(by).is_ok() {
                    by = -by;
                    tokio::time::sleep(TWITCH).await;
                }
            });
            Ok(())
        }
    }
}

/// How far a node's clock may be from where it was set and count as set: an answer takes its time.
const NEAR_MS: f64 = 2_000.0;
/// How long it is looked for.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// Asks each node what time it has, until that is as wrong as it was made.
pub(super) async fn seen(cluster: &Cluster, nodes: &[usize], shift: Shift) -> Proof {
    let mut told = Vec::new();
    for node in nodes {
        let (watch, mut off) = (Stopwatch::start(), Vec::new());
        while !wrong(shift, &off) {
            if watch.elapsed() > SEEN_WITHIN {
                return Err(format!("node {node} does not say that its clock is wrong; it is off by {off:?}"));
            }
            if let Some(ms) = cluster.clock_off(*node).await {
                off.push((watch.elapsed().as_secs_f64() * 1000.0, ms));
            }
            tokio::time::sleep(Duration::from_millis(37)).await;
        }
        told.push(format!("node {node} says a time that is off by {:.0} ms", off.last().map_or(0.0, |(_, ms)| *ms)));
    }
    Ok(told.join("; "))
}

/// Whether a clock that was off so far at these times, milliseconds both, is wrong in this way.
fn wrong(shift: Shift, off: &[(f64, f64)]) -> bool {
    #[allow(clippy::cast_precision_loss, reason = "days in milliseconds, far below 2^53")]
    match shift {
        Shift::Jump(ms) => off.last().is_some_and(|(_, off)| (off - ms as f64).abs() < NEAR_MS),
        Shift::Twitch(ms) => {
            let far = ms as f64 / 2.0;
            off.iter().any(|(_, off)| *off > far) && off.iter().any(|(_, off)| *off < -far)
        }
        Shift::Pace(percent) => {
            let (Some(first), Some(last)) = (off.first(), off.last()) else { return false };
            let (passed, gained) = (last.0 - first.0, last.1 - first.1);
            let wanted = f64::from(percent) / 100.0 - 1.0;
            passed > 1_000.0 && (gained / passed - wanted).abs() < wanted.abs() / 2.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_round_goes_the_other_way() {
        assert_eq!(Shift::Jump(600_000).in_round(1), Shift::Jump(-600_000));
        assert_eq!(Shift::Pace(200).in_round(1), Shift::Pace(50));
        assert_eq!(Shift::Pace(200).in_round(2), Shift::Pace(200));
        assert_eq!(Shift::Jump(-600_000).to_string(), "600 s behind");
    }

    #[test]
    fn a_clock_is_wrong_only_as_it_was_made() {
        let jump = Shift::Jump(-600_000);
        assert!(wrong(jump, &[(0.0, -600_900.0)]) && !wrong(jump, &[(0.0, 12.0)]) && !wrong(jump, &[]));
        let twitch = Shift::Twitch(200);
        assert!(wrong(twitch, &[(0.0, 180.0), (1.0, -190.0)]));
        assert!(!wrong(twitch, &[(0.0, 180.0), (1.0, 20.0)]));
        let (twice, half) = (Shift::Pace(200), Shift::Pace(50));
        assert!(wrong(twice, &[(0.0, 5_000.0), (1_500.0, 6_400.0)]) && !wrong(twice, &[(0.0, 5.0), (1_500.0, 9.0)]));
        assert!(wrong(half, &[(0.0, -5_000.0), (1_500.0, -5_700.0)]) && !wrong(half, &[(0.0, -5_000.0)]));
    }
}
