//! What can go wrong with a query, and who must act.

use engram_model::error::{Class, Classed};

use crate::port::SourceError;

/// A query that could not be answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text does not parse or does not type-check: `1:5: parse error: …`, one line per error as Prometheus prints.
    #[error("{0}")]
    Parse(String),
    /// The request's parameters make no sense together.
    #[error("{0}")]
    BadRequest(String),
    /// Evaluation failed on this data: many-to-many matching, duplicate labels, a bad label name …
    #[error("{0}")]
    Execution(String),
    /// More than the budget allows; names the limit.
    #[error("{0}")]
    OverBudget(String),
    /// All queries of the node together hold as many samples as they may.
    #[error(
        "the queries of this node together hold too many samples in memory: the limit is {max} (query.node-samples-max): \
         retry when others have ended"
    )]
    Busy {
        /// The limit.
        max: u64,
    },
    /// Time ran out.
    #[error("query timed out in {stage}")]
    Timeout {
        /// What was running: `expression evaluation`, `query execution`.
        stage: &'static str,
    },
    /// The client left.
    #[error("query was canceled in {stage}")]
    Cancelled {
        /// What was running.
        stage: &'static str,
    },
    /// The data could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl Classed for Error {
    fn class(&self) -> Class {
        match self {
            Self::Parse(_) | Self::BadRequest(_) | Self::Execution(_) | Self::OverBudget(_) => Class::Invalid,
            Self::Busy { .. } => Class::Unavailable,
            Self::Timeout { .. } => Class::Timeout,
            Self::Cancelled { .. } => Class::Cancelled,
            Self::Source(source) => source.class(),
        }
    }
}
