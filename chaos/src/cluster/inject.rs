//! Syncs and writes of a running node that fail, are slow, or do nothing: what a bad disk says to the real binary.
//!
//! `strace` is attached to the node and changes what `fsync` and `fdatasync` do, or other calls on files; when it is taken away the node goes on
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
    /// They begin so many milliseconds late: what was written stays unsynced meanwhile.
    Held(u64),
    /// Other calls fail now and then.
    Flawed(Flaw),
    /// They fail with an error of the disk.
    Fail,
    /// They say they are done and are not: the fault no store can bear, for testing the tests.
    Lie,
}

/// System calls that fail for a while: each thread's `first` one, and every `then`th after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// Their names, with commas between. None that sockets and wake-ups use: those are other faults.
    pub(crate) calls: &'static str,
    /// The error, as C names it.
    pub(crate) error: &'static str,
    pub(crate) first: u32,
    pub(crate) then: u32,
}

impl Syncs {
    /// The calls, and what becomes of them, as strace wants it.
    fn rule(self) -> (&'static str, String) {
        let syncs = "fsync,fdatasync";
        match self {
            Self::Slow(ms) => (syncs, format!("delay_exit={}", ms * 1000)),
            Self::Held(ms) => (syncs, format!("delay_enter={}", ms * 1000)),
            Self::Fail => (syncs, "error=EIO".to_owned()),
            Self::Lie => (syncs, "retval=0".to_owned()),
            Self::Flawed(flaw) => (flaw.calls, format!("error={}:when={}+{}", flaw.error, flaw.first, flaw.then)),
        }
    }
}

impl std::fmt::Display for Syncs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slow(ms) => write!(f, "syncs {ms} ms slower"),
            Self::Held(ms) => write!(f, "syncs held for {ms} ms"),
            Self::Fail => f.write_str("syncs fail"),
            Self::Lie => f.write_str("syncs lie"),
            Self::Flawed(flaw) => write!(f, "{} answer {} now and then", flaw.calls, flaw.error),
        }
    }
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
        let (calls, what) = syncs.rule();
        let child = Command::new(std::env::current_exe()?)
            .args(["guard", "--", "strace", "-f", "-q", "-o", "/dev/null", "-e"])
            .arg(format!("trace={calls}"))
            .arg("-e")
            .arg(format!("inject={calls}:{what}"))
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
