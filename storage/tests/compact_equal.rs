//! Goal: what a merge gives is the union of its sources, one sample for each series and time, less what was deleted,
//! and what it says it dropped is exactly the rest; a crash leaves whole blocks or none and never harms a source; a
//! damaged source is named. Method: random series spread over several blocks beside a map of maps; power cut at each
//! act, each sync failed, each write damaged, or the disk full after any number of bytes; bytes of sources changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use engram_model::block::{BlockId, Shard};
use engram_model::digest::Digest;
use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::{Value, stale_nan};
use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, Matcher, TimeRange};
use engram_storage::Error;
use engram_storage::block::writer::clean;
use engram_storage::block::{Block, BlockDir, BlockWriter, Load, Open, Select, Spec, Written, verify};
use engram_storage::chunk::{self, Kind, ValueRef};
use engram_storage::compact::{Failure, Hidden, Input, Merged, Progress, Target, Task, merge};
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::ranges::{Source, drive};
use proptest::prelude::*;

const WINDOW: i64 = 1_000_000;
const RANGE: TimeRange = TimeRange { start: 0, end: 4_000_000 };
const DIR: &str = "tenant";

type Model = BTreeMap<Labels, BTreeMap<i64, Value>>;

fn write(disk: &FaultDisk, id: u128, model: &Model, window: i64) -> Option<Written> {
    let spec = Spec::cut(BlockId(id), RANGE, window);
    let mut writer = BlockWriter::create(Arc::new(disk.clone()), Path::new(DIR), spec).unwrap();
    for (labels, samples) in model.iter().filter(|(_, samples)| !samples.is_empty()) {
        let samples = samples.iter().map(|(at, value)| (*at, ValueRef::from(value)));
        writer.add(labels, &chunk::encode(samples, window)).unwrap();
    }
    writer.finish().unwrap()
}

fn input(disk: &FaultDisk, written: &Written, as_of: u64) -> Input {
    let block = BlockDir::open(disk, &written.path).unwrap();
    Input { block, digest: written.report.digest(), as_of }
}

fn task(inputs: Vec<Input>, targets: Vec<Target>, hidden: Vec<Hidden>) -> Task {
    Task { inputs, targets, hidden, window_ms: WINDOW, level: 2, labels: BTreeMap::new() }
}

fn target(id: u128, range: TimeRange, shard: Option<Shard>) -> Target {
    Target { id: BlockId(id), range, shard }
}

fn run(disk: &FaultDisk, task: &Task) -> Result<Merged, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    merge(&disk, Path::new(DIR), task, &Progress::default())
}

fn read(disk: &FaultDisk, written: &Written) -> Model {
    let dir = BlockDir::open(disk, &written.path).unwrap();
    let open = drive(&mut Open::new(dir.place().clone(), dir.tombstones().clone()), &dir).unwrap();
    let block: Arc<Block> = Arc::new(open);
    let found = drive(&mut Select::new(Arc::clone(&block), vec![], TimeRange::ALL, 1 << 20), &dir).unwrap();
    let mut model = Model::new();
    for (labels, chunks) in drive(&mut Load::new(Arc::clone(&block), found), &dir).unwrap() {
        let mut columns = Columns::default();
        chunks.read(TimeRange::ALL, &mut columns).unwrap();
        let floats = columns.times.into_iter().zip(columns.values.into_iter().map(Value::Float));
        let histograms = columns.histogram_times.into_iter().zip(columns.histograms.into_iter().map(Value::Histogram));
        assert!(model.insert(labels, floats.chain(histograms).collect()).is_none(), "a series is there twice");
    }
    model
}

fn digest_of(labels: &Labels, at: i64, value: &Value) -> Digest {
    match value {
        Value::Float(value) => Digest::of_float(labels.hash128(), at, *value),
        Value::Histogram(h) => Digest::of_histogram(labels.hash128(), at, h),
    }
}

/// The greater of two samples of one time.
fn greater(a: Value, b: Value) -> Value {
    let rank = |value: &Value| match value {
        Value::Float(value) => (0, value.to_bits(), 0),
        Value::Histogram(h) => {
            let digest = Digest::of_histogram(0, 0, h);
            (1, digest.high, digest.low)
        }
    };
    if rank(&a) >= rank(&b) { a } else { b }
}

/// The union of the models, and what is dropped on the way: doubles, deleted.
fn union(models: &[Model], hidden: &[(Hidden, &[bool])]) -> (Model, Digest, Digest) {
    let (mut all, mut doubles, mut deleted) = (Model::new(), Digest::EMPTY, Digest::EMPTY);
    for (i, model) in models.iter().enumerate() {
        for (labels, samples) in model {
            for (at, value) in samples {
                let gone = |(h, applies): &&(Hidden, &[bool])| applies[i] && h.range.contains(*at) && h.selects(labels);
                if hidden.iter().any(|one| gone(&one)) {
                    deleted.add(digest_of(labels, *at, value));
                    continue;
                }
                doubles.add(digest_of(labels, *at, value));
                let samples = all.entry(labels.clone()).or_default();
                let value = match samples.remove(at) {
                    None => value.clone(),
                    Some(have) => greater(have, value.clone()),
                };
                samples.insert(*at, value);
            }
        }
    }
    all.iter().for_each(|(l, samples)| samples.iter().for_each(|(at, v)| doubles.remove(digest_of(l, *at, v))));
    (all, doubles, deleted)
}

fn same(a: &Model, b: &Model) -> bool {
    let same = |(x, y): (&BTreeMap<i64, Value>, &BTreeMap<i64, Value>)| {
        x.len() == y.len()
            && x.iter().zip(y).all(|((at, v), (at2, v2))| at == at2 && ValueRef::from(v).same(ValueRef::from(v2)))
    };
    a.keys().eq(b.keys()) && a.values().zip(b.values()).all(same)
}

fn histogram(seed: u32, integer: bool) -> Value {
    let count = f64::from(seed % 100) + if integer { 0.0 } else { 0.5 };
    Value::Histogram(Arc::new(Histogram {
        integer,
        reset_hint: [ResetHint::Unknown, ResetHint::Gauge, ResetHint::NoReset][seed as usize % 3],
        schema: 3,
        zero_threshold: 0.001,
        zero_count: 2.0,
        count,
        sum: f64::from(seed) / 3.0,
        positive_spans: vec![BucketSpan { offset: -2, length: 2 }],
        positive_buckets: vec![count, 7.0],
        ..Histogram::default()
    }))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => (0_i32..4).prop_map(|n| Value::Float(f64::from(n))),
        1 => Just(Value::Float(stale_nan())),
        3 => (0_u32..9, any::<bool>()).prop_map(|(seed, integer)| histogram(seed, integer)),
    ]
}

fn labels() -> impl Strategy<Value = Labels> {
    (0..6_u32, 0..3_u32).prop_map(|(a, b)| Labels::from_pairs([("a", a.to_string()), ("b", "x".repeat(b as usize))]))
}

fn model() -> impl Strategy<Value = Model> {
    // On a coarse grid, so that sources often have the same times.
    let sparse = proptest::collection::btree_map((0..400_i64).prop_map(|n| n * 10_000), value(), 1..60);
    let regular = (0..3_000_000_i64, proptest::collection::vec(value(), 1..250))
        .prop_map(|(start, values)| (0..).map(|i| start / 1000 * 1000 + i * 4000).zip(values).collect());
    proptest::collection::btree_map(labels(), prop_oneof![sparse, regular], 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_merge_is_the_union_and_conserves_the_digest(
        mut models in proptest::collection::vec(model(), 1..6),
        copy in any::<bool>(),
        shards in 1_u32..4,
        in_time in any::<bool>(),
        hides in proptest::collection::vec((0..6_u32, 0..400_i64, 1..200_i64, 1_u64..6), 0..3),
        windows in proptest::collection::vec(prop_oneof![3 => Just(WINDOW), 1 => Just(7_777_777)], 6),
    ) {
        if copy {
            models.push(models[0].clone());
        }
        let disk = FaultDisk::new();
        // Block i is made as of index i.
        let written: Vec<_> = (0..models.len()).map(|i| write(&disk, 100 + i as u128, &models[i], windows[i % 6])).collect();
        let inputs: Vec<_> = (0_u64..).zip(&written).filter_map(|(i, w)| Some(input(&disk, w.as_ref()?, i))).collect();
        if inputs.is_empty() {
            return Ok(());
        }
        let hidden: Vec<Hidden> = hides.iter().map(|(a, start, len, index)| Hidden {
            index: *index,
            selectors: vec![vec![Matcher::equal("a", &a.to_string()), Matcher::equal("b", "")], vec![Matcher::equal("b", "xx")]],
            range: TimeRange::new(start * 10_000, (start + len) * 10_000),
        }).collect();
        let applies: Vec<Vec<bool>> = hidden.iter().map(|h| (0..models.len() as u64).map(|i| h.index > i).collect()).collect();
        let hides: Vec<_> = hidden.iter().cloned().zip(applies.iter().map(Vec::as_slice)).collect();
        let (expected, doubles, deleted) = union(&models, &hides);

        let times = if in_time { vec![(0, WINDOW), (WINDOW, RANGE.end)] } else { vec![(0, RANGE.end)] };
        let mut targets = Vec::new();
        for (start, end) in times {
            for index in 0..shards {
                let shard = (shards > 1).then_some(Shard { index, count: shards });
                targets.push(target(targets.len() as u128 + 1, TimeRange::new(start, end), shard));
            }
        }
        let merged = run(&disk, &task(inputs, targets, hidden)).unwrap();
        prop_assert_eq!((merged.duplicates, merged.deleted), (doubles, deleted));
        let mut got = Model::new();
        for (target, written) in &merged.blocks {
            let dir = BlockDir::open(&disk, &written.path).unwrap();
            prop_assert_eq!(&verify(&dir, dir.meta()).unwrap(), &written.report);
            for (labels, samples) in read(&disk, written) {
                let index = u32::try_from(labels.hash128() % u128::from(shards)).unwrap();
                prop_assert!(target.shard.is_none_or(|shard| shard.index == index));
                prop_assert!(samples.keys().all(|at| target.range.contains(*at)));
                got.entry(labels).or_default().extend(samples);
            }
        }
        prop_assert!(same(&got, &expected), "{:?} and not {:?}", got, expected);
    }
}

fn floats(name: &str, times: impl IntoIterator<Item = i64>) -> Model {
    let samples = times.into_iter().map(|at| (at, Value::Float(at as f64))).collect();
    Model::from([(Labels::from_pairs([("a", name)]), samples)])
}

fn two_sources(disk: &FaultDisk) -> Vec<Written> {
    let mut first = floats("1", (0..200).map(|n| n * 5000));
    first.extend(floats("2", [1, 2, 3]));
    let mut second = floats("1", (100..300).map(|n| n * 5000));
    second.extend(floats("3", [7]));
    [(101, first), (102, second)].into_iter().map(|(id, model)| write(disk, id, &model, WINDOW).unwrap()).collect()
}

fn merge_two(disk: &FaultDisk, sources: &[Written]) -> Result<Merged, Failure> {
    let inputs = sources.iter().map(|written| input(disk, written, 0)).collect();
    let half = |index| target(u128::from(index) + 1, RANGE, Some(Shard { index, count: 2 }));
    run(disk, &task(inputs, vec![half(0), half(1)], vec![]))
}

#[test]
fn a_crash_at_any_act_leaves_whole_blocks_or_none_and_the_sources_whole() {
    let quiet = FaultDisk::new();
    let sources = two_sources(&quiet);
    let before = quiet.acts();
    let whole: Digest = merge_two(&quiet, &sources).unwrap().blocks.iter().map(|(_, w)| w.report.digest()).sum();
    let acts = quiet.acts() - before;
    assert!(acts > 20, "{acts} acts");
    for stop in 0..acts {
        for seed in 0..3 {
            let disk = FaultDisk::new();
            let sources = two_sources(&disk);
            disk.stop_after(stop);
            let answer = merge_two(&disk, &sources);
            disk.crash(seed);
            for source in &sources {
                let dir = BlockDir::open(&disk, &source.path).unwrap();
                assert_eq!(verify(&dir, dir.meta()).unwrap(), source.report, "a source is harmed after {stop} acts");
            }
            clean(&disk, Path::new(DIR)).unwrap();
            for name in disk.list_dirs(Path::new(DIR)).unwrap() {
                let dir = BlockDir::open(&disk, &Path::new(DIR).join(&name)).unwrap();
                verify(&dir, dir.meta()).unwrap();
                if name.parse::<BlockId>().unwrap().0 < 100 {
                    engram_storage::block::remove(&disk, &Path::new(DIR).join(&name)).unwrap();
                }
            }
            let again: Digest = merge_two(&disk, &sources).unwrap().blocks.iter().map(|(_, w)| w.report.digest()).sum();
            assert_eq!(again, whole);
            assert!(answer.is_err(), "it was stopped before its end");
        }
    }
}

#[test]
fn a_full_disk_ends_a_merge_and_it_is_done_when_there_is_room() {
    let whole = whole_merge();
    for free in (0..).step_by(61) {
        let disk = FaultDisk::new();
        let sources = two_sources(&disk);
        disk.leave_free(free);
        match merge_two(&disk, &sources) {
            Ok(_) => {
                assert!(free > 600, "a merge wants room: {free} bytes");
                return;
            }
            Err(Failure::Other(Error::Io { source, .. })) => assert_eq!(source.kind(), ErrorKind::StorageFull),
            Err(other) => panic!("{free} bytes of room: {other}"),
        }
        disk.fill(false);
        merged_again(&disk, &sources, whole, &format!("{free} bytes of room"));
    }
}

/// Nothing but the sources is left, they are whole, and the merge can be made now.
fn merged_again(disk: &FaultDisk, sources: &[Written], whole: Digest, what: &str) {
    clean(disk, Path::new(DIR)).unwrap();
    assert_eq!(disk.list_dirs(Path::new(DIR)).unwrap().len(), 2, "{what}: only the sources are left");
    for source in sources {
        let dir = BlockDir::open(disk, &source.path).unwrap();
        assert_eq!(verify(&dir, dir.meta()).unwrap(), source.report, "{what}: a source is harmed");
    }
    let again: Digest = merge_two(disk, sources).unwrap().blocks.iter().map(|(_, w)| w.report.digest()).sum();
    assert_eq!(again, whole, "{what}");
}

fn whole_merge() -> Digest {
    let disk = FaultDisk::new();
    let sources = two_sources(&disk);
    merge_two(&disk, &sources).unwrap().blocks.iter().map(|(_, written)| written.report.digest()).sum()
}

#[test]
fn any_sync_may_fail_under_a_merge() {
    let whole = whole_merge();
    for syncs in 0.. {
        let disk = FaultDisk::new();
        let sources = two_sources(&disk);
        disk.fail_sync_after(syncs);
        let merged = merge_two(&disk, &sources);
        if !disk.has_failed_sync() {
            assert!(syncs >= 4, "a block of four files has more than {syncs} syncs");
            return;
        }
        assert!(matches!(merged, Err(Failure::Other(Error::Io { .. }))), "sync {syncs}: {merged:?}");
        merged_again(&disk, &sources, whole, &format!("sync {syncs}"));
    }
}

#[test]
fn what_the_disk_damages_of_a_result_is_noticed() {
    let whole = whole_merge();
    for writes in 0.. {
        let disk = FaultDisk::new();
        let sources = two_sources(&disk);
        disk.damage_write(Path::new(DIR), writes);
        let merged = merge_two(&disk, &sources);
        if !disk.has_damaged_write() {
            assert!(writes >= 4, "a block of four files has more than {writes} writes");
            return;
        }
        assert!(merged.is_err(), "write {writes}: a damaged block is handed out");
        merged_again(&disk, &sources, whole, &format!("write {writes}"));
    }
}

#[test]
fn a_damaged_source_is_named_and_nothing_is_left() {
    let mut found = 0;
    for file in ["index", "chunks/000001"] {
        let len = {
            let disk = FaultDisk::new();
            disk.bytes(&two_sources(&disk)[1].path.join(file)).unwrap().len()
        };
        for at in (0..len).step_by(7) {
            let disk = FaultDisk::new();
            let sources = two_sources(&disk);
            let inputs: Vec<_> = sources.iter().map(|written| input(&disk, written, 0)).collect();
            disk.flip(&sources[1].path.join(file), at as u64, 3);
            match run(&disk, &task(inputs, vec![target(1, RANGE, None)], vec![])) {
                Err(Failure::Source { id: BlockId(102), .. }) => found += 1,
                Err(other) => panic!("{file} byte {at}: {other:?}"),
                // Posting lists are not looked at; what they say is in the series too.
                Ok(merged) => assert_eq!(merged.blocks[0].1.report.digest().count, 304, "{file} byte {at}"),
            }
            let names = disk.list_dirs(Path::new(DIR)).unwrap();
            assert!(names.len() == 2 || names.contains(&BlockId(1).to_string()), "{names:?}");
        }
    }
    assert!(found > 100, "{found} damages found");
}

#[test]
fn a_source_that_is_not_what_was_agreed_is_named() {
    let disk = FaultDisk::new();
    let sources = two_sources(&disk);
    let mut inputs: Vec<_> = sources.iter().map(|written| input(&disk, written, 0)).collect();
    inputs[0].digest.low ^= 1;
    let failed = run(&disk, &task(inputs, vec![target(1, RANGE, None)], vec![])).unwrap_err();
    assert!(matches!(failed, Failure::Source { id: BlockId(101), source: Error::Corrupt { .. } }), "{failed}");
    assert_eq!(disk.list_dirs(Path::new(DIR)).unwrap().len(), 2);
}

#[test]
fn a_stopped_merge_leaves_nothing_and_what_makes_no_sense_is_refused() {
    let disk = FaultDisk::new();
    let sources = two_sources(&disk);
    let inputs = || sources.iter().map(|written| input(&disk, written, 0)).collect::<Vec<_>>();
    let stopped = Progress::default();
    stopped.cancel();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let failed = merge(&shared, Path::new(DIR), &task(inputs(), vec![target(1, RANGE, None)], vec![]), &stopped);
    assert!(matches!(failed, Err(Failure::Cancelled)));
    let divides = [(0, WINDOW / 2), (WINDOW / 2, RANGE.end)].map(|(s, e)| target(9, TimeRange::new(s, e), None));
    let part = target(1, RANGE, Some(Shard { index: 0, count: 1 << 20 }));
    for bad in [task(vec![], vec![target(1, RANGE, None)], vec![]), task(inputs(), divides.to_vec(), vec![])] {
        assert!(matches!(run(&disk, &bad), Err(Failure::Other(Error::Misuse { .. }))));
    }
    let lost = run(&disk, &task(inputs(), vec![part], vec![]));
    assert!(matches!(lost, Err(Failure::Other(Error::Misuse { .. }))), "a part of the series has no place");
    assert_eq!(disk.list_dirs(Path::new(DIR)).unwrap().len(), 2);
}

#[test]
fn everything_deleted_leaves_no_block() {
    let disk = FaultDisk::new();
    let sources = two_sources(&disk);
    let inputs = sources.iter().map(|written| input(&disk, written, 4)).collect();
    let all = |index| Hidden { index, selectors: vec![vec![]], range: TimeRange::ALL };
    let merged = run(&disk, &task(inputs, vec![target(1, RANGE, None)], vec![all(4), all(5)])).unwrap();
    assert!(merged.blocks.is_empty());
    assert_eq!(merged.deleted.count, 404);
}

/// The bytes of all chunks of a series of one block.
fn chunks_of(disk: &FaultDisk, written: &Written) -> Vec<chunk::Chunk> {
    let dir = BlockDir::open(disk, &written.path).unwrap();
    let block = Arc::new(drive(&mut Open::new(dir.place().clone(), dir.tombstones().clone()), &dir).unwrap());
    let found = drive(&mut Select::new(Arc::clone(&block), vec![], TimeRange::ALL, 9), &dir).unwrap();
    drive(&mut Load::new(block, found), &dir).unwrap().iter().flat_map(|(_, c)| c.chunks.clone()).collect()
}

#[test]
fn chunks_are_copied_and_say_nothing_of_a_neighbour_they_no_longer_have() {
    let counter = |from: i64, step: i64, n: i64| -> Model {
        let sample = |i: i64| {
            let Value::Histogram(mut h) = histogram(0, true) else { unreachable!() };
            let h2 = Arc::make_mut(&mut h);
            h2.count = 10.0 + (from + i * step) as f64;
            h2.positive_buckets = vec![h2.count, 7.0];
            h2.reset_hint = if i == 0 { ResetHint::Unknown } else { ResetHint::NoReset };
            (from + i * step, Value::Histogram(h))
        };
        Model::from([(Labels::from_pairs([("a", "1")]), (0..n).map(sample).collect())])
    };
    let flags = |chunks: &[chunk::Chunk]| chunks.iter().map(|chunk| chunk.bytes[2] >> 6).collect::<Vec<_>>();
    let disk = FaultDisk::new();
    // Three chunks; then one sample of another block comes before the third.
    let long = write(&disk, 101, &counter(0, 1000, 300), WINDOW).unwrap();
    assert_eq!(flags(&chunks_of(&disk, &long)), [0, 1, 1], "each but the first says that there was no reset");
    let alone = run(&disk, &task(vec![input(&disk, &long, 0)], vec![target(1, RANGE, None)], vec![])).unwrap();
    assert_eq!(flags(&chunks_of(&disk, &alone.blocks[0].1)), [0, 1, 1]);
    let late = write(&disk, 102, &counter(239_500, 1000, 1), WINDOW).unwrap();
    let inputs = [&long, &late].map(|written| input(&disk, written, 0)).into();
    let merged = run(&disk, &task(inputs, vec![target(2, RANGE, None)], vec![])).unwrap();
    let chunks = chunks_of(&disk, &merged.blocks[0].1);
    assert_eq!(flags(&chunks), [0, 1, 0, 0], "the third has another one before it");
    assert_eq!(chunks.iter().map(|chunk| chunk.count).collect::<Vec<_>>(), [120, 120, 1, 60]);
    assert!(chunks.iter().all(|chunk| chunk.kind == Kind::Histogram));
    assert_eq!(chunks[0].bytes, chunks_of(&disk, &long)[0].bytes);
}

#[test]
fn equal_chunks_of_two_blocks_are_one() {
    let disk = FaultDisk::new();
    let model = floats("1", (0..500).map(|n| n * 5000));
    let both = [101, 102].map(|id| write(&disk, id, &model, WINDOW).unwrap());
    let inputs = both.iter().map(|written| input(&disk, written, 0)).collect();
    let merged = run(&disk, &task(inputs, vec![target(1, RANGE, None)], vec![])).unwrap();
    assert_eq!(merged.duplicates, both[0].report.digest());
    let bytes = |written: &Written| chunks_of(&disk, written).iter().map(|c| c.bytes.to_vec()).collect::<Vec<_>>();
    assert_eq!(bytes(&merged.blocks[0].1), bytes(&both[0]));
    let meta = &merged.blocks[0].1.meta;
    assert_eq!((meta.compaction.level, meta.compaction.sources.len(), meta.compaction.parents.len()), (2, 2, 2));
    assert_eq!(BlockDir::open(&disk, &merged.blocks[0].1.path).unwrap().sizes(), &merged.blocks[0].1.sizes);
}
