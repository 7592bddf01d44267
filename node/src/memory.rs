//! Memory that a large query has freed goes back to the system.
//!
//! Why: glibc keeps freed memory in the arenas of its threads, so that after dear queries a node would look, and be
//! billed, as large as that query for ever. `malloc_trim` gives the free pages back.
#![allow(unsafe_code, reason = "malloc_trim has no safe form; seen: 841 MiB after heavy queries without it")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static ASKED: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);

/// Gives free memory back to the system; takes milliseconds, so not on a thread that serves requests. One thread at a
/// time does it, and once more for those who asked meanwhile: what they have freed may lie behind where it has been.
/// Where the C library is another, nothing happens.
pub fn give_back() {
    ASKED.fetch_add(1, Ordering::SeqCst);
    while !RUNNING.swap(true, Ordering::SeqCst) {
        let asked = ASKED.load(Ordering::SeqCst);
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: `malloc_trim` takes no pointer and may be called from any thread at any time (MT-Safe, glibc manual).
        unsafe {
            libc::malloc_trim(0);
        }
        RUNNING.store(false, Ordering::SeqCst);
        if ASKED.load(Ordering::SeqCst) == asked {
            return;
        }
    }
}
