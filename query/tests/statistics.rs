//! Goal: `stats=all` says what Prometheus says. Method: queries over a few series, with the numbers that Prometheus 3.14
//! gave for the same samples; on one thread and on several, with the optimiser and without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

mod memory;

use std::sync::Arc;

use engram_model::series::{Columns, Series};
use engram_model::{Labels, Millis};
use engram_query::engine::{Budget, Cancel, Request, evaluate};
use engram_query::parse::{Switches, parse};
use engram_query::port::SharedQueryable;
use engram_query::value::Stats;
use futures::executor::block_on;
use memory::Memory;

fn series(name: &str, i: Option<String>, samples: impl Iterator<Item = (Millis, f64)>) -> Series {
    let pairs = [("__name__", Some(name.to_owned())), ("i", i)];
    let (times, values) = samples.unzip();
    Series {
        labels: Labels::from_pairs(pairs.into_iter().filter_map(|(name, value)| Some((name, value?)))),
        source: Arc::new(Columns { times, values, ..Columns::default() }),
    }
}

/// A sample every 15 seconds: `one`, three of `three` (the third begins later), and 600 of `many`.
fn source() -> SharedQueryable {
    let line = |first: i64, last: i64, each: f64| (first..=last).map(move |n| (n * 15_000, 1.0 + each * n as f64));
    let mut all = vec![
        series("one", None, line(0, 80, 1.0)),
        series("three", Some("a".to_owned()), line(0, 80, 1.0)),
        series("three", Some("b".to_owned()), line(0, 80, 2.0)),
        series("three", Some("c".to_owned()), line(10, 80, 0.0)),
    ];
    all.extend((0..600).map(|i| series("many", Some(format!("{i:03}")), line(0, 80, f64::from(i)))));
    Arc::new(Memory(all))
}

fn stats(query: &str, (start, end, step): (i64, i64, i64), budget: Budget) -> Stats {
    let request = Request {
        text: query.to_owned(),
        expr: parse(query, &Switches::all()).unwrap(),
        start: start * 1000,
        end: end * 1000,
        step_ms: step * 1000,
        budget,
    };
    block_on(evaluate(&request, &source(), &Cancel::default())).unwrap().stats
}

fn counting() -> Budget {
    Budget { count_steps: true, ..Budget::default() }
}

type Case = (&'static str, (i64, i64, i64), &'static [u64], &'static [u64]);

/// Query; first time, last time, step in seconds (0: instant); samples looked at and read, at each step.
const CASES: &[Case] = &[
    ("\"text\"", (60, 60, 0), &[0], &[0]),
    ("1", (60, 60, 0), &[0], &[0]),
    ("one", (61, 61, 0), &[1], &[1]),
    ("one offset 30s", (61, 61, 0), &[1], &[1]),
    ("one @ 45", (61, 61, 0), &[1], &[1]),
    (r#"three{i="a"}[45s] @ 33"#, (61, 61, 0), &[3], &[3]),
    ("timestamp(one)", (61, 61, 0), &[1], &[1]),
    ("three[1m]", (301, 301, 0), &[12], &[12]),
    ("max_over_time(one[1m])[30s:7s]", (301, 301, 0), &[20], &[6]),
    ("sum(max_over_time(three[1m] @ 90))", (301, 301, 0), &[8], &[8]),
    ("absent_over_time(one[1m])", (301, 301, 0), &[4], &[4]),
    ("three[1m:10s] offset 10s", (301, 301, 0), &[18], &[18]),
    ("max_over_time(three[1m:10s])", (301, 301, 0), &[18], &[18]),
    ("sum(max_over_time(three[1m:10s])) + sum(max_over_time(three[1m:10s]))", (301, 301, 0), &[36], &[36]),
    ("three", (301, 360, 20), &[3, 3, 3], &[3, 3, 3]),
    ("one offset 30s", (301, 360, 20), &[1, 1, 1], &[1, 1, 1]),
    ("one @ 90", (301, 360, 20), &[1, 1, 1], &[1, 0, 0]),
    ("timestamp(one @ 90)", (301, 360, 20), &[1, 1, 1], &[1, 0, 0]),
    ("rate(three[1m])", (301, 360, 20), &[12, 12, 12], &[12, 3, 3]),
    ("rate(three[10s])", (301, 360, 20), &[3, 3, 0], &[3, 3, 0]),
    ("rate(one[1m] @ 90)", (301, 360, 20), &[4, 4, 4], &[4, 0, 0]),
    ("predict_linear(one[1m] @ 90, time())", (301, 360, 20), &[4, 4, 4], &[4, 0, 0]),
    (r#"max_over_time(three{i="a"}[30s])"#, (1171, 1231, 20), &[2, 2, 2, 0], &[2, 1, 1, 0]),
    ("avg_over_time(one[2m:30s])", (301, 420, 40), &[4, 4, 4], &[4, 1, 1]),
    ("avg_over_time(one[20s:10s])", (301, 501, 60), &[2, 2, 2, 2], &[2, 2, 2, 2]),
    ("avg_over_time(one[2m:30s] offset 45s)", (301, 420, 40), &[4, 4, 4], &[4, 1, 2]),
    ("sum(rate(three[1m])) / count(three)", (301, 360, 20), &[15, 15, 15], &[15, 6, 6]),
    ("max_over_time(sum_over_time(one[1m])[2m:20s])", (301, 420, 40), &[6, 6, 6], &[11, 2, 3]),
    ("rate(one[1m:10s] @ 90)", (301, 420, 40), &[6, 6, 6], &[6, 0, 0]),
    ("clamp(three, scalar(one), 1e9)", (301, 360, 20), &[4, 4, 4], &[4, 4, 4]),
    (r#"absent_over_time(three{i="c"}[30s])"#, (121, 181, 20), &[0, 0, 1, 2], &[0, 0, 1, 2]),
    ("one and on () three > 10", (301, 341, 20), &[4, 4, 4], &[4, 4, 4]),
];

#[test]
fn samples_are_counted_as_prometheus_counts_them() {
    for (query, times, looked_at, read) in CASES {
        for optimise in [true, false] {
            let stats = stats(query, *times, Budget { optimise, ..counting() });
            let by_step = stats.samples_by_step.unwrap();
            assert_eq!(by_step.looked_at, *looked_at, "looked at: {query} (optimised: {optimise})");
            assert_eq!(by_step.read, *read, "read: {query} (optimised: {optimise})");
            assert_eq!(stats.samples_total, looked_at.iter().sum::<u64>(), "{query}");
            assert_eq!(stats.samples_read, read.iter().sum::<u64>(), "{query}");
            assert_eq!((by_step.start, by_step.step_ms), (times.0 * 1000, (times.2 * 1000).max(1)), "{query}");
        }
    }
}

#[test]
fn threads_do_not_count_twice_and_nobody_counts_steps_unasked() {
    let query = "sum(clamp_max(rate(many[1m]), scalar(one)))";
    let times = (301, 401, 20);
    let one = stats(query, times, counting());
    let many = stats(query, times, Budget { parallelism: 4, ..counting() });
    assert_eq!(one.samples_total, 6 * (600 * 4 + 1));
    assert_eq!((one.samples_total, one.samples_read), (many.samples_total, many.samples_read));
    assert_eq!(one.samples_by_step, many.samples_by_step);
    let plain = stats(query, times, Budget::default());
    assert_eq!((plain.samples_total, plain.samples_read, plain.samples_by_step), (one.samples_total, 0, None));
}
