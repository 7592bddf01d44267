//! Aggregations that run along: a row comes, is added to its group, and is gone.
//!
//! What a group holds is a few arrays over the steps. Nothing of the input is kept, except by `quantile`, which has to.
//! Sums keep what rounding would lose (Kahan, Neumaier), in the order the series come in, as upstream.
//!
//! Source: `prometheus promql/engine.go` (`aggregation`), Prometheus 3.14.

use engram_model::Labels;
use engram_model::histogram::Histogram;
use engram_model::labels::METRIC_NAME;
use hashbrown::HashMap;

use crate::error::Error;
use crate::functions::sum::kahan;
use crate::functions::{HistogramOperation, Note};
use crate::histogram::{HistogramMean, HistogramSum, Incompatible, Joined};
use crate::parse::ast::AggregateOp;
use crate::plan::Aggregate;

use super::eval::Evaluator;
use super::row::{Bits, Column, Numbers, Row, Steps, histogram_weight};

mod partial;

/// Labels of the group a series belongs to. `grouping` is sorted.
pub(super) fn group_labels(labels: &Labels, aggregate: &Aggregate) -> Labels {
    let named = |name: &str| aggregate.grouping.binary_search_by(|have| have.as_str().cmp(name)).is_ok();
    match (aggregate.without, aggregate.grouping.is_empty()) {
        (true, _) => labels.without(|name| name == METRIC_NAME || named(name)),
        (false, true) => Labels::empty(),
        (false, false) => labels.without(|name| !named(name)),
    }
}

/// Writes the group's labels into `key`, in the form of [`Labels::as_bytes`] or any other that tells groups apart, and
/// without an allocation for each series.
pub(super) fn group_key(labels: &Labels, aggregate: &Aggregate, key: &mut Vec<u8>) {
    key.clear();
    let named = |name: &str| aggregate.grouping.binary_search_by(|have| have.as_str().cmp(name)).is_ok();
    for (name, value) in labels.iter() {
        let keep = match aggregate.without {
            true => name != METRIC_NAME && !named(name),
            false => named(name),
        };
        if keep {
            for part in [name, value] {
                key.extend_from_slice(&part.len().to_le_bytes());
                key.extend_from_slice(part.as_bytes());
            }
        }
    }
}

/// A histogram in the making.
enum Making {
    Sum(HistogramSum),
    Mean(HistogramMean),
}

impl Making {
    fn new(op: AggregateOp, first: &Histogram) -> Self {
        match op {
            AggregateOp::Avg => Self::Mean(HistogramMean::new(first)),
            _ => Self::Sum(HistogramSum::new(first)),
        }
    }

    fn add(&mut self, other: &Histogram) -> Result<(), Incompatible> {
        match self {
            Self::Sum(sum) => sum.add(other),
            Self::Mean(mean) => mean.add(other),
        }
    }

    fn finish(self) -> (Histogram, Joined) {
        let (mut out, joined) = match self {
            Self::Sum(sum) => {
                let joined = sum.joined();
                (sum.finish(), joined)
            }
            Self::Mean(mean) => {
                let joined = mean.joined();
                (mean.finish(), joined)
            }
        };
        crate::histogram::compact(&mut out);
        (out, joined)
    }
}

/// One group's histograms, made where the first one comes.
struct GroupHistograms {
    making: Vec<Option<Making>>,
    /// Steps with any histogram.
    seen: Bits,
    /// Steps where exponential and custom boundaries met: there is no answer.
    incompatible: Bits,
}

/// One group over all steps.
struct Group {
    labels: Labels,
    drop_name: bool,
    /// Steps any sample came for that counts.
    seen: Bits,
    /// Steps a float came for, where histograms count too.
    floats: Bits,
    /// The answer in the making: sum, extreme, sum of squared differences …
    value: Numbers,
    /// What rounding lost; of variances, the mean.
    second: Numbers,
    /// How many samples came; without meaning where nobody asks.
    count: Numbers,
    /// Steps at which the mean moves because the sum would overflow.
    moving: Bits,
    histograms: Option<Box<GroupHistograms>>,
    /// All values, for quantiles.
    all: Vec<Vec<f64>>,
}

/// Groups in order of first appearance.
pub(super) struct Groups<'a> {
    aggregate: &'a Aggregate,
    steps: Steps,
    list: Vec<Group>,
    index: HashMap<Box<[u8]>, usize>,
    key: Vec<u8>,
    /// Samples counted as held for them.
    pub(super) held: u64,
}

impl<'a> Groups<'a> {
    fn new(aggregate: &'a Aggregate, steps: Steps) -> Self {
        Self { aggregate, steps, list: Vec::new(), index: HashMap::new(), key: Vec::new(), held: 0 }
    }

    /// Takes over what was gathered from the series after these.
    pub(super) fn merge(&mut self, other: Self) {
        self.held += other.held;
        for group in other.list {
            group_key(&group.labels, self.aggregate, &mut self.key);
            match self.index.get(self.key.as_slice()) {
                Some(at) => self.list[*at].merge(self.aggregate.op, group),
                None => self.add(group),
            }
        }
    }

    /// Adds a group whose key was just made.
    fn add(&mut self, group: Group) {
        self.index.insert(self.key.as_slice().into(), self.list.len());
        self.list.push(group);
    }

    /// The group of a series; the flag: it is new.
    fn of(&mut self, labels: &Labels) -> (usize, bool) {
        group_key(labels, self.aggregate, &mut self.key);
        if let Some(at) = self.index.get(self.key.as_slice()) {
            return (*at, false);
        }
        let count = self.steps.count;
        let op = self.aggregate.op;
        let wants = |yes: bool| Numbers::new(if yes { count } else { 0 });
        self.add(Group {
            labels: group_labels(labels, self.aggregate),
            drop_name: false,
            seen: Bits::new(count),
            floats: Bits::new(count),
            value: Numbers::new(count),
            second: wants(matches!(
                op,
                AggregateOp::Sum | AggregateOp::Avg | AggregateOp::Stddev | AggregateOp::Stdvar
            )),
            count: wants(matches!(op, AggregateOp::Avg | AggregateOp::Stddev | AggregateOp::Stdvar)),
            moving: Bits::new(if op == AggregateOp::Avg { count } else { 0 }),
            histograms: None,
            all: if op == AggregateOp::Quantile { vec![Vec::new(); count] } else { Vec::new() },
        });
        (self.list.len() - 1, true)
    }
}

impl Evaluator<'_> {
    /// Any aggregation.
    pub(super) fn aggregate(&self, aggregate: &Aggregate, steps: Steps) -> Result<Vec<Row>, Error> {
        match aggregate.op {
            AggregateOp::TopK | AggregateOp::BottomK | AggregateOp::LimitK | AggregateOp::LimitRatio => {
                return self.ranked(aggregate, steps);
            }
            AggregateOp::CountValues => return self.count_values(aggregate, steps),
            _ => {}
        }
        let param = self.param(aggregate, steps)?;
        if aggregate.op == AggregateOp::Quantile {
            self.check_quantile(aggregate, &param);
        }
        let mut groups = match self.in_shards(aggregate, steps)? {
            Some(groups) => groups,
            None => self.groups(aggregate, steps, true)?.unwrap_or_else(|| Groups::new(aggregate, steps)),
        };
        self.add_pushed(aggregate, &mut groups, steps)?;
        let held = groups.held;
        let mut out = Vec::new();
        for group in groups.list {
            let row = self.finish(aggregate, group, &param, steps)?;
            if !row.column.is_empty() {
                out.push(row);
            }
        }
        self.release(held);
        Ok(out)
    }

    /// Puts all rows into their groups. `None`: there are histograms, and they were not to be taken.
    pub(super) fn groups<'p>(
        &self,
        aggregate: &'p Aggregate,
        steps: Steps,
        takes_histograms: bool,
    ) -> Result<Option<Groups<'p>>, Error> {
        let mut groups = Groups::new(aggregate, steps);
        let mut refused = false;
        let streamed = self.stream(&aggregate.inner, steps, &mut |row| {
            if !takes_histograms && !row.column.histograms.is_empty() {
                refused = true;
                return Err(Error::Cancelled { stage: "a shard" });
            }
            self.add_row(&mut groups, row)
        });
        if refused {
            self.release(groups.held);
            return Ok(None);
        }
        streamed.map(|()| Some(groups))
    }

    /// Puts a row into its group.
    fn add_row(&self, groups: &mut Groups<'_>, row: &Row) -> Result<(), Error> {
        let (aggregate, count) = (groups.aggregate, groups.steps.count as u64);
        let (at, is_new) = groups.of(&row.labels);
        let mut more = if is_new { count } else { 0 };
        if aggregate.op == AggregateOp::Quantile {
            more += row.column.weight();
        }
        groups.held += more;
        self.hold(more)?;
        self.tick(count / 8)?;
        let group = &mut groups.list[at];
        group.drop_name |= row.drop_name;
        self.add_floats(aggregate, group, &row.column)?;
        if !row.column.histograms.is_empty() {
            groups.held += self.add_histograms(aggregate, group, row)?;
        }
        Ok(())
    }

    /// The parameter over all steps; zeros where there is none.
    pub(super) fn param(&self, aggregate: &Aggregate, steps: Steps) -> Result<Vec<f64>, Error> {
        match &aggregate.param {
            Some(param) => Ok(self.scalar(param, steps)?.values.to_vec()),
            None => Ok(vec![0.0; steps.count]),
        }
    }

    fn check_quantile(&self, aggregate: &Aggregate, param: &[f64]) {
        let Some(span) = aggregate.param.as_ref().map(crate::plan::Node::span) else { return };
        if param.iter().any(|q| q.is_nan()) {
            self.note(&Note::InvalidQuantile(f64::NAN), "", span);
        }
        let highest = param.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = param.iter().copied().fold(f64::INFINITY, f64::min);
        if highest > 1.0 {
            self.note(&Note::InvalidQuantile(highest), "", span);
        }
        if lowest < 0.0 {
            self.note(&Note::InvalidQuantile(lowest), "", span);
        }
    }

    fn add_floats(&self, aggregate: &Aggregate, group: &mut Group, column: &Column) -> Result<(), Error> {
        let values = &column.values;
        let steps = column.present.iter();
        let pace = &self.pace;
        match aggregate.op {
            AggregateOp::Sum if group.histograms.is_none() => {
                group.sum_column(column);
                self.tick(values.len() as u64 / 8)
            }
            AggregateOp::Sum => pace.each(steps, |step| group.sum(step, values[step])),
            AggregateOp::Avg => pace.each(steps, |step| group.mean(step, values[step])),
            AggregateOp::Count => pace.each(steps, |step| group.count_one(step)),
            AggregateOp::Min => pace.each(steps, |step| group.extreme(step, values[step], |have, new| have > new)),
            AggregateOp::Max => pace.each(steps, |step| group.extreme(step, values[step], |have, new| have < new)),
            AggregateOp::Stddev | AggregateOp::Stdvar => pace.each(steps, |step| group.spread(step, values[step])),
            AggregateOp::Quantile => pace.each(steps, |step| {
                group.seen.set(step);
                group.all[step].push(values[step]);
            }),
            _ => pace.each(steps, |step| group.exists(step)),
        }
    }

    /// Says how much more is held.
    fn add_histograms(&self, aggregate: &Aggregate, group: &mut Group, row: &Row) -> Result<u64, Error> {
        let op = aggregate.op;
        let mut held = 0;
        for (step, histogram) in &row.column.histograms {
            let weight = histogram_weight(histogram);
            self.tick(weight / 4)?;
            match op {
                AggregateOp::Count => group.count_one(*step),
                AggregateOp::Group => group.exists(*step),
                AggregateOp::Sum | AggregateOp::Avg => match group.add_histogram(op, *step, histogram) {
                    Ok(true) => {
                        self.hold(weight)?;
                        held += weight;
                    }
                    Ok(false) => {}
                    Err(Incompatible) => {
                        let name = row.labels.metric_name();
                        self.note(&Note::MixedExponentialCustom, name, aggregate.inner_span);
                    }
                },
                other => {
                    let note = Note::HistogramIgnoredInAggregation(other.as_str());
                    self.note(&note, "", aggregate.inner_span);
                }
            }
        }
        Ok(held)
    }

    fn finish(&self, aggregate: &Aggregate, mut group: Group, param: &[f64], steps: Steps) -> Result<Row, Error> {
        let mut column = Column::new(steps.count);
        let histograms = group.histograms.take();
        let blocked = |step: usize| histograms.as_ref().is_some_and(|h| h.seen.has(step));
        for step in group.seen.iter() {
            self.tick(1 + group.all.get(step).map_or(0, Vec::len) as u64 / 8)?;
            if blocked(step) {
                continue;
            }
            let value = match aggregate.op {
                AggregateOp::Sum => group.value[step] + group.second[step],
                AggregateOp::Avg if group.moving.has(step) => group.value[step] + group.second[step],
                AggregateOp::Avg => group.value[step] / group.count[step] + group.second[step] / group.count[step],
                AggregateOp::Stdvar => group.value[step] / group.count[step],
                AggregateOp::Stddev => (group.value[step] / group.count[step]).sqrt(),
                AggregateOp::Quantile => crate::functions::quantile::of_values(param[step], &mut group.all[step]),
                _ => group.value[step],
            };
            column.put(step, value);
        }
        if let Some(histograms) = histograms {
            self.finish_histograms(aggregate, &group.floats, *histograms, &mut column)?;
        }
        Ok(Row { labels: group.labels, drop_name: group.drop_name, column })
    }

    fn finish_histograms(
        &self,
        aggregate: &Aggregate,
        floats: &Bits,
        made: GroupHistograms,
        column: &mut Column,
    ) -> Result<(), Error> {
        let span = aggregate.inner_span;
        let seen = made.seen;
        for (step, making) in made.making.into_iter().enumerate() {
            if floats.has(step) && seen.has(step) {
                self.note(&Note::MixedFloatsHistogramsAggregation, "", span);
                continue;
            }
            let Some(making) = making else { continue };
            self.tick(4)?;
            let (histogram, joined) = making.finish();
            if joined.reconciled {
                let note = Note::MismatchedCustomBuckets(HistogramOperation::Aggregation);
                self.note(&note, "", span);
            }
            if made.incompatible.has(step) {
                continue;
            }
            if joined.collision {
                self.note(&Note::CounterResetCollision(HistogramOperation::Aggregation), "", span);
            }
            column.histograms.push((step, histogram.into()));
        }
        Ok(())
    }
}

impl Group {
    /// Whether exponential and custom boundaries have met at this step: nothing more is looked at.
    fn is_spoilt(&self, step: usize) -> bool {
        self.histograms.as_ref().is_some_and(|h| h.incompatible.has(step))
    }

    #[inline]
    fn sum(&mut self, step: usize, x: f64) {
        if self.histograms.is_some() && self.is_spoilt(step) {
            return;
        }
        self.floats.set(step);
        if !self.seen.has(step) {
            self.seen.set(step);
            self.value[step] = x;
            return;
        }
        (self.value[step], self.second[step]) = kahan(x, self.value[step], self.second[step]);
    }

    /// [`Self::sum`] of all steps, where no histogram has come. Most words of steps are full on both sides: then nothing
    /// is asked of single steps.
    fn sum_column(&mut self, column: &Column) {
        let chunks = self.value.chunks_mut(64).zip(self.second.chunks_mut(64)).zip(column.values.chunks(64));
        for (word, ((sums, lost), values)) in chunks.enumerate() {
            let (new, seen) = (column.present.word(word), self.seen.word(word));
            if new == u64::MAX >> (64 - values.len()) && new & seen == new {
                for ((sum, lost), x) in sums.iter_mut().zip(lost).zip(values) {
                    (*sum, *lost) = kahan(*x, *sum, *lost);
                }
                continue;
            }
            let mut left = new;
            while left != 0 {
                let i = left.trailing_zeros() as usize;
                left &= left - 1;
                if seen >> i & 1 == 1 {
                    (sums[i], lost[i]) = kahan(values[i], sums[i], lost[i]);
                } else {
                    sums[i] = values[i];
                }
            }
        }
        self.seen.join(&column.present);
        self.floats.join(&column.present);
    }

    fn mean(&mut self, step: usize, x: f64) {
        if self.histograms.is_some() && self.is_spoilt(step) {
            return;
        }
        self.floats.set(step);
        self.count[step] += 1.0;
        let count = self.count[step];
        if !self.seen.has(step) {
            self.seen.set(step);
            self.value[step] = x;
            return;
        }
        if !self.moving.has(step) {
            let (sum, lost) = kahan(x, self.value[step], self.second[step]);
            if !sum.is_infinite() {
                (self.value[step], self.second[step]) = (sum, lost);
                return;
            }
            self.moving.set(step);
            self.value[step] /= count - 1.0;
            self.second[step] /= count - 1.0;
        }
        let keep = (count - 1.0) / count;
        (self.value[step], self.second[step]) = kahan(x / count, keep * self.value[step], keep * self.second[step]);
    }

    fn count_one(&mut self, step: usize) {
        self.seen.set(step);
        self.value[step] += 1.0;
    }

    fn exists(&mut self, step: usize) {
        self.seen.set(step);
        self.value[step] = 1.0;
    }

    fn extreme(&mut self, step: usize, x: f64, is_worse: fn(f64, f64) -> bool) {
        let have = self.value[step];
        if !self.seen.has(step) || is_worse(have, x) || have.is_nan() {
            self.seen.set(step);
            self.value[step] = x;
        }
    }

    /// Welford's way to a variance: `value` sums squared differences, `second` is the mean.
    fn spread(&mut self, step: usize, x: f64) {
        self.count[step] += 1.0;
        if !self.seen.has(step) {
            self.seen.set(step);
            self.second[step] = x;
            self.value[step] = if x.is_finite() { 0.0 } else { f64::NAN };
            return;
        }
        let delta = x - self.second[step];
        self.second[step] += delta / self.count[step];
        self.value[step] += delta * (x - self.second[step]);
    }

    /// Joins what two threads have gathered. Histograms are not in it.
    fn merge(&mut self, op: AggregateOp, mut other: Self) {
        self.drop_name |= other.drop_name;
        for step in other.seen.iter() {
            let x = other.value[step];
            match op {
                AggregateOp::Sum => {
                    self.sum(step, x);
                    self.second[step] += other.second[step];
                }
                AggregateOp::Avg => self.merge_mean(step, &other),
                AggregateOp::Count => {
                    self.seen.set(step);
                    self.value[step] += x;
                }
                AggregateOp::Min => self.extreme(step, x, |have, new| have > new),
                AggregateOp::Max => self.extreme(step, x, |have, new| have < new),
                AggregateOp::Stddev | AggregateOp::Stdvar => self.merge_spread(step, &other),
                AggregateOp::Quantile => {
                    self.seen.set(step);
                    self.all[step].append(&mut other.all[step]);
                }
                _ => self.exists(step),
            }
        }
    }

    fn merge_mean(&mut self, step: usize, other: &Self) {
        let moving = self.moving.has(step) || other.moving.has(step);
        let (mine, theirs) = (self.count[step], other.count[step]);
        let count = mine + theirs;
        self.floats.set(step);
        self.seen.set(step);
        self.count[step] = count;
        let (sum, lost) = kahan(other.value[step], self.value[step], self.second[step] + other.second[step]);
        if !moving && !sum.is_infinite() {
            (self.value[step], self.second[step]) = (sum, lost);
            return;
        }
        let mean_of = |group: &Self, count: f64| match (count == 0.0, group.moving.has(step)) {
            (true, _) => 0.0,
            (false, true) => group.value[step] + group.second[step],
            (false, false) => group.value[step] / count + group.second[step] / count,
        };
        let mean = mean_of(self, mine) * (mine / count) + mean_of(other, theirs) * (theirs / count);
        self.moving.set(step);
        (self.value[step], self.second[step]) = (mean, 0.0);
    }

    /// Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    fn merge_spread(&mut self, step: usize, other: &Self) {
        let (mine, theirs) = (self.count[step], other.count[step]);
        let count = mine + theirs;
        let delta = other.second[step] - self.second[step];
        if !self.seen.has(step) {
            self.seen.set(step);
            (self.value[step], self.second[step]) = (other.value[step], other.second[step]);
        } else {
            self.second[step] += delta * theirs / count;
            self.value[step] += other.value[step] + delta * delta * mine * theirs / count;
        }
        self.count[step] = count;
    }

    /// Whether it is the first one, of which a copy is kept.
    fn add_histogram(&mut self, op: AggregateOp, step: usize, histogram: &Histogram) -> Result<bool, Incompatible> {
        let count = self.value.len();
        let all = self.histograms.get_or_insert_with(|| {
            Box::new(GroupHistograms {
                making: (0..count).map(|_| None).collect(),
                seen: Bits::new(count),
                incompatible: Bits::new(count),
            })
        });
        if all.incompatible.has(step) {
            return Ok(false);
        }
        all.seen.set(step);
        let is_first = !self.seen.has(step);
        self.seen.set(step);
        match &mut all.making[step] {
            Some(making) => making.add(histogram).map(|()| false).inspect_err(|_| all.incompatible.set(step)),
            None if is_first => {
                all.making[step] = Some(Making::new(op, histogram));
                Ok(true)
            }
            // Floats came first: there will be no answer, only a warning.
            None => Ok(false),
        }
    }
}
