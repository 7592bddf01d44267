//! Goal: whatever was acknowledged is there after the power failed, at each act of the disk, and damage is named; a full
//! disk refuses writes, so that their senders come again, until there is room.
//! Method: the same small life of a window (full chunks in files, checkpoints that name them, a seal, the forgetting)
//! on a disk that stops at its n-th act and loses what was not synced.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_node::error::{Side, retry_after_seconds, status};
use engram_node::ingest::partition::{Forgetting, Proof};
use engram_node::meta::Meta;
use engram_node::peer::Replica;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::log::Options;
use futures::FutureExt;

use crate::harness::{Ingest, LONG, append_all, meta};

const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };
/// Samples of one append: a full chunk and some.
const BATCH: i64 = 130;

/// What the sender knows when the power fails.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<i64>,
    sent: BTreeSet<i64>,
    is_sealed: bool,
    forgetting: bool,
    is_forgotten: bool,
}

fn options() -> Options {
    Options { segment_bytes: 32 << 10, ..Options::default() }
}

fn open(disk: &FaultDisk, meta: &Meta) -> Result<Ingest, String> {
    Ingest::open_on(&(Arc::new(disk.clone()) as _), Path::new("d"), meta, &Clock::test(0), options())
}

async fn write(ingest: &Ingest, known: &mut Known, from: i64) -> Option<()> {
    let times: Vec<_> = (0..BATCH).map(|i| from + i * 1000).collect();
    known.sent.extend(&times);
    ingest.local.append(append_all(&ingest.meta, &times), LONG).await.ok()?;
    known.acknowledged.extend(times);
    Some(())
}

/// The life of a window; `None` when the disk has stopped.
async fn live(ingest: &Ingest, known: &mut Known) -> Option<()> {
    let tenant = TenantId::anonymous();
    for batch in 0..3 {
        write(ingest, known, batch * 200_000).await?;
    }
    ingest.round().await.ok()?;
    write(ingest, known, 600_000).await?;
    write(ingest, known, WINDOW.end).await?;
    if !ingest.handle.seal(&tenant, 1, WINDOW, LONG).await.ok()? {
        return None;
    }
    known.is_sealed = true;
    write(ingest, known, WINDOW.end + 200_000).await?;
    ingest.round().await.ok()?;
    let part = ingest.local.frozen(&tenant, PartitionId(0), 1).await.ok()??;
    assert_eq!(part.digest().count, 4 * BATCH.unsigned_abs());
    known.forgetting = true;
    let proof = Proof { digest: part.digest(), index: 9 };
    drop(part);
    if ingest.handle.forget(&tenant, 1, proof, LONG).await.ok()? != Forgetting::Gone {
        return None;
    }
    known.is_forgotten = true;
    ingest.heads[0].files().unwrap().collect();
    write(ingest, known, WINDOW.end + 400_000).await?;
    ingest.round().await.ok()?;
    ingest.round().await.ok()
}

async fn check(ingest: &Ingest, known: &Known, what: &str) {
    let times = ingest.times(u64::MAX).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(times.is_sorted_by(|a, b| a < b), "{what}");
    let got: BTreeSet<_> = times.into_iter().collect();
    let lost = known.acknowledged.difference(&got).find(|at| !(known.forgetting && WINDOW.contains(**at)));
    assert!(lost.is_none(), "{what}: {lost:?} was acknowledged");
    assert!(got.is_subset(&known.sent), "{what}: nobody sent this");
    assert!(!known.is_forgotten || got.iter().all(|at| !WINDOW.contains(*at)), "{what}: forgotten samples are back");
    if let Some(head) = ingest.heads[0].get(&TenantId::anonymous()) {
        let head = head.read();
        assert_eq!(head.digests(), &head.recompute_digests().unwrap(), "{what}");
        assert!(head.sealed() == 1 || !known.is_sealed, "{what}: the seal is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_may_fail_at_any_act() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    for stop in 0.. {
        let (disk, mut known) = (FaultDisk::new(), Known::default());
        disk.stop_after(stop);
        let mut done = None;
        if let Ok(ingest) = open(&disk, &meta) {
            done = live(&ingest, &mut known).await;
            ingest.close().await;
        }
        disk.crash(stop);
        let what = format!("stopped at act {stop}");
        let ingest = open(&disk, &meta).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&ingest, &known, &what).await;
        // It goes on from there, and the next start finds the same.
        known.acknowledged.retain(|at| !(known.forgetting && WINDOW.contains(*at)));
        write(&ingest, &mut known, WINDOW.end + 2_000_000).await.unwrap();
        ingest.heads[0].files().unwrap().collect();
        ingest.close().await;
        let ingest = open(&disk, &meta).unwrap_or_else(|e| panic!("{what}, second start: {e}"));
        check(&ingest, &known, &what).await;
        ingest.close().await;
        if done.is_some() {
            assert!(stop > 50, "the disk was asked {stop} times only");
            group.shutdown().await.unwrap();
            return;
        }
    }
}

/// A disk with the life of a window up to a checkpoint that names files.
async fn with_files(meta: &Meta) -> (FaultDisk, Known, Vec<String>) {
    let (disk, mut known) = (FaultDisk::new(), Known::default());
    let ingest = open(&disk, meta).unwrap();
    for batch in 0..3 {
        write(&ingest, &mut known, batch * 200_000).await.unwrap();
    }
    ingest.round().await.unwrap();
    ingest.close().await;
    let files = disk.list(Path::new("d/head")).unwrap();
    assert_eq!(files.len(), 3);
    (disk, known, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_a_chunk_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (disk, known, files) = with_files(&meta).await;
    let path = Path::new("d/head").join(&files[1]);
    // A byte of a chunk: found by whoever reads it, and by nobody else.
    disk.flip(&path, 60, 3);
    let ingest = open(&disk, &meta).unwrap();
    assert_eq!(ingest.live().await[0].live[0].1, known.acknowledged.len() as u64);
    let text = ingest.read(u64::MAX).await.unwrap().unwrap_err().to_string();
    assert!(text.contains(&files[1]) && text.contains("does not hold what was written"), "{text}");
    ingest.close().await;
    // Its header, and its absence: the node does not start, and says which file it is.
    disk.flip(&path, 9, 3);
    assert!(open(&disk, &meta).err().is_some_and(|e| e.contains(&files[1])));
    disk.remove(&path).unwrap();
    assert!(open(&disk, &meta).err().is_some_and(|e| e.contains(&files[1]) && e.contains("partition 0")));
    group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_keeps_chunks_in_memory_and_a_failed_sync_ends_the_partition() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (disk, mut known) = (FaultDisk::new(), Known::default());
    let ingest = open(&disk, &meta).unwrap();
    disk.fill(true);
    write(&ingest, &mut known, 0).await.unwrap();
    assert!(disk.list(Path::new("d/head")).unwrap().is_empty());
    disk.fill(false);
    write(&ingest, &mut known, 200_000).await.unwrap();
    write(&ingest, &mut known, 400_000).await.unwrap();
    assert!(!disk.list(Path::new("d/head")).unwrap().is_empty(), "asked again when more waits");
    check(&ingest, &known, "after a full disk").await;
    // The sync of the round's marker comes first, then those of the chunk files.
    disk.fail_sync_after(1);
    assert!(ingest.round().await.is_err());
    assert!(write(&ingest, &mut known, 600_000).await.is_none(), "who cannot sync does not go on");
    ingest.close().await;
    disk.crash(1);
    let ingest = open(&disk, &meta).unwrap();
    check(&ingest, &known, "after a failed sync").await;
    ingest.close().await;
    group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let (disk, mut known) = (FaultDisk::new(), Known::default());
    let ingest = open(&disk, &meta).unwrap();
    disk.fill(true);
    let mut from = 0;
    // The segment that is there takes writes; the one that needs the next waits, neither lost nor acknowledged.
    let waiting = loop {
        let local = ingest.local.clone();
        let times: Vec<_> = (0..BATCH).map(|i| from + i * 1000).collect();
        let (request, log) = (append_all(&meta, &times), ingest.log.clone());
        known.sent.extend(&times);
        from += 200_000;
        let mut sending = async move { local.append(request, LONG).await }.boxed();
        let is_full = async {
            while !log.waits_for_room() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = &mut sending => assert_eq!(done.unwrap().samples, BATCH.unsigned_abs()),
            () = is_full => break (sending, times),
        }
        known.acknowledged.extend(times);
    };
    assert!(known.acknowledged.len() > 1, "what was reserved is written");
    // Whoever comes now is told at once, with the code that makes senders come again; also behind one that asks to be told
    // when everything before it is visible.
    let mut settling = ingest.handle.settle(LONG).boxed();
    assert!((&mut settling).now_or_never().is_none());
    let refused = ingest.local.append(append_all(&meta, &[from]), LONG).await.unwrap_err();
    assert_eq!(status(&refused, Side::Write), 503, "{refused}");
    assert!(retry_after_seconds(&refused).is_some() && refused.to_string().contains("full"), "{refused}");
    check(&ingest, &known, "on a full disk").await;
    assert!((&mut settling).now_or_never().is_none(), "what is at the log is not visible");
    disk.fill(false);
    assert_eq!(waiting.0.await.unwrap().samples, BATCH.unsigned_abs());
    settling.await.unwrap();
    known.acknowledged.extend(waiting.1);
    write(&ingest, &mut known, from).await.unwrap();
    check(&ingest, &known, "when there is room").await;
    ingest.close().await;
    disk.crash(3);
    let ingest = open(&disk, &meta).unwrap();
    check(&ingest, &known, "after a full disk and a crash").await;
    ingest.close().await;
    group.shutdown().await.unwrap();
}
