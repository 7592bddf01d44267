//! Goal: what is taken out by remote read and by `engram export` is what was stored, bit for bit, and other tools take
//! it. Method: floats of all kinds and native histograms in both forms, written over HTTP; what comes out is written
//! back under another tenant, counted as digests, or given to `promtool` (2.42 of Debian, or what `PROMTOOL` names;
//! without it that test says that it was skipped).
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

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use engram_model::Labels;
use engram_model::digest::Digest;
use engram_model::sample::stale_nan;
use engram_model::series::Columns;
use engram_node::cli::export::{Export, Format, run};
use engram_node::cli::import::{Import, Labels as ExternalLabels};
use engram_node::cli::verify::Verify;
use engram_node::read::remote::frames::{FrameReader, Part};
use engram_node::read::remote::wire::{
    Field, Fields, put_bytes, put_double_always, put_number, put_number_always, put_varint, put_zigzag, zigzag,
};
use engram_storage::block::{BlockDir, verify};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::options::Options;
use serde_json::Value;
use support::{TestNode, at, client, open, snappy, start};

const NOW: i64 = 1_700_000_000_000;
const STEP: i64 = 30_001;
const STEPS: i64 = 700;
const SERIES: i64 = 7;

fn value(series: i64, step: i64) -> f64 {
    match step % 50 {
        11 => f64::INFINITY,
        12 => -0.0,
        13 => f64::NAN,
        49 if series == 3 => stale_nan(),
        _ => (series * 1000 + step) as f64 / 7.0,
    }
}

fn labels_field(out: &mut Vec<u8>, labels: &Labels) {
    for (name, value) in labels.iter() {
        let mut pair = Vec::new();
        put_bytes(&mut pair, 1, name.as_bytes());
        put_bytes(&mut pair, 2, value.as_bytes());
        put_bytes(out, 1, &pair);
    }
}

fn float_labels(i: i64) -> Labels {
    Labels::from_pairs([("__name__", if i % 2 == 0 { "even" } else { "odd:name" }), ("host", &*format!("h\"{i}\\\n"))])
}

/// A histogram of the wire, with counts that differ from step to step.
fn histogram(step: i64, integer: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let (first, second) = (step as u64 + 1, 2 * step as u64);
    if integer {
        put_number_always(&mut out, 1, first + second + 3)
    } else {
        put_double_always(&mut out, 2, 0.5 + step as f64)
    }
    put_double_always(&mut out, 3, step as f64 * 1.5);
    put_zigzag(&mut out, 4, 2);
    put_double_always(&mut out, 5, 0.001);
    if integer {
        put_number_always(&mut out, 6, 3)
    } else {
        put_double_always(&mut out, 7, 0.25)
    }
    for (offset, length) in [(-3, 1), (2, 1)] {
        let mut span = Vec::new();
        put_zigzag(&mut span, 1, offset);
        put_number(&mut span, 2, length);
        put_bytes(&mut out, 11, &span);
    }
    let mut packed = Vec::new();
    if integer {
        put_varint(&mut packed, zigzag(first as i64));
        put_varint(&mut packed, zigzag(second as i64 - first as i64));
        put_bytes(&mut out, 12, &packed);
    } else {
        [0.125, step as f64].iter().for_each(|count| packed.extend_from_slice(&count.to_le_bytes()));
        put_bytes(&mut out, 13, &packed);
    }
    put_number(&mut out, 15, (NOW + step * STEP) as u64);
    out
}

fn request() -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..SERIES {
        let mut series = Vec::new();
        labels_field(&mut series, &float_labels(i));
        for step in 0..STEPS {
            let mut sample = Vec::new();
            put_double_always(&mut sample, 1, value(i, step));
            put_number(&mut sample, 2, (NOW + step * STEP) as u64);
            put_bytes(&mut series, 2, &sample);
        }
        put_bytes(&mut out, 1, &series);
    }
    for (name, integer) in [("latency_whole", true), ("latency", false)] {
        let mut series = Vec::new();
        labels_field(&mut series, &Labels::from_pairs([("__name__", name)]));
        (0..STEPS).for_each(|step| put_bytes(&mut series, 4, &histogram(step, integer)));
        put_bytes(&mut out, 1, &series);
    }
    out
}

async fn write(node: &TestNode, tenant: &str, body: &[u8]) {
    let (status, text) = node.push_bytes(tenant, snappy(body), "application/x-protobuf").await;
    assert_eq!(status, 204, "{text}");
}

fn query(start: i64, end: i64, matchers: &[(u64, &str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 1, start as u64);
    put_number(&mut out, 2, end as u64);
    for (kind, name, value) in matchers {
        let mut one = Vec::new();
        put_number(&mut one, 1, *kind);
        put_bytes(&mut one, 2, name.as_bytes());
        put_bytes(&mut one, 3, value.as_bytes());
        put_bytes(&mut out, 3, &one);
    }
    out
}

/// Status, type and body of a read.
async fn read(node: &TestNode, tenant: &str, queries: &[Vec<u8>], chunks: bool) -> (u16, String, Vec<u8>) {
    let mut body = Vec::new();
    queries.iter().for_each(|query| put_bytes(&mut body, 1, query));
    if chunks {
        put_bytes(&mut body, 2, &[1, 0]);
    }
    let request = client().post(format!("{}/api/v1/read", node.url)).header("X-Scope-OrgID", tenant);
    let answer = request.header("Accept-Encoding", "gzip").body(snappy(&body)).send().await.unwrap();
    let status = answer.status().as_u16();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let encoding = answer.headers().get("content-encoding").map(|value| value.to_str().unwrap().to_owned());
    if status == 200 {
        assert_eq!(encoding.as_deref(), (!chunks).then_some("snappy"));
    }
    (status, kind, answer.bytes().await.unwrap().to_vec())
}

fn results(body: &[u8]) -> Vec<Vec<u8>> {
    let plain = snap::raw::Decoder::new().decompress_vec(body).unwrap();
    let (mut all, mut fields) = (Vec::new(), Fields::new(&plain));
    while let Some((1, Field::Bytes(result))) = fields.next_field().unwrap() {
        all.push(result.to_vec());
    }
    all
}

fn parts(body: &[u8]) -> Vec<Part> {
    let mut reader = FrameReader::default();
    reader.push(body);
    let mut all = Vec::new();
    while let Some(part) = reader.next_part().unwrap() {
        all.push(part);
    }
    assert!(reader.is_empty());
    all
}

fn digest_of(parts: &[Part]) -> Digest {
    let mut sum = Digest::EMPTY;
    for part in parts {
        let (mut columns, hash) = (Columns::default(), part.labels.hash128());
        part.chunks.iter().for_each(|chunk| chunk.decode(&mut columns).unwrap());
        for (at, value) in columns.times.iter().zip(&columns.values) {
            sum.add(Digest::of_float(hash, *at, *value));
        }
        for (at, histogram) in columns.histogram_times.iter().zip(&columns.histograms) {
            sum.add(Digest::of_histogram(hash, *at, histogram));
        }
    }
    sum
}

async fn stored(node: &TestNode, tenant: &str) -> Value {
    let (status, json) = node.get(tenant, "admin/digests").await;
    assert_eq!(status, 200);
    json["data"]["total"].clone()
}

fn shown(digest: Digest) -> Value {
    serde_json::json!({"count": digest.count, "low": format!("{:016x}", digest.low), "high": format!("{:016x}", digest.high)})
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_read_gives_back_what_was_written_in_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    write(&node, "acme", &request()).await;
    let all = [query(0, i64::MAX, &[])];
    // A result of the sampled form is a body of remote write: written back, it is the same to the last bit.
    let (status, kind, body) = read(&node, "acme", &all, false).await;
    assert_eq!((status, kind.as_str()), (200, "application/x-protobuf"));
    let result = results(&body).remove(0);
    write(&node, "copy", &result).await;
    let want = stored(&node, "acme").await;
    assert_eq!(want["count"], (SERIES + 2) * STEPS);
    assert_eq!(stored(&node, "copy").await, want);
    // The streamed form holds the same samples, series in order, whatever the order of time asked for.
    let (status, kind, body) = read(&node, "acme", &all, true).await;
    assert_eq!((status, kind.as_str()), (200, "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse"));
    let found = parts(&body);
    assert_eq!(shown(digest_of(&found)), want);
    assert!(found.is_sorted_by(|a, b| a.labels <= b.labels));
    // Several queries, all kinds of matchers, ranges with both ends inside.
    let (from, until) = (NOW + 10 * STEP, NOW + 19 * STEP);
    let host = "h\"4\\\n";
    let queries = [
        query(from, until, &[(0, "host", host)]),
        query(from, until, &[(1, "host", host), (2, "__name__", "ev.+")]),
        query(until, from, &[]),
        query(from, until, &[(3, "__name__", "even|odd.*")]),
        query(0, 5, &[]),
    ];
    let (_, _, body) = read(&node, "acme", &queries, true).await;
    let mut seen: BTreeMap<u64, Vec<(String, usize)>> = BTreeMap::new();
    for part in parts(&body) {
        let samples = part.chunks.iter().map(|chunk| usize::from(chunk.count)).sum();
        seen.entry(part.query).or_default().push((part.labels.metric_name().to_owned(), samples));
    }
    let even = |count| vec![("even".to_owned(), 10); count];
    let names = ["latency", "latency_whole"].map(|name| (name.to_owned(), 10)).to_vec();
    assert_eq!(seen, BTreeMap::from([(0, even(1)), (1, even(3)), (3, names)]));
    let (_, _, body) = read(&node, "acme", &queries, false).await;
    let sizes: Vec<bool> = results(&body).iter().map(Vec::is_empty).collect();
    assert_eq!(sizes, [false, false, true, false, true], "one result a query, in their order");
    assert_eq!(read(&node, "nobody", &all, true).await.2, b"");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_beyond_the_limits_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.limits.max_samples_per_query = 2000).await;
    write(&node, "acme", &request()).await;
    let all = [query(0, i64::MAX, &[])];
    let (status, _, body) = read(&node, "acme", &all, false).await;
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(status == 422 && text.contains("max_samples_per_query") && text.contains("STREAMED"), "{status} {text}");
    assert_eq!(read(&node, "acme", &all, true).await.0, 200, "streamed, memory is bounded anyway");
    let change =
        serde_json::json!({"version": 0, "limits": {"max_fetched_series_per_query": 5, "max_query_length_ms": 1000}});
    let url = format!("{}/api/v1/admin/tenants/acme", node.url);
    let answer = client().get(&url).send().await.unwrap().json::<Value>().await.unwrap();
    let mut change = change;
    change["version"] = answer["data"]["version"].as_u64().unwrap_or(0).into();
    let answer =
        client().put(&url).header("content-type", "application/json").body(change.to_string()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200, "{}", answer.text().await.unwrap());
    let (status, _, body) = read(&node, "acme", &all, true).await;
    assert!(status == 400 && String::from_utf8_lossy(&body).contains("max_query_length_ms"));
    let short = [query(NOW, NOW + 900, &[]), query(NOW, NOW + 900, &[])];
    let (status, _, body) = read(&node, "acme", &short, true).await;
    assert!(status == 429 && String::from_utf8_lossy(&body).contains("max_fetched_series_per_query"));
    node.stop().await;
}

async fn export(node: &TestNode, format: Format, selectors: &[&str], output: &Path) {
    let export = Export {
        url: node.url.clone(),
        tenant: Some("acme".to_owned()),
        format,
        selectors: selectors.iter().map(|text| (*text).to_owned()).collect(),
        start: None,
        end: None,
        output: Some(output.to_owned()),
    };
    let said = tokio::task::spawn_blocking(move || run(&export)).await.unwrap().unwrap();
    assert!(said.is_good);
}

/// The blocks of a directory by name; the empty `wal` beside them is for tools.
fn blocks_in(dir: &Path) -> Vec<String> {
    let mut names = RealDisk.list_dirs(dir).unwrap();
    names.retain(|name| name != "wal");
    names
}

/// The digest of all blocks of a directory, each verified.
fn blocks_digest(dir: &Path) -> (usize, Digest) {
    let names = blocks_in(dir);
    let verified = names.iter().map(|name| {
        let block = BlockDir::open(&RealDisk, &dir.join(name)).unwrap();
        verify(&block, block.meta()).unwrap().digest()
    });
    (names.len(), verified.sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_blocks_hold_all_that_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir.path().join("data"), |_| {}).await;
    write(&node, "acme", &request()).await;
    let (two, day) = (dir.path().join("two"), dir.path().join("day"));
    export(&node, Format::Blocks(7_200_000), &[], &two).await;
    let (count, digest) = blocks_digest(&two);
    assert_eq!(
        (count as i64, shown(digest)),
        ((NOW + STEPS * STEP) / 7_200_000 - NOW / 7_200_000 + 1, stored(&node, "acme").await)
    );
    // Selectors that overlap: nothing twice.
    export(&node, Format::Blocks(86_400_000), &["even", "{__name__=~\"even|latency\"}", "{host!=\"x\"}"], &day).await;
    assert_eq!(shown(blocks_digest(&day).1), stored(&node, "acme").await);
    node.stop().await;
}

/// Imports a directory for a tenant; the last line, and whether all went well.
async fn import(node: &TestNode, tenant: &str, source: &Path) -> (String, bool) {
    let import = Import {
        url: node.url.clone(),
        tenant: Some(tenant.to_owned()),
        source: Options { url: source.to_str().unwrap().to_owned(), ..Options::default() },
        labels: ExternalLabels { add: true, drop: vec!["replica".to_owned()] },
        dry_run: false,
        work: source.parent().unwrap().to_owned(),
    };
    let said = tokio::task::spawn_blocking(move || engram_node::cli::import::run(&import)).await.unwrap().unwrap();
    (said.text, said.is_good)
}

async fn verify_all(node: &TestNode, deep: bool) -> (String, bool) {
    let verify = Verify { url: node.url.clone(), tenant: None, deep, json: false };
    let said = tokio::task::spawn_blocking(move || engram_node::cli::verify::run(&verify)).await.unwrap().unwrap();
    (said.text, said.is_good)
}

/// The store is as agreed; a flipped bit, a missing object and a block that nobody knows are told.
async fn verified_as_agreed(node: &TestNode, stored: &Path, count: usize) {
    for deep in [false, true] {
        let (text, is_good) = verify_all(node, deep).await;
        assert!(is_good && text.starts_with(&format!("{count} blocks, ")) && text.contains("0 orphans"), "{text}");
    }
    let first = stored.join(blocks_in(stored).remove(0));
    let (index, tombstones) = (first.join("index"), first.join("tombstones"));
    let (good, kept) = (std::fs::read(&index).unwrap(), std::fs::read(&tombstones).unwrap());
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&index, bad).unwrap();
    std::fs::remove_file(&tombstones).unwrap();
    let stray = stored.join("01ARZ3NDEKTSV4RRFFQ69G5FA0");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("index"), b"x").unwrap();
    let (text, is_good) = verify_all(node, false).await;
    assert!(!is_good && text.contains("1 damaged") && text.contains("1 orphans"), "{text}");
    assert!(
        text.contains("checksum") && text.contains("missing") && text.contains("01ARZ3NDEKTSV4RRFFQ69G5FA0"),
        "{text}"
    );
    std::fs::write(&index, good).unwrap();
    std::fs::write(&tombstones, kept).unwrap();
    std::fs::remove_dir_all(&stray).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_imported_once_and_only_when_they_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = start(&data, |_| {}).await;
    write(&node, "acme", &request()).await;
    let source = dir.path().join("source");
    export(&node, Format::Blocks(7_200_000), &[], &source).await;
    let (count, digest) = blocks_digest(&source);
    let (text, is_good) = import(&node, "copy", &source).await;
    assert_eq!(
        text,
        format!(
            "{count} imported ({} samples), 0 there already, 0 skipped, 0 refused, of {count} blocks\n",
            digest.count
        )
    );
    assert!(is_good);
    let stored = data.join("blocks/copy");
    assert_eq!(blocks_digest(&stored), (count, digest));
    // Queries read the imported blocks as they read what was written.
    assert_eq!(self::stored(&node, "copy").await, self::stored(&node, "acme").await);
    let all = [query(0, i64::MAX, &[])];
    let (written, imported) = (read(&node, "acme", &all, true).await.2, read(&node, "copy", &all, true).await.2);
    assert_eq!(digest_of(&parts(&imported)), digest_of(&parts(&written)));
    let (text, _) = import(&node, "copy", &source).await;
    assert!(text.starts_with(&format!("0 imported (0 samples), {count} there already")), "{text}");
    verified_as_agreed(&node, &stored, count).await;
    // A damaged one is refused, by name, and nothing of it stays; the others are taken.
    let first = blocks_in(&source).remove(0);
    let chunks = source.join(&first).join("chunks/000001");
    let good = std::fs::read(&chunks).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&chunks, &bad).unwrap();
    let (text, is_good) = import(&node, "other", &source).await;
    assert!(!is_good && text.contains("1 refused"), "{text}");
    assert_eq!(blocks_in(&data.join("blocks/other")).len(), count - 1);
    assert_eq!(RealDisk.list_dirs(&data.join("imports")).unwrap(), Vec::<String>::new());
    // It goes on where it was, and a block of Thanos gets its external labels.
    std::fs::write(&chunks, &good).unwrap();
    let meta = source.join(&first).join("meta.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
    json["thanos"]["labels"] = serde_json::json!({"cluster": "eu", "replica": "a"});
    std::fs::write(&meta, json.to_string()).unwrap();
    let (text, is_good) = import(&node, "other", &source).await;
    assert!(is_good && text.starts_with("1 imported"), "{text}");
    let names = blocks_in(&data.join("blocks/other"));
    assert_eq!(names.len(), count);
    let new = names.last().unwrap();
    let index = std::fs::read(data.join("blocks/other").join(new).join("index")).unwrap();
    let has = |text: &str| index.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("cluster") && !has("replica"));
    assert!(import(&node, "other", &source).await.0.starts_with("0 imported"), "a rewritten one is known, too");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_quarantined_and_replaced_by_its_backup() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (opened, stop) = open(&data, |config| config.blocks.scrub_bytes_per_second = 1 << 40).await;
    let node = at(&opened);
    write(&node, "acme", &request()).await;
    let source = dir.path().join("source");
    export(&node, Format::Blocks(86_400_000), &[], &source).await;
    assert!(import(&node, "copy", &source).await.1);
    opened.scrub().await.unwrap();
    let known = async |id: &str| node.get("copy", &format!("admin/import/{id}")).await.1["data"]["known"].clone();
    let id = blocks_in(&source).remove(0);
    assert_eq!(known(&id).await, "here");
    // A bit of its only segment flips.
    let stored = data.join("blocks/copy");
    let damaged = blocks_in(&stored).remove(0);
    let chunks = stored.join(&damaged).join("chunks/000001");
    let good = std::fs::read(&chunks).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 8;
    std::fs::write(&chunks, &bad).unwrap();
    opened.scrub().await.unwrap();
    assert_eq!(known(&id).await, "damaged");
    let metrics = client().get(format!("{}/metrics", node.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("engram_blocks_quarantined 1"), "{metrics}");
    assert!(metrics.contains("engram_scrub_damaged_total 1"), "{metrics}");
    let (text, is_good) = verify_all(&node, false).await;
    assert!(!is_good && text.contains("quarantined") && text.contains("checksum"), "{text}");
    // The bit flips back, as after a restored object: it leaves quarantine.
    std::fs::write(&chunks, &good).unwrap();
    opened.scrub().await.unwrap();
    assert_eq!(known(&id).await, "here");
    // Damaged for good, and the backup imported again: another block stands in its place.
    std::fs::write(&chunks, &bad).unwrap();
    opened.scrub().await.unwrap();
    let (text, is_good) = import(&node, "copy", &source).await;
    assert!(is_good && text.starts_with("1 imported"), "{text}");
    opened.scrub().await.unwrap();
    let (text, is_good) = verify_all(&node, true).await;
    assert!(is_good, "{text}");
    assert_eq!(known(&damaged).await, "within", "what stands in its place says so");
    drop(stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_takes_the_exported_text() {
    let cached = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/engram/e2e/usr/bin/promtool"));
    let found = std::env::var_os("PROMTOOL").map(PathBuf::from).or_else(cached).filter(|path| path.is_file());
    let Some(promtool) = found else {
        eprintln!("SKIPPED: no promtool, so no exported text was read by Prometheus");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir.path().join("data"), |_| {}).await;
    write(&node, "acme", &request()).await;
    let text = dir.path().join("acme.om");
    export(&node, Format::OpenMetrics, &["{host!=\"\"}"], &text).await;
    let lines = std::fs::read_to_string(&text).unwrap();
    assert!(lines.ends_with("\n# EOF\n"));
    let back = dir.path().join("back");
    std::fs::create_dir_all(back.join("wal")).unwrap(); // it wants to look for newer samples
    for arguments in [&["tsdb", "create-blocks-from", "openmetrics", "acme.om", "back"][..], &["tsdb", "dump", "back"]]
    {
        let done = Command::new(&promtool).args(arguments).current_dir(dir.path()).output().unwrap();
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{arguments:?}: {out}{}", String::from_utf8_lossy(&done.stderr));
        if arguments[1] == "dump" {
            let dumped: BTreeSet<(String, u64, i64)> = out.lines().map(dumped).collect();
            let kept = |i: i64, step: i64| value(i, step).to_bits() != stale_nan().to_bits();
            let bits = |value: f64| if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() };
            let want: BTreeSet<(String, u64, i64)> = (0..SERIES)
                .flat_map(|i| (0..STEPS).filter(move |step| kept(i, *step)).map(move |step| (i, step)))
                .map(|(i, step)| {
                    (float_labels(i).get("host").unwrap().to_owned(), bits(value(i, step)), NOW + step * STEP)
                })
                .collect();
            assert_eq!(dumped.len(), want.len());
            assert_eq!(dumped, want);
        }
    }
    node.stop().await;
}

/// Host, bits and time of a line `{…, host="…"} value time` of `promtool tsdb dump`.
fn dumped(line: &str) -> (String, u64, i64) {
    let (labels, rest) = line.rsplit_once("} ").unwrap();
    let host = labels.split_once("host=").unwrap().1;
    let host: String = serde_json::from_str(host).unwrap();
    let (value, at) = rest.split_once(' ').unwrap();
    let value: f64 = value.parse().unwrap();
    (host, if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }, at.parse().unwrap())
}
