//! Goal: a head holds what a map of maps would hold, answers as a walk over all series would, and comes back from its
//! log. Method: random batches (late, doubled, conflicting, floats and histograms, new and old series), random
//! matchers, forgetting and checkpoints, beside a naive model that knows the rules in their plainest form.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

mod checks;
mod model;
mod run;
mod steps;

use std::path::Path;
use std::sync::Arc;

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::{Exemplar, Metadata, MetricKind, Value};
use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, Matcher, TimeRange};
use engram_storage::chunk::ChunkFiles;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::head::{AppendLimits, Head, HeadOptions, NotForgotten, NotSealed, Reason, Symbols, keep_full};
use proptest::prelude::*;

use model::{LIMITS, Stamped, WINDOW, assert_same, batch_of, image, new_head, replayed};
use run::{Run, head_in};
use steps::{matcher, step};

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
    #[test]
    fn a_head_is_a_map_of_maps(
        steps in proptest::collection::vec(step(), 1..16),
        queries in proptest::collection::vec((proptest::collection::vec(matcher(), 0..4), 0_i64..4_200_000, 0_i64..2_000_000), 4),
        checkpoint_at in 0_usize..16,
    ) {
        let mut run = Run::new(new_head());
        let mut checkpoint = 0;
        for (i, step) in steps.iter().enumerate() {
            if i == checkpoint_at {
                checkpoint = run.log.len();
                run.log.extend(image(&run.head));
            }
            run.step(i, step);
        }
        run.check(&queries);
        let Run { head, log, .. } = run;
        // The whole log with a checkpoint in it, the log from the checkpoint on, and a checkpoint of the end.
        assert_same(&head, &replayed(&log));
        assert_same(&head, &replayed(&log[checkpoint..]));
        assert_same(&head, &replayed(&image(&head)));
    }

    /// Goal: where full chunks lie is seen by nobody, and a checkpoint that names files is whole without the log before
    /// it. Method: as above, with chunks put into files now and then; the power fails after the checkpoint.
    #[test]
    fn a_head_in_files_is_the_same_head(
        steps in proptest::collection::vec(step(), 1..10),
        keep in proptest::collection::vec(any::<bool>(), 10),
        queries in proptest::collection::vec((proptest::collection::vec(matcher(), 0..4), 0_i64..4_200_000, 0_i64..2_000_000), 2),
        seed in any::<u64>(),
    ) {
        let disk = FaultDisk::new();
        let files = || ChunkFiles::open_all(&(Arc::new(disk.clone()) as _), Path::new("d"), 1, 1).unwrap().remove(0);
        let first = files();
        let mut run = Run::new(head_in(&first));
        for ((i, step), keep) in steps.iter().enumerate().zip(keep) {
            run.step(i, step);
            if keep {
                let mut full = run.head.take_full();
                keep_full(&first, &mut full).unwrap();
                prop_assert!(full.iter().all(|one| one.chunk.bytes.place().is_some()));
                run.head.put_kept(full);
                prop_assert!(!first.is_due() && run.head.take_full().is_empty());
            }
        }
        run.check(&queries);
        first.sync().unwrap();
        let payloads = image(&run.head);
        let digests = run.head.digests().clone();
        let named = first.held().0;
        drop(std::mem::replace(&mut run.head, new_head()));
        disk.crash(seed);
        let second = files();
        run.head = head_in(&second);
        for payload in &payloads {
            run.head.replay(payload).unwrap();
        }
        second.collect();
        prop_assert_eq!(run.head.digests(), &digests);
        run.check(&queries);
        prop_assert!(image(&run.head) == payloads);
        // Once nobody holds them and no checkpoint names them, no file is left.
        run.head = new_head();
        second.pin();
        second.collect();
        prop_assert_eq!(disk.list(Path::new("d")).unwrap().is_empty(), named == 0, "a checkpoint names them still");
        second.release();
        second.collect();
        prop_assert_eq!(disk.list(Path::new("d")).unwrap().len(), 0);
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
        for kind in 1..13 {
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

/// Goal: a sealed window is a line that nothing crosses. Method: by hand, what the random test meets by chance.
#[test]
fn what_is_frozen_never_changes_and_what_is_late_waits() {
    let mut head = new_head();
    let mut log = Vec::new();
    let write = |head: &mut Head, samples: &[(i64, f64)], limits: &AppendLimits, log: &mut Vec<Vec<u8>>| {
        let (batch, picks) = batch_of(&[one("a", samples)]);
        log.push(Vec::new());
        let staged = head.stage(&batch, &picks, limits, log.last_mut().unwrap());
        let receipt = head.apply(&batch, &staged);
        (receipt.appended, receipt.duplicates, receipt.refused.first().map(|refused| refused.reason))
    };
    let late = AppendLimits { out_of_order_window_ms: i64::MAX, ..LIMITS };
    let repair = AppendLimits { repair: true, ..LIMITS };
    assert_eq!(write(&mut head, &[(10, 1.0), (20, 2.0), (WINDOW, 3.0)], &LIMITS, &mut log), (3, 0, None));
    log.push(Vec::new());
    let window = TimeRange::new(0, WINDOW);
    let part = head.seal(1, window, log.last_mut().unwrap()).unwrap();
    assert_eq!((part.sample_count(), part.series_count(), part.digest().count), (2, 1, 2));
    assert_eq!(head.seal(1, window, &mut Vec::new()).unwrap_err(), NotSealed::Old { number: 1, sealed: 1 });
    // A retry is a duplicate, another value is refused, in repair too nothing changes; a late sample is live.
    assert_eq!(write(&mut head, &[(20, 2.0)], &LIMITS, &mut log), (0, 1, None));
    assert_eq!(write(&mut head, &[(20, 9.0)], &late, &mut log), (0, 0, Some(Reason::DuplicateDifferentValue)));
    assert_eq!(write(&mut head, &[(20, 9.0)], &repair, &mut log), (0, 1, None));
    assert_eq!(write(&mut head, &[(15, 1.5)], &LIMITS, &mut log), (0, 0, Some(Reason::OutOfOrder)));
    assert_eq!(write(&mut head, &[(15, 1.5)], &late, &mut log), (1, 0, None));
    assert_eq!(part.sample_count(), 2);
    let stats: Vec<_> = head.windows().iter().map(|stat| (stat.window.start, stat.samples)).collect();
    assert_eq!(stats, [(0, 1), (WINDOW, 1)]);
    let read = |head: &Head| {
        let mut columns = Columns::default();
        head.everything()[0].chunks.read(TimeRange::ALL, &mut columns).unwrap();
        columns.times
    };
    assert_eq!(read(&head), [10, 15, 20, WINDOW]);
    // The late sample goes with a seal of its own, and both parts are there at once.
    log.push(Vec::new());
    assert_eq!(head.seal(2, window, log.last_mut().unwrap()).unwrap().sample_count(), 1);
    assert_eq!(read(&head), [10, 15, 20, WINDOW]);
    assert_same(&head, &replayed(&log));
    assert_same(&head, &replayed(&image(&head)));
    log.push(Vec::new());
    assert_eq!(head.forget_frozen(1, 70, log.last_mut().unwrap()).unwrap().samples, 2);
    assert_eq!(head.forget_frozen(1, 70, &mut Vec::new()), Err(NotForgotten::NotFrozen { number: 1 }));
    assert_eq!((read(&head), head.forgotten_after(window)), (vec![15, WINDOW], 70));
    assert_eq!((head.forgotten_after(TimeRange::new(WINDOW, 2 * WINDOW)), head.sealed()), (0, 2));
    for other in [replayed(&log), replayed(&image(&head))] {
        assert_same(&head, &other);
        assert_eq!((other.forgotten_after(window), other.sealed()), (70, 2));
    }
}

#[test]
fn a_replay_by_several_threads_is_as_one_by_one() {
    // So many samples that there is work for three; some late, some twice, some of a series that comes in the middle.
    let (mut head, mut log) = (new_head(), Vec::new());
    let names: Vec<String> = (0..1200).map(|n| format!("s{n}")).collect();
    let late = AppendLimits { out_of_order_window_ms: 1 << 40, ..LIMITS };
    for scrape in 0..90_i64 {
        let sample = |(n, name): (i64, &String)| {
            let odd = if (n + scrape) % 97 == 0 { scrape - 3 } else { scrape };
            one(name, &[(odd * 10, (n * scrape) as f64)])
        };
        let known = if scrape < 40 { 600 } else { names.len() };
        let series: Vec<_> = (0..).zip(&names[..known]).map(sample).collect();
        let (batch, picks) = batch_of(&series);
        let mut payload = Vec::new();
        let staged = head.stage(&batch, &picks, &late, &mut payload);
        head.apply(&batch, &staged);
        log.push(payload);
    }
    let mut in_bulk = new_head();
    log.iter().for_each(|payload| in_bulk.gather(payload, 3).unwrap());
    assert_eq!(in_bulk.settle(), head.sample_count());
    assert_same(&head, &in_bulk);
    assert_eq!(in_bulk.digests(), &in_bulk.recompute_digests().unwrap());
    assert_same(&head, &replayed(&log));
}

#[test]
fn series_that_hold_nothing_are_dropped() {
    let mut head = new_head();
    let mut log = vec![Vec::new()];
    let limits = AppendLimits { in_order_age_max_ms: 1000, ..LIMITS };
    let (batch, picks) = batch_of(&[one("a", &[(10_000, 1.0)]), one("old", &[(1, 1.0)])]);
    let staged = head.stage(&batch, &picks, &limits, &mut log[0]);
    assert_eq!(head.sweep(&mut Vec::new()).unwrap_err().batches, 1);
    head.apply(&batch, &staged);
    assert_eq!((head.series_count(), head.bare_count()), (2, 1));
    assert_same(&head, &replayed(&image(&head)));
    log.push(Vec::new());
    assert_eq!(head.sweep(&mut log[1]).unwrap(), 1);
    assert_eq!((head.series_count(), head.bare_count()), (1, 0));
    let mut nothing = Vec::new();
    assert_eq!((head.sweep(&mut nothing).unwrap(), nothing.len()), (0, 0));
    assert_same(&head, &replayed(&log));
    head.seal(1, TimeRange::new(0, WINDOW), &mut Vec::new()).unwrap();
    assert!(!head.is_empty());
    head.forget_frozen(1, 5, &mut Vec::new()).unwrap();
    assert!(head.is_empty() && head.label_names(&[], TimeRange::ALL).is_empty());
}

/// Goal: what holds for floats that come late, twice or differently holds for native histograms: exponential ones, those
/// with custom buckets, gauges. Method: by hand, on each side of the window.
#[test]
fn histograms_come_late_and_twice_as_floats_do() {
    let exponential = |count: f64| Histogram {
        integer: true,
        schema: 3,
        count,
        sum: 2.0 * count,
        positive_spans: vec![BucketSpan { offset: -2, length: 2 }],
        positive_buckets: vec![count - 1.0, 1.0],
        ..Histogram::default()
    };
    let custom = |count: f64| Histogram {
        schema: -53,
        custom_values: vec![0.5, 1.0],
        positive_spans: vec![BucketSpan { offset: 0, length: 3 }],
        ..Histogram { positive_buckets: vec![count - 2.0, 1.0, 1.0], ..exponential(count) }
    };
    let gauge = |count: f64| Histogram { reset_hint: ResetHint::Gauge, ..exponential(count) };
    let kinds: [&dyn Fn(f64) -> Histogram; 3] = [&exponential, &custom, &gauge];
    for (i, of) in kinds.into_iter().enumerate() {
        let mut head = new_head();
        let mut log = Vec::new();
        let mut write = |head: &mut Head, at: i64, count: f64, late_ms: i64| {
            let sample = (at, Value::Histogram(Arc::new(of(count))), 0);
            let (batch, picks) = batch_of(&[(Labels::from_pairs([("__name__", "h")]), vec![sample])]);
            let limits = AppendLimits { out_of_order_window_ms: late_ms, ..LIMITS };
            let mut payload = Vec::new();
            let staged = head.stage(&batch, &picks, &limits, &mut payload);
            log.push(payload);
            let receipt = head.apply(&batch, &staged);
            (receipt.appended, receipt.duplicates, receipt.refused.first().map(|refused| refused.reason))
        };
        assert_eq!(write(&mut head, 100_000, 9.0, 0), (1, 0, None), "kind {i}");
        assert_eq!(write(&mut head, 70_000, 6.0, 0), (0, 0, Some(Reason::OutOfOrder)));
        assert_eq!(write(&mut head, 70_000, 6.0, 30_000), (1, 0, None));
        assert_eq!(write(&mut head, 69_999, 5.0, 30_000), (0, 0, Some(Reason::TooOld)));
        assert_eq!(write(&mut head, 70_000, 6.0, 0), (0, 1, None));
        assert_eq!(write(&mut head, 70_000, 7.0, 30_000), (0, 0, Some(Reason::DuplicateDifferentValue)));
        assert_eq!(write(&mut head, 100_000, 9.0, 0), (0, 1, None));
        let mut columns = Columns::default();
        head.everything()[0].chunks.read(TimeRange::ALL, &mut columns).unwrap();
        assert_eq!(columns.histogram_times, [70_000, 100_000]);
        let counts: Vec<_> = columns.histograms.iter().map(|h| (h.count, h.custom_values.len())).collect();
        assert_eq!(counts, [(6.0, of(6.0).custom_values.len()), (9.0, of(9.0).custom_values.len())]);
        assert_eq!(head.digests(), &head.recompute_digests().unwrap());
        assert_same(&head, &replayed(&log));
    }
}

#[test]
fn chunks_too_few_for_a_file_wait_until_there_are_twice_as_many() {
    let disk = FaultDisk::new();
    let files = ChunkFiles::open_all(&(Arc::new(disk.clone()) as _), Path::new("d"), 1, 2000).unwrap().remove(0);
    let mut head = head_in(&files);
    let fill = |head: &mut Head, window: i64| {
        let samples: Vec<_> =
            (0_u8..121).map(|i| (window * WINDOW + i64::from(i) * 1000, f64::from(i).sqrt())).collect();
        let (batch, picks) = batch_of(&[one("a", &samples)]);
        let staged = head.stage(&batch, &picks, &LIMITS, &mut Vec::new());
        assert_eq!(head.apply(&batch, &staged).appended, 121);
    };
    let mut window = 0;
    while !files.is_due() {
        fill(&mut head, window);
        window += 1;
    }
    let mut full = head.take_full();
    keep_full(&files, &mut full).unwrap();
    head.put_kept(full);
    assert!(disk.list(Path::new("d")).unwrap().is_empty() && !files.is_due(), "{window} windows, a chunk each");
    (window..2 * window).for_each(|window| fill(&mut head, window));
    assert!(files.is_due());
    assert_eq!(head.digests(), &head.recompute_digests().unwrap());
}
