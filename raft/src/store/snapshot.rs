//! Snapshots as files: written from a pinned view, streamed, verified, kept one at a time.
//!
//! Why files: a snapshot of 10,000 tenants (later millions of blocks) must be neither built nor sent nor installed in
//! memory. Why frames: each carries a checksum over its kind, length and bytes, and the last one counts the rows, so
//! a torn or damaged file is known as such before a single row of it is installed. The file is written under a
//! temporary name, synced, renamed and its directory synced; then older ones are deleted. Whoever is still sending an
//! older one holds it open, so deleting its name does not disturb. Drawn in `docs/formats/raft.md`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::type_config::alias::SnapshotMetaOf;
use parking_lot::Mutex;

use super::files::{Folder, In, Out};
use super::{Db, MemoryDisk};
use crate::codec;
use crate::error::Error;
use crate::group::TypeConfig;
use crate::state::{Base, Table};

/// What a snapshot covers.
pub(crate) type Meta = SnapshotMetaOf<TypeConfig>;

const MAGIC: &[u8; 8] = b"EngrMeta";
/// Rows are gathered to frames of this size.
const FRAME_BYTES: usize = 256 << 10;
/// A frame above this size is damage, not data.
const FRAME_BYTES_MAX: usize = 64 << 20;
const SUFFIX: &str = "snapshot";

const KIND_META: u8 = 1;
const KIND_ROWS: u8 = 2;
const KIND_END: u8 = 3;

/// The key that says what is applied; it belongs to the store, not to the state, and comes from the meta frame.
pub(super) const APPLIED_KEY: &[u8] = b"applied";

/// An open snapshot: what openraft hands around. It stays readable when its name is gone.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    file: In,
    path: PathBuf,
    /// Where it begins in the file.
    from: u64,
}

/// A reader with a position of its own over a shared handle.
pub(crate) struct At {
    file: In,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(into, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl SnapshotFile {
    fn open(folder: &Folder, path: PathBuf) -> Result<Self, Error> {
        let file = folder.open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { file, path, from: 0 })
    }

    /// The snapshot that begins at `from` of a larger file.
    pub(super) fn within(file: File, path: &Path, from: u64) -> Self {
        Self { file: In::Disk(Arc::new(file)), path: path.to_owned(), from }
    }

    /// Puts all rows into an empty database.
    pub(super) fn fill(&self, db: &Db) -> Result<(), Error> {
        let batch = std::cell::RefCell::new(db.batch());
        self.rows(
            |table, key, value| batch.borrow_mut().put(table.name(), key, value),
            || db.write(batch.replace(db.batch()), false),
        )
    }

    /// A reader over the whole file, from its start.
    pub(crate) fn reader(&self) -> At {
        At { file: self.file.clone(), offset: self.from }
    }

    fn frames(&self) -> Result<Frames, Error> {
        Frames::new(BufReader::with_capacity(FRAME_BYTES, self.reader()))
    }

    /// Reads the file once to its end and says what it covers.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: torn or damaged.
    pub(crate) fn verify(&self) -> Result<Meta, Error> {
        let mut frames = self.frames()?;
        let meta = frames.meta()?;
        frames.rows(|_, _, _| Ok(()), || Ok(()))?;
        Ok(meta)
    }

    /// Calls `row` for each row and `flush` after each frame of them.
    pub(super) fn rows(
        &self,
        row: impl FnMut(Table, &[u8], &[u8]) -> Result<(), Error>,
        flush: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut frames = self.frames()?;
        frames.meta()?;
        frames.rows(row, flush)
    }

    pub(super) fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// Where snapshots lie.
pub(crate) struct SnapshotDir {
    folder: Folder,
    dir: PathBuf,
    next_temp: AtomicU64,
    /// Held while files get or lose their final names.
    naming: Mutex<()>,
}

impl SnapshotDir {
    /// Opens or makes `dir/snapshots` and deletes what a crash left half-written.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let dir = dir.join("snapshots");
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        Self::of(Folder::Disk, dir)
    }

    /// The folder on a disk in memory.
    pub(crate) fn in_memory(disk: &MemoryDisk) -> Result<Self, Error> {
        Self::of(Folder::Memory(disk.open()), PathBuf::new())
    }

    fn of(folder: Folder, dir: PathBuf) -> Result<Self, Error> {
        let this = Self { folder, dir, next_temp: AtomicU64::new(0), naming: Mutex::new(()) };
        for path in this.paths()? {
            if path.extension().is_some_and(|e| e == "tmp") {
                this.folder.remove(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        Ok(this)
    }

    fn paths(&self) -> Result<Vec<PathBuf>, Error> {
        self.folder.paths(&self.dir).map_err(|e| Error::io(&self.dir, e))
    }

    pub(super) fn temp(&self) -> Result<(PathBuf, Out), Error> {
        let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.tmp"));
        let file = self.folder.create(&path).map_err(|e| Error::io(&path, e))?;
        Ok((path, file))
    }

    /// Names sort by index, then term: the last name is the newest snapshot.
    fn final_name(meta: &Meta) -> String {
        meta.last_log_id.map_or_else(
            || format!("{:020}-{:020}.{SUFFIX}", 0, 0),
            |id| format!("{:020}-{:020}.{SUFFIX}", id.index, id.leader_id.term),
        )
    }

    /// Writes a snapshot of `base` and makes it the current one unless a newer one is there.
    pub(super) fn write(&self, base: &dyn Base, meta: &Meta) -> Result<SnapshotFile, Error> {
        let (path, file) = self.temp()?;
        write_frames(&mut BufWriter::new(&file), &path, base, meta)?;
        file.sync().map_err(|e| Error::io(&path, e))?;
        self.name(&path, meta)
    }

    /// Gives a complete, synced file its final name, and deletes older ones.
    fn name(&self, temp: &Path, meta: &Meta) -> Result<SnapshotFile, Error> {
        let _naming = self.naming.lock();
        let path = self.dir.join(Self::final_name(meta));
        self.folder.rename(&self.dir, (temp, &path)).map_err(|e| Error::io(&path, e))?;
        let opened = SnapshotFile::open(&self.folder, path)?;
        let mut named = self.paths()?;
        named.retain(|p| p.extension().is_some_and(|e| e == SUFFIX));
        named.pop();
        for old in named {
            self.folder.remove(&old).map_err(|e| Error::io(&old, e))?;
        }
        Ok(opened)
    }

    /// Keeps a received snapshot under its final name.
    pub(super) fn keep(&self, snapshot: &SnapshotFile, meta: &Meta) -> Result<SnapshotFile, Error> {
        if snapshot.path.extension().is_some_and(|e| e == SUFFIX) && snapshot.path.starts_with(&self.dir) {
            return SnapshotFile::open(&self.folder, snapshot.path.clone());
        }
        self.name(&snapshot.path, meta)
    }

    /// The snapshot of a name, to finish an installation that a crash interrupted.
    pub(super) fn named(&self, name: &str) -> Result<SnapshotFile, Error> {
        SnapshotFile::open(&self.folder, self.dir.join(name))
    }

    /// The newest snapshot and what it covers, read once to its end.
    pub(super) fn current(&self) -> Result<Option<(Meta, SnapshotFile)>, Error> {
        let _naming = self.naming.lock();
        let paths = self.paths()?;
        let Some(path) = paths.into_iter().rfind(|p| p.extension().is_some_and(|e| e == SUFFIX)) else {
            return Ok(None);
        };
        let opened = SnapshotFile::open(&self.folder, path)?;
        Ok(Some((opened.verify()?, opened)))
    }

    /// Begins to receive a snapshot from another node.
    pub(crate) fn receive(&self) -> Result<Receiving, Error> {
        let (path, file) = self.temp()?;
        Ok(Receiving { folder: self.folder.clone(), path, file: Some(file) })
    }
}

/// A snapshot that arrives piece by piece; dropped before its end it deletes itself.
pub(crate) struct Receiving {
    folder: Folder,
    path: PathBuf,
    file: Option<Out>,
}

impl Receiving {
    /// Appends a piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), Error> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        file.write_all(piece).map_err(|e| Error::io(&self.path, e))
    }

    /// Syncs and verifies the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it came damaged or covers something else than `meta`.
    pub(crate) fn finish(mut self, meta: &Meta) -> Result<SnapshotFile, Error> {
        if let Some(file) = &self.file {
            file.sync().map_err(|e| Error::io(&self.path, e))?;
        }
        let snapshot = SnapshotFile::open(&self.folder, self.path.clone())?;
        let have = snapshot.verify()?;
        if have != *meta {
            return Err(Error::corrupt("snapshot", format!("it covers {have}, announced was {meta}")));
        }
        self.file = None;
        Ok(snapshot)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if self.file.is_some()
            && let Err(error) = self.folder.remove(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "half a snapshot stays until the next start");
        }
    }
}

/// Writes a snapshot of `base` and flushes it.
pub(super) fn write_frames(out: impl Write, path: &Path, base: &dyn Base, meta: &Meta) -> Result<(), Error> {
    let mut out = FrameWriter { out, path, frame: Vec::new(), rows: 0 };
    out.put(MAGIC)?;
    let head = codec::encode("snapshot", meta)?;
    out.frame(KIND_META, &head)?;
    for table in Table::ALL {
        base.scan(table, &mut |key, value| {
            if table == Table::Meta && key == APPLIED_KEY { Ok(()) } else { out.row(table, key, value) }
        })?;
    }
    out.end()
}

struct FrameWriter<'a, W> {
    out: W,
    path: &'a Path,
    frame: Vec<u8>,
    rows: u64,
}

fn length(bytes: &[u8]) -> Result<[u8; 4], Error> {
    let length = u32::try_from(bytes.len()).map_err(|_| Error::corrupt("snapshot", "a row above 4 GiB"))?;
    Ok(length.to_be_bytes())
}

/// Checksum over kind, length and bytes.
fn sum(kind: u8, length: [u8; 4], bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&[kind]), &length), bytes)
}

impl<W: Write> FrameWriter<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(|e| Error::io(self.path, e))
    }

    fn frame(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Error> {
        let length = length(bytes)?;
        self.put(&[kind])?;
        self.put(&length)?;
        self.put(&sum(kind, length, bytes).to_be_bytes())?;
        self.put(bytes)
    }

    fn row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.frame.push(table.byte());
        self.frame.extend_from_slice(&length(key)?);
        self.frame.extend_from_slice(key);
        self.frame.extend_from_slice(&length(value)?);
        self.frame.extend_from_slice(value);
        self.rows += 1;
        if self.frame.len() >= FRAME_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.frame);
        self.frame(KIND_ROWS, &rows)
    }

    fn end(&mut self) -> Result<(), Error> {
        self.flush()?;
        let rows = self.rows.to_be_bytes();
        self.frame(KIND_END, &rows)?;
        self.out.flush().map_err(|e| Error::io(self.path, e))
    }
}

struct Frames {
    file: BufReader<At>,
}

fn torn(e: std::io::Error) -> Error {
    Error::corrupt("snapshot", format!("it cannot be read to its end: {e}"))
}

impl Frames {
    fn new(mut file: BufReader<At>) -> Result<Self, Error> {
        let mut magic = [0; 8];
        file.read_exact(&mut magic).map_err(torn)?;
        if magic != *MAGIC {
            return Err(Error::corrupt("snapshot", "it does not begin as one"));
        }
        Ok(Self { file })
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), Error> {
        let mut head = [0; 9];
        self.file.read_exact(&mut head).map_err(torn)?;
        let [kind, a, b, c, d, e, f, g, h] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Error::corrupt("snapshot", format!("a frame of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes).map_err(torn)?;
        if sum(kind, [a, b, c, d], &bytes) != u32::from_be_bytes([e, f, g, h]) {
            return Err(Error::corrupt("snapshot", "the checksum of a frame is wrong"));
        }
        Ok((kind, bytes))
    }

    fn meta(&mut self) -> Result<Meta, Error> {
        match self.frame()? {
            (KIND_META, bytes) => codec::decode("snapshot", &bytes),
            (kind, _) => Err(Error::corrupt("snapshot", format!("frame kind {kind} where the meta frame belongs"))),
        }
    }

    fn rows(
        &mut self,
        mut row: impl FnMut(Table, &[u8], &[u8]) -> Result<(), Error>,
        mut flush: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut count = 0_u64;
        loop {
            match self.frame()? {
                (KIND_ROWS, bytes) => {
                    let mut rest = bytes.as_slice();
                    while let Some((&table, after)) = rest.split_first() {
                        let table = Table::of(table)
                            .ok_or_else(|| Error::corrupt("snapshot", format!("unknown table {table}")))?;
                        let (key, after) = field(after)?;
                        let (value, after) = field(after)?;
                        row(table, key, value)?;
                        rest = after;
                        count += 1;
                    }
                    flush()?;
                }
                (KIND_END, bytes) if bytes == count.to_be_bytes() => return Ok(()),
                (KIND_END, _) => return Err(Error::corrupt("snapshot", format!("it ends after {count} rows"))),
                (kind, _) => return Err(Error::corrupt("snapshot", format!("unknown frame kind {kind}"))),
            }
        }
    }
}

/// A length and as many bytes.
fn field(bytes: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let short = || Error::corrupt("snapshot", "a row ends before its length");
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(short)
}
