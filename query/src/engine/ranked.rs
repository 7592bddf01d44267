//! Aggregations that choose: `topk`, `bottomk`, `limitk`, `limit_ratio`; and `count_values`, which makes labels.
//!
//! Those that choose need all rows at once, and give some of them back, step by step. Which of several equal values is
//! taken follows upstream's heap, so that answers agree.
//!
//! Source: `prometheus promql/engine.go` (`aggregationK`, `aggregationCountValues`), Prometheus 3.14.

use std::cmp::Ordering;

use engram_model::Labels;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::error::Error;
use crate::functions::{Note, Point};
use crate::histogram::text::{display, go_quote};
use crate::parse::ast::AggregateOp;
use crate::plan::{Aggregate, Node};

use super::aggregate::group_labels;
use super::eval::{Evaluator, weight};
use super::row::{Bits, Collector, Column, Row, Steps};

/// A float and the row it is of.
type Ranked = (f64, usize);

/// Whether `a` goes before `b` on the heap: greater first for `bottomk`, smaller first for all others, NaN always.
fn goes_first(op: AggregateOp, a: f64, b: f64) -> bool {
    if a.is_nan() {
        return true;
    }
    if op == AggregateOp::BottomK { a > b } else { a < b }
}

/// A heap as Go's `container/heap` keeps it, so that ties end up alike.
#[derive(Default)]
struct Heap(Vec<Ranked>);

impl Heap {
    fn push(&mut self, op: AggregateOp, item: Ranked) {
        self.0.push(item);
        let mut at = self.0.len() - 1;
        while at > 0 {
            let parent = (at - 1) / 2;
            if !goes_first(op, self.0[at].0, self.0[parent].0) {
                break;
            }
            self.0.swap(at, parent);
            at = parent;
        }
    }

    /// Replaces the first item.
    fn replace(&mut self, op: AggregateOp, item: Ranked) {
        self.0[0] = item;
        let mut at = 0;
        loop {
            let left = 2 * at + 1;
            if left >= self.0.len() {
                return;
            }
            let right = left + 1;
            let child =
                if right < self.0.len() && goes_first(op, self.0[right].0, self.0[left].0) { right } else { left };
            if !goes_first(op, self.0[child].0, self.0[at].0) {
                return;
            }
            self.0.swap(at, child);
            at = child;
        }
    }

    /// The rows: of `topk` and `bottomk` best first, NaN last, of the others as they lie.
    fn into_chosen(mut self, op: AggregateOp) -> impl Iterator<Item = usize> {
        let key = |a: &Ranked, b: &Ranked| match (a.0.is_nan(), b.0.is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ if op == AggregateOp::TopK => b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal),
            _ => a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal),
        };
        if matches!(op, AggregateOp::TopK | AggregateOp::BottomK) {
            self.0.sort_by(key);
        }
        self.0.into_iter().map(|(_, row)| row)
    }
}

/// The parameter's extremes over all steps.
struct Extremes {
    lowest: f64,
    highest: f64,
    has_nan: bool,
}

impl Extremes {
    fn of(param: &[f64]) -> Self {
        // As Go's `math.Max`, which gives NaN back.
        let pick =
            |a: f64, b: f64, take: fn(f64, f64) -> f64| if a.is_nan() || b.is_nan() { f64::NAN } else { take(a, b) };
        Self {
            lowest: param.iter().fold(f64::MAX, |a, b| pick(a, *b, f64::min)),
            highest: param.iter().fold(-f64::MAX, |a, b| pick(a, *b, f64::max)),
            has_nan: param.iter().any(|p| p.is_nan()),
        }
    }
}

impl Evaluator<'_> {
    /// `topk`, `bottomk`, `limitk`, `limit_ratio`.
    pub(super) fn ranked(&self, aggregate: &Aggregate, steps: Steps) -> Result<Vec<Row>, Error> {
        let param = self.param(aggregate, steps)?;
        let mut rows = self.rows(&aggregate.inner, steps)?;
        self.in_order(&mut rows)?;
        let held = weight(&rows);
        self.release(held);
        if !self.check_param(aggregate, &param)? {
            return Ok(Vec::new());
        }
        let (groups, of_row) = self.groups_of(&rows, aggregate)?;
        let offsets = match aggregate.op {
            AggregateOp::LimitRatio => self.offsets(&rows)?,
            _ => Vec::new(),
        };
        let mut chosen = Vec::with_capacity(rows.len());
        self.pace.each(&mut rows.iter(), |_| chosen.push(Bits::new(steps.count)))?;
        let mut order = Vec::new();
        for (step, param) in param.iter().enumerate() {
            let k = whole(*param, rows.len());
            let heaps = match aggregate.op {
                AggregateOp::TopK | AggregateOp::BottomK => self.best(aggregate, step, k, &rows, (groups, &of_row))?,
                AggregateOp::LimitK => self.first(step, k, &rows, (groups, &of_row))?,
                _ => self.sampled(step, *param, (&rows, &offsets), (groups, &of_row))?,
            };
            order.clear();
            for heap in heaps {
                self.tick(1 + heap.0.len() as u64)?;
                order.extend(heap.into_chosen(aggregate.op));
            }
            order.iter().for_each(|row| chosen[*row].set(step));
        }
        self.pace.each(rows.iter_mut().zip(&chosen), |(row, chosen)| row.column.keep(chosen))?;
        if steps.is_instant {
            // The order is part of the answer.
            let taken = order.iter().map(|row| std::mem::take(&mut rows[*row]));
            return Ok(taken.collect());
        }
        rows.retain(|row| !row.column.is_empty());
        Ok(rows)
    }

    /// Whether there is anything to choose.
    fn check_param(&self, aggregate: &Aggregate, param: &[f64]) -> Result<bool, Error> {
        let Extremes { lowest, highest, has_nan } = Extremes::of(param);
        let fail = |what: String| Err(Error::Execution(what));
        let number = crate::histogram::text::go_float;
        if aggregate.op == AggregateOp::LimitRatio {
            if highest == 0.0 && lowest == 0.0 {
                return Ok(false);
            }
            if has_nan {
                return fail("Ratio value is NaN".to_owned());
            }
            let span = aggregate.param.as_ref().map_or(aggregate.span, Node::span);
            if highest > 1.0 {
                self.note(&Note::InvalidRatio(highest, 1.0), "", span);
            }
            if lowest < -1.0 {
                self.note(&Note::InvalidRatio(lowest, -1.0), "", span);
            }
            return Ok(true);
        }
        if highest < 1.0 {
            return Ok(false);
        }
        if has_nan {
            return fail("Parameter value is NaN".to_owned());
        }
        if lowest <= -9_223_372_036_854_775_808.0 {
            return fail(format!("Scalar value {} underflows int64", number(lowest)));
        }
        if highest >= 9_223_372_036_854_775_808.0 {
            return fail(format!("Scalar value {} overflows int64", number(highest)));
        }
        Ok(true)
    }

    fn best(
        &self,
        aggregate: &Aggregate,
        step: usize,
        k: usize,
        rows: &[Row],
        (groups, of_row): (usize, &[usize]),
    ) -> Result<Vec<Heap>, Error> {
        if k == 0 {
            return Ok(Vec::new());
        }
        let op = aggregate.op;
        let mut heaps: Vec<Heap> = (0..groups).map(|_| Heap::default()).collect();
        for (i, row) in rows.iter().enumerate() {
            self.tick(1)?;
            if !row.column.present.has(step) {
                if row.column.has(step) {
                    self.note(&Note::HistogramIgnoredInAggregation(op.as_str()), "", aggregate.span);
                }
                continue;
            }
            let value = row.column.values[step];
            let heap = &mut heaps[of_row[i]];
            if heap.0.len() < k {
                heap.push(op, (value, i));
                continue;
            }
            let first = heap.0[0].0;
            let is_better = if op == AggregateOp::TopK { first < value } else { first > value };
            if is_better || (first.is_nan() && !value.is_nan()) {
                heap.replace(op, (value, i));
            }
        }
        Ok(heaps)
    }

    /// `limitk`: the first of each group.
    fn first(
        &self,
        step: usize,
        k: usize,
        rows: &[Row],
        (groups, of_row): (usize, &[usize]),
    ) -> Result<Vec<Heap>, Error> {
        let mut taken: Vec<Heap> = (0..groups).map(|_| Heap::default()).collect();
        self.pace.each(rows.iter().enumerate(), |(i, row)| {
            let group = &mut taken[of_row[i]];
            if group.0.len() < k && row.column.has(step) {
                group.push(AggregateOp::LimitK, (float_of(row, step), i));
            }
        })?;
        Ok(taken)
    }

    /// `limit_ratio`: series by their hash, the same ones at every step and in every query.
    fn sampled(
        &self,
        step: usize,
        ratio: f64,
        (rows, offsets): (&[Row], &[f64]),
        (groups, of_row): (usize, &[usize]),
    ) -> Result<Vec<Heap>, Error> {
        let ratio = ratio.clamp(-1.0, 1.0);
        let is_chosen = |offset: f64| if ratio >= 0.0 { offset < ratio } else { offset >= 1.0 + ratio };
        let mut taken: Vec<Heap> = (0..groups).map(|_| Heap::default()).collect();
        self.pace.each(rows.iter().zip(offsets).enumerate(), |(i, (row, offset))| {
            if is_chosen(*offset) && row.column.has(step) {
                taken[of_row[i]].push(AggregateOp::LimitRatio, (float_of(row, step), i));
            }
        })?;
        Ok(taken)
    }

    /// Where the hash of each row's labels lies between 0 and 1.
    fn offsets(&self, rows: &[Row]) -> Result<Vec<f64>, Error> {
        let mut offsets = Vec::with_capacity(rows.len());
        self.pace.each(rows.iter(), |row| offsets.push(upstream_hash(&row.labels) as f64 / u64::MAX as f64))?;
        Ok(offsets)
    }

    /// How many groups there are, and each row's.
    fn groups_of(&self, rows: &[Row], aggregate: &Aggregate) -> Result<(usize, Vec<usize>), Error> {
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let mut of_row = Vec::with_capacity(rows.len());
        self.pace.each(rows.iter(), |row| {
            let next = index.len();
            of_row.push(*index.entry(group_labels(&row.labels, aggregate)).or_insert(next));
        })?;
        Ok((index.len(), of_row))
    }

    /// `count_values`: how often each value is there.
    pub(super) fn count_values(&self, aggregate: &Aggregate, steps: Steps) -> Result<Vec<Row>, Error> {
        let Some(Node::Text(label, _)) = &aggregate.param else {
            return Err(Error::Execution("count_values needs the name of a label".to_owned()));
        };
        let Ok(label) = std::str::from_utf8(label) else {
            return Err(Error::Execution(format!("invalid label name {}", quote_bytes(label))));
        };
        if label.is_empty() {
            return Err(Error::Execution(format!("invalid label name {}", go_quote(label))));
        }
        let mut with_value = aggregate.clone();
        if !aggregate.without {
            with_value.grouping.push(label.to_owned());
            with_value.grouping.sort_unstable();
        }
        let mut counts = Counts { steps, collector: Collector::new(steps, false), index: HashMap::new() };
        self.stream(&aggregate.inner, steps, &mut |row| counts.add(row, label, &with_value, self))?;
        self.release(counts.row_weight().saturating_mul(counts.index.len() as u64));
        Ok(counts.collector.finish())
    }
}

/// Counts by group and value.
struct Counts {
    steps: Steps,
    collector: Collector,
    /// Output row by labels of the group without the value, and the value as text.
    index: HashMap<(Labels, String), usize>,
}

impl Counts {
    /// What one more value costs, in samples: a whole column, its labels twice, its place in the index.
    fn row_weight(&self) -> u64 {
        self.steps.count as u64 / 2 + 16
    }

    /// Counts a row's values. Each new one is asked for before it is made: one row can hold thousands.
    fn add(&mut self, row: &Row, label: &str, aggregate: &Aggregate, budget: &Evaluator<'_>) -> Result<(), Error> {
        let row_weight = self.row_weight();
        let base = group_labels(&row.labels, aggregate);
        for step in 0..self.steps.count {
            budget.tick(4)?;
            let text = match row.column.get(step) {
                Some(Point::Float(value)) => plain_float(value),
                Some(Point::Histogram(histogram)) => display(&histogram),
                None => continue,
            };
            let at = match self.index.entry((base.clone(), text)) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    budget.hold(row_weight)?;
                    let mut builder = row.labels.to_builder();
                    builder.set(label, &entry.key().1);
                    *entry.insert(self.collector.row(group_labels(&builder.build(), aggregate), false))
                }
            };
            let column: &mut Column = &mut self.collector.rows[at].column;
            let have = if column.present.has(step) { column.values[step] } else { 0.0 };
            column.put(step, have + 1.0);
        }
        Ok(())
    }
}

/// A float in all its digits, never with an exponent: `strconv.FormatFloat(f, 'f', -1, 64)`.
fn plain_float(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    if value.is_nan() { "NaN".to_owned() } else { format!("{value}") }
}

/// `%q` of Go for bytes that are no text.
pub(super) fn quote_bytes(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        let quoted = go_quote(chunk.valid());
        out.push_str(quoted.trim_matches('"'));
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out.push('"');
    out
}

/// A parameter as a number of rows.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the number of rows")]
fn whole(param: f64, rows: usize) -> usize {
    if param >= rows as f64 { rows } else { param.max(0.0) as usize }
}

/// What a row is ordered by on the heap: a histogram counts as 0.
fn float_of(row: &Row, step: usize) -> f64 {
    if row.column.present.has(step) { row.column.values[step] } else { 0.0 }
}

/// The 64-bit hash Prometheus gives a label set: `limit_ratio` promises the same choice everywhere.
///
/// Lengths are one byte, from 255 on that byte and three more.
/// Source: `prometheus model/labels/labels_stringlabels.go`.
fn upstream_hash(labels: &Labels) -> u64 {
    let mut bytes = Vec::with_capacity(labels.as_bytes().len());
    for (name, value) in labels.iter() {
        for part in [name, value] {
            match u8::try_from(part.len()) {
                Ok(short) if short < 255 => bytes.push(short),
                _ => {
                    bytes.push(255);
                    bytes.extend_from_slice(&part.len().to_le_bytes()[..3]);
                }
            }
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    xxhash_rust::xxh64::xxh64(&bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_prometheus() {
        // Of no labels and of a long value, whose length takes four bytes; worked out from the layout by hand.
        assert_eq!(upstream_hash(&Labels::empty()), xxhash_rust::xxh64::xxh64(b"", 0));
        let long = "v".repeat(300);
        let mut bytes = vec![1, b'a', 255, 44, 1, 0];
        bytes.extend_from_slice(long.as_bytes());
        let labels = Labels::from_pairs([("a", long.as_str())]);
        assert_eq!(upstream_hash(&labels), xxhash_rust::xxh64::xxh64(&bytes, 0));
    }

    #[test]
    fn a_heap_gives_the_best_in_order_and_nan_last() {
        for (op, want) in [(AggregateOp::TopK, [3, 1, 0, 2]), (AggregateOp::BottomK, [0, 1, 3, 2])] {
            let mut heap = Heap::default();
            for (row, value) in [1.0, 2.0, f64::NAN, 3.0].into_iter().enumerate() {
                heap.push(op, (value, row));
            }
            assert_eq!(heap.into_chosen(op).collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn values_as_labels_have_no_exponent() {
        assert_eq!(plain_float(1e21), "1000000000000000000000");
        assert_eq!(plain_float(0.1), "0.1");
        assert_eq!(plain_float(-0.0), "-0");
        assert_eq!(plain_float(f64::INFINITY), "+Inf");
    }
}
