//! Goal: nodes without data make one cluster, or none. Method: real servers of this room alone on free ports.

use std::sync::{Arc, OnceLock};

use engram_model::tenant::TenantLimits;
use engram_model::time::Clock;
use engram_raft::group::FirstStart;
use engram_raft::{Group, GroupOptions};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::members::About;
use crate::members::identity::IdentityFile;
use crate::members::service::Heard;
use crate::meta::TenantDefaults;

struct One {
    door: Arc<Door>,
    address: String,
    _dir: tempfile::TempDir,
}

fn one(servers: &mut JoinSet<()>, clock: Clock) -> One {
    let listener = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let door = Arc::new(Door {
        about: About { zone: "z".into(), grpc: address.clone(), http: "h:1".into(), store: "s".into() },
        identity: IdentityFile::open(&dir.path().join("member.json")).unwrap(),
        clock,
        skew_max: Duration::from_secs(5),
        tls: crate::tls::Tls::plain(),
        health: crate::actor::Health::default(),
        complete: Arc::default(),
        heard: Heard::default(),
        meta: OnceLock::new(),
        sizes: OnceLock::new(),
        backfill: parking_lot::Mutex::default(),
        life: 0,
        reach: OnceLock::new(),
    });
    let service = door.clone().into_grpc();
    servers.spawn(async move {
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener).await.unwrap();
    });
    One { door, address, _dir: dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_that_see_each_other_exactly_the_lowest_founds() {
    let mut servers = JoinSet::new();
    let nodes: Vec<One> = (0..3).map(|_| one(&mut servers, Clock::test(0))).collect();
    let addresses: Vec<String> = nodes.iter().map(|n| n.address.clone()).collect();
    let lowest = addresses.iter().min().unwrap().clone();
    let seeds = Seeds { addresses, expect: 3 };
    let calls = Calls::default();
    for node in &nodes {
        let started = tokio::time::timeout(Duration::from_secs(2), start(&node.door, &calls, &seeds, false)).await;
        if node.address == lowest {
            let Ok(Ok(Start::Found { cluster })) = started else { panic!("{started:?}") };
            // A restart before anything was made goes on as it was begun.
            let again = start(&node.door, &calls, &seeds, false).await.unwrap();
            assert_eq!(again, Start::Found { cluster });
        } else {
            // It looks on: there is nobody yet who could let it in.
            assert!(started.is_err() || node.door.identity.get().cluster.is_none(), "{started:?}");
        }
    }
    let founders = nodes.iter().filter(|n| n.door.identity.get().cluster.is_some()).count();
    assert_eq!(founders, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_is_given_once_and_a_founder_without_promises_lets_go() {
    let mut servers = JoinSet::new();
    let nodes: Vec<One> = (0..3).map(|_| one(&mut servers, Clock::test(0))).collect();
    let calls = Calls::default();
    let others =
        |at: usize| nodes.iter().map(|n| n.address.clone()).filter(|a| *a != nodes[at].address).collect::<Vec<_>>();
    assert!(promised(&nodes[0].door, &calls, &others(0), 3).await.unwrap());
    // The others are bound now, themselves included.
    assert!(!promised(&nodes[1].door, &calls, &others(1), 2).await.unwrap());
    assert_eq!(nodes[1].door.identity.get().promised, Some(nodes[0].door.identity.get().token));
    // One that was bound to nobody frees itself again.
    let late = one(&mut servers, Clock::test(0));
    assert!(!promised(&late.door, &calls, &others(0), 2).await.unwrap());
    assert_eq!(late.door.identity.get().promised, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_with_words_for_both() {
    let mut servers = JoinSet::new();
    let (a, b) = (one(&mut servers, Clock::test(0)), one(&mut servers, Clock::test(60_000)));
    let seeds = Seeds { addresses: vec![a.address.clone()], expect: 1 };
    let why = start(&b.door, &Calls::default(), &seeds, false).await.unwrap_err();
    assert!(why.contains("60000 ms apart") && why.contains(&b.address), "{why}");
    let mut hello = a.door.about.hello(&a.door.identity.get(), 0);
    hello.protocol += 1;
    assert!(a.door.refusal(&hello).contains("protocol"));
    a.door.identity.change(|i| i.cluster = Some("one".into())).unwrap();
    hello.protocol -= 1;
    hello.cluster = "two".into();
    assert!(a.door.refusal(&hello).contains("belongs to cluster two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_metadata_is_gone_does_not_start_blank_under_its_old_id() {
    let mut servers = JoinSet::new();
    let node = one(&mut servers, Clock::test(0));
    let seeds = Seeds { addresses: Vec::new(), expect: 0 };
    let was = |i: &mut crate::members::identity::Identity| {
        (i.cluster, i.node) = (Some("c".into()), Some(7));
    };
    node.door.identity.change(was).unwrap();
    // Let in, and stopped before it had any: it goes on.
    let begun = start(&node.door, &Calls::default(), &seeds, false).await;
    assert_eq!(begun, Ok(Start::Member { cluster: "c".into(), id: NodeId(7) }));
    node.door.identity.change(|i| i.opened = true).unwrap();
    assert!(start(&node.door, &Calls::default(), &seeds, true).await.is_ok());
    let why = start(&node.door, &Calls::default(), &seeds, false).await.unwrap_err();
    assert!(why.contains("engram cluster remove 7") && why.contains("cluster c"), "{why}");
}

/// Metadata of cluster "c" whose founder, node 1, is this one.
async fn founded(node: &One) -> (Meta, Arc<Group>) {
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let dir = node._dir.path().join("meta");
    let group = Group::open(GroupOptions::new(dir, node.door.about.spec(), first, Clock::test(0))).await.unwrap();
    let group = Arc::new(group);
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    (Meta::new(group.clone(), defaults), group)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_declared_dead_while_it_was_away_learns_it_and_ends() {
    let mut servers = JoinSet::new();
    let (away, other) = (one(&mut servers, Clock::test(0)), one(&mut servers, Clock::test(0)));
    let ((own, own_group), (theirs, their_group)) = (founded(&away).await, founded(&other).await);
    away.door.identity.change(|i| (i.cluster, i.node) = (Some("c".into()), Some(1))).unwrap();
    let theirs = other.door.open(theirs);
    let states = (NodeState::Active, NodeState::Dead);
    theirs.set_node_state("test", NodeId(1), states, JOIN_WITHIN).await.unwrap();
    // Its own metadata shows it active, at its right address, and will for ever.
    let seeds = Seeds { addresses: vec![other.address.clone()], expect: 0 };
    let telling = Telling { door: away.door.clone(), seeds: seeds.clone(), meta: own, stop: CancellationToken::new() };
    let told = tokio::time::timeout(Duration::from_secs(20), tell(telling)).await.unwrap();
    let why = told.unwrap_err().to_string();
    assert!(why.contains("was declared dead") && why.contains("remove its data directory"), "{why}");
    // The same while it waits for metadata that nobody will bring.
    let calls = Calls::default();
    let seeds = tell_seeds(&away.door, &calls, &seeds);
    let why = tokio::time::timeout(Duration::from_secs(20), seeds).await.unwrap();
    assert!(why.contains("was declared dead"), "{why}");
    own_group.shutdown().await.unwrap();
    their_group.shutdown().await.unwrap();
}

#[test]
fn who_hears_no_leader_is_not_ready() {
    assert_eq!(leader(NOT_READY_AFTER - Duration::from_millis(1)), Condition::Running);
    assert!(matches!(leader(NOT_READY_AFTER), Condition::Starting(_)));
}
