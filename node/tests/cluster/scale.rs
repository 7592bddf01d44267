//! From three nodes to six and back under load.

use tokio::time::Instant;

use crate::harness::Cluster;
use crate::load::{Load, counts};
use crate::support::client;

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_six_and_three_again_under_load() {
    let mut cluster = Cluster::start(&["a", "b", "c"], &[]);
    cluster.whole(1, 3).await;
    let load = Load::at(&cluster, &[0, 1, 2]);
    let started = Instant::now();
    load.rounds(40).await;
    let out = Instant::now();
    for zone in ["a", "b", "c"] {
        cluster.add(zone);
    }
    let ids = |view: &crate::harness::View, from: &Cluster, which: std::ops::Range<usize>| -> Vec<u64> {
        let addresses = which.map(|i| from.nodes[i].as_ref().unwrap().grpc.clone());
        addresses.filter_map(|address| view.id_at(&address)).collect()
    };
    cluster
        .settled(1, "six nodes share", |view| {
            let new = ids(view, &cluster, 3..6);
            view.active() == 6 && new.len() == 3 && new.iter().all(|id| view.held(*id) >= 3)
        })
        .await;
    println!("three more nodes had their share after {:?}", out.elapsed());
    load.rounds(20).await;
    let back = Instant::now();
    let new = ids(&cluster.view(1).await, &cluster, 3..6);
    for id in &new {
        assert_eq!(cluster.steer(2, *id, "drain").await.0, 200);
    }
    cluster.settled(1, "drained", |view| new.iter().all(|id| view.held(*id) == 0)).await;
    println!("three nodes were drained after {:?}", back.elapsed());
    for id in &new {
        let (status, text) = cluster.steer(2, *id, "remove").await;
        assert_eq!(status, 200, "{text}");
    }
    for i in 3..6 {
        cluster.kill(i);
    }
    load.rounds(20).await;
    let ended = Instant::now();
    let seen = load.stop().await;
    println!("before:  {}", seen.latency(started, out));
    println!("three to six: {}", seen.latency(out, back));
    println!("six to three: {}", seen.latency(back, ended));
    seen.assert_no_failures();
    cluster.alike(1, seen.acknowledged()).await;
    for i in 0..3 {
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), seen.acknowledged());
    }
}
