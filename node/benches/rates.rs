//! Decoding and rate together, as a server does it once it has found its series: chunks in memory, the engine above them.
//!
//! Run: `cargo bench -p engram-node --bench rates`. Storage and engine each have benches of their own; only this crate
//! knows both.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "bench")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engram_model::series::{Columns, ReadError, SampleSource, Series};
use engram_model::{Labels, Matcher, TimeRange};
use engram_query::engine::{Budget, Cancel, Request, prepare};
use engram_query::parse::{Switches, parse};
use engram_query::port::{Queryable, SelectHints, Selection, SharedQueryable, SourceError};
use engram_storage::chunk::{Chunk, encode_floats};
use futures::executor::block_on;
use futures::future::BoxFuture;

const SERIES: usize = 10_000;
const SCRAPE: i64 = 15_000;
/// Of each series: an hour and the window before it, in whole chunks.
const SAMPLES: i64 = 360;

struct Chunks(Vec<Chunk>);

impl SampleSource for Chunks {
    fn read(&self, _: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        self.0.iter().for_each(|chunk| chunk.decode(out).expect("a chunk just made"));
        Ok(())
    }
}

struct Memory(Vec<Series>);

impl Queryable for Memory {
    fn select<'a>(
        &'a self,
        _: TimeRange,
        _: &'a [Matcher],
        _: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        let series = self.0.clone();
        Box::pin(async move { Ok(Selection { series, ..Selection::default() }) })
    }
}

/// A counter scraped on time, or up to `late` milliseconds after it.
fn counter(number: usize, late: u64) -> Chunks {
    let (mut state, mut total) = (number as u64, 0.0);
    let mut noise = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let sample = |n: i64| {
        total += noise(50) as f64;
        (n * SCRAPE + number as i64 % SCRAPE + noise(late + 1).cast_signed(), total)
    };
    Chunks(encode_floats(&(0..SAMPLES).map(sample).collect::<Vec<_>>()))
}

fn memory(late: u64) -> SharedQueryable {
    let labels = |i: usize| {
        let instance = format!("10.0.{}.{}:9090", i / 256, i % 256);
        Labels::from_pairs([("__name__", "requests_total"), ("instance", &instance), ("x", &(i % 50).to_string())])
    };
    let one = |i| Series { labels: labels(i), source: Arc::new(counter(i, late)) };
    Arc::new(Memory((0..SERIES).map(one).collect()))
}

fn bench(c: &mut Criterion) {
    for (data, late) in [("on_time", 0), ("up_to_5_ms_late", 5)] {
        let memory = memory(late);
        let mut group = c.benchmark_group(format!("1h_of_10k_series_{data}"));
        group.sample_size(10);
        group.throughput(Throughput::Elements(SERIES as u64 * SAMPLES.cast_unsigned()));
        for (name, text, step_ms, threads) in [
            ("sum_rate_step_60s", "sum by (x) (rate(requests_total[5m]))", 60_000, 1),
            ("sum_rate_step_15s", "sum by (x) (rate(requests_total[5m]))", 15_000, 1),
            ("sum_rate_step_60s_2_threads", "sum by (x) (rate(requests_total[5m]))", 60_000, 2),
            ("sum_step_60s", "sum by (x) (requests_total)", 60_000, 1),
        ] {
            let expr = parse(text, &Switches::all()).unwrap();
            let budget = Budget { parallelism: threads, samples_max: u64::MAX, ..Budget::default() };
            let (start, end) = (1_800_000, 5_400_000);
            let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
            let query = block_on(prepare(&request, &memory)).unwrap();
            group.bench_function(name, |b| b.iter(|| black_box(query.run(&Cancel::default()).unwrap())));
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
