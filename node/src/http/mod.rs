//! The door for people and Prometheus: one port, the API of Prometheus, probes, metrics.
//!
//! ```text
//! connection (server.rs: deadlines, limits, ordered stop; client.rs: who left)
//!   → id, counters (metrics.rs) → panic becomes 500 → gzip → router (here)
//!     → tenant and parameters (params.rs, time.rs, body.rs)
//!       → push.rs | query.rs | remote.rs | series.rs | tenants.rs | blocks.rs | snapshot.rs | flush.rs | import.rs |
//!         verify.rs | backup.rs | admin.rs → port.rs: the rooms behind
//!         → answer.rs: envelope and codes, json.rs: values, piece by piece
//! ```
//!
//! What it does not do: it knows no ring, no disk, no other node. A client that leaves (client.rs) drops its
//! handler's future; what the handler waited for stops with it.

pub mod answer;
pub mod port;
pub mod server;

mod admin;
mod backup;
mod blocks;
mod body;
mod client;
mod features;
mod flush;
mod import;
mod json;
mod metrics;
mod params;
mod push;
mod query;
mod remote;
mod series;
mod snapshot;
mod tenants;
mod time;
mod verify;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use engram_model::Millis;
use engram_model::time::Clock;
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate};

use crate::actor::Health;

use answer::Failure;
pub(crate) use json::put_bare_float;
pub use metrics::HttpMetrics;
use port::Part;
pub use time::{format_rfc3339 as format_time, parse as parse_time};

/// Everything the handlers need.
pub struct App {
    /// The read path.
    pub read: Arc<dyn port::Read>,
    /// The write path.
    pub push: Arc<dyn port::Push>,
    /// The tenants, for operators.
    pub tenants: Arc<dyn port::Tenants>,
    /// The blocks of tenants, for operators.
    pub blocks: Arc<dyn port::Blocks>,
    /// Snapshots of what tenants have.
    pub snapshots: Arc<dyn port::Snapshots>,
    /// From memory to blocks on demand.
    pub flush: Arc<dyn port::Flush>,
    /// Blocks that come in.
    pub imports: Arc<dyn port::Imports>,
    /// The store held against the metadata.
    pub survey: Arc<dyn port::Survey>,
    /// The node as a whole.
    pub node: Arc<dyn port::Node>,
    /// What is counted.
    pub metrics: HttpMetrics,
    /// Where the time comes from.
    pub clock: Clock,
    /// When the node started.
    pub started_at: Millis,
    /// Longest a client may take to send a body.
    pub body_within: Duration,
    /// What the status pages tell.
    pub about: About,
}

/// What the status pages tell.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// This node's name.
    pub node_name: String,
    /// Every option by its flag's name, with its value.
    pub flags: Vec<(String, String)>,
    /// The options in force, as a file would say it.
    pub config_yaml: String,
    /// How long samples are kept.
    pub retention: String,
}

/// All routes, with everything around them.
pub fn router(app: Arc<App>) -> Router {
    let pushing = || post(push::push);
    let mut router = Router::new()
        .route("/", get(admin::index))
        .route("/metrics", get(admin::metrics))
        .route("/ready", get(admin::ready))
        .route("/-/ready", get(admin::ready))
        .route("/-/healthy", get(admin::healthy))
        .route("/api/v1/cluster/status", get(admin::cluster))
        .route("/api/v1/cluster/overview", get(admin::overview))
        .route("/api/v1/cluster/plan", get(admin::plan))
        .route("/api/v1/cluster/apply", post(admin::apply))
        .route("/api/v1/cluster/nodes/{node}/{act}", post(admin::steer))
        .route("/api/v1/admin/tenants", get(tenants::list))
        .route("/api/v1/admin/tenants/{tenant}", get(tenants::show).put(tenants::set).delete(tenants::delete))
        .route("/api/v1/admin/flush", post(flush::flush).put(flush::flush))
        .route("/api/v1/admin/digests", get(tenants::digests))
        .route("/api/v1/admin/replicas", get(admin::replicas))
        .route("/api/v1/admin/metadata/backup", get(backup::backup))
        .route("/api/v1/admin/verify", post(verify::verify))
        .route("/api/v1/admin/import/{block}", get(import::known).post(import::take))
        .route("/api/v1/admin/blocks", get(blocks::list))
        .route("/api/v1/admin/blocks/plan", get(blocks::plan))
        .route("/api/v1/admin/blocks/orphans", get(blocks::orphans))
        .route("/api/v1/admin/blocks/orphans/remove", post(blocks::remove_orphans))
        .route("/api/v1/admin/blocks/{id}", get(blocks::inspect))
        .route("/api/v1/admin/blocks/{id}/verify", post(blocks::verify))
        .route("/api/v1/user_stats", get(tenants::user_stats))
        .route("/api/v1/push", pushing())
        .route("/api/prom/push", pushing());
    for prefix in ["/api/v1", "/prometheus/api/v1", "/api/prom/api/v1"] {
        router = router.nest(prefix, api());
    }
    router
        .fallback(admin::nothing)
        .method_not_allowed_fallback(admin::wrong_method)
        .layer(
            CompressionLayer::new().gzip(true).quality(CompressionLevel::Fastest).compress_when(
                // Chunks are compressed already.
                DefaultPredicate::new()
                    .and(NotForContentType::const_new("application/x-streamed-protobuf"))
                    .and(NotForContentType::const_new("application/octet-stream")),
            ),
        )
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), metrics::observe))
        .with_state(app)
}

/// What answers while the node starts: probes tell how far it is, everything else is "later", so that senders retry.
pub fn starting(health: Health) -> Router {
    let report = move || {
        let parts = parts(&health);
        async move { admin::readiness(&parts) }
    };
    Router::new()
        .route("/ready", get(report.clone()))
        .route("/-/ready", get(report))
        .route("/-/healthy", get(admin::healthy))
        .fallback(admin::not_yet)
}

/// The parts of a node, as the probes tell of them.
#[must_use]
pub fn parts(health: &Health) -> Vec<Part> {
    health.report().into_iter().map(|(name, ready, detail)| Part { name, ready, detail }).collect()
}

/// The API of Prometheus, mounted under several prefixes because clients are configured with each of them.
fn api() -> Router<Arc<App>> {
    Router::new()
        .route("/write", post(push::push))
        .route("/read", post(remote::read))
        .route("/query", get(query::instant).post(query::instant))
        .route("/query_range", get(query::range).post(query::range))
        .route("/query_exemplars", get(query::exemplars).post(query::exemplars))
        .route("/format_query", get(query::format).post(query::format))
        .route("/parse_query", get(query::tree).post(query::tree))
        .route("/series", get(series::series).post(series::series))
        .route("/labels", get(series::names).post(series::names))
        .route("/label/{name}/values", get(series::values))
        .route("/metadata", get(series::metadata))
        .route("/features", get(features::features))
        .route("/rules", get(admin::rules))
        .route("/alerts", get(admin::alerts))
        .route("/alertmanagers", get(admin::alertmanagers))
        .route("/status/buildinfo", get(admin::build_info))
        .route("/status/runtimeinfo", get(admin::runtime_info))
        .route("/status/flags", get(admin::flags))
        .route("/status/config", get(admin::config))
        .route("/status/tsdb", get(tenants::tsdb))
        .route("/admin/tsdb/delete_series", post(blocks::delete_series).put(blocks::delete_series))
        .route("/admin/tsdb/clean_tombstones", post(blocks::clean_tombstones).put(blocks::clean_tombstones))
        .route("/admin/tsdb/snapshot", post(snapshot::take).put(snapshot::take))
}

/// A panic of a handler is our bug: the client learns that much, the log learns the rest.
#[allow(clippy::needless_pass_by_value, reason = "the layer hands the payload over")]
fn panicked(payload: Box<dyn Any + Send>) -> Response {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = text, "a request handler panicked");
    Failure::internal("internal error, see this node's log").into_response()
}
