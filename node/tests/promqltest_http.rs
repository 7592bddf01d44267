//! Prometheus' scripts over HTTP: what they load is sent by remote write 2.0, what they ask is asked of the API, and the
//! answer is held against what the engine answers on the same data in memory (which `query/tests/promqltest.rs` holds
//! against the scripts themselves). So a difference is the node's: decoding, storing, selecting, or writing JSON.
//!
//! Each `clear` begins a new tenant. The scripts are not part of the project; where they are absent the test says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    unreachable_pub,
    dead_code,
    reason = "test, and it shares files with others that use more of them"
)]

#[path = "../../query/tests/promqltest/compare.rs"]
mod compare;
#[path = "../../query/tests/memory/mod.rs"]
mod memory;
#[path = "../../query/tests/promqltest/runner.rs"]
mod runner;
#[path = "../../query/tests/promqltest/script.rs"]
mod script;
#[path = "../../query/tests/promqltest/series.rs"]
mod series;
#[path = "../../query/tests/promqltest/storage.rs"]
mod storage;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use engram_model::Labels;
use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::Value as SampleValue;
use engram_model::series::Columns;
use engram_query::engine::Outcome;
use engram_query::histogram::text::api_buckets;
use engram_query::value::Value;
use runner::{Names, Stage};
use script::{Command, Eval};
use serde_json::Value as Json;
use storage::Storage;
use support::{TestNode, client, field, snappy, start, varint};

/// Most warnings, and infos, the API shows.
const ANNOTATIONS_SHOWN: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_of_prometheus_pass_over_http() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/promqltest");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        tell("SKIPPED: promqltest over HTTP: the scripts are not there");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| {
        config.promql_experimental = true;
        config.limits.enforce_metric_name = false;
        // Later loads of a script may lie before earlier ones.
        config.limits.out_of_order_time_window_ms = i64::MAX;
    })
    .await;
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut passed, mut failures) = (0, Vec::new());
    for file in files.iter().filter(|file| file.extension().is_some_and(|ext| ext == "test")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let commands = script::parse(&std::fs::read_to_string(file).unwrap()).unwrap();
        let (good, bad) = run(&node, &name, commands).await;
        passed += good;
        tell(&format!("{name}, over HTTP: {good} passed, {} failed", bad.len()));
        failures.extend(bad.into_iter().map(|why| format!("{name} {why}")));
    }
    tell(&format!("promqltest, over HTTP: {passed} passed, {} failed", failures.len()));
    for failure in failures.iter().take(40) {
        tell(failure);
    }
    node.stop().await;
    assert!(failures.is_empty(), "{} evaluations differ", failures.len());
}

/// Prints past the test harness, which keeps what passing tests print.
fn tell(text: &str) {
    std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes()).unwrap();
}

async fn run(node: &TestNode, file: &str, commands: Vec<Command>) -> (usize, Vec<String>) {
    let asker = Asker { node, client: client() };
    let stem = file.trim_end_matches(".test");
    let (mut storage, mut clears, mut passed, mut failures) = (Storage::default(), 0, 0, Vec::new());
    for command in commands {
        let tenant = format!("{stem}-{clears}");
        match command {
            Command::Clear => {
                storage = Storage::default();
                clears += 1;
            }
            Command::Load { step_ms, with_nhcb, series } => {
                runner::load(&mut storage, step_ms, with_nhcb, &series);
                let (status, text) = node.push_bytes(&tenant, snappy(&request(&storage)), V2).await;
                assert!(status == 204, "{file}: load: {status} {text}");
            }
            Command::Eval(eval) => {
                let stage = Stage { storage: Arc::new(storage.freeze()), names: Names::Delayed };
                match ask(&asker, &tenant, &eval, &stage).await {
                    Ok(()) => passed += 1,
                    Err(why) => failures.push(format!("line {}: {}\n    {why}", eval.line, eval.expr)),
                }
            }
        }
    }
    (passed, failures)
}

const V2: &str = "application/x-protobuf;proto=io.prometheus.write.v2.Request";

/// Everything a script has loaded so far; what was sent before is sent again and is no error.
fn request(storage: &Storage) -> Vec<u8> {
    let mut symbols = vec![String::new()];
    let mut ids: BTreeMap<String, u64> = BTreeMap::new();
    let mut series = Vec::new();
    for (labels, columns) in storage.contents() {
        let mut refs = Vec::new();
        for text in labels.iter().flat_map(|(name, value)| [name, value]) {
            let next = symbols.len() as u64;
            let id = *ids.entry(text.to_owned()).or_insert_with(|| {
                symbols.push(text.to_owned());
                next
            });
            varint(&mut refs, id);
        }
        let mut one = Vec::new();
        field(&mut one, 1, &refs);
        samples(&mut one, columns);
        series.push(one);
    }
    let mut out = Vec::new();
    symbols.iter().for_each(|symbol| field(&mut out, 4, symbol.as_bytes()));
    series.iter().for_each(|one| field(&mut out, 5, one));
    out
}

fn samples(out: &mut Vec<u8>, columns: &Columns) {
    for (i, at) in columns.times.iter().enumerate() {
        // A script may name one series twice in a load: the later line counts.
        if columns.times[i + 1..].contains(at) {
            continue;
        }
        let mut sample = Vec::new();
        double(&mut sample, 1, columns.values[i]);
        number(&mut sample, 2, *at as u64);
        number(&mut sample, 3, columns.starts[i] as u64);
        field(out, 2, &sample);
    }
    for (i, at) in columns.histogram_times.iter().enumerate() {
        let mut one = histogram(&columns.histograms[i]);
        number(&mut one, 15, *at as u64);
        number2(&mut one, 17, columns.histogram_starts[i] as u64);
        field(out, 3, &one);
    }
}

fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

/// As [`number`], of a field whose tag takes two bytes.
fn number2(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3));
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn zigzag(value: i32) -> u64 {
    u64::from(((value << 1) ^ (value >> 31)) as u32)
}

fn histogram(h: &Histogram) -> Vec<u8> {
    let mut out = Vec::new();
    double(&mut out, 2, h.count);
    double(&mut out, 3, h.sum);
    number(&mut out, 4, zigzag(h.schema));
    double(&mut out, 5, h.zero_threshold);
    double(&mut out, 7, h.zero_count);
    spans(&mut out, 8, &h.negative_spans);
    doubles(&mut out, 10, &h.negative_buckets);
    spans(&mut out, 11, &h.positive_spans);
    doubles(&mut out, 13, &h.positive_buckets);
    let hint = match h.reset_hint {
        ResetHint::Unknown => 0,
        ResetHint::Reset => 1,
        ResetHint::NoReset => 2,
        ResetHint::Gauge => 3,
    };
    number(&mut out, 14, hint);
    if !h.custom_values.is_empty() {
        varint(&mut out, 16 << 3 | 2);
        varint(&mut out, 8 * h.custom_values.len() as u64);
        h.custom_values.iter().for_each(|bound| out.extend_from_slice(&bound.to_le_bytes()));
    }
    out
}

fn spans(out: &mut Vec<u8>, number_of: u8, spans: &[BucketSpan]) {
    for span in spans {
        let mut one = Vec::new();
        number(&mut one, 1, zigzag(span.offset));
        number(&mut one, 2, u64::from(span.length));
        field(out, number_of, &one);
    }
}

fn doubles(out: &mut Vec<u8>, number_of: u8, values: &[f64]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    if !bytes.is_empty() {
        field(out, number_of, &bytes);
    }
}

/// One client for all questions: there are thousands.
struct Asker<'a> {
    node: &'a TestNode,
    client: reqwest::Client,
}

async fn ask(asker: &Asker<'_>, tenant: &str, eval: &Eval, stage: &Stage) -> Result<(), String> {
    let seconds = |ms: i64| format!("{}", ms as f64 / 1000.0);
    let mut form = vec![("query", eval.expr.clone())];
    let path = if eval.step_ms == 0 {
        form.push(("time", seconds(eval.start)));
        "query"
    } else {
        form.extend([("start", seconds(eval.start)), ("end", seconds(eval.end)), ("step", seconds(eval.step_ms))]);
        "query_range"
    };
    let (status, answer) = post_form(asker, tenant, path, &form).await;
    match runner::query(&eval.expr, (eval.start, eval.end, eval.step_ms), stage) {
        Err(error) => match answer["error"].as_str() {
            Some(text) if text.contains(&error) && (400..500).contains(&status) => Ok(()),
            _ => Err(format!("expected the error {error:?} but got {status} {answer}")),
        },
        Ok(outcome) => same(&outcome, &answer).map_err(|why| format!("{why}\n    {status} {answer}")),
    }
}

async fn post_form(asker: &Asker<'_>, tenant: &str, path: &str, form: &[(&str, String)]) -> (u16, Json) {
    let encoded = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
    let body: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let request = asker.client.post(format!("{}/api/v1/{path}", asker.node.url)).header("X-Scope-OrgID", tenant);
    let request = request.header("Content-Type", "application/x-www-form-urlencoded").body(body.join("&"));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn same(want: &Outcome, have: &Json) -> Result<(), String> {
    for (kind, texts) in [("warnings", &want.annotations.warnings), ("infos", &want.annotations.infos)] {
        let shown: BTreeSet<&str> = have[kind].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
        let expected: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
        if expected.len() <= ANNOTATIONS_SHOWN && shown != expected {
            return Err(format!("{kind} should be {expected:?}"));
        }
    }
    let result = &have["data"]["result"];
    let kind = have["data"]["resultType"].as_str().unwrap_or_default();
    match &want.value {
        Value::Scalar { value, .. } => point(&SampleValue::Float(*value), result, kind == "scalar"),
        Value::String { value, .. } => {
            let text = String::from_utf8_lossy(value);
            if kind == "string" && result[1] == text.as_ref() { Ok(()) } else { Err(format!("expected {text:?}")) }
        }
        Value::Vector(samples) => {
            let all = result.as_array().ok_or("expected a vector")?;
            if kind != "vector" || all.len() != samples.len() {
                return Err(format!("expected a vector of {}", samples.len()));
            }
            samples.iter().zip(all).try_for_each(|(want, have)| {
                labels(&want.labels, have)?;
                let key = if matches!(want.value, SampleValue::Float(_)) { "value" } else { "histogram" };
                at(want.at, &have[key])?;
                point(&want.value, &have[key], true)
            })
        }
        Value::Matrix(series) => {
            let all = result.as_array().ok_or("expected a matrix")?;
            if kind != "matrix" || all.len() != series.len() {
                return Err(format!("expected a matrix of {}", series.len()));
            }
            series.iter().zip(all).try_for_each(|(want, have)| {
                labels(&want.labels, have)?;
                let floats = want.floats.iter().map(|(t, v)| (*t, SampleValue::Float(*v)));
                points(floats, &have["values"])?;
                let histograms = want.histograms.iter().map(|(t, h)| (*t, SampleValue::Histogram(h.clone())));
                points(histograms, &have["histograms"])
            })
        }
    }
}

fn labels(want: &Labels, have: &Json) -> Result<(), String> {
    let pairs = have["metric"].as_object().into_iter().flatten();
    let have = Labels::from_pairs(pairs.map(|(name, value)| (name.as_str(), value.as_str().unwrap())));
    if *want == have { Ok(()) } else { Err(format!("expected {want}, got {have}")) }
}

fn points(want: impl ExactSizeIterator<Item = (i64, SampleValue)>, have: &Json) -> Result<(), String> {
    let have = have.as_array().map(Vec::as_slice).unwrap_or_default();
    if want.len() != have.len() {
        return Err(format!("expected {} points, got {}", want.len(), have.len()));
    }
    want.zip(have).try_for_each(|((t, value), have)| {
        at(t, have)?;
        point(&value, have, true)
    })
}

fn at(want: i64, have: &Json) -> Result<(), String> {
    let have = have[0].as_f64().unwrap_or(f64::NAN);
    if have == want as f64 / 1000.0 { Ok(()) } else { Err(format!("expected the time {want} ms, got {have} s")) }
}

/// `[time, "value"]` or `[time, {…}]` against a value, bit for bit (any NaN is one).
fn point(want: &SampleValue, have: &Json, kind: bool) -> Result<(), String> {
    let number = |json: &Json| json.as_str().and_then(|text| text.parse::<f64>().ok());
    let equal =
        |want: f64, have: Option<f64>| have.is_some_and(|have| want == have || (want.is_nan() && have.is_nan()));
    let good = match want {
        SampleValue::Float(value) => equal(*value, number(&have[1])),
        SampleValue::Histogram(h) => {
            let buckets: Vec<_> = api_buckets(h).collect();
            let shown = have[1]["buckets"].as_array().map(Vec::as_slice).unwrap_or_default();
            equal(h.count, number(&have[1]["count"]))
                && equal(h.sum, number(&have[1]["sum"]))
                && buckets.len() == shown.len()
                && buckets.iter().zip(shown).all(|(want, have)| {
                    have[0] == want.rule
                        && equal(want.lower, number(&have[1]))
                        && equal(want.upper, number(&have[2]))
                        && equal(want.count, number(&have[3]))
                })
        }
    };
    if good && kind { Ok(()) } else { Err(format!("expected {want:?}, got {have}")) }
}
