//! Goal: requests of all kinds, good and bad, get the status, the shape and the words of Prometheus' API. Method: the
//! whole router in process, with rooms behind it whose answers the test chooses; for deadlines and leaving clients,
//! real connections.

mod api;
mod blocks;
mod pushing;
mod serving;
mod tenants;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use engram_model::Millis;
use engram_model::block::BlockId;
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{NodeId, PartitionId};
use engram_model::sample::{Exemplar, Metadata, MetricKind, Value as SampleValue};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_model::{Labels, TimeRange};
use engram_query::engine::Outcome;
use engram_query::parse::Switches;
use engram_query::value::{Annotations, InstantSample, RangeSeries, Stats, Value};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tower::ServiceExt;

use super::port::{
    Blocks, Exemplars, Flush, Imports, Listed, Node, OwnAsked, Part, Push, Read, Snapshots, Survey, Tenants, Wanted,
};
use super::{About, App, HttpMetrics, router, starting};
use crate::actor::{Condition, Health};
use crate::blocks::check::Depth;
use crate::blocks::import::{Imported, Known};
use crate::blocks::orphans::Removal;
use crate::blocks::{SealedWindow, Taken};
use crate::error::{Error, Stage};
use crate::meta::nodes::Steer;
use crate::meta::plans::What;
use crate::meta::tenants::TenantChange;
use crate::metrics::Metrics;
use crate::read::QueryRequest;
use crate::read::cardinality::{Cardinality, Usage};
use crate::read::remote::Answer as RemoteAnswer;
use crate::read::remote::request::Request as RemoteRequest;
use crate::write::decode::Version;
use crate::write::{Refusal, Written};

/// Rooms that answer what the test says and remember what they were asked.
#[derive(Default)]
struct Fake {
    query: Mutex<Option<Result<Outcome, Error>>>,
    written: Mutex<Option<Result<Written, Error>>>,
    asked: Mutex<Vec<String>>,
    not_ready: AtomicBool,
    hangs: AtomicBool,
    takes: Mutex<Duration>,
    full: AtomicBool,
    left: Arc<AtomicBool>,
}

/// Says when a future was dropped.
struct Left(Arc<AtomicBool>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn outcome(value: Value) -> Outcome {
    Outcome { value, annotations: Annotations::default(), stats: Stats::default(), explain: None }
}

impl Fake {
    fn ask(&self, what: String) {
        self.asked.lock().push(what);
    }
}

impl Read for Fake {
    fn switches(&self, _: &TenantId) -> Switches {
        Switches::default()
    }

    fn query<'a>(&'a self, tenant: &'a TenantId, q: QueryRequest) -> BoxFuture<'a, Result<Outcome, Error>> {
        self.ask(format!(
            "{tenant} {} {}..{}/{} timeout {:?} lookback {:?} limit {}",
            q.text, q.start, q.end, q.step_ms, q.timeout, q.lookback_ms, q.limit
        ));
        Box::pin(async move {
            if self.hangs.load(Ordering::SeqCst) {
                let _left = Left(self.left.clone());
                futures::future::pending::<()>().await;
            }
            let takes = *self.takes.lock();
            tokio::time::sleep(takes).await;
            assert!(q.text != "panic", "the test wants a panic");
            self.query.lock().take().unwrap_or_else(|| Ok(outcome(Value::Vector(Vec::new()))))
        })
    }

    fn remote_read<'a>(
        &'a self,
        tenant: &'a TenantId,
        request: RemoteRequest,
    ) -> BoxFuture<'a, Result<RemoteAnswer, Error>> {
        self.ask(format!("{tenant} reads {request:?}"));
        Box::pin(async { Ok(RemoteAnswer::Samples(Bytes::from_static(b"\x00"))) })
    }

    fn series<'a>(&'a self, tenant: &'a TenantId, wanted: Wanted) -> BoxFuture<'a, Listed<Labels>> {
        self.ask(format!("{tenant} series {wanted:?}"));
        Box::pin(async { Ok(((0..3).map(|i| Labels::from_pairs([("a", i.to_string())])).collect(), Vec::new())) })
    }

    fn label_names<'a>(&'a self, _: &'a TenantId, _: Wanted) -> BoxFuture<'a, Listed<String>> {
        Box::pin(async { Ok((vec!["__name__".to_owned(), "a\"b".to_owned()], vec!["partial".to_owned()])) })
    }

    fn label_values<'a>(&'a self, _: &'a TenantId, name: &'a str, _: Wanted) -> BoxFuture<'a, Listed<String>> {
        Box::pin(async move { Ok((vec![name.to_owned()], Vec::new())) })
    }

    fn metadata<'a>(
        &'a self,
        _: &'a TenantId,
        metric: Option<&'a str>,
        limit: usize,
        limit_per_metric: usize,
    ) -> BoxFuture<'a, Result<BTreeMap<String, Vec<Metadata>>, Error>> {
        self.ask(format!("metadata {metric:?} {limit} {limit_per_metric}"));
        let one = Metadata { kind: MetricKind::Counter, help: "h".to_owned(), unit: String::new() };
        Box::pin(async { Ok(BTreeMap::from([("m".to_owned(), vec![one])])) })
    }

    fn digests<'a>(&'a self, _: &'a TenantId) -> BoxFuture<'a, Result<BTreeMap<Millis, Digest>, Error>> {
        Box::pin(async { Ok(BTreeMap::from([(300_000, Digest { count: 2, low: u64::MAX, high: 1 })])) })
    }

    fn exemplars<'a>(&'a self, _: &'a TenantId, _: &'a str, _: TimeRange) -> BoxFuture<'a, Result<Exemplars, Error>> {
        let one = Exemplar { labels: Labels::from_pairs([("trace", "x")]), value: 6.0, at: 1500 };
        Box::pin(async { Ok(vec![(Labels::from_pairs([("a", "b")]), vec![one])]) })
    }

    fn cardinality<'a>(&'a self, tenant: &'a TenantId, max: usize) -> BoxFuture<'a, Result<Cardinality, Error>> {
        self.ask(format!("cardinality {tenant} {max}"));
        let one = Cardinality { series_by_metric: vec![("up".to_owned(), 3)], ..Cardinality::default() };
        Box::pin(async { Ok(one) })
    }

    fn usage<'a>(&'a self, _: &'a TenantId) -> BoxFuture<'a, Result<Usage, Error>> {
        Box::pin(async { Ok(Usage { series: 3, samples: 9, chunks: 3, bounds: Some((1, 2)) }) })
    }
}

impl Tenants for Fake {
    fn all(&self) -> serde_json::Value {
        serde_json::json!([{"tenant": "acme", "version": 1}])
    }

    fn one(&self, tenant: &TenantId) -> Option<serde_json::Value> {
        (tenant.as_str() == "acme").then(|| serde_json::json!({"tenant": "acme", "version": 1}))
    }

    fn set<'a>(
        &'a self,
        tenant: &'a TenantId,
        change: TenantChange,
    ) -> BoxFuture<'a, Result<serde_json::Value, Error>> {
        self.ask(format!("set {tenant} {change:?}"));
        let answer = match change.version {
            7 => Err(Error::new(Class::Conflict, "tenant acme is at version 8, not 7")),
            _ => Ok(serde_json::json!({"tenant": tenant.as_str(), "version": change.version + 1})),
        };
        Box::pin(async { answer })
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId, version: u64) -> BoxFuture<'a, Result<serde_json::Value, Error>> {
        self.ask(format!("delete {tenant} {version}"));
        Box::pin(async { Ok(serde_json::json!({"deleted": true})) })
    }
}

impl Snapshots for Fake {
    fn take<'a>(&'a self, tenant: &'a TenantId, moment: &'a str) -> BoxFuture<'a, Result<Taken, Error>> {
        self.ask(format!("snapshot {tenant}"));
        let taken = Taken { name: format!("{moment}-1"), path: "/s/a".into(), blocks: 2, samples: 9 };
        Box::pin(async move { Ok(taken) })
    }
}

impl Flush for Fake {
    fn flush<'a>(
        &'a self,
        tenant: &'a TenantId,
        wait: Option<Duration>,
    ) -> BoxFuture<'a, Result<Vec<SealedWindow>, Error>> {
        self.ask(format!("flush {tenant} {}", wait.is_some()));
        let window = |number, block: Option<u128>| SealedWindow {
            partition: PartitionId(3),
            number,
            window: TimeRange { start: 0, end: 7_200_000 },
            samples: 9,
            is_cut: wait.is_some(),
            block: block.map(BlockId),
        };
        let sealed = vec![window(1, None), window(2, wait.map(|_| 7))];
        Box::pin(async move { Ok(sealed) })
    }
}

impl Imports for Fake {
    fn known(&self, _: &TenantId, id: BlockId) -> Known {
        if id == BlockId(7) { Known::Within(BlockId(8)) } else { Known::No }
    }

    fn take<'a>(
        &'a self,
        tenant: &'a TenantId,
        id: BlockId,
        mut archive: BoxStream<'static, Result<Bytes, Error>>,
    ) -> BoxFuture<'a, Result<Imported, Error>> {
        Box::pin(async move {
            let mut bytes = 0;
            while let Some(piece) = archive.next().await {
                bytes += piece?.len() as u64;
            }
            self.ask(format!("{tenant} imports {id}, {bytes} bytes"));
            Ok(Imported { series: 2, digest: Digest { count: 9, ..Digest::EMPTY }, bytes, repaired: false })
        })
    }
}

impl Survey for Fake {
    fn survey(&self, tenant: Option<TenantId>, depth: Depth) -> BoxStream<'static, Result<serde_json::Value, Error>> {
        self.ask(format!("verify {tenant:?} {depth:?}"));
        let events = [serde_json::json!({"event": "block"}), serde_json::json!({"event": "end"})];
        futures::stream::iter(events.map(Ok)).boxed()
    }
}

impl Blocks for Fake {
    fn list(&self, tenant: &TenantId) -> serde_json::Value {
        self.ask(format!("blocks of {tenant}"));
        serde_json::json!({ "blocks": [] })
    }

    fn plan(&self, tenant: &TenantId) -> serde_json::Value {
        self.ask(format!("plan of {tenant}"));
        serde_json::json!({ "jobs": [] })
    }

    fn inspect<'a>(&'a self, tenant: &'a TenantId, id: BlockId) -> BoxFuture<'a, Result<serde_json::Value, Error>> {
        self.ask(format!("block {id} of {tenant}"));
        Box::pin(async move { Err(Error::new(Class::NotFound, "no such block")) })
    }

    fn verify<'a>(&'a self, tenant: &'a TenantId, id: BlockId) -> BoxFuture<'a, Result<serde_json::Value, Error>> {
        self.ask(format!("verify {id} of {tenant}"));
        Box::pin(async move { Ok(serde_json::json!({ "ok": true })) })
    }

    fn delete_series<'a>(
        &'a self,
        tenant: &'a TenantId,
        selectors: Vec<String>,
        range: TimeRange,
    ) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        self.ask(format!("delete {selectors:?} of {tenant} from {} until {}", range.start, range.end));
        Box::pin(async move { Ok(Some(7)) })
    }

    fn clean<'a>(&'a self, tenant: &'a TenantId, wait: bool) -> BoxFuture<'a, Result<(), Error>> {
        self.ask(format!("clean {tenant} {wait}"));
        Box::pin(async move { Ok(()) })
    }

    fn orphans<'a>(&'a self, tenant: &'a TenantId, older_ms: i64) -> BoxFuture<'a, Result<serde_json::Value, Error>> {
        self.ask(format!("orphans of {tenant} older than {older_ms}"));
        Box::pin(async move { Ok(serde_json::json!({ "orphans": [] })) })
    }

    fn remove_orphans<'a>(
        &'a self,
        tenant: &'a TenantId,
        what: Removal,
    ) -> BoxFuture<'a, Result<serde_json::Value, Error>> {
        self.ask(format!("remove {} orphans of {tenant} older than {}", what.ids.len(), what.older_ms));
        Box::pin(async move { Ok(serde_json::json!({ "removed": [], "kept": [] })) })
    }
}

impl Push for Fake {
    fn body_bytes_max(&self) -> usize {
        100
    }

    fn reserve(&self, bytes: usize) -> Result<Box<dyn Any + Send>, Error> {
        self.ask(format!("reserve {bytes}"));
        if self.full.load(Ordering::SeqCst) { Err(Error::unavailable("full")) } else { Ok(Box::new(())) }
    }

    fn write<'a>(
        &'a self,
        tenant: &'a TenantId,
        version: Version,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Written, Error>> {
        self.ask(format!("{tenant} {version:?} {}", body.len()));
        Box::pin(async { self.written.lock().take().unwrap_or_else(|| Ok(Written::default())) })
    }
}

impl Node for Fake {
    fn parts(&self) -> Vec<Part> {
        let ready = !self.not_ready.load(Ordering::SeqCst);
        vec![
            Part { name: "meta".to_owned(), ready: true, detail: String::new() },
            Part { name: "ingest".to_owned(), ready, detail: "replaying".to_owned() },
        ]
    }

    fn cluster_json(&self) -> String {
        "{\"leader\":1}".to_owned()
    }

    fn metrics_text(&self) -> String {
        "# EOF\n".to_owned()
    }

    fn steer(&self, node: NodeId, act: Steer) -> BoxFuture<'_, Result<(), Error>> {
        let done = match (node, act) {
            (NodeId(1), Steer::Drain) => Ok(()),
            _ => Err(Error::new(Class::NotFound, "there is no such node")),
        };
        async move { done }.boxed()
    }

    fn plan(&self, what: What) -> BoxFuture<'_, Result<serde_json::Value, Error>> {
        async move { Ok(serde_json::json!({ "what": what.to_string() })) }.boxed()
    }

    fn apply(&self, plan: String) -> BoxFuture<'_, Result<serde_json::Value, Error>> {
        let done = match plan.as_str() {
            "drain:1@7" => Ok(serde_json::json!({ "plan": plan })),
            _ => Err(Error::new(Class::Conflict, "the ring has changed")),
        };
        async move { done }.boxed()
    }

    fn backup(&self) -> BoxFuture<'_, Result<std::fs::File, Error>> {
        async { Err(Error::unavailable("no quorum")) }.boxed()
    }

    fn replicas(&self, asked: OwnAsked) -> BoxFuture<'_, Result<serde_json::Value, Error>> {
        self.ask(format!("replicas {asked:?}"));
        async { Ok(serde_json::json!({ "node": 1, "partitions": [] })) }.boxed()
    }

    fn overview(&self) -> BoxFuture<'_, serde_json::Value> {
        async { serde_json::json!({ "healthy": true }) }.boxed()
    }
}

fn app_of(fake: &Arc<Fake>) -> (Arc<App>, Metrics) {
    let metrics = Metrics::default();
    let app = App {
        read: fake.clone(),
        push: fake.clone(),
        tenants: fake.clone(),
        blocks: fake.clone(),
        snapshots: fake.clone(),
        flush: fake.clone(),
        imports: fake.clone(),
        survey: fake.clone(),
        node: fake.clone(),
        metrics: HttpMetrics::new(&metrics),
        clock: Clock::test(1_000_500),
        started_at: 0,
        body_within: Duration::from_secs(5),
        about: About { flags: vec![("zone".to_owned(), "a".to_owned())], ..About::default() },
    };
    (Arc::new(app), metrics)
}

/// One request through the router: status, headers, body.
async fn send(fake: &Arc<Fake>, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
    let response = router(app_of(fake).0).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

async fn get(fake: &Arc<Fake>, path: &str) -> (u16, String) {
    let (status, _, body) = send(fake, Request::get(path).body(Body::empty()).unwrap()).await;
    (status.as_u16(), body)
}

async fn push(fake: &Arc<Fake>, headers: &[(&str, &str)], body: &'static str) -> (u16, HeaderMap, String) {
    let mut request = Request::post("/api/v1/write");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (status, headers, body) = send(fake, request.body(Body::from(body)).unwrap()).await;
    (status.as_u16(), headers, body)
}

fn error(kind: &str, text: &str) -> String {
    serde_json::json!({"status": "error", "errorType": kind, "error": text}).to_string()
}

/// As `error`, but compared as JSON: the order of keys differs.
fn same(body: &str, want: &str) {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(json(body), json(want));
}
