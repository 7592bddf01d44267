//! Runs a script, each instant evaluation also in all the ways that must give the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::labels::METRIC_NAME;
use engram_model::{Labels, Millis};
use engram_query::engine::{Budget, Cancel, Outcome, Request, evaluate};
use engram_query::parse::ast::{At, Expr};
use engram_query::parse::{Switches, parse};
use engram_query::port::SharedQueryable;
use engram_query::value::{InstantSample, Value};
use futures::executor::block_on;

use super::compare::{check, check_annotations, check_sorted};
use super::script::{Command, Eval, Loaded};
use super::series::{Item, Parsed};
use super::storage::{Classic, Storage};

/// How many evaluations passed, and what the others said.
#[derive(Default)]
pub(super) struct Report {
    pub(super) passed: usize,
    pub(super) failures: Vec<String>,
}

/// When a metric's name goes after a function has made something else of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// At once.
    Eager,
    /// When the query ends: how Prometheus runs these scripts.
    Delayed,
}

/// Where a query is asked, and how.
pub(super) struct Stage {
    pub(super) storage: SharedQueryable,
    pub(super) names: Names,
}

/// Runs all commands; a failed evaluation does not end it.
pub(super) fn run(commands: Vec<Command>, names: Names) -> Report {
    let mut storage = Storage::default();
    let mut report = Report::default();
    for command in commands {
        match command {
            Command::Clear => storage = Storage::default(),
            Command::Load { step_ms, with_nhcb, series } => load(&mut storage, step_ms, with_nhcb, &series),
            Command::Eval(eval) => match run_eval(&eval, &Stage { storage: Arc::new(storage.freeze()), names }) {
                Ok(()) => report.passed += 1,
                Err(why) => report.failures.push(format!("line {}: {}\n      {why}", eval.line, eval.expr)),
            },
        }
    }
    report
}

/// Puts an expression to the data a script loads, over many ranges of time, with little memory and time; says whether
/// it was answered at least once. Errors are answers too: nothing may panic or run on.
pub(super) fn survives(text: &str, data: &SharedQueryable) -> bool {
    let Ok(expr) = parse(text, &Switches::all()) else { return false };
    let minute = 60_000;
    let times =
        [(5 * minute, 5 * minute, 0), (0, 10 * minute, minute), (-minute, minute, 7_001), (i64::MAX, i64::MAX, 0)];
    let mut answered = false;
    for (start, end, step_ms) in times.into_iter().chain([(i64::MIN, i64::MIN + minute, minute)]) {
        for delayed_name_removal in [false, true] {
            let budget = Budget {
                delayed_name_removal,
                use_start_timestamps: delayed_name_removal,
                samples_max: 100_000,
                timeout: std::time::Duration::from_secs(5),
                ..Budget::default()
            };
            let request = Request { text: text.to_owned(), expr: expr.clone(), start, end, step_ms, budget };
            answered |= block_on(evaluate(&request, data, &Cancel::default())).is_ok();
        }
    }
    answered
}

/// The data a script loads before its first evaluation.
pub(super) fn data_of(commands: Vec<Command>) -> SharedQueryable {
    let mut storage = Storage::default();
    for command in commands {
        if let Command::Load { step_ms, with_nhcb, series } = command {
            load(&mut storage, step_ms, with_nhcb, &series);
        }
    }
    Arc::new(storage.freeze())
}

pub(super) fn load(storage: &mut Storage, step_ms: i64, with_nhcb: bool, series: &[Loaded]) {
    let mut classic: BTreeMap<Labels, BTreeMap<Millis, Classic>> = BTreeMap::new();
    for Loaded { labels, items, starts } in series {
        let mut at = 0;
        for (i, item) in items.iter().enumerate() {
            let start = starts.as_ref().and_then(|starts| starts[i]).map_or(0, |start| at + start);
            match item {
                Item::Blank => {}
                Item::Float(value) => {
                    storage.append_float(labels, at, start, *value);
                    if with_nhcb {
                        collect(&mut classic, labels, at, *value);
                    }
                }
                Item::Histogram(histogram, _) => storage.append_histogram(labels, at, start, histogram),
            }
            at += step_ms;
        }
    }
    for (labels, times) in classic {
        for (at, classic) in times {
            storage.append_histogram(&labels, at, 0, &classic.convert());
        }
    }
}

/// Adds a float to the classic histogram its name says it belongs to.
fn collect(classic: &mut BTreeMap<Labels, BTreeMap<Millis, Classic>>, labels: &Labels, at: Millis, value: f64) {
    let name = labels.metric_name();
    let Some(cut) = ["_bucket", "_count", "_sum"].into_iter().find(|suffix| name.ends_with(suffix)) else { return };
    let bound: f64 = match (cut, labels.get("le").unwrap_or_default().parse()) {
        ("_bucket", Ok(bound)) if !f64::is_nan(bound) => bound,
        ("_bucket", _) => return,
        _ => 0.0,
    };
    let base = labels.to_builder().set(METRIC_NAME, &name[..name.len() - cut.len()]).remove("le").build();
    let histogram = classic.entry(base).or_default().entry(at).or_default();
    match cut {
        "_bucket" => histogram.bucket(bound, value),
        "_count" => histogram.count(value),
        _ => histogram.sum(value),
    }
}

/// Parses and evaluates; the error is the text a user would see.
pub(super) fn query(text: &str, times: (Millis, Millis, i64), stage: &Stage) -> Result<Outcome, String> {
    let expr = parse(text, &Switches::all()).map_err(|e| e.to_string())?;
    let (start, end, step_ms) = times;
    let budget =
        Budget { delayed_name_removal: stage.names == Names::Delayed, use_start_timestamps: true, ..Budget::default() };
    let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
    block_on(evaluate(&request, &stage.storage, &Cancel::default())).map_err(|e| e.to_string())
}

fn run_eval(eval: &Eval, stage: &Stage) -> Parsed<()> {
    if eval.step_ms != 0 {
        return match judge(eval, query(&eval.expr, (eval.start, eval.end, eval.step_ms), stage))? {
            Some(outcome) => {
                check_annotations(eval, &outcome.annotations)?;
                check(eval, &outcome.value)
            }
            None => Ok(()),
        };
    }
    run_instant(eval, &eval.expr, eval.start, stage)?;
    let Some(fixed) = with_fixed_time(&eval.expr, eval.start)? else { return Ok(()) };
    let at = eval.start;
    let other_times = if at == 0 { vec![-1000, 0, 1000] } else { vec![-10 * at, 0, at / 5, at, 10 * at] };
    for at in other_times {
        run_instant(eval, &fixed, at, stage).map_err(|e| format!("as {fixed} at {at}: {e}"))?;
    }
    Ok(())
}

/// The outcome where one is expected.
fn judge(eval: &Eval, result: Result<Outcome, String>) -> Parsed<Option<Outcome>> {
    match (result, &eval.fail) {
        (Ok(outcome), None) => Ok(Some(outcome)),
        (Ok(_), Some(_)) => Err("expected an error but got none".to_owned()),
        (Err(error), Some(want)) if want.fits(&error) => Ok(None),
        (Err(error), Some(want)) => Err(format!("expected error {want} but got: {error}")),
        (Err(error), None) => Err(format!("error: {error}")),
    }
}

fn run_instant(eval: &Eval, expr: &str, at: Millis, stage: &Stage) -> Parsed<()> {
    let Some(outcome) = judge(eval, query(expr, (at, at, 0), stage))? else { return Ok(()) };
    check_annotations(eval, &outcome.annotations)?;
    check(eval, &outcome.value)?;
    let asks_for_times = ["start()", "end()", "range()", "step()"].iter().any(|call| expr.contains(call));
    if eval.range_vector.is_some() || eval.string.is_some() || asks_for_times {
        return Ok(());
    }
    let ranged = query(expr, (at - 60_000, at + 60_000, 60_000), stage).map_err(|e| format!("in range mode: {e}"))?;
    let Value::Matrix(series) = &ranged.value else { return Err("a range query gives a matrix".to_owned()) };
    check_sorted(series)?;
    if eval.ordered {
        return Ok(());
    }
    let samples = series.iter().filter_map(|one| {
        let float = one.floats.iter().find(|(t, _)| *t == at).map(|(_, v)| engram_model::sample::Value::Float(*v));
        let histogram = one.histograms.iter().find(|(t, _)| *t == at);
        let value = float.or_else(|| histogram.map(|(_, h)| engram_model::sample::Value::Histogram(h.clone())))?;
        Some(InstantSample { labels: one.labels.clone(), at, value })
    });
    let value = match (&outcome.value, samples.collect::<Vec<_>>()) {
        (Value::Scalar { .. }, samples) => match samples.first().map(|s| &s.value) {
            Some(engram_model::sample::Value::Float(value)) => Value::Scalar { at, value: *value },
            other => return Err(format!("in range mode the scalar is {other:?}")),
        },
        (_, samples) => Value::Vector(samples),
    };
    check(eval, &value).map_err(|e| format!("in range mode: {e}"))
}

/// Functions whose answer may change with the time although `@` fixes their arguments.
const DEPENDS_ON_TIME: [&str; 15] = [
    "days_in_month",
    "day_of_month",
    "day_of_week",
    "day_of_year",
    "end",
    "hour",
    "minute",
    "month",
    "year",
    "predict_linear",
    "range",
    "start",
    "step",
    "time",
    "timestamp",
];

/// The expression with `@ at` at every selector that has none; `None`: its answer could differ then.
fn with_fixed_time(text: &str, at: Millis) -> Parsed<Option<String>> {
    let Ok(mut expr) = parse(text, &Switches::all()) else { return Ok(None) };
    Ok(fix(&mut expr, at).then(|| expr.to_string()))
}

fn fix(expr: &mut Expr, at: Millis) -> bool {
    match expr {
        Expr::Number(_) | Expr::String(_) => true,
        Expr::Paren(paren) => fix(&mut paren.expr, at),
        Expr::Unary(unary) => fix(&mut unary.expr, at),
        Expr::Binary(binary) => fix(&mut binary.lhs, at) & fix(&mut binary.rhs, at),
        Expr::Aggregate(aggregate) => {
            fix(&mut aggregate.expr, at) & aggregate.param.as_mut().is_none_or(|param| fix(param, at))
        }
        Expr::Call(call) => {
            let safe = !DEPENDS_ON_TIME.contains(&call.func);
            call.args.iter_mut().fold(safe, |safe, arg| fix(arg, at) & safe)
        }
        Expr::VectorSelector(selector) => {
            selector.at.get_or_insert(At::Time(at));
            true
        }
        Expr::MatrixSelector(matrix) => {
            matrix.selector.at.get_or_insert(At::Time(at));
            true
        }
        Expr::Subquery(subquery) => {
            subquery.at.get_or_insert(At::Time(at));
            true
        }
    }
}
