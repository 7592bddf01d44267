//! Goal: several nodes cut one set of blocks into a store they share, although one of them misses samples and one is
//! killed in the middle of a cut; each forgets just what a block holds, and every query on every node says the same
//! before, meanwhile and after. Nodes without such a store say so and keep all they have.
//! Method: real processes with a directory as the store, one of them killed with SIGKILL while its work directory holds an
//! unfinished block; repair between replicas is as good as off.
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

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use support::{client, request, snappy};

const LONG: Duration = Duration::from_secs(90);
/// The length of a window: short, for a window waits before it is compacted as long as it is.
const WINDOW: i64 = 300_000;
/// The begin of a window.
const BASE: i64 = 1_700_000_000_000 / WINDOW * WINDOW;
const SERIES: usize = 400;

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
    dir: tempfile::TempDir,
    seeds: Vec<String>,
    shared: bool,
    nodes: Vec<Option<Process>>,
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Cluster {
    fn start(shared: bool) -> Self {
        let seeds: Vec<String> = (0..3).map(|_| free_address()).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self { dir, seeds, shared, nodes: vec![None, None, None] };
        (0..3).for_each(|i| cluster.run(i));
        cluster
    }

    fn data(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{i}"))
    }

    fn run(&mut self, i: usize) {
        let http = free_address();
        let output = self.dir.path().join(format!("output-{i}"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(output).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_engram"));
        command
            .args(["--data-dir", self.data(i).to_str().unwrap()])
            .args(["--http-listen", &http, "--grpc-listen", &self.seeds[i]])
            .args(["--join", &self.seeds.join(","), "--bootstrap-expect", "3"])
            .args(["--zone", &format!("zone-{i}"), "--partitions", "4", "--shard-size", "2"])
            .args(["--cluster-repair-every", "1h", "--cluster-suspect-after", "2s"])
            .args(["--compaction-interval", "500ms", "--compaction-ranges", "5m,30m", "--blocks-window", "5m"]);
        if self.shared {
            command.args(["--object-store-url", &format!("file://{}", self.dir.path().join("shared").display())]);
        }
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.nodes[i] = Some(Process { child, url: format!("http://{http}") });
    }

    fn kill(&mut self, i: usize) {
        self.nodes[i] = None;
    }

    fn output(&self, i: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("output-{i}"))).unwrap_or_default()
    }

    async fn ask(&self, i: usize, method: &str, path: &str, body: Vec<u8>) -> Result<(u16, String), reqwest::Error> {
        let url = format!("{}{path}", self.nodes[i].as_ref().unwrap().url);
        let mut asked = client().request(method.parse().unwrap(), url).header("X-Scope-OrgID", "acme");
        if path.ends_with("/push") {
            asked = asked.header("Content-Type", "application/x-protobuf").header("Content-Encoding", "snappy");
        }
        let answer = asked.body(body).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, i: usize, path: &str, what: &str, wanted: impl Fn(&str) -> bool) {
        let (deadline, mut last) = (Instant::now() + LONG, String::new());
        while Instant::now() < deadline {
            if let Ok((_, text)) = self.ask(i, "GET", path, Vec::new()).await {
                if wanted(&text) {
                    return;
                }
                last = text;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("node {i}: {what} is not so after {LONG:?}: {last}\n{}", self.output(i));
    }

    /// Waits until node `i` sees three active nodes and every partition three times.
    async fn whole(&self, i: usize) {
        self.until(i, "/api/v1/cluster/status", "three nodes hold everything", |text| {
            let Ok(json) = serde_json::from_str::<Value>(text) else { return false };
            let all = |name: &str| json["data"][name].as_array().cloned().unwrap_or_default();
            let full = |p: &Value| p["replicas"].as_array().is_some_and(|r| r.len() == 3);
            let active = all("nodes").iter().filter(|node| node["state"] == "active").count();
            active == 3 && !all("partitions").is_empty() && all("partitions").iter().all(full)
        })
        .await;
    }

    /// Writes one sample of each series for each time, until it is taken.
    async fn write(&self, i: usize, times: impl Iterator<Item = i64>) {
        let samples: Vec<(i64, f64)> = times.map(|at| (at, at as f64)).collect();
        let names: Vec<String> = (0..SERIES).map(|n| n.to_string()).collect();
        let labels: Vec<[(&str, &str); 2]> = names.iter().map(|n| [("__name__", "m"), ("n", n.as_str())]).collect();
        let series: Vec<support::Series<'_>> = labels.iter().map(|l| (l.as_slice(), samples.as_slice())).collect();
        let (body, deadline) = (snappy(&request(&series)), Instant::now() + LONG);
        loop {
            let answer = self.ask(i, "POST", "/api/v1/push", body.clone()).await;
            if matches!(answer, Ok((204, _))) {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many samples a node counts, and their sum.
    async fn counted(&self, i: usize) -> Result<(u64, f64), String> {
        let mut found = Vec::new();
        for what in ["count_over_time", "sum_over_time"] {
            let query = format!("query=sum({what}(m%5B2d%5D))&time={}", BASE / 1000 + 90_000);
            let path = format!("/api/v1/query?{query}");
            let (status, text) = self.ask(i, "GET", &path, Vec::new()).await.map_err(|e| e.to_string())?;
            let json: Value = serde_json::from_str(&text).map_err(|e| format!("{status} {text}: {e}"))?;
            let value = &json["data"]["result"][0]["value"][1];
            found.push(value.as_str().ok_or_else(|| text.clone())?.parse::<f64>().unwrap());
        }
        Ok((found[0] as u64, found[1]))
    }

    async fn all_count(&self, want: (u64, f64)) {
        for i in (0..3).filter(|i| self.nodes[*i].is_some()) {
            assert_eq!(self.counted(i).await.unwrap(), want, "node {i}\n{}", self.output(i));
        }
    }

    /// Seals and cuts everything.
    async fn flush(&self, i: usize) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let asked = self.ask(i, "POST", "/api/v1/admin/flush?wait=true", Vec::new());
            let answer = tokio::time::timeout(LONG, asked).await.expect("a flush ends").unwrap();
            if answer.0 == 200 {
                return serde_json::from_str(&answer.1).unwrap();
            }
            assert!(Instant::now() < deadline, "{answer:?}\n{}", self.output(i));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until no head of a node holds a sample.
    async fn forgotten(&self, i: usize) {
        let none = |text: &str| text.lines().any(|line| line == "engram_ingest_samples 0.0");
        self.until(i, "/metrics", "all is forgotten", none).await;
    }

    async fn metric(&self, i: usize, name: &str) -> f64 {
        let (_, text) = self.ask(i, "GET", "/metrics", Vec::new()).await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    /// How many blocks that are read have been compacted, and the samples in all that are read.
    async fn blocks(&self, i: usize) -> (usize, u64) {
        let (_, text) = self.ask(i, "GET", "/api/v1/admin/blocks", Vec::new()).await.unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let all = json["data"]["blocks"].as_array().unwrap();
        let read: Vec<_> = all.iter().filter(|block| block["state"] == "read").collect();
        let compacted = read.iter().filter(|block| block["level"].as_u64() > Some(1)).count();
        (compacted, read.iter().map(|block| block["samples"].as_u64().unwrap()).sum())
    }

    /// A node that has an unfinished block in its work directory, if there is one.
    fn cutting(&self) -> Option<usize> {
        (0..3).find(|i| {
            let entries = std::fs::read_dir(self.data(*i).join("blocks-work"));
            entries.is_ok_and(|all| all.flatten().any(|entry| entry.file_name() != "late"))
        })
    }
}

/// What writing these rounds adds to what is counted.
fn add(to: &mut (u64, f64), times: impl Iterator<Item = i64>) -> Vec<i64> {
    let times: Vec<i64> = times.collect();
    to.0 += (times.len() * SERIES) as u64;
    to.1 += times.iter().map(|at| *at as f64 * SERIES as f64).sum::<f64>();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn one_set_of_blocks_is_cut_although_replicas_differ_and_a_cutter_dies() {
    let mut cluster = Cluster::start(true);
    for i in 0..3 {
        cluster.whole(i).await;
    }
    let mut want = (0, 0.0);
    let times = add(&mut want, (0..20).map(|n| BASE + n * 5_000));
    cluster.write(0, times.into_iter()).await;
    // Node 2 misses some of the window, and what others have only.
    cluster.kill(2);
    let times = add(&mut want, (20..40).map(|n| BASE + n * 5_000));
    cluster.write(1, times.into_iter()).await;
    cluster.run(2);
    cluster.whole(2).await;
    let times = add(&mut want, (40..50).map(|n| BASE + n * 5_000));
    cluster.write(2, times.into_iter()).await;
    cluster.all_count(want).await;

    cluster.flush(2).await;
    cluster.all_count(want).await;
    for i in 0..3 {
        cluster.forgotten(i).await;
    }
    cluster.all_count(want).await;
    assert!(cluster.metric(2, "engram_ingest_cuts_compared_total").await >= 1.0, "node 2 had less than was cut");
    assert_eq!(cluster.blocks(0).await.1, want.0, "no sample is in two blocks");

    // More windows; whoever is seen cutting is killed.
    let mut killed = None;
    for window in 1..12 {
        let times = add(&mut want, (0..120).map(|n| BASE + (window + 3) * WINDOW + n * 2_000));
        cluster.write(window as usize % 3, times.into_iter()).await;
        let (status, text) = cluster.ask(0, "POST", "/api/v1/admin/flush", Vec::new()).await.unwrap();
        assert_eq!(status, 200, "{text}");
        let deadline = Instant::now() + Duration::from_secs(1);
        while killed.is_none() && Instant::now() < deadline {
            killed = cluster.cutting();
            tokio::task::yield_now().await;
        }
        if let Some(i) = killed {
            cluster.kill(i);
            break;
        }
    }
    let killed = killed.expect("somebody is seen cutting");
    let other = (killed + 1) % 3;
    cluster.all_count(want).await;
    cluster.flush(other).await;
    cluster.all_count(want).await;
    cluster.run(killed);
    cluster.whole(killed).await;
    cluster.all_count(want).await;
    for i in 0..3 {
        cluster.forgotten(i).await;
    }
    cluster.all_count(want).await;
    // Much later time comes, which the queries do not reach: the windows before it are compacted, by all three nodes.
    cluster.write(other, std::iter::once(BASE + 40 * 3_600_000)).await;
    cluster.flush(other).await;
    let deadline = Instant::now() + LONG;
    while cluster.blocks(other).await.0 == 0 {
        assert!(Instant::now() < deadline, "{:?}\n{}", cluster.blocks(other).await, cluster.output(other));
        cluster.all_count(want).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    cluster.all_count(want).await;
    assert_eq!(cluster.blocks(other).await.1, want.0 + SERIES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_shared_store_nothing_is_cut_and_it_is_said() {
    let cluster = Cluster::start(false);
    cluster.whole(0).await;
    let mut want = (0, 0.0);
    let times = add(&mut want, (0..3).map(|n| BASE + n * 15_000));
    cluster.write(0, times.into_iter()).await;
    let (status, text) = cluster.ask(1, "POST", "/api/v1/admin/flush?wait=true", Vec::new()).await.unwrap();
    assert!(status == 503 && text.contains("object-store.url"), "{status} {text}");
    cluster.all_count(want).await;
    assert!(cluster.metric(1, "engram_blocks_store_closed").await > 0.5);
}
