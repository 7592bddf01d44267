//! What the group's nodes say to each other: votes, entries, snapshots, and what followers ask the leader.
//!
//! Why one door for two roads: [`Network::Grpc`] is the real one, [`Network::Memory`] its twin for tests and
//! simulation; both carry the same encoded bytes to the same [`Service`], so what passes over the one passes over the
//! other. Every call has a deadline that its caller hands down. A connection is kept alive by HTTP/2 pings, because a
//! half-open one would otherwise wedge replication for good.

mod grpc;
mod link;
mod memory;
mod service;

pub use grpc::{Dial, GrpcServer};
pub use memory::{Carrier, Hub};
pub use service::Service;

pub(crate) use link::Links;

use serde::{Deserialize, Serialize};

use crate::command::Outcome;
use crate::error::Hint;

/// Bytes of a snapshot sent at once.
const PIECE_BYTES: usize = 256 << 10;
/// Largest message between nodes: 64 entries of the largest command, and some.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// How nodes reach each other.
#[derive(Clone, Debug, Default)]
pub enum Network {
    /// gRPC to the addresses in the agreed state.
    #[default]
    Grpc,
    /// Calls within one process.
    Memory(Hub),
}

/// The calls with one request and one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Append,
    Vote,
    PreVote,
    TransferLeader,
    Propose,
    ReadIndex,
}

/// The leader's answer to a forwarded proposal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Proposed {
    /// Committed and applied at this index.
    Done { index: u64, outcome: Outcome },
    /// Not appended.
    NotLeader(Option<Hint>),
    /// Perhaps appended.
    Unknown(String),
}

/// The leader's answer to a follower that wants to read what is true now.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReadAt {
    /// Everything up to this index must be applied first.
    Index(u64),
    /// Ask another.
    NotLeader(Option<Hint>),
    /// No majority confirmed the leader.
    NoQuorum(String),
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It never reached the other node: nothing happened there.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It may have reached the other node.
    #[error("no answer: {0}")]
    Lost(String),
}
