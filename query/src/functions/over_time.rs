//! `*_over_time`: what a range held.
//!
//! Those that can only be made of floats leave histograms out and say so; with histograms alone they have no answer.

use std::sync::Arc;

use engram_model::Millis;

use super::merge;
use super::quantile::of_values;
use super::sum::{Mean, kahan, sum};
use super::{Note, Notes, Point, Window, seconds};

/// The window's floats where there are any; speaks of histograms left out.
fn floats<'a>(w: &Window<'a>, notes: &mut Notes) -> Option<&'a [f64]> {
    if w.values.is_empty() {
        return None;
    }
    if !w.histograms.is_empty() {
        notes.add(Note::HistogramIgnoredInMixedRange);
    }
    Some(w.values)
}

#[allow(clippy::unnecessary_wraps, reason = "one of the table's kernels")]
pub(super) fn count_over_time(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    Some(Point::Float((w.times.len() + w.histogram_times.len()) as f64))
}

#[allow(clippy::unnecessary_wraps, reason = "one of the table's kernels")]
pub(super) fn present_over_time(_w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    Some(Point::Float(1.0))
}

pub(super) fn sum_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    if w.histograms.is_empty() {
        return Some(Point::Float(sum(w.values)));
    }
    if w.is_mixed() {
        notes.add(Note::MixedFloatsHistograms);
        return None;
    }
    merge::sum(w, notes)
}

pub(super) fn avg_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    if w.is_mixed() {
        notes.add(Note::MixedFloatsHistograms);
        return None;
    }
    let Some((first, rest)) = w.values.split_first() else { return merge::mean(w, notes) };
    let mut mean = Mean::new(*first);
    for v in rest {
        mean.add(*v);
    }
    Some(Point::Float(mean.get()))
}

/// Place of the value that wins against all before it. NaN loses against everything.
#[inline]
fn best(values: &[f64], wins: impl Fn(f64, f64) -> bool) -> usize {
    let (mut at, mut best) = (0, f64::NAN);
    for (i, v) in values.iter().enumerate() {
        if wins(*v, best) || best.is_nan() {
            (at, best) = (i, *v);
        }
    }
    at
}

/// The lowest value, NaN only where there is nothing else. Four chains at once: one compare does not wait for the last.
fn lowest(values: &[f64], sign: f64) -> f64 {
    let less = |v: f64, than: f64| if v < than { v } else { than };
    let (fours, rest) = values.as_chunks::<4>();
    let mut lanes = [f64::INFINITY; 4];
    for four in fours {
        for (lane, v) in lanes.iter_mut().zip(four) {
            *lane = less(sign * v, *lane);
        }
    }
    let found = rest.iter().map(|v| sign * v).chain(lanes).fold(f64::INFINITY, |best, v| less(v, best));
    if found == f64::INFINITY && values.iter().all(|v| v.is_nan()) { f64::NAN } else { sign * found }
}

pub(super) fn min_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    floats(w, notes).map(|values| Point::Float(lowest(values, 1.0)))
}

pub(super) fn max_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    floats(w, notes).map(|values| Point::Float(lowest(values, -1.0)))
}

/// Of equal ones the last.
pub(super) fn ts_of_min_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    floats(w, notes).map(|values| time(w.times[best(values, |v, best| v <= best)]))
}

/// Of equal ones the last.
pub(super) fn ts_of_max_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    floats(w, notes).map(|values| time(w.times[best(values, |v, best| v >= best)]))
}

fn time(at: Millis) -> Point {
    Point::Float(seconds(at))
}

pub(super) fn ts_of_first_over_time(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    w.times.first().into_iter().chain(w.histogram_times.first()).min().map(|at| time(*at))
}

pub(super) fn ts_of_last_over_time(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    // Upstream starts from 0 for what is not there, which shows before 1970.
    let of = |times: &[Millis]| times.last().copied().unwrap_or(0);
    (!w.times.is_empty() || !w.histogram_times.is_empty()).then(|| time(of(w.times).max(of(w.histogram_times))))
}

pub(super) fn first_over_time(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    let float = match (w.times.first(), w.histogram_times.first()) {
        (Some(f), Some(h)) => f < h,
        (float, _) => float.is_some(),
    };
    if float { w.values.first().map(|v| Point::Float(*v)) } else { w.histograms.first().map(histogram) }
}

pub(super) fn last_over_time(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    let float = match (w.times.last(), w.histogram_times.last()) {
        (Some(f), Some(h)) => f > h,
        (float, _) => float.is_some(),
    };
    if float { w.values.last().map(|v| Point::Float(*v)) } else { w.histograms.last().map(histogram) }
}

fn histogram(h: &Arc<engram_model::histogram::Histogram>) -> Point {
    Point::Histogram(Arc::clone(h))
}

/// Welford's method, each running value with what rounding lost.
fn variance(values: &[f64]) -> f64 {
    let (mut count, mut mean, mut squares) = (0.0, (0.0, 0.0), (0.0, 0.0));
    for v in values {
        count += 1.0;
        let delta = v - (mean.0 + mean.1);
        mean = kahan(delta / count, mean.0, mean.1);
        squares = kahan(delta * (v - (mean.0 + mean.1)), squares.0, squares.1);
    }
    (squares.0 + squares.1) / count
}

pub(super) fn stdvar_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    floats(w, notes).map(|values| Point::Float(variance(values)))
}

pub(super) fn stddev_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    floats(w, notes).map(|values| Point::Float(variance(values).sqrt()))
}

pub(super) fn quantile_over_time(w: &Window<'_>, params: &[f64], notes: &mut Notes) -> Option<Point> {
    let q = *params.first()?;
    if w.values.is_empty() {
        return None;
    }
    if !(0.0..=1.0).contains(&q) {
        notes.add(Note::InvalidQuantile(q));
    }
    floats(w, notes).map(|values| Point::Float(of_values(q, &mut values.to_vec())))
}

/// Median of the distances from the median. A NaN among the values has no distance: the answer is NaN.
pub(super) fn mad_over_time(w: &Window<'_>, _params: &[f64], notes: &mut Notes) -> Option<Point> {
    let values = floats(w, notes)?;
    if values.iter().any(|v| v.is_nan()) {
        return Some(Point::Float(f64::NAN));
    }
    let mut values = values.to_vec();
    let median = of_values(0.5, &mut values);
    for v in &mut values {
        *v = (*v - median).abs();
    }
    Some(Point::Float(of_values(0.5, &mut values)))
}
