//! A head's answers held against the model's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engram_model::digest::Digest;
use engram_model::sample::Value;
use engram_model::series::{Columns, SampleSource, Wanted};
use engram_model::{Matcher, TimeRange};
use engram_storage::head::Head;

use crate::model::{Model, same};

pub fn check_content(head: &Head, model: &Model, matchers: &[Matcher], range: TimeRange) {
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
pub fn check_wanted(head: &Head, matchers: &[Matcher], range: TimeRange) {
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

pub fn check_some(
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

pub fn check_labels(head: &Head, model: &Model, matchers: &[Matcher]) {
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

/// Frozen parts hold what was set aside and nothing else, and nothing was lost on the way.
pub fn check_frozen(head: &Head, model: &Model) {
    assert_eq!(head.sealed(), model.sealed);
    assert_eq!(
        head.frozen_parts().map(|part| part.number()).collect::<Vec<_>>(),
        model.parts.keys().copied().collect::<Vec<_>>()
    );
    let mut frozen = 0;
    for (number, want) in &model.parts {
        let part = head.frozen(*number).unwrap();
        assert_eq!((part.window().start, part.window().end), want.window);
        assert_eq!(part.digest(), model.digest_of_part(want), "part {number}");
        assert!(part.digests().values().all(|digest| *digest != Digest::EMPTY));
        let mut found = BTreeSet::new();
        for series in head.frozen_series(part) {
            let mut columns = Columns::default();
            series.chunks.read(TimeRange::ALL, &mut columns).unwrap();
            assert_eq!(columns.starts, model.starts_of(&series.labels, &columns.times), "{}", series.labels);
            let times = columns.times.iter().chain(&columns.histogram_times);
            found.extend(times.map(|at| (series.labels.clone(), *at)));
        }
        assert!(found == want.samples, "part {number}");
        frozen += part.sample_count();
    }
    let live: u64 = head.windows().iter().map(|window| window.samples).sum();
    assert_eq!(live + frozen, head.sample_count());
    let mut held: Digest = head.digests().values().copied().sum();
    assert_eq!(held, model.digest());
    held.add(model.forgotten);
    assert_eq!(held, model.accepted, "what was taken is held or was forgotten");
}
