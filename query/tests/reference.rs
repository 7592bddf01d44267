//! Goal: the engine, with its plan, columns, sliding windows and threads, answers what an evaluator answers that has none
//! of them. Method: random data and random queries from a seed, evaluated by both, step by step.
//!
//! A failure names its seed; `ENGRAM_REFERENCE_SEED=<seed> cargo test -p engram-query --test reference` runs that one
//! again, `ENGRAM_REFERENCE_CASES=<n>` runs more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test")]

mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::Millis;
use engram_model::sample::Value as SampleValue;
use engram_model::series::{Columns, Series};
use engram_query::engine::{Budget, Cancel, Request, evaluate};
use engram_query::parse::{Switches, parse};
use engram_query::port::SharedQueryable;
use engram_query::value::{InstantSample, Value};
use futures::executor::block_on;

#[path = "reference/generate.rs"]
mod generate;
#[path = "reference/histograms.rs"]
mod histograms;
#[path = "reference/naive.rs"]
mod naive;

use generate::Dice;
use histograms::{Joins, Naive};
use memory::Memory;
use naive::{Fail, Labels, Stored, World};

const CASES: u64 = 1_000;

/// Values by labels and time.
type Points = BTreeMap<(Labels, Millis), f64>;

fn source(data: &[Stored]) -> SharedQueryable {
    let mut series: Vec<Series> = data
        .iter()
        .map(|one| {
            let (times, values) = one.samples.iter().copied().unzip();
            let labels = engram_model::Labels::from_pairs(one.labels.clone());
            Series { labels, source: Arc::new(Columns { times, values, ..Columns::default() }) }
        })
        .collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    Arc::new(Memory(series))
}

fn of_engine(value: Value) -> Points {
    let labels = |labels: &engram_model::Labels| -> Labels {
        labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let mut out = Points::new();
    match value {
        Value::Vector(samples) => {
            for sample in samples {
                let SampleValue::Float(float) = sample.value else { panic!("no histogram was stored") };
                assert!(out.insert((labels(&sample.labels), sample.at), float).is_none(), "twice the same series");
            }
        }
        Value::Matrix(series) => {
            for one in series {
                assert!(one.histograms.is_empty() && !one.floats.is_empty());
                for (at, float) in one.floats {
                    assert!(out.insert((labels(&one.labels), at), float).is_none(), "twice the same time");
                }
            }
        }
        other => panic!("not a vector: {other:?}"),
    }
    out
}

fn is_close(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-8 * a.abs().max(b.abs()).max(1e-3)
}

/// Whether the case was one both could answer.
fn check(seed: u64) -> bool {
    let mut dice = Dice(seed);
    let data = generate::data(&mut dice);
    let (start, end, step_ms) = generate::times(&mut dice);
    let depth = 1 + dice.below(3);
    let (text, _) = generate::vector(&mut dice, depth, true);
    let expr = parse(&text, &Switches::all()).unwrap_or_else(|e| panic!("seed {seed}: {text}: {e}"));
    let budget = Budget { parallelism: 1 + dice.below(2), optimise: dice.below(4) > 0, ..Budget::default() };
    let request = Request { text: text.clone(), expr: expr.clone(), start, end, step_ms, budget };
    let have = block_on(evaluate(&request, &source(&data), &Cancel::default()));
    let world = World { data: &data, start, end };
    let mut want = Ok(Points::new());
    let mut at = start;
    while at <= end {
        match (&mut want, world.vector(&expr, at)) {
            (Ok(points), Ok(row)) => points.extend(row.into_iter().map(|(labels, v)| ((labels, at), v))),
            (Ok(_), Err(fail)) => want = Err(fail),
            // What is refused at any step is refused.
            (Err(have), Err(Fail::Refused)) => *have = Fail::Refused,
            (Err(_), _) => {}
        }
        at += step_ms.max(1);
        if step_ms == 0 {
            break;
        }
    }
    let case = format!("seed {seed}: {text} over {start} to {end}, step {step_ms}");
    match (have, want) {
        (_, Err(Fail::Unsure)) => return false,
        (Err(_), Err(Fail::Refused)) => {}
        (Ok(outcome), Ok(want)) => {
            let have = of_engine(outcome.value);
            let keys = |points: &Points| points.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&have), keys(&want), "{case}");
            for (key, want) in want {
                assert!(is_close(have[&key], want), "{case}: {key:?} is {}, should be {want}", have[&key]);
            }
        }
        (have, want) => panic!("{case}: {have:?}, should be {want:?}"),
    }
    true
}

/// What is looked at of a histogram, and its number by the definition.
type View = (String, fn(&Naive, f64) -> f64, f64);

fn view(dice: &mut Dice) -> Option<View> {
    let q = [0.015_7, 0.371_9, 0.915_3, 0.999_1][dice.below(4)];
    match dice.below(6) {
        0 => Some(("histogram_count(".to_owned(), |h, _| h.count, 0.0)),
        1 => Some(("histogram_sum(".to_owned(), |h, _| h.sum, 0.0)),
        2 => Some(("histogram_avg(".to_owned(), |h, _| h.sum / h.count, 0.0)),
        3 => Some((format!("histogram_quantile({q}, "), Naive::quantile, q)),
        _ => None,
    }
}

/// Histograms of an answer by labels and time.
fn histograms_of(value: Value) -> BTreeMap<(Labels, Millis), Naive> {
    let labels = |labels: &engram_model::Labels| -> Labels {
        labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    match value {
        Value::Vector(all) => {
            let one = |sample: InstantSample| {
                let SampleValue::Histogram(h) = &sample.value else { panic!("no float was stored") };
                ((labels(&sample.labels), sample.at), Naive::of(h))
            };
            all.into_iter().map(one).collect()
        }
        Value::Matrix(all) => {
            let each =
                all.iter().flat_map(|s| s.histograms.iter().map(|(at, h)| ((labels(&s.labels), *at), Naive::of(h))));
            each.collect()
        }
        other => panic!("not a vector: {other:?}"),
    }
}

/// One case of histograms; how many values were compared.
fn check_histograms(seed: u64) -> usize {
    let mut dice = Dice(seed);
    let data = histograms::data(&mut dice);
    let (start, end, step_ms) = generate::times(&mut dice);
    let view = view(&mut dice);
    let depth = dice.below(4);
    let joins = match &view {
        None => Joins::All,
        Some((_, _, q)) if *q > 0.0 => Joins::Plus,
        Some(_) => Joins::None,
    };
    let expr = histograms::Expr::new(&mut dice, depth, joins);
    let text = match &view {
        Some((open, ..)) => format!("{open}{})", expr.text()),
        None => expr.text(),
    };
    let mut series: Vec<Series> = data
        .iter()
        .map(|one| {
            let (histogram_times, histograms) = one.samples.iter().map(|(at, h)| (*at, Arc::new(h.stored()))).unzip();
            let columns = Columns { histogram_times, histograms, ..Columns::default() };
            Series { labels: engram_model::Labels::from_pairs(one.labels.clone()), source: Arc::new(columns) }
        })
        .collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    let parsed = parse(&text, &Switches::all()).unwrap_or_else(|e| panic!("seed {seed}: {text}: {e}"));
    let budget = Budget { parallelism: 1 + dice.below(2), optimise: dice.below(4) > 0, ..Budget::default() };
    let request = Request { text: text.clone(), expr: parsed, start, end, step_ms, budget };
    let source: SharedQueryable = Arc::new(Memory(series));
    let case = format!("histograms, seed {seed}: {text} over {start} to {end}, step {step_ms}");
    let outcome = block_on(evaluate(&request, &source, &Cancel::default())).unwrap_or_else(|e| panic!("{case}: {e}"));
    let times = (0..).map(|n| start + n * step_ms.max(1)).take_while(|at| *at <= end && (step_ms > 0 || *at == start));
    let want = times.flat_map(|at| expr.value(&data, at).into_iter().map(move |(labels, h)| ((labels, at), h)));
    let want: BTreeMap<(Labels, Millis), Naive> = want.collect();
    let compared = want.len();
    let Some((_, number, q)) = view else {
        let have = histograms_of(outcome.value);
        assert_eq!(have.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{case}");
        for (key, want) in want {
            assert!(want.is_close(&have[&key]), "{case}: {key:?} is {:?}, should be {want:?}", have[&key]);
        }
        return compared;
    };
    let have = of_engine(outcome.value);
    let nameless = |(mut labels, at): (Labels, Millis)| {
        labels.remove("__name__");
        (labels, at)
    };
    let want: Points = want.into_iter().map(|(key, h)| (nameless(key), number(&h, q))).collect();
    assert_eq!(have.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{case}");
    for (key, want) in want {
        assert!(is_close(have[&key], want), "{case}: {key:?} is {}, should be {want}", have[&key]);
    }
    compared
}

#[test]
fn histograms_are_what_their_definition_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("ENGRAM_REFERENCE_SEED") {
        check_histograms(seed);
        return;
    }
    let cases = number("ENGRAM_REFERENCE_CASES").unwrap_or(CASES);
    let compared: usize = (0..cases).map(check_histograms).sum();
    println!("{compared} histograms of {cases} cases were compared");
    assert!(compared as u64 > 3 * cases, "too few histograms were compared: {compared}");
}

#[test]
fn the_engine_answers_what_the_definition_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("ENGRAM_REFERENCE_SEED") {
        check(seed);
        return;
    }
    let cases = number("ENGRAM_REFERENCE_CASES").unwrap_or(CASES);
    let answered = (0..cases).filter(|seed| check(*seed)).count();
    println!("{answered} of {cases} cases were compared");
    assert!(answered as u64 > cases / 2, "too many cases cannot be compared: {answered} of {cases}");
}
