//! Follower: carries out on this node's heads what the metadata has agreed of their windows.
//!
//! Why: a seal, and the commit of its cut, are agreed once for all replicas; each replica applies them by itself, in its
//! own time, again after a crash, and nobody waits for it but the bookkeeping of who has forgotten.
//!
//! ```text
//! open seal, not applied here      → the partition sets the window aside
//! its cut committed, same digest   → the partition forgets it → "this node has forgotten seal n"
//! its cut committed, other digest  → does the block hold all of ours?  yes → forget as above
//!                                                                      no  → kept, counted, said; asked again later
//! ```
//!
//! Nothing is dropped unseen: digests that differ are settled by content, sample by sample, and who cannot look keeps.
//! Heads that hold nothing, have no open seal and were not written for long are dropped, so that a tenant that is gone
//! takes no memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::Millis;
use engram_model::block::{Cut, Seal};
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::LocalReplica;
use super::partition::{Forgetting, Proof};
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::meta::Meta;
use crate::metrics::Reading;
use crate::peer::{Frozen, Replica};

/// Partitions' seals carried out at once.
const AT_ONCE_MAX: usize = 8;
/// How long one step may take: setting aside a large window walks all series of a head.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// A cut that lacks something is compared again after this.
const COMPARE_AGAIN_MS: i64 = 10 * 60 * 1000;
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

/// Looks into committed cuts.
pub trait Cuts: Send + Sync {
    /// The digest of those samples of `mine` that the cut's block does not hold; one with a greater value at the same
    /// time counts as held.
    fn lacks(&self, tenant: &TenantId, cut: Cut, mine: Frozen) -> BoxFuture<'_, Result<Digest, Error>>;
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

type Key = (TenantId, PartitionId, u64);

/// What committed cuts lack of this node's frozen samples.
#[derive(Debug, Default)]
pub struct Held {
    /// How much, and when it was looked at.
    lacking: Mutex<HashMap<Key, (u64, Millis)>>,
    compared: AtomicU64,
}

impl Held {
    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts for a graph")]
    pub fn readings(&self) -> Vec<Reading> {
        let (seals, samples) = {
            let lacking = self.lacking.lock();
            (lacking.len(), lacking.values().map(|(samples, _)| *samples).sum::<u64>())
        };
        let compared = self.compared.load(Ordering::Relaxed);
        vec![
            Reading::gauge("ingest_seals_held", "Seals whose cut lacks samples of this node", seals as f64),
            Reading::gauge("ingest_samples_held", "Samples that committed cuts lack, kept here", samples as f64),
            Reading::counter(
                "ingest_cuts_compared",
                "Cuts compared by content, their digest differed",
                compared as f64,
            ),
        ]
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
            () = changed => {}
            () = tokio::time::sleep(config.every) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

/// Carries out everything that is agreed and not done yet.
pub async fn pass(config: &Config) {
    let all = config.agreed.open_seals();
    let open = |key: &Key| all.iter().any(|one| one.tenant == key.0 && one.partition == key.1);
    config.held.lacking.lock().retain(|key, _| open(key));
    stream::iter(all).for_each_concurrent(AT_ONCE_MAX, |one| follow(config, one)).await;
}

/// One tenant's seals in one partition.
async fn follow(config: &Config, open: OpenSeals) {
    let OpenSeals { tenant, partition, seals } = open;
    if config.local.handle(partition).is_none() {
        return;
    }
    for seal in seals {
        let number = seal.number;
        if let Err(error) = carry_out(config, &tenant, partition, seal).await {
            tracing::warn!(%tenant, partition = partition.0, number, %error, "a seal is carried out later");
            return;
        }
    }
}

async fn carry_out(config: &Config, tenant: &TenantId, partition: PartitionId, seal: Seal) -> Result<(), Error> {
    let Some(handle) = config.local.handle(partition) else { return Ok(()) };
    if seal.forgotten_by.contains(&config.agreed.me()) {
        return Ok(());
    }
    if config.local.sealed(tenant, partition) < seal.number {
        let done = handle.seal(tenant, seal.number, seal.window, STEP_WITHIN).await?;
        if !done {
            return Err(Error::new(Class::Internal, "a chunk file is damaged, see the log of this node"));
        }
    }
    let Some(cut) = seal.cut else { return Ok(()) };
    let proof = Proof { digest: cut.digest, index: cut.index };
    let mut done = handle.forget(tenant, seal.number, proof, STEP_WITHIN).await?;
    if let Forgetting::Differs(mine) = done
        && is_held_by(config, tenant, partition, seal.number, cut).await?
    {
        let proof = Proof { digest: mine, index: cut.index };
        done = handle.forget(tenant, seal.number, proof, STEP_WITHIN).await?;
    }
    if done == Forgetting::Gone {
        config.held.lacking.lock().remove(&(tenant.clone(), partition, seal.number));
        config.agreed.forgot(tenant, partition, seal.number, STEP_WITHIN).await?;
    }
    Ok(())
}

/// Whether the block of a cut holds everything that is frozen here, although the digests differ.
async fn is_held_by(
    config: &Config,
    tenant: &TenantId,
    partition: PartitionId,
    number: u64,
    cut: Cut,
) -> Result<bool, Error> {
    let key = (tenant.clone(), partition, number);
    let now = config.clock.now();
    if config.held.lacking.lock().get(&key).is_some_and(|(_, at)| now.saturating_sub(*at) < COMPARE_AGAIN_MS) {
        return Ok(false);
    }
    let Some(mine) = config.local.frozen(tenant, partition, number).await? else { return Ok(true) };
    let samples = mine.digest().count;
    config.held.compared.fetch_add(1, Ordering::Relaxed);
    let own = mine.digest();
    let lacking = match &config.cuts {
        None => Ok(own),
        Some(cuts) => cuts.lacks(tenant, cut, mine).await,
    };
    let lacking = lacking.inspect_err(|_| {
        config.held.lacking.lock().insert(key.clone(), (samples, now));
    })?;
    if lacking == Digest::EMPTY {
        return Ok(true);
    }
    tracing::error!(
        %tenant,
        partition = partition.0,
        number,
        samples = lacking.count,
        "the block that was cut lacks samples of this node: they are kept here and still answered"
    );
    config.held.lacking.lock().insert(key, (lacking.count, now));
    Ok(false)
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
