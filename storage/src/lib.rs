//! Bytes that survive: the node log, the head, chunk files and blocks.
//!
//! Why a crate of its own: what is acknowledged must be found again after any crash, and that promise is only
//! readable where nothing else is mixed in. It knows `model` alone: no ring, no peer, no HTTP.
//!
//! Map: [`codec`] bounded reading and writing of bytes · [`blocking`] work that may take its time · [`error`] what can go wrong · [`disk`] the port to the file
//! system and its faulty twin · [`log`] the node's one durable log · [`chunk`] compressed samples · [`head`] the newest
//! samples in memory · [`index`] from matchers to series, in memory and in a block · [`block`] immutable directories of
//! old samples · [`compact`] many of them into few · [`ranges`] reading byte ranges from anywhere, in two steps ·
//! [`object`] where blocks live: a directory or a bucket.
//!
//! Doors of blocks: [`block::BlockWriter`] makes one, [`block::BlockDir`] opens one on a disk, [`block::Open`],
//! [`block::Select`] and [`block::Load`] read one from wherever its bytes are, [`block::verify`] recomputes all of it.

pub mod block;
pub mod blocking;
pub mod chunk;
pub mod codec;
pub mod compact;
pub mod disk;
pub mod error;
pub mod head;
pub mod index;
pub mod log;
pub mod object;
pub mod ranges;

pub use error::Error;
