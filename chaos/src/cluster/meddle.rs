//! Writes that are cut short and syncs that fail once: what strace cannot do, which changes all of a call or nothing.
//!
//! A small library of C (`meddle.c`), made by this machine's compiler when it is needed, stands between a node and the
//! kernel. It is told what to do through a file that both map, and counts there what it did: whoever installs a fault knows
//! whether it hit, and what. Nodes are linked with the system's C library, so what RocksDB asks for passes it as well.
//! Where there is no compiler, such faults are skipped.
//!
//! ```text
//! 0 u32 one of so many writes is cut short · 4 u32 the next sync that fits fails · 8 u32 of folders · 16 u64 chance
//! 24 3 × u64 writes cut short: log, metadata, others · 48 u64 syncs failed · 56 u64 syncs lied about
//! 64 part of the path, 64 bytes · 128 how it ends, 64 bytes
//! ```

use super::process::Env;
use crate::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library.
const SOURCE: &str = include_str!("meddle.c");
/// Bytes of the file that both map, and where what is in it.
const BYTES: u64 = 4096;
const SHORT_OF: u64 = 0;
const FAIL_ONCE: u64 = 4;
const FOLDERS: u64 = 8;
const CHANCE: u64 = 16;
const DONE: u64 = 24;
const WITHIN: u64 = 64;
const TEXT_BYTES: usize = 64;

/// Whose sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// A file of the log of samples.
    Log,
    /// RocksDB's log, in which the metadata group's log is.
    Meta,
    /// A folder: the names of what is in it.
    Folder,
}

impl Synced {
    /// Part of the path, how it ends, whether it is a folder.
    fn fits(self) -> (&'static str, &'static str, bool) {
        match self {
            Self::Log => ("/data/log/", ".log", false),
            Self::Meta => ("/data/meta/", ".log", false),
            Self::Folder => ("/data", "", true),
        }
    }
}

impl std::fmt::Display for Synced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Log => "the log of samples",
            Self::Meta => "the metadata's log",
            Self::Folder => "a folder",
        })
    }
}

/// What was done to a node so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meddled {
    /// Writes that were cut short: of the log, of the metadata, of other files.
    pub(crate) shorts: [u64; 3],
    /// Syncs that failed.
    pub(crate) fails: u64,
    /// Later ones of the same files, said to be done and not done.
    pub(crate) lies: u64,
}

/// The hand between one node and the kernel.
#[derive(Debug)]
pub(crate) struct Meddle {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Meddle {
    /// Whether this machine can do it; else why not.
    pub(crate) fn possible() -> Result<(), String> {
        let version = Command::new("cc").arg("--version").output();
        if version.is_ok_and(|done| done.status.success()) {
            Ok(())
        } else {
            Err("there is no C compiler (cc)".to_owned())
        }
    }

    /// Makes the library in `folder`.
    ///
    /// # Errors
    /// There is no compiler, or it refuses.
    pub(super) fn library(folder: &Path) -> Result<PathBuf, Error> {
        let (source, library) = (folder.join("meddle.c"), folder.join("meddle.so"));
        std::fs::write(&source, SOURCE)?;
        let failed = |reason: String| Error::Process { path: "cc".into(), reason };
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
        let done = command.arg("-ldl").output().map_err(|error| failed(error.to_string()))?;
        if done.status.success() {
            return Ok(library);
        }
        Err(failed(String::from_utf8_lossy(&done.stderr).into_owned()))
    }

    /// A hand that does nothing yet; what it is told lies in `folder`.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn make(library: &Path, folder: &Path) -> Result<Self, Error> {
        let path = folder.join("meddle");
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.set_len(BYTES)?;
        Ok(Self { library: library.to_owned(), path, file })
    }

    /// What a process must be started with.
    pub(super) fn env(&self) -> Env {
        vec![("LD_PRELOAD", self.library.clone().into()), ("CHAOS_MEDDLE", self.path.clone().into())]
    }

    /// From now on one of so many writes to files is cut short.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn cut_short(&self, one_of: u32, chance: u64) -> Result<(), Error> {
        self.file.write_all_at(&chance.to_ne_bytes(), CHANCE)?;
        Ok(self.file.write_all_at(&one_of.to_ne_bytes(), SHORT_OF)?)
    }

    /// The next sync of such a file fails, once.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn fail_once(&self, synced: Synced) -> Result<(), Error> {
        let (within, ends, folder) = synced.fits();
        let mut texts = [0; TEXT_BYTES * 2];
        texts[..within.len()].copy_from_slice(within.as_bytes());
        texts[TEXT_BYTES..TEXT_BYTES + ends.len()].copy_from_slice(ends.as_bytes());
        self.file.write_all_at(&texts, WITHIN)?;
        self.file.write_all_at(&u32::from(folder).to_ne_bytes(), FOLDERS)?;
        // Last: from here on it is looked at.
        Ok(self.file.write_all_at(&1_u32.to_ne_bytes(), FAIL_ONCE)?)
    }

    /// Nothing more is done.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn rest(&self) -> Result<(), Error> {
        Ok(self.file.write_all_at(&[0; 8], SHORT_OF)?)
    }

    /// What was done.
    pub(crate) fn done(&self) -> Meddled {
        let mut bytes = [0; 40];
        if self.file.read_exact_at(&mut bytes, DONE).is_err() {
            return Meddled::default();
        }
        let (counts, _) = bytes.as_chunks::<8>();
        let count = |at: usize| counts.get(at).map_or(0, |count| u64::from_ne_bytes(*count));
        Meddled { shorts: [0, 1, 2].map(count), fails: count(3), lies: count(4) }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is asked for happens, and to nothing else. Method: a shell that the library is loaded into.
    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
        meddle: Meddle,
    }

    fn bench() -> Option<Bench> {
        Meddle::possible().ok()?;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("data/log")).unwrap();
        let meddle = Meddle::make(&Meddle::library(folder.path()).unwrap(), folder.path()).unwrap();
        Some(Bench { folder, meddle })
    }

    impl Bench {
        fn run(&self, program: &str, args: &[&str]) -> bool {
            let done =
                Command::new(program).args(args).envs(self.meddle.env()).current_dir(self.folder.path()).output();
            done.unwrap().status.success()
        }
    }

    #[test]
    fn writes_are_cut_short_and_what_is_written_is_right() {
        let Some(bench) = bench() else { return };
        bench.meddle.cut_short(1, 7).unwrap();
        // It writes what is left, again and again, as a program must.
        assert!(bench.run("sh", &["-c", "head -c 300 /dev/zero | tr '\\0' x | cat > data/log/1.log"]));
        assert_eq!(std::fs::read(bench.folder.path().join("data/log/1.log")).unwrap(), vec![b'x'; 300]);
        let done = bench.meddle.done();
        assert!(done.shorts[0] > 1 && done.shorts[1..] == [0, 0], "{done:?}");
        bench.meddle.rest().unwrap();
        assert!(bench.run("sh", &["-c", "echo more > data/log/2.log"]));
        assert_eq!(bench.meddle.done(), done);
    }

    #[test]
    fn one_sync_fails_and_it_is_of_that_file() {
        let Some(bench) = bench() else { return };
        for name in ["1.log", "1.tmp"] {
            std::fs::write(bench.folder.path().join("data/log").join(name), "x").unwrap();
        }
        bench.meddle.fail_once(Synced::Log).unwrap();
        assert!(bench.run("sync", &["data/log/1.tmp", "data/log"]));
        assert_eq!(bench.meddle.done().fails, 0);
        assert!(!bench.run("sync", &["data/log/1.log"]), "it fails");
        assert!(bench.run("sync", &["data/log/1.log"]), "once");
        bench.meddle.fail_once(Synced::Folder).unwrap();
        // The second is of the same folder in the same process: said to be done.
        assert!(!bench.run("sync", &["data/log", "data/log"]));
        assert_eq!(bench.meddle.done(), Meddled { shorts: [0; 3], fails: 2, lies: 1 });
    }
}
