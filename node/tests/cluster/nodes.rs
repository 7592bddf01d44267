//! Three nodes in three zones: one is killed, comes back at another address, is away for long, joins, is drained.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Cluster, LONG, free_address};
use crate::load::{Load, body, counts, push};
use crate::support::client;

const ZONES: [&str; 3] = ["a", "b", "c"];

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_and_nobody_notices() {
    let mut cluster = Cluster::start(&ZONES, &[]);
    for i in 0..3 {
        cluster.whole(i, 3).await;
    }
    let load = Load::at(&cluster, &[1, 2]);
    let started = Instant::now();
    load.rounds(30).await;
    let killed = Instant::now();
    cluster.kill(0);
    load.rounds(60).await;
    // Back, and at another address: the others find it, and it takes what it missed.
    let returned = Instant::now();
    cluster.run(0, &free_address());
    cluster.whole(0, 3).await;
    let whole = Instant::now();
    load.rounds(20).await;
    let ended = Instant::now();
    let seen = load.stop().await;
    println!("before:             {}", seen.latency(started, killed));
    println!("with a node killed: {}", seen.latency(killed, returned));
    println!("while it returns:   {}", seen.latency(returned, whole));
    println!("after:              {}", seen.latency(whole, ended));
    seen.assert_no_failures();
    assert!(seen.queries.load(Ordering::SeqCst) > 20);
    let healed = cluster.alike(1, seen.acknowledged()).await;
    println!("a node that missed 60 rounds and more was as the others {healed:?} after the last write");
    for i in 0..3 {
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), seen.acknowledged());
    }
    // Two of three gone: refused quickly and as something to try again; with the second back it goes on.
    let address = cluster.seeds[1].clone();
    cluster.kill(1);
    cluster.kill(0);
    let began = Instant::now();
    let refused = push(&client(), &cluster.url(2), "acme", body(2, 100_000)).await.unwrap_err();
    println!("with two of three gone a write was refused after {:?}", began.elapsed());
    assert!(refused.starts_with("503") && began.elapsed() < Duration::from_secs(15), "{refused} {:?}", began.elapsed());
    assert!(counts(&client(), &cluster.url(2)).await.is_err());
    cluster.run(1, &address);
    let deadline = Instant::now() + LONG;
    while push(&client(), &cluster.url(2), "acme", body(2, 100_001)).await.is_err() {
        assert!(Instant::now() < deadline, "writes do not return");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let have = counts(&client(), &cluster.url(2)).await.unwrap();
    assert_eq!(have[1], seen.written[1].load(Ordering::SeqCst) * crate::load::SERIES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_another_is_drained_under_load() {
    let mut cluster = Cluster::start(&ZONES, &[]);
    cluster.whole(1, 3).await;
    let load = Load::at(&cluster, &[1, 2]);
    load.rounds(20).await;
    let fourth = cluster.add("d");
    let address = cluster.nodes[fourth].as_ref().unwrap().grpc.clone();
    cluster
        .settled(1, "the fourth node holds its share", |view| {
            view.active() == 4 && view.id_at(&address).is_some_and(|id| view.held(id) >= 5)
        })
        .await;
    let first = cluster.view(1).await.id_at(&cluster.seeds[0]).unwrap();
    assert_eq!(cluster.steer(2, first, "remove").await.0, 409);
    assert_eq!(cluster.steer(2, first, "drain").await.0, 200);
    cluster.settled(1, "the drained node holds nothing", |view| view.held(first) == 0).await;
    assert_eq!(cluster.steer(2, first, "remove").await.0, 200);
    cluster.kill(0);
    load.rounds(20).await;
    let seen = load.stop().await;
    seen.assert_no_failures();
    cluster.alike(1, seen.acknowledged()).await;
    for i in 1..4 {
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), seen.acknowledged());
    }
}
