//! All nodes killed at once, one after the other, and in the middle of a move.

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
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
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
