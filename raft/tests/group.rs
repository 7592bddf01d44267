//! Goal: the group as the node uses it: alone, restarted, killed, and as three. Method: real directories, real time
//! only where an election needs it; waits end by facts, never by sleeping.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_raft::group::{FirstStart, Timing};
use engram_raft::rpc::{Hub, Network};
use engram_raft::state::{NodeSpec, NodeState};
use engram_raft::{Command, Error, Group, GroupOptions, Outcome, Proposal, Refusal, recover};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

const LONG: Duration = Duration::from_secs(30);
const CHILD_DIR: &str = "ENGRAM_RAFT_TEST_DIR";

fn spec(address: &str) -> NodeSpec {
    NodeSpec { zone: "z1".to_owned(), grpc: address.to_owned(), http: "h".to_owned(), version: "1".to_owned() }
}

fn options(dir: &Path) -> GroupOptions {
    let first = FirstStart::Bootstrap { cluster_id: "cluster".to_owned(), partition_count: 8 };
    GroupOptions::new(dir.to_owned(), spec("n1:9095"), first, Clock::test(1_000))
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn create(name: &str) -> Proposal {
    let command = Command::CreateTenant { tenant: tenant(name), limits: TenantLimits::default(), shard_size: 0 };
    Proposal { by: "test".to_owned(), command }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_bootstraps_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::open(options(dir.path())).await.unwrap();
    let view = group.watch().borrow().clone();
    assert_eq!(view.cluster.as_ref().map(|c| c.id.as_str()), Some("cluster"));
    assert_eq!((view.nodes.len(), view.partitions.len()), (1, 8));
    for i in 0..20 {
        let made = group.propose(create(&format!("t{i}")), LONG).await.unwrap();
        assert_eq!(made.outcome, Outcome::Tenant { version: 1, created: true });
        assert!(group.watch().borrow().tenants.get(&tenant(&format!("t{i}"))).is_some());
    }
    let before = group.linearizable(LONG).await.unwrap();
    let status = group.status();
    assert_eq!((status.role, status.voters.as_slice(), status.failed), ("leader", &[NodeId(1)][..], None));
    group.shutdown().await.unwrap();
    drop(group);
    let group = Group::open(options(dir.path())).await.unwrap();
    let after = group.watch().borrow().clone();
    assert_eq!((&after.tenants, &after.partitions), (&before.tenants, &before.partitions));
    let stale = Command::DeleteTenant { tenant: tenant("t3"), expected: 7 };
    let refused = group.propose(Proposal { by: "test".to_owned(), command: stale }, LONG).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::Version { found: 1, .. })), "{refused}");
    let huge = group.propose(Proposal { by: "x".repeat(1 << 20), ..create("t") }, LONG).await.unwrap_err();
    assert!(matches!(huge, Error::TooLarge { .. }), "{huge}");
    group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_new_address_tells_the_group() {
    let dir = tempfile::tempdir().unwrap();
    Group::open(options(dir.path())).await.unwrap().shutdown().await.unwrap();
    let moved = GroupOptions { node: spec("elsewhere:9095"), ..options(dir.path()) };
    let group = Group::open(moved).await.unwrap();
    let mut views = group.watch();
    let told = views.wait_for(|v| v.nodes.get(&NodeId(1)).is_some_and(|n| n.spec.grpc == "elsewhere:9095"));
    tokio::time::timeout(LONG, told).await.unwrap().unwrap();
    group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_behind_a_snapshot_is_purged_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let small = GroupOptions { snapshot_every: 50, snapshot_keep: 5, ..options(dir.path()) };
    let group = Group::open(small.clone()).await.unwrap();
    for i in 0..200 {
        group.propose(create(&format!("t{i}")), LONG).await.unwrap();
    }
    let before = group.linearizable(LONG).await.unwrap();
    let purged = async {
        while group.status().snapshot < Some(50) || group.status().purged < Some(40) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, purged).await.unwrap();
    group.shutdown().await.unwrap();
    let group = Group::open(small).await.unwrap();
    assert_eq!(group.watch().borrow().tenants, before.tenants);
    group.shutdown().await.unwrap();
}

/// The child of the test below: makes tenants and says each name after it was acknowledged, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let small = GroupOptions { snapshot_every: 40, snapshot_keep: 4, ..options(Path::new(&dir)) };
    let group = Group::open(small).await.unwrap();
    let first = group.watch().borrow().tenants.len();
    for i in first.. {
        group.propose(create(&format!("t{i}")), LONG).await.unwrap();
        writeln!(std::io::stdout(), "acknowledged t{i}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    for round in 0..4 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let names = lines.map_while(Result::ok).filter_map(|l| l.split("acknowledged ").nth(1).map(str::to_owned));
        acknowledged.extend(names.take(30 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let group = Group::open(options(dir.path())).await.unwrap();
    let view = group.linearizable(LONG).await.unwrap();
    assert!(acknowledged.len() >= 120, "{}", acknowledged.len());
    for name in &acknowledged {
        assert!(view.tenants.get(&tenant(name)).is_some(), "{name} was acknowledged");
    }
    group.shutdown().await.unwrap();
}

/// The options of one of several nodes: quick elections, frequent snapshots.
fn member(dir: &Path, network: &Network, node: NodeSpec, first_start: FirstStart) -> GroupOptions {
    let timing = Timing { heartbeat_ms: 50, election_min_ms: 300, election_max_ms: 600 };
    let network = network.clone();
    GroupOptions { node, first_start, network, timing, snapshot_every: 40, snapshot_keep: 4, ..options(dir) }
}

/// Opens groups that all vote, the first of them founder and leader. `serve` mounts each one's service.
async fn cluster(
    dirs: &[tempfile::TempDir],
    network: Network,
    specs: &[NodeSpec],
    mut serve: impl FnMut(&Group),
) -> Vec<Group> {
    let founder = FirstStart::Bootstrap { cluster_id: "cluster".to_owned(), partition_count: 8 };
    let mut groups = vec![Group::open(member(dirs[0].path(), &network, specs[0].clone(), founder)).await.unwrap()];
    serve(&groups[0]);
    // The newcomers must first be brought a snapshot: what made the group is purged.
    for i in 0..100 {
        groups[0].propose(create(&format!("early{i}")), LONG).await.unwrap();
    }
    for (dir, node) in dirs.iter().zip(specs).skip(1) {
        let command = Command::RegisterNode { token: node.grpc.clone(), node: node.clone() };
        let told = groups[0].propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap();
        let Outcome::Node { id } = told.outcome else { panic!("{told:?}") };
        let join = FirstStart::Join { cluster_id: "cluster".to_owned(), id };
        let group = Group::open(member(dir.path(), &network, node.clone(), join)).await.unwrap();
        serve(&group);
        groups[0].add_learner(id, &node.grpc, LONG).await.unwrap();
        group.applied(told.index, LONG).await.unwrap();
        groups.push(group);
    }
    groups[0].set_voters(groups.iter().map(Group::id).collect(), LONG).await.unwrap();
    groups
}

/// The whole protocol over sockets: appends, votes, a snapshot, forwarded proposals, read indexes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree_over_grpc() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let listeners: Vec<_> = dirs.iter().map(|_| TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
    let specs: Vec<_> = listeners.iter().map(|l| spec(&l.local_addr().unwrap().to_string())).collect();
    let (mut servers, mut listeners) = (tokio::task::JoinSet::new(), listeners.into_iter());
    let serve = |group: &Group| {
        let server = Server::builder().add_service(group.service().into_grpc());
        servers.spawn(server.serve_with_incoming(listeners.next().unwrap()));
    };
    let groups = cluster(&dirs, Network::Grpc, &specs, serve).await;
    let made = groups[1].propose(create("a"), LONG).await.unwrap();
    let refused = groups[2].propose(
        Proposal { by: "test".to_owned(), command: Command::DeleteTenant { tenant: tenant("a"), expected: 9 } },
        LONG,
    );
    assert!(matches!(refused.await, Err(Error::Refused(Refusal::Version { found: 1, .. }))));
    for group in &groups {
        let view = group.linearizable(LONG).await.unwrap();
        assert!(view.applied >= Some(made.index) && view.tenants.get(&tenant("a")).is_some());
        assert!(view.tenants.get(&tenant("early7")).is_some());
    }
    // The leader goes for good; the two others go on by themselves.
    groups[0].shutdown().await.unwrap();
    let made = loop {
        match groups[1].propose(create("b"), Duration::from_secs(5)).await {
            Ok(made) => break made,
            Err(Error::NotLeader { .. } | Error::Unknown { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    };
    let view = groups[2].applied(made.index, LONG).await.unwrap();
    assert!(view.tenants.get(&tenant("b")).is_some());
    for group in &groups[1..] {
        group.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_survive_the_loss_of_one() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let hub = Hub::new();
    let specs = ["n1", "n2", "n3"].map(spec);
    let groups = cluster(&dirs, Network::Memory(hub.clone()), &specs, |_| {}).await;
    // A follower forwards, and reads what it was answered.
    let made = groups[2].propose(create("a"), LONG).await.unwrap();
    for group in &groups {
        let view = group.linearizable(LONG).await.unwrap();
        assert!(view.applied >= Some(made.index) && view.tenants.get(&tenant("a")).is_some());
        assert!(view.tenants.get(&tenant("early7")).is_some());
    }
    // The leader is cut off: the others elect one of them and go on, it can confirm nothing.
    hub.isolate(groups[0].id());
    let made = loop {
        match groups[1].propose(create("b"), Duration::from_secs(5)).await {
            Ok(made) => break made,
            Err(Error::NotLeader { .. } | Error::Unknown { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    };
    let leader = groups[1].status().leader.unwrap();
    assert_ne!(leader.id, groups[0].id());
    let stale = groups[0].linearizable(Duration::from_millis(200)).await;
    assert!(matches!(stale, Err(Error::NoQuorum { .. } | Error::NotLeader { .. })), "{stale:?}");
    let lost = groups[0].propose(create("never"), Duration::from_millis(200)).await;
    assert!(matches!(lost, Err(Error::Unknown { .. } | Error::NotLeader { .. })), "{lost:?}");
    // Healed, it follows, and all hold the same.
    hub.heal();
    let view = groups[0].applied(made.index, LONG).await.unwrap();
    assert!(view.tenants.get(&tenant("b")).is_some());
    let last = groups[1].propose(create("c"), LONG).await.unwrap();
    let mut views = Vec::new();
    for group in &groups {
        views.push(group.applied(last.index, LONG).await.unwrap());
    }
    assert!(views.iter().all(|v| v.tenants == views[0].tenants && v.nodes == views[0].nodes));
    // A follower that was down while the others went on catches up from its own disk.
    let follower = (0..3).find(|i| groups[*i].status().role == "follower").unwrap();
    let id = groups[follower].id();
    groups[follower].shutdown().await.unwrap();
    let other = (follower + 1) % 3;
    let mut last = last.index;
    for i in 0..60 {
        last = groups[other].propose(create(&format!("meanwhile{i}")), LONG).await.unwrap().index;
    }
    // What `first_start` says does not matter any more.
    let join = FirstStart::Join { cluster_id: "other".to_owned(), id: NodeId(77) };
    let node = specs[follower].clone();
    let back = Group::open(member(dirs[follower].path(), &Network::Memory(hub.clone()), node, join)).await.unwrap();
    assert_eq!(back.id(), id);
    let view = back.applied(last, LONG).await.unwrap();
    assert_eq!(view.tenants, groups[other].applied(last, LONG).await.unwrap().tenants);
    back.shutdown().await.unwrap();
    for group in groups {
        group.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_becomes_a_cluster_of_one_that_goes_on() {
    use std::io::Read;
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let group = Group::open(options(dir.path())).await.unwrap();
    for i in 0..20 {
        group.propose(create(&format!("t{i}")), LONG).await.unwrap();
    }
    let mut bytes = Vec::new();
    group.backup(LONG).await.unwrap().read_to_end(&mut bytes).unwrap();
    // What comes after it is not in it.
    group.propose(create("later"), LONG).await.unwrap();
    let before = group.watch().borrow().clone();
    group.shutdown().await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 0, "nothing is left behind");

    let (file, bad) = (elsewhere.path().join("backup"), elsewhere.path().join("bad"));
    std::fs::write(&file, &bytes).unwrap();
    let about = engram_raft::backup::check(&file).unwrap();
    assert_eq!((about.cluster.as_str(), about.tenants, about.nodes), ("cluster", 20, 1));
    for at in [0, 9, 14, 18, 30, bytes.len() / 2, bytes.len() - 1] {
        let mut broken = bytes.clone();
        broken[at] ^= 0x10;
        std::fs::write(&bad, &broken).unwrap();
        assert!(engram_raft::backup::check(&bad).is_err(), "byte {at}");
        std::fs::write(&bad, &bytes[..at]).unwrap();
        assert!(engram_raft::backup::check(&bad).is_err(), "cut at {at}");
    }
    let target = elsewhere.path().join("meta");
    let named = Some("another".to_owned());
    assert!(engram_raft::backup::restore(&bad, &target, None, &spec("n:1")).is_err() && !target.exists());
    let restored = engram_raft::backup::restore(&file, &target, named, &spec("n:1")).unwrap();
    assert!(engram_raft::backup::restore(&file, &target, None, &spec("n:1")).is_err(), "twice into one directory");
    assert_eq!(restored.id, NodeId(about.index + 1));

    let first_start = FirstStart::Join { cluster_id: "another".to_owned(), id: restored.id };
    let options = GroupOptions { node: spec("n:1"), first_start, ..options(&target) };
    let group = Group::open(options.clone()).await.unwrap();
    let view = group.linearizable(LONG).await.unwrap();
    assert_eq!(view.cluster.as_ref().map(|c| c.id.as_str()), Some("another"));
    assert_eq!(view.tenants.len(), 20);
    for (tenant, row) in view.tenants.iter() {
        assert_eq!(before.tenants.get(tenant), Some(row));
    }
    for (partition, row) in view.partitions.iter() {
        let had = before.partitions.get(partition).unwrap();
        assert_eq!((row.current.replicas.as_slice(), &row.next), (&[restored.id][..], &None));
        assert!(row.current.epoch > had.current.epoch);
    }
    let states: Vec<_> = view.nodes.iter().map(|(id, row)| (*id, row.state)).collect();
    assert_eq!(states, [(NodeId(1), NodeState::Dead), (restored.id, NodeState::Active)]);
    // Numbers go on where they were, so no id and no fence is given twice.
    let next = group.propose(create("new"), LONG).await.unwrap();
    assert!(next.index > restored.id.0);
    group.shutdown().await.unwrap();
    let group = Group::open(options).await.unwrap();
    assert_eq!(group.watch().borrow().tenants.len(), 21);
    group.shutdown().await.unwrap();
}

/// Goal: of three nodes two are gone for good: the third goes on with everything it knew, on a person's word alone, and
/// others join it. Method: three groups on one network, stopped; the store of one is rewritten and opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_and_another_joins_it() {
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let network = Network::Memory(Hub::new());
    let specs = ["n1", "n2", "n3"].map(spec);
    let groups = cluster(&dirs[..3], network.clone(), &specs, |_| {}).await;
    let ids: Vec<NodeId> = groups.iter().map(Group::id).collect();
    let sets = [(ids.clone(), None), (ids[..2].to_vec(), None), (ids[..1].to_vec(), Some(ids[1..].to_vec()))];
    for (partition, (replicas, next)) in (0..).map(PartitionId).zip(sets) {
        let command = Command::SetReplicas { partition, expected: Epoch(1), replicas, next };
        groups[0].propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap();
    }
    let command = Command::RegisterNode { token: "idle".to_owned(), node: spec("idle") };
    let idle = groups[0].propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap();
    let Outcome::Node { id: idle } = idle.outcome else { panic!("{idle:?}") };
    let made = groups[0].propose(create("last"), LONG).await.unwrap();
    let before = groups[2].applied(made.index, LONG).await.unwrap();
    for group in groups {
        group.shutdown().await.unwrap();
    }

    let dir = dirs[2].path();
    let about = recover::look(dir).unwrap();
    assert_eq!((about.id, about.cluster.as_str(), about.foreign), (ids[2], "cluster", 7));
    assert!(about.last.1 >= made.index && about.voters == ids.iter().copied().collect(), "{about:?}");
    // Never by accident: not of another cluster, not itself, not nobody, not while a majority is left.
    let lost = |of: &[NodeId]| of.iter().copied().collect::<BTreeSet<_>>();
    for (wrong, cluster) in [
        (lost(&ids[..2]), "another"),
        (lost(&ids), "cluster"),
        (lost(&[ids[0], NodeId(999)]), "cluster"),
        (lost(&[idle]), "cluster"),
        (lost(&[]), "cluster"),
    ] {
        let refused = recover::take_over(dir, &wrong, cluster).unwrap_err();
        assert!(matches!(refused, Error::Settings { .. }), "{refused}");
    }
    assert_eq!(recover::look(dir).unwrap().last, about.last, "a refusal changes nothing");
    assert!(recover::look(dirs[3].path()).is_err());
    recover::take_over(dir, &lost(&ids[..2]), "cluster").unwrap();
    // Who is not sure that it was done may do it again.
    recover::take_over(dir, &lost(&ids[..2]), "cluster").unwrap();

    let join = FirstStart::Join { cluster_id: "cluster".to_owned(), id: ids[2] };
    let group = Group::open(member(dir, &network, specs[2].clone(), join)).await.unwrap();
    let view = group.linearizable(LONG).await.unwrap();
    assert_eq!((group.status().role, group.status().voters), ("leader", vec![ids[2]]));
    assert_eq!(view.tenants, before.tenants);
    let states: Vec<_> = view.nodes.iter().map(|(id, row)| (*id, row.state)).collect();
    let dead = NodeState::Dead;
    assert_eq!(states, [(ids[0], dead), (ids[1], dead), (ids[2], NodeState::Active), (idle, NodeState::Joining)]);
    for (partition, row) in view.partitions.iter() {
        assert_eq!((row.current.replicas.as_slice(), &row.next), (&ids[2..], &None));
        assert!(row.current.epoch > before.partitions.get(partition).unwrap().current.epoch);
    }
    let command = Command::RegisterNode { token: "new".to_owned(), node: spec("n4") };
    let told = group.propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap();
    let Outcome::Node { id } = told.outcome else { panic!("{told:?}") };
    let join = FirstStart::Join { cluster_id: "cluster".to_owned(), id };
    let new = Group::open(member(dirs[3].path(), &network, spec("n4"), join)).await.unwrap();
    group.add_learner(id, "n4", LONG).await.unwrap();
    let seen = new.applied(told.index, LONG).await.unwrap();
    assert_eq!((&seen.partitions, &seen.tenants), (&view.partitions, &view.tenants));
    new.shutdown().await.unwrap();
    group.shutdown().await.unwrap();
}
