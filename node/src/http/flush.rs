//! `admin/flush`: seals all the asking tenant has, so that it goes to blocks now.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::App;
use super::answer::{Failure, Remarks, success};
use super::params::{Params, Tenant};

/// Longest wait for the blocks.
const WAIT_MAX: Duration = Duration::from_secs(30 * 60);

/// `POST` or `PUT admin/flush[?wait=true]`: answers when the windows are sealed or, with `wait`, in blocks.
pub(crate) async fn flush(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let wait = match params.get("wait") {
        "" | "0" | "false" => None,
        "1" | "true" => Some(WAIT_MAX),
        _ => return Err(Failure::parameter("wait", "it is neither true nor false")),
    };
    let sealed = app.flush.flush(&tenant.0, wait).await.map_err(|error| Failure::query(&error))?;
    let windows: Vec<_> = sealed
        .iter()
        .map(|one| {
            json!({
                "partition": one.partition.0,
                "seal": one.number,
                "start": one.window.start,
                "end": one.window.end,
                "samples": one.samples,
                "cut": one.is_cut,
                "block": one.block.map(|id| id.to_string()),
            })
        })
        .collect();
    let data = json!({
        "tenant": tenant.0.as_str(),
        "windows": windows,
        "samples": sealed.iter().map(|one| one.samples).sum::<u64>(),
        "blocks": sealed.iter().filter_map(|one| one.block).map(|id| id.to_string()).collect::<Vec<_>>(),
        "done": sealed.iter().all(|one| one.is_cut),
    });
    Ok(success(data.to_string().as_bytes(), &Remarks::default()))
}
