//! Goal: while a replica set changes, the one that leaves takes nothing with it that a query may have shown, and what the
//! one that comes has beside is not shown.
//! Method: the replicas of one partition in one process, one metadata; a sample that one of them alone has; time is handed
//! in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::block::{BlockFile, BlockId, BlockMeta, Origin};
use engram_model::digest::Digest;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::series::{Columns, Series};
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_node::ingest::repair::{Completing, Config, Patience};
use engram_node::meta::Meta;
use engram_node::peer::{Peers, Replica, Select, Summing};
use engram_node::read::fanout::Fanout;
use engram_query::fragment::{Fragment, Rules};
use engram_query::parse::ast::{AggregateOp, Span};
use engram_raft::state::{NodeSpec, NodeState};
use engram_raft::{Command, Group, Outcome, Proposal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::harness::{Ingest, LONG, append, meta};

const PARTITION: PartitionId = PartitionId(0);

/// Four nodes of one process: two stay, the third comes, and the fourth leaves.
struct Four {
    _dirs: Vec<tempfile::TempDir>,
    meta: Meta,
    group: Arc<Group>,
    nodes: Vec<(NodeId, Ingest)>,
}

impl Four {
    /// All of them, the partition on those that stay and, as the last of the list, the one that leaves.
    async fn start() -> Self {
        let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
        let (meta, group) = meta(dirs[0].path()).await;
        let mut ids = vec![group.id()];
        for token in ["stays", "comes", "leaves"] {
            let node = NodeSpec { zone: token.into(), grpc: token.into(), http: token.into(), version: "1".into() };
            let register = Command::RegisterNode { token: token.to_owned(), node };
            let Outcome::Node { id } = done(&group, register).await else { panic!("not registered") };
            done(&group, Command::SetNodeState { id, to: NodeState::Active, expected: None }).await;
            ids.push(id);
        }
        let clock = Clock::test(1000);
        let open = |(id, dir): (&NodeId, &tempfile::TempDir)| (*id, Ingest::open(dir.path(), &meta, &clock));
        let nodes = ids.iter().zip(&dirs).map(open).collect();
        let all = Self { _dirs: dirs, meta, group, nodes };
        all.set(&[0, 1, 3], None).await;
        all
    }

    async fn set(&self, replicas: &[usize], next: Option<&[usize]>) {
        let ids = |of: &[usize]| of.iter().map(|i| self.nodes[*i].0).collect::<Vec<_>>();
        let (expected, replicas, next) = (self.epoch(), ids(replicas), next.map(ids));
        done(&self.group, Command::SetReplicas { partition: PARTITION, expected, replicas, next }).await;
    }

    fn epoch(&self) -> Epoch {
        self.meta.epoch(PARTITION).unwrap()
    }

    /// The set is being replaced, and every node of the next one has all that it must have.
    async fn complete(&self) {
        self.set(&[0, 1, 3], Some(&[0, 1, 2])).await;
        for here in [0, 1, 2] {
            let config = self.config(here, &[0, 1, 2, 3]);
            assert!(!Completing::default().look(&config, Instant::now()).await);
            assert_eq!(config.complete.lock().get(&PARTITION), Some(&self.epoch()));
        }
    }

    async fn write(&self, to: &[usize], at: i64) {
        for i in to {
            assert_eq!(self.nodes[*i].1.local.append(append(&self.meta, at), LONG).await.unwrap().samples, 1);
        }
    }

    /// Repair on one node, which reaches some of them.
    fn config(&self, here: usize, reaches: &[usize]) -> Config {
        let replica = |i: usize| (self.nodes[i].0, Arc::new(self.nodes[i].1.local.clone()) as Arc<dyn Replica>);
        let beside: BTreeMap<_, _> = reaches.iter().filter(|i| **i != here).map(|i| replica(*i)).collect();
        Config {
            meta: self.meta.clone(),
            peers: Peers::among(replica(here), beside),
            heads: self.nodes[here].1.heads.clone(),
            partitions: vec![self.nodes[here].1.handle.clone()],
            complete: Arc::default(),
            every: LONG,
            patience: Patience { hot_after: LONG, again_after: Duration::ZERO, settle: Duration::ZERO },
            stop: CancellationToken::new(),
        }
    }

    async fn times(&self, on: usize) -> Vec<i64> {
        self.nodes[on].1.times(u64::MAX).await.unwrap()
    }

    async fn close(self) {
        for (_, ingest) in self.nodes {
            ingest.close().await;
        }
        self.group.shutdown().await.unwrap();
    }
}

async fn done(group: &Group, command: Command) -> Outcome {
    group.propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap().outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_one_that_leaves_has_is_taken_by_all_that_are_next() {
    let four = Four::start().await;
    four.write(&[0, 1, 3], 1000).await;
    // Refused: it reached the one that leaves, which showed it. All go on being written.
    four.write(&[3], 1500).await;
    four.write(&[0], 2000).await;
    four.complete().await;
    for on in [0, 1, 2] {
        assert!(four.times(on).await.contains(&1500), "node {on} has what only the one that leaves had");
    }
    four.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_leaves_and_does_not_answer_holds_up_nobody_for_long() {
    let four = Four::start().await;
    four.write(&[0, 1, 3], 1000).await;
    four.set(&[0, 1, 3], Some(&[0, 1, 2])).await;
    let config = four.config(2, &[0, 1, 2]);
    let (mut completing, start) = (Completing::default(), Instant::now());
    for (seconds, is_left) in [(0, true), (2, true), (3, false)] {
        let now = start + Duration::from_secs(seconds);
        assert_eq!(completing.look(&config, now).await, is_left, "after {seconds} s");
    }
    assert_eq!(config.complete.lock().get(&PARTITION), Some(&four.epoch()));
    assert_eq!(four.times(2).await, [1000]);
    // Who is gone for good is not waited for at all; and a change that begins is waited for anew.
    four.set(&[0, 1, 3], None).await;
    four.set(&[0, 1, 3], Some(&[0, 1, 2])).await;
    let later = start + Duration::from_secs(10);
    assert!(completing.look(&config, later).await);
    done(&four.group, Command::SetNodeState { id: four.nodes[3].0, to: NodeState::Dead, expected: None }).await;
    assert!(!completing.look(&config, later).await);
    four.close().await;
}

/// What came after the others had taken what they lacked is handed over before it is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reached_the_one_that_leaves_last_is_handed_over() {
    let four = Four::start().await;
    four.write(&[0, 1, 3], 1000).await;
    four.complete().await;
    four.write(&[3], 1500).await;
    four.set(&[0, 1, 2], None).await;
    let (mut completing, start) = (Completing::default(), Instant::now());
    let alone = four.config(3, &[3]);
    for (seconds, is_left) in [(0, true), (59, true), (60, false)] {
        let now = start + Duration::from_secs(seconds);
        assert_eq!(completing.look(&alone, now).await, is_left, "it reaches nobody, {seconds} s");
    }
    // Who was cut off meanwhile is not needed.
    assert!(!Completing::default().look(&four.config(3, &[1, 2]), start).await);
    for (on, times) in [(0, &[1000][..]), (1, &[1000, 1500]), (2, &[1000, 1500])] {
        assert_eq!(four.times(on).await, times, "node {on}");
    }
    four.close().await;
}

/// What a block holds is not put back into heads: of its time nothing is handed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_time_that_a_block_holds_is_handed_over() {
    const WINDOW_MS: i64 = 7_200_000;
    let four = Four::start().await;
    four.write(&[0, 1, 3], 1000).await;
    four.complete().await;
    four.write(&[3], 1500).await;
    four.write(&[3], WINDOW_MS + 1500).await;
    let tenant = TenantId::anonymous();
    four.meta.tenant_or_create(&tenant, LONG).await.unwrap();
    let file = |name: &str| BlockFile { name: name.to_owned(), bytes: 1, crc32c: 7 };
    let block = BlockMeta {
        id: BlockId::new(1000, 1),
        tenant: tenant.clone(),
        range: TimeRange::new(0, WINDOW_MS),
        level: 1,
        origin: Origin::Imported,
        shard: None,
        sources: Vec::new(),
        series: 1,
        chunks: 1,
        digest: Digest { count: 1, low: 1, high: 1 },
        files: ["chunks/000001", "index", "meta.json"].map(file).to_vec(),
        as_of: 0,
        made_at: 0,
    };
    four.meta.add_blocks("test", &tenant, vec![block], None, LONG).await.unwrap();
    four.set(&[0, 1, 2], None).await;
    assert!(!Completing::default().look(&four.config(3, &[0, 1, 2]), Instant::now()).await);
    assert_eq!(four.times(0).await, [1000, WINDOW_MS + 1500]);
    four.close().await;
}

/// What the one that comes has beside what it takes is in no query until it holds the partition: it goes again if the
/// change is taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_one_that_comes_has_is_not_read() {
    let four = Four::start().await;
    four.write(&[0, 1, 3], 1000).await;
    four.set(&[0, 1, 3], Some(&[0, 1, 2])).await;
    four.write(&[2], 1500).await;
    let select = Select {
        tenant: TenantId::anonymous(),
        partition: PARTITION,
        epoch: four.epoch(),
        range: TimeRange::new(0, 3_600_000),
        matchers: Arc::default(),
        series_max: 0,
        wanted: Arc::default(),
        as_of: u64::MAX,
    };
    let requests = [select];
    let times = |all: &[Vec<Series>]| {
        let mut columns = Columns::default();
        for series in all.iter().flatten() {
            series.source.read(TimeRange::ALL, &mut columns).unwrap();
        }
        columns.times
    };
    for here in 0..4 {
        let fanout = Fanout::new(&four.meta, &four.config(here, &[0, 1, 2, 3]).peers);
        let ring = four.meta.ring();
        let found = fanout.select(&ring, &requests).await.unwrap();
        assert_eq!(times(&found), [1000], "read on node {here}");
        let samples = fanout.ask(&ring, &requests, |replica, select| replica.counts(select, 1)).await.unwrap();
        assert!(samples[0].iter().all(|counts| counts.samples == 1), "read on node {here}: {samples:?}");
    }
    // Nor does it keep the others from summing up.
    let fanout = Fanout::new(&four.meta, &four.config(2, &[0, 1, 3]).peers);
    let summing = Summing { fragment: Arc::new(fragment()), shard_size: 0 };
    let gathered = fanout.gather(&four.meta.ring(), &requests, &summing).await.unwrap();
    let gathered = gathered.expect("replicas of the present set do not differ");
    assert_eq!(gathered.declined, Some("unknown"), "the replicas of a test sum up nothing");
    assert_eq!(gathered.series.iter().map(|(_, all)| times(std::slice::from_ref(all))).collect::<Vec<_>>(), [[1000]]);
    four.close().await;
}

fn fragment() -> Fragment {
    Fragment {
        op: AggregateOp::Sum,
        grouping: Vec::new(),
        without: false,
        func: None,
        params: Vec::new(),
        range_ms: 0,
        matchers: Vec::new(),
        offset_ms: 0,
        at: None,
        start: 1000,
        step_ms: 1000,
        steps: 3,
        rules: Rules {
            lookback_ms: 300_000,
            samples_max: 1000,
            bytes_max: 0,
            within_ms: 1000,
            delayed_name_removal: false,
            type_and_unit_labels: false,
        },
        span: Span::default(),
    }
}
