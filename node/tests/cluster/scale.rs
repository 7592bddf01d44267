//! From three nodes to six and back under load.

use std::sync::atomic::Ordering;

use engram_model::Labels;
use engram_model::digest::Digest;
use tokio::time::Instant;

use crate::harness::Cluster;
use crate::load::{BASE, Load, SERIES, Seen, counts};
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
    // What is read is what was written, to the last bit, from every node.
    let written = digest_of(&seen);
    println!("written: {written:?}");
    for i in 0..3 {
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), seen.acknowledged());
        let asked = client().get(format!("{}/api/v1/admin/digests", cluster.url(i))).header("X-Scope-OrgID", "acme");
        let answer: serde_json::Value =
            serde_json::from_str(&asked.send().await.unwrap().text().await.unwrap()).unwrap();
        let total = &answer["data"]["total"];
        assert_eq!(total["count"].as_u64(), Some(written.count), "{answer}");
        assert_eq!(total["low"], format!("{:016x}", written.low));
        assert_eq!(total["high"], format!("{:016x}", written.high));
    }
}

/// The digest of all that was acknowledged.
fn digest_of(seen: &Seen) -> Digest {
    let mut digest = Digest::EMPTY;
    for (writer, rounds) in seen.written.iter().enumerate() {
        let (rounds, w) = (rounds.load(Ordering::SeqCst), writer.to_string());
        for i in 0..SERIES {
            let i = i.to_string();
            let hash = Labels::from_pairs([("__name__", "m"), ("i", i.as_str()), ("w", w.as_str())]).hash128();
            for round in 0..rounds {
                digest.add(Digest::of_float(hash, BASE + round as i64 * 100, round as f64));
            }
        }
    }
    digest
}
