//! How far the node's log had come: a note beside the log, so that a log that is gone is noticed.
//!
//! Why: an empty directory looks like a log that never was. A node whose `log/` was deleted, or exchanged for an older
//! copy, would start as if nothing were wrong, without samples it had acknowledged. The note says that there was a log,
//! and up to which entry at least; it is written at each start, after each round of checkpoints and at the stop. It
//! lags behind the log, never before it.
//!
//! ```text
//! log.reached      "entry N\n": entries up to N were durable. Replaced as a whole.
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_storage::Error;
use engram_storage::disk::Disk;
use engram_storage::log::Replayed;

/// Longest note.
const NOTE_BYTES_MAX: usize = 64;

/// The note of one data directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reached {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Reached {
    /// The note in the directory `dir`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self { disk, dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("log.reached")
    }

    /// Whether there is a log at all where there was one: before it is opened, which makes a new one.
    ///
    /// # Errors
    /// It is gone, and the ways out; or that the note cannot be read.
    pub fn check_there(&self, log: &Path) -> Result<(), String> {
        let Some(entry) = self.read().map_err(|e| e.to_string())? else { return Ok(()) };
        let is_there = self.disk.list(log).is_ok_and(|names| names.iter().any(|name| name.ends_with(".log")));
        if is_there { Ok(()) } else { Err(self.gone(log, 0, entry)) }
    }

    /// Holds what was found of the log against the note.
    ///
    /// # Errors
    /// What is missing, and the ways out; or that the note cannot be read.
    pub fn check(&self, log: &Path, found: &Replayed) -> Result<(), String> {
        let Some(entry) = self.read().map_err(|e| e.to_string())? else { return Ok(()) };
        let have = found.next.0.saturating_sub(1);
        if have >= entry { Ok(()) } else { Err(self.gone(log, have, entry)) }
    }

    fn gone(&self, log: &Path, have: u64, entry: u64) -> String {
        format!(
            "the log {} has entries up to {have}, and had them up to {entry} at least: it was deleted, or exchanged for \
             an older copy, and acknowledged samples may be missing. Put the log back, or a whole backup of the data \
             directory; to go on without these samples, delete {}",
            log.display(),
            self.path().display()
        )
    }

    /// The entry of the note; none when there is none.
    fn read(&self) -> Result<Option<u64>, Error> {
        let path = self.path();
        if !self.disk.list(&self.dir)?.iter().any(|name| path.ends_with(name)) {
            return Ok(None);
        }
        let mut bytes = vec![0; NOTE_BYTES_MAX];
        let len = self.disk.open(&path)?.read_at(0, &mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..len]);
        let entry = text.strip_prefix("entry ").and_then(|rest| rest.trim_end().parse().ok());
        entry.map(Some).ok_or_else(|| Error::corrupt(&path, 0, format!("expected \"entry N\", found {text:?}")))
    }

    /// Notes that entries up to `entry` are durable.
    ///
    /// # Errors
    /// [`Error::Io`]; the note before stays.
    pub fn note(&self, entry: u64) -> Result<(), Error> {
        let (path, new) = (self.path(), self.dir.join("log.reached.new"));
        if self.disk.list(&self.dir)?.iter().any(|name| new.ends_with(name)) {
            self.disk.remove(&new)?;
        }
        let file = self.disk.create(&new)?;
        file.write_at(0, format!("entry {entry}\n").as_bytes())?;
        file.sync_all()?;
        self.disk.rename(&new, &path)?;
        self.disk.sync_dir(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use engram_storage::disk::fault::FaultDisk;
    use engram_storage::log::{NodeLog, Options};

    use super::*;

    /// What is found of a log of so many entries, deleted or not.
    fn found(disk: &FaultDisk, entries: u64) -> Replayed {
        let log = Path::new("d/log");
        let options = Options { segment_bytes: 16 << 10, ..Options::default() };
        let log = NodeLog::open(Arc::new(disk.clone()), log, options, &mut |_, _| Ok(())).unwrap();
        let found = log.replayed().clone();
        for _ in found.next.0..=entries {
            log.append(vec![1], Box::new(|_| ())).unwrap();
        }
        log.close().unwrap();
        found
    }

    #[test]
    fn a_log_that_is_gone_or_older_is_noticed() {
        let disk = FaultDisk::new();
        let reached = Reached::new(Arc::new(disk.clone()), Path::new("d"));
        let check = |found: &Replayed| reached.check(Path::new("d/log"), found);
        let there = || reached.check_there(Path::new("d/log"));
        assert_eq!(there(), Ok(()), "a new directory");
        reached.note(0).unwrap();
        assert!(there().is_err(), "there was a log, if an empty one");
        let (new, old) = (found(&disk, 5), found(&disk, 10));
        assert!(there().is_ok() && check(&new).is_ok() && check(&old).is_ok());
        reached.note(10).unwrap();
        let whole = found(&disk, 10);
        assert!(check(&whole).is_ok());
        for gone in [&new, &old] {
            let text = check(gone).unwrap_err();
            assert!(text.contains("d/log") && text.contains("delete d/log.reached"), "{text}");
        }
        disk.crash(3);
        assert!(check(&old).is_err() && check(&whole).is_ok());
        disk.flip(Path::new("d/log.reached"), 0, 1);
        assert!(check(&whole).unwrap_err().contains("log.reached"));
    }
}
