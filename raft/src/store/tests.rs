//! Goal: what the store promises openraft and itself. Method: openraft's own suite, then what that suite leaves out:
//! reopening, damage, interrupted installations, the tail against truncation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_model::tenant::TenantLimits;
use futures::stream;
use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::{blank_ent, log_id};
use openraft::type_config::alias::EntryOf;
use openraft::vote::Vote;
use openraft::{RaftLogReader, RaftSnapshotBuilder};
use parking_lot::Mutex;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::command::Envelope;
use crate::state::tests::commands;
use crate::state::{Base, Table};

struct Builder;

/// A directory of stores. It outlives them: the writer's thread closes a database after its last handle is gone, and a
/// process that ends meanwhile aborts in RocksDB.
struct Dir {
    files: TempDir,
    open: Mutex<Vec<oneshot::Receiver<()>>>,
}

impl Dir {
    fn new() -> Self {
        Self { files: tempfile::tempdir().unwrap(), open: Mutex::default() }
    }

    fn path(&self) -> &Path {
        self.files.path()
    }

    /// Waits until every database opened here is closed.
    fn settle(&self) {
        for closed in self.open.lock().drain(..) {
            assert!(futures::executor::block_on(closed).is_err(), "nothing is ever sent");
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // After a failed assertion handles may be alive further up.
        if !std::thread::panicking() {
            self.settle();
        }
    }
}

fn open(dir: &Dir) -> Result<(LogStore, Machine), Error> {
    let (db, closed) = Db::open(dir.path())?;
    dir.open.lock().push(closed);
    let db = Arc::new(db);
    let machine = Machine::open(db.clone(), Arc::new(SnapshotDir::open(dir.path())?))?;
    Ok((LogStore::open(db, machine.applied())?, machine))
}

/// Opens again what was dropped.
fn reopen(dir: &Dir) -> Result<(LogStore, Machine), Error> {
    dir.settle();
    open(dir)
}

impl StoreBuilder<TypeConfig, LogStore, Machine, Dir> for Builder {
    async fn build(&self) -> Result<(Dir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = Dir::new();
        let (log, machine) = open(&dir).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn blank(index: u64) -> EntryOf<TypeConfig> {
    blank_ent::<TypeConfig>(1, 1, index)
}

/// The database in memory answers as RocksDB does: what a simulation stands on is the same door.
#[test]
fn rows_in_memory_are_rows_of_rocksdb() {
    let dir = tempfile::tempdir().unwrap();
    let both = [Db::open(dir.path()).unwrap().0, Db::in_memory(&MemoryDisk::default()).0];
    let chance = &mut StdRng::seed_from_u64(3);
    for _ in 0..300 {
        let changes: Vec<(u8, [u8; 2])> = (0..chance.random_range(1..6)).map(|_| chance.random()).collect();
        let write = |db: &Db| {
            let mut batch = db.batch();
            for (what, [first, second]) in &changes {
                let family = if what % 2 == 0 { LOG } else { Table::Tenants.name() };
                match what % 7 {
                    0 => batch.delete_range(family, &[*first.min(second)], &[*first.max(second)]),
                    1 | 2 => batch.delete(family, [*first]),
                    _ => batch.put(family, [*first], [*second]),
                }
                .unwrap();
            }
            db.write(batch, true).unwrap();
        };
        both.iter().for_each(write);
        let [from, end, most] = chance.random::<[u8; 3]>();
        let look = |db: &Db| {
            let (mut rows, mut all) = (Vec::new(), Vec::new());
            let (from, end) = ([from], [end]);
            let bounded = (most > 99).then_some(&end[..]);
            db.each(LOG, (&from, bounded), &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                Ok(rows.len() < usize::from(most % 9) + 1)
            })
            .unwrap();
            let each = &mut |key: &[u8], value: &[u8]| {
                all.push((key.to_vec(), value.to_vec()));
                Ok(())
            };
            Pinned::new(db).scan(Table::Tenants, each).unwrap();
            (rows, all, db.last(LOG).unwrap(), db.get(Table::Tenants, &end).unwrap())
        };
        assert_eq!(look(&both[0]), look(&both[1]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_reopen() {
    let dir = Dir::new();
    let (mut log, machine) = open(&dir).unwrap();
    let vote = Vote::new(3, 1);
    log.save_vote(&vote).await.unwrap();
    log.blocking_append((0..50).map(blank)).await.unwrap();
    log.truncate_after(Some(log_id::<TypeConfig>(1, 1, 39))).await.unwrap();
    log.purge(log_id::<TypeConfig>(1, 1, 9)).await.unwrap();
    log.save_committed(Some(log_id::<TypeConfig>(1, 1, 20))).await.unwrap();
    drop((log, machine));
    let (mut log, _machine) = reopen(&dir).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id::<TypeConfig>(1, 1, 20)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id::<TypeConfig>(1, 1, 9)));
    assert_eq!(state.last_log_id, Some(log_id::<TypeConfig>(1, 1, 39)));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), (10..40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_readable_before_they_are_durable_and_after_being_overwritten() {
    let dir = Dir::new();
    let (mut log, _machine) = open(&dir).unwrap();
    for round in 0..20_u64 {
        for index in 0..30 {
            let entry = blank_ent::<TypeConfig>(round + 1, 1, index);
            log.append([entry], IOFlushed::noop()).await.unwrap();
        }
        let entries = log.try_get_log_entries(0..30).await.unwrap();
        assert!(entries.iter().all(|e| e.log_id.leader_id.term == round + 1), "round {round}");
        assert_eq!(entries.len(), 30);
        log.truncate_after(None).await.unwrap();
        assert!(log.try_get_log_entries(0..30).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_to_a_follower_is_bounded() {
    let dir = Dir::new();
    let (mut log, _machine) = open(&dir).unwrap();
    let entry = |index| {
        let command =
            crate::Command::DeleteTenant { tenant: engram_model::tenant::TenantId::anonymous(), expected: index };
        let envelope = Envelope { at: 0, by: "x".repeat(1 << 20), command };
        EntryOf::<TypeConfig>::new_normal(log_id::<TypeConfig>(1, 1, index), envelope)
    };
    log.blocking_append((0..10).map(entry)).await.unwrap();
    let some = log.limited_get_log_entries(2, 10).await.unwrap();
    assert_eq!(some.first().map(|e| e.log_id.index), Some(2));
    assert!((1..5).contains(&some.len()), "{}", some.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_committed_entries_does_not_open() {
    let dir = Dir::new();
    let (mut log, machine) = open(&dir).unwrap();
    log.blocking_append((0..10).map(blank)).await.unwrap();
    log.save_committed(Some(log_id::<TypeConfig>(1, 1, 8))).await.unwrap();
    log.truncate_after(Some(log_id::<TypeConfig>(1, 1, 5))).await.unwrap();
    drop((log, machine));
    let refused = reopen(&dir).err().unwrap();
    assert!(matches!(refused, Error::Corrupt { what: "log", .. }), "{refused}");
}

/// The one write-ahead log file of a young database.
fn wal(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("db")).unwrap().map(|e| e.unwrap().path());
    let mut logs: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.remove(0)
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            assert!(std::fs::copy(entry.path(), target).is_ok())
        }
    }
}

/// Goal: a disk that changed a byte in the middle of what was synced is told from a power loss: a member that forgets what
/// it has acknowledged, its vote among it, can undo what a majority agreed on. Method: one bit of each of many places of
/// the write-ahead log is turned over, all of them before the last acknowledged entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_log_does_not_open() {
    let dir = Dir::new();
    let (mut log, _machine) = open(&dir).unwrap();
    for index in 0..8 {
        log.blocking_append([blank(index)]).await.unwrap();
    }
    let before_the_last = std::fs::metadata(wal(dir.path())).unwrap().len();
    log.blocking_append([blank(8)]).await.unwrap();
    for at in (0..before_the_last).step_by(37) {
        let after = Dir::new();
        copy(dir.path(), after.path());
        let mut bytes = std::fs::read(wal(after.path())).unwrap();
        bytes[usize::try_from(at).unwrap()] ^= 4;
        std::fs::write(wal(after.path()), bytes).unwrap();
        assert!(open(&after).is_err(), "a bit at {at} of {before_the_last} was not missed");
    }
}

/// Goal: power may fail at any byte of the write-ahead log. Method: entries are appended, committed and applied while
/// the log's length after each acknowledgement is noted; then the log is cut everywhere and opened. What was
/// acknowledged before the cut must be there, without a hole, and the state must be the one of its own applied index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_cut_at_any_byte_gives_a_prefix() {
    let dir = Dir::new();
    let (mut log, mut machine) = open(&dir).unwrap();
    let mut acknowledged = Vec::new();
    let (mut states, create) = (vec![dump(&machine)], |index: u64| {
        let tenant = engram_model::tenant::TenantId::new(&format!("t{index}")).unwrap();
        crate::Command::CreateTenant { tenant, limits: TenantLimits::default(), shard_size: 0 }
    });
    for index in 0..12 {
        let command = if index == 0 { bootstrap() } else { create(index) };
        let envelope = Envelope { at: 0, by: "t".to_owned(), command };
        let entry = EntryOf::<TypeConfig>::new_normal(log_id::<TypeConfig>(1, 1, index), envelope);
        log.blocking_append([entry.clone()]).await.unwrap();
        acknowledged.push(std::fs::metadata(wal(dir.path())).unwrap().len());
        log.save_committed(Some(entry.log_id)).await.unwrap();
        machine.apply(stream::iter([Ok((entry, None))])).await.unwrap();
        states.push(dump(&machine));
    }
    let length = std::fs::metadata(wal(dir.path())).unwrap().len();
    let mut cuts: Vec<u64> = (acknowledged[0] - 20..length).step_by(401).collect();
    cuts.extend(acknowledged.iter().flat_map(|at| [at - 1, *at]));
    for cut in cuts.into_iter().filter(|cut| *cut <= length) {
        // Copied while open: nothing was flushed to tables, the log is all there is.
        let after = Dir::new();
        copy(dir.path(), after.path());
        std::fs::OpenOptions::new().write(true).open(wal(after.path())).unwrap().set_len(cut).unwrap();
        let (mut log, machine) = open(&after).unwrap();
        let entries = log.try_get_log_entries(..).await.unwrap();
        let want = acknowledged.iter().filter(|at| **at <= cut).count();
        assert!(entries.len() >= want, "cut at {cut}: {} entries of {want}", entries.len());
        assert!(entries.iter().zip(0..).all(|(entry, index)| entry.log_id.index == index));
        let applied = machine.applied().map_or(0, |id| usize::try_from(id.index).unwrap() + 1);
        assert!(applied <= entries.len(), "cut at {cut}: applied {applied} of {}", entries.len());
        assert_eq!(dump(&machine), states[applied], "cut at {cut}");
    }
}

fn bootstrap() -> crate::Command {
    crate::Command::Bootstrap {
        cluster_id: "c".to_owned(),
        partition_count: 4,
        founder: engram_model::place::NodeId(1),
        node: crate::state::NodeSpec::default(),
    }
}

async fn feed(machine: &mut Machine, commands: &[(i64, crate::Command)]) {
    let entries: Vec<_> = commands
        .iter()
        .zip(2..)
        .map(|((at, command), index)| {
            let envelope = Envelope { at: *at, by: "test".to_owned(), command: command.clone() };
            Ok((EntryOf::<TypeConfig>::new_normal(log_id::<TypeConfig>(1, 1, index), envelope), None))
        })
        .collect();
    machine.apply(stream::iter(entries)).await.unwrap();
}

/// Seeds 10, 49, 135 and 183 of the simulation: power was lost everywhere, and a node that came back before there was a
/// leader showed less than before.
#[tokio::test(start_paused = true)]
async fn what_was_shown_is_there_after_a_power_loss() {
    let _here = crate::here::Here::begin(1);
    for chance in 0..20 {
        let disk = MemoryDisk::default();
        let open = || {
            let db = Arc::new(Db::in_memory(&disk).0);
            Machine::open(db, Arc::new(SnapshotDir::in_memory(&disk).unwrap())).unwrap()
        };
        let mut machine = open();
        let create = |name: &str| {
            let tenant = engram_model::tenant::TenantId::new(name).unwrap();
            (0, crate::Command::CreateTenant { tenant, limits: TenantLimits::default(), shard_size: 0 })
        };
        feed(&mut machine, &[create("a"), create("b")]).await;
        let (shown, rows) = (machine.watch().borrow().clone(), dump(&machine));
        disk.power_off(chance);
        let after = open();
        assert_eq!((*after.watch().borrow()).clone(), shown);
        assert_eq!(dump(&after), rows);
    }
}

/// Every row of the state, as bytes.
fn dump(machine: &Machine) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        let mut each = |key: &[u8], value: &[u8]| {
            rows.push((table, key.to_vec(), value.to_vec()));
            Ok(())
        };
        machine.db.scan(table, &mut each).unwrap();
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// A node that installs a snapshot holds the same bytes as one that replayed the log, over whatever it had before;
    /// and what is applied after the builder was asked for is not in its snapshot.
    #[test]
    fn snapshot_equals_log(commands in commands(), junk in commands()) {
        prop_assume!(!commands.is_empty());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let (leader, follower) = (Dir::new(), Dir::new());
            let (_log, mut from) = open(&leader).unwrap();
            let (log, mut to) = open(&follower).unwrap();
            feed(&mut from, &commands).await;
            let (want, view) = (dump(&from), from.watch().borrow().clone());
            let mut builder = from.get_snapshot_builder().await;
            feed(&mut from, &junk).await;
            feed(&mut to, &junk).await;
            let snapshot = builder.build_snapshot().await.unwrap();
            to.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
            assert_eq!(dump(&to), want);
            assert_eq!(*to.watch().borrow(), view);
            drop((log, to));
            let (_log, to) = reopen(&follower).unwrap();
            assert_eq!(dump(&to), want);
            assert_eq!(*to.watch().borrow(), view);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_installation_is_finished_at_the_next_start() {
    let dir = Dir::new();
    let (log, mut machine) = open(&dir).unwrap();
    let tenant = |name: &str| engram_model::tenant::TenantId::new(name).unwrap();
    let create = |name| {
        let limits = TenantLimits::default();
        (0, crate::Command::CreateTenant { tenant: tenant(name), limits, shard_size: 0 })
    };
    feed(&mut machine, &[(0, bootstrap()), create("a")]).await;
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let want = dump(&machine);
    // As a crash leaves it: the marker is there, half of the tables is gone, something else is there instead.
    machine.db.raft_put("installing", &snapshot.snapshot.name()).unwrap();
    let mut batch = machine.db.batch();
    batch.delete("tenants", "a").unwrap();
    batch.put("tenants", "junk", "junk").unwrap();
    machine.db.write(batch, true).unwrap();
    drop((log, machine, snapshot));
    let (_log, machine) = reopen(&dir).unwrap();
    assert_eq!(dump(&machine), want);
    assert_eq!(machine.db.raft_get::<String>("installing").unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused_at_every_byte() {
    let dir = Dir::new();
    let (_log, mut machine) = open(&dir).unwrap();
    feed(&mut machine, &[]).await;
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut good = Vec::new();
    std::io::Read::read_to_end(&mut snapshot.snapshot.reader(), &mut good).unwrap();
    let snapshots = SnapshotDir::open(dir.path()).unwrap();
    let receive = |bytes: &[u8]| {
        let mut receiving = snapshots.receive().unwrap();
        receiving.push(bytes).unwrap();
        receiving.finish(&snapshot.meta)
    };
    assert!(receive(&good).is_ok());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(receive(&bad).is_err(), "byte {at} of {}", good.len());
        assert!(receive(&good[..at]).is_err(), "cut at {at} of {}", good.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_rotted_is_built_anew() {
    let dir = Dir::new();
    let (_log, mut machine) = open(&dir).unwrap();
    let entry = EntryOf::<TypeConfig>::new_blank(log_id::<TypeConfig>(1, 1, 1));
    machine.apply(stream::iter([Ok((entry, None))])).await.unwrap();
    let name = machine.get_snapshot_builder().await.build_snapshot().await.unwrap().snapshot.name();
    let path = dir.path().join("snapshots").join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.snapshot.verify().unwrap(), current.meta);
    assert_eq!(current.meta.last_log_id, Some(log_id::<TypeConfig>(1, 1, 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_newest_snapshot_stays() {
    let dir = Dir::new();
    let (_log, mut machine) = open(&dir).unwrap();
    let mut kept = Vec::new();
    for index in 1..5 {
        let entry = EntryOf::<TypeConfig>::new_blank(log_id::<TypeConfig>(1, 1, index));
        machine.apply(stream::iter([Ok((entry, None))])).await.unwrap();
        kept.push(machine.get_snapshot_builder().await.build_snapshot().await.unwrap());
    }
    assert_eq!(std::fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 1);
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(log_id::<TypeConfig>(1, 1, 4)));
    // Whoever still sends an older one reads it to its end.
    for snapshot in kept {
        assert_eq!(snapshot.snapshot.verify().unwrap(), snapshot.meta);
    }
}
