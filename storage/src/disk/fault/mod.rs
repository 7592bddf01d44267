//! A disk in memory that keeps exactly what it promised, and loses the rest when told to.
//!
//! Why: code that is right only because the page cache was kind is found here. Each write is remembered apart until
//! its sync; [`FaultDisk::crash`] keeps a random part of what was not synced: whole writes, single sectors, the first
//! bytes of a sector. Names are lost in the same way until their directory is synced, but in order, as journals keep
//! them. The same seed gives the same ruin.
//!
//! Faults to order: [`FaultDisk::stop_after`] (power fails at the n-th act), [`FaultDisk::fail_sync_after`] (the sync
//! fails and, as on Linux, the lost bytes stay visible in memory), [`FaultDisk::flip`] (bit rot),
//! [`FaultDisk::damage_write`] (something else is kept than was given), [`FaultDisk::fill`] and [`FaultDisk::leave_free`]
//! (no room: files do not grow any more; what was reserved before can be written), [`FaultDisk::lie`] (a sync that does
//! nothing).

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, Mapped};
use crate::Error;

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

/// A disk in memory, see the module's text. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FaultDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    /// Names as the process sees them.
    names: BTreeMap<PathBuf, usize>,
    /// Names as they are after a crash.
    durable: BTreeMap<PathBuf, usize>,
    /// What happened to names since, in order.
    pending: Vec<NameChange>,
    /// Grows at each crash: files opened before are dead.
    life: u64,
    acts: u64,
    syncs: u64,
    stop_at: Option<u64>,
    fail_sync_at: Option<u64>,
    /// Writes below this directory until one is damaged.
    damage: Option<(PathBuf, u64)>,
    /// Bytes by which files may still grow; none: there is always room.
    free: Option<usize>,
    /// Acts that found no room.
    no_room: u64,
    lies: bool,
}

#[derive(Debug, Default)]
struct Inode {
    /// As the process sees it.
    seen: Vec<u8>,
    /// As it is after a crash.
    durable: Vec<u8>,
    /// Changes not synced.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, usize),
    Unset(PathBuf),
    /// A directory gets another name: one act, so all of it survives or nothing.
    Move(PathBuf, PathBuf),
}

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    inode: usize,
    life: u64,
    path: PathBuf,
}

/// A small seeded generator (splitmix64): the ruin must be the same for the same seed.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap_or(0)
    }
}

fn apply(to: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes } => {
            if to.len() < at + bytes.len() {
                to.resize(at + bytes.len(), 0);
            }
            to[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Change::Length(len) => to.resize(*len, 0),
    }
}

fn apply_name(to: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Set(path, inode) => {
            to.insert(path.clone(), *inode);
        }
        NameChange::Unset(path) => {
            to.remove(path);
        }
        NameChange::Move(from, into) => {
            let inside: Vec<_> = to.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for old in inside {
                if let (Some(inode), Ok(rest)) = (to.remove(&old), old.strip_prefix(from)) {
                    to.insert(into.join(rest), inode);
                }
            }
        }
    }
}

/// Writes what survives of `change`: all, nothing, some sectors, or a first part cut inside a sector.
fn apply_torn(to: &mut Vec<u8>, change: &Change, chance: &mut Chance) {
    let Change::Write { at, bytes } = change else {
        if chance.below(2) == 0 {
            apply(to, change);
        }
        return;
    };
    match chance.below(4) {
        0 => {}
        1 => apply(to, change),
        2 => {
            let cut = chance.below(bytes.len() + 1);
            apply(to, &Change::Write { at: *at, bytes: bytes[..cut].to_vec() });
        }
        _ => {
            let mut from = 0;
            while from < bytes.len() {
                let until = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(bytes.len());
                if chance.below(2) == 0 {
                    apply(to, &Change::Write { at: at + from, bytes: bytes[from..until].to_vec() });
                }
                from = until;
            }
        }
    }
}

impl FaultDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `acts` more changing acts (write, sync, rename …) through; all later ones fail until [`Self::crash`].
    pub fn stop_after(&self, acts: u64) {
        let mut state = self.0.lock();
        state.stop_at = Some(state.acts + acts);
    }

    /// Lets `syncs` more syncs of files through and fails the next one, once. Its bytes are lost but stay visible.
    pub fn fail_sync_after(&self, syncs: u64) {
        let mut state = self.0.lock();
        state.fail_sync_at = Some(state.syncs + syncs);
    }

    /// Whether a sync was failed since it was ordered, or none is ordered.
    #[must_use]
    pub fn has_failed_sync(&self) -> bool {
        let state = self.0.lock();
        state.fail_sync_at.is_none_or(|at| state.syncs > at)
    }

    /// Lets `writes` more writes to files below `dir` through and turns a bit of what the next one keeps, once.
    pub fn damage_write(&self, dir: &Path, writes: u64) {
        self.0.lock().damage = Some((dir.to_owned(), writes));
    }

    /// Whether a write was damaged since it was ordered, or none is ordered.
    #[must_use]
    pub fn has_damaged_write(&self) -> bool {
        self.0.lock().damage.is_none()
    }

    /// Whether syncs of files promise from now on what they do not do.
    pub fn lie(&self, lies: bool) {
        self.0.lock().lies = lies;
    }

    /// Whether files may grow from now on.
    pub fn fill(&self, is_full: bool) {
        self.0.lock().free = is_full.then_some(0);
    }

    /// Leaves room for so many bytes more. A write that meets the end of the room writes what fits and fails.
    pub fn leave_free(&self, bytes: usize) {
        self.0.lock().free = Some(bytes);
    }

    /// How many acts found no room so far.
    #[must_use]
    pub fn no_room(&self) -> u64 {
        self.0.lock().no_room
    }

    /// How many changing acts were asked so far.
    #[must_use]
    pub fn acts(&self) -> u64 {
        self.0.lock().acts
    }

    /// The power fails and comes back: keeps what was synced and a part, by `seed`, of the rest. Files opened before
    /// are dead, ordered faults are forgotten.
    pub fn crash(&self, seed: u64) {
        let mut state = self.0.lock();
        let chance = &mut Chance(seed);
        for inode in &mut state.inodes {
            for change in std::mem::take(&mut inode.pending) {
                apply_torn(&mut inode.durable, &change, chance);
            }
            inode.seen = inode.durable.clone();
        }
        let pending = std::mem::take(&mut state.pending);
        let kept = chance.below(pending.len() + 1);
        for change in &pending[..kept] {
            apply_name(&mut state.durable, change);
        }
        state.names = state.durable.clone();
        state.life += 1;
        state.stop_at = None;
        state.fail_sync_at = None;
    }

    /// Turns one bit of a file, on the medium and in memory; nothing happens behind its end.
    pub fn flip(&self, path: &Path, at: u64, bit: u8) {
        let mut state = self.0.lock();
        let Some(&inode) = state.names.get(path) else { return };
        let inode = &mut state.inodes[inode];
        for bytes in [&mut inode.seen, &mut inode.durable] {
            if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1 << (bit & 7);
            }
        }
    }

    /// The bytes of a file as the process sees them.
    #[must_use]
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.0.lock();
        state.names.get(path).map(|&inode| state.inodes[inode].seen.clone())
    }
}

fn refused(act: &'static str, path: &Path, why: &'static str) -> Error {
    Error::io(act, path, io::Error::other(why))
}

impl State {
    /// Counts a changing act; refuses it when the power has failed.
    fn act(&mut self, act: &'static str, path: &Path) -> Result<(), Error> {
        if self.stop_at.is_some_and(|stop| self.acts >= stop) {
            return Err(refused(act, path, "the power failed"));
        }
        self.acts += 1;
        Ok(())
    }

    /// Takes from the room what a file of `have` bytes needs to reach `want`; what it gets to.
    fn grow(&mut self, have: usize, want: usize) -> usize {
        let Some(free) = &mut self.free else { return want };
        let more = want.saturating_sub(have);
        if more <= *free {
            *free -= more;
            return want;
        }
        self.no_room += 1;
        have + std::mem::take(free)
    }

    /// What is kept of a write: other bytes when that is ordered.
    fn keep(&mut self, path: &Path, bytes: &[u8]) -> Vec<u8> {
        let mut kept = bytes.to_vec();
        if let Some((dir, left)) = &mut self.damage
            && path.starts_with(dir)
            && !kept.is_empty()
        {
            if *left == 0 {
                let middle = kept.len() / 2;
                kept[middle] ^= 1 << (middle % 8);
                self.damage = None;
            } else {
                *left -= 1;
            }
        }
        kept
    }

    fn change_name(&mut self, change: NameChange) {
        apply_name(&mut self.names, &change);
        self.pending.push(change);
    }

    /// A directory is what something lies in.
    fn is_dir(&self, dir: &Path) -> bool {
        self.below(dir).next().is_some()
    }

    /// What lies below a directory: names are in the order of their parts, so it lies together.
    fn below(&self, dir: &Path) -> impl Iterator<Item = &PathBuf> {
        let from = self.names.range::<Path, _>((Bound::Excluded(dir), Bound::Unbounded));
        from.map(|(path, _)| path).take_while(move |path| path.starts_with(dir))
    }

    fn find(&self, act: &'static str, path: &Path) -> Result<usize, Error> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| Error::io(act, path, io::Error::from(io::ErrorKind::NotFound)))
    }
}

impl FaultDisk {
    fn file(&self, inode: usize, life: u64, path: &Path) -> Box<dyn DiskFile> {
        Box::new(FaultFile { disk: self.clone(), inode, life, path: path.to_owned() })
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, _dir: &Path) -> Result<(), Error> {
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>, Error> {
        let mut state = self.0.lock();
        state.act("open", path)?;
        if state.names.contains_key(path) {
            return Err(Error::io("open", path, io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.change_name(NameChange::Set(path.to_owned(), inode));
        Ok(self.file(inode, state.life, path))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>, Error> {
        let state = self.0.lock();
        let inode = state.find("open", path)?;
        Ok(self.file(inode, state.life, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.act("rename", from)?;
        if !state.names.contains_key(from) && state.is_dir(from) {
            if state.is_dir(to) {
                return Err(Error::io("rename", from, io::Error::from(io::ErrorKind::DirectoryNotEmpty)));
            }
            state.change_name(NameChange::Move(from.to_owned(), to.to_owned()));
            return Ok(());
        }
        let inode = state.find("rename", from)?;
        // One act of the journal: both halves survive or neither. `Set` goes first, so a crash between them would
        // leave two names, never none; `crash` may show that, and readers must bear it.
        state.change_name(NameChange::Set(to.to_owned(), inode));
        state.change_name(NameChange::Unset(from.to_owned()));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.act("link", from)?;
        if state.names.contains_key(to) {
            return Err(Error::io("link", to, io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let inode = state.find("link", from)?;
        state.change_name(NameChange::Set(to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.act("remove", path)?;
        state.find("remove", path)?;
        state.change_name(NameChange::Unset(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.act("remove", dir)?;
        match state.is_dir(dir) {
            true => Err(Error::io("remove", dir, io::Error::from(io::ErrorKind::DirectoryNotEmpty))),
            false => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        let state = self.0.lock();
        let inside = state.below(dir).filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn list_dirs(&self, dir: &Path) -> Result<Vec<String>, Error> {
        let state = self.0.lock();
        let below = state.below(dir).filter_map(|path| path.strip_prefix(dir).ok());
        let deep = below.filter(|rest| rest.components().count() > 1);
        let mut names: Vec<_> =
            deep.filter_map(|rest| Some(rest.components().next()?.as_os_str().to_str()?.to_owned())).collect();
        names.dedup();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.act("sync", dir)?;
        for change in std::mem::take(&mut state.pending) {
            apply_name(&mut state.durable, &change);
        }
        Ok(())
    }
}

impl FaultFile {
    fn with<T>(&self, act: &'static str, use_it: impl FnOnce(&mut Inode) -> T) -> Result<T, Error> {
        let mut state = self.disk.0.lock();
        if state.life != self.life {
            return Err(refused(act, &self.path, "opened before the power failed"));
        }
        Ok(use_it(&mut state.inodes[self.inode]))
    }

    fn change(&self, act: &'static str, change: Change) -> Result<(), Error> {
        self.disk.0.lock().act(act, &self.path)?;
        self.with(act, |inode| {
            apply(&mut inode.seen, &change);
            inode.pending.push(change);
        })
    }

    fn offset(&self, act: &'static str, at: u64) -> Result<usize, Error> {
        usize::try_from(at).map_err(|_| refused(act, &self.path, "offset is too large"))
    }
}

impl DiskFile for FaultFile {
    fn len(&self) -> Result<u64, Error> {
        self.with("stat", |inode| inode.seen.len() as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<usize, Error> {
        let at = self.offset("read", at)?;
        self.with("read", |inode| {
            let from = inode.seen.get(at..).unwrap_or_default();
            let got = from.len().min(into.len());
            into[..got].copy_from_slice(&from[..got]);
            got
        })
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let at = self.offset("write", at)?;
        let have = self.with("write", |inode| inode.seen.len())?;
        let want = at + bytes.len();
        let until = self.disk.0.lock().grow(have, want);
        let fits = until.saturating_sub(at).min(bytes.len());
        if until >= want {
            let bytes = self.disk.0.lock().keep(&self.path, bytes);
            return self.change("write", Change::Write { at, bytes });
        }
        if fits > 0 {
            self.change("write", Change::Write { at, bytes: bytes[..fits].to_vec() })?;
        }
        Err(Error::io("write", &self.path, io::Error::from(io::ErrorKind::StorageFull)))
    }

    fn preallocate(&self, len: u64) -> Result<(), Error> {
        let len = self.offset("allocate", len)?;
        let have = self.with("allocate", |inode| inode.seen.len())?;
        if self.disk.0.lock().grow(have, len) < len {
            return Err(Error::io("allocate", &self.path, io::Error::from(io::ErrorKind::StorageFull)));
        }
        self.change("allocate", Change::Length(len.max(have)))
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        let len = self.offset("truncate", len)?;
        self.change("truncate", Change::Length(len))
    }

    fn sync_data(&self) -> Result<(), Error> {
        let fails = {
            let mut state = self.disk.0.lock();
            state.act("sync", &self.path)?;
            let fails = state.fail_sync_at == Some(state.syncs);
            state.syncs += 1;
            if state.lies {
                return Ok(());
            }
            fails
        };
        self.with("sync", |inode| {
            let pending = std::mem::take(&mut inode.pending);
            if !fails {
                pending.iter().for_each(|change| apply(&mut inode.durable, change));
            }
        })?;
        if fails { Err(refused("sync", &self.path, "the sync was told to fail")) } else { Ok(()) }
    }

    fn sync_all(&self) -> Result<(), Error> {
        self.sync_data()
    }

    fn map(&self) -> Result<Box<dyn Mapped>, Error> {
        // As it is now: who maps a file has written all of it.
        self.with("map", |inode| Box::new(inode.seen.clone()) as Box<dyn Mapped>)
    }

    fn drop_cache(&self) -> Result<(), Error> {
        // Pages that wait for their sync stay in memory, as on Linux; those believed clean are read anew.
        self.with("drop cache of", |inode| {
            inode.seen = inode.durable.clone();
            let Inode { seen, pending, .. } = inode;
            pending.iter().for_each(|change| apply(seen, change));
        })
    }
}

#[cfg(test)]
mod tests;
