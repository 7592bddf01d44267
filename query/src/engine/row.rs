//! Rows: one series' values over all steps.
//!
//! Why columns: `sum(rate(x[5m]))` over a thousand steps is a thousand additions into one array a series, and what is
//! not held twice is not paid for twice. Whether a step has a float is a bit, because every float (NaN too) is a value.
//! Histograms are few and large: they lie apart, with the number of their step.

use std::ops::Range;
use std::sync::Arc;

use engram_model::histogram::Histogram;
use engram_model::{Labels, Millis};
use hashbrown::HashMap;

use crate::error::Error;
use crate::functions::Point;

use super::pace::Pace;

/// The evaluation times of one (sub)query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Steps {
    /// First time.
    pub(super) start: Millis,
    /// Distance.
    pub(super) step_ms: i64,
    /// How many.
    pub(super) count: usize,
    /// Whether first and last time were asked to be the same: the answer's order then matters.
    pub(super) is_instant: bool,
}

impl Steps {
    /// From `start` to `end`, both inside.
    pub(super) fn new(start: Millis, end: Millis, step_ms: i64) -> Self {
        let step_ms = step_ms.max(1);
        let count = if end < start { 0 } else { (end.abs_diff(start) / step_ms.unsigned_abs()).saturating_add(1) };
        Self { start, step_ms, count: usize::try_from(count).unwrap_or(usize::MAX), is_instant: start == end }
    }

    /// Time of a step.
    pub(super) fn at(self, step: usize) -> Millis {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.start.saturating_add(step.saturating_mul(self.step_ms))
    }

    /// All of them in runs, so that whoever walks many can look up in between whether to stop.
    pub(super) fn runs(self) -> impl Iterator<Item = Range<usize>> {
        const RUN: usize = 4096;
        (0..self.count).step_by(RUN).map(move |from| from..self.count.min(from + RUN))
    }

    /// Time of the last step, the first one's where there is none.
    pub(super) fn last(self) -> Millis {
        self.at(self.count.saturating_sub(1))
    }
}

/// A set of steps. The first 64 lie in place: an instant query has a hundred thousand sets of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bits {
    first: u64,
    more: Vec<u64>,
}

impl Bits {
    /// Makes it empty, with room for `count` steps.
    pub(super) fn reset(&mut self, count: usize) {
        self.first = 0;
        self.more.clear();
        self.more.resize(count.div_ceil(64).saturating_sub(1), 0);
    }

    pub(super) fn new(count: usize) -> Self {
        Self { first: 0, more: vec![0; count.div_ceil(64).saturating_sub(1)] }
    }

    #[inline]
    pub(super) fn has(&self, step: usize) -> bool {
        self.word(step >> 6) >> (step & 63) & 1 == 1
    }

    #[inline]
    pub(super) fn set(&mut self, step: usize) {
        let word = match step >> 6 {
            0 => &mut self.first,
            at => &mut self.more[at - 1],
        };
        *word |= 1 << (step & 63);
    }

    /// 64 steps, the first in the lowest bit.
    #[inline]
    pub(super) fn word(&self, at: usize) -> u64 {
        if at == 0 { self.first } else { self.more[at - 1] }
    }

    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }

    fn change(&mut self, other: &Self, change: impl Fn(&mut u64, u64)) {
        change(&mut self.first, other.first);
        self.more.iter_mut().zip(&other.more).for_each(|(a, b)| change(a, *b));
    }

    pub(super) fn count(&self) -> usize {
        self.words().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words().all(|word| word == 0)
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.change(other, |a, b| *a |= b);
    }

    pub(super) fn keep(&mut self, other: &Self) {
        self.change(other, |a, b| *a &= b);
    }

    pub(super) fn remove(&mut self, other: &Self) {
        self.change(other, |a, b| *a &= !b);
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        self.words().zip(other.words()).any(|(a, b)| a & b != 0)
    }

    /// The steps inside, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words().enumerate().flat_map(|(i, word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                if left == 0 {
                    return None;
                }
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                Some((i << 6) + bit)
            })
        })
    }
}

/// A number for each step. That of a single step lies in place, as with [`Bits`].
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    one: [f64; 1],
    more: Vec<f64>,
}

impl Numbers {
    /// Zeros.
    pub(super) fn new(count: usize) -> Self {
        Self { one: [0.0], more: if count > 1 { vec![0.0; count] } else { Vec::new() } }
    }

    /// As new, in the memory it has.
    fn reset(&mut self, count: usize) {
        self.one = [0.0];
        self.more.clear();
        if count > 1 {
            self.more.resize(count, 0.0);
        }
    }
}

impl std::ops::Deref for Numbers {
    type Target = [f64];

    #[inline]
    fn deref(&self) -> &[f64] {
        if self.more.is_empty() { &self.one } else { &self.more }
    }
}

impl std::ops::DerefMut for Numbers {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f64] {
        if self.more.is_empty() { &mut self.one } else { &mut self.more }
    }
}

/// Values of one series over all steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Column {
    /// A float for each step; without meaning where `present` says no.
    pub(super) values: Numbers,
    /// Which steps have a float.
    pub(super) present: Bits,
    /// Histograms by step, in order; such a step has no float, but for what [`merge_kinds`] made.
    pub(super) histograms: Vec<(usize, Arc<Histogram>)>,
}

impl Column {
    pub(super) fn new(count: usize) -> Self {
        let mut column = Self::default();
        column.reset(count);
        column
    }

    /// Makes it empty, with room for `count` steps.
    pub(super) fn reset(&mut self, count: usize) {
        self.values.reset(count);
        self.present.reset(count);
        self.histograms.clear();
    }

    #[inline]
    pub(super) fn put(&mut self, step: usize, value: f64) {
        self.values[step] = value;
        self.present.set(step);
    }

    /// Sets a step; histograms must come in order of steps.
    pub(super) fn put_point(&mut self, step: usize, point: Point) {
        match point {
            Point::Float(value) => self.put(step, value),
            Point::Histogram(histogram) => self.histograms.push((step, histogram)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.histograms.is_empty() && self.present.is_empty()
    }

    /// Which steps have a float or a histogram.
    pub(super) fn taken(&self) -> Bits {
        let mut bits = self.present.clone();
        self.histograms.iter().for_each(|(step, _)| bits.set(*step));
        bits
    }

    pub(super) fn histogram(&self, step: usize) -> Option<&Arc<Histogram>> {
        let at = self.histograms.binary_search_by_key(&step, |(have, _)| *have).ok()?;
        Some(&self.histograms[at].1)
    }

    /// The value of a step.
    pub(super) fn get(&self, step: usize) -> Option<Point> {
        if self.present.has(step) {
            return Some(Point::Float(self.values[step]));
        }
        if self.histograms.is_empty() {
            return None;
        }
        self.histogram(step).map(|h| Point::Histogram(Arc::clone(h)))
    }

    pub(super) fn has(&self, step: usize) -> bool {
        self.present.has(step) || (!self.histograms.is_empty() && self.histogram(step).is_some())
    }

    /// Whether any step has a value in both.
    fn meets(&self, other: &Self) -> bool {
        self.taken().meets(&other.taken())
    }

    /// Whether any step has a float in both, or a histogram.
    fn meets_kind(&self, other: &Self) -> bool {
        self.present.meets(&other.present) || other.histograms.iter().any(|(step, _)| self.histogram(*step).is_some())
    }

    /// Takes over all values of `from`.
    fn join(&mut self, from: Self) {
        for step in from.present.iter() {
            self.put(step, from.values[step]);
        }
        self.histograms.extend(from.histograms);
        self.histograms.sort_by_key(|(step, _)| *step);
    }

    /// Takes one kind of each step: where upstream goes through a series step by step, a float hides the histogram beside
    /// it, at which it then stops for good.
    pub(super) fn take_one_kind(&mut self) {
        let hidden = self.histograms.iter().position(|(step, _)| self.present.has(*step));
        self.histograms.truncate(hidden.unwrap_or(self.histograms.len()));
    }

    /// Leaves only the steps in `bits`.
    pub(super) fn keep(&mut self, bits: &Bits) {
        self.present.keep(bits);
        self.histograms.retain(|(step, _)| bits.has(*step));
    }

    /// What it weighs in samples, a histogram as many as it fills 16-byte points, as upstream counts. Steps without a
    /// value take room too: a sparse column weighs a quarter of a full one.
    pub(super) fn weight(&self) -> u64 {
        let floats = self.present.count().max(self.values.len() / 4);
        floats as u64 + self.histograms.iter().map(|(_, h)| histogram_weight(h)).sum::<u64>()
    }
}

/// What a histogram weighs in samples.
pub(super) fn histogram_weight(h: &Histogram) -> u64 {
    let words = h.positive_spans.len()
        + h.negative_spans.len()
        + h.positive_buckets.len()
        + h.negative_buckets.len()
        + h.custom_values.len();
    (168 + 8 * words as u64 + 8) / 16
}

/// One series of an intermediate result.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// Who.
    pub(super) labels: Labels,
    /// The metric's name is to go when the query ends (delayed name removal).
    pub(super) drop_name: bool,
    /// What.
    pub(super) column: Column,
}

/// The text of the error all duplicates end in.
pub(super) const DUPLICATES: &str = "vector cannot contain metrics with the same labelset";

pub(super) fn duplicates() -> Error {
    Error::Execution(DUPLICATES.to_owned())
}

/// Whether two rows have the same labels.
pub(super) fn has_duplicates(rows: &[Row], pace: &Pace<'_>) -> Result<bool, Error> {
    if rows.len() < 2 {
        return Ok(false);
    }
    let mut seen = hashbrown::HashSet::with_capacity(rows.len());
    for row in rows {
        pace.tick(1)?;
        if !seen.insert(row.labels.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts rows of the same labels together.
///
/// # Errors
/// When two of them have a value at the same step, or the query is to stop.
pub(super) fn merge_same(rows: Vec<Row>, pace: &Pace<'_>) -> Result<Vec<Row>, Error> {
    merge(rows, pace, Column::meets)
}

/// Puts rows of the same labels together, floats with floats and histograms with histograms: as upstream does where it
/// merges whole series. A step can then have both.
///
/// # Errors
/// When two of them have a value of one kind at the same step, or the query is to stop.
pub(super) fn merge_kinds(rows: Vec<Row>, pace: &Pace<'_>) -> Result<Vec<Row>, Error> {
    merge(rows, pace, Column::meets_kind)
}

fn merge(rows: Vec<Row>, pace: &Pace<'_>, meets: fn(&Column, &Column) -> bool) -> Result<Vec<Row>, Error> {
    if !has_duplicates(&rows, pace)? {
        return Ok(rows);
    }
    let mut merged: Vec<Row> = Vec::with_capacity(rows.len());
    let mut index: HashMap<Labels, usize> = HashMap::with_capacity(rows.len());
    for row in rows {
        pace.tick(1 + row.column.values.len() as u64 / 8)?;
        match index.entry(row.labels.clone()) {
            hashbrown::hash_map::Entry::Vacant(entry) => {
                entry.insert(merged.len());
                merged.push(row);
            }
            hashbrown::hash_map::Entry::Occupied(entry) => {
                let into = &mut merged[*entry.get()].column;
                if meets(into, &row.column) {
                    return Err(duplicates());
                }
                into.join(row.column);
            }
        }
    }
    Ok(merged)
}

/// Result rows by labels, filled value by value in any order.
pub(super) struct Collector {
    pub(super) rows: Vec<Row>,
    index: HashMap<Labels, usize>,
    steps: Steps,
    /// Duplicates are not looked for: names are still on, and will be looked at when they go.
    keeps_duplicates: bool,
}

impl Collector {
    pub(super) fn new(steps: Steps, keeps_duplicates: bool) -> Self {
        Self { rows: Vec::new(), index: HashMap::new(), steps, keeps_duplicates }
    }

    /// The row of these labels, made where there is none.
    pub(super) fn row(&mut self, labels: Labels, drop_name: bool) -> usize {
        let column = || Column::new(self.steps.count);
        if self.keeps_duplicates {
            self.rows.push(Row { labels, drop_name, column: column() });
            return self.rows.len() - 1;
        }
        match self.index.entry(labels) {
            hashbrown::hash_map::Entry::Occupied(entry) => *entry.get(),
            hashbrown::hash_map::Entry::Vacant(entry) => {
                let labels = entry.key().clone();
                entry.insert(self.rows.len());
                self.rows.push(Row { labels, drop_name, column: column() });
                self.rows.len() - 1
            }
        }
    }

    /// Sets a value.
    ///
    /// # Errors
    /// When the step is taken.
    pub(super) fn put(&mut self, row: usize, step: usize, point: Point) -> Result<(), Error> {
        let column = &mut self.rows[row].column;
        if column.has(step) {
            return Err(duplicates());
        }
        match point {
            Point::Float(value) => column.put(step, value),
            Point::Histogram(histogram) => {
                let at = column.histograms.partition_point(|(have, _)| *have < step);
                column.histograms.insert(at, (step, histogram));
            }
        }
        Ok(())
    }

    /// The column of a row, to write floats to these steps.
    ///
    /// # Errors
    /// When any of them is taken.
    pub(super) fn free_steps(&mut self, row: usize, steps: &Bits) -> Result<&mut Column, Error> {
        let column = &mut self.rows[row].column;
        let is_free = column.histograms.is_empty() && !column.present.meets(steps) || !column.taken().meets(steps);
        if is_free { Ok(column) } else { Err(duplicates()) }
    }

    /// The rows that have any value.
    pub(super) fn finish(self) -> Vec<Row> {
        self.rows.into_iter().filter(|row| !row.column.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits(count: usize, steps: &std::collections::BTreeSet<usize>) -> Bits {
        let mut bits = Bits::new(count);
        steps.iter().for_each(|step| bits.set(*step));
        bits
    }

    proptest! {
        #[test]
        fn bits_are_what_a_set_is(
            a in proptest::collection::btree_set(0_usize..200, 0..40),
            b in proptest::collection::btree_set(0_usize..200, 0..40),
        ) {
            let (x, y) = (bits(200, &a), bits(200, &b));
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(x.count(), a.len());
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x.meets(&y), !a.is_disjoint(&b));
            let with = |f: fn(&mut Bits, &Bits)| { let mut z = x.clone(); f(&mut z, &y); z };
            prop_assert_eq!(with(Bits::join), bits(200, &a.union(&b).copied().collect()));
            prop_assert_eq!(with(Bits::keep), bits(200, &a.intersection(&b).copied().collect()));
            prop_assert_eq!(with(Bits::remove), bits(200, &a.difference(&b).copied().collect()));
        }
    }

    #[test]
    fn steps_end_with_the_last_that_fits() {
        let steps = Steps::new(10, 35, 10);
        assert_eq!((steps.count, steps.at(0), steps.last(), steps.is_instant), (3, 10, 30, false));
        assert_eq!(Steps::new(10, 9, 10).count, 0);
        assert!(Steps::new(10, 10, 0).is_instant);
        // The widest range there is does not overflow.
        assert_eq!(Steps::new(Millis::MIN, Millis::MAX, 1).count, usize::MAX);
    }

    #[test]
    fn rows_that_became_the_same_are_joined_unless_they_overlap() {
        let row = |step: usize| {
            let mut column = Column::new(2);
            column.put(step, step as f64);
            Row { column, ..Row::default() }
        };
        let cancel = crate::engine::Cancel::default();
        let pace = Pace::new(&cancel, engram_model::time::Stopwatch::start(), std::time::Duration::MAX);
        let merged = merge_same(vec![row(1), row(0)], &pace).unwrap();
        assert_eq!(merged.len(), 1);
        assert_eq!(*merged[0].column.values, [0.0, 1.0]);
        assert_eq!(merge_same(vec![row(1), row(1)], &pace).unwrap_err().to_string(), DUPLICATES);
    }
}
