//! The system calls the standard library does not offer.
#![allow(
    unsafe_code,
    reason = "fallocate halves the cost of a sync, fadvise makes replay read the disk, maps keep full chunks off the heap"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memmap2::Mmap;

use super::Mapped;

/// Reserves space up to `len` and makes the file at least that long, reading as zeros.
///
/// # Errors
/// What the system says; `len` above the largest offset is refused by it too.
pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        // SAFETY: the descriptor is open while `file` is borrowed; the call takes numbers and touches no memory.
        let code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) };
        match code {
            0 => return Ok(()),
            libc::EINTR => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

impl Mapped for Mmap {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Maps a whole file.
///
/// # Errors
/// What the system says.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the bytes are only read, and the port says that nobody writes or shortens a file once it is mapped; the
    // data directory belongs to this process alone. Somebody from outside who shortens one ends the process, no more.
    unsafe { Mmap::map(file) }
}

/// Drops the file's clean pages from memory.
///
/// # Errors
/// What the system says.
pub(super) fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed; the call takes numbers and touches no memory.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
