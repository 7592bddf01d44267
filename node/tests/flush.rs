//! Goal: what a tenant has goes from memory to blocks on demand, and nobody who asks notices. Method: a node from
//! outside: written, flushed, asked, stopped, started again; its directory is looked into.
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

use std::path::Path;
use std::time::Duration;

use engram_storage::block::{BlockDir, verify};
use engram_storage::disk::real::RealDisk;
use support::{TestNode, start};

/// On the border of two windows of two hours.
const NOW: i64 = 1_700_006_400_000;
const MINUTE: i64 = 60_000;
const A: &[(&str, &str)] = &[("__name__", "up"), ("job", "a")];
const B: &[(&str, &str)] = &[("__name__", "up"), ("job", "b")];

/// Directories of blocks of a tenant, sorted; the empty `wal` beside them is for tools.
fn blocks(dir: &Path, tenant: &str) -> Vec<String> {
    let Ok(list) = std::fs::read_dir(dir.join("blocks").join(tenant)) else { return Vec::new() };
    let mut names: Vec<String> = list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "wal");
    names.sort();
    names
}

/// What several questions answer, without what may differ between two askings.
async fn answers(node: &TestNode) -> Vec<serde_json::Value> {
    let (start, end) = ((NOW - 180 * MINUTE) / 1000, (NOW + 60 * MINUTE) / 1000);
    let mut all = Vec::new();
    for path in [
        format!("query?query=up[10000d]&time={end}"),
        format!("query_range?query=sum(up)&start={start}&end={end}&step=60"),
        format!("query_range?query=rate(up[10m])&start={start}&end={end}&step=300"),
        format!("series?match[]=up&start={start}&end={end}"),
        format!("labels?start={start}&end={end}"),
        format!("label/job/values?start={start}&end={end}"),
    ] {
        let (status, json) = node.get("acme", &path).await;
        assert_eq!(status, 200, "{path}: {json}");
        all.push(json["data"].clone());
    }
    all
}

/// Three hours of two series, over three windows.
async fn write(node: &TestNode) {
    let samples = |offset: i64| -> Vec<(i64, f64)> {
        (-180..30).map(|minute| (NOW + minute * MINUTE + offset, minute as f64)).collect()
    };
    let (a, b) = (samples(0), samples(7));
    assert_eq!(node.push("acme", &[(A, &a), (B, &b)]).await, (204, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flushed_lies_in_blocks_and_answers_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    write(&node).await;
    let before = answers(&node).await;
    let (status, flushed) = node.post("acme", "admin/flush?wait=true").await;
    assert_eq!(status, 200, "{flushed}");
    let data = &flushed["data"];
    assert_eq!((data["done"].as_bool(), data["samples"].as_u64()), (Some(true), Some(420)), "{flushed}");
    let named: Vec<&str> = data["blocks"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(blocks(dir.path(), "acme"), sorted, "{flushed}");
    assert_eq!(named.len(), 3, "three windows of one partition: {flushed}");
    let mut samples = 0;
    for name in &named {
        let block = BlockDir::open(&RealDisk, &dir.path().join("blocks/acme").join(name)).unwrap();
        samples += verify(&block, block.meta()).unwrap().digest().count;
    }
    assert_eq!(samples, 420);
    assert_eq!(answers(&node).await, before);
    assert!(std::fs::read_dir(dir.path().join("blocks-work")).unwrap().next().is_none(), "no copy is left");
    node.stop().await;
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(answers(&node).await, before);
    // Nothing is left in memory: a second flush has nothing to do.
    let (status, again) = node.post("acme", "admin/flush?wait=true").await;
    assert_eq!((status, again["data"]["windows"].as_array().unwrap().len()), (200, 0), "{again}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_later_waits_for_the_next_flush() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.limits.out_of_order_time_window_ms = 3 * 3_600_000).await;
    write(&node).await;
    assert_eq!(node.post("acme", "admin/flush?wait=true").await.0, 200);
    // Later in time, and late: between two samples that are in a block already.
    let late = NOW - 100 * MINUTE + 30_000;
    assert_eq!(node.push("acme", &[(A, &[(late, 5.0)]), (B, &[(NOW + 40 * MINUTE, 1.0)])]).await.0, 204);
    let before = answers(&node).await;
    let (_, flushed) = node.post("acme", "admin/flush?wait=true").await;
    assert_eq!(flushed["data"]["blocks"].as_array().unwrap().len(), 2, "{flushed}");
    assert_eq!(blocks(dir.path(), "acme").len(), 5);
    assert_eq!(answers(&node).await, before);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_end_by_the_tenants_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| {
        config.blocks.window = Duration::from_secs(300);
        config.blocks.seal_delay_ms = 300_000;
    })
    .await;
    // Six windows, the newest sample in the sixth: four of them ended a window ago.
    let samples: Vec<(i64, f64)> = (0..30).map(|n| (NOW + n * MINUTE, n as f64)).collect();
    assert_eq!(node.push("acme", &[(A, &samples)]).await.0, 204);
    let before = answers(&node).await;
    let waiting = async {
        while blocks(dir.path(), "acme").len() < 4 {
            assert_eq!(answers(&node).await, before, "while windows are cut");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
    assert_eq!(answers(&node).await, before);
    node.stop().await;
    let node = start(dir.path(), |config| config.blocks.window = Duration::from_secs(300)).await;
    assert_eq!(answers(&node).await, before);
    assert_eq!(blocks(dir.path(), "acme").len(), 4);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_of_nobody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let (status, answer) = node.post("nobody", "admin/flush").await;
    assert_eq!(status, 404, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("there is no tenant nobody"), "{answer}");
    // A work copy that a crash left is removed at the start.
    node.stop().await;
    let left = dir.path().join("blocks-work/01ARZ3NDEKTSV4RRFFQ69G5FAV.tmp-for-creation/chunks");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("000001"), "half").unwrap();
    let node = start(dir.path(), |_| {}).await;
    write(&node).await;
    assert_eq!(node.post("acme", "admin/flush?wait=true").await.0, 200);
    assert!(!left.exists());
    node.stop().await;
}
