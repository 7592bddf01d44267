//! Memory that a large query has freed goes back to the system.
//!
//! Why: glibc keeps freed memory in the arenas of its threads, so that after one dear query a node would look, and be
//! billed, as large as that query for ever. `malloc_trim` gives the free pages back.
#![allow(unsafe_code, reason = "malloc_trim has no safe form; seen: 841 MiB after heavy queries without it")]

use std::sync::atomic::{AtomicBool, Ordering};

static RUNNING: AtomicBool = AtomicBool::new(false);

/// Gives free memory back to the system; takes milliseconds, so not on a thread that serves requests. One at a time is
/// enough: a second call returns at once. Where the C library is another, nothing happens.
pub fn give_back() {
    if RUNNING.swap(true, Ordering::Relaxed) {
        return;
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` takes no pointer and may be called from any thread at any time (MT-Safe in glibc's manual).
    unsafe {
        libc::malloc_trim(0);
    }
    RUNNING.store(false, Ordering::Relaxed);
}
