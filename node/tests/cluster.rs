//! Goal: nodes are one cluster: they find each other, hold everything three times, and lose nothing, answer nothing wrong
//! and refuse nothing while one of them is killed under load, comes back at another address, joins, or is drained.
//! Method: real processes, killed with SIGKILL; a writer and a reader at each of two others, who must never fail.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "test"
)]

mod support;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use support::{client, request, snappy};

const LONG: Duration = Duration::from_secs(60);
const BASE: i64 = 1_700_000_000_000;
const SERIES: usize = 50;

struct Process {
    child: Child,
    url: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

struct Cluster {
    dirs: Vec<tempfile::TempDir>,
    seeds: Vec<String>,
    nodes: Vec<Option<Process>>,
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

impl Cluster {
    fn start(count: usize) -> Self {
        let seeds: Vec<String> = (0..count).map(|_| free_address()).collect();
        let dirs = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Self { dirs, nodes: (0..count).map(|_| None).collect(), seeds };
        for i in 0..count {
            let grpc = cluster.seeds[i].clone();
            cluster.run(i, &grpc);
        }
        cluster
    }

    fn run(&mut self, i: usize, grpc: &str) {
        let http = free_address();
        let dir = self.dirs[i].path();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("output")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_engram"))
            .args(["--data-dir", dir.join("data").to_str().unwrap()])
            .args(["--http-listen", &http, "--grpc-listen", grpc])
            .args(["--join", &self.seeds.join(",")])
            .args(["--bootstrap-expect", if i < self.seeds.len() { "3" } else { "0" }])
            .args(["--zone", &format!("zone-{i}"), "--partitions", "8", "--shard-size", "4"])
            .args(["--cluster-repair-every", "1s", "--cluster-suspect-after", "2s"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.nodes[i] = Some(Process { child, url: format!("http://{http}") });
    }

    fn kill(&mut self, i: usize) {
        self.nodes[i] = None;
    }

    fn url(&self, i: usize) -> String {
        self.nodes[i].as_ref().unwrap().url.clone()
    }

    /// Waits until a node's answer is as wanted.
    async fn until(&self, i: usize, path: &str, what: &str, wanted: impl Fn(&str) -> bool) {
        let (url, client) = (format!("{}{path}", self.url(i)), client());
        let deadline = Instant::now() + LONG;
        let mut last = String::new();
        while Instant::now() < deadline {
            if let Ok(answer) = client.get(&url).header("X-Scope-OrgID", "acme").send().await {
                last = answer.text().await.unwrap_or_default();
                if wanted(&last) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let output = std::fs::read_to_string(self.dirs[i].path().join("output")).unwrap_or_default();
        panic!("node {i}: {what} is not so after {LONG:?}: {last}\n{output}");
    }

    /// Waits until node `i` sees three nodes active and every partition three times.
    async fn whole(&self, i: usize) {
        self.settled(i, "three nodes hold everything", |nodes, _| active(nodes) == 3).await;
    }

    /// Waits until node `i` sees every partition three times, nothing moving, and what else is wanted of nodes and
    /// partitions.
    async fn settled(&self, i: usize, what: &str, wanted: impl Fn(&[Value], &[Value]) -> bool) {
        self.until(i, "/api/v1/cluster/status", what, |text| {
            let Ok(json) = serde_json::from_str::<Value>(text) else { return false };
            let all = |name: &str| json["data"][name].as_array().cloned().unwrap_or_default();
            let (nodes, partitions) = (all("nodes"), all("partitions"));
            let full = |p: &Value| p["replicas"].as_array().is_some_and(|r| r.len() == 3);
            let at_rest = json["data"]["moving"] == 0 && !partitions.is_empty() && partitions.iter().all(full);
            at_rest && wanted(&nodes, &partitions)
        })
        .await;
    }

    async fn steer(&self, i: usize, node: u64, act: &str) -> (u16, String) {
        let url = format!("{}/api/v1/cluster/nodes/{node}/{act}", self.url(i));
        let answer = client().post(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

fn active(nodes: &[Value]) -> usize {
    nodes.iter().filter(|node| node["state"] == "active").count()
}

/// How many partitions a node holds.
fn held(partitions: &[Value], node: u64) -> usize {
    let holds = |p: &&Value| p["replicas"].as_array().is_some_and(|r| r.contains(&node.into()));
    partitions.iter().filter(holds).count()
}

/// What writers and readers have seen.
#[derive(Default)]
struct Seen {
    written: [AtomicU64; 3],
    queries: AtomicU64,
    failures: parking_lot::Mutex<Vec<String>>,
    slowest_ms: AtomicU64,
}

fn body(writer: usize, round: u64) -> Vec<u8> {
    let names: Vec<String> = (0..SERIES).map(|i| i.to_string()).collect();
    let writer = writer.to_string();
    let labels: Vec<[(&str, &str); 3]> =
        names.iter().map(|i| [("__name__", "m"), ("i", i.as_str()), ("w", writer.as_str())]).collect();
    let sample = [(BASE + round as i64 * 100, round as f64)];
    let series: Vec<support::Series<'_>> = labels.iter().map(|l| (l.as_slice(), sample.as_slice())).collect();
    snappy(&request(&series))
}

async fn push(client: &reqwest::Client, url: &str, body: Vec<u8>) -> Result<u16, String> {
    let sent = client
        .post(format!("{url}/api/v1/push"))
        .header("X-Scope-OrgID", "acme")
        .header("Content-Type", "application/x-protobuf")
        .header("Content-Encoding", "snappy")
        .body(body)
        .send();
    let answer = sent.await.map_err(|e| e.to_string())?;
    let status = answer.status().as_u16();
    if status == 204 { Ok(status) } else { Err(format!("{status}: {}", answer.text().await.unwrap_or_default())) }
}

async fn write(url: String, writer: usize, seen: Arc<Seen>, stop: CancellationToken) {
    let client = client();
    for round in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let began = Instant::now();
        match push(&client, &url, body(writer, round)).await {
            Ok(_) => seen.written[writer].store(round + 1, Ordering::SeqCst),
            Err(why) => seen.failures.lock().push(format!("write {round} at {url}: {why}")),
        };
        seen.slowest_ms.fetch_max(began.elapsed().as_millis() as u64, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many samples of each writer a node sees.
async fn counts(client: &reqwest::Client, url: &str) -> Result<Vec<u64>, String> {
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
    let mut all = vec![0; 3];
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
        match counts(&client, &url).await {
            Ok(counts) => {
                let lost = counts.iter().zip(&before).any(|(have, rounds)| *have < rounds * SERIES as u64);
                if lost {
                    let why = format!("query at {url}: {counts:?} samples of {before:?} acknowledged rounds");
                    seen.failures.lock().push(why);
                }
            }
            Err(why) => seen.failures.lock().push(format!("query at {url}: {why}")),
        }
        seen.queries.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn rounds(seen: &Seen, more: u64) {
    let least = |seen: &Seen| seen.written[1..].iter().map(|n| n.load(Ordering::SeqCst)).min().unwrap();
    let (until, deadline) = (least(seen) + more, Instant::now() + LONG);
    while least(seen) < until {
        assert!(Instant::now() < deadline, "{:?}", seen.failures.lock());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_and_nobody_notices() {
    let mut cluster = Cluster::start(3);
    for i in 0..3 {
        cluster.whole(i).await;
    }
    let (seen, stop, mut tasks) = (Arc::new(Seen::default()), CancellationToken::new(), JoinSet::new());
    for i in [1, 2] {
        tasks.spawn(write(cluster.url(i), i, seen.clone(), stop.clone()));
        tasks.spawn(read(cluster.url(i), seen.clone(), stop.clone()));
    }
    rounds(&seen, 30).await;
    cluster.kill(0);
    rounds(&seen, 60).await;
    // Back, and at another address: the others find it, and it takes what it missed.
    let elsewhere = free_address();
    cluster.run(0, &elsewhere);
    cluster.whole(0).await;
    rounds(&seen, 20).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    assert!(seen.failures.lock().is_empty(), "{:#?}", seen.failures.lock());
    assert!(seen.queries.load(Ordering::SeqCst) > 20);
    let acknowledged: u64 = seen.written.iter().map(|n| n.load(Ordering::SeqCst)).sum();
    let samples = format!("engram_ingest_samples {}.0", acknowledged * SERIES as u64);
    for i in 0..3 {
        cluster.until(i, "/metrics", &samples, |text| text.lines().any(|line| line == samples)).await;
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), acknowledged * SERIES as u64);
    }
    // Two of three gone: refused quickly and as something to try again; with the second back it goes on.
    let address = cluster.seeds[1].clone();
    cluster.kill(1);
    cluster.kill(0);
    let began = Instant::now();
    let refused = push(&client(), &cluster.url(2), body(2, 100_000)).await.unwrap_err();
    assert!(refused.starts_with("503") && began.elapsed() < Duration::from_secs(15), "{refused} {:?}", began.elapsed());
    assert!(counts(&client(), &cluster.url(2)).await.is_err());
    cluster.run(1, &address);
    let deadline = Instant::now() + LONG;
    while push(&client(), &cluster.url(2), body(2, 100_001)).await.is_err() {
        assert!(Instant::now() < deadline, "writes do not return");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        counts(&client(), &cluster.url(2)).await.unwrap()[1] == seen.written[1].load(Ordering::SeqCst) * SERIES as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_another_is_drained_under_load() {
    let mut cluster = Cluster::start(3);
    cluster.whole(1).await;
    let (seen, stop, mut tasks) = (Arc::new(Seen::default()), CancellationToken::new(), JoinSet::new());
    for i in [1, 2] {
        tasks.spawn(write(cluster.url(i), i, seen.clone(), stop.clone()));
        tasks.spawn(read(cluster.url(i), seen.clone(), stop.clone()));
    }
    rounds(&seen, 20).await;
    cluster.dirs.push(tempfile::tempdir().unwrap());
    cluster.nodes.push(None);
    let address = free_address();
    cluster.run(3, &address);
    let id =
        |nodes: &[Value], address: &str| nodes.iter().find(|n| n["grpc"] == address).and_then(|n| n["id"].as_u64());
    cluster
        .settled(1, "the fourth node holds its share", |nodes, partitions| {
            active(nodes) == 4 && id(nodes, &address).is_some_and(|id| held(partitions, id) >= 5)
        })
        .await;
    let status: Value =
        client().get(format!("{}/api/v1/cluster/status", cluster.url(1))).send().await.unwrap().json().await.unwrap();
    let first = id(status["data"]["nodes"].as_array().unwrap(), &cluster.seeds[0]).unwrap();
    assert_eq!(cluster.steer(2, first, "remove").await.0, 409);
    assert_eq!(cluster.steer(2, first, "drain").await.0, 200);
    cluster.settled(1, "the drained node holds nothing", |_, partitions| held(partitions, first) == 0).await;
    assert_eq!(cluster.steer(2, first, "remove").await.0, 200);
    cluster.kill(0);
    rounds(&seen, 20).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    assert!(seen.failures.lock().is_empty(), "{:#?}", seen.failures.lock());
    let acknowledged: u64 = seen.written.iter().map(|n| n.load(Ordering::SeqCst)).sum();
    for i in 1..4 {
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), acknowledged * SERIES as u64);
    }
}
