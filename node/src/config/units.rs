//! Durations and sizes as people write them: `5m`, `1h30m`, `100MiB`.
//!
//! Durations are those of PromQL, largest unit first, each at most once. Sizes are powers of 1024 and say so; `MB` is
//! refused, because half of its readers think of one and half of the other.
//!
//! Source: `prometheus/common model/time.go` (`ParseDuration`).

/// Units of a duration in milliseconds, and whether one is only used when nothing remains: a year is not 52 weeks.
const DURATIONS: [(&str, i64, bool); 7] = [
    ("y", 365 * 24 * 3600 * 1000, true),
    ("w", 7 * 24 * 3600 * 1000, true),
    ("d", 24 * 3600 * 1000, true),
    ("h", 3600 * 1000, false),
    ("m", 60 * 1000, false),
    ("s", 1000, false),
    ("ms", 1, false),
];
const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads `5m`, `1h30m`, `0`.
///
/// # Errors
/// What is wrong.
pub fn parse_duration_ms(text: &str) -> Result<i64, &'static str> {
    if text == "0" {
        return Ok(0);
    }
    if text.is_empty() {
        return Err("empty duration string");
    }
    let mut rest = text;
    let mut total = 0_i64;
    let mut units = DURATIONS.iter();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_lowercase).count();
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        if digits == 0 {
            return Err("not a valid duration string");
        }
        // The units after this one only: the order is fixed and none comes twice.
        let Some((_, millis, _)) = units.by_ref().find(|(name, _, _)| *name == unit) else {
            return Err("not a valid duration string");
        };
        let number: i64 = number.parse().map_err(|_| "duration out of range")?;
        let part = number.checked_mul(*millis).ok_or("duration out of range")?;
        total = total.checked_add(part).ok_or("duration out of range")?;
        rest = &rest[digits + letters..];
    }
    Ok(total)
}

/// The shortest text that reads back to the same duration.
#[must_use]
pub fn format_duration_ms(millis: i64) -> String {
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut rest = millis.unsigned_abs();
    let mut text = if millis < 0 { "-".to_owned() } else { String::new() };
    for (name, size, exact) in DURATIONS {
        let size = size.unsigned_abs();
        if rest < size || (exact && !rest.is_multiple_of(size)) {
            continue;
        }
        text.push_str(&format!("{}{name}", rest / size));
        rest %= size;
    }
    text
}

/// Reads `100MiB`, `512B`, `4096`.
///
/// # Errors
/// What is wrong.
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    const BAD: &str = "not a size";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| BAD)?;
    let factor = match text[digits..].trim() {
        "" | "B" => 1,
        unit => SIZES.iter().find(|(name, _)| *name == unit).ok_or(BAD)?.1,
    };
    number.checked_mul(factor).ok_or("size out of range")
}

/// The shortest text that reads back to the same size.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    match SIZES.iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size)) {
        Some((name, size)) => format!("{}{name}", bytes / size),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_those_of_promql() {
        for (text, want) in [
            ("0", 0),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2w3d", 1_468_800_000),
            ("1y", 31_536_000_000),
            ("10ms", 10),
        ] {
            assert_eq!(parse_duration_ms(text), Ok(want), "{text}");
        }
        for text in
            ["", "5", "m", "5m5m", "5m1h", "1.5h", "-5m", "5 m", "5M", "99999999999999999999s", "300000000000y", "é"]
        {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
        assert_eq!(format_duration_ms(5_400_000), "1h30m");
        assert_eq!(format_duration_ms(15 * 86_400_000), "15d");
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, want) in
            [("0", 0), ("512", 512), ("512B", 512), ("64KiB", 65_536), ("100MiB", 104_857_600), ("2 GiB", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for text in ["", "MiB", "100MB", "1.5GiB", "-1", "99999999999TiB", "1é"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_formatted_reads_back(millis in 0..i64::MAX, bytes: u64) {
            prop_assert_eq!(parse_duration_ms(&format_duration_ms(millis)), Ok(millis));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
