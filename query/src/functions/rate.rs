//! `rate`, `increase`, `delta`, and of the last two samples `irate` and `idelta`.
//!
//! The difference of the last and first sample, plus what each restart of a counter took away, is stretched to the
//! whole range: to its end where samples come that near, else by half their distance, and never below a counter's
//! zero. Where the first sample knows when its counter started, that takes the place of stretching to the left.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::{Histogram, ResetHint};

use super::reset::{Started, overlaps, restarted, start_at};
use super::{HistogramOperation, Note, Notes, Point, Window, extended, seconds};
use crate::histogram::{Incompatible, Joined, add, compact, copy_to_schema, detect_reset, divide, multiply, sub};
use crate::parse::ast::Extension;

/// Which of the three.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    /// Whether restarts are made up for.
    pub(super) counter: bool,
    /// Whether the answer is per second.
    pub(super) per_second: bool,
}

pub(super) fn rate(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    extrapolated(w, Mode { counter: true, per_second: true }, notes)
}

pub(super) fn increase(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    extrapolated(w, Mode { counter: true, per_second: false }, notes)
}

pub(super) fn delta(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    extrapolated(w, Mode { counter: false, per_second: false }, notes)
}

fn extrapolated(w: &Window<'_>, mode: Mode, notes: &mut Notes) -> Option<Point> {
    if w.is_mixed() {
        notes.add(Note::MixedFloatsHistograms);
        return None;
    }
    if w.extension != Extension::None {
        return extended::rate(w, mode, notes);
    }
    if w.histograms.is_empty() { float_rate(w, mode, notes) } else { histogram_rate(w, mode, notes) }
}

/// Where samples lie in a range, to stretch a difference to it.
pub(super) struct Stretch {
    /// Time of the first sample.
    pub(super) first: Millis,
    /// Time of the last one.
    pub(super) last: Millis,
    /// Samples less one.
    pub(super) gaps: usize,
    /// Start of the first sample's counter where that lies inside the range before the sample.
    pub(super) start: Option<Millis>,
    /// Both ends of the range.
    pub(super) range: (Millis, Millis),
}

impl Stretch {
    /// `None`: one sample that knows no start says nothing.
    fn new(w: &Window<'_>, mode: Mode, times: &[Millis], starts: &[Millis]) -> Option<Self> {
        let (first, last) = (*times.first()?, *times.last()?);
        let start = start_at(starts, 0);
        let inside = mode.counter && start != 0 && start > w.range_start && start < first;
        let range = (w.range_start, w.range_end);
        let start = inside.then_some(start);
        (inside || times.len() > 1).then(|| Self { first, last, gaps: times.len() - 1, start, range })
    }

    /// What to multiply the difference by. `zero`: the counter's first value and the difference, where the counter may
    /// have been at 0 inside the range.
    #[inline]
    pub(super) fn factor(&self, mode: Mode, zero: Option<(f64, f64)>) -> f64 {
        let mut sampled = seconds(self.last - self.first);
        let gap = if self.gaps > 0 { sampled / self.gaps as f64 } else { 0.0 };
        let near = gap * 1.1;
        let mut before = seconds(self.first - self.range.0);
        let mut after = seconds(self.range.1 - self.last);
        if let Some(start) = self.start {
            before = 0.0;
            sampled = seconds(self.last - start);
        } else {
            if before >= near {
                before = gap / 2.0;
            }
            if let Some((value, difference)) = zero {
                let to_zero = sampled * (value / difference);
                if to_zero < before {
                    before = to_zero;
                }
            }
        }
        if after >= near {
            after = gap / 2.0;
        }
        let factor = if sampled == 0.0 { 1.0 } else { (sampled + before + after) / sampled };
        if mode.per_second { factor / seconds(self.range.1 - self.range.0) } else { factor }
    }
}

fn float_rate(w: &Window<'_>, mode: Mode, notes: &mut Notes) -> Option<Point> {
    let (first, last) = (*w.values.first()?, *w.values.last()?);
    let stretch = Stretch::new(w, mode, w.times, w.starts)?;
    let mut difference = last - first;
    if mode.counter {
        difference =
            if w.starts.is_empty() { with_restarts(w.values, difference) } else { with_starts(w, difference, notes) };
    }
    if stretch.start.is_some() {
        difference += first;
    }
    let zero = (mode.counter && difference > 0.0 && first >= 0.0).then_some((first, difference));
    Some(Point::Float(difference * stretch.factor(mode, zero)))
}

/// Adds what restarts took away, one after the other as upstream does. Restarts are rare: most runs of samples are
/// only looked over, several at a time.
#[inline]
fn with_restarts(values: &[f64], mut difference: f64) -> f64 {
    const RUN: usize = 16;
    let mut at = 0;
    while at + 1 < values.len() {
        let end = (at + RUN).min(values.len() - 1);
        let falls = values[at..=end].windows(2).filter(|pair| pair[1] < pair[0]);
        if falls.clone().count() > 0 {
            falls.for_each(|pair| difference += pair[0]);
        }
        at = end;
    }
    difference
}

/// The difference with what restarts took away, where samples say when their counter started.
fn with_starts(w: &Window<'_>, mut difference: f64, notes: &mut Notes) -> f64 {
    let mut warned = false;
    for i in 1..w.values.len() {
        let before = Started { at: w.times[i - 1], start: start_at(w.starts, i - 1) };
        let now = Started { at: w.times[i], start: start_at(w.starts, i) };
        if !warned && overlaps(before, now.start) {
            notes.add(Note::StartTimeOverlap);
            warned = true;
        }
        if w.values[i] < w.values[i - 1] || restarted(before, now) {
            difference += w.values[i - 1];
        }
    }
    difference
}

fn histogram_rate(w: &Window<'_>, mode: Mode, notes: &mut Notes) -> Option<Point> {
    let first = w.histograms.first()?;
    let starts = if mode.counter { w.histogram_starts } else { &[] };
    let mut difference =
        if w.histograms.len() > 1 { Some(histogram_difference(w, starts, mode, notes)?) } else { None };
    let stretch = Stretch::new(w, mode, w.histogram_times, starts)?;
    if stretch.start.is_some() {
        match &mut difference {
            None => difference = Some(Histogram::clone(first)),
            Some(h) => note_joined(add(h, first), HistogramOperation::Addition, notes)?,
        }
    }
    let mut h = difference?;
    let zero = (mode.counter && h.count > 0.0 && first.count >= 0.0).then_some((first.count, h.count));
    multiply(&mut h, stretch.factor(mode, zero));
    Some(Point::Histogram(Arc::new(h)))
}

/// Says what is to be said about two histograms put together; `None`: they cannot be.
pub(super) fn note_joined(
    joined: Result<Joined, Incompatible>,
    operation: HistogramOperation,
    notes: &mut Notes,
) -> Option<()> {
    match joined {
        Ok(joined) => {
            if joined.reconciled {
                notes.add(Note::MismatchedCustomBuckets(operation));
            }
            Some(())
        }
        Err(Incompatible) => {
            notes.add(Note::MixedExponentialCustom);
            None
        }
    }
}

/// Last less first, with what restarts took away; of at least two histograms.
fn histogram_difference(w: &Window<'_>, starts: &[Millis], mode: Mode, notes: &mut Notes) -> Option<Histogram> {
    let all = w.histograms;
    let (last, inner) = (&all[all.len() - 1], &all[1..all.len() - 1]);
    let at = |i: usize| Started { at: w.histogram_times[i], start: start_at(starts, i) };
    // Remarks are made only once it is certain that the window has an answer, as upstream does.
    let mut not_counter = mode.counter && [&all[0], last].iter().any(|h| h.reset_hint == ResetHint::Gauge);

    // A first histogram that the second one restarted from is not looked at: its layout must not matter.
    let restarted_at_once = mode.counter && (restarted(at(0), at(1)) || detect_reset(&all[1], &all[0]));
    let empty = restarted_at_once.then(|| {
        Arc::new(Histogram {
            schema: all[1].schema,
            custom_values: all[1].custom_values.clone(),
            ..Histogram::default()
        })
    });
    let mut before = empty.as_ref().unwrap_or(&all[0]);
    let custom = before.is_custom();
    if last.is_custom() != custom {
        if not_counter {
            notes.add(Note::HistogramNotCounter);
        }
        notes.add(Note::MixedExponentialCustom);
        return None;
    }
    let mut schema = last.schema.min(before.schema);
    if mode.counter {
        for h in inner {
            not_counter |= h.reset_hint == ResetHint::Gauge;
            schema = schema.min(h.schema);
            if h.is_custom() != custom {
                notes.add(Note::MixedExponentialCustom);
                return None;
            }
        }
    }
    if not_counter {
        notes.add(Note::HistogramNotCounter);
    }
    let mut h = copy_to_schema(last, schema);
    note_joined(sub(&mut h, before), HistogramOperation::Subtraction, notes)?;
    if mode.counter {
        let mut warned = false;
        for (i, now) in all.iter().enumerate().skip(1) {
            if !warned && i < starts.len() && overlaps(at(i - 1), at(i).start) {
                notes.add(Note::StartTimeOverlap);
                warned = true;
            }
            if restarted(at(i - 1), at(i)) || detect_reset(now, before) {
                note_joined(add(&mut h, before), HistogramOperation::Addition, notes)?;
            }
            before = now;
        }
    } else if all[0].reset_hint != ResetHint::Gauge || last.reset_hint != ResetHint::Gauge {
        notes.add(Note::HistogramNotGauge);
    }
    h.reset_hint = ResetHint::Gauge;
    compact(&mut h);
    Some(h)
}

/// One of the last two samples.
struct Recent<'a> {
    time: Started,
    value: Result<f64, &'a Arc<Histogram>>,
}

fn float_at<'a>(w: &Window<'a>, i: usize) -> Recent<'a> {
    Recent { time: Started { at: w.times[i], start: start_at(w.starts, i) }, value: Ok(w.values[i]) }
}

fn histogram_at<'a>(w: &Window<'a>, i: usize) -> Recent<'a> {
    let time = Started { at: w.histogram_times[i], start: start_at(w.histogram_starts, i) };
    Recent { time, value: Err(&w.histograms[i]) }
}

/// The two newest samples, whatever they are, the older first.
fn last_two<'a>(w: &Window<'a>) -> Option<(Recent<'a>, Recent<'a>)> {
    let (mut f, mut h) = (w.times.len(), w.histogram_times.len());
    let mut newest = || {
        let float = match (f.checked_sub(1), h.checked_sub(1)) {
            (None, None) => return None,
            (Some(a), Some(b)) => w.times[a] > w.histogram_times[b],
            (Some(_), None) => true,
            (None, Some(_)) => false,
        };
        if float {
            f -= 1;
            Some(float_at(w, f))
        } else {
            h -= 1;
            Some(histogram_at(w, h))
        }
    };
    let last = newest()?;
    Some((newest()?, last))
}

pub(super) fn irate(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    instant(w, true, notes)
}

pub(super) fn idelta(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    instant(w, false, notes)
}

fn instant(w: &Window<'_>, counter: bool, notes: &mut Notes) -> Option<Point> {
    let (before, last) = last_two(w)?;
    let interval = seconds(last.time.at - before.time.at);
    if interval == 0.0 {
        return None;
    }
    let restart = counter && restarted(before.time, last.time);
    match (before.value, last.value) {
        (Ok(a), Ok(b)) => {
            let difference = if counter && (b < a || restart) { b } else { b - a };
            Some(Point::Float(if counter { difference / interval } else { difference }))
        }
        (Err(a), Err(b)) => {
            let gauges = [a, b].iter().filter(|h| h.reset_hint == ResetHint::Gauge).count();
            if counter && gauges > 0 {
                notes.add(Note::HistogramNotCounter);
            } else if !counter && gauges < 2 {
                notes.add(Note::HistogramNotGauge);
            }
            let mut h = Histogram::clone(b);
            if !counter || !(restart || detect_reset(b, a)) {
                note_joined(sub(&mut h, a), HistogramOperation::Subtraction, notes)?;
            }
            h.reset_hint = ResetHint::Gauge;
            compact(&mut h);
            if counter {
                divide(&mut h, interval);
            }
            Some(Point::Histogram(Arc::new(h)))
        }
        _ => {
            notes.add(Note::MixedFloatsHistograms);
            None
        }
    }
}
