//! The handle, the queue and the reader on the disk in memory. Crashes are in `tests/crash_log.rs`.

use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::disk::fault::FaultDisk;

const DIR: &str = "log";

fn small() -> Options {
    Options { segment_bytes: 16 << 10, record_bytes_max: 20_000, group_bytes: 4 << 10, chance: 7, ..Options::default() }
}

type Records = Vec<(u64, Vec<u8>)>;

fn open(disk: &FaultDisk, options: Options) -> Result<(NodeLog, Records), Error> {
    let mut records = Vec::new();
    let log = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options, &mut |position, payload| {
        records.push((position.0, payload.to_vec()));
        Ok(())
    })?;
    Ok((log, records))
}

/// Appends all at once and waits for the answers.
fn append_all(log: &NodeLog, payloads: &[Vec<u8>]) -> Vec<Result<Position, Error>> {
    let (tx, rx) = mpsc::channel();
    for payload in payloads {
        let tx = tx.clone();
        if let Err(error) = log.append(payload.clone(), Box::new(move |done| tx.send(done).unwrap())) {
            return vec![Err(error)];
        }
    }
    drop(tx);
    rx.iter().collect()
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Vec<u8>>),
    Reopen,
    Truncate(f64),
}

fn step() -> impl Strategy<Value = Step> {
    let payload = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..50),
        1 => proptest::collection::vec(any::<u8>(), 5_000..20_000),
    ];
    prop_oneof![
        4 => proptest::collection::vec(payload, 1..20).prop_map(Step::Append),
        1 => Just(Step::Reopen),
        1 => (0.0..1.0).prop_map(Step::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_log_is_a_vector_that_forgets_its_front(steps in proptest::collection::vec(step(), 1..30)) {
        let disk = FaultDisk::new();
        let mut model: Vec<Vec<u8>> = Vec::new();
        let mut mark = 0;
        let (mut log, _) = open(&disk, small()).unwrap();
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Append(payloads) => {
                    for (i, got) in append_all(&log, &payloads).into_iter().enumerate() {
                        prop_assert_eq!(got.unwrap().0, (model.len() + i + 1) as u64);
                    }
                    model.extend(payloads);
                }
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "test")]
                Step::Truncate(part) => {
                    let below = (model.len() as f64 * part) as u64;
                    mark = mark.max(below);
                    log.truncate_below(Position(below));
                }
                Step::Reopen => {
                    log.close().unwrap();
                    let (again, records) = open(&disk, small()).unwrap();
                    let replayed = again.replayed().clone();
                    prop_assert_eq!(replayed.next.0, model.len() as u64 + 1);
                    prop_assert!(replayed.oldest.0 <= mark.max(1), "needed records are gone");
                    prop_assert!(replayed.torn.is_none());
                    let kept = usize::try_from(replayed.oldest.0 - 1).unwrap();
                    let want: Records = (replayed.oldest.0..).zip(model[kept..].iter().cloned()).collect();
                    prop_assert_eq!(records, want);
                    log = again;
                }
            }
        }
    }
}

#[test]
fn segments_below_the_mark_are_removed() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, small()).unwrap();
    for _ in 0..20 {
        append_all(&log, &[vec![1; 3000]]);
    }
    log.truncate_below(Position(20));
    log.close().unwrap();
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(names.iter().filter(|name| name.ends_with(".log")).count() <= 2, "{names:?}");
    let (log, records) = open(&disk, small()).unwrap();
    assert_eq!(log.replayed().next, Position(21));
    assert_eq!(records.last().map(|(position, _)| *position), Some(20));
}

#[test]
fn restarts_leave_no_empty_segments_behind() {
    let disk = FaultDisk::new();
    for _ in 0..5 {
        open(&disk, small()).unwrap().0.close().unwrap();
    }
    let names = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(names, ["0000000000000001.log"]);
}

#[test]
fn a_full_disk_makes_the_log_wait_and_not_fail() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, small()).unwrap();
    disk.fill(true);
    let (answer_tx, answers) = mpsc::channel();
    let payload = || vec![1; 9_000];
    // The first fits the segment there is, the others need new ones.
    for _ in 0..3 {
        let answer_tx = answer_tx.clone();
        log.append(payload(), Box::new(move |done| answer_tx.send(done).unwrap())).unwrap();
    }
    answers.recv().unwrap().unwrap();
    while !log.waits_for_room() {
        std::thread::yield_now();
    }
    assert!(answers.try_recv().is_err() && log.failed().is_none());
    disk.fill(false);
    for _ in 0..2 {
        answers.recv().unwrap().unwrap();
    }
    assert!(!log.waits_for_room());
    log.close().unwrap();
    assert_eq!(open(&disk, small()).unwrap().1.len(), 3);
}

#[test]
fn a_log_that_waits_for_room_can_be_closed() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, small()).unwrap();
    // Full before the first append: after it the thread prepares the next segment when it has nothing else to do, and
    // with one prepared the second append would not have to wait.
    disk.fill(true);
    append_all(&log, &[vec![1; 9_000]]);
    let (answer_tx, answers) = mpsc::channel();
    log.append(vec![2; 9_000], Box::new(move |done| answer_tx.send(done).unwrap())).unwrap();
    while !log.waits_for_room() {
        std::thread::yield_now();
    }
    assert!(log.close().is_err(), "what was not written is said");
    assert!(answers.recv().unwrap().is_err());
    // Looked at after the thread has ended: until then it makes the file and removes it again, try after try.
    let names = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(names, ["0000000000000001.log"], "a part of a segment keeps the room there is");
    assert_eq!(open(&disk, small()).err().map(|error| error.is_disk_full()), Some(true));
    disk.fill(false);
    assert_eq!(open(&disk, small()).unwrap().1.len(), 1);
}

/// Holds the log's thread inside a `done` until the sender is used.
fn hold(log: &NodeLog) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (inside_tx, inside) = mpsc::channel();
    let done = move |_| {
        inside_tx.send(()).unwrap();
        held.recv().unwrap();
    };
    log.append(vec![0], Box::new(done)).unwrap();
    inside.recv().unwrap();
    release
}

#[test]
fn a_full_queue_refuses_and_what_waits_becomes_one_group() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, Options { queue_records_max: 10, ..small() }).unwrap();
    let release = hold(&log);
    let (tx, rx) = mpsc::channel();
    for _ in 0..10 {
        let tx = tx.clone();
        log.try_append(vec![1], Box::new(move |done| tx.send(done).unwrap())).unwrap();
    }
    let refused = log.try_append(vec![1], Box::new(|_| {}));
    assert!(matches!(refused, Err(Error::Full { max: 10, .. })), "{refused:?}");
    release.send(()).unwrap();
    let positions: Vec<u64> = rx.iter().take(10).map(|done| done.unwrap().0).collect();
    assert_eq!(positions, (2..=11).collect::<Vec<_>>(), "answers come in the order of the appends");
    log.close().unwrap();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let metrics = log.metrics();
    assert_eq!((count(&metrics.groups), count(&metrics.records), count(&metrics.refused_full)), (2, 11, 1));
    assert_eq!(metrics.sync_buckets.iter().map(count).sum::<u64>(), 2);
}

#[test]
fn bytes_that_wait_are_bounded_but_one_record_is_always_taken() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, Options { queue_bytes_max: 100, ..small() }).unwrap();
    let release = hold(&log);
    log.try_append(vec![1; 1000], Box::new(|_| {})).unwrap();
    assert!(matches!(log.try_append(vec![1], Box::new(|_| {})), Err(Error::Full { max: 100, .. })));
    release.send(()).unwrap();
    log.close().unwrap();
}

#[test]
fn close_makes_durable_what_waits_and_refuses_what_comes() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, small()).unwrap();
    let release = hold(&log);
    let (tx, rx) = mpsc::channel();
    log.append(vec![2], Box::new(move |done| tx.send(done).unwrap())).unwrap();
    release.send(()).unwrap();
    log.close().unwrap();
    assert_eq!(rx.recv().unwrap().unwrap(), Position(2));
    assert!(matches!(log.append(vec![3], Box::new(|_| {})), Err(Error::Closed { .. })));
    disk.crash(1);
    assert_eq!(open(&disk, small()).unwrap().1.len(), 2);
}

#[test]
fn the_last_handle_may_go_in_an_answer() {
    let disk = FaultDisk::new();
    let log = Arc::new(open(&disk, small()).unwrap().0);
    let (tx, rx) = mpsc::channel();
    let release = hold(&log);
    let last = Arc::clone(&log);
    let done = move |answer: Result<Position, Error>| {
        drop(last);
        tx.send(answer).unwrap();
    };
    log.append(vec![1], Box::new(done)).unwrap();
    drop(log);
    release.send(()).unwrap();
    assert_eq!(rx.recv().unwrap().unwrap(), Position(2));
}

#[test]
fn a_record_above_the_limit_is_refused_before_it_waits() {
    let (log, _) = open(&FaultDisk::new(), small()).unwrap();
    let refused = log.append(vec![0; 20_001], Box::new(|_| {}));
    assert!(matches!(refused, Err(Error::TooLarge { len: 20_001, max: 20_000, .. })), "{refused:?}");
}

#[test]
fn after_a_failed_sync_everything_is_refused_and_the_disk_is_asked_what_it_holds() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, small()).unwrap();
    assert_eq!(append_all(&log, &[b"kept".to_vec()]).len(), 1);
    let (tx, told) = mpsc::channel();
    let tx2 = tx.clone();
    log.on_failed(move |error| tx.send(error).unwrap());
    disk.fail_sync_after(0);
    let answers = append_all(&log, &[b"lost".to_vec()]);
    assert!(matches!(answers[..], [Err(Error::Failed { .. })]), "{answers:?}");
    assert!(matches!(told.recv().unwrap(), Error::Failed { .. }));
    assert!(
        matches!(log.append(vec![1], Box::new(|_| {})), Err(Error::Failed { .. })),
        "no retry, though it would work"
    );
    log.on_failed(move |error| tx2.send(error).unwrap());
    assert!(told.recv().is_ok(), "who asks late is told at once");
    assert!(log.failed().is_some() && log.close().is_err());
    drop(log);
    // The process restarts, the machine does not: memory still shows the bytes the disk has lost.
    let (_, records) = open(&disk, small()).unwrap();
    assert_eq!(records, [(1, b"kept".to_vec())]);
}

#[test]
fn replay_stops_where_the_caller_says() {
    let disk = FaultDisk::new();
    let (log, _) = open(&disk, small()).unwrap();
    append_all(&log, &vec![vec![1]; 5]);
    log.close().unwrap();
    let mut seen = 0;
    let stopped = NodeLog::open(Arc::new(disk), Path::new(DIR), small(), &mut |_, _| {
        seen += 1;
        if seen == 3 { Err(Error::Closed { what: "test" }) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(Error::Closed { .. })));
    assert_eq!(seen, 3);
}

#[test]
fn it_works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::real::RealDisk);
    for life in 0..3_u64 {
        let mut count = 0_u64;
        let log = NodeLog::open(Arc::clone(&disk), &dir.path().join("log"), small(), &mut |position, payload| {
            count += 1;
            assert_eq!((position.0, payload), (count, &count.to_be_bytes().repeat(400)[..]));
            Ok(())
        });
        let log = log.unwrap();
        assert_eq!(count, life * 30);
        for i in 1..=30_u64 {
            append_all(&log, &[(count + i).to_be_bytes().repeat(400)]);
        }
    }
}

#[test]
fn by_hand_nothing_is_durable_before_a_turn() {
    let disk = FaultDisk::new();
    let (told, tell) = (Arc::new(std::sync::atomic::AtomicU32::new(0)), mpsc::channel());
    let count = told.clone();
    let on_work: OnWork = Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let (log, mut hand) =
        NodeLog::open_by_hand(Arc::new(disk.clone()), Path::new(DIR), small(), &mut |_, _| Ok(()), Some(on_work))
            .unwrap();
    for payload in [b"a".to_vec(), b"b".to_vec()] {
        let tx = tell.0.clone();
        log.append(payload, Box::new(move |done| tx.send(done.unwrap()).unwrap())).unwrap();
    }
    assert_eq!((told.load(Ordering::Relaxed), log.durable(), tell.1.try_iter().count()), (1, Position(0), 0));
    assert!(hand.turn());
    assert_eq!((log.durable(), tell.1.try_iter().collect::<Vec<_>>()), (Position(2), vec![Position(1), Position(2)]));
    log.close().unwrap();
    assert!(!hand.turn());
    drop((log, hand));
    disk.crash(1);
    assert_eq!(open(&disk, small()).unwrap().1.len(), 2);
}

#[test]
fn by_hand_a_full_disk_loses_nothing_of_what_waits() {
    let (disk, tell) = (FaultDisk::new(), mpsc::channel());
    let on_work: OnWork = Box::new(|| ());
    let (log, mut hand) =
        NodeLog::open_by_hand(Arc::new(disk.clone()), Path::new(DIR), small(), &mut |_, _| Ok(()), Some(on_work))
            .unwrap();
    disk.fill(true);
    let mut sent = 0_u8;
    while !hand.waits_for_room() {
        let (tx, payload) = (tell.0.clone(), vec![sent; 700]);
        log.append(payload, Box::new(move |done| tx.send((sent, done.is_ok())).unwrap())).unwrap();
        sent += 1;
        assert!(hand.turn() && sent < u8::MAX);
    }
    assert_eq!(tell.1.try_iter().count(), usize::from(sent) - 1);
    assert!(hand.turn() && hand.waits_for_room());
    disk.fill(false);
    assert!(hand.turn() && !hand.waits_for_room());
    assert_eq!(tell.1.try_iter().collect::<Vec<_>>(), vec![(sent - 1, true)]);
    // One that is closed while it waits says so.
    disk.fill(true);
    while !hand.waits_for_room() {
        let tx = tell.0.clone();
        log.append(vec![7; 700], Box::new(move |done| tx.send((7, done.is_ok())).unwrap())).unwrap();
        assert!(hand.turn());
    }
    log.close().unwrap();
    assert!(!hand.turn());
    assert_eq!(tell.1.try_iter().last(), Some((7, false)));
    drop((log, hand));
    disk.fill(false);
    disk.crash(1);
    assert!(open(&disk, small()).unwrap().1.len() >= usize::from(sent));
}
