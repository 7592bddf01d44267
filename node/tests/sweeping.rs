//! Goal: the sweeper deletes nothing that may be the only copy of samples. Method: a bucket in memory and a real metadata
//! group; what uploads leave behind is put there by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::block::{BlockFile, BlockId, BlockMeta, Origin};
use engram_model::error::Class;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::blocks::orphans::{Orphans, Removal};
use engram_node::blocks::reach::{Kind, Reach};
use engram_node::blocks::sweeper::{self, Sweeping};
use engram_node::blocks::{Imports, tar};
use engram_node::ingest::LocalReplica;
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::peer::Peers;
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::block::{BlockWriter, Spec, Written};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use engram_storage::object::faults::FaultStore;
use engram_storage::object::options::Options;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);
const NOW: i64 = 1_700_000_000_000;

fn tenant() -> TenantId {
    TenantId::new("t").unwrap()
}

struct World {
    dir: tempfile::TempDir,
    group: Arc<Group>,
    meta: Meta,
    bucket: FaultStore,
    store: Store,
    sweeper: sweeper::Config,
}

impl World {
    /// A sweeper for which everything is old enough at once, as soon as it has seen it before.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
        let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
        let options = GroupOptions::new(dir.path().join("meta"), node, first, Clock::test(NOW));
        let group = Arc::new(Group::open(options).await.unwrap());
        let limits = TenantLimits::default();
        let meta = Meta::new(group.clone(), TenantDefaults { limits, shard_size: 0, tenants_max: 10 });
        meta.tenant_or_create(&tenant(), LONG).await.unwrap();
        let bucket = FaultStore::in_memory();
        let store = bucket.store(Arc::new(RealDisk), &Options::default());
        let local = LocalReplica::new(Arc::default(), Vec::new(), 0);
        let sweeper = sweeper::Config {
            meta: meta.clone(),
            peers: Peers::local_only(meta.node_id(), Arc::new(local)),
            reach: Reach::new(meta.clone(), Kind::Own),
            store: store.clone(),
            clock: Clock::test(NOW + 1_000_000),
            every: LONG,
            retention_ms: 0,
            grace_ms: 0,
            orphan_after_ms: 0,
            orphans_every_ms: 0,
            handle: Sweeping::default(),
            stop: CancellationToken::new(),
        };
        Self { dir, group, meta, bucket, store, sweeper }
    }

    fn write(&self, id: BlockId) -> Written {
        let work = self.dir.path().join("work");
        std::fs::create_dir_all(&work).unwrap();
        let range = TimeRange::new(0, 7_200_000);
        let mut writer = BlockWriter::create(Arc::new(RealDisk), &work, Spec::cut(id, range, 7_200_000)).unwrap();
        let chunks = chunk::encode([(5, ValueRef::Float(1.0))], 7_200_000);
        writer.add(&engram_model::Labels::from_pairs([("a", "1")]), &chunks).unwrap();
        writer.finish().unwrap().unwrap()
    }

    fn meta_of(&self, written: &Written, files: Vec<BlockFile>) -> BlockMeta {
        BlockMeta {
            id: written.meta.ulid,
            tenant: tenant(),
            range: TimeRange::new(0, 7_200_000),
            level: 1,
            origin: Origin::Imported,
            shard: None,
            sources: Vec::new(),
            series: written.report.series,
            chunks: written.report.chunks,
            digest: written.report.digest(),
            files,
            as_of: 0,
            made_at: 0,
        }
    }

    async fn left(&self) -> BTreeSet<BlockId> {
        self.store.list_blocks(&tenant()).await.unwrap().into_iter().collect()
    }

    fn reading(&self, name: &str) -> u64 {
        self.sweeper.handle.readings().iter().find(|one| one.name == name).map(|one| one.value as u64).unwrap()
    }
}

/// Of a restored backup the metadata is older than the bucket: its newest blocks are in no metadata.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_block_that_no_metadata_names_stays_and_is_told() {
    let world = World::new().await;
    let (whole, part) = (BlockId::new(NOW + 1, 1), BlockId::new(NOW + 2, 2));
    let written = world.write(whole);
    world.store.put_block(&written.path, &tenant(), whole).await.unwrap();
    world.store.put(&format!("t/{part}/index"), "x".into()).await.unwrap();
    sweeper::round(&world.sweeper).await;
    assert_eq!(world.left().await, [whole, part].into(), "what is seen for the first time may be on its way");
    sweeper::round(&world.sweeper).await;
    sweeper::round(&world.sweeper).await;
    assert_eq!(world.left().await, [whole].into(), "what is left of an upload goes");
    assert_eq!((world.reading("sweeper_unknown_blocks"), world.reading("sweeper_orphans")), (1, 1));
    let files = world.store.put_block(&written.path, &tenant(), whole).await.unwrap();
    world.meta.add_blocks("test", &tenant(), vec![world.meta_of(&written, files)], None, LONG).await.unwrap();
    sweeper::round(&world.sweeper).await;
    assert_eq!(world.reading("sweeper_unknown_blocks"), 0, "now it is known");
    world.group.shutdown().await.unwrap();
}

/// Whoever lists while an upload is under way, and looks into the metadata after its commit, deletes nothing; and a commit
/// whose answer was lost, so that it is asked for again, makes no second block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_after_a_listing_is_neither_deleted_nor_doubled() {
    let world = World::new().await;
    for (chance, was_whole) in [(1, true), (2, false)] {
        let id = BlockId::new(NOW + 1, chance);
        let written = world.write(id);
        if was_whole {
            world.store.put_block(&written.path, &tenant(), id).await.unwrap();
        } else {
            world.store.put(&format!("t/{id}/index"), "x".into()).await.unwrap();
        }
        // Seen once, so that it is ripe at the next listing.
        sweeper::round(&world.sweeper).await;
        world.bucket.freeze_lists(true).await.unwrap();
        let files = world.store.put_block(&written.path, &tenant(), id).await.unwrap();
        let block = world.meta_of(&written, files);
        for _ in 0..2 {
            world.meta.add_blocks("test", &tenant(), vec![block.clone()], None, LONG).await.unwrap();
            sweeper::round(&world.sweeper).await;
        }
        world.bucket.freeze_lists(false).await.unwrap();
        assert_eq!(world.store.block_files(&tenant(), id).await.unwrap().len(), block.files.len());
        let rows = world.meta.blocks(&tenant()).blocks;
        assert_eq!(rows.iter().filter(|row| row.meta == block).count(), 1);
        assert_eq!(rows.len() as u128, chance);
    }
    assert_eq!((world.reading("sweeper_unknown_blocks"), world.reading("sweeper_orphans")), (0, 0));
    world.group.shutdown().await.unwrap();
}

/// Goal: nobody's blocks go when somebody says so, and only then, and only what may. Method: one of each kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_told_and_removed_when_asked_for() {
    let world = World::new().await;
    let orphans = Orphans {
        meta: world.meta.clone(),
        store: world.store.clone(),
        reach: world.sweeper.reach.clone(),
        clock: world.sweeper.clock.clone(),
        grace_ms: 500_000,
    };
    let (old, young, known) = (BlockId::new(NOW + 1, 1), BlockId::new(NOW + 900_000, 2), BlockId::new(NOW + 2, 3));
    let (before, other) = (BlockId::new(NOW - 1, 4), BlockId::new(NOW + 3, 5));
    for id in [old, young, known, before] {
        let written = world.write(id);
        let files = world.store.put_block(&written.path, &tenant(), id).await.unwrap();
        if id == known {
            world.meta.add_blocks("test", &tenant(), vec![world.meta_of(&written, files)], None, LONG).await.unwrap();
        }
    }
    world.store.put(&format!("t/{other}/meta.json"), "{}".into()).await.unwrap();
    let listed = orphans.list(&tenant(), 0).await.unwrap();
    let shown = |one: &serde_json::Value| (one["id"].as_str().unwrap().parse().unwrap(), one["stays"].is_null());
    let shown: Vec<(BlockId, bool)> = listed["orphans"].as_array().unwrap().iter().map(shown).collect();
    assert_eq!(shown, [(before, false), (old, true), (other, false), (young, false)]);
    assert_eq!(
        (listed["orphans"][1]["samples"].clone(), listed["orphans"][1]["ageMs"].clone()),
        (1.into(), 999_999.into())
    );
    let all = Removal::default();
    let too_old = Removal { older_ms: 2_000_000, ..Removal::default() };
    assert_eq!(orphans.remove(&tenant(), &too_old).await.unwrap()["removed"].as_array().unwrap().len(), 0);
    assert_eq!(orphans.remove(&tenant(), &all).await.unwrap()["removed"], serde_json::json!([old.to_string()]));
    assert_eq!(world.left().await, [young, known, before, other].into());
    let named = Removal { ids: vec![young, known, before, other], older_ms: 0 };
    let done = orphans.remove(&tenant(), &named).await.unwrap();
    assert_eq!(done["removed"], serde_json::json!([before.to_string(), other.to_string()]));
    assert_eq!(done["kept"].as_array().unwrap().len(), 2);
    assert_eq!(world.left().await, [young, known].into());
    let nobody = TenantId::new("nobody").unwrap();
    world.store.put(&format!("nobody/{old}/index"), "x".into()).await.unwrap();
    assert_eq!(orphans.remove(&nobody, &all).await.unwrap_err().class, Class::NotFound);
    world.group.shutdown().await.unwrap();
}

fn archive(written: &Written) -> Vec<u8> {
    let mut all = Vec::new();
    for name in ["chunks/000001", "index", "meta.json"] {
        let bytes = std::fs::read(written.path.join(name)).unwrap();
        all.extend_from_slice(&tar::header(name, bytes.len() as u64));
        all.extend_from_slice(&bytes);
        all.resize(all.len() + tar::padding(bytes.len() as u64) as usize, 0);
    }
    all.resize(all.len() + 2 * tar::RECORD_BYTES, 0);
    all
}

/// Goal: a block that is sent again because no answer came is one block. Method: the commit of an attempt that nobody waits
/// for any more arrives after the next attempt has looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_sent_twice_is_taken_in_once() {
    let world = World::new().await;
    let root = world.dir.path().join("imports");
    let (reach, clock) = (world.sweeper.reach.clone(), world.sweeper.clock.clone());
    let imports = Imports::open(Arc::new(RealDisk), &root, world.store.clone(), reach, clock).unwrap();
    let id = BlockId::new(NOW, 9);
    let written = world.write(id);
    let body = archive(&written);
    let old = world.meta.lease(&format!("import/t/{id}"), LONG, LONG).await.unwrap().unwrap();
    let tenant = tenant();
    let piece = || futures::stream::iter([Ok(bytes::Bytes::from(body.clone()))]).boxed();
    let (first, second) = tokio::join!(imports.take(&tenant, id, piece()), imports.take(&tenant, id, piece()));
    let failed = [&first, &second].into_iter().filter_map(|done| done.as_ref().err());
    assert_eq!(failed.map(|error| error.class).collect::<Vec<_>>(), [Class::Limited]);
    let late = BlockMeta { id: BlockId::new(NOW, 10), sources: vec![id], ..world.meta_of(&written, Vec::new()) };
    let late = BlockMeta { files: world.meta.blocks(&tenant).blocks[0].meta.files.clone(), ..late };
    let error = world.meta.add_blocks("import", &tenant, vec![late], Some(&old), LONG).await.unwrap_err();
    assert_eq!(error.class, Class::Conflict, "{error}");
    assert_eq!(imports.take(&tenant, id, piece()).await.unwrap_err().class, Class::Conflict, "it is there");
    assert_eq!(world.meta.blocks(&tenant).blocks.len(), 1);
    world.group.shutdown().await.unwrap();
}
