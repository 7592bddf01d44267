//! The folder of the snapshots: one of a file system, or its twin in memory for simulations.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory;

/// Where files lie.
#[derive(Clone, Debug)]
pub(super) enum Folder {
    Disk,
    Memory(memory::Opened),
}

/// A file that is written.
#[derive(Debug)]
pub(super) enum Out {
    Disk(File),
    Memory(memory::Opened, memory::Handle),
}

/// A file that is read. It stays readable when its name is gone.
#[derive(Clone, Debug)]
pub(super) enum In {
    Disk(Arc<File>),
    Memory(memory::Handle),
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Folder {
    /// All files in `dir`, by name.
    pub(super) fn paths(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Disk => {
                let paths: io::Result<Vec<_>> = std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect();
                let mut paths = paths?;
                paths.sort();
                Ok(paths)
            }
            Self::Memory(disk) => Ok(disk.names().into_iter().map(|name| dir.join(name)).collect()),
        }
    }

    pub(super) fn create(&self, path: &Path) -> io::Result<Out> {
        match self {
            Self::Disk => File::create(path).map(Out::Disk),
            Self::Memory(disk) => Ok(Out::Memory(disk.clone(), disk.make(&name(path))?)),
        }
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<In> {
        match self {
            Self::Disk => Ok(In::Disk(Arc::new(File::open(path)?))),
            Self::Memory(disk) => disk.file(&name(path)).map(In::Memory),
        }
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Disk => std::fs::remove_file(path),
            Self::Memory(disk) => disk.remove(&name(path)),
        }
    }

    /// Gives a file of `dir` another name, durably.
    pub(super) fn rename(&self, dir: &Path, (from, to): (&Path, &Path)) -> io::Result<()> {
        match self {
            Self::Disk => {
                std::fs::rename(from, to)?;
                File::open(dir).and_then(|dir| dir.sync_all())
            }
            Self::Memory(disk) => {
                disk.rename(&name(from), &name(to))?;
                disk.sync_names()
            }
        }
    }
}

impl Out {
    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::Disk(file) => file.sync_all(),
            Self::Memory(disk, file) => disk.sync_file(file),
        }
    }
}

impl Write for &Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Disk(file) => (&mut &*file).write(bytes),
            Out::Memory(disk, file) => disk.append(file, bytes).map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Disk(file) => (&mut &*file).flush(),
            Out::Memory(..) => Ok(()),
        }
    }
}

impl In {
    pub(super) fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Disk(file) => file.read_at(into, offset),
            Self::Memory(file) => Ok(file.read_at(into, offset)),
        }
    }
}
