//! The disk as a port: the few things a log and its neighbours ask of a file system.
//!
//! Why: the promise "acknowledged means durable" can only be tested on a disk that crashes when told to. The node
//! runs on [`real::RealDisk`]; tests run on [`fault::FaultDisk`], which tears writes, forgets what was not synced,
//! fails syncs and flips bits.
//!
//! What must be synced is said by the caller: a file's bytes by [`DiskFile::sync_data`], its length too by
//! [`DiskFile::sync_all`], its name by [`Disk::sync_dir`]. Nothing is durable before.

use std::fmt;
use std::path::Path;

use crate::Error;

pub mod fault;
pub(crate) mod out;
pub mod real;
mod sys;

/// A file system.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory and those above it; one that exists is left alone.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn create_dir(&self, dir: &Path) -> Result<(), Error>;

    /// Makes a new, empty file.
    ///
    /// # Errors
    /// [`Error::Io`], also when the file exists.
    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>, Error>;

    /// Opens a file that exists, to read and write.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>, Error>;

    /// Gives a file another name in the same directory; a file of that name is replaced. A directory moves with all
    /// that is in it, at once, unless there is one of that name that is not empty.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error>;

    /// Gives a file a second name, which must be free; both then mean the same bytes.
    ///
    /// # Errors
    /// [`Error::Io`], also when the disk has no such names or `to` lies on another disk.
    fn link(&self, from: &Path, to: &Path) -> Result<(), Error>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn remove(&self, path: &Path) -> Result<(), Error>;

    /// Removes an empty directory; one that does not exist is no error.
    ///
    /// # Errors
    /// [`Error::Io`], also when something is in it.
    fn remove_dir(&self, dir: &Path) -> Result<(), Error>;

    /// Names of the files in a directory, sorted; names that are not UTF-8 are not ours and left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn list(&self, dir: &Path) -> Result<Vec<String>, Error>;

    /// Names of the directories in a directory, sorted; as [`Self::list`].
    ///
    /// # Errors
    /// [`Error::Io`].
    fn list_dirs(&self, dir: &Path) -> Result<Vec<String>, Error>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// [`Error::Io`]; never retry it, see STYLE §4.
    fn sync_dir(&self, dir: &Path) -> Result<(), Error>;
}

/// A file's bytes, readable as long as this lives, also when the file has lost its name.
pub trait Mapped: Send + Sync + fmt::Debug {
    /// All of them.
    fn bytes(&self) -> &[u8];
}

impl Mapped for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// An open file. Offsets and lengths are bytes.
#[allow(clippy::len_without_is_empty, reason = "the length of a file can fail; emptiness is never asked")]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// How long it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn len(&self) -> Result<u64, Error>;

    /// Reads from `at` until `into` is full or the file ends; returns how many bytes it got.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<usize, Error>;

    /// Writes all of `bytes` at `at`, growing the file where needed.
    ///
    /// # Errors
    /// [`Error::Io`]; how much was written is unknown then.
    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Adds `bytes` behind the last byte.
    ///
    /// # Errors
    /// [`Error::Io`]; how much was written is unknown then.
    fn append(&self, bytes: &[u8]) -> Result<(), Error> {
        self.write_at(self.len()?, bytes)
    }

    /// Makes the file at least `len` long with zeros and reserves the space.
    ///
    /// # Errors
    /// [`Error::Io`], above all when the disk is full.
    fn preallocate(&self, len: u64) -> Result<(), Error>;

    /// Cuts or grows the file to `len`; the space behind is given back.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn set_len(&self, len: u64) -> Result<(), Error>;

    /// Makes the bytes durable.
    ///
    /// # Errors
    /// [`Error::Io`]. After it nobody knows what the disk holds: never retry, stop using the file.
    fn sync_data(&self) -> Result<(), Error>;

    /// As [`Self::sync_data`], and the file's length and other facts too.
    ///
    /// # Errors
    /// As [`Self::sync_data`].
    fn sync_all(&self) -> Result<(), Error>;

    /// The bytes of a file that nobody writes any more, where they lie.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn map(&self) -> Result<Box<dyn Mapped>, Error>;

    /// Asks that later reads come from the disk and not from memory: after a failed sync memory lies.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn drop_cache(&self) -> Result<(), Error>;
}
