//! A disk in memory that keeps what a real one would: rows and files, what was synced and what was only written.
//!
//! Why: a simulation loses power thousands of times a minute. Rows stand for RocksDB with its write-ahead log: a sync makes
//! everything durable that was written before it, and of what was not synced a power loss keeps a part that has no hole.
//! Of files the same holds for each one's bytes, and for the names in their folder. A process that is killed loses
//! nothing that it has written.
//!
//! Whoever has the disk open belongs to one life of it: after [`MemoryDisk::kill`] or [`MemoryDisk::power_off`] what the
//! former life still writes goes nowhere, as a dead process writes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::RAFT;

/// Rows of each family.
pub(super) type Tables = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

/// One change of rows.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(&'static str, Vec<u8>, Vec<u8>),
    Delete(&'static str, Vec<u8>),
    /// From the first key to before the second.
    DeleteRange(&'static str, Vec<u8>, Vec<u8>),
}

fn change(tables: &mut Tables, change: Change) {
    match change {
        Change::Put(family, key, value) => drop(tables.entry(family).or_default().insert(key, value)),
        Change::Delete(family, key) => drop(tables.entry(family).or_default().remove(&key)),
        Change::DeleteRange(family, from, end) => {
            let rows = tables.entry(family).or_default();
            if from >= end {
                return;
            }
            let gone: Vec<Vec<u8>> = rows.range(from..end).map(|(key, _)| key.clone()).collect();
            gone.iter().for_each(|key| drop(rows.remove(key)));
        }
    }
}

/// How a disk may betray whoever trusts it; a simulation plants it to see that it is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Betrayal {
    /// It does not.
    #[default]
    None,
    /// Syncs promise and do nothing.
    Syncs,
    /// Votes are not kept.
    Votes,
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    synced: usize,
}

/// A file, as long as somebody has it open.
#[derive(Clone, Debug, Default)]
pub(super) struct Handle(Arc<Mutex<File>>);

#[derive(Clone, Debug)]
enum Naming {
    Make(String, Handle),
    Rename(String, String),
    Remove(String),
}

type Names = BTreeMap<String, Handle>;

fn name(names: &mut Names, naming: Naming) {
    match naming {
        Naming::Make(name, file) => drop(names.insert(name, file)),
        Naming::Rename(from, to) => {
            if let Some(file) = names.remove(&from) {
                names.insert(to, file);
            }
        }
        Naming::Remove(name) => drop(names.remove(&name)),
    }
}

#[derive(Debug, Default)]
struct State {
    life: u64,
    betrayal: Betrayal,
    /// Syncs until one fails, and all that is tried after it.
    fails_in: Option<u64>,
    rows: Arc<Tables>,
    durable_rows: Tables,
    unsynced_rows: VecDeque<Vec<Change>>,
    names: Names,
    durable_names: Names,
    unsynced_names: VecDeque<Naming>,
}

/// The disk of one machine. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(betrayal: Betrayal) -> Self {
        Self(Arc::new(Mutex::new(State { betrayal, ..State::default() })))
    }

    /// Lets so many syncs pass; the next one fails, and everything after it until the disk is opened anew.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.0.lock().fails_in = Some(syncs.saturating_add(1));
    }

    /// The process that has it open dies; the machine runs on.
    pub fn kill(&self) {
        let mut state = self.0.lock();
        state.life += 1;
        state.fails_in = None;
    }

    /// The machine loses power: what was synced stays, and of the rest what `chance` leaves.
    pub fn power_off(&self, chance: u64) {
        let mut chance = StdRng::seed_from_u64(chance);
        let state = &mut *self.0.lock();
        state.life += 1;
        state.fails_in = None;
        for batch in keep(&mut state.unsynced_rows, &mut chance) {
            batch.into_iter().for_each(|one| change(&mut state.durable_rows, one));
        }
        state.rows = Arc::new(state.durable_rows.clone());
        for naming in keep(&mut state.unsynced_names, &mut chance) {
            name(&mut state.durable_names, naming);
        }
        state.names = state.durable_names.clone();
        for file in state.names.values() {
            let file = &mut *file.0.lock();
            let stays = chance.random_range(file.synced..=file.bytes.len());
            file.bytes.truncate(stays);
            file.synced = stays;
        }
    }

    /// Opens it, for the life that begins.
    pub(super) fn open(&self) -> Opened {
        Opened { disk: self.clone(), life: self.0.lock().life }
    }
}

/// A part from the beginning, by chance; the rest is gone.
fn keep<T>(of: &mut VecDeque<T>, chance: &mut StdRng) -> Vec<T> {
    let stays = chance.random_range(0..=of.len());
    let kept = of.drain(..stays).collect();
    of.clear();
    kept
}

/// The disk as one life has it open.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    disk: MemoryDisk,
    life: u64,
}

impl Opened {
    /// The disk, if this life still has it.
    fn writable(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.disk.0.lock();
        if state.life != self.life {
            return Err(io::Error::other("this life of the disk is over"));
        }
        if state.fails_in == Some(0) {
            return Err(io::Error::other("the disk has failed"));
        }
        Ok(state)
    }

    /// The rows as they are now; later changes do not change what this gives.
    pub(super) fn rows(&self) -> Arc<Tables> {
        self.disk.0.lock().rows.clone()
    }

    pub(super) fn write(&self, mut batch: Vec<Change>) -> io::Result<()> {
        let mut state = self.writable()?;
        if state.betrayal == Betrayal::Votes {
            batch.retain(|one| !matches!(one, Change::Put(family, key, _) if *family == RAFT && key == b"vote"));
        }
        let rows = Arc::make_mut(&mut state.rows);
        batch.iter().cloned().for_each(|one| change(rows, one));
        state.unsynced_rows.push_back(batch);
        Ok(())
    }

    /// Makes all rows durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let state = &mut *self.synced()?;
        if state.betrayal == Betrayal::Syncs {
            return Ok(());
        }
        for batch in state.unsynced_rows.drain(..) {
            batch.into_iter().for_each(|one| change(&mut state.durable_rows, one));
        }
        Ok(())
    }

    /// One sync, which may be the one that fails.
    fn synced(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.writable()?;
        state.fails_in = state.fails_in.map(|left| left.saturating_sub(1));
        if state.fails_in == Some(0) {
            return Err(io::Error::other("the disk has failed"));
        }
        Ok(state)
    }

    /// Makes an empty file.
    pub(super) fn make(&self, name: &str) -> io::Result<Handle> {
        let file = Handle::default();
        self.rename_by(Naming::Make(name.to_owned(), file.clone()))?;
        Ok(file)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_by(Naming::Rename(from.to_owned(), to.to_owned()))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.rename_by(Naming::Remove(name.to_owned()))
    }

    fn rename_by(&self, naming: Naming) -> io::Result<()> {
        let mut state = self.writable()?;
        name(&mut state.names, naming.clone());
        state.unsynced_names.push_back(naming);
        Ok(())
    }

    /// Makes all names durable.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        let state = &mut *self.synced()?;
        for naming in state.unsynced_names.drain(..) {
            name(&mut state.durable_names, naming);
        }
        Ok(())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.disk.0.lock().names.keys().cloned().collect()
    }

    pub(super) fn file(&self, name: &str) -> io::Result<Handle> {
        let found = self.disk.0.lock().names.get(name).cloned();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    pub(super) fn append(&self, file: &Handle, bytes: &[u8]) -> io::Result<()> {
        let _writable = self.writable()?;
        file.0.lock().bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn sync_file(&self, file: &Handle) -> io::Result<()> {
        let _synced = self.synced()?;
        let file = &mut *file.0.lock();
        file.synced = file.bytes.len();
        Ok(())
    }
}

impl Handle {
    /// Reads from an offset on, as much as there is and fits.
    pub(super) fn read_at(&self, into: &mut [u8], offset: u64) -> usize {
        let file = self.0.lock();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.bytes.len());
        let take = into.len().min(file.bytes.len() - from);
        into[..take].copy_from_slice(&file.bytes[from..from + take]);
        take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u8) -> Vec<Change> {
        vec![Change::Put("log", vec![key], vec![key])]
    }

    fn keys(disk: &Opened) -> Vec<u8> {
        disk.rows().get("log").map(|rows| rows.keys().map(|key| key[0]).collect()).unwrap_or_default()
    }

    #[test]
    fn a_kill_keeps_what_was_written_and_a_power_loss_what_was_synced() {
        let (mut whole, mut parts) = (0, 0);
        for chance in 0..40 {
            let disk = MemoryDisk::default();
            let first = disk.open();
            (0..3).for_each(|key| first.write(put(key)).unwrap());
            first.sync().unwrap();
            (3..6).for_each(|key| first.write(put(key)).unwrap());
            disk.kill();
            let second = disk.open();
            assert!(first.write(put(9)).is_err() && first.sync().is_err());
            assert_eq!(keys(&second), [0, 1, 2, 3, 4, 5]);
            disk.power_off(chance);
            let kept = keys(&disk.open());
            assert!(kept.len() >= 3 && kept == (0..6).take(kept.len()).collect::<Vec<u8>>(), "{kept:?}");
            whole += u32::from(kept.len() == 6);
            parts += u32::from(kept.len() == 4);
        }
        assert!(whole > 0 && parts > 0);
    }

    #[test]
    fn files_keep_synced_bytes_and_synced_names() {
        let after = |chance| {
            let disk = MemoryDisk::default();
            let open = disk.open();
            let file = open.make("a.tmp").unwrap();
            open.append(&file, b"one").unwrap();
            open.sync_file(&file).unwrap();
            open.rename("a.tmp", "a").unwrap();
            open.sync_names().unwrap();
            open.append(&file, b"two").unwrap();
            open.rename("a", "b").unwrap();
            disk.power_off(chance);
            let mut bytes = [0; 8];
            let length = file.read_at(&mut bytes, 0);
            (disk.open().names().remove(0), String::from_utf8_lossy(&bytes[..length]).into_owned())
        };
        let seen: BTreeMap<_, _> = (0..60).map(after).collect();
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["a", "b"]);
        let bytes: std::collections::BTreeSet<_> = (0..60).map(after).map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, ["one", "onet", "onetw", "onetwo"].map(str::to_owned).into());
    }

    #[test]
    fn a_failed_sync_ends_all_writing_until_the_next_life() {
        let disk = MemoryDisk::default();
        let open = disk.open();
        disk.fail_sync_after(1);
        open.write(put(1)).unwrap();
        open.sync().unwrap();
        assert!(open.sync().is_err() && open.write(put(2)).is_err());
        disk.kill();
        let next = disk.open();
        next.write(put(2)).unwrap();
        next.sync().unwrap();
    }
}
