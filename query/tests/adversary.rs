//! Goal: no query takes a node down, whatever its text, its times and its data. Method: an allocator that counts. Queries
//! made to explode run with a budget of 32 MiB; whether they end in an answer or a refusal, the process may not hold
//! several times as much at any moment, and nothing at all afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]
#![allow(unsafe_code, reason = "only an allocator sees all memory; this one counts and passes on")]

mod memory;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engram_model::Labels;
use engram_model::series::{Columns, SampleSource, Series};
use engram_query::engine::{Budget, Cancel, Request, SamplePool, evaluate};
use engram_query::error::Error;
use engram_query::parse::{Switches, parse, resolve_durations};
use engram_query::port::SharedQueryable;
use futures::executor::block_on;
use memory::Memory;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: all calls go to the system's allocator with the arguments they came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `dealloc`, and `at` came from the system.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`. Zero pages are counted although they cost nothing.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `realloc`, and `at` came from the system.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;
const BUDGET_BYTES: usize = 32 * MIB;
const MINUTE: i64 = 60_000;
/// 31 years.
const LONG: i64 = 1_000_000_000_000;

/// `many`: 2,000 series with values of their own for an hour. `turns`: 300 series of one instance that take turns, each
/// has the sample of one minute.
fn memory() -> SharedQueryable {
    let series = |name: &str, i: usize, columns: Columns| {
        let labels = Labels::from_pairs([
            ("__name__", name.to_owned()),
            ("i", format!("{i:05}")),
            ("instance", "one".to_owned()),
            ("le", format!("{}", i % 10)),
        ]);
        let source: Arc<dyn SampleSource> = Arc::new(columns);
        Series { labels, source }
    };
    let minutes = |range: std::ops::Range<i64>, i: usize| Columns {
        times: range.clone().map(|m| m * MINUTE).collect(),
        values: range.map(|m| (m + 1) as f64 * (i + 1) as f64 * 1.000_1).collect(),
        ..Columns::default()
    };
    let many = (0..2_000).map(|i| series("many", i, minutes(0..60, i)));
    let turns = (0..300).map(|i| series("turns", i, minutes(i as i64..i as i64 + 1, i)));
    Arc::new(Memory(many.chain(turns).collect()))
}

/// Runs a query; the most bytes it held, and how it ended. What the pool has is given back.
fn run(text: &str, times: (i64, i64, i64), memory: &SharedQueryable) -> (usize, Result<usize, Error>) {
    let (start, end, step_ms) = times;
    let mut expr = parse(text, &Switches::all()).unwrap();
    if let Err(refused) = resolve_durations(&mut expr, start, end, step_ms) {
        return (0, Err(Error::Parse(refused.to_string())));
    }
    let pool = Arc::new(SamplePool::new(u64::MAX));
    let budget = Budget {
        lookback_ms: MINUTE,
        bytes_max: BUDGET_BYTES as u64,
        pool: Some(Arc::clone(&pool)),
        timeout: Duration::from_secs(60),
        ..Budget::default()
    };
    let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let outcome = block_on(evaluate(&request, memory, &Cancel::default()));
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let ended = outcome.map(|done| match done.value {
        engram_query::value::Value::Vector(all) => all.len(),
        engram_query::value::Value::Matrix(all) => all.len(),
        _ => 1,
    });
    assert_eq!(pool.held(), 0, "{text}");
    if ended.is_err() {
        let left = HELD.load(Ordering::Relaxed).saturating_sub(before);
        assert!(left < MIB, "{left} bytes are left of {}", shown(text));
    }
    (peak, ended)
}

fn shown(text: &str) -> &str {
    &text[..text.len().min(80)]
}

/// One test, so that nothing else allocates.
#[test]
fn no_query_holds_much_more_than_its_budget() {
    let memory = memory();
    let hour = (0, 59 * MINUTE, MINUTE);
    let fine = (0, 300 * MINUTE, 2 * 1000);
    let replaced = |copies: usize| {
        let call = |inner: String| format!("label_replace({inner}, \"x\", \"$1$1\", \"x\", \"(.*)\")");
        let first = "label_replace(many, \"x\", \"$1$1$1$1$1$1$1$1\", \"i\", \"(.*)\")".to_owned();
        (0..copies).fold(first, |inner, _| call(inner))
    };
    let nested = |open: &str, close: &str, depth: usize| format!("{}many{}", open.repeat(depth), close.repeat(depth));
    let again = |first: &str, more: &str, times: usize| format!("{first}{}", more.repeat(times));
    for (text, times) in [
        // Values that become labels.
        ("count_values(\"v\", many)", fine),
        ("count_values by (i, le, instance) (\"v\", many * time())", fine),
        ("count_values(\"v\", count_values(\"w\", many))", fine),
        (replaced(3).as_str(), hour),
        (replaced(40).as_str(), hour),
        (
            "label_join(many, \"x\", \"----------\", \"i\", \"i\", \"i\", \"i\", \"i\", \"i\", \"i\", \"i\", \"i\", \"i\")",
            hour,
        ),
        // Joins: a row for each pair that ever meets.
        ("many * on (instance) group_left (i) turns", (0, 299 * MINUTE, MINUTE)),
        ("turns * on (instance) group_right (i) many", (0, 299 * MINUTE, MINUTE)),
        ("many * on (instance) many", hour),
        ("many or many or many or many or -many or abs(many)", fine),
        ("info(many, {__name__=\"turns\"})", (0, 299 * MINUTE, MINUTE)),
        // A quantile of its own at each step.
        ("histogram_quantiles(many, \"q\", time() / 18000, time() / 36000)", fine),
        ("histogram_quantile(time() / 18000, many)", fine),
        // Many steps.
        ("max_over_time(many[31y:1ms])", (LONG, LONG, 0)),
        ("count_over_time(vector(1)[100y:1ms])", (LONG, LONG, 0)),
        ("vector(1)[1y:100ms]", (LONG, LONG, 0)),
        ("vector(1)", (0, LONG, 1)),
        ("many", (0, LONG, 100)),
        ("sum by (i) (many)", (0, LONG, 100_000)),
        ("quantile by (i) (0.5, many)", (0, LONG, 100_000)),
        ("sort_by_label(max_over_time(rate(many[5m])[1h:1s]), \"i\")", hour),
        ("topk(2000, many)", fine),
        ("{__name__=~\".+\"}", fine),
        ("rate({__name__=~\".+\"}[100y])", (LONG, LONG, 0)),
        ("{__name__=~\".+\"}[100y]", (LONG, LONG, 0)),
        ("sum_over_time({__name__=~\".+\"}[1h:1s])", (0, LONG, LONG / 1000)),
        // Times at the end of all times.
        ("many @ 9223372036854775", hour),
        ("many @ -9223372036854775", hour),
        ("rate(many[1h] @ 9223372036854775 offset -200y)", hour),
        ("many offset 292y", (i64::MIN / 2, i64::MIN / 2, 0)),
        ("many offset -292y", (i64::MAX / 2, i64::MAX / 2, 0)),
        ("max_over_time(many[290y:1y] offset -290y)", (i64::MAX - 1, i64::MAX - 1, 0)),
        ("max_over_time(many[290y:1y] offset 290y)", (i64::MIN + 1, i64::MIN + 1, 0)),
        ("rate(many[292y])", (i64::MIN, i64::MIN + 10, 1)),
        ("absent_over_time(many[292y:291y])", (i64::MAX - 10, i64::MAX, 1)),
        ("timestamp(many offset -290y)", (i64::MAX - 10, i64::MAX, 1)),
        ("predict_linear(many[1h], 1e300) + deriv(many[1h]) ^ 1e300", hour),
        ("hour(vector(1e300)) + days_in_month(vector(-1e300)) + year(vector(9223372036854775807))", hour),
        ("round(many, 1e-320) % 1e-320", hour),
        ("limit_ratio(1e300, many) or limitk(9223372036854775807, many)", hour),
        // Trees as high and as long as they come.
        (nested("abs(", ")", 120).as_str(), hour),
        (nested("max_over_time(", "[1m:1m])", 100).as_str(), (0, 0, 0)),
        (nested("max_over_time(", "[1h:1s])", 100).as_str(), (0, 0, 0)),
        (again("many", " + many", 250).as_str(), (0, 0, 0)),
        (again("many", " or many offset 1m", 250).as_str(), hour),
        (again("count(many)", " + count(many)", 250).as_str(), hour),
    ] {
        let (peak, ended) = run(text, times, &memory);
        // What has a budget counts values; beside them stand rows, tables and copies of one row.
        let most = 4 * BUDGET_BYTES;
        assert!(peak < most, "{} MiB were held by {}, which ended in {ended:?}", peak / MIB, shown(text));
    }
}
