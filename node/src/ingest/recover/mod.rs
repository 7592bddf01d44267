//! From the log to the heads: what a node does with its log before it answers.
//!
//! Entries of a partition are applied in the order they were written; each is decided exactly as it was the first time, so
//! the heads are those of the moment before the crash, plus what was durable and not yet answered. Partitions know nothing
//! of each other, so they are recovered side by side, and each is served when it is done.
//!
//! ```text
//! log → Gate: whose is it? → Parallel: gathered by partition, up to a bound → one thread a core: OnePartition each
//! ```
//!
//! A log whose first position is not 1 has been cut at a round of checkpoints; whole segments were dropped, so remains
//! of what came before may still lead it. They are passed over up to the first round, and each partition's appends up
//! to the end of its checkpoints (which hold them). A partition whose checkpoints are missing is damage.
//!
//! Map: here the gate, and recovery entry by entry · [`one`] one partition · [`parallel`] all of them at once.

mod one;
pub mod parallel;

use engram_model::place::PartitionId;
use engram_storage::log::Position;

use super::entry::{self, Kind};
use super::heads::Heads;
use one::{OnePartition, Pace};
pub use parallel::{Parallel, Rest};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Entries read.
    pub entries: u64,
    /// Samples in them.
    pub samples: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Looks at each entry before its partition does.
#[derive(Debug, Default)]
struct Gate {
    partitions: usize,
    /// Whether all was dropped before a round that has not come yet.
    before_round: bool,
    /// The last round.
    round: Option<Position>,
    entries: u64,
    bytes: u64,
}

impl Gate {
    fn new(partitions: usize) -> Self {
        Self { partitions, ..Self::default() }
    }

    /// Whether the entry at `position`, the first of a log, shows that others stood before it.
    fn is_cut(&self, position: Position) -> bool {
        self.entries == 0 && position != Position(1)
    }

    /// The index of the partition the entry is for; none when there is nothing to do.
    fn pass(&mut self, position: Position, bytes: &[u8]) -> Result<Option<usize>, String> {
        self.before_round |= self.is_cut(position);
        self.entries += 1;
        self.bytes += bytes.len() as u64;
        let (kind, PartitionId(partition)) = entry::peek(bytes)?;
        let at = partition as usize;
        if at >= self.partitions {
            return Err(format!("entry of partition {partition}, there are {}", self.partitions));
        }
        if kind == Kind::Round {
            (self.before_round, self.round) = (false, Some(position));
            return Ok(None);
        }
        if kind == Kind::PartitionEnd && !self.is_of_this_round(bytes)? {
            return Ok(None);
        }
        Ok((!self.before_round).then_some(at))
    }

    /// Whether a partition's end belongs to the round that is open: that of one that was given up may come later, and
    /// checkpoints before it may be gone.
    fn is_of_this_round(&self, bytes: &[u8]) -> Result<bool, String> {
        let (_, round) = entry::read_end(entry::decode(bytes)?.body)?;
        Ok(round.is_none_or(|round| self.round == Some(Position(round))))
    }
}

/// Applies log entries to heads, one after the other: for tools and tests, and to hold the parallel way against.
pub struct Recovery<'a> {
    heads: &'a [Heads],
    partitions: Vec<OnePartition>,
    gate: Gate,
}

impl<'a> Recovery<'a> {
    /// `heads[i]` are those of partition `i`.
    #[must_use]
    pub fn new(heads: &'a [Heads]) -> Self {
        let partitions = (0..).zip(heads).map(|(i, _)| OnePartition::new(PartitionId(i))).collect();
        Self { heads, partitions, gate: Gate::new(heads.len()) }
    }

    /// Applies the entry at `position`.
    ///
    /// # Errors
    /// What is wrong with the entry: the checksum was right, so this is our bug or another version's format.
    pub fn apply(&mut self, position: Position, bytes: &[u8]) -> Result<(), String> {
        if self.gate.is_cut(position) {
            self.partitions.iter_mut().for_each(OnePartition::await_checkpoints);
        }
        match self.gate.pass(position, bytes)? {
            Some(at) => self.partitions[at].apply(&self.heads[at], bytes, Pace::AtOnce),
            None => Ok(()),
        }
    }

    /// What was done in all.
    ///
    /// # Errors
    /// The log was cut at a round and lacks the checkpoints of a partition, or a file a checkpoint names is not there.
    pub fn finish(self) -> Result<Recovered, String> {
        self.partitions.iter().try_for_each(OnePartition::finish)?;
        let samples = self.partitions.iter().map(OnePartition::samples).sum();
        Ok(Recovered { entries: self.gate.entries, samples, bytes: self.gate.bytes })
    }
}
