//! The data directory and the lock that gives it to one process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The system refused.
    #[error("{act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("another process uses this data directory: {} is held by {holder}", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into it.
        holder: String,
    },
}

/// A data directory that belongs to this process until the value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be and takes its lock.
    ///
    /// # Errors
    /// [`DirError`]: the operator must act.
    pub fn open(root: &Path) -> Result<Self, DirError> {
        let io = |act, path: &Path| {
            let path = path.to_owned();
            move |source| DirError::Io { act, path, source }
        };
        let is_new = !root.exists();
        std::fs::create_dir_all(root).map_err(io("create", root))?;
        // Else a crash may take the name of a new directory, and with it all that was synced inside.
        let parent = match root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => root,
        };
        if is_new {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(io("sync", parent))?;
        }
        let path = root.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The text is for a person; a lock without one is held all the same.
                let _read = lock.read_to_string(&mut holder);
                return Err(DirError::Taken { path, holder: holder.trim().to_owned() });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(DirError::Io { act: "lock", path, source }),
        }
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(io("write", &path))?;
        writeln!(lock, "process {}", std::process::id()).map_err(io("write", &path))?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Where the node log lies.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the full chunks of the heads lie.
    #[must_use]
    pub fn head(&self) -> PathBuf {
        self.root.join("head")
    }

    /// Where snapshots are put.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Where blocks of other systems are while they come in.
    #[must_use]
    pub fn imports(&self) -> PathBuf {
        self.root.join("imports")
    }

    /// Where damaged blocks are made again.
    #[must_use]
    pub fn repairs(&self) -> PathBuf {
        self.root.join("repairs")
    }

    /// The file that says how far the scrubber is.
    #[must_use]
    pub fn scrubbed(&self) -> PathBuf {
        self.root.join("scrub.json")
    }

    /// Where blocks lie when no other place was chosen for them.
    #[must_use]
    pub fn blocks(&self) -> PathBuf {
        self.root.join("blocks")
    }

    /// Where blocks are built when no other place was chosen for that; emptied at every start.
    #[must_use]
    pub fn blocks_work(&self) -> PathBuf {
        self.root.join("blocks-work")
    }

    /// Where a replica builds what cuts lacked, when no other place was chosen; emptied at every start.
    #[must_use]
    pub fn blocks_late(&self) -> PathBuf {
        self.root.join("blocks-late")
    }

    /// Where parts of blocks are kept that lie elsewhere. May be deleted while the node does not run.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Where compaction copies sources to and builds results.
    #[must_use]
    pub fn compaction(&self) -> PathBuf {
        self.root.join("compaction")
    }

    /// What this node remembers of itself.
    #[must_use]
    pub fn member(&self) -> PathBuf {
        self.root.join("member.json")
    }

    /// Whether there is metadata already.
    #[must_use]
    pub fn has_meta(&self) -> bool {
        self.meta().join("db").join("CURRENT").exists()
    }

    /// Where the metadata group lies.
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.root.join("meta")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_one() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        let second = DataDir::open(temp.path());
        assert!(matches!(&second, Err(DirError::Taken { holder, .. }) if holder.starts_with("process ")), "{second:?}");
        drop(first);
        assert!(DataDir::open(temp.path()).is_ok());
    }
}
