//! Blocks in a directory of this machine: where a committed block is the only copy of its samples.
//!
//! Why not the crate's own directory store: nothing may be half there after a crash, and a block that was just written
//! to the same disk need not be written a second time. So a block's files get a second name (a hard link) where they
//! belong, and the work directory may go; where the disk cannot do that, they are copied. All goes through [`Disk`],
//! so power failures can be tested at every act.
//!
//! ```text
//! <root>/<tenant>/<ulid>/chunks/000001   linked, or copied to a name that ends in .part, synced, renamed
//! <root>/<tenant>/<ulid>/index           then both directories synced
//! <root>/<tenant>/<ulid>/meta.json       last, and its directory synced: from here on there is a block
//! ```

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::Error;
use crate::disk::{Disk, DiskFile};

/// What the name of a file ends in until it is whole.
pub(super) const PART: &str = ".part";
/// Bytes read at once when a file is copied or summed up.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// A directory as a store.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) root: PathBuf,
}

/// Nothing when what was looked for is not there.
pub(super) fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

impl Local {
    /// The directory, made when it is not there.
    pub(super) fn open(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, Error> {
        disk.create_dir(root)?;
        Ok(Self { disk, root: root.to_owned() })
    }

    /// Where a key lies. A key that would leave the directory is a bug.
    pub(super) fn path(&self, key: &str) -> Result<PathBuf, Error> {
        let inside = Path::new(key).components().all(|part| matches!(part, Component::Normal(_)));
        if inside { Ok(self.root.join(key)) } else { Err(Error::Misuse { what: format!("{key:?} is no key") }) }
    }

    /// Makes the directories a file lies in, each durable in the one above.
    fn make_parents(&self, path: &Path) -> Result<(), Error> {
        let above: Vec<_> = path.ancestors().skip(1).take_while(|dir| **dir != *self.root).collect();
        above.iter().rev().try_for_each(|dir| self.disk.create_dir(dir))
    }

    /// An empty `wal` beside a tenant's blocks: `promtool tsdb dump` looks there for newer samples and gives up where
    /// there is no such directory.
    pub(super) fn make_room_for_tools(&self, tenant: &str) -> Result<(), Error> {
        let wal = self.path(&format!("{tenant}/wal"))?;
        self.make_parents(&wal)?;
        self.disk.create_dir(&wal)
    }

    /// Gives a file that is whole and synced its place under `key`, in place of what was there. Its name there is not
    /// durable before [`Disk::sync_dir`].
    pub(super) fn take_in(&self, from: &Path, key: &str) -> Result<(), Error> {
        let to = self.path(key)?;
        self.make_parents(&to)?;
        self.disk.open(from)?.sync_all()?;
        found(self.disk.remove(&to))?;
        match self.disk.link(from, &to) {
            Ok(()) => Ok(()),
            // Another disk, or one without links.
            Err(Error::Io { source, .. }) if can_copy_instead(&source) => self.copy(from, &to),
            Err(error) => Err(error),
        }
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let source = self.disk.open(from)?;
        self.write(to, |file| {
            each_piece(&*source, |at, piece| file.write_at(at, piece))?;
            Ok(())
        })
    }

    /// Writes a file under another name, makes it durable and renames it.
    fn write(&self, to: &Path, fill: impl FnOnce(&dyn DiskFile) -> Result<(), Error>) -> Result<(), Error> {
        let mut part = to.as_os_str().to_owned();
        part.push(PART);
        let part = PathBuf::from(part);
        found(self.disk.remove(&part))?;
        let file = self.disk.create(&part)?;
        let written = fill(&*file).and_then(|()| file.sync_all()).and_then(|()| self.disk.rename(&part, to));
        if written.is_err() {
            let _left_behind = self.disk.remove(&part);
        }
        written
    }

    /// Makes what is in the directory of `key` durable.
    pub(super) fn sync_parent(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key)?;
        path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir))
    }

    /// Writes a small object, durably; `over` says whether one that is there is replaced. False: it was there.
    pub(super) fn put(&self, key: &str, bytes: &[u8], over: bool) -> Result<bool, Error> {
        let path = self.path(key)?;
        self.make_parents(&path)?;
        if over {
            self.write(&path, |file| file.write_at(0, bytes))?;
        } else {
            // A link fails when the name is taken, a rename does not.
            let mut whole = path.as_os_str().to_owned();
            whole.push(".whole");
            let whole = PathBuf::from(whole);
            self.write(&whole, |file| file.write_at(0, bytes))?;
            let linked = self.disk.link(&whole, &path);
            self.disk.remove(&whole)?;
            match linked {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                other => other?,
            }
        }
        self.sync_parent(key)?;
        Ok(true)
    }

    /// The bytes of a range; fewer when the file ends before.
    pub(super) fn get(&self, key: &str, at: u64, len: u64) -> Result<Bytes, Error> {
        let path = self.path(key)?;
        let file = self.disk.open(&path)?;
        let len = usize::try_from(len.min(file.len()?.saturating_sub(at))).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        let got = file.read_at(at, &mut bytes)?;
        bytes.truncate(got);
        Ok(bytes.into())
    }

    pub(super) fn size(&self, key: &str) -> Result<u64, Error> {
        self.disk.open(&self.path(key)?)?.len()
    }

    /// Names of the directories right below a key; the empty key is the root.
    pub(super) fn dirs(&self, key: &str) -> Result<Vec<String>, Error> {
        let dir = if key.is_empty() { self.root.clone() } else { self.path(key)? };
        Ok(found(self.disk.list_dirs(&dir))?.unwrap_or_default())
    }

    /// Every whole file below a key, with its length, by its name from there on.
    pub(super) fn files(&self, key: &str) -> Result<Vec<(String, u64)>, Error> {
        let mut all = Vec::new();
        self.walk(&self.path(key)?, "", &mut |name, path| {
            if !name.ends_with(PART) {
                all.push((name.to_owned(), self.disk.open(path)?.len()?));
            }
            Ok(())
        })?;
        all.sort();
        Ok(all)
    }

    fn walk(
        &self,
        dir: &Path,
        name: &str,
        each: &mut dyn FnMut(&str, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for file in found(self.disk.list(dir))?.unwrap_or_default() {
            each(&format!("{name}{file}"), &dir.join(&file))?;
        }
        for inside in found(self.disk.list_dirs(dir))?.unwrap_or_default() {
            self.walk(&dir.join(&inside), &format!("{name}{inside}/"), each)?;
        }
        Ok(())
    }

    /// Removes a file, durably; one that is not there is no error.
    pub(super) fn remove(&self, key: &str) -> Result<(), Error> {
        match found(self.disk.remove(&self.path(key)?))? {
            Some(()) => self.sync_parent(key),
            None => Ok(()),
        }
    }

    /// Removes a directory with all that is in it, durably.
    pub(super) fn remove_all(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key)?;
        self.remove_below(&path)?;
        match path.parent() {
            Some(above) if self.disk.list_dirs(above).is_ok() => self.disk.sync_dir(above),
            _ => Ok(()),
        }
    }

    fn remove_below(&self, dir: &Path) -> Result<(), Error> {
        for file in found(self.disk.list(dir))?.unwrap_or_default() {
            found(self.disk.remove(&dir.join(file)))?;
        }
        for inside in found(self.disk.list_dirs(dir))?.unwrap_or_default() {
            self.remove_below(&dir.join(inside))?;
        }
        self.disk.remove_dir(dir)
    }
}

fn can_copy_instead(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}

/// Reads a file front to back, piece by piece, each with its offset.
pub(super) fn each_piece(
    file: &dyn DiskFile,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        let got = file.read_at(at, &mut buffer)?;
        if got == 0 {
            return Ok(at);
        }
        each(at, &buffer[..got])?;
        at += got as u64;
    }
}
