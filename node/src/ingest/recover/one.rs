//! The entries of one partition, applied to its heads in their order.
//!
//! A checkpoint is collected aside and takes the head's place only when it is complete. The rest of a checkpoint whose
//! begin was dropped with its segment is passed over: a round that was given up may reach into the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_storage::head::Head;

use crate::ingest::entry::{self, Kind};
use crate::ingest::heads::Heads;

/// What is known of a partition while its entries are applied.
#[derive(Debug)]
pub(super) struct OnePartition {
    partition: PartitionId,
    /// Checkpoints that have begun and are not complete.
    open: HashMap<TenantId, Head>,
    /// Whether its past was cut off and its checkpoints are not complete yet.
    awaited: bool,
    /// Checkpoints that go on and name a chunk file that is not there.
    damaged: BTreeMap<TenantId, String>,
    /// Heads whose last checkpoint names a chunk file that is not there, and what is said of it. A later checkpoint
    /// makes good: segments that were to be removed may be back after a crash, and their files are gone.
    broken: BTreeMap<TenantId, String>,
    /// Of the entry before: most have the same.
    tenant: Option<TenantId>,
    /// Heads that gather samples.
    gathering: BTreeSet<TenantId>,
    samples: u64,
}

/// How samples are put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Each when it is read.
    AtOnce,
    /// Many together, by so many threads, see [`Head::gather`]; [`OnePartition::settle`] ends it.
    InBulk(usize),
}

fn damaged(tenant: &TenantId, error: engram_storage::codec::Broken) -> String {
    format!("entry of tenant {tenant}: {error}")
}

impl OnePartition {
    pub(super) fn new(partition: PartitionId) -> Self {
        Self {
            partition,
            open: HashMap::new(),
            awaited: false,
            damaged: BTreeMap::new(),
            broken: BTreeMap::new(),
            tenant: None,
            gathering: BTreeSet::new(),
            samples: 0,
        }
    }

    /// The log has been cut: nothing counts before the checkpoints.
    pub(super) fn await_checkpoints(&mut self) {
        self.awaited = true;
    }

    /// Samples applied so far.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// Puts in what heads have gathered.
    pub(super) fn settle(&mut self, heads: &Heads) {
        for tenant in std::mem::take(&mut self.gathering) {
            if let Some(head) = heads.get(&tenant) {
                self.samples += head.write().settle();
            }
        }
        Self::keep_full(heads);
    }

    pub(super) fn apply(&mut self, heads: &Heads, bytes: &[u8], pace: Pace) -> Result<(), String> {
        let entry = entry::decode_after(bytes, self.tenant.take())?;
        let tenant = entry.tenant;
        if entry.kind != Kind::Append && self.gathering.contains(&tenant) {
            self.settle(heads);
        }
        match entry.kind {
            Kind::Append => self.append(heads, &tenant, entry.body, pace)?,
            Kind::CheckpointBegin => {
                self.damaged.remove(&tenant);
                self.open.insert(tenant.clone(), heads.empty());
            }
            Kind::CheckpointPiece => self.piece(heads, &tenant, entry.body)?,
            Kind::CheckpointEnd => self.end(heads, &tenant)?,
            Kind::Round => {}
            Kind::PartitionEnd => {
                heads.note_dropped(entry::read_end(entry.body)?.0);
                self.awaited = false;
            }
            Kind::HeadEnd => {
                self.open.remove(&tenant);
                self.broken.remove(&tenant);
                if !self.awaited {
                    heads.remove(&tenant, entry::read_index(entry.body)?);
                }
            }
        }
        self.tenant = Some(tenant);
        Ok(())
    }

    /// A change of a head.
    fn append(&mut self, heads: &Heads, tenant: &TenantId, body: &[u8], pace: Pace) -> Result<(), String> {
        // A checkpoint that broke off before this entry was written never counted.
        self.open.remove(tenant);
        if self.awaited || self.broken.contains_key(tenant) {
            return Ok(());
        }
        let head = heads.get_or_create(tenant);
        let mut head = head.write();
        if let Pace::InBulk(threads) = pace {
            head.gather(body, threads).map_err(|e| damaged(tenant, e))?;
            if !self.gathering.contains(tenant) {
                self.gathering.insert(tenant.clone());
            }
        } else {
            self.samples += head.replay(body).map_err(|e| damaged(tenant, e))?.appended;
        }
        drop(head);
        Self::keep_full(heads);
        Ok(())
    }

    fn keep_full(heads: &Heads) {
        if heads.has_full()
            && let Err(error) = heads.keep_full()
        {
            tracing::warn!(%error, "full chunks stay in memory for now");
        }
    }

    /// A piece of a checkpoint.
    fn piece(&mut self, heads: &Heads, tenant: &TenantId, body: &[u8]) -> Result<(), String> {
        let Some(head) = self.open.get_mut(tenant) else { return self.rest_of_a_dropped_one() };
        if self.damaged.contains_key(tenant) {
            return Ok(());
        }
        if let Err(error) = head.replay(body) {
            let trouble = heads.files().and_then(|files| files.trouble()).ok_or_else(|| damaged(tenant, error))?;
            self.damaged.insert(tenant.clone(), trouble);
        }
        Ok(())
    }

    /// A checkpoint is complete: it takes the head's place.
    fn end(&mut self, heads: &Heads, tenant: &TenantId) -> Result<(), String> {
        let Some(head) = self.open.remove(tenant) else { return self.rest_of_a_dropped_one() };
        match self.damaged.remove(tenant) {
            None => {
                self.broken.remove(tenant);
                heads.replace(tenant, head);
            }
            Some(trouble) => {
                self.broken.insert(tenant.clone(), trouble);
            }
        }
        Ok(())
    }

    fn rest_of_a_dropped_one(&self) -> Result<(), String> {
        if self.awaited { Ok(()) } else { Err("a checkpoint goes on that has not begun".to_owned()) }
    }

    /// Every entry was applied.
    ///
    /// # Errors
    /// The log was cut at a round and lacks this partition's checkpoints, or a file the last of them names is not there.
    pub(super) fn finish(&self) -> Result<(), String> {
        if let Some((tenant, trouble)) = self.broken.first_key_value() {
            return Err(format!(
                "the checkpoint of tenant {tenant} in partition {} names a chunk file that is not there: {trouble}",
                self.partition.0
            ));
        }
        if self.awaited {
            return Err(format!(
                "the log has been cut at a round of checkpoints and lacks those of partition {}",
                self.partition.0
            ));
        }
        Ok(())
    }
}
