//! How long dashboards' commonest queries take over samples that lie in memory: what is left once storage has answered.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "bench")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engram_model::series::{Columns, Series};
use engram_model::{Labels, Matcher, TimeRange};
use engram_query::engine::{Budget, Cancel, Prepared, Request, prepare};
use engram_query::parse::{Switches, parse};
use engram_query::port::{Queryable, SelectHints, Selection, SharedQueryable, SourceError};
use futures::executor::block_on;
use futures::future::BoxFuture;

const SERIES: usize = 10_000;
/// Two hours, a sample each fifteen seconds.
const SAMPLES: i64 = 480;

struct Memory(Vec<Series>);

impl Queryable for Memory {
    fn select<'a>(
        &'a self,
        _: TimeRange,
        _: &'a [Matcher],
        _: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        let series = self.0.clone();
        Box::pin(async move { Ok(Selection { series, warnings: Vec::new() }) })
    }
}

fn memory() -> SharedQueryable {
    let mut series: Vec<Series> = (0..SERIES)
        .map(|i| {
            let pairs = [
                ("__name__", "requests_total".to_owned()),
                ("instance", format!("10.0.{}.{}:9090", i / 256, i % 256)),
                ("job", "api".to_owned()),
                ("x", format!("{}", i % 50)),
            ];
            let times: Vec<i64> = (0..SAMPLES).map(|n| n * 15_000 + (i as i64 * 7) % 15_000).collect();
            let values = (0..SAMPLES).map(|n| (n * (1 + i as i64 % 5)) as f64).collect();
            Series {
                labels: Labels::from_pairs(pairs),
                source: Arc::new(Columns { times, values, ..Columns::default() }),
            }
        })
        .collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    Arc::new(Memory(series))
}

fn prepared(text: &str, memory: &SharedQueryable, threads: usize) -> Prepared {
    let expr = parse(text, &Switches::all()).unwrap();
    let budget = Budget { parallelism: threads, ..Budget::default() };
    let request = Request { text: text.to_owned(), expr, start: 3_600_000, end: 7_200_000, step_ms: 60_000, budget };
    block_on(prepare(&request, memory)).unwrap()
}

fn queries(c: &mut Criterion) {
    let memory = memory();
    let mut group = c.benchmark_group("range_1h_step_60s_10k_series");
    group.sample_size(10);
    // 61 steps of a window of 20 samples: what the functions see.
    group.throughput(Throughput::Elements(SERIES as u64 * 61));
    for (name, text, threads) in [
        ("sum_rate", "sum by (x) (rate(requests_total[5m]))", 1),
        ("sum_rate_2_threads", "sum by (x) (rate(requests_total[5m]))", 2),
        ("sum", "sum by (x) (requests_total)", 1),
        ("max_avg_over_time", "max(avg_over_time(requests_total[5m]))", 1),
        ("ratio", "requests_total / ignoring (nothing) requests_total", 1),
    ] {
        let query = prepared(text, &memory, threads);
        group.bench_function(name, |b| b.iter(|| black_box(query.run(&Cancel::default()).unwrap())));
    }
    group.finish();
}

criterion_group!(benches, queries);
criterion_main!(benches);
