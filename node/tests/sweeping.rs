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
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::blocks::reach::{Kind, Reach};
use engram_node::blocks::sweeper::{self, Sweeping};
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
        let (store, _) = FaultStore::memory(Arc::new(RealDisk), &Options::default());
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
        Self { dir, group, meta, store, sweeper }
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
