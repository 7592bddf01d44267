//! The naive model: a map of maps, and the rules for a sample in their plainest form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engram_model::batch::{BatchSeries, HistogramSample, Pair, Run, Text, WriteBatch};
use engram_model::digest::{Digest, slot_of};
use engram_model::sample::{Sample, Value};
use engram_model::{Labels, Matcher};
use engram_storage::head::{AppendLimits, Head, HeadOptions, Reason, Symbols};

pub const WINDOW: i64 = 1_200_000;
pub const LIMITS: AppendLimits = AppendLimits {
    series_max: 0,
    out_of_order_window_ms: 0,
    in_order_age_max_ms: 0,
    exemplars_max: 5,
    metadata_max: 3,
    repair: false,
};

pub fn new_head() -> Head {
    Head::new(Arc::new(Symbols::new()), HeadOptions { window_ms: WINDOW })
}

pub fn put_text(batch: &mut WriteBatch, text: &str) -> Text {
    let at = u32::try_from(batch.text.len()).unwrap();
    batch.text.extend_from_slice(text.as_bytes());
    Text { at, len: u32::try_from(text.len()).unwrap() }
}

pub fn len<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap()
}

/// Time, value, start.
pub type Stamped = (i64, Value, i64);

/// A batch of series, each with its samples.
pub fn batch_of(series: &[(Labels, Vec<Stamped>)]) -> (WriteBatch, Vec<u32>) {
    let mut batch = WriteBatch::default();
    for (labels, samples) in series {
        let from = (len(&batch.pairs), len(&batch.samples), len(&batch.histograms));
        for (name, value) in labels.iter() {
            let pair = Pair { name: put_text(&mut batch, name), value: put_text(&mut batch, value) };
            batch.pairs.push(pair);
        }
        for (at, value, start) in samples {
            match value {
                Value::Float(value) => {
                    batch.samples.push(Sample { at: *at, value: *value });
                    batch.starts.push(*start);
                }
                Value::Histogram(h) => {
                    batch.histograms.push(HistogramSample { at: *at, start_at: *start, histogram: Arc::clone(h) });
                }
            }
        }
        batch.series.push(BatchSeries {
            hash: labels.hash128(),
            pairs: Run { from: from.0, to: len(&batch.pairs) },
            samples: Run { from: from.1, to: len(&batch.samples) },
            histograms: Run { from: from.2, to: len(&batch.histograms) },
        });
    }
    if batch.starts.iter().all(|start| *start == 0) {
        batch.starts.clear();
    }
    let picks = (0..len(&batch.series)).collect();
    (batch, picks)
}

/// Everything that a replay must bring back, as the bytes of a checkpoint.
pub fn image(head: &Head) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    head.snapshot(&mut |payload| payloads.push(payload.to_vec())).unwrap();
    payloads
}

pub fn replayed<'a>(payloads: impl IntoIterator<Item = &'a Vec<u8>>) -> Head {
    let (mut head, mut in_bulk) = (new_head(), new_head());
    for (payload, i) in payloads.into_iter().zip(0..) {
        assert_eq!(head.replay(payload).unwrap().unknown, 0);
        in_bulk.gather(payload, 2).unwrap();
        if i % 11 == 5 {
            in_bulk.settle();
        }
    }
    in_bulk.settle();
    assert_same(&head, &in_bulk);
    head
}

pub fn assert_same(a: &Head, b: &Head) {
    assert!(image(a) == image(b), "images differ");
    assert_eq!(a.digests(), b.digests());
    assert_eq!(
        (a.sample_count(), a.series_count(), a.floor(), a.max_time(), a.min_time()),
        (b.sample_count(), b.series_count(), b.floor(), b.max_time(), b.min_time())
    );
}

/// What a seal set aside: which samples.
#[derive(Clone, Default)]
pub struct Part {
    pub window: (i64, i64),
    pub samples: BTreeSet<(Labels, i64)>,
}

#[derive(Default)]
pub struct Model {
    pub series: BTreeMap<Labels, BTreeMap<i64, Value>>,
    pub starts: BTreeMap<Labels, BTreeMap<i64, i64>>,
    pub newest: Option<i64>,
    pub floor: Option<i64>,
    pub parts: BTreeMap<u64, Part>,
    pub sealed: u64,
    /// Of all samples ever taken, less those that were replaced.
    pub accepted: Digest,
    /// Of all samples forgotten.
    pub forgotten: Digest,
}

pub fn digest_of(labels: &Labels, at: i64, value: &Value) -> Digest {
    match value {
        Value::Float(value) => Digest::of_float(labels.hash128(), at, *value),
        Value::Histogram(h) => Digest::of_histogram(labels.hash128(), at, h),
    }
}

pub fn bits(value: &Value) -> (u8, u64) {
    match value {
        Value::Float(value) => (0, value.to_bits()),
        Value::Histogram(h) => (1, Digest::of_histogram(0, 0, h).high),
    }
}

pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Histogram(a), Value::Histogram(b)) => a == b,
        _ => false,
    }
}

impl Model {
    /// `None`: appended. `Some(None)`: a duplicate.
    pub fn append(&mut self, labels: &Labels, at: i64, value: &Value, limits: &AppendLimits) -> Option<Option<Reason>> {
        let is_frozen = self.is_frozen(labels, at);
        let series = self.series.entry(labels.clone()).or_default();
        if self.floor.is_some_and(|floor| at < floor) {
            return Some(Some(Reason::TooOld));
        }
        if let Some(have) = series.get_mut(&at) {
            if same(have, value) {
                return Some(None);
            }
            if !limits.repair {
                return Some(Some(Reason::DuplicateDifferentValue));
            }
            if bits(value) > bits(have) && !is_frozen {
                self.accepted.remove(digest_of(labels, at, have));
                self.accepted.add(digest_of(labels, at, value));
                *have = value.clone();
                return None;
            }
            return Some(None);
        }
        let age = self.newest.map_or(0, |newest| newest - at);
        if series.last_key_value().is_some_and(|(last, _)| at < *last) && !limits.repair {
            if limits.out_of_order_window_ms == 0 {
                return Some(Some(Reason::OutOfOrder));
            }
            if age > limits.out_of_order_window_ms {
                return Some(Some(Reason::TooOld));
            }
        }
        let age_max = limits.in_order_age_max_ms.max(limits.out_of_order_window_ms);
        if !limits.repair && limits.in_order_age_max_ms > 0 && age > age_max {
            return Some(Some(Reason::TooOld));
        }
        series.insert(at, value.clone());
        self.accepted.add(digest_of(labels, at, value));
        self.newest = self.newest.max(Some(at));
        None
    }

    pub fn is_frozen(&self, labels: &Labels, at: i64) -> bool {
        self.parts.values().any(|part| part.samples.contains(&(labels.clone(), at)))
    }

    pub fn forget(&mut self, before: i64) {
        let before = slot_of(before);
        self.floor = self.floor.max(Some(before));
        let live = self.live().filter(|(_, at)| *at < before).collect::<Vec<_>>();
        self.remove(live);
        self.series.retain(|_, samples| !samples.is_empty());
    }

    /// The samples that are not frozen.
    fn live(&self) -> impl Iterator<Item = (Labels, i64)> {
        let all = self.series.iter().flat_map(|(labels, samples)| samples.keys().map(move |at| (labels.clone(), *at)));
        all.filter(|(labels, at)| !self.is_frozen(labels, *at))
    }

    fn remove(&mut self, gone: impl IntoIterator<Item = (Labels, i64)>) {
        for (labels, at) in gone {
            let value = self.series.get_mut(&labels).unwrap().remove(&at).unwrap();
            self.starts.get_mut(&labels).unwrap().remove(&at);
            self.forgotten.add(digest_of(&labels, at, &value));
        }
    }

    pub fn seal(&mut self, number: u64, window: (i64, i64)) {
        let samples = self.live().filter(|(_, at)| window.0 <= *at && *at < window.1).collect();
        self.parts.insert(number, Part { window, samples });
        self.sealed = number;
    }

    pub fn forget_frozen(&mut self, number: u64) {
        let part = self.parts.remove(&number).unwrap();
        let series: BTreeSet<_> = part.samples.iter().map(|(labels, _)| labels.clone()).collect();
        self.remove(part.samples);
        self.series.retain(|labels, samples| !samples.is_empty() || !series.contains(labels));
    }

    pub fn digest_of_part(&self, part: &Part) -> Digest {
        part.samples.iter().map(|(labels, at)| digest_of(labels, *at, &self.series[labels][at])).sum()
    }

    pub fn digest(&self) -> Digest {
        let of = |(labels, samples): (&Labels, &BTreeMap<i64, Value>)| -> Digest {
            samples.iter().map(|(at, value)| digest_of(labels, *at, value)).sum()
        };
        self.series.iter().map(of).sum()
    }

    /// A sample was taken: its start is known, or was.
    pub fn start(&mut self, labels: &Labels, at: i64, start: i64) {
        self.starts.entry(labels.clone()).or_default().insert(at, start);
    }

    /// The starts of some samples as columns have them.
    pub fn starts_of(&self, labels: &Labels, times: &[i64]) -> Vec<i64> {
        let starts: Vec<_> = times.iter().map(|at| self.starts[labels][at]).collect();
        if starts.iter().all(|start| *start == 0) { Vec::new() } else { starts }
    }

    pub fn select(&self, matchers: &[Matcher]) -> impl Iterator<Item = (&Labels, &BTreeMap<i64, Value>)> {
        self.series.iter().filter(move |(labels, samples)| {
            !samples.is_empty() && matchers.iter().all(|m| m.matches(labels.get(&m.name).unwrap_or_default()))
        })
    }
}
