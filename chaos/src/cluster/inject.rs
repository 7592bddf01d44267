//! Syncs and writes of a running node that fail, are slow, or do nothing: what a bad disk says to the real binary.
//!
//! `strace` is attached to the node and changes what `fsync` and `fdatasync` do, or other calls on files; when it is taken
//! away the node goes on as if nothing had been. Where there is no `strace`, or it may not attach, such faults are skipped.
//! What it did to each call it writes down, so whoever installs a fault knows whether a call was hit at all.
//!
//! Source: strace(1), "Tampering".

use crate::error::Error;
use engram_model::time::Stopwatch;
use std::path::{Path, PathBuf};
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
pub(crate) struct Injected {
    strace: Child,
    pid: u32,
    /// What strace writes: a line for each call.
    log: PathBuf,
}

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

    /// Attaches to a process, and waits until that is so; what is done to its calls is written to `log`.
    ///
    /// # Errors
    /// It may not, or the process is gone.
    pub(super) async fn attach(pid: u32, syncs: Syncs, log: &Path) -> Result<Self, Error> {
        let (calls, what) = syncs.rule();
        let strace = super::process::guarded(None)?
            .args(["strace", "-f", "-q", "-o"])
            .arg(log)
            .arg("-e")
            .arg(format!("trace={calls}"))
            .arg("-e")
            .arg(format!("inject={calls}:{what}"))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let (mut injected, watch) = (Self { strace, pid, log: log.to_owned() }, Stopwatch::start());
        while !tasks(pid, |status| word(status, "TracerPid:") != Some("0"))
            .is_ok_and(|(yes, all)| yes == all && all > 0)
        {
            let ended = injected.strace.try_wait()?;
            if ended.is_some() || watch.elapsed() > ATTACH_WITHIN {
                let reason = format!("not attached to process {pid}: {ended:?}");
                return Err(Error::Process { path: "strace".into(), reason });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(injected)
    }

    /// How many calls it has changed so far.
    pub(crate) fn hits(&self) -> usize {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().filter(|line| is_hit(line)).count()
    }

    /// Whether a thread of the process is kept at a call for longer than strace needs to look at one.
    pub(crate) async fn holds(&self) -> bool {
        for _ in 0..3 {
            if self.kept() == 0 {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    fn kept(&self) -> usize {
        tasks(self.pid, |status| word(status, "State:") == Some("t")).map_or(0, |(yes, _)| yes)
    }
}

/// A line of strace about a call that was changed.
fn is_hit(line: &str) -> bool {
    line.ends_with("(INJECTED)") || line.ends_with("(DELAYED)")
}

impl Drop for Injected {
    fn drop(&mut self) {
        // The kernel lets a process go on whose tracer is gone.
        let _gone = self.strace.kill().and_then(|()| self.strace.wait());
    }
}

/// Of how many threads of a process this is so, and how many there are.
pub(super) fn tasks(pid: u32, is: impl Fn(&str) -> bool) -> std::io::Result<(usize, usize)> {
    let (mut yes, mut all) = (0, 0);
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile counts for nothing.
        let Ok(status) = std::fs::read_to_string(task?.path().join("status")) else { continue };
        all += 1;
        yes += usize::from(is(&status));
    }
    Ok((yes, all))
}

/// The first word behind a name in a process's status.
pub(super) fn word<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_were_changed_count() {
        let lines = [
            "7  fsync(3)                          = -1 EIO (Input/output error) (INJECTED)",
            "7  fdatasync(3)                      = 0 (DELAYED)",
            "7  fsync(3)                          = 0",
            "7  pwrite64(3, \"(INJECTED)\", 10, 0) = 10",
            "7  +++ killed by SIGKILL +++",
        ];
        assert_eq!(lines.map(is_hit), [true, true, false, false, false]);
    }

    #[test]
    fn a_status_is_read_by_its_names() {
        let status = "Name:\tx\nState:\tt (tracing stop)\nTracerPid:\t0\n";
        assert_eq!(
            (word(status, "State:"), word(status, "TracerPid:"), word(status, "No:")),
            (Some("t"), Some("0"), None)
        );
        let (alive, all) = tasks(std::process::id(), |status| word(status, "TracerPid:") == Some("0")).unwrap();
        assert!(alive <= all && all > 0);
    }
}
