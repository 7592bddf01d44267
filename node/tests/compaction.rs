//! Goal: jobs planned from the metadata are carried out against a real group, a real store and a real disk, and what
//! comes of it is what was there: digests conserved, deletions carried out, damage quarantined, nothing left behind.
//! Method: one node's metadata group, blocks written and added as imports, the clock moved by hand; and a whole node
//! over HTTP, from the first write to the tenant's end.
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
use std::sync::Arc;
use std::time::Duration;

use engram_model::block::{BlockId, BlockMeta, Origin};
use engram_model::digest::Digest;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_model::{Labels, TimeRange};
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::block::{BlockWriter, Spec};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::compact::{JobKind, Rules};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use engram_storage::object::faults::FaultStore;
use engram_storage::object::options::Options;
use tokio_util::sync::CancellationToken;

use engram_node::Node;
use engram_node::blocks::catalog::Catalog;
use engram_node::blocks::compactor::Compaction;
use engram_node::blocks::job::{Done, NotDone, Workshop};
use engram_node::blocks::orphans::Orphans;
use engram_node::blocks::planning::Planner;
use engram_node::blocks::reach::{Kind, Reach};
use engram_node::blocks::uploader::{About, upload};
use engram_node::config::Config;
use engram_node::meta::{Meta, TenantDefaults};

const HOUR: i64 = 3_600_000;
const NOW: i64 = 1_700_000_000_000;
const WITHIN: Duration = Duration::from_secs(10);

struct World {
    _dir: tempfile::TempDir,
    group: Arc<Group>,
    shop: Workshop,
    tenant: TenantId,
    clock: Clock,
}

impl World {
    /// A cluster of one with a tenant; blocks in a directory, or in a bucket in memory.
    async fn new(in_bucket: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::test(NOW);
        let first = FirstStart::Bootstrap { cluster_id: "c".to_owned(), partition_count: 4 };
        let options = GroupOptions::new(dir.path().join("meta"), NodeSpec::default(), first, clock.clone());
        let group = Arc::new(Group::open(options).await.unwrap());
        let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 1, tenants_max: 9 };
        let meta = Meta::new(group.clone(), defaults);
        let tenant = TenantId::new("acme").unwrap();
        meta.tenant_or_create(&tenant, WITHIN).await.unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let store = match in_bucket {
            true => FaultStore::memory(disk.clone(), &Options::default()).0,
            false => Store::local(disk.clone(), &dir.path().join("blocks")).unwrap(),
        };
        let planner = Planner::new(meta, Rules::default(), clock.clone());
        let work = dir.path().join("work");
        disk.create_dir(&work).unwrap();
        let shop = Workshop { planner, store, disk, work, window_ms: 2 * HOUR };
        Self { _dir: dir, group, shop, tenant, clock }
    }

    fn meta(&self) -> &Meta {
        self.shop.planner.meta()
    }

    fn catalog(&self) -> Catalog {
        let (meta, store, clock) = (self.meta().clone(), self.shop.store.clone(), self.clock.clone());
        let orphans = Orphans { reach: Reach::new(meta.clone(), Kind::Own), meta, store, clock, grace_ms: 0 };
        Catalog::new(self.shop.clone(), Compaction::default(), orphans)
    }

    /// A block of some series with a sample a minute, in the metadata and in the store.
    async fn add(&self, series: &[&str], range: TimeRange) -> BlockMeta {
        let id = BlockId::new(self.clock.now(), uuid::Uuid::new_v4().as_u128());
        let to = self.shop.work.join("made");
        self.shop.disk.create_dir(&to).unwrap();
        let mut writer = BlockWriter::create(self.shop.disk.clone(), &to, Spec::cut(id, range, 2 * HOUR)).unwrap();
        for name in series {
            let samples: Vec<_> =
                (range.start..range.end).step_by(60_000).map(|at| (at, ValueRef::Float(at as f64))).collect();
            writer.add(&Labels::from_pairs([("__name__", *name)]), &chunk::encode(samples, 2 * HOUR)).unwrap();
        }
        let written = writer.finish().unwrap().unwrap();
        let (as_of, made_at) = (self.meta().index(), self.clock.now());
        let about = About { tenant: self.tenant.clone(), range, origin: Origin::Imported, as_of, made_at };
        let meta = upload(&self.shop.store, about, &written).await.unwrap();
        self.meta().add_blocks("test", &self.tenant, vec![meta.clone()], None, WITHIN).await.unwrap();
        meta
    }

    /// Does all that is planned until nothing is; says how many jobs of each kind.
    async fn settle(&self) -> Vec<(JobKind, Done)> {
        let mut all = Vec::new();
        loop {
            let mut jobs = self.shop.planner.plan(&self.tenant, false).jobs;
            if jobs.is_empty() {
                // What came a moment ago has to settle first.
                self.clock.advance(2 * HOUR);
                jobs = self.shop.planner.plan(&self.tenant, false).jobs;
            }
            if jobs.is_empty() {
                return all;
            }
            for job in jobs {
                all.push((job.kind, self.shop.carry_out(&self.tenant, &job).await.unwrap()));
            }
            assert!(all.len() < 100, "it does not end");
        }
    }

    fn visible(&self) -> Vec<BlockMeta> {
        let rows = self.meta().blocks(&self.tenant).blocks;
        rows.iter().filter(|row| row.marked.is_none()).map(|row| row.meta.clone()).collect()
    }

    fn digest(&self) -> Digest {
        self.visible().iter().map(|meta| meta.digest).sum()
    }

    async fn end(self) {
        self.group.shutdown().await.unwrap();
    }
}

fn window(n: i64) -> TimeRange {
    TimeRange::new(n * 2 * HOUR, (n + 1) * 2 * HOUR)
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().all(|entry| entry.unwrap().file_name() == "made")
}

async fn a_day(in_bucket: bool) {
    let world = World::new(in_bucket).await;
    for n in 0..12 {
        world.add(&["a", "b"], window(n)).await;
        world.add(&["c"], window(n)).await;
    }
    let before = world.digest();
    world.clock.advance(48 * HOUR);
    let done = world.settle().await;
    assert_eq!(done.len(), 12 + 2 + 1);
    let [day] = &world.visible()[..] else { panic!("not one block") };
    assert_eq!((day.range, day.level, day.series), (TimeRange::new(0, 24 * HOUR), 4, 3));
    assert_eq!((world.digest(), day.origin), (before, Origin::Compacted));
    // A late block with a sample that is there already and some that are not.
    world.add(&["a", "d"], TimeRange::new(HOUR, 2 * HOUR)).await;
    world.clock.advance(48 * HOUR);
    let done = world.settle().await;
    assert_eq!(done.iter().map(|(_, done)| done.duplicates).sum::<u64>(), 60);
    assert_eq!(world.digest().count, before.count + 60);
    assert!(is_empty(&world.shop.work), "something is left in the work directory");
    let catalog = world.catalog();
    let id = world.visible()[0].id;
    assert_eq!(catalog.verify(&world.tenant, id).await.unwrap()["ok"], true);
    let looked = catalog.inspect(&world.tenant, id).await.unwrap();
    assert_eq!((&looked["labels"][0]["name"], &looked["labels"][0]["values"]), (&"__name__".into(), &4.into()));
    assert_eq!(catalog.plan(&world.tenant)["jobs"].as_array().unwrap().len(), 0);
    assert_eq!(catalog.list(&world.tenant)["blocks"].as_array().unwrap().len(), 24 + 15 + 2);
    assert!(is_empty(&world.shop.work));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_blocks_becomes_one_in_a_directory() {
    a_day(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_blocks_becomes_one_in_a_bucket() {
    a_day(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_series_are_taken_out_of_the_blocks_that_hold_them() {
    let world = World::new(true).await;
    let with = world.add(&["a", "b"], window(0)).await;
    let without = world.add(&["c"], window(400)).await;
    let catalog = world.catalog();
    let range = TimeRange::new(0, 3_600_000);
    let order = |selector: &str, range| catalog.delete_series(&world.tenant, vec![selector.to_owned()], range);
    assert!(order("a{", range).await.is_err(), "no selector");
    assert_eq!(order("a", TimeRange::new(NOW + HOUR, i64::MAX)).await.unwrap(), None, "the future is not deleted");
    assert!(order("{__name__=\"a\"}", TimeRange::new(i64::MIN, HOUR)).await.unwrap().is_some());
    assert!(order("nobody", TimeRange::ALL).await.unwrap().is_some());
    assert!(world.shop.planner.plan(&world.tenant, false).jobs.is_empty(), "more may be deleted");
    let planned = world.shop.planner.plan(&world.tenant, true);
    assert_eq!((planned.jobs.len(), planned.unwritten, planned.finished.len()), (2, 2, 0));
    world.clock.advance(2 * HOUR);
    let done = world.settle().await;
    assert_eq!(done.iter().map(|(_, done)| (done.deleted, done.blocks)).collect::<Vec<_>>(), [(60, 1), (0, 0)]);
    let planned = world.shop.planner.plan(&world.tenant, true);
    assert_eq!((planned.jobs.len(), planned.unwritten, planned.finished.len()), (0, 0, 2));
    let left = world.visible();
    assert!(left.iter().any(|meta| meta.id == without.id), "a block that holds nothing of it stays");
    let rewritten = left.iter().find(|meta| meta.range == window(0)).unwrap();
    assert_eq!((rewritten.digest.count, rewritten.sources.clone()), (240 - 60, vec![with.id]));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_which_everything_is_deleted_has_no_successor() {
    let world = World::new(false).await;
    world.add(&["a"], window(0)).await;
    let catalog = world.catalog();
    catalog.delete_series(&world.tenant, vec!["a".to_owned()], TimeRange::ALL).await.unwrap().unwrap();
    let cleaning = catalog.clean(&world.tenant, true);
    let working = async {
        world.clock.advance(2 * HOUR);
        assert_eq!(world.settle().await[0].1.deleted, 120);
    };
    let (cleaned, ()) = tokio::join!(cleaning, working);
    cleaned.unwrap();
    assert!(world.visible().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_source_is_quarantined_and_the_others_go_on() {
    let world = World::new(false).await;
    for n in 0..3 {
        world.add(&["a", "b"], window(n)).await;
    }
    let bad = world.visible()[1].id;
    let path = world.shop.store.local_block(&world.tenant, bad).unwrap().join("chunks/000001");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    world.clock.advance(48 * HOUR);
    let job = world.shop.planner.plan(&world.tenant, false).jobs.remove(0);
    let done = world.shop.carry_out(&world.tenant, &job).await;
    assert!(matches!(&done, Err(NotDone::Damaged(id, _)) if *id == bad), "{done:?}");
    assert!(world.meta().block(&world.tenant, bad).unwrap().quarantined.is_some());
    assert!(is_empty(&world.shop.work));
    assert_eq!(world.settle().await.len(), 1);
    assert_eq!(world.visible().len(), 2, "the damaged one and the rest as one");
    let catalog = world.catalog();
    let found = catalog.verify(&world.tenant, bad).await.unwrap();
    assert!(found["ok"] == false && found["damage"].as_str().unwrap().contains("checksum"), "{found}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_sources_have_changed_is_not_done() {
    let world = World::new(false).await;
    for n in 0..2 {
        world.add(&["a"], window(n)).await;
    }
    world.clock.advance(48 * HOUR);
    let job = world.shop.planner.plan(&world.tenant, false).jobs.remove(0);
    let busy = world.shop.planner.occupy(&job);
    assert!(world.shop.planner.plan(&world.tenant, false).jobs.is_empty(), "this node is at it");
    drop(busy);
    world.shop.carry_out(&world.tenant, &job).await.unwrap();
    let again = world.shop.carry_out(&world.tenant, &job).await;
    assert!(matches!(again, Err(NotDone::NotNow)), "{again:?}");
    world.end().await;
}

/// A node that compacts at once, and the clock it goes by.
async fn node(dir: &Path) -> (support::TestNode, Clock) {
    let mut config = Config { data_dir: dir.to_owned(), partitions: 4, shard_size: 2, ..Config::default() };
    config.http_listen = "127.0.0.1:0".into();
    config.grpc_listen = "127.0.0.1:0".into();
    config.compaction.interval = Duration::from_millis(50);
    let (clock, stop) = (Clock::test(NOW), CancellationToken::new());
    let node = Node::start(config, clock.clone(), stop.clone()).await.unwrap();
    (support::run((node, stop)), clock)
}

/// The blocks a tenant has, and what those that are read hold together.
async fn blocks(node: &support::TestNode) -> (Vec<serde_json::Value>, Digest) {
    let (status, json) = node.get("acme", "admin/blocks").await;
    assert_eq!(status, 200, "{json}");
    let all = json["data"]["blocks"].as_array().unwrap().clone();
    let read = all.iter().filter(|block| block["state"] == "read");
    let digest = |block: &serde_json::Value| {
        let numbers = block["digest"].as_str().unwrap().split('-').map(|n| u64::from_str_radix(n, 16).unwrap());
        let [count, low, high] = numbers.collect::<Vec<_>>()[..] else { panic!("{block}") };
        Digest { count, low, high }
    };
    (all.clone(), read.map(digest).sum())
}

/// Looks until it is so.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come: {what}");
}

async fn send(node: &support::TestNode, method: &str, path: &str, body: &str) -> u16 {
    let method = method.parse::<reqwest::Method>().unwrap();
    let request = support::client().request(method, format!("{}/api/v1/{path}", node.url));
    let request = request.header("X-Scope-OrgID", "acme").header("Content-Type", "application/json");
    request.body(body.to_owned()).send().await.unwrap().status().as_u16()
}

/// Blocks that are read, once there are so many; the clock goes on meanwhile.
async fn settled(node: &support::TestNode, clock: &Clock, count: usize) -> Vec<serde_json::Value> {
    until("compaction", async || {
        clock.advance(HOUR / 6);
        let (mut all, _) = blocks(node).await;
        all.retain(|block| block["state"] == "read");
        (all.len() == count).then_some(all)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cuts_compacts_deletes_and_forgets() {
    let dir = tempfile::tempdir().unwrap();
    let (node, clock) = node(dir.path()).await;
    let start = NOW.div_euclid(24 * HOUR) * 24 * HOUR - 48 * HOUR;
    let samples: Vec<(i64, f64)> = (0..156).map(|i| (start + i * 600_000, i as f64)).collect();
    let names: Vec<String> = (0..6).map(|n| n.to_string()).collect();
    let labels: Vec<_> = names.iter().map(|n| [("__name__", "up"), ("n", n.as_str())]).collect();
    let series: Vec<support::Series<'_>> = labels.iter().map(|one| (&one[..], &samples[..])).collect();
    assert_eq!(node.push("acme", &series).await.0, 204);
    let (status, flushed) = node.post("acme", "admin/flush?wait=true").await;
    assert!(status == 200 && flushed["data"]["done"] == true, "{flushed}");

    let (cut, before) = blocks(&node).await;
    assert_eq!((cut.len(), before.count), (26, 6 * 156), "13 windows of 2 partitions");
    let query =
        format!("query_range?query=sum(up)+by+(n)&start={}&end={}&step=600", start / 1000, start / 1000 + 93_000);
    let answer = node.get("acme", &query).await;
    assert_eq!(answer.1["data"]["result"].as_array().map(Vec::len), Some(6), "{}", answer.1);
    clock.advance(48 * HOUR);
    let all = settled(&node, &clock, 2).await;
    assert_eq!(blocks(&node).await.1, before, "the digest is conserved");
    assert_eq!(node.get("acme", &query).await, answer, "queries are answered as before");
    assert_eq!(all[0]["end"].as_i64().unwrap() - all[0]["start"].as_i64().unwrap(), 24 * HOUR);
    for block in &all {
        let path = format!("admin/blocks/{}/verify", block["id"].as_str().unwrap());
        let (status, found) = node.post("acme", &path).await;
        assert!(status == 200 && found["data"]["ok"] == true, "{found}");
    }

    // Seven samples of one series, of both ends.
    let order = format!("admin/tsdb/delete_series?match[]=up%7Bn%3D%220%22%7D&end={}", start / 1000 + 3600);
    let (one, hour) = ("up%7Bn%3D%220%22%7D", start + HOUR);
    assert_eq!(node.samples("acme", one, hour).await.len(), 7);
    assert_eq!(send(&node, "POST", &order, "").await, 204);
    assert!(node.samples("acme", one, hour).await.is_empty(), "hidden at once");
    assert_eq!(node.samples("acme", one, hour + HOUR / 6).await.len(), 1);
    assert_eq!(send(&node, "POST", "admin/tsdb/clean_tombstones?wait=true", "").await, 204);
    assert_eq!(blocks(&node).await.1.count, before.count - 7);
    until("the deletion is forgotten", async || {
        let (_, json) = node.get("acme", "admin/blocks").await;
        json["data"]["deletions"].as_array().unwrap().is_empty().then_some(())
    })
    .await;

    // The day is an hour behind the newest sample; its objects stay for the grace.
    let limits = r#"{"version": 1, "limits": {"compactor_blocks_retention_period_ms": 3600000}}"#;
    assert_eq!(send(&node, "PUT", "admin/tenants/acme", limits).await, 200);
    let kept = settled(&node, &clock, 1).await[0]["id"].as_str().unwrap().to_owned();
    let is_block = |entry: &std::io::Result<std::fs::DirEntry>| entry.as_ref().unwrap().file_name() != "wal";
    let there = || std::fs::read_dir(dir.path().join("blocks/acme")).unwrap().filter(is_block).count();
    assert!(there() > 1, "{} directories", there());
    clock.advance(3 * HOUR);
    until("the objects are deleted", async || (blocks(&node).await.0.len() == 1 && there() == 1).then_some(())).await;
    assert!(dir.path().join("blocks/acme").join(&kept).join("meta.json").exists());

    assert_eq!(send(&node, "DELETE", "admin/tenants/acme?version=2", "").await, 200);
    until("the last block goes", async || blocks(&node).await.0.iter().all(|b| b["state"] != "read").then_some(()))
        .await;
    clock.advance(3 * HOUR);
    until("the tenant is gone", async || (node.get("acme", "admin/tenants/acme").await.0 == 404).then_some(())).await;
    assert!(!dir.path().join("blocks/acme").join(&kept).exists());
    node.stop().await;
}
