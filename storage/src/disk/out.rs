//! A new file written front to back through a buffer, which knows how far it is.
//!
//! Why: block files are written once, in small pieces, and every piece must know its offset. Offsets are counted here
//! and not asked of the file system.

use std::path::{Path, PathBuf};

use super::{Disk, DiskFile};
use crate::Error;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Out {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Bytes written before the buffer.
    written: u64,
}

impl Out {
    /// Makes the file, which must not exist.
    pub(crate) fn create(disk: &dyn Disk, path: &Path) -> Result<Self, Error> {
        let file = disk.create(path)?;
        Ok(Self { file, path: path.to_owned(), buffer: Vec::new(), written: 0 })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How long it is.
    pub(crate) fn at(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Adds bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Adds zeros up to a multiple of `align`, at most 16.
    pub(crate) fn pad(&mut self, align: u64) -> Result<(), Error> {
        let rest = self.at() % align;
        let zeros = if rest == 0 { 0 } else { align - rest };
        self.put(&[0; 16][..usize::try_from(zeros).unwrap_or(16).min(16)])
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.write_at(self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and makes it durable. Returns the length.
    pub(crate) fn finish(mut self) -> Result<u64, Error> {
        self.flush()?;
        self.file.sync_all()?;
        Ok(self.written)
    }

    /// Writes what is left and hands out the file to be read; nothing is made durable.
    pub(crate) fn reread(mut self) -> Result<(Box<dyn DiskFile>, u64), Error> {
        self.flush()?;
        Ok((self.file, self.written))
    }
}
