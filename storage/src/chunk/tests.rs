//! Goal: what goes into chunks of any kind comes out, in as many chunks as the rules ask for. Method: random
//! histograms with growing, shrinking and changing layouts, appended and decoded; and bytes that are no chunk.

use engram_model::histogram::{BucketSpan, CUSTOM_BUCKETS_SCHEMA, ResetHint};
use engram_model::sample::stale_nan;
use proptest::prelude::*;

use super::*;

/// Appends all samples and gives the chunks.
fn chunks(samples: &[(Millis, Value)]) -> Vec<Chunk> {
    let mut open = Open::default();
    let mut full: Vec<_> =
        samples.iter().filter_map(|(at, value)| open.append(*at, ValueRef::from(value), false)).collect();
    full.extend(open.view());
    full
}

fn decoded(chunks: &[Chunk]) -> Columns {
    let mut out = Columns::default();
    for chunk in chunks {
        chunk.decode(&mut out).unwrap();
        let again = Chunk::checked(chunk.kind, &chunk.bytes).unwrap();
        assert_eq!((again.first, again.last, again.count), (chunk.first, chunk.last, chunk.count));
    }
    out
}

pub(crate) fn any_histogram() -> impl Strategy<Value = Histogram> {
    let spans = prop_oneof![
        Just(vec![]),
        Just(vec![BucketSpan { offset: -3, length: 2 }]),
        Just(vec![
            BucketSpan { offset: 0, length: 1 },
            BucketSpan { offset: 4, length: 0 },
            BucketSpan { offset: 1, length: 3 }
        ]),
    ];
    let schema = prop_oneof![Just(0), Just(-4), Just(8), Just(CUSTOM_BUCKETS_SCHEMA)];
    let hint =
        prop_oneof![Just(ResetHint::Unknown), Just(ResetHint::Gauge), Just(ResetHint::Reset), Just(ResetHint::NoReset)];
    (spans.clone(), spans, schema, hint, any::<bool>(), 0_u64..1 << 54, any::<u64>(), 0_u8..12).prop_map(
        |(positive_spans, negative_spans, schema, reset_hint, integer, seed, raw, odd)| {
            let float = |i: usize| {
                let whole = (seed >> (i % 40)) as f64;
                if integer { whole } else { whole / 7.0 }
            };
            let buckets = |spans: &[BucketSpan], from| (from..from + layout::buckets_of(spans)).map(float).collect();
            Histogram {
                integer,
                reset_hint,
                schema,
                zero_threshold: if odd == 1 { 0.3 } else { 2.0_f64.powi(-128) },
                zero_count: float(20),
                count: float(2),
                sum: if odd == 2 { stale_nan() } else { f64::from_bits(raw) },
                positive_buckets: buckets(&positive_spans, 3),
                negative_buckets: buckets(&negative_spans, 9),
                custom_values: if schema == CUSTOM_BUCKETS_SCHEMA {
                    vec![0.25, 1.0, -7.5, f64::from_bits(raw)]
                } else {
                    vec![]
                },
                positive_spans,
                negative_spans,
            }
        },
    )
}

proptest! {
    #[test]
    fn histograms_come_back(all in proptest::collection::vec((1_i64..1 << 40, any_histogram(), 1_usize..4), 1..30)) {
        let mut at = -5_i64;
        let mut samples = Vec::new();
        for (step, histogram, times) in all {
            prop_assert!(histogram::is_storable(&histogram));
            let stored = Arc::new(histogram::canonical(&histogram).unwrap_or(histogram));
            for _ in 0..times {
                at += step;
                samples.push((at, Value::Histogram(Arc::clone(&stored))));
            }
        }
        let out = decoded(&chunks(&samples));
        prop_assert_eq!(out.histograms.len(), samples.len());
        for ((at, value), (got_at, got)) in samples.iter().zip(out.histogram_times.iter().zip(&out.histograms)) {
            prop_assert_eq!(at, got_at);
            prop_assert_eq!(value, &Value::Histogram(Arc::clone(got)));
        }
    }

    #[test]
    fn damage_is_no_panic(kind in 1_u8..4, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let kind = Kind::from_number(kind).unwrap();
        let mut out = Columns::default();
        if decode(kind, &bytes, &mut out).is_err() {
            prop_assert!(out.is_empty());
        }
    }

    #[test]
    fn a_flipped_bit_is_no_panic(histogram in any_histogram(), flip in any::<(u16, u8)>()) {
        let stored = Arc::new(histogram::canonical(&histogram).unwrap_or(histogram));
        let samples: Vec<_> = (0..20).map(|at| (at, Value::Histogram(Arc::clone(&stored)))).collect();
        for chunk in chunks(&samples) {
            let mut bytes = chunk.bytes.to_vec();
            let at = usize::from(flip.0) % bytes.len();
            bytes[at] ^= 1 << (flip.1 % 8);
            let mut out = Columns::default();
            prop_assert!(decode(chunk.kind, &bytes, &mut out).is_ok() || out.is_empty());
        }
    }
}

fn counter(n: u32, hint: ResetHint) -> Value {
    Value::Histogram(Arc::new(Histogram {
        integer: true,
        reset_hint: hint,
        count: f64::from(n),
        sum: f64::from(n),
        positive_spans: vec![BucketSpan { offset: 0, length: 1 }],
        positive_buckets: vec![f64::from(n)],
        ..Histogram::default()
    }))
}

#[test]
fn a_counter_reset_begins_a_chunk_and_says_so() {
    let samples: Vec<_> =
        [1, 2, 3, 1, 5].into_iter().zip(0..).map(|(n, at)| (at, counter(n, ResetHint::Unknown))).collect();
    let chunks = chunks(&samples);
    assert_eq!(chunks.iter().map(|c| c.count).collect::<Vec<_>>(), [3, 2]);
    assert_eq!((chunks[0].bytes[2], chunks[1].bytes[2]), (0, 0b1000_0000));
    let hints: Vec<_> = decoded(&chunks).histograms.iter().map(|h| h.reset_hint).collect();
    use ResetHint::{NoReset, Unknown};
    assert_eq!(hints, [Unknown, NoReset, NoReset, Unknown, NoReset]);
}

#[test]
fn a_gauge_may_shrink_within_a_chunk() {
    let samples: Vec<_> = [5, 2, 9].into_iter().zip(0..).map(|(n, at)| (at, counter(n, ResetHint::Gauge))).collect();
    let chunks = chunks(&samples);
    assert_eq!(chunks.len(), 1);
    assert!(decoded(&chunks).histograms.iter().all(|h| h.reset_hint == ResetHint::Gauge));
}

#[test]
fn a_chunk_is_full_at_120_samples() {
    let samples: Vec<_> = (0..300_u32).map(|i| (i64::from(i), Value::Float(f64::from(i)))).collect();
    assert_eq!(chunks(&samples).iter().map(|c| c.count).collect::<Vec<_>>(), [120, 120, 60]);
    assert_eq!(decoded(&chunks(&samples)).times.len(), 300);
}

#[test]
fn open_chunks_are_small() {
    assert!(size_of::<Open>() <= 72, "{} bytes", size_of::<Open>());
    let mut open = Open::default();
    for i in 0..120_u32 {
        assert!(open.append(i64::from(i) * 15_000, ValueRef::Float(f64::from(i)), false).is_none());
    }
    let view = open.view().unwrap();
    assert!(open.heap_bytes() - view.bytes.len() < 120, "slack of {} bytes", open.heap_bytes() - view.bytes.len());
}
