//! The imagined fleet: which series exist and which value each has at each scrape.
//!
//! Why imagined by formula: a value is a function of (run, series, scrape), so writers share nothing, a request
//! can be patched in any order, and the verifier knows what must be read back without having kept it.
//!
//! A target (a pod and the node under it) exposes the same few hundred series: node, container, kube and HTTP
//! metrics, counters, gauges and histogram buckets. A target lives in generations: a new generation has a new
//! `pod` label (churn) and its counters start at zero; targets also restart in place now and then (a counter reset).

use std::f64::consts::TAU;

/// Scrapes between two restarts of a target in place.
const RESTART_SCRAPES: u64 = 1_440;
/// Upper bounds of the latency histogram, seconds, and the share of requests at or below each.
const BUCKETS: [(&str, f64); 12] = [
    ("0.005", 0.08),
    ("0.01", 0.21),
    ("0.025", 0.45),
    ("0.05", 0.63),
    ("0.1", 0.79),
    ("0.25", 0.90),
    ("0.5", 0.955),
    ("1", 0.981),
    ("2.5", 0.993),
    ("5", 0.998),
    ("10", 0.9995),
    ("+Inf", 1.0),
];
const HANDLERS: [&str; 6] = ["/api/v1/orders", "/api/v1/items", "/api/v1/users", "/healthz", "/login", "/static"];
const MODES: [&str; 8] = ["idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"];
const SPACES: [&str; 10] = [
    "billing",
    "checkout",
    "default",
    "frontend",
    "ingress",
    "kube-system",
    "logging",
    "monitoring",
    "payments",
    "search",
];

/// How the values of a series move.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Grows by about `rate` a scrape, to `digits` after the point.
    Counter { rate: f64, digits: i32 },
    /// Swings around `base`, noise included, to `digits` after the point.
    Gauge { base: f64, digits: i32 },
    /// One bucket, or the count, of the histogram of a handler: a share of its requests.
    Share { handler: u64, rate: f64, share: f64 },
    /// Always this.
    Constant(f64),
}

/// One series of a target.
#[derive(Clone, Debug)]
struct Slot {
    metric: usize,
    own: Vec<(&'static str, String)>,
    shape: Shape,
}

/// What a target is at one scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// Which incarnation of the target this is: part of its `pod` label.
    pub(crate) generation: u32,
    /// Scrapes since its counters were zero.
    age: u64,
}

/// The series of one run.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    run: String,
    seed: u64,
    labels_min: usize,
    replaced_per_scrape: f64,
    names: Vec<&'static str>,
    slots: Vec<Slot>,
}

impl Fleet {
    /// A fleet of the run called `run`; `churn` is the share of targets replaced in an hour.
    pub(crate) fn new(run: &str, labels_min: usize, churn: f64, interval_ms: i64) -> Self {
        let seed = run.bytes().fold(0x9e37_79b9_7f4a_7c15, |seed, byte| mix(seed, u64::from(byte)));
        #[allow(clippy::cast_precision_loss, reason = "an interval is far below 2^53 ms")]
        let replaced_per_scrape = churn * interval_ms as f64 / 3_600_000.0;
        let mut fleet =
            Self { run: run.to_string(), seed, labels_min, replaced_per_scrape, names: Vec::new(), slots: Vec::new() };
        fleet.plan();
        fleet
    }

    fn add(&mut self, name: &'static str, own: &[(&'static str, &str)], shape: Shape) {
        let known = self.names.iter().position(|have| *have == name);
        let metric = known.unwrap_or(self.names.len());
        if known.is_none() {
            self.names.push(name);
        }
        self.slots.push(Slot { metric, own: own.iter().map(|(n, v)| (*n, (*v).to_string())).collect(), shape });
    }

    fn plan(&mut self) {
        self.add("up", &[], Shape::Constant(1.0));
        for cpu in 0..8 {
            for (i, mode) in (0u8..).zip(MODES) {
                let rate = if mode == "idle" { 11.0 } else { 0.9 / f64::from(i + 1) };
                self.add(
                    "node_cpu_seconds_total",
                    &[("cpu", &cpu.to_string()), ("mode", mode)],
                    Shape::Counter { rate, digits: 2 },
                );
            }
        }
        self.add("node_memory_MemAvailable_bytes", &[], Shape::Gauge { base: 9.0e9, digits: 0 });
        self.add("node_load1", &[], Shape::Gauge { base: 2.5, digits: 2 });
        self.add("go_goroutines", &[], Shape::Gauge { base: 140.0, digits: 0 });
        self.add("process_resident_memory_bytes", &[], Shape::Gauge { base: 2.1e8, digits: 0 });
        for device in ["nvme0n1p1", "nvme0n1p2", "sda1", "sdb1", "tmpfs", "overlay"] {
            let own = [("device", device), ("fstype", "ext4"), ("mountpoint", device)];
            self.add("node_filesystem_avail_bytes", &own, Shape::Gauge { base: 4.2e11, digits: 0 });
        }
        for device in ["eth0", "eth1", "lo", "cni0"] {
            self.add(
                "node_network_receive_bytes_total",
                &[("device", device)],
                Shape::Counter { rate: 3.1e6, digits: 0 },
            );
            self.add("node_disk_io_time_seconds_total", &[("device", device)], Shape::Counter { rate: 1.4, digits: 3 });
        }
        for space in SPACES {
            let own = [("namespace", space), ("container", "app")];
            self.add("container_cpu_usage_seconds_total", &own, Shape::Counter { rate: 4.0, digits: 3 });
            self.add("container_memory_working_set_bytes", &own, Shape::Gauge { base: 5.2e8, digits: 0 });
        }
        for phase in ["Failed", "Pending", "Running", "Succeeded", "Unknown"] {
            let value = if phase == "Running" { 1.0 } else { 0.0 };
            self.add("kube_pod_status_phase", &[("phase", phase)], Shape::Constant(value));
        }
        for (handler, path) in (0u64..).zip(HANDLERS) {
            let rate = 900.0 / (handler as f64 + 1.0);
            for (code, part) in [("200", 0.96), ("304", 0.02), ("404", 0.015), ("500", 0.005)] {
                let own = [("handler", path), ("method", "GET"), ("code", code)];
                self.add("http_requests_total", &own, Shape::Counter { rate: rate * part, digits: 0 });
            }
            for (le, share) in BUCKETS {
                let own = [("handler", path), ("le", le)];
                self.add("http_request_duration_seconds_bucket", &own, Shape::Share { handler, rate, share });
            }
            let own = [("handler", path)];
            self.add("http_request_duration_seconds_count", &own, Shape::Share { handler, rate, share: 1.0 });
            self.add("http_request_duration_seconds_sum", &own, Shape::Counter { rate: rate * 0.04, digits: 3 });
        }
    }

    /// The name of the run.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    /// Series of one target.
    pub(crate) fn series_per_target(&self) -> usize {
        self.slots.len()
    }

    /// The metrics of the fleet.
    pub(crate) fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Which metric a series belongs to, as an index into [`Fleet::names`].
    pub(crate) fn metric(&self, series: usize) -> usize {
        self.slots[series % self.slots.len()].metric
    }

    /// The type of a series as remote write 2.0 numbers it: counter 1, gauge 2, histogram 3.
    pub(crate) fn metadata_type(&self, series: usize) -> u8 {
        match self.slots[series % self.slots.len()].shape {
            Shape::Counter { .. } => 1,
            Shape::Gauge { .. } | Shape::Constant(_) => 2,
            Shape::Share { .. } => 3,
        }
    }

    /// The target a series belongs to.
    pub(crate) fn target(&self, series: usize) -> usize {
        series / self.slots.len()
    }

    /// The `instance` of a target.
    pub(crate) fn instance(target: usize) -> String {
        format!("10.{}.{}.{}:9100", target >> 16 & 255, target >> 8 & 255, target & 255)
    }

    /// The `pod` of a target in a generation. Its last 8 letters are the generation, so a built request is patched.
    pub(crate) fn pod(target: usize, generation: u32) -> String {
        format!("app-{target:06x}-{generation:08x}")
    }

    /// The labels of a series in a generation, sorted by name.
    pub(crate) fn labels(&self, series: usize, generation: u32) -> Vec<(String, String)> {
        let target = self.target(series);
        let slot = &self.slots[series % self.slots.len()];
        let mut pairs: Vec<(String, String)> = vec![
            ("__name__".into(), self.names[slot.metric].into()),
            ("cluster".into(), self.run.clone()),
            ("instance".into(), Self::instance(target)),
            ("job".into(), "load/node".into()),
            ("pod".into(), Self::pod(target, generation)),
        ];
        pairs.extend(slot.own.iter().map(|(name, value)| ((*name).to_string(), value.clone())));
        const MORE: [(&str, usize); 5] = [("env", 3), ("region", 5), ("release", 40), ("team", 20), ("zone", 3)];
        for i in 0..self.labels_min.saturating_sub(pairs.len()) {
            pairs.push(match MORE.get(i) {
                Some((name, kinds)) => ((*name).to_string(), format!("{name}-{}", target % kinds)),
                None => (format!("extra_{i}"), format!("value-{}", target % 10)),
            });
        }
        pairs.sort();
        pairs
    }

    /// What a target is at a scrape.
    pub(crate) fn life(&self, target: usize, scrape: usize) -> Life {
        let scrape = scrape as u64;
        let offset = unit(mix(self.seed ^ 1, target as u64));
        let (mut generation, mut age) = (0, scrape + mix(self.seed, target as u64) % RESTART_SCRAPES);
        if self.replaced_per_scrape > 0.0 {
            #[allow(clippy::cast_precision_loss, reason = "scrapes of a run are far below 2^53")]
            let turns = scrape as f64 * self.replaced_per_scrape + offset;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, positive, saturating")]
            if turns >= 1.0 {
                generation = turns as u32;
                age = ((turns - turns.floor()) / self.replaced_per_scrape + 0.5) as u64;
            }
        }
        Life { generation, age: age % RESTART_SCRAPES }
    }

    /// The value of a series at a scrape.
    #[allow(clippy::cast_precision_loss, reason = "ages and hashes of 53 bits are exact in a double")]
    pub(crate) fn value(&self, series: usize, scrape: usize, life: Life) -> f64 {
        let slot = &self.slots[series % self.slots.len()];
        let seed = mix(self.seed, series as u64);
        match slot.shape {
            Shape::Constant(value) => value,
            Shape::Counter { rate, digits } => {
                let pace = rate * (0.5 + unit(seed));
                rounded(pace * (life.age as f64 + unit(mix(seed, scrape as u64))), digits)
            }
            Shape::Gauge { base, digits } => {
                let swing = (scrape as f64 / (40.0 + 200.0 * unit(seed)) * TAU).sin();
                let noise = unit(mix(seed, scrape as u64)) - 0.5;
                rounded(base * (0.6 + 0.4 * unit(seed)) * (1.0 + 0.2 * swing + 0.03 * noise), digits)
            }
            Shape::Share { handler, rate, share } => {
                // Every bucket of a handler counts the same requests, so the histogram stays cumulative.
                let seed = mix(self.seed ^ handler, self.target(series) as u64);
                let requests = rate * (0.5 + unit(seed)) * (life.age as f64 + unit(mix(seed, scrape as u64)));
                (requests.floor() * share).floor()
            }
        }
    }
}

/// A well-spread hash of two numbers. Source: splitmix64.
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash as a number in `[0, 1)`.
#[allow(clippy::cast_precision_loss, reason = "53 bits are exact in a double")]
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_differ_and_labels_are_sorted() {
        let fleet = Fleet::new("r", 12, 0.0, 15_000);
        let mut seen = std::collections::HashSet::new();
        for series in 0..3 * fleet.slots.len() {
            let labels = fleet.labels(series, 0);
            assert!(labels.len() >= 12 && labels.windows(2).all(|w| w[0].0 < w[1].0), "{labels:?}");
            assert!(seen.insert(labels), "series {series} exists already");
        }
    }

    #[test]
    fn counters_fall_only_when_their_target_starts_anew() {
        let fleet = Fleet::new("r", 10, 2.0, 15_000);
        for series in 0..fleet.slots.len() {
            if matches!(fleet.slots[series].shape, Shape::Gauge { .. } | Shape::Constant(_)) {
                continue;
            }
            let mut before: Option<(Life, f64)> = None;
            for scrape in 0..2_000 {
                let life = fleet.life(0, scrape);
                let value = fleet.value(series, scrape, life);
                if let Some((old, last)) = before
                    && life.generation == old.generation
                    && life.age > old.age
                {
                    assert!(value >= last, "series {series} fell from {last} to {value} at {scrape}");
                }
                before = Some((life, value));
            }
        }
    }

    #[test]
    fn churn_replaces_the_share_it_says() {
        let fleet = Fleet::new("r", 10, 0.5, 15_000);
        let hour = 240;
        let replaced = (0..1000).filter(|t| fleet.life(*t, 0).generation != fleet.life(*t, hour).generation).count();
        assert!((450..550).contains(&replaced), "{replaced} of 1000");
        let still = Fleet::new("r", 10, 0.0, 15_000);
        assert!((0..1000).all(|t| still.life(t, 100_000).generation == 0));
    }
}
