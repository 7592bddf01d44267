//! The disk under one node: a directory, or a small file system of the node's own.
//!
//! A file system of its own can be full without filling ours, and can lose its power: `EXT4_IOC_SHUTDOWN` drops whatever
//! was written and not synced, as a machine without current does, and answers every later write with an error until it
//! is mounted again. A killed process proves nothing about syncs, because the kernel keeps what it wrote; this does.
//!
//! Mounting needs root and a loop device; without them the faults that need such a disk are *skipped*. Mounts are made
//! in a mount namespace of this process alone (see `mounts`), so they go when we go, however we go.
//!
//! Source: Linux `include/uapi/linux/ext4.h` (`EXT4_IOC_SHUTDOWN`), `fs/ext4/ioctl.c`.

use crate::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Size of a disk that can lose its power. Sparse: only what is written takes room.
const POWER_BYTES: u64 = 2 << 30;

/// What lies under each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Plain,
    /// ext4 on a loop device.
    Ext4,
    /// ext4 on a loop device, of so many bytes.
    Small(u64),
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    kind: Kind,
    image: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// Whether this machine can make one; else why not.
    pub(crate) fn possible(kind: Kind) -> Result<(), String> {
        if kind == Kind::Plain {
            return Ok(());
        }
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a disk of a node's own needs root".to_owned());
        }
        if !super::mounts::is_own() {
            return Err("there is no mount namespace of our own (unshare failed)".to_owned());
        }
        let try_one = || -> Result<(), Error> {
            let folder = tempfile::tempdir()?;
            Disk::make(Kind::Small(16 << 20), folder.path()).map(drop)
        };
        // Asked for each scenario; tried once.
        static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
        TRIED.get_or_init(|| try_one().map_err(|error| format!("no disk of its own: {error}"))).clone()
    }

    /// Makes it below `folder`.
    ///
    /// # Errors
    /// The tools are not there, or nothing may be mounted.
    pub(super) fn make(kind: Kind, folder: &Path) -> Result<Self, Error> {
        let (image, root) = (folder.join("disk"), folder.join("mounted"));
        let disk = Self { kind, image, root };
        let bytes = match kind {
            Kind::Plain => {
                std::fs::create_dir_all(&disk.root)?;
                return Ok(disk);
            }
            Kind::Ext4 => POWER_BYTES,
            Kind::Small(bytes) => bytes,
        };
        std::fs::create_dir_all(&disk.root)?;
        std::fs::File::create(&disk.image)?.set_len(bytes)?;
        let image = disk.image.display().to_string();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", &image])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn mount(&self) -> Result<(), Error> {
        run("mount", &["-o", "loop", &self.image.display().to_string(), &self.root.display().to_string()])
    }

    /// Cuts the power: what was not synced is gone, every write from now on fails. The node is to be killed after.
    ///
    /// # Errors
    /// It is a plain directory, or the kernel refuses.
    pub(crate) fn power_off(&self) -> Result<(), Error> {
        if self.kind == Kind::Plain {
            return Err(Error::Usage("a plain directory has no power to lose".to_owned()));
        }
        super::disk_off::shut_down(&std::fs::File::open(&self.root)?)?;
        Ok(())
    }

    /// Gives the power back: mounted anew, with what really was on the disk. Nobody may have files of it open.
    ///
    /// # Errors
    /// Somebody has, or the file system cannot be mounted.
    pub(crate) fn power_on(&self) -> Result<(), Error> {
        run("umount", &[&self.root.display().to_string()])?;
        self.mount()
    }

    /// Takes all room that is left.
    ///
    /// # Errors
    /// The disk, for another reason than being full.
    pub(crate) fn fill(&self) -> Result<(), Error> {
        let mut filler = std::fs::File::options().create(true).append(true).open(self.root.join("filler"))?;
        for bytes in [1 << 20, 4096, 64] {
            let piece = vec![1; bytes];
            loop {
                match std::io::Write::write(&mut filler, &piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn empty(&self) -> Result<(), Error> {
        Ok(std::fs::remove_file(self.root.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.kind != Kind::Plain {
            // Lazily: a process that still holds a file must not keep us from going. The loop device goes with the mount.
            let _gone = run("umount", &["--lazy", &self.root.display().to_string()]);
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), Error> {
    let failed = |reason: String| Error::Process { path: program.into(), reason };
    let done = Command::new(program).args(args).output().map_err(|e| failed(e.to_string()))?;
    if done.status.success() {
        return Ok(());
    }
    Err(failed(format!("{args:?}: {}", String::from_utf8_lossy(&done.stderr).trim())))
}
