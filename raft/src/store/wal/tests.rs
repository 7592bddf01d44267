//! Goal: after a power loss what was synced is there, what was not is gone from one place on, and a disk that lost what it
//! had synced is told. Method: logs of a real database and logs written here, with holes, torn ends and changed bytes.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::*;
use crate::store::{Db, RAFT};

/// What a log of our own is made of: first number, changes, what it says is synced, bytes of changes after that.
struct Batch(u64, u32, Option<u64>, usize);

/// These records as RocksDB lays them out.
fn log(batches: &[Batch]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Batch(seq, count, synced, more) in batches {
        let mut batch = seq.to_le_bytes().to_vec();
        batch.extend(count.to_le_bytes());
        if let Some(synced) = synced {
            batch.extend([PUT_IN_FAMILY, 2, u8::try_from(SYNCED.len()).unwrap()]);
            batch.extend(SYNCED);
            batch.push(8);
            batch.extend(synced.to_le_bytes());
        }
        batch.extend((0..*more).map(|i| u8::try_from(i % 251).unwrap() | 1));
        let mut rest = batch.as_slice();
        let mut first = true;
        while first || !rest.is_empty() {
            let left = BLOCK - bytes.len() % BLOCK;
            if left < HEADER {
                bytes.extend(std::iter::repeat_n(0, left));
                continue;
            }
            let (part, after) = rest.split_at(rest.len().min(left - HEADER));
            let kind = match (first, after.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4_u8,
            };
            let sum = crc32c::crc32c(&[&[kind], part].concat());
            bytes.extend(sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
            bytes.extend(u16::try_from(part.len()).unwrap().to_le_bytes());
            bytes.push(kind);
            bytes.extend(part);
            (rest, first) = (after, false);
        }
    }
    bytes
}

/// Mends logs with these bytes; answers with what mending said and what they are after it.
fn mended(logs: &[&[u8]]) -> (Result<Option<usize>, Error>, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    std::fs::create_dir(&db).unwrap();
    let path = |nth: usize| db.join(format!("{:06}.log", 9 + nth));
    for (nth, bytes) in logs.iter().enumerate() {
        std::fs::write(path(nth), bytes).unwrap();
    }
    let said = mend(&db, dir.path()).map(|torn| torn.map(|torn| torn.bytes));
    let after: Vec<_> = (0..logs.len()).map(|nth| std::fs::read(path(nth)).unwrap()).collect();
    // What was cut off is kept, to the byte.
    for (nth, (before, after)) in logs.iter().zip(&after).enumerate() {
        if before.len() > after.len() {
            let kept = std::fs::read(dir.path().join(format!("torn-{:06}-{}", 9 + nth, after.len()))).unwrap();
            assert_eq!([after.as_slice(), &kept].concat(), *before);
        }
    }
    (said, after)
}

fn refused(said: &Result<Option<usize>, Error>) -> bool {
    matches!(said, Err(Error::Corrupt { what: "write-ahead log", .. }))
}

#[test]
fn records_in_fragments_are_read() {
    let batches = [
        Batch(1, 2, Some(0), 100),
        Batch(3, 1, Some(2), 3 * BLOCK),
        Batch(4, 1, Some(3), BLOCK - 400),
        Batch(5, 1, None, 9),
        Batch(6, 1, Some(5), 2),
    ];
    let bytes = log(&batches);
    let mut reader = Reader { bytes: &bytes, at: 0, phase: 0 };
    for Batch(seq, count, synced, _) in &batches {
        let Next::Record(record) = reader.next() else { panic!("no record {seq}") };
        assert_eq!((record.seq, record.count, record.synced), (*seq, u64::from(*count), *synced));
    }
    assert!(matches!(reader.next(), Next::End));
}

/// The case of a chaos run: the log's size had reached the disk, its last page had not.
#[test]
fn a_last_record_half_of_zeros_is_cut_off() {
    let whole = log(&[Batch(1, 2, Some(0), 3_000), Batch(3, 1, Some(2), 30), Batch(4, 1, Some(3), 700)]);
    let mut torn = whole.clone();
    torn[whole.len() - 300..].fill(0);
    let (said, after) = mended(&[&torn]);
    assert_eq!(said.unwrap(), Some(700 + HEADER + BATCH_HEADER + 3 + SYNCED.len() + 9));
    assert!(whole.starts_with(&after[0]));
    assert_eq!(mended(&[&after[0]]).0.unwrap(), None);
    assert_eq!(mended(&[&whole]).0.unwrap(), None);
}

#[test]
fn records_of_a_kind_unknown_here_and_logs_that_say_nothing_are_left_alone() {
    let mut foreign = log(&[Batch(1, 2, Some(0), 30)]);
    let known = foreign.len();
    foreign.extend(log(&[Batch(3, 1, Some(0), 30)]));
    foreign[known + 6] = 10;
    let sum = crc32c::crc32c(&foreign[known + 6..]).rotate_right(15).wrapping_add(0xa282_ead8);
    foreign[known..known + 4].copy_from_slice(&sum.to_le_bytes());
    let (said, after) = mended(&[&foreign]);
    assert_eq!((said.unwrap(), &after[0]), (None, &foreign));
    let mut old = log(&[Batch(1, 2, None, 30), Batch(3, 1, None, 30), Batch(4, 1, None, 30)]);
    let middle = old.len() / 2;
    old[middle] ^= 1;
    let (said, after) = mended(&[&old]);
    assert_eq!((said.unwrap(), &after[0]), (None, &old));
}

#[test]
fn logs_follow_each_other() {
    let first = log(&[Batch(1, 2, Some(0), 30), Batch(3, 1, Some(2), 30)]);
    let short = &first[..first.len() - 5];
    let kept = log(&[Batch(1, 2, Some(0), 30)]);
    // A write failed in the middle, and the database went on in another log.
    let goes_on = log(&[Batch(3, 1, Some(2), 10), Batch(4, 1, Some(3), 10)]);
    let (said, after) = mended(&[short, &goes_on]);
    assert_eq!((said.unwrap(), &after), (Some(short.len() - kept.len()), &vec![kept.clone(), goes_on.clone()]));
    // The end of the first was lost with the power, and pages of the second were not.
    let beyond = log(&[Batch(4, 1, Some(2), 10), Batch(5, 1, Some(2), 10)]);
    for lost in [short, &kept] {
        let (said, after) = mended(&[lost, &beyond]);
        assert!(said.unwrap().is_some());
        assert_eq!(after, [kept.clone(), Vec::new()]);
    }
    // It had been synced.
    let proof = log(&[Batch(4, 1, Some(2), 10), Batch(5, 1, Some(3), 10)]);
    for lost in [short, &kept] {
        let (said, after) = mended(&[lost, &proof]);
        assert!(refused(&said), "{said:?}");
        assert_eq!(after, [lost.to_vec(), proof.clone()]);
    }
    // All before the second was synced when it was begun: its tables have it, the first log is not needed.
    let anew = log(&[Batch(8, 1, Some(7), 10)]);
    assert_eq!(mended(&[&kept, &anew]).0.unwrap(), None);
    assert_eq!(mended(&[&[], &anew, &[]]).0.unwrap(), None);
}

#[test]
fn each_changed_byte_of_what_was_synced_is_told() {
    let whole = log(&[Batch(1, 1, Some(0), 40), Batch(2, 3, Some(1), 200), Batch(5, 1, Some(4), 30)]);
    let last = log(&[Batch(5, 1, Some(4), 30)]).len();
    for at in 0..whole.len() - last {
        let mut rotten = whole.clone();
        rotten[at] ^= 4;
        let (said, after) = mended(&[&rotten]);
        assert!(refused(&said), "byte {at}: {said:?}");
        assert_eq!(after[0], rotten);
    }
}

fn write(db: &Db, number: u64, bytes: usize, sync: bool) {
    let mut batch = db.batch();
    batch.put(RAFT, "number", number.to_be_bytes()).unwrap();
    batch.put(RAFT, format!("at {number}"), vec![7; bytes]).unwrap();
    db.write(batch, sync).unwrap();
}

fn open(dir: &TempDir) -> Db {
    Db::open(dir.path()).unwrap().0
}

/// A database loses power: sectors that were not synced are there or are zeros, and the log has any length beyond what was synced.
/// It opens, with all that was synced, and with a part of the rest that has no hole.
#[test]
fn a_database_opens_after_any_power_loss() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let chance = &mut StdRng::seed_from_u64(21);
    (0..20).for_each(|number| write(&db, number, chance.random_range(0..4_000), true));
    let path = logs(&dir.path().join("db")).unwrap().pop().unwrap();
    let synced = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
    (20..60).for_each(|number| write(&db, number, chance.random_range(0..4_000), false));
    let whole = std::fs::read(&path).unwrap();
    let (mut cut, mut least, mut most) = (0, 60, 20);
    for round in 0..25 {
        let mut left = whole[..chance.random_range(synced..=whole.len())].to_vec();
        for at in (synced..left.len()).filter(|at| at % 512 == 0 || *at == synced).collect::<Vec<_>>() {
            if chance.random_ratio(1, 12) {
                let end = (at / 512 * 512 + 512).min(left.len());
                left[at..end].fill(0);
            }
        }
        let after = tempfile::tempdir().unwrap();
        super::super::tests::copy(dir.path(), after.path());
        std::fs::write(logs(&after.path().join("db")).unwrap().pop().unwrap(), &left).unwrap();
        let db = open(&after);
        let row = |key: &str| db.row(RAFT, key.as_bytes()).unwrap();
        let number = u64::from_be_bytes(row("number").unwrap().try_into().unwrap());
        assert!(number >= 19, "round {round}: {number}");
        for other in 0..60 {
            assert_eq!(row(&format!("at {other}")).is_some(), other <= number, "round {round}: {other} of {number}");
        }
        let torn = std::fs::read_dir(after.path()).unwrap();
        cut += torn.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with("torn-")).count();
        (least, most) = (least.min(number), most.max(number));
    }
    assert!(cut > 15 && least < 25 && most > 25, "what should be tried was not: {cut} cut, {least} to {most}");
}

/// Each batch says what was synced before it, and each one that waited for its sync is named by the next.
#[test]
fn batches_say_what_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    write(&db, 0, 5, true);
    write(&db, 1, 5, false);
    write(&db, 2, 5, true);
    write(&db, 3, 5, false);
    db.sync().unwrap();
    write(&db, 4, 5, false);
    let bytes = std::fs::read(logs(&dir.path().join("db")).unwrap().pop().unwrap()).unwrap();
    let mut reader = Reader { bytes: &bytes, at: 0, phase: 0 };
    let mut records = Vec::new();
    while let Next::Record(record) = reader.next() {
        // RocksDB notes in a batch without changes that it has recovered.
        if record.count > 0 {
            records.push((record.seq, record.count, record.synced.unwrap()));
        }
    }
    let [_, zero, one, two, three, four] = records.try_into().unwrap();
    assert_eq!([zero.1, one.1, two.1, three.1, four.1], [3; 5]);
    let last = |(seq, count, _): (u64, u64, u64)| seq + count - 1;
    assert_eq!(one.2, last(zero));
    assert_eq!(two.2, last(zero));
    assert_eq!(three.2, last(two));
    assert_eq!(four.2, last(three));
}

proptest! {
    /// Whatever bytes logs hold: no panic, and what is left is a beginning of them.
    #[test]
    fn any_bytes_are_read(
        mut first in prop::collection::vec(any::<u8>(), 0..300),
        second in prop::collection::vec(any::<u8>(), 0..300),
        records in 0_usize..4,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let batches: Vec<Batch> = (0..records).map(|i| Batch(i as u64 + 1, 1, Some(i as u64), i * 40)).collect();
        first.splice(0..0, log(&batches));
        for (at, byte) in flips {
            if !first.is_empty() {
                let at = at.index(first.len());
                first[at] = byte;
            }
        }
        let (_, after) = mended(&[&first, &second]);
        prop_assert!(first.starts_with(&after[0]) && second.starts_with(&after[1]));
    }
}
