//! Goal: kernels answer as upstream's scripts say. Method: windows by hand, values from the scripts or worked out.

use std::sync::Arc;

use engram_model::histogram::{BucketSpan, Histogram};
use proptest::prelude::*;

use super::quantile::{ClassicBucket, fraction_of_classic, of_classic, of_histogram, of_values};
use super::*;
use crate::parse::ast::Span;

struct Case {
    times: Vec<Millis>,
    values: Vec<f64>,
    starts: Vec<Millis>,
    histograms: Vec<Arc<Histogram>>,
    start: Millis,
    end: Millis,
    extension: Extension,
}

/// Values a minute apart from 0; the range covers 5 minutes up to the last.
fn minutes(values: &[f64]) -> Case {
    let times: Vec<Millis> = (0..).map(|i| i * 60_000).take(values.len()).collect();
    let end = times.last().copied().unwrap_or(0);
    Case {
        times,
        values: values.to_vec(),
        starts: Vec::new(),
        histograms: Vec::new(),
        start: end - 300_000,
        end,
        extension: Extension::None,
    }
}

impl Case {
    fn call(&self, name: &str, params: &[f64], notes: &mut Notes) -> Option<Point> {
        let histogram_times: Vec<Millis> = (0..).map(|i| i * 60_000).take(self.histograms.len()).collect();
        let window = Window {
            times: &self.times,
            values: &self.values,
            starts: &self.starts,
            histogram_times: &histogram_times,
            histograms: &self.histograms,
            histogram_starts: &[],
            range_start: self.start,
            range_end: self.end,
            at: self.end,
            extension: self.extension,
        };
        let Kernel::Range(kernel) = lookup(name).unwrap().kernel else { panic!("{name} is no function of ranges") };
        notes.enter("m", Span { start: 5, end: 10 });
        kernel(&window, params, notes)
    }

    fn float(&self, name: &str, params: &[f64]) -> f64 {
        match self.call(name, params, &mut Notes::new()) {
            Some(Point::Float(x)) => x,
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a} is not {b}");
}

#[test]
fn rates_stretch_to_the_range_and_survive_restarts() {
    let case = minutes(&[0.0, 10.0, 20.0, 30.0, 0.0, 10.0]);
    near(case.float("increase", &[]), 40.0 + 0.0);
    near(case.float("rate", &[]), 40.0 / 300.0);
    near(case.float("delta", &[]), 10.0);
    near(case.float("irate", &[]), 10.0 / 60.0);
    near(case.float("idelta", &[]), 10.0);
    near(case.float("resets", &[]), 1.0);
    near(case.float("changes", &[]), 5.0);
    let mut late = minutes(&[10.0, 20.0]);
    late.end += 10_000;
    // 10 s of 60 s at the end, half a gap at the start as the range begins long before.
    near(late.float("increase", &[]), 10.0 * (60.0 + 30.0 + 10.0) / 60.0);
    assert!(minutes(&[1.0]).call("rate", &[], &mut Notes::new()).is_none());
}

proptest! {
    #[test]
    fn fast_loops_say_what_slow_ones_do(
        values in proptest::collection::vec(prop_oneof![9 => -4..20_i32, 1 => Just(i32::MAX)], 2..70),
    ) {
        let values: Vec<f64> = values.into_iter().map(|v| if v == i32::MAX { f64::NAN } else { v.into() }).collect();
        let mut case = minutes(&values);
        // Nothing to stretch to.
        case.start = 0;
        let mut want = values[values.len() - 1] - values[0];
        for i in 1..values.len() {
            if values[i] < values[i - 1] {
                want += values[i - 1];
            }
        }
        let got = case.float("increase", &[]);
        prop_assert!(got == want || (got.is_nan() && want.is_nan()), "{got} is not {want}");
        for (name, pick) in [("min_over_time", f64::min as fn(f64, f64) -> f64), ("max_over_time", f64::max)] {
            let want = values.iter().copied().reduce(pick).unwrap();
            let got = case.float(name, &[]);
            prop_assert!(got == want || (got.is_nan() && want.is_nan()), "{got} is not {want}");
        }
    }
}

#[test]
fn starts_tell_of_restarts_and_zeros() {
    let mut case = minutes(&[5.0, 7.0]);
    case.starts = vec![-30_000, 30_000];
    // The counter was 0 half a minute before, reached 5, restarted and reached 7.
    near(case.float("increase", &[]), 12.0);
    near(case.float("resets", &[]), 1.0);
    let mut notes = Notes::new();
    case.starts = vec![-30_000, -20_000];
    case.call("rate", &[], &mut notes);
    let warnings = notes.render("rate(m[5m])").warnings;
    assert_eq!(
        warnings.into_iter().collect::<Vec<_>>(),
        ["PromQL warning: sample has start time that overlaps with previous sample timestamp for metric \"m\" (1:6)"]
    );
}

#[test]
fn ends_are_anchored_or_smoothed() {
    let mut case = minutes(&[0.0, 10.0, 20.0, 0.0, 40.0]);
    (case.start, case.end) = (90_000, 210_000);
    case.extension = Extension::Anchored;
    case.times.truncate(4);
    case.values.truncate(4);
    near(case.float("increase", &[]), 10.0);
    near(case.float("resets", &[]), 1.0);
    near(case.float("changes", &[]), 2.0);
    let mut case = minutes(&[0.0, 10.0, 20.0, 0.0, 40.0]);
    (case.start, case.end) = (90_000, 210_000);
    case.extension = Extension::Smoothed;
    // From 15, over 20 and a restart, to 20.
    near(case.float("increase", &[]), 25.0);
    near(case.float("rate", &[]), 25.0 / 120.0);
    near(case.float("delta", &[]), 5.0);
}

#[test]
fn ranges_are_summed_up() {
    let case = minutes(&[3.0, f64::NAN, 1.0, 1.0, 3.0]);
    near(case.float("min_over_time", &[]), 1.0);
    near(case.float("max_over_time", &[]), 3.0);
    near(case.float("ts_of_min_over_time", &[]), 180.0);
    near(case.float("ts_of_max_over_time", &[]), 240.0);
    assert!(case.float("mad_over_time", &[]).is_nan());
    let case = minutes(&[4.0, 6.0, 2.0, 1.0, 999.0, 1.0, 2.0]);
    near(case.float("mad_over_time", &[]), 1.0);
    let case = minutes(&[1.5990505637277868, 1.5990505637277868, 1.5990505637277868]);
    near(case.float("stdvar_over_time", &[]), 0.0);
    let case = minutes(&[0.0, 8.0, 8.0, 2.0, 3.0]);
    near(case.float("stdvar_over_time", &[]), 10.56);
    near(case.float("sum_over_time", &[]), 21.0);
    near(case.float("avg_over_time", &[]), 4.2);
    near(case.float("quantile_over_time", &[0.5]), 3.0);
    near(case.float("first_over_time", &[]), 0.0);
    near(case.float("last_over_time", &[]), 3.0);
    near(case.float("count_over_time", &[]), 5.0);
}

#[test]
fn lines_are_drawn_and_smoothed() {
    let case = minutes(&[0.0, 6.0, 12.0, 18.0]);
    near(case.float("deriv", &[]), 0.1);
    near(case.float("predict_linear", &[60.0]), 24.0);
    let case = minutes(&[1.0, 2.0, 4.0, 8.0]);
    // By hand: sf = tf = 0.5.
    near(case.float("double_exponential_smoothing", &[0.5, 0.5]), 6.375);
    let mut notes = Notes::new();
    assert!(case.call("double_exponential_smoothing", &[1.5, 0.5], &mut notes).is_none());
    assert_eq!(notes.take_failure().unwrap(), "invalid smoothing factor. Expected: 0 < sf < 1, got: 1.500000");
}

#[test]
fn mixed_ranges_are_told_of() {
    let mut case = minutes(&[1.0, 2.0]);
    case.histograms = vec![Arc::new(Histogram::default())];
    let mut notes = Notes::new();
    assert!(case.call("rate", &[], &mut notes).is_none());
    case.call("max_over_time", &[], &mut notes);
    let texts = notes.render("rate(\nm)");
    assert_eq!(
        texts.warnings.into_iter().collect::<Vec<_>>(),
        ["PromQL warning: encountered a mix of histograms and floats for metric name \"m\" (1:6)"]
    );
    assert_eq!(texts.infos.len(), 1);
}

#[test]
fn counters_of_histograms_restart() {
    let h = |count: f64| {
        Arc::new(Histogram {
            count,
            sum: count,
            positive_spans: vec![BucketSpan { offset: 0, length: 1 }],
            positive_buckets: vec![count],
            ..Histogram::default()
        })
    };
    let mut case = minutes(&[]);
    case.histograms = [0.0, 4.0, 2.0, 3.0].into_iter().map(h).collect();
    (case.start, case.end) = (0, 180_000);
    let Some(Point::Histogram(got)) = case.call("increase", &[], &mut Notes::new()) else { panic!("no answer") };
    near(got.count, 7.0);
    near(got.positive_buckets[0], 7.0);
    case.histograms.truncate(3);
    let Some(Point::Histogram(got)) = case.call("sum_over_time", &[], &mut Notes::new()) else { panic!("no answer") };
    near(got.count, 6.0);
}

#[test]
fn quantiles_lie_between() {
    near(of_values(0.5, &mut [3.0, 1.0, 2.0, 4.0]), 2.5);
    assert!(of_values(0.0, &mut [1.0, f64::NAN]).is_nan());
    near(of_values(1.0, &mut [1.0, f64::NAN]), 1.0);
    let bucket = |upper, count| ClassicBucket { upper, count };
    let mut buckets = vec![bucket(f64::INFINITY, 10.0), bucket(2.0, 4.0), bucket(1.0, 5.0)];
    let got = of_classic(0.25, &mut buckets);
    near(got.value, 0.5);
    assert_eq!(got.forced.unwrap(), super::quantile::Forced { bucket_min: 2.0, bucket_max: 2.0, diff_max: 1.0 });
    near(fraction_of_classic(0.0, 0.5, &mut vec![bucket(1.0, 5.0), bucket(f64::INFINITY, 10.0)]), 0.25);
    let h = Histogram {
        count: 8.0,
        positive_spans: vec![BucketSpan { offset: 1, length: 2 }],
        positive_buckets: vec![4.0, 4.0],
        ..Histogram::default()
    };
    near(of_histogram(0.25, &h).0, std::f64::consts::SQRT_2);
    near(of_histogram(0.75, &h).0, 8.0_f64.sqrt());
    near(super::quantile::fraction_of_histogram(1.0, 2.0, &h).0, 0.5);
}

#[test]
fn numbers_are_clamped_and_rounded() {
    let call = |name: &str, x: f64, params: &[f64]| {
        let Kernel::Vector(kernel) = lookup(name).unwrap().kernel else { panic!("{name} is no function of vectors") };
        match kernel(&Point::Float(x), 1500, params) {
            Some(Point::Float(x)) => Some(x),
            _ => None,
        }
    };
    assert_eq!(call("clamp", 5.0, &[0.0, 3.0]), Some(3.0));
    assert_eq!(call("clamp", 5.0, &[3.0, 0.0]), None);
    assert!(call("clamp_min", f64::NAN, &[1.0]).unwrap().is_nan());
    assert_eq!(call("round", 2.5, &[]), Some(3.0));
    assert_eq!(call("round", -2.5, &[]), Some(-2.0));
    assert_eq!(call("round", 4.27, &[0.1]), Some(4.3));
    assert_eq!(call("timestamp", 0.0, &[]), Some(1.5));
    assert_eq!(call("day_of_year", 1_709_164_800.0, &[]), Some(60.0));
    assert_eq!(call("histogram_count", 1.0, &[]), None);
}
