//! From rows to the answer: names go, order comes.

use std::sync::atomic::Ordering;

use crate::error::Error;
use crate::functions::Point;
use crate::parse::ast::ValueType;
use crate::plan::{Node, chooses};
use crate::port::Selection;
use crate::value::{BlockStats, InstantSample, RangeSeries, SamplesByStep, Stats, Value};

use super::call::is_row_by_row;
use super::eval::{Counters, Evaluator, Parts, selection_bytes, without_metadata};
use super::profile::Profile;
use super::range::to_series;
use super::row::{Row, Steps, merge_kinds};
use super::{Cancel, Outcome, Prepared};

/// Runs a prepared query.
pub(super) fn run(prepared: &Prepared, cancel: &Cancel) -> Result<Outcome, Error> {
    let started = prepared.watch.elapsed();
    let series_bytes = prepared.selections.iter().map(selection_bytes).sum();
    let counters = Counters::new(prepared.budget.pool.clone(), series_bytes);
    let profile = prepared.budget.explain.then(Profile::default);
    let evaluator = Evaluator::new(Parts {
        plan: &prepared.plan,
        selections: &prepared.selections,
        budget: &prepared.budget,
        cancel,
        counters: &counters,
        watch: prepared.watch,
        profile: profile.as_ref(),
    });
    evaluator.hold(0)?;
    let value = value(prepared, &evaluator)?;
    let mut annotations = evaluator.notes.borrow().render(&prepared.text);
    for selection in &prepared.selections {
        annotations.warnings.extend(selection.warnings.iter().cloned());
    }
    let counted = evaluator.tally.take();
    let steps = Steps::new(prepared.start, prepared.end, prepared.step_ms);
    let stats = Stats {
        samples_total: counted.looked_at,
        samples_read: counted.read,
        samples_by_step: counted.into_steps(steps.count).map(|(looked_at, read)| SamplesByStep {
            start: steps.start,
            step_ms: steps.step_ms,
            looked_at,
            read,
        }),
        samples_peak: counters.peak.load(Ordering::Relaxed),
        bytes_peak: counters.bytes(counters.peak.load(Ordering::Relaxed)),
        series_total: prepared.selections.iter().map(Selection::series_count).sum(),
        select_seconds: prepared.select_seconds,
        eval_seconds: (prepared.watch.elapsed() - started).as_secs_f64(),
        blocks: BlockStats::default(),
    };
    let explain = profile.as_ref().map(|profile| Box::new(profile.tree(prepared, &counters)));
    Ok(Outcome { value, annotations, stats, explain })
}

fn value(prepared: &Prepared, evaluator: &Evaluator<'_>) -> Result<Value, Error> {
    let at = prepared.start;
    let steps = Steps::new(prepared.start, prepared.end, prepared.step_ms);
    if prepared.step_ms == 0 {
        match without_once(&prepared.plan.root) {
            Node::Text(bytes, _) => return Ok(Value::String { at, value: bytes.clone() }),
            Node::Range(range) => return Ok(Value::Matrix(sorted(evaluator.range_result(range, at)?, evaluator)?)),
            Node::Subquery(subquery) => {
                let (rows, steps) = evaluator.subquery_result(subquery, at)?;
                return Ok(Value::Matrix(sorted(
                    to_series(final_rows(rows, evaluator)?, steps, &evaluator.pace)?,
                    evaluator,
                )?));
            }
            _ => {}
        }
    }
    let mut rows = final_rows(evaluator.rows(&prepared.plan.root, steps)?, evaluator)?;
    if prepared.step_ms == 0 && !gives_order(&prepared.plan.root) {
        evaluator.in_order(&mut rows)?;
    }
    if prepared.step_ms != 0 {
        return Ok(Value::Matrix(sorted(to_series(rows, steps, &evaluator.pace)?, evaluator)?));
    }
    if prepared.plan.yields == ValueType::Scalar {
        let value = rows.first().map_or(f64::NAN, |row| row.column.values[0]);
        return Ok(Value::Scalar { at, value });
    }
    let sample = |row: Row| {
        // Upstream looks for a histogram first.
        let value = row.column.histogram(0).cloned().map(Point::Histogram).or_else(|| row.column.get(0))?;
        Some(InstantSample { labels: row.labels, at, value })
    };
    Ok(Value::Vector(rows.into_iter().filter_map(sample).collect()))
}

fn without_once(mut node: &Node) -> &Node {
    while let Node::Once(inner) = node {
        node = inner;
    }
    node
}

/// Whether the order of rows is what was asked for.
fn gives_order(node: &Node) -> bool {
    match node {
        Node::Aggregate(aggregate) => chooses(aggregate.op),
        Node::Call(call) => {
            call.func.starts_with("sort") || (is_row_by_row(call.func) && call.args.iter().any(gives_order))
        }
        Node::Binary(binary) => gives_order(&binary.lhs) || gives_order(&binary.rhs),
        Node::Negate(inner, _) | Node::Once(inner) => gives_order(inner),
        Node::Shared(shared) => gives_order(&shared.inner),
        _ => false,
    }
}

/// Takes the names that were to go, and puts together what is the same then.
fn final_rows(mut rows: Vec<Row>, evaluator: &Evaluator<'_>) -> Result<Vec<Row>, Error> {
    if !evaluator.budget.delayed_name_removal {
        return Ok(rows);
    }
    let named = rows.iter_mut().filter(|row| row.drop_name);
    evaluator.pace.each(named, |row| row.labels = without_metadata(&row.labels))?;
    merge_kinds(rows, &evaluator.pace)
}

fn sorted(mut series: Vec<RangeSeries>, evaluator: &Evaluator<'_>) -> Result<Vec<RangeSeries>, Error> {
    evaluator.pace.sort_by(&mut series, |a, b| a.labels.cmp(&b.labels))?;
    Ok(series)
}
