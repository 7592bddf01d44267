//! Series in memory, with the reset hints a Prometheus storage would give to histograms.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::memory::Memory;
use engram_model::histogram::{BucketSpan, CUSTOM_BUCKETS_SCHEMA, Histogram, ResetHint};
use engram_model::series::{Columns, Series};
use engram_model::{Labels, Millis};
use engram_query::histogram::{compact, detect_reset};

/// All series of a script.
#[derive(Default)]
pub(super) struct Storage {
    series: BTreeMap<Labels, Stored>,
}

#[derive(Default)]
struct Stored {
    columns: Columns,
    /// The histogram appended last, and whether it is a gauge; a float in between ends a run.
    last: Option<Arc<Histogram>>,
}

impl Storage {
    pub(super) fn append_float(&mut self, labels: &Labels, at: Millis, start: Millis, value: f64) {
        let stored = self.series.entry(labels.clone()).or_default();
        stored.columns.times.push(at);
        stored.columns.values.push(value);
        stored.columns.starts.push(start);
        stored.last = None;
    }

    pub(super) fn append_histogram(&mut self, labels: &Labels, at: Millis, start: Millis, histogram: &Histogram) {
        let stored = self.series.entry(labels.clone()).or_default();
        let reset_hint = hint(histogram, stored.last.as_deref());
        let histogram = Arc::new(Histogram { reset_hint, ..histogram.clone() });
        stored.columns.histogram_times.push(at);
        stored.columns.histograms.push(Arc::clone(&histogram));
        stored.columns.histogram_starts.push(start);
        stored.last = Some(histogram);
    }

    /// Every series with its samples.
    #[allow(dead_code, reason = "the node's tests send them over HTTP")]
    pub(super) fn contents(&self) -> impl Iterator<Item = (&Labels, &Columns)> {
        self.series.iter().map(|(labels, stored)| (labels, &stored.columns))
    }

    /// As a source of queries.
    pub(super) fn freeze(&self) -> Memory {
        let series = self
            .series
            .iter()
            .map(|(labels, stored)| Series { labels: labels.clone(), source: Arc::new(stored.columns.clone()) });
        Memory(series.collect())
    }
}

/// What a chunk of counter histograms says about its samples: the first of a run knows nothing (a reset that is not
/// written in the script, but found when it is stored, is not told), the others that there was none.
fn hint(now: &Histogram, last: Option<&Histogram>) -> ResetHint {
    if now.reset_hint == ResetHint::Gauge || now.reset_hint == ResetHint::Reset {
        return now.reset_hint;
    }
    let Some(last) = last.filter(|last| last.reset_hint != ResetHint::Gauge && !last.is_stale()) else {
        return ResetHint::Unknown;
    };
    if now.is_stale() {
        return ResetHint::NoReset;
    }
    let unhinted = Histogram { reset_hint: ResetHint::Unknown, ..now.clone() };
    let restarted = now.schema != last.schema
        || now.zero_threshold != last.zero_threshold
        || now.custom_values != last.custom_values
        || detect_reset(&unhinted, last);
    if restarted { ResetHint::Unknown } else { ResetHint::NoReset }
}

/// A classic histogram at one time, as its series are collected.
#[derive(Default)]
pub(super) struct Classic {
    buckets: BTreeMap<u64, (f64, f64)>,
    count: Option<f64>,
    sum: f64,
}

impl Classic {
    pub(super) fn bucket(&mut self, bound: f64, count: f64) {
        // Sorted as floats are: sign and magnitude made into a growing number.
        let bits = bound.to_bits();
        let key = if bound.is_sign_negative() { !bits } else { bits | 1 << 63 };
        self.buckets.entry(key).or_insert((bound, count));
    }

    pub(super) fn count(&mut self, count: f64) {
        self.count = Some(count);
    }

    pub(super) fn sum(&mut self, sum: f64) {
        self.sum = sum;
    }

    /// As a native histogram with custom boundaries.
    pub(super) fn convert(self) -> Histogram {
        let mut buckets: Vec<(f64, f64)> = self.buckets.into_values().collect();
        let count = self.count.or(buckets.last().map(|b| b.1)).unwrap_or_default();
        if buckets.last().is_none_or(|b| b.0 != f64::INFINITY) {
            buckets.push((f64::INFINITY, count));
        }
        let mut before = 0.0;
        let positive_buckets = buckets.iter().map(|(_, n)| {
            let own = n - before;
            before = *n;
            own
        });
        let mut h = Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count,
            sum: self.sum,
            positive_spans: vec![BucketSpan { offset: 0, length: u32::try_from(buckets.len()).unwrap() }],
            positive_buckets: positive_buckets.collect(),
            custom_values: buckets.iter().map(|b| b.0).filter(|b| *b != f64::INFINITY).collect(),
            ..Histogram::default()
        };
        compact(&mut h);
        h
    }
}
