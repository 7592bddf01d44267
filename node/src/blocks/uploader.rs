//! From a block directory of this node to an agreed block in the object store.
//!
//! Why the order: the objects first, `meta.json` last, all of it read back, then the commit. Until the commit nobody reads them, so a crash
//! before it leaves objects that nobody misses (the sweeper finds what no metadata names); after it the block is whole.
//! The work directory is a copy that any start may throw away.
//!
//! Nothing is deleted here when a commit fails: whether it failed may be unknown, and the objects may be the only copy
//! of what the heads have forgotten by then.

use std::path::Path;
use std::sync::Arc;

use engram_model::block::{BlockId, BlockMeta, Origin};
use engram_model::error::{Class, Classed};
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};
use engram_storage::block::{self, Written};
use engram_storage::disk::Disk;
use engram_storage::object::Store;

use super::check::{self, Depth, Pace};
use crate::error::Error;

/// What is known of a block besides what was written.
#[derive(Clone, Debug)]
pub struct About {
    /// Whose.
    pub tenant: TenantId,
    /// Its range.
    pub range: TimeRange,
    /// Where it comes from.
    pub origin: Origin,
    /// Index of the metadata up to which deletions are carried out in it.
    pub as_of: u64,
    /// When it was made.
    pub made_at: Millis,
}

/// Uploads a block and says what is to be agreed of it.
///
/// # Errors
/// Those of the disk and of the store; the block is not there then, or without `meta.json`.
///
/// # Cancel safety
/// As after an error.
pub async fn upload(store: &Store, about: About, written: &Written) -> Result<BlockMeta, Error> {
    let id = written.meta.ulid;
    let files = store.put_block(&written.path, &about.tenant, id).await.map_err(|e| storage_error(&e))?;
    Ok(BlockMeta {
        id,
        tenant: about.tenant,
        range: about.range,
        level: 1,
        origin: about.origin,
        shard: None,
        sources: Vec::new(),
        series: written.report.series,
        chunks: written.report.chunks,
        digest: written.report.digest(),
        files,
        as_of: about.as_of,
        made_at: about.made_at,
    })
}

/// Whether a block that was uploaded lies in the store as it is to be agreed: every object is there, as long as it was, and
/// what comes back of it has its checksum. After the commit the heads forget, so nobody takes the store's word for a cut.
///
/// # Errors
/// Internal when something differs; Unavailable when the store does not answer.
pub async fn confirm(store: &Store, block: &BlockMeta, depth: Depth) -> Result<(), Error> {
    // In a directory of this machine the upload has read everything back already.
    let depth = if store.local_root().is_some() { Depth::Lengths } else { depth };
    let checked = check::block(store, block, depth, Pace::default()).await?;
    if checked.found.is_empty() {
        return Ok(());
    }
    Err(Error::new(Class::Internal, format!("block {} did not arrive as it was sent: {}", block.id, checked.why())))
}

/// Removes the blocks in the work directory, which is made when it is not there: what a crash left. What is no block's
/// directory by its name is left alone, should somebody have chosen a directory that holds other things.
///
/// # Errors
/// Those of the disk.
pub fn clean(disk: &dyn Disk, work: &Path) -> Result<usize, engram_storage::Error> {
    disk.create_dir(work)?;
    let mut names = disk.list_dirs(work)?;
    names.retain(|name| name.split('.').next().is_some_and(|name| name.parse::<BlockId>().is_ok()));
    names.iter().try_for_each(|name| block::remove(disk, &work.join(name)))?;
    Ok(names.len())
}

/// Removes the work copy of a block; what cannot be removed is told, and tried again at the next start.
pub async fn remove_copy(disk: Arc<dyn Disk>, work: &Path, id: BlockId) {
    let dir = work.join(id.to_string());
    let shown = dir.display().to_string();
    let removed = engram_storage::blocking::blocking(move || block::remove(&*disk, &dir)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(dir = shown, %error, "the work copy of a block cannot be removed");
    }
}

pub(super) fn storage_error(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}
