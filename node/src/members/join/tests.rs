//! Goal: nodes without data make one cluster, or none. Method: real servers of this room alone on free ports.

use std::sync::{Arc, OnceLock};

use engram_model::time::Clock;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::members::About;
use crate::members::identity::IdentityFile;

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
        about: About { zone: "z".into(), grpc: address.clone(), http: "h:1".into() },
        identity: IdentityFile::open(&dir.path().join("member.json")).unwrap(),
        clock,
        skew_max: Duration::from_secs(5),
        tls: crate::tls::Tls::plain(),
        health: crate::actor::Health::default(),
        complete: Arc::default(),
        meta: OnceLock::new(),
        sizes: OnceLock::new(),
        backfill: parking_lot::Mutex::default(),
        life: 0,
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
