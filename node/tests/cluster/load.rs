//! Writers that know what was acknowledged, readers that hold every answer against it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, LONG};
use crate::support::{self, client, request, snappy};

pub const BASE: i64 = 1_700_000_000_000;
pub const SERIES: usize = 50;
pub const WRITERS_MAX: usize = 9;

/// What writers and readers have seen.
#[derive(Default)]
pub struct Seen {
    begun: [AtomicU64; WRITERS_MAX],
    pub written: [AtomicU64; WRITERS_MAX],
    pub queries: AtomicU64,
    pub failures: parking_lot::Mutex<Vec<String>>,
    /// When each write was acknowledged, and how long it took.
    took: parking_lot::Mutex<Vec<(Instant, Duration)>>,
}

impl Seen {
    /// Samples that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.written.iter().map(|n| n.load(Ordering::SeqCst)).sum::<u64>() * SERIES as u64
    }

    /// How long writes took between two moments: count, middle, 99 of 100, longest, in milliseconds.
    pub fn latency(&self, from: Instant, to: Instant) -> String {
        let took = self.took.lock();
        let mut all: Vec<u128> =
            took.iter().filter(|(at, _)| *at >= from && *at < to).map(|(_, took)| took.as_millis()).collect();
        all.sort_unstable();
        let Some(last) = all.last() else { return "none".to_owned() };
        let of = |part: f64| all[((all.len() - 1) as f64 * part).round() as usize];
        format!("{} writes, p50 {} p99 {} max {last} ms", all.len(), of(0.5), of(0.99))
    }

    pub fn assert_no_failures(&self) {
        assert!(self.failures.lock().is_empty(), "{:#?}", self.failures.lock());
    }
}

/// Writers and readers that run.
pub struct Load {
    pub seen: Arc<Seen>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    writers: Vec<usize>,
    urls: HashMap<usize, watch::Sender<String>>,
}

impl Load {
    /// A writer and a reader at each of the nodes; the writer's number is the node's.
    pub fn at(cluster: &Cluster, nodes: &[usize]) -> Self {
        Self::by(cluster, &nodes.iter().map(|i| (*i, *i)).collect::<Vec<_>>())
    }

    /// A writer and a reader at each of the nodes, with the writers' numbers: each begins its own series.
    pub fn by(cluster: &Cluster, nodes: &[(usize, usize)]) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
        let (tasks, writers, urls) = (JoinSet::new(), Vec::new(), HashMap::new());
        let mut load = Self { seen, stop, tasks, writers, urls };
        for (i, writer) in nodes {
            load.write_at(cluster, (*i, *writer), false);
            load.tasks.spawn(read(cluster.url(*i), load.seen.clone(), load.stop.clone()));
        }
        load
    }

    /// Another writer. A patient one sends again what was refused.
    pub fn write_at(&mut self, cluster: &Cluster, (i, writer): (usize, usize), patient: bool) {
        self.writers.push(writer);
        let url = watch::channel(cluster.url(i));
        self.tasks.spawn(write((url.1, writer, patient), self.seen.clone(), self.stop.clone()));
        self.urls.insert(i, url.0);
    }

    /// A patient writer to a node that dies and comes back.
    pub fn write_to(&mut self, cluster: &Cluster, i: usize) {
        self.write_at(cluster, (i, i), true);
    }

    /// The node is at another address now.
    pub fn moved(&self, cluster: &Cluster, i: usize) {
        self.urls[&i].send_replace(cluster.url(i));
    }

    /// Waits until each of the given writers has so many more rounds acknowledged.
    pub async fn rounds_of(&self, writers: &[usize], more: u64) {
        let least = || writers.iter().map(|i| self.seen.written[*i].load(Ordering::SeqCst)).min().unwrap_or(u64::MAX);
        let (until, deadline) = (least() + more, Instant::now() + LONG);
        while least() < until {
            assert!(Instant::now() < deadline, "writers stand still: {:?}", self.seen.failures.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn rounds(&self, more: u64) {
        self.rounds_of(&self.writers, more).await;
    }

    /// Ends all of them.
    pub async fn stop(mut self) -> Arc<Seen> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.seen
    }
}

pub fn body(writer: usize, round: u64) -> Vec<u8> {
    let names: Vec<String> = (0..SERIES).map(|i| i.to_string()).collect();
    let writer = writer.to_string();
    let labels: Vec<[(&str, &str); 3]> =
        names.iter().map(|i| [("__name__", "m"), ("i", i.as_str()), ("w", writer.as_str())]).collect();
    let sample = [(BASE + round as i64 * 100, round as f64)];
    let series: Vec<support::Series<'_>> = labels.iter().map(|l| (l.as_slice(), sample.as_slice())).collect();
    snappy(&request(&series))
}

pub async fn push(client: &reqwest::Client, url: &str, tenant: &str, body: Vec<u8>) -> Result<u16, String> {
    let sent = client
        .post(format!("{url}/api/v1/push"))
        .header("X-Scope-OrgID", tenant)
        .header("Content-Type", "application/x-protobuf")
        .header("Content-Encoding", "snappy")
        .body(body)
        .send();
    let answer = sent.await.map_err(|e| e.to_string())?;
    let status = answer.status().as_u16();
    if status == 204 { Ok(status) } else { Err(format!("{status}: {}", answer.text().await.unwrap_or_default())) }
}

async fn write(
    (url, writer, patient): (watch::Receiver<String>, usize, bool),
    seen: Arc<Seen>,
    stop: CancellationToken,
) {
    let client = client();
    let mut round = 0;
    while !stop.is_cancelled() {
        let url = url.borrow().clone();
        let began = Instant::now();
        seen.begun[writer].store(round + 1, Ordering::SeqCst);
        match push(&client, &url, "acme", body(writer, round)).await {
            Ok(_) => {
                let now = Instant::now();
                seen.took.lock().push((now, now - began));
                round += 1;
                seen.written[writer].store(round, Ordering::SeqCst);
            }
            Err(_) if patient => {}
            Err(why) => {
                seen.failures.lock().push(format!("write {round} at {url} after {:?}: {why}", began.elapsed()));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many samples of each writer a node sees, and the sum of their values.
pub async fn counts(client: &reqwest::Client, url: &str) -> Result<Vec<u64>, String> {
    let query = "sum by (w) (count_over_time(m[1h]))";
    let at = (BASE / 1000 + 3000).to_string();
    let asked = client
        .post(format!("{url}/api/v1/query"))
        .header("X-Scope-OrgID", "acme")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(format!("query={}&time={at}", query.replace(' ', "%20")))
        .send();
    let answer = asked.await.map_err(|e| e.to_string())?;
    let (status, text) = (answer.status().as_u16(), answer.text().await.map_err(|e| e.to_string())?);
    if status != 200 {
        return Err(format!("{status}: {text}"));
    }
    let json: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let mut all = vec![0; WRITERS_MAX];
    for one in json["data"]["result"].as_array().unwrap() {
        let writer: usize = one["metric"]["w"].as_str().unwrap().parse().unwrap();
        all[writer] = one["value"][1].as_str().unwrap().parse().unwrap();
    }
    Ok(all)
}

async fn read(url: String, seen: Arc<Seen>, stop: CancellationToken) {
    let client = client();
    while !stop.is_cancelled() {
        let before: Vec<u64> = seen.written.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        let began = Instant::now();
        match counts(&client, &url).await {
            Ok(counts) => {
                let after = seen.begun.iter().map(|n| n.load(Ordering::SeqCst));
                let all = |rounds: u64| rounds * SERIES as u64;
                let lost = counts.iter().zip(&before).any(|(have, rounds)| *have < all(*rounds));
                // Writers of another load are not known here.
                let invented = counts.iter().zip(after).any(|(have, rounds)| rounds > 0 && *have > all(rounds));
                if lost || invented {
                    let why = format!("query at {url}: {counts:?} samples of {before:?} acknowledged rounds");
                    seen.failures.lock().push(why);
                }
            }
            Err(why) => seen.failures.lock().push(format!("query at {url} after {:?}: {why}", began.elapsed())),
        }
        seen.queries.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
