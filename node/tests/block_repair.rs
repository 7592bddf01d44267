//! Goal: a block that was compacted and is damaged is made again from its sources, the same to the bit, and takes the
//! place of the damaged one; when that cannot be, nothing is changed but that it is known to be damaged. Method: real
//! metadata and a store of files, blocks that overlap and are merged into two shards, a flipped bit, one round of the
//! scrubber.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engram_model::block::{BlockId, BlockMeta, BlockRow, Origin, Shard};
use engram_model::digest::Digest;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_model::{Labels, TimeRange};
use engram_node::blocks::check::Pace;
use engram_node::blocks::reach::{Kind, Reach};
use engram_node::blocks::repair::Workshop;
use engram_node::blocks::scrubber::{Config, Scrubbing, round};
use engram_node::meta::blocks::Replacement;
use engram_node::meta::{Meta, TenantDefaults};
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::block::{BlockDir, BlockWriter, Spec, Written};
use engram_storage::chunk::encode_floats;
use engram_storage::compact::{Input, Progress, Target, Task, merge};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);
const WINDOW: i64 = 7_200_000;
const RANGE: TimeRange = TimeRange { start: 0, end: WINDOW };

/// What a test works with.
struct World {
    dir: tempfile::TempDir,
    group: Arc<Group>,
    meta: Meta,
    store: Store,
    tenant: TenantId,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
        let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
        let options = GroupOptions::new(dir.path().join("meta"), node, first, Clock::real());
        let group = Arc::new(Group::open(options).await.unwrap());
        let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10_000 };
        let meta = Meta::new(group.clone(), defaults);
        let tenant = TenantId::new("acme").unwrap();
        meta.tenant_or_create(&tenant, LONG).await.unwrap();
        let store = Store::local(Arc::new(RealDisk), &dir.path().join("store")).unwrap();
        std::fs::create_dir_all(dir.path().join("built")).unwrap();
        Self { dir, group, meta, store, tenant }
    }

    fn built(&self) -> std::path::PathBuf {
        self.dir.path().join("built")
    }

    /// Uploads a block; what the metadata are told of it.
    async fn put(&self, written: &Written, how: (u32, Origin, Option<Shard>), sources: Vec<BlockId>) -> BlockMeta {
        let id = written.meta.ulid;
        let files = self.store.put_block(&written.path, &self.tenant, id).await.unwrap();
        BlockMeta {
            id,
            tenant: self.tenant.clone(),
            range: RANGE,
            level: how.0,
            origin: how.1,
            shard: how.2,
            sources,
            series: written.report.series,
            chunks: written.report.chunks,
            digest: written.report.digest(),
            files,
            as_of: 0,
            made_at: 0,
        }
    }

    /// Blocks of 40 series each that share a half of them and some samples, imported; merged into two shards.
    async fn compacted(&self) -> Vec<BlockMeta> {
        let mut sources = Vec::new();
        for (n, first) in [(1, 0_i64), (2, 20)] {
            let spec = Spec::cut(BlockId(n), RANGE, WINDOW);
            let mut writer = BlockWriter::create(Arc::new(RealDisk), &self.built(), spec).unwrap();
            for i in first..first + 40 {
                let labels = Labels::from_pairs([("__name__", "m"), ("i", &*format!("{i:02}"))]);
                let samples: Vec<_> = (0..50_u32).map(|at| (i64::from(at) * 1000 + first, f64::from(at))).collect();
                writer.add(&labels, &encode_floats(&samples)).unwrap();
            }
            let written = writer.finish().unwrap().unwrap();
            sources.push(self.put(&written, (1, Origin::Imported, None), Vec::new()).await);
        }
        self.meta.add_blocks("test", &self.tenant, sources.clone(), None, LONG).await.unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let inputs = sources.iter().map(|source| {
            let path = self.store.local_block(&self.tenant, source.id).unwrap();
            Input { block: BlockDir::open(&*disk, &path).unwrap(), digest: source.digest, as_of: 0 }
        });
        let shards = [0, 1].map(|index| Shard { index, count: 2 });
        let targets =
            shards.map(|shard| Target { id: BlockId(10 + u128::from(shard.index)), range: RANGE, shard: Some(shard) });
        let task = Task {
            inputs: inputs.collect(),
            targets: targets.to_vec(),
            hidden: Vec::new(),
            window_ms: WINDOW,
            level: 2,
            labels: BTreeMap::new(),
        };
        let merged = merge(&disk, &self.built(), &task, &Progress::default()).unwrap();
        assert_eq!(merged.duplicates, Digest::EMPTY, "times differ by 20 ms");
        let ids: Vec<BlockId> = sources.iter().map(|source| source.id).collect();
        let mut results = Vec::new();
        for (target, written) in &merged.blocks {
            results.push(self.put(written, (2, Origin::Compacted, target.shard), ids.clone()).await);
        }
        let lease = self.meta.lease("compact", LONG, LONG).await.unwrap().unwrap();
        let what = Replacement { sources: ids, results: results.clone(), ..Replacement::default() };
        self.meta.replace_blocks(&self.tenant, what, &lease, LONG).await.unwrap();
        results
    }

    fn path(&self, id: BlockId) -> std::path::PathBuf {
        self.store.local_block(&self.tenant, id).unwrap()
    }

    async fn scrub(&self) {
        let shop = Workshop {
            meta: self.meta.clone(),
            store: self.store.clone(),
            disk: Arc::new(RealDisk),
            work: self.dir.path().join("repairs"),
            clock: Clock::real(),
        };
        let (state, pace) = (self.dir.path().join("scrub.json"), Pace::default());
        let (handle, stop) = (Scrubbing::default(), CancellationToken::new());
        let reach = Reach::new(self.meta.clone(), Kind::Own);
        let config = Config { shop, state, pace, handle, reach, stop };
        round(&config).await.unwrap();
    }

    /// Blocks that are read.
    fn living(&self) -> Vec<Arc<BlockRow>> {
        self.meta.blocks(&self.tenant).blocks.into_iter().filter(|row| row.marked.is_none()).collect()
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 2;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_made_again_from_its_sources() {
    let world = World::new().await;
    let results = world.compacted().await;
    world.scrub().await;
    assert_eq!(world.living().iter().map(|row| row.meta.id).collect::<Vec<_>>(), [BlockId(10), BlockId(11)]);
    flip(&world.path(BlockId(11)).join("chunks/000001"));
    world.scrub().await;
    let living = world.living();
    assert!(living.iter().all(|row| row.quarantined.is_none()), "{living:?}");
    let new = &living.iter().find(|row| row.meta.id != BlockId(10)).unwrap().meta;
    assert_ne!(new.id, BlockId(11));
    let damaged = &results[1];
    assert_eq!((new.digest, new.shard, new.range), (damaged.digest, damaged.shard, damaged.range));
    assert_eq!(new.sources, [damaged.id]);
    world.scrub().await;
    assert_eq!(world.living().len(), 2, "all is well");
    assert_eq!(RealDisk.list_dirs(&world.dir.path().join("repairs")).unwrap(), Vec::<String>::new());
    world.group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_sound_sources_it_stays_in_quarantine() {
    let world = World::new().await;
    world.compacted().await;
    flip(&world.path(BlockId(1)).join("index"));
    flip(&world.path(BlockId(10)).join("index"));
    for _ in 0..2 {
        world.scrub().await;
        let living = world.living();
        let quarantined: Vec<_> = living.iter().map(|row| (row.meta.id, row.quarantined.is_some())).collect();
        assert_eq!(quarantined, [(BlockId(10), true), (BlockId(11), false)]);
    }
    world.group.shutdown().await.unwrap();
}
