//! A block in the metadata's table.

use serde::{Deserialize, Serialize};

use super::BlockMeta;
use crate::time::Millis;

/// Since when, by whom and why a block is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Index of the metadata that marked it: views at or above it do not read the block.
    pub index: u64,
    /// When.
    pub at: Millis,
    /// Who.
    pub by: String,
    /// The reason, for people.
    pub why: String,
}

/// What the metadata holds of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRow {
    /// The block.
    pub meta: BlockMeta,
    /// Index of the metadata that committed it.
    pub index: u64,
    /// Set once it is to be deleted: it is not read any more, its objects stay for a grace.
    pub marked: Option<Mark>,
    /// Set while it is known to be damaged: what was found.
    pub quarantined: Option<String>,
}
