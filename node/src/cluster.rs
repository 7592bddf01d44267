//! The parts of the assembly that a cluster needs: the services other nodes call, how this node comes to its part of the
//! metadata, and the actors that keep replicas alike.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engram_model::place::NodeId;
use engram_model::time::Clock;
use engram_raft::group::FirstStart;
use engram_raft::rpc::Dial;
use engram_raft::{Group, GroupOptions};
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actor::{Condition, Health, Supervisor};
use crate::assembly::StartError;
use crate::blocks::reach;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::grpc;
use crate::ingest::heads::Heads;
use crate::ingest::{partition, repair};
use crate::members::About;
use crate::members::call::Calls;
use crate::members::identity::IdentityFile;
use crate::members::join::{self, Seeds, Start};
use crate::members::service::{Door, Heard};
use crate::members::sizes::Sizes;
use crate::meta::Meta;
use crate::meta::nodes::NodeState;
use crate::metrics::{Metrics, Reading};
use crate::peer::{self, Peers, Replica};
use crate::read::sums::Sums;
use crate::reconciler::{self, Operator};
use crate::tls::Tls;

/// How long other voters may take to lead, each of them, and how often that is looked at.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(8);
const OFFER_WITHIN: Duration = Duration::from_secs(2);
const HAND_OVER_LOOK: Duration = Duration::from_millis(20);

/// The services of the gRPC port that come later than the port.
#[derive(Default)]
pub(crate) struct Services {
    raft: grpc::Late<engram_raft::rpc::GrpcServer>,
    ingest: grpc::Late<grpc::ingest::GrpcServer>,
}

impl Services {
    /// Serves all of them on the gRPC port, until `stop`.
    pub(crate) fn serve(
        &self,
        config: &Config,
        door: &Arc<Door>,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), StartError>> + Send + use<> {
        let routes = tonic::service::Routes::new(door.clone().into_grpc());
        let routes = routes.add_service(self.raft.clone()).add_service(self.ingest.clone());
        let (tls, stop_within) = (door.tls.clone(), config.shutdown_timeout);
        async move {
            let served = grpc::serve(listener, routes, &tls, (stop, stop_within)).await;
            served.map_err(|e| StartError::Failed(format!("the gRPC server: {e}")))
        }
    }

    /// Lets other nodes reach this node's replicas, and this node theirs.
    pub(crate) fn peers(
        &self,
        config: &Config,
        (meta, tls): (&Meta, &Tls),
        (local, stop): (Arc<dyn Replica>, &CancellationToken),
        sums: Sums,
    ) -> Peers {
        let api = grpc::ingest::Api::new(local.clone(), meta.clone(), stop.clone(), Some(sums));
        self.ingest.open(api.into_grpc());
        let names = (meta.cluster_id(), config.zone.clone());
        Peers::new((meta.node_id(), local), names, (Box::new(Directory(meta.clone())), tls.clone()))
    }
}

/// Where the nodes are, as the metadata knows.
struct Directory(Meta);

impl peer::Directory for Directory {
    fn find(&self, node: NodeId) -> Option<(String, String)> {
        let member = self.0.member(node)?;
        Some((member.spec.grpc, member.spec.zone))
    }
}

/// How this node speaks to others, by the options; new files are taken by a task among `servers`.
pub(crate) fn tls(
    config: &Config,
    (clock, metrics): (&Clock, &Metrics),
    servers: &mut JoinSet<Result<(), StartError>>,
    stop: &CancellationToken,
) -> Result<Tls, StartError> {
    let tls = match config.tls_files() {
        Some(files) => Tls::open(files, clock).map_err(StartError::Failed)?,
        None => Tls::plain(),
    };
    if config.cluster.plain_text {
        tracing::warn!("cluster.plain-text: whoever reaches {} can read and write everything", config.grpc_listen);
    }
    let told = tls.clone();
    #[allow(clippy::cast_precision_loss, reason = "a number for a graph")]
    metrics.collect(move || {
        let end = told.ends_at().map(|at| at as f64 / 1000.0);
        end.map(|at| Reading::gauge("tls_certificate_end_seconds", "When this node's certificate ends, since 1970", at))
            .into_iter()
            .collect()
    });
    servers.spawn(tls.clone().watch(clock.clone(), stop.clone()).map(Ok));
    Ok(tls)
}

/// What answers other nodes before there is a cluster, and after.
pub(crate) fn door(
    config: &Config,
    dir: &DataDir,
    (http, grpc): (SocketAddr, SocketAddr),
    (clock, tls): (&Clock, &Tls),
    health: &Health,
) -> Result<Door, StartError> {
    let about = About {
        zone: config.zone.clone(),
        grpc: advertised(&config.grpc_advertise, grpc, &config.join),
        http: advertised(&config.http_advertise, http, &config.join),
        store: reach::name(&config.object_store),
    };
    Ok(Door {
        about,
        identity: IdentityFile::open(&dir.member()).map_err(StartError::Failed)?,
        clock: clock.clone(),
        skew_max: config.cluster.clock_skew_max,
        tls: tls.clone(),
        health: health.clone(),
        complete: Arc::default(),
        heard: Heard::default(),
        meta: OnceLock::new(),
        sizes: OnceLock::new(),
        backfill: parking_lot::Mutex::default(),
        life: uuid::Uuid::new_v4().as_u64_pair().0,
        reach: OnceLock::new(),
    })
}

/// What others reach this node by. A node that listens on all its addresses tells the one it would reach a seed from.
fn advertised(option: &str, listens: SocketAddr, seeds: &[String]) -> String {
    if option != "auto" {
        return option.to_owned();
    }
    if !listens.ip().is_unspecified() {
        return listens.to_string();
    }
    let towards = |target: &str| {
        // Nothing is sent: the system only looks which way it would go.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    // Without a seed: towards an address nobody has (RFC 5737).
    let ip = seeds.iter().map(String::as_str).chain(["192.0.2.1:9"]).find_map(towards);
    let ip = ip.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    SocketAddr::new(ip, listens.port()).to_string()
}

/// Finds the cluster or makes it, and opens this node's part of its metadata.
pub(crate) async fn open_group(
    config: &Config,
    dir: &DataDir,
    door: &Door,
    services: &Services,
    health: &Health,
) -> Result<Group, StartError> {
    let seeds = Seeds { addresses: config.join.clone(), expect: config.bootstrap_expect as usize };
    if !seeds.addresses.is_empty() {
        health.set("node/metadata", Condition::Starting("looking for the cluster".into()));
    }
    let start = join::start(door, &Calls::new(&door.tls), &seeds, dir.has_meta()).await.map_err(StartError::Failed)?;
    let first_start = match start {
        Start::Found { cluster } => FirstStart::Bootstrap { cluster_id: cluster, partition_count: config.partitions },
        Start::Member { cluster, id } => FirstStart::Join { cluster_id: cluster, id },
    };
    let tls = door.tls.clone();
    let snapshot_every = config.cluster.snapshot_every as u64;
    let options = GroupOptions {
        snapshot_every,
        snapshot_keep: snapshot_every / 10,
        dial: Dial::new(move |endpoint| tls.channel(endpoint)),
        ..GroupOptions::new(dir.meta(), door.about.spec(), first_start, door.clock.clone())
    };
    let group = Group::open(options).await?;
    let done = follow(door, services, health, (&group, &seeds)).await;
    or_close(&group, done).await?;
    Ok(group)
}

/// Lets others reach this node's part of the metadata, and waits until it shows the node.
async fn follow(
    door: &Door,
    services: &Services,
    health: &Health,
    (group, seeds): (&Group, &Seeds),
) -> Result<(), StartError> {
    let (status, id) = (group.status(), group.id());
    let remembered = door.identity.change(|identity| {
        identity.cluster = Some(status.cluster_id);
        identity.node = Some(id.0);
        identity.opened = true;
    });
    remembered.map_err(StartError::Failed)?;
    // Only now: who has voted must remember that it had something to vote with.
    services.raft.open(group.service().into_grpc());
    let mut views = group.watch();
    let is_there = |view: &Arc<engram_raft::View>| view.cluster.is_some() && view.nodes.get(&id).is_some();
    if !is_there(&views.borrow()) {
        health.set("node/metadata", Condition::Starting("waiting for the leader to bring the metadata".into()));
    }
    let calls = Calls::new(&door.tls);
    tokio::select! {
        there = views.wait_for(is_there) => {
            there.map(drop).map_err(|e| StartError::Failed(format!("the metadata group: {e}")))
        }
        // A leader that knows an old address only cannot bring it.
        dead = join::tell_seeds(door, &calls, seeds) => Err(StartError::Failed(dead)),
    }
}

/// What came of a step; when it failed, the metadata is closed first, so that a next attempt finds it free.
pub(crate) async fn or_close<T>(group: &Group, done: Result<T, StartError>) -> Result<T, StartError> {
    if done.is_err()
        && let Err(error) = group.shutdown().await
    {
        tracing::warn!(%error, "the metadata group did not close cleanly");
    }
    done
}

/// What answers operators.
pub(crate) fn operator(config: &Config, meta: &Meta, door: &Arc<Door>, metrics: &Metrics) -> Operator {
    let (told, of, option) = (meta.clone(), door.clone(), config.replication_factor as usize);
    metrics.collect(move || readings(&told, &of, option));
    Operator {
        meta: meta.clone(),
        door: door.clone(),
        calls: Arc::new(Calls::new(&door.tls)),
        replication_factor: option,
    }
}

/// What a cluster is watched by. What is left to copy only the leader knows: take the greatest of all nodes.
#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn readings(meta: &Meta, door: &Door, replication_factor: usize) -> Vec<Reading> {
    let (members, states) = (meta.members(), [NodeState::Joining, NodeState::Active, NodeState::Suspect]);
    let states = states.into_iter().chain([NodeState::Draining, NodeState::Dead]);
    let nodes = states.map(|state| {
        let count = members.iter().filter(|member| member.state == state).count() as f64;
        Reading::gauge("cluster_nodes", "Nodes of the cluster by state", count).of(state.word())
    });
    let left = (*door.backfill.lock()).unwrap_or_default();
    let gauge = Reading::gauge;
    let mut all: Vec<Reading> = nodes.collect();
    all.extend([
        gauge(
            "cluster_under_replicated_partitions",
            "Partitions with fewer replicas that live than they should have",
            meta.under_replicated(replication_factor) as f64,
        ),
        gauge("cluster_moving_partitions", "Partitions whose replica set is being replaced", meta.moving() as f64),
        gauge("cluster_backfill_copies", "Copies of partitions still to be made, on the leader", left.copies as f64),
        gauge("cluster_backfill_left_bytes", "Bytes still to be copied, on the leader", left.bytes_left as f64),
        gauge(
            "cluster_backfill_left_seconds",
            "Time copying will still take, on the leader; -1 while that is not known",
            left.seconds_left,
        ),
        gauge("cluster_leader", "Whether this node leads the metadata group", f64::from(u8::from(meta.leads()))),
    ]);
    all
}

/// Gives the lead of the metadata group to another voter before this node goes, so that nobody has to notice its
/// silence first.
///
/// An offer is one message. It is lost with its connection, and an heir whose disk has not confirmed the last entry in a
/// second, or who stops as well, lets it pass. So it is made again, to the one that is nearest among those that had the
/// fewest offers, until somebody leads.
pub(crate) async fn hand_over(group: &Group) {
    let mut offered: BTreeMap<NodeId, u32> = BTreeMap::new();
    let began = tokio::time::Instant::now();
    while began.elapsed() < HAND_OVER_WITHIN {
        let (status, progress) = (group.status(), group.progress());
        if status.role != "leader" {
            if let Some(leader) = status.leader.filter(|_| !offered.is_empty()) {
                tracing::info!(heir = leader.id.0, "the lead of the metadata group is handed over");
            } else if !offered.is_empty() {
                tracing::info!("the lead of the metadata group is handed over");
            }
            return;
        }
        let Some(heir) = heir(group.id(), &status.voters, &progress, &offered) else { return };
        if let Err(error) = group.transfer_leader(heir).await {
            return tracing::info!(%error, "the lead is not handed over");
        }
        *offered.entry(heir).or_default() += 1;
        let gone = async {
            while group.status().role == "leader" {
                tokio::time::sleep(HAND_OVER_LOOK).await;
            }
        };
        // Late: another one is offered it.
        let _late = tokio::time::timeout(OFFER_WITHIN, gone).await;
    }
    tracing::warn!(?offered, "the lead of the metadata group is not taken over");
}

/// Who is offered the lead: of those that had the fewest offers the one whose log is the longest.
fn heir(
    here: NodeId,
    voters: &[NodeId],
    progress: &BTreeMap<NodeId, u64>,
    offered: &BTreeMap<NodeId, u32>,
) -> Option<NodeId> {
    let others = voters.iter().copied().filter(|id| *id != here);
    let known = |id: &NodeId| progress.get(id).copied().unwrap_or(0);
    let key = |id: &NodeId| (std::cmp::Reverse(offered.get(id).copied().unwrap_or(0)), known(id));
    others.max_by_key(key)
}

/// The actors that only a cluster of several nodes needs: repair, and on the leader the reconciler.
pub(crate) fn start(
    config: &Config,
    (meta, peers, door): (&Meta, &Peers, &Arc<Door>),
    (heads, partitions): (Arc<Vec<Heads>>, Vec<partition::Handle>),
    stop: &CancellationToken,
    supervisor: &mut Supervisor,
) {
    // Only the first counts, and a node has one.
    let _first = door.sizes.set(Sizes::new(heads.clone()));
    supervisor.spawn(repair::child(repair::Config {
        meta: meta.clone(),
        peers: peers.clone(),
        heads,
        partitions,
        complete: door.complete.clone(),
        every: config.cluster.repair_every,
        patience: repair::Patience::default(),
        stop: stop.clone(),
    }));
    supervisor.spawn(reconciler::child(reconciler::Config {
        meta: meta.clone(),
        door: door.clone(),
        replication_factor: config.replication_factor as usize,
        suspect_after: config.cluster.suspect_after,
        dead_after: config.cluster.dead_after,
        stop: stop.clone(),
    }));
    supervisor.spawn(join::child(join::Telling {
        door: door.clone(),
        seeds: Seeds { addresses: config.join.clone(), expect: 0 },
        meta: meta.clone(),
        stop: stop.clone(),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_is_offered_to_the_nearest_and_then_to_the_others() {
        let ids = [1, 2, 3].map(NodeId);
        let progress = BTreeMap::from([(NodeId(2), 10), (NodeId(3), 12)]);
        let mut offered = BTreeMap::new();
        let mut order = Vec::new();
        for _ in 0..4 {
            let next = heir(NodeId(1), &ids, &progress, &offered).unwrap();
            *offered.entry(next).or_default() += 1;
            order.push(next.0);
        }
        assert_eq!(order, [3, 2, 3, 2]);
        assert_eq!(heir(NodeId(1), &ids[..1], &progress, &offered), None);
    }
}
