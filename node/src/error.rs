//! The node's error, and the one table from class to code.
//!
//! Why one table: a status code is a promise to the sender (Prometheus drops data on 4xx and retries on 5xx). No other
//! file names a status code for a failure.

use engram_model::error::{Class, Classed};
use http::StatusCode;

use crate::actor::AskError;

/// A failure, with who must act and what to tell them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Who must act.
    pub class: Class,
    /// For the caller: what happened, which limit, what to change.
    pub message: String,
    /// Which part of a query failed, for the API's `errorType`.
    pub stage: Stage,
}

/// Which part of a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stage {
    /// Its parameters or its text.
    #[default]
    Request,
    /// The evaluation of a well-formed query.
    Execution,
    /// The view of the metadata it was made with: a head has forgotten samples whose blocks that view does not know.
    View,
    /// It was made for a replica set that has changed since: look at the ring again and repeat it.
    Stale,
}

impl Error {
    /// A failure of some class.
    #[must_use]
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), stage: Stage::Request }
    }

    /// The caller must change the request.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Class::Invalid, message)
    }

    /// The caller should try again later.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, message)
    }

    /// The reader's view of the metadata is older than `index`, at which a head forgot what it asks for: it must look
    /// again, and start over.
    #[must_use]
    pub fn stale_view(as_of: u64, index: u64) -> Self {
        let text = format!("samples went from a head to a block at index {index}, the view is of index {as_of}: retry");
        Self { stage: Stage::View, ..Self::unavailable(text) }
    }

    /// The reader's view of the metadata is older than `index`, since which the tenant uses partitions it does not ask:
    /// it must look again, and start over.
    #[must_use]
    pub fn stale_shard(as_of: u64, index: u64) -> Self {
        let text = format!("the tenant uses more partitions since index {index}, the view is of index {as_of}: retry");
        Self { stage: Stage::View, ..Self::unavailable(text) }
    }

    /// Whether a newer view of the metadata may do better.
    #[must_use]
    pub fn is_stale_view(&self) -> bool {
        self.stage == Stage::View
    }
}

impl Classed for Error {
    fn class(&self) -> Class {
        self.class
    }
}

impl From<AskError> for Error {
    fn from(error: AskError) -> Self {
        let class = match error {
            AskError::Full(_) | AskError::Stopped(_) => Class::Unavailable,
            AskError::Deadline(_) => Class::Timeout,
        };
        Self::new(class, error.to_string())
    }
}

impl From<engram_query::error::Error> for Error {
    fn from(error: engram_query::error::Error) -> Self {
        use engram_query::error::Error as Query;
        let stage = match &error {
            Query::Parse(_) | Query::BadRequest(_) => Stage::Request,
            Query::Execution(_)
            | Query::OverBudget(_)
            | Query::Busy { .. }
            | Query::Timeout { .. }
            | Query::Cancelled { .. }
            | Query::Source(_) => Stage::Execution,
        };
        Self { class: error.class(), message: error.to_string(), stage }
    }
}

impl From<engram_raft::Error> for Error {
    fn from(error: engram_raft::Error) -> Self {
        Self::new(error.class(), format!("metadata: {error}"))
    }
}

/// Which way the data flows: the same class may mean another code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client sends samples.
    Write,
    /// A client asks.
    Query,
}

/// The code of a failure. The table of STYLE §4.
#[must_use]
pub fn status(error: &Error, side: Side) -> StatusCode {
    match (error.class, side) {
        (Class::Invalid, Side::Query) if error.stage == Stage::Execution => StatusCode::UNPROCESSABLE_ENTITY,
        (Class::Invalid, _) => StatusCode::BAD_REQUEST,
        (Class::NoTenant, _) => StatusCode::UNAUTHORIZED,
        (Class::NotFound, _) => StatusCode::NOT_FOUND,
        (Class::Conflict, _) => StatusCode::CONFLICT,
        (Class::Limited, _) => StatusCode::TOO_MANY_REQUESTS,
        (Class::Unavailable | Class::Timeout, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Class::Cancelled, _) => StatusCode::from_u16(499).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        (Class::Internal, _) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Prometheus' word for a failure.
#[must_use]
pub fn error_type(error: &Error) -> &'static str {
    match error.class {
        Class::Invalid if error.stage == Stage::Execution => "execution",
        Class::Invalid | Class::NoTenant => "bad_data",
        Class::NotFound => "not_found",
        Class::Conflict => "conflict",
        Class::Limited => "too_many_requests",
        Class::Unavailable => "unavailable",
        Class::Timeout => "timeout",
        Class::Cancelled => "canceled",
        Class::Internal => "internal",
    }
}

/// Seconds a sender should wait before it tries again; `None` when trying again cannot help.
#[must_use]
pub fn retry_after_seconds(error: &Error) -> Option<u32> {
    match error.class {
        Class::Limited | Class::Unavailable | Class::Timeout => Some(1),
        _ => None,
    }
}
/// Whether another node says that it does not know the call: it is older.
#[must_use]
pub fn is_unknown_call(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::Unimplemented
}
