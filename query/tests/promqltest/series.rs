//! Series as scripts write them: `name{label="value"} 1 2+3x4 _ stale {{schema:0 count:1}}`.
//!
//! Source: `prometheus promql/parser/generated_parser.y` (`series_description`).

use std::sync::Arc;

use engram_model::Labels;
use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::stale_nan;
use engram_query::histogram;

/// One value of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// No sample.
    Blank,
    /// A float.
    Float(f64),
    /// A histogram; the flag: its reset hint was written.
    Histogram(Arc<Histogram>, bool),
}

pub(super) type Parsed<T> = Result<T, String>;

/// Reads labels and values.
pub(super) fn parse_series(line: &str) -> Parsed<(Labels, Vec<Item>)> {
    let (labels, rest) = parse_labels(line)?;
    Ok((labels, parse_items(rest)?))
}

/// Reads the labels at the start of a line.
pub(super) fn parse_labels(line: &str) -> Parsed<(Labels, &str)> {
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace()).unwrap_or(line.len());
    let (name, mut rest) = line.split_at(name_end);
    let mut pairs: Vec<(String, String)> = Vec::new();
    if !name.is_empty() {
        pairs.push(("__name__".to_owned(), name.to_owned()));
    }
    let Some(inside) = rest.strip_prefix('{') else { return Ok((Labels::from_pairs(pairs), rest)) };
    rest = inside.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((Labels::from_pairs(pairs), after));
        }
        let key;
        let quoted = rest.starts_with(['"', '\'', '`']);
        if quoted {
            (key, rest) = parse_string(rest)?;
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            key = rest[..end].to_owned();
            rest = &rest[end..];
        }
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('=') {
            let value;
            (value, rest) = parse_string(after.trim_start())?;
            pairs.push((key, value));
        } else if quoted {
            pairs.push(("__name__".to_owned(), key));
        } else {
            return Err(format!("label without value in {line:?}"));
        }
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
}

/// Reads a quoted string and gives what follows.
pub(super) fn parse_string(text: &str) -> Parsed<(String, &str)> {
    let quote = text.chars().next().filter(|c| "\"'`".contains(*c)).ok_or(format!("no string at {text:?}"))?;
    let mut out = Vec::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            let out = String::from_utf8_lossy(&out).into_owned();
            return Ok((out, &text[at + c.len_utf8()..]));
        }
        if c != '\\' || quote == '`' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next().map(|(_, c)| c) {
            Some('n') => out.push(b'\n'),
            Some('t') => out.push(b'\t'),
            Some('x') => {
                let digits: String = chars.by_ref().take(2).map(|(_, c)| c).collect();
                out.push(u8::from_str_radix(&digits, 16).map_err(|e| e.to_string())?);
            }
            Some(other) => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            None => break,
        }
    }
    Err(format!("string without end: {text:?}"))
}

/// A number, also hexadecimal.
pub(super) fn parse_number(text: &str) -> Parsed<f64> {
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).map(|n| sign * n as f64).map_err(|e| e.to_string());
    }
    digits.parse::<f64>().map(|n| sign * n).map_err(|e| format!("{text:?}: {e}"))
}

fn parse_items(mut rest: &str) -> Parsed<Vec<Item>> {
    let mut items = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(items);
        }
        if rest.starts_with("{{") {
            rest = parse_histograms(rest, &mut items)?;
            continue;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        parse_floats(&rest[..end], &mut items)?;
        rest = &rest[end..];
    }
}

/// `1`, `1x3`, `1+2x3`, `_`, `_x3`, `stale`.
fn parse_floats(token: &str, items: &mut Vec<Item>) -> Parsed<()> {
    let (body, times) = split_times(token);
    if body == "_" {
        items.extend(std::iter::repeat_n(Item::Blank, times.unwrap_or(1)));
        return Ok(());
    }
    if body == "stale" {
        items.extend(std::iter::repeat_n(Item::Float(stale_nan()), times.map_or(1, |n| n + 1)));
        return Ok(());
    }
    let bytes = body.as_bytes();
    let sign = (1..bytes.len()).find(|i| matches!(bytes[*i], b'+' | b'-') && !matches!(bytes[*i - 1], b'e' | b'E'));
    let (first, step) = match (sign, times) {
        (Some(at), Some(_)) => (parse_number(&body[..at])?, parse_number(&body[at..])?),
        _ => (parse_number(body)?, 0.0),
    };
    let mut value = first;
    for _ in 0..times.map_or(1, |n| n + 1) {
        items.push(Item::Float(value));
        if step != 0.0 {
            value += step;
        }
    }
    Ok(())
}

/// Cuts `xN` off the end.
fn split_times(token: &str) -> (&str, Option<usize>) {
    match token.rsplit_once('x') {
        Some((body, times)) if !body.is_empty() => match times.parse() {
            Ok(times) => (body, Some(times)),
            Err(_) => (token, None),
        },
        _ => (token, None),
    }
}

/// `{{…}}`, `{{…}}x3`, `{{…}}+{{…}}x3`.
fn parse_histograms<'t>(text: &'t str, items: &mut Vec<Item>) -> Parsed<&'t str> {
    let (base, hinted, mut rest) = parse_histogram(text)?;
    let mut change: Option<(char, Histogram)> = None;
    let mut is_hinted = hinted;
    if let Some(sign) = rest.chars().next().filter(|c| "+-".contains(*c)) {
        let (step, step_hinted, after) = parse_histogram(&rest[1..])?;
        is_hinted = step_hinted;
        change = Some((sign, step));
        rest = after;
    }
    let mut times = 0;
    if let Some(after) = rest.strip_prefix('x') {
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        times = after[..end].parse::<usize>().map_err(|e| e.to_string())?;
        rest = &after[end..];
    }
    let mut now = base;
    items.push(Item::Histogram(Arc::new(now.clone()), is_hinted));
    for _ in 0..times {
        let joined = match &change {
            Some(('+', step)) => histogram::add(&mut now, step),
            Some((_, step)) => histogram::sub(&mut now, step),
            None => Ok(histogram::Joined::default()),
        };
        joined.map_err(|e| e.to_string())?;
        items.push(Item::Histogram(Arc::new(now.clone()), is_hinted));
    }
    Ok(rest)
}

fn parse_histogram(text: &str) -> Parsed<(Histogram, bool, &str)> {
    let inside = text.strip_prefix("{{").ok_or("a histogram begins with {{")?;
    let end = inside.find("}}").ok_or("a histogram ends with }}")?;
    let mut h = Histogram::default();
    let mut hinted = false;
    let (mut offset, mut negative_offset) = (0, 0);
    let mut fields = inside[..end].trim();
    while !fields.is_empty() {
        let (key, rest) = fields.split_once(':').ok_or(format!("no value in {fields:?}"))?;
        let (value, after) = match rest.strip_prefix('[') {
            Some(list) => list.split_once(']').ok_or("a list ends with ]")?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        let numbers = || value.split_whitespace().map(parse_number).collect::<Parsed<Vec<_>>>();
        let whole = || value.parse::<i32>().map_err(|e| e.to_string());
        match key {
            "schema" => h.schema = whole()?,
            "sum" => h.sum = parse_number(value)?,
            "count" => h.count = parse_number(value)?,
            "z_bucket" => h.zero_count = parse_number(value)?,
            "z_bucket_w" => h.zero_threshold = parse_number(value)?,
            "custom_values" => h.custom_values = numbers()?,
            "buckets" => h.positive_buckets = numbers()?,
            "n_buckets" => h.negative_buckets = numbers()?,
            "offset" => offset = whole()?,
            "n_offset" => negative_offset = whole()?,
            "counter_reset_hint" => {
                hinted = true;
                h.reset_hint = match value {
                    "unknown" => ResetHint::Unknown,
                    "reset" => ResetHint::Reset,
                    "not_reset" => ResetHint::NoReset,
                    "gauge" => ResetHint::Gauge,
                    other => return Err(format!("no such hint: {other}")),
                };
            }
            other => return Err(format!("no such field: {other}")),
        }
        fields = after.trim_start();
    }
    let spans = |offset, buckets: &[f64]| match u32::try_from(buckets.len()) {
        Ok(length) if length > 0 => vec![BucketSpan { offset, length }],
        _ => Vec::new(),
    };
    h.positive_spans = spans(offset, &h.positive_buckets);
    h.negative_spans = spans(negative_offset, &h.negative_buckets);
    Ok((h, hinted, &inside[end + 2..]))
}

/// A duration such as `1h30m`, `10s53ms`, `-5s`, `0`, in milliseconds; and what follows it.
pub(super) fn parse_duration_prefix(text: &str) -> Parsed<(i64, &str)> {
    let (sign, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (-1, &text[1..]),
        Some(b'+') => (1, &text[1..]),
        _ => (1, text),
    };
    let mut total = 0;
    let mut any = false;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            break;
        }
        let number: i64 = rest[..digits].parse().map_err(|e| format!("{text:?}: {e}"))?;
        let after = &rest[digits..];
        let units = [
            ("ms", 1),
            ("s", 1000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
            ("w", 604_800_000),
            ("y", 31_536_000_000),
        ];
        any = true;
        match units.iter().find(|(unit, _)| after.starts_with(unit)) {
            Some((unit, millis)) => {
                total += number * millis;
                rest = &after[unit.len()..];
            }
            None if number == 0 => {
                rest = after;
                break;
            }
            None => return Err(format!("no unit in {text:?}")),
        }
    }
    if any { Ok((sign * total, rest)) } else { Err(format!("no duration: {text:?}")) }
}

/// A duration and nothing else.
pub(super) fn parse_duration(text: &str) -> Parsed<i64> {
    match parse_duration_prefix(text)? {
        (millis, "") => Ok(millis),
        _ => Err(format!("no duration: {text:?}")),
    }
}

/// The values of an `@st` line: start timestamps relative to their samples.
pub(super) fn parse_starts(text: &str) -> Parsed<Vec<Option<i64>>> {
    let mut out = Vec::new();
    for token in text.split_whitespace() {
        if token == "_" {
            out.push(None);
            continue;
        }
        if let Some(times) = token.strip_prefix("_x") {
            let times = times.parse::<usize>().map_err(|e| e.to_string())?;
            out.extend(std::iter::repeat_n(None, times));
            continue;
        }
        let (base, rest) = parse_duration_prefix(token)?;
        let (step, rest) = match rest.starts_with(['+', '-']) {
            true => parse_duration_prefix(rest)?,
            false => (0, rest),
        };
        let times = match rest.strip_prefix('x') {
            Some(times) => times.parse::<i64>().map_err(|e| e.to_string())?,
            None => 0,
        };
        out.extend((0..=times).map(|i| Some(base + i * step)));
    }
    Ok(out)
}
