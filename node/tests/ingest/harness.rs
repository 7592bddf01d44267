//! One partition on a log of its own, and the metadata as a test says it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::block::{BlockId, Cut, Seal};
use engram_model::digest::Digest;
use engram_model::labels::hash128;
use engram_model::place::{Epoch, NodeId, PartitionId, Sets};
use engram_model::sample::Sample;
use engram_model::series::{Columns, ReadError};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::actor::{Health, Supervisor};
use engram_node::blocks::late::{Cuts, SealKey, Seen, Shipped};
use engram_node::ingest::follower::{self, Agreed, Held, OpenSeals};
use engram_node::ingest::heads::Heads;
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::ingest::reached::Reached;
use engram_node::ingest::recover::Recovery;
use engram_node::ingest::{LocalReplica, keeper};
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::peer::{Append, Appended, Frozen, HeldWindows, Replica, Select};
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::Error;
use engram_storage::chunk::ChunkFiles;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::disk::real::RealDisk;
use engram_storage::head::{HeadOptions, Symbols};
use engram_storage::log::{NodeLog, Options};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub const LONG: Duration = Duration::from_secs(30);

pub fn heads() -> Heads {
    Heads::new(Arc::new(Symbols::default()), HeadOptions::default())
}

/// The metadata, and its group, which a test ends when it is done: its threads must not outlive the process.
pub async fn meta(dir: &std::path::Path) -> (Meta, Arc<Group>) {
    let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let group = Arc::new(Group::open(GroupOptions::new(dir.join("meta"), node, first, Clock::test(0))).await.unwrap());
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    (Meta::new(group.clone(), defaults), group)
}

/// One sample of `up` at `at`.
pub fn append(meta: &Meta, at: i64) -> Append {
    append_all(meta, &[at])
}

/// One sample of another series at `at`.
pub fn other(meta: &Meta, at: i64) -> Append {
    append_to(meta, "no", &[at])
}

/// A sample of `up` at each of some times.
pub fn append_all(meta: &Meta, times: &[i64]) -> Append {
    append_to(meta, "up", times)
}

fn append_to(meta: &Meta, name: &str, times: &[i64]) -> Append {
    let text = format!("__name__{name}").into_bytes();
    let pair = Pair { name: Text { at: 0, len: 8 }, value: Text { at: 8, len: 2 } };
    let hash = hash128([(&b"__name__"[..], name.as_bytes())].into_iter(), &mut Vec::new());
    let one = Run { from: 0, to: 1 };
    let samples = Run { from: 0, to: u32::try_from(times.len()).unwrap() };
    let batch = WriteBatch {
        text,
        pairs: vec![pair],
        series: vec![BatchSeries { pairs: one, samples, hash, ..BatchSeries::default() }],
        samples: times.iter().map(|at| Sample { at: *at, value: 1.0 }).collect(),
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
        repair: false,
        as_of: 0,
        packed: Arc::default(),
    }
}

/// One partition on its own log, opened as a node does it.
pub struct Ingest {
    pub meta: Meta,
    pub log: Arc<NodeLog>,
    pub local: LocalReplica,
    pub heads: Arc<Vec<Heads>>,
    pub handle: partition::Handle,
    pub stop: CancellationToken,
    pub supervisor: Supervisor,
    pub clock: Clock,
}

impl Ingest {
    pub fn open(dir: &std::path::Path, meta: &Meta, clock: &Clock) -> Self {
        Self::open_on(&(Arc::new(RealDisk) as _), dir, meta, clock, Options::default()).unwrap()
    }

    /// Recovers and starts; each full chunk gets a file of its own.
    pub fn open_on(
        disk: &Arc<dyn Disk>,
        dir: &std::path::Path,
        meta: &Meta,
        clock: &Clock,
        options: Options,
    ) -> Result<Self, String> {
        let files = ChunkFiles::open_all(disk, &dir.join("head"), 1, 1).map_err(|e| e.to_string())?;
        let with_files = |files| Heads::with_files(Arc::default(), HeadOptions::default(), files);
        let all: Arc<Vec<Heads>> = Arc::new(files.into_iter().map(with_files).collect());
        let mut recovery = Recovery::new(&all);
        let log = NodeLog::open(disk.clone(), &dir.join("log"), options, &mut |position, bytes| {
            recovery.apply(position, bytes).map_err(|e| Error::corrupt(dir, position.0, e))
        });
        let log = Arc::new(log.map_err(|e| e.to_string())?);
        recovery.finish()?;
        let stop = CancellationToken::new();
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
        let local = LocalReplica::new(all.clone(), vec![handle.clone()], clock.now());
        Ok(Self { meta: meta.clone(), log, local, heads: all, handle, stop, supervisor, clock: clock.clone() })
    }

    /// A round of checkpoints, as the keeper does it.
    pub async fn round(&self) -> Result<(), engram_node::actor::ChildError> {
        keeper::round(&self.keeper(0, true)).await
    }

    /// A keeper over all of it.
    pub fn keeper(&self, retention_ms: i64, makes_blocks: bool) -> keeper::Config {
        keeper::Config {
            partitions: vec![self.handle.clone()],
            heads: self.heads.clone(),
            log: self.log.clone(),
            retention_ms,
            makes_blocks: Arc::new(move || makes_blocks),
            segment_bytes: 1,
            checkpoint_bytes_min: 0,
            every: LONG,
            reached: Reached::new(Arc::new(FaultDisk::new()), std::path::Path::new("d")),
            turn: Arc::new(Semaphore::new(1)),
            stop: self.stop.clone(),
        }
    }

    pub async fn write(&self, at: i64) -> Appended {
        self.local.append(append(&self.meta, at), LONG).await.unwrap()
    }

    pub async fn times(&self, as_of: u64) -> Result<Vec<i64>, engram_node::error::Error> {
        Ok(self.read(as_of).await?.unwrap())
    }

    pub async fn read(&self, as_of: u64) -> Result<Result<Vec<i64>, ReadError>, engram_node::error::Error> {
        let request = Select {
            tenant: TenantId::anonymous(),
            partition: PartitionId(0),
            epoch: Epoch(1),
            range: TimeRange::ALL,
            matchers: Arc::default(),
            series_max: 0,
            wanted: Arc::default(),
            as_of,
        };
        let mut columns = Columns::default();
        for series in self.local.select(request).await? {
            if let Err(error) = series.source.read(TimeRange::ALL, &mut columns) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(columns.times))
    }

    pub async fn frozen(&self, number: u64) -> Result<Option<Frozen>, engram_node::error::Error> {
        self.local.frozen(&TenantId::anonymous(), PartitionId(0), number).await
    }

    pub async fn live(&self) -> Vec<HeldWindows> {
        self.local.windows(PartitionId(0)).await.unwrap()
    }

    /// Carries out what is agreed, once.
    pub async fn follow(&self, agreed: &Arc<Told>, lacks: Digest) -> Arc<Held> {
        self.follow_with(agreed, Blocks { lack: lacks, seen: Seen::There }).await
    }

    /// Carries out what is agreed, once, beside these blocks.
    pub async fn follow_with(&self, agreed: &Arc<Told>, blocks: Blocks) -> Arc<Held> {
        let held = Arc::new(Held::default());
        follower::pass(&follower::Config {
            local: self.local.clone(),
            agreed: agreed.clone(),
            cuts: Some(Arc::new(blocks)),
            clock: self.clock.clone(),
            every: LONG,
            held: held.clone(),
            stop: CancellationToken::new(),
        })
        .await;
        held
    }

    pub async fn close(self) {
        self.stop.cancel();
        self.supervisor.join(LONG).await;
        let _closed = self.log.close();
    }
}

/// The metadata, as a test says it is.
#[derive(Default)]
pub struct Told {
    pub seals: Mutex<Vec<Seal>>,
    pub forgot: Mutex<Vec<u64>>,
}

impl Told {
    pub fn seal(&self, number: u64, window: TimeRange) {
        self.seals.lock().unwrap().push(Seal { number, window, cut: None, forgotten_by: vec![] });
    }

    pub fn cut(&self, number: u64, digest: Digest, index: u64) {
        let mut seals = self.seals.lock().unwrap();
        let seal = seals.iter_mut().find(|seal| seal.number == number).unwrap();
        seal.cut = Some(Cut { block: Some(BlockId::new(1, 1)), digest, index });
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

    fn sets(&self, _: PartitionId) -> Option<Sets> {
        Some(Sets::new(&[NodeId(1)], None))
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

/// Every cut lacks this; what is lacking cannot be shipped.
pub struct Blocks {
    pub lack: Digest,
    pub seen: Seen,
}

impl Cuts for Blocks {
    fn seen(&self, _: &TenantId, _: BlockId, _: TimeRange) -> BoxFuture<'_, Result<Seen, engram_node::error::Error>> {
        async { Ok(self.seen) }.boxed()
    }

    fn complete(&self, _: &SealKey, cut: Cut, _: Frozen) -> BoxFuture<'_, Result<Shipped, engram_node::error::Error>> {
        let done = if self.lack == Digest::EMPTY {
            Ok(Shipped { index: cut.index, late: Digest::EMPTY })
        } else {
            Err(engram_node::error::Error::unavailable("the store does not answer"))
        };
        async move { done }.boxed()
    }
}
