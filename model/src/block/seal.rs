//! Sealed windows.

use serde::{Deserialize, Serialize};

use super::BlockId;
use crate::digest::Digest;
use crate::place::NodeId;
use crate::time::TimeRange;

/// A window that was ended for one tenant in one partition. A window may be sealed several times: samples that come
/// late wait for the next seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its number: seals of one tenant in one partition are counted from 1, without gaps, in the order replicas apply
    /// them.
    pub number: u64,
    /// The window.
    pub window: TimeRange,
    /// What became of it; none until its block is committed.
    pub cut: Option<Cut>,
    /// Replicas that have forgotten what they had set aside.
    pub forgotten_by: Vec<NodeId>,
}

/// The committed outcome of a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The block; none when no replica held anything.
    pub block: Option<BlockId>,
    /// Digest of what was cut.
    pub digest: Digest,
    /// Index of the metadata from which on blocks hold it: that of its commit, or of its newest late block. A reader
    /// whose view is older must look again, and so must whoever would add another late block.
    pub index: u64,
}

/// The seals of one tenant in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seals {
    /// The number the next seal gets.
    pub next: u64,
    /// Seals that some replica has not forgotten yet, in order of their numbers.
    pub open: Vec<Seal>,
}

impl Default for Seals {
    fn default() -> Self {
        Self { next: 1, open: Vec::new() }
    }
}

impl Seals {
    /// An open seal.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Seal> {
        self.open.binary_search_by_key(&number, |seal| seal.number).ok().map(|at| &self.open[at])
    }
}
