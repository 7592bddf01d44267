//! What went to each other node and came back: calls, failures, bytes, time, what waits and what is on its way.
//!
//! Why by node: one slow or silent node shows in the middle of nothing else; and by kind of call, because the bytes of
//! queries that ship samples (`select`) and of those that ship sums (`sum`) are what push-down is judged by. Labels are
//! bounded by the nodes of the cluster, which are never more than the metadata holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::error::Class;
use engram_model::place::NodeId;
use engram_model::time::Stopwatch;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::error::{Error, Stage};

/// What is asked of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A slice of a write.
    Append,
    /// Series and digests.
    Select,
    /// Names, values, what a replica holds.
    Ask,
    /// Sums of series.
    Sum,
}

/// All kinds with their words.
const CALLS: [(Call, &str); 4] =
    [(Call::Append, "append"), (Call::Select, "select"), (Call::Ask, "ask"), (Call::Sum, "sum")];
/// Upper bounds of latencies in milliseconds; slower ones have none.
const BOUNDS_MS: [u64; 9] = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000];

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    failures: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    running: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
}

/// What went to one node and came back.
#[derive(Debug, Default)]
pub struct Peer {
    calls: [Counts; CALLS.len()],
    /// Slices that wait to be sent.
    pub(super) waiting: AtomicU64,
    /// Whether the stream of writes is open.
    stream: AtomicU64,
}

/// A call that runs. One that is not said to have ended was given up by who made it: it has not failed, nor taken time.
#[derive(Debug)]
pub struct Running {
    peer: Arc<Peer>,
    call: Call,
    watch: Stopwatch,
    failed: Option<bool>,
}

impl Peer {
    fn counts(&self, call: Call) -> &Counts {
        &self.calls[call as usize]
    }

    /// A call begins.
    #[must_use]
    pub fn begin(self: &Arc<Self>, call: Call) -> Running {
        self.counts(call).requests.fetch_add(1, Ordering::Relaxed);
        self.counts(call).running.fetch_add(1, Ordering::Relaxed);
        Running { peer: self.clone(), call, watch: Stopwatch::start(), failed: None }
    }

    /// Counts bytes of a call, sent.
    pub fn sent(&self, call: Call, bytes: usize) {
        self.counts(call).sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes of a call, received.
    pub fn received(&self, call: Call, bytes: usize) {
        self.counts(call).received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many slices wait now.
    pub fn waits(&self, slices: usize) {
        self.waiting.store(slices as u64, Ordering::Relaxed);
    }

    /// Whether the stream of writes is open now.
    pub fn stream(&self, is_open: bool) {
        self.stream.store(u64::from(is_open), Ordering::Relaxed);
    }
}

impl Running {
    /// It has ended. What a node refuses because of the request is no failure of the node.
    pub fn ended<T>(&mut self, done: &Result<T, Error>) {
        let is_ill = |e: &Error| {
            e.stage == Stage::Request && matches!(e.class, Class::Unavailable | Class::Timeout | Class::Internal)
        };
        self.failed = Some(done.as_ref().is_err_and(is_ill));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (counts, took) = (self.peer.counts(self.call), self.watch.elapsed());
        counts.running.fetch_sub(1, Ordering::Relaxed);
        let Some(failed) = self.failed else { return };
        counts.failures.fetch_add(u64::from(failed), Ordering::Relaxed);
        let is_within = |bound: &u64| took <= Duration::from_millis(*bound);
        let at = BOUNDS_MS.iter().position(is_within).unwrap_or(BOUNDS_MS.len());
        counts.buckets[at].fetch_add(1, Ordering::Relaxed);
        counts.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// All other nodes that were ever called. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Stats(Arc<Mutex<BTreeMap<NodeId, Arc<Peer>>>>);

impl Stats {
    /// The counters of a node.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Arc<Peer> {
        self.0.lock().entry(node).or_default().clone()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPeer {
    peer: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCall {
    peer: u64,
    call: &'static str,
}

/// A family: its name, what it is good for, whether it only grows, and where its values lie.
type Family<T> = (&'static str, &'static str, bool, fn(&T) -> &AtomicU64);

const OF_CALLS: [Family<Counts>; 5] = [
    ("engram_peer_requests", "Calls of another node", true, |c| &c.requests),
    ("engram_peer_failures", "Calls that failed at another node or on the way", true, |c| &c.failures),
    ("engram_peer_sent_bytes", "Bytes of messages sent to another node", true, |c| &c.sent_bytes),
    ("engram_peer_received_bytes", "Bytes of messages that came from another node", true, |c| &c.received_bytes),
    ("engram_peer_running", "Calls another node is at work on", false, |c| &c.running),
];
const OF_PEERS: [Family<Peer>; 2] = [
    ("engram_peer_waiting", "Slices of writes that wait to be sent to another node", false, |p| &p.waiting),
    ("engram_peer_stream_open", "Whether the stream of writes to another node is open", false, |p| &p.stream),
];

#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn number(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

impl Collector for Stats {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let peers: Vec<(u64, Arc<Peer>)> = self.0.lock().iter().map(|(node, peer)| (node.0, peer.clone())).collect();
        if peers.is_empty() {
            return Ok(());
        }
        for (name, help, grows, of) in OF_CALLS {
            let kind = if grows { MetricType::Counter } else { MetricType::Gauge };
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (node, peer) in &peers {
                for (call, word) in CALLS {
                    let (value, labels) = (number(of(peer.counts(call))), OfCall { peer: *node, call: word });
                    let encoder = family.encode_family(&labels)?;
                    if grows {
                        ConstCounter::new(value).encode(encoder)?;
                    } else {
                        ConstGauge::new(value).encode(encoder)?;
                    }
                }
            }
        }
        for (name, help, _, of) in OF_PEERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (node, peer) in &peers {
                ConstGauge::new(number(of(peer))).encode(family.encode_family(&OfPeer { peer: *node })?)?;
            }
        }
        let (name, help) = ("engram_peer_duration_seconds", "Time until another node has answered a call");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (node, peer) in &peers {
            for (call, word) in CALLS {
                let counts = peer.counts(call);
                let bounds = BOUNDS_MS.iter().map(|ms| Duration::from_millis(*ms).as_secs_f64()).chain([f64::INFINITY]);
                let each = counts.buckets.iter().map(|count| count.load(Ordering::Relaxed));
                let buckets: Vec<(f64, u64)> = bounds.zip(each).collect();
                let (sum, count) = (number(&counts.nanos) / 1e9, buckets.iter().map(|bucket| bucket.1).sum());
                let labels = OfCall { peer: *node, call: word };
                let mut metric = family.encode_family(&labels)?;
                metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown_by_node_and_call() {
        let (stats, mut registry) = (Stats::default(), prometheus_client::registry::Registry::default());
        registry.register_collector(Box::new(stats.clone()));
        let shown = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!shown().contains("engram_peer"), "nobody was called");
        let peer = stats.of(NodeId(7));
        peer.begin(Call::Sum).ended(&Ok(()));
        peer.begin(Call::Sum).ended::<()>(&Err(Error::unavailable("gone")));
        peer.begin(Call::Ask).ended::<()>(&Err(Error::new(Class::Limited, "too many")));
        drop(peer.begin(Call::Ask));
        let running = peer.begin(Call::Append);
        peer.sent(Call::Append, 11);
        peer.received(Call::Sum, 5);
        stats.of(NodeId(7)).received(Call::Sum, 1);
        peer.waits(3);
        peer.stream(true);
        let text = shown();
        for line in [
            "engram_peer_requests_total{peer=\"7\",call=\"sum\"} 2.0",
            "engram_peer_failures_total{peer=\"7\",call=\"sum\"} 1.0",
            "engram_peer_failures_total{peer=\"7\",call=\"ask\"} 0.0",
            "engram_peer_duration_seconds_count{peer=\"7\",call=\"ask\"} 1",
            "engram_peer_running{peer=\"7\",call=\"append\"} 1.0",
            "engram_peer_sent_bytes_total{peer=\"7\",call=\"append\"} 11.0",
            "engram_peer_received_bytes_total{peer=\"7\",call=\"sum\"} 6.0",
            "engram_peer_waiting{peer=\"7\"} 3.0",
            "engram_peer_stream_open{peer=\"7\"} 1.0",
            "engram_peer_duration_seconds_count{peer=\"7\",call=\"sum\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(running);
        assert!(shown().contains("engram_peer_running{peer=\"7\",call=\"append\"} 0.0"));
    }
}
