//! The head under load: time of a sample from batch to open chunk, memory of a series, time of a select.
//! Run: `cargo bench -p engram-storage --bench head`.
//!
//! The shape of a fleet: 100,000 series of 100 metrics on 1,000 instances, ten labels each, one sample a series a
//! round. Memory is told twice: what the head counts, and how far the process grew by the system's account.

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::sample::Sample;
use engram_model::{Labels, MatchOp, Matcher, TimeRange};
use engram_storage::head::{AppendLimits, Head, HeadOptions, Symbols};

const SERIES: usize = 100_000;
const BATCH: usize = 2000;
const ROUNDS: i64 = 60;
const LIMITS: AppendLimits = AppendLimits {
    series_max: 0,
    out_of_order_window_ms: 0,
    in_order_age_max_ms: 0,
    exemplars_max: 0,
    metadata_max: 0,
    repair: false,
};

fn text(batch: &mut WriteBatch, text: &str) -> Text {
    let at = u32::try_from(batch.text.len()).unwrap_or(0);
    batch.text.extend_from_slice(text.as_bytes());
    Text { at, len: u32::try_from(text.len()).unwrap_or(0) }
}

fn len<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(0)
}

fn batches() -> Vec<WriteBatch> {
    let mut all = Vec::new();
    for from in (0..SERIES).step_by(BATCH) {
        let mut batch = WriteBatch::default();
        for i in from..from + BATCH {
            let (metric, instance) = (i % 100, i / 100);
            let labels = Labels::from_pairs([
                ("__name__", format!("http_requests_metric_{metric}_total")),
                ("instance", format!("10.0.{}.{}:9100", instance / 250, instance % 250)),
                ("pod", format!("service-{}-7d9f8b6c5-x{instance}", instance % 50)),
                ("job", format!("service-{}", instance % 50)),
                ("namespace", format!("team-{}", instance % 20)),
                ("cluster", "production-eu-west".to_owned()),
                ("region", format!("eu-west-{}", instance % 3)),
                ("method", ["GET", "POST"][metric % 2].to_owned()),
                ("code", ["200", "404", "500"][metric % 3].to_owned()),
                ("handler", format!("/api/v1/thing/{}", metric % 10)),
            ]);
            let pairs_from = len(&batch.pairs);
            for (name, value) in labels.iter() {
                let pair = Pair { name: text(&mut batch, name), value: text(&mut batch, value) };
                batch.pairs.push(pair);
            }
            let sample_at = len(&batch.samples);
            batch.samples.push(Sample { at: 0, value: 0.0 });
            batch.series.push(BatchSeries {
                hash: labels.hash128(),
                pairs: Run { from: pairs_from, to: len(&batch.pairs) },
                samples: Run { from: sample_at, to: sample_at + 1 },
                histograms: Run::default(),
            });
        }
        all.push(batch);
    }
    all
}

/// Moves all batches to the next scrape.
#[allow(clippy::cast_precision_loss, reason = "values of a bench")]
fn advance(batches: &mut [WriteBatch], round: i64) {
    for batch in batches {
        for (i, sample) in batch.samples.iter_mut().enumerate() {
            sample.at = round * 15_000;
            sample.value += ((i as i64 + round) % 17) as f64;
        }
    }
}

fn write(head: &mut Head, batches: &[WriteBatch], picks: &[u32], payload: &mut Vec<u8>) -> usize {
    let mut logged = 0;
    for batch in batches {
        payload.clear();
        let staged = head.stage(batch, picks, &LIMITS, payload);
        logged += payload.len();
        let receipt = head.apply(batch, &staged);
        assert_eq!(receipt.appended, BATCH as u64, "{receipt:?}");
    }
    logged
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn bench(c: &mut Criterion) {
    let mut batches = batches();
    let picks: Vec<u32> = (0..u32::try_from(BATCH).unwrap_or(0)).collect();
    let mut payload = Vec::with_capacity(1 << 20);
    let before = resident();
    let symbols = Arc::new(Symbols::new());
    let mut head = Head::new(Arc::clone(&symbols), HeadOptions::default());
    let mut logged = 0;
    for round in 0..ROUNDS {
        advance(&mut batches, round);
        logged = write(&mut head, &batches, &picks, &mut payload);
    }
    let grown = resident().saturating_sub(before);
    eprintln!(
        "{SERIES} series, {ROUNDS} samples each: {} bytes a series resident, {} counted; \
         log: {:.2} bytes a sample; {} texts",
        grown / SERIES,
        head.heap_bytes() / SERIES,
        logged as f64 / SERIES as f64,
        symbols.len(),
    );

    let mut group = c.benchmark_group("head");
    group.sample_size(20);
    group.throughput(Throughput::Elements(SERIES as u64));
    let mut round = ROUNDS;
    group.bench_function("stage and apply, known series", |b| {
        b.iter_custom(|count| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..count {
                advance(&mut batches, round);
                round += 1;
                let watch = engram_model::time::Stopwatch::start();
                write(&mut head, &batches, &picks, &mut payload);
                spent += watch.elapsed();
            }
            spent
        });
    });
    group.bench_function("stage and apply, new series", |b| {
        b.iter(|| write(&mut Head::new(Arc::clone(&symbols), HeadOptions::default()), &batches, &picks, &mut payload));
    });
    group.finish();

    let range = TimeRange::new((round - 20) * 15_000, i64::MAX);
    let matcher = |name: &str, op, value: &str| Matcher::new(name, op, value).into_iter();
    let metric = || matcher("__name__", MatchOp::Equal, "http_requests_metric_7_total");
    let selects = [
        ("one series", metric().chain(matcher("pod", MatchOp::Regex, "service-3-7d9f8b6c5-x3")).collect::<Vec<_>>()),
        ("a metric, 1000 series", metric().collect()),
        ("a metric but one job", metric().chain(matcher("job", MatchOp::NotEqual, "service-3")).collect()),
        ("a pattern on pods", metric().chain(matcher("pod", MatchOp::Regex, "service-1.*-x.*5")).collect()),
    ];
    for (name, matchers) in &selects {
        c.bench_function(&format!("select {name}"), |b| b.iter(|| head.select(matchers, range).len()));
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
