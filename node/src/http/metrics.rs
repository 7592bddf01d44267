//! What the API counts of itself.
//!
//! `engram_http_requests_total{route,method,code}`: which answers clients get; a rise of 5xx on a write route is lost
//! time, of 4xx lost samples. `engram_http_request_duration_seconds{route}`: how long until the answer begins.
//! `engram_http_connections`: how near the limit of connections is. Labels come from closed sets: routes are the
//! router's patterns, never the path a client made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use engram_model::error::Class;
use engram_model::time::Stopwatch;
use http::{HeaderName, HeaderValue, Method};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use super::App;
use crate::error::{self, Error, Side};
use crate::metrics::Metrics;

/// From a probe to a query at its time-out.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// Counters of the API. Cheap to clone.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    connections: Gauge<i64, AtomicI64>,
    next_id: Arc<AtomicU64>,
}

impl HttpMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let all = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            connections: Gauge::default(),
            next_id: Arc::default(),
        };
        metrics.register(|registry| {
            registry.register("http_requests", "Requests by route, method and status code", all.requests.clone());
            registry.register_with_unit(
                "http_request_duration",
                "Time until the answer begins, by route",
                Unit::Seconds,
                all.seconds.clone(),
            );
            registry.register("http_connections", "Open connections of clients", all.connections.clone());
        });
        all
    }

    /// Counts a connection until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> Connection {
        self.connections.inc();
        Connection(self.connections.clone())
    }
}

/// Counts a request once: when it is answered, or when its client has left before.
struct Counting {
    metrics: HttpMetrics,
    route: String,
    method: &'static str,
    code: u16,
    watch: Stopwatch,
}

impl Drop for Counting {
    fn drop(&mut self) {
        let route = std::mem::take(&mut self.route);
        let took = self.watch.elapsed().as_secs_f64();
        self.metrics.seconds.get_or_create(&Route { route: route.clone() }).observe(took);
        let labels = Answered { route, method: self.method, code: self.code };
        self.metrics.requests.get_or_create(&labels).inc();
    }
}

/// See [`HttpMetrics::connection`].
pub struct Connection(Gauge<i64, AtomicI64>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A method is whatever a client writes; only these become a label.
fn method_word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Around every request: gives it an id (the client's own when it has one), and counts it.
pub(crate) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let mut counting = Counting {
        metrics: app.metrics.clone(),
        route,
        method: method_word(request.method()),
        code: error::status(&Error::new(Class::Cancelled, ""), Side::Query).as_u16(),
        watch: Stopwatch::start(),
    };
    let given = request.headers().get(REQUEST_ID).filter(|id| id.len() <= REQUEST_ID_BYTES_MAX).cloned();
    let mut response = next.run(request).await;
    counting.code = response.status().as_u16();
    let id = given.or_else(|| {
        let number = app.metrics.next_id.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{:x}-{number:x}", app.started_at)).ok()
    });
    if response.status().is_server_error() {
        let id = id.as_ref().and_then(|id| id.to_str().ok());
        tracing::debug!(route = counting.route, code = counting.code, id, "a request failed");
    }
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
