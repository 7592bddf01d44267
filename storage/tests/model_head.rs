//! Goal: a head holds what a map of maps would hold, answers as a walk over all series would, and comes back from its
//! log. Method: random batches (late, doubled, conflicting, floats and histograms, new and old series), random
//! matchers, forgetting and checkpoints, beside a naive model that knows the rules in their plainest form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engram_model::batch::{BatchSeries, HistogramSample, Pair, Run, Text, WriteBatch};
use engram_model::digest::{Digest, slot_of};
use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::{Exemplar, Metadata, MetricKind, Sample, Value, stale_nan};
use engram_model::series::{Columns, SampleSource, Wanted};
use engram_model::{Labels, MatchOp, Matcher, TimeRange};
use engram_storage::head::{AppendLimits, Head, HeadOptions, Reason, Symbols};
use proptest::prelude::*;

const WINDOW: i64 = 1_200_000;
const LIMITS: AppendLimits = AppendLimits {
    series_max: 0,
    out_of_order_window_ms: 0,
    in_order_age_max_ms: 0,
    exemplars_max: 5,
    metadata_max: 3,
    repair: false,
};

fn new_head() -> Head {
    Head::new(Arc::new(Symbols::new()), HeadOptions { window_ms: WINDOW })
}

fn put_text(batch: &mut WriteBatch, text: &str) -> Text {
    let at = u32::try_from(batch.text.len()).unwrap();
    batch.text.extend_from_slice(text.as_bytes());
    Text { at, len: u32::try_from(text.len()).unwrap() }
}

fn len<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap()
}

/// Time, value, start.
type Stamped = (i64, Value, i64);

/// A batch of series, each with its samples.
fn batch_of(series: &[(Labels, Vec<Stamped>)]) -> (WriteBatch, Vec<u32>) {
    let mut batch = WriteBatch::default();
    for (labels, samples) in series {
        let from = (len(&batch.pairs), len(&batch.samples), len(&batch.histograms));
        for (name, value) in labels.iter() {
            let pair = Pair { name: put_text(&mut batch, name), value: put_text(&mut batch, value) };
            batch.pairs.push(pair);
        }
        for (at, value, start) in samples {
            match value {
                Value::Float(value) => {
                    batch.samples.push(Sample { at: *at, value: *value });
                    batch.starts.push(*start);
                }
                Value::Histogram(h) => {
                    batch.histograms.push(HistogramSample { at: *at, start_at: *start, histogram: Arc::clone(h) });
                }
            }
        }
        batch.series.push(BatchSeries {
            hash: labels.hash128(),
            pairs: Run { from: from.0, to: len(&batch.pairs) },
            samples: Run { from: from.1, to: len(&batch.samples) },
            histograms: Run { from: from.2, to: len(&batch.histograms) },
        });
    }
    if batch.starts.iter().all(|start| *start == 0) {
        batch.starts.clear();
    }
    let picks = (0..len(&batch.series)).collect();
    (batch, picks)
}

/// Everything that a replay must bring back, as the bytes of a checkpoint.
fn image(head: &Head) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    head.snapshot(&mut |payload| payloads.push(payload.to_vec())).unwrap();
    payloads
}

fn replayed<'a>(payloads: impl IntoIterator<Item = &'a Vec<u8>>) -> Head {
    let mut head = new_head();
    for payload in payloads {
        assert_eq!(head.replay(payload).unwrap().unknown, 0);
    }
    head
}

fn assert_same(a: &Head, b: &Head) {
    assert!(image(a) == image(b), "images differ");
    assert_eq!(a.digests(), b.digests());
    assert_eq!(
        (a.sample_count(), a.series_count(), a.floor(), a.max_time(), a.min_time()),
        (b.sample_count(), b.series_count(), b.floor(), b.max_time(), b.min_time())
    );
}

#[derive(Default)]
struct Model {
    series: BTreeMap<Labels, BTreeMap<i64, Value>>,
    starts: BTreeMap<Labels, BTreeMap<i64, i64>>,
    newest: Option<i64>,
    floor: Option<i64>,
}

fn bits(value: &Value) -> (u8, u64) {
    match value {
        Value::Float(value) => (0, value.to_bits()),
        Value::Histogram(h) => (1, Digest::of_histogram(0, 0, h).high),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Histogram(a), Value::Histogram(b)) => a == b,
        _ => false,
    }
}

impl Model {
    /// `None`: appended. `Some(None)`: a duplicate.
    fn append(&mut self, labels: &Labels, at: i64, value: &Value, limits: &AppendLimits) -> Option<Option<Reason>> {
        let series = self.series.entry(labels.clone()).or_default();
        if self.floor.is_some_and(|floor| at < floor) {
            return Some(Some(Reason::TooOld));
        }
        if let Some(have) = series.get_mut(&at) {
            if same(have, value) {
                return Some(None);
            }
            if !limits.repair {
                return Some(Some(Reason::DuplicateDifferentValue));
            }
            if bits(value) > bits(have) {
                *have = value.clone();
                return None;
            }
            return Some(None);
        }
        let age = self.newest.map_or(0, |newest| newest - at);
        if series.last_key_value().is_some_and(|(last, _)| at < *last) && !limits.repair {
            if limits.out_of_order_window_ms == 0 {
                return Some(Some(Reason::OutOfOrder));
            }
            if age > limits.out_of_order_window_ms {
                return Some(Some(Reason::TooOld));
            }
        }
        let age_max = limits.in_order_age_max_ms.max(limits.out_of_order_window_ms);
        if !limits.repair && limits.in_order_age_max_ms > 0 && age > age_max {
            return Some(Some(Reason::TooOld));
        }
        series.insert(at, value.clone());
        self.newest = self.newest.max(Some(at));
        None
    }

    fn forget(&mut self, before: i64) {
        let before = slot_of(before);
        self.floor = self.floor.max(Some(before));
        self.series.values_mut().for_each(|samples| *samples = samples.split_off(&before));
        self.series.retain(|_, samples| !samples.is_empty());
        self.starts.values_mut().for_each(|starts| *starts = starts.split_off(&before));
    }

    /// A sample was taken: its start is known, or was.
    fn start(&mut self, labels: &Labels, at: i64, start: i64) {
        self.starts.entry(labels.clone()).or_default().insert(at, start);
    }

    /// The starts of some samples as columns have them.
    fn starts_of(&self, labels: &Labels, times: &[i64]) -> Vec<i64> {
        let starts: Vec<_> = times.iter().map(|at| self.starts[labels][at]).collect();
        if starts.iter().all(|start| *start == 0) { Vec::new() } else { starts }
    }

    fn select(&self, matchers: &[Matcher]) -> impl Iterator<Item = (&Labels, &BTreeMap<i64, Value>)> {
        self.series.iter().filter(move |(labels, samples)| {
            !samples.is_empty() && matchers.iter().all(|m| m.matches(labels.get(&m.name).unwrap_or_default()))
        })
    }
}

fn check_content(head: &Head, model: &Model, matchers: &[Matcher], range: TimeRange) {
    check_wanted(head, matchers, range);
    let mut found = BTreeMap::new();
    for series in head.select(matchers, range) {
        let mut columns = Columns::default();
        series.chunks.read(range, &mut columns).unwrap();
        assert!(columns.times.is_sorted_by(|a, b| a < b) && columns.histogram_times.is_sorted_by(|a, b| a < b));
        assert_eq!(columns.starts, model.starts_of(&series.labels, &columns.times), "{} {range:?}", series.labels);
        assert_eq!(columns.histogram_starts, model.starts_of(&series.labels, &columns.histogram_times));
        let floats = columns.times.into_iter().zip(columns.values.into_iter().map(Value::Float));
        let hists = columns.histogram_times.into_iter().zip(columns.histograms.into_iter().map(Value::Histogram));
        let samples: BTreeMap<_, _> = floats.chain(hists).filter(|(at, _)| range.contains(*at)).collect();
        assert_eq!(series.labels.hash128(), series.chunks.hash);
        if !samples.is_empty() {
            assert!(found.insert(series.labels.clone(), samples).is_none(), "{} comes twice", series.labels);
        }
    }
    let within = |samples: &BTreeMap<i64, Value>| {
        samples
            .iter()
            .filter(|(at, _)| range.contains(**at))
            .map(|(at, v)| (*at, v.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let expected: BTreeMap<_, _> = model
        .select(matchers)
        .map(|(labels, samples)| (labels.clone(), within(samples)))
        .filter(|(_, samples)| !samples.is_empty())
        .collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{matchers:?}");
    for (labels, samples) in &expected {
        let got = &found[labels];
        assert_eq!(got.len(), samples.len());
        for ((at, value), (got_at, got)) in samples.iter().zip(got) {
            assert!(at == got_at && same(value, got), "{labels} at {at}: {value:?} is {got:?} at {got_at}");
        }
    }
}

/// What is wanted of a series is what all of it has: the last sample, and the labels named.
fn check_wanted(head: &Head, matchers: &[Matcher], range: TimeRange) {
    let last_of = |columns: &Columns| {
        let floats = columns.times.iter().zip(&columns.values).map(|(at, v)| (*at, Value::Float(*v)));
        let hists = columns.histogram_times.iter().zip(&columns.histograms);
        let all = floats.chain(hists.map(|(at, h)| (*at, Value::Histogram(Arc::clone(h)))));
        all.filter(|(at, _)| range.contains(*at)).max_by_key(|(at, _)| *at)
    };
    for last_only in [true, false] {
        check_some(head, matchers, range, last_only, &last_of);
    }
}

fn check_some(
    head: &Head,
    matchers: &[Matcher],
    range: TimeRange,
    last_only: bool,
    last_of: &dyn Fn(&Columns) -> Option<(i64, Value)>,
) {
    let wanted = Wanted { last_only, labels: Some(vec!["a".to_owned()]) };
    let some: BTreeMap<_, _> = head
        .select_wanted(matchers, range, &wanted)
        .into_iter()
        .map(|series| (series.source.series_hash().unwrap(), series))
        .collect();
    let all = head.select(matchers, range);
    assert_eq!(all.len(), some.len());
    for full in all {
        let (mut want, mut have) = (Columns::default(), Columns::default());
        full.chunks.read(range, &mut want).unwrap();
        let series = &some[&full.chunks.hash];
        series.source.read(range, &mut have).unwrap();
        if !last_only {
            assert_eq!((&want.times, want.histogram_times.len()), (&have.times, have.histogram_times.len()));
        }
        match (last_of(&want), last_of(&have)) {
            (Some((t, v)), Some((at, value))) => assert!(t == at && same(&v, &value), "{v:?} is {value:?}"),
            (want, have) => assert!(want.is_none() && have.is_none(), "{want:?} is {have:?}"),
        }
        assert_eq!(series.labels, full.labels.without(|name| !matches!(name, "a" | "__name__")));
    }
}

fn check_labels(head: &Head, model: &Model, matchers: &[Matcher]) {
    let labels: BTreeSet<_> = model.select(matchers).map(|(labels, _)| labels.clone()).collect();
    let got: BTreeSet<_> = head.series_labels(matchers, TimeRange::ALL).into_iter().collect();
    assert_eq!(got, labels);
    let names: BTreeSet<_> = labels.iter().flat_map(|l| l.iter().map(|(name, _)| name.to_owned())).collect();
    assert_eq!(head.label_names(matchers, TimeRange::ALL), names.into_iter().collect::<Vec<_>>());
    for name in ["a", "b", "__name__", "none"] {
        let values: BTreeSet<_> = labels.iter().filter_map(|l| l.get(name).map(str::to_owned)).collect();
        assert_eq!(head.label_values(name, matchers, TimeRange::ALL), values.into_iter().collect::<Vec<_>>());
    }
}

fn labels() -> impl Strategy<Value = Labels> {
    let value = || prop_oneof![Just(""), Just("x"), Just("y"), Just("xy"), Just("é")];
    (prop_oneof![Just("up"), Just("down")], value(), value())
        .prop_map(|(name, a, b)| Labels::from_pairs([("__name__", name), ("a", a), ("b", b)]))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => (0_u8..4).prop_map(|v| Value::Float(f64::from(v))),
        1 => Just(Value::Float(stale_nan())),
        1 => Just(Value::Float(0.1)),
        2 => (0_u32..3, any::<bool>(), 0_u32..3).prop_map(|(n, gauge, buckets)| Value::Histogram(Arc::new(Histogram {
            integer: n != 2,
            reset_hint: if gauge { ResetHint::Gauge } else { ResetHint::Unknown },
            count: f64::from(n) / if n == 2 { 3.0 } else { 1.0 },
            sum: f64::from(n),
            positive_spans: vec![BucketSpan { offset: 1, length: buckets }],
            positive_buckets: vec![f64::from(n); buckets as usize],
            ..Histogram::default()
        }))),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Write { series: Vec<(Labels, Vec<Stamped>)>, late_ms: i64, repair: bool },
    Forget(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let start = prop_oneof![Just(0), Just(-3), Just(7)];
    let sample = ((0_i64..200).prop_map(|n| n * 20_000), value(), start);
    let samples = (proptest::collection::vec(sample, 0..12), any::<bool>(), 0_i64..200, any::<bool>()).prop_map(
        |(mut s, sort, run, starts)| {
            if !starts {
                s.iter_mut().for_each(|s| s.2 = 0);
            }
            if sort {
                s.sort_by_key(|s| s.0);
            }
            // A run longer than a chunk, so that full chunks are met too.
            let start = |i: i64| if starts { i / 50 } else { 0 };
            s.extend((0..run).map(|i| (3_000_000 + i * 5000, Value::Float((i % 7) as f64), start(i))));
            s
        },
    );
    let write = (
        proptest::collection::vec((labels(), samples), 0..6),
        prop_oneof![Just(0), Just(500_000), Just(i64::MAX)],
        0_u8..5,
    )
        .prop_map(|(series, late_ms, repair)| Step::Write { series, late_ms, repair: repair == 0 });
    prop_oneof![8 => write, 1 => (0_i64..4_200_000).prop_map(Step::Forget)]
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let name = prop_oneof![Just("a"), Just("b"), Just("__name__"), Just("none")];
    let op = prop_oneof![Just(MatchOp::Equal), Just(MatchOp::NotEqual), Just(MatchOp::Regex), Just(MatchOp::NotRegex)];
    let text = prop_oneof![
        Just(""),
        Just("x"),
        Just("up"),
        Just("x|y"),
        Just("x.*"),
        Just(".*"),
        Just(".+"),
        Just("|y"),
        Just("u.|x"),
        Just("x.+y?")
    ];
    (name, op, text).prop_map(|(name, op, text)| Matcher::new(name, op, text).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_head_is_a_map_of_maps(
        steps in proptest::collection::vec(step(), 1..12),
        queries in proptest::collection::vec((proptest::collection::vec(matcher(), 0..4), 0_i64..4_200_000, 0_i64..2_000_000), 4),
        checkpoint_at in 0_usize..12,
    ) {
        let (mut head, mut model) = (new_head(), Model::default());
        let (mut log, mut checkpoint) = (Vec::new(), 0);
        for (i, step) in steps.iter().enumerate() {
            if i == checkpoint_at {
                checkpoint = log.len();
                log.extend(image(&head));
            }
            let mut payload = Vec::new();
            match step {
                Step::Write { series, late_ms, repair } => {
                    let limits = AppendLimits { out_of_order_window_ms: *late_ms, repair: *repair, ..LIMITS };
                    let (batch, picks) = batch_of(series);
                    let staged = head.stage(&batch, &picks, &limits, &mut payload);
                    let receipt = head.apply(&batch, &staged);
                    let (mut appended, mut duplicates, mut refused) = (0, 0, Vec::new());
                    for (pick, (labels, samples)) in series.iter().enumerate() {
                        let floats = samples.iter().filter(|(_, v, _)| matches!(v, Value::Float(_)));
                        let hists = samples.iter().filter(|(_, v, _)| matches!(v, Value::Histogram(_)));
                        model.series.entry(labels.clone()).or_default();
                        for (at, value, start) in floats.chain(hists) {
                            let outcome = model.append(labels, *at, value, &limits);
                            // The first start stays, unless repair has put a greater value in.
                            if outcome.is_none() {
                                model.start(labels, *at, *start);
                            }
                            match outcome {
                                None => appended += 1,
                                Some(None) => duplicates += 1,
                                Some(Some(reason)) => refused.push((u32::try_from(pick).unwrap(), *at, reason)),
                            }
                        }
                    }
                    let got: Vec<_> = receipt.refused.iter().map(|r| (r.series, r.at, r.reason)).collect();
                    prop_assert_eq!((receipt.appended, receipt.duplicates, got), (appended, duplicates, refused));
                }
                Step::Forget(before) => {
                    head.forget_before(*before, &mut payload).unwrap();
                    model.forget(*before);
                }
            }
            if !payload.is_empty() {
                log.push(payload);
            }
        }
        let with_samples = model.series.values().map(|s| s.len() as u64).sum::<u64>();
        prop_assert_eq!((head.sample_count(), head.series_count()), (with_samples, model.series.len()));
        prop_assert_eq!(head.digests(), &head.recompute_digests().unwrap());
        prop_assert_eq!(head.digests().values().map(|d| d.count).sum::<u64>(), with_samples);
        check_content(&head, &model, &[], TimeRange::ALL);
        for (matchers, start, length) in &queries {
            check_content(&head, &model, matchers, TimeRange::new(*start, start + length));
            check_content(&head, &model, matchers, TimeRange::ALL);
            check_labels(&head, &model, matchers);
        }
        // The whole log with a checkpoint in it, the log from the checkpoint on, and a checkpoint of the end.
        assert_same(&head, &replayed(&log));
        assert_same(&head, &replayed(&log[checkpoint..]));
        assert_same(&head, &replayed(&image(&head)));
    }

    #[test]
    fn damaged_payloads_are_errors_and_no_harm(cut in any::<u16>(), flip in any::<(u16, u8)>(), noise in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut head = new_head();
        let mut payload = Vec::new();
        let h = Histogram { integer: true, positive_spans: vec![BucketSpan { offset: 0, length: 2 }], positive_buckets: vec![1.0, 2.0], ..Histogram::default() };
        let series = [
            (Labels::from_pairs([("a", "x")]), vec![(1, Value::Float(1.5), 0), (2, Value::Float(2.0), 1), (3, Value::Histogram(Arc::new(h)), 2)]),
            (Labels::from_pairs([("a", "y")]), vec![(5, Value::Float(1.0), i64::MIN)]),
        ];
        let (batch, picks) = batch_of(&series);
        let staged = head.stage(&batch, &picks, &LIMITS, &mut payload);
        head.apply(&batch, &staged);
        prop_assert!(new_head().replay(&payload[..usize::from(cut) % payload.len()]).is_err());
        for mut bytes in image(&head).into_iter().chain([payload]) {
            let at = usize::from(flip.0) % bytes.len();
            drop(new_head().replay(&bytes[..usize::from(cut) % bytes.len()]));
            bytes[at] ^= 1 << (flip.1 % 8);
            let mut other = new_head();
            if other.replay(&bytes).is_ok() {
                prop_assert_eq!(other.digests(), &other.recompute_digests().unwrap());
            }
        }
        for kind in 1..7 {
            let mut bytes = vec![kind];
            bytes.extend_from_slice(&noise);
            let mut other = new_head();
            if other.replay(&bytes).is_ok() {
                prop_assert_eq!(other.digests(), &other.recompute_digests().unwrap());
            }
        }
    }
}

fn one(name: &str, samples: &[(i64, f64)]) -> (Labels, Vec<Stamped>) {
    (Labels::from_pairs([("__name__", name)]), samples.iter().map(|(at, v)| (*at, Value::Float(*v), 0)).collect())
}

#[test]
fn the_ends_of_time_do_no_harm() {
    let mut head = new_head();
    let mut payloads = Vec::new();
    for times in [vec![i64::MIN, 0, i64::MAX], vec![i64::MIN + 1, -1, i64::MAX - 1]] {
        let samples: Vec<_> = times.into_iter().map(|at| (at, 1.0)).collect();
        let (batch, picks) = batch_of(&[one("m", &samples)]);
        let mut payload = Vec::new();
        let limits = AppendLimits { out_of_order_window_ms: i64::MAX, in_order_age_max_ms: 1, repair: true, ..LIMITS };
        let staged = head.stage(&batch, &picks, &limits, &mut payload);
        assert_eq!(head.apply(&batch, &staged).appended, 3);
        payloads.push(payload);
    }
    assert_eq!(head.digests(), &head.recompute_digests().unwrap());
    assert_same(&head, &replayed(&payloads));
    assert_eq!((head.min_time(), head.max_time()), (Some(i64::MIN), Some(i64::MAX)));
    head.forget_before(i64::MAX, &mut Vec::new()).unwrap();
    assert_eq!(head.digests(), &head.recompute_digests().unwrap());
}

#[test]
fn the_series_limit_refuses_new_series_alone() {
    let mut head = new_head();
    let limits = AppendLimits { series_max: 1, ..LIMITS };
    let (batch, picks) = batch_of(&[one("a", &[(1, 1.0)]), one("b", &[(1, 1.0), (2, 1.0)]), one("a", &[(2, 1.0)])]);
    let mut payload = Vec::new();
    let staged = head.stage(&batch, &picks, &limits, &mut payload);
    assert_eq!((staged.refused.as_slice(), staged.created.len()), (&[1][..], 1));
    let receipt = head.apply(&batch, &staged);
    assert_eq!((receipt.appended, receipt.refused.len(), head.series_count()), (2, 2, 1));
    assert!(receipt.refused.iter().all(|refused| refused.reason == Reason::SeriesLimit));
    assert_same(&head, &replayed([&payload]));
}

#[test]
fn too_old_is_measured_from_the_newest_sample() {
    let mut head = new_head();
    let limits = AppendLimits { in_order_age_max_ms: 1000, ..LIMITS };
    let (batch, picks) = batch_of(&[one("a", &[(10_000, 1.0)]), one("b", &[(8999, 1.0), (9000, 1.0)])]);
    let staged = head.stage(&batch, &picks, &limits, &mut Vec::new());
    let receipt = head.apply(&batch, &staged);
    assert_eq!((receipt.appended, receipt.refused[0].at, receipt.refused[0].reason), (2, 8999, Reason::TooOld));
}

#[test]
fn nothing_is_visible_or_cut_before_apply() {
    let mut head = new_head();
    let (batch, picks) = batch_of(&[one("a", &[(1, 1.0)])]);
    let staged = head.stage(&batch, &picks, &LIMITS, &mut Vec::new());
    assert!(head.select(&[], TimeRange::ALL).is_empty() && head.label_names(&[], TimeRange::ALL).is_empty());
    assert!(head.snapshot(&mut |_| panic!("handed out")).is_err());
    assert!(head.forget_before(0, &mut Vec::new()).is_err());
    head.apply(&batch, &staged);
    assert_eq!(head.label_names(&[], TimeRange::ALL), ["__name__"]);
}

#[test]
fn a_batch_the_log_refused_leaves_no_trace() {
    let mut head = new_head();
    let (batch, picks) = batch_of(&[one("a", &[(1, 1.0)])]);
    let staged = head.stage(&batch, &picks, &LIMITS, &mut Vec::new());
    head.apply(&batch, &staged);
    let before = image(&head);
    let (more, picks) = batch_of(&[one("a", &[(2, 1.0)]), one("b", &[(2, 1.0)])]);
    let staged = head.stage(&more, &picks, &LIMITS, &mut Vec::new());
    head.abandon(&staged);
    assert!(image(&head) == before && head.series_count() == 1);
    let mut payload = Vec::new();
    let staged = head.stage(&more, &picks, &LIMITS, &mut payload);
    assert_eq!((head.apply(&more, &staged).appended, staged.created.len()), (2, 1));
}

#[test]
fn exemplars_and_metadata_come_back() {
    let mut head = new_head();
    let (mut batch, picks) = batch_of(&[one("a", &[(1, 1.0)]), one("b", &[(1, 1.0)])]);
    let exemplar = Exemplar { labels: Labels::from_pairs([("trace_id", "t")]), value: 0.5, at: 7 };
    batch.exemplars = vec![(1, exemplar.clone()), (1, exemplar.clone())];
    let said = Metadata { kind: MetricKind::Counter, help: "h".into(), unit: "s".into() };
    batch.metadata = vec![("a".into(), said.clone())];
    let mut payload = Vec::new();
    let staged = head.stage(&batch, &picks, &LIMITS, &mut payload);
    let receipt = head.apply(&batch, &staged);
    assert_eq!((receipt.exemplars, receipt.exemplars_refused), (1, 1));
    for head in [&head, &replayed([&payload]), &replayed(&image(&head))] {
        assert_eq!(head.metadata_of("a"), std::slice::from_ref(&said));
        let found = head.exemplars(&[Matcher::equal("__name__", "b")], TimeRange::new(0, 8));
        assert_eq!(found, [(Labels::from_pairs([("__name__", "b")]), vec![exemplar.clone()])]);
        assert!(head.exemplars(&[Matcher::equal("__name__", "a")], TimeRange::ALL).is_empty());
    }
}

#[test]
fn a_histogram_that_contradicts_itself_is_refused() {
    let mut head = new_head();
    let bad = Histogram { positive_spans: vec![BucketSpan { offset: 0, length: 2 }], ..Histogram::default() };
    let series = (Labels::from_pairs([("a", "b")]), vec![(1, Value::Histogram(Arc::new(bad)), 9)]);
    let (batch, picks) = batch_of(&[series]);
    let mut payload = Vec::new();
    let staged = head.stage(&batch, &picks, &LIMITS, &mut payload);
    assert_eq!(head.apply(&batch, &staged).refused[0].reason, Reason::BadHistogram);
    assert_same(&head, &replayed([&payload]));
}

#[test]
fn churn_gives_everything_back() {
    let symbols = Arc::new(Symbols::new());
    let mut head = Head::new(Arc::clone(&symbols), HeadOptions { window_ms: WINDOW });
    for round in 0..20_i64 {
        let at = round * WINDOW;
        let series: Vec<_> = (0..100).map(|i| one(&format!("m_{round}_{i}"), &[(at, 1.0)])).collect();
        let (batch, picks) = batch_of(&series);
        let staged = head.stage(&batch, &picks, &LIMITS, &mut Vec::new());
        assert_eq!(head.apply(&batch, &staged).appended, 100);
        let forgotten = head.forget_before(at, &mut Vec::new()).unwrap();
        assert_eq!(forgotten.series, if round == 0 { 0 } else { 100 });
        assert_eq!((head.series_count(), symbols.len()), (100, 101));
    }
    let counted = head.cardinality(2);
    assert_eq!((counted.series, counted.label_pairs, counted.series_by_metric.len()), (100, 100, 2));
    assert_eq!((counted.values_by_label[0].name.as_str(), counted.values_by_label[0].count), ("__name__", 100));
    drop(head);
    assert!(symbols.is_empty());
}

/// Goal: starts are kept where they are known and nowhere else, and the bytes without them are those of before.
#[test]
fn starts_stay_with_their_samples_and_cost_others_nothing() {
    let with = |samples: &[(i64, f64, i64)]| {
        let samples = samples.iter().map(|(at, v, start)| (*at, Value::Float(*v), *start)).collect();
        batch_of(&[(Labels::from_pairs([("__name__", "a")]), samples)])
    };
    let starts = |head: &Head| {
        let mut columns = Columns::default();
        head.everything()[0].chunks.read(TimeRange::ALL, &mut columns).unwrap();
        columns.starts
    };
    let mut log = Vec::new();
    let mut write = |head: &mut Head, samples: &[(i64, f64, i64)]| {
        let (batch, picks) = with(samples);
        let mut payload = Vec::new();
        let limits = AppendLimits { out_of_order_window_ms: i64::MAX, ..LIMITS };
        let staged = head.stage(&batch, &picks, &limits, &mut payload);
        let receipt = head.apply(&batch, &staged);
        log.push(payload);
        (receipt.appended, receipt.duplicates)
    };
    let mut head = new_head();
    assert_eq!(write(&mut head, &[(20, 1.0, 0), (30, 2.0, 0)]), (2, 0));
    assert!(starts(&head).is_empty());
    assert_eq!(image(&head)[1][0], 4, "a series without starts is written as ever");
    let plain = head.heap_bytes();
    assert_eq!(write(&mut head, &[(40, 3.0, 35), (50, 4.0, 35), (10, 0.5, 5)]), (3, 0));
    assert_eq!(starts(&head), [5, 0, 0, 35, 35]);
    assert!(head.heap_bytes() > plain);
    assert_eq!(write(&mut head, &[(40, 3.0, 99), (20, 1.0, 99)]), (0, 2));
    assert_eq!(starts(&head), [5, 0, 0, 35, 35], "the first start stays");
    assert_eq!((log[0][0], log[1][0], image(&head)[1][0]), (1, 5, 6));
    for other in [replayed(&log), replayed(&image(&head))] {
        assert_same(&head, &other);
        assert_eq!(starts(&other), starts(&head));
    }
}
