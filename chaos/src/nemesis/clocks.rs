//! Clocks that are wrong: they jump, they twitch, they go too fast or too slow.

use crate::cluster::FakeClock;
use crate::error::Error;
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
}
