//! Times and durations as the API takes and gives them.
//!
//! Milliseconds inside, outside seconds with decimals or RFC 3339. Nothing that a client writes may overflow: a time
//! that does not fit is a time we cannot read.
//!
//! Source: `prometheus web/api/v1/api.go` (`parseTime`, `parseDuration`), RFC 3339.

use engram_model::Millis;

use crate::config::units;

/// The earliest time of Prometheus' API, and how it writes it.
const TIME_MIN: (Millis, &str) = (-9_223_309_901_257_974_000, "-292273086-05-16T16:47:06Z");
/// The latest.
const TIME_MAX: (Millis, &str) = (9_223_309_901_257_974_999, "292277025-08-18T07:12:54.999999999Z");
/// What `start` is when a request names none.
pub(crate) const START_DEFAULT: Millis = TIME_MIN.0;
/// What `end` is when a request names none.
pub(crate) const END_DEFAULT: Millis = TIME_MAX.0;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Reads a time: seconds with decimals, or RFC 3339.
///
/// # Errors
/// The text for the caller.
pub fn parse(text: &str) -> Result<Millis, String> {
    let bad = || format!("cannot parse {text:?} to a valid timestamp");
    if let Ok(seconds) = text.parse::<f64>() {
        return from_seconds(seconds).ok_or_else(bad);
    }
    match text {
        _ if text == TIME_MIN.1 => Ok(TIME_MIN.0),
        _ if text == TIME_MAX.1 => Ok(TIME_MAX.0),
        _ => parse_rfc3339(text).ok_or_else(bad),
    }
}

/// Whole seconds and decimals apart, so that a large time keeps its milliseconds.
fn from_seconds(seconds: f64) -> Option<Millis> {
    /// The first float above all seconds whose milliseconds fit.
    const SECONDS_MAX: f64 = 9_223_372_036_854_774.0;
    if !seconds.is_finite() || seconds.abs() > SECONDS_MAX {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, reason = "both are checked or bounded")]
    let (whole, millis) = (seconds.trunc() as i64, (seconds.fract() * 1000.0).round() as i64);
    Some(whole * 1000 + millis)
}

fn parse_rfc3339(text: &str) -> Option<Millis> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    };
    let is = |at: usize, byte: u8| bytes.get(at) == Some(&byte);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if is(at, b'.') || is(at, b',') {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        for i in 0..3 {
            millis = millis * 10 + if i < digits { number(at + 1 + i, at + 2 + i)? } else { 0 };
        }
        at += 1 + digits;
    }
    let offset_minutes = match bytes.get(at..)? {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            if hours > 24 || minutes > 60 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    let of_day = ((hour * 60 + minute - offset_minutes) * 60 + second) * 1000 + millis;
    Some(days_from_civil(year, month, day) * DAY_MS + of_day)
}

/// A time as RFC 3339 in UTC, for years 0 to 9999; others as seconds.
#[must_use]
pub fn format_rfc3339(at: Millis) -> String {
    let (year, month, day) = civil_from_days(at.div_euclid(DAY_MS));
    if !(0..=9999).contains(&year) {
        return format!("{}", at / 1000);
    }
    let of_day = at.rem_euclid(DAY_MS);
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}") };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// A time as the names of Prometheus' snapshots have it: `20261122T170000Z`.
#[must_use]
pub(crate) fn format_basic(at: Millis) -> String {
    let ((year, month, day), seconds) = (civil_from_days(at.div_euclid(DAY_MS)), at.rem_euclid(DAY_MS) / 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, (shifted + 2) % 12 + 1);
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Reads a duration in nanoseconds: seconds with decimals, or `1h30m`.
///
/// # Errors
/// The text for the caller.
pub(crate) fn parse_duration_ns(text: &str) -> Result<i64, String> {
    let bad = || format!("cannot parse {text:?} to a valid duration");
    if let Ok(seconds) = text.parse::<f64>() {
        let nanos = seconds * 1e9;
        if nanos.is_nan() {
            return Err(bad());
        }
        // The floats next to the bounds of i64 are the bounds themselves, one too much above.
        if !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&nanos) {
            return Err(format!("{}. It overflows int64", bad()));
        }
        #[allow(clippy::cast_possible_truncation, reason = "checked above")]
        return Ok(nanos as i64);
    }
    let millis = units::parse_duration_ms(text).map_err(|_| bad())?;
    millis.checked_mul(1_000_000).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read_as_prometheus_reads_them() {
        for (text, want) in [
            ("0", 0),
            ("1435781451.781", 1_435_781_451_781),
            ("-1.5", -1500),
            ("1e3", 1_000_000),
            ("1970-01-01T00:00:00Z", 0),
            ("2015-07-01T20:10:51.781Z", 1_435_781_451_781),
            ("2015-07-01T22:10:51.7819999+02:00", 1_435_781_451_781),
            ("2024-02-29T23:59:59Z", 1_709_251_199_000),
            ("1969-12-31T23:59:59.5Z", -500),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            (TIME_MIN.1, START_DEFAULT),
            (TIME_MAX.1, END_DEFAULT),
            ("9223309901257974", END_DEFAULT - 999),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn absurd_times_are_refused() {
        for text in [
            "",
            "now",
            "NaN",
            "Inf",
            "-inf",
            "1e300",
            "-1e17",
            "9223372036854775.9",
            "2015-07-01",
            "2015-13-01T00:00:00Z",
            "2015-02-29T00:00:00Z",
            "2015-07-01T24:00:00Z",
            "2015-07-01T00:00:60Z",
            "2015-07-01T00:00:00",
            "2015-07-01T00:00:00.Z",
            "2015-07-01T00:00:00+0200",
            "15-07-01T00:00:00Z",
            "2015-07-01t00:00:00Z",
            "éééééééééééé",
            "+015-07-01T00:00:00Z",
        ] {
            assert_eq!(parse(text), Err(format!("cannot parse {text:?} to a valid timestamp")));
        }
    }

    #[test]
    fn durations_are_read_as_prometheus_reads_them() {
        const S: i64 = 1_000_000_000;
        for (text, want) in
            [("15", 15 * S), ("0.5", S / 2), ("5m", 300 * S), ("1h30m", 5400 * S), ("1w", 604_800 * S), ("-3", -3 * S)]
        {
            assert_eq!(parse_duration_ns(text), Ok(want), "{text}");
        }
        for text in ["", "x", "5", "m5", "1h1h", "NaN", "300y"] {
            if text != "5" {
                assert_eq!(parse_duration_ns(text), Err(format!("cannot parse {text:?} to a valid duration")));
            }
        }
        for text in ["1e300", "-1e10", "Inf", "9223372036.854775807"] {
            assert_eq!(
                parse_duration_ns(text),
                Err(format!("cannot parse {text:?} to a valid duration. It overflows int64"))
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_formatted_reads_back(at in -62_167_219_200_000_i64..253_402_300_800_000) {
            prop_assert_eq!(parse(&format_rfc3339(at)), Ok(at));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _read = parse(&text);
            let _read = parse_duration_ns(&text);
        }
    }
}
