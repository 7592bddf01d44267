//! Backups: a snapshot of the agreed state in one file, and a new cluster of one node made of it.
//!
//! Why not a copy of the directory: it holds a vote and a log, and a node that is started on an old copy of them breaks
//! what it has promised. A backup holds neither: what is restored is a node that nobody has heard of, with an id that was
//! never given, which holds every partition alone. The nodes of before are dead to it, so none of them can come back by
//! mistake. Drawn in `docs/formats/raft.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use engram_model::Millis;
use engram_model::place::NodeId;
use openraft::type_config::alias::{StoredMembershipOf, VoteOf};
use openraft::{BasicNode, Membership};
use serde::{Deserialize, Serialize};

use super::files::Out;
use super::machine::Applied;
use super::snapshot::{SnapshotFile, write_frames};
use super::{Db, Pinned, RAFT, SnapshotDir};
use crate::codec;
use crate::error::Error;
use crate::group::{Identity, TypeConfig};
use crate::state::{Draft, NodeSpec, Stamp, View, take_over};

const MAGIC: &[u8; 8] = b"EngrBkup";
const VERSION: u32 = 1;
/// Longest description.
const ABOUT_BYTES_MAX: u32 = 64 << 10;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Of which cluster.
    pub cluster: String,
    /// As of which entry.
    pub index: u64,
    /// Log time of that entry.
    pub at: Millis,
    /// Which version wrote it.
    pub version: String,
    /// Nodes that were not dead.
    pub nodes: u64,
    /// Tenants.
    pub tenants: u64,
    /// Blocks.
    pub blocks: u64,
}

impl About {
    fn of(view: &View) -> Self {
        let living = view.nodes.iter().filter(|(_, row)| row.state != crate::state::NodeState::Dead);
        Self {
            cluster: view.cluster.as_ref().map(|cluster| cluster.id.clone()).unwrap_or_default(),
            index: view.applied.unwrap_or(0),
            at: view.time,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: living.count() as u64,
            tenants: view.tenants.len() as u64,
            blocks: view.blocks.iter().map(|(_, blocks)| blocks.len() as u64).sum(),
        }
    }
}

fn damaged(why: impl Into<String>) -> Error {
    Error::corrupt("backup", why)
}

/// Writes a backup of what is applied now into a file whose name is gone already; it stands at its start.
pub(crate) fn write(db: &Db, snapshots: &SnapshotDir) -> Result<File, Error> {
    let pinned = Pinned::new(db);
    let applied = Applied::read(&pinned)?;
    let about = About::of(&View::load(&pinned, applied.index())?);
    let (path, out) = snapshots.temp()?;
    if !matches!(out, Out::Disk(_)) {
        return Err(Error::Settings { why: "a disk in memory holds no backups".to_owned() });
    }
    let file = File::options().read(true).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
    // Unnamed from here on: whatever happens, nothing is left behind.
    std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
    let about = codec::encode("backup", &about)?;
    let length = u32::try_from(about.len()).map_err(|_| damaged("its description is too long"))?;
    let head =
        [MAGIC, &VERSION.to_be_bytes()[..], &length.to_be_bytes(), &crc32c::crc32c(&about).to_be_bytes(), &about];
    let mut out = BufWriter::new(&file);
    out.write_all(&head.concat()).map_err(|e| Error::io(&path, e))?;
    write_frames(&mut out, &path, &pinned, &applied.meta())?;
    drop(out);
    let mut file = file;
    file.rewind().map_err(|e| Error::io(&path, e))?;
    Ok(file)
}

/// Reads the description; the snapshot follows it.
fn open(path: &Path) -> Result<(About, SnapshotFile), Error> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let short = |e: std::io::Error| damaged(format!("it cannot be read to its end: {e}"));
    let mut head = [0; 20];
    file.read_exact(&mut head).map_err(short)?;
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[..8] != *MAGIC {
        return Err(damaged("it does not begin as one"));
    }
    if number(8) != VERSION {
        return Err(damaged(format!("it is of version {}, known is {VERSION}", number(8))));
    }
    let length = number(12);
    if length > ABOUT_BYTES_MAX {
        return Err(damaged(format!("a description of {length} bytes")));
    }
    let mut about = vec![0; length as usize];
    file.read_exact(&mut about).map_err(short)?;
    if crc32c::crc32c(&about) != number(16) {
        return Err(damaged("the checksum of its description is wrong"));
    }
    let about = codec::decode("backup", &about)?;
    Ok((about, SnapshotFile::within(file, path, 20 + u64::from(length))))
}

/// Reads all of a backup and says what it is.
///
/// # Errors
/// [`Error::Corrupt`]: torn, damaged, or of a version this one does not know.
pub fn check(path: &Path) -> Result<About, Error> {
    let (about, snapshot) = open(path)?;
    snapshot.verify()?;
    Ok(about)
}

/// What a restored cluster is called, and its only node.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub about: About,
    /// The cluster's name from now on.
    pub cluster: String,
    /// The node.
    pub id: NodeId,
}

/// Makes the metadata of a cluster of one node in `dir`, from a backup. `cluster`: another name than it had.
///
/// # Errors
/// The backup is damaged, there is metadata in `dir` already, or the disk fails; then `dir` must be emptied before it is
/// tried again.
pub fn restore(path: &Path, dir: &Path, cluster: Option<String>, node: &NodeSpec) -> Result<Restored, Error> {
    let (about, snapshot) = open(path)?;
    let meta = snapshot.verify()?;
    let last = meta.last_log_id.ok_or_else(|| damaged("nothing is in it"))?;
    if dir.join("db").exists() {
        let why = format!("{} holds metadata already", dir.display());
        return Err(Error::Settings { why });
    }
    // The first index that was never given to anybody: the node's id, and the last one that counts as applied.
    let log_id = super::LogId { leader_id: last.leader_id, index: last.index.saturating_add(1) };
    let (id, cluster) = (NodeId(log_id.index), cluster.unwrap_or_else(|| about.cluster.clone()));
    let (db, _closed) = Db::open(dir)?;
    let db = Arc::new(db);
    snapshot.fill(&db)?;
    let view = View::load(&*db, Some(last.index))?;
    let stamp = Stamp { index: log_id.index, at: view.time, by: "restore".to_owned() };
    let mut draft = Draft::new(&*db);
    take_over(&mut draft, &view, (id, node), &cluster, &stamp)?;
    let mut batch = db.batch();
    super::machine::put(&mut batch, draft.finish().0)?;
    let members = BTreeMap::from([(id.0, BasicNode::new(&node.grpc))]);
    let voters = Membership::new(vec![BTreeSet::from([id.0])], members).map_err(|e| damaged(e.to_string()))?;
    let membership = StoredMembershipOf::<TypeConfig>::new(Some(log_id), voters);
    Applied { log_id: Some(log_id), membership }.write(&mut batch)?;
    let identity = Identity { id, cluster_id: cluster.clone(), partition_count: None };
    let vote: VoteOf<TypeConfig> = VoteOf::<TypeConfig>::new(log_id.leader_id.term, id.0);
    batch.put(RAFT, "identity", codec::encode("identity", &identity)?)?;
    batch.put(RAFT, "vote", codec::encode("vote", &vote)?)?;
    batch.put(RAFT, "purged", codec::encode("purged", &log_id)?)?;
    batch.put(RAFT, "committed", codec::encode("committed", &log_id)?)?;
    db.write(batch, true)?;
    Ok(Restored { about, cluster, id })
}
