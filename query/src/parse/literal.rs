//! Strings, numbers and durations between their written form and their value.
//!
//! Written forms are Go's, since the language took them over: which character is escaped, that `010` is eight, that a
//! year has 365 days. Printing and error texts depend on every detail.

use std::fmt::Write as _;

/// Nanoseconds of a millisecond.
const NANOS_PER_MILLI: i64 = 1_000_000;
/// Units from large to small: name, milliseconds, and whether it is printed only when nothing remains below it.
const UNITS: [(&str, i64, bool); 7] = [
    ("y", 365 * 24 * 3_600_000, true),
    ("w", 7 * 24 * 3_600_000, true),
    ("d", 24 * 3_600_000, false),
    ("h", 3_600_000, false),
    ("m", 60_000, false),
    ("s", 1000, false),
    ("ms", 1, false),
];
/// Durations are bounded by what nanoseconds in 64 bits hold.
const NANOS_MAX: u128 = i64::MAX as u128;
/// The same bound in seconds.
pub(crate) const SECONDS_MAX: f64 = 9_223_372_036.854_776;

/// Whether Go prints `c` as it is: letters, marks, numbers, punctuation, symbols and the plain space.
fn is_printable(c: char) -> bool {
    // The standard library's table is behind `escape_debug`; after a first letter, marks pass as they are.
    let pair: String = ['a', c].iter().collect();
    c == ' ' || (!matches!(c, '"' | '\'' | '\\') && pair.escape_debug().nth(1) == Some(c)) || matches!(c, '"' | '\'')
}

fn push_escaped(out: &mut String, c: char, quote: char) {
    match c {
        c if c == quote || c == '\\' => out.extend(['\\', c]),
        c if is_printable(c) => out.push(c),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c => {
            let code = u32::from(c);
            let written = match code {
                0..0x20 | 0x7f => write!(out, "\\x{code:02x}"),
                0x20..0x1_0000 => write!(out, "\\u{code:04x}"),
                _ => write!(out, "\\U{code:08x}"),
            };
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        }
    }
}

/// The bytes in double quotes, so that reading them back yields the same bytes. Bytes that are no UTF-8 become `\xff`;
/// U+FFFD is escaped too, since the lexer takes it for the mark of broken input.
#[must_use]
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                char::REPLACEMENT_CHARACTER => out.push_str("\\ufffd"),
                c => push_escaped(&mut out, c, '"'),
            }
        }
        for byte in chunk.invalid() {
            let written = write!(out, "\\x{byte:02x}");
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        }
    }
    out.push('"');
    out
}

/// One character in single quotes; `None` (the end of the text) is shown as U+FFFD.
#[must_use]
pub(crate) fn quote_char(c: Option<char>) -> String {
    let mut out = String::from("'");
    push_escaped(&mut out, c.unwrap_or(char::REPLACEMENT_CHARACTER), '\'');
    out.push('\'');
    out
}

/// `U+0063 'c'`.
#[must_use]
pub(crate) fn code_point(c: char) -> String {
    let code = u32::from(c);
    if is_printable(c) || c == '\\' { format!("U+{code:04X} '{c}'") } else { format!("U+{code:04X}") }
}

/// The bytes a string token stands for; the lexer has checked the escapes, so `None` is not expected.
#[must_use]
pub(crate) fn unquote(token: &str) -> Option<Vec<u8>> {
    let quote = token.chars().next()?;
    let inner = token.get(1..token.len().checked_sub(1)?)?;
    if quote == '`' {
        return Some(inner.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        rest = unescape(tail.get(1..)?, &mut out)?;
    }
    out.extend_from_slice(rest.as_bytes());
    Some(out)
}

/// Takes one escape sequence, the backslash gone, off `text`.
fn unescape<'a>(text: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let digits = |from: usize, to: usize, radix: u32| u32::from_str_radix(text.get(from..to)?, radix).ok();
    let (byte, used) = match kind {
        'a' => (0x07, 1),
        'b' => (0x08, 1),
        'f' => (0x0c, 1),
        'n' => (b'\n', 1),
        'r' => (b'\r', 1),
        't' => (b'\t', 1),
        'v' => (0x0b, 1),
        '\\' | '\'' | '"' => (u8::try_from(kind).ok()?, 1),
        '0'..='7' => (u8::try_from(digits(0, 3, 8)?).ok()?, 3),
        'x' => (u8::try_from(digits(1, 3, 16)?).ok()?, 3),
        'u' | 'U' => {
            let end = if kind == 'u' { 5 } else { 9 };
            let c = char::from_u32(digits(1, end, 16)?)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return text.get(end..);
        }
        _ => return None,
    };
    out.push(byte);
    text.get(used..)
}

/// The value of a number token.
///
/// # Errors
/// What is wrong, as Go's `strconv` says it.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "inf" => return Ok(f64::INFINITY),
        "nan" => return Ok(f64::NAN),
        _ => {}
    }
    let bad =
        |why: &str| format!("error parsing number: strconv.ParseFloat: parsing {}: {why}", quote(text.as_bytes()));
    if !underscores_separate_digits(&lower) {
        return Err(bad("invalid syntax"));
    }
    let plain = lower.replace('_', "");
    if let Some(value) = integer(&plain) {
        return Ok(value);
    }
    if !plain.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'+' | b'-')) {
        return Err(bad("invalid syntax"));
    }
    match plain.parse::<f64>() {
        Ok(value) if value.is_infinite() => Err(bad("value out of range")),
        Ok(value) => Ok(value),
        Err(_) => Err(bad("invalid syntax")),
    }
}

/// Decimal, `0x…` and, with a leading zero, octal; `None` when it is none of these or does not fit.
fn integer(plain: &str) -> Option<f64> {
    let (digits, radix) = match plain.strip_prefix('0') {
        Some("") => return Some(0.0),
        Some(rest) => match rest.strip_prefix('x').filter(|hex| !hex.is_empty()) {
            Some(hex) => (hex, 16),
            None => (rest, 8),
        },
        None => (plain, 10),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    #[allow(clippy::cast_precision_loss, reason = "a number of the language is an f64: large integers round")]
    i64::from_str_radix(digits, radix).ok().map(|value| value as f64)
}

fn underscores_separate_digits(lower: &str) -> bool {
    let (hex, rest) = match lower.strip_prefix("0x") {
        Some(rest) => (true, rest),
        None => (false, lower),
    };
    let is_digit = |byte: u8| byte.is_ascii_digit() || (hex && byte.is_ascii_hexdigit());
    let mut before = if hex { b'0' } else { b'.' };
    for byte in rest.bytes() {
        let fine = if byte == b'_' { is_digit(before) } else { before != b'_' || is_digit(byte) };
        if !fine {
            return false;
        }
        before = byte;
    }
    before != b'_'
}

/// The seconds of a duration token such as `1h30m`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn duration_seconds(text: &str) -> Result<f64, String> {
    let invalid = || format!("not a valid duration string: {}", quote(text.as_bytes()));
    let mut rest = text;
    let mut nanos: u128 = 0;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (digits, tail) = rest.split_at(end);
        let count: u64 = digits.parse().map_err(|_| invalid())?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (name, tail) = tail.split_at(end);
        rest = tail;
        if !UNITS.iter().any(|unit| unit.0 == name) {
            return Err(format!("unknown unit {} in duration {}", quote(name.as_bytes()), quote(text.as_bytes())));
        }
        // Units go from large to small, each at most once: `units` remembers how far we are.
        let (_, millis, _) = units.find(|unit| unit.0 == name).ok_or_else(invalid)?;
        nanos += u128::from(count) * u128::from(millis.unsigned_abs()) * u128::from(NANOS_PER_MILLI.unsigned_abs());
        if nanos > NANOS_MAX {
            return Err("duration out of range".into());
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "whole seconds below 2^34 and nanoseconds below 2^30 are exact")]
    Ok((nanos / 1_000_000_000) as f64 + (nanos % 1_000_000_000) as f64 / 1e9)
}

/// Milliseconds as a duration: `1h30m`, `0s`, `-5m`.
#[must_use]
pub(crate) fn duration(millis: i64) -> String {
    if millis == 0 {
        return "0s".into();
    }
    let mut rest = millis.unsigned_abs();
    let mut out = String::from(if millis < 0 { "-" } else { "" });
    for (name, unit, exact) in UNITS {
        let unit = unit.unsigned_abs();
        if rest >= unit && (!exact || rest.is_multiple_of(unit)) {
            let written = write!(out, "{}{name}", rest / unit);
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
            rest %= unit;
        }
    }
    out
}

/// Seconds as whole milliseconds: cut, unless the next one is so near that only rounding of the number lies between.
#[must_use]
pub(crate) fn millis(seconds: f64) -> i64 {
    let exact = seconds * 1000.0;
    let near = exact.round();
    let whole = if (exact - near).abs() < 0.01 { near } else { exact.trunc() };
    #[allow(clippy::cast_possible_truncation, reason = "`as` saturates, and the caller has bounded the value")]
    let whole = whole as i64;
    whole
}

/// A number as printed in a query: shortest digits, never an exponent.
#[must_use]
pub(crate) fn float(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    format!("{value}")
}

/// A number as `fill (…)` prints it: shortest digits, with an exponent when it is very large or small.
#[must_use]
pub(crate) fn float_short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() || size == 0.0 || (1e-4..1e21).contains(&size) {
        return float(value);
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, power) = match exponent.strip_prefix('-') {
                Some(power) => ('-', power),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{power:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, value) in [
            ("0", 0.0),
            ("017", 15.0),
            ("09", 9.0),
            ("0x1F", 31.0),
            ("0x_1f", 31.0),
            ("1_000", 1000.0),
            ("1_0.5", 10.5),
            ("1e3", 1000.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("Inf", f64::INFINITY),
            ("9223372036854775808", 9_223_372_036_854_775_808.0),
        ] {
            assert_eq!(number(text), Ok(value), "{text}");
        }
        assert!(number("nAn").unwrap().is_nan());
        assert!(number("1e999").unwrap_err().ends_with("value out of range"));
        for text in ["0x", "1__0", "1_", "0xffffffffffffffffff", "1e"] {
            assert!(number(text).unwrap_err().ends_with("invalid syntax"), "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_printed() {
        assert_eq!(duration_seconds("1h30m"), Ok(5400.0));
        assert_eq!(duration_seconds("1y1ms"), Ok(31_536_000.001));
        assert_eq!(duration_seconds("5m1h").unwrap_err(), "not a valid duration string: \"5m1h\"");
        assert_eq!(duration_seconds("300y").unwrap_err(), "duration out of range");
        assert_eq!(duration_seconds("3hs").unwrap_err(), "unknown unit \"hs\" in duration \"3hs\"");
        for (ms, text) in
            [(0, "0s"), (5_400_000, "1h30m"), (90 * 86_400_000, "90d"), (604_800_000, "1w"), (-1500, "-1s500ms")]
        {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn escapes_are_go_s() {
        assert_eq!(quote("a\"\\\n\u{7}\u{200b}é'\u{1}".as_bytes()), r#""a\"\\\n\a\u200bé'\x01""#);
        assert_eq!(quote(b"\xffa\xc3"), r#""\xffa\xc3""#);
        assert_eq!(quote_char(Some('\'')), r"'\''");
        assert_eq!(code_point('c'), "U+0063 'c'");
        assert_eq!(code_point('\t'), "U+0009");
        assert_eq!(unquote(r"'\'\x41\101\u00e9\U0001F600`'").unwrap(), "'AAé😀`".as_bytes());
    }

    #[test]
    fn small_and_large_numbers_of_fill_have_exponents() {
        for (value, text) in [(0.0, "0"), (1e21, "1e+21"), (1e20, "100000000000000000000"), (-2.5e-7, "-2.5e-07")] {
            assert_eq!(float_short(value), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "\\PC{0,20}") {
            prop_assert_eq!(unquote(&quote(&bytes)), Some(bytes));
            prop_assert_eq!(unquote(&quote(text.as_bytes())), Some(text.into_bytes()));
        }

        #[test]
        fn printed_durations_read_back(ms in 0..i64::MAX / 1_000_000) {
            prop_assert_eq!(millis(duration_seconds(&duration(ms)).unwrap()), ms);
        }
    }
}
