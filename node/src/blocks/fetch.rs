//! Blocks of the object store, brought to where they can be read at once.
//!
//! Why whole: a merge reads every byte of its sources, so a copy on the disk costs each byte once and needs no waiting
//! in the middle of a merge. Where the store is a directory of this node the block is read where it lies. What comes is
//! held against the lengths and checksums that were agreed, before anybody believes it.
//!
//! [`drive`] is for those who want a little of a block: it fetches the ranges a reading asks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_model::block::{BlockFile, BlockMeta};
use engram_model::error::Classed;
use engram_storage::codec::crc32c_append;
use engram_storage::disk::{Disk, DiskFile};
use engram_storage::object::{Store, block_key};
use engram_storage::ranges::{Fetched, Place, Reading, Sizes, Step};
use futures::{StreamExt, TryStreamExt, stream};

use crate::error::Error;

/// Bytes of one request.
const PIECE_BYTES: u64 = 8 << 20;
/// Pieces of a file that are fetched at once.
const PIECES_AT_ONCE: usize = 4;

/// Why a block could not be had.
#[derive(Debug)]
pub enum Missing {
    /// It is not what was agreed: damaged, cut short, or not there.
    Damaged(String),
    /// The disk or the store refuses; later may work.
    Failed(Error),
}

impl From<engram_storage::Error> for Missing {
    fn from(error: engram_storage::Error) -> Self {
        if error.is_not_found() || matches!(error, engram_storage::Error::Corrupt { .. }) {
            return Self::Damaged(error.to_string());
        }
        Self::Failed(Error::new(error.class(), error.to_string()))
    }
}

/// The directory of a block: where it lies, or below `to` after it was copied there.
///
/// # Errors
/// [`Missing`].
///
/// # Cancel safety
/// What was copied so far stays below `to`.
pub async fn block(store: &Store, disk: &Arc<dyn Disk>, meta: &BlockMeta, to: &Path) -> Result<PathBuf, Missing> {
    if let Some(path) = store.local_block(&meta.tenant, meta.id) {
        return Ok(path);
    }
    let dir = to.join(meta.id.to_string());
    on_disk(disk, &dir.join("chunks"), |disk, path| disk.create_dir(path)).await?;
    for file in &meta.files {
        let path = dir.join(&file.name);
        let new = on_disk(disk, &path, |disk, path| disk.create(path)).await?;
        copy(store, meta, file, Arc::from(new)).await?;
    }
    Ok(dir)
}

async fn copy(store: &Store, meta: &BlockMeta, file: &BlockFile, to: Arc<dyn DiskFile>) -> Result<(), Missing> {
    let key = block_key(&meta.tenant, meta.id, &file.name);
    let pieces = (0..file.bytes.div_ceil(PIECE_BYTES)).map(|n| n * PIECE_BYTES);
    let (store, key) = (&store, key.as_str());
    let mut coming =
        stream::iter(pieces)
            .map(|at| async move {
                Ok::<_, Missing>((at, store.get_range(key, at, PIECE_BYTES.min(file.bytes - at)).await?))
            })
            .buffered(PIECES_AT_ONCE);
    let mut crc = 0;
    while let Some((at, bytes)) = coming.try_next().await? {
        crc = crc32c_append(crc, &bytes);
        let to = to.clone();
        let written = engram_storage::blocking::blocking(move || to.write_at(at, &bytes)).await;
        written.map_err(|e| Missing::Failed(Error::unavailable(format!("writing a copy failed: {e}"))))??;
    }
    if crc != file.crc32c {
        return Err(Missing::Damaged(format!("checksum of {key} is {crc:08x}, agreed was {:08x}", file.crc32c)));
    }
    Ok(())
}

async fn on_disk<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    path: &Path,
    act: impl FnOnce(&dyn Disk, &Path) -> Result<T, engram_storage::Error> + Send + 'static,
) -> Result<T, Missing> {
    let (disk, path) = (disk.clone(), path.to_owned());
    let done = engram_storage::blocking::blocking(move || act(&*disk, &path)).await;
    Ok(done.map_err(|e| Missing::Failed(Error::unavailable(format!("work on the disk failed: {e}"))))??)
}

/// Where the objects of a block lie and how long they are.
#[must_use]
pub fn place_of(meta: &BlockMeta) -> Place {
    let of = |name: &str| meta.files.iter().find(|file| file.name == name).map_or(0, |file| file.bytes);
    let chunks = meta.files.iter().filter(|file| file.name.starts_with("chunks/"));
    let sizes = Sizes { index: of("index"), chunks: chunks.map(|file| file.bytes).collect() };
    Place { path: PathBuf::from(format!("{}/{}", meta.tenant, meta.id)), sizes }
}

/// Reads a part of a block to the end, by ranges.
///
/// # Errors
/// [`Missing`].
pub async fn drive<R: Reading>(store: &Store, meta: &BlockMeta, reading: &mut R) -> Result<R::Out, Missing> {
    let mut have = Fetched::new();
    loop {
        let wants = match reading.step(&have)? {
            Step::Done(out) => return Ok(out),
            Step::Need(wants) => wants,
        };
        have = Fetched::new();
        let coming = wants.into_iter().map(|want| async move {
            let key = block_key(&meta.tenant, meta.id, &want.file.path());
            Ok::<_, Missing>((want, store.get_range(&key, want.at, want.len).await?))
        });
        let mut coming = stream::iter(coming).buffer_unordered(PIECES_AT_ONCE);
        while let Some((want, bytes)) = coming.try_next().await? {
            have.insert(want, bytes);
        }
    }
}
