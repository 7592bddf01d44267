//! Syncs of a running node that fail, are slow, or do nothing: what a bad disk says to the real binary.
//!
//! `strace` is attached to the node and changes what `fsync` and `fdatasync` do; when it is taken away the node goes on
//! as if nothing had been. Where there is no `strace`, or it may not attach, such faults are skipped.
//!
//! Source: strace(1), "Tampering".

use crate::error::Error;
use engram_model::time::Stopwatch;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest time until it is attached.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);

/// What becomes of syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncs {
    /// They take so many milliseconds longer.
    Slow(u64),
    /// They begin so many milliseconds later.
    Held(u64),
    /// They fail with an error of the disk.
    Fail,
    /// They say they are done and are not: the fault no store can bear, for testing the tests.
    Lie,
}

/// Something that is done to a node while this lives.
#[derive(Debug)]
pub(crate) struct Injected(Child);

impl Injected {
    /// Whether this machine can do it; else why not.
    pub(crate) fn possible() -> Result<(), String> {
        let version = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !version.is_ok_and(|status| status.success()) {
            return Err("there is no strace".to_owned());
        }
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        let free = scope.trim().is_empty() || scope.trim() == "0";
        if free || rustix::process::geteuid().is_root() { Ok(()) } else { Err("strace may not attach".to_owned()) }
    }

    /// Attaches to a process, and waits until that is so.
    ///
    /// # Errors
    /// It may not, or the process is gone.
    pub(super) async fn attach(pid: u32, syncs: Syncs) -> Result<Self, Error> {
        let what = match syncs {
            Syncs::Slow(ms) => format!("delay_exit={}", ms * 1000),
            Syncs::Held(ms) => format!("delay_enter={}", ms * 1000),
            Syncs::Fail => "error=EIO".to_owned(),
            Syncs::Lie => "retval=0".to_owned(),
        };
        let child = Command::new(std::env::current_exe()?)
            .args(["guard", "--", "strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"])
            .arg(format!("inject=fsync,fdatasync:{what}"))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let (mut injected, watch) = (Self(child), Stopwatch::start());
        while !is_traced(pid) {
            let ended = injected.0.try_wait()?;
            if ended.is_some() || watch.elapsed() > ATTACH_WITHIN {
                let reason = format!("not attached to process {pid}: {ended:?}");
                return Err(Error::Process { path: "strace".into(), reason });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(injected)
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // The kernel lets a process go on whose tracer is gone.
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn is_traced(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}
