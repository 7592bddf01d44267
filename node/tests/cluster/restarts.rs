//! All nodes killed at once, and in the middle of moves; a node without its disk; a leader that stands still; nodes
//! stopped in order, one after the other.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Cluster, LONG, free_address};
use crate::load::{Load, SERIES, body, counts, push};
use crate::support::client;

const ZONES: [&str; 3] = ["a", "b", "c"];

/// Every acknowledged sample is there, on every replica, and nothing else but what was begun last.
async fn settle(cluster: &Cluster, load: Load, writers: &[usize]) {
    let seen = load.stop().await;
    // The last write of each may have been refused and be stored all the same; it is sent once more.
    for i in writers {
        let began = Instant::now();
        let last = seen.written[*i].load(std::sync::atomic::Ordering::SeqCst);
        while let Err(why) = push(&client(), &cluster.url(*i), "acme", body(*i, last)).await {
            assert!(began.elapsed() < LONG, "node {i} does not write again: {why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let all = seen.acknowledged() + (writers.len() * SERIES) as u64;
    let healed = cluster.alike(writers[0], all).await;
    println!("alike {healed:?} after the last write");
    for i in writers {
        let have = counts(&client(), &cluster.url(*i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), all, "node {i}: {have:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_again_and_again_and_nothing_is_lost() {
    let mut cluster = Cluster::start(&ZONES, &[]);
    cluster.whole(1, 3).await;
    let mut load = Load::at(&cluster, &[]);
    for i in 0..3 {
        load.write_to(&cluster, i);
    }
    for round in 0..3 {
        load.rounds(15).await;
        let addresses: Vec<String> = (0..3).map(|i| cluster.nodes[i].as_ref().unwrap().grpc.clone()).collect();
        for i in 0..3 {
            cluster.kill(i);
        }
        let started = Instant::now();
        for (i, address) in addresses.iter().enumerate() {
            // In the second round all of them come back elsewhere: those who start find each other by the seeds only
            // as long as one of the seeds is where it was.
            let address = if round == 1 && i > 0 { free_address() } else { address.clone() };
            cluster.run(i, &address);
            load.moved(&cluster, i);
        }
        load.rounds(1).await;
        println!("written at all three again {:?} after the start", started.elapsed());
    }
    settle(&cluster, load, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_killed_in_the_middle_of_moves_and_nothing_is_lost() {
    let mut cluster = Cluster::start(&ZONES, &[]);
    cluster.whole(1, 3).await;
    let mut load = Load::at(&cluster, &[]);
    for i in 0..3 {
        load.write_to(&cluster, i);
    }
    load.rounds(40).await;
    // The new nodes take their share while they, and one that gives, die and come back.
    for zone in ZONES {
        cluster.add(zone);
    }
    for (i, rounds) in [(3, 5), (1, 3), (4, 4), (0, 3)] {
        load.rounds(rounds).await;
        let address = cluster.nodes[i].as_ref().unwrap().grpc.clone();
        cluster.kill(i);
        load.rounds_of(&[2], 5).await;
        cluster.run(i, &address);
        if i < 3 {
            load.moved(&cluster, i);
        }
    }
    cluster.whole(2, 6).await;
    let ids = |view: &crate::harness::View| -> Vec<u64> {
        let addresses = (3..6).map(|i| cluster.nodes[i].as_ref().unwrap().grpc.clone());
        addresses.filter_map(|address| view.id_at(&address)).collect()
    };
    cluster.settled(2, "six share", |view| ids(view).iter().all(|id| view.held(*id) >= 3)).await;
    load.rounds(10).await;
    settle(&cluster, load, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_joins_anew() {
    let mut cluster = Cluster::start(&ZONES, &["--cluster-dead-after", "4s"]);
    cluster.whole(1, 3).await;
    let load = Load::at(&cluster, &[1, 2]);
    load.rounds(20).await;
    let (address, old) = (cluster.seeds[0].clone(), cluster.view(1).await.id_at(&cluster.seeds[0]).unwrap());
    cluster.kill(0);
    std::fs::remove_dir_all(cluster.dirs[0].path().join("data")).unwrap();
    let lost = Instant::now();
    cluster.run(0, &address);
    // The same address, another node: who means the old one is refused until that one is dead.
    cluster
        .settled(1, "the new node holds what the old one held", |view| {
            view.active() == 3 && view.held(old) == 0 && view.id_at(&address).is_some_and(|id| id != old)
        })
        .await;
    println!("with a new disk the node held its share again after {:?} (dead after 4 s)", lost.elapsed());
    load.rounds(20).await;
    let seen = load.stop().await;
    seen.assert_no_failures();
    cluster.alike(0, seen.acknowledged()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stands_still_holds_up_nobody_and_promises_nothing_after() {
    let cluster = Cluster::start(&ZONES, &[]);
    for i in 0..3 {
        cluster.whole(i, 3).await;
    }
    let leader = cluster.leader(0).await.unwrap();
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let mut load = Load::at(&cluster, &others);
    load.write_to(&cluster, leader);
    load.rounds(20).await;
    let still = Instant::now();
    cluster.signal(leader, "STOP");
    load.rounds_of(&others, 100).await;
    println!("with the leader standing still: {}", load.seen.latency(still, Instant::now()));
    cluster.signal(leader, "CONT");
    cluster.whole(leader, 3).await;
    load.rounds(20).await;
    load.seen.assert_no_failures();
    settle(&cluster, load, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_restarted_in_order_one_after_the_other() {
    let mut cluster = Cluster::start(&ZONES, &[]);
    cluster.whole(1, 3).await;
    for i in 0..3 {
        // Those that stay must not notice, whoever leads.
        let writers = [1, 2].map(|next| ((i + next) % 3, 2 * i + next));
        let load = Load::by(&cluster, &writers);
        load.rounds(5).await;
        let began = Instant::now();
        cluster.signal(i, "TERM");
        cluster.ended(i).await;
        // Streams of others do not hold it: it would end at --shutdown-timeout (30 s).
        println!("node {i} stopped after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        load.rounds(5).await;
        let address = cluster.seeds[i].clone();
        cluster.run(i, &address);
        cluster.whole(i, 3).await;
        load.rounds(5).await;
        let seen = load.stop().await;
        seen.assert_no_failures();
    }
}
