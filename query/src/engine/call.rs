//! Function calls: which go row by row, and those that need all rows, labels or strings at once.
//!
//! Source: `prometheus promql/functions.go`, Prometheus 3.14.

use std::cmp::Ordering;

use engram_model::labels::METRIC_NAME;
use engram_model::{Labels, MatchOp, Matcher};

use crate::error::Error;
use crate::functions::{Function, Kernel, Note, Point, VectorKernel, calendar, lookup, pointwise};
use crate::parse::ast::ValueType;
use crate::plan::{Call, Node};

use super::eval::{Evaluator, Sink, constant, seconds, weight};
use super::row::{Column, Row, Steps};
use super::select::Take;

/// Whether a function answers each row by itself, so that rows can be pushed through.
pub(super) fn is_row_by_row(func: &str) -> bool {
    matches!(func, "timestamp" | "start_timestamp")
        || lookup(func).is_some_and(|f| !is_whole(func) && !matches!(f.kernel, Kernel::Special))
}

/// Whether a function needs more than a row.
fn is_whole(func: &str) -> bool {
    matches!(
        func,
        "absent"
            | "absent_over_time"
            | "scalar"
            | "vector"
            | "time"
            | "pi"
            | "min_of"
            | "max_of"
            | "sort"
            | "sort_desc"
            | "sort_by_label"
            | "sort_by_label_desc"
            | "label_replace"
            | "label_join"
            | "histogram_quantile"
            | "histogram_quantiles"
            | "histogram_fraction"
            | "info"
    )
}

impl Evaluator<'_> {
    /// The rows of a call, one by one.
    pub(super) fn stream_call(&self, call: &Call, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        if let Some(mut rows) = self.whole_call(call, steps)? {
            return rows.iter_mut().try_for_each(sink);
        }
        if call.func == "timestamp" || call.func == "start_timestamp" {
            return self.stream_timestamp(call, steps, sink);
        }
        let Some(function) = lookup(call.func) else {
            return Err(Error::Execution(format!("unknown function {}", call.func)));
        };
        match function.kernel {
            Kernel::Range(kernel) => self.stream_range_function(call, function, kernel, steps, sink),
            Kernel::Vector(kernel) => self.stream_vector_function(call, function, kernel, steps, sink),
            Kernel::Special => Err(Error::Execution(format!("function {} has no implementation", call.func))),
        }
    }

    /// The rows of a function that needs more than one row at once; `None`: it is none of them.
    pub(super) fn whole_call(&self, call: &Call, steps: Steps) -> Result<Option<Vec<Row>>, Error> {
        if !is_whole(call.func) {
            return Ok(None);
        }
        let arg =
            |i: usize| call.args.get(i).ok_or_else(|| Error::Execution(format!("{} lacks an argument", call.func)));
        Ok(Some(match call.func {
            "time" => {
                let mut row = constant(0.0, steps);
                (0..steps.count).for_each(|step| row.column.values[step] = seconds(steps.at(step)));
                vec![row]
            }
            "pi" => vec![constant(std::f64::consts::PI, steps)],
            "vector" => vec![Row { column: self.scalar(arg(0)?, steps)?, ..Row::default() }],
            "scalar" => vec![self.to_scalar(arg(0)?, steps)?],
            "min_of" | "max_of" => {
                let mut a = self.scalar(arg(0)?, steps)?;
                let b = self.scalar(arg(1)?, steps)?;
                let pick = if call.func == "min_of" { pointwise::min_of } else { pointwise::max_of };
                a.values.iter_mut().zip(b.values.iter()).for_each(|(a, b)| *a = pick(*a, *b));
                vec![Row { column: a, ..Row::default() }]
            }
            "absent" => self.absent(arg(0)?, steps)?,
            "absent_over_time" => self.absent_over_time(call, arg(0)?, steps)?,
            "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" => self.sorted(call, arg(0)?, steps)?,
            "label_replace" | "label_join" => self.relabelled(call, steps)?,
            "info" => self.info(call, steps)?,
            _ => self.of_histograms(call, steps)?,
        }))
    }

    fn stream_vector_function(
        &self,
        call: &Call,
        function: &Function,
        kernel: VectorKernel,
        steps: Steps,
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let is_vector = |node: &&Node| node.yields() == ValueType::Vector;
        let scalars = call.args.iter().filter(|arg| !is_vector(arg)).map(|arg| self.scalar(arg, steps));
        let scalars = scalars.collect::<Result<Vec<_>, _>>()?;
        let mut params = Vec::with_capacity(scalars.len());
        let mut apply = |row: &mut Row| {
            let old = std::mem::take(&mut row.column);
            row.column.reset(steps.count);
            self.pace.each(0..steps.count, |step| {
                let Some(point) = old.get(step) else { return };
                params.clear();
                params.extend(scalars.iter().map(|column| column.values[step]));
                if let Some(point) = kernel(&point, steps.at(step), &params) {
                    row.column.put_point(step, point);
                }
            })?;
            if function.drops_name {
                let only_name = call.func.starts_with("histogram_") && !self.budget.delayed_name_removal;
                row.labels = if only_name { row.labels.without_name() } else { self.without_name(&row.labels) };
                row.drop_name = true;
            }
            Ok::<_, Error>(())
        };
        let Some(vector) = call.args.iter().find(is_vector) else {
            // `hour()`: of now, and of no series.
            let mut row = constant(0.0, steps);
            for step in 0..steps.count {
                row.column.values[step] = match calendar::now(steps.at(step)) {
                    Point::Float(value) => value,
                    Point::Histogram(_) => f64::NAN,
                };
            }
            apply(&mut row)?;
            row.drop_name = false;
            return sink(&mut row);
        };
        if !function.drops_name || self.names_stay_unique(vector)? {
            return self.stream(vector, steps, &mut |row| {
                apply(row)?;
                if row.column.is_empty() { Ok(()) } else { sink(row) }
            });
        }
        let mut rows = self.rows(vector, steps)?;
        self.release(weight(&rows));
        rows.iter_mut().try_for_each(apply)?;
        rows.retain(|row| !row.column.is_empty());
        self.merged(rows, steps)?.iter_mut().try_for_each(sink)
    }

    /// `timestamp`, `start_timestamp`: of the samples themselves where the argument is a selector.
    fn stream_timestamp(&self, call: &Call, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        let Some(arg) = call.args.first() else { return Ok(()) };
        let is_start = call.func == "start_timestamp";
        let unique = self.names_stay_unique(arg)?;
        let mut rows = Vec::new();
        let mut pass = |row: &mut Row| {
            self.tick(1)?;
            row.labels = self.without_name(&row.labels);
            row.drop_name = true;
            if unique {
                return sink(row);
            }
            self.hold(row.column.weight())?;
            rows.push(std::mem::take(row));
            Ok(())
        };
        match arg {
            Node::Instant(_) if is_start && !self.budget.use_start_timestamps => {}
            Node::Instant(selector) => {
                let take = if is_start { Take::Start } else { Take::Time };
                self.stream_taken(selector, take, steps, &mut |_, row| pass(row))?;
            }
            // Only samples of a selector have one; the rest is evaluated for what is to be said about it.
            _ if is_start => self.stream(arg, steps, &mut |_| Ok(()))?,
            _ => self.stream(arg, steps, &mut |row| {
                let taken = row.column.taken();
                row.column.reset(steps.count);
                self.pace.each(taken.iter(), |step| row.column.put(step, seconds(steps.at(step))))?;
                pass(row)
            })?,
        }
        self.release(weight(&rows));
        self.merged(rows, steps)?.iter_mut().try_for_each(sink)
    }

    /// `scalar`: the only float of a step, or NaN.
    fn to_scalar(&self, arg: &Node, steps: Steps) -> Result<Row, Error> {
        let mut out = constant(f64::NAN, steps);
        let mut seen = super::row::Bits::new(steps.count);
        self.stream(arg, steps, &mut |row| {
            self.pace.each(row.column.present.iter(), |step| {
                out.column.values[step] = if seen.has(step) { f64::NAN } else { row.column.values[step] };
                seen.set(step);
            })
        })?;
        Ok(out)
    }

    fn absent(&self, arg: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        let mut present = super::row::Bits::new(steps.count);
        self.stream(arg, steps, &mut |row| {
            present.join(&row.column.taken());
            self.tick(steps.count as u64 / 512)
        })?;
        Ok(missing(&present, absent_labels(arg), false, steps))
    }

    fn absent_over_time(&self, call: &Call, arg: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        let present = self.steps_with_samples(call, steps)?;
        Ok(missing(&present, absent_labels(arg), true, steps))
    }

    fn sorted(&self, call: &Call, arg: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        if !steps.is_instant {
            self.note(&Note::SortInRangeQuery, "", call.span);
        }
        let mut rows = self.rows(arg, steps)?;
        self.in_order(&mut rows)?;
        self.release(weight(&rows));
        let descending = call.func.ends_with("_desc");
        if call.func.starts_with("sort_by_label") {
            let names = call.args[1..].iter().map(text_of).collect::<Result<Vec<_>, _>>()?;
            let key = |a: &Row, b: &Row| by_labels(&a.labels, &b.labels, &names);
            self.pace.sort_by(&mut rows, |a, b| if descending { key(b, a) } else { key(a, b) })?;
        } else {
            rows.iter_mut().for_each(|row| row.column.histograms.clear());
            rows.retain(|row| !row.column.is_empty());
            self.pace.sort_by(&mut rows, |a, b| by_value(&a.column, &b.column, descending))?;
        }
        if steps.is_instant { Ok(rows) } else { self.merged(rows, steps) }
    }
}

/// A row of ones where nothing is.
fn missing(present: &super::row::Bits, labels: Labels, drop_name: bool, steps: Steps) -> Vec<Row> {
    let mut column = Column::new(steps.count);
    (0..steps.count).filter(|step| !present.has(*step)).for_each(|step| column.put(step, 1.0));
    if column.is_empty() { Vec::new() } else { vec![Row { labels, drop_name, column }] }
}

/// The labels a selector asks for exactly, once.
fn absent_labels(arg: &Node) -> Labels {
    let matchers: &[Matcher] = match arg {
        Node::Instant(selector) => &selector.matchers,
        Node::Range(range) => &range.of.matchers,
        _ => return Labels::empty(),
    };
    let mut builder = Labels::empty().to_builder();
    let mut seen: Vec<&str> = Vec::new();
    for matcher in matchers.iter().filter(|m| &*m.name != METRIC_NAME) {
        if matcher.op == MatchOp::Equal && !seen.contains(&&*matcher.name) {
            builder.set(&matcher.name, &matcher.value);
            seen.push(&matcher.name);
        } else {
            builder.remove(&matcher.name);
        }
    }
    builder.build()
}

/// A string argument; labels are UTF-8, so another has no use.
pub(super) fn text_of(node: &Node) -> Result<String, Error> {
    match node {
        Node::Text(bytes, _) => String::from_utf8(bytes.clone())
            .map_err(|_| Error::Execution(format!("the string {} is not UTF-8", super::ranked::quote_bytes(bytes)))),
        _ => Err(Error::Execution("a string literal is needed".to_owned())),
    }
}

/// By the first step's value; NaN comes last either way.
fn by_value(a: &Column, b: &Column, descending: bool) -> Ordering {
    let (a, b) = (a.values[0], b.values[0]);
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ if descending => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
        _ => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
    }
}

fn by_labels(a: &Labels, b: &Labels, names: &[String]) -> Ordering {
    for name in names {
        let (a, b) = (a.get(name).unwrap_or_default(), b.get(name).unwrap_or_default());
        match natural(a, b) {
            Ordering::Equal => {}
            other => return other,
        }
    }
    a.cmp(b)
}

/// Natural order: runs of digits compare as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (chunks(a), chunks(b));
    loop {
        let (a, b) = match (left.next(), right.next()) {
            (None, None) => return a.cmp(b),
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) => (a, b),
        };
        let order = match (a.parse::<i64>(), b.parse::<i64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => a.cmp(b),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Runs of digits, and what lies between.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let digits = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (chunk, after) = rest.split_at(end);
        rest = after;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_digits_sort_as_numbers() {
        let mut names = ["node10", "node9", "node", "node9a", "1", "a1b2"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["1", "a1b2", "node", "node9", "node9a", "node10"]);
    }
}
