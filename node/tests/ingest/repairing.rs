//! Goal: what a refused write left on one replica is taken by the others although its slot is being written all the time.
//! Method: two replicas in one process, between whose looks both get samples, each in its own order; time is handed in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_node::ingest::partition::{Forgetting, Proof};
use engram_node::ingest::repair::{Comparing, Config, Patience};
use engram_node::meta::Meta;
use engram_node::peer::{Peers, Replica};
use engram_raft::state::{NodeSpec, NodeState};
use engram_raft::{Command, Group, Outcome, Proposal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::harness::{Ingest, LONG, append, meta};

async fn done(group: &Group, command: Command) -> Outcome {
    group.propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap().outcome
}

/// A second node, and the partition on both.
async fn second(group: &Group) -> NodeId {
    let node = NodeSpec { zone: "y".into(), grpc: "g2".into(), http: "h2".into(), version: "1".into() };
    let Outcome::Node { id } = done(group, Command::RegisterNode { token: "t".to_owned(), node }).await else {
        panic!("not registered")
    };
    done(group, Command::SetNodeState { id, to: NodeState::Active, expected: None }).await;
    let (partition, replicas) = (PartitionId(0), vec![group.id(), id]);
    done(group, Command::SetReplicas { partition, expected: Epoch(1), replicas, next: None }).await;
    id
}

fn config(meta: &Meta, here: (NodeId, &Ingest), other: (NodeId, &Ingest)) -> Config {
    let replica = |ingest: &Ingest| Arc::new(ingest.local.clone()) as Arc<dyn Replica>;
    Config {
        meta: meta.clone(),
        peers: Peers::among((here.0, replica(here.1)), BTreeMap::from([(other.0, replica(other.1))])),
        heads: here.1.heads.clone(),
        partitions: vec![here.1.handle.clone()],
        complete: Arc::default(),
        every: LONG,
        patience: Patience { hot_after: Duration::from_secs(10), again_after: Duration::ZERO, settle: Duration::ZERO },
        stop: CancellationToken::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leftover_is_taken_out_of_a_slot_that_is_never_quiet() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (meta, group) = meta(dirs[0].path()).await;
    let (here, there) = (group.id(), second(&group).await);
    let clock = Clock::test(1000);
    let [own, other] = [&dirs[0], &dirs[1]].map(|dir| Ingest::open(dir.path(), &meta, &clock));
    let write = async |to: &Ingest, at: i64| {
        assert_eq!(to.local.append(append(&meta, at), LONG).await.unwrap().samples, 1);
    };
    let config = config(&meta, (here, &own), (there, &other));
    let mut comparing = Comparing::default();
    let start = Instant::now();
    let look = async |comparing: &mut Comparing, seconds: u64| {
        comparing.look(&config, start + Duration::from_secs(seconds)).await;
    };
    let times = async |of: &Ingest| of.local.counts(select(&meta), 1).await.unwrap().samples;

    // Refused: one replica has it, and nobody will bring it to the other.
    write(&other, 7).await;
    // A sample every second, which reaches the other replica a moment later: at no look is the slot equal or quiet.
    for second in 1..=9 {
        write(&own, 1000 * second).await;
        if second > 1 {
            write(&other, 1000 * (second - 1)).await;
        }
        look(&mut comparing, u64::try_from(second).unwrap()).await;
        assert_eq!(times(&own).await, u64::try_from(second).unwrap(), "it is given the time to become quiet");
    }
    write(&own, 10_000).await;
    write(&other, 9_000).await;
    look(&mut comparing, 12).await;
    assert_eq!(times(&own).await, 11, "ten that were written here, and the leftover");

    // It was pulled a moment ago: what is being written is not pulled at every look.
    write(&other, 9_500).await;
    write(&own, 11_000).await;
    look(&mut comparing, 15).await;
    assert_eq!(times(&own).await, 12);
    write(&own, 12_000).await;
    look(&mut comparing, 22).await;
    assert_eq!(times(&own).await, 14, "and after as long again it is");
    own.close().await;
    other.close().await;
    group.shutdown().await.unwrap();
}

/// What came late to a window that was forgotten here is taken although another seal of its time is open: only what is cut
/// of it lies in a block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_that_is_not_cut_hides_no_slot() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (meta, group) = meta(dirs[0].path()).await;
    let (here, there) = (group.id(), second(&group).await);
    let clock = Clock::test(1000);
    let [own, other] = [&dirs[0], &dirs[1]].map(|dir| Ingest::open(dir.path(), &meta, &clock));
    let (tenant, window) = (TenantId::anonymous(), TimeRange::new(0, 7_200_000));
    meta.tenant_or_create(&tenant, LONG).await.unwrap();
    own.local.append(append(&meta, 7), LONG).await.unwrap();
    assert!(own.handle.seal(&tenant, 1, window, LONG).await.unwrap());
    let proof = Proof { digest: own.frozen(1).await.unwrap().unwrap().digest(), index: 9 };
    assert_eq!(own.handle.forget(&tenant, 1, proof, LONG).await.unwrap(), Forgetting::Gone);
    meta.seal(&tenant, PartitionId(0), window, LONG).await.unwrap();
    other.local.append(append(&meta, 8), LONG).await.unwrap();
    let config = config(&meta, (here, &own), (there, &other));
    let (mut comparing, start) = (Comparing::default(), Instant::now());
    for seconds in [0, 5] {
        comparing.look(&config, start + Duration::from_secs(seconds)).await;
    }
    assert_eq!(own.local.counts(select(&meta), 1).await.unwrap().samples, 1);
    own.close().await;
    other.close().await;
    group.shutdown().await.unwrap();
}

fn select(meta: &Meta) -> engram_node::peer::Select {
    engram_node::peer::Select {
        tenant: engram_model::tenant::TenantId::anonymous(),
        partition: PartitionId(0),
        epoch: meta.epoch(PartitionId(0)).unwrap(),
        range: engram_model::TimeRange::ALL,
        matchers: Arc::default(),
        series_max: 0,
        wanted: Arc::default(),
        as_of: u64::MAX,
    }
}
