//! Goal: whatever a query is doing, it stops soon after nobody waits for it, and what it held is free again. Method: no
//! clock. The engine tells how often it has looked whether to stop; of each operator the work is known, so looks bound
//! the work between two of them. Then the query is stopped at its first look, in the middle and at its last: it may not
//! look again, and a source that counts may not be read much further.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

mod memory;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engram_model::histogram::{BucketSpan, Histogram};
use engram_model::series::{Columns, ReadError, SampleSource, Series};
use engram_model::{Labels, TimeRange};
use engram_query::engine::{Budget, Cancel, Outcome, Request, SamplePool, prepare};
use engram_query::error::Error;
use engram_query::parse::{Switches, parse};
use engram_query::port::SharedQueryable;
use futures::executor::block_on;
use memory::Memory;

const MINUTE: i64 = 60_000;
/// Units of work between two looks: `CHECK_EVERY` of the engine.
const CHECK_EVERY: u64 = 8192;
const STOPPED: Error = Error::Cancelled { stage: "expression evaluation" };

/// `count` series of each name, with a sample a minute; all of them share their samples.
fn memory(names: &[&str], count: usize, minutes: i64) -> SharedQueryable {
    let times: Vec<i64> = (0..minutes).map(|m| m * MINUTE).collect();
    let values = times.iter().map(|at| *at as f64).collect();
    let source: Arc<dyn SampleSource> = Arc::new(Columns { times, values, ..Columns::default() });
    let series = names.iter().flat_map(|name| {
        let source = &source;
        (0..count).map(move |i| {
            let labels = Labels::from_pairs([
                ("__name__", (*name).to_owned()),
                ("i", format!("{i:06}")),
                ("instance", "one".to_owned()),
                ("le", format!("{}", i % 8)),
            ]);
            Series { labels, source: Arc::clone(source) }
        })
    });
    Arc::new(Memory(series.collect()))
}

fn run(text: &str, memory: &SharedQueryable, times: (i64, i64, i64), cancel: &Cancel) -> Result<Outcome, Error> {
    let pool = Arc::new(SamplePool::new(u64::MAX));
    let (start, end, step_ms) = times;
    let budget = Budget { pool: Some(Arc::clone(&pool)), optimise: false, ..Budget::default() };
    let expr = parse(text, &Switches::all()).unwrap();
    let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
    let outcome = block_on(prepare(&request, memory)).unwrap().run(cancel);
    assert_eq!(pool.held(), 0, "{text}");
    outcome
}

/// An operator over `inner` looks once for each `each * CHECK_EVERY` of its `items`, and a stop at any look is the end.
/// All stand under `absent`, which costs next to nothing and leaves no rows whose order would matter.
fn check(text: &str, inner: &[&str], memory: &SharedQueryable, times: (i64, i64, i64), (items, each): (u64, u64)) {
    let looks_of = |text: &str| {
        let cancel = Cancel::default();
        run(&format!("absent({text})"), memory, times, &cancel).unwrap();
        cancel.looks()
    };
    let below: u64 = inner.iter().map(|inner| looks_of(inner)).sum();
    let (looks, wanted) = (looks_of(text), items / each / CHECK_EVERY);
    assert!(wanted > 2, "{text}: too little work to tell");
    // What is left over at the end of each part may have been a look, or not.
    assert!(looks + 2 >= below + wanted, "{text}: {looks} looks, of which {below} below it; wanted {wanted}");
    for look in [1, below + 1, looks.midpoint(below), looks] {
        let cancel = Cancel::at_look(look);
        let stopped = run(&format!("absent({text})"), memory, times, &cancel);
        assert_eq!(stopped.unwrap_err(), STOPPED, "{text} at look {look} of {looks}");
        assert_eq!(cancel.looks(), look, "{text} went on");
    }
}

#[test]
fn what_goes_through_rows_looks_up() {
    const ROWS: usize = 32_768;
    let memory = memory(&["a", "b"], ROWS, 1);
    let one = |text: &str, inner: &[&str], each: u64| {
        check(text, inner, &memory, (0, 0, 0), (ROWS as u64, each));
    };
    one("a", &[], 1);
    one("a + on (i) b", &["a", "b"], 1);
    one("a * on (instance, i) group_left () b", &["a", "b"], 1);
    one("a and on (i) b", &["a", "b"], 1);
    one("a or b", &["a", "b"], 1);
    one("a unless on (i) b", &["a", "b"], 1);
    one("a * 2", &["a"], 1);
    one("-a", &["a"], 1);
    one("abs(a)", &["a"], 1);
    one("timestamp(a)", &["a"], 1);
    one("sort(a)", &["a"], 1);
    one("sort_by_label_desc(a, \"i\")", &["a"], 1);
    one("topk(100, a)", &["a"], 1);
    one("bottomk by (i) (1, a)", &["a"], 1);
    one("limitk(30000, a)", &["a"], 1);
    one("limit_ratio(0.5, a)", &["a"], 1);
    one("count_values(\"v\", a)", &["a"], 1);
    one("quantile(0.5, a)", &["a"], 1);
    one("sum by (i) (a)", &["a"], 1);
    one("label_replace(a, \"x\", \"$1\", \"i\", \"(.*)1\")", &["a"], 1);
    one("label_join(a, \"x\", \"-\", \"i\", \"le\")", &["a"], 1);
    one("histogram_quantile(0.9, a)", &["a"], 1);
    one("info(a, {__name__=\"b\", i=\"000001\"})", &["a"], 1);
    one("rate({__name__=~\"a\"}[5m])", &[], 1);
    one("vector(scalar(a))", &["a"], 1);
}

#[test]
fn answers_are_put_into_order_with_looks() {
    const ROWS: usize = 32_768;
    let memory = memory(&["a"], ROWS, 1);
    for times in [(0, 0, 0), (0, MINUTE, MINUTE)] {
        let cancel = Cancel::default();
        run("a", &memory, times, &cancel).unwrap();
        // Reading takes eight, eight runs of 4096 one each, and merging them, which finds them in order, six.
        assert!(cancel.looks() >= 8 + 8 + 6, "{} looks", cancel.looks());
    }
}

#[test]
fn what_goes_through_steps_looks_up() {
    const ROWS: usize = 32;
    const STEPS: i64 = 8192;
    let memory = memory(&["a", "b"], ROWS, 60);
    let times = (0, (STEPS - 1) * 400, 400);
    let one = |text: &str, inner: &[&str], each: u64| {
        check(text, inner, &memory, times, (ROWS as u64 * STEPS.unsigned_abs(), each));
    };
    one("a", &[], 8);
    one("a smoothed", &[], 1);
    one("a + on (i) b", &["a", "b"], 8);
    one("a + on (i) fill (0) b", &["a", "b"], 1);
    one("a > bool on (i) b", &["a", "b"], 8);
    one("a ^ 2", &["a"], 1);
    one("a > 2", &["a"], 1);
    one("ln(a)", &["a"], 1);
    one("-a", &["a"], 1);
    one("sum(a)", &["a"], 8);
    for op in ["avg", "min", "max", "count", "group", "stddev"] {
        one(&format!("{op}(a)"), &["a"], 1);
    }
    one("quantile(0.5, a)", &["a"], 1);
    one("topk(2, a)", &["a"], 1);
    one("limitk(2, a)", &["a"], 1);
    one("count_values(\"v\", round(a, 1e6))", &["round(a, 1e6)"], 1);
    one("histogram_quantile(0.9, a)", &["a"], 1);
    one("histogram_quantiles(a, \"q\", 0.1, 0.9)", &["a"], 1);
    one("rate(a[1m])", &[], 1);
    one("max_over_time(a[1m])", &[], 1);
    one("quantile_over_time(0.5, a[1m])", &[], 1);
    one("last_over_time(a[400ms:400ms])", &["a"], 1);
    one("info(a, {__name__=\"b\", i=\"000001\"})", &["a"], 1);
    let long = (0, 99_999, 1);
    check("vector(time() ^ 2)", &["vector(time())"], &memory, long, (100_000, 1));
    check("vector(time()) - 2", &["vector(time())"], &memory, long, (100_000, 1));
}

#[test]
fn windows_that_are_summed_anew_each_time_look_up() {
    // Ten thousand samples in each of fifteen hundred windows.
    let memory = memory(&["a"], 2, 20_000);
    let times = (10_000 * MINUTE, 11_499 * MINUTE, MINUTE);
    for func in ["sum_over_time", "avg_over_time", "stddev_over_time"] {
        check(&format!("{func}(a[10000m])"), &[], &memory, times, (30_000_000, 512));
    }
}

#[test]
fn histograms_look_up_more_often() {
    let span = |length| BucketSpan { offset: 0, length };
    let histogram = Arc::new(Histogram {
        count: 100.0,
        sum: 5.0,
        positive_spans: vec![span(100)],
        positive_buckets: vec![1.0; 100],
        ..Histogram::default()
    });
    let columns = Columns { histogram_times: vec![0], histograms: vec![histogram], ..Columns::default() };
    let source: Arc<dyn SampleSource> = Arc::new(columns);
    let labels = |i: usize| Labels::from_pairs([("__name__", "h".to_owned()), ("i", i.to_string())]);
    let series = (0..4096).map(|i| Series { labels: labels(i), source: Arc::clone(&source) });
    let memory: SharedQueryable = Arc::new(Memory(series.collect()));
    // A histogram of a hundred buckets counts as 60 samples: each has some units of its own.
    for text in ["sum(h)", "avg(h)", "histogram_quantile(0.9, h)", "rate(h[5m])", "h * 2", "sum by (i) (h)"] {
        check(text, &[], &memory, (0, 0, 0), (4096 * 60, 1));
    }
}

/// A source that counts how often it is read, and whose client leaves at one of the reads.
struct Counting {
    columns: Columns,
    reads: Arc<AtomicU64>,
    leaves_at: u64,
    cancel: Cancel,
}

impl SampleSource for Counting {
    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) + 1 == self.leaves_at {
            self.cancel.cancel();
        }
        self.columns.read(range, out)
    }
}

#[test]
fn few_series_are_read_after_the_client_has_left() {
    const SAMPLES: i64 = 120;
    for (threads, text) in [
        (1, "sum(rate(a[5m]))"),
        (1, "a + on (i) a"),
        (1, "sort(a)"),
        (1, "max_over_time(rate(a[5m])[1h:1m])"),
        (4, "sum by (i) (rate(a[5m]))"),
        (4, "max(a)"),
    ] {
        let (reads, cancel) = (Arc::new(AtomicU64::new(0)), Cancel::default());
        let source: Arc<dyn SampleSource> = Arc::new(Counting {
            columns: Columns {
                times: (0..SAMPLES).map(|m| m * MINUTE).collect(),
                values: (0..SAMPLES).map(|m| m as f64).collect(),
                ..Columns::default()
            },
            reads: Arc::clone(&reads),
            leaves_at: 3000,
            cancel: cancel.clone(),
        });
        let labels = |i: usize| Labels::from_pairs([("__name__", "a".to_owned()), ("i", i.to_string())]);
        let series = (0..20_000).map(|i| Series { labels: labels(i), source: Arc::clone(&source) });
        let memory: SharedQueryable = Arc::new(Memory(series.collect()));
        let expr = parse(text, &Switches::all()).unwrap();
        let budget = Budget { parallelism: threads, ..Budget::default() };
        let (start, end, step_ms) = (60 * MINUTE, 119 * MINUTE, MINUTE);
        let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
        let prepared = block_on(prepare(&request, &memory)).unwrap();
        assert_eq!(prepared.run(&cancel).unwrap_err(), STOPPED, "{text}");
        let after = reads.load(Ordering::Relaxed) - 3000;
        // A series of so many samples is as many units, at the least half of them in the range.
        let most = threads as u64 * (CHECK_EVERY / (SAMPLES.unsigned_abs() / 2) + 1);
        assert!(after <= most, "{text}: {after} series read after the client had left, at most {most} expected");
    }
}
