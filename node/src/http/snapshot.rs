//! `admin/tsdb/snapshot`: everything the asking tenant has, as blocks below the data directory.
//!
//! Source: Prometheus HTTP API, "Snapshot". There, `skip_head` leaves out what is in no block yet; here all samples are
//! in heads, so it would leave out everything and is refused.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::App;
use super::answer::{Failure, Remarks, success};
use super::params::{Params, Tenant};
use super::time::format_basic;

/// `POST` or `PUT admin/tsdb/snapshot`: answers when all is on disk and verified.
pub(crate) async fn take(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    match params.get("skip_head") {
        // The ways in which Go writes no.
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => {}
        "1" | "t" | "T" | "true" | "True" | "TRUE" => {
            let why = "all samples are in the head, nothing would be left: take the snapshot without skip_head";
            return Err(Failure::parameter("skip_head", why));
        }
        _ => return Err(Failure::parameter("skip_head", "it is neither true nor false")),
    }
    let moment = format_basic(app.clock.now());
    let taken = app.snapshots.take(&tenant.0, &moment).await.map_err(|error| Failure::query(&error))?;
    let data = json!({
        "name": taken.name,
        "path": taken.path.to_string_lossy(),
        "blocks": taken.blocks,
        "samples": taken.samples,
    });
    Ok(success(data.to_string().as_bytes(), &Remarks::default()))
}
