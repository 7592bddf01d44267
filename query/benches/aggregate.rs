//! How long dashboards' commonest queries take over samples that lie in memory: what is left once storage has answered.
//!
//! Run: `cargo bench -p engram-query --bench aggregate`. What a server needs around it is in `docs/performance.md`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "bench")]

#[path = "../tests/memory/mod.rs"]
mod memory;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engram_model::Labels;
use engram_model::series::{Columns, SampleSource, Series};
use engram_query::engine::{Budget, Cancel, Prepared, Request, prepare};
use engram_query::parse::{Switches, parse};
use engram_query::port::SharedQueryable;
use futures::executor::block_on;
use memory::Memory;

const SERIES: usize = 10_000;
/// Milliseconds between two samples.
const SCRAPE: i64 = 15_000;
/// Two hours of samples.
const SAMPLES: i64 = 480;

fn source(samples: i64, offset: i64, slope: i64) -> Arc<dyn SampleSource> {
    let times: Vec<i64> = (0..samples).map(|n| n * SCRAPE + offset).collect();
    let values = (0..samples).map(|n| (n * slope) as f64).collect();
    Arc::new(Columns { times, values, ..Columns::default() })
}

/// `name` with labels: `x` has fifty values, `le` a hundred where there are buckets.
fn series(name: &str, count: usize, samples: i64) -> impl Iterator<Item = Series> {
    (0..count).map(move |i| {
        let mut pairs = vec![
            ("__name__", name.to_owned()),
            ("instance", format!("10.0.{}.{}:9090", i / 256, i % 256)),
            ("job", "api".to_owned()),
            ("x", format!("{}", i % 50)),
        ];
        if name.ends_with("_bucket") {
            pairs.push(("le", format!("{}", i / 50 % 100)));
        }
        let source = source(samples, (i as i64 * 7) % SCRAPE, 1 + i as i64 % 5);
        Series { labels: Labels::from_pairs(pairs), source }
    })
}

fn prepared(text: &str, memory: &SharedQueryable, threads: usize, times: (i64, i64, i64)) -> Prepared {
    let expr = parse(text, &Switches::all()).unwrap();
    let budget = Budget { parallelism: threads, samples_max: u64::MAX, ..Budget::default() };
    let (start, end, step_ms) = times;
    let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
    block_on(prepare(&request, memory)).unwrap()
}

fn queries(c: &mut Criterion) {
    let memory: SharedQueryable = Arc::new(Memory(series("requests_total", SERIES, SAMPLES).collect()));
    let mut group = c.benchmark_group("range_1h_step_60s_10k_series");
    group.sample_size(10);
    // Samples of the hour and of the window before it.
    group.throughput(Throughput::Elements(SERIES as u64 * 260));
    for (name, text, threads) in [
        ("sum_rate", "sum by (x) (rate(requests_total[5m]))", 1),
        ("sum_rate_2_threads", "sum by (x) (rate(requests_total[5m]))", 2),
        ("sum_rate_1h_window", "sum by (x) (rate(requests_total[1h]))", 1),
        ("sum", "sum by (x) (requests_total)", 1),
        ("max_avg_over_time", "max(avg_over_time(requests_total[5m]))", 1),
        ("max_max_over_time", "max(max_over_time(requests_total[5m]))", 1),
        ("ratio", "requests_total / ignoring (nothing) requests_total", 1),
    ] {
        let query = prepared(text, &memory, threads, (3_600_000, 7_200_000, 60_000));
        group.bench_function(name, |b| b.iter(|| black_box(query.run(&Cancel::default()).unwrap())));
    }
    group.finish();
}

/// Shapes that need many series or many steps.
fn large(c: &mut Criterion) {
    let buckets: SharedQueryable = Arc::new(Memory(series("b_bucket", 50_000, 100).collect()));
    let few: SharedQueryable = Arc::new(Memory(series("requests_total", 100, 7 * 5760).collect()));
    let both = series("many", SERIES, 100).chain(series("one", 50, 100).map(|mut one| {
        one.labels = one.labels.without(|name| name == "instance");
        one
    }));
    let join: SharedQueryable = Arc::new(Memory(both.collect()));
    let hour = (600_000, 1_490_000, 60_000);
    let mut group = c.benchmark_group("large");
    group.sample_size(10);
    for (name, memory, text, times) in [
        ("quantile_of_50k_buckets", &buckets, "histogram_quantile(0.99, sum by (le, x) (rate(b_bucket[5m])))", hour),
        ("sum_rate_7d_step_60s_100_series", &few, "sum by (x) (rate(requests_total[5m]))", (0, 604_800_000, 60_000)),
        ("join_of_10k_series", &join, "many * on (x) group_left () one", hour),
    ] {
        let query = prepared(text, memory, 1, times);
        group.bench_function(name, |b| b.iter(|| black_box(query.run(&Cancel::default()).unwrap())));
    }
    group.finish();
}

criterion_group!(benches, queries, large);
criterion_main!(benches);
