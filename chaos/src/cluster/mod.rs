//! The cluster under test: real nodes on this machine, and the network between them in our hands.
//!
//! - [`mod@self`]: which nodes there are, how they are started, stopped, told apart; what the cluster says of itself
//! - `process`: one node as a process that never outlives us
//! - `links`: what happens to what is between two nodes; done by `switch` to packets, where it can be had, else by
//!   `proxy` and `origin` to bytes
//! - `disk`, `disk_off`, `mounts`: a disk of one node's own, that can lose its power or be full
//! - `inject`: syncs and writes that fail, are slow or lie
//! - `meddle`: writes that are cut short, syncs that fail once
//! - `damage`: files that are torn or rot
//! - `certs`, `handshake`: the certificates of nodes, and what somebody hears who shows one
//! - `limits`: less than a node needs
//! - `store`, `bucket`: the object store blocks are kept in, and what lies there
//! - `clock`: the time of day as one node sees it
//! - `gauges`: what nodes take and tell while a run lasts
//! - `view`, `roster`: what the cluster says of itself, whom clients may ask
//!
//! A node keeps its ports, its name and its directory over all restarts, so a client's address never changes and what
//! a client sees is the node's doing.

mod bucket;
mod certs;
mod clock;
mod damage;
mod disk;
mod disk_off;
mod gauges;
mod handshake;
mod inject;
mod limits;
mod links;
mod meddle;
mod mounts;
mod origin;
mod process;
mod proxy;
mod roster;
mod store;
mod switch;
mod view;

pub(crate) use bucket::Bucket;
pub(crate) use certs::Certs;
pub(crate) use clock::FakeClock;
pub(crate) use damage::{Damage, Part, inflict};
pub(crate) use disk::{Disk, Kind as DiskKind};
pub(crate) use inject::{Flaw, Injected, Syncs};
pub(crate) use limits::{Limit, Scarce};
pub(crate) use links::{CLIENTS, Links, Rule, STORE, between};
pub(crate) use meddle::{Meddle, Meddled, Synced};
pub(crate) use mounts::enter as enter_own_mounts;
pub(crate) use process::{Env, guard};
pub(crate) use roster::Roster;
pub(crate) use store::{Deed, Mood, Store, Trap, Verb};
pub(crate) use switch::{
    Counts, Network, Pair, enter as enter_own_network, possible as packets, said as network, used as network_used,
};

use crate::check::HEAL_BEGINS;
use crate::client::Client;
use crate::error::Error;
use crate::history::{Life, Recorder};
use crate::peer::{Peer, Place, Ports};
use engram_model::time::Stopwatch;
use gauges::Gauges;
use process::Process;
use proxy::{Between, Pids, Proxy};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use switch::{Namespace, Switch};

/// Below what systems give to outgoing connections, so that nobody takes the port of a node that is down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Replicas of each partition, where there are nodes enough.
const REPLICAS: usize = 3;
/// How long the harness itself waits for an answer of a node.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// What a cluster has besides its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kit {
    /// The clock of each node can be set.
    pub(crate) clock: bool,
    /// An object store of ours, in which blocks are kept.
    pub(crate) store: bool,
    /// Certificates: nodes speak TLS.
    pub(crate) certs: bool,
    /// Clients reach nodes through proxies as well.
    pub(crate) fronts: bool,
    /// Nodes begin as an older binary.
    pub(crate) older: bool,
    /// A hand of ours is between nodes and what the kernel does with their files.
    pub(crate) meddle: bool,
}

impl Kit {
    /// Nothing.
    pub(crate) const NOTHING: Self =
        Self { clock: false, store: false, certs: false, fronts: false, older: false, meddle: false };

    /// Whether this machine has it; else why not.
    pub(crate) fn possible(self) -> Result<(), String> {
        if self.clock {
            FakeClock::possible()?;
        }
        if self.meddle { Meddle::possible() } else { Ok(()) }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The binary.
    pub(crate) engram: PathBuf,
    /// An older one, where nodes begin as that.
    pub(crate) older: Option<PathBuf>,
    /// Nodes, and zones they are spread over.
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    /// Options of every node, besides those that make it a node of this cluster.
    pub(crate) options: Vec<String>,
    /// Another store than ours.
    pub(crate) peer: Option<Peer>,
    /// Variables of every node's environment, besides our own.
    pub(crate) env: Env,
    /// The disk under each node.
    pub(crate) disk: DiskKind,
    /// What else there is.
    pub(crate) kit: Kit,
    /// Everything of this run lies below.
    pub(crate) folder: PathBuf,
    /// Longest time for a start or a stop.
    pub(crate) patience: Duration,
    pub(crate) seed: u64,
    /// Where it is written down when a node is taken down, and when healing begins.
    pub(crate) recorder: Arc<Recorder>,
}

/// One node, running or not.
#[derive(Debug)]
struct Node {
    zone: usize,
    http: SocketAddr,
    grpc: SocketAddr,
    /// Where nodes of another store tell each other of themselves.
    gossip: SocketAddr,
    /// What other nodes reach it through, where that is not the node itself.
    proxy: Option<Proxy>,
    /// The network it lives in, where it is not ours.
    network: Option<Namespace>,
    folder: PathBuf,
    disk: Disk,
    clock: Option<FakeClock>,
    meddle: Option<Meddle>,
    /// What clients reach it through, where that is not the node itself.
    front: Option<Proxy>,
    /// Whether it is the older binary.
    older: bool,
    process: Option<Process>,
}

impl Node {
    /// Where others are told that it is.
    fn advertised(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.grpc, |proxy| proxy.address)
    }
}

/// The cluster. Dropping it ends every node and takes its disks down.
#[derive(Debug)]
pub(crate) struct Cluster {
    spec: Spec,
    nodes: Vec<Node>,
    seeds: Vec<String>,
    pub(crate) links: Arc<Links>,
    /// Between nodes, where their network is made of packets.
    switch: Option<Switch>,
    pids: Pids,
    gauges: Gauges,
    store: Option<Store>,
    certs: Option<Certs>,
    pub(crate) roster: Arc<Roster>,
    chance: StdRng,
    taken: BTreeSet<u16>,
}

impl Cluster {
    /// Chooses ports, makes disks, starts proxies; no node runs yet.
    ///
    /// # Errors
    /// The disk, or no free ports.
    pub(crate) async fn new(spec: Spec, client_timeout: Duration) -> Result<Self, Error> {
        // Ports are no part of what a seed replays: two runs side by side must not want the same.
        let chance = StdRng::seed_from_u64(spec.seed ^ u64::from(std::process::id()));
        let (links, roster, pids) = (Arc::new(Links::new()), Arc::new(Roster::default()), Pids::default());
        let (count, seeds, taken) = (spec.nodes, Vec::new(), BTreeSet::new());
        // A store that knows of one address only listens where we are.
        let packets = switch::entered() && spec.peer.as_ref().is_none_or(Peer::has_hosts);
        let switch = if packets { Some(Switch::start(links.watch(), spec.seed ^ 0x0ace)?) } else { None };
        let gauges = Gauges::start(spec.recorder.clone(), &spec.folder)?;
        let (nodes, store, certs) = (Vec::new(), None, None);
        let mut cluster = Self { spec, nodes, seeds, links, switch, pids, gauges, store, certs, roster, chance, taken };
        if cluster.spec.kit.store {
            let host = cluster.host(STORE);
            let (address, pids, seed) = (cluster.free(host)?, cluster.pids.clone(), cluster.spec.seed);
            cluster.store = Some(Store::start(address, pids, seed).await?);
        }
        if cluster.spec.kit.certs {
            cluster.certs = Some(Certs::make(&cluster.spec.engram, &cluster.spec.folder.join("certs"))?);
        }
        for _ in 0..count {
            cluster.add(client_timeout).await?;
        }
        // What other stores are told may name nodes that came later.
        for node in cluster.spec.peer.iter().flat_map(|_| 0..count) {
            cluster.roster.set(node, Some(cluster.client(node, client_timeout)?));
        }
        cluster.seeds = cluster.nodes.iter().map(|node| node.advertised().to_string()).collect();
        Ok(cluster)
    }

    /// Makes room for one more node; it is not started.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) async fn add(&mut self, client_timeout: Duration) -> Result<usize, Error> {
        let index = self.nodes.len();
        let folder = self.spec.folder.join(format!("node-{index}"));
        std::fs::create_dir_all(&folder)?;
        let clock = if self.spec.kit.clock { Some(FakeClock::make(&folder)?) } else { None };
        let meddle = if self.spec.kit.meddle { Some(Meddle::make(&self.library()?, &folder)?) } else { None };
        let host = self.host(index);
        let (http, grpc, gossip) = (self.free(host)?, self.free(host)?, self.free(host)?);
        let network = self.switch.as_ref().map(|switch| switch.plug(index)).transpose()?;
        let (proxy, front) = match network {
            Some(_) => (None, None),
            None => (Some(self.proxy(index, grpc).await?), self.front(index, http).await?),
        };
        if let Some(certs) = &self.certs {
            certs.issue(index, None)?;
        }
        let (zone, older) = (index % self.spec.zones, self.spec.kit.older);
        let (disk, process) = (Disk::make(self.spec.disk, &folder)?, None);
        let node =
            Node { zone, http, grpc, gossip, proxy, network, folder, disk, clock, meddle, front, older, process };
        self.nodes.push(node);
        self.roster.set(index, Some(self.client(index, client_timeout)?));
        Ok(index)
    }

    /// What other nodes go through to reach a node.
    async fn proxy(&mut self, to: usize, target: SocketAddr) -> Result<Proxy, Error> {
        let (address, rules, seed) = (self.free(LOOPBACK)?, self.links.watch(), self.spec.seed ^ to as u64);
        let pids = Some(self.pids.clone());
        Proxy::start(address, Between { to, target, pids, rules, seed }).await
    }

    /// What clients go through to reach a node, where they do.
    async fn front(&mut self, to: usize, target: SocketAddr) -> Result<Option<Proxy>, Error> {
        if !self.spec.kit.fronts {
            return Ok(None);
        }
        let (address, rules) = (self.free(LOOPBACK)?, self.links.watch());
        let seed = self.spec.seed.rotate_left(8) ^ to as u64;
        // Nobody is looked up: who comes here is a client.
        let between = Between { to, target, pids: None, rules, seed };
        Ok(Some(Proxy::start(address, between).await?))
    }

    /// The address of a node, or of the object store of ours.
    fn host(&self, end: usize) -> Ipv4Addr {
        if self.switch.is_some() { switch::address(end) } else { LOOPBACK }
    }

    /// A port that nobody has; in networks of our own nobody else is.
    fn free(&mut self, host: Ipv4Addr) -> Result<SocketAddr, Error> {
        for _ in 0..1000 {
            let port = self.chance.random_range(PORTS);
            if TcpListener::bind((LOOPBACK, port)).is_ok() && self.taken.insert(port) {
                return Ok((host, port).into());
            }
        }
        Err(Error::Usage(format!("no free port in {PORTS:?}")))
    }

    /// The way of clients to a node.
    fn client(&self, index: usize, timeout: Duration) -> Result<Client, Error> {
        self.way(index, self.switch.as_ref().map(|_| switch::address(CLIENTS)), timeout)
    }

    /// The way to a node, from one of our addresses.
    fn way(&self, index: usize, from: Option<Ipv4Addr>, timeout: Duration) -> Result<Client, Error> {
        if let Some(peer) = &self.spec.peer {
            let (write, query, ready) = peer.addresses(&self.place(index));
            return Ok(Client::from(from, &write, &query, timeout)?.of_peer(ready, peer.tenant_header.as_deref()));
        }
        let node = &self.nodes[index];
        let root = format!("http://{}", node.front.as_ref().map_or(node.http, |front| front.address));
        Client::from(from, &format!("{root}/api/v1/push"), &root, timeout)
    }

    /// Where another store's node is to be.
    fn place(&self, index: usize) -> Place {
        let node = &self.nodes[index];
        let data = self.data(index).display().to_string();
        let shared = self.spec.folder.join("shared").display().to_string();
        let ports = |(index, node): (usize, &Node)| Ports {
            host: self.host(index),
            http: node.http.port(),
            grpc: node.grpc.port(),
            gossip: node.gossip.port(),
        };
        let ports = self.nodes.iter().enumerate().map(ports).collect();
        Place { index, zone: node.zone, ports, data, shared }
    }

    /// What became of packets until now, by who sent them to whom; `None`: there are none, but proxies.
    pub(crate) fn packets(&self) -> Option<BTreeMap<Pair, Counts>> {
        self.switch.as_ref().map(Switch::counts)
    }

    /// Packets that nodes' kernels have refused until now because they were turned on their way.
    pub(crate) fn refused(&self) -> u64 {
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        processes.map(|process| switch::refused(process.pid())).sum()
    }

    /// The other store, when it is not ours.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.spec.peer.as_ref()
    }

    /// How many nodes there are, running or not.
    pub(crate) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes of a zone.
    pub(crate) fn zone(&self, zone: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].zone == zone).collect()
    }

    /// How many zones there are.
    pub(crate) fn zones(&self) -> usize {
        self.spec.zones
    }

    /// Nodes whose process runs.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()).collect()
    }

    /// Where a node's data lie.
    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.nodes[node].disk.root().join("data")
    }

    /// The disk of a node.
    pub(crate) fn disk(&mut self, node: usize) -> &mut Disk {
        &mut self.nodes[node].disk
    }

    /// Where a node listens for clients.
    pub(crate) fn http(&self, node: usize) -> SocketAddr {
        self.nodes[node].http
    }

    /// The clock of a node, where it can be set.
    pub(crate) fn clock(&self, node: usize) -> Option<FakeClock> {
        self.nodes[node].clock.clone()
    }

    /// The library that is loaded into nodes, made when it is not there yet.
    fn library(&self) -> Result<PathBuf, Error> {
        let made = self.spec.folder.join("meddle.so");
        if made.exists() { Ok(made) } else { Meddle::library(&self.spec.folder) }
    }

    /// The hand between a node and its files.
    ///
    /// # Errors
    /// There is none in this cluster.
    pub(crate) fn meddle(&self, node: usize) -> Result<&Meddle, Error> {
        let meddle = self.nodes[node].meddle.as_ref();
        meddle.ok_or_else(|| Error::Usage("nothing is between these nodes and their files".to_owned()))
    }

    /// What that hand has done to a node so far.
    pub(crate) fn meddled(&self, node: usize) -> Meddled {
        self.nodes[node].meddle.as_ref().map(Meddle::done).unwrap_or_default()
    }

    /// Which binary a node is when it is started next.
    pub(crate) fn age(&mut self, node: usize, older: bool) {
        self.nodes[node].older = older;
    }

    /// The certificates, where there are any.
    pub(crate) fn certs(&mut self) -> Option<&mut Certs> {
        self.certs.as_mut()
    }

    /// Calls node `at` with the certificate of `whose`; why not, when one of both refused.
    ///
    /// # Errors
    /// There are no certificates, or nobody listens there.
    pub(crate) async fn shakes_hands(&self, at: usize, whose: usize) -> Result<Result<(), String>, Error> {
        let hand = self.certs.as_ref().map(|certs| certs.hand(whose));
        let hand = hand.ok_or_else(|| Error::Usage("this cluster has no certificates".to_owned()))?;
        handshake::shake(self.nodes[at].grpc, hand).await
    }

    /// Limits a running node while what is returned lives.
    ///
    /// # Errors
    /// This machine cannot, or the node does not run.
    pub(crate) fn limit(&self, node: usize, scarce: Scarce) -> Result<Limit, Error> {
        let pid = self.nodes[node].process.as_ref().map(Process::pid);
        Limit::set(pid.ok_or_else(|| Error::Usage(format!("node {node} does not run")))?, scarce)
    }

    /// The object store, where there is one of ours.
    pub(crate) fn store(&mut self) -> Option<&mut Store> {
        self.store.as_mut()
    }

    /// Where blocks lie, if any are made.
    pub(crate) fn bucket(&self) -> Option<Bucket> {
        let ours = self.store.as_ref().map(Store::bucket);
        ours.or_else(|| Some(self.spec.folder.join("bucket")).filter(|path| path.exists()).map(Bucket::Folder))
    }

    /// What the nodes have printed: one file each.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.folder.join("log")).collect()
    }

    /// How much a node has printed: what it prints later is asked for by [`Self::said`].
    pub(crate) fn told(&self, node: usize) -> usize {
        let log = std::fs::metadata(self.nodes[node].folder.join("log"));
        log.ok().and_then(|log| usize::try_from(log.len()).ok()).unwrap_or(0)
    }

    /// Whether a node has printed this since it had printed so much.
    pub(crate) fn said(&self, node: usize, since: usize, text: &str) -> bool {
        let log = std::fs::read(self.nodes[node].folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(log.get(since..).unwrap_or_default()).contains(text)
    }

    /// Starts a node's process; does not wait until it is ready.
    ///
    /// # Errors
    /// It could not be started.
    pub(crate) fn launch(&mut self, index: usize) -> Result<(), Error> {
        let node = &self.nodes[index];
        let (env, log) = (self.spec.env.clone(), node.folder.join("log"));
        if let Some(peer) = &self.spec.peer {
            let (program, args) = peer.command(&self.place(index));
            let process = Process::start((Path::new(&program), &args), env, node.network.as_ref(), &log)?;
            self.gauges.know(index, Some((process.pid(), node.http)));
            self.nodes[index].process = Some(process);
            return Ok(());
        }
        let founder = index < self.spec.nodes;
        let mut args: Vec<String> = Vec::new();
        let mut put = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        put("data-dir", node.disk.root().join("data").display().to_string());
        put("http-listen", node.http.to_string());
        put("grpc-listen", node.grpc.to_string());
        put("grpc-advertise", node.advertised().to_string());
        put("zone", format!("zone-{}", node.zone));
        put("node-name", format!("node-{index}"));
        put("join", self.seeds.join(","));
        put("bootstrap-expect", if founder { self.spec.nodes } else { 0 }.to_string());
        args.extend(self.spec.options.iter().cloned());
        args.extend(self.store.iter().flat_map(Store::options));
        args.extend(self.certs.iter().flat_map(|certs| certs.options(index)));
        // Nobody else is in these networks. A variable, so that an older binary may not know it.
        let plain = self.switch.is_some() && self.certs.is_none();
        let plain: Env = plain.then(|| ("ENGRAM_CLUSTER_PLAIN_TEXT", "true".into())).into_iter().collect();
        let clock = node.clock.as_ref().map(FakeClock::env).unwrap_or_default();
        let meddle = node.meddle.as_ref().map(Meddle::env).unwrap_or_default();
        let env = together([env, plain, clock, meddle].concat());
        let newer = &self.spec.engram;
        let binary = if node.older { self.spec.older.as_ref().unwrap_or(newer) } else { newer };
        let process = Process::start((binary, &args), env, node.network.as_ref(), &log)?;
        let pid = Some(process.pid());
        self.nodes[index].process = Some(process);
        self.know(index, pid);
        Ok(())
    }

    fn know(&self, index: usize, pid: Option<u32>) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.len() <= index {
            pids.resize(index + 1, None);
        }
        pids[index] = pid;
        self.gauges.know(index, pid.map(|pid| (pid, self.nodes[index].http)));
    }

    /// Starts nodes and waits until each is ready; returns how long that took.
    ///
    /// # Errors
    /// One ended by itself or was not ready in time; the end of its log is told.
    pub(crate) async fn start(&mut self, nodes: &[usize]) -> Result<Duration, Error> {
        let watch = Stopwatch::start();
        for node in nodes {
            self.launch(*node)?;
        }
        for node in nodes {
            self.ready(*node).await?;
        }
        Ok(watch.elapsed())
    }

    /// Waits until a running node says it is ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) async fn ready(&mut self, index: usize) -> Result<(), Error> {
        let (watch, client) = (Stopwatch::start(), self.way(index, None, ASK_WITHIN)?);
        while !client.is_ready().await {
            self.alive(index)?;
            if watch.elapsed() > self.spec.patience {
                return Err(self.failed(index, &format!("not ready after {} s", self.spec.patience.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Says when a node that should run has ended by itself.
    ///
    /// # Errors
    /// It has; that is a finding of its own.
    pub(crate) fn alive(&mut self, index: usize) -> Result<(), Error> {
        let ended = self.nodes[index].process.as_mut().and_then(Process::ended);
        ended.map_or(Ok(()), |status| Err(self.failed(index, &format!("ended by itself: {status}"))))
    }

    /// SIGKILL to all of them at one moment; waits until they are gone.
    ///
    /// # Errors
    /// One had ended by itself before.
    pub(crate) async fn kill(&mut self, nodes: &[usize]) -> Result<(), Error> {
        for node in nodes {
            self.alive(*node)?;
        }
        self.kill_any(nodes).await
    }

    /// As [`Self::kill`], also those that may have ended because of a fault of ours.
    ///
    /// # Errors
    /// They could not be waited for.
    pub(crate) async fn kill_any(&mut self, nodes: &[usize]) -> Result<(), Error> {
        self.strike_dead(nodes);
        for node in nodes {
            if let Some(process) = self.nodes[*node].process.take() {
                process.gone().await?;
                self.spec.recorder.life(*node, Life::Gone);
            }
            self.know(*node, None);
        }
        Ok(())
    }

    /// SIGKILL to all of them, without waiting until they are gone; [`Self::kill_any`] does that after.
    pub(crate) fn strike_dead(&mut self, nodes: &[usize]) {
        for node in nodes {
            if let Some(process) = &mut self.nodes[*node].process {
                self.spec.recorder.life(*node, Life::Killed);
                process.kill();
            }
        }
    }

    /// Asks a node to end and waits until it has.
    ///
    /// # Errors
    /// It ended with an error, or not in time.
    pub(crate) async fn stop(&mut self, index: usize) -> Result<(), Error> {
        self.alive(index)?;
        let Some(process) = self.nodes[index].process.take() else { return Ok(()) };
        self.spec.recorder.life(index, Life::Asked);
        process.signal(Signal::TERM);
        let ended = tokio::time::timeout(self.spec.patience, process.gone()).await;
        self.spec.recorder.life(index, Life::Gone);
        self.know(index, None);
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.failed(index, &format!("asked to end, it ended with {status}"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.failed(index, "asked to end, it did not")),
        }
    }

    /// Writes down that from now on nothing is done to the cluster any more but what heals it.
    pub(crate) fn healing(&self) {
        self.spec.recorder.mark(HEAL_BEGINS);
    }

    /// Stops a node in the middle of whatever it does, or lets it go on.
    pub(crate) fn pause(&self, index: usize, paused: bool) {
        if let Some(process) = &self.nodes[index].process {
            process.signal(if paused { Signal::STOP } else { Signal::CONT });
        }
    }

    /// As [`Self::pause`], and waits until nothing of the nodes runs any more: calls that the kernel is at still end, and
    /// nobody hears of it.
    ///
    /// # Errors
    /// Something of them runs all the same.
    pub(crate) async fn freeze(&self, nodes: &[usize]) -> Result<(), Error> {
        nodes.iter().for_each(|node| self.pause(*node, true));
        for process in nodes.iter().filter_map(|node| self.nodes[*node].process.as_ref()) {
            process.stands().await?;
        }
        Ok(())
    }

    /// Has the syncs of a running node go wrong while what is returned lives.
    ///
    /// # Errors
    /// This machine cannot, or the node does not run.
    pub(crate) async fn inject(&self, index: usize, syncs: Syncs) -> Result<Injected, Error> {
        let node = &self.nodes[index];
        let pid = node.process.as_ref().map(Process::pid);
        let pid = pid.ok_or_else(|| Error::Usage(format!("node {index} does not run")))?;
        Injected::attach(pid, syncs, &node.folder.join("strace")).await
    }

    /// Takes a node off the list clients use.
    pub(crate) fn unlist(&self, index: usize) {
        self.roster.set(index, None);
    }

    fn failed(&self, index: usize, reason: &str) -> Error {
        let path = self.nodes[index].folder.join("log");
        let tail = tail(&path);
        Error::Process {
            path: self.spec.engram.clone(),
            reason: format!("node {index} {reason}; {}:\n{tail}", path.display()),
        }
    }
}

/// Libraries that are to be loaded stand in one variable.
fn together(env: Env) -> Env {
    let (libraries, mut others): (Env, Env) = env.into_iter().partition(|(name, _)| *name == "LD_PRELOAD");
    let all: Vec<_> = libraries.into_iter().map(|(_, path)| path).collect();
    if !all.is_empty() {
        others.push(("LD_PRELOAD", all.join(std::ffi::OsStr::new(":"))));
    }
    others
}

/// The end of a log.
fn tail(path: &Path) -> String {
    let log = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned()
}
