//! Goal: partitions recovered side by side hold what they hold when they are recovered entry by entry, and none is served
//! before it is whole. Method: the entries of a log of some partitions and tenants, with a round of checkpoints in it,
//! given to both ways, in batches of any size; and a replica over heads that are being recovered.

use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::error::Class;
use engram_model::labels::hash128;
use engram_model::place::{Epoch, PartitionId};
use engram_model::sample::Sample;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_node::ingest::LocalReplica;
use engram_node::ingest::entry::{self, Kind};
use engram_node::ingest::heads::Heads;
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::ingest::recover::{Parallel, Recovered, Recovery};
use engram_node::peer::{Replica, Select};
use engram_storage::disk::fault::FaultDisk;
use engram_storage::head::AppendLimits;
use engram_storage::log::{NodeLog, Options, Position};
use tokio_util::sync::CancellationToken;

use crate::harness::{LONG, append, heads, meta};

const PARTITIONS: u32 = 5;

fn tenant(name: u32) -> TenantId {
    TenantId::new(&format!("t{name}")).unwrap()
}

fn all_heads() -> Arc<Vec<Heads>> {
    Arc::new((0..PARTITIONS).map(|_| heads()).collect())
}

/// One sample of one of seven series.
fn batch(step: u32) -> WriteBatch {
    let value = (step % 7).to_string();
    let text = format!("a{value}").into_bytes();
    let pair = Pair { name: Text { at: 0, len: 1 }, value: Text { at: 1, len: 1 } };
    let hash = hash128([(&b"a"[..], value.as_bytes())].into_iter(), &mut Vec::new());
    let one = Run { from: 0, to: 1 };
    WriteBatch {
        text,
        pairs: vec![pair],
        series: vec![BatchSeries { pairs: one, samples: one, hash, ..BatchSeries::default() }],
        samples: vec![Sample { at: i64::from(step) * 1000, value: f64::from(step) }],
        ..WriteBatch::default()
    }
}

fn begun(kind: Kind, partition: u32, tenant: &TenantId) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry::begin(&mut bytes, kind, PartitionId(partition), tenant);
    bytes
}

/// Entries of a log, and which of them begins a round of checkpoints.
fn entries() -> (Vec<Vec<u8>>, usize) {
    let (all, mut log, mut round) = (all_heads(), Vec::new(), 0);
    for step in 0..400 {
        let (partition, name) = (step * 7 % PARTITIONS, tenant(step % 3));
        let head = all[partition as usize].get_or_create(&name);
        let mut head = head.write();
        let (batch, limits) = (batch(step), AppendLimits::of(&TenantLimits::default()));
        let mut bytes = begun(Kind::Append, partition, &name);
        let staged = head.stage(&batch, &[0], &limits, &mut bytes);
        assert_eq!(head.apply(&batch, &staged).appended, 1);
        log.push(bytes);
        drop(head);
        if step == 200 {
            round = log.len();
            log.push(begun(Kind::Round, 0, &name));
            for (partition, heads) in (0..).zip(all.iter()) {
                for (name, head) in heads.all() {
                    log.push(begun(Kind::CheckpointBegin, partition, &name));
                    let piece = |piece: &[u8]| {
                        let mut bytes = begun(Kind::CheckpointPiece, partition, &name);
                        bytes.extend_from_slice(piece);
                        log.push(bytes);
                    };
                    head.read().snapshot(&mut { piece }).unwrap();
                    log.push(begun(Kind::CheckpointEnd, partition, &name));
                }
                log.push(begun(Kind::PartitionEnd, partition, &tenant(0)));
            }
        }
    }
    (log, round)
}

fn one_by_one(heads: &[Heads], log: &[Vec<u8>], first: u64) -> Result<Recovered, String> {
    let mut recovery = Recovery::new(heads);
    for (at, bytes) in (first..).zip(log) {
        recovery.apply(Position(at), bytes)?;
    }
    recovery.finish()
}

fn side_by_side(heads: &Arc<Vec<Heads>>, log: &[Vec<u8>], first: u64, bytes: usize) -> Result<Recovered, String> {
    let mut recovery = Parallel::with_batches(heads.clone(), bytes);
    for (at, bytes) in (first..).zip(log) {
        recovery.take(Position(at), bytes)?;
    }
    let rest = recovery.read()?;
    assert!(heads.iter().all(Heads::is_recovering), "nothing is served before the end of the log is known");
    rest.apply(|served, of| {
        let whole = heads.iter().filter(|heads| !heads.is_recovering()).count();
        assert!(served <= of && served <= whole, "{served} of {of} are said to be served, {whole} are");
    })
}

#[test]
fn side_by_side_is_as_one_after_the_other() {
    let (log, round) = entries();
    // The whole log, what is left of it when it was cut at the round, and the same with remains before.
    for (from, first) in [(0, 1), (round, 900), (round - 20, 880)] {
        let (want, log) = (all_heads(), &log[from..]);
        let done = one_by_one(&want, log, first).unwrap();
        for bytes in [1, 1000, 1 << 20] {
            let got = all_heads();
            assert_eq!(side_by_side(&got, log, first, bytes).unwrap(), done, "batches of {bytes} bytes");
            for (want, got) in want.iter().zip(got.iter()) {
                assert!(!got.is_recovering());
                let (want, got) = (want.all(), got.all());
                assert_eq!(want.len(), got.len());
                for ((name, want), (also, got)) in want.iter().zip(&got) {
                    let (want, got) = (want.read(), got.read());
                    assert_eq!((name, want.digests()), (also, got.digests()));
                    assert_eq!(got.digests(), &got.recompute_digests().unwrap());
                    assert_eq!(want.series_count(), got.series_count());
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_is_told_wherever_it_is() {
    let (log, round) = entries();
    let mut damaged = log.clone();
    damaged[150].truncate(12);
    let mut elsewhere = log.clone();
    elsewhere[160] = begun(Kind::Append, PARTITIONS, &tenant(0));
    for bytes in [1, 1 << 20] {
        let told = side_by_side(&all_heads(), &damaged, 1, bytes).unwrap_err();
        assert!(told.contains("position 151"), "{told}");
        let told = side_by_side(&all_heads(), &elsewhere, 1, bytes).unwrap_err();
        assert!(told.contains("entry of partition 5, there are 5"), "{told}");
        let cut = side_by_side(&all_heads(), &log[round..round + 4], 900, bytes).unwrap_err();
        assert!(cut.contains("lacks those of partition"), "{cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_served_when_it_is_whole_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (log, _) = entries();
    let all = all_heads();
    let mut recovery = Parallel::new(all.clone());
    for (at, bytes) in (1..).zip(&log) {
        recovery.take(Position(at), bytes).unwrap();
    }
    let node_log = NodeLog::open(Arc::new(FaultDisk::new()), "log".as_ref(), Options::default(), &mut |_, _| Ok(()));
    let (node_log, stop) = (Arc::new(node_log.unwrap()), CancellationToken::new());
    let actor = |partition| {
        partition::child(partition::Config {
            partition: PartitionId(partition),
            heads: all[partition as usize].clone(),
            all_heads: all.clone(),
            log: node_log.clone(),
            budget: LogBudget::new(1 << 20),
            meta: meta.clone(),
            clock: Clock::test(0),
            stop: stop.clone(),
        })
    };
    let handles = (0..PARTITIONS).map(|partition| actor(partition).0).collect();
    let local = LocalReplica::new(all.clone(), handles, 0);
    let select = |partition| Select {
        tenant: tenant(0),
        partition: PartitionId(partition),
        epoch: Epoch(1),
        range: TimeRange::ALL,
        matchers: Arc::default(),
        series_max: 0,
        wanted: Arc::default(),
        as_of: u64::MAX,
    };
    for partition in 0..PARTITIONS {
        assert_eq!(local.select(select(partition)).await.err().unwrap().class, Class::Unavailable);
        assert_eq!(local.label_names(select(partition)).await.err().unwrap().class, Class::Unavailable);
        assert_eq!(local.windows(PartitionId(partition)).await.err().unwrap().class, Class::Unavailable);
        let told = local.frozen(&tenant(0), PartitionId(partition), 1).await.err().unwrap();
        assert!(told.class == Class::Unavailable && told.to_string().contains("still read from the log"), "{told}");
    }
    let refused = local.append(append(&meta, 1), LONG).await.unwrap_err();
    assert!(refused.class == Class::Unavailable && refused.to_string().contains("still read"), "{refused}");
    assert_eq!(local.inventory(PartitionId(0), Epoch(1)).await.err().unwrap().class, Class::Unavailable);
    recovery.read().unwrap().apply(|_, _| ()).unwrap();
    for partition in 0..PARTITIONS {
        let series = local.select(select(partition)).await.unwrap();
        assert_eq!(series.len(), 7, "partition {partition}");
    }
    group.shutdown().await.unwrap();
}
