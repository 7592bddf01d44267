//! Answers of a node as tables for people.
//!
//! The shapes are those of Prometheus' API; those of our own are drawn by `tables`. What is neither (another version's
//! answer) is shown by its structure: lists of objects as tables, everything else as `name: value`.

use serde_json::{Map, Value};

use super::client::Shape;
use super::{blocks, cluster, explain, tables};

/// Longest piece of a foreign answer that is shown.
const SHOWN_CHARS_MAX: usize = 300;

/// A failure's text, from the API's envelope or as it is.
#[must_use]
pub(crate) fn failure(body: &str) -> String {
    let envelope: Option<Value> = serde_json::from_str(body).ok();
    let field = |name: &str| envelope.as_ref().and_then(|e| e.get(name)).and_then(Value::as_str).map(str::to_owned);
    match (field("errorType"), field("error")) {
        (Some(kind), Some(text)) => format!("{kind}: {text}"),
        _ => cut(body),
    }
}

/// The beginning of a text, in one line.
#[must_use]
pub(crate) fn cut(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN_CHARS_MAX).collect()
}

/// A success in the shape it is known to have, else by its structure; `None` when it is not the API's envelope.
#[must_use]
pub(crate) fn answer(body: &str, shape: Shape) -> Option<String> {
    let envelope: Value = serde_json::from_str(body).ok()?;
    let data = envelope.get("data")?;
    let known = match shape {
        Shape::Query => None,
        Shape::Explain => Some(explain::tree(data.get("explain")?)),
        Shape::Cluster => tables::cluster(data),
        Shape::Nodes => tables::nodes(data),
        Shape::Ring => tables::ring(data),
        Shape::Preview => cluster::plan(data),
        Shape::Applied => cluster::applied(data),
        Shape::Overview => None,
        Shape::Tenants => tables::tenants(data),
        Shape::Tenant => tables::tenant(data),
        Shape::Snapshot => tables::snapshot(data),
        Shape::Flush => tables::flush(data),
        Shape::Blocks => blocks::list(data),
        Shape::Block => blocks::one(data),
        Shape::Verified => blocks::verified(data),
        Shape::Plan => blocks::plan(data),
        Shape::Orphans => blocks::orphans(data),
        Shape::Removed => blocks::removed(data),
        Shape::Deleted | Shape::Cleaned => None,
    };
    if known.is_some() {
        return known;
    }
    let mut out = String::new();
    for kind in ["warnings", "infos"] {
        for text in envelope.get(kind).and_then(Value::as_array).into_iter().flatten() {
            out.push_str(&format!("# {}\n", plain(text)));
        }
    }
    match data.get("resultType").and_then(Value::as_str) {
        Some(kind) => out.push_str(&result(kind, data.get("result")?)?),
        None => structure(&mut out, "", data),
    }
    Some(out)
}

fn result(kind: &str, result: &Value) -> Option<String> {
    let mut rows = Vec::new();
    match kind {
        "vector" => {
            rows.push(vec!["SERIES".to_owned(), "VALUE".to_owned()]);
            for sample in result.as_array()? {
                let value = sample.get("value").or_else(|| sample.get("histogram"))?.get(1)?;
                rows.push(vec![series(sample.get("metric")?), point(value)]);
            }
        }
        "matrix" => {
            rows.push(vec!["SERIES".to_owned(), "TIME".to_owned(), "VALUE".to_owned()]);
            for line in result.as_array()? {
                let mut name = series(line.get("metric")?);
                let lists = ["values", "histograms"].into_iter().filter_map(|kind| line.get(kind)?.as_array());
                for pair in lists.flatten() {
                    rows.push(vec![std::mem::take(&mut name), time(pair.get(0)?), point(pair.get(1)?)]);
                }
            }
        }
        _ => return Some(format!("{}\n", plain(result.get(1)?))),
    }
    if rows.len() == 1 {
        return Some("nothing\n".to_owned());
    }
    Some(table(&rows))
}

/// `name{label="value"}`.
fn series(metric: &Value) -> String {
    let empty = Map::new();
    let labels = metric.as_object().unwrap_or(&empty);
    let name = labels.get("__name__").map_or(String::new(), plain);
    let rest: Vec<String> = labels
        .iter()
        .filter(|(label, _)| *label != "__name__")
        .map(|(label, value)| format!("{label}={:?}", plain(value)))
        .collect();
    if rest.is_empty() && !name.is_empty() { name } else { format!("{name}{{{}}}", rest.join(", ")) }
}

fn time(seconds: &Value) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "a time to show; the cast saturates")]
    let millis = seconds.as_f64().map(|seconds| (seconds * 1000.0).round() as i64);
    millis.map_or_else(|| plain(seconds), crate::http::format_time)
}

fn point(value: &Value) -> String {
    match (value.get("count"), value.get("sum")) {
        (Some(count), Some(sum)) => format!("count {} sum {}", plain(count), plain(sum)),
        _ => plain(value),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `name: value` for what is simple, a table for lists of objects, and so on inside.
fn structure(out: &mut String, name: &str, value: &Value) {
    let title = |out: &mut String| {
        if !name.is_empty() {
            out.push_str(&format!("{}{name}\n", if out.is_empty() { "" } else { "\n" }));
        }
    };
    match value {
        Value::Object(fields) => {
            title(out);
            let (deep, flat): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| is_deep(value));
            out.push_str(&table(&flat.iter().map(|(n, v)| vec![format!("{n}:"), brief(v)]).collect::<Vec<_>>()));
            for (inner, value) in deep {
                let path = if name.is_empty() { inner.clone() } else { format!("{name}.{inner}") };
                structure(out, &path, value);
            }
        }
        Value::Array(all) if is_deep(value) => {
            title(out);
            let mut columns: Vec<&String> = Vec::new();
            for field in all.iter().filter_map(Value::as_object).flat_map(Map::keys) {
                if !columns.contains(&field) {
                    columns.push(field);
                }
            }
            // Who it is comes first; the fields of an object come in no order that means something.
            columns.sort_by_key(|name| (*name != "id", *name != "name"));
            let mut rows = vec![columns.iter().map(|c| c.to_uppercase()).collect::<Vec<_>>()];
            let cells =
                |one: &Value| columns.iter().map(|c| one.get(c.as_str()).map_or(String::new(), brief)).collect();
            rows.extend(joined(all.iter().map(cells).collect()));
            out.push_str(&table(&rows));
        }
        simple => out.push_str(&format!("{}\n", brief(simple))),
    }
}

/// Rows that differ in a running number in front only become one: `0-63`.
fn joined(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    /// First and last number, when there are any, and the cells.
    type Joined = (Option<(u64, u64)>, Vec<String>);
    let mut all: Vec<Joined> = Vec::new();
    for row in rows {
        let id = row.first().and_then(|cell| cell.parse::<u64>().ok());
        match (all.last_mut(), id) {
            (Some((Some((_, last)), rest)), Some(id)) if last.checked_add(1) == Some(id) && rest[1..] == row[1..] => {
                *last = id;
            }
            _ => all.push((id.map(|id| (id, id)), row)),
        }
    }
    let text = |(range, mut row): Joined| {
        if let Some((first, last)) = range.filter(|(first, last)| first < last) {
            row[0] = format!("{first}-{last}");
        }
        row
    };
    all.into_iter().map(text).collect()
}

fn is_deep(value: &Value) -> bool {
    value.is_object() || value.as_array().is_some_and(|all| all.iter().any(Value::is_object))
}

pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Array(all) => all.iter().map(brief).collect::<Vec<_>>().join(","),
        other => plain(other),
    }
}

/// Columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
