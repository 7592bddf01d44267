//! What may stop a run before it has a verdict. A broken promise of the server is no error but a finding.

use std::path::PathBuf;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing was done: what was asked for is not there.
    #[error("{0}")]
    Asked(String),
    /// The arguments contradict each other.
    #[error("{0}")]
    Usage(String),
    /// The server did not answer, or not as its API promises.
    #[error("{url}: {reason}")]
    Server { url: String, reason: String },
    /// The process under test did not start or stop.
    #[error("{path}: {reason}")]
    Process { path: PathBuf, reason: String },
    /// The local disk or terminal failed.
    #[error("input or output failed: {0}")]
    Io(#[from] std::io::Error),
    /// A task of the run panicked.
    #[error("a task of the run ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}
