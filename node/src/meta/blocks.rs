//! Blocks, seals, deletions and leases, in words of `model`.
//!
//! Why here: sealers, cutters, compactors, sweepers and readers must agree on one state and change it only by
//! commands that are refused when it has moved. They read a [`BlocksView`] of one applied index and use it to the end
//! of what they do; they propose through methods that wait until the change is visible in this node's own view.
//!
//! What a refusal means is in its class: Conflict: somebody else was faster, look again; `NotFound`: what was meant is
//! gone; Internal: the digests do not add up, which nobody may wave through.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::block::{BlockId, BlockMeta, BlockRow, Deletion, Seal, Seals};
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_raft::{Command, Error as GroupError, Fence, Holder, Outcome, Proposal, Refusal, View};

use super::{Meta, RingView};
use crate::error::Error;

/// Attempts to seal while others seal the same tenant's windows.
const SEAL_ATTEMPTS: u32 = 8;
/// Leases that expired long ago and are cleared away with one that is taken.
const EXPIRED_MAX: usize = 16;

/// A tenant's blocks and deletions at one applied index.
#[derive(Clone, Debug, Default)]
pub struct BlocksView {
    /// The index.
    pub index: u64,
    /// Its blocks, oldest name first.
    pub blocks: Vec<Arc<BlockRow>>,
    /// Its deletions, in order of their indexes.
    pub deletions: Vec<Arc<Deletion>>,
}

/// A lease this node holds, as far as it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is leased.
    pub key: String,
    /// Its fencing number.
    pub fence: u64,
}

impl Lease {
    fn fence(&self) -> Fence {
        Fence { key: self.key.clone(), number: self.fence }
    }
}

/// A replacement of blocks by others.
#[derive(Clone, Debug, Default)]
pub struct Replacement {
    /// The blocks to replace.
    pub sources: Vec<BlockId>,
    /// The blocks instead of them.
    pub results: Vec<BlockMeta>,
    /// Digest of what several sources held, without the one that stays.
    pub duplicates: Digest,
    /// Digest of what was deleted.
    pub deleted: Digest,
}

fn blocks_where(view: &View, tenant: &TenantId, wanted: impl Fn(&BlockRow) -> bool) -> BlocksView {
    let blocks = view.blocks.get(tenant).into_iter().flat_map(|rows| rows.iter());
    let deletions = view.deletions.get(tenant).into_iter().flat_map(|rows| rows.iter());
    BlocksView {
        index: view.applied.unwrap_or(0),
        blocks: blocks.map(|(_, row)| row).filter(|row| wanted(row)).cloned().collect(),
        deletions: deletions.map(|(_, row)| row.clone()).collect(),
    }
}

fn open_seals_of(view: &View, tenant: &TenantId) -> Vec<Arc<Seals>> {
    view.seals.get(tenant).map_or_else(Vec::new, |seals| seals.open.iter().map(|(_, row)| row.clone()).collect())
}

impl Meta {
    /// The applied index.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.views.borrow().applied.unwrap_or(0)
    }

    /// Waits until something newer than `after` is applied; the index then.
    ///
    /// # Errors
    /// Unavailable when the group is stopping.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn changed(&self, after: u64) -> Result<u64, Error> {
        let mut views = self.group.watch();
        let seen = views.wait_for(|view| view.applied.is_some_and(|index| index > after)).await;
        let index = seen.map(|view| view.applied.unwrap_or(0));
        index.map_err(|_| Error::unavailable("the metadata group is stopping"))
    }

    /// Log time: the greatest time of the applied commands. Leases expire by it.
    #[must_use]
    pub fn log_time(&self) -> engram_model::Millis {
        self.views.borrow().time
    }

    /// All blocks of a tenant, marked and quarantined ones too, and its deletions.
    #[must_use]
    pub fn blocks(&self, tenant: &TenantId) -> BlocksView {
        blocks_where(&self.view(), tenant, |_| true)
    }

    /// All blocks of a tenant and the ring, of one applied index: a replica that came later has no part in what blocks
    /// of that index lack.
    #[must_use]
    pub fn blocks_and_ring(&self, tenant: &TenantId) -> (BlocksView, Arc<RingView>) {
        let view = self.view();
        (blocks_where(&view, tenant, |_| true), Arc::new(RingView(view)))
    }

    /// All blocks of a tenant and its open seals by partition, of one applied index: what was set aside is in one of
    /// them, never in neither.
    #[must_use]
    pub fn blocks_and_seals(&self, tenant: &TenantId) -> (BlocksView, Vec<Arc<Seals>>) {
        let view = self.view();
        (blocks_where(&view, tenant, |_| true), open_seals_of(&view, tenant))
    }

    /// What a reader of a time range needs: the blocks that overlap it and are not marked. A quarantined one is among
    /// them: the reader says that it could not be read.
    #[must_use]
    pub fn visible_blocks(&self, tenant: &TenantId, range: TimeRange) -> BlocksView {
        let mut view = blocks_where(&self.view(), tenant, |row| row.marked.is_none() && row.meta.range.overlaps(range));
        view.deletions.retain(|deletion| deletion.range.overlaps(range));
        view
    }

    /// One block's row.
    #[must_use]
    pub fn block(&self, tenant: &TenantId, block: BlockId) -> Option<Arc<BlockRow>> {
        self.views.borrow().blocks.get(tenant)?.get(&block).cloned()
    }

    /// Tenants that have blocks, and how many, sorted by name.
    #[must_use]
    pub fn tenants_with_blocks(&self) -> Vec<(TenantId, usize)> {
        self.view().blocks.iter().map(|(tenant, rows)| (tenant.clone(), rows.len())).collect()
    }

    /// Whether a tenant is there and marked for deletion.
    #[must_use]
    pub fn tenant_deleted(&self, tenant: &TenantId) -> bool {
        self.views.borrow().tenants.get(tenant).is_some_and(|row| row.deleted.is_some())
    }

    /// The seals of a tenant in a partition; none before the first.
    #[must_use]
    pub fn seals(&self, tenant: &TenantId, partition: PartitionId) -> Option<Arc<Seals>> {
        self.views.borrow().seals.get(tenant)?.all.get(&partition).cloned()
    }

    /// One open seal.
    #[must_use]
    pub fn open_seal(&self, tenant: &TenantId, partition: PartitionId, number: u64) -> Option<Seal> {
        self.seals(tenant, partition)?.get(number).cloned()
    }

    /// The open seals of a tenant, by partition.
    #[must_use]
    pub fn open_seals_of(&self, tenant: &TenantId) -> Vec<Arc<Seals>> {
        open_seals_of(&self.view(), tenant)
    }

    /// Tenants that have blocks or deletions, sorted.
    #[must_use]
    pub fn tenants_with_storage(&self) -> Vec<TenantId> {
        let view = self.view();
        let with_blocks = view.blocks.iter().map(|(tenant, _)| tenant);
        let all: BTreeSet<_> = with_blocks.chain(view.deletions.iter().map(|(tenant, _)| tenant)).cloned().collect();
        all.into_iter().collect()
    }

    /// Tenants that have blocks or deletions, or are marked for deletion, sorted.
    #[must_use]
    pub fn tenants_to_sweep(&self) -> Vec<TenantId> {
        let view = self.view();
        let deleted = view.tenants.iter().filter(|(_, row)| row.deleted.is_some()).map(|(tenant, _)| tenant.clone());
        let all: BTreeSet<_> = self.tenants_with_storage().into_iter().chain(deleted).collect();
        all.into_iter().collect()
    }

    /// When the cluster was made, in log time; none before it is.
    #[must_use]
    pub fn cluster_made_at(&self) -> Option<engram_model::Millis> {
        self.views.borrow().cluster.as_ref().map(|cluster| cluster.made.at)
    }

    /// Forgets a tenant that is marked for deletion, once nothing of it is left.
    ///
    /// # Errors
    /// Conflict while it has open seals or deletions, or when it is not marked; `NotFound` when it is gone.
    pub async fn remove_tenant(&self, tenant: &TenantId, within: Duration) -> Result<(), Error> {
        self.done("sweeper", Command::RemoveTenant { tenant: tenant.clone() }, within).await
    }

    /// Everything that has open seals, by tenant and partition.
    #[must_use]
    pub fn open_seals(&self) -> Vec<(TenantId, PartitionId, Arc<Seals>)> {
        let view = self.view();
        let of_tenant = |tenant: &TenantId, seals: &engram_raft::state::TenantSeals| {
            let rows = seals.open.iter();
            rows.map(|(partition, row)| (tenant.clone(), *partition, row.clone())).collect::<Vec<_>>()
        };
        view.seals.iter().flat_map(|(tenant, seals)| of_tenant(tenant, seals)).collect()
    }

    /// Proposes, and waits until this node's own view shows it.
    async fn act(&self, by: &str, command: Command, within: Duration) -> Result<Outcome, GroupError> {
        let committed = self.group.propose(Proposal { by: by.to_owned(), command }, within).await?;
        self.group.applied(committed.index, within).await?;
        Ok(committed.outcome)
    }

    async fn done(&self, by: &str, command: Command, within: Duration) -> Result<(), Error> {
        self.act(by, command, within).await?;
        Ok(())
    }

    /// Seals a window under the number the caller has read as the next one; none when somebody else was faster.
    ///
    /// # Errors
    /// Limited while too many seals are open; Unavailable or Timeout without a quorum: then the window may be sealed.
    pub async fn seal_as(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
        window: TimeRange,
        within: Duration,
    ) -> Result<Option<u64>, Error> {
        let command = Command::Seal { tenant: tenant.clone(), partition, number, window };
        match self.act("sealer", command, within).await {
            Ok(Outcome::Seal { number }) => Ok(Some(number)),
            Ok(other) => Err(unexpected(&other)),
            Err(GroupError::Refused(Refusal::SealNumber { .. })) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// Seals a window under whatever number is next; the number.
    ///
    /// # Errors
    /// As [`Meta::seal_as`]; Unavailable when others are faster all the time.
    pub async fn seal(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        window: TimeRange,
        within: Duration,
    ) -> Result<u64, Error> {
        for _ in 0..SEAL_ATTEMPTS {
            let number = self.seals(tenant, partition).map_or(1, |seals| seals.next);
            if let Some(number) = self.seal_as(tenant, partition, number, window, within).await? {
                return Ok(number);
            }
            // What was refused is newer than this node's view: it comes.
            self.see(within).await?;
        }
        Err(Error::unavailable(format!("others seal {tenant} in partition {} all the time", partition.0)))
    }

    /// Waits until this node's view shows everything that was answered anywhere before the call.
    ///
    /// # Errors
    /// Unavailable when nobody can confirm it.
    pub async fn see(&self, within: Duration) -> Result<(), Error> {
        self.group.linearizable(within).await?;
        Ok(())
    }

    /// Commits the cut of a seal.
    ///
    /// # Errors
    /// Conflict when the lease is lost or the seal is cut otherwise, `NotFound` when it is not open.
    pub async fn commit_cut(
        &self,
        (tenant, partition, number): (&TenantId, PartitionId, u64),
        block: Option<BlockMeta>,
        digest: Digest,
        lease: &Lease,
        within: Duration,
    ) -> Result<(), Error> {
        let (tenant, block, fence) = (tenant.clone(), block.map(Box::new), Some(lease.fence()));
        self.done("cutter", Command::CommitCut { tenant, partition, number, block, digest, fence }, within).await
    }

    /// Says that this node has forgotten what it had set aside for a seal.
    ///
    /// # Errors
    /// Conflict when the seal is not cut; Invalid when this node holds nothing of the partition.
    pub async fn forgot(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
        within: Duration,
    ) -> Result<(), Error> {
        let command = Command::Forgot { tenant: tenant.clone(), partition, number, node: self.node_id() };
        self.done("head", command, within).await
    }

    /// Adds blocks that replace nothing.
    ///
    /// # Errors
    /// Conflict when there is another block of a name, or the lease is lost; Invalid for what cannot be a block.
    pub async fn add_blocks(
        &self,
        by: &str,
        tenant: &TenantId,
        blocks: Vec<BlockMeta>,
        lease: Option<&Lease>,
        within: Duration,
    ) -> Result<(), Error> {
        let (tenant, fence) = (tenant.clone(), lease.map(Lease::fence));
        let mut blocks = blocks;
        blocks.sort_by_key(|block| block.id);
        self.done(by, Command::AddBlocks { tenant, blocks, fence }, within).await
    }

    /// Replaces blocks by others: the one commit of a compaction.
    ///
    /// # Errors
    /// Conflict when a source is marked or quarantined, or the lease is lost; `NotFound` when one is gone; Internal
    /// when the digests do not add up.
    pub async fn replace_blocks(
        &self,
        tenant: &TenantId,
        what: Replacement,
        lease: &Lease,
        within: Duration,
    ) -> Result<(), Error> {
        let Replacement { mut sources, mut results, duplicates, deleted } = what;
        sources.sort_unstable();
        results.sort_by_key(|block| block.id);
        let (tenant, fence) = (tenant.clone(), Some(lease.fence()));
        let command = Command::ReplaceBlocks { tenant, sources, results, duplicates, deleted, fence };
        self.done("compactor", command, within).await
    }

    /// Puts blocks of the same content in the place of a quarantined one.
    ///
    /// # Errors
    /// Conflict when it is not quarantined, Internal when the content is another.
    pub async fn repair_block(
        &self,
        tenant: &TenantId,
        damaged: BlockId,
        results: Vec<BlockMeta>,
        lease: Option<&Lease>,
        within: Duration,
    ) -> Result<(), Error> {
        let (tenant, fence) = (tenant.clone(), lease.map(Lease::fence));
        let mut results = results;
        results.sort_by_key(|block| block.id);
        self.done("scrubber", Command::RepairBlock { tenant, damaged, results, fence }, within).await
    }

    /// Marks blocks for deletion: from now on nobody reads them.
    ///
    /// # Errors
    /// `NotFound` when one is gone; then none is marked.
    pub async fn mark_blocks(
        &self,
        (by, why): (&str, &str),
        tenant: &TenantId,
        blocks: Vec<BlockId>,
        lease: Option<&Lease>,
        within: Duration,
    ) -> Result<(), Error> {
        let (tenant, why, fence) = (tenant.clone(), why.to_owned(), lease.map(Lease::fence));
        let mut blocks = blocks;
        blocks.sort_unstable();
        self.done(by, Command::MarkBlocks { tenant, blocks, why, fence }, within).await
    }

    /// Forgets marked blocks whose objects are gone.
    ///
    /// # Errors
    /// Conflict when one is not marked; then none is dropped.
    pub async fn drop_blocks(
        &self,
        tenant: &TenantId,
        blocks: Vec<BlockId>,
        lease: Option<&Lease>,
        within: Duration,
    ) -> Result<(), Error> {
        let (tenant, fence) = (tenant.clone(), lease.map(Lease::fence));
        let mut blocks = blocks;
        blocks.sort_unstable();
        self.done("sweeper", Command::DropBlocks { tenant, blocks, fence }, within).await
    }

    /// Says that a block is damaged (`why`) or whole again (none).
    ///
    /// # Errors
    /// `NotFound` when there is no such block.
    pub async fn quarantine_block(
        &self,
        by: &str,
        tenant: &TenantId,
        block: BlockId,
        why: Option<String>,
        within: Duration,
    ) -> Result<(), Error> {
        self.done(by, Command::QuarantineBlock { tenant: tenant.clone(), block, why }, within).await
    }

    /// Orders the deletion of series; its index. The caller has parsed the selectors.
    ///
    /// # Errors
    /// `NotFound` for an unknown tenant, Limited when it has too many deletions that are not carried out yet, Invalid
    /// for too many or too long selectors.
    pub async fn add_deletion(
        &self,
        by: &str,
        tenant: &TenantId,
        selectors: Vec<String>,
        range: TimeRange,
        within: Duration,
    ) -> Result<u64, Error> {
        match self.act(by, Command::AddDeletion { tenant: tenant.clone(), selectors, range }, within).await? {
            Outcome::Deletion { index } => Ok(index),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets a deletion that every block and head has carried out.
    ///
    /// # Errors
    /// `NotFound` when there is none of this index.
    pub async fn remove_deletion(
        &self,
        tenant: &TenantId,
        index: u64,
        lease: Option<&Lease>,
        within: Duration,
    ) -> Result<(), Error> {
        let (tenant, fence) = (tenant.clone(), lease.map(Lease::fence));
        self.done("compactor", Command::RemoveDeletion { tenant, index, fence }, within).await
    }

    /// Takes or renews a lease; none while another node holds it.
    ///
    /// # Errors
    /// Unavailable or Timeout without a quorum; Limited when the cluster has too many leases.
    pub async fn lease(&self, key: &str, ttl: Duration, within: Duration) -> Result<Option<Lease>, Error> {
        let view = self.view();
        let old = view.leases.iter().filter(|(_, row)| row.long_expired(view.time));
        let expired = old.map(|(other, _)| other.clone()).filter(|other| other != key).take(EXPIRED_MAX).collect();
        let holder = Holder { node: self.node_id(), life: self.life };
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let command = Command::AcquireLease { key: key.to_owned(), holder, ttl_ms, expired };
        match self.act("lease", command, within).await {
            Ok(Outcome::Lease { fence, .. }) => Ok(Some(Lease { key: key.to_owned(), fence })),
            Ok(other) => Err(unexpected(&other)),
            Err(GroupError::Refused(Refusal::LeaseHeld { .. })) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// Gives a lease back; one that was lost is nobody's business any more.
    ///
    /// # Errors
    /// Unavailable or Timeout without a quorum: then it expires by itself.
    pub async fn release(&self, lease: &Lease, within: Duration) -> Result<(), Error> {
        match self.act("lease", Command::ReleaseLease { fence: lease.fence() }, within).await {
            Ok(_) | Err(GroupError::Refused(Refusal::Fenced { .. })) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }
}

fn unexpected(outcome: &Outcome) -> Error {
    Error::new(Class::Internal, format!("the metadata group answered {outcome:?}"))
}
