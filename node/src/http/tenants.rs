//! Tenants: what an operator may do with them (`admin/tenants`), and how much one has (`user_stats`, `status/tsdb`).
//!
//! Everything under `admin` is for whoever runs the cluster: it sees and changes all tenants and asks for no tenant
//! header. There is no authentication in here; whoever puts the port before strangers puts a proxy before this path.
//!
//! Source: `prometheus web/api/v1/api.go` (`serveTSDBStatus`) for the shape of `status/tsdb`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use http::Request;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Failure, Remarks, success};
use super::params::{Params, Tenant, atoi};
use super::{App, body};
use crate::config::nearest;
use crate::error::Error;
use crate::meta::tenants::TenantChange;
use crate::read::cardinality::{Counted, LIST_MAX, Usage};

/// Largest body of a change: all limits take less than two thousand bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Entries of a list of `status/tsdb` unless `limit` says otherwise, as in Prometheus.
const LIST_DEFAULT: usize = 10;
/// What the body of a change may hold.
const FIELDS: [&str; 3] = ["version", "limits", "shardSize"];

/// The body of a change.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Change {
    version: u64,
    limits: Map<String, Value>,
    shard_size: Option<u32>,
}

/// `GET admin/tenants`: all of them.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    data(&app.tenants.all())
}

/// `GET admin/digests`: what the asking tenant has stored, as a digest of each slot and of all. Equal digests mean equal
/// content, so whoever holds the same samples (another node, a backup, a test) can prove it without reading them here.
/// Sums are text: they use all 64 bits, and JSON's numbers do not.
pub(crate) async fn digests(tenant: Tenant, State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let slots = app.read.digests(&tenant.0).await.map_err(|error| Failure::query(&error))?;
    let shown = |digest: &Digest| json!({ "count": digest.count, "low": format!("{:016x}", digest.low), "high": format!("{:016x}", digest.high) });
    let total: Digest = slots.values().copied().sum();
    let slots: Vec<Value> =
        slots.iter().map(|(start, digest)| json!({ "startMs": start, "digest": shown(digest) })).collect();
    Ok(data(&json!({ "total": shown(&total), "slots": slots })))
}

/// `GET admin/tenants/<tenant>`.
pub(crate) async fn show(
    name: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
) -> Result<Response, Failure> {
    let tenant = tenant_of(name)?;
    let found = app.tenants.one(&tenant);
    let missing = || Failure::query(&Error::new(Class::NotFound, format!("there is no tenant {tenant}")));
    found.map(|one| data(&one)).ok_or_else(missing)
}

/// `PUT admin/tenants/<tenant>`: creates it, or changes what the body names.
pub(crate) async fn set(
    name: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let tenant = tenant_of(name)?;
    let (parts, body) = request.into_parts();
    let media_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Failure::unsupported(format!(
            "content type {media_type:?} is not supported, send application/json"
        )));
    }
    let bytes = body::read(body, BODY_BYTES_MAX, app.body_within).await?;
    let change = change_of(&bytes)?;
    app.tenants.set(&tenant, change).await.map(|now| data(&now)).map_err(|e| Failure::query(&e))
}

/// `DELETE admin/tenants/<tenant>?version=<n>`: marks it for deletion.
pub(crate) async fn delete(
    name: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
    params: Params,
) -> Result<Response, Failure> {
    let tenant = tenant_of(name)?;
    let text = params.get("version");
    if text.is_empty() {
        return Err(Failure::parameter("version", "name the version of the tenant that is to be deleted"));
    }
    let version = text.parse::<u64>().map_err(|_| Failure::parameter("version", "it is no whole number"))?;
    app.tenants.delete(&tenant, version).await.map(|now| data(&now)).map_err(|e| Failure::query(&e))
}

fn tenant_of(name: Result<Path<String>, PathRejection>) -> Result<TenantId, Failure> {
    let Ok(Path(name)) = name else { return Err(Failure::bad_data("the tenant's name is not UTF-8")) };
    TenantId::new(&name).map_err(|why| Failure::bad_data(why.to_string()))
}

/// Reads the body by hand first: a field nobody knows is a limit that would silently not be set.
fn change_of(bytes: &[u8]) -> Result<TenantChange, Failure> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|why| Failure::bad_data(format!("the body is no JSON: {why}")))?;
    let Value::Object(fields) = &value else { return Err(Failure::bad_data("the body is no JSON object")) };
    if let Some(name) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let hint = nearest(name, FIELDS.into_iter().map(str::to_owned));
        return Err(Failure::bad_data(format!(
            "field {name:.100?} is not known{hint}; there are {}",
            FIELDS.join(", ")
        )));
    }
    let change: Change = serde_json::from_value(value).map_err(|why| Failure::bad_data(format!("the body: {why}")))?;
    Ok(TenantChange { version: change.version, limits: change.limits, shard_size: change.shard_size })
}

/// `user_stats`: how much the asking tenant has.
pub(crate) async fn user_stats(tenant: Tenant, State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let usage = app.read.usage(&tenant.0).await.map_err(|e| Failure::query(&e))?;
    let (oldest, newest) = times(&usage);
    Ok(data(&json!({
        "tenant": tenant.0.as_str(),
        "numSeries": usage.series,
        "numSamples": usage.samples,
        "chunkCount": usage.chunks,
        "minTime": oldest,
        "maxTime": newest,
    })))
}

/// `status/tsdb`: what makes the asking tenant's data large.
pub(crate) async fn tsdb(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let limit = match params.get("limit") {
        "" => LIST_DEFAULT,
        text => {
            let number = atoi(text).map_err(|why| Failure::parameter("limit", why))?;
            let fits = usize::try_from(number).ok().filter(|limit| (1..=LIST_MAX).contains(limit));
            fits.ok_or_else(|| Failure::parameter("limit", format!("limit must be from 1 to {LIST_MAX}")))?
        }
    };
    let found = app.read.cardinality(&tenant.0, limit).await.map_err(|e| Failure::query(&e))?;
    let (oldest, newest) = times(&found.usage);
    Ok(data(&json!({
        "headStats": {
            "numSeries": found.usage.series,
            "numLabelPairs": found.label_pairs,
            "chunkCount": found.usage.chunks,
            "minTime": oldest,
            "maxTime": newest,
        },
        "seriesCountByMetricName": counted(&found.series_by_metric),
        "labelValueCountByLabelName": counted(&found.values_by_label),
        "memoryInBytesByLabelName": counted(&found.bytes_by_label),
        "seriesCountByLabelValuePair": counted(&found.series_by_pair),
    })))
}

/// Oldest and newest; without samples the two ends of time, crossed, as Prometheus' empty head says it.
fn times(usage: &Usage) -> (i64, i64) {
    usage.bounds.unwrap_or((i64::MAX, i64::MIN))
}

fn counted(all: &[Counted]) -> Value {
    all.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn data(value: &Value) -> Response {
    success(value.to_string().as_bytes(), &Remarks::default())
}
