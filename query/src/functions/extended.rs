//! `anchored` and `smoothed`: the range's ends are taken from samples around them, and nothing is stretched.
//!
//! Anchored, the newest sample at or before the start stands for the start, and the last one for the end. Smoothed,
//! the values at both ends lie on the line between the samples around them. Restarts of a counter on such a line are
//! a climb from zero.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::{Histogram, ResetHint};

use super::rate::{Mode, note_joined};
use super::{HistogramOperation, Note, Notes, Point, Window};
use crate::histogram::{add, compact, detect_reset, divide, multiply, sub};
use crate::parse::ast::Extension;

pub(super) fn rate(w: &Window<'_>, mode: Mode, notes: &mut Notes) -> Option<Point> {
    if w.histograms.is_empty() { float_rate(w, mode) } else { histogram_rate(w, mode, notes) }
}

/// The samples that matter: from the one for the start to the one for the end.
struct Ends {
    first: usize,
    last: usize,
    smoothed: bool,
}

fn ends(w: &Window<'_>, times: &[Millis]) -> Option<Ends> {
    let newest = times.len().checked_sub(1)?;
    let smoothed = w.extension == Extension::Smoothed;
    let first = times[..newest].partition_point(|t| *t <= w.range_start).saturating_sub(1);
    let last = if smoothed { times[..newest].partition_point(|t| *t < w.range_end) } else { newest };
    if times[last] <= w.range_start || (smoothed && times[first] > w.range_end) {
        return None;
    }
    Some(Ends { first, last, smoothed })
}

/// Share of the way from `a` to `b` at which `t` lies.
fn share(a: Millis, b: Millis, t: Millis) -> f64 {
    (t - a) as f64 / (b - a) as f64
}

fn interpolated(w: &Window<'_>, i: usize, t: Millis, counter: bool) -> f64 {
    let (mut a, b) = (w.values[i], w.values[i + 1]);
    if counter && b < a {
        a = 0.0;
    }
    a + (b - a) * (t - w.times[i]) as f64 / (w.times[i + 1] - w.times[i]) as f64
}

fn float_rate(w: &Window<'_>, mode: Mode) -> Option<Point> {
    let Ends { mut first, last, smoothed } = ends(w, w.times)?;
    let left = if smoothed && w.times[first] < w.range_start {
        interpolated(w, first, w.range_start, mode.counter)
    } else {
        w.values[first]
    };
    let right = if smoothed && last > 0 && w.times[last] > w.range_end {
        interpolated(w, last - 1, w.range_end, mode.counter)
    } else {
        w.values[last]
    };
    let mut difference = right - left;
    if mode.counter {
        // Samples strictly inside: the ends have made up for the restarts around them.
        let mut end = last + 1;
        if w.times[first] <= w.range_start {
            first += 1;
        }
        if w.times[last] >= w.range_end {
            end -= 1;
        }
        let (mut before, mut lost) = (left, 0.0);
        for v in w.values.get(first..end).unwrap_or_default() {
            if *v < before {
                lost += before;
            }
            before = *v;
        }
        if right < before {
            lost += before;
        }
        difference += lost;
    }
    Some(Point::Float(if mode.per_second { difference / w.seconds() } else { difference }))
}

fn histogram_rate(w: &Window<'_>, mode: Mode, notes: &mut Notes) -> Option<Point> {
    let ends = ends(w, w.histogram_times)?;
    let used = &w.histograms[ends.first..=ends.last];
    for h in used {
        if h.is_custom() != used[0].is_custom() {
            notes.add(Note::MixedExponentialCustom);
            return None;
        }
        if mode.counter && h.reset_hint == ResetHint::Gauge {
            notes.add(Note::HistogramNotCounter);
        }
    }
    let left = if ends.smoothed && w.histogram_times[ends.first] < w.range_start {
        interpolated_histogram(w, ends.first, w.range_start, mode, notes)?
    } else {
        Arc::clone(&w.histograms[ends.first])
    };
    let right = if ends.smoothed && ends.last > 0 && w.histogram_times[ends.last] > w.range_end {
        interpolated_histogram(w, ends.last - 1, w.range_end, mode, notes)?
    } else {
        Arc::clone(&w.histograms[ends.last])
    };
    if !mode.counter && (left.reset_hint != ResetHint::Gauge || right.reset_hint != ResetHint::Gauge) {
        notes.add(Note::HistogramNotGauge);
    }
    let mut h = Histogram::clone(&right);
    note_joined(sub(&mut h, &left), HistogramOperation::Subtraction, notes)?;
    let lost = if mode.counter { lost_to_restarts(w, &ends, &left, &right, notes)? } else { None };
    if let Some(lost) = lost {
        note_joined(add(&mut h, &lost), HistogramOperation::Addition, notes)?;
    }
    if mode.per_second {
        divide(&mut h, w.seconds());
    }
    h.reset_hint = ResetHint::Gauge;
    compact(&mut h);
    Some(Point::Histogram(Arc::new(h)))
}

/// The histogram at `t` on the line from sample `i` to the next.
fn interpolated_histogram(
    w: &Window<'_>,
    i: usize,
    t: Millis,
    mode: Mode,
    notes: &mut Notes,
) -> Option<Arc<Histogram>> {
    let (a, b) = (&w.histograms[i], &w.histograms[i + 1]);
    let (from, to) = (w.histogram_times[i], w.histogram_times[i + 1]);
    if t == from {
        return Some(Arc::clone(a));
    }
    if t == to {
        return Some(Arc::clone(b));
    }
    let share = share(from, to, t);
    let mut h = Histogram::clone(b);
    if mode.counter && detect_reset(b, a) {
        multiply(&mut h, share);
        return Some(Arc::new(h));
    }
    note_joined(sub(&mut h, a), HistogramOperation::Subtraction, notes)?;
    multiply(&mut h, share);
    note_joined(add(&mut h, a), HistogramOperation::Addition, notes)?;
    Some(Arc::new(h))
}

/// What restarts between the ends took away; the outer `None`: it cannot be told.
fn lost_to_restarts(
    w: &Window<'_>,
    ends: &Ends,
    left: &Arc<Histogram>,
    right: &Histogram,
    notes: &mut Notes,
) -> Option<Option<Histogram>> {
    let mut from = ends.first + 1;
    let mut before = left;
    let outside = ends.smoothed && w.histogram_times[ends.first] < w.range_start;
    if outside && detect_reset(&w.histograms[ends.first + 1], &w.histograms[ends.first]) {
        // The left end lies on the climb after that restart already.
        before = &w.histograms[ends.first + 1];
        from += 1;
    }
    // The last sample is not among the inner ones: the right end has its hint, and would find the same restart twice.
    if from > ends.last {
        return Some(None);
    }
    let mut lost: Option<Histogram> = None;
    let mut lose = |h: &Histogram, notes: &mut Notes| match &mut lost {
        None => {
            lost = Some(h.clone());
            Some(())
        }
        Some(lost) => note_joined(add(lost, h), HistogramOperation::Addition, notes),
    };
    for now in &w.histograms[from..ends.last] {
        if detect_reset(now, before) {
            lose(before, notes)?;
        }
        before = now;
    }
    if detect_reset(right, before) {
        lose(before, notes)?;
    }
    Some(lost)
}
