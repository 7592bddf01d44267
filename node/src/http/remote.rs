//! Remote read: `POST read` with a snappy-compressed `ReadRequest`.
//!
//! The order is from cheap to dear: who, which encoding, how large, what is asked; only then is data looked for. The
//! first piece of a streamed answer is made before its head is sent, so that most failures still get their status; one
//! that comes later breaks the connection off, and the client sees an answer without an end.
//!
//! Source: Prometheus Remote Read API, `prometheus storage/remote/read_handler.go`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use engram_model::error::Classed;
use futures::stream;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request};

use super::answer::Failure;
use super::params::Tenant;
use super::{App, body};
use crate::error::Error;
use crate::read::remote::request::{BadRequest, PLAIN_BYTES_MAX, decode};
use crate::read::remote::{Answer, Pieces};

/// Largest body as sent: matchers seldom compress badly.
const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX / 4;
/// What a streamed answer is called.
pub(super) const STREAMED: &str = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
const SAMPLED: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// `POST read`.
pub(crate) async fn read(
    tenant: Tenant,
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (parts, incoming) = request.into_parts();
    check_headers(&parts.headers)?;
    let bytes = body::read(incoming, BODY_BYTES_MAX, app.body_within).await?;
    let request = decode(&bytes).map_err(|bad| match bad {
        BadRequest::TooLarge { .. } => Failure::too_large(PLAIN_BYTES_MAX),
        bad => Failure::bad_data(bad.to_string()),
    })?;
    let failed = |error: Error| Failure::query(&error);
    match app.read.remote_read(&tenant.0, request).await.map_err(failed)? {
        Answer::Samples(bytes) => {
            let snappy = HeaderValue::from_static("snappy");
            Ok(([(CONTENT_TYPE, SAMPLED), (CONTENT_ENCODING, snappy)], bytes).into_response())
        }
        Answer::Chunks(pieces) => {
            let kind = [(CONTENT_TYPE, HeaderValue::from_static(STREAMED))];
            let Some((first, rest)) = pieces.next_piece().await.map_err(failed)? else {
                return Ok((kind, Body::empty()).into_response());
            };
            Ok((kind, streamed(first, rest)).into_response())
        }
    }
}

fn streamed(first: bytes::Bytes, rest: Pieces) -> Body {
    let rest = stream::try_unfold(rest, |rest| async {
        let next = rest.next_piece().await;
        if let Err(error) = &next {
            tracing::warn!(%error, class = ?error.class(), "a streamed remote read is broken off");
        }
        next
    });
    use futures::StreamExt;
    Body::from_stream(stream::iter([Ok::<_, Error>(first)]).chain(rest))
}

/// Snappy and protobuf, also when nothing is said.
fn check_headers(headers: &HeaderMap) -> Result<(), Failure> {
    let said = |name| headers.get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()));
    match said(CONTENT_ENCODING) {
        Some(encoding) if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("snappy") => {
            Err(Failure::unsupported(format!("content encoding {encoding:?} is not supported, send snappy")))
        }
        _ => match said(CONTENT_TYPE) {
            Some(kind) if !kind.is_empty() && !kind.to_ascii_lowercase().starts_with("application/x-protobuf") => Err(
                Failure::unsupported(format!("content type {kind:?} is not supported, send application/x-protobuf")),
            ),
            _ => Ok(()),
        },
    }
}
