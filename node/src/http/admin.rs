//! What the node says of itself: probes, metrics, the `status` pages of Prometheus' API, the cluster's view.
//!
//! Only what is true is answered. Rules and alerts are empty lists, because there are none; what has no meaning here
//! (targets, scrape pools) is not there at all, so that a client sees "not found" and not an invented answer.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use engram_model::error::Class;
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::answer::{Failure, Remarks, not_ready, success, text};
use super::params::Params;
use super::port::{OwnAsked, Part};
use super::{App, time};
use crate::error::Error;
use crate::meta::nodes::Steer;
use crate::meta::plans::What;

/// The version of Prometheus' API and PromQL that is spoken. Grafana decides by it what it may ask.
const API_VERSION: &str = "3.14.0";
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Whether the process runs.
pub(crate) async fn healthy() -> Response {
    text("Engram is healthy.\n")
}

/// Whether requests should come here; names the parts that are not ready.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    readiness(&app.node.parts())
}

/// See [`ready`].
pub(crate) fn readiness(parts: &[Part]) -> Response {
    let waiting: Vec<_> = parts.iter().filter(|part| !part.ready).collect();
    if waiting.is_empty() {
        return text("Engram is ready.\n");
    }
    let lines = waiting.iter().map(|part| format!("{}: {}\n", part.name, part.detail)).collect::<String>();
    not_ready(format!("Engram is not ready:\n{lines}"))
}

/// The node's own telemetry.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    // Looks at every head, and waits for those that are being written: not on a thread that serves requests.
    let Ok(exposition) = tokio::task::spawn_blocking(move || app.node.metrics_text()).await else {
        return Failure::query(&Error::new(Class::Internal, "collecting the metrics failed")).into_response();
    };
    let mut response = text(exposition);
    response.headers_mut().insert(CONTENT_TYPE, OPENMETRICS);
    response
}

/// `status/buildinfo`. `version` is the version of the API that is spoken, `engramVersion` the program's own.
pub(crate) async fn build_info() -> Response {
    data(&json!({
        "application": "Engram",
        "version": API_VERSION,
        "engramVersion": env!("CARGO_PKG_VERSION"),
        "revision": "",
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
    }))
}

/// `status/runtimeinfo`.
pub(crate) async fn runtime_info(State(app): State<Arc<App>>) -> Response {
    let started = time::format_rfc3339(app.started_at);
    let directory = std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default();
    data(&json!({
        "startTime": started,
        "serverTime": time::format_rfc3339(app.clock.now()),
        "CWD": directory,
        "hostname": app.about.node_name,
        "reloadConfigSuccess": true,
        "lastConfigTime": started,
        "storageRetention": app.about.retention,
    }))
}

/// `status/flags`: every option with its value, by its flag's name.
pub(crate) async fn flags(State(app): State<Arc<App>>) -> Response {
    let all: serde_json::Map<_, _> = app.about.flags.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    data(&all.into())
}

/// `status/config`: what is in force, as a configuration file would say it.
pub(crate) async fn config(State(app): State<Arc<App>>) -> Response {
    data(&json!({"yaml": app.about.config_yaml}))
}

/// `rules`: there are none.
pub(crate) async fn rules() -> Response {
    data(&json!({"groups": []}))
}

/// `alerts`: there are none.
pub(crate) async fn alerts() -> Response {
    data(&json!({"alerts": []}))
}

/// `alertmanagers`: there are none.
pub(crate) async fn alertmanagers() -> Response {
    data(&json!({"activeAlertmanagers": [], "droppedAlertmanagers": []}))
}

/// `cluster/status`: nodes, partitions and leader as this node sees them.
pub(crate) async fn cluster(State(app): State<Arc<App>>) -> Response {
    success(app.node.cluster_json().as_bytes(), &Remarks::default())
}

/// `cluster/nodes/<id>/<drain|undrain|remove>`: what a node is to do.
pub(crate) async fn steer(
    State(app): State<Arc<App>>,
    Path((node, act)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let id = node.parse().map_err(|_| Failure::query(&Error::invalid(format!("{node:?} is no id of a node"))))?;
    let act = Steer::of(&act).ok_or_else(|| Failure::no_such_path(&format!("cluster/nodes/{id}/{act}")))?;
    app.node.steer(NodeId(id), act).await.map_err(|error| Failure::query(&error))?;
    Ok(cluster(State(app)).await)
}

/// `cluster/plan?what=…`: what would happen.
pub(crate) async fn plan(State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let what = match params.get("what") {
        "" => What::Rebalance,
        text => text.parse().map_err(|why: String| Failure::parameter("what", why))?,
    };
    app.node.plan(what).await.map(|plan| data(&plan)).map_err(|error| Failure::query(&error))
}

/// `cluster/apply`: has a plan happen.
pub(crate) async fn apply(State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let plan = params.get("plan").to_owned();
    app.node.apply(plan).await.map(|done| data(&done)).map_err(|error| Failure::query(&error))
}

/// `cluster/overview`: how it is now.
pub(crate) async fn overview(State(app): State<Arc<App>>) -> Response {
    data(&app.node.overview().await)
}

/// `admin/replicas?tenant=…&partition=…&slots=true`: what the replicas on this node hold, asked of no other.
pub(crate) async fn replicas(State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let tenant = match params.get("tenant") {
        "" => None,
        name => Some(TenantId::new(name).map_err(|why| Failure::parameter("tenant", why))?),
    };
    let partition = match params.get("partition") {
        "" => None,
        text => Some(PartitionId(text.parse().map_err(|_| Failure::parameter("partition", "it is no whole number"))?)),
    };
    let slots = match params.get("slots") {
        "" | "0" | "false" => false,
        "1" | "true" => true,
        _ => return Err(Failure::parameter("slots", "it is neither true nor false")),
    };
    if slots && tenant.is_none() {
        return Err(Failure::parameter("slots", "slots are told of one tenant: name it"));
    }
    let asked = OwnAsked { tenant, partition, slots };
    app.node.replicas(asked).await.map(|own| data(&own)).map_err(|error| Failure::query(&error))
}

fn data(value: &serde_json::Value) -> Response {
    success(value.to_string().as_bytes(), &Remarks::default())
}

/// `/`: what there is.
pub(crate) async fn index() -> Html<&'static str> {
    Html(include_str!("index.html"))
}

/// Anything else.
pub(crate) async fn nothing(uri: http::Uri) -> Failure {
    Failure::no_such_path(uri.path())
}

/// Anything but probes, while the node starts.
pub(crate) async fn not_yet() -> Failure {
    Failure::query(&Error::unavailable("the node is starting, see /-/ready"))
}

/// A path that is there, asked with a method it does not take.
pub(crate) async fn wrong_method(method: http::Method) -> Failure {
    Failure::wrong_method(&method)
}
