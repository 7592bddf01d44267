//! Dates: `hour`, `month`, `day_of_week` and the others, in UTC and the Gregorian calendar before and after 1582.
//!
//! Why by hand: eight small facts about a day are not worth a calendar crate with time zones.
//!
//! Source: H. Hinnant, "chrono-compatible low-level date algorithms" (days from and to civil).

use engram_model::Millis;

use super::Point;

const DAY_SECONDS: i128 = 86_400;

/// What a function of dates reads when it is called without argument: the evaluation time in whole seconds.
#[must_use]
pub fn now(at: Millis) -> Point {
    Point::Float((at / 1000) as f64)
}

/// A day and the second in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    year: i128,
    /// From 1.
    month: i128,
    /// From 1.
    day: i128,
    days: i128,
    second: i128,
}

impl Moment {
    /// The moment of a number of seconds since 1970, parts of a second dropped.
    pub(super) fn from_seconds(seconds: f64) -> Self {
        // 2^63 and beyond, and what is not a number: upstream's conversion gives -2^63, which its calendar wraps to 2^63.
        const OUT: f64 = 9_223_372_036_854_775_808.0;
        let whole = if (-OUT..OUT).contains(&seconds) && seconds != -OUT { seconds.trunc() } else { OUT };
        #[allow(clippy::cast_possible_truncation, reason = "at most 2^63 in size, checked above")]
        Self::new(whole as i128)
    }

    fn new(seconds: i128) -> Self {
        let days = seconds.div_euclid(DAY_SECONDS);
        // Years begin in March here, so that the leap day is the last of its year; eras are 400 years.
        let since = days + 719_468;
        let era = since.div_euclid(146_097);
        let of_era = since.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + i128::from(month <= 2);
        Self { year, month, day, days, second: seconds.rem_euclid(DAY_SECONDS) }
    }

    pub(super) fn year(self) -> i128 {
        self.year
    }

    pub(super) fn month(self) -> i128 {
        self.month
    }

    pub(super) fn day_of_month(self) -> i128 {
        self.day
    }

    /// From Sunday, 0.
    pub(super) fn day_of_week(self) -> i128 {
        (self.days + 4).rem_euclid(7)
    }

    /// From 1.
    pub(super) fn day_of_year(self) -> i128 {
        const BEFORE: [i128; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let before = usize::try_from(self.month - 1).ok().and_then(|m| BEFORE.get(m)).copied().unwrap_or(0);
        before + self.day + i128::from(self.month > 2 && is_leap(self.year))
    }

    pub(super) fn days_in_month(self) -> i128 {
        match self.month {
            2 => 28 + i128::from(is_leap(self.year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    pub(super) fn hour(self) -> i128 {
        self.second / 3600
    }

    pub(super) fn minute(self) -> i128 {
        self.second / 60 % 60
    }
}

fn is_leap(year: i128) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

/// `1970-01-01T00:00:00Z`.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let m = Moment::new(i128::from(seconds));
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", m.year, m.month, m.day, m.hour(), m.minute(), m.second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_day_later_is_the_next_day(day in -1_000_000_i128..1_000_000) {
            let (a, b) = (Moment::new(day * DAY_SECONDS), Moment::new((day + 1) * DAY_SECONDS));
            prop_assert_eq!((a.day_of_week() + 1) % 7, b.day_of_week());
            if a.day < a.days_in_month() {
                prop_assert_eq!((a.year, a.month, a.day + 1), (b.year, b.month, b.day));
            } else if a.month < 12 {
                prop_assert_eq!((a.year, a.month + 1, 1), (b.year, b.month, b.day));
            } else {
                prop_assert_eq!((a.year + 1, 1, 1), (b.year, b.month, b.day));
            }
            let next = if (b.month, b.day) == (1, 1) { 1 } else { a.day_of_year() + 1 };
            prop_assert_eq!(next, b.day_of_year());
        }
    }

    #[test]
    fn known_days() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_709_164_799), "2024-02-28T23:59:59Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
        assert_eq!(Moment::from_seconds(f64::NAN).year(), 292_277_026_596);
        let far = Moment::from_seconds(1e18);
        assert_eq!((far.year(), far.month(), far.day_of_week(), far.day_of_year()), (31_688_740_476, 10, 5, 297));
    }
}
