//! Goal: what only happens under load or after a crash. Method: real actors on a real log in a directory of their own,
//! with bounds so small that the case comes at once; recovery is given entries by hand.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

mod completing;
mod crash;
mod harness;
mod keeping;
mod recovery;
mod repairing;

use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_node::actor::{Health, Supervisor};
use engram_node::blocks::late::Seen;
use engram_node::ingest::entry::{self, Kind};
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::ingest::recover::Recovery;
use engram_storage::disk::real::RealDisk;
use engram_storage::log::{NodeLog, Options, Position};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use harness::{Blocks, Ingest, LONG, Told, append, heads, meta};

const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };

/// Goal: what is agreed of a window is carried out once, and a crash changes nothing. Method: a partition with its log,
/// opened again after each step; the metadata is told by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_sealed_cut_and_forgotten_and_a_restart_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (clock, told) = (Clock::test(1000), Arc::new(Told::default()));
    let ingest = Ingest::open(dir.path(), &meta, &clock);
    for at in [10, 20, 7_200_000] {
        assert_eq!(ingest.write(at).await.samples, 1);
    }
    assert_eq!(ingest.frozen(1).await.err().unwrap().class, Class::Unavailable);
    told.seal(1, WINDOW);
    ingest.follow(&told, Digest::EMPTY).await;
    ingest.follow(&told, Digest::EMPTY).await;
    let part = ingest.frozen(1).await.unwrap().unwrap();
    assert_eq!((part.digest().count, part.series.len(), part.window), (2, 1, WINDOW));
    let live = ingest.live().await;
    assert_eq!((live[0].sealed, live[0].appended_at, live[0].newest), (1, 1000, Some(7_200_000)));
    assert_eq!(live[0].live, [(TimeRange::new(7_200_000, 14_400_000), 1)]);
    assert_eq!(ingest.times(0).await.unwrap(), [10, 20, 7_200_000]);
    ingest.close().await;

    let ingest = Ingest::open(dir.path(), &meta, &clock);
    assert_eq!(ingest.frozen(1).await.unwrap().unwrap().digests, part.digests);
    assert_eq!(ingest.write(20).await.samples, 1, "a retry is stored already");
    assert_eq!(ingest.frozen(1).await.unwrap().unwrap().digest(), part.digest());
    // A cut of something else: kept while what it lacks cannot be shipped, and forgotten once blocks hold all of it.
    told.cut(1, Digest { count: 1, low: 1, high: 1 }, 50);
    let held = ingest.follow(&told, Digest { count: 1, low: 2, high: 2 }).await;
    assert!(held.readings().iter().any(|r| r.name == "ingest_samples_held" && (r.value - 2.0).abs() < 0.1));
    assert_eq!(ingest.times(0).await.unwrap(), [10, 20, 7_200_000]);
    assert!(told.forgot.lock().unwrap().is_empty());
    ingest.follow(&told, Digest::EMPTY).await;
    assert_eq!(*told.forgot.lock().unwrap(), [1]);
    assert!(ingest.frozen(1).await.unwrap().is_none());
    ingest.close().await;

    let ingest = Ingest::open(dir.path(), &meta, &clock);
    assert!(ingest.frozen(1).await.unwrap().is_none());
    let stale = ingest.times(49).await.unwrap_err();
    assert!(stale.is_stale_view() && stale.class == Class::Unavailable, "{stale}");
    assert_eq!(ingest.times(50).await.unwrap(), [7_200_000]);
    told.seal(2, TimeRange::new(7_200_000, 14_400_000));
    ingest.follow(&told, Digest::EMPTY).await;
    told.cut(2, ingest.frozen(2).await.unwrap().unwrap().digest(), 60);
    ingest.follow(&told, Digest { count: 1, low: 1, high: 1 }).await;
    assert!(ingest.times(60).await.unwrap().is_empty() && ingest.times(59).await.unwrap_err().is_stale_view());
    // An empty head goes, and what it knew of old views stays.
    let handle = ingest.local.handle(PartitionId(0)).unwrap();
    assert!(!handle.drop_head(&TenantId::anonymous(), i64::MIN, LONG).await.unwrap());
    assert!(handle.drop_head(&TenantId::anonymous(), 1001, LONG).await.unwrap());
    assert!(ingest.live().await.is_empty());
    ingest.close().await;
    let ingest = Ingest::open(dir.path(), &meta, &clock);
    assert!(ingest.live().await.is_empty() && ingest.times(59).await.unwrap_err().is_stale_view());
    assert!(ingest.times(60).await.unwrap().is_empty());
    ingest.close().await;
    group.shutdown().await.unwrap();
}

/// Goal: the last good copy of a window is not dropped because a block that has been damaged since once held it. Method:
/// a cut of the very digest that is set aside, with a block that is missing, then in quarantine, then whole again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_damaged_block_held_is_not_forgotten_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (clock, told) = (Clock::test(1000), Arc::new(Told::default()));
    let ingest = Ingest::open(dir.path(), &meta, &clock);
    ingest.write(10).await;
    told.seal(1, WINDOW);
    ingest.follow(&told, Digest::EMPTY).await;
    let digest = ingest.frozen(1).await.unwrap().unwrap().digest();
    told.cut(1, digest, 9);
    // The store does not answer, so what the block lacks cannot be shipped.
    for seen in [Seen::Missing, Seen::Damaged] {
        ingest.follow_with(&told, Blocks { lack: digest, seen }).await;
        assert_eq!(ingest.times(0).await.unwrap(), [10], "{seen:?}");
        assert!(told.forgot.lock().unwrap().is_empty(), "{seen:?}");
    }
    // Shipped beside the damaged block.
    ingest.follow_with(&told, Blocks { lack: Digest::EMPTY, seen: Seen::Damaged }).await;
    assert_eq!(*told.forgot.lock().unwrap(), [1]);
    ingest.close().await;
    group.shutdown().await.unwrap();
}

/// Goal: an old view finds out about a head that was dropped, also when another one is in its place. Method: a window
/// is sealed, cut at 9 and forgotten, the empty head dropped; then the tenant writes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_was_dropped_and_made_again_still_tells_old_views() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (clock, told) = (Clock::test(1000), Arc::new(Told::default()));
    let ingest = Ingest::open(dir.path(), &meta, &clock);
    ingest.write(10).await;
    told.seal(1, WINDOW);
    ingest.follow(&told, Digest::EMPTY).await;
    told.cut(1, ingest.frozen(1).await.unwrap().unwrap().digest(), 9);
    ingest.follow(&told, Digest::EMPTY).await;
    assert!(ingest.handle.drop_head(&TenantId::anonymous(), 1001, LONG).await.unwrap());
    ingest.write(20).await;
    let stale = ingest.times(8).await.unwrap_err();
    assert!(stale.is_stale_view(), "{stale}");
    assert_eq!(ingest.times(9).await.unwrap(), [20]);
    // Nor does it leave a partition it is a replica of, whoever asks for that.
    ingest.handle.leave(LONG).await.unwrap();
    assert_eq!(ingest.times(9).await.unwrap(), [20]);
    ingest.close().await;
    group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_room_at_the_log_gives_back_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
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
        clock: Clock::test(0),
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
    group.shutdown().await.unwrap();
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

/// Goal: the end of a round that was given up ends nothing in the next. Method: the log is cut at the second round, into
/// which the rest of the first one's checkpoint reaches, and then an entry that only the second one's checkpoint explains.
#[test]
fn the_end_of_a_round_that_was_given_up_is_passed_over() {
    let (all, tenant) = ([heads()], TenantId::anonymous());
    let entry = |kind, body: &[u8]| {
        let mut bytes = Vec::new();
        entry::begin(&mut bytes, kind, PartitionId(0), &tenant);
        bytes.extend_from_slice(body);
        bytes
    };
    let end = |round| {
        let mut body = Vec::new();
        entry::put_end(&mut body, 0, round);
        entry(Kind::PartitionEnd, &body)
    };
    let mut pieces = Vec::new();
    heads().empty().snapshot(&mut |piece| pieces.push(entry(Kind::CheckpointPiece, piece))).unwrap();
    let mut log = vec![entry(Kind::Round, &[]), entry(Kind::CheckpointEnd, &[]), end(7)];
    // No change of an empty head: it is applied only where the end before it counts.
    log.push(entry(Kind::Append, &[0xff]));
    log.push(entry(Kind::CheckpointBegin, &[]));
    log.extend(pieces);
    log.extend([entry(Kind::CheckpointEnd, &[]), end(100)]);
    let replay = |entries: &[Vec<u8>]| {
        let mut recovery = Recovery::new(&all);
        for (at, bytes) in (100..).zip(entries) {
            recovery.apply(Position(at), bytes)?;
        }
        recovery.finish()
    };
    assert_eq!(replay(&log).map(|done| done.entries), Ok(log.len() as u64));
    assert!(replay(&log[..log.len() - 1]).is_err_and(|e| e.contains("lacks those of partition 0")));
    log[2] = end(100);
    assert!(replay(&log).is_err(), "had it been this round's, what follows would be damage");
}
