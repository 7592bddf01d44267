//! The machine's own file system.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Disk, DiskFile, Mapped, sys};
use crate::Error;

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    path: PathBuf,
}

impl RealDisk {
    fn opened(path: &Path, opened: io::Result<fs::File>) -> Result<Box<dyn DiskFile>, Error> {
        let file = opened.map_err(|source| Error::io("open", path, source))?;
        Ok(Box::new(RealFile { file, path: path.to_owned() }))
    }

    fn names(dir: &Path, wanted: fn(&fs::FileType) -> bool) -> Result<Vec<String>, Error> {
        let failed = |source| Error::io("list", dir, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if wanted(&entry.file_type().map_err(failed)?)
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(|source| Error::io("create", dir, source))?;
        // Else a crash may take the name, and with it all that was synced inside.
        match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>, Error> {
        Self::opened(path, fs::OpenOptions::new().read(true).write(true).create_new(true).open(path))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>, Error> {
        Self::opened(path, fs::OpenOptions::new().read(true).write(true).open(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::rename(from, to).map_err(|source| Error::io("rename", from, source))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::hard_link(from, to).map_err(|source| Error::io("link", from, source))
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        fs::remove_file(path).map_err(|source| Error::io("remove", path, source))
    }

    fn remove_dir(&self, dir: &Path) -> Result<(), Error> {
        match fs::remove_dir(dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, source)),
            _ => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        Self::names(dir, fs::FileType::is_file)
    }

    fn list_dirs(&self, dir: &Path) -> Result<Vec<String>, Error> {
        Self::names(dir, fs::FileType::is_dir)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        fs::File::open(dir).and_then(|opened| opened.sync_all()).map_err(|source| Error::io("sync", dir, source))
    }
}

impl RealFile {
    fn failed(&self, act: &'static str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::io(act, &self.path, source)
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.file.metadata().map_err(self.failed("stat"))?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<usize, Error> {
        let mut got = 0;
        while got < into.len() {
            match self.file.read_at(&mut into[got..], at + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read")(error)),
            }
        }
        Ok(got)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, at).map_err(self.failed("write"))
    }

    fn preallocate(&self, len: u64) -> Result<(), Error> {
        sys::allocate(&self.file, len).map_err(self.failed("allocate"))
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.set_len(len).map_err(self.failed("truncate"))
    }

    fn sync_data(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(self.failed("sync"))
    }

    fn sync_all(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(self.failed("sync"))
    }

    fn map(&self) -> Result<Box<dyn Mapped>, Error> {
        Ok(Box::new(sys::map(&self.file).map_err(self.failed("map"))?))
    }

    fn drop_cache(&self) -> Result<(), Error> {
        sys::drop_cache(&self.file).map_err(self.failed("drop cache of"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_file_does_what_the_port_says() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk;
        let path = dir.path().join("sub/a");
        disk.create_dir(&dir.path().join("sub")).unwrap();
        let file = disk.create(&path).unwrap();
        assert!(disk.create(&path).is_err(), "a file that exists is not made anew");
        file.preallocate(8192).unwrap();
        file.write_at(10, b"hello").unwrap();
        file.sync_data().unwrap();
        file.drop_cache().unwrap();
        let mut into = [1_u8; 16];
        assert_eq!(file.read_at(8, &mut into).unwrap(), 16);
        assert_eq!(&into[..8], b"\0\0hello\0");
        let mapped = file.map().unwrap();
        assert_eq!((mapped.bytes().len(), &mapped.bytes()[10..15]), (8192, &b"hello"[..]));
        drop(mapped);
        file.set_len(12).unwrap();
        file.append(b"!").unwrap();
        assert_eq!((file.len().unwrap(), file.read_at(10, &mut into).unwrap()), (13, 3));
        file.sync_all().unwrap();
        disk.rename(&path, &dir.path().join("sub/b")).unwrap();
        disk.sync_dir(&dir.path().join("sub")).unwrap();
        assert_eq!(disk.list(&dir.path().join("sub")).unwrap(), ["b"]);
        disk.remove(&dir.path().join("sub/b")).unwrap();
        assert!(disk.open(&path).is_err());
    }
}
