//! What leaves the API: the envelope around an answer, and a failure in the same shape.
//!
//! Why one place: a client tells success from failure, and what to do about it, by status, `errorType` and
//! `Retry-After`. The codes of failures follow from their class by the table in `crate::error`; the few codes that
//! only HTTP has (no such path, wrong method, body too large …) stand here, because no other room can meet them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engram_model::error::Class;
use futures::stream;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::json::{self, Items, Pieces};
use crate::error::{Error, Side, error_type, retry_after_seconds, status};

/// Most warnings, and most infos, in one answer, as in Prometheus.
const ANNOTATIONS_MAX: usize = 10;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A failure as it is answered.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    error_type: &'static str,
    message: String,
    retry_after: Option<u32>,
    headers: Option<Box<HeaderMap>>,
}

impl Failure {
    /// A failure of a question.
    #[must_use]
    pub fn query(error: &Error) -> Self {
        Self::of(error, Side::Query)
    }

    /// A failure of a write.
    #[must_use]
    pub fn write(error: &Error) -> Self {
        Self::of(error, Side::Write)
    }

    fn of(error: &Error, side: Side) -> Self {
        Self {
            status: status(error, side),
            error_type: error_type(error),
            message: error.message.clone(),
            retry_after: retry_after_seconds(error),
            headers: None,
        }
    }

    fn own(status: StatusCode, error_type: &'static str, message: impl Into<String>) -> Self {
        Self { status, error_type, message: message.into(), retry_after: None, headers: None }
    }

    /// The request says something that makes no sense.
    #[must_use]
    pub fn bad_data(message: impl Into<String>) -> Self {
        Self::query(&Error::invalid(message))
    }

    /// A parameter makes no sense.
    #[must_use]
    pub fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
        Self::bad_data(format!("invalid parameter {name:?}: {why}"))
    }

    /// Nobody knows who is asking.
    #[must_use]
    pub fn no_tenant(message: impl Into<String>) -> Self {
        Self::query(&Error::new(Class::NoTenant, message))
    }

    /// There is nothing at this path.
    #[must_use]
    pub fn no_such_path(path: &str) -> Self {
        let shown: String = path.chars().take(200).collect();
        Self::own(StatusCode::NOT_FOUND, "not_found", format!("no such endpoint: {shown}"))
    }

    /// The path is there, but not for this method.
    #[must_use]
    pub fn wrong_method(method: &http::Method) -> Self {
        Self::own(StatusCode::METHOD_NOT_ALLOWED, "bad_data", format!("method {method} is not allowed here"))
    }

    /// The body is larger than allowed.
    #[must_use]
    pub fn too_large(max: usize) -> Self {
        Self::own(StatusCode::PAYLOAD_TOO_LARGE, "bad_data", format!("the body is larger than {max} bytes"))
    }

    /// The body is of a kind this endpoint does not read.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::own(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_data", message)
    }

    /// The body did not come in time.
    #[must_use]
    pub fn slow_body(seconds: u64) -> Self {
        let message = format!("the body did not arrive within {seconds} seconds");
        Self::own(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    }

    /// A bug of ours; what happened is in the log, not in the answer.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::query(&Error::new(Class::Internal, message))
    }

    /// The same failure with further headers.
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = Some(Box::new(headers));
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut out = b"{\"status\":\"error\",\"errorType\":".to_vec();
        json::put_string(&mut out, self.error_type);
        out.extend_from_slice(b",\"error\":");
        json::put_string(&mut out, &self.message);
        out.push(b'}');
        let mut response = (self.status, [(CONTENT_TYPE, JSON)], out).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(headers) = self.headers {
            response.headers_mut().extend(*headers);
        }
        response
    }
}

/// What is said beside an answer.
#[derive(Clone, Debug, Default)]
pub struct Remarks {
    /// What may be wrong with the data.
    pub warnings: BTreeSet<String>,
    /// What may be wrong with the query.
    pub infos: BTreeSet<String>,
}

impl Remarks {
    /// Warnings only.
    #[must_use]
    pub fn warnings(warnings: Vec<String>) -> Self {
        Self { warnings: warnings.into_iter().collect(), infos: BTreeSet::new() }
    }

    /// `,"warnings":[…],"infos":[…]}`: the end of the envelope.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, kind, all) in [("warnings", "warning", &self.warnings), ("infos", "info", &self.infos)] {
            if all.is_empty() {
                continue;
            }
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            let left_out = all.len().saturating_sub(ANNOTATIONS_MAX);
            let more = (left_out > 0).then(|| Cow::from(format!("{left_out} more {kind} annotations omitted")));
            json::put_strings(&mut out, all.iter().take(ANNOTATIONS_MAX).map(Cow::from).chain(more));
        }
        out.push(b'}');
        out
    }
}

/// A success whose data is there already, as JSON; empty data: no `data` at all.
#[must_use]
pub fn success(data: &[u8], remarks: &Remarks) -> Response {
    let mut out = b"{\"status\":\"success\"".to_vec();
    if !data.is_empty() {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(data);
    }
    out.extend_from_slice(&remarks.tail());
    ([(CONTENT_TYPE, JSON)], out).into_response()
}

/// A success whose data is `head`, all `items`, `tail`, written as the connection takes it.
#[must_use]
pub(crate) fn stream_success<I: Items + 'static>(head: &str, items: I, tail: &[u8], remarks: &Remarks) -> Response {
    let head = format!("{{\"status\":\"success\",\"data\":{head}");
    let end = [tail, &remarks.tail()].concat();
    let mut pieces = Pieces::new(&head, items, end).peekable();
    let first = pieces.next().unwrap_or_default();
    let body = match pieces.peek() {
        None => Body::from(first),
        Some(_) => Body::from_stream(stream::iter(std::iter::once(first).chain(pieces).map(Ok::<Bytes, axum::Error>))),
    };
    ([(CONTENT_TYPE, JSON)], body).into_response()
}

/// Plain text for people and probes.
#[must_use]
pub fn text(body: impl Into<String>) -> Response {
    ([(CONTENT_TYPE, TEXT)], body.into()).into_response()
}

/// Plain text that says "not yet": probes take the node out of rotation.
#[must_use]
pub fn not_ready(body: String) -> Response {
    let code = status(&Error::unavailable(""), Side::Query);
    (code, [(CONTENT_TYPE, TEXT)], body).into_response()
}

/// Done, nothing to say.
#[must_use]
pub fn no_content(headers: HeaderMap) -> Response {
    (StatusCode::NO_CONTENT, headers).into_response()
}
