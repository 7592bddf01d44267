//! Less of something than a node needs: files it may open, threads it may have, memory.
//!
//! Files are limited by the kernel's limit for a process, which can be changed from outside; threads and memory by
//! control groups (version 1), which need root. A process that gets too little memory is killed by the kernel.
//!
//! Source: prlimit(2); Linux `Documentation/admin-guide/cgroup-v1/memory.rst`, `pids.rst`.

use crate::error::Error;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::path::{Path, PathBuf};

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// What a node may still take when its memory is limited.
const MEMORY_LEFT_BYTES: u64 = 256 << 10;

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scarce {
    /// Files: no more than are open now.
    Files,
    /// Threads: no more than there are now.
    Threads,
    /// Memory: little more than is used now.
    Memory,
    /// Memory: so many bytes, however much is used.
    MemoryTo(u64),
}

/// A limit on one process; it is lifted with this.
#[derive(Debug)]
pub(crate) enum Limit {
    Files { pid: Pid, before: Rlimit },
    Group(PathBuf),
}

impl Scarce {
    fn group(self) -> Option<&'static str> {
        match self {
            Self::Files => None,
            Self::Threads => Some("pids"),
            Self::Memory | Self::MemoryTo(_) => Some("memory"),
        }
    }

    /// Whether this machine can do it; else why not.
    pub(crate) fn possible(self) -> Result<(), String> {
        let Some(group) = self.group() else { return Ok(()) };
        let probe = Path::new(GROUPS).join(group).join(format!("engram-chaos-probe-{}", std::process::id()));
        let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
        made.map_err(|error| format!("no control group for {group}: {error}"))
    }
}

impl Limit {
    /// Limits a process.
    ///
    /// # Errors
    /// This machine cannot, or the process is gone.
    pub(super) fn set(pid: u32, scarce: Scarce) -> Result<Self, Error> {
        let gone = || Error::Usage(format!("process {pid} is gone"));
        let Some(group) = scarce.group() else {
            let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
            let before = prlimit(Some(process), Resource::Nofile, Rlimit { current: Some(open), maximum: None });
            let before = before.or_else(|_| {
                let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
                prlimit(Some(process), Resource::Nofile, Rlimit { current: Some(open), maximum })
            });
            return Ok(Self::Files { pid: process, before: before.map_err(std::io::Error::from)? });
        };
        let folder = Path::new(GROUPS).join(group).join(format!("engram-chaos-{pid}"));
        // Of a run that was killed, whose process had this id.
        let _none = std::fs::remove_dir(&folder);
        std::fs::create_dir(&folder)?;
        let limit = Self::Group(folder.clone());
        std::fs::write(folder.join("cgroup.procs"), pid.to_string())?;
        let (file, most) = match scarce {
            Scarce::Threads => ("pids.max", number(&folder.join("pids.current"))?),
            Scarce::MemoryTo(bytes) => ("memory.limit_in_bytes", bytes),
            // What it had before it came into the group is not counted there.
            Scarce::Files | Scarce::Memory => ("memory.limit_in_bytes", MEMORY_LEFT_BYTES),
        };
        std::fs::write(folder.join(file), most.to_string())?;
        Ok(limit)
    }

    /// How often the kernel has refused the process something for this; of files nobody knows.
    pub(crate) fn refused(&self) -> u64 {
        let Self::Group(folder) = self else { return 0 };
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let text = if folder.join("pids.max").exists() { read("pids.events") } else { read("memory.failcnt") };
        text.split_whitespace().last().and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Whether it is threads that there are too few of.
    pub(crate) fn is_of_threads(&self) -> bool {
        matches!(self, Self::Group(folder) if folder.join("pids.max").exists())
    }
}

fn number(path: &Path) -> Result<u64, Error> {
    let text = std::fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| Error::Usage(format!("{}: {text}", path.display())))
}

impl Drop for Limit {
    fn drop(&mut self) {
        match self {
            Self::Files { pid, before } => {
                // A process that is gone has no limits.
                let _gone = prlimit(Some(*pid), Resource::Nofile, *before);
            }
            Self::Group(folder) => {
                let above = folder.parent().map(|above| above.join("cgroup.procs")).unwrap_or_default();
                let inside = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                for pid in inside.lines() {
                    let _gone = std::fs::write(&above, pid);
                }
                // It goes when the last process in it is waited for, at the latest with the next try.
                for _ in 0..50 {
                    if std::fs::remove_dir(&*folder).is_ok() {
                        return;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
        }
    }
}
