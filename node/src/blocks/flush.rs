//! Flush: seals all a tenant has now, and waits for the blocks when asked to.
//!
//! Why: before a move, a backup or a test somebody wants everything in blocks, not in two hours. It is the sealer's
//! decision taken by a person; all that follows is the same. What is written after the seal waits for the next one.

use std::collections::BTreeMap;
use std::time::Duration;

use engram_model::block::{BlockId, Origin};
use engram_model::error::Class;
use engram_model::place::{PartitionId, tenant_partitions};
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};
use futures::{StreamExt, TryStreamExt, stream};

use super::heads;
use super::reach::Reach;
use crate::error::Error;
use crate::meta::Meta;
use crate::peer::Peers;

/// Partitions sealed at once.
const AT_ONCE_MAX: usize = 16;
/// How long one command may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// A window that was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedWindow {
    /// In which partition.
    pub partition: PartitionId,
    /// The seal's number.
    pub number: u64,
    /// The window.
    pub window: TimeRange,
    /// Samples a replica held when the seal was proposed, the one that held the most.
    pub samples: u64,
    /// Whether it is cut.
    pub is_cut: bool,
    /// Its block; none while it is not cut, or when nothing was left to be in it.
    pub block: Option<BlockId>,
}

/// Seals on demand. Cheap to clone.
#[derive(Clone)]
pub struct Flusher {
    meta: Meta,
    peers: Peers,
    reach: Reach,
}

impl Flusher {
    /// Over this metadata and these replicas.
    #[must_use]
    pub fn new(meta: Meta, peers: Peers, reach: Reach) -> Self {
        Self { meta, peers, reach }
    }

    /// Seals all windows in which the tenant has samples, in order of partition and time. With `wait`, answers when all
    /// of them, and those that were sealed before, are cut.
    ///
    /// # Errors
    /// `NotFound` for an unknown tenant; Unavailable where no blocks are made, or when a majority of a partition cannot be
    /// reached; Limited while too many seals
    /// wait for their blocks; Timeout when they are not cut in time: they are sealed and will be.
    ///
    /// # Cancel safety
    /// What is sealed stays sealed, and is cut.
    pub async fn flush(&self, tenant: &TenantId, wait: Option<Duration>) -> Result<Vec<SealedWindow>, Error> {
        // A node that lags would ask replicas of yesterday, and wait for none of the seals it has not heard of.
        self.meta.see(PROPOSE_WITHIN).await?;
        let known = self.meta.tenant(tenant);
        if known.version == 0 {
            return Err(Error::new(Class::NotFound, format!("there is no tenant {tenant}: nothing was ever written")));
        }
        if !self.reach.makes_blocks() {
            return Err(self.reach.closed());
        }
        let count = self.meta.ring().partition_count();
        let mut partitions = tenant_partitions(tenant, count, known.shard_size_largest);
        partitions.sort_unstable();
        let sealing: Vec<_> = partitions.iter().map(|partition| self.seal(tenant, *partition)).collect();
        let sealed: Vec<Vec<SealedWindow>> = stream::iter(sealing).buffered(AT_ONCE_MAX).try_collect().await?;
        let mut sealed: Vec<SealedWindow> = sealed.into_iter().flatten().collect();
        if let Some(wait) = wait {
            match tokio::time::timeout(wait, self.cut(tenant, &partitions)).await {
                Ok(done) => done?,
                Err(_) => {
                    let text =
                        format!("not all of the {} sealed windows are in blocks yet: they will be", sealed.len());
                    return Err(Error::new(Class::Timeout, text));
                }
            }
        }
        self.look_up(tenant, &mut sealed);
        Ok(sealed)
    }

    /// Seals what the tenant has in one partition.
    async fn seal(&self, tenant: &TenantId, partition: PartitionId) -> Result<Vec<SealedWindow>, Error> {
        let mut live = BTreeMap::<(Millis, Millis), u64>::new();
        for held in heads::windows(&self.meta, &self.peers, partition).await?.into_iter().flatten() {
            for (window, samples) in held.live.into_iter().filter(|_| held.tenant == *tenant) {
                let most = live.entry((window.start, window.end)).or_default();
                *most = samples.max(*most);
            }
        }
        let mut sealed = Vec::new();
        for ((start, end), samples) in live.into_iter().filter(|(_, samples)| *samples > 0) {
            let window = TimeRange { start, end };
            let number = self.meta.seal(tenant, partition, window, PROPOSE_WITHIN).await?;
            sealed.push(SealedWindow { partition, number, window, samples, is_cut: false, block: None });
        }
        Ok(sealed)
    }

    /// Waits until every seal that is open now is cut.
    async fn cut(&self, tenant: &TenantId, partitions: &[PartitionId]) -> Result<(), Error> {
        let uncut = |partition: &PartitionId| {
            let seals = self.meta.seals(tenant, *partition);
            let open = seals.iter().flat_map(|seals| &seals.open);
            open.filter(|seal| seal.cut.is_none()).map(|seal| (*partition, seal.number)).collect::<Vec<_>>()
        };
        let mut waiting: Vec<(PartitionId, u64)> = partitions.iter().flat_map(uncut).collect();
        loop {
            let index = self.meta.index();
            let is_uncut = |at: PartitionId, number| {
                self.meta.open_seal(tenant, at, number).is_some_and(|seal| seal.cut.is_none())
            };
            waiting.retain(|(partition, number)| is_uncut(*partition, *number));
            if waiting.is_empty() {
                return Ok(());
            }
            self.meta.changed(index).await?;
        }
    }

    /// Finds what became of the seals.
    fn look_up(&self, tenant: &TenantId, sealed: &mut [SealedWindow]) {
        let view = self.meta.blocks(tenant);
        for one in sealed {
            let (partition, seal) = (one.partition, one.number);
            let open = self.meta.open_seal(tenant, partition, seal);
            one.is_cut = open.is_none_or(|open| open.cut.is_some());
            let mut of = view.blocks.iter().filter(|row| row.meta.origin == Origin::Cut { partition, seal });
            one.block = of.next().map(|row| row.meta.id);
        }
    }
}
