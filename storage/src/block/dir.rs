//! A block on a disk: its open files, as a source of ranges.

use std::io;
use std::path::Path;

use bytes::Bytes;
use engram_model::block::BlockId;

use super::meta::{META_BYTES_MAX, Meta};
use super::tombstones::Tombstones;
use crate::Error;
use crate::disk::{Disk, DiskFile};
use crate::ranges::{File, Place, Sizes, Source, Want};

/// Longest file of deleted intervals that is read.
const TOMBSTONES_BYTES_MAX: u64 = 64 << 20;

/// The open files of a block, with what is read at once.
#[derive(Debug)]
pub struct BlockDir {
    place: Place,
    meta: Meta,
    tombstones: Tombstones,
    index: Box<dyn DiskFile>,
    chunks: Vec<Box<dyn DiskFile>>,
}

impl BlockDir {
    /// Opens the block at `path`: reads its small files and learns the length of the others.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when the small files are damaged or a segment is missing.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self, Error> {
        let meta_path = path.join(File::Meta.path());
        let meta = Meta::read(&meta_path, &whole(disk, &meta_path, META_BYTES_MAX)?)?;
        let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<BlockId>().ok());
        if named.is_some_and(|named| named != meta.ulid) {
            return Err(Error::corrupt(&meta_path, 0, format!("the block calls itself {}", meta.ulid)));
        }
        let tombstones_path = path.join(File::Tombstones.path());
        let tombstones = match whole(disk, &tombstones_path, TOMBSTONES_BYTES_MAX) {
            Ok(bytes) => Tombstones::read(&bytes).map_err(|broken| Error::broken(&tombstones_path, 0, broken))?,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Tombstones::default(),
            Err(error) => return Err(error),
        };
        let index = disk.open(&path.join(File::Index.path()))?;
        let mut sizes = Sizes { index: index.len()?, chunks: Vec::new() };
        let mut chunks = Vec::new();
        for (name, number) in disk.list(&path.join("chunks"))?.into_iter().zip(1_u32..) {
            let file = path.join(File::Chunks(number).path());
            if !file.ends_with(&name) {
                return Err(Error::corrupt(&file, 0, format!("segments have a hole: {name} comes next")));
            }
            let file = disk.open(&file)?;
            sizes.chunks.push(file.len()?);
            chunks.push(file);
        }
        Ok(Self { place: Place { path: path.to_owned(), sizes }, meta, tombstones, index, chunks })
    }

    /// What it is.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What was deleted from it.
    #[must_use]
    pub fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    /// Where it lies and how long its files are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Asks that later reads come from the disk and not from memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn drop_cache(&self) -> Result<(), Error> {
        self.index.drop_cache()?;
        self.chunks.iter().try_for_each(|file| file.drop_cache())
    }
}

impl Source for BlockDir {
    fn sizes(&self) -> &Sizes {
        &self.place.sizes
    }

    fn path(&self) -> &Path {
        &self.place.path
    }

    fn read(&self, want: Want) -> Result<Bytes, Error> {
        let missing = || self.place.corrupt(want.file, want.at, "there is no such file in the block");
        let file = match want.file {
            File::Index => &self.index,
            File::Chunks(n) => {
                let i = usize::try_from(n).ok().and_then(|n| n.checked_sub(1));
                i.and_then(|i| self.chunks.get(i)).ok_or_else(missing)?
            }
            File::Meta | File::Tombstones => return Err(missing()),
        };
        // Lengths were told by the file itself: no larger buffer is made than there are bytes.
        let len = want.len.min(self.place.sizes.of(want.file).saturating_sub(want.at));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let got = file.read_at(want.at, &mut bytes)?;
        if got as u64 != want.len {
            return Err(self.place.corrupt(want.file, want.at + got as u64, "the file has become shorter"));
        }
        Ok(bytes.into())
    }
}

fn whole(disk: &dyn Disk, path: &Path, max: u64) -> Result<Vec<u8>, Error> {
    let file = disk.open(path)?;
    let len = file.len()?;
    if len > max {
        return Err(Error::corrupt(path, max, format!("the file is {len} bytes long")));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let got = file.read_at(0, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Removes the directory of a block, whole or half written; one that does not exist is no error. `meta.json` goes
/// first and durably, so that what a crash leaves is no block.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    for dir in [path.to_owned(), path.join("chunks")] {
        let mut names = match disk.list(&dir) {
            Ok(names) => names,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let meta = File::Meta.path();
        if names.contains(&meta) {
            disk.remove(&dir.join(&meta))?;
            disk.sync_dir(&dir)?;
            names.retain(|name| *name != meta);
        }
        for name in names {
            disk.remove(&dir.join(name))?;
        }
    }
    disk.remove_dir(&path.join("chunks"))?;
    disk.remove_dir(path)
}
