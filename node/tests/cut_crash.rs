//! Goal: the power may fail at any act of a cut, and the object store at any request: afterwards either the head holds
//! what was acknowledged or a committed block does, nothing twice, and the cut is finished by itself. Method: a
//! partition with its log, the follower and the cutter on a disk in memory that stops at its n-th act, for every n; then
//! the disk comes back with a part of what was not synced, everything is opened anew and left alone. The sums of head
//! and blocks must be that of what was acknowledged. The same for a replica that holds more than was cut, and ships it; for a
//! disk that is full after any number of bytes, one whose n-th sync fails, and one that damages its n-th write. The metadata is real and does not crash: its own tests do that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::block::{BlockId, BlockMeta, BlockRow, Origin};
use engram_model::digest::Digest;
use engram_model::labels::{Labels, hash128};
use engram_model::place::{Epoch, PartitionId};
use engram_model::sample::Sample;
use engram_model::series::{Columns, Series};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_model::{Millis, TimeRange};
use engram_node::actor::{Health, Supervisor};
use engram_node::blocks::build::{Cutting, build};
use engram_node::blocks::check::{self, Depth, Pace};
use engram_node::blocks::cutter::{self, CutCounts};
use engram_node::blocks::late::LateBlocks;
use engram_node::blocks::reach::{Kind, Reach};
use engram_node::blocks::uploader::{self, About};
use engram_node::ingest::LocalReplica;
use engram_node::ingest::follower::{self, Held};
use engram_node::ingest::heads::Heads;
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::ingest::recover::Recovery;
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::peer::{Append, Frozen, Peers, Replica, Select};
use engram_node::read::hide::Hider;
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::block::{BlockDir, verify};
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::head::{HeadOptions, Symbols};
use engram_storage::log::{NodeLog, Options};
use engram_storage::object::Store;
use engram_storage::object::faults::{Fault, FaultStore, Faults};
use engram_storage::object::metrics::Op;
use engram_storage::object::options::Options as StoreOptions;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);
const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };
const P0: PartitionId = PartitionId(0);

async fn meta(dir: &Path) -> Meta {
    let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let group = Group::open(GroupOptions::new(dir.join("meta"), node, first, Clock::real())).await.unwrap();
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10_000 };
    Meta::new(Arc::new(group), defaults)
}

/// Samples of `up` and what they sum to.
fn append(meta: &Meta, tenant: &TenantId, times: &[Millis]) -> (Append, Digest) {
    let text = b"__name__up".to_vec();
    let pair = Pair { name: Text { at: 0, len: 8 }, value: Text { at: 8, len: 2 } };
    let hash = hash128([(&b"__name__"[..], &b"up"[..])].into_iter(), &mut Vec::new());
    let samples: Vec<Sample> = times.iter().map(|at| Sample { at: *at, value: 1.5 }).collect();
    let all = Run { from: 0, to: u32::try_from(samples.len()).unwrap() };
    let series = BatchSeries { pairs: Run { from: 0, to: 1 }, samples: all, hash, ..BatchSeries::default() };
    let batch = WriteBatch { text, pairs: vec![pair], series: vec![series], samples, ..WriteBatch::default() };
    let labels = Labels::from_pairs([("__name__", "up")]);
    let digest = times.iter().map(|at| Digest::of_float(labels.hash128(), *at, 1.5)).sum();
    let append = Append {
        tenant: tenant.clone(),
        limits: Arc::default(),
        partition: P0,
        epoch: meta.epoch(P0).unwrap_or(Epoch(0)),
        batch: Arc::new(batch),
        picks: Arc::new(vec![0]),
        metadata: false,
        memory: None,
        repair: false,
        as_of: 0,
        packed: Arc::default(),
    };
    (append, digest)
}

/// One life of a node, as far as a cut concerns it.
struct Life {
    log: Arc<NodeLog>,
    local: LocalReplica,
    held: Arc<Held>,
    stop: CancellationToken,
    supervisor: Supervisor,
}

impl Life {
    fn open(disk: &FaultDisk, meta: &Meta, store: &Store) -> Self {
        let mut life = Self::without_cutter(disk, meta, store);
        life.supervisor.spawn(cutter::child(cutter::Config {
            meta: meta.clone(),
            peers: Peers::local_only(meta.node_id(), Arc::new(life.local.clone())),
            store: store.clone(),
            disk: Arc::new(disk.clone()),
            work: "/work".into(),
            window_ms: HeadOptions::default().window_ms,
            clock: Clock::real(),
            reach: Reach::new(meta.clone(), Kind::Own),
            every: Duration::from_millis(20),
            again_after_ms: 10,
            counts: Arc::new(CutCounts::default()),
            stop: life.stop.clone(),
        }));
        life
    }

    /// One for whom another node cuts.
    fn without_cutter(disk: &FaultDisk, meta: &Meta, store: &Store) -> Self {
        let clock = Clock::real();
        let all = Arc::new(vec![Heads::new(Arc::new(Symbols::default()), HeadOptions::default())]);
        let mut recovery = Recovery::new(&all);
        let log = NodeLog::open(Arc::new(disk.clone()), Path::new("/log"), options(), &mut |position, bytes| {
            recovery.apply(position, bytes).unwrap();
            Ok(())
        });
        let (log, stop) = (Arc::new(log.unwrap()), CancellationToken::new());
        recovery.finish().unwrap();
        let mut supervisor = Supervisor::new("test", Health::default(), CancellationToken::new());
        let (handle, child) = partition::child(partition::Config {
            partition: P0,
            heads: all[0].clone(),
            all_heads: all.clone(),
            log: log.clone(),
            budget: LogBudget::new(1 << 20),
            meta: meta.clone(),
            clock: clock.clone(),
            stop: stop.clone(),
        });
        supervisor.spawn(child);
        let local = LocalReplica::new(all, vec![handle], clock.now());
        let window_ms = HeadOptions::default().window_ms;
        let reach = Reach::new(meta.clone(), Kind::Own);
        let late = LateBlocks::open((&reach, store), Arc::new(disk.clone()), "/late".into(), window_ms, clock.clone());
        let (cuts, held) = (late.unwrap(), Arc::new(Held::default()));
        supervisor.spawn(follower::child(follower::Config {
            local: local.clone(),
            agreed: Arc::new(meta.clone()),
            cuts: Some(Arc::new(cuts)),
            clock,
            every: Duration::from_millis(20),
            held: held.clone(),
            stop: stop.clone(),
        }));
        Self { log, local, held, stop, supervisor }
    }

    /// The digest of all the head has.
    async fn held(&self, tenant: &TenantId) -> Digest {
        let request = Select {
            tenant: tenant.clone(),
            epoch: Epoch(1),
            partition: P0,
            range: TimeRange::ALL,
            matchers: Arc::default(),
            series_max: 0,
            wanted: Arc::default(),
            as_of: u64::MAX,
        };
        self.local.digests(request).await.unwrap().into_iter().map(|(_, digest)| digest).sum()
    }

    async fn end(self) {
        self.stop.cancel();
        self.supervisor.join(LONG).await;
        // A log whose disk has stopped says so.
        let _closed = self.log.close();
    }
}

fn options() -> Options {
    Options { segment_bytes: 1 << 16, ..Options::default() }
}

fn committed(meta: &Meta, tenant: &TenantId) -> Vec<Arc<BlockRow>> {
    meta.blocks(tenant).blocks
}

/// Waits until no seal of the tenant is open.
async fn settled(meta: &Meta, tenant: &TenantId) {
    let waiting = async {
        loop {
            let index = meta.index();
            if meta.seals(tenant, P0).is_some_and(|seals| seals.open.is_empty()) {
                return;
            }
            meta.changed(index).await.unwrap();
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("the cut is finished by itself");
}

/// Looks again and again: acts of a disk tell nobody.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Head and the one committed block hold what was acknowledged, once; what lies behind the window stays in the head.
async fn whole(meta: &Meta, life: &Life, disk: &FaultDisk, tenant: &TenantId, digest: Digest, what: &str) {
    let mut sum = life.held(tenant).await;
    assert_eq!(sum.count, 1, "{what}: what lies behind the window stays in the head");
    let rows = committed(meta, tenant);
    for row in &rows {
        let dir = Path::new("/blocks").join(tenant.as_str()).join(row.meta.id.to_string());
        let block = BlockDir::open(disk, &dir).unwrap();
        let found = verify(&block, block.meta()).unwrap().digest();
        assert_eq!(found, row.meta.digest, "{what}");
        for file in &row.meta.files {
            assert_eq!(disk.open(&dir.join(&file.name)).unwrap().len().unwrap(), file.bytes, "{what}");
        }
        sum.add(found);
    }
    assert_eq!(sum, digest, "{what}: head and blocks hold what was acknowledged, once");
    assert_eq!(rows.len(), 1, "{what}");
}

/// Two lives around a power failure at the n-th act of a cut; whether the first one got that far.
async fn crash_at(meta: &Meta, acts: u64) -> bool {
    let tenant = TenantId::new(&format!("t{acts}")).unwrap();
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let disk = FaultDisk::new();
    let store = Store::local(Arc::new(disk.clone()), Path::new("/blocks")).unwrap();
    let life = Life::open(&disk, meta, &store);
    // Two in the window, one behind it; and one that comes after the seal.
    let (first, digest) = append(meta, &tenant, &[10, 20, 7_200_000]);
    life.local.append(first, LONG).await.unwrap();
    let before = disk.acts();
    disk.stop_after(acts);
    meta.seal(&tenant, P0, WINDOW, LONG).await.unwrap();
    let stopped = until(|| disk.acts() >= before + acts);
    let finished = async {
        settled(meta, &tenant).await;
        until(|| disk.list_dirs(Path::new("/work")).is_ok_and(|left| left.is_empty())).await;
    };
    let got_there = tokio::select! {
        biased;
        () = stopped => true,
        () = finished => false,
    };
    life.end().await;
    disk.crash(acts);

    let life = Life::open(&disk, meta, &store);
    settled(meta, &tenant).await;
    whole(meta, &life, &disk, &tenant, digest, &format!("stopped at act {acts}")).await;
    let (late, _) = append(meta, &tenant, &[7_200_001]);
    life.local.append(late, LONG).await.unwrap();
    until(|| disk.list_dirs(Path::new("/work")).unwrap().is_empty()).await;
    life.end().await;
    got_there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_may_fail_at_every_act_of_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let mut acts = 0;
    while crash_at(&meta, acts).await {
        acts += 1;
    }
    eprintln!("{acts} acts");
    assert!(acts > 20, "a cut writes more than {acts} times");
}

/// A cut on a disk that fails in another way than by stopping; whether it came to that. What fails apart from the log is
/// done again by itself; a log that fails ends the node, which finishes the cut in its next life.
async fn faulty(meta: &Meta, name: &str, order: impl FnOnce(&FaultDisk), met: impl Fn(&FaultDisk) -> bool) -> bool {
    let tenant = TenantId::new(name).unwrap();
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let disk = FaultDisk::new();
    let store = Store::local(Arc::new(disk.clone()), Path::new("/blocks")).unwrap();
    let mut life = Life::open(&disk, meta, &store);
    let (first, digest) = append(meta, &tenant, &[10, 20, 7_200_000]);
    life.local.append(first, LONG).await.unwrap();
    order(&disk);
    meta.seal(&tenant, P0, WINDOW, LONG).await.unwrap();
    let log = life.log.clone();
    let has_failed = tokio::select! {
        () = until(|| log.failed().is_some()) => true,
        () = settled(meta, &tenant) => false,
    };
    let met = met(&disk);
    assert!(met || !has_failed, "{name}: the log failed for nothing");
    if has_failed {
        drop(log);
        life.end().await;
        disk.crash(7);
        life = Life::open(&disk, meta, &store);
        settled(meta, &tenant).await;
    }
    whole(meta, &life, &disk, &tenant, digest, name).await;
    until(|| disk.list_dirs(Path::new("/work")).unwrap().is_empty()).await;
    life.end().await;
    met
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sync_of_a_cut_may_fail() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let mut syncs = 0;
    while faulty(&meta, &format!("sync{syncs}"), |disk| disk.fail_sync_after(syncs), FaultDisk::has_failed_sync).await {
        syncs += 1;
    }
    assert!(syncs > 6, "a block, its copy and two entries have more than {syncs} syncs");
}

/// What the work directory holds goes into a store on the same disk by link: there is no second write to be damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_write_of_a_block_may_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let mut writes = 0;
    let order = |writes: u64| move |disk: &FaultDisk| disk.damage_write(Path::new("/work"), writes);
    while faulty(&meta, &format!("work{writes}"), order(writes), FaultDisk::has_damaged_write).await {
        writes += 1;
    }
    assert!(writes > 2, "three files have more than {writes} writes");
}

/// A cut on a disk with room for so many bytes; whether it met the end of the room. When there is room again it is
/// finished by itself.
async fn full_at(meta: &Meta, free: usize) -> bool {
    let tenant = TenantId::new(&format!("full{free}")).unwrap();
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let disk = FaultDisk::new();
    let store = Store::local(Arc::new(disk.clone()), Path::new("/blocks")).unwrap();
    let life = Life::open(&disk, meta, &store);
    let (first, digest) = append(meta, &tenant, &[10, 20, 7_200_000]);
    life.local.append(first, LONG).await.unwrap();
    disk.leave_free(free);
    meta.seal(&tenant, P0, WINDOW, LONG).await.unwrap();
    let met = tokio::select! {
        biased;
        () = until(|| disk.no_room() > 1) => true,
        () = settled(meta, &tenant) => false,
    };
    if met {
        assert!(committed(meta, &tenant).is_empty(), "{free} bytes of room");
        assert_eq!(life.held(&tenant).await, digest, "{free} bytes of room: the head keeps all of it");
        // What was reserved before is still written.
        let (more, _) = append(meta, &tenant, &[7_200_001]);
        assert_eq!(life.local.append(more, LONG).await.unwrap().samples, 1);
        disk.fill(false);
        settled(meta, &tenant).await;
    }
    let mut sum = life.held(&tenant).await;
    assert_eq!(sum.count, 1 + u64::from(met), "{free} bytes of room");
    let rows = committed(meta, &tenant);
    assert_eq!(rows.len(), 1);
    sum.add(rows[0].meta.digest);
    assert_eq!(sum.count, digest.count + u64::from(met));
    let dir = Path::new("/blocks").join(tenant.as_str()).join(rows[0].meta.id.to_string());
    let block = BlockDir::open(&disk, &dir).unwrap();
    assert_eq!(verify(&block, block.meta()).unwrap().digest(), rows[0].meta.digest);
    until(|| disk.list_dirs(Path::new("/work")).unwrap().is_empty()).await;
    life.end().await;
    met
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_may_be_full_at_any_byte_of_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let mut free = 0;
    while full_at(&meta, free).await {
        free += 101;
    }
    assert!(free > 1000, "a block and its copy take more than {free} bytes");
}

/// The block of seal 1 as a majority without this node makes it: only the first sample was there.
async fn cut_elsewhere(tenant: &TenantId, store: &Store, disk: &FaultDisk) -> BlockMeta {
    let labels = Labels::from_pairs([("__name__", "up")]);
    let digest = Digest::of_float(labels.hash128(), 10, 1.5);
    let columns = Columns { times: vec![10], values: vec![1.5], ..Columns::default() };
    let series = vec![Series { labels, source: Arc::new(columns) }];
    let part = Frozen { number: 1, window: WINDOW, digests: BTreeMap::from([(0, digest)]), series };
    let cutting = Cutting { window: WINDOW, parts: vec![part.into()], hidden: Hider::default(), window_ms: 7_200_000 };
    let (work, id) = (Path::new("/elsewhere"), BlockId::new(1, u128::from(digest.low)));
    disk.create_dir(work).unwrap();
    let built = build(Arc::new(disk.clone()), work, id, cutting, &CancellationToken::new()).unwrap();
    let origin = Origin::Cut { partition: P0, seal: 1 };
    let about = About { tenant: tenant.clone(), range: WINDOW, origin, as_of: 0, made_at: 1 };
    uploader::upload(store, about, &built.written.unwrap()).await.unwrap()
}

async fn commit(meta: &Meta, tenant: &TenantId, block: BlockMeta) {
    let lease = meta.lease(&format!("cut/{tenant}/0"), LONG, LONG).await.unwrap().unwrap();
    let digest = block.digest;
    meta.commit_cut((tenant, P0, 1), Some(block), digest, &lease, LONG).await.unwrap();
}

/// Two lives around a power failure at the n-th act of forgetting what was cut elsewhere with less than is here.
async fn crash_late_at(meta: &Meta, acts: u64) -> bool {
    let tenant = TenantId::new(&format!("late{acts}")).unwrap();
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let disk = FaultDisk::new();
    let store = Store::local(Arc::new(disk.clone()), Path::new("/blocks")).unwrap();
    let life = Life::without_cutter(&disk, meta, &store);
    let (first, digest) = append(meta, &tenant, &[10, 20, 7_200_000]);
    life.local.append(first, LONG).await.unwrap();
    meta.seal(&tenant, P0, WINDOW, LONG).await.unwrap();
    until(|| life.local.sealed(&tenant, P0) == 1).await;
    let block = cut_elsewhere(&tenant, &store, &disk).await;
    let before = disk.acts();
    disk.stop_after(acts);
    commit(meta, &tenant, block).await;
    let stopped = until(|| disk.acts() >= before + acts);
    let got_there = tokio::select! {
        biased;
        () = stopped => true,
        () = settled(meta, &tenant) => false,
    };
    life.end().await;
    disk.crash(acts);

    let life = Life::without_cutter(&disk, meta, &store);
    settled(meta, &tenant).await;
    let mut sum = life.held(&tenant).await;
    assert_eq!(sum.count, 1, "stopped at act {acts}");
    let rows = committed(meta, &tenant);
    let (seen, digests): (Vec<_>, Vec<_>) = rows.iter().map(|row| (row.meta.id, row.meta.digest)).unzip();
    for row in &rows {
        let dir = Path::new("/blocks").join(tenant.as_str()).join(row.meta.id.to_string());
        let block = BlockDir::open(&disk, &dir).unwrap();
        let found = verify(&block, block.meta()).unwrap().digest();
        assert_eq!(found, row.meta.digest, "stopped at act {acts}");
        sum.add(found);
    }
    assert_eq!(rows.len(), 2, "stopped at act {acts}: what was cut, and what it lacked: {seen:?} {digests:?}");
    assert_eq!(sum, digest, "stopped at act {acts}: head and blocks hold what was acknowledged, once");
    assert!(disk.list_dirs(Path::new("/late")).unwrap().is_empty());
    life.end().await;
    got_there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cut_lacks_is_shipped_whenever_the_power_fails() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let mut acts = 0;
    while crash_late_at(&meta, acts).await {
        acts += 1;
    }
    eprintln!("{acts} acts");
    assert!(acts > 10, "a late block is more than {acts} acts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forgotten_for_a_block_that_cannot_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let tenant = TenantId::new("apart").unwrap();
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let disk = FaultDisk::new();
    let place = |name: &str| Store::local(Arc::new(disk.clone()), Path::new(name)).unwrap();
    let life = Life::without_cutter(&disk, &meta, &place("/mine"));
    let (first, digest) = append(&meta, &tenant, &[10]);
    life.local.append(first, LONG).await.unwrap();
    meta.seal(&tenant, P0, WINDOW, LONG).await.unwrap();
    until(|| life.local.sealed(&tenant, P0) == 1).await;
    let block = cut_elsewhere(&tenant, &place("/theirs"), &disk).await;
    commit(&meta, &tenant, block).await;
    until(|| life.held.readings().iter().any(|r| r.name == "ingest_seals_held" && r.value > 0.5)).await;
    assert_eq!(life.held(&tenant).await, digest);
    life.end().await;
}

/// One cut with a bucket that spoils its n-th request of a kind; how many there were.
async fn spoilt(meta: &Meta, name: &str, order: impl FnOnce(&Faults)) -> u64 {
    let tenant = TenantId::new(name).unwrap();
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let disk = FaultDisk::new();
    let (store, faults) = FaultStore::memory(Arc::new(disk.clone()), &StoreOptions::default());
    order(&faults);
    let life = Life::open(&disk, meta, &store);
    let (first, digest) = append(meta, &tenant, &[10, 20]);
    life.local.append(first, LONG).await.unwrap();
    meta.seal(&tenant, P0, WINDOW, LONG).await.unwrap();
    settled(meta, &tenant).await;
    let rows = committed(meta, &tenant);
    assert_eq!((rows.len(), rows[0].meta.digest), (1, digest), "{name}");
    for file in &rows[0].meta.files {
        let key = engram_storage::object::block_key(&tenant, rows[0].meta.id, &file.name);
        assert_eq!(store.size(&key).await.unwrap(), Some(file.bytes), "{name}: {key}");
    }
    let checked = check::block(&store, &rows[0].meta, Depth::Objects, Pace::default()).await.unwrap();
    assert_eq!(checked.found, [], "{name}");
    assert_eq!(life.held(&tenant).await, Digest::EMPTY, "{name}");
    life.end().await;
    faults.count(Op::Put).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_object_store_may_fail_at_every_upload() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let puts = spoilt(&meta, "none", |_| ()).await;
    assert!((3..10).contains(&puts), "{puts}");
    let faults = [("fail", Fault::Fail), ("after", Fault::FailAfter), ("flip", Fault::Flip(7)), ("cut", Fault::Cut(9))];
    for (kind, fault) in faults {
        for skip in 0..puts {
            let rule = |faults: &Faults| {
                let key_has = String::new();
                faults.add(engram_storage::object::faults::Rule { op: Op::Put, key_has, skip, times: 1, fault });
            };
            spoilt(&meta, &format!("{kind}{skip}"), rule).await;
        }
    }
}
