//! Goal: what goes into a block comes out, whole, by matchers and by time, from any source; a block that was damaged
//! or cut short is never taken for a whole one; a crash leaves a whole block or none. Method: random series of floats
//! and histograms beside a map of maps; each byte of a block changed and each length tried; power cut at each write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use engram_model::digest::{Digest, slot_of};
use engram_model::histogram::{BucketSpan, CUSTOM_BUCKETS_SCHEMA, Histogram, ResetHint};
use engram_model::sample::{Value, stale_nan};
use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, MatchOp, Matcher, TimeRange};
use engram_storage::Error;
use engram_storage::block::writer::clean;
use engram_storage::block::{
    Block, BlockDir, BlockId, BlockWriter, LabelValues, Load, Meta, Open, Report, Select, Spec, Tombstones, Written,
    remove, verify,
};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::ranges::{Fetched, File, Place, Reading, Sizes, Source, Step, Want, drive};
use proptest::prelude::*;

const WINDOW: i64 = 1_000_000;
const RANGE: TimeRange = TimeRange { start: -2_000_000, end: 4_000_000 };
const DIR: &str = "tenant";

type Model = BTreeMap<Labels, BTreeMap<i64, Value>>;

fn id() -> BlockId {
    BlockId::new(1_700_000_000_000, 42)
}

fn write(disk: &FaultDisk, model: &Model, spec: Spec) -> Result<Option<Written>, Error> {
    let mut writer = BlockWriter::create(Arc::new(disk.clone()), Path::new(DIR), spec)?;
    for (labels, samples) in model {
        let samples = samples.iter().map(|(at, value)| (*at, ValueRef::from(value)));
        writer.add(labels, &chunk::encode(samples, WINDOW))?;
    }
    writer.finish()
}

fn spec(segment_bytes_max: u64) -> Spec {
    Spec { segment_bytes_max, ..Spec::cut(id(), RANGE, WINDOW) }
}

/// The bytes of a block in memory, as an object store has them.
#[derive(Clone, Debug)]
struct Bucket {
    files: BTreeMap<File, Vec<u8>>,
    sizes: Sizes,
}

impl Bucket {
    fn of(disk: &FaultDisk, written: &Written) -> Self {
        let mut names = vec![File::Meta, File::Index, File::Tombstones];
        names.extend((1..).take(written.sizes.chunks.len()).map(File::Chunks));
        let files = names.into_iter().map(|f| (f, disk.bytes(&written.path.join(f.path())).unwrap())).collect();
        Self { files, sizes: written.meta.sizes().unwrap() }
    }

    fn resize(&mut self) {
        let len = |file| self.files.get(&file).map_or(0, |bytes: &Vec<u8>| bytes.len() as u64);
        self.sizes = Sizes { index: len(File::Index), chunks: vec![len(File::Chunks(1))] };
    }

    fn meta(&self) -> Result<Meta, Error> {
        Meta::read(Path::new("meta.json"), &self.files[&File::Meta])
    }

    fn place(&self) -> Place {
        Place { path: "bucket".into(), sizes: self.sizes.clone() }
    }

    fn open(&self) -> Result<Arc<Block>, Error> {
        let tombstones = Tombstones::read(&self.files[&File::Tombstones])
            .map_err(|broken| Error::broken(Path::new("tombstones"), 0, broken))?;
        Ok(Arc::new(drive(&mut Open::new(self.place(), tombstones), self)?))
    }

    fn read_all(&self) -> Result<Model, Error> {
        let block = self.open()?;
        let found = drive(&mut Select::new(Arc::clone(&block), vec![], TimeRange::ALL, 1 << 20), self)?;
        load(&block, found, self, TimeRange::ALL)
    }

    fn verify(&self) -> Result<Report, Error> {
        verify(self, &self.meta()?)
    }
}

impl Source for Bucket {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn path(&self) -> &Path {
        Path::new("bucket")
    }

    fn read(&self, want: Want) -> Result<Bytes, Error> {
        let bytes = &self.files[&want.file];
        let until = usize::try_from(want.at + want.len).unwrap();
        assert!(until <= bytes.len(), "{want:?} reaches behind the end");
        Ok(Bytes::copy_from_slice(&bytes[usize::try_from(want.at).unwrap()..until]))
    }
}

fn load(
    block: &Arc<Block>,
    found: Vec<engram_storage::block::Found>,
    source: &dyn Source,
    range: TimeRange,
) -> Result<Model, Error> {
    let mut model = Model::new();
    for (labels, chunks) in drive(&mut Load::new(Arc::clone(block), found), source)? {
        let mut columns = Columns::default();
        let read = chunks.read(range, &mut columns);
        read.map_err(|error| Error::corrupt(Path::new("chunk"), 0, error.to_string()))?;
        let samples = model.entry(labels).or_default();
        let floats = columns.times.into_iter().zip(columns.values.into_iter().map(Value::Float));
        let histograms = columns.histogram_times.into_iter().zip(columns.histograms.into_iter().map(Value::Histogram));
        samples.extend(floats.chain(histograms).filter(|(at, _)| range.contains(*at)));
    }
    model.retain(|_, samples| !samples.is_empty());
    Ok(model)
}

fn digests(model: &Model) -> BTreeMap<i64, Digest> {
    let mut slots = BTreeMap::<i64, Digest>::new();
    for (labels, samples) in model {
        for (at, value) in samples {
            slots.entry(slot_of(*at)).or_default().add(match value {
                Value::Float(value) => Digest::of_float(labels.hash128(), *at, *value),
                Value::Histogram(h) => Digest::of_histogram(labels.hash128(), *at, h),
            });
        }
    }
    slots
}

fn same(a: &Model, b: &Model) -> bool {
    let same = |(x, y): (&BTreeMap<i64, Value>, &BTreeMap<i64, Value>)| {
        x.len() == y.len()
            && x.iter().zip(y).all(|((at, v), (at2, v2))| at == at2 && ValueRef::from(v).same(ValueRef::from(v2)))
    };
    a.keys().eq(b.keys()) && a.values().zip(b.values()).all(same)
}

fn histogram(seed: u32, integer: bool) -> Value {
    let count = f64::from(seed % 1000) + if integer { 0.0 } else { 0.5 };
    let reset_hint = if seed.is_multiple_of(5) { ResetHint::Gauge } else { ResetHint::Unknown };
    if seed.is_multiple_of(3) {
        return Value::Histogram(Arc::new(Histogram {
            integer,
            reset_hint,
            schema: CUSTOM_BUCKETS_SCHEMA,
            count,
            sum: f64::from(seed) / 3.0,
            positive_spans: vec![BucketSpan { offset: 0, length: 2 }, BucketSpan { offset: 1, length: 1 }],
            positive_buckets: vec![count, 0.0, 7.0],
            custom_values: vec![0.5, 2.5, f64::from(seed % 7) + 3.0],
            ..Histogram::default()
        }));
    }
    Value::Histogram(Arc::new(Histogram {
        integer,
        reset_hint,
        schema: 3,
        zero_threshold: 0.001,
        zero_count: 2.0,
        count,
        sum: f64::from(seed) / 3.0,
        positive_spans: vec![BucketSpan { offset: -2, length: 2 }, BucketSpan { offset: 3, length: 1 }],
        positive_buckets: vec![count, 0.0, 7.0],
        ..Histogram::default()
    }))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => any::<u64>().prop_map(|bits| Value::Float(f64::from_bits(bits))),
        6 => (-50_i32..50).prop_map(|n| Value::Float(f64::from(n))),
        1 => Just(Value::Float(stale_nan())),
        2 => (any::<u32>(), any::<bool>()).prop_map(|(seed, integer)| histogram(seed, integer)),
    ]
}

fn labels() -> impl Strategy<Value = Labels> {
    let name = prop_oneof![Just("__name__"), Just("a"), Just("job"), Just("z")];
    let value = prop_oneof![3 => "[ab]{0,2}", 2 => "[a-d][0-9]{1,2}", 1 => "\\PC{1,3}"];
    proptest::collection::vec((name, value), 1..4).prop_map(Labels::from_pairs)
}

fn model() -> impl Strategy<Value = Model> {
    let samples = proptest::collection::btree_map(RANGE.start..RANGE.end, value(), 1..60);
    let regular = (RANGE.start..0_i64, 1_i64..10_000, proptest::collection::vec(value(), 1..300))
        .prop_map(|(start, step, values)| (0..).map(|i| start + i * step).zip(values).collect());
    proptest::collection::btree_map(labels(), prop_oneof![samples, regular], 1..120).prop_map(|mut model| {
        model.retain(|labels, _| !labels.is_empty());
        model
    })
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let name = prop_oneof![Just("__name__"), Just("a"), Just("job"), Just("z"), Just("nobody"), Just("")];
    let op = prop_oneof![Just(MatchOp::Equal), Just(MatchOp::NotEqual), Just(MatchOp::Regex), Just(MatchOp::NotRegex)];
    let value = prop_oneof![
        Just(""),
        Just("a"),
        Just("ab|b|"),
        Just("a.*"),
        Just(".+"),
        Just(".*"),
        Just("[a-c]1?.?"),
        Just("b1|a2")
    ];
    (name, op, value).prop_map(|(name, op, value)| Matcher::new(name, op, value).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_goes_in_comes_out(
        model in model(),
        matchers in proptest::collection::vec(matcher(), 0..4),
        (start, len) in (RANGE.start..RANGE.end, 1_i64..3_000_000),
        segment_bytes_max in prop_oneof![Just(1 << 30), Just(2000_u64), Just(10)],
    ) {
        let disk = FaultDisk::new();
        let Some(written) = write(&disk, &model, spec(segment_bytes_max)).unwrap() else {
            prop_assert!(model.is_empty());
            prop_assert!(disk.list_dirs(Path::new(DIR)).unwrap().is_empty());
            return Ok(());
        };
        prop_assert_eq!(&written.report.slots, &digests(&model));
        prop_assert_eq!(written.meta.stats.num_series, model.len() as u64);
        prop_assert_eq!(written.meta.stats.num_samples, model.values().map(|s| s.len() as u64).sum::<u64>());

        let dir = BlockDir::open(&disk, &written.path).unwrap();
        prop_assert_eq!(dir.meta(), &written.meta);
        prop_assert_eq!(&verify(&dir, dir.meta()).unwrap(), &written.report);
        let bucket = Bucket::of(&disk, &written);
        prop_assert!(same(&bucket.read_all().unwrap(), &model));

        let range = TimeRange::new(start, start + len);
        let block = bucket.open().unwrap();
        let found = drive(&mut Select::new(Arc::clone(&block), matchers.clone(), range, 1 << 20), &dir).unwrap();
        prop_assert!(found.is_sorted_by(|a, b| a.labels < b.labels));
        let got = load(&block, found, &bucket, range).unwrap();
        let passes = |labels: &Labels| matchers.iter().all(|m| m.matches(labels.get(&m.name).unwrap_or_default()));
        let mut expected = model.clone();
        expected.retain(|labels, samples| {
            samples.retain(|at, _| range.contains(*at));
            passes(labels) && !samples.is_empty()
        });
        prop_assert!(same(&got, &expected), "{:?} in {:?}: {:?} and not {:?}", matchers, range, got, expected);

        for name in ["__name__", "a", "job", "z", "nobody", ""] {
            let mut values: Vec<_> = model.keys().filter_map(|labels| labels.get(name)).map(str::to_owned).collect();
            values.sort();
            values.dedup();
            prop_assert_eq!(block.index().label_names().any(|have| have == name), !values.is_empty());
            prop_assert_eq!(drive(&mut LabelValues::new(Arc::clone(&block), name), &bucket).unwrap(), values);
        }
    }
}

fn small_model() -> Model {
    let mut model = Model::new();
    for i in 0..20_u32 {
        let labels = Labels::from_pairs([
            ("__name__", "m"),
            ("i", &*format!("{i:03}")),
            ("even", if i % 2 == 0 { "yes" } else { "" }),
        ]);
        let value = |at: i64| match i % 10 {
            9 => histogram(i + u32::try_from(at).unwrap(), i % 20 == 9),
            _ => Value::Float(f64::from(i) / 7.0 + at as f64),
        };
        model.insert(labels, (0..4).map(|at| (at * 400_000 + i64::from(i), value(at))).collect());
    }
    model
}

fn small_bucket() -> Bucket {
    let disk = FaultDisk::new();
    let written = write(&disk, &small_model(), spec(1 << 20)).unwrap().unwrap();
    Bucket::of(&disk, &written)
}

#[test]
fn each_changed_byte_is_found_and_harms_nobody() {
    let bucket = small_bucket();
    bucket.verify().unwrap();
    let whole = bucket.read_all().unwrap();
    for file in [File::Index, File::Chunks(1), File::Tombstones, File::Meta] {
        for at in 0..bucket.files[&file].len() {
            for flip in [1_u8, 0x80] {
                let mut bad = bucket.clone();
                bad.files.get_mut(&file).unwrap()[at] ^= flip;
                if matches!(file, File::Index | File::Chunks(_)) {
                    assert!(bad.verify().is_err(), "{file:?} byte {at} changed by {flip:#x} and not found");
                }
                // A reader looks at less than verify does; what it gives is right or an error.
                if let Ok(read) = bad.read_all() {
                    assert!(same(&read, &whole), "{file:?} byte {at} changed by {flip:#x} gave other samples");
                    assert_ne!(file, File::Tombstones, "byte {at}");
                }
                drop(bad.verify());
            }
        }
    }
}

#[test]
fn each_shorter_file_is_found_and_harms_nobody() {
    let bucket = small_bucket();
    for file in [File::Index, File::Chunks(1)] {
        for len in 0..bucket.files[&file].len() {
            let mut bad = bucket.clone();
            bad.files.get_mut(&file).unwrap().truncate(len);
            bad.resize();
            assert!(bad.verify().is_err(), "{file:?} cut to {len}");
            assert!(bad.read_all().is_err() || len <= 8, "{file:?} cut to {len}");
        }
    }
}

#[test]
fn a_crash_at_any_act_leaves_a_whole_block_or_none() {
    let model = small_model();
    let quiet = FaultDisk::new();
    write(&quiet, &model, spec(3000)).unwrap().unwrap();
    for acts in 0..=quiet.acts() {
        for seed in 0..4 {
            let disk = FaultDisk::new();
            disk.stop_after(acts);
            let answer = write(&disk, &model, spec(3000));
            disk.crash(seed);
            let path = Path::new(DIR).join(id().to_string());
            let names = disk.list_dirs(Path::new(DIR)).unwrap();
            if answer.is_ok() || names.contains(&id().to_string()) {
                let dir = BlockDir::open(&disk, &path).unwrap();
                assert_eq!(verify(&dir, dir.meta()).unwrap().slots, digests(&model), "after {acts} acts");
            } else {
                clean(&disk, Path::new(DIR)).unwrap();
                assert!(disk.list_dirs(Path::new(DIR)).unwrap().is_empty());
                assert!(write(&disk, &model, spec(3000)).unwrap().is_some(), "it can be written again");
            }
            assert!(write(&disk, &model, spec(3000)).is_err(), "a block that is there is not replaced");
            remove(&disk, &path).unwrap();
            assert!(BlockDir::open(&disk, &path).is_err());
        }
    }
}

#[test]
fn a_disk_that_gives_back_other_bytes_yields_no_block() {
    // The bits are turned while the block is unfinished: when the sync fails, memory and disk differ.
    for syncs in 0..4 {
        let disk = FaultDisk::new();
        disk.fail_sync_after(syncs);
        assert!(write(&disk, &small_model(), spec(1 << 20)).is_err(), "sync {syncs}");
        assert!(!disk.list_dirs(Path::new(DIR)).unwrap().contains(&id().to_string()));
    }
}

#[test]
fn what_the_format_forbids_is_refused() {
    let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new());
    let chunks = |times: &[i64]| chunk::encode(times.iter().map(|at| (*at, ValueRef::Float(1.0))), i64::MAX);
    let of = |value: &str| Labels::from_pairs([("a", value)]);
    let refused = |labels: &Labels, chunks: &[chunk::Chunk]| {
        let mut writer = BlockWriter::create(Arc::clone(&disk), Path::new(DIR), spec(1 << 20)).unwrap();
        writer.add(&of("m"), &self::chunk::encode([(5, ValueRef::Float(1.0))], WINDOW)).unwrap();
        matches!(writer.add(labels, chunks), Err(Error::Misuse { .. }))
    };
    assert!(refused(&of("m"), &chunks(&[1])) && refused(&of("a"), &chunks(&[1])), "order of series");
    assert!(refused(&Labels::empty(), &chunks(&[1])) && refused(&of("n"), &[]), "nothing");
    assert!(refused(&of("n"), &chunks(&[RANGE.start - 1])) && refused(&of("n"), &chunks(&[RANGE.end])), "range");
    assert!(refused(&of("n"), &chunks(&[WINDOW - 1, WINDOW])), "window");
    let overlapping: Vec<_> = [chunks(&[1, 5]), chunks(&[5, 9])].concat();
    assert!(refused(&of("n"), &overlapping), "overlap");
    let mut lying = chunks(&[1, 5]);
    lying[0].last = 6;
    assert!(refused(&of("n"), &lying), "times");
    assert!(!refused(&of("n"), &chunks(&[1, 5])));
}

#[test]
fn deleted_times_are_not_read() {
    let mut bucket = small_bucket();
    let block = bucket.open().unwrap();
    let by = vec![Matcher::equal("i", "003")];
    let all = |block: &Arc<Block>, bucket: &Bucket| {
        let found = drive(&mut Select::new(Arc::clone(block), by.clone(), TimeRange::ALL, 9), bucket).unwrap();
        (found[0].series, load(block, found, bucket, TimeRange::ALL).unwrap())
    };
    let (series, before) = all(&block, &bucket);
    assert_eq!(before.values().next().unwrap().len(), 4);
    let mut body = Vec::new();
    engram_storage::codec::put_uvarint(&mut body, series.into());
    engram_storage::codec::put_varint(&mut body, 400_003);
    engram_storage::codec::put_varint(&mut body, 800_003);
    let file = bucket.files.get_mut(&File::Tombstones).unwrap();
    file.truncate(5);
    file.extend_from_slice(&body);
    file.extend_from_slice(&engram_storage::codec::crc32c(&body).to_be_bytes());
    let (_, after) = all(&bucket.open().unwrap(), &bucket);
    assert_eq!(after.values().next().unwrap().keys().copied().collect::<Vec<_>>(), [3, 1_200_003]);
}

#[test]
fn too_many_series_are_refused_before_they_are_read() {
    let bucket = small_bucket();
    let block = bucket.open().unwrap();
    let mut select = Select::new(Arc::clone(&block), vec![], TimeRange::ALL, 19);
    assert!(matches!(drive(&mut select, &bucket), Err(Error::TooLarge { len: 20, max: 19, .. })));
}

/// A large block is opened and read in steps of bounded size, and what stays in memory is small.
#[test]
fn a_large_block_is_read_in_bounded_steps() {
    let disk = FaultDisk::new();
    let mut writer = BlockWriter::create(Arc::new(disk.clone()), Path::new(DIR), spec(1 << 30)).unwrap();
    let chunk = chunk::encode([(5, ValueRef::Float(1.0))], WINDOW);
    for i in 0..60_000 {
        let value = format!("{i:08}-{:0>100}", i);
        writer.add(&Labels::from_pairs([("__name__", "m"), ("pod", &*value)]), &chunk).unwrap();
    }
    let written = writer.finish().unwrap().unwrap();
    let bucket = Bucket::of(&disk, &written);
    assert!(written.sizes.index > 16 << 20, "{:?}", written.sizes);
    let mut largest = 0;
    let block = Arc::new(watch(&mut Open::new(bucket.place(), Tombstones::default()), &bucket, &mut largest));
    assert!(block.index().heap_bytes() < 1 << 20, "{} bytes", block.index().heap_bytes());
    let by = Matcher::new("pod", MatchOp::Regex, ".*9-.*").unwrap();
    let found = watch(&mut Select::new(Arc::clone(&block), vec![by], TimeRange::ALL, 1 << 20), &bucket, &mut largest);
    assert_eq!(found.len(), 6000);
    assert!(largest < 6 << 20, "{largest} bytes in one step");
}

fn watch<R: Reading>(reading: &mut R, source: &dyn Source, largest: &mut u64) -> R::Out {
    let mut have = Fetched::new();
    loop {
        match reading.step(&have).unwrap() {
            Step::Done(out) => return out,
            Step::Need(wants) => {
                *largest = (*largest).max(wants.iter().map(|want| want.len).sum());
                have = Fetched::new();
                wants.into_iter().for_each(|want| have.insert(want, source.read(want).unwrap()));
            }
        }
    }
}

/// A list that names half of all series is not worth fetching for the few that another matcher lets through.
#[test]
fn what_all_series_share_is_not_fetched_for_a_few() {
    let labels = |n: u32| {
        let name = if n.is_multiple_of(2000) { "rare" } else { "often" };
        let job = if n.is_multiple_of(4000) { "a" } else { "b" };
        Labels::from_pairs([("__name__", name.to_owned()), ("i", format!("{n:05}")), ("job", job.to_owned())])
    };
    let sample = BTreeMap::from([(1, Value::Float(1.0))]);
    let model: Model = (0..20_000).map(|n| (labels(n), sample.clone())).collect();
    let disk = FaultDisk::new();
    let written = write(&disk, &model, spec(1 << 20)).unwrap().unwrap();
    let bucket = Bucket::of(&disk, &written);
    let block = bucket.open().unwrap();
    let matcher = |name, op, value| Matcher::new(name, op, value).unwrap();
    let select = |matchers: Vec<Matcher>, series_max| {
        let mut reading = Select::new(Arc::clone(&block), matchers, TimeRange::ALL, series_max);
        let (mut have, mut bytes) = (Fetched::new(), 0);
        loop {
            match reading.step(&have).unwrap() {
                Step::Done(found) => return (found.into_iter().map(|one| one.labels).collect::<Vec<_>>(), bytes),
                Step::Need(wants) => {
                    have = Fetched::new();
                    bytes += wants.iter().map(|want| want.len).sum::<u64>();
                    wants.iter().for_each(|want| have.insert(*want, bucket.read(*want).unwrap()));
                }
            }
        }
    };
    let rare = || matcher("__name__", MatchOp::Equal, "rare");
    for job in [
        matcher("job", MatchOp::Equal, "b"),
        matcher("job", MatchOp::NotEqual, "a"),
        matcher("job", MatchOp::NotRegex, "a|c"),
        matcher("i", MatchOp::NotRegex, "0[048].*"),
    ] {
        let want: Vec<_> = model
            .keys()
            .filter(|l| l.get("__name__") == Some("rare") && job.matches(l.get(&job.name).unwrap_or("")))
            .cloned()
            .collect();
        let (found, bytes) = select(vec![rare(), job.clone()], 1000);
        assert_eq!(found, want);
        assert!(&*job.name == "i" || bytes < 20_000, "{bytes} bytes for {job:?}");
        assert_eq!(
            select(vec![job.clone()], 1 << 20).0.len(),
            model.keys().filter(|l| job.matches(l.get(&job.name).unwrap())).count()
        );
    }
}
