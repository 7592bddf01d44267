//! What is done to a cluster as a whole: members change while the network is cut, a member lags behind a snapshot,
//! binaries and certificates are replaced, there is too much to do or too little to do it with.

use super::flood::Flood;
use super::members::CHURN_WITHIN;
use super::proof::HITS_WITHIN;
use super::wounds::revive;
use super::{Nemesis, Pace, Proof, Shape, Whom, names, network};
use crate::cluster::{Cluster, Limit, Links, Rule, Scarce};
use crate::error::Error;
use crate::history::FaultState;
use engram_model::time::Stopwatch;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Changes of the metadata that a member misses: several times what is kept for those who are late.
const MISSED: u32 = 200;
/// How long the certificate lives that ends under a node's feet.
const SHORT_LIFE: Duration = Duration::from_secs(8);
/// By then nodes have read files anew that were changed.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// By then a node that nobody lets in is missed.
const LOST_WITHIN: Duration = Duration::from_secs(20);
/// What the breaking of every connection is called; nobody can be served then.
pub(crate) const LINES_BREAK: &str = "all connections between nodes break for 0.7 s";
/// Callers that a node at its limit for files may still have room for.
const CALLERS_MAX: u32 = 256;
/// Questions at once that want a thread each.
const VOLLEY: usize = 96;
/// Who has no answer by then was not taken.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Memory of each node in a flood.
const FLOOD_BYTES: u64 = 512 << 20;

impl Nemesis {
    /// Members change, while lines are cut and healed all the time.
    pub(super) async fn churn_cut(&mut self, cluster: &mut Cluster) -> Result<(), Error> {
        let (name, nodes) = ("lines between nodes are cut again and again", cluster.running());
        self.recorder.fault(name, FaultState::Installed, "");
        let mut cutting = JoinSet::new();
        cutting.spawn(cut(cluster.links.clone(), nodes, StdRng::seed_from_u64(self.chance.random())));
        let changed = self.churn(cluster).await;
        cutting.shutdown().await;
        cluster.healing();
        cluster.links.heal();
        changed?;
        cluster.whole(CHURN_WITHIN).await?;
        self.recorder.fault(name, FaultState::Healed, "");
        Ok(())
    }

    /// A member is away while the metadata's log is written out and forgotten; when it is back its lines break, and it is
    /// killed once more in the middle of what it is sent.
    pub(super) async fn lag(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let leader = cluster.leader().await;
        let followers: Vec<usize> = cluster.running().into_iter().filter(|node| Some(*node) != leader).collect();
        let node = followers.choose(&mut self.chance).copied().unwrap_or(0);
        let others: Vec<usize> = cluster.running().into_iter().filter(|other| *other != node).collect();
        let name = format!("node {node} misses {MISSED} changes of the metadata and more, then its lines break");
        self.recorder.fault(&name, FaultState::Installed, "");
        cluster.kill(&[node]).await?;
        self.recorder.fault(&name, FaultState::Struck, "");
        let (before, at) = (applied(cluster, &others).await, others.first().copied().unwrap_or(0));
        for change in 0..MISSED {
            let Some(client) = cluster.roster.client(at) else { break };
            // One tenant again and again: a conflict is a change of the log as well.
            let body = json!({ "version": change, "limits": { "max_global_series_per_user": change } });
            let _refused = client.put("admin/tenants/missed", &body).await;
        }
        let missed = applied(cluster, &others).await.saturating_sub(before);
        let lines: Vec<_> = others.iter().flat_map(|other| [(node, *other), (*other, node)]).collect();
        cluster.links.set(&lines, Rule { breaks: 5_000, delay_ms: 20, ..Rule::default() });
        cluster.launch(node)?;
        self.wait(pace.hold_ms).await;
        cluster.kill(&[node]).await?;
        cluster.launch(node)?;
        self.wait(pace.hold_ms).await;
        cluster.healing();
        cluster.links.heal();
        cluster.ready(node).await?;
        cluster.whole(CHURN_WITHIN).await?;
        let (wanted, mut has) = (applied(cluster, &others).await, 0);
        for _ in 0..100 {
            has = applied(cluster, &[node]).await;
            if has >= wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if has < wanted {
            return Err(Error::Usage(format!("node {node} has applied {has} of {wanted} entries and gets no further")));
        }
        self.recorder.fault(&name, FaultState::Healed, &format!("{missed} entries were missed"));
        Ok(())
    }

    /// Each node gets another binary, in turn.
    pub(super) async fn upgrade(&mut self, cluster: &mut Cluster, round: u32, pace: Pace) -> Result<(), Error> {
        let nodes = self.targets(cluster, Whom::EachNode, round).await;
        let turn = round as usize / cluster.count();
        // There, and half of the way back.
        let older = turn % 2 == 1;
        let name = format!("{} begins anew as the {} binary", names(&nodes), if older { "older" } else { "newer" });
        self.recorder.fault(&name, FaultState::Installed, "");
        for node in &nodes {
            cluster.stop(*node).await?;
            cluster.age(*node, older);
        }
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        cluster.healing();
        cluster.start(&nodes).await?;
        self.recorder.fault(&name, FaultState::Healed, "");
        Ok(())
    }

    /// All certificates are made anew; in every second round the CA as well, in its three steps.
    pub(super) async fn rotate(&mut self, cluster: &mut Cluster, round: u32) -> Result<(), Error> {
        let every: Vec<usize> = (0..cluster.count()).collect();
        let whole = round % 2 == 1;
        let name = if whole { "the CA and all certificates are replaced" } else { "all certificates are replaced" };
        self.recorder.fault(name, FaultState::Installed, "");
        let certs = certs(cluster)?;
        if whole {
            certs.next_authority()?;
            tokio::time::sleep(READ_AGAIN).await;
        }
        self.recorder.fault(name, FaultState::Struck, "");
        for node in every {
            certs.issue(node, None)?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(READ_AGAIN).await;
        if whole {
            certs.forget_the_last()?;
            tokio::time::sleep(READ_AGAIN).await;
        }
        self.recorder.fault(name, FaultState::Healed, "");
        // What is open was made with what was before.
        self.break_lines(cluster).await;
        Ok(())
    }

    /// A node's certificate ends while it is used; then it gets another.
    pub(super) async fn expire(&mut self, cluster: &mut Cluster, round: u32, pace: Pace) -> Result<(), Error> {
        let nodes = self.targets(cluster, Whom::EachNode, round).await;
        let name = format!("the certificate of {} ends", names(&nodes));
        for node in &nodes {
            certs(cluster)?.issue(*node, Some(SHORT_LIFE))?;
        }
        self.recorder.fault(&name, FaultState::Installed, "");
        tokio::time::sleep(SHORT_LIFE + READ_AGAIN).await;
        self.break_lines(cluster).await;
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        let mut proof = turned_away(cluster, &nodes).await?;
        if !cluster.lost(&nodes, LOST_WITHIN).await {
            proof = Err("the others still count it among the active".to_owned());
        }
        cluster.healing();
        for node in &nodes {
            certs(cluster)?.issue(*node, None)?;
        }
        tokio::time::sleep(READ_AGAIN).await;
        self.healed(&name, proof);
        Ok(())
    }

    /// Every connection between nodes ends with its next piece.
    async fn break_lines(&mut self, cluster: &Cluster) {
        self.recorder.fault(LINES_BREAK, FaultState::Installed, "");
        let all: Vec<Vec<usize>> = (0..cluster.count()).map(|node| vec![node]).collect();
        let always = Rule { breaks: 10_000, ..Rule::default() };
        cluster.links.set(&crate::cluster::between(&all), always);
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.healing();
        cluster.links.heal();
        self.recorder.fault(LINES_BREAK, FaultState::Healed, "");
    }

    /// There is too little of something for a while.
    pub(super) async fn scarce(
        &mut self,
        cluster: &mut Cluster,
        scarce: Scarce,
        round: u32,
        pace: Pace,
    ) -> Result<(), Error> {
        // Three kinds and often three nodes: so each node lacks each of them once.
        let nodes = self.targets(cluster, Whom::EachNode, round + round / 3).await;
        let name = format!("too little at {}: {scarce:?}", names(&nodes));
        if let Err(why) = scarce.possible() {
            self.recorder.fault(&name, FaultState::Skipped, &why);
            return Ok(());
        }
        self.recorder.fault(&name, FaultState::Installed, "");
        let mut limits = Vec::new();
        for node in &nodes {
            limits.push(cluster.limit(*node, scarce)?);
        }
        let mut crowd = Crowd::default();
        let felt = felt(cluster, &nodes, &limits, &mut crowd).await;
        self.recorder.fault(&name, FaultState::Struck, "");
        self.wait(pace.hold_ms).await;
        let refused: u64 = limits.iter().map(Limit::refused).sum();
        let ended = nodes.iter().filter(|node| cluster.alive(**node).is_err()).count();
        cluster.healing();
        drop((limits, crowd));
        revive(cluster, &nodes).await?;
        self.healed(&name, felt.map(|what| format!("{what}; refused {refused} times; {ended} ended by it")));
        Ok(())
    }

    /// Far more than the cluster can take, with little memory.
    pub(super) async fn flood(&mut self, cluster: &mut Cluster, pace: Pace) -> Result<(), Error> {
        let name = "a flood of writes and queries, with 512 MiB a node";
        if let Err(why) = Scarce::MemoryTo(FLOOD_BYTES).possible() {
            self.recorder.fault(name, FaultState::Skipped, &why);
            return Ok(());
        }
        let nodes = cluster.running();
        self.recorder.fault(name, FaultState::Installed, "");
        let mut limits = Vec::new();
        for node in &nodes {
            limits.push(cluster.limit(*node, Scarce::MemoryTo(FLOOD_BYTES))?);
        }
        let flood = Flood::begin(&cluster.roster);
        self.wait(pace.hold_ms).await;
        let heard = flood.end().await;
        if !["429", "503"].iter().any(|code| heard.contains(code)) {
            self.recorder.fault(
                name,
                FaultState::Unknown,
                &format!("nothing was refused, so it was no flood: {heard}"),
            );
        }
        for node in &nodes {
            cluster.alive(*node)?;
        }
        cluster.healing();
        drop(limits);
        self.recorder.fault(name, FaultState::Healed, &heard);
        Ok(())
    }
}

/// Callers of a node that keep it at a limit for files while this lives.
#[derive(Debug, Default)]
struct Crowd(Vec<TcpStream>);

impl Crowd {
    /// Calls until nobody answers any more. The kernel takes a call that the node has no file for; it only waits.
    async fn gather(&mut self, at: SocketAddr) -> Proof {
        for count in 0..CALLERS_MAX {
            let Ok(mut stream) = TcpStream::connect(at).await else { return Ok(format!("caller {count} was refused")) };
            let asked = stream.write_all(b"GET /-/ready HTTP/1.1\r\nHost: crowd\r\n\r\n").await;
            let answer = tokio::time::timeout(ANSWERS_WITHIN, stream.read(&mut [0; 16])).await;
            let answered = asked.is_ok() && matches!(answer, Ok(Ok(1..)));
            self.0.push(stream);
            if !answered {
                return Ok(format!("caller {count} got no answer"));
            }
        }
        Err(format!("{CALLERS_MAX} callers were taken all the same"))
    }
}

/// Calls as these nodes and calls them, with certificates that have ended and with such that have not.
async fn turned_away(cluster: &Cluster, ended: &[usize]) -> Result<Proof, Error> {
    let others: Vec<usize> = cluster.running().into_iter().filter(|node| !ended.contains(node)).collect();
    let (Some(one), Some(other)) = (others.first().copied(), others.last().copied()) else {
        return Ok(Err("there is nobody else to call".to_owned()));
    };
    let mut told = Vec::new();
    for node in ended {
        for (at, whose) in [(one, *node), (*node, one)] {
            match cluster.shakes_hands(at, whose).await? {
                Err(why) if why.to_lowercase().contains("expired") => {
                    told.push(format!("node {at}, called as node {whose}: {why}"));
                }
                answer => {
                    return Ok(Err(format!("node {at}, called as node {whose}, was to turn it away: {answer:?}")));
                }
            }
        }
    }
    // One who has a certificate that is good must be let in, or this says nothing.
    let answer = cluster.shakes_hands(one, other).await?;
    Ok(answer.map(|()| told.join("; ")).map_err(|why| format!("node {one}, called as node {other}: {why}")))
}

/// What shows that there is too little: of files, that a caller is not taken; of threads and memory, that the kernel has
/// refused some.
async fn felt(cluster: &mut Cluster, nodes: &[usize], limits: &[Limit], crowd: &mut Crowd) -> Proof {
    let (watch, mut told) = (Stopwatch::start(), Vec::new());
    for (node, limit) in nodes.iter().zip(limits) {
        if matches!(limit, Limit::Files { .. }) {
            told.push(crowd.gather(cluster.http(*node)).await?);
            continue;
        }
        while limit.refused() == 0 && cluster.alive(*node).is_ok() {
            if watch.elapsed() > HITS_WITHIN {
                return Err(format!("node {node} lacked nothing"));
            }
            if limit.is_of_threads() {
                volley(cluster.http(*node)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        told.push(format!("node {node} lacked it"));
    }
    Ok(told.join("; "))
}

/// Asks for so much at once that the node wants more threads than it has: each answer is made by one of its own.
async fn volley(at: SocketAddr) {
    let one = async || {
        let mut stream = TcpStream::connect(at).await.ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: volley\r\nConnection: close\r\n\r\n").await.ok()?;
        stream.read_to_end(&mut Vec::new()).await.ok()
    };
    // Who gets no answer has asked all the same.
    let all = futures::future::join_all((0..VOLLEY).map(|_| one()));
    let _answered = tokio::time::timeout(ANSWERS_WITHIN, all).await;
}

fn certs(cluster: &mut Cluster) -> Result<&mut crate::cluster::Certs, Error> {
    cluster.certs().ok_or_else(|| Error::Usage("this cluster has no certificates".to_owned()))
}

/// The highest entry one of them has applied.
async fn applied(cluster: &Cluster, nodes: &[usize]) -> u64 {
    let mut most = 0;
    for node in nodes {
        let status = cluster.status(*node).await;
        most = most.max(status.ok().and_then(|status| status["raft"]["applied"].as_u64()).unwrap_or(0));
    }
    most
}

/// Cuts lines and heals them, for ever.
async fn cut(links: Arc<Links>, nodes: Vec<usize>, mut chance: StdRng) {
    const SHAPES: [Shape; 4] = [Shape::IsolateNode, Shape::Bridge, Shape::OneWay, Shape::Lossy];
    let mut nodes = nodes;
    loop {
        nodes.shuffle(&mut chance);
        let shape = SHAPES.choose(&mut chance).copied().unwrap_or(Shape::IsolateNode);
        let (_, pairs, rule) = network::plan(shape, &nodes, (None, 0), &mut chance);
        links.set(&pairs, rule);
        tokio::time::sleep(Duration::from_millis(chance.random_range(500..2_500))).await;
        links.heal();
        tokio::time::sleep(Duration::from_millis(chance.random_range(1_500..4_000))).await;
    }
}
