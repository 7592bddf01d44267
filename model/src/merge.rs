//! Samples of one series from several places, as one: shard growth, late chunks, replicas.
//!
//! The one rule for equal times: the greater bit pattern wins (DESIGN §5, repair converges on it too), a histogram
//! wins over a float. So the result does not depend on the order of the sources.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::digest::Digest;
use crate::histogram::Histogram;
use crate::series::{Columns, ReadError, SampleSource, Series};
use crate::time::TimeRange;

/// Which of several values at one time stands for all of them: the greatest. A histogram is above every float; floats
/// go by their bits, histograms by both sums of their digest, which every node computes alike. Two values that differ
/// are never equal, so head, reader and compaction keep the same one, in whatever order they meet them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u8, u64, u64);

impl Rank {
    /// Of a float.
    #[inline]
    #[must_use]
    pub fn of_float(value: f64) -> Self {
        Self(0, value.to_bits(), 0)
    }

    /// Of a native histogram; its reset hint does not count.
    #[must_use]
    pub fn of_histogram(histogram: &Histogram) -> Self {
        let digest = Digest::of_histogram(0, 0, histogram);
        Self(1, digest.high, digest.low)
    }
}

/// Several sources of one series.
struct Merged(Vec<Arc<dyn SampleSource>>);

impl SampleSource for Merged {
    fn series_hash(&self) -> Option<u128> {
        self.0.iter().find_map(|source| source.series_hash())
    }

    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        let mut sum = Columns::default();
        for source in &self.0 {
            // Blocks come oldest first, heads last: so most are appended.
            let mut one = Columns::default();
            source.read(range, &mut one)?;
            if sum.is_empty() {
                sum = one;
            } else if !append(&mut sum, &mut one) {
                sum = merge_columns(&sum, &one);
            }
        }
        out.times.append(&mut sum.times);
        out.values.append(&mut sum.values);
        out.starts.append(&mut sum.starts);
        out.histogram_times.append(&mut sum.histogram_times);
        out.histograms.append(&mut sum.histograms);
        out.histogram_starts.append(&mut sum.histogram_starts);
        Ok(())
    }
}

/// Moves all of `next` behind `sum` when all of it is later and neither has start timestamps, as blocks of one series
/// mostly are: or a year of blocks would be copied once for each block.
fn append(sum: &mut Columns, next: &mut Columns) -> bool {
    let last = sum.times.last().max(sum.histogram_times.last());
    let first = match (next.times.first(), next.histogram_times.first()) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    let starts = [&sum.starts, &sum.histogram_starts, &next.starts, &next.histogram_starts];
    if last >= first && first.is_some() || starts.iter().any(|starts| !starts.is_empty()) {
        return false;
    }
    sum.times.append(&mut next.times);
    sum.values.append(&mut next.values);
    sum.histogram_times.append(&mut next.histogram_times);
    sum.histograms.append(&mut next.histograms);
    true
}

/// Joins what several places gave, each of which gives no series twice: a series of several places becomes one whose
/// samples are merged. Order: as they come. Series are told apart by their stable hashes, since sorting a hundred
/// thousand label sets takes longer than reading a few samples of each.
#[must_use]
pub fn join_series(places: Vec<Vec<Series>>) -> Vec<Series> {
    let count = places.iter().map(Vec::len).sum();
    let mut places = places.into_iter().filter(|place| !place.is_empty());
    let Some(mut all) = places.next() else { return Vec::new() };
    let Some(second) = places.next() else { return all };
    all.reserve_exact(count - all.len());
    // The sources of series that came from several places, by the series' position.
    let mut several: HashMap<usize, Vec<Arc<dyn SampleSource>>> = HashMap::new();
    let mut index: HashMap<u128, usize, BuildHasherDefault<LowHalf>> =
        HashMap::with_capacity_and_hasher(count, BuildHasherDefault::default());
    index.extend(all.iter().enumerate().map(|(i, series)| (hash_of(series), i)));
    for series in std::iter::once(second).chain(places).flatten() {
        match index.entry(hash_of(&series)) {
            Entry::Vacant(entry) => {
                entry.insert(all.len());
                all.push(series);
            }
            Entry::Occupied(entry) => {
                let at = *entry.get();
                several.entry(at).or_insert_with(|| vec![Arc::clone(&all[at].source)]).push(series.source);
            }
        }
    }
    for (at, sources) in several {
        all[at].source = Arc::new(Merged(sources));
    }
    all
}

fn hash_of(series: &Series) -> u128 {
    series.source.series_hash().unwrap_or_else(|| series.labels.hash128())
}

/// The low half of a number that is a hash already.
#[derive(Default)]
struct LowHalf(u64);

impl Hasher for LowHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low half is meant")]
    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }
}

/// The union of two sorted columns; see the module's text for equal times.
#[must_use]
pub fn merge_columns(a: &Columns, b: &Columns) -> Columns {
    let mut out = Columns::default();
    let starts = !a.starts.is_empty() || !b.starts.is_empty();
    let (mut i, mut j) = (0, 0);
    while i < a.times.len() || j < b.times.len() {
        let from_a = match (a.times.get(i), b.times.get(j)) {
            (Some(x), Some(y)) if x == y => {
                let a_wins = Rank::of_float(a.values[i]) >= Rank::of_float(b.values[j]);
                if a_wins {
                    j += 1
                } else {
                    i += 1
                }
                a_wins
            }
            (Some(x), Some(y)) => x < y,
            (x, _) => x.is_some(),
        };
        let (side, at) = if from_a { (a, &mut i) } else { (b, &mut j) };
        out.times.push(side.times[*at]);
        out.values.push(side.values[*at]);
        if starts {
            out.starts.push(side.starts.get(*at).copied().unwrap_or(0));
        }
        *at += 1;
    }
    let starts = !a.histogram_starts.is_empty() || !b.histogram_starts.is_empty();
    let (mut i, mut j) = (0, 0);
    while i < a.histogram_times.len() || j < b.histogram_times.len() {
        let from_a = match (a.histogram_times.get(i), b.histogram_times.get(j)) {
            (Some(x), Some(y)) if x == y => {
                let a_wins = Rank::of_histogram(&a.histograms[i]) >= Rank::of_histogram(&b.histograms[j]);
                if a_wins {
                    j += 1
                } else {
                    i += 1
                }
                a_wins
            }
            (Some(x), Some(y)) => x < y,
            (x, _) => x.is_some(),
        };
        let (side, at) = if from_a { (a, &mut i) } else { (b, &mut j) };
        out.histogram_times.push(side.histogram_times[*at]);
        out.histograms.push(side.histograms[*at].clone());
        if starts {
            out.histogram_starts.push(side.histogram_starts.get(*at).copied().unwrap_or(0));
        }
        *at += 1;
    }
    drop_floats_under_histograms(&mut out);
    out
}

/// At one time there is a float or a histogram, never both.
fn drop_floats_under_histograms(columns: &mut Columns) {
    if columns.histogram_times.is_empty() || columns.times.is_empty() {
        return;
    }
    let keep: Vec<bool> = columns.times.iter().map(|t| columns.histogram_times.binary_search(t).is_err()).collect();
    if keep.iter().all(|k| *k) {
        return;
    }
    let mut kept = keep.iter();
    columns.times.retain(|_| kept.next().copied().unwrap_or(true));
    let mut kept = keep.iter();
    columns.values.retain(|_| kept.next().copied().unwrap_or(true));
    if !columns.starts.is_empty() {
        let mut kept = keep.iter();
        columns.starts.retain(|_| kept.next().copied().unwrap_or(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn columns(samples: &BTreeMap<i64, u64>) -> Columns {
        Columns {
            times: samples.keys().copied().collect(),
            values: samples.values().map(|v| f64::from_bits(*v)).collect(),
            ..Columns::default()
        }
    }

    proptest! {
        #[test]
        fn merging_is_the_union_with_the_greater_bits(
            a in proptest::collection::btree_map(-20_i64..20, 0_u64..4, 0..20),
            b in proptest::collection::btree_map(-20_i64..20, 0_u64..4, 0..20),
        ) {
            let mut model = a.clone();
            for (t, v) in &b { let have = model.entry(*t).or_insert(*v); *have = (*have).max(*v); }
            let labels = Labels::from_pairs([("a", "1")]);
            let series = |c| Series { labels: labels.clone(), source: Arc::new(columns(c)) };
            for order in [[&a, &b], [&b, &a]] {
                let merged = join_series(order.map(|one| vec![series(one)]).into());
                prop_assert_eq!(merged.len(), 1);
                let mut out = Columns::default();
                merged[0].source.read(TimeRange::ALL, &mut out).unwrap();
                let have: BTreeMap<i64, u64> = out.times.iter().copied().zip(out.values.iter().map(|v| v.to_bits())).collect();
                prop_assert_eq!(out.times.len(), have.len());
                prop_assert_eq!(&have, &model);
            }
        }
    }

    fn histogram(sum: f64, count: f64) -> Arc<Histogram> {
        Arc::new(Histogram { sum, count, ..Histogram::default() })
    }

    proptest! {
        #[test]
        fn of_histograms_that_differ_the_same_one_wins_in_any_order(
            sums in proptest::collection::vec((0_u8..8, 0_u8..8), 1..6),
            turn in 0_usize..6,
        ) {
            let all: Vec<_> = sums.iter().map(|(sum, count)| histogram(f64::from(*sum), f64::from(*count))).collect();
            let of = |h: &Arc<Histogram>| {
                Columns { histogram_times: vec![7], histograms: vec![h.clone()], ..Columns::default() }
            };
            let mut turned = all.clone();
            turned.rotate_left(turn % all.len());
            let merged = turned.iter().map(of).reduce(|a, b| merge_columns(&a, &b)).unwrap();
            // The order of heads since the beginning: both sums, the high one first.
            let key = |h: &Arc<Histogram>| {
                let digest = Digest::of_histogram(0, 0, h);
                (digest.high, digest.low)
            };
            let want = all.iter().max_by_key(|h| key(h)).unwrap();
            prop_assert_eq!(&merged.histograms, std::slice::from_ref(want));
        }
    }

    #[test]
    fn every_series_stays_and_none_twice() {
        let place = |names: std::ops::Range<u32>| {
            let series = |name: u32| Series {
                labels: Labels::from_pairs([("a", name.to_string())]),
                source: Arc::new(columns(&BTreeMap::from([(i64::from(name), 1)]))),
            };
            names.map(series).collect::<Vec<_>>()
        };
        let names = |all: Vec<Series>| {
            all.iter().map(|one| one.labels.get("a").unwrap().parse().unwrap()).collect::<Vec<u32>>()
        };
        assert!(join_series(vec![]).is_empty());
        assert_eq!(names(join_series(vec![place(0..0), place(3..5)])), [3, 4]);
        assert_eq!(names(join_series(vec![place(2..4), place(0..3), place(3..6)])), [2, 3, 0, 1, 4, 5]);
    }

    #[test]
    fn a_histogram_wins_over_a_float() {
        let floats = Columns { times: vec![1, 2, 3], values: vec![1.0, 2.0, 3.0], ..Columns::default() };
        let histograms = Columns { histogram_times: vec![2], histograms: vec![Arc::default()], ..Columns::default() };
        let merged = merge_columns(&floats, &histograms);
        assert_eq!((merged.times, merged.values, merged.histogram_times), (vec![1, 3], vec![1.0, 3.0], vec![2]));
    }
}
