//! Answers against what a script expects.

use std::collections::{BTreeMap, BTreeSet};

use engram_model::histogram::Histogram;
use engram_model::sample::{Value as SampleValue, is_stale};
use engram_model::{Labels, Millis};
use engram_query::histogram::compact;
use engram_query::value::{Annotations, InstantSample, RangeSeries, Value};

use super::script::{Eval, Texts};
use super::series::{Item, Parsed};

/// Relative difference two floats may have.
const EPSILON: f64 = 0.000_001;

/// Whether two floats are as good as equal.
pub(super) fn almost_equal(a: f64, b: f64) -> bool {
    if is_stale(a) || is_stale(b) {
        return is_stale(a) && is_stale(b);
    }
    if (a.is_nan() && b.is_nan()) || a == b {
        return true;
    }
    let sum = a.abs() + b.abs();
    let difference = (a - b).abs();
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < EPSILON * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < EPSILON
}

fn same_histogram(want: &Histogram, have: &Histogram, with_hint: bool) -> bool {
    let (mut want, mut have) = (want.clone(), have.clone());
    compact(&mut want);
    compact(&mut have);
    let counts = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| almost_equal(*a, *b));
    want.schema == have.schema
        && almost_equal(want.count, have.count)
        && almost_equal(want.sum, have.sum)
        && (!want.is_custom() || want.custom_values == have.custom_values)
        && want.zero_threshold == have.zero_threshold
        && almost_equal(want.zero_count, have.zero_count)
        && want.positive_spans == have.positive_spans
        && want.negative_spans == have.negative_spans
        && counts(&want.positive_buckets, &have.positive_buckets)
        && counts(&want.negative_buckets, &have.negative_buckets)
        && (!with_hint || want.reset_hint == have.reset_hint)
}

fn check_value(labels: &Labels, want: &Item, have: &SampleValue) -> Parsed<()> {
    let same = match (want, have) {
        (Item::Float(want), SampleValue::Float(have)) => almost_equal(*want, *have),
        (Item::Histogram(want, hinted), SampleValue::Histogram(have)) => same_histogram(want, have, *hinted),
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("expected {want:?} for {labels} but got {have:?}")) }
}

/// Compares an answer.
pub(super) fn check(eval: &Eval, value: &Value) -> Parsed<()> {
    match value {
        Value::Scalar { value, .. } => match eval.scalar {
            Some(want) if almost_equal(want, *value) => Ok(()),
            want => Err(format!("expected scalar {want:?} but got {value}")),
        },
        Value::String { value, .. } => {
            let value = String::from_utf8_lossy(value);
            if eval.string.as_deref().unwrap_or_default() == value {
                Ok(())
            } else {
                Err(format!("expected string {:?} but got {value:?}", eval.string))
            }
        }
        Value::Vector(samples) => check_vector(eval, samples),
        Value::Matrix(series) => check_matrix(eval, series),
    }
}

fn expected(eval: &Eval) -> BTreeMap<&Labels, (usize, &[Item])> {
    eval.series.iter().map(|(position, labels, items)| (labels, (*position, items.as_slice()))).collect()
}

fn check_vector(eval: &Eval, samples: &[InstantSample]) -> Parsed<()> {
    if eval.scalar.is_some() {
        return Err("expected a scalar but got a vector".to_owned());
    }
    let expected = expected(eval);
    let mut seen = BTreeSet::new();
    for (i, sample) in samples.iter().enumerate() {
        let Some((position, items)) = expected.get(&sample.labels) else {
            return Err(format!("unexpected {} with {:?}", sample.labels, sample.value));
        };
        if eval.ordered && *position != i + 1 {
            return Err(format!("expected {} at position {position} but it was at {}", sample.labels, i + 1));
        }
        check_value(&sample.labels, items.first().unwrap_or(&Item::Blank), &sample.value)?;
        seen.insert(&sample.labels);
    }
    match expected.keys().find(|labels| !seen.contains(*labels)) {
        Some(labels) => Err(format!("expected {labels} is missing")),
        None => Ok(()),
    }
}

/// Whether a matrix is in order.
pub(super) fn check_sorted(series: &[RangeSeries]) -> Parsed<()> {
    if series.windows(2).all(|pair| pair[0].labels <= pair[1].labels) {
        Ok(())
    } else {
        Err("the matrix is not sorted by labels".to_owned())
    }
}

fn check_matrix(eval: &Eval, series: &[RangeSeries]) -> Parsed<()> {
    if eval.ordered || eval.scalar.is_some() {
        return Err("expected a scalar or an order but got a matrix".to_owned());
    }
    check_sorted(series)?;
    let expected = expected(eval);
    let (start, end, step) = eval.range_vector.unwrap_or((eval.start, eval.end, eval.step_ms));
    let mut seen = BTreeSet::new();
    for one in series {
        let Some((_, items)) = expected.get(&one.labels) else {
            return Err(format!("unexpected {} with {one:?}", one.labels));
        };
        seen.insert(&one.labels);
        check_points(one, items, (start, end, step))?;
    }
    match expected.keys().find(|labels| !seen.contains(*labels)) {
        Some(labels) => Err(format!("expected {labels} is missing")),
        None => Ok(()),
    }
}

fn check_points(have: &RangeSeries, items: &[Item], (start, end, step): (Millis, Millis, i64)) -> Parsed<()> {
    let mut points: BTreeMap<Millis, SampleValue> = BTreeMap::new();
    points.extend(have.floats.iter().map(|(at, v)| (*at, SampleValue::Float(*v))));
    points.extend(have.histograms.iter().map(|(at, h)| (*at, SampleValue::Histogram(h.clone()))));
    let mut at = start;
    for item in items {
        if at > end {
            return Err(format!("more points are expected of {} than the range can have", have.labels));
        }
        match (item, points.remove(&at)) {
            (Item::Blank, None) => {}
            (Item::Blank, Some(value)) => return Err(format!("{} has {value:?} at {at}", have.labels)),
            (_, None) => return Err(format!("{} has nothing at {at}, expected {item:?}", have.labels)),
            (_, Some(value)) => check_value(&have.labels, item, &value).map_err(|e| format!("at {at}: {e}"))?,
        }
        at += step;
    }
    match points.into_iter().next() {
        Some((at, value)) => Err(format!("{} has {value:?} at {at}, which was not expected", have.labels)),
        None => Ok(()),
    }
}

fn check_texts(kind: &str, texts: &Texts, have: &BTreeSet<String>) -> Parsed<()> {
    if texts.none && !have.is_empty() {
        return Err(format!("unexpected {kind}: {have:?}"));
    }
    if texts.expected.is_empty() {
        return Ok(());
    }
    if let Some(want) = texts.expected.iter().find(|want| !have.iter().any(|text| want.fits(text))) {
        return Err(format!("expected {kind} {want}, found {have:?}"));
    }
    match have.iter().find(|text| !texts.expected.iter().any(|want| want.fits(text))) {
        Some(text) => Err(format!("unexpected {kind} {text:?}")),
        None => Ok(()),
    }
}

/// Compares warnings and infos.
pub(super) fn check_annotations(eval: &Eval, have: &Annotations) -> Parsed<()> {
    check_texts("warning", &eval.warn, &have.warnings)?;
    check_texts("info", &eval.info, &have.infos)
}
