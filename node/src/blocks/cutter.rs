//! Cutter: makes a block of every seal that has none yet.
//!
//! ```text
//! open seal without a cut
//!   → lease cut/<tenant>/<partition>        one node at a time; its fence goes with the commit
//!   → what a majority of the replicas set aside for it, as it comes (parts.rs)
//!   → a verified block in the work directory (build.rs) → objects (uploader.rs)
//!   → commit of the cut: from then on queries read the block, and replicas may forget
//! ```
//!
//! A crash before the commit leaves the seal as it was: the work directory is emptied at the start, the seal is cut
//! again under another name, and objects that no metadata names are the sweeper's. A failure is counted, told, and
//! tried again after a wait that grows; other seals go on meanwhile. A seal that has waited for long is a metric to be
//! alarmed about: heads keep what they hold until it is cut.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::Millis;
use engram_model::block::{BlockId, BlockMeta, Origin, Seal};
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{NodeId, PartitionId, majority};
use engram_model::tenant::TenantId;
use engram_model::time::{Clock, Stopwatch};
use engram_storage::disk::Disk;
use engram_storage::object::Store;
use futures::future::join_all;
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::build::{Built, Cutting, build};
use super::check::Depth;
use super::parts::{Broken, Part};
use super::reach::Reach;
use super::uploader::{self, About};
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::memory;
use crate::meta::Meta;
use crate::meta::blocks::Lease;
use crate::metrics::Reading;
use crate::peer::{Peers, SetAside};
use crate::read::hide::Hider;

/// Tenants' partitions that are cut at once: each holds the labels of its series, a frame of each replica and one
/// series' samples.
const AT_ONCE_MAX: usize = 4;
/// How long a lease lasts, and so how long others wait when its holder is gone; it is renewed at a third of it.
const LEASE: Duration = Duration::from_secs(20);
/// How long one command may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);
/// Attempts to learn what became of a commit.
const COMMIT_ATTEMPTS: u32 = 5;
/// Replicas apply a seal a moment after it is agreed: asked again so often, waiting twice as long each time.
const FROZEN_ATTEMPTS: u32 = 8;
const FROZEN_WAIT: Duration = Duration::from_millis(10);
/// So many attempts are for all replicas that are well; afterwards a majority is enough. What the others have besides
/// becomes a late block.
const FROZEN_ATTEMPTS_FOR_ALL: u32 = 6;
/// How long one replica may take to begin to hand over what it set aside.
const FROZEN_WITHIN: Duration = Duration::from_secs(120);
/// Longest wait after failures.
const AGAIN_AFTER_MS_MAX: i64 = 10 * 60 * 1000;

/// What the cutter works with.
#[derive(Clone)]
pub struct Config {
    /// The metadata.
    pub meta: Meta,
    /// The replicas.
    pub peers: Peers,
    /// Whether blocks may be made.
    pub reach: Reach,
    /// Where blocks go.
    pub store: Store,
    /// The disk of the work directory.
    pub disk: Arc<dyn Disk>,
    /// Where blocks are built. This actor alone uses it.
    pub work: PathBuf,
    /// Length of a window, in milliseconds.
    pub window_ms: i64,
    /// The node's clock.
    pub clock: Clock,
    /// How often to look when nothing changes.
    pub every: Duration,
    /// First wait after a failure, in milliseconds; it doubles with each.
    pub again_after_ms: i64,
    /// What is counted.
    pub counts: Arc<CutCounts>,
    /// Ends the actor.
    pub stop: CancellationToken,
}

type Key = (TenantId, PartitionId);

/// What cuts cost, and what waits.
#[derive(Debug, Default)]
pub struct CutCounts {
    cuts: AtomicU64,
    blocks: AtomicU64,
    samples: AtomicU64,
    failures: AtomicU64,
    nanos: AtomicU64,
    bytes: AtomicU64,
    /// Seals that wait, by when they were first seen.
    waiting: Mutex<HashMap<(TenantId, PartitionId, u64), Millis>>,
}

impl CutCounts {
    fn wait(&self, now: Millis, open: &[(Key, Vec<Seal>)]) {
        let mut waiting = self.waiting.lock();
        let mut still = HashMap::new();
        for ((tenant, partition), seals) in open {
            for seal in seals {
                let key = (tenant.clone(), *partition, seal.number);
                let since = waiting.get(&key).copied().unwrap_or(now);
                still.insert(key, since);
            }
        }
        *waiting = still;
    }

    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
    pub fn readings(&self, now: Millis) -> Vec<Reading> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let (waiting, oldest) = {
            let waiting = self.waiting.lock();
            (waiting.len() as f64, waiting.values().min().map_or(0, |since| now.saturating_sub(*since).max(0)))
        };
        vec![
            Reading::counter("blocks_cuts", "Seals cut by this node", get(&self.cuts)),
            Reading::counter("blocks_cut", "Blocks cut from heads by this node", get(&self.blocks)),
            Reading::counter("blocks_cut_samples", "Samples in them", get(&self.samples)),
            Reading::counter("blocks_cut_failures", "Cuts that failed; each is tried again", get(&self.failures)),
            Reading::counter("blocks_cut_seconds", "Time spent cutting, uploads included", get(&self.nanos) / 1e9),
            Reading::counter("blocks_uploaded_bytes", "Bytes of the blocks that were cut", get(&self.bytes)),
            Reading::gauge("blocks_seals_uncut", "Seals without a block yet", waiting),
            Reading::gauge(
                "blocks_seal_uncut_oldest_seconds",
                "How long the oldest of them has been waiting; minutes deserve a look",
                oldest as f64 / 1e3,
            ),
        ]
    }
}

/// The child that cuts.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "cutter".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

/// When what failed is tried again.
#[derive(Debug, Default)]
struct Waits(HashMap<Key, (u32, Millis)>);

impl Waits {
    fn is_due(&self, key: &Key, now: Millis) -> bool {
        self.0.get(key).is_none_or(|(_, at)| *at <= now)
    }

    fn failed(&mut self, key: Key, now: Millis, first_ms: i64) {
        let (failures, at) = self.0.entry(key).or_default();
        let wait = first_ms.saturating_mul(1 << (*failures).min(16)).min(AGAIN_AFTER_MS_MAX);
        *failures += 1;
        *at = now.saturating_add(wait);
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    let (disk, work) = (config.disk.clone(), config.work.clone());
    let left = engram_storage::blocking::blocking(move || uploader::clean(&*disk, &work)).await??;
    if left > 0 {
        tracing::info!(left, "blocks that were not finished before are removed and cut again");
    }
    let mut waits = Waits::default();
    loop {
        let (index, was_open) = (config.meta.index(), config.reach.is_open());
        tokio::select! {
            biased;
            () = pass(&config, &mut waits) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        tokio::select! {
            biased;
            changed = config.meta.changed(index) => if changed.is_err() {
                // The group is stopping, and with it the node.
                config.stop.cancelled().await;
            },
            () = config.reach.opened(), if !was_open => {}
            () = tokio::time::sleep(config.every) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

/// Cuts everything that is sealed here and not cut.
async fn pass(config: &Config, waits: &mut Waits) {
    let now = config.clock.now();
    let open = open(config);
    config.counts.wait(now, &open);
    waits.0.retain(|key, _| open.iter().any(|(have, _)| have == key));
    if !config.reach.is_open() {
        return;
    }
    let due = open.into_iter().filter(|(key, _)| waits.is_due(key, now)).collect::<Vec<_>>();
    let mut done = stream::iter(due)
        .map(|(key, seals)| async move {
            let done = cut_all(config, &key, seals).await;
            (key, done)
        })
        .buffer_unordered(AT_ONCE_MAX);
    while let Some((key, done)) = done.next().await {
        match done {
            Ok(()) => drop(waits.0.remove(&key)),
            Err(error) => {
                config.counts.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(tenant = %key.0, partition = key.1.0, %error, "a cut failed, it is tried again");
                waits.failed(key, config.clock.now(), config.again_after_ms);
            }
        }
    }
    drop(done);
    config.counts.wait(config.clock.now(), &self::open(config));
}

/// Seals without a cut in partitions of which this node is a replica.
fn open(config: &Config) -> Vec<(Key, Vec<Seal>)> {
    let (ring, me) = (config.meta.ring(), config.meta.node_id());
    let mut all = Vec::new();
    for (tenant, partition, row) in config.meta.open_seals() {
        let mine = ring.replicas(partition).is_some_and(|set| set.replicas.contains(&me));
        let uncut: Vec<Seal> = row.open.iter().filter(|seal| seal.cut.is_none()).cloned().collect();
        if mine && !uncut.is_empty() {
            all.push(((tenant, partition), uncut));
        }
    }
    all
}

/// Cuts the seals of one tenant in one partition, in order, under one lease.
async fn cut_all(config: &Config, key: &Key, seals: Vec<Seal>) -> Result<(), Error> {
    let (tenant, partition) = (key.0.as_str(), key.1.0);
    let name = format!("cut/{tenant}/{partition}");
    let Some(lease) = config.meta.lease(&name, LEASE, PROPOSE_WITHIN).await? else { return Ok(()) };
    let cutting = async {
        for seal in seals {
            cut(config, key, &seal, &lease).await?;
        }
        Ok(())
    };
    let done = tokio::select! {
        biased; // both go on side by side: in an order that can be repeated
        done = cutting => done,
        lost = keep(config, &lease) => Err(lost),
    };
    let released = config.meta.release(&lease, PROPOSE_WITHIN).await;
    if let Err(error) = released {
        tracing::debug!(%error, lease = lease.key, "a lease is not given back, it expires by itself");
    }
    done
}

/// Renews the lease until it is lost.
async fn keep(config: &Config, lease: &Lease) -> Error {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        match config.meta.lease(&lease.key, LEASE, PROPOSE_WITHIN).await {
            Ok(Some(have)) if have.fence == lease.fence => {}
            Ok(_) => return Error::new(Class::Conflict, format!("lease {} is another node's now", lease.key)),
            // It may still be ours: the fence decides.
            Err(error) => tracing::warn!(%error, lease = lease.key, "a lease was not renewed"),
        }
    }
}

/// Cuts one seal.
async fn cut(config: &Config, key: &Key, seal: &Seal, lease: &Lease) -> Result<(), Error> {
    let watch = Stopwatch::start();
    let (tenant, partition) = key;
    // Before the samples are asked for: what is deleted later must still be hidden by readers of the block.
    let view = config.meta.blocks(tenant);
    let hidden = Hider::new(&view.deletions, seal.window)?;
    let id = BlockId::new(config.clock.now(), super::build::unique());
    let Some(built) = build_of_majority(config, id, (key, seal), &hidden).await? else { return Ok(()) };
    let done = ship(config, key, seal, lease, (built, view.index)).await;
    uploader::remove_copy(config.disk.clone(), &config.work, id).await;
    let block = done?;
    let counts = &config.counts;
    let bytes = block.as_ref().map_or(0, BlockMeta::bytes);
    let samples = block.as_ref().map_or(0, |block| block.digest.count);
    let nanos = u64::try_from(watch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    for (counter, by) in [
        (&counts.cuts, 1),
        (&counts.blocks, u64::from(block.is_some())),
        (&counts.samples, samples),
        (&counts.bytes, bytes),
        (&counts.nanos, nanos),
    ] {
        counter.fetch_add(by, Ordering::Relaxed);
    }
    let block = block.map(|block| block.id.to_string()).unwrap_or_default();
    let (number, partition) = (seal.number, partition.0);
    tracing::info!(%tenant, partition, number, block, samples, bytes, seconds = watch.elapsed().as_secs_f64(), "cut");
    Ok(())
}

/// Builds of what a majority hands over; none when the seal is cut meanwhile. Whose part breaks off is done without, as
/// who does not answer at all: a replica that cannot read what it has must not hold up the others for ever.
async fn build_of_majority(
    config: &Config,
    id: BlockId,
    (key, seal): (&Key, &Seal),
    hidden: &Hider,
) -> Result<Option<Built>, Error> {
    let mut without = BTreeSet::new();
    loop {
        let Some(parts) = parts(config, key, seal.number, &without).await? else { return Ok(None) };
        let broken = Broken::default();
        let built = build_on_thread(config, id, (seal, parts, hidden.clone()), &broken).await;
        let broken = std::mem::take(&mut *broken.lock());
        match built {
            Err(error) if !broken.is_empty() => {
                let (tenant, partition) = (&key.0, key.1.0);
                tracing::warn!(%tenant, partition, ?broken, %error, "a part broke off, the cut begins again without it");
                without.extend(broken);
            }
            done => return done.map(Some),
        }
    }
}

async fn build_on_thread(
    config: &Config,
    id: BlockId,
    (seal, parts, hidden): (&Seal, Vec<(NodeId, SetAside)>, Hider),
    broken: &Broken,
) -> Result<Built, Error> {
    let (disk, work, cancel) = (config.disk.clone(), config.work.clone(), CancellationToken::new());
    let _guard = cancel.clone().drop_guard();
    let parts = parts.into_iter().map(|part| Part::coming(part, broken, &cancel)).collect();
    let cutting = Cutting { window: seal.window, parts, hidden, window_ms: config.window_ms };
    let working = move || {
        let built = build(disk, &work, id, cutting, &cancel);
        memory::give_back();
        built
    };
    let failed = |e| Error::new(Class::Internal, format!("building a block failed: {e}"));
    engram_storage::blocking::blocking(working).await.map_err(failed)?
}

/// Uploads what was built and commits it.
async fn ship(
    config: &Config,
    (tenant, partition): &Key,
    seal: &Seal,
    lease: &Lease,
    (built, as_of): (Built, u64),
) -> Result<Option<BlockMeta>, Error> {
    let block = match &built.written {
        None => None,
        Some(written) => {
            let origin = Origin::Cut { partition: *partition, seal: seal.number };
            let (range, made_at) = (seal.window, config.clock.now());
            let about = About { tenant: tenant.clone(), range, origin, as_of, made_at };
            let block = uploader::upload(&config.store, about, written).await?;
            uploader::confirm(&config.store, &block, Depth::Objects).await?;
            Some(block)
        }
    };
    let _turn = config.reach.turn().await?;
    commit(config, (tenant, *partition, seal.number), &block, built.digest, lease).await?;
    Ok(block)
}

/// Commits; while the outcome is unknown, again: the same commit twice changes nothing.
async fn commit(
    config: &Config,
    key: (&TenantId, PartitionId, u64),
    block: &Option<BlockMeta>,
    digest: Digest,
    lease: &Lease,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        match config.meta.commit_cut(key, block.clone(), digest, lease, PROPOSE_WITHIN).await {
            Err(error) if matches!(error.class, Class::Timeout | Class::Unavailable) && attempt < COMMIT_ATTEMPTS => {
                tracing::warn!(%error, attempt, "whether a cut is committed is not known, it is asked again");
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => return other,
        }
    }
}

type Parts = Vec<(NodeId, SetAside)>;

/// What a majority of the replicas has set aside, those in `without` not asked; none when the seal is cut meanwhile.
async fn parts(
    config: &Config,
    (tenant, partition): &Key,
    number: u64,
    without: &BTreeSet<NodeId>,
) -> Result<Option<Parts>, Error> {
    let ring = config.meta.ring();
    let Some(set) = ring.replicas(*partition) else {
        return Err(Error::unavailable(format!("partition {} is not in the ring", partition.0)));
    };
    let mut have = BTreeMap::<NodeId, SetAside>::new();
    let mut wait = FROZEN_WAIT;
    let mut attempt = 1;
    loop {
        let missing = set.replicas.iter().copied().filter(|node| !have.contains_key(node) && !without.contains(node));
        let asked =
            missing.map(|node| async move { (node, set_aside(config, node, (tenant, *partition), number).await) });
        let (mut failed, mut may_come) = (None, false);
        for (node, answer) in join_all(asked).await {
            match answer {
                Ok(part) => drop(have.insert(node, part)),
                Err(error) => {
                    may_come |= error.class == Class::Unavailable && config.peers.is_well(node);
                    failed = Some(error);
                }
            }
        }
        let uncut = config.meta.open_seal(tenant, *partition, number).is_some_and(|seal| seal.cut.is_none());
        if !uncut {
            return Ok(None);
        }
        let enough = have.len() >= majority(set.replicas.len());
        let all = set.replicas.iter().all(|node| have.contains_key(node) || without.contains(node));
        if enough && (all || !may_come || attempt >= FROZEN_ATTEMPTS_FOR_ALL) {
            return Ok(Some(have.into_iter().collect()));
        }
        let error = failed.unwrap_or_else(|| Error::unavailable("no majority of the replicas answered"));
        if all || attempt == FROZEN_ATTEMPTS || error.class != Class::Unavailable {
            return Err(error);
        }
        attempt += 1;
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
}

/// What one replica has set aside.
async fn set_aside(
    config: &Config,
    node: NodeId,
    (tenant, partition): (&TenantId, PartitionId),
    number: u64,
) -> Result<SetAside, Error> {
    let asking = async { config.peers.replica(node)?.set_aside(tenant, partition, number).await };
    match tokio::time::timeout(FROZEN_WITHIN, asking).await {
        Ok(Ok(Some(part))) => Ok(part),
        // It knows of a commit that this node has not seen yet.
        Ok(Ok(None)) => Err(Error::unavailable(format!("node {} has forgotten seal {number} of {tenant}", node.0))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::unavailable(format!("node {} did not hand over seal {number} of {tenant}", node.0))),
    }
}
