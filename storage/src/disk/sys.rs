//! The two system calls the standard library does not offer.
#![allow(unsafe_code, reason = "fallocate halves the cost of a sync, fadvise makes replay read the disk")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

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

/// Drops the file's clean pages from memory.
///
/// # Errors
/// What the system says.
pub(super) fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed; the call takes numbers and touches no memory.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
