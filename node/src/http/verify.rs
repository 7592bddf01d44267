//! `POST admin/verify`: the object store held against the metadata, see [`crate::blocks::survey`].
//!
//! Answered as it goes, one JSON object a line: it may take hours, and what was found should not wait for the end. The
//! last line is the end; an answer without it broke off.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engram_model::tenant::TenantId;
use futures::StreamExt;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::App;
use super::answer::Failure;
use super::params::Params;
use crate::blocks::check::Depth;

const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// `POST admin/verify?deep=true&tenant=<name>`.
pub(crate) async fn verify(State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let depth = match params.get("deep") {
        "" | "0" | "false" => Depth::Objects,
        "1" | "true" => Depth::Deep,
        _ => return Err(Failure::parameter("deep", "it is neither true nor false")),
    };
    let tenant = match params.get("tenant") {
        "" => None,
        name => Some(TenantId::new(name).map_err(|why| Failure::parameter("tenant", why))?),
    };
    let lines = app.survey.survey(tenant, depth).map(|event| {
        event.map(|event| Bytes::from(format!("{event}\n"))).inspect_err(|error| {
            tracing::warn!(%error, "a survey of the blocks is broken off");
        })
    });
    Ok(([(CONTENT_TYPE, LINES)], Body::from_stream(lines)).into_response())
}
