//! What is agreed of one block.

use serde::{Deserialize, Serialize};

use super::BlockId;
use crate::digest::Digest;
use crate::place::PartitionId;
use crate::tenant::TenantId;
use crate::time::{Millis, TimeRange};

/// One object of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockFile {
    /// Its path below the block's directory, with `/` between names: `index`, `chunks/000001`, `meta.json`.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// CRC-32C (Castagnoli) of all its bytes.
    pub crc32c: u32,
}

/// Highest level: what is compacted more often stays there.
pub const LEVEL_MAX: u32 = 64;
/// Most parts the series of a tenant are divided into.
pub const SHARDS_MAX: u32 = 4_096;

/// A part of a tenant's series: those whose stable hash modulo `count` is `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, below `count`.
    pub index: u32,
    /// How many parts there are; above 0.
    pub count: u32,
}

/// Where a block's samples come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The heads: what one seal set aside.
    Cut {
        /// Of which partition.
        partition: PartitionId,
        /// The seal's number.
        seal: u64,
    },
    /// Other blocks, see [`BlockMeta::sources`].
    Compacted,
    /// Another system's block.
    Imported,
}

/// What is agreed of one block: enough to plan, to choose the blocks of a query and to check every byte, without
/// opening it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockMeta {
    /// Its name.
    pub id: BlockId,
    /// Whose samples.
    pub tenant: TenantId,
    /// Every sample lies inside.
    pub range: TimeRange,
    /// 1 for a block cut from heads or imported, one more than its highest source after a compaction, at most
    /// [`LEVEL_MAX`].
    pub level: u32,
    /// Where it comes from.
    pub origin: Origin,
    /// The part of the tenant's series it holds; none: no part was chosen by hash.
    pub shard: Option<Shard>,
    /// The blocks it replaced, sorted; empty unless compacted.
    pub sources: Vec<BlockId>,
    /// Series in it.
    pub series: u64,
    /// Chunks in it.
    pub chunks: u64,
    /// Digest of all its samples; its count is the number of samples.
    pub digest: Digest,
    /// Its objects, sorted by name.
    pub files: Vec<BlockFile>,
    /// Index of the metadata when its making began. Deletions up to it are carried out in the block; those after it
    /// still have to be hidden by whoever reads.
    pub as_of: u64,
    /// When it was made.
    pub made_at: Millis,
}

impl BlockMeta {
    /// Bytes of all its objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}
