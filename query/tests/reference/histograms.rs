//! Native histograms, slow and obvious: buckets are a map from index to count, and each operation does what its definition
//! says to every bucket. Exponential buckets of mixed resolutions and zero buckets, counters that restart.
//!
//! Zero buckets end where a bucket of every resolution in the data does. Elsewhere the answer depends on the order of the
//! series: upstream counts a bucket twice that reaches out of the zero bucket once it is made coarser, if it belongs to
//! the histogram that is added, and the engine does the same.
//!
//! Source of the definitions: Prometheus 3.14, `model/histogram/float_histogram.go`, `promql/functions.go`.

use std::collections::BTreeMap;

use engram_model::Millis;
use engram_model::histogram::{BucketSpan, Histogram};

use super::generate::Dice;
use super::naive::Labels;

/// Counts by index.
type Buckets = BTreeMap<i32, f64>;

#[derive(Clone, Debug, Default)]
pub(super) struct Naive {
    pub(super) schema: i32,
    pub(super) zero_threshold: f64,
    pub(super) zero_count: f64,
    pub(super) count: f64,
    pub(super) sum: f64,
    pub(super) positive: Buckets,
    pub(super) negative: Buckets,
}

/// What an expression gives at one time.
pub(super) type Vector = BTreeMap<Labels, Naive>;

/// Where a bucket ends, away from zero. It begins where the one before ends.
fn upper(schema: i32, index: i32) -> f64 {
    (f64::from(index) * f64::from(-schema).exp2()).exp2()
}

fn lower(schema: i32, index: i32) -> f64 {
    upper(schema, index - 1)
}

/// Buckets in a coarser schema: each goes where its end lies.
fn coarser(buckets: &Buckets, from: i32, to: i32) -> Buckets {
    let mut out = Buckets::new();
    for (index, count) in buckets {
        let times = 1 << (from - to);
        *out.entry(index.div_euclid(times) + i32::from(index.rem_euclid(times) > 0)).or_default() += count;
    }
    out
}

impl Naive {
    fn reduced(&self, schema: i32) -> Self {
        let positive = coarser(&self.positive, self.schema, schema);
        let negative = coarser(&self.negative, self.schema, schema);
        Self { schema, positive, negative, ..self.clone() }
    }

    /// With a zero bucket of at least this width: it takes every bucket it touches, and is as wide as these.
    fn widened(&self, threshold: f64) -> Self {
        let mut out = self.clone();
        if threshold <= self.zero_threshold {
            return out;
        }
        out.zero_threshold = threshold;
        loop {
            let width = out.zero_threshold;
            for buckets in [&mut out.positive, &mut out.negative] {
                for (index, count) in std::mem::take(buckets) {
                    if lower(self.schema, index) >= width && lower(self.schema, index) >= out.zero_threshold {
                        buckets.insert(index, count);
                        continue;
                    }
                    out.zero_count += count;
                    if count != 0.0 {
                        out.zero_threshold = out.zero_threshold.max(upper(self.schema, index));
                    }
                }
            }
            if out.zero_threshold == width {
                return out;
            }
        }
    }

    /// Adds `sign` times another.
    fn plus(&self, other: &Self, sign: f64) -> Self {
        let (mut a, mut b) = (self.clone(), other.clone());
        while a.zero_threshold != b.zero_threshold {
            a = a.widened(b.zero_threshold);
            b = b.widened(a.zero_threshold);
        }
        let schema = a.schema.min(b.schema);
        (a, b) = (a.reduced(schema), b.reduced(schema));
        a.zero_count += sign * b.zero_count;
        a.count += sign * b.count;
        a.sum += sign * b.sum;
        for (mine, theirs) in [(&mut a.positive, b.positive), (&mut a.negative, b.negative)] {
            theirs.into_iter().for_each(|(index, count)| *mine.entry(index).or_default() += sign * count);
        }
        a
    }

    pub(super) fn times(&self, factor: f64) -> Self {
        let mut out = self.clone();
        let all = [&mut out.zero_count, &mut out.count, &mut out.sum].into_iter();
        all.chain(out.positive.values_mut()).chain(out.negative.values_mut()).for_each(|v| *v *= factor);
        out
    }

    /// Whether a counter restarted between `before` and this.
    fn restarted(&self, before: &Self) -> bool {
        if self.count < before.count || self.schema > before.schema || self.zero_threshold < before.zero_threshold {
            return true;
        }
        let before = before.widened(self.zero_threshold);
        if before.zero_threshold != self.zero_threshold || self.zero_count < before.zero_count {
            return true;
        }
        let before = before.reduced(self.schema);
        let fell = |now: &Buckets, before: &Buckets| {
            before.iter().any(|(index, count)| now.get(index).copied().unwrap_or(0.0) < *count)
        };
        fell(&self.positive, &before.positive) || fell(&self.negative, &before.negative)
    }

    /// All buckets with observations, from the lowest: ends and count.
    fn all(&self) -> Vec<(f64, f64, f64)> {
        // What a bucket has in common with the zero bucket counts as the zero bucket's.
        let bounds = |index: &i32| (lower(self.schema, *index).max(self.zero_threshold), upper(self.schema, *index));
        let negative = self.negative.iter().rev().map(|(i, count)| (-bounds(i).1, -bounds(i).0, *count));
        let zero = [(-self.zero_threshold, self.zero_threshold, self.zero_count)];
        let positive = self.positive.iter().map(|(i, count)| (bounds(i).0, bounds(i).1, *count));
        negative.chain(zero).chain(positive).filter(|(.., count)| *count != 0.0).collect()
    }

    /// `q` lies between 0 and 1, and nowhere near a boundary.
    pub(super) fn quantile(&self, q: f64) -> f64 {
        if self.count == 0.0 {
            return f64::NAN;
        }
        let mut all = self.all();
        let rank = if q < 0.5 { q * self.count } else { (1.0 - q) * self.count };
        if q >= 0.5 {
            all.reverse();
        }
        let (mut seen, mut found) = (0.0, all[all.len() - 1]);
        for bucket in all {
            seen += bucket.2;
            if seen >= rank {
                found = bucket;
                break;
            }
        }
        let (mut low, mut high, count) = found;
        let inside = if q < 0.5 { rank - (seen - count) } else { seen - rank };
        let share = inside / count;
        let is_empty = |buckets: &Buckets| buckets.values().all(|count| *count == 0.0);
        if low <= 0.0 && high >= 0.0 {
            match (is_empty(&self.negative), is_empty(&self.positive)) {
                (true, false) => low = 0.0,
                (false, true) => high = 0.0,
                _ => {}
            }
            return low + (high - low) * share;
        }
        // Even on a logarithmic scale.
        if low > 0.0 { low * (high / low).powf(share) } else { -(low.abs() * (high / low).powf(share)) }
    }

    pub(super) fn of(h: &Histogram) -> Self {
        let buckets = |spans: &[BucketSpan], counts: &[f64]| {
            let (mut index, mut counts, mut out) = (0, counts.iter(), Buckets::new());
            for span in spans {
                index += span.offset;
                for _ in 0..span.length {
                    out.insert(index, *counts.next().unwrap());
                    index += 1;
                }
            }
            out
        };
        Self {
            schema: h.schema,
            zero_threshold: h.zero_threshold,
            zero_count: h.zero_count,
            count: h.count,
            sum: h.sum,
            positive: buckets(&h.positive_spans, &h.positive_buckets),
            negative: buckets(&h.negative_spans, &h.negative_buckets),
        }
    }

    pub(super) fn stored(&self) -> Histogram {
        let spans = |buckets: &Buckets| {
            let mut next = 0;
            let spans = buckets.keys().map(|index| {
                let offset = index - next;
                next = index + 1;
                BucketSpan { offset, length: 1 }
            });
            (spans.collect::<Vec<_>>(), buckets.values().copied().collect::<Vec<_>>())
        };
        let (positive_spans, positive_buckets) = spans(&self.positive);
        let (negative_spans, negative_buckets) = spans(&self.negative);
        Histogram {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: self.zero_count,
            count: self.count,
            sum: self.sum,
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            ..Histogram::default()
        }
    }

    /// Whether both say the same, but for rounding; a bucket that is not there is an empty one.
    pub(super) fn is_close(&self, other: &Self) -> bool {
        let scale = self.count.abs().max(self.sum.abs()).max(1.0);
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * scale;
        let same = |a: &Buckets, b: &Buckets| {
            let count = |of: &Buckets, index: &i32| of.get(index).copied().unwrap_or(0.0);
            a.keys().chain(b.keys()).all(|index| close(count(a, index), count(b, index)))
        };
        self.schema == other.schema
            && (self.zero_threshold - other.zero_threshold).abs() <= 1e-12 * self.zero_threshold
            && close(self.zero_count, other.zero_count)
            && close(self.count, other.count)
            && close(self.sum, other.sum)
            && same(&self.positive, &other.positive)
            && same(&self.negative, &other.negative)
    }
}

/// A series of histograms.
pub(super) struct Series {
    pub(super) labels: Labels,
    pub(super) samples: Vec<(Millis, Naive)>,
}

/// Two metrics of up to four series each: counters that observe, restart, lose resolution and widen their zero bucket.
pub(super) fn data(dice: &mut Dice) -> Vec<Series> {
    let mut all = Vec::new();
    for name in ["g", "h"] {
        for i in 0..=dice.below(4) {
            let pairs = [("__name__", name.to_owned()), ("i", i.to_string()), ("x", dice.below(2).to_string())];
            let labels: Labels = pairs.map(|(name, value)| (name.to_owned(), value)).into();
            let fresh = |dice: &mut Dice| Naive {
                schema: i32::try_from(dice.below(5)).unwrap() - 1,
                zero_threshold: [0.0, 0.000_976_562_5, 0.25][dice.below(3)],
                ..Naive::default()
            };
            let mut now = fresh(dice);
            let (mut at, mut samples) = (0_i64, Vec::new());
            for _ in 0..dice.below(30) {
                at += [15_000, 15_000, 14_500, 31_000, 400_000][dice.below(5)];
                now = match dice.below(14) {
                    0 => fresh(dice),
                    1 if now.schema > -1 => now.reduced(now.schema - 1),
                    2 => now.widened([0.000_976_562_5, 0.25, 1.0][dice.below(3)]),
                    _ => now,
                };
                for _ in 0..dice.below(6) {
                    observe(&mut now, dice);
                }
                samples.push((at, now.clone()));
            }
            all.push(Series { labels, samples });
        }
    }
    all
}

/// Some observations in one of the buckets. None lies in the zero bucket's part of a bucket.
fn observe(h: &mut Naive, dice: &mut Dice) {
    let observed = 1.0 + f64::from(u8::try_from(dice.below(40)).unwrap());
    h.count += observed;
    let index = i32::try_from(dice.below(14)).unwrap() - 5;
    if dice.below(6) == 0 || lower(h.schema, index) < h.zero_threshold {
        h.zero_count += observed;
        return;
    }
    let is_negative = dice.below(4) == 0;
    h.sum += observed * upper(h.schema, index) * if is_negative { -1.0 } else { 1.0 };
    let buckets = if is_negative { &mut h.negative } else { &mut h.positive };
    *buckets.entry(index).or_default() += observed;
}

/// An expression over histograms.
pub(super) enum Expr {
    Selector(&'static str, Option<&'static str>),
    /// Per second, or whole; the range.
    Rate(&'static str, bool, i64),
    /// `sum` or `avg`, of groups of `x` or of all.
    Aggregate {
        is_avg: bool,
        by_x: bool,
        of: Box<Expr>,
    },
    Times(f64, Box<Expr>),
    Over(Box<Expr>, f64),
    /// `+` or `-`.
    Join(Box<Expr>, f64, Box<Expr>),
}

/// Which operators between two vectors an expression may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Joins {
    /// Below `histogram_sum` and its like no buckets are read, and hints say where counters restarted: two that contradict
    /// each other have no sum.
    None,
    /// Of counts below zero there is no quantile.
    Plus,
    All,
}

const LOOKBACK: i64 = 300_000;

impl Expr {
    /// A random one.
    pub(super) fn new(dice: &mut Dice, depth: usize, joins: Joins) -> Self {
        let name = if dice.below(2) == 0 { "g" } else { "h" };
        let inner = |dice: &mut Dice| Box::new(Self::new(dice, depth - 1, joins));
        let factor = |dice: &mut Dice| [2.0, 0.5, 3.0, 0.1][dice.below(4)];
        match dice.below(if depth == 0 { 5 } else { 10 + usize::from(joins != Joins::None) }) {
            0 | 1 => Self::Selector(name, [None, None, Some("0"), Some("1")][dice.below(4)]),
            2..=4 => Self::Rate(name, dice.below(2) == 0, [60_000, 150_000, 600_000][dice.below(3)]),
            5..=7 => Self::Aggregate { is_avg: dice.below(2) == 0, by_x: dice.below(2) == 0, of: inner(dice) },
            8 => Self::Times(factor(dice), inner(dice)),
            9 => Self::Over(inner(dice), factor(dice)),
            _ => {
                let left = inner(dice);
                let sign = if joins == Joins::All && dice.below(2) == 0 { -1.0 } else { 1.0 };
                Self::Join(left, sign, inner(dice))
            }
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Selector(name, None) => (*name).to_owned(),
            Self::Selector(name, Some(x)) => format!("{name}{{x=\"{x}\"}}"),
            Self::Rate(name, per_second, range) => {
                format!("{}({name}[{range}ms])", if *per_second { "rate" } else { "increase" })
            }
            Self::Aggregate { is_avg, by_x, of } => {
                format!("{}{} ({})", if *is_avg { "avg" } else { "sum" }, if *by_x { " by (x)" } else { "" }, of.text())
            }
            Self::Times(factor, of) => format!("({factor} * {})", of.text()),
            Self::Over(of, divisor) => format!("({} / {divisor})", of.text()),
            Self::Join(left, sign, right) => {
                format!("({} {} {})", left.text(), if *sign < 0.0 { "-" } else { "+" }, right.text())
            }
        }
    }

    /// Its values at one time. No two series become one: rows of both names are never together.
    pub(super) fn value(&self, data: &[Series], at: Millis) -> Vector {
        let of_name = |name: &'static str| data.iter().filter(move |s| s.labels["__name__"] == name);
        match self {
            Self::Selector(name, x) => {
                let fits = |s: &&Series| x.is_none_or(|x| s.labels["x"] == x);
                let last = |s: &Series| {
                    let (time, h) = s.samples.iter().rev().find(|(time, _)| *time <= at)?;
                    (*time > at - LOOKBACK).then(|| (s.labels.clone(), h.clone()))
                };
                of_name(name).filter(fits).filter_map(last).collect()
            }
            Self::Rate(name, per_second, range) => {
                let rates = of_name(name).filter_map(|s| {
                    let inside = s.samples.iter().filter(|(time, _)| *time > at - range && *time <= at);
                    let h = rate(&inside.collect::<Vec<_>>(), (at - range, at), *per_second)?;
                    Some((nameless(&s.labels), h))
                });
                rates.collect()
            }
            Self::Aggregate { is_avg, by_x, of } => {
                let mut groups: BTreeMap<Labels, Vec<Naive>> = BTreeMap::new();
                for (labels, h) in of.value(data, at) {
                    let group = labels.into_iter().filter(|(name, _)| *by_x && name == "x").collect();
                    groups.entry(group).or_default().push(h);
                }
                let joined = groups.into_iter().map(|(labels, all)| {
                    let count = f64::from(u32::try_from(all.len()).unwrap());
                    let sum = all.into_iter().reduce(|a, b| a.plus(&b, 1.0)).unwrap();
                    (labels, if *is_avg { sum.times(1.0 / count) } else { sum })
                });
                joined.collect()
            }
            Self::Times(factor, of) | Self::Over(of, factor) => {
                let factor = if matches!(self, Self::Over(..)) { 1.0 / factor } else { *factor };
                let all = of.value(data, at);
                all.into_iter().map(|(labels, h)| (nameless(&labels), h.times(factor))).collect()
            }
            Self::Join(left, sign, right) => {
                let (left, right) = (left.value(data, at), right.value(data, at));
                let right: Vector = right.into_iter().map(|(labels, h)| (nameless(&labels), h)).collect();
                let joined = left.into_iter().filter_map(|(labels, h)| {
                    let labels = nameless(&labels);
                    let other = right.get(&labels)?;
                    Some((labels, h.plus(other, *sign)))
                });
                joined.collect()
            }
        }
    }
}

fn nameless(labels: &Labels) -> Labels {
    labels.iter().filter(|(name, _)| *name != "__name__").map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// What was added over the range, stretched to its ends where samples come near them and no further than to zero.
fn rate(samples: &[&(Millis, Naive)], (start, end): (Millis, Millis), per_second: bool) -> Option<Naive> {
    let [(first_at, first), (_, second), ..] = *samples else { return None };
    let (last_at, last) = samples.last()?;
    // Of a first one before a restart nothing is needed.
    let begin =
        if second.restarted(first) { Naive { schema: second.schema, ..Naive::default() } } else { first.clone() };
    let middle = samples[1..samples.len() - 1].iter().map(|(_, h)| h.schema);
    let schema = middle.chain([begin.schema, last.schema]).min()?;
    let mut grown = last.reduced(schema).plus(&begin, -1.0);
    let mut before = &begin;
    for (_, now) in &samples[1..] {
        if now.restarted(before) {
            grown = grown.plus(before, 1.0);
        }
        before = now;
    }
    let seconds = |from: Millis, to: Millis| (to - from) as f64 / 1000.0;
    let sampled = seconds(*first_at, *last_at);
    let between = sampled / (samples.len() - 1) as f64;
    let reach = |gap: f64| if gap >= between * 1.1 { between / 2.0 } else { gap };
    let to_start = reach(seconds(start, *first_at));
    let to_zero = if grown.count > 0.0 { sampled * (first.count / grown.count) } else { to_start };
    let factor = (sampled + to_start.min(to_zero) + reach(seconds(*last_at, end))) / sampled;
    Some(grown.times(if per_second { factor / seconds(start, end) } else { factor }))
}
