//! Who must act when something fails.
//!
//! Why: the answer's status code is a promise to the sender (Prometheus drops data on 4xx and retries on 5xx),
//! so it must follow from the kind of failure, in one table, and not from the place where it was noticed.
//! Each crate's error says its [`Class`]; `node/src/error.rs` alone turns classes into codes.

/// Who must act on a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The caller must change the request; repeating it cannot help.
    Invalid,
    /// The request does not say, or may not say, whose data it is about.
    NoTenant,
    /// The thing asked for does not exist.
    NotFound,
    /// Somebody else changed the thing since the caller read it: read it again, then decide.
    Conflict,
    /// The tenant is over one of its limits; later may work.
    Limited,
    /// No quorum, an old epoch, a full queue, still starting: retry.
    Unavailable,
    /// Time ran out; whether it took effect is unknown.
    Timeout,
    /// The caller left.
    Cancelled,
    /// Our bug, corruption, a dead disk.
    Internal,
}

/// An error that knows who must act.
pub trait Classed {
    /// The class, see [`Class`].
    fn class(&self) -> Class;
}
