//! Queries: `query`, `query_range`, `query_exemplars`, `format_query`, `parse_query`.
//!
//! The order in which parameters are checked, the texts and the bounds are Prometheus', because dashboards and tests
//! compare them. A client that leaves drops the handler's future, and with it the query.
//!
//! Source: `prometheus web/api/v1/api.go` (`query`, `queryRange`, `queryExemplars`).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use engram_model::time::Stopwatch;
use engram_model::{Millis, TimeRange};
use engram_query::engine::Outcome;
use engram_query::parse;
use engram_query::parse::ast::Expr;
use engram_query::value::{BlockStats, SamplesByStep, Stats, Value};
use http::HeaderMap;

use super::App;
use super::answer::{Failure, Remarks, no_content, stream_success, success};
use super::json::{self, List, Matrix};
use super::params::{Params, Tenant};
use crate::read::QueryRequest;

/// Most points of one series in a range query.
const POINTS_MAX: i128 = 11_000;
const NANOS_PER_MILLI: i64 = 1_000_000;

/// `query`: one evaluation.
pub(crate) async fn instant(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let limit = params.limit()?;
    let at = params.time_or("time", app.clock.now())?;
    let request = request_of(&params, at, at, 0, limit)?;
    evaluate(&app, &tenant, &params, request).await
}

/// `query_range`: one evaluation a step.
pub(crate) async fn range(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let limit = params.limit()?;
    let start = params.time("start")?;
    let end = params.time("end")?;
    if end < start {
        return Err(Failure::parameter("end", "end timestamp must not be before start time"));
    }
    let step_ms = step(&params, start, end)?;
    let request = request_of(&params, start, end, step_ms, limit)?;
    evaluate(&app, &tenant, &params, request).await
}

fn step(params: &Params, start: Millis, end: Millis) -> Result<i64, Failure> {
    let step_ns = super::time::parse_duration_ns(params.get("step")).map_err(|why| Failure::parameter("step", why))?;
    if step_ns <= 0 {
        return Err(no_step());
    }
    let length_ns = (i128::from(end) - i128::from(start)) * i128::from(NANOS_PER_MILLI);
    if length_ns / i128::from(step_ns) > POINTS_MAX {
        return Err(Failure::bad_data(
            "exceeded maximum resolution of 11,000 points per timeseries. \
             Try decreasing the query resolution (?step=XX)",
        ));
    }
    // Below a millisecond two steps would fall onto one time.
    if step_ns < NANOS_PER_MILLI { Err(no_step()) } else { Ok(step_ns / NANOS_PER_MILLI) }
}

fn no_step() -> Failure {
    let why = "zero or negative query resolution step widths are not accepted. Try a positive integer";
    Failure::parameter("step", why)
}

fn request_of(
    params: &Params,
    start: Millis,
    end: Millis,
    step_ms: i64,
    limit: usize,
) -> Result<QueryRequest, Failure> {
    let timeout = params.duration_ns("timeout").map_err(|why| Failure::parameter("timeout", why))?;
    let lookback = params
        .duration_ns("lookback_delta")
        .map_err(|why| Failure::bad_data(format!("error parsing lookback delta duration: {why}")))?;
    Ok(QueryRequest {
        text: params.get("query").to_owned(),
        start,
        end,
        step_ms,
        timeout: timeout.map(|ns| Duration::from_nanos(u64::try_from(ns).unwrap_or(0))),
        lookback_ms: lookback.map(|ns| ns / NANOS_PER_MILLI).filter(|ms| *ms > 0),
        limit,
        explain: matches!(params.get("explain"), "1" | "true"),
        count_steps: !params.get("stats").is_empty(),
    })
}

async fn evaluate(app: &App, tenant: &Tenant, params: &Params, request: QueryRequest) -> Result<Response, Failure> {
    let watch = Stopwatch::start();
    let limit = request.limit;
    #[cfg(feature = "mutants")]
    let tenant = &whose_answer(tenant, &request);
    let mut outcome = app.read.query(&tenant.0, request).await.map_err(|error| Failure::query(&error))?;
    let mut remarks = Remarks {
        warnings: std::mem::take(&mut outcome.annotations.warnings),
        infos: std::mem::take(&mut outcome.annotations.infos),
    };
    if truncate(&mut outcome.value, limit) {
        remarks.warnings.insert("results truncated due to limit".to_owned());
    }
    let stats = params.get("stats");
    if !matches!(stats, "" | "true" | "all") {
        remarks.warnings.insert(format!(
            "value {stats:?} for parameter \"stats\" is deprecated and will be rejected in the next major release, \
             use \"true\" or \"all\""
        ));
    }
    let mut beside = String::new();
    if !stats.is_empty() {
        beside.push_str(&stats_json(&outcome.stats, stats == "all", watch.elapsed()));
    }
    if let Some(explain) = outcome.explain.take() {
        let tree = serde_json::to_string(&explain).map_err(|e| Failure::internal(e.to_string()))?;
        beside.push_str(",\"explain\":");
        beside.push_str(&tree);
    }
    Ok(answer(outcome, &beside, &remarks))
}

/// The tenant who asked the same first: a cache of answers would have his, if its key were without the tenant.
#[cfg(feature = "mutants")]
fn whose_answer(tenant: &Tenant, request: &QueryRequest) -> Tenant {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    type Asked = (String, Millis, Millis);
    static FIRST: LazyLock<Mutex<HashMap<Asked, engram_model::tenant::TenantId>>> = LazyLock::new(Mutex::default);
    if !engram_model::mutant::Mutant::CacheAcrossTenants.lives() || request.step_ms == 0 {
        return Tenant(tenant.0.clone());
    }
    let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (request.text.clone(), request.start, request.end);
    Tenant(first.entry(key).or_insert_with(|| tenant.0.clone()).clone())
}

fn truncate(value: &mut Value, limit: usize) -> bool {
    let too_many = |have: usize| limit > 0 && have > limit;
    match value {
        Value::Vector(all) if too_many(all.len()) => all.truncate(limit),
        Value::Matrix(all) if too_many(all.len()) => all.truncate(limit),
        _ => return false,
    }
    true
}

/// `stats` is empty, or what stands beside the result: `,"stats":{…},"explain":{…}`.
fn answer(outcome: Outcome, stats: &str, remarks: &Remarks) -> Response {
    let tail = format!("]{stats}}}");
    match outcome.value {
        Value::Vector(all) => {
            let items = List::new(all, json::put_instant);
            stream_success("{\"resultType\":\"vector\",\"result\":[", items, tail.as_bytes(), remarks)
        }
        Value::Matrix(all) => {
            let items = Matrix::new(all);
            stream_success("{\"resultType\":\"matrix\",\"result\":[", items, tail.as_bytes(), remarks)
        }
        Value::Scalar { at, value } => {
            let mut data = b"{\"resultType\":\"scalar\",\"result\":".to_vec();
            json::put_scalar_at(&mut data, at, value);
            data.extend_from_slice(format!("{stats}}}").as_bytes());
            success(&data, remarks)
        }
        Value::String { at, value } => {
            let mut data = b"{\"resultType\":\"string\",\"result\":[".to_vec();
            json::put_time(&mut data, at);
            data.push(b',');
            json::put_string(&mut data, &String::from_utf8_lossy(&value));
            data.extend_from_slice(tail.as_bytes());
            success(&data, remarks)
        }
    }
}

/// Only what was measured: waiting is what remains of the whole after selecting and evaluating.
fn stats_json(stats: &Stats, by_step: bool, took: Duration) -> String {
    let total = took.as_secs_f64();
    let points = |name: &str, counts: fn(&SamplesByStep) -> &Vec<u64>| match &stats.samples_by_step {
        Some(steps) if by_step => step_points(name, steps, counts(steps)),
        _ => String::new(),
    };
    let eval_total = stats.select_seconds + stats.eval_seconds;
    format!(
        ",\"stats\":{{\"timings\":{{\"evalTotalTime\":{eval_total},\"resultSortTime\":0,\"queryPreparationTime\":{},\
         \"innerEvalTime\":{},\"execQueueTime\":{},\"execTotalTime\":{total}}},\
         \"samples\":{{{}\"totalQueryableSamples\":{},{}\"samplesRead\":{},\"peakSamples\":{}}}{}}}",
        stats.select_seconds,
        stats.eval_seconds,
        (total - eval_total).max(0.0),
        points("totalQueryableSamplesPerStep", |s| &s.looked_at),
        stats.samples_total,
        points("samplesReadPerStep", |s| &s.read),
        stats.samples_read,
        stats.samples_peak,
        if by_step { blocks_json(&stats.blocks) } else { String::new() },
    )
}

/// `,"blocks":{…}`: what Prometheus has no word for.
fn blocks_json(stats: &BlockStats) -> String {
    serde_json::to_string(stats).map_or_else(|_| String::new(), |text| format!(",\"blocks\":{text}"))
}

/// `"name":[[t,n],…],`
fn step_points(name: &str, steps: &SamplesByStep, counts: &[u64]) -> String {
    let mut out = format!("\"{name}\":[").into_bytes();
    for (i, count) in counts.iter().enumerate() {
        out.extend_from_slice(if i == 0 { b"[" } else { b",[" });
        let at = i64::try_from(i).unwrap_or(i64::MAX).saturating_mul(steps.step_ms);
        json::put_time(&mut out, steps.start.saturating_add(at));
        out.extend_from_slice(format!(",{count}]").as_bytes());
    }
    out.extend_from_slice(b"],");
    String::from_utf8_lossy(&out).into_owned()
}

/// `query_exemplars`: exemplars of the series a query selects. A query that selects none has no data at all, and a text
/// that is none is told without the parameter's name, as in Prometheus.
pub(crate) async fn exemplars(
    tenant: Tenant,
    State(app): State<Arc<App>>,
    params: Params,
) -> Result<Response, Failure> {
    let range = params.range()?;
    if range.is_empty() {
        return Err(Failure::bad_data("end timestamp must not be before start timestamp"));
    }
    let range: TimeRange = range;
    let expr = parse::parse(params.get("query"), &app.read.switches(&tenant.0))
        .map_err(|why| Failure::bad_data(why.to_string()))?;
    if parse::selectors(&expr).is_empty() {
        return Ok(no_content(HeaderMap::new()));
    }
    let found = app.read.exemplars(&tenant.0, params.get("query"), range).await.map_err(|e| Failure::query(&e))?;
    let items = List::new(found, |out, (labels, exemplars)| {
        out.extend_from_slice(b"{\"seriesLabels\":");
        json::put_labels(out, labels);
        out.extend_from_slice(b",\"exemplars\":[");
        for (i, exemplar) in exemplars.iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"{\"labels\":" } else { b",{\"labels\":" });
            json::put_labels(out, &exemplar.labels);
            out.extend_from_slice(b",\"value\":");
            json::put_float(out, exemplar.value);
            out.extend_from_slice(b",\"timestamp\":");
            json::put_time(out, exemplar.at);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    });
    Ok(stream_success("[", items, b"]", &Remarks::default()))
}

/// `format_query`: the query, printed prettily.
pub(crate) async fn format(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let expr = parsed(&app, &tenant, &params)?;
    let mut data = Vec::new();
    json::put_string(&mut data, &parse::prettify(&expr));
    Ok(success(&data, &Remarks::default()))
}

/// `parse_query`: the query as a tree.
pub(crate) async fn tree(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let expr = parsed(&app, &tenant, &params)?;
    Ok(success(parse::to_json(&expr).to_string().as_bytes(), &Remarks::default()))
}

fn parsed(app: &App, tenant: &Tenant, params: &Params) -> Result<Expr, Failure> {
    parse::parse(params.get("query"), &app.read.switches(&tenant.0)).map_err(|why| Failure::parameter("query", why))
}
