//! What compaction would do next, from the metadata as this node sees it.
//!
//! Why apart from the actor that does it: a person asks the very same question (`engram blocks plan`), and the answer
//! must come from the very same code. What this node knows beside the metadata is held here: which blocks are sources of
//! jobs that it is doing, and in which blocks it has looked and found nothing of a deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engram_model::Millis;
use engram_model::block::{BlockId, BlockMeta, BlockRow, Deletion, Seal};
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_query::parse::parse_selector;
use engram_storage::compact::{Facts, Hidden, Job, Order, Rules, plan};
use parking_lot::Mutex;

use crate::error::Error;
use crate::meta::Meta;
use crate::meta::blocks::BlocksView;

/// Plans for tenants. Cheap to clone; clones share what they know.
#[derive(Clone)]
pub struct Planner {
    meta: Meta,
    rules: Arc<Rules>,
    clock: Clock,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// Sources of jobs this node is doing.
    busy: BTreeSet<BlockId>,
    /// Blocks that hold nothing of the deletion of that index.
    free: BTreeMap<TenantId, BTreeSet<(BlockId, u64)>>,
}

/// A tenant's plan, and what it was made of.
#[derive(Debug)]
pub struct Planned {
    /// The metadata it was made of.
    pub view: BlocksView,
    /// The jobs that can be done now, in order.
    pub jobs: Vec<Job>,
    /// Blocks that are read and still hold, or may hold, samples of a deletion.
    pub unwritten: usize,
    /// Deletions that nothing in blocks waits for any more.
    pub finished: Vec<Arc<Deletion>>,
}

/// Blocks that are the sources of a job of this node, until it is dropped.
pub struct Busy(Arc<Mutex<Known>>, Vec<BlockId>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut known = self.0.lock();
        known.busy.retain(|id| !self.1.contains(id));
    }
}

impl Planner {
    /// Over this metadata, by these rules.
    #[must_use]
    pub fn new(meta: Meta, rules: Rules, clock: Clock) -> Self {
        Self { meta, rules: Arc::new(rules), clock, known: Arc::default() }
    }

    /// The metadata it plans by.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// What is to be done for a tenant; with `clean`, deletions are carried out now. A tenant that is marked for deletion
    /// has no jobs.
    #[must_use]
    pub fn plan(&self, tenant: &TenantId, clean: bool) -> Planned {
        // Of one index: between two looks a seal may end, and its samples would be in neither.
        let (view, seals) = self.meta.blocks_and_seals(tenant);
        if self.meta.tenant_deleted(tenant) {
            return Planned { view, jobs: Vec::new(), unwritten: 0, finished: Vec::new() };
        }
        let uncut = |seal: &&Seal| seal.cut.is_none();
        let open: Vec<_> = seals.iter().flat_map(|row| &row.open).filter(uncut).map(|seal| seal.window).collect();
        let rows = || view.blocks.iter().filter(|row| row.marked.is_none());
        let blocks: Vec<&BlockMeta> = rows().filter(|row| row.quarantined.is_none()).map(|row| &row.meta).collect();
        let order = |one: &Arc<Deletion>| Order { index: one.index, range: one.range, at: one.at };
        let deletions: Vec<Order> = view.deletions.iter().map(order).collect();
        let (busy, free) = self.known_of(tenant, &view);
        let is_free_of = |block: BlockId, index: u64| free.contains(&(block, index));
        let facts = Facts {
            blocks: &blocks,
            open: &open,
            busy: &busy,
            deletions: &deletions,
            is_free_of: &is_free_of,
            now: self.clock.now(),
            clean,
        };
        let jobs = plan(&self.rules, &facts);
        let holds = |one: &Deletion, meta: &BlockMeta| {
            meta.as_of < one.index && meta.range.overlaps(one.range) && !free.contains(&(meta.id, one.index))
        };
        // Sealed and not forgotten: a head holds it.
        let waits = |one: &Deletion| {
            rows().any(|row| holds(one, &row.meta))
                || seals.iter().flat_map(|row| &row.open).any(|seal| seal.window.overlaps(one.range))
        };
        let unwritten =
            |row: &&Arc<BlockRow>| row.quarantined.is_none() && view.deletions.iter().any(|one| holds(one, &row.meta));
        let unwritten = rows().filter(unwritten).count();
        let finished = view.deletions.iter().filter(|one| !waits(one)).cloned().collect();
        Planned { view, jobs, unwritten, finished }
    }

    /// What is known of a tenant; what is known of things that are gone is forgotten.
    fn known_of(&self, tenant: &TenantId, view: &BlocksView) -> (BTreeSet<BlockId>, BTreeSet<(BlockId, u64)>) {
        let mut known = self.known.lock();
        let busy = known.busy.clone();
        let Some(free) = known.free.get_mut(tenant) else { return (busy, BTreeSet::new()) };
        let blocks: BTreeSet<BlockId> = view.blocks.iter().map(|row| row.meta.id).collect();
        let deletions: BTreeSet<u64> = view.deletions.iter().map(|one| one.index).collect();
        free.retain(|(block, index)| blocks.contains(block) && deletions.contains(index));
        (busy, free.clone())
    }

    /// Remembers that this node is doing a job.
    #[must_use]
    pub fn occupy(&self, job: &Job) -> Busy {
        self.known.lock().busy.extend(&job.sources);
        Busy(self.known.clone(), job.sources.clone())
    }

    /// Remembers that a block holds nothing of some deletions.
    pub fn is_free(&self, tenant: &TenantId, block: BlockId, deletions: impl IntoIterator<Item = u64>) {
        let mut known = self.known.lock();
        known.free.entry(tenant.clone()).or_default().extend(deletions.into_iter().map(|index| (block, index)));
    }
}

/// What a deletion means.
///
/// # Errors
/// Internal: it was accepted once and cannot be read now.
pub fn hidden_of(deletion: &Deletion) -> Result<Hidden, Error> {
    let selectors: Result<_, _> = deletion.selectors.iter().map(|text| parse_selector(text)).collect();
    let unreadable = |e| Error::new(Class::Internal, format!("deletion {}: {e}", deletion.index));
    Ok(Hidden { index: deletion.index, selectors: selectors.map_err(unreadable)?, range: deletion.range })
}
