//! The log is stopped at every act of the disk, torn at every byte and damaged at every byte, and each of its syncs fails.
//!
//! Method: the i-th append holds its own number, so what replay gives can be checked without a copy: records are
//! dense, each is what was sent under its position, none that was acknowledged is missing, none is there that was not
//! sent. Acts are counted by the disk in memory; the ruin of what was not synced follows from a seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use engram_storage::Error;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::log::{NodeLog, Options, Position, Replayed, replay};

const DIR: &str = "log";
const BLOCK: usize = 4096;

fn options() -> Options {
    Options { segment_bytes: 5 * BLOCK as u64, group_bytes: 3 << 10, chance: 99, ..Options::default() }
}

/// What the `n`-th append sends: sizes from a few bytes to more than a block.
fn payload(n: u64) -> Vec<u8> {
    let len = [3, 700, 40, 6000, 1][usize::try_from(n % 5).unwrap()];
    n.to_be_bytes().into_iter().cycle().take(8 + len).collect()
}

fn check(position: Position, bytes: &[u8], expected: &mut u64) -> Result<(), Error> {
    assert_eq!(position.0, *expected, "records are dense and in order");
    assert_eq!(bytes, payload(position.0), "record {position} is not what was sent");
    *expected += 1;
    Ok(())
}

/// Replays and checks each record; returns what was found.
fn read(disk: &FaultDisk, from: u64) -> Result<Replayed, Error> {
    let mut expected = from;
    replay(disk, Path::new(DIR), &mut |position, bytes| check(position, bytes, &mut expected))
}

/// What one life of the log promised.
#[derive(Debug, Default, Clone, Copy)]
struct Promise {
    /// All up to here are acknowledged.
    acked: u64,
    /// All up to here were sent.
    sent: u64,
    /// Records below are not needed.
    mark: u64,
}

/// Opens the log, checks it against what was promised before, appends bursts until the disk stops or all is done.
fn live(disk: &FaultDisk, before: Promise, bursts: u64) -> Promise {
    let mut promise = before;
    let mut expected = None;
    let opened = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options(), &mut |position, bytes| {
        check(position, bytes, expected.get_or_insert(position.0))
    });
    let log = match opened {
        Ok(log) => log,
        Err(Error::Io { .. }) => return promise,
        Err(other) => panic!("a crash looks like damage: {other}"),
    };
    let replayed = log.replayed();
    assert!(replayed.next.0 > before.acked, "{} of {before:?} is lost", replayed.next);
    assert!(replayed.next.0 <= before.sent + 1, "{} of {before:?} was invented", replayed.next);
    assert!(replayed.oldest.0 <= before.mark.max(1), "{before:?} needs more than from {}", replayed.oldest);
    // What was read has been synced: it is as good as acknowledged.
    promise.acked = replayed.next.0 - 1;
    promise.sent = promise.acked;
    for burst in 0..bursts {
        let (tx, answers) = mpsc::channel();
        for _ in 0..=burst % 4 {
            promise.sent += 1;
            let tx = tx.clone();
            let sent = log.append(payload(promise.sent), Box::new(move |done| drop(tx.send(done))));
            if sent.is_err() {
                promise.sent -= 1;
            }
        }
        drop(tx);
        for answer in answers {
            let Ok(position) = answer else { return promise };
            assert_eq!(position.0, promise.acked + 1, "answers come in order");
            promise.acked = position.0;
        }
        if burst % 5 == 4 {
            promise.mark = promise.acked.saturating_sub(8);
            log.truncate_below(Position(promise.mark));
        }
    }
    promise
}

#[test]
fn a_crash_at_any_act_loses_nothing_acknowledged_and_invents_nothing() {
    let whole = FaultDisk::new();
    let all = live(&whole, Promise::default(), 12);
    assert_eq!(all.acked, all.sent);
    let acts = whole.acts();
    assert!(acts > 60, "the run is long enough to roll and forget, it has {acts} acts");
    for stop in 0..acts {
        for seed in 0..12 {
            let disk = FaultDisk::new();
            let mut promise = Promise::default();
            // Three lives: the second is stopped early, inside what opening repairs.
            for (life, stop) in [stop, stop % 17, 1000].into_iter().enumerate() {
                disk.stop_after(stop);
                promise = live(&disk, promise, 12);
                disk.crash(seed * 3 + life as u64);
            }
            live(&disk, promise, 1);
        }
    }
}

#[test]
fn any_sync_may_fail_and_nothing_acknowledged_is_lost() {
    for syncs in 0.. {
        for restart in 0..4 {
            let disk = FaultDisk::new();
            disk.fail_sync_after(syncs);
            let promise = live(&disk, Promise::default(), 12);
            if !disk.has_failed_sync() {
                assert!(syncs > 15, "the run has only {syncs} syncs");
                return;
            }
            // The process ends; the machine goes on with the cache it has, or the power fails, too.
            if restart > 0 {
                disk.crash(restart);
            }
            let again = live(&disk, promise, 12);
            assert!(again.acked > promise.acked, "sync {syncs}: the next start goes on");
        }
    }
}

/// A disk with one segment of `groups` groups, one record each, all acknowledged; where each group starts.
fn one_segment(groups: u64) -> (FaultDisk, PathBuf, Vec<usize>) {
    let disk = FaultDisk::new();
    let options = Options { segment_bytes: 1 << 20, ..options() };
    let log = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options, &mut |_, _| Ok(())).unwrap();
    let mut starts = vec![BLOCK];
    for n in 1..=groups {
        let (tx, answer) = mpsc::channel();
        log.append(payload(n), Box::new(move |done| tx.send(done).unwrap())).unwrap();
        answer.recv().unwrap().unwrap();
        let end = starts.last().unwrap() + (32 + 4 + payload(n).len()).next_multiple_of(BLOCK);
        starts.push(end);
    }
    log.close().unwrap();
    (disk, Path::new(DIR).join("0000000000000001.log"), starts)
}

/// A fresh disk that holds `bytes` as its only segment.
fn disk_with(path: &Path, bytes: &[u8]) -> FaultDisk {
    let disk = FaultDisk::new();
    disk.create(path).unwrap().write_at(0, bytes).unwrap();
    disk
}

#[test]
fn a_tail_torn_at_any_byte_ends_the_log_before_it() {
    let (disk, path, starts) = one_segment(3);
    let mut bytes = disk.bytes(&path).unwrap();
    bytes.truncate(starts[3]);
    let body_end = starts[2] + 32 + 4 + payload(3).len();
    for cut in starts[2]..starts[3] {
        let mut zeroed = bytes.clone();
        zeroed[cut..].fill(0);
        for torn in [&zeroed[..], &bytes[..cut]] {
            let found = read(&disk_with(&path, torn), 1).unwrap();
            let whole = torn.len() >= body_end && torn[..body_end] == bytes[..body_end];
            assert_eq!(found.records, if whole { 3 } else { 2 }, "cut at {cut}");
            assert_eq!(found.torn.is_some(), !whole && cut > starts[2], "cut at {cut}");
        }
    }
}

#[test]
fn damage_to_what_was_acknowledged_is_reported_with_its_place() {
    let (disk, path, starts) = one_segment(4);
    let mut bytes = disk.bytes(&path).unwrap();
    bytes.truncate(starts[4]);
    for n in 1..=4_usize {
        let start = starts[n - 1];
        let len = 32 + 4 + payload(n as u64).len();
        for at in start..start + len {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            match read(&disk_with(&path, &bad), 1) {
                Err(Error::Corrupt { at: told, .. }) if n < 4 => assert_eq!(told, start as u64),
                // The last group cannot be told from a torn one: nothing stands behind it.
                Ok(found) if n == 4 => assert_eq!(found.records, 3),
                other => panic!("byte {at} of group {n}: {other:?}"),
            }
        }
        // A group lost whole: a write the disk swallowed.
        let mut bad = bytes.clone();
        bad[start..starts[n]].fill(0);
        let found = read(&disk_with(&path, &bad), 1);
        assert_eq!(matches!(found, Err(Error::Corrupt { .. })), n < 4, "group {n}: {found:?}");
    }
}

#[test]
fn a_bad_header_and_a_missing_segment_are_damage() {
    let (disk, path, _) = one_segment(3);
    for at in 0..36 {
        disk.flip(&path, at, 3);
        assert!(matches!(read(&disk, 1), Err(Error::Corrupt { .. })), "byte {at}");
        disk.flip(&path, at, 3);
    }
    let disk = FaultDisk::new();
    live(&disk, Promise::default(), 4);
    live(&disk, Promise { acked: 0, sent: 1000, mark: 0 }, 4);
    let segments = disk.list(Path::new(DIR)).unwrap();
    assert!(segments.len() > 2, "{segments:?}");
    disk.remove(&Path::new(DIR).join(&segments[1])).unwrap();
    assert!(matches!(read(&disk, 1), Err(Error::Corrupt { at: 0, .. })));
}

#[test]
fn a_payload_that_imitates_a_group_is_not_believed() {
    // A sender puts whole blocks of a log with another salt into its payload; then that group is torn.
    let (other, other_path, _) = one_segment(4);
    let forged = other.bytes(&other_path).unwrap()[2 * BLOCK..].to_vec();
    let disk = FaultDisk::new();
    let options = Options { segment_bytes: 1 << 20, record_bytes_max: 1 << 21, chance: 5, ..options() };
    let log = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options, &mut |_, _| Ok(())).unwrap();
    let (tx, answer) = mpsc::channel();
    let mut aligned = vec![0; BLOCK - 36];
    aligned.extend(&forged);
    log.append(aligned, Box::new(move |done| tx.send(done).unwrap())).unwrap();
    answer.recv().unwrap().unwrap();
    log.close().unwrap();
    disk.flip(&Path::new(DIR).join("0000000000000001.log"), BLOCK as u64 + 36, 0);
    let found = replay(&disk, Path::new(DIR), &mut |_, _| Ok(())).unwrap();
    assert_eq!((found.records, found.torn.is_some()), (0, true));
}
