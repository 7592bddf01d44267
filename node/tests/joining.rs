//! Goal: a node that was alone, with blocks in a directory of its own, never comes to share its samples with nodes that
//! cannot read these blocks. Method: nodes in this process; one is alone first, others are told to join it.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use engram_model::time::Clock;
use engram_node::Node;
use engram_node::config::Config;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use support::{TestNode, open, run};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const AT: i64 = 1_700_000_000_000;
const LONG: Duration = Duration::from_secs(60);

/// A node that is told of no others, with little to move; and where others reach it.
async fn alone(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> (TestNode, String) {
    let opened = open(dir, |config| {
        config.partitions = 2;
        change(config);
    })
    .await;
    let address = opened.0.grpc_address.to_string();
    (run(opened), address)
}

fn joining(dir: &std::path::Path, seed: &str) -> Config {
    let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
    config.http_listen = "127.0.0.1:0".into();
    config.grpc_listen = "127.0.0.1:0".into();
    config.join = vec![seed.to_owned()];
    config.cluster.repair_every = Duration::from_millis(200);
    config
}

async fn write(node: &TestNode) {
    let samples: Vec<(i64, f64)> = (0..100).map(|i| (AT + i * 60_000, i as f64)).collect();
    assert_eq!(node.push("acme", &[(&[("__name__", "up")], &samples)]).await.0, 204);
}

/// How a node that is told to join fails.
async fn refused(dir: &std::path::Path, config: impl FnOnce(&mut Config), seed: &str) -> String {
    let mut all = joining(dir, seed);
    config(&mut all);
    let started = tokio::time::timeout(LONG, Node::start(all, Clock::real(), CancellationToken::new())).await;
    started.unwrap().err().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_a_node_that_has_blocks_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (node, seed) = alone(&dir.path().join("0"), |_| {}).await;
    write(&node).await;
    assert_eq!(node.post("acme", "admin/flush?wait=true").await.0, 200);
    let why = refused(&dir.path().join("1"), |_| {}, &seed).await;
    assert!(why.contains("cannot join") && why.contains("blocks in a directory of its own"), "{why}");
    assert_eq!(node.samples("acme", "up", AT + 6_000_000).await.len(), 100);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_blocks_elsewhere_does_not_join() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared").display().to_string();
    let (node, seed) = alone(&dir.path().join("0"), |config| config.object_store.url = shared).await;
    let why = refused(&dir.path().join("1"), |_| {}, &seed).await;
    assert!(why.contains("name one store (object-store.url)"), "{why}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_joined_before_it_had_blocks_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let (first, seed) = alone(&dir.path().join("0"), |_| {}).await;
    let mut nodes = vec![first];
    for name in ["1", "2"] {
        let (config, stop) = (joining(&dir.path().join(name), &seed), CancellationToken::new());
        let started = tokio::time::timeout(LONG, Node::start(config, Clock::real(), stop.clone())).await;
        nodes.push(run((started.unwrap().unwrap(), stop)));
    }
    write(&nodes[0]).await;
    let (status, text) = nodes[0].post("acme", "admin/flush?wait=true").await;
    assert!(status == 503 && text.to_string().contains("object-store.url"), "{status} {text}");
    let deadline = Instant::now() + LONG;
    for node in &nodes {
        // A node that has just joined learns of the others' replicas in its own time.
        while node.samples("acme", "up", AT + 6_000_000).await.len() < 100 {
            assert!(Instant::now() < deadline, "{} does not see all", node.url);
            tokio::task::yield_now().await;
        }
        let (_, blocks) = node.get("acme", "admin/blocks").await;
        assert_eq!(blocks["data"]["blocks"].as_array().map(Vec::len), Some(0), "{blocks}");
    }
    let store = Store::local(Arc::new(RealDisk), &dir.path().join("0/blocks")).unwrap();
    assert!(store.list_tenants().await.unwrap().is_empty());
    for node in nodes.into_iter().rev() {
        node.stop().await;
    }
}

/// Two clusters that were given one place by mistake would take each other's blocks for leftovers.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_belongs_to_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared").display().to_string();
    let (owner, _) = alone(&dir.path().join("0"), |config| config.object_store.url.clone_from(&shared)).await;
    write(&owner).await;
    assert_eq!(owner.post("acme", "admin/flush?wait=true").await.0, 200);
    let (other, _) = alone(&dir.path().join("1"), |config| config.object_store.url.clone_from(&shared)).await;
    let deadline = Instant::now() + LONG;
    let import = || async {
        let url = format!("{}/api/v1/admin/import/01ARZ3NDEKTSV4RRFFQ69G5FAV", other.url);
        let answer = support::client().post(url).header("X-Scope-OrgID", "acme").body("x").send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    loop {
        let (status, text) = import().await;
        assert_eq!(status, 503, "{text}");
        if text.contains("belongs to cluster") {
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
    }
    assert_eq!(owner.samples("acme", "up", AT + 6_000_000).await.len(), 100);
    other.stop().await;
    owner.stop().await;
}
