//! Goal: a node whose blocks lie in a bucket of a real S3 server answers the same before and after they went there, and
//! after a restart, with few requests. Method: moto as in `storage/tests/s3_wire.rs`; samples over HTTP, `flush`, the
//! same query again and again. Left out unless `scripts/e2e-s3` runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test"
)]

#[allow(unreachable_pub, reason = "tests of two crates use it")]
#[path = "../../storage/tests/moto/mod.rs"]
mod moto;
#[allow(dead_code, unreachable_pub, reason = "each test crate uses its part of the support")]
mod support;

use moto::Moto;
use serde_json::Value;
use support::{TestNode, client, start};

const NOW: i64 = 1_700_000_000_000;
const STEP: i64 = 60_000;
const STEPS: i64 = 600;

async fn answers(node: &TestNode) -> Vec<Value> {
    let (from, until) = ((NOW - STEPS * STEP) / 1000, NOW / 1000);
    let mut all = Vec::new();
    for path in [
        format!("query_range?query=sum by (i) (up)&start={from}&end={until}&step=60"),
        format!("query?query=count_over_time(up[100d])&time={until}"),
        format!("series?match[]=up{{i=~\"1.*\"}}&start={from}&end={until}"),
        format!("label/i/values?start={from}&end={until}"),
        "admin/digests".to_owned(),
    ] {
        let (status, json) = node.get("t", &path).await;
        assert_eq!(status, 200, "{path}: {json}");
        all.push(json["data"].clone());
    }
    all
}

async fn counter(node: &TestNode, name: &str) -> f64 {
    let text = client().get(format!("{}/metrics", node.url)).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs moto: scripts/e2e-s3"]
async fn a_node_answers_from_a_bucket_what_it_answered_from_memory() {
    let (moto, dir) = (Moto::start().await, tempfile::tempdir().unwrap());
    let options = moto.options();
    let node = start(dir.path(), |config| config.object_store = options.clone()).await;
    for i in 0..20 {
        let labels = [("__name__", "up"), ("i", &*i.to_string())].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let labels: Vec<_> = labels.iter().map(|(n, v)| (&**n, &**v)).collect();
        let samples: Vec<_> = (0..STEPS).map(|n| (NOW - (STEPS - n) * STEP, (n * i) as f64)).collect();
        let (status, text) = node.push("t", &[(&labels, &samples)]).await;
        assert!(status < 300, "{text}");
    }
    let before = answers(&node).await;
    let flushed = client()
        .post(format!("{}/api/v1/admin/flush?wait=true", node.url))
        .header("X-Scope-OrgID", "t")
        .send()
        .await
        .unwrap();
    assert!(flushed.status().is_success(), "{}", flushed.text().await.unwrap());
    assert!(counter(&node, "engram_object_store_bytes_total{kind=\"put\"}").await > 0.0);
    assert_eq!(answers(&node).await, before, "from the bucket");
    assert!(counter(&node, "engram_blocks_fetch_requests_total").await > 0.0);
    node.stop().await;
    let node = start(dir.path(), |config| config.object_store = options.clone()).await;
    assert_eq!(answers(&node).await, before, "after a restart");
    node.stop().await;
}
