//! Goal: what only happens under load or after a crash. Method: real actors on a real log in a directory of their own,
//! with bounds so small that the case comes at once; recovery is given entries by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::sync::Arc;
use std::time::Duration;

use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::labels::hash128;
use engram_model::place::{Epoch, PartitionId};
use engram_model::sample::Sample;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::actor::{Health, Supervisor};
use engram_node::ingest::entry::{self, Kind};
use engram_node::ingest::heads::Heads;
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::ingest::recover::Recovery;
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::peer::Append;
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::disk::real::RealDisk;
use engram_storage::head::{HeadOptions, Symbols};
use engram_storage::log::{NodeLog, Options, Position};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);

fn heads() -> Heads {
    Heads::new(Arc::new(Symbols::default()), HeadOptions::default())
}

async fn meta(dir: &std::path::Path) -> Meta {
    let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let group = Group::open(GroupOptions::new(dir.join("meta"), node, first, Clock::test(0))).await.unwrap();
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    Meta::new(Arc::new(group), defaults)
}

/// One sample of `up` at `at`.
fn append(meta: &Meta, at: i64) -> Append {
    let text = b"__name__up".to_vec();
    let pair = Pair { name: Text { at: 0, len: 8 }, value: Text { at: 8, len: 2 } };
    let hash = hash128([(&b"__name__"[..], &b"up"[..])].into_iter(), &mut Vec::new());
    let one = Run { from: 0, to: 1 };
    let batch = WriteBatch {
        text,
        pairs: vec![pair],
        series: vec![BatchSeries { pairs: one, samples: one, hash, ..BatchSeries::default() }],
        samples: vec![Sample { at, value: 1.0 }],
        ..WriteBatch::default()
    };
    Append {
        tenant: TenantId::anonymous(),
        limits: Arc::default(),
        partition: PartitionId(0),
        epoch: meta.epoch(PartitionId(0)).unwrap_or(Epoch(0)),
        batch: Arc::new(batch),
        picks: Arc::new(vec![0]),
        metadata: false,
        memory: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_room_at_the_log_gives_back_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let meta = meta(dir.path()).await;
    let log = NodeLog::open(Arc::new(RealDisk), &dir.path().join("log"), Options::default(), &mut |_, _| Ok(()));
    let (heads, stop) = (heads(), CancellationToken::new());
    let (handle, child) = partition::child(partition::Config {
        partition: PartitionId(0),
        heads: heads.clone(),
        all_heads: Arc::new(vec![heads.clone()]),
        log: Arc::new(log.unwrap()),
        // Room for one append.
        budget: LogBudget::new(1),
        meta: meta.clone(),
        stop: stop.clone(),
    });
    let mut supervisor = Supervisor::new("ingest", Health::default(), CancellationToken::new());
    supervisor.spawn(child);
    let all = (0..200).map(|at| handle.append(append(&meta, at), LONG));
    for answer in join_all(all).await {
        assert_eq!(answer.unwrap().samples, 1);
    }
    assert_eq!(heads.get(&TenantId::anonymous()).unwrap().read().sample_count(), 200);
    stop.cancel();
    supervisor.join(LONG).await;
}

#[test]
fn the_rest_of_a_checkpoint_whose_begin_was_dropped_is_passed_over() {
    let (all, tenant) = ([heads()], TenantId::anonymous());
    let entry = |kind, body: &[u8]| {
        let mut bytes = Vec::new();
        entry::begin(&mut bytes, kind, PartitionId(0), &tenant);
        bytes.extend_from_slice(body);
        bytes
    };
    let mut pieces = Vec::new();
    heads().empty().snapshot(&mut |piece| pieces.push(entry(Kind::CheckpointPiece, piece))).unwrap();
    let mut log = vec![entry(Kind::Round, &[])];
    let rest = log.len() + pieces.len() + 1;
    log.extend(pieces.iter().cloned());
    log.extend([entry(Kind::CheckpointEnd, &[]), entry(Kind::CheckpointBegin, &[])]);
    log.extend(pieces);
    log.extend([entry(Kind::CheckpointEnd, &[]), entry(Kind::PartitionEnd, &[])]);
    let replay = |entries: &[Vec<u8>], first| {
        let mut recovery = Recovery::new(&all);
        for (at, bytes) in (first..).zip(entries) {
            recovery.apply(Position(at), bytes)?;
        }
        recovery.finish()
    };
    assert_eq!(replay(&log, 100).map(|done| done.entries), Ok(log.len() as u64));
    assert!(replay(&log[..rest], 100).is_err_and(|e| e.contains("lacks those of partition 0")));
    assert!(replay(&log, 1).is_err(), "a whole log has every begin");
}
