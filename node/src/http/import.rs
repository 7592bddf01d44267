//! `admin/import/<block>`: blocks of other systems come in, see [`crate::blocks::import`].
//!
//! A block comes as a tar archive in the body, however long it is; only a body that stops coming is given up. The tenant
//! is that of the header, as where its samples are written.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use engram_model::block::BlockId;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::Request;
use serde_json::json;

use super::App;
use super::answer::{Failure, Remarks, success};
use super::params::Tenant;
use crate::blocks::import::Known;
use crate::error::Error;

/// `GET admin/import/<block>`: what is known of a block by its name.
pub(crate) async fn known(
    tenant: Tenant,
    name: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
) -> Result<Response, Failure> {
    let id = block_of(name)?;
    let data = match app.imports.known(&tenant.0, id) {
        Known::No => json!({"block": id, "known": "no"}),
        Known::Here(digest) => json!({"block": id, "known": "here", "samples": digest.count}),
        Known::Damaged(digest) => json!({"block": id, "known": "damaged", "samples": digest.count}),
        Known::Within(other) => json!({"block": id, "known": "within", "within": other}),
    };
    Ok(success(data.to_string().as_bytes(), &Remarks::default()))
}

/// `POST admin/import/<block>`: takes it in; answered when it can be read by queries.
pub(crate) async fn take(
    tenant: Tenant,
    name: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let id = block_of(name)?;
    let archive = coming(request.into_body(), app.body_within);
    let imported = app.imports.take(&tenant.0, id, archive).await.map_err(|error| Failure::query(&error))?;
    let data = json!({
        "block": id,
        "series": imported.series,
        "samples": imported.digest.count,
        "bytes": imported.bytes,
        "repaired": imported.repaired,
    });
    Ok(success(data.to_string().as_bytes(), &Remarks::default()))
}

fn block_of(name: Result<Path<String>, PathRejection>) -> Result<BlockId, Failure> {
    let Path(name) = name.map_err(|why| Failure::bad_data(why.to_string()))?;
    name.parse().map_err(|why| Failure::parameter("block", why))
}

/// The bytes of a body; a failure when the next ones do not come in time.
fn coming(body: Body, within: Duration) -> BoxStream<'static, Result<Bytes, Error>> {
    let broken = |why: String| Error::invalid(format!("the body broke off: {why}"));
    let stream = futures::stream::unfold(Some(body.into_data_stream()), move |body| async move {
        let mut body = body?;
        match tokio::time::timeout(within, body.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some(body))),
            Ok(Some(Err(error))) => Some((Err(broken(error.to_string())), None)),
            Err(_) => Some((Err(broken(format!("nothing came for {} s", within.as_secs()))), None)),
        }
    });
    stream.boxed()
}
