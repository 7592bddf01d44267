//! Remote write: bounded body → the write path → the code that keeps the sender's contract.
//!
//! The order is from cheap to dear: who, which protocol, how large, is there memory; only then is the body read. A 2xx
//! is a promise that a majority holds the samples on disk. Version 2 is told how many were stored, on success and on
//! failure alike, because its sender compares.
//!
//! Source: Prometheus Remote-Write 1.0 and 2.0 specifications, `client_golang exp/api/remote`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request};

use super::answer::{Failure, no_content};
use super::params::{Tenant, content_length};
use super::{App, body};
use crate::error::Error;
use crate::write::Written;
use crate::write::decode::Version;

const MEDIA_TYPE: &str = "application/x-protobuf";
const MESSAGE_V1: &str = "prometheus.WriteRequest";
const MESSAGE_V2: &str = "io.prometheus.write.v2.Request";

/// `POST /api/v1/write` and `/api/v1/push`.
pub(crate) async fn push(
    tenant: Tenant,
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (parts, incoming) = request.into_parts();
    let version = version_of(&parts.headers)?;
    check_encoding(&parts.headers)?;
    let bytes_max = app.push.body_bytes_max();
    let declared = content_length(&parts.headers);
    if declared.is_some_and(|length| length > bytes_max as u64) {
        return Err(Failure::too_large(bytes_max));
    }
    // A sender that does not tell the length takes the share of the largest body.
    let share = declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(bytes_max);
    let reservation = app.push.reserve(share).map_err(|error| Failure::write(&error))?;
    let body = body::read(incoming, bytes_max, app.body_within).await?;
    let result = app.push.write(&tenant.0, version, body).await;
    drop(reservation);
    answer(version, result)
}

fn answer(version: Version, result: Result<Written, Error>) -> Result<Response, Failure> {
    let headers = |written: &Written| if version == Version::V2 { counts(written) } else { HeaderMap::new() };
    match result {
        Err(error) => Err(Failure::write(&error).with_headers(headers(&Written::default()))),
        Ok(written) => match &written.refused {
            None => Ok(no_content(headers(&written))),
            Some(refused) => {
                let error = Error::new(refused.class, refused.message.clone());
                Err(Failure::write(&error).with_headers(headers(&written)))
            }
        },
    }
}

/// How many of each kind were stored.
fn counts(written: &Written) -> HeaderMap {
    HeaderMap::from_iter([
        (
            http::HeaderName::from_static("x-prometheus-remote-write-samples-written"),
            HeaderValue::from(written.samples),
        ),
        (
            http::HeaderName::from_static("x-prometheus-remote-write-histograms-written"),
            HeaderValue::from(written.histograms),
        ),
        (
            http::HeaderName::from_static("x-prometheus-remote-write-exemplars-written"),
            HeaderValue::from(written.exemplars),
        ),
    ])
}

/// Which message the body holds: no content type, and one without `proto=`, mean version 1.
fn version_of(headers: &HeaderMap) -> Result<Version, Failure> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Version::V1) };
    let text = value.to_str().map_err(|_| Failure::unsupported("the content type is not ASCII"))?;
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    if media_type.is_empty() {
        return Ok(Version::V1);
    }
    if !media_type.eq_ignore_ascii_case(MEDIA_TYPE) {
        return Err(Failure::unsupported(format!("content type {text:?} is not supported, send {MEDIA_TYPE}")));
    }
    for parameter in parts.filter(|part| !part.is_empty()) {
        let Some((name, value)) = parameter.split_once('=') else {
            return Err(Failure::unsupported(format!("{parameter:?} in content type {text:?} is not name=value")));
        };
        if name.trim().eq_ignore_ascii_case("proto") {
            return match value.trim().trim_matches('"') {
                MESSAGE_V1 => Ok(Version::V1),
                MESSAGE_V2 => Ok(Version::V2),
                other => Err(Failure::unsupported(format!(
                    "message {other:?} is not supported, send {MESSAGE_V1} or {MESSAGE_V2}"
                ))),
            };
        }
    }
    Ok(Version::V1)
}

/// Snappy's block format, also when nothing is said, as Prometheus' receiver takes it.
fn check_encoding(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"") => Ok(()),
        Some(encoding) if encoding.eq_ignore_ascii_case(b"snappy") => Ok(()),
        Some(encoding) => {
            let shown = String::from_utf8_lossy(encoding);
            Err(Failure::unsupported(format!("content encoding {shown:?} is not supported, send snappy")))
        }
    }
}
