//! A cluster of processes of this machine: starts, kills, looks.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_node::peer::Replica;
use engram_node::peer::remote::Remote;
use engram_node::tls::Tls;
use serde_json::Value;
use tokio::time::Instant;

use crate::network::Network;
use crate::support::client;

/// Longer than anything here takes on a machine that has other things to do.
pub const LONG: Duration = Duration::from_secs(120);
pub const PARTITIONS: usize = 8;

pub struct Process {
    child: Child,
    pub url: String,
    pub grpc: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

pub struct Cluster {
    pub dirs: Vec<tempfile::TempDir>,
    pub zones: Vec<String>,
    pub seeds: Vec<String>,
    pub nodes: Vec<Option<Process>>,
    /// More arguments of every node; `{i}` is its number.
    pub more: Vec<String>,
    /// How the test itself speaks to nodes.
    pub tls: Tls,
    /// What lies between the nodes, if anything.
    pub network: Option<Network>,
}

/// A free port on an address of this process's own: nobody's outgoing connection takes it before it is used.
pub fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (id, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    let host = format!("127.{}.{}.{}", 1 + id / 200 % 200, 1 + id % 200, 1 + next % 250);
    let listener = std::net::TcpListener::bind(format!("{host}:0")).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// How the cluster is, as one node sees it.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub json: Value,
    pub nodes: Vec<Value>,
    pub partitions: Vec<Value>,
}

impl View {
    pub fn active(&self) -> usize {
        self.nodes.iter().filter(|node| node["state"] == "active").count()
    }

    /// How many partitions a node holds.
    pub fn held(&self, node: u64) -> usize {
        let holds = |p: &&Value| p["replicas"].as_array().is_some_and(|r| r.contains(&node.into()));
        self.partitions.iter().filter(holds).count()
    }

    pub fn id_at(&self, address: &str) -> Option<u64> {
        self.nodes.iter().find(|n| n["grpc"] == address && n["state"] != "dead").and_then(|n| n["id"].as_u64())
    }
}

impl Cluster {
    /// Starts nodes, one for each zone named.
    pub fn start(zones: &[&str], more: &[&str]) -> Self {
        Self::start_over(zones, more, None)
    }

    pub fn start_over(zones: &[&str], more: &[&str], network: Option<Network>) -> Self {
        let mut cluster = Self {
            dirs: Vec::new(),
            zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
            seeds: zones.iter().map(|_| free_address()).collect(),
            nodes: Vec::new(),
            more: more.iter().map(|arg| (*arg).to_owned()).collect(),
            tls: Tls::plain(),
            network,
        };
        for i in 0..zones.len() {
            cluster.dirs.push(tempfile::tempdir().unwrap());
            cluster.nodes.push(None);
            let grpc = cluster.seeds[i].clone();
            cluster.run(i, &grpc);
        }
        cluster
    }

    /// Another node with a directory of its own; answers its number.
    pub fn add(&mut self, zone: &str) -> usize {
        let i = self.nodes.len();
        self.dirs.push(tempfile::tempdir().unwrap());
        self.zones.push(zone.to_owned());
        self.nodes.push(None);
        self.run(i, &free_address());
        i
    }

    /// Starts node `i` at an address.
    pub fn run(&mut self, i: usize, grpc: &str) {
        let http = free_address();
        let listen = match &self.network {
            None => grpc.to_owned(),
            Some(network) => network.stand_before(i, grpc),
        };
        let dir = self.dirs[i].path();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("output")).unwrap();
        let expect = if i < self.seeds.len() { self.seeds.len() } else { 0 };
        let child = Command::new(env!("CARGO_BIN_EXE_engram"))
            .args(["--data-dir", dir.join("data").to_str().unwrap()])
            .args(["--http-listen", &http, "--grpc-listen", &listen, "--grpc-advertise", grpc])
            .args(["--join", &self.seeds.join(","), "--bootstrap-expect", &expect.to_string()])
            .args(["--zone", &self.zones[i], "--partitions", &PARTITIONS.to_string(), "--shard-size", "4"])
            .args(["--cluster-repair-every", "1s", "--cluster-suspect-after", "2s"])
            .args(self.more.iter().map(|arg| arg.replace("{i}", &i.to_string())))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        if let Some(network) = &self.network {
            network.is_process(child.id(), i);
        }
        self.nodes[i] = Some(Process { child, url: format!("http://{http}"), grpc: grpc.to_owned() });
    }

    pub fn kill(&mut self, i: usize) {
        self.nodes[i] = None;
    }

    /// Sends a signal to a node, by its name.
    pub fn signal(&self, i: usize, signal: &str) {
        let process = self.nodes[i].as_ref().unwrap().child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &process]).status().unwrap().success());
    }

    /// Waits until a node that was told to stop has.
    pub async fn ended(&mut self, i: usize) {
        let deadline = Instant::now() + LONG;
        while self.nodes[i].as_mut().unwrap().child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "node {i} does not stop\n{}", self.output(i));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.nodes[i] = None;
    }

    pub fn url(&self, i: usize) -> String {
        self.nodes[i].as_ref().unwrap().url.clone()
    }

    pub fn output(&self, i: usize) -> String {
        std::fs::read_to_string(self.dirs[i].path().join("output")).unwrap_or_default()
    }

    /// Waits until a node's answer is as wanted.
    pub async fn until(&self, i: usize, path: &str, what: &str, wanted: impl Fn(&str) -> bool) {
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
        panic!("node {i}: {what} is not so after {LONG:?}: {last}\n{}", self.output(i));
    }

    /// Waits until node `i` sees that many nodes active and every partition three times.
    pub async fn whole(&self, i: usize, nodes: usize) {
        self.settled(i, "all nodes hold everything", |view| view.active() == nodes).await;
    }

    /// Waits until node `i` sees every partition three times, nothing moving, and what else is wanted.
    pub async fn settled(&self, i: usize, what: &str, wanted: impl Fn(&View) -> bool) {
        self.until(i, "/api/v1/cluster/status", what, |text| {
            let view = view_of(text);
            let full = |p: &Value| p["replicas"].as_array().is_some_and(|r| r.len() == 3);
            let at_rest = view.json["moving"] == 0 && !view.partitions.is_empty() && view.partitions.iter().all(full);
            at_rest && wanted(&view)
        })
        .await;
    }

    pub async fn view(&self, i: usize) -> View {
        let answer = client().get(format!("{}/api/v1/cluster/status", self.url(i))).send().await.unwrap();
        view_of(&answer.text().await.unwrap())
    }

    /// The number here of the node that leads, as node `i` sees it.
    pub async fn leader(&self, i: usize) -> Option<usize> {
        let view = self.view(i).await;
        let leader = view.json["raft"]["leader"].as_u64()?;
        let address = view.nodes.iter().find(|n| n["id"] == leader)?["grpc"].as_str()?.to_owned();
        self.nodes.iter().position(|n| n.as_ref().is_some_and(|n| n.grpc == address))
    }

    pub async fn steer(&self, i: usize, node: u64, act: &str) -> (u16, String) {
        let url = format!("{}/api/v1/cluster/nodes/{node}/{act}", self.url(i));
        let answer = client().post(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Waits until all replicas of each partition have equal digests, and of the tenant that is written so many samples; answers how long
    /// that took.
    pub async fn alike(&self, i: usize, samples: u64) -> Duration {
        let began = Instant::now();
        let mut ways: BTreeMap<u64, Remote> = BTreeMap::new();
        loop {
            let why = match self.compare(i, &mut ways).await {
                Ok(count) if count == samples => return began.elapsed(),
                Ok(count) => format!("{count} samples of {samples}"),
                Err(why) => why,
            };
            if began.elapsed() > LONG {
                for i in 0..self.nodes.len() {
                    println!("--- node {i}\n{}", self.output(i));
                }
                panic!("replicas are not alike: {why}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn compare(&self, i: usize, ways: &mut BTreeMap<u64, Remote>) -> Result<u64, String> {
        let view = self.view(i).await;
        let name = view.json["cluster"].as_str().unwrap().to_owned();
        let mut total = 0;
        for partition in &view.partitions {
            let (id, epoch) = (partition["id"].as_u64().unwrap(), partition["epoch"].as_u64().unwrap());
            let (mut first, mut counted): (Option<(u64, Digest)>, u64) = (None, 0);
            for node in partition["replicas"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()) {
                let row = view.nodes.iter().find(|row| row["id"] == node).unwrap();
                let address = row["grpc"].as_str().unwrap();
                if ways.get(&node).is_none_or(|way| way.address() != address) {
                    ways.insert(node, Remote::open((NodeId(0), NodeId(node)), &name, (address, &self.tls)).unwrap());
                }
                let partition = PartitionId(u32::try_from(id).unwrap());
                let held = ways[&node].inventory(partition, Epoch(epoch)).await.map_err(|e| e.to_string())?;
                counted = held.iter().filter(|(tenant, _)| tenant.as_str() == "acme").map(|(_, d)| d.count).sum();
                let digest: Digest = held.iter().map(|(_, digest)| *digest).sum();
                match first {
                    None => first = Some((node, digest)),
                    Some((other, have)) if have != digest => {
                        return Err(format!("partition {id}: node {other} {have:?}, node {node} {digest:?}"));
                    }
                    Some(_) => {}
                }
            }
            total += counted;
        }
        Ok(total)
    }

    /// Bytes of one counter over all nodes that run.
    pub async fn sum_of(&self, metric: &str) -> f64 {
        let mut sum = 0.0;
        for node in self.nodes.iter().flatten() {
            let Ok(answer) = client().get(format!("{}/metrics", node.url)).send().await else { continue };
            let text = answer.text().await.unwrap();
            let lines = text.lines().filter(|line| line.split([' ', '{']).next() == Some(metric));
            sum += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
        }
        sum
    }
}

pub fn view_of(text: &str) -> View {
    let json = serde_json::from_str::<Value>(text).unwrap_or_default()["data"].take();
    let all = |name: &str| json[name].as_array().cloned().unwrap_or_default();
    View { nodes: all("nodes"), partitions: all("partitions"), json }
}
