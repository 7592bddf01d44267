//! `resets` and `changes`, and what start timestamps say about a counter's restart.
//!
//! Both walk floats and histograms of a window in one order of time; a change of kind counts as a reset and a change.

use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::Histogram;

use super::{Notes, Point, Window};
use crate::histogram::{detect_reset, equal};
use crate::parse::ast::Extension;

/// A sample's time and the start its counter claims (0: unknown).
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    pub(super) at: Millis,
    pub(super) start: Millis,
}

/// Whether the starts say that the counter restarted between two samples.
///
/// A start at or after its own sample says nothing. One that lies at the sample before is a restart only where that
/// sample knew its own start: a delta series does that, a counter of unknown start does it too.
#[inline]
pub(super) fn restarted(before: Started, now: Started) -> bool {
    if now.start == 0 || now.start >= now.at || now.start < before.at {
        return false;
    }
    now.start > before.at || (before.start < before.at && before.start != 0)
}

/// Whether a sample claims to have started before the one before it, and not where that one started: the data is
/// inconsistent.
#[inline]
pub(super) fn overlaps(before: Started, start: Millis) -> bool {
    start != 0 && start < before.at && start != before.start
}

/// The starts of a window beside its times, 0 where there is none.
#[inline]
pub(super) fn start_at(starts: &[Millis], index: usize) -> Millis {
    starts.get(index).copied().unwrap_or(0)
}

enum Seen<'a> {
    Float(f64),
    Histogram(&'a Arc<Histogram>),
}

/// Where walking begins: with `anchored` at the newest sample at or before the range's start, else at the first.
/// `None`: nothing lies inside.
fn first_indexes(w: &Window<'_>) -> Option<(usize, usize)> {
    if w.extension != Extension::Anchored {
        return Some((0, 0));
    }
    let floats = w.times.partition_point(|t| *t <= w.range_start);
    let histograms = w.histogram_times.partition_point(|t| *t <= w.range_start);
    if floats >= w.times.len() && histograms >= w.histogram_times.len() {
        return None;
    }
    let last_float = floats.checked_sub(1).map(|at| w.times[at]);
    let last_histogram = histograms.checked_sub(1).map(|at| w.histogram_times[at]);
    Some(match (last_float, last_histogram) {
        (None, None) => (0, 0),
        (Some(f), Some(h)) if f < h => (floats, histograms - 1),
        (Some(_), _) => (floats - 1, histograms),
        (None, Some(_)) => (floats, histograms - 1),
    })
}

/// Counts the neighbours that differ.
fn count(w: &Window<'_>, differ: impl Fn(&(Started, Seen<'_>), &(Started, Seen<'_>)) -> bool) -> Option<Point> {
    let (mut f, mut h) = first_indexes(w)?;
    let mut before: Option<(Started, Seen<'_>)> = None;
    let mut found = 0_u32;
    loop {
        let float_first = match (w.times.get(f), w.histogram_times.get(h)) {
            (None, None) => return Some(Point::Float(f64::from(found))),
            (Some(a), Some(b)) => a <= b,
            (Some(_), None) => true,
            (None, Some(_)) => false,
        };
        let now = if float_first {
            f += 1;
            let started = Started { at: w.times[f - 1], start: start_at(w.starts, f - 1) };
            (started, Seen::Float(w.values[f - 1]))
        } else {
            h += 1;
            let started = Started { at: w.histogram_times[h - 1], start: start_at(w.histogram_starts, h - 1) };
            (started, Seen::Histogram(&w.histograms[h - 1]))
        };
        if before.as_ref().is_some_and(|before| differ(before, &now)) {
            found += 1;
        }
        before = Some(now);
    }
}

pub(super) fn resets(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    if w.histograms.is_empty() && w.starts.is_empty() {
        let (from, _) = first_indexes(w)?;
        let found = w.values[from..].windows(2).filter(|v| v[1] < v[0]).count();
        return Some(Point::Float(found as f64));
    }
    count(w, |before, now| match (&before.1, &now.1) {
        (Seen::Float(a), Seen::Float(b)) => b < a || restarted(before.0, now.0),
        (Seen::Histogram(a), Seen::Histogram(b)) => restarted(before.0, now.0) || detect_reset(b, a),
        _ => true,
    })
}

pub(super) fn changes(w: &Window<'_>, _params: &[f64], _notes: &mut Notes) -> Option<Point> {
    count(w, |before, now| match (&before.1, &now.1) {
        (Seen::Float(a), Seen::Float(b)) => a != b && !(a.is_nan() && b.is_nan()),
        (Seen::Histogram(a), Seen::Histogram(b)) => !equal(a, b),
        _ => true,
    })
}
