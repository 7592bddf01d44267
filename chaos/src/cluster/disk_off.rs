//! The one system call without a safe form: telling ext4 that its power is gone.
#![allow(
    unsafe_code,
    reason = "EXT4_IOC_SHUTDOWN has no safe form; without it no test on one machine sees a missing fsync"
)]

use std::fs::File;
use std::os::fd::AsRawFd;

/// `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: u64 = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: not even the journal is written out first.
const NO_LOG_FLUSH: u32 = 2;

/// Shuts the file system down that `file` lies on: unsynced bytes are gone, later writes fail.
pub(super) fn shut_down(file: &File) -> std::io::Result<()> {
    let flags = NO_LOG_FLUSH;
    // SAFETY: the descriptor is open for the whole call, and the request reads the four bytes of `flags` and nothing else.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &raw const flags) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
