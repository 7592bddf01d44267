//! The metadata group: the little that must be agreed.
//!
//! Why: who holds which partition, what a tenant may do, which node is which: each must have one answer and one order
//! of changes, on every node, through crashes. One Raft group of the whole cluster keeps them, on RocksDB; a single
//! node is a group of one and runs the same code. Samples never come here: a log that everybody must agree on is no
//! road for data. This room knows only `model`.
//!
//! Map: [`command`] what may change · [`state`] what is agreed and the pure function that applies a command ·
//! `store` log, state and snapshots on disk · [`rpc`] between the group's nodes · [`group`] the one handle the node
//! holds, [`consensus`] the same as a port · [`sequence`] the log for simulations ·
//! [`here`] and [`runtime`] what makes a group repeatable · `codec` bytes · [`map`] how views are shared · [`placement`] who should hold what. Bytes on disk: `docs/formats/raft.md`.

mod codec;
pub mod command;
pub mod consensus;
mod error;
pub mod group;
pub mod here;
pub mod map;
pub mod placement;
pub mod rpc;
pub mod runtime;
pub mod sequence;
pub mod state;
mod store;

pub use command::{Command, Fence, Holder, Outcome, Proposal};
pub use consensus::Consensus;
pub use error::{Error, Hint, Refusal};
pub use group::{Group, GroupOptions};
pub use sequence::Sequence;
pub use state::View;
pub use store::{Betrayal, MemoryDisk, backup, recover};
