//! Chunk files: full chunks of the heads, outside of the heap.
//!
//! Why: most of what a head holds are full chunks, which nobody changes and few ever read. On the heap they are memory
//! for ever; in a file that is mapped they are the page cache's affair, which drops what is not read. A chunk is read
//! where it lies, by reference, and its checksum is held against it at each reading: memory is then the disk.
//!
//! ```text
//! <dir>/<partition>-<number>.chunks     written once, front to back, of one window; never changed
//! ```
//!
//! The node's log stays the truth: a file counts only where a checkpoint in the log names it, and a checkpoint is
//! written only after [`ChunkFiles::sync`] made all files durable. So a file that a crash tore is one that nobody
//! names, and [`ChunkFiles::open_all`] removes it.
//!
//! When a file goes: the heads (and readers) hold it by reference; when the last of them lets go it is garbage, and
//! [`ChunkFiles::collect`] removes it. What a checkpoint in the log names must outlive the heads' interest in it: it is
//! *pinned* ([`ChunkFiles::pin`]) until a later round of checkpoints is whole ([`ChunkFiles::release`]).
//!
//! Drawn in `docs/formats/head.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use engram_model::Millis;
use parking_lot::Mutex;

use super::Chunk;
use crate::Error;
use crate::codec::{Broken, Reader, crc32c, crc32c_append, put_u32, put_u64};
use crate::disk::{Disk, Mapped};

const MAGIC: &[u8; 8] = b"ENGRCHK1";
/// Bytes before the first chunk.
const HEADER: usize = 32;
/// A file is not longer than this: offsets are 32 bits.
const FILE_BYTES_MAX: usize = 1 << 30;
/// Chunks of a window that are fewer bytes than this wait for more: a file costs a name and a mapping.
const FILE_BYTES_MIN: usize = 64 << 10;
/// What the names of chunk files end in.
const SUFFIX: &str = ".chunks";

/// The bytes of a chunk: on the heap, or in a chunk file. Cheap to clone.
#[derive(Clone)]
pub struct ChunkBytes(Place);

#[derive(Clone)]
enum Place {
    Heap(Arc<[u8]>),
    File { file: Arc<ChunkFile>, at: u32, len: u32 },
}

/// One chunk file, mapped.
pub struct ChunkFile {
    number: u64,
    path: PathBuf,
    /// CRC of the header: the chunks' go on from it, so that a chunk of another file is none of this one.
    seed: u32,
    mapped: Box<dyn Mapped>,
    is_synced: AtomicBool,
    garbage: Arc<Mutex<Vec<u64>>>,
}

impl Drop for ChunkFile {
    fn drop(&mut self) {
        self.garbage.lock().push(self.number);
    }
}

impl fmt::Debug for ChunkFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChunkFile").field(&self.path).finish()
    }
}

/// Where in which file a chunk lies: what a checkpoint says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InFile {
    pub(crate) number: u64,
    pub(crate) at: u32,
    pub(crate) len: u32,
}

impl ChunkBytes {
    /// Where in a file they lie; none on the heap.
    pub(crate) fn in_file(&self) -> Option<InFile> {
        match &self.0 {
            Place::Heap(_) => None,
            Place::File { file, at, len } => Some(InFile { number: file.number, at: *at, len: *len }),
        }
    }

    /// Bytes of the heap they take, about.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Place::Heap(bytes) => bytes.len() + 16,
            Place::File { .. } => 0,
        }
    }

    /// The file and the place in it, for people.
    #[must_use]
    pub fn place(&self) -> Option<(&Path, u32)> {
        match &self.0 {
            Place::Heap(_) => None,
            Place::File { file, at, .. } => Some((&file.path, *at)),
        }
    }

    /// The bytes, once their checksum has been held against them.
    ///
    /// # Errors
    /// The file does not hold what was written.
    #[inline]
    pub fn checked(&self) -> Result<&[u8], Broken> {
        let Place::File { file, at, len } = &self.0 else { return Ok(self) };
        let (from, to) = (*at as usize, *at as usize + *len as usize);
        let broken = Broken { at: from, what: "chunk file does not hold what was written" };
        let all = file.mapped.bytes();
        let (Some(bytes), Some(crc)) = (all.get(from..to), all.get(to..to + 4)) else { return Err(broken) };
        if crc32c_append(file.seed, bytes).to_be_bytes() == crc { Ok(bytes) } else { Err(broken) }
    }
}

impl std::ops::Deref for ChunkBytes {
    type Target = [u8];

    /// Nothing is checked: for who has its own checksum, or copies with the chunk's.
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Heap(bytes) => bytes,
            Place::File { file, at, len } => {
                file.mapped.bytes().get(*at as usize..*at as usize + *len as usize).unwrap_or_default()
            }
        }
    }
}

impl From<&[u8]> for ChunkBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(Place::Heap(bytes.into()))
    }
}

impl From<Vec<u8>> for ChunkBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Place::Heap(bytes.into()))
    }
}

impl PartialEq for ChunkBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for ChunkBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            None => write!(f, "{} bytes", self.len()),
            Some((path, at)) => write!(f, "{} bytes at {at} of {}", self.len(), path.display()),
        }
    }
}

/// The chunk files of one partition.
pub struct ChunkFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    partition: u32,
    state: Mutex<State>,
    garbage: Arc<Mutex<Vec<u64>>>,
    /// Bytes of full chunks on the heap that wait to be put into a file.
    waiting: AtomicUsize,
    /// How many must wait before it is worth a file; grows with what had to stay.
    wanted: AtomicUsize,
    least: usize,
}

#[derive(Default)]
struct State {
    next: u64,
    alive: BTreeMap<u64, Weak<ChunkFile>>,
    /// Files that checkpoints name, oldest checkpoint first.
    pins: Vec<Vec<Arc<ChunkFile>>>,
    /// Found on the disk and not asked for yet.
    unnamed: BTreeSet<u64>,
    /// Why a file could not be opened.
    trouble: Option<String>,
    /// A sync failed: memory and disk may tell different stories.
    failed: bool,
}

impl fmt::Debug for ChunkFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkFiles").field("dir", &self.dir).field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl ChunkFiles {
    /// The files of partitions 0 to `count` in `dir`, which is made when it is not there. `least` bytes of full chunks
    /// of a partition are worth a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_all(disk: &Arc<dyn Disk>, dir: &Path, count: u32, least: usize) -> Result<Vec<Arc<Self>>, Error> {
        disk.create_dir(dir)?;
        let mut found: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for name in disk.list(dir)? {
            if let Some((partition, number)) = parse(&name) {
                found.entry(partition).or_default().insert(number);
            }
        }
        let open = |partition| {
            let unnamed = found.remove(&partition).unwrap_or_default();
            let next = unnamed.last().map_or(1, |last| last + 1);
            Arc::new(Self {
                disk: Arc::clone(disk),
                dir: dir.to_owned(),
                partition,
                state: Mutex::new(State { next, unnamed, ..State::default() }),
                garbage: Arc::default(),
                waiting: AtomicUsize::new(0),
                wanted: AtomicUsize::new(least),
                least,
            })
        };
        Ok((0..count).map(open).collect())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{:05}-{number:016}{SUFFIX}", self.partition))
    }

    fn header(&self, number: u64, window: Millis) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        put_u32(&mut header, self.partition);
        put_u64(&mut header, number);
        put_u64(&mut header, window.cast_unsigned());
        let crc = crc32c(&header);
        put_u32(&mut header, crc);
        header
    }

    /// The file of a number, which a checkpoint names: it stays until [`Self::release`].
    ///
    /// # Errors
    /// It is not there, or not one of this partition; [`Self::trouble`] says more.
    pub(crate) fn named(&self, number: u64) -> Result<Arc<ChunkFile>, Broken> {
        let mut state = self.state.lock();
        if let Some(file) = state.alive.get(&number).and_then(Weak::upgrade) {
            return Ok(file);
        }
        match self.load(number) {
            Ok(file) => {
                state.unnamed.remove(&number);
                state.alive.insert(number, Arc::downgrade(&file));
                match state.pins.first_mut() {
                    Some(first) => first.push(Arc::clone(&file)),
                    None => state.pins.push(vec![Arc::clone(&file)]),
                }
                Ok(file)
            }
            Err(error) => {
                state.trouble.get_or_insert(error.to_string());
                Err(Broken { at: 0, what: "a chunk file is not what the checkpoint says" })
            }
        }
    }

    fn load(&self, number: u64) -> Result<Arc<ChunkFile>, Error> {
        let path = self.path(number);
        let mapped = self.disk.open(&path)?.map()?;
        let header = mapped.bytes().get(..HEADER).ok_or_else(|| Error::corrupt(&path, 0, "it is cut off"))?;
        let mut from = Reader::new(&header[MAGIC.len()..]);
        let told = (from.u32(), from.u64(), from.i64());
        let (Ok(partition), Ok(is), Ok(window)) = told else { return Err(Error::corrupt(&path, 8, "no header")) };
        if (partition, is) != (self.partition, number) || header != self.header(number, window) {
            return Err(Error::corrupt(&path, 0, "its header is not the one that was written"));
        }
        Ok(self.file(number, path.clone(), crc32c(header), mapped, true))
    }

    fn file(&self, number: u64, path: PathBuf, seed: u32, mapped: Box<dyn Mapped>, synced: bool) -> Arc<ChunkFile> {
        let garbage = Arc::clone(&self.garbage);
        Arc::new(ChunkFile { number, path, seed, mapped, is_synced: AtomicBool::new(synced), garbage })
    }

    /// A chunk that a checkpoint names.
    ///
    /// # Errors
    /// The file is not there, or too short.
    pub(crate) fn bytes_at(&self, place: InFile) -> Result<ChunkBytes, Broken> {
        let file = self.named(place.number)?;
        let end = place.at as usize + place.len as usize + 4;
        if (place.at as usize) < HEADER || end > file.mapped.bytes().len() {
            let text = format!("{}: it ends before byte {end}, where a chunk does", file.path.display());
            self.state.lock().trouble.get_or_insert(text);
            return Err(Broken { at: 0, what: "a chunk file is shorter than the checkpoint says" });
        }
        Ok(ChunkBytes(Place::File { file, at: place.at, len: place.len }))
    }

    /// Why the first file that could not be had could not, and forgets it.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.take()
    }

    /// Puts chunks, each with the start of its window, into files, and hands them back as they lie there, in the order
    /// given; none for a chunk that waits for more of its window. Nothing is durable before [`Self::sync`].
    ///
    /// # Errors
    /// [`Error::Io`], above all when the disk is full: nothing has changed, and it is asked again once twice as much
    /// waits.
    pub(crate) fn keep(&self, chunks: &[(Millis, Chunk)]) -> Result<Vec<Option<Chunk>>, Error> {
        let mut by_window: BTreeMap<Millis, Vec<usize>> = BTreeMap::new();
        for (i, (window, _)) in chunks.iter().enumerate() {
            by_window.entry(*window).or_default().push(i);
        }
        let mut kept = vec![None; chunks.len()];
        for (window, all) in by_window {
            let bytes: usize = all.iter().map(|i| chunks[*i].1.bytes.len() + 4).sum();
            if bytes < FILE_BYTES_MIN.min(self.least) {
                continue;
            }
            for some in pieces(&all, chunks) {
                if let Err(error) = self.write(window, &some, chunks, &mut kept) {
                    self.wait_for_twice(chunks.iter());
                    return Err(error);
                }
            }
        }
        let left = chunks.iter().zip(&kept).filter(|(_, kept)| kept.is_none());
        self.wait_for_twice(left.map(|(chunk, _)| chunk));
        Ok(kept)
    }

    /// What stays on the heap now is not looked at again before there is twice as much.
    fn wait_for_twice<'a>(&self, left: impl Iterator<Item = &'a (Millis, Chunk)>) {
        let bytes: usize = left.map(|(_, chunk)| chunk.bytes.len()).sum();
        self.wanted.store(self.least.max(bytes.saturating_mul(2)), Ordering::Relaxed);
    }

    fn write(
        &self,
        window: Millis,
        some: &[usize],
        chunks: &[(Millis, Chunk)],
        kept: &mut [Option<Chunk>],
    ) -> Result<(), Error> {
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            state.next - 1
        };
        let path = self.path(number);
        let mut bytes = self.header(number, window);
        let seed = crc32c(&bytes);
        let mut places = Vec::with_capacity(some.len());
        for i in some {
            let of = &chunks[*i].1.bytes;
            let at = u32::try_from(bytes.len());
            let len = u32::try_from(of.len());
            let (Ok(at), Ok(len)) = (at, len) else { unreachable!("files are cut before {FILE_BYTES_MAX} bytes") };
            places.push((at, len));
            bytes.extend_from_slice(of);
            put_u32(&mut bytes, crc32c_append(seed, of));
        }
        let file = self.disk.create(&path)?;
        // Reserved first: a page that is mapped and has no room on the disk ends the process.
        let written = file.preallocate(bytes.len() as u64).and_then(|()| file.write_at(0, &bytes));
        let written = written.and_then(|()| file.map());
        let mapped = match written {
            Ok(mapped) => mapped,
            Err(error) => {
                drop(file);
                // It takes room that others need; one that stays is removed at the next start.
                if let Err(error) = self.disk.remove(&path) {
                    tracing::warn!(%error, "cannot remove a chunk file that was not written");
                }
                return Err(error);
            }
        };
        let file = self.file(number, path, seed, mapped, false);
        self.state.lock().alive.insert(number, Arc::downgrade(&file));
        for (i, (at, len)) in some.iter().zip(places) {
            let bytes = ChunkBytes(Place::File { file: Arc::clone(&file), at, len });
            kept[*i] = Some(Chunk { bytes, ..chunks[*i].1.clone() });
        }
        Ok(())
    }

    /// Makes all files durable, with their names.
    ///
    /// # Errors
    /// [`Error::Io`]: it is not asked again, the process must end and read what the disk really holds.
    pub fn sync(&self) -> Result<(), Error> {
        let fresh: Vec<_> = {
            let state = self.state.lock();
            if state.failed {
                let why = "a chunk file could not be synced before".into();
                return Err(Error::Failed { path: self.dir.clone(), why });
            }
            let alive = state.alive.values().filter_map(Weak::upgrade);
            alive.filter(|file| !file.is_synced.load(Ordering::Relaxed)).collect()
        };
        let synced = fresh.iter().try_for_each(|file| self.disk.open(&file.path)?.sync_all());
        let synced = synced.and_then(|()| if fresh.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.dir) });
        self.state.lock().failed = synced.is_err();
        synced?;
        fresh.iter().for_each(|file| file.is_synced.store(true, Ordering::Relaxed));
        Ok(())
    }

    /// A checkpoint is about to name what the heads hold now: it stays until a later round is whole.
    pub fn pin(&self) {
        let mut state = self.state.lock();
        let mut pinned: BTreeMap<u64, usize> = BTreeMap::new();
        state.pins.iter().flatten().for_each(|file| *pinned.entry(file.number).or_default() += 1);
        // Held by more than older pins, and by this look.
        let is_held =
            |file: &Arc<ChunkFile>| Arc::strong_count(file) > 1 + pinned.get(&file.number).copied().unwrap_or(0);
        let held: Vec<_> = state.alive.values().filter_map(Weak::upgrade).filter(is_held).collect();
        state.pins.push(held);
    }

    /// A round of checkpoints is whole: only what its checkpoint named must stay.
    pub fn release(&self) {
        let gone = {
            let mut state = self.state.lock();
            let last = state.pins.len().saturating_sub(1);
            state.pins.drain(..last).collect::<Vec<_>>()
        };
        drop(gone);
    }

    /// Removes files that nobody holds any more, and those found at the start that no checkpoint names. Not before
    /// recovery is complete.
    pub fn collect(&self) {
        let mut gone = std::mem::take(&mut *self.garbage.lock());
        {
            let mut state = self.state.lock();
            gone.extend(std::mem::take(&mut state.unnamed));
            for number in &gone {
                state.alive.remove(number);
            }
        }
        for number in gone {
            if let Err(error) = self.disk.remove(&self.path(number)) {
                tracing::warn!(%error, "cannot remove a chunk file that is not needed any more");
            }
        }
    }

    /// Counts bytes of full chunks that wait on the heap.
    #[inline]
    pub(crate) fn wait(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    /// They wait no more.
    pub(crate) fn unwait(&self, bytes: usize) {
        // Never below 0: each head takes back what it has counted.
        let _before =
            self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(all.saturating_sub(bytes)));
    }

    /// Whether enough waits to be worth a file.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.wanted.load(Ordering::Relaxed)
    }

    /// How many files are held, and their bytes.
    #[must_use]
    pub fn held(&self) -> (usize, u64) {
        let files: Vec<_> = self.state.lock().alive.values().filter_map(Weak::upgrade).collect();
        (files.len(), files.iter().map(|file| file.mapped.bytes().len() as u64).sum())
    }
}

/// Cuts a window's chunks so that no file grows above its limit.
fn pieces(all: &[usize], chunks: &[(Millis, Chunk)]) -> Vec<Vec<usize>> {
    let (mut out, mut bytes) = (vec![Vec::new()], 0);
    for i in all {
        let len = chunks[*i].1.bytes.len() + 4;
        if bytes + len > FILE_BYTES_MAX - HEADER {
            out.push(Vec::new());
            bytes = 0;
        }
        bytes += len;
        if let Some(last) = out.last_mut() {
            last.push(*i);
        }
    }
    out
}

fn parse(name: &str) -> Option<(u32, u64)> {
    let (partition, number) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    Some((partition.parse().ok()?, number.parse().ok()?))
}
