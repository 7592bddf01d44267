//! Goal: requests of all kinds, good and bad, get the status, the shape and the words of Prometheus' API. Method: the
//! whole router in process, with rooms behind it whose answers the test chooses; for deadlines and leaving clients,
//! real connections.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use engram_model::error::Class;
use engram_model::sample::{Exemplar, Metadata, MetricKind, Value as SampleValue};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_model::{Labels, TimeRange};
use engram_query::engine::Outcome;
use engram_query::parse::Switches;
use engram_query::value::{Annotations, InstantSample, RangeSeries, Stats, Value};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::port::{Exemplars, Listed, Node, Part, Push, Read, Wanted};
use super::server::{ServeOptions, serve};
use super::{About, App, HttpMetrics, router, starting};
use crate::actor::{Condition, Health};
use crate::error::{Error, Stage};
use crate::metrics::Metrics;
use crate::read::QueryRequest;
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
    Outcome { value, annotations: Annotations::default(), stats: Stats::default() }
}

impl Fake {
    fn ask(&self, what: String) {
        self.asked.lock().push(what);
    }
}

impl Read for Fake {
    fn switches(&self) -> Switches {
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
            assert!(q.text != "panic", "the test wants a panic");
            self.query.lock().take().unwrap_or_else(|| Ok(outcome(Value::Vector(Vec::new()))))
        })
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

    fn exemplars<'a>(&'a self, _: &'a TenantId, _: &'a str, _: TimeRange) -> BoxFuture<'a, Result<Exemplars, Error>> {
        let one = Exemplar { labels: Labels::from_pairs([("trace", "x")]), value: 6.0, at: 1500 };
        Box::pin(async { Ok(vec![(Labels::from_pairs([("a", "b")]), vec![one])]) })
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
}

fn app_of(fake: &Arc<Fake>) -> (Arc<App>, Metrics) {
    let metrics = Metrics::default();
    let app = App {
        read: fake.clone(),
        push: fake.clone(),
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

#[tokio::test]
async fn an_instant_query_is_asked_and_answered() {
    let fake = Arc::new(Fake::default());
    let sample = InstantSample {
        labels: Labels::from_pairs([("__name__", "up"), ("job", "a")]),
        at: 1_435_781_451_781,
        value: SampleValue::Float(1.0),
    };
    let mut answer = outcome(Value::Vector(vec![sample.clone(), sample]));
    answer.annotations.warnings.insert("PromQL warning: x".to_owned());
    answer.annotations.infos.insert("PromQL info: y".to_owned());
    *fake.query.lock() = Some(Ok(answer));
    let path = "/prometheus/api/v1/query?query=up&time=1435781451.781&timeout=5s&limit=1&lookback_delta=1m";
    let (status, body) = get(&fake, path).await;
    assert_eq!(status, 200);
    assert_eq!(
        body,
        "{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[{\"metric\":{\"__name__\":\"up\",\"job\":\"a\"},\
         \"value\":[1435781451.781,\"1\"]}]},\"warnings\":[\"PromQL warning: x\",\"results truncated due to limit\"],\
         \"infos\":[\"PromQL info: y\"]}"
    );
    let asked = "anonymous up 1435781451781..1435781451781/0 timeout Some(5s) lookback Some(60000) limit 1";
    assert_eq!(*fake.asked.lock(), [asked]);
    get(&fake, "/api/v1/query?query=up").await;
    assert!(fake.asked.lock()[1].contains("up 1000500..1000500/0 timeout None lookback None limit 0"));
}

#[tokio::test]
async fn a_range_query_takes_a_form() {
    let fake = Arc::new(Fake::default());
    let series =
        RangeSeries { labels: Labels::empty(), floats: vec![(0, 1.5), (1000, f64::NAN)], histograms: Vec::new() };
    *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series]))));
    let request = Request::post("/api/v1/query_range?step=1")
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .header("x-scope-orgid", "team")
        .body(Body::from("query=a%2Bb&start=0&end=1970-01-01T00%3A00%3A01Z&step=1s&stats=all"))
        .unwrap();
    let (status, _, body) = send(&fake, request).await;
    assert_eq!(status, StatusCode::OK);
    let start = "{\"status\":\"success\",\"data\":{\"resultType\":\"matrix\",\"result\":[{\"metric\":{},\
                 \"values\":[[0,\"1.5\"],[1,\"NaN\"]]}],\"stats\":{\"timings\":";
    assert!(body.starts_with(start), "{body}");
    let tree: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(tree["data"]["stats"]["samples"]["peakSamples"], 0);
    assert!(fake.asked.lock()[0].starts_with("team a+b 0..1000/1000"));
}

#[tokio::test]
async fn scalars_and_strings_have_their_shapes() {
    let fake = Arc::new(Fake::default());
    for (value, want) in [
        (Value::Scalar { at: 1000, value: f64::INFINITY }, "{\"resultType\":\"scalar\",\"result\":[1,\"+Inf\"]}"),
        (
            Value::String { at: 1000, value: b"a\"\xff".to_vec() },
            "{\"resultType\":\"string\",\"result\":[1,\"a\\\"\u{fffd}\"]}",
        ),
        (Value::Vector(Vec::new()), "{\"resultType\":\"vector\",\"result\":[]}"),
        (Value::Matrix(Vec::new()), "{\"resultType\":\"matrix\",\"result\":[]}"),
    ] {
        *fake.query.lock() = Some(Ok(outcome(value)));
        let (_, body) = get(&fake, "/api/v1/query?query=x").await;
        assert_eq!(body, format!("{{\"status\":\"success\",\"data\":{want}}}"));
    }
}

#[tokio::test]
async fn bad_parameters_are_refused_in_prometheus_words() {
    let fake = Arc::new(Fake::default());
    let zero = "invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer";
    let points =
        "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)";
    for (path, text) in [
        (
            "query?query=up&time=x",
            "invalid parameter \"time\": Invalid time value for 'time': cannot parse \"x\" to a valid timestamp",
        ),
        (
            "query?query=up&time=1e300",
            "invalid parameter \"time\": Invalid time value for 'time': cannot parse \"1e300\" to a valid timestamp",
        ),
        ("query?query=up&limit=x", "invalid parameter \"limit\": strconv.Atoi: parsing \"x\": invalid syntax"),
        ("query?query=up&limit=-1", "invalid parameter \"limit\": limit must be non-negative"),
        (
            "query?query=up&limit=99999999999999999999",
            "invalid parameter \"limit\": strconv.Atoi: parsing \"99999999999999999999\": value out of range",
        ),
        ("query?query=up&timeout=x", "invalid parameter \"timeout\": cannot parse \"x\" to a valid duration"),
        (
            "query?query=up&lookback_delta=NaN",
            "error parsing lookback delta duration: cannot parse \"NaN\" to a valid duration",
        ),
        ("query_range?query=up", "invalid parameter \"start\": cannot parse \"\" to a valid timestamp"),
        ("query_range?query=up&start=0", "invalid parameter \"end\": cannot parse \"\" to a valid timestamp"),
        (
            "query_range?query=up&start=2&end=1&step=1",
            "invalid parameter \"end\": end timestamp must not be before start time",
        ),
        ("query_range?query=up&start=0&end=1", "invalid parameter \"step\": cannot parse \"\" to a valid duration"),
        ("query_range?query=up&start=0&end=1&step=0", zero),
        ("query_range?query=up&start=0&end=1&step=-1", zero),
        ("query_range?query=up&start=0&end=1&step=0.0001", zero),
        (
            "query_range?query=up&start=0&end=1&step=1e300",
            "invalid parameter \"step\": cannot parse \"1e300\" to a valid duration. It overflows int64",
        ),
        ("query_range?query=up&start=0&end=11001&step=1", points),
        ("query_range?query=up&start=-9223309901257974&end=9223309901257974&step=1", points),
        ("series", "no match[] parameter provided"),
        ("series?match[]=%7B%7D", "invalid parameter \"match[]\": match[] must contain at least one non-empty matcher"),
        ("labels?match[]=%7B%7D", "match[] must contain at least one non-empty matcher"),
        (
            "labels?start=NaN",
            "invalid parameter \"start\": Invalid time value for 'start': cannot parse \"NaN\" to a valid timestamp",
        ),
        ("metadata?limit=x", "limit must be a number"),
        ("metadata?limit_per_metric=x", "limit_per_metric must be a number"),
        ("query_exemplars?query=up&start=2&end=1", "end timestamp must not be before start timestamp"),
        ("query?query=%zz", "error parsing form values: invalid URL escape \"%zz\""),
    ] {
        let (status, body) = get(&fake, &format!("/api/v1/{path}")).await;
        assert_eq!(status, 400, "{path}: {body}");
        same(&body, &error("bad_data", text));
    }
    assert_eq!(get(&fake, "/api/v1/query_range?query=up&start=0&end=11000&step=1").await.0, 200);
}

#[tokio::test]
async fn failures_of_queries_keep_their_codes() {
    let fake = Arc::new(Fake::default());
    let execution = Error { stage: Stage::Execution, ..Error::invalid("many-to-many") };
    for (failure, status, kind) in [
        (Error::invalid("bad"), 400, "bad_data"),
        (execution, 422, "execution"),
        (Error::new(Class::Timeout, "slow"), 503, "timeout"),
        (Error::new(Class::Cancelled, "left"), 499, "canceled"),
        (Error::new(Class::Internal, "broken"), 500, "internal"),
        (Error::unavailable("no quorum"), 503, "unavailable"),
        (Error::new(Class::Limited, "too many"), 429, "too_many_requests"),
    ] {
        *fake.query.lock() = Some(Err(failure.clone()));
        let (have, body) = get(&fake, "/api/v1/query?query=up").await;
        assert_eq!(have, status, "{body}");
        same(&body, &error(kind, &failure.message));
    }
}

#[tokio::test]
async fn tenants_come_from_the_header() {
    let fake = Arc::new(Fake::default());
    for (name, status) in [("team-1", 200), ("", 401), ("a|b", 400), ("..", 400)] {
        let request = Request::get("/api/v1/query?query=up").header("X-Scope-OrgID", name).body(Body::empty()).unwrap();
        let (have, _, body) = send(&fake, request).await;
        assert_eq!(have.as_u16(), status, "{name}: {body}");
        serde_json::from_str::<serde_json::Value>(&body).unwrap();
    }
}

#[tokio::test]
async fn lists_are_answered_and_cut() {
    let fake = Arc::new(Fake::default());
    let (_, body) = get(&fake, "/api/v1/series?match[]=up&limit=2").await;
    same(&body, r#"{"status":"success","data":[{"a":"0"},{"a":"1"}],"warnings":["results truncated due to limit"]}"#);
    let (_, body) = get(&fake, "/api/v1/series?match[]=up&start=5&end=1").await;
    same(&body, r#"{"status":"success","data":[]}"#);
    let (_, body) = get(&fake, "/api/v1/labels").await;
    same(&body, r#"{"status":"success","data":["__name__","a\"b"],"warnings":["partial"]}"#);
    for (name, want) in [("job", "job"), ("U__a_2e_b", "a.b"), ("a%2Fb", "a/b")] {
        let (_, body) = get(&fake, &format!("/api/v1/label/{name}/values")).await;
        same(&body, &format!(r#"{{"status":"success","data":["{want}"]}}"#));
    }
    assert_eq!(get(&fake, "/api/v1/label/%ff/values").await.0, 400);
    let (_, body) = get(&fake, "/api/v1/metadata?metric=m&limit=5").await;
    same(&body, r#"{"status":"success","data":{"m":[{"type":"counter","help":"h","unit":""}]}}"#);
    let (_, body) = get(&fake, "/api/v1/metadata?limit=0").await;
    same(&body, r#"{"status":"success","data":{}}"#);
    let (_, body) = get(&fake, "/api/v1/query_exemplars?query=up").await;
    same(
        &body,
        r#"{"status":"success","data":[{"seriesLabels":{"a":"b"},"exemplars":[{"labels":{"trace":"x"},"value":"6","timestamp":1.500}]}]}"#,
    );
}

#[tokio::test]
async fn remote_write_negotiates_its_version() {
    let fake = Arc::new(Fake::default());
    let v2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
    for (content_type, encoding, status) in [
        (None, None, 204),
        (Some("application/x-protobuf"), Some("snappy"), 204),
        (Some("application/x-protobuf; proto=prometheus.WriteRequest"), Some("Snappy"), 204),
        (Some(v2), Some("snappy"), 204),
        (Some("application/x-protobuf;proto=other"), Some("snappy"), 415),
        (Some("application/x-protobuf;x"), Some("snappy"), 415),
        (Some("application/json"), Some("snappy"), 415),
        (Some(v2), Some("gzip"), 415),
        (Some(v2), Some("zstd"), 415),
    ] {
        let headers: Vec<_> = content_type
            .map(|t| ("content-type", t))
            .into_iter()
            .chain(encoding.map(|e| ("content-encoding", e)))
            .collect();
        let (have, answer, body) = push(&fake, &headers, "abc").await;
        assert_eq!(have, status, "{headers:?}: {body}");
        let counted = answer.get("x-prometheus-remote-write-samples-written").is_some();
        assert_eq!(counted, status == 204 && content_type == Some(v2), "{headers:?}");
    }
    let versions: Vec<_> = fake.asked.lock().iter().filter(|a| a.starts_with("anonymous")).cloned().collect();
    assert_eq!(versions, ["anonymous V1 3", "anonymous V1 3", "anonymous V1 3", "anonymous V2 3"]);
}

#[tokio::test]
async fn a_write_is_a_promise_or_says_who_must_act() {
    let fake = Arc::new(Fake::default());
    let v2 = [("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request")];
    let refused = Some(Refusal { class: Class::Invalid, message: "one is bad".to_owned() });
    *fake.written.lock() = Some(Ok(Written { samples: 3, histograms: 2, exemplars: 1, refused }));
    let (status, headers, body) = push(&fake, &v2, "x").await;
    assert_eq!(status, 400);
    same(&body, &error("bad_data", "one is bad"));
    for (name, want) in [("samples", "3"), ("histograms", "2"), ("exemplars", "1")] {
        assert_eq!(headers[format!("x-prometheus-remote-write-{name}-written").as_str()], want);
    }
    for (class, want, retry) in [
        (Class::Limited, 429, true),
        (Class::Unavailable, 503, true),
        (Class::Timeout, 503, true),
        (Class::Internal, 500, false),
    ] {
        *fake.written.lock() = Some(Err(Error::new(class, "why")));
        let (status, headers, body) = push(&fake, &[], "x").await;
        assert_eq!((status, headers.contains_key("retry-after")), (want, retry), "{body}");
        assert!(!headers.contains_key("x-prometheus-remote-write-samples-written"));
    }
}

#[tokio::test]
async fn large_bodies_are_refused_before_they_are_read() {
    let fake = Arc::new(Fake::default());
    let never = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let request = Request::post("/api/prom/push").header("content-length", "101").body(never).unwrap();
    let (status, _, body) = send(&fake, request).await;
    assert_eq!(status.as_u16(), 413, "{body}");
    assert!(fake.asked.lock().is_empty());
    let endless =
        Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789"))));
    let request = Request::post("/api/v1/push").body(endless).unwrap();
    assert_eq!(send(&fake, request).await.0.as_u16(), 413);
    fake.full.store(true, Ordering::SeqCst);
    let (status, headers, _) = push(&fake, &[], "x").await;
    assert_eq!((status, &headers["retry-after"]), (503, &http::HeaderValue::from(1)));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_apis_shape() {
    let fake = Arc::new(Fake::default());
    let (status, body) = get(&fake, "/api/v1/targets").await;
    assert_eq!(status, 404);
    same(&body, &error("not_found", "no such endpoint: /api/v1/targets"));
    for (method, path) in
        [("DELETE", "/api/v1/query"), ("GET", "/api/v1/write"), ("POST", "/api/v1/metadata"), ("PUT", "/-/ready")]
    {
        let (status, headers, body) =
            send(&fake, Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(status.as_u16(), 405, "{path}");
        assert!(headers.contains_key("allow"), "{path}");
        same(&body, &error("bad_data", &format!("method {method} is not allowed here")));
    }
    let json =
        Request::post("/api/v1/query").header("content-type", "application/json").body(Body::from("{}")).unwrap();
    assert_eq!(send(&fake, json).await.0.as_u16(), 415);
    let zipped = Request::post("/api/v1/query")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("content-encoding", "gzip")
        .body(Body::from("x"))
        .unwrap();
    assert_eq!(send(&fake, zipped).await.0.as_u16(), 415);
    let empty = Request::post("/api/v1/query?query=up").body(Body::empty()).unwrap();
    assert_eq!(send(&fake, empty).await.0.as_u16(), 200);
}

#[tokio::test]
async fn the_node_speaks_of_itself() {
    let fake = Arc::new(Fake::default());
    for path in [
        "/",
        "/ready",
        "/-/ready",
        "/-/healthy",
        "/metrics",
        "/api/v1/rules",
        "/api/v1/alerts",
        "/api/v1/alertmanagers",
        "/api/v1/status/config",
        "/api/v1/status/runtimeinfo",
        "/api/v1/cluster/status",
    ] {
        assert_eq!(get(&fake, path).await.0, 200, "{path}");
    }
    let (_, body) = get(&fake, "/api/v1/status/flags").await;
    same(&body, r#"{"status":"success","data":{"zone":"a"}}"#);
    let (_, body) = get(&fake, "/prometheus/api/v1/status/buildinfo").await;
    assert!(body.contains("\"application\":\"Engram\""), "{body}");
    fake.not_ready.store(true, Ordering::SeqCst);
    assert_eq!(get(&fake, "/-/ready").await, (503, "Engram is not ready:\ningest: replaying\n".to_owned()));
    assert_eq!(get(&fake, "/-/healthy").await.0, 200);
}

#[tokio::test]
async fn a_node_that_starts_says_how_far_it_is_and_asks_for_patience() {
    let health = Health::default();
    health.set("node/log", Condition::Starting("replaying".to_owned()));
    let router = starting(health);
    for (method, path, want) in [
        ("GET", "/-/healthy", 200),
        ("GET", "/-/ready", 503),
        ("POST", "/api/v1/write", 503),
        ("GET", "/api/v1/query", 503),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), want, "{path}");
        assert_eq!(response.headers().contains_key("retry-after"), path.starts_with("/api"), "{path}");
    }
}

#[tokio::test]
async fn queries_are_formatted_and_shown_as_trees() {
    let fake = Arc::new(Fake::default());
    let (_, body) = get(&fake, "/api/v1/format_query?query=sum(up)by(job)").await;
    same(&body, r#"{"status":"success","data":"sum by (job) (up)"}"#);
    let (_, body) = get(&fake, "/api/v1/parse_query?query=1").await;
    same(&body, r#"{"status":"success","data":{"type":"numberLiteral","val":"1"}}"#);
    let (status, body) = get(&fake, "/api/v1/format_query?query=sum(").await;
    assert_eq!(status, 400);
    assert!(body.contains("invalid parameter \\\"query\\\": 1:5: parse error:"), "{body}");
}

#[tokio::test]
async fn a_panic_is_a_500_and_everything_is_counted() {
    let fake = Arc::new(Fake::default());
    let (app, metrics) = app_of(&fake);
    let router = router(app);
    let ask = |path: &str| Request::get(path.to_owned()).header("x-request-id", "mine").body(Body::empty()).unwrap();
    let response = router.clone().oneshot(ask("/api/v1/query?query=panic")).await.unwrap();
    assert_eq!(response.status().as_u16(), 500);
    assert_eq!(response.headers()["x-request-id"], "mine");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    same(std::str::from_utf8(&body).unwrap(), &error("internal", "internal error, see this node's log"));
    let response = router.oneshot(Request::get("/no/such").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "0-0");
    let text = metrics.encode();
    for line in [
        "engram_http_requests_total{route=\"/api/v1/query\",method=\"GET\",code=\"500\"} 1",
        "engram_http_requests_total{route=\"other\",method=\"GET\",code=\"404\"} 1",
        "engram_http_request_duration_seconds_count{route=\"/api/v1/query\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn answers_are_compressed_when_asked_and_large_ones_come_whole() {
    let fake = Arc::new(Fake::default());
    let series = RangeSeries {
        labels: Labels::from_pairs([("a", "b")]),
        floats: (0..20_000).map(|i| (i, i as f64)).collect(),
        histograms: Vec::new(),
    };
    for zipped in [false, true] {
        *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series.clone()]))));
        let encoding = if zipped { "gzip" } else { "identity" };
        let request =
            Request::get("/api/v1/query?query=up").header("accept-encoding", encoding).body(Body::empty()).unwrap();
        let (_, headers, body) = send(&fake, request).await;
        assert_eq!(headers.contains_key("content-encoding"), zipped);
        if !zipped {
            let tree: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(tree["data"]["result"][0]["values"].as_array().unwrap().len(), 20_000);
        }
    }
}

/// A server on a port of its own, and how to stop it.
async fn serving(
    fake: &Arc<Fake>,
    options: ServeOptions,
) -> (std::net::SocketAddr, CancellationToken, Metrics, impl Future<Output = std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (app, all) = app_of(fake);
    let (metrics, stop) = (app.metrics.clone(), CancellationToken::new());
    (address, stop.clone(), all, serve(listener, router(app), options, metrics, stop))
}

const GET: &[u8] = b"GET /api/v1/query?query=up HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_client_that_leaves_stops_its_query() {
    let fake = Arc::new(Fake::default());
    fake.hangs.store(true, Ordering::SeqCst);
    let (address, stop, metrics, server) = serving(&fake, ServeOptions::default()).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        while fake.asked.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!fake.left.load(Ordering::SeqCst));
        drop(stream);
        while !fake.left.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("the query goes on without its client").0.unwrap();
    assert!(metrics.encode().contains("route=\"/api/v1/query\",method=\"GET\",code=\"499\"} 1"));
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_shown_out() {
    let fake = Arc::new(Fake::default());
    let floats = (0..2_000_000).map(|i| (i, 0.1)).collect();
    let series = RangeSeries { labels: Labels::empty(), floats, histograms: Vec::new() };
    *fake.query.lock() = Some(Ok(outcome(Value::Matrix(vec![series]))));
    let options = ServeOptions { write_stall_max: Duration::from_millis(50), ..ServeOptions::default() };
    let (address, stop, metrics, server) = serving(&fake, options).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let open = |count: u8| metrics.encode().contains(&format!("engram_http_connections {count}"));
        while !open(1) {
            tokio::task::yield_now().await;
        }
        while !open(0) {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        stream
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("a client that does not read is kept").0.unwrap();
}

#[tokio::test]
async fn clients_that_send_nothing_or_half_a_header_are_shown_out() {
    let fake = Arc::new(Fake::default());
    let options = ServeOptions { header_within: Duration::from_millis(50), ..ServeOptions::default() };
    let (address, stop, _, server) = serving(&fake, options).await;
    let client = async {
        for beginning in [&b""[..], b"G", b"GET /api/v1/query?query=up HTTP/1.1\r\nhost: x\r\nhalf"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(beginning).await.unwrap();
            let mut rest = Vec::new();
            let _broken = stream.read_to_end(&mut rest).await;
        }
        stop.cancel();
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("a silent client is kept").0.unwrap();
    assert!(fake.asked.lock().is_empty());
}

#[tokio::test]
async fn a_stop_lets_answers_finish_and_cuts_what_hangs() {
    let fake = Arc::new(Fake::default());
    let options = ServeOptions { stop_within: Duration::from_millis(50), ..ServeOptions::default() };
    let (address, stop, _, server) = serving(&fake, options).await;
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        fake.hangs.store(true, Ordering::SeqCst);
        let mut hanging = TcpStream::connect(address).await.unwrap();
        hanging.write_all(GET).await.unwrap();
        while fake.asked.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    };
    let both = futures::future::join(server, client);
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("the stop hangs").0.unwrap();
    assert!(fake.left.load(Ordering::SeqCst));
    assert!(TcpStream::connect(address).await.is_err());
}
