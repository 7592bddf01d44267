//! A machine: its disk, its clock, and the life of the node on it, from recovery to the crash that ends it.
//!
//! A life is put together as the assembly of a real node does it, of the same parts: recovery, partition actors,
//! distributor, reader, repair, follower, sealer and cutter. What a node does runs in tasks of its life and dies with
//! it. Two deaths: *killed*, the page cache stays; *power lost*, of what was not synced only chance remains.

use super::far::Roads;
use super::member::Member;
use super::world::{Event, Shared, World};
use engram_model::place::NodeId;
use engram_model::time::Clock;
use engram_node::actor::{Health, Supervisor};
use engram_node::blocks::job::Workshop;
use engram_node::blocks::late::LateBlocks;
use engram_node::blocks::planning::Planner;
use engram_node::blocks::reach::{self, Kind, Reach};
use engram_node::blocks::sealer::{self, Rules};
use engram_node::blocks::{compactor, cutter, sweeper};
use engram_node::grpc::ingest::fenced::Fenced;
use engram_node::ingest::heads::Heads;
use engram_node::ingest::open::{Opened, Place, start};
use engram_node::ingest::reached::Reached;
use engram_node::ingest::repair::{self, Completed};
use engram_node::ingest::{LocalReplica, follower, keeper};
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::metrics::{Metrics, ReadMetrics, WriteMetrics};
use engram_node::peer::{Peers, Replica};
use engram_node::read::store::{BlockOptions, Blocks};
use engram_node::read::{ReadOptions, Reader};
use engram_node::write::{WriteOptions, Writer, decode};
use engram_query::engine::SamplePool;
use engram_storage::compact;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::log::{Hand, NodeLog};
use engram_storage::object::Store;
use engram_storage::object::faults::{FaultStore, Faults};
use engram_storage::object::options::Options;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the log's thread rests before it asks a full disk again.
const FULL_REST: Duration = Duration::from_millis(250);
/// Length of a window, in the time of samples.
pub(super) const WINDOW_MS: i64 = 10 * 60 * 1000;
/// Small, so that a schedule rolls some.
const SEGMENT_BYTES: u64 = 32 << 10;
/// How often replicas are compared.
const REPAIR_EVERY: Duration = Duration::from_secs(2);
/// How long a write may wait for its majority.
const WRITE_WITHIN: Duration = Duration::from_secs(2);

/// How long after its end a window is sealed, at least and at most, in the time of samples.
const SEAL_RULES: Rules = Rules { window_ms: WINDOW_MS, delay_ms: 120_000, late_ms_max: 120_000, idle_ms: 0 };
/// How often sealer, cutter and follower look when nothing changes.
const BLOCKS_EVERY: Duration = Duration::from_secs(2);
/// How often compactor and sweeper do.
const KEEPING_EVERY: Duration = Duration::from_secs(3);
/// How long the objects of a block that was replaced stay, by clocks that agree: longer than any query.
const GRACE_MS: i64 = 12_000;
const DAY_MS: i64 = 24 * 3_600_000;

/// What a bug of a node would be, to see that it is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "tests plant them"))]
pub(super) enum Planted {
    #[default]
    Nothing,
    /// Syncs promise and do nothing: as if it were acknowledged before the sync.
    LyingDisk,
    /// A far replica says that it has stored what it was never sent: as if one were a majority.
    FalseAnswer,
    /// Syncs of the metadata promise and do nothing.
    LyingGroupDisk,
    /// A vote is forgotten when the node that gave it ends.
    LostVotes,
    /// Who sums up for others leaves a group out.
    LostGroup,
}

pub(super) struct Host {
    pub(super) at: usize,
    pub(super) id: NodeId,
    pub(super) clock: Clock,
    pub(super) disk: FaultDisk,
    /// Told when something is committed.
    pub(super) news: Arc<Notify>,
    /// How much later than it could the node learns of the metadata, milliseconds.
    lag_ms: AtomicU64,
    /// Whether the disk was told to fail, since the power was last off.
    failing: AtomicBool,
    /// Whether the room on the disk was limited.
    full: AtomicBool,
    /// What its last life had applied.
    applied: AtomicU64,
    lives: AtomicU64,
    /// The life that is about to begin.
    starting: Mutex<Option<u64>>,
    life: Mutex<Option<Arc<Life>>>,
}

/// One life of a node.
pub(super) struct Life {
    pub(super) fenced: Arc<dyn Replica>,
    pub(super) local: LocalReplica,
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) meta: Meta,
    pub(super) member: Arc<Member>,
    pub(super) complete: Completed,
    pub(super) keeper: keeper::Config,
    /// Set when the log has failed: a real node ends then.
    pub(super) fallen: Arc<AtomicBool>,
    tasks: Mutex<JoinSet<()>>,
    supervisor: Mutex<Option<Supervisor>>,
}

/// What came back from the disk.
struct Recovered {
    heads: Arc<Vec<Heads>>,
    log: Arc<NodeLog>,
    hand: Option<Hand>,
    reached: Reached,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Life {
    /// Follows the metadata; a node whose part of the group has failed ends, as a real one does.
    fn take_part(&self) {
        self.spawn(self.member.clone().follow());
        let Some(group) = self.member.group().cloned() else { return };
        let fallen = self.fallen.clone();
        self.spawn(async move {
            let _why = group.failed().await;
            fallen.store(true, Ordering::Relaxed);
        });
    }

    /// Runs something on the node, as long as it lives.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }
}

impl Host {
    pub(super) fn new(at: usize, id: NodeId, clock: Clock, planted: Planted) -> Self {
        let disk = FaultDisk::new();
        disk.lie(planted == Planted::LyingDisk);
        Self {
            at,
            id,
            clock,
            disk,
            news: Arc::default(),
            lag_ms: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            full: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            lives: AtomicU64::new(0),
            starting: Mutex::default(),
            life: Mutex::new(None),
        }
    }

    pub(super) fn life(&self) -> Option<Arc<Life>> {
        lock(&self.life).clone()
    }

    pub(super) fn is_up(&self) -> bool {
        lock(&self.life).is_some()
    }

    pub(super) fn is_starting(&self) -> bool {
        lock(&self.starting).is_some()
    }

    pub(super) fn lag(&self) -> Duration {
        Duration::from_millis(self.lag_ms.load(Ordering::Relaxed))
    }

    pub(super) fn set_lag(&self, ms: u64) {
        self.lag_ms.store(ms, Ordering::Relaxed);
    }

    /// Tells the disk to fail, some time.
    pub(super) fn spoil(&self, order: impl FnOnce(&FaultDisk)) {
        self.failing.store(true, Ordering::Relaxed);
        order(&self.disk);
    }

    pub(super) fn disk_fails(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Leaves so many bytes of room on the disk, or as many as anybody wants.
    pub(super) fn leave_room(&self, bytes: Option<usize>) {
        self.full.store(bytes.is_some(), Ordering::Relaxed);
        match bytes {
            Some(bytes) => self.disk.leave_free(bytes),
            None => self.disk.fill(false),
        }
    }

    /// Whether there may be no room on the disk.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Turns the machine off and on: what was not synced is lost but for a part, and the disk works again.
    pub(super) fn power(&self, world: &Shared) {
        self.disk.crash(world.below(u64::MAX));
        self.failing.store(false, Ordering::Relaxed);
    }

    /// Ends the node at once; with `power_lost` the disk keeps what was synced, and a part of the rest.
    pub(super) fn crash(&self, world: &Shared, power_lost: bool) {
        let (life, starting) = (lock(&self.life).take(), lock(&self.starting).take());
        if life.is_none() && starting.is_none() {
            return;
        }
        if let Some(rafts) = &world.rafts {
            rafts.end(self.at, power_lost.then(|| world.below(u64::MAX)));
        }
        let Some(life) = life else { return };
        self.applied.store(life.member.shown(), Ordering::Relaxed);
        lock(&life.tasks).abort_all();
        drop(lock(&life.supervisor).take());
        if power_lost {
            self.power(world);
        }
    }

    /// Opens the log and reads all of it; `work` is told when the log has something to do.
    fn recover(&self, world: &Shared, partitions: u32, work: Arc<Notify>) -> Result<Recovered, String> {
        let place = Place {
            disk: Arc::new(self.disk.clone()),
            root: Path::new("node").to_owned(),
            head: Path::new("node/head").to_owned(),
            log: Path::new("node/log").to_owned(),
            partitions,
            window_ms: WINDOW_MS,
            full_chunk_bytes: 1,
            segment_bytes: SEGMENT_BYTES,
            chance: world.below(u64::MAX),
            by_hand: Some(Box::new(move || work.notify_one())),
        };
        let heads = place.heads().map_err(|e| e.to_string())?;
        let Opened { heads, log, hand, reached, rest } =
            place.open(heads, &mut |_, _| ()).map_err(|e| e.to_string())?;
        let recovered = rest.apply(|_, _| ())?;
        world.note(Event::Recovered, recovered.entries, recovered.samples);
        world.tell(|| format!("node {} has recovered {recovered:?}", self.at));
        Ok(Recovered { heads, log, hand, reached })
    }

    /// Takes part in the metadata again; none when the node died meanwhile.
    async fn join(&self, world: &Shared, life: u64) -> Result<Option<Arc<Member>>, String> {
        let Some(rafts) = &world.rafts else {
            // What a node has shown it has on disk: epochs do not go back over a crash.
            let index = self.applied.load(Ordering::Relaxed).max(world.founded);
            return Ok(Some(Arc::new(Member::new(world, self.at, index))));
        };
        *lock(&self.starting) = Some(life);
        let group = rafts.open(world, self.at).await;
        if *lock(&self.starting) != Some(life) {
            return Ok(None);
        }
        *lock(&self.starting) = None;
        Ok(Some(Arc::new(Member::of_group(world, self.at, group?))))
    }

    /// Recovers from what the disk has, and takes part again; whether it lived to do so.
    pub(super) async fn start(&self, world: &Shared) -> Result<bool, String> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let Some(member) = self.join(world, life).await? else { return Ok(false) };
        let meta = Meta::of_life(member.clone(), defaults(), world.seed ^ (life << 8) ^ self.id.0);
        let work = Arc::new(Notify::new());
        let recovered = self.recover(world, meta.ring().partition_count(), work.clone())?;
        let Recovered { heads, log, hand, reached } = recovered;
        let fallen = Arc::new(AtomicBool::new(false));
        let tell = fallen.clone();
        log.on_failed(move |_| tell.store(true, Ordering::Relaxed));
        let (stop, failed) = (CancellationToken::new(), CancellationToken::new());
        let mut supervisor = Supervisor::new("sim", Health::default(), failed);
        let partitions = start((&heads, &log), (&meta, &self.clock), &stop, &mut supervisor);
        let local = LocalReplica::new(heads.clone(), partitions.clone(), self.clock.now());
        let peers = Peers::by(self.id, Arc::new(local.clone()), Box::new(Roads::new(world, self.at)));
        let complete = Completed::default();
        let blocks = self.make_blocks(world, (&meta, &peers, &local), &stop, &mut supervisor)?;
        supervisor.spawn(repair::child(repair::Config {
            meta: meta.clone(),
            peers: peers.clone(),
            heads: heads.clone(),
            partitions: partitions.clone(),
            complete: complete.clone(),
            every: REPAIR_EVERY,
            patience: repair::Patience::default(),
            stop: stop.clone(),
        }));
        let keeper = keeper::Config {
            partitions,
            heads,
            log,
            retention_ms: 0,
            makes_blocks: Arc::new(|| true),
            segment_bytes: SEGMENT_BYTES,
            checkpoint_bytes_min: 0,
            every: Duration::from_secs(60),
            reached,
            turn: Arc::new(Semaphore::new(1)),
            stop,
        };
        let metrics = Metrics::default();
        let (written, read) = (WriteMetrics::new(&metrics), ReadMetrics::new(&metrics));
        let writer = Writer::new(write_options(), meta.clone(), peers.clone(), self.clock.clone(), written);
        let options = read_options(world.seed);
        let fenced = Arc::new(Fenced::new(Arc::new(local.clone()), meta.clone(), Some(options.sums(&read))));
        let reader = Reader::new(options, meta.clone(), peers, blocks, read);
        let life = Arc::new(Life {
            fenced,
            local,
            writer,
            reader,
            meta,
            member: member.clone(),
            complete,
            keeper,
            fallen,
            tasks: Mutex::default(),
            supervisor: Mutex::new(Some(supervisor)),
        });
        life.take_part();
        if let Some(hand) = hand {
            life.spawn(keep_log(world.clone(), self.at, hand, work));
        }
        *lock(&self.life) = Some(life);
        Ok(true)
    }
}

impl Host {
    /// From heads to blocks, as the assembly's shelves have it.
    fn make_blocks(
        &self,
        world: &Shared,
        (meta, peers, local): (&Meta, &Peers, &LocalReplica),
        stop: &CancellationToken,
        supervisor: &mut Supervisor,
    ) -> Result<Blocks, String> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let (store, clock) = (world.store.with_disk(disk.clone()), &self.clock);
        let reach = Reach::new(meta.clone(), Kind::Shared);
        let late = Path::new("node/late").to_owned();
        let cuts = LateBlocks::open((&reach, &store), disk.clone(), late, WINDOW_MS, clock.clone());
        supervisor.spawn(follower::child(follower::Config {
            local: local.clone(),
            agreed: Arc::new(meta.clone()),
            cuts: Some(Arc::new(cuts.map_err(|e| e.to_string())?)),
            clock: clock.clone(),
            every: BLOCKS_EVERY,
            held: Arc::default(),
            stop: stop.clone(),
        }));
        supervisor.spawn(cutter::child(cutter::Config {
            meta: meta.clone(),
            peers: peers.clone(),
            store: store.clone(),
            disk,
            work: Path::new("node/cut").to_owned(),
            window_ms: WINDOW_MS,
            clock: clock.clone(),
            every: BLOCKS_EVERY,
            again_after_ms: 1000,
            reach: reach.clone(),
            counts: Arc::default(),
            stop: stop.clone(),
        }));
        supervisor.spawn(sealer::child(sealer::Config {
            meta: meta.clone(),
            peers: peers.clone(),
            clock: clock.clone(),
            rules: SEAL_RULES,
            reach: reach.clone(),
            every: BLOCKS_EVERY,
            counts: Arc::default(),
            stop: stop.clone(),
        }));
        self.keep_blocks(world, (meta, peers, &store, &reach), stop, supervisor);
        supervisor.spawn(reach::child(reach, store.clone(), stop.clone()));
        Ok(Blocks::new(store, block_options(), None))
    }
}

impl Host {
    /// What becomes of blocks.
    fn keep_blocks(
        &self,
        world: &World,
        (meta, peers, store, reach): (&Meta, &Peers, &Store, &Reach),
        stop: &CancellationToken,
        supervisor: &mut Supervisor,
    ) {
        let shop = Workshop {
            planner: Planner::new(meta.clone(), compaction_rules(), self.clock.clone()),
            store: store.clone(),
            disk: Arc::new(self.disk.clone()),
            work: Path::new("node/compact").to_owned(),
            window_ms: WINDOW_MS,
        };
        supervisor.spawn(compactor::child(compactor::Config {
            shop,
            peers: peers.clone(),
            every: KEEPING_EVERY,
            jobs_max: 2,
            space_bytes_max: 1 << 30,
            reach: reach.clone(),
            handle: compactor::Compaction::default(),
            stop: stop.clone(),
        }));
        supervisor.spawn(sweeper::child(sweeper::Config {
            meta: meta.clone(),
            peers: peers.clone(),
            reach: reach.clone(),
            store: store.clone(),
            clock: self.clock.clone(),
            every: KEEPING_EVERY,
            retention_ms: 0,
            // Who marks a block and who deletes it go by clocks of their own.
            grace_ms: GRACE_MS + 2 * world.clocks_differ_ms,
            orphan_after_ms: DAY_MS,
            orphans_every_ms: DAY_MS,
            handle: sweeper::Sweeping::default(),
            stop: stop.clone(),
        }));
    }
}

/// Two windows become one block, and later four.
fn compaction_rules() -> compact::Rules {
    compact::Rules {
        ranges_ms: vec![2 * WINDOW_MS, 4 * WINDOW_MS],
        rewrite_after_ms: 1_000,
        ..compact::Rules::default()
    }
}

/// What the log's thread does: it takes what waits, syncs, answers. A sync takes its time.
async fn keep_log(world: Shared, at: usize, mut hand: Hand, work: Arc<Notify>) {
    loop {
        work.notified().await;
        tokio::time::sleep(world.millis(1, 4)).await;
        world.note(Event::Synced, at as u64, world.hosts[at].disk.acts());
        if !hand.turn() {
            return;
        }
        if hand.waits_for_room() {
            world.note(Event::Full, at as u64, 0);
            tokio::time::sleep(FULL_REST).await;
            work.notify_one();
        }
    }
}

fn defaults() -> TenantDefaults {
    TenantDefaults { limits: Default::default(), shard_size: 0, tenants_max: 100 }
}

fn write_options() -> WriteOptions {
    WriteOptions {
        in_flight_bytes_max: 64 << 20,
        body_bytes_max: 1 << 20,
        bounds: decode::Bounds::default(),
        deadline: WRITE_WITHIN,
    }
}

/// Every other cluster sums up where the series are.
fn read_options(seed: u64) -> ReadOptions {
    ReadOptions {
        concurrent_max: 64,
        queue_max: 64,
        timeout: Duration::from_secs(10),
        lookback_ms: 300_000,
        samples_max: 1 << 20,
        bytes_max: 1 << 30,
        slow_after: None,
        pool: Arc::new(SamplePool::new(1 << 24)),
        push_down: seed.is_multiple_of(2),
        experimental: false,
    }
}

fn block_options() -> BlockOptions {
    BlockOptions { hedging: false, ..BlockOptions::default() }
}

/// A bucket that all nodes share, and what spoils it.
pub(super) fn bucket() -> (Store, Faults) {
    FaultStore::memory(Arc::new(FaultDisk::new()), &Options::default())
}
