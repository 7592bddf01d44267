//! Goal: what we call a block is one for Prometheus, and the other way round. Method: `promtool` (2.42 of Debian, or
//! what `PROMTOOL` names) lists, analyses and dumps our blocks, and makes blocks that we read and verify. Without it
//! these tests say that they were skipped; `scripts/e2e-binaries` fetches it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engram_model::block::BlockId;
use engram_model::histogram::{BucketSpan, Histogram};
use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, Matcher, TimeRange};
use engram_storage::block::{BlockDir, BlockWriter, Load, Open, Select, Spec, Written, verify};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::ranges::drive;

/// Samples by labels and time, values by their bits.
type Model = BTreeMap<Labels, BTreeMap<i64, u64>>;

const WINDOW: i64 = 7_200_000;
const START: i64 = 1_699_999_200_000;

fn promtool() -> Option<PathBuf> {
    let cached = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/engram/e2e/usr/bin/promtool"));
    let found = std::env::var_os("PROMTOOL").map(PathBuf::from).or_else(cached).filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no promtool, so nothing was compared with Prometheus");
    }
    found
}

fn run(promtool: &Path, arguments: &[&str], dir: &Path) -> String {
    let done = Command::new(promtool).args(arguments).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "promtool {arguments:?}: {}{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

fn model() -> Model {
    let mut model = Model::new();
    for i in 0..300_i64 {
        let (instance, group) = (format!("host-{i:03}"), format!("g{}", i % 7));
        let pairs = [("__name__", "demo_total"), ("instance", &*instance), ("group", &*group), ("path", "a \"b\"\\c")];
        let value = |t: i64| match (i + t) % 50 {
            0 => f64::INFINITY,
            1 => -0.0,
            2 => 1e-300,
            _ => (i * t) as f64 / 3.0,
        };
        let samples = (0..400_i64).map(|t| (START + i + t * 15_000, value(t).to_bits())).collect();
        model.insert(Labels::from_pairs(pairs), samples);
    }
    model.insert(Labels::from_pairs([("__name__", "lonely")]), [(START + 7, 1.5_f64.to_bits())].into());
    model
}

fn write(dir: &Path, model: &Model) -> Written {
    // Small segments, so that there are many.
    let range = TimeRange::new(START, START + WINDOW);
    let spec = Spec { segment_bytes_max: 64 << 10, ..Spec::cut(BlockId::new(START, 7), range, WINDOW) };
    let mut writer = BlockWriter::create(Arc::new(RealDisk), dir, spec).unwrap();
    for (labels, samples) in model {
        let samples = samples.iter().map(|(at, bits)| (*at, ValueRef::Float(f64::from_bits(*bits))));
        writer.add(labels, &chunk::encode(samples, WINDOW)).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// One line of a dump: `{a="b", c="d"} value time`.
fn dumped(line: &str) -> (Labels, i64, u64) {
    let (labels, rest) = line.rsplit_once("} ").unwrap();
    let (value, at) = rest.split_once(' ').unwrap();
    let mut pairs = Vec::new();
    let mut left = labels.trim_start_matches('{');
    while let Some((name, rest)) = left.split_once("=\"") {
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (_, '\\') => value.push(chars.next().unwrap().1),
                (end, '"') => break end,
                (_, letter) => value.push(letter),
            }
        };
        pairs.push((name.to_owned(), value));
        left = rest[end + 1..].trim_start_matches(", ");
    }
    (Labels::from_pairs(pairs), at.parse().unwrap(), value.parse::<f64>().unwrap().to_bits())
}

fn dump(promtool: &Path, dir: &Path) -> Model {
    std::fs::create_dir_all(dir.join("wal")).unwrap(); // it wants to look for newer samples
    let mut model = Model::new();
    for line in run(promtool, &["tsdb", "dump", "."], dir).lines() {
        let (labels, at, bits) = dumped(line);
        assert!(model.entry(labels).or_default().insert(at, bits).is_none(), "twice: {line}");
    }
    model
}

/// Reads all blocks of a directory, verifying each.
fn read(dir: &Path) -> Model {
    let mut model = Model::new();
    for name in RealDisk.list_dirs(dir).unwrap().iter().filter(|name| name.parse::<BlockId>().is_ok()) {
        let block_dir = BlockDir::open(&RealDisk, &dir.join(name)).unwrap();
        verify(&block_dir, block_dir.meta()).unwrap();
        let mut open = Open::new(block_dir.place().clone(), block_dir.tombstones().clone());
        let block = Arc::new(drive(&mut open, &block_dir).unwrap());
        let by = vec![Matcher::new("__name__", engram_model::MatchOp::Regex, ".+").unwrap()];
        let found = drive(&mut Select::new(Arc::clone(&block), by, TimeRange::ALL, 1 << 20), &block_dir).unwrap();
        for (labels, chunks) in drive(&mut Load::new(block, found), &block_dir).unwrap() {
            let mut columns = Columns::default();
            chunks.read(TimeRange::ALL, &mut columns).unwrap();
            let samples = columns.times.into_iter().zip(columns.values.into_iter().map(f64::to_bits));
            model.entry(labels).or_default().extend(samples);
        }
    }
    model
}

#[test]
fn promtool_reads_our_blocks() {
    let Some(promtool) = promtool() else { return };
    let (dir, model) = (tempfile::tempdir().unwrap(), model());
    let written = write(dir.path(), &model);
    assert!(written.sizes.chunks.len() > 5, "{:?}", written.sizes);

    let list = run(&promtool, &["tsdb", "list", "."], dir.path());
    let row: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    let stats = written.meta.stats;
    let counts = [stats.num_samples, stats.num_chunks, stats.num_series].map(|n| n.to_string());
    assert_eq!((row[0], &row[4..7]), (&*written.meta.ulid.to_string(), &counts.each_ref().map(|n| &**n)[..]), "{list}");

    let analysis = run(&promtool, &["tsdb", "analyze", "."], dir.path());
    for fact in [&*format!("Series: {}", model.len()), "Label names: 4", "Postings (unique label pairs): 310"] {
        assert!(analysis.contains(fact), "{fact}: {analysis}");
    }
    assert_eq!(dump(&promtool, dir.path()), model);
}

#[test]
fn we_read_the_blocks_of_promtool() {
    let Some(promtool) = promtool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from("# TYPE m gauge\n");
    let mut model = Model::new();
    for i in 0..500_i64 {
        for t in 0..300_i64 {
            let (at, value) = (START / 1000 + t * 60, (i * 1000 + t) as f64 / 8.0);
            text.push_str(&format!("m{{i=\"{i}\",even=\"{}\"}} {value} {at}\n", i % 2 == 0));
            let labels =
                Labels::from_pairs([("__name__", "m"), ("i", &*i.to_string()), ("even", &*(i % 2 == 0).to_string())]);
            model.entry(labels).or_default().insert(at * 1000, value.to_bits());
        }
    }
    text.push_str("# EOF\n");
    std::fs::write(dir.path().join("text"), text).unwrap();
    run(&promtool, &["tsdb", "create-blocks-from", "openmetrics", "text", "data"], dir.path());
    let data = dir.path().join("data");
    assert!(RealDisk.list_dirs(&data).unwrap().len() > 2, "five hours are several blocks");
    assert!(read(&data) == model, "what we read differs from what promtool was given");
    assert!(dump(&promtool, &data) == model, "promtool itself");
}

/// Histograms: promtool must find the block sound and count its samples; what it prints of them is not ours to parse.
#[test]
fn promtool_reads_our_histograms() {
    let Some(promtool) = promtool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let range = TimeRange::new(START, START + WINDOW);
    let spec = Spec::cut(BlockId::new(START, 8), range, WINDOW);
    let mut writer = BlockWriter::create(Arc::new(RealDisk), dir.path(), spec).unwrap();
    for (kind, integer) in [("float", false), ("integer", true)] {
        let at = |i: u32| START + i64::from(i) * 15_000;
        let all: Vec<_> = (0..300_u32).map(|i| (at(i), Arc::new(histogram(i, integer)))).collect();
        let chunks = chunk::encode(all.iter().map(|(at, h)| (*at, ValueRef::Histogram(h))), WINDOW);
        writer.add(&Labels::from_pairs([("__name__", "h"), ("kind", kind)]), &chunks).unwrap();
    }
    writer.finish().unwrap().unwrap();
    std::fs::create_dir_all(dir.path().join("wal")).unwrap();
    let analysis = run(&promtool, &["tsdb", "analyze", "."], dir.path());
    assert!(analysis.contains("Series: 2"), "{analysis}");
    let list = run(&promtool, &["tsdb", "list", "."], dir.path());
    let row: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[4], row[6]), ("600", "2"), "{list}");
    // It prints floats only, but decodes what it meets, and fails where it cannot.
    assert_eq!(run(&promtool, &["tsdb", "dump", "."], dir.path()), "");
}

fn histogram(i: u32, integer: bool) -> Histogram {
    let unit = if integer { 1.0 } else { 0.25 };
    let n = f64::from(i);
    Histogram {
        integer,
        schema: 1,
        zero_threshold: 0.001,
        zero_count: n * unit,
        count: n * 4.0 * unit,
        sum: n * 1.5,
        positive_spans: vec![BucketSpan { offset: 0, length: 2 }, BucketSpan { offset: 2, length: 1 }],
        positive_buckets: vec![n * unit, n * unit, n * unit],
        ..Histogram::default()
    }
}
