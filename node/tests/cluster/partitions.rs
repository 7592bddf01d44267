//! Three nodes that do not always hear each other: the leader cut off, one way and both; slow and lossy ways.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::harness::{Cluster, LONG};
use crate::load::{Load, body, counts, push};
use crate::network::{Network, Rule};
use crate::support::client;

const HELD: Rule = Rule { held: true, delay: Duration::ZERO, lost_one_in: 0 };

struct Apart {
    cluster: Cluster,
    network: Network,
    leader: usize,
    others: [usize; 2],
}

impl Apart {
    async fn start() -> Self {
        let network = Network::default();
        let cluster = Cluster::start_over(&["a", "b", "c"], &[], Some(network.clone()));
        for i in 0..3 {
            cluster.whole(i, 3).await;
        }
        let leader = cluster.leader(0).await.unwrap();
        Self { cluster, network, leader, others: [(leader + 1) % 3, (leader + 2) % 3] }
    }

    /// Writers and readers at those who hear each other, and a patient writer at the leader.
    fn load(&self) -> Load {
        let mut load = Load::at(&self.cluster, &self.others);
        load.write_to(&self.cluster, self.leader);
        load
    }

    /// Waits until node `i` knows another leader than the first.
    async fn another_leads(&self, i: usize) {
        let deadline = Instant::now() + LONG;
        while self.cluster.leader(i).await.is_none_or(|leader| leader == self.leader) {
            assert!(Instant::now() < deadline, "nobody else leads\n{}", self.cluster.output(i));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing acknowledged is lost, nobody who was heard was refused, all replicas are alike.
    async fn nothing_is_lost(self, load: Load) {
        let seen = load.stop().await;
        seen.assert_no_failures();
        // The patient writer's last write may have been refused and be stored all the same; it is sent once more.
        let last = seen.written[self.leader].load(std::sync::atomic::Ordering::SeqCst);
        let began = Instant::now();
        while push(&client(), &self.cluster.url(self.leader), "acme", body(self.leader, last)).await.is_err() {
            assert!(began.elapsed() < LONG, "the one that was cut off does not write again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let all = seen.acknowledged() + crate::load::SERIES as u64;
        let healed = self.cluster.alike(0, all).await;
        println!("alike {healed:?} after the last write");
        for i in 0..3 {
            let have = counts(&client(), &self.cluster.url(i)).await.unwrap();
            assert_eq!(have.iter().sum::<u64>(), all, "node {i}: {have:?}");
        }
    }
}

fn term(view: &crate::harness::View) -> u64 {
    view.json["raft"]["term"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_cut_off_and_nothing_is_lost() {
    let apart = Apart::start().await;
    let load = apart.load();
    load.rounds(20).await;
    let at_leader = apart.cluster.url(apart.leader);
    assert_eq!(push(&client(), &at_leader, "second", body(0, 0)).await, Ok(204));
    let cut = Instant::now();
    for other in apart.others {
        apart.network.rule(apart.leader, other, HELD);
        apart.network.rule(other, apart.leader, HELD);
    }
    apart.another_leads(apart.others[0]).await;
    println!("another leads {:?} after the cut", cut.elapsed());
    // What needs agreement goes on among those who hear each other: a tenant that nobody knew.
    let new = push(&client(), &apart.cluster.url(apart.others[0]), "third", body(0, 0)).await;
    assert_eq!(new, Ok(204));
    load.rounds_of(&apart.others, 60).await;
    let healed = Instant::now();
    // The one cut off must not promise anything.
    let began = Instant::now();
    let refused = push(&client(), &at_leader, "second", body(0, 1)).await;
    assert!(refused.as_ref().is_err_and(|why| why.starts_with("503")), "{refused:?}");
    println!("cut off, a write was refused after {:?}", began.elapsed());
    apart.network.heal();
    load.rounds(20).await;
    println!("with the leader cut off: {}", load.seen.latency(cut, healed));
    let known = format!("{}/api/v1/cluster/status", apart.cluster.url(apart.leader));
    let json: Value = client().get(known).send().await.unwrap().json().await.unwrap();
    assert_eq!(json["data"]["tenants"], 3, "{json}");
    apart.nothing_is_lost(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_hears_but_is_not_heard_then_is_heard_but_hears_not() {
    let apart = Apart::start().await;
    let load = apart.load();
    load.rounds(20).await;
    let cut = Instant::now();
    for other in apart.others {
        apart.network.rule(apart.leader, other, HELD);
    }
    apart.another_leads(apart.others[0]).await;
    load.rounds_of(&apart.others, 40).await;
    println!("not heard: {}", load.seen.latency(cut, Instant::now()));
    apart.network.heal();
    load.rounds(10).await;
    let cut = Instant::now();
    for other in apart.others {
        apart.network.rule(other, apart.leader, HELD);
    }
    load.rounds_of(&apart.others, 40).await;
    println!("hears not: {}", load.seen.latency(cut, Instant::now()));
    apart.network.heal();
    load.rounds(10).await;
    apart.nothing_is_lost(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_lossy_ways_keep_the_leader_and_lose_nothing() {
    let apart = Apart::start().await;
    let load = apart.load();
    load.rounds(20).await;
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        apart.network.rule(from, to, Rule { held: false, delay: Duration::from_millis(150), lost_one_in: 20 });
    }
    let slow = Instant::now();
    load.rounds(10).await;
    let before = term(&apart.cluster.view(0).await);
    // What needs agreement takes its time and is agreed on: tenants that nobody knew, at each node.
    let mut slowest = Duration::ZERO;
    for round in 0..5 {
        for i in 0..3 {
            let began = Instant::now();
            let tenant = format!("new-{round}-{i}");
            assert_eq!(push(&client(), &apart.cluster.url(i), &tenant, body(0, 0)).await, Ok(204));
            slowest = slowest.max(began.elapsed());
        }
        load.rounds(5).await;
    }
    println!("300 ms there and back, 1 in 20 lost: {}", load.seen.latency(slow, Instant::now()));
    let after = term(&apart.cluster.view(0).await);
    println!("terms: {before} and {after} after {:?}; a new tenant took at most {slowest:?}", slow.elapsed());
    assert_eq!(after, before, "leadership is not stable");
    apart.network.heal();
    apart.nothing_is_lost(load).await;
}
