//! Goal: the engine keeps to its bounds, and gives what a slow and obvious evaluator gives. Method: random series
//! against sums, windows and matches written down as their definitions say; and queries that must be stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::histogram::Histogram;
use engram_model::sample::Value as SampleValue;
use engram_model::series::{Columns, Series};
use engram_model::{Class, Classed, Labels, Matcher, Millis, TimeRange};
use engram_query::engine::{Budget, Cancel, Outcome, Request, SamplePool, evaluate, prepare};
use engram_query::error::Error;
use engram_query::parse::{Switches, parse};
use engram_query::port::{Queryable, SelectHints, Selection, SharedQueryable, SourceError};
use engram_query::value::Value;
use futures::executor::block_on;
use futures::future::BoxFuture;
use proptest::prelude::*;

const MINUTE: i64 = 60_000;

/// Series with their samples, and how often it was asked.
struct Memory {
    series: Vec<Series>,
    asked: std::sync::atomic::AtomicU64,
}

impl Queryable for Memory {
    fn select<'a>(
        &'a self,
        _: TimeRange,
        matchers: &'a [Matcher],
        _: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let fits = |s: &&Series| matchers.iter().all(|m| m.matches(s.labels.get(&m.name).unwrap_or_default()));
        let series = self.series.iter().filter(fits).cloned().collect();
        Box::pin(async move { Ok(Selection { series, ..Selection::default() }) })
    }
}

type Samples = Vec<(Millis, f64)>;

fn memory(series: impl IntoIterator<Item = (Labels, Samples)>) -> Arc<Memory> {
    let sorted: BTreeMap<Labels, Samples> = series.into_iter().collect();
    let series = sorted.into_iter().map(|(labels, samples)| {
        let (times, values) = samples.into_iter().unzip();
        Series { labels, source: Arc::new(Columns { times, values, ..Columns::default() }) }
    });
    Arc::new(Memory { series: series.collect(), asked: 0.into() })
}

/// `n` counters of an hour.
fn counters(n: usize) -> Arc<Memory> {
    memory((0..n).map(|i| {
        let labels = Labels::from_pairs([
            ("__name__", "c_total".to_owned()),
            ("i", format!("{i:05}")),
            ("x", format!("{}", i % 7)),
        ]);
        (labels, (0..=60).map(|m| (m * MINUTE, m as f64 * (1.0 + i as f64 / 3.0))).collect())
    }))
}

fn request(text: &str, (start, end, step_ms): (Millis, Millis, i64), budget: Budget) -> Request {
    let expr = parse(text, &Switches::all()).unwrap();
    Request { text: text.to_owned(), expr, start, end, step_ms, budget }
}

fn run(text: &str, times: (Millis, Millis, i64), budget: Budget, memory: &Arc<Memory>) -> Result<Outcome, Error> {
    let source = Arc::clone(memory) as SharedQueryable;
    block_on(evaluate(&request(text, times, budget), &source, &Cancel::default()))
}

const HOUR: (Millis, Millis, i64) = (10 * MINUTE, 60 * MINUTE, MINUTE);

#[test]
fn what_is_summed_away_is_not_held() {
    let memory = counters(500);
    let budget = Budget { samples_max: 2_000, ..Budget::default() };
    let outcome = run("sum by (x) (rate(c_total[5m]))", HOUR, budget.clone(), &memory).unwrap();
    // Seven groups over 51 steps, one series, and a row on its way.
    assert!(outcome.stats.samples_peak < 1_000, "{:?}", outcome.stats);
    assert_eq!(outcome.stats.series_total, 500);
    let error = run("rate(c_total[5m])", HOUR, budget, &memory).unwrap_err();
    assert!(matches!(error, Error::OverBudget(_)), "{error}");
    let text = "query processing would load too many samples into memory in query execution: the limit is 2000 samples";
    assert!(error.to_string().starts_with(text), "{error}");
    assert_eq!(error.class(), Class::Invalid);
}

#[test]
fn what_has_to_be_collected_is_counted() {
    let twins = memory((0..1_000).map(|i| {
        let name = if i % 2 == 0 { "a" } else { "b" };
        let labels = Labels::from_pairs([("__name__", name.to_owned()), ("i", (i / 2).to_string())]);
        (labels, (0..=60).map(|m| (m * MINUTE, m as f64)).collect())
    }));
    let small = Budget { samples_max: 2_000, ..Budget::default() };
    // Rows that may become the same without their names have to be seen together.
    for text in ["sum(rate({i=~\".+\"}[5m]))", "sum(timestamp({i=~\".+\"}))", "sum(-{i=~\".+\"})", "topk(1, a)"] {
        let error = run(text, HOUR, small.clone(), &twins).unwrap_err();
        assert!(matches!(error, Error::OverBudget(_)), "{text}: {error}");
    }
    let error = run("sum(rate({i=~\".+\"}[5m]))", HOUR, Budget::default(), &twins).unwrap_err();
    assert_eq!(error.to_string(), "vector cannot contain metrics with the same labelset");
    let outcome = run("topk(1, a)", HOUR, Budget::default(), &twins).unwrap();
    assert!(outcome.stats.samples_peak >= 500 * 51, "{:?}", outcome.stats);
}

#[test]
fn queries_share_what_the_node_may_hold_and_give_it_back() {
    let data = counters(1_000);
    let pool = std::sync::Arc::new(SamplePool::new(20_000));
    let shared = Budget { pool: Some(pool.clone()), ..Budget::default() };
    let error = run("topk(1, c_total)", HOUR, shared.clone(), &data).unwrap_err();
    assert!(matches!(error, Error::Busy { max: 20_000 }), "{error}");
    assert_eq!(pool.held(), 0);
    run("sum(rate(c_total[5m]))", HOUR, shared, &data).unwrap();
    assert_eq!(pool.held(), 0);
}

#[test]
fn more_steps_than_samples_allowed_are_refused_at_once() {
    let memory = counters(1);
    for text in ["c_total", "vector(1)", "max_over_time(vector(1)[100y:1ms])"] {
        let error = run(text, (0, i64::MAX / 2, 1), Budget::default(), &memory).unwrap_err();
        assert!(matches!(error, Error::OverBudget(_)), "{text}: {error}");
    }
}

#[test]
fn what_makes_labels_is_counted_before_it_is_made() {
    let memory = counters(50);
    // Each of these would otherwise take gigabytes: columns for each value, text that doubles with each call.
    let small = Budget { samples_max: 60_000, ..Budget::default() };
    let error = run("count_values(\"v\", c_total * time())", HOUR, small.clone(), &memory).unwrap_err();
    assert!(matches!(error, Error::OverBudget(_)), "{error}");
    let mut text = "label_replace(c_total, \"x\", \"$1$1$1$1\", \"i\", \"(.*)\")".to_owned();
    for _ in 0..40 {
        text = format!("label_replace({text}, \"x\", \"$1$1\", \"x\", \"(.*)\")");
    }
    let error = run(&text, HOUR, small, &memory).unwrap_err();
    assert!(matches!(error, Error::OverBudget(_)), "{error}");
    let error = run(&text, HOUR, Budget::default(), &memory).unwrap_err();
    assert!(error.to_string().contains("label value of more than 65536 bytes"), "{error}");
}

#[test]
fn the_highest_tree_fits_a_small_stack() {
    let memory = counters(2);
    // As high and as deep as the parser lets one be, on a test's two megabytes.
    for (first, more) in [("c_total", " + c_total"), ("c_total", " + 1"), ("1", " * 2"), ("c_total", " or c_total")] {
        let text = format!("sum({first}{})", more.repeat(500));
        if parse(&text, &Switches::all()).is_ok() {
            run(&text, (0, 0, 0), Budget::default(), &memory).unwrap();
        }
    }
    for (open, close) in [("(", ")"), ("abs(", ")"), ("-abs(", ")"), ("sum(", ")"), ("max_over_time(", "[1m:1m])")] {
        let text = format!("{}c_total{}", open.repeat(60), close.repeat(60));
        parse(&text, &Switches::all()).unwrap();
        run(&text, (0, MINUTE, MINUTE), Budget::default(), &memory).unwrap();
    }
}

#[test]
fn too_many_series_are_refused() {
    let budget = Budget { series_max: 9, ..Budget::default() };
    let error = run("sum(c_total)", HOUR, budget, &counters(10)).unwrap_err();
    assert!(error.to_string().contains("limit of 9"), "{error}");
}

#[test]
fn a_query_ends_when_its_time_or_its_client_is_gone() {
    let memory = counters(500);
    let budget = Budget { timeout: Duration::ZERO, ..Budget::default() };
    let error = run("sum(rate(c_total[5m]))", HOUR, budget, &memory).unwrap_err();
    assert_eq!(error, Error::Timeout { stage: "expression evaluation" });
    assert_eq!(error.to_string(), "query timed out in expression evaluation");

    let source = Arc::clone(&memory) as SharedQueryable;
    let prepared = block_on(prepare(&request("sum(c_total)", HOUR, Budget::default()), &source)).unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(prepared.run(&cancel).unwrap_err(), Error::Cancelled { stage: "expression evaluation" });
    // What is prepared can be run again.
    assert!(prepared.run(&Cancel::default()).is_ok());
}

#[test]
fn identical_selectors_are_fetched_once() {
    let memory = counters(2);
    run("rate(c_total[5m]) / rate(c_total[5m]) + c_total", HOUR, Budget::default(), &memory).unwrap();
    assert_eq!(memory.asked.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[test]
fn a_range_query_of_a_range_is_no_query() {
    let error = run("c_total[5m]", HOUR, Budget::default(), &counters(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid expression type \"range vector\" for range query, must be Scalar or instant Vector"
    );
}

#[test]
fn what_a_counter_is_says_its_name_or_its_type() {
    let series = |kind: &str| {
        let labels = Labels::from_pairs([("__name__", "m"), ("__type__", kind)]);
        memory([(labels, vec![(0, 1.0), (MINUTE, 2.0)])])
    };
    let infos = |kind: &str, type_and_unit_labels: bool| {
        let budget = Budget { type_and_unit_labels, ..Budget::default() };
        let outcome = run("rate(m[5m])", (MINUTE, MINUTE, 0), budget, &series(kind)).unwrap();
        outcome.annotations.infos.into_iter().collect::<Vec<_>>().join("; ")
    };
    let by_name =
        "PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"m\" (1:6)";
    assert_eq!(infos("counter", false), by_name);
    assert_eq!(infos("counter", true), "");
    assert_eq!(
        infos("gauge", true),
        "PromQL info: metric might not be a counter, __type__ label is not set to \"counter\" or \"histogram\", got \
         \"gauge\": \"m\" (1:6)"
    );
}

#[test]
fn names_go_at_once_or_at_the_end() {
    let pair = |name: &str| (Labels::from_pairs([("__name__", name), ("x", "1")]), vec![(0, 1.0)]);
    let memory = memory([pair("a"), pair("b")]);
    let text = "sum by (__name__) (abs({x=\"1\"}))";
    let at_once = run(text, (0, 0, 0), Budget::default(), &memory).unwrap_err();
    assert_eq!(at_once.to_string(), "vector cannot contain metrics with the same labelset");
    let budget = Budget { delayed_name_removal: true, ..Budget::default() };
    // Each name is a group of its own, and then both lose it.
    let at_the_end = run(text, (0, 0, 0), budget, &memory).unwrap_err();
    assert_eq!(at_the_end.to_string(), "vector cannot contain metrics with the same labelset");
}

#[test]
fn a_float_and_a_histogram_may_share_labels_and_step_at_the_end() {
    // `a` is a float at 0 and a histogram at 1 m, `b` histograms at both: without their names they are one series.
    let histogram = |count: f64| Arc::new(Histogram { count, sum: count, ..Histogram::default() });
    let labels = |name: &str| Labels::from_pairs([("__name__", name), ("x", "1")]);
    let a = Columns { times: vec![0, 2 * MINUTE], values: vec![5.0, 6.0], ..Columns::default() };
    let b = Columns {
        histogram_times: vec![0, MINUTE],
        histograms: vec![histogram(1.0), histogram(2.0)],
        ..Columns::default()
    };
    let series = [("a", a), ("b", b)].map(|(name, columns)| Series { labels: labels(name), source: Arc::new(columns) });
    let memory = Arc::new(Memory { series: series.to_vec(), asked: 0.into() });
    let budget = |delayed_name_removal| Budget { lookback_ms: 1, delayed_name_removal, ..Budget::default() };
    let range = (0, 2 * MINUTE, MINUTE);
    for (text, delayed) in [
        ("-{x=\"1\"}", false),
        ("label_replace({x=\"1\"}, \"__name__\", \"c\", \"\", \"\")", false),
        ("-{x=\"1\"}", true),
        ("{x=\"1\"} * -1", true),
    ] {
        let outcome = run(text, range, budget(delayed), &memory).unwrap();
        let Value::Matrix(all) = outcome.value else { panic!("{text}: {:?}", outcome.value) };
        assert_eq!(all.len(), 1, "{text}");
        assert_eq!(all[0].floats.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 2 * MINUTE], "{text}");
        assert_eq!(all[0].histograms.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, MINUTE], "{text}");
        // At one time the histogram is told.
        let outcome = run(text, (0, 0, 0), budget(delayed), &memory).unwrap();
        let Value::Vector(all) = outcome.value else { panic!("{text}: {:?}", outcome.value) };
        assert!(matches!(all.as_slice(), [one] if matches!(one.value, SampleValue::Histogram(_))), "{text}: {all:?}");
    }
    // What goes step by step takes the float, and no histogram from there on.
    let outcome = run("count(-{x=\"1\"})", range, budget(false), &memory).unwrap();
    assert_eq!(points(&outcome).into_keys().map(|(_, at)| at).collect::<Vec<_>>(), [0, 2 * MINUTE]);
    // Functions of each step never had both.
    let error = run("abs({x=\"1\"}) or {x=\"1\"} * 1", range, budget(false), &memory).unwrap_err();
    assert_eq!(error.to_string(), "vector cannot contain metrics with the same labelset");
}

/// Floats of an answer by labels and time.
fn points(outcome: &Outcome) -> BTreeMap<(Labels, Millis), f64> {
    match &outcome.value {
        Value::Vector(samples) => samples
            .iter()
            .map(|s| match &s.value {
                SampleValue::Float(v) => ((s.labels.clone(), s.at), *v),
                SampleValue::Histogram(_) => panic!("no histogram was stored"),
            })
            .collect(),
        Value::Matrix(series) => {
            series.iter().flat_map(|s| s.floats.iter().map(|(at, v)| ((s.labels.clone(), *at), *v))).collect()
        }
        other => panic!("not a vector: {other:?}"),
    }
}

fn assert_close(have: &BTreeMap<(Labels, Millis), f64>, want: &BTreeMap<(Labels, Millis), f64>, text: &str) {
    assert_eq!(have.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{text}");
    for (key, want) in want {
        let have = have[key];
        let scale = want.abs().max(1.0);
        assert!((have - want).abs() <= 1e-9 * scale, "{text}: {key:?} is {have}, should be {want}");
    }
}

const AGGREGATIONS: [&str; 8] = ["sum", "avg", "count", "min", "max", "group", "stddev", "stdvar"];

#[test]
fn threads_agree_with_one() {
    let memory = counters(2_500);
    for op in AGGREGATIONS.into_iter().chain(["quantile"]) {
        let param = if op == "quantile" { "0.9, " } else { "" };
        let text = format!("{op} by (x) ({param}2 * rate(c_total[5m]))");
        let one = run(&text, HOUR, Budget::default(), &memory).unwrap();
        let with = |parallelism| run(&text, HOUR, Budget { parallelism, ..Budget::default() }, &memory).unwrap();
        let two = with(2);
        assert_close(&points(&two), &points(&one), &text);
        for parallelism in [2, 3, 5] {
            let many = with(parallelism);
            // Batches are the same and joined in order, whoever takes them.
            assert_eq!(points(&many), points(&two), "{text}");
            assert_eq!(many.stats.samples_total, one.stats.samples_total);
        }
    }
}

/// Random series: label `x` of three values, samples at random seconds.
fn random_series() -> impl Strategy<Value = Vec<(Labels, Samples)>> {
    let samples = proptest::collection::btree_map(0_i64..1200, -1000_i32..1000, 0..60);
    proptest::collection::vec((0_u8..3, samples), 1..12).prop_map(|all| {
        let series = all.into_iter().enumerate().map(|(i, (x, samples))| {
            let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string()), ("x", x.to_string())]);
            (labels, samples.into_iter().map(|(at, v)| (at * 1000, f64::from(v) / 8.0)).collect())
        });
        series.collect()
    })
}

/// The last sample of the five minutes before and at `at`.
fn naive_instant(samples: &Samples, at: Millis) -> Option<f64> {
    samples.iter().rev().find(|(t, _)| *t <= at).filter(|(t, _)| *t > at - 5 * MINUTE).map(|(_, v)| *v)
}

fn naive_aggregate(op: &str, values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    match op {
        "sum" => values.iter().sum(),
        "avg" => mean,
        "count" => n,
        "min" => values.iter().copied().fold(f64::INFINITY, f64::min),
        "max" => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        "group" => 1.0,
        "stddev" => variance.sqrt(),
        _ => variance,
    }
}

/// `rate` as its description says: resets added up, then stretched to the range's ends where samples come near them.
fn naive_rate(samples: &[(Millis, f64)], start: Millis, end: Millis) -> Option<f64> {
    let [(first_at, first), .., (last_at, last)] = samples else { return None };
    let resets: f64 = samples.windows(2).filter(|w| w[1].1 < w[0].1).map(|w| w[0].1).sum();
    let increase = last - first + resets;
    let sampled = (last_at - first_at) as f64 / 1000.0;
    let between = sampled / (samples.len() - 1) as f64;
    let mut to_start = (first_at - start) as f64 / 1000.0;
    let mut to_end = (end - last_at) as f64 / 1000.0;
    if to_start >= between * 1.1 {
        to_start = between / 2.0;
    }
    if to_end >= between * 1.1 {
        to_end = between / 2.0;
    }
    if increase > 0.0 && *first >= 0.0 {
        to_start = to_start.min(sampled * (first / increase));
    }
    Some(increase * (sampled + to_start + to_end) / sampled / ((end - start) as f64 / 1000.0))
}

/// Answers by labels and time, as a function of each series and time says.
fn naive_each(
    series: &[(Labels, Samples)],
    (start, end, step): (Millis, Millis, i64),
    f: impl Fn(&Samples, Millis) -> Option<f64>,
) -> BTreeMap<(Labels, Millis), f64> {
    let times = || (0..).map(move |i| start + i * step).take_while(move |at| *at <= end);
    let each = series.iter().flat_map(|(labels, samples)| {
        let f = &f;
        times().filter_map(move |at| Some(((labels.clone(), at), f(samples, at)?)))
    });
    each.collect()
}

fn grouped(points: BTreeMap<(Labels, Millis), f64>, op: &str) -> BTreeMap<(Labels, Millis), f64> {
    let mut groups: BTreeMap<(Labels, Millis), Vec<f64>> = BTreeMap::new();
    for ((labels, at), v) in points {
        groups.entry((labels.without(|name| name != "x"), at)).or_default().push(v);
    }
    groups.into_iter().map(|(key, values)| (key, naive_aggregate(op, &values))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_is_what_a_slow_one_is(
        series in random_series(),
        start in 0_i64..600,
        length in 0_i64..900,
        step in 1_i64..200,
        range in 1_i64..400,
    ) {
        let times = (start * 1000, (start + length) * 1000, step * 1000);
        let memory = memory(series.clone());
        let window = |samples: &Samples, at: Millis| -> Samples {
            samples.iter().filter(|(t, _)| *t > at - range * 1000 && *t <= at).copied().collect()
        };
        let no_name = |points: BTreeMap<(Labels, Millis), f64>| -> BTreeMap<(Labels, Millis), f64> {
            points.into_iter().map(|((labels, at), v)| ((labels.without_name(), at), v)).collect()
        };
        let instant = naive_each(&series, times, naive_instant);
        let rate = naive_each(&series, times, |s, at| naive_rate(&window(s, at), at - range * 1000, at));
        let over = |f: fn(&Samples) -> f64| naive_each(&series, times, |s, at| {
            Some(window(s, at)).filter(|w| !w.is_empty()).map(|w| f(&w))
        });
        let mut cases = vec![
            ("m".to_owned(), instant.clone()),
            (format!("rate(m[{range}s])"), no_name(rate.clone())),
            (format!("sum_over_time(m[{range}s])"), no_name(over(|w| w.iter().map(|s| s.1).sum()))),
            (format!("count_over_time(m[{range}s])"), no_name(over(|w| w.len() as f64))),
            (
                format!("max_over_time(m[{range}s])"),
                no_name(over(|w| w.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max))),
            ),
            ("m * 2 - 1".to_owned(), no_name(instant.iter().map(|(k, v)| (k.clone(), v * 2.0 - 1.0)).collect())),
            ("m > 3".to_owned(), instant.iter().filter(|(_, v)| **v > 3.0).map(|(k, v)| (k.clone(), *v)).collect()),
            ("m + on (i) m".to_owned(), {
                let only_i = |labels: &Labels| labels.without(|name| name != "i");
                instant.iter().map(|((labels, at), v)| ((only_i(labels), *at), v * 2.0)).collect()
            }),
            ("m and on (x) m{i=\"0\"}".to_owned(), {
                let zero = |at: Millis| instant.keys().find(|(l, t)| *t == at && l.get("i") == Some("0"));
                let fits = |(labels, at): &(Labels, Millis)| zero(*at).is_some_and(|(l, _)| l.get("x") == labels.get("x"));
                instant.iter().filter(|(key, _)| fits(key)).map(|(k, v)| (k.clone(), *v)).collect()
            }),
        ];
        for op in AGGREGATIONS {
            cases.push((format!("{op} by (x) (m)"), grouped(instant.clone(), op)));
            cases.push((format!("{op} by (x) (rate(m[{range}s]))"), grouped(rate.clone(), op)));
        }
        for (text, want) in cases {
            for delayed_name_removal in [false, true] {
                let budget = Budget { delayed_name_removal, ..Budget::default() };
                let have = run(&text, times, budget, &memory).unwrap();
                assert_close(&points(&have), &want, &text);
            }
        }
    }
}
