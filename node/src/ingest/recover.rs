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

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

type Key = (PartitionId, TenantId);

fn damaged(key: &Key, error: engram_storage::codec::Broken) -> String {
    format!("entry of tenant {}: {error}", key.1)
}

/// Applies log entries to heads.
pub struct Recovery<'a> {
    partitions: &'a [Heads],
    /// Checkpoints that have begun and are not complete.
    open: HashMap<Key, Head>,
    /// Whether all was dropped before a round that has not come yet.
    before_round: bool,
    /// Partitions whose past was cut off and whose checkpoints are not complete yet.
    awaited: BTreeSet<PartitionId>,
    /// Checkpoints that go on and name a chunk file that is not there.
    damaged: BTreeMap<Key, String>,
    /// Heads whose last checkpoint names a chunk file that is not there, and what is said of it. A later checkpoint
    /// makes good: segments that were to be removed may be back after a crash, and their files are gone.
    broken: BTreeMap<Key, String>,
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
            damaged: BTreeMap::new(),
            broken: BTreeMap::new(),
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
        if entry.kind == Kind::Round {
            self.before_round = false;
        }
        if self.before_round {
            return Ok(());
        }
        match entry.kind {
            Kind::Append => self.append(heads, key, entry.body)?,
            Kind::CheckpointBegin => {
                self.damaged.remove(&key);
                self.open.insert(key, heads.empty());
            }
            Kind::CheckpointPiece => self.piece(heads, key, entry.body)?,
            Kind::CheckpointEnd => self.end(heads, key)?,
            Kind::Round => {}
            Kind::PartitionEnd => {
                heads.note_dropped(entry::read_index(entry.body)?);
                self.awaited.remove(&key.0);
            }
            Kind::HeadEnd => {
                self.open.remove(&key);
                self.broken.remove(&key);
                if !self.awaited.contains(&key.0) {
                    heads.remove(&key.1, entry::read_index(entry.body)?);
                }
            }
        }
        Ok(())
    }

    /// A change of a head.
    fn append(&mut self, heads: &Heads, key: Key, body: &[u8]) -> Result<(), String> {
        // A checkpoint that broke off before this entry was written never counted.
        self.open.remove(&key);
        if self.awaited.contains(&key.0) || self.broken.contains_key(&key) {
            return Ok(());
        }
        let head = heads.get_or_create(&key.1);
        let receipt = head.write().replay(body).map_err(|e| damaged(&key, e))?;
        self.done.samples += receipt.appended;
        if heads.has_full()
            && let Err(error) = heads.keep_full()
        {
            tracing::warn!(%error, "full chunks stay in memory for now");
        }
        Ok(())
    }

    /// A piece of a checkpoint.
    fn piece(&mut self, heads: &Heads, key: Key, body: &[u8]) -> Result<(), String> {
        let Some(head) = self.open.get_mut(&key) else { return self.rest_of_a_dropped_one(key.0) };
        if self.damaged.contains_key(&key) {
            return Ok(());
        }
        if let Err(error) = head.replay(body) {
            let trouble = heads.files().and_then(|files| files.trouble()).ok_or_else(|| damaged(&key, error))?;
            self.damaged.insert(key, trouble);
        }
        Ok(())
    }

    /// A checkpoint is complete: it takes the head's place.
    fn end(&mut self, heads: &Heads, key: Key) -> Result<(), String> {
        let Some(head) = self.open.remove(&key) else { return self.rest_of_a_dropped_one(key.0) };
        match self.damaged.remove(&key) {
            None => {
                self.broken.remove(&key);
                heads.replace(&key.1, head);
            }
            Some(trouble) => {
                self.broken.insert(key, trouble);
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
        if let Some(((partition, tenant), trouble)) = self.broken.first_key_value() {
            return Err(format!(
                "the checkpoint of tenant {tenant} in partition {} names a chunk file that is not there: {trouble}",
                partition.0
            ));
        }
        match self.awaited.first() {
            None => Ok(self.done),
            Some(partition) => Err(format!(
                "the log has been cut at a round of checkpoints and lacks those of partition {}",
                partition.0
            )),
        }
    }
}
