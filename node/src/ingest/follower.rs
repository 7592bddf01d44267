//! Follower: carries out on this node's heads what the metadata has agreed of their windows.
//!
//! Why: a seal, and the commit of its cut, are agreed once for all replicas; each replica applies them by itself, in its
//! own time, again after a crash, and nobody waits for it but the bookkeeping of who has forgotten.
//!
//! ```text
//! open seal, not applied here      → the partition sets the window aside
//! its cut committed, same digest   → the partition forgets it → "this node has forgotten seal n"
//! its cut committed, other digest  → compared by content; what no block holds is shipped as a late block → forget
//! ```
//!
//! Nothing is dropped unseen: digests that differ are settled by content, sample by sample, and who cannot look keeps. Nor
//! is anything dropped for a block that cannot be seen from here: another node may have another idea of where blocks lie.
//!
//! A node that is only about to hold a partition applies no seal: what it is still taking from the others would come
//! after the line and be cut a second time. Once it holds the partition it applies all that are open.
//!
//! Heads that hold nothing, have no open seal and were not written for long are dropped, so that a tenant that is gone
//! takes no memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::block::{Cut, Seal};
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{NodeId, PartitionId, Sets};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_model::{Millis, TimeRange};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::LocalReplica;
use super::partition::{Forgetting, Handle, Proof};
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::blocks::late::{Cuts, SealKey, Seen};
use crate::error::Error;
use crate::meta::Meta;
use crate::metrics::Reading;

/// Partitions' seals carried out at once.
const AT_ONCE_MAX: usize = 8;
/// How long one step may take: setting aside a large window walks all series of a head.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// A cut that could not be proved is looked at again after this. Well below 30 s: what one replica alone has set aside comes
/// and goes in reads until then, and 30 s after the last fault that must be over.
const LOOK_AGAIN_MS: i64 = 10 * 1000;
/// An empty head that had no append for so long is dropped: a window.
const IDLE_MS: i64 = 2 * 60 * 60 * 1000;
/// How often heads are looked at for that.
const TIDY_EVERY_MS: i64 = 60 * 1000;

/// The open seals of one tenant in one partition.
#[derive(Clone, Debug)]
pub struct OpenSeals {
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub partition: PartitionId,
    /// In order of number.
    pub seals: Vec<Seal>,
}

/// What the follower asks of the metadata.
pub trait Agreed: Send + Sync {
    /// This node.
    fn me(&self) -> NodeId;
    /// The applied index.
    fn index(&self) -> u64;
    /// Waits until something newer is applied.
    fn changed(&self, after: u64) -> BoxFuture<'_, Result<u64, Error>>;
    /// All open seals, by tenant and partition.
    fn open_seals(&self) -> Vec<OpenSeals>;
    /// Who holds a partition, and who will.
    fn sets(&self, partition: PartitionId) -> Option<Sets>;
    /// Says that this node has forgotten what it had set aside.
    fn forgot(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
        within: Duration,
    ) -> BoxFuture<'_, Result<(), Error>>;
}

impl Agreed for Meta {
    fn me(&self) -> NodeId {
        self.node_id()
    }

    fn index(&self) -> u64 {
        Self::index(self)
    }

    fn changed(&self, after: u64) -> BoxFuture<'_, Result<u64, Error>> {
        Self::changed(self, after).boxed()
    }

    fn open_seals(&self) -> Vec<OpenSeals> {
        let all = Self::open_seals(self).into_iter();
        all.map(|(tenant, partition, row)| OpenSeals { tenant, partition, seals: row.open.clone() }).collect()
    }

    fn sets(&self, partition: PartitionId) -> Option<Sets> {
        let ring = self.ring();
        ring.replicas(partition).map(|set| Sets::new(&set.replicas, ring.next(partition)))
    }

    fn forgot(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
        within: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let tenant = tenant.clone();
        async move { Self::forgot(self, &tenant, partition, number, within).await }.boxed()
    }
}

/// What the follower works with.
#[derive(Clone)]
pub struct Config {
    /// The heads and their actors.
    pub local: LocalReplica,
    /// The metadata.
    pub agreed: Arc<dyn Agreed>,
    /// The blocks; where they cannot be looked into, what a digest does not prove is kept.
    pub cuts: Option<Arc<dyn Cuts>>,
    /// The node's clock.
    pub clock: Clock,
    /// How often to look when nothing changes: what failed is tried again.
    pub every: Duration,
    /// What cannot be forgotten.
    pub held: Arc<Held>,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// What is kept because no block is proved to hold it, and what was found out about others.
#[derive(Debug, Default)]
pub struct Held {
    /// How much, and when it was looked at.
    kept: Mutex<HashMap<SealKey, (u64, Millis)>>,
    compared: AtomicU64,
    late_samples: AtomicU64,
}

impl Held {
    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts for a graph")]
    pub fn readings(&self) -> Vec<Reading> {
        let (seals, samples) = {
            let kept = self.kept.lock();
            (kept.len(), kept.values().map(|(samples, _)| *samples).sum::<u64>())
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        vec![
            Reading::gauge(
                "ingest_seals_held",
                "Seals whose blocks could not be looked at, or completed; minutes deserve a look",
                seals as f64,
            ),
            Reading::gauge("ingest_samples_held", "Samples of these seals, kept here", samples as f64),
            Reading::counter(
                "ingest_cuts_compared",
                "Cuts compared by content, their digest differed",
                get(&self.compared),
            ),
            Reading::counter(
                "ingest_late_samples",
                "Samples that committed cuts lacked, shipped in late blocks",
                get(&self.late_samples),
            ),
        ]
    }

    fn keep(&self, key: &SealKey, samples: u64, now: Millis) {
        self.kept.lock().insert(key.clone(), (samples, now));
    }

    fn looked_at_lately(&self, key: &SealKey, now: Millis) -> bool {
        self.kept.lock().get(key).is_some_and(|(_, at)| now.saturating_sub(*at) < LOOK_AGAIN_MS)
    }
}

/// The child that follows.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "follower".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    let mut tidied_at = config.clock.now();
    loop {
        let index = config.agreed.index();
        tokio::select! {
            biased;
            () = pass(&config) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        let now = config.clock.now();
        if now.saturating_sub(tidied_at) >= TIDY_EVERY_MS {
            tidied_at = now;
            tidy(&config, now).await;
        }
        let changed = async {
            if config.agreed.changed(index).await.is_err() {
                // The group is stopping, and with it the node.
                config.stop.cancelled().await;
            }
        };
        tokio::select! {
            biased;
            () = changed => {}
            () = tokio::time::sleep(config.every) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

/// Carries out everything that is agreed and not done yet.
pub async fn pass(config: &Config) {
    let all = config.agreed.open_seals();
    let open = |key: &SealKey| all.iter().any(|one| one.tenant == key.tenant && one.partition == key.partition);
    config.held.kept.lock().retain(|key, _| open(key));
    stream::iter(all).for_each_concurrent(AT_ONCE_MAX, |one| follow(config, one)).await;
}

/// One tenant's seals in one partition: first all of them are applied, so that nobody waits for what one takes to forget.
async fn follow(config: &Config, open: OpenSeals) {
    let OpenSeals { tenant, partition, seals } = open;
    let me = config.agreed.me();
    let (Some(handle), Some(sets)) = (config.local.handle(partition), config.agreed.sets(partition)) else { return };
    if !sets.current().contains(&me) {
        return;
    }
    let later = |number, error: Error| {
        tracing::warn!(%tenant, partition = partition.0, number, %error, "a seal is carried out later");
    };
    for seal in seals.iter().filter(|seal| !seal.forgotten_by.contains(&me)) {
        if let Err(error) = apply(config, handle, &tenant, partition, seal).await {
            return later(seal.number, error);
        }
    }
    for seal in seals {
        let (Some(cut), number) = (seal.cut, seal.number) else { continue };
        let key = SealKey { tenant: tenant.clone(), partition, number };
        let done = if seal.forgotten_by.contains(&me) {
            close(config, &sets, &key, &seal).await
        } else {
            forget(config, handle, &key, (seal.window, cut)).await
        };
        if let Err(error) = done {
            later(number, error);
        }
    }
}

/// Sets a seal's window aside, unless that is done.
async fn apply(
    config: &Config,
    handle: &Handle,
    tenant: &TenantId,
    partition: PartitionId,
    seal: &Seal,
) -> Result<(), Error> {
    if config.local.sealed(tenant, partition) >= seal.number {
        return Ok(());
    }
    if handle.seal(tenant, seal.number, seal.window, STEP_WITHIN).await? {
        return Ok(());
    }
    Err(Error::new(Class::Internal, "a chunk file is damaged, see the log of this node"))
}

/// Says again that this node has forgotten a seal, when the last one that had not holds the partition no more: somebody
/// has to, for the seal to end.
async fn close(config: &Config, sets: &Sets, key: &SealKey, seal: &Seal) -> Result<(), Error> {
    if sets.nodes().all(|node| seal.forgotten_by.contains(&node)) {
        config.agreed.forgot(&key.tenant, key.partition, key.number, STEP_WITHIN).await?;
    }
    Ok(())
}

/// Forgets what was set aside once blocks hold it.
async fn forget(config: &Config, handle: &Handle, key: &SealKey, (window, cut): (TimeRange, Cut)) -> Result<(), Error> {
    let now = config.clock.now();
    if config.held.looked_at_lately(key, now) {
        return Ok(());
    }
    let (tenant, number) = (&key.tenant, key.number);
    let own = config.local.frozen_digest(tenant, key.partition, number).unwrap_or_default();
    let keep = |error| {
        config.held.keep(key, own.count, now);
        error
    };
    let relied_on = own == Digest::EMPTY || is_relied_on(config, tenant, window, cut).await.map_err(keep)?;
    let mut done = if relied_on {
        let proof = Proof { digest: cut.digest, index: cut.index };
        handle.forget(tenant, number, proof, STEP_WITHIN).await?
    } else {
        // What is damaged proves nothing, whatever its digest was.
        Forgetting::Differs(own)
    };
    if let Forgetting::Differs(digest) = done {
        let index = prove(config, key, cut).await.map_err(keep)?;
        done = handle.forget(tenant, number, Proof { digest, index }, STEP_WITHIN).await?;
    }
    if done == Forgetting::Gone {
        config.held.kept.lock().remove(key);
        config.agreed.forgot(tenant, key.partition, number, STEP_WITHIN).await?;
    }
    Ok(())
}

/// Whether the blocks of a cut prove what their digest says. No: one is damaged, compare them with what is here. An error
/// when the block cannot be seen from here: it may lie where only one node finds it.
async fn is_relied_on(config: &Config, tenant: &TenantId, window: TimeRange, cut: Cut) -> Result<bool, Error> {
    let (Some(cuts), Some(block)) = (&config.cuts, cut.block) else { return Ok(true) };
    match cuts.seen(tenant, block, window).await? {
        Seen::There => Ok(true),
        Seen::Damaged => Ok(false),
        Seen::Missing => Err(Error::unavailable(format!(
            "block {block} of tenant {tenant} is not in the object store as this node sees it, its samples are kept \
             here: do all nodes use the same object-store.url?"
        ))),
    }
}

/// Since which index of the metadata blocks hold everything that is frozen here, although another digest was cut.
async fn prove(config: &Config, key: &SealKey, cut: Cut) -> Result<u64, Error> {
    let (tenant, partition, number) = (&key.tenant, key.partition.0, key.number);
    let mine = config.local.frozen(tenant, key.partition, number).await?;
    let Some(mine) = mine.filter(|mine| !mine.digests.is_empty()) else { return Ok(cut.index) };
    let Some(cuts) = &config.cuts else {
        let samples = mine.digest().count;
        return Err(Error::unavailable(format!("{samples} samples are not what was cut, and blocks cannot be read")));
    };
    config.held.compared.fetch_add(1, Ordering::Relaxed);
    let shipped = cuts.complete(key, cut, mine).await?;
    if shipped.late.count > 0 {
        config.held.late_samples.fetch_add(shipped.late.count, Ordering::Relaxed);
        let late = shipped.late.count;
        tracing::warn!(%tenant, partition, number, late, "the block that was cut lacked samples: a late block has them");
    }
    Ok(shipped.index)
}

/// Drops heads that hold nothing.
async fn tidy(config: &Config, now: Millis) {
    let since = now.saturating_sub(IDLE_MS);
    let idle = config.local.idle_heads(since);
    if idle.is_empty() {
        return;
    }
    // Looked at after the heads: a seal that is open now is one the head may have to remember.
    let open = config.agreed.open_seals();
    for (tenant, partition) in idle {
        let has_open = open.iter().any(|one| one.tenant == tenant && one.partition == partition);
        let Some(handle) = config.local.handle(partition).filter(|_| !has_open) else { continue };
        match handle.drop_head(&tenant, since, STEP_WITHIN).await {
            Ok(gone) => tracing::debug!(%tenant, partition = partition.0, gone, "an empty head"),
            Err(error) => tracing::warn!(%tenant, partition = partition.0, %error, "an empty head stays for now"),
        }
    }
}
