//! Goal: a snapshot holds what its tenant has, all of it and nothing else, and any tool of Prometheus reads it. Method:
//! floats and native histograms of two tenants over several windows, written over HTTP; the blocks read back, and by
//! `promtool` (2.42 of Debian, or what `PROMTOOL` names; without it that test says that it was skipped).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test"
)]

#[allow(dead_code, unreachable_pub, reason = "each test crate uses its part of the support")]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engram_model::histogram::{BucketSpan, Histogram};
use engram_model::sample::Value as SampleValue;
use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, TimeRange};
use engram_node::cli::client::{self as cli, Ask, Target};
use engram_storage::block::{BlockDir, Load, Open, Select, verify};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::ranges::drive;
use serde_json::Value;
use support::{TestNode, client, field, snappy, start, varint};

const NOW: i64 = 1_700_000_000_000;
const STEP: i64 = 600_000;
const WINDOW: i64 = 7_200_000;
/// Five hours: three or four windows.
const STEPS: i64 = 30;

type Model = BTreeMap<Labels, BTreeMap<i64, SampleValue>>;

fn floats(tenant: &str, series: i64) -> Model {
    let one = |i: i64| {
        let labels = Labels::from_pairs([("__name__", "load"), ("host", &format!("h{i:02}")), ("of", tenant)]);
        let value = |step: i64| if step % 9 == 8 { f64::INFINITY } else { (i * 100 + step) as f64 / 3.0 };
        (labels, (0..STEPS).map(|step| (NOW + step * STEP + i, SampleValue::Float(value(step)))).collect())
    };
    (0..series).map(one).collect()
}

fn histograms() -> Model {
    let one = |step: i64| {
        let histogram = Histogram {
            schema: 1,
            zero_threshold: 0.001,
            zero_count: step as f64,
            count: (3 * step + 3) as f64,
            sum: 1.5 * step as f64,
            positive_spans: vec![BucketSpan { offset: -2, length: 1 }, BucketSpan { offset: 3, length: 1 }],
            positive_buckets: vec![(step + 1) as f64, (step + 2) as f64],
            ..Histogram::default()
        };
        (NOW + step * STEP, SampleValue::Histogram(Arc::new(histogram)))
    };
    [(Labels::from_pairs([("__name__", "latency"), ("host", "h00")]), (0..STEPS).map(one).collect())].into()
}

fn double(out: &mut Vec<u8>, number: u8, value: f64) {
    out.push(number << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn number(out: &mut Vec<u8>, number: u8, value: u64) {
    out.push(number << 3);
    varint(out, value);
}

fn zigzag(value: i32) -> u64 {
    u64::from(((value << 1) ^ (value >> 31)) as u32)
}

/// Remote write 1.0, histograms with float counts.
fn request(model: &Model) -> Vec<u8> {
    let mut out = Vec::new();
    for (labels, samples) in model {
        let mut one = Vec::new();
        for (name, value) in labels.iter() {
            let mut pair = Vec::new();
            field(&mut pair, 1, name.as_bytes());
            field(&mut pair, 2, value.as_bytes());
            field(&mut one, 1, &pair);
        }
        for (at, value) in samples {
            let mut sample = Vec::new();
            match value {
                SampleValue::Float(value) => {
                    double(&mut sample, 1, *value);
                    number(&mut sample, 2, *at as u64);
                    field(&mut one, 2, &sample);
                }
                SampleValue::Histogram(h) => {
                    double(&mut sample, 2, h.count);
                    double(&mut sample, 3, h.sum);
                    number(&mut sample, 4, zigzag(h.schema));
                    double(&mut sample, 5, h.zero_threshold);
                    double(&mut sample, 7, h.zero_count);
                    for span in &h.positive_spans {
                        let mut bytes = Vec::new();
                        number(&mut bytes, 1, zigzag(span.offset));
                        number(&mut bytes, 2, u64::from(span.length));
                        field(&mut sample, 11, &bytes);
                    }
                    let counts: Vec<u8> = h.positive_buckets.iter().flat_map(|count| count.to_le_bytes()).collect();
                    field(&mut sample, 13, &counts);
                    number(&mut sample, 15, *at as u64);
                    field(&mut one, 4, &sample);
                }
            }
        }
        field(&mut out, 1, &one);
    }
    out
}

async fn write(node: &TestNode, tenant: &str, model: &Model) {
    let (status, text) = node.push_bytes(tenant, snappy(&request(model)), "application/x-protobuf").await;
    assert_eq!(status, 204, "{text}");
}

async fn snapshot(node: &TestNode, tenant: &str, query: &str) -> (u16, Value) {
    let url = format!("{}/api/v1/admin/tsdb/snapshot{query}", node.url);
    let answer = client().post(url).header("X-Scope-OrgID", tenant).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The tenant's folder, by the name that was answered.
fn folder(dir: &Path, answer: &Value, tenant: &str) -> PathBuf {
    let path = dir.join("snapshots").join(answer["data"]["name"].as_str().unwrap()).join(tenant);
    assert_eq!(answer["data"]["path"], path.to_str().unwrap());
    path
}

/// Reads all blocks of a directory, verifying each: none crosses a window.
fn read(dir: &Path) -> Model {
    let mut model = Model::new();
    for name in RealDisk.list_dirs(dir).unwrap() {
        let block_dir = BlockDir::open(&RealDisk, &dir.join(name)).unwrap();
        verify(&block_dir, block_dir.meta()).unwrap();
        let range = block_dir.meta().range();
        assert_eq!((range.start % WINDOW, range.end - range.start), (0, WINDOW));
        let mut open = Open::new(block_dir.place().clone(), block_dir.tombstones().clone());
        let block = Arc::new(drive(&mut open, &block_dir).unwrap());
        let found = drive(&mut Select::new(Arc::clone(&block), vec![], TimeRange::ALL, 1 << 20), &block_dir).unwrap();
        for (labels, chunks) in drive(&mut Load::new(block, found), &block_dir).unwrap() {
            let mut columns = Columns::default();
            chunks.read(TimeRange::ALL, &mut columns).unwrap();
            let floats = columns.times.into_iter().zip(columns.values.into_iter().map(SampleValue::Float));
            let histograms = columns.histograms.into_iter().map(SampleValue::Histogram);
            let samples = model.entry(labels).or_default();
            for (at, value) in floats.chain(columns.histogram_times.into_iter().zip(histograms)) {
                assert!(samples.insert(at, value).is_none(), "twice: {at}");
            }
        }
    }
    model
}

fn everything() -> Model {
    floats("acme", 20).into_iter().chain(histograms()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_holds_all_its_tenant_has_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let (acme, other) = (everything(), floats("other", 3));
    write(&node, "acme", &acme).await;
    write(&node, "other", &other).await;
    let (status, answer) = snapshot(&node, "acme", "").await;
    assert_eq!(status, 200, "{answer}");
    let windows = (NOW + STEPS * STEP) / WINDOW - NOW / WINDOW + 1;
    assert_eq!((&answer["data"]["blocks"], &answer["data"]["samples"]), (&windows.into(), &(21 * STEPS).into()));
    let path = folder(dir.path(), &answer, "acme");
    assert_eq!(read(&path), acme);
    assert_eq!(RealDisk.list_dirs(path.parent().unwrap()).unwrap(), ["acme"], "nobody else's");
    // What is written later does not reach it, but the next one.
    let later: Model =
        [(Labels::from_pairs([("__name__", "later")]), [(NOW + 9 * WINDOW, SampleValue::Float(1.0))].into())].into();
    write(&node, "acme", &later).await;
    assert_eq!(read(&path), acme);
    let (_, next) = snapshot(&node, "acme", "?skip_head=false").await;
    let all: Model = acme.iter().chain(&later).map(|(labels, samples)| (labels.clone(), samples.clone())).collect();
    assert_eq!(read(&folder(dir.path(), &next, "acme")), all);
    // By the command line, for the other tenant.
    let target = Target { url: node.url.clone(), tenant: Some("other".to_owned()), json: true };
    let said = tokio::task::spawn_blocking(move || cli::ask(&Ask::snapshot(&target))).await.unwrap().unwrap();
    let answer: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!(read(&folder(dir.path(), &answer, "other")), other);
    // Nothing is a snapshot, too.
    let (status, answer) = snapshot(&node, "nobody", "").await;
    assert_eq!((status, &answer["data"]["blocks"]), (200, &0.into()));
    assert!(read(&folder(dir.path(), &answer, "nobody")).is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_to_blocks_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let mut all = everything();
    write(&node, "acme", &all).await;
    let url = format!("{}/api/v1/admin/flush?wait=true", node.url);
    let flushed = client().post(url).header("X-Scope-OrgID", "acme").send().await.unwrap();
    assert!(flushed.status().is_success(), "{}", flushed.text().await.unwrap());
    let (_, answer) = snapshot(&node, "acme", "").await;
    assert_eq!(read(&folder(dir.path(), &answer, "acme")), all, "all of it lies in blocks");
    let later = NOW + STEPS * STEP;
    for samples in all.values_mut().filter(|samples| matches!(samples.values().next(), Some(SampleValue::Float(_)))) {
        samples.insert(later, SampleValue::Float(7.0));
    }
    let floats = all.iter().filter(|(_, samples)| samples.contains_key(&later));
    let newest = floats.map(|(labels, _)| (labels.clone(), [(later, SampleValue::Float(7.0))].into()));
    write(&node, "acme", &newest.collect()).await;
    let (status, answer) = snapshot(&node, "acme", "").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(read(&folder(dir.path(), &answer, "acme")), all, "heads and blocks hold parts of one window");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_in_between_do_not_make_it_wrong() {
    // Each answer of 200 says that the blocks were held against the digests of one moment.
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    write(&node, "acme", &everything()).await;
    let writing = async {
        for round in 0..40_i64 {
            let later = floats("acme", 20).into_keys().map(|labels| {
                let at = NOW + STEPS * STEP + round * 1000;
                (labels, [(at, SampleValue::Float(round as f64))].into())
            });
            write(&node, "acme", &later.collect()).await;
        }
    };
    let taking = async {
        let mut counts = Vec::new();
        for _ in 0..6 {
            let (status, answer) = snapshot(&node, "acme", "").await;
            assert_eq!(status, 200, "{answer}");
            let samples: usize = read(&folder(dir.path(), &answer, "acme")).values().map(BTreeMap::len).sum();
            assert_eq!(answer["data"]["samples"], samples);
            counts.push(samples);
        }
        assert!(counts.is_sorted() && counts[0] >= 21 * STEPS as usize, "{counts:?}");
    };
    tokio::join!(writing, taking);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_or_is_refused_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("snapshots");
    std::fs::create_dir_all(root.join("x.tmp-for-creation/acme")).unwrap();
    let node = start(dir.path(), |_| {}).await;
    let left = || RealDisk.list_dirs(&root).unwrap();
    assert_eq!(left(), Vec::<String>::new(), "what a crash has left is gone");
    write(&node, "acme", &everything()).await;
    let (status, answer) = snapshot(&node, "acme", "?skip_head=true").await;
    assert_eq!((status, &answer["errorType"]), (400, &"bad_data".into()));
    assert!(answer["error"].as_str().unwrap().contains("take the snapshot without skip_head"), "{answer}");
    // One at a time: of two, one may be refused, and then says so.
    let (one, two) = tokio::join!(snapshot(&node, "acme", ""), snapshot(&node, "acme", ""));
    let good = [&one, &two].iter().filter(|answer| answer.0 == 200).count();
    for (status, answer) in [&one, &two].into_iter().filter(|answer| answer.0 != 200) {
        assert_eq!((*status, &answer["errorType"]), (409, &"conflict".into()), "{answer}");
    }
    assert!(good >= 1, "{one:?} {two:?}");
    assert_eq!(left().len(), good);
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::write(&root, "in the way").unwrap();
    let (status, answer) = snapshot(&node, "acme", "").await;
    assert_eq!((status, &answer["errorType"]), (500, &"internal".into()), "{answer}");
    std::fs::remove_file(&root).unwrap();
    assert_eq!(snapshot(&node, "acme", "").await.0, 200, "a failure is not remembered");
    assert_eq!(left().len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_reads_a_snapshot() {
    let cached = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/engram/e2e/usr/bin/promtool"));
    let found = std::env::var_os("PROMTOOL").map(PathBuf::from).or_else(cached).filter(|path| path.is_file());
    let Some(promtool) = found else {
        eprintln!("SKIPPED: no promtool, so no snapshot was read by Prometheus");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    write(&node, "acme", &everything()).await;
    write(&node, "other", &floats("other", 3)).await;
    let run = |arguments: &[&str], dir: &Path| {
        std::fs::create_dir_all(dir.join("wal")).unwrap(); // it wants to look for newer samples
        let done = Command::new(&promtool).args(arguments).current_dir(dir).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(done.status.success(), "{arguments:?}: {}{}", text(&done.stdout), text(&done.stderr));
        text(&done.stdout)
    };
    let (_, answer) = snapshot(&node, "acme", "").await;
    let path = folder(dir.path(), &answer, "acme");
    let blocks = RealDisk.list_dirs(&path).unwrap();
    let list = run(&["tsdb", "list", "."], &path);
    assert!(blocks.iter().all(|block| list.contains(block.as_str())), "{list}");
    let (_, answer) = snapshot(&node, "other", "").await;
    let dump = run(&["tsdb", "dump", "."], &folder(dir.path(), &answer, "other"));
    let mut seen = Model::new();
    for line in dump.lines() {
        let (labels, rest) = line.rsplit_once("} ").unwrap();
        let host = labels.split_once("host=\"").unwrap().1.split_once('"').unwrap().0;
        let (value, at) = rest.split_once(' ').unwrap();
        let labels = Labels::from_pairs([("__name__", "load"), ("host", host), ("of", "other")]);
        seen.entry(labels).or_default().insert(at.parse().unwrap(), SampleValue::Float(value.parse().unwrap()));
    }
    assert_eq!(seen, floats("other", 3));
    node.stop().await;
}
