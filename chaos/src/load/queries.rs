//! The query suite: what dashboards and alerts ask of a store, a dozen kinds, each with its own latencies.

use super::fleet::{Fleet, mix};
use super::writer::{new_histogram, note};
use crate::client::Client;
use engram_model::time::{Millis, Stopwatch};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// One kind of question. `@R` stands for the matcher of the run, `@I` for that of one target.
struct Kind {
    name: &'static str,
    path: &'static str,
    text: &'static str,
}

const KINDS: [Kind; 13] = [
    Kind { name: "instant: one series", path: "query", text: "node_load1{@R,@I}" },
    Kind { name: "instant: sum of all up", path: "query", text: "sum by (job) (up{@R})" },
    Kind {
        name: "instant: count by regex",
        path: "query",
        text: r#"count by (mode) (node_cpu_seconds_total{@R,mode=~"i(dle|owait)"})"#,
    },
    Kind {
        name: "instant: top 10 by rate",
        path: "query",
        text: "topk(10, sum by (namespace, pod) (rate(container_cpu_usage_seconds_total{@R}[5m])))",
    },
    Kind {
        name: "instant: join",
        path: "query",
        text: "sum by (namespace) (container_memory_working_set_bytes{@R} * on (instance, pod) group_left () up{@R})",
    },
    Kind {
        name: "instant: p99 of a histogram",
        path: "query",
        text: "histogram_quantile(0.99, sum by (le) (rate(http_request_duration_seconds_bucket{@R}[5m])))",
    },
    Kind {
        name: "range: cpu of one host",
        path: "query_range",
        text: r#"100 * (1 - avg by (instance) (rate(node_cpu_seconds_total{@R,@I,mode="idle"}[5m])))"#,
    },
    Kind {
        name: "range: requests by code",
        path: "query_range",
        text: "sum by (code) (rate(http_requests_total{@R}[5m]))",
    },
    Kind {
        name: "range: error ratio",
        path: "query_range",
        text: r#"sum(rate(http_requests_total{@R,code=~"5.."}[5m])) / sum(rate(http_requests_total{@R}[5m]))"#,
    },
    Kind {
        name: "range: p99 of one host",
        path: "query_range",
        text: "histogram_quantile(0.99, sum by (handler, le) (rate(http_request_duration_seconds_bucket{@R,@I}[5m])))",
    },
    Kind {
        name: "range: gauge by namespace",
        path: "query_range",
        text: "max by (namespace) (avg_over_time(container_memory_working_set_bytes{@R}[10m]))",
    },
    Kind {
        name: "range: subquery of one host",
        path: "query_range",
        text: "max_over_time(sum(rate(http_requests_total{@R,@I}[5m]))[30m:1m])",
    },
    Kind { name: "labels: instances", path: "label/instance/values", text: "up{@R}" },
];

/// How long the suite runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amount {
    /// So many of each kind.
    Each(u64),
    /// All kinds in turn until this has passed.
    For(Duration),
    /// All kinds in turn until told to stop.
    UntilStopped,
}

/// What is asked, of whom.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) client: Client,
    pub(crate) tenants: Vec<Option<String>>,
    pub(crate) run: String,
    pub(crate) targets: usize,
    /// The last moment with samples; queries end there.
    pub(crate) last: Millis,
    /// With live data, what [`Suite::last`] is counted on from.
    pub(crate) live_since: Option<Stopwatch>,
    pub(crate) range: Duration,
    pub(crate) concurrency: usize,
}

/// What a kind of question took.
#[derive(Debug)]
pub(crate) struct KindTally {
    pub(crate) name: &'static str,
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) bytes: u64,
    /// Successful answers without a single series.
    pub(crate) empty: u64,
    pub(crate) errors: BTreeMap<String, u64>,
}

fn new_tallies() -> Vec<KindTally> {
    let tally = |kind: &Kind| KindTally {
        name: kind.name,
        latency_us: new_histogram(),
        bytes: 0,
        empty: 0,
        errors: BTreeMap::new(),
    };
    KINDS.iter().map(tally).collect()
}

/// Runs the suite; workers take the next question from one common count, so the kinds stay in proportion.
///
/// # Errors
/// A worker panicked.
pub(crate) async fn run(
    suite: Arc<Suite>,
    amount: Amount,
    stop: Arc<AtomicBool>,
) -> Result<Vec<KindTally>, tokio::task::JoinError> {
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..suite.concurrency.max(1) {
        workers.spawn(worker(suite.clone(), amount, stop.clone(), next.clone()));
    }
    let mut all = new_tallies();
    while let Some(tallies) = workers.join_next().await {
        for (sum, part) in all.iter_mut().zip(tallies?) {
            let _same_bounds = sum.latency_us.add(&part.latency_us);
            sum.bytes += part.bytes;
            sum.empty += part.empty;
            for (reason, count) in part.errors {
                note(&mut sum.errors, &reason, count);
            }
        }
    }
    Ok(all)
}

async fn worker(suite: Arc<Suite>, amount: Amount, stop: Arc<AtomicBool>, next: Arc<AtomicU64>) -> Vec<KindTally> {
    let started = Stopwatch::start();
    let mut tallies = new_tallies();
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let over = match amount {
            Amount::Each(each) => number >= each * KINDS.len() as u64,
            Amount::For(time) => started.elapsed() >= time,
            Amount::UntilStopped => false,
        };
        if over {
            break;
        }
        let which = usize::try_from(number % KINDS.len() as u64).unwrap_or(0);
        let (params, tenant) = suite.question(&KINDS[which], number);
        let tally = &mut tallies[which];
        let watch = Stopwatch::start();
        match suite.client.get(KINDS[which].path, &params, tenant).await {
            Ok(body) => {
                tally.latency_us.saturating_record(u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX));
                tally.bytes += body.len() as u64;
                let head = String::from_utf8_lossy(&body[..body.len().min(200)]).replace(' ', "");
                tally.empty += u64::from(head.contains("\"result\":[]") || head.contains("\"data\":[]"));
            }
            Err(error) => note(&mut tally.errors, &error.to_string(), 1),
        }
    }
    tallies
}

impl Suite {
    fn question(&self, kind: &Kind, number: u64) -> (Vec<(&'static str, String)>, Option<&str>) {
        let chance = mix(0x51ed, number);
        let pick = |of: usize, chance: u64| usize::try_from(chance % of.max(1) as u64).unwrap_or(0);
        let instance = Fleet::instance(pick(self.targets, chance));
        let text = kind
            .text
            .replace("@R", &format!("cluster=\"{}\"", self.run))
            .replace("@I", &format!("instance=\"{instance}\""));
        let live_ms = self.live_since.map_or(0, |w| i64::try_from(w.elapsed().as_millis()).unwrap_or(0));
        let end = self.last + live_ms;
        let range_ms = i64::try_from(self.range.as_millis()).unwrap_or(i64::MAX / 2);
        let mut params = match kind.path {
            "query" => vec![("query", text), ("time", seconds(end))],
            "query_range" => {
                // Some 120 points, whatever the range: what a graph on a screen asks for.
                let step_ms = (range_ms / 120).max(1_000);
                vec![("query", text), ("step", seconds(step_ms)), ("end", seconds(end))]
            }
            _ => vec![("match[]", text), ("end", seconds(end))],
        };
        if kind.path != "query" {
            params.push(("start", seconds(end - range_ms)));
        }
        (params, self.tenants[pick(self.tenants.len(), chance >> 32)].as_deref())
    }
}

/// Milliseconds as the query API writes time: seconds with three digits after the point.
pub(crate) fn seconds(ms: Millis) -> String {
    format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000))
}
