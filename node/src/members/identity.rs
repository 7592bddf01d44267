//! Who this node is, across restarts: one small file beside the metadata.
//!
//! Why a file of its own: before a node belongs to a cluster it must already remember what it has said, its name in a
//! registration (so that a repeated one finds the same id) and its promise to a founder (so that no two clusters are
//! made). Every change is durable before anybody hears of it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Random name of this data directory.
    pub token: String,
    /// The cluster this node belongs to.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Its id there; on the founder none until the cluster is made.
    #[serde(default)]
    pub node: Option<u64>,
    /// Whom this node has promised not to make a cluster beside.
    #[serde(default)]
    pub promised: Option<String>,
    /// Whether it has ever had metadata: it may have voted, and what it has agreed to must not be forgotten.
    #[serde(default)]
    pub opened: bool,
}

/// The file, and what it says.
#[derive(Debug)]
pub struct IdentityFile {
    path: PathBuf,
    now: Mutex<Identity>,
}

impl IdentityFile {
    /// Reads the file, or writes the first one.
    ///
    /// # Errors
    /// What the disk said, with the path.
    pub fn open(path: &Path) -> Result<Self, String> {
        let say = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let now = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| say(&e))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let token = uuid::Uuid::new_v4().to_string();
                let first = Identity { token, ..Identity::default() };
                write(path, &first).map_err(|e| say(&e))?;
                first
            }
            Err(error) => return Err(say(&error)),
        };
        Ok(Self { path: path.to_owned(), now: Mutex::new(now) })
    }

    /// What it says.
    #[must_use]
    pub fn get(&self) -> Identity {
        self.now.lock().clone()
    }

    /// Changes it; nobody sees a change that is not durable, and no two changes cross.
    ///
    /// # Errors
    /// What the disk said, with the path; then nothing has changed.
    pub fn change<T>(&self, change: impl FnOnce(&mut Identity) -> T) -> Result<T, String> {
        let mut now = self.now.lock();
        let mut next = now.clone();
        let answer = change(&mut next);
        if next != *now {
            write(&self.path, &next).map_err(|e| format!("{}: {e}", self.path.display()))?;
            *now = next;
        }
        Ok(answer)
    }
}

/// Beside, synced, renamed, the directory synced: after a crash there is the old file or the new one.
fn write(path: &Path, identity: &Identity) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(identity)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("member.json");
        let first = IdentityFile::open(&path).unwrap();
        let token = first.get().token;
        assert!(!token.is_empty());
        first.change(|i| i.promised = Some("x".to_owned())).unwrap();
        let again = IdentityFile::open(&path).unwrap();
        assert_eq!(again.get(), Identity { token, promised: Some("x".to_owned()), ..Identity::default() });
        std::fs::write(&path, "{").unwrap();
        assert!(IdentityFile::open(&path).is_err());
    }
}
