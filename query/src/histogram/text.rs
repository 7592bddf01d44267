//! Histograms and numbers as people and the API see them.
//!
//! Numbers are written as Go writes them (`%g`, shortest digits): answers and messages are compared with upstream's
//! text by text.

use std::fmt::Write as _;

use engram_model::histogram::Histogram;

use super::buckets::{self, Bucket};

/// `%g` of Go: shortest digits that give the same float back, an exponent below 1e-4 and from 1e6 on.
#[must_use]
pub fn go_float(x: f64) -> String {
    if let Some(text) = special(x) {
        return text.to_owned();
    }
    layout(&format!("{x:e}"), 6)
}

/// `%.<precision>g` of Go: that many digits, an exponent below 1e-4 and where the digits before the point are more.
#[must_use]
pub fn go_float_precision(x: f64, precision: usize) -> String {
    if let Some(text) = special(x) {
        return text.to_owned();
    }
    let text = format!("{x:.*e}", precision.saturating_sub(1));
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    layout(&format!("{digits}e{exponent}"), i32::try_from(precision).unwrap_or(i32::MAX))
}

fn special(x: f64) -> Option<&'static str> {
    if x.is_nan() {
        Some("NaN")
    } else if x == f64::INFINITY {
        Some("+Inf")
    } else if x == f64::NEG_INFINITY {
        Some("-Inf")
    } else {
        None
    }
}

/// Lays `-d.ddde±x` out in Go's way.
fn layout(scientific: &str, exponent_from: i32) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    if exponent < -4 || exponent >= exponent_from {
        let mark = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{mark}{:02}", exponent.unsigned_abs());
    }
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    match usize::try_from(exponent) {
        Err(_) => {
            let zeros = usize::try_from(exponent.unsigned_abs()).unwrap_or(0).saturating_sub(1);
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
        Ok(before) if before + 1 >= digits.len() => {
            format!("{sign}{digits}{}", "0".repeat(before + 1 - digits.len()))
        }
        Ok(before) => format!("{sign}{}.{}", &digits[..=before], &digits[before + 1..]),
    }
}

/// `%q` of Go: in double quotes, what does not print escaped.
#[must_use]
pub fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_ascii_control() => write_to(&mut out, format_args!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || (c.is_whitespace() && c != ' ') || is_invisible(c) => {
                write_to(&mut out, format_args!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Characters that only steer how others are shown.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn write_to(out: &mut String, args: std::fmt::Arguments<'_>) {
    out.write_fmt(args).unwrap_or_else(|_| unreachable!("a String takes everything"));
}

/// `{count:3, sum:4, [-1,1]:1, (1,2]:2}`: populated buckets upwards.
#[must_use]
pub fn display(h: &Histogram) -> String {
    let mut out = format!("{{count:{}, sum:{}", go_float(h.count), go_float(h.sum));
    let mut put = |b: &Bucket| {
        if b.count != 0.0 {
            let open = if b.lower_inclusive { '[' } else { '(' };
            let close = if b.upper_inclusive { ']' } else { ')' };
            let (lower, upper) = (go_float(b.lower), go_float(b.upper));
            write_to(&mut out, format_args!(", {open}{lower},{upper}{close}:{}", go_float(b.count)));
        }
    };
    buckets::negative(h).rev().for_each(|b| put(&b));
    if !h.is_custom() {
        put(&buckets::zero(h));
    }
    buckets::positive(h).for_each(|b| put(&b));
    out.push('}');
    out
}

/// A bucket as the API lists it: `[rule, "lower", "upper", "count"]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ApiBucket {
    /// Which boundaries belong to it: 0 the upper, 1 the lower, 2 none, 3 both.
    pub rule: u8,
    /// Lower boundary.
    pub lower: f64,
    /// Upper boundary.
    pub upper: f64,
    /// Observations.
    pub count: f64,
}

/// The populated buckets upwards, as the API lists them.
pub fn api_buckets(h: &Histogram) -> impl Iterator<Item = ApiBucket> + '_ {
    buckets::all(h).filter(|b| b.count != 0.0).map(|b| {
        let rule = match (b.lower_inclusive, b.upper_inclusive) {
            (false, true) => 0,
            (true, false) => 1,
            (false, false) => 2,
            (true, true) => 3,
        };
        ApiBucket { rule, lower: b.lower, upper: b.upper, count: b.count }
    })
}
