//! Blocks, for operators: `admin/blocks…`, and the deletion of series as Prometheus has it: `admin/tsdb/delete_series`,
//! `admin/tsdb/clean_tombstones`.
//!
//! All of it is about the asking tenant. Source: Prometheus HTTP API, "TSDB Admin APIs".

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use engram_model::block::{BlockId, NotBlockId};
use http::HeaderMap;
use serde_json::Value;

use super::App;
use super::answer::{Failure, Remarks, no_content, success};
use super::params::{Params, Tenant};
use crate::blocks::orphans::Removal;

/// `GET admin/blocks`: all of them.
pub(crate) async fn list(tenant: Tenant, State(app): State<Arc<App>>) -> Response {
    data(&app.blocks.list(&tenant.0))
}

/// `GET admin/blocks/plan`: what compaction would do next.
pub(crate) async fn plan(tenant: Tenant, State(app): State<Arc<App>>) -> Response {
    data(&app.blocks.plan(&tenant.0))
}

/// `GET admin/blocks/<id>`: one of them.
pub(crate) async fn inspect(
    tenant: Tenant,
    id: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
) -> Result<Response, Failure> {
    let id = id_of(id)?;
    app.blocks.inspect(&tenant.0, id).await.map(|one| data(&one)).map_err(|e| Failure::query(&e))
}

/// `POST admin/blocks/<id>/verify`: reads all of one and recomputes it.
pub(crate) async fn verify(
    tenant: Tenant,
    id: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
) -> Result<Response, Failure> {
    let id = id_of(id)?;
    app.blocks.verify(&tenant.0, id).await.map(|found| data(&found)).map_err(|e| Failure::query(&e))
}

/// `GET admin/blocks/orphans[?older_than=…]`: what lies in the store and in no metadata.
pub(crate) async fn orphans(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let older_ms = older_ms(&params)?;
    app.blocks.orphans(&tenant.0, older_ms).await.map(|found| data(&found)).map_err(|e| Failure::query(&e))
}

/// `POST admin/blocks/orphans/remove?confirm=true[&older_than=…][&block=…]`: removes its objects for good.
pub(crate) async fn remove_orphans(
    tenant: Tenant,
    State(app): State<Arc<App>>,
    params: Params,
) -> Result<Response, Failure> {
    if params.get("confirm") != "true" {
        return Err(Failure::bad_data("what is removed is gone for good: say confirm=true"));
    }
    let of = |text: &str| text.parse().map_err(|why: NotBlockId| Failure::parameter("block", why));
    let ids = params.all("block").map(of).collect::<Result<_, _>>()?;
    let what = Removal { ids, older_ms: older_ms(&params)? };
    app.blocks.remove_orphans(&tenant.0, what).await.map(|done| data(&done)).map_err(|e| Failure::query(&e))
}

fn older_ms(params: &Params) -> Result<i64, Failure> {
    let older = params.duration_ns("older_than").map_err(|why| Failure::parameter("older_than", why))?;
    let older_ms = older.unwrap_or(0) / 1_000_000;
    if older_ms < 0 {
        return Err(Failure::parameter("older_than", "it is negative"));
    }
    Ok(older_ms)
}

/// `POST` or `PUT admin/tsdb/delete_series`: hidden when this answers.
pub(crate) async fn delete_series(
    tenant: Tenant,
    State(app): State<Arc<App>>,
    params: Params,
) -> Result<Response, Failure> {
    if params.all("match[]").next().is_none() {
        return Err(Failure::bad_data("no match[] parameter provided"));
    }
    let range = params.range()?;
    // Read here for the error's text; stored as they were written.
    params.selectors().map_err(|why| Failure::parameter("match[]", why))?;
    let selectors = params.all("match[]").map(str::to_owned).collect();
    let deleted = app.blocks.delete_series(&tenant.0, selectors, range).await;
    deleted.map(|_| no_content(HeaderMap::new())).map_err(|e| Failure::query(&e))
}

/// `POST` or `PUT admin/tsdb/clean_tombstones[?wait=true]`: deleted samples are taken out of the blocks now.
pub(crate) async fn clean_tombstones(
    tenant: Tenant,
    State(app): State<Arc<App>>,
    params: Params,
) -> Result<Response, Failure> {
    let wait = match params.get("wait") {
        "" | "0" | "false" => false,
        "1" | "true" => true,
        _ => return Err(Failure::parameter("wait", "it is neither true nor false")),
    };
    let cleaned = app.blocks.clean(&tenant.0, wait).await;
    cleaned.map(|()| no_content(HeaderMap::new())).map_err(|e| Failure::query(&e))
}

fn id_of(id: Result<Path<String>, PathRejection>) -> Result<BlockId, Failure> {
    let Ok(Path(id)) = id else { return Err(Failure::bad_data("the name of the block is not UTF-8")) };
    id.parse().map_err(|why: NotBlockId| Failure::bad_data(why.to_string()))
}

fn data(value: &Value) -> Response {
    success(value.to_string().as_bytes(), &Remarks::default())
}
