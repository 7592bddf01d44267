//! The node's own telemetry: what is measured, under which name, and what it is good for.
//!
//! Names are `engram_<room>_<noun>_<unit>`; labels come from closed sets. Each room gets a small struct it counts
//! with; what can be asked for at scrape time (series, memory, log positions) is collected then and costs nothing
//! in between.

use std::sync::Arc;
use std::time::Duration;

use engram_query::value::BlockStats;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::error::Error;
use crate::peer::Refused;
use crate::write::Written;

/// All telemetry of a node. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

/// One label with a word of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// The word.
    pub kind: &'static str,
}

/// Why samples were refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// A word of the closed list in `write/admit.rs` and `ingest/partition/mod.rs`.
    pub reason: &'static str,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok`, `partial`, or the class of the failure.
    pub result: &'static str,
}

/// What a room knows at scrape time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Full name without the `engram_` prefix and without `_total`.
    pub name: &'static str,
    /// What it is good for.
    pub help: &'static str,
    /// Whether it only grows.
    pub counter: bool,
    /// Which of several with the same name, as the label `kind`; these stand next to each other.
    pub kind: Option<&'static str>,
    /// Its value.
    pub value: f64,
}

impl Reading {
    /// A value that goes both ways.
    #[must_use]
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { name, help, counter: false, kind: None, value }
    }

    /// A value that only grows.
    #[must_use]
    pub fn counter(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { name, help, counter: true, kind: None, value }
    }

    /// The same, of one kind.
    #[must_use]
    pub fn of(self, kind: &'static str) -> Self {
        Self { kind: Some(kind), ..self }
    }
}

/// How often what came about, as a room knows it at scrape time.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Full name without the `engram_` prefix.
    pub name: &'static str,
    /// What it is good for.
    pub help: &'static str,
    /// Sum of all values.
    pub sum: f64,
    /// Upper bounds, growing, the last `f64::INFINITY`; and how many values lie between each and the one before.
    pub buckets: Vec<(f64, u64)>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self(Arc::new(Mutex::new(Registry::default())));
        metrics.collect_unprefixed(process_readings);
        metrics
    }
}

impl Metrics {
    /// Gives the registry to a room that registers its own metrics; names get the `engram_` prefix.
    pub fn register(&self, with: impl FnOnce(&mut Registry)) {
        with(self.0.lock().sub_registry_with_prefix("engram"));
    }

    /// Asks `readings` at each scrape.
    pub fn collect(&self, readings: impl Fn() -> Vec<Reading> + Send + Sync + 'static) {
        let collector = Box::new(Asked { prefix: "engram_", readings: Box::new(readings) });
        self.0.lock().register_collector(collector);
    }

    /// Asks a room that shows its metrics itself.
    pub fn collect_with(&self, collector: impl Collector) {
        self.0.lock().register_collector(Box::new(collector));
    }

    /// Asks for a distribution at each scrape.
    pub fn collect_distribution(&self, ask: impl Fn() -> Distribution + Send + Sync + 'static) {
        self.0.lock().register_collector(Box::new(AskedDistribution(Box::new(ask))));
    }

    fn collect_unprefixed(&self, readings: impl Fn() -> Vec<Reading> + Send + Sync + 'static) {
        self.0.lock().register_collector(Box::new(Asked { prefix: "", readings: Box::new(readings) }));
    }

    /// The exposition text (OpenMetrics).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail; were it to, the text so far is still true.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.0.lock());
        text
    }
}

struct Asked {
    prefix: &'static str,
    readings: Box<dyn Fn() -> Vec<Reading> + Send + Sync>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for same in (self.readings)().chunk_by(|a, b| a.name == b.name) {
            let Some(first) = same.first() else { continue };
            let name = format!("{}{}", self.prefix, first.name);
            let kind = if first.counter { MetricType::Counter } else { MetricType::Gauge };
            let mut family = encoder.encode_descriptor(&name, first.help, None, kind)?;
            let encode = |reading: &Reading, encoder: MetricEncoder<'_>| match first.counter {
                true => ConstCounter::new(reading.value).encode(encoder),
                false => ConstGauge::new(reading.value).encode(encoder),
            };
            if first.kind.is_none() {
                encode(first, family)?;
                continue;
            }
            for reading in same {
                let kind = reading.kind.unwrap_or_default();
                encode(reading, family.encode_family(&Kind { kind })?)?;
            }
        }
        Ok(())
    }
}

struct AskedDistribution(Box<dyn Fn() -> Distribution + Send + Sync>);

impl std::fmt::Debug for AskedDistribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AskedDistribution")
    }
}

impl Collector for AskedDistribution {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Distribution { name, help, sum, buckets } = (self.0)();
        let count = buckets.iter().map(|bucket| bucket.1).sum();
        let name = ["engram_", name].concat();
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Counters of the write path.
#[derive(Clone)]
pub struct WriteMetrics {
    requests: Family<ResultLabel, Counter>,
    received: Family<Kind, Counter>,
    refused: Family<Reason, Counter>,
    dropped: Family<Kind, Counter>,
    seconds: Histogram,
}

impl WriteMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let all = Self {
            requests: Family::default(),
            received: Family::default(),
            refused: Family::default(),
            dropped: Family::default(),
            seconds: Histogram::new(LATENCY_BUCKETS),
        };
        metrics.register(|r| {
            r.register("write_requests", "Write requests by how they ended", all.requests.clone());
            r.register("write_samples_received", "Samples decoded, before admission", all.received.clone());
            r.register("write_samples_refused", "Samples refused, by reason", all.refused.clone());
            r.register("write_dropped", "Things beside samples that were taken and not kept", all.dropped.clone());
            r.register_with_unit(
                "write_request_duration",
                "Time from the whole body to the durable majority",
                Unit::Seconds,
                all.seconds.clone(),
            );
        });
        all
    }

    /// Counts one request.
    pub fn observe(&self, took: Duration, result: Result<&Written, &Error>) {
        self.seconds.observe(took.as_secs_f64());
        let result = match result {
            Ok(Written { refused: None, .. }) => "ok",
            Ok(_) => "partial",
            Err(error) => class_word(error),
        };
        self.requests.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts what was decoded.
    pub fn received(&self, floats: usize, histograms: usize) {
        self.received.get_or_create(&Kind { kind: "float" }).inc_by(floats as u64);
        self.received.get_or_create(&Kind { kind: "histogram" }).inc_by(histograms as u64);
    }

    /// Counts what was taken and not kept.
    pub fn dropped(&self, exemplars: u64) {
        self.dropped.get_or_create(&Kind { kind: "exemplar" }).inc_by(exemplars);
    }

    /// Counts what was refused.
    pub fn refused(&self, refused: &Refused) {
        for (reason, count) in &refused.by_reason {
            self.refused.get_or_create(&Reason { reason }).inc_by(*count);
        }
    }
}

/// Counters of the read path.
#[derive(Clone)]
pub struct ReadMetrics {
    requests: Family<ResultLabel, Counter>,
    seconds: Family<Kind, Histogram>,
    samples: Counter,
    series: Counter,
    requests_fetched: Histogram,
    bytes_fetched: Histogram,
    chunks_read: Counter,
    fragments: Fragments,
}

/// What became of aggregations that could run where their series lie.
#[derive(Clone, Debug, Default)]
pub struct Fragments(Family<ResultLabel, Counter>);

impl Fragments {
    /// Counts one.
    pub fn count(&self, result: &'static str) {
        self.0.get_or_create(&ResultLabel { result }).inc();
    }
}

impl ReadMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let all = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            samples: Counter::default(),
            series: Counter::default(),
            requests_fetched: Histogram::new([0.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0]),
            bytes_fetched: Histogram::new([0.0, 1e5, 1e6, 1e7, 1e8, 1e9]),
            chunks_read: Counter::default(),
            fragments: Fragments::default(),
        };
        metrics.register(|r| {
            r.register("query_requests", "Queries by how they ended", all.requests.clone());
            r.register("query_samples", "Samples queries have looked at", all.samples.clone());
            r.register("query_series", "Series queries have selected", all.series.clone());
            r.register("query_block_chunks", "Chunks of blocks queries have read", all.chunks_read.clone());
            let help = "Aggregations that could be summed up by other nodes, by what came of it";
            r.register("query_fragments", help, all.fragments.0.clone());
            r.register(
                "query_fetch_requests",
                "Requests to the bucket of blocks for one query",
                all.requests_fetched.clone(),
            );
            r.register_with_unit(
                "query_fetched",
                "Bytes that came from the bucket of blocks for one query",
                Unit::Bytes,
                all.bytes_fetched.clone(),
            );
            r.register_with_unit(
                "query_duration",
                "Time of a query, waiting for its turn included, by kind",
                Unit::Seconds,
                all.seconds.clone(),
            );
        });
        all
    }

    /// Where aggregations are counted that could run elsewhere.
    #[must_use]
    pub fn fragments(&self) -> Fragments {
        self.fragments.clone()
    }

    /// Counts what one query fetched of blocks.
    #[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
    pub fn fetched(&self, stats: &BlockStats) {
        let BlockStats { blocks, chunks, chunk_bytes, cached_pages, fetch_requests, fetched_bytes } = *stats;
        if blocks > 0 {
            self.requests_fetched.observe(fetch_requests as f64);
            self.bytes_fetched.observe(fetched_bytes as f64);
            self.chunks_read.inc_by(chunks);
            tracing::debug!(
                blocks,
                chunks,
                chunk_bytes,
                cached_pages,
                fetch_requests,
                fetched_bytes,
                "blocks of a query"
            );
        }
    }

    /// Counts one query of `kind` (`instant`, `range`).
    pub fn observe(&self, kind: &'static str, took: Duration, cost: Result<(u64, u64), &Error>) {
        self.seconds.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
        let result = match cost {
            Ok((samples, series)) => {
                self.samples.inc_by(samples);
                self.series.inc_by(series);
                "ok"
            }
            Err(error) => class_word(error),
        };
        self.requests.get_or_create(&ResultLabel { result }).inc();
    }
}

fn class_word(error: &Error) -> &'static str {
    crate::error::error_type(error)
}

/// From a fast group commit to a query at its time-out.
const LATENCY_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// The standard `process_…` metrics, from `/proc` where there is one.
fn process_readings() -> Vec<Reading> {
    let mut readings = Vec::new();
    if let Some(cpu) = cpu_seconds() {
        readings.push(Reading::counter("process_cpu_seconds", "User and system CPU time of this process", cpu));
    }
    if let Some(bytes) = resident_bytes() {
        readings.push(Reading::gauge("process_resident_memory_bytes", "Resident memory of this process", bytes));
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        #[allow(clippy::cast_precision_loss, reason = "a count of open files")]
        let count = files.count() as f64;
        readings.push(Reading::gauge("process_open_fds", "Open file descriptors of this process", count));
    }
    readings
}

/// User and system CPU seconds of this process so far.
#[must_use]
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ').skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

/// Resident memory of this process in bytes.
#[must_use]
pub fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_holds_what_was_counted() {
        let metrics = Metrics::default();
        let write = WriteMetrics::new(&metrics);
        write.received(3, 0);
        write.observe(Duration::from_millis(2), Ok(&Written::default()));
        metrics.collect(|| {
            let bytes = |kind, n| Reading::counter("object_store_bytes", "Bytes", n).of(kind);
            vec![Reading::gauge("ingest_series", "Series in the head", 7.0), bytes("get", 1.0), bytes("put", 2.0)]
        });
        metrics.collect_distribution(|| Distribution {
            name: "log_sync_duration_seconds",
            help: "Time of a sync",
            sum: 0.5,
            buckets: vec![(0.25, 3), (f64::INFINITY, 1)],
        });
        let text = metrics.encode();
        for line in [
            "engram_log_sync_duration_seconds_bucket{le=\"0.25\"} 3",
            "engram_log_sync_duration_seconds_bucket{le=\"+Inf\"} 4",
            "engram_log_sync_duration_seconds_sum 0.5",
            "engram_write_samples_received_total{kind=\"float\"} 3",
            "engram_write_requests_total{result=\"ok\"} 1",
            "engram_ingest_series 7.0",
            "engram_object_store_bytes_total{kind=\"put\"} 2.0",
            "engram_write_request_duration_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
