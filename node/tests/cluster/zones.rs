//! Three zones of two nodes: a zone is killed, a second one too, both return; a node is gone for good.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Cluster, LONG};
use crate::load::{Load, counts, push};
use crate::support::client;

const ZONES: [&str; 6] = ["a", "b", "c", "a", "b", "c"];

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_is_killed_under_load_then_a_second_one() {
    let mut cluster = Cluster::start(&ZONES, &[]);
    cluster.whole(1, 6).await;
    let load = Load::at(&cluster, &[1, 2, 4, 5]);
    let started = Instant::now();
    load.rounds(40).await;
    let killed = Instant::now();
    cluster.kill(0);
    cluster.kill(3);
    load.rounds(60).await;
    let returned = Instant::now();
    for i in [0, 3] {
        let address = cluster.seeds[i].clone();
        cluster.run(i, &address);
    }
    cluster.whole(1, 6).await;
    let whole = Instant::now();
    load.rounds(40).await;
    let ended = Instant::now();
    let seen = load.stop().await;
    println!("before:              {}", seen.latency(started, killed));
    println!("with a zone killed:  {}", seen.latency(killed, returned));
    println!("while it returns:    {}", seen.latency(returned, whole));
    println!("after:               {}", seen.latency(whole, ended));
    seen.assert_no_failures();
    let healed = cluster.alike(1, seen.acknowledged()).await;
    println!("active again {:?} after its start, alike {healed:?} after the last write", whole - returned);

    // Two zones gone: writes are refused at once, with something to try again; nothing is lost.
    for i in [0, 1, 3, 4] {
        cluster.kill(i);
    }
    let (before, http) = (seen.acknowledged(), client());
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        for i in [2, 5] {
            let began = Instant::now();
            let refused = push(&http, &cluster.url(i), "acme", crate::load::body(7, 0)).await.unwrap_err();
            slowest = slowest.max(began.elapsed());
            assert!(refused.starts_with("503"), "{refused}");
        }
    }
    println!("with two zones killed a write was refused within {slowest:?}");
    assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    let back = Instant::now();
    for i in [1, 4] {
        let address = cluster.seeds[i].clone();
        cluster.run(i, &address);
    }
    for i in [2, 5] {
        while let Err(why) = push(&http, &cluster.url(i), "acme", crate::load::body(7, 1)).await {
            assert!(back.elapsed() < LONG, "writes do not return: {why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    println!("writes went on {:?} after the second zone was started", back.elapsed());
    // What was refused may be stored on fewer than a majority, or not; what was acknowledged is there.
    let have = counts(&http, &cluster.url(2)).await.unwrap();
    assert_eq!(have[..6].iter().sum::<u64>(), before, "{have:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_for_good_is_replaced() {
    let mut cluster = Cluster::start(&ZONES, &["--cluster-dead-after", "4s"]);
    cluster.whole(1, 6).await;
    let load = Load::at(&cluster, &[1, 2, 4, 5]);
    load.rounds(100).await;
    let (gone, lost) = (cluster.view(1).await.id_at(&cluster.seeds[0]).unwrap(), Instant::now());
    let bytes = cluster.sum_of("engram_log_payload_bytes_total").await;
    let written = load.seen.acknowledged();
    cluster.kill(0);
    cluster.settled(1, "others hold what it held", |view| view.held(gone) == 0).await;
    let (replaced, more) = (lost.elapsed(), load.seen.acknowledged() - written);
    let bytes = cluster.sum_of("engram_log_payload_bytes_total").await - bytes;
    println!("{replaced:?} after a node was killed for good (dead after 4 s) all is held three times again");
    println!("{bytes} bytes were logged meanwhile, {more} samples written three times among them");
    load.rounds(20).await;
    let seen = load.stop().await;
    seen.assert_no_failures();
    let healed = cluster.alike(1, seen.acknowledged()).await;
    println!("alike {healed:?} after the last write");
    // Its zone has another node, which has taken all of it: each partition lies in three zones.
    let view = cluster.view(1).await;
    for partition in &view.partitions {
        let zone = |id: &serde_json::Value| view.nodes.iter().find(|n| n["id"] == *id).unwrap()["zone"].to_string();
        let zones: std::collections::BTreeSet<String> =
            partition["replicas"].as_array().unwrap().iter().map(zone).collect();
        assert_eq!(zones.len(), 3, "{partition}");
    }
}
