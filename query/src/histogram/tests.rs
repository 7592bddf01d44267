//! Goal: histograms behave as sets of observations do. Method: known values, and random layouts against a map from
//! bucket to count.

use std::collections::BTreeMap;

use engram_model::histogram::{BucketSpan, CUSTOM_BUCKETS_SCHEMA, Histogram, ResetHint};
use proptest::prelude::*;

use super::buckets::{self, exponential_bound, positive_cells};
use super::layout::spans_of;
use super::text::{api_buckets, display, go_float, go_float_precision, go_quote};
use super::*;

fn of_cells(schema: i32, cells: &BTreeMap<i32, u32>) -> Histogram {
    let count = cells.values().map(|c| f64::from(*c)).sum();
    Histogram {
        schema,
        count,
        positive_spans: spans_of(cells.keys().copied()),
        positive_buckets: cells.values().map(|c| f64::from(*c)).collect(),
        ..Histogram::default()
    }
}

fn custom(bounds: &[f64], counts: &[f64]) -> Histogram {
    Histogram {
        schema: CUSTOM_BUCKETS_SCHEMA,
        count: counts.iter().sum(),
        positive_spans: vec![BucketSpan { offset: 0, length: u32::try_from(counts.len()).unwrap() }],
        positive_buckets: counts.to_vec(),
        custom_values: bounds.to_vec(),
        ..Histogram::default()
    }
}

fn cells_of(h: &Histogram) -> BTreeMap<i32, f64> {
    positive_cells(h).filter(|(_, count)| *count != 0.0).collect()
}

fn target(index: i32, by: i32) -> i32 {
    (index - 1).div_euclid(1 << by) + 1
}

fn some_cells() -> impl Strategy<Value = BTreeMap<i32, u32>> {
    proptest::collection::btree_map(-40..40_i32, 0..5_u32, 0..20)
}

proptest! {
    #[test]
    fn a_sum_has_what_both_have(a in some_cells(), b in some_cells(), coarser in 0..3_i32) {
        let mut want: BTreeMap<i32, f64> = BTreeMap::new();
        for (i, c) in &a { *want.entry(target(*i, coarser)).or_default() += f64::from(*c); }
        for (i, c) in &b { *want.entry(*i).or_default() += f64::from(*c); }
        want.retain(|_, c| *c != 0.0);
        let (x, y) = (of_cells(1, &a), of_cells(1 - coarser, &b));
        for (first, second) in [(&x, &y), (&y, &x)] {
            let mut plain = first.clone();
            add(&mut plain, second).unwrap();
            prop_assert_eq!(cells_of(&plain), want.clone());
            prop_assert_eq!(plain.count, x.count + y.count);
            let mut sum = HistogramSum::new(first);
            sum.add(second).unwrap();
            prop_assert_eq!(cells_of(&sum.finish()), want.clone());
            let mut mean = HistogramMean::new(first);
            mean.add(second).unwrap();
            let halves: BTreeMap<i32, f64> = want.iter().map(|(i, c)| (*i, c / 2.0)).collect();
            prop_assert_eq!(cells_of(&mean.finish()), halves);
            compact(&mut plain);
            prop_assert!(plain.positive_buckets.iter().all(|c| *c != 0.0));
            prop_assert!(plain.positive_spans.iter().skip(1).all(|s| s.offset > 0 && s.length > 0));
            prop_assert_eq!(cells_of(&plain), want.clone());
            sub(&mut plain, second).unwrap();
            let rest = copy_to_schema(first, plain.schema);
            prop_assert_eq!(cells_of(&plain), cells_of(&rest));
        }
    }

    #[test]
    fn more_of_the_same_is_no_reset(a in some_cells(), b in some_cells(), coarser in 0..3_i32) {
        let before = of_cells(2, &a);
        let mut now = of_cells(2 - coarser, &b);
        add(&mut now, &before).unwrap();
        prop_assert!(!detect_reset(&now, &before));
        if let Some((i, c)) = a.iter().find(|(_, c)| **c > 0) {
            let mut less = a.clone();
            less.insert(*i, c - 1);
            let mut less = of_cells(2, &less);
            less.count = before.count;
            prop_assert!(detect_reset(&less, &before));
        }
    }

    #[test]
    fn buckets_read_backwards_are_the_same(a in some_cells(), empty in 0..4_usize) {
        let mut h = of_cells(0, &a);
        // Spans of length 0 shift the next one, wherever they stand.
        for at in [0, empty, h.positive_spans.len()] {
            h.positive_spans.insert(at.min(h.positive_spans.len()), BucketSpan { offset: 0, length: 0 });
        }
        h.negative_spans.clone_from(&h.positive_spans);
        h.negative_buckets.clone_from(&h.positive_buckets);
        let forwards: Vec<_> = buckets::all(&h).collect();
        let mut backwards: Vec<_> = buckets::all(&h).rev().collect();
        backwards.reverse();
        prop_assert_eq!(forwards.len(), 2 * a.len());
        prop_assert!(forwards.windows(2).all(|b| b[0].upper <= b[1].lower));
        prop_assert_eq!(forwards, backwards);
        let mut both = positive_cells(&h);
        let mut met = 0;
        while let (Some(_), more) = (both.next(), both.next_back()) { met += 1 + usize::from(more.is_some()); }
        prop_assert_eq!(met, a.len());
    }

    #[test]
    fn damaged_histograms_do_no_harm(
        offsets in proptest::collection::vec((any::<i32>(), any::<u32>()), 0..5),
        counts in proptest::collection::vec(-1.0..10.0_f64, 0..9),
        schema in -60..12_i32,
        threshold in 0.0..9.0_f64,
        x in -5.0..5.0_f64,
    ) {
        let spans: Vec<_> = offsets.into_iter().map(|(offset, length)| BucketSpan { offset, length }).collect();
        let h = Histogram {
            schema, zero_threshold: threshold, zero_count: 1.0, count: 9.0,
            positive_spans: spans.clone(), negative_spans: spans,
            positive_buckets: counts.clone(), negative_buckets: counts, ..Histogram::default()
        };
        let other = of_cells(1, &BTreeMap::from([(-3, 2), (1, 4)]));
        for (a, b) in [(&h, &other), (&other, &h), (&h, &h)] {
            let mut sum = a.clone();
            let mut mean = HistogramMean::new(a);
            prop_assert_eq!(add(&mut sum, b).is_ok(), mean.add(b).is_ok());
            compact(&mut sum);
            prop_assert!(sum.positive_buckets.iter().all(|c| *c != 0.0));
            prop_assert!(detect_reset(a, b) || a.count >= b.count);
            let text = display(&mean.finish());
            prop_assert!(text.contains("count:"));
        }
        for side in [Side::Below, Side::Above] { trim(&mut h.clone(), x, side); }
        prop_assert_eq!(crate::functions::quantile::of_histogram(-1.0, &h).0, f64::NEG_INFINITY);
        prop_assert!(crate::functions::quantile::of_histogram(0.5, &h).1.is_none());
        prop_assert!(crate::functions::quantile::fraction_of_histogram(-x, x, &h).1.is_none());
        prop_assert!(api_buckets(&h).all(|b| b.count != 0.0));
    }
}

#[test]
fn boundaries_are_those_of_the_format() {
    assert_eq!(exponential_bound(0, 0), 1.0);
    assert_eq!(exponential_bound(1, 0), 2.0);
    assert_eq!(exponential_bound(-1, 1), 0.707_106_781_186_547_5);
    assert_eq!(exponential_bound(2, 2), std::f64::consts::SQRT_2.next_down());
    assert_eq!(exponential_bound(-3, -1), 1.0 / 64.0);
    assert_eq!(exponential_bound(1024, 0), f64::MAX);
    assert_eq!(exponential_bound(1025, 0), f64::INFINITY);
    assert_eq!(exponential_bound(512, -1), f64::MAX);
    assert_eq!(exponential_bound(-1074, 0), f64::from_bits(1));
}

#[test]
fn a_wider_zero_bucket_takes_buckets_in() {
    let mut narrow = of_cells(0, &BTreeMap::from([(-2, 1), (0, 2), (1, 3)]));
    let wide = Histogram { zero_threshold: 0.3, zero_count: 5.0, ..Histogram::default() };
    add(&mut narrow, &wide).unwrap();
    // The bucket (1/8,1/4] goes in whole; 0.3 lies in no populated bucket.
    assert_eq!((narrow.zero_threshold, narrow.zero_count), (0.3, 6.0));
    assert_eq!(cells_of(&narrow), BTreeMap::from([(0, 2.0), (1, 3.0)]));
    // 0.6 lies within (1/2,1], which moves the threshold to 1.
    let wide = Histogram { zero_threshold: 0.6, zero_count: 1.0, ..Histogram::default() };
    add(&mut narrow, &wide).unwrap();
    assert_eq!((narrow.zero_threshold, narrow.zero_count), (1.0, 9.0));
    assert_eq!(cells_of(&narrow), BTreeMap::from([(1, 3.0)]));
}

#[test]
fn custom_boundaries_meet_at_the_common_ones() {
    let mut a = custom(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]);
    let b = custom(&[2.0, 4.0], &[10.0, 20.0, 30.0]);
    let joined = add(&mut a, &b).unwrap();
    assert!(joined.reconciled);
    assert_eq!(a.custom_values, [2.0]);
    assert_eq!(a.positive_buckets, [13.0, 57.0]);
    assert!(!detect_reset(&a, &b));
    assert!(detect_reset(&b, &a));
    assert_eq!(add(&mut a, &Histogram::default()), Err(Incompatible));
}

#[test]
fn hints_are_joined() {
    use ResetHint::{Gauge, NoReset, Reset, Unknown};
    for (a, b, want, collision) in [
        (Reset, NoReset, Unknown, true),
        (Reset, Reset, Reset, false),
        (Unknown, NoReset, Unknown, false),
        (Reset, Unknown, Unknown, false),
        (Unknown, Gauge, Gauge, false),
        (Gauge, Reset, Gauge, false),
    ] {
        let of = |hint| Histogram { reset_hint: hint, ..Histogram::default() };
        let mut sum = of(a);
        assert_eq!(add(&mut sum, &of(b)).unwrap().collision, collision);
        assert_eq!(sum.reset_hint, want);
    }
}

#[test]
fn trimming_splits_the_bucket_it_lies_in() {
    let whole = of_cells(0, &BTreeMap::from([(1, 4), (2, 8)]));
    let mut low = whole.clone();
    trim(&mut low, 8.0_f64.sqrt(), Side::Below);
    assert_eq!(cells_of(&low), BTreeMap::from([(1, 4.0), (2, 4.0)]));
    assert_eq!(low.count, 8.0);
    let mut none = whole.clone();
    trim(&mut none, 100.0, Side::Below);
    assert!(equal(&none, &whole));
    let mut half = custom(&[10.0], &[4.0, 4.0]);
    trim(&mut half, 5.0, Side::Above);
    assert_eq!(half.positive_buckets, [2.0, 4.0]);
}

#[test]
fn texts_are_those_of_go() {
    for (x, want) in [
        (100_000.0, "100000"),
        (1e6, "1e+06"),
        (1_234_567.0, "1.234567e+06"),
        (0.0001, "0.0001"),
        (1e-5, "1e-05"),
        (0.000_123_45, "0.00012345"),
        (-0.0, "-0"),
        (12.5, "12.5"),
        (f64::INFINITY, "+Inf"),
        (1e300, "1e+300"),
    ] {
        assert_eq!(go_float(x), want);
    }
    assert_eq!(go_float_precision(100.0, 2), "1e+02");
    assert_eq!(go_float_precision(10.0, 2), "10");
    assert_eq!(go_float_precision(0.000_123, 2), "0.00012");
    assert_eq!(go_quote("a\"\u{7f}\u{85}é\u{2028}\n"), r#""a\"\x7f\u0085é\u2028\n""#);
    let mut h = of_cells(0, &BTreeMap::from([(1, 2)]));
    h.negative_spans = vec![BucketSpan { offset: 1, length: 1 }];
    h.negative_buckets = vec![0.5];
    (h.zero_threshold, h.zero_count) = (0.001, 1.0);
    assert_eq!(display(&h), "{count:2, sum:0, [-2,-1):0.5, [-0.001,0.001]:1, (1,2]:2}");
    assert_eq!(api_buckets(&h).map(|b| b.rule).collect::<Vec<_>>(), [1, 3, 0]);
}
