//! Sum and mean of the histograms of a range.

use std::sync::Arc;

use super::{HistogramOperation, Note, Notes, Point, Window};
use crate::histogram::{HistogramMean, HistogramSum, Joined};

fn note(joined: Joined, notes: &mut Notes) {
    if joined.collision {
        notes.add(Note::CounterResetCollision(HistogramOperation::Aggregation));
    }
    if joined.reconciled {
        notes.add(Note::MismatchedCustomBuckets(HistogramOperation::Aggregation));
    }
}

pub(super) fn sum(w: &Window<'_>, notes: &mut Notes) -> Option<Point> {
    let (first, rest) = w.histograms.split_first()?;
    let mut sum = HistogramSum::new(first);
    for h in rest {
        if sum.add(h).is_err() {
            notes.add(Note::MixedExponentialCustom);
            return None;
        }
    }
    note(sum.joined(), notes);
    Some(Point::Histogram(Arc::new(sum.finish())))
}

pub(super) fn mean(w: &Window<'_>, notes: &mut Notes) -> Option<Point> {
    let (first, rest) = w.histograms.split_first()?;
    let mut mean = HistogramMean::new(first);
    for h in rest {
        if mean.add(h).is_err() {
            notes.add(Note::MixedExponentialCustom);
            return None;
        }
    }
    note(mean.joined(), notes);
    Some(Point::Histogram(Arc::new(mean.finish())))
}
