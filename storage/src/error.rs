//! What can go wrong with bytes that must survive.
//!
//! Errors are cloned: one failed sync answers every append that waited for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_model::{Class, Classed};

use crate::codec::Broken;

/// A failure of storage.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk refused.
    #[error("{act} {path}: {source}", path = path.display())]
    Io {
        /// What was tried: `open`, `write`, `sync` ….
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Bytes are not what we wrote.
    #[error("{path} is corrupt at byte {at}: {what}", path = path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Offset of the damaged thing in it.
        at: u64,
        /// What was expected and what was found.
        what: String,
    },
    /// A bounded queue or table is full: later may work.
    #[error("{what} is full, its limit is {max}")]
    Full {
        /// Which.
        what: &'static str,
        /// Its limit.
        max: u64,
    },
    /// One thing is larger than we would ever read back.
    #[error("{what} of {len} exceeds its limit of {max}")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its size.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A write or sync failed before; what the disk holds is unknown until the process starts anew.
    #[error("{path} is failed: {why}", path = path.display())]
    Failed {
        /// What is failed: a file or a directory.
        path: PathBuf,
        /// The first failure, in words.
        why: Arc<str>,
    },
    /// Somebody of ours handed over what the format forbids: our bug, and nothing was written of it.
    #[error("{what}")]
    Misuse {
        /// What was handed over.
        what: String,
    },
    /// The object store did not do what was asked.
    #[error("object store: {act} {key}: {why}")]
    Remote {
        /// What was asked: `get`, `put` ….
        act: &'static str,
        /// Of which object.
        key: String,
        /// What kind of failure it is.
        kind: RemoteKind,
        /// What the store said.
        why: Arc<str>,
    },
    /// Asked after the close.
    #[error("{what} is closed")]
    Closed {
        /// What.
        what: &'static str,
    },
}

/// Why an object store did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteKind {
    /// There is no such object.
    NotFound,
    /// Who we are, or may do, is not accepted.
    Denied,
    /// No answer in time.
    Timeout,
    /// All else; later may work.
    Other,
}

impl Error {
    /// Whether what was asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Remote { kind, .. } => *kind == RemoteKind::NotFound,
            _ => false,
        }
    }

    /// An I/O failure of `act` on `path`.
    #[must_use]
    pub fn io(act: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { act, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether there is no room: the same act may work later, when a person or the retention has made some.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// Damage at byte `at` of `path`.
    #[must_use]
    pub fn corrupt(path: &Path, at: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), at, what: what.into() }
    }

    /// Damage found by a [`crate::codec::Reader`] that began at byte `base` of `path`.
    #[must_use]
    pub fn broken(path: &Path, base: u64, broken: Broken) -> Self {
        Self::corrupt(path, base.saturating_add(broken.at as u64), broken.what)
    }
}

impl Classed for Error {
    fn class(&self) -> Class {
        match self {
            // What metadata names and nobody has is lost: that is no passing trouble.
            Self::Remote { kind: RemoteKind::NotFound, .. } => Class::Internal,
            Self::Remote { .. } => Class::Unavailable,
            Self::Io { .. } | Self::Corrupt { .. } | Self::Misuse { .. } => Class::Internal,
            Self::Full { .. } | Self::Failed { .. } | Self::Closed { .. } => Class::Unavailable,
            Self::TooLarge { .. } => Class::Invalid,
        }
    }
}
