//! Blocks as the metadata speaks of them: their names, what each holds, which windows were sealed, what was deleted.
//!
//! Why here: the metadata group agrees on blocks it never opens, storage writes and opens blocks whose place in the
//! whole it does not know, and the node carries the one to the other. All three must mean the same.
//!
//! Life of a window's samples: the metadata *seals* the window of one tenant in one partition and gives the seal a
//! number ([`Seal`]) → every replica sets aside what it holds of the window under that number; what comes later waits
//! for a later seal → the holder of the cut lease builds one block of it and commits it as the seal's cut
//! ([`Cut`]) → a replica forgets what it set aside when the committed digest is its own → compaction replaces blocks
//! by larger ones ([`BlockMeta::sources`]).
//!
//! Map: [`id`] names · [`meta`] what is agreed of a block · [`row`] its life in the metadata · [`seal`] sealed windows ·
//! [`deletion`] deleted series.

pub mod deletion;
pub mod id;
pub mod meta;
pub mod row;
pub mod seal;

pub use deletion::Deletion;
pub use id::{BlockId, NotBlockId};
pub use meta::{BlockFile, BlockMeta, LEVEL_MAX, Origin, SHARDS_MAX, Shard};
pub use row::{BlockRow, Mark};
pub use seal::{Cut, Seal, Seals};
