//! Goal: what only happens under load or after a crash. Method: real actors on a real log in a directory of their own,
//! with bounds so small that the case comes at once; recovery is given entries by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::block::{Cut, Seal};
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::labels::hash128;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::sample::Sample;
use engram_model::series::Columns;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::actor::{Health, Supervisor};
use engram_node::ingest::LocalReplica;
use engram_node::ingest::entry::{self, Kind};
use engram_node::ingest::follower::{self, Agreed, Cuts, Held, OpenSeals};
use engram_node::ingest::heads::Heads;
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::ingest::recover::Recovery;
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::peer::{Append, Appended, Frozen, HeldWindows, Replica, Select};
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::disk::real::RealDisk;
use engram_storage::head::{HeadOptions, Symbols};
use engram_storage::log::{NodeLog, Options, Position};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);

fn heads() -> Heads {
    Heads::new(Arc::new(Symbols::default()), HeadOptions::default())
}

async fn meta(dir: &std::path::Path) -> Meta {
    let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let group = Group::open(GroupOptions::new(dir.join("meta"), node, first, Clock::test(0))).await.unwrap();
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    Meta::new(Arc::new(group), defaults)
}

/// One sample of `up` at `at`.
fn append(meta: &Meta, at: i64) -> Append {
    let text = b"__name__up".to_vec();
    let pair = Pair { name: Text { at: 0, len: 8 }, value: Text { at: 8, len: 2 } };
    let hash = hash128([(&b"__name__"[..], &b"up"[..])].into_iter(), &mut Vec::new());
    let one = Run { from: 0, to: 1 };
    let batch = WriteBatch {
        text,
        pairs: vec![pair],
        series: vec![BatchSeries { pairs: one, samples: one, hash, ..BatchSeries::default() }],
        samples: vec![Sample { at, value: 1.0 }],
        ..WriteBatch::default()
    };
    Append {
        tenant: TenantId::anonymous(),
        limits: Arc::default(),
        partition: PartitionId(0),
        epoch: meta.epoch(PartitionId(0)).unwrap_or(Epoch(0)),
        batch: Arc::new(batch),
        picks: Arc::new(vec![0]),
        metadata: false,
        memory: None,
    }
}

/// One partition on its own log, opened as a node does it.
struct Ingest {
    meta: Meta,
    log: Arc<NodeLog>,
    local: LocalReplica,
    stop: CancellationToken,
    supervisor: Supervisor,
    clock: Clock,
}

impl Ingest {
    fn open(dir: &std::path::Path, meta: &Meta, clock: &Clock) -> Self {
        let all = Arc::new(vec![heads()]);
        let mut recovery = Recovery::new(&all);
        let log = NodeLog::open(Arc::new(RealDisk), &dir.join("log"), Options::default(), &mut |position, bytes| {
            recovery.apply(position, bytes).unwrap();
            Ok(())
        });
        recovery.finish().unwrap();
        let (log, stop) = (Arc::new(log.unwrap()), CancellationToken::new());
        let (handle, child) = partition::child(partition::Config {
            partition: PartitionId(0),
            heads: all[0].clone(),
            all_heads: all.clone(),
            log: log.clone(),
            budget: LogBudget::new(1 << 20),
            meta: meta.clone(),
            clock: clock.clone(),
            stop: stop.clone(),
        });
        let mut supervisor = Supervisor::new("ingest", Health::default(), CancellationToken::new());
        supervisor.spawn(child);
        let local = LocalReplica::new(all, vec![handle], clock.now());
        Self { meta: meta.clone(), log, local, stop, supervisor, clock: clock.clone() }
    }

    async fn write(&self, at: i64) -> Appended {
        self.local.append(append(&self.meta, at), LONG).await.unwrap()
    }

    async fn times(&self, as_of: u64) -> Result<Vec<i64>, engram_node::error::Error> {
        let request = Select {
            tenant: TenantId::anonymous(),
            partition: PartitionId(0),
            range: TimeRange::ALL,
            matchers: Arc::default(),
            series_max: 0,
            wanted: Arc::default(),
            as_of,
        };
        let mut columns = Columns::default();
        for series in self.local.select(request).await? {
            series.source.read(TimeRange::ALL, &mut columns).unwrap();
        }
        Ok(columns.times)
    }

    async fn frozen(&self, number: u64) -> Result<Option<Frozen>, engram_node::error::Error> {
        self.local.frozen(&TenantId::anonymous(), PartitionId(0), number).await
    }

    async fn live(&self) -> Vec<HeldWindows> {
        self.local.windows(PartitionId(0)).await.unwrap()
    }

    /// Carries out what is agreed, once.
    async fn follow(&self, agreed: &Arc<Told>, lacks: Digest) -> Arc<Held> {
        let held = Arc::new(Held::default());
        follower::pass(&follower::Config {
            local: self.local.clone(),
            agreed: agreed.clone(),
            cuts: Some(Arc::new(Lacks(lacks))),
            clock: self.clock.clone(),
            every: LONG,
            held: held.clone(),
            stop: CancellationToken::new(),
        })
        .await;
        held
    }

    async fn close(self) {
        self.stop.cancel();
        self.supervisor.join(LONG).await;
        self.log.close().unwrap();
    }
}

/// The metadata, as a test says it is.
#[derive(Default)]
struct Told {
    seals: Mutex<Vec<Seal>>,
    forgot: Mutex<Vec<u64>>,
}

impl Told {
    fn seal(&self, number: u64, window: TimeRange) {
        self.seals.lock().unwrap().push(Seal { number, window, cut: None, forgotten_by: vec![] });
    }

    fn cut(&self, number: u64, digest: Digest, index: u64) {
        let mut seals = self.seals.lock().unwrap();
        let seal = seals.iter_mut().find(|seal| seal.number == number).unwrap();
        seal.cut = Some(Cut { block: None, digest, index });
    }
}

impl Agreed for Told {
    fn me(&self) -> NodeId {
        NodeId(1)
    }

    fn index(&self) -> u64 {
        0
    }

    fn changed(&self, _: u64) -> BoxFuture<'_, Result<u64, engram_node::error::Error>> {
        std::future::pending().boxed()
    }

    fn open_seals(&self) -> Vec<OpenSeals> {
        let seals = self.seals.lock().unwrap().clone();
        vec![OpenSeals { tenant: TenantId::anonymous(), partition: PartitionId(0), seals }]
    }

    fn forgot(
        &self,
        _: &TenantId,
        _: PartitionId,
        number: u64,
        _: Duration,
    ) -> BoxFuture<'_, Result<(), engram_node::error::Error>> {
        self.forgot.lock().unwrap().push(number);
        async { Ok(()) }.boxed()
    }
}

/// Every cut lacks this.
struct Lacks(Digest);

impl Cuts for Lacks {
    fn lacks(&self, _: &TenantId, _: Cut, _: Frozen) -> BoxFuture<'_, Result<Digest, engram_node::error::Error>> {
        let lacks = self.0;
        async move { Ok(lacks) }.boxed()
    }
}

const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };

/// Goal: what is agreed of a window is carried out once, and a crash changes nothing. Method: a partition with its log,
/// opened again after each step; the metadata is told by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_sealed_cut_and_forgotten_and_a_restart_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, clock, told) = (meta(dir.path()).await, Clock::test(1000), Arc::new(Told::default()));
    let ingest = Ingest::open(dir.path(), &meta, &clock);
    for at in [10, 20, 7_200_000] {
        assert_eq!(ingest.write(at).await.samples, 1);
    }
    assert_eq!(ingest.frozen(1).await.err().unwrap().class, Class::Unavailable);
    told.seal(1, WINDOW);
    ingest.follow(&told, Digest::EMPTY).await;
    ingest.follow(&told, Digest::EMPTY).await;
    let part = ingest.frozen(1).await.unwrap().unwrap();
    assert_eq!((part.digest().count, part.series.len(), part.window), (2, 1, WINDOW));
    let live = ingest.live().await;
    assert_eq!((live[0].sealed, live[0].appended_at, live[0].newest), (1, 1000, Some(7_200_000)));
    assert_eq!(live[0].live, [(TimeRange::new(7_200_000, 14_400_000), 1)]);
    assert_eq!(ingest.times(0).await.unwrap(), [10, 20, 7_200_000]);
    ingest.close().await;

    let ingest = Ingest::open(dir.path(), &meta, &clock);
    assert_eq!(ingest.frozen(1).await.unwrap().unwrap().digests, part.digests);
    assert_eq!(ingest.write(20).await.samples, 1, "a retry is stored already");
    assert_eq!(ingest.frozen(1).await.unwrap().unwrap().digest(), part.digest());
    // A cut of something else: kept while it lacks anything of ours, and forgotten once it does not.
    told.cut(1, Digest { count: 1, low: 1, high: 1 }, 50);
    let held = ingest.follow(&told, Digest { count: 1, low: 2, high: 2 }).await;
    assert!(held.readings().iter().any(|r| r.name == "ingest_samples_held" && (r.value - 1.0).abs() < 0.1));
    assert_eq!(ingest.times(0).await.unwrap(), [10, 20, 7_200_000]);
    assert!(told.forgot.lock().unwrap().is_empty());
    ingest.follow(&told, Digest::EMPTY).await;
    assert_eq!(*told.forgot.lock().unwrap(), [1]);
    assert!(ingest.frozen(1).await.unwrap().is_none());
    ingest.close().await;

    let ingest = Ingest::open(dir.path(), &meta, &clock);
    assert!(ingest.frozen(1).await.unwrap().is_none());
    let stale = ingest.times(49).await.unwrap_err();
    assert!(stale.is_stale_view() && stale.class == Class::Unavailable, "{stale}");
    assert_eq!(ingest.times(50).await.unwrap(), [7_200_000]);
    told.seal(2, TimeRange::new(7_200_000, 14_400_000));
    ingest.follow(&told, Digest::EMPTY).await;
    told.cut(2, ingest.frozen(2).await.unwrap().unwrap().digest(), 60);
    ingest.follow(&told, Digest { count: 1, low: 1, high: 1 }).await;
    assert!(ingest.times(60).await.unwrap().is_empty() && ingest.times(59).await.unwrap_err().is_stale_view());
    // An empty head goes, and what it knew of old views stays.
    let handle = ingest.local.handle(PartitionId(0)).unwrap();
    assert!(!handle.drop_head(&TenantId::anonymous(), i64::MIN, LONG).await.unwrap());
    assert!(handle.drop_head(&TenantId::anonymous(), 1001, LONG).await.unwrap());
    assert!(ingest.live().await.is_empty());
    ingest.close().await;
    let ingest = Ingest::open(dir.path(), &meta, &clock);
    assert!(ingest.live().await.is_empty() && ingest.times(59).await.unwrap_err().is_stale_view());
    assert!(ingest.times(60).await.unwrap().is_empty());
    ingest.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_room_at_the_log_gives_back_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let log = NodeLog::open(Arc::new(RealDisk), &dir.path().join("log"), Options::default(), &mut |_, _| Ok(()));
    let (heads, stop) = (heads(), CancellationToken::new());
    let (handle, child) = partition::child(partition::Config {
        partition: PartitionId(0),
        heads: heads.clone(),
        all_heads: Arc::new(vec![heads.clone()]),
        log: Arc::new(log.unwrap()),
        // Room for one append.
        budget: LogBudget::new(1),
        meta: meta.clone(),
        clock: Clock::test(0),
        stop: stop.clone(),
    });
    let mut supervisor = Supervisor::new("ingest", Health::default(), CancellationToken::new());
    supervisor.spawn(child);
    let all = (0..200).map(|at| handle.append(append(&meta, at), LONG));
    for answer in join_all(all).await {
        assert_eq!(answer.unwrap().samples, 1);
    }
    assert_eq!(heads.get(&TenantId::anonymous()).unwrap().read().sample_count(), 200);
    stop.cancel();
    supervisor.join(LONG).await;
}

#[test]
fn the_rest_of_a_checkpoint_whose_begin_was_dropped_is_passed_over() {
    let (all, tenant) = ([heads()], TenantId::anonymous());
    let entry = |kind, body: &[u8]| {
        let mut bytes = Vec::new();
        entry::begin(&mut bytes, kind, PartitionId(0), &tenant);
        bytes.extend_from_slice(body);
        bytes
    };
    let mut pieces = Vec::new();
    heads().empty().snapshot(&mut |piece| pieces.push(entry(Kind::CheckpointPiece, piece))).unwrap();
    let mut log = vec![entry(Kind::Round, &[])];
    let rest = log.len() + pieces.len() + 1;
    log.extend(pieces.iter().cloned());
    log.extend([entry(Kind::CheckpointEnd, &[]), entry(Kind::CheckpointBegin, &[])]);
    log.extend(pieces);
    log.extend([entry(Kind::CheckpointEnd, &[]), entry(Kind::PartitionEnd, &[])]);
    let replay = |entries: &[Vec<u8>], first| {
        let mut recovery = Recovery::new(&all);
        for (at, bytes) in (first..).zip(entries) {
            recovery.apply(Position(at), bytes)?;
        }
        recovery.finish()
    };
    assert_eq!(replay(&log, 100).map(|done| done.entries), Ok(log.len() as u64));
    assert!(replay(&log[..rest], 100).is_err_and(|e| e.contains("lacks those of partition 0")));
    assert!(replay(&log, 1).is_err(), "a whole log has every begin");
}
