//! What nodes take and tell while a run lasts: about once a second memory, open files, threads and processor time of each
//! node's process as the kernel counts them, and the node's own `/metrics`.
//!
//! Why: a node that leaks answers every question rightly, until it does not. What `check` and `report` need goes into the
//! history, a line a node and second; everything a node tells goes to `metrics.jsonl` beside it, for whoever looks at a
//! run that was kept:
//!
//! ```text
//! {"at":2000311,"node":0,"pid":4711,"values":{"engram_ingest_series":64.0, …}}     what changed since the line before
//! ```
//!
//! Of each process the first line has all. A node that is dead, stopped or too busy to answer has no line of that second;
//! one whose HTTP is silent has its process's figures all the same. Past [`BYTES_MAX`] nothing more is written to the file.
//!
//! Source: proc_pid_status(5), proc_pid_stat(5); Prometheus text format 0.0.4.

use super::inject::word;
use crate::error::Error;
use crate::history::{Gauge, Recorder, Told};
use futures::future::join_all;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Longest wait for a node's metrics, so that one that stands holds up nobody for long.
const WITHIN: Duration = Duration::from_millis(800);
/// Most bytes of `metrics.jsonl`.
const BYTES_MAX: u64 = 128 << 20;
/// Most bytes of one answer, and most series of it.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const SERIES_MAX: usize = 5_000;
/// A clock tick of proc_pid_stat(5), milliseconds: what the kernel tells programs is in hundredths of a second on every
/// machine that Engram is built for.
const TICK_MS: u64 = 10;

/// A process to look at.
#[derive(Clone, Copy, Debug)]
struct Target {
    pid: u32,
    http: SocketAddr,
}

/// Which processes there are, by node.
type Targets = Arc<Mutex<Vec<Option<Target>>>>;

/// Looks at all nodes until it is dropped.
#[derive(Debug)]
pub(super) struct Gauges {
    targets: Targets,
    _task: JoinSet<()>,
}

impl Gauges {
    /// Begins to look; what nodes tell is written into `folder`.
    ///
    /// # Errors
    /// The disk, or no HTTP client.
    pub(super) fn start(recorder: Arc<Recorder>, folder: &Path) -> Result<Self, Error> {
        let targets = Targets::default();
        let http = reqwest::Client::builder().timeout(WITHIN).pool_max_idle_per_host(1).build();
        let http = http.map_err(|error| Error::Usage(error.to_string()))?;
        let book =
            Book { out: BufWriter::new(File::create(folder.join("metrics.jsonl"))?), bytes: 0, known: Vec::new() };
        let looker = Looker { recorder, http, own: std::env::current_exe().ok(), book };
        let mut task = JoinSet::new();
        task.spawn(looker.run(targets.clone()));
        Ok(Self { targets, _task: task })
    }

    /// A node's process, as of now; `None`: it has none.
    pub(super) fn know(&self, node: usize, process: Option<(u32, SocketAddr)>) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.len() <= node {
            targets.resize(node + 1, None);
        }
        targets[node] = process.map(|(pid, http)| Target { pid, http });
    }
}

struct Looker {
    recorder: Arc<Recorder>,
    http: reqwest::Client,
    /// This program: a process that still is it has not become a node yet.
    own: Option<PathBuf>,
    book: Book,
}

impl Looker {
    async fn run(mut self, targets: Targets) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let now = targets.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let told = join_all(now.iter().map(|target| self.look(*target))).await;
            for (node, (target, seen)) in now.iter().zip(told).enumerate() {
                let (Some(target), Some((mut gauge, text))) = (target, seen) else { continue };
                let values = parse(&text);
                gauge.node = u32::try_from(node).unwrap_or(u32::MAX);
                gauge.told = told_of(&values);
                self.book.put(self.recorder.now(), node, target.pid, values);
                self.recorder.gauge(gauge);
            }
        }
    }

    /// What the kernel says of a process, and what it says of itself.
    async fn look(&self, target: Option<Target>) -> Option<(Gauge, String)> {
        let Target { pid, http } = target?;
        let text = self.metrics(http).await.unwrap_or_default();
        // Read after the answer: a process that died while it was asked has no figures.
        Some((process(pid, self.own.as_deref())?, text))
    }

    async fn metrics(&self, http: SocketAddr) -> Option<String> {
        let mut answer = self.http.get(format!("http://{http}/metrics")).send().await.ok()?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.ok()? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return None;
            }
            body.extend_from_slice(&piece);
        }
        answer.status().is_success().then(|| String::from_utf8_lossy(&body).into_owned())
    }
}

/// What the kernel counts of a process; `None`: it is gone, or is not the node yet.
fn process(pid: u32, own: Option<&Path>) -> Option<Gauge> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    if std::fs::read_link(root.join("exe")).ok().as_deref() == own {
        return None;
    }
    let status = std::fs::read_to_string(root.join("status")).ok()?;
    let bytes = |name: &str| word(&status, name)?.parse::<u64>().ok().map(|kib| kib * 1024);
    Some(Gauge {
        node: 0,
        pid,
        rss: bytes("VmRSS:")?,
        own: bytes("RssAnon:")?,
        files: std::fs::read_dir(root.join("fd")).ok()?.count() as u64,
        threads: word(&status, "Threads:")?.parse().ok()?,
        cpu_ms: cpu_ticks(&std::fs::read_to_string(root.join("stat")).ok()?)? * TICK_MS,
        told: None,
    })
}

/// User and system time of a process, in ticks. Its name may hold anything, blanks and brackets too.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut words = behind.split_whitespace().skip(11);
    Some(words.next()?.parse::<u64>().ok()? + words.next()?.parse::<u64>().ok()?)
}

/// Every series with its value.
fn parse(text: &str) -> HashMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    let pairs = pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse::<f64>().ok()?)));
    pairs.filter(|(_, value)| value.is_finite()).take(SERIES_MAX).collect()
}

fn told_of(values: &HashMap<String, f64>) -> Option<Told> {
    let of = |name: &str| values.get(name).copied().unwrap_or(0.0);
    (!values.is_empty()).then(|| Told {
        series: of("engram_ingest_series"),
        samples: of("engram_ingest_samples"),
        connections: of("engram_http_connections"),
        segments: of("engram_log_segments"),
        blocks: of("engram_blocks_open"),
        term: of("engram_meta_term"),
    })
}

/// `metrics.jsonl`.
struct Book {
    out: BufWriter<File>,
    bytes: u64,
    /// By node: its process, and what it told last.
    known: Vec<(u32, HashMap<String, f64>)>,
}

impl Book {
    /// Writes down what has changed.
    fn put(&mut self, at: u64, node: usize, pid: u32, values: HashMap<String, f64>) {
        if values.is_empty() || self.bytes > BYTES_MAX {
            return;
        }
        if self.known.len() <= node {
            self.known.resize(node + 1, (0, HashMap::new()));
        }
        let (before, known) = &self.known[node];
        let is_new = |(name, value): &(&String, &f64)| *before != pid || known.get(*name) != Some(*value);
        let mut changed: Vec<_> = values.iter().filter(is_new).collect();
        changed.sort_unstable_by_key(|(name, _)| *name);
        let changed: serde_json::Map<_, _> =
            changed.into_iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
        let line = serde_json::json!({"at": at, "node": node, "pid": pid, "values": changed}).to_string();
        self.bytes += line.len() as u64 + 1;
        // A file that cannot be written ends with what it has: no verdict hangs on it.
        if writeln!(self.out, "{line}").and_then(|()| self.out.flush()).is_err() {
            self.bytes = u64::MAX;
        }
        self.known[node] = (pid, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_as_the_kernel_counts_it() {
        let seen = process(std::process::id(), Some(Path::new("/no/such"))).unwrap();
        assert!(seen.rss >= seen.own && seen.own > 0 && seen.files > 2 && seen.threads > 0);
        let own = std::env::current_exe().unwrap();
        assert!(process(std::process::id(), Some(&own)).is_none(), "it has not become a node yet");
        assert_eq!(cpu_ticks("7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 30 12 0 0 20 0"), Some(42));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn only_what_changed_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        let mut book = Book { out: BufWriter::new(File::create(&path).unwrap()), bytes: 0, known: Vec::new() };
        let text = "# HELP a b\na 1\nb{x=\"y z\"} 2\nc NaN\nnothing\n";
        book.put(5, 1, 9, parse(text));
        book.put(6, 1, 9, parse(&text.replace("a 1", "a 3")));
        book.put(7, 1, 10, parse(text));
        book.put(8, 1, 10, parse(""));
        let lines: Vec<_> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                r#"{"at":5,"node":1,"pid":9,"values":{"a":1.0,"b{x=\"y z\"}":2.0}}"#,
                r#"{"at":6,"node":1,"pid":9,"values":{"a":3.0}}"#,
                r#"{"at":7,"node":1,"pid":10,"values":{"a":1.0,"b{x=\"y z\"}":2.0}}"#,
            ]
        );
        book.bytes = BYTES_MAX + 1;
        book.put(9, 1, 11, parse(text));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
        assert_eq!(told_of(&parse("engram_ingest_series 7\n")).unwrap().series, 7.0);
        assert!(told_of(&parse("")).is_none());
    }
}
