//! One block of the object store held against what the metadata say of it.
//!
//! Two depths. *Objects*: each is there, as long as agreed, and its bytes have the checksum that was agreed when they
//! were uploaded. *Deep*: besides, all of the block is recomputed, and its series, chunks and digest are those agreed.
//! The first finds what a disk or a store has changed; the second also finds what we or another tool wrote wrong.
//!
//! Whoever is patient reads at a pace: bytes are waited for after they have come, so that a check takes no more of the
//! store than it was given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_model::block::{BlockFile, BlockMeta};
use engram_model::error::Classed;
use engram_storage::block::{Meta as BlockInfo, Report, verify};
use engram_storage::codec::crc32c_append;
use engram_storage::object::{Store, block_key};
use engram_storage::ranges::{Sizes, Source, Want};
use tokio::runtime::Handle;

use crate::error::Error;

/// Bytes of one request.
const PIECE_BYTES: u64 = 4 << 20;
/// Findings of one block; with more, nobody reads on.
const FOUND_MAX: usize = 20;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Lengths of objects.
    Lengths,
    /// Lengths and checksums of objects.
    Objects,
    /// All of it recomputed as well.
    Deep,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An object is not there.
    Missing,
    /// It has another length.
    Length,
    /// It has other bytes.
    Checksum,
    /// What is in it is not what was agreed, or contradicts itself.
    Content,
}

impl Fault {
    /// One word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Content => "content",
        }
    }
}

/// One thing that is wrong with a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Of which object.
    pub file: String,
    /// What.
    pub fault: Fault,
    /// For people.
    pub what: String,
}

/// How fast is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Bytes a second; 0: as fast as it goes.
    pub bytes_per_second: u64,
}

impl Pace {
    /// Waits as long as so many bytes take.
    async fn wait(self, bytes: u64) {
        if let Some(millis) = bytes.saturating_mul(1000).checked_div(self.bytes_per_second) {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong, by file; empty: nothing.
    pub found: Vec<Found>,
    /// Objects beside the block's own that nobody agreed on: marks of other tools, or leftovers. Nobody reads them.
    pub extra: Vec<String>,
}

impl Checked {
    fn add(&mut self, file: &str, fault: Fault, what: String) {
        if self.found.len() < FOUND_MAX {
            self.found.push(Found { file: file.to_owned(), fault, what });
        }
    }

    /// All that is wrong, in one line.
    #[must_use]
    pub fn why(&self) -> String {
        let all: Vec<String> =
            self.found.iter().map(|one| format!("{}: {}: {}", one.file, one.fault.word(), one.what)).collect();
        all.join("; ")
    }
}

/// Checks a block.
///
/// # Errors
/// The store does not answer: nothing is known then.
///
/// # Cancel safety
/// Nothing is kept; a recomputation on its thread ends at its next read.
pub async fn block(store: &Store, meta: &BlockMeta, depth: Depth, pace: Pace) -> Result<Checked, Error> {
    let mut checked = Checked::default();
    let listed = store.block_files(&meta.tenant, meta.id).await.map_err(|e| failed(&e))?;
    let there: BTreeMap<&str, u64> = listed.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    for file in &meta.files {
        match there.get(file.name.as_str()) {
            None => checked.add(&file.name, Fault::Missing, "it is not in the store".to_owned()),
            Some(bytes) if *bytes != file.bytes => {
                let what = format!("it is {bytes} bytes long, agreed were {}", file.bytes);
                checked.add(&file.name, Fault::Length, what);
            }
            Some(_) if depth == Depth::Lengths => {}
            Some(_) => objects(store, meta, file, pace, &mut checked).await?,
        }
    }
    let agreed = |name: &str| meta.files.iter().any(|file| file.name == name);
    checked.extra = there.into_keys().filter(|name| !agreed(name)).take(FOUND_MAX).map(str::to_owned).collect();
    if depth == Depth::Deep && checked.found.is_empty() {
        deep(store, meta, pace, &mut checked).await?;
    }
    Ok(checked)
}

/// The checksum of one object.
async fn objects(
    store: &Store,
    meta: &BlockMeta,
    file: &BlockFile,
    pace: Pace,
    checked: &mut Checked,
) -> Result<(), Error> {
    let key = block_key(&meta.tenant, meta.id, &file.name);
    let (mut at, mut crc) = (0, 0);
    while at < file.bytes {
        let len = PIECE_BYTES.min(file.bytes - at);
        let bytes = match store.get_range(&key, at, len).await {
            Ok(bytes) => bytes,
            Err(error) => return damage(error, &file.name, checked),
        };
        crc = crc32c_append(crc, &bytes);
        at += len;
        checked.bytes += len;
        pace.wait(len).await;
    }
    if crc != file.crc32c {
        let what = format!("its checksum is {crc:08x}, agreed was {:08x}", file.crc32c);
        checked.add(&file.name, Fault::Checksum, what);
    }
    Ok(())
}

/// A read that failed: damage is found, anything else means that nothing is known.
fn damage(error: engram_storage::Error, file: &str, checked: &mut Checked) -> Result<(), Error> {
    if error.is_not_found() {
        checked.add(file, Fault::Missing, "it is not in the store".to_owned());
        return Ok(());
    }
    if let engram_storage::Error::Corrupt { .. } = error {
        checked.add(file, Fault::Content, error.to_string());
        return Ok(());
    }
    Err(failed(&error))
}

/// Everything recomputed.
async fn deep(store: &Store, meta: &BlockMeta, pace: Pace, checked: &mut Checked) -> Result<(), Error> {
    let source = Remote::new(store.clone(), meta, pace);
    let key = block_key(&meta.tenant, meta.id, META);
    let json = match store.get(&key).await {
        Ok(json) => json.unwrap_or_default(),
        Err(error) => return damage(error, META, checked),
    };
    let work =
        engram_storage::blocking::blocking(move || -> Result<(BlockInfo, Report, u64), engram_storage::Error> {
            let info = BlockInfo::read(Path::new(META), &json)?;
            let report = verify(&source, &info)?;
            let bytes = source.read.load(std::sync::atomic::Ordering::Relaxed);
            Ok((info, report, bytes))
        });
    let ended = |e| Error::new(engram_model::error::Class::Internal, format!("the check failed: {e}"));
    let (info, report, bytes) = match work.await.map_err(ended)? {
        Ok(done) => done,
        Err(error) => return damage(error, "the block", checked),
    };
    checked.bytes += bytes;
    if info.ulid != meta.id || info.range() != meta.range {
        let what = format!("it calls itself {} from {} to {}", info.ulid, info.min_time, info.max_time);
        checked.add(META, Fault::Content, what);
    }
    let (have, want) = ((report.series, report.chunks, report.digest()), (meta.series, meta.chunks, meta.digest));
    if have != want {
        checked.add(
            "the block",
            Fault::Content,
            format!("series, chunks and digest are {have:?}, agreed were {want:?}"),
        );
    }
    Ok(())
}

const META: &str = "meta.json";

fn failed(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}

/// A block of the store for one who reads on a thread of its own.
#[derive(Debug)]
struct Remote {
    handle: Handle,
    store: Store,
    prefix: String,
    path: PathBuf,
    sizes: Sizes,
    pace: Pace,
    read: Arc<std::sync::atomic::AtomicU64>,
}

impl Remote {
    fn new(store: Store, meta: &BlockMeta, pace: Pace) -> Self {
        let of = |name: &str| meta.files.iter().find(|file| file.name == name).map_or(0, |file| file.bytes);
        // Files are sorted by name, and names of segments have leading zeros.
        let chunks = meta.files.iter().filter(|file| file.name.starts_with("chunks/")).map(|file| file.bytes);
        let sizes = Sizes { index: of("index"), chunks: chunks.collect() };
        let prefix = format!("{}/{}", meta.tenant, meta.id);
        let path = PathBuf::from(&prefix);
        Self { handle: Handle::current(), store, prefix, path, sizes, pace, read: Arc::default() }
    }
}

impl Source for Remote {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, want: Want) -> Result<Bytes, engram_storage::Error> {
        let key = format!("{}/{}", self.prefix, want.file.path());
        self.read.fetch_add(want.len, std::sync::atomic::Ordering::Relaxed);
        self.handle.block_on(async {
            let bytes = self.store.get_range(&key, want.at, want.len).await;
            self.pace.wait(want.len).await;
            bytes
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use engram_model::block::{BlockId, Origin};
    use engram_model::tenant::TenantId;
    use engram_model::{Labels, TimeRange};
    use engram_storage::block::{BlockWriter, Spec, Written};
    use engram_storage::chunk::encode_floats;
    use engram_storage::disk::real::RealDisk;

    /// A block in a store below `dir`, with what the metadata would say of it.
    pub(in crate::blocks) async fn stored(dir: &Path) -> (Store, BlockMeta) {
        let (tenant, id) = (TenantId::new("acme").unwrap(), BlockId::new(7, 1));
        let work = dir.join("work");
        std::fs::create_dir_all(&work).unwrap();
        let range = TimeRange::new(0, 7_200_000);
        let mut writer = BlockWriter::create(Arc::new(RealDisk), &work, Spec::cut(id, range, 7_200_000)).unwrap();
        for i in 0..50_i64 {
            let labels = Labels::from_pairs([("__name__", "m"), ("i", &*format!("{i:02}"))]);
            let samples: Vec<_> = (0..100_i64).map(|at| (at * 1000, (at * i) as f64 / 3.0)).collect();
            writer.add(&labels, &encode_floats(&samples)).unwrap();
        }
        let Written { path, report, .. } = writer.finish().unwrap().unwrap();
        let store = Store::local(Arc::new(RealDisk), &dir.join("store")).unwrap();
        let files = store.put_block(&path, &tenant, id).await.unwrap();
        let (series, chunks, digest) = (report.series, report.chunks, report.digest());
        let (level, origin, shard, sources) = (1, Origin::Imported, None, Vec::new());
        let meta = BlockMeta {
            id,
            tenant,
            range,
            level,
            origin,
            shard,
            sources,
            series,
            chunks,
            digest,
            files,
            as_of: 0,
            made_at: 0,
        };
        (store, meta)
    }

    async fn faults(store: &Store, meta: &BlockMeta, depth: Depth) -> Vec<(String, Fault)> {
        let checked = block(store, meta, depth, Pace::default()).await.unwrap();
        checked.found.into_iter().map(|found| (found.file, found.fault)).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sound_block_is_sound_at_either_depth() {
        let dir = tempfile::tempdir().unwrap();
        let (store, meta) = stored(dir.path()).await;
        for depth in [Depth::Objects, Depth::Deep] {
            let checked = block(&store, &meta, depth, Pace { bytes_per_second: 1 << 40 }).await.unwrap();
            assert_eq!((checked.found.as_slice(), checked.bytes >= meta.bytes()), (&[][..], true));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_kind_of_damage_has_its_word() {
        let dir = tempfile::tempdir().unwrap();
        let (store, meta) = stored(dir.path()).await;
        let path = dir.path().join(format!("store/acme/{}", meta.id));
        for file in ["index", "chunks/000001", "meta.json", "tombstones"] {
            let good = std::fs::read(path.join(file)).unwrap();
            let mut bad = good.clone();
            bad[good.len() / 2] ^= 1;
            std::fs::write(path.join(file), &bad).unwrap();
            assert_eq!(faults(&store, &meta, Depth::Objects).await, [(file.to_owned(), Fault::Checksum)]);
            std::fs::write(path.join(file), &good[1..]).unwrap();
            assert_eq!(faults(&store, &meta, Depth::Deep).await, [(file.to_owned(), Fault::Length)]);
            std::fs::remove_file(path.join(file)).unwrap();
            assert_eq!(faults(&store, &meta, Depth::Objects).await, [(file.to_owned(), Fault::Missing)]);
            std::fs::write(path.join(file), &good).unwrap();
        }
        assert!(faults(&store, &meta, Depth::Deep).await.is_empty());
        // What was agreed of the content is not in it: only the deep look sees that.
        let mut other = meta.clone();
        other.digest.low ^= 1;
        assert!(faults(&store, &other, Depth::Objects).await.is_empty());
        assert_eq!(faults(&store, &other, Depth::Deep).await, [("the block".to_owned(), Fault::Content)]);
    }
}
