//! The decoder against an encoder that writes the same request in both versions, and against bytes that are none.

use std::collections::BTreeMap;

use engram_model::batch::WriteBatch;
use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::labels::Labels;
use engram_model::sample::{MetricKind, STALE_NAN_BITS};
use engram_model::{Class, Classed};
use proptest::prelude::*;

use super::*;

mod encode;

use encode::{Hist, Plain, Series};

fn decode_both(plain: &Plain) -> [Decoded; 2] {
    [(Version::V1, plain.v1()), (Version::V2, plain.v2())].map(|(version, body)| {
        let compressed = snap::raw::Encoder::new().compress_vec(&body).unwrap();
        decode(&compressed, version, &Bounds::default()).unwrap()
    })
}

fn one(labels: &[(&str, &str)]) -> Plain {
    let labels = labels.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    Plain { series: vec![Series { labels, samples: vec![(1, 1.0f64.to_bits(), 0)], ..Series::default() }] }
}

fn labels_of(batch: &WriteBatch, at: usize) -> Vec<(&str, &str)> {
    batch.labels_of(&batch.series[at]).collect()
}

fn any_series() -> impl Strategy<Value = Series> {
    let labels = proptest::collection::btree_map("[abé_]{1,14}", "[a-z0-9é]{1,200}", 1..12);
    let sample = (any::<i64>(), any::<u64>(), prop_oneof![3 => Just(0), 1 => any::<i64>()]);
    (labels, proptest::collection::vec(sample, 0..5), proptest::collection::vec(any_histogram(), 0..3), any::<u64>())
        .prop_map(|(labels, samples, histograms, seed)| {
            let mut labels: Vec<_> = labels.into_iter().map(|(n, v)| (n.into_bytes(), v.into_bytes())).collect();
            if seed % 3 == 0 {
                labels.reverse();
            }
            let exemplars =
                if seed % 4 == 0 { vec![(vec![("trace_id".into(), format!("{seed}"))], 2.5, 77)] } else { vec![] };
            Series { labels, samples, histograms, exemplars, metadata: None }
        })
        .prop_filter("nothing in it", |s| s.samples.len() + s.histograms.len() + s.exemplars.len() > 0)
}

fn any_histogram() -> impl Strategy<Value = Hist> {
    let buckets = proptest::collection::vec((-3_i32..20, proptest::collection::vec(0_u64..1000, 0..6)), 0..4);
    (buckets.clone(), buckets, any::<(i64, bool, u16)>(), -4..=8_i32).prop_map(
        |(positive, negative, (at, integer, zero), schema)| Hist::made(&positive, &negative, at, integer, zero, schema),
    )
}

proptest! {
    #[test]
    fn what_is_sent_is_what_comes_out(series in proptest::collection::vec(any_series(), 0..8)) {
        let plain = Plain { series };
        for (decoded, version) in decode_both(&plain).iter().zip([1, 2]) {
            prop_assert!(decoded.refused.is_empty(), "{:?}", decoded.refused);
            let batch = &decoded.batch;
            prop_assert_eq!(batch.series.len(), plain.series.len());
            for (i, (got, sent)) in batch.series.iter().zip(&plain.series).enumerate() {
                let want: BTreeMap<_, _> = sent.labels.iter().cloned().collect();
                let labels: Vec<_> = batch.labels_of(got).map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
                prop_assert_eq!(labels, want.into_iter().collect::<Vec<_>>());
                prop_assert_eq!(got.hash, Labels::from_pairs(batch.labels_of(got)).hash128());
                let samples: Vec<_> = batch.samples[got.samples.range()].iter().map(|s| (s.at, s.value.to_bits())).collect();
                prop_assert_eq!(samples, sent.samples.iter().map(|s| (s.0, s.1)).collect::<Vec<_>>());
                if version == 2 {
                    let starts: Vec<_> = got.samples.range().map(|at| batch.starts.get(at).copied().unwrap_or(0)).collect();
                    prop_assert_eq!(starts, sent.samples.iter().map(|s| s.2).collect::<Vec<_>>());
                }
                let histograms = &batch.histograms[got.histograms.range()];
                prop_assert_eq!(histograms.len(), sent.histograms.len());
                for (got, sent) in histograms.iter().zip(&sent.histograms) {
                    prop_assert_eq!(got.at, sent.at);
                    prop_assert_eq!(&*got.histogram, &sent.want());
                    prop_assert_eq!(got.histogram.integer, sent.integer);
                }
                let exemplars: Vec<_> = batch.exemplars.iter().filter(|(at, _)| *at as usize == i).collect();
                prop_assert_eq!(exemplars.len(), sent.exemplars.len());
                for ((_, got), sent) in exemplars.iter().zip(&sent.exemplars) {
                    prop_assert_eq!(&got.labels, &Labels::from_pairs(sent.0.iter().map(|(n, v)| (n, v))));
                    prop_assert_eq!((got.value, got.at), (sent.1, sent.2));
                }
            }
        }
    }

    #[test]
    fn bytes_changed_at_random_do_no_harm(
        series in proptest::collection::vec(any_series(), 1..4),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let plain = Plain { series };
        for (version, mut body) in [(Version::V1, plain.v1()), (Version::V2, plain.v2())] {
            for (at, byte) in &edits {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            if let Ok(decoded) = decode_plain(body, version, &Bounds::default()) {
                check_sound(&decoded);
            }
        }
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for version in [Version::V1, Version::V2] {
            let plain = decode_plain(bytes.clone(), version, &Bounds::default());
            for decoded in [decode(&bytes, version, &Bounds::default()), plain].into_iter().flatten() {
                check_sound(&decoded);
            }
        }
    }
}

/// What every batch keeps, whatever it was made of.
fn check_sound(decoded: &Decoded) {
    let batch = &decoded.batch;
    let mut pairs = 0;
    let mut samples = 0;
    for series in &batch.series {
        assert_eq!((series.pairs.from, series.samples.from), (pairs, samples), "runs follow each other");
        (pairs, samples) = (series.pairs.to, series.samples.to);
        let names: Vec<_> = batch.labels_of(series).collect();
        assert!(!names.is_empty() && names.windows(2).all(|two| two[0].0 < two[1].0), "{names:?}");
        assert!(names.iter().all(|(name, value)| !name.is_empty() && !value.is_empty()), "{names:?}");
    }
    assert_eq!((pairs as usize, samples as usize), (batch.pairs.len(), batch.samples.len()));
    assert!(batch.starts.is_empty() || batch.starts.len() == batch.samples.len());
    assert!(batch.exemplars.iter().all(|(at, _)| (*at as usize) < batch.series.len()));
    for refusal in &decoded.refused {
        assert!(!refusal.reason.message(batch).is_empty() && !refusal.reason.code().is_empty());
    }
}

fn sample_plain() -> Plain {
    let mut plain = one(&[("__name__", "up"), ("job", "é")]);
    plain.series[0].histograms.push(Hist::made(&[(0, vec![1, 2]), (3, vec![4])], &[(1, vec![9])], 5, true, 3, 2));
    plain.series[0].exemplars.push((vec![("trace_id".into(), "x".into())], 1.0, 2));
    plain.series[0].metadata = Some((1, "help".into(), "s".into()));
    plain
}

#[test]
fn a_body_cut_anywhere_is_an_error_or_ends_between_two_series() {
    let plain = sample_plain();
    for (version, body) in [(Version::V1, plain.v1()), (Version::V2, plain.v2())] {
        for cut in 0..body.len() {
            match decode_plain(body[..cut].to_vec(), version, &Bounds::default()) {
                Ok(decoded) => check_sound(&decoded),
                Err(error) => assert_eq!(error.class(), Class::Invalid),
            }
        }
        let compressed = snap::raw::Encoder::new().compress_vec(&body).unwrap();
        for cut in 0..compressed.len() {
            assert!(decode(&compressed[..cut], version, &Bounds::default()).is_err() || cut == 0);
        }
    }
}

#[test]
fn metadata_is_kept_once() {
    let mut plain = sample_plain();
    plain.series.push(plain.series[0].clone());
    for decoded in decode_both(&plain) {
        let found: Vec<_> =
            decoded.batch.metadata.iter().map(|(name, m)| (name.as_str(), m.kind, m.help.as_str())).collect();
        assert!(found.iter().all(|m| *m == ("up", MetricKind::Counter, "help")), "{found:?}");
        assert!(!found.is_empty());
    }
    assert_eq!(decode_both(&plain)[1].batch.metadata.len(), 1);
}

#[test]
fn labels_are_sorted_and_empty_values_dropped() {
    for decoded in decode_both(&one(&[("z", "1"), ("gone", ""), ("a", "2")])) {
        assert_eq!(labels_of(&decoded.batch, 0), [("a", "2"), ("z", "1")]);
        assert_eq!(decoded.batch.series[0].hash, Labels::from_pairs([("a", "2"), ("z", "1")]).hash128());
    }
}

#[test]
fn a_bad_series_is_refused_and_its_neighbours_stay() {
    let long = "x".repeat(70_000);
    let many: Vec<(String, String)> = (0..300).map(|i| (format!("l{i:03}"), "v".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("a", "1"), ("a", "1")], "duplicate_label_names"),
        (&[("b", "1"), ("a", ""), ("a", "1")], "duplicate_label_names"),
        (&[("", "1")], "label_name_empty"),
        (&[("a", "")], "missing_labels"),
        (&[("a", &long)], "labels_too_long"),
        (&many, "max_label_names_per_series"),
    ];
    for (labels, code) in cases {
        let mut plain = one(&[("ok", "1")]);
        plain.series.extend(one(labels).series);
        plain.series.extend(one(&[("ok", "2")]).series);
        for decoded in decode_both(&plain) {
            check_sound(&decoded);
            let codes: Vec<_> = decoded.refused.iter().map(|r| (r.series, r.samples, r.reason.code())).collect();
            assert_eq!(codes, [(1, 1, code)]);
            assert_eq!(decoded.batch.samples.len(), 2);
            assert_eq!(labels_of(&decoded.batch, 1), [("ok", "2")]);
        }
    }
    let decoded = &decode_both(&one(&[("job", "1"), ("job", "2")]))[0];
    assert_eq!(decoded.refused[0].reason.message(&decoded.batch), "duplicate label name \"job\"");
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let mut plain = one(&[("a", "é"), ("b", "ok")]);
    plain.series[0].labels[1].1 = vec![0xc3];
    plain.series.extend(one(&[("a", "é")]).series);
    for decoded in decode_both(&plain) {
        assert_eq!(decoded.refused.iter().map(|r| (r.series, r.reason)).collect::<Vec<_>>(), [(0, Reason::NotUtf8)]);
        assert_eq!(labels_of(&decoded.batch, 0), [("a", "é")]);
    }
}

#[test]
fn the_staleness_marker_and_other_nans_keep_their_bits() {
    let bits = [STALE_NAN_BITS, 0x7ff8_0000_0000_0001, 0xfff8_dead_beef_0001, (-0.0_f64).to_bits()];
    let mut plain = one(&[("a", "1")]);
    plain.series[0].samples = bits.iter().map(|&bits| (-1, bits, 0)).collect();
    for decoded in decode_both(&plain) {
        let got: Vec<_> = decoded.batch.samples.iter().map(|s| s.value.to_bits()).collect();
        assert_eq!(got, bits);
    }
}

#[test]
fn the_message_of_the_other_version_is_told() {
    let plain = sample_plain();
    let as_v2 = decode_plain(plain.v1(), Version::V2, &Bounds::default());
    let as_v1 = decode_plain(plain.v2(), Version::V1, &Bounds::default());
    assert!(matches!(as_v2, Err(DecodeError::WrongVersion { field: 1, .. })), "{as_v2:?}");
    assert!(matches!(as_v1, Err(DecodeError::WrongVersion { field: 4, .. })), "{as_v1:?}");
}

#[test]
fn symbols_out_of_range_and_odd_references_are_errors() {
    let symbols = [0x22, 0, 0x22, 1, b'a'];
    let series = |refs: &[u8]| {
        [&symbols[..], &[0x2a, u8::try_from(refs.len()).unwrap() + 2, 0x0a, u8::try_from(refs.len()).unwrap()], refs]
            .concat()
    };
    let got = decode_plain(series(&[1, 9]), Version::V2, &Bounds::default());
    assert!(matches!(got, Err(DecodeError::NoSymbol { index: 9, symbols: 2, .. })), "{got:?}");
    let got = decode_plain(series(&[1, 0, 1]), Version::V2, &Bounds::default());
    assert!(matches!(got, Err(DecodeError::Malformed { what: "odd number of label references", .. })), "{got:?}");
}

#[test]
fn symbols_may_come_after_the_series_and_numbers_unpacked() {
    // series { labels_refs: 1, labels_refs: 2 unpacked, sample {} }, then the symbols.
    let body = [&[0x2a, 6, 0x08, 1, 0x08, 2, 0x12, 0][..], &[0x22, 0, 0x22, 1, b'a', 0x22, 1, b'b']].concat();
    let decoded = decode_plain(body, Version::V2, &Bounds::default()).unwrap();
    assert_eq!(labels_of(&decoded.batch, 0), [("a", "b")]);
    assert_eq!(decoded.batch.samples.len(), 1);
}

#[test]
fn a_start_time_of_the_whole_series_serves_samples_without_one() {
    // Symbols "" and "a", then a series: labels, a sample at 7, a sample at 8 started at 3, created at 5.
    let series = [0x0a, 2, 1, 1, 0x12, 2, 0x10, 7, 0x12, 4, 0x10, 8, 0x18, 3, 0x30, 5];
    let body = [&[0x22, 0, 0x22, 1, b'a', 0x2a, 16][..], &series].concat();
    let decoded = decode_plain(body, Version::V2, &Bounds::default()).unwrap();
    assert_eq!(decoded.batch.starts, [5, 3]);
}

#[test]
fn what_is_asked_for_is_bounded_before_it_is_made() {
    // A snappy block of five bytes that declares 90 MiB.
    let got = decode(&[0x80, 0x80, 0x80, 0x2d, 0], Version::V1, &Bounds::default());
    assert!(matches!(got, Err(DecodeError::Expansion { .. })), "{got:?}");
    let got = decode(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0], Version::V1, &Bounds::default());
    assert!(matches!(got, Err(DecodeError::TooLarge { .. })), "{got:?}");
    // Real blocks never reach the ratio that is refused.
    let zeros = snap::raw::Encoder::new().compress_vec(&vec![0; 10 << 20]).unwrap();
    let got = decode(&zeros, Version::V1, &Bounds::default());
    assert!(matches!(got, Err(DecodeError::Malformed { .. })), "{got:?}");

    let small = Bounds { series_max: 2, samples_max: 3, parts_max: 40, label_bytes_max: 5, ..Bounds::default() };
    let mut three = one(&[("a", "1")]);
    three.series = vec![three.series[0].clone(); 3];
    let too_many = |plain: &Plain, bounds: &Bounds| match decode_plain(plain.v2(), Version::V2, bounds) {
        Err(DecodeError::TooMany { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(too_many(&three, &small), "series");
    assert_eq!(too_many(&three, &Bounds { series_max: 3, ..small.clone() }), "bytes of labels");
    three.series[0].samples = vec![(1, 0, 0); 4];
    assert_eq!(too_many(&three, &Bounds { series_max: 3, ..small.clone() }), "samples");
    three.series[0].samples.clear();
    three.series[0].histograms = vec![Hist::made(&[(0, vec![1; 20])], &[], 1, true, 0, 0)];
    assert_eq!(too_many(&three, &Bounds { series_max: 3, ..small }), "labels, symbols and buckets");
}

#[test]
fn a_histogram_that_lies_is_refused_alone() {
    let good = || Hist::made(&[(0, vec![1, 2]), (2, vec![3])], &[(0, vec![4])], 9, true, 5, 3);
    let float = || Hist { integer: false, ..good() };
    let custom = || Hist {
        schema: -53,
        custom: vec![1.0, 2.0, 3.0, 4.0, 5.0],
        negative: vec![],
        negative_spans: vec![],
        zero: 0,
        zero_threshold: 0.0,
        count: 6,
        ..good()
    };
    let cases: Vec<(Hist, Option<Reason>)> = vec![
        (good(), None),
        (float(), None),
        (custom(), None),
        (Hist { count: 16, ..good() }, Some(Reason::HistogramCount)),
        (Hist { count: 16, sum: f64::NAN, ..good() }, None),
        (Hist { count: 14, sum: f64::NAN, ..good() }, Some(Reason::HistogramCount)),
        (Hist { count: 99, ..float() }, None),
        (Hist { schema: 9, ..good() }, Some(Reason::HistogramSchema(9))),
        (Hist { positive: vec![1, 2], ..good() }, Some(Reason::HistogramSpans { said: 3, got: 2 })),
        (Hist { positive: vec![1, -2, 3], ..good() }, Some(Reason::HistogramNegative)),
        (Hist { positive: vec![1, -2, 3], ..float() }, Some(Reason::HistogramNegative)),
        (Hist { positive: vec![1 << 54, 2, 3], ..good() }, Some(Reason::HistogramTooLarge)),
        (Hist { custom: vec![1.0], ..good() }, Some(Reason::HistogramMixed)),
        (Hist { custom: vec![1.0, 1.0, 2.0, 3.0, 4.0], ..custom() }, Some(Reason::HistogramBounds)),
        (Hist { custom: vec![1.0, 2.0, 3.0, 4.0, f64::INFINITY], ..custom() }, Some(Reason::HistogramBounds)),
        (Hist { custom: vec![1.0, 2.0, 3.0], ..custom() }, Some(Reason::HistogramBounds)),
        (Hist { custom: vec![1.0, 2.0, 3.0, 4.0], ..custom() }, None),
        (Hist { zero: 1, count: 7, ..custom() }, Some(Reason::HistogramMixed)),
        (Hist { positive_spans: spans(&[(0, 2), (-1, 1)]), ..good() }, Some(Reason::HistogramOffset(-1))),
        (Hist { positive_spans: spans(&[(i32::MAX, 3)]), ..good() }, Some(Reason::HistogramOffset(i32::MAX))),
        (Hist { positive_spans: spans(&[(0, u32::MAX)]), ..good() }, Some(Reason::HistogramOffset(0))),
        (Hist { positive_spans: spans(&[(0, 1); 5000]), ..good() }, Some(Reason::HistogramBuckets(4096))),
        (Hist { positive: vec![0; 9000], ..good() }, Some(Reason::HistogramBuckets(4096))),
    ];
    for (histogram, want) in cases {
        let mut plain = one(&[("a", "1")]);
        plain.series[0].histograms = vec![histogram.clone(), good()];
        for decoded in decode_both(&plain) {
            let refused: Vec<_> = decoded.refused.iter().map(|r| (r.series, r.histograms, r.reason)).collect();
            assert_eq!(refused, want.map(|reason| (0, 1, reason)).into_iter().collect::<Vec<_>>(), "{histogram:?}");
            let kept: Vec<&Histogram> = decoded.batch.histograms.iter().map(|h| &*h.histogram).collect();
            if want.is_none() {
                assert_eq!(kept[0], &histogram.want());
            }
            assert_eq!(kept.last().unwrap(), &&good().want());
        }
    }
    let mut hinted = one(&[("a", "1")]);
    hinted.series[0].histograms = vec![Hist { hint: 3, start_at: 4, ..good() }];
    let batch = &decode_both(&hinted)[1].batch;
    assert_eq!((batch.histograms[0].histogram.reset_hint, batch.histograms[0].start_at), (ResetHint::Gauge, 4));
}

fn spans(of: &[(i32, u32)]) -> Vec<BucketSpan> {
    of.iter().map(|&(offset, length)| BucketSpan { offset, length }).collect()
}

#[test]
fn exemplars_are_judged_alone() {
    let mut plain = one(&[("a", "1")]);
    let labelled = |labels: &[(&str, &str)]| (labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(), 1.0, 1);
    let (long, most) = ("é".repeat(121), "é".repeat(120));
    plain.series[0].exemplars = vec![
        labelled(&[("trace_id", &most)]),
        labelled(&[("trace_id", &long)]),
        labelled(&[("a", "1"), ("a", "2")]),
        labelled(&[]),
        labelled(&vec![("n", ""); 200]),
    ];
    for decoded in decode_both(&plain) {
        let reasons: Vec<_> = decoded.refused.iter().map(|r| (r.exemplars, r.reason)).collect();
        assert_eq!(reasons, [(1, Reason::ExemplarTooLong), (1, Reason::ExemplarLabels), (1, Reason::ExemplarTooLong)]);
        assert_eq!(decoded.batch.exemplars.len(), 2);
    }
}

#[test]
fn a_series_of_version_2_without_samples_is_refused_and_of_version_1_ignored() {
    let mut plain = one(&[("a", "1")]);
    plain.series[0].samples.clear();
    let [v1, v2] = decode_both(&plain);
    assert!(v1.batch.series.is_empty() && v1.refused.is_empty() && v1.batch.pairs.is_empty());
    assert_eq!(v2.refused.iter().map(|r| r.reason).collect::<Vec<_>>(), [Reason::NoSamples]);
}

#[test]
fn metadata_that_repeats_one_long_text_is_cut_off() {
    let mut plain = Plain { series: vec![] };
    for i in 0..50 {
        let name = format!("m{i}");
        let mut series = one(&[("__name__", &name)]).series.remove(0);
        series.metadata = Some((1, "h".repeat(1000), String::new()));
        plain.series.push(series);
    }
    let decoded = decode_plain(plain.v2(), Version::V2, &Bounds::default()).unwrap();
    assert_eq!(decoded.batch.series.len(), 50, "samples are not lost with it");
    assert!(decoded.batch.metadata.len() < 5);
    assert!(decoded.refused.iter().all(|r| r.reason == Reason::MetadataTooLong && r.samples == 0));
}
