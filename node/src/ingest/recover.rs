//! From the log to the heads: what a node does before it answers.
//!
//! Entries are applied in the order they were written; each is decided exactly as it was the first time, so the heads
//! are those of the moment before the crash, plus what was durable and not yet answered. A checkpoint is collected
//! aside and takes the head's place only when it is complete.
//!
//! A log whose first position is not 1 has been cut at a round of checkpoints; whole segments were dropped, so remains
//! of what came before may still lead it. They are passed over up to the first round, and each partition's appends up
//! to the end of its checkpoints (which hold them). A partition whose checkpoints are missing is damage. The rest of a
//! checkpoint whose begin was dropped is passed over too: a round that was given up may reach into the next.

use std::collections::{BTreeSet, HashMap};

use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_storage::head::Head;
use engram_storage::log::Position;

use super::entry::{self, Kind};
use super::heads::Heads;

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Entries applied.
    pub entries: u64,
    /// Samples in them.
    pub samples: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Applies log entries to heads.
pub struct Recovery<'a> {
    partitions: &'a [Heads],
    /// Checkpoints that have begun and are not complete.
    open: HashMap<(PartitionId, TenantId), Head>,
    /// Whether all was dropped before a round that has not come yet.
    before_round: bool,
    /// Partitions whose past was cut off and whose checkpoints are not complete yet.
    awaited: BTreeSet<PartitionId>,
    done: Recovered,
}

impl<'a> Recovery<'a> {
    /// `partitions[i]` are the heads of partition `i`.
    #[must_use]
    pub fn new(partitions: &'a [Heads]) -> Self {
        Self {
            partitions,
            open: HashMap::new(),
            before_round: false,
            awaited: BTreeSet::new(),
            done: Recovered::default(),
        }
    }

    /// Applies the entry at `position`.
    ///
    /// # Errors
    /// What is wrong with the entry: the checksum was right, so this is our bug or another version's format.
    pub fn apply(&mut self, position: Position, bytes: &[u8]) -> Result<(), String> {
        let entry = entry::decode(bytes)?;
        let heads = self
            .partitions
            .get(entry.partition.0 as usize)
            .ok_or_else(|| format!("entry of partition {}, there are {}", entry.partition.0, self.partitions.len()))?;
        if self.done.entries == 0 && position != Position(1) {
            self.before_round = true;
            self.awaited.extend((0_u32..).map(PartitionId).take(self.partitions.len()));
        }
        self.done.entries += 1;
        self.done.bytes += bytes.len() as u64;
        let key = (entry.partition, entry.tenant);
        let damaged = |e: engram_storage::codec::Broken| format!("entry of tenant {}: {e}", key.1);
        if entry.kind == Kind::Round {
            self.before_round = false;
        }
        if self.before_round {
            return Ok(());
        }
        match entry.kind {
            Kind::Append => {
                // A checkpoint that broke off before this entry was written never counted.
                self.open.remove(&key);
                if self.awaited.contains(&key.0) {
                    return Ok(());
                }
                let head = heads.get_or_create(&key.1);
                let receipt = head.write().replay(entry.body).map_err(damaged)?;
                self.done.samples += receipt.appended;
            }
            Kind::CheckpointBegin => {
                self.open.insert(key, heads.empty());
            }
            Kind::CheckpointPiece => {
                let Some(head) = self.open.get_mut(&key) else {
                    return self.rest_of_a_dropped_one(key.0);
                };
                head.replay(entry.body).map_err(damaged)?;
            }
            Kind::CheckpointEnd => {
                let Some(head) = self.open.remove(&key) else {
                    return self.rest_of_a_dropped_one(key.0);
                };
                heads.replace(&key.1, head);
            }
            Kind::Round => {}
            Kind::PartitionEnd => {
                heads.note_dropped(entry::read_index(entry.body)?);
                self.awaited.remove(&key.0);
            }
            Kind::HeadEnd => {
                self.open.remove(&key);
                if !self.awaited.contains(&key.0) {
                    heads.remove(&key.1, entry::read_index(entry.body)?);
                }
            }
        }
        Ok(())
    }

    fn rest_of_a_dropped_one(&self, partition: PartitionId) -> Result<(), String> {
        if self.awaited.contains(&partition) {
            Ok(())
        } else {
            Err("a checkpoint goes on that has not begun".to_owned())
        }
    }

    /// What was done in all.
    ///
    /// # Errors
    /// The log was cut at a round and lacks the checkpoints of a partition.
    pub fn finish(self) -> Result<Recovered, String> {
        match self.awaited.first() {
            None => Ok(self.done),
            Some(partition) => Err(format!(
                "the log has been cut at a round of checkpoints and lacks those of partition {}",
                partition.0
            )),
        }
    }
}
