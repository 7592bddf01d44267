//! A mount namespace of our own: what is mounted for a run is seen by nobody else and goes when the run goes.
//!
//! Why: disks that lose their power are mounted, and a harness that is killed must leave nothing mounted behind. Only
//! root may; where it fails the faults that need such disks are skipped.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set in a process that is in its own namespace.
const MARK: &str = "CHAOS_OWN_MOUNTS";

/// How a program gets one.
const UNSHARE: [&str; 4] = ["--mount", "--propagation", "private", "--"];

/// Starts this program again inside of a mount namespace of its own, once, when it may. Comes back when it may not, as
/// root of most containers may not, or when it is there already.
pub(crate) fn enter() {
    if is_own() || !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    // Tried with a program that does nothing: from the next step there is no way back.
    let tried = Command::new("unshare").args(UNSHARE).arg("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        return;
    }
    // When this returns all the same, the run goes on without mounts.
    let _absent =
        Command::new("unshare").args(UNSHARE).arg(program).args(std::env::args_os().skip(1)).env(MARK, "1").exec();
}

/// Whether what is mounted here is seen by nobody else.
pub(super) fn is_own() -> bool {
    std::env::var_os(MARK).is_some()
}
