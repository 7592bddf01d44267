//! Pages of blocks that lie in a bucket: some in memory, more on the local disk.
//!
//! Why pages and not the ranges that were asked for: two queries rarely ask for the same range, but often for the same
//! part of a file. Why our own and not a cache crate: the part on disk must bear a crash, a full disk and rot, and must
//! be there again after a restart without a second copy of its keys.
//!
//! ```text
//! <data>/cache/pages   slots of one page, each: header | bytes
//! header, 40 bytes     u32 magic | u32 crc32c of the rest and the bytes | u128 block | u32 file | u32 page | u32 length | u32 0
//! ```
//!
//! Who stays is decided by a clock: each hit gives a page another life, the hand takes one from each page it passes
//! and evicts who has none. Pages of an index have more lives than those of chunks: many queries need them. Nothing
//! here is ever the only copy: what cannot be read, or is not what its header says, is a page that is not there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use engram_model::block::BlockId;
use engram_storage::codec::{crc32c, crc32c_append};
use engram_storage::disk::{Disk, DiskFile};
use engram_storage::ranges::File;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Bytes of a page; the last of a file has fewer.
pub const PAGE_BYTES: u64 = 64 << 10;
const HEADER_BYTES: usize = 40;
/// Distance of slots in the file.
const SLOT_BYTES: u64 = PAGE_BYTES + HEADER_BYTES as u64;
const MAGIC: u32 = 0x5061_6765;
/// Lives of a page of an index, and of one of chunks, when it is new.
const LIVES: (u8, u8) = (2, 0);
/// Most lives a page can have.
const LIVES_MAX: u8 = 3;
/// Groups of pages that wait to be written to the disk; more are not written.
const WRITES_MAX: usize = 8;

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey {
    /// Of which block.
    pub block: BlockId,
    /// Of which file: 0 the index, else the number of the segment.
    pub file: u32,
    /// Counted from 0.
    pub page: u32,
}

impl PageKey {
    /// Of a file that is read by ranges.
    #[must_use]
    pub fn new(block: BlockId, file: File, page: u32) -> Self {
        let file = if let File::Chunks(number) = file { number } else { 0 };
        Self { block, file, page }
    }

    fn lives(&self) -> u8 {
        if self.file == 0 { LIVES.0 } else { LIVES.1 }
    }
}

/// Keys in slots, with the hand that evicts.
#[derive(Debug)]
struct Clock<V> {
    max: usize,
    slots: Vec<Option<(PageKey, V, u8)>>,
    places: HashMap<PageKey, usize>,
    hand: usize,
}

impl<V> Clock<V> {
    fn new(max: usize) -> Self {
        Self { max, slots: Vec::new(), places: HashMap::new(), hand: 0 }
    }

    fn get(&mut self, key: &PageKey) -> Option<(usize, &V)> {
        let place = *self.places.get(key)?;
        let (_, value, lives) = self.slots[place].as_mut()?;
        *lives = (*lives + 1).min(LIVES_MAX);
        Some((place, value))
    }

    /// Gives a page a slot; none when there are no slots.
    fn put(&mut self, key: PageKey, value: V) -> Option<usize> {
        if self.max == 0 {
            return None;
        }
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None if self.slots.len() < self.max => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => self.evict(),
        };
        self.slots[place] = Some((key, value, key.lives()));
        self.places.insert(key, place);
        Some(place)
    }

    fn evict(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            match &mut self.slots[place] {
                Some((_, _, lives)) if *lives > 0 => *lives -= 1,
                Some((key, ..)) => {
                    self.places.remove(key);
                    return place;
                }
                None => return place,
            }
        }
    }

    fn forget(&mut self, block: BlockId) {
        for slot in &mut self.slots {
            if let Some((key, ..)) = slot
                && key.block == block
            {
                self.places.remove(key);
                *slot = None;
            }
        }
    }
}

/// Pages on the local disk.
#[derive(Debug)]
struct DiskPages {
    file: Box<dyn DiskFile>,
    clock: Mutex<Clock<()>>,
}

fn header(key: &PageKey, bytes: &[u8]) -> [u8; HEADER_BYTES] {
    let mut all = [0; HEADER_BYTES];
    all[..4].copy_from_slice(&MAGIC.to_be_bytes());
    all[8..24].copy_from_slice(&key.block.0.to_be_bytes());
    all[24..28].copy_from_slice(&key.file.to_be_bytes());
    all[28..32].copy_from_slice(&key.page.to_be_bytes());
    all[32..36].copy_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    let crc = crc32c_append(crc32c(&all[8..]), bytes);
    all[4..8].copy_from_slice(&crc.to_be_bytes());
    all
}

/// What a header says: whose page, and how long.
fn read_header(all: &[u8]) -> Option<(PageKey, usize)> {
    let number = |at: usize| Some(u32::from_be_bytes(all.get(at..at + 4)?.try_into().ok()?));
    let block = BlockId(u128::from_be_bytes(all.get(8..24)?.try_into().ok()?));
    let len = usize::try_from(number(32)?).ok().filter(|len| *len as u64 <= PAGE_BYTES)?;
    (number(0)? == MAGIC).then_some((PageKey { block, file: number(24)?, page: number(28)? }, len))
}

impl DiskPages {
    /// Opens the file and learns what is in it.
    fn open(disk: &dyn Disk, dir: &Path, bytes_max: u64) -> Result<Self, engram_storage::Error> {
        disk.create_dir(dir)?;
        let path = dir.join("pages");
        let file = match disk.open(&path) {
            Err(error) if error.is_not_found() => disk.create(&path)?,
            other => other?,
        };
        let slots = bytes_max / SLOT_BYTES;
        let max = usize::try_from(slots).unwrap_or(usize::MAX);
        file.set_len(file.len()?.min(slots * SLOT_BYTES))?;
        let mut clock = Clock::new(max);
        for slot in 0..file.len()?.div_ceil(SLOT_BYTES) {
            let mut all = [0; HEADER_BYTES];
            let got = file.read_at(slot * SLOT_BYTES, &mut all)?;
            clock.slots.push(None);
            if let Some((key, _)) = read_header(&all[..got])
                && !clock.places.contains_key(&key)
                && let Ok(place) = usize::try_from(slot)
            {
                clock.slots[place] = Some((key, (), key.lives()));
                clock.places.insert(key, place);
            }
        }
        Ok(Self { file, clock: Mutex::new(clock) })
    }

    fn get(&self, key: &PageKey) -> Option<Bytes> {
        let slot = self.clock.lock().get(key)?.0 as u64;
        let mut all = vec![0; usize::try_from(SLOT_BYTES).ok()?];
        let got = self.file.read_at(slot * SLOT_BYTES, &mut all).ok()?;
        all.truncate(got);
        let (found, len) = read_header(&all)?;
        let bytes = all.get(HEADER_BYTES..HEADER_BYTES + len)?;
        let is_it = found == *key && header(key, bytes) == all[..HEADER_BYTES];
        is_it.then(|| Bytes::copy_from_slice(bytes))
    }

    /// Whether it could be written: a full disk is no failure of a query.
    fn put(&self, key: PageKey, bytes: &[u8]) -> bool {
        let Some(slot) = self.clock.lock().put(key, ()) else { return true };
        let all = [&header(&key, bytes)[..], bytes].concat();
        self.file.write_at(slot as u64 * SLOT_BYTES, &all).is_ok()
    }
}

/// What the cache did.
#[derive(Debug, Default)]
pub struct PageMetrics {
    /// Pages found in memory.
    pub memory_hits: AtomicU64,
    /// Pages found on disk.
    pub disk_hits: AtomicU64,
    /// Pages that were not there.
    pub misses: AtomicU64,
    /// Pages that could not be written to the disk.
    pub write_failures: AtomicU64,
}

/// The cache, see the module's text. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: Mutex<Clock<Bytes>>,
    disk: std::sync::OnceLock<DiskPages>,
    writes: Arc<Semaphore>,
    metrics: PageMetrics,
}

impl Pages {
    /// A cache of at most so many bytes in memory; without a disk until [`Pages::open_disk`].
    #[must_use]
    pub fn new(memory_bytes_max: u64) -> Self {
        let max = usize::try_from(memory_bytes_max / PAGE_BYTES).unwrap_or(usize::MAX);
        Self(Arc::new(Inner {
            memory: Mutex::new(Clock::new(max)),
            disk: std::sync::OnceLock::new(),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            metrics: PageMetrics::default(),
        }))
    }

    /// Opens the part on disk, which may take a while: run it where that is no harm. Until then, and when it fails, it
    /// is not there.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open_disk(&self, disk: &dyn Disk, dir: &Path, bytes_max: u64) -> Result<(), engram_storage::Error> {
        let opened = DiskPages::open(disk, dir, bytes_max)?;
        let _was_there = self.0.disk.set(opened);
        Ok(())
    }

    /// What it did so far.
    #[must_use]
    pub fn metrics(&self) -> &PageMetrics {
        &self.0.metrics
    }

    /// Those of the pages that are there.
    pub async fn get(&self, keys: &[PageKey]) -> HashMap<PageKey, Bytes> {
        let metrics = &self.0.metrics;
        let mut found = HashMap::with_capacity(keys.len());
        {
            let mut memory = self.0.memory.lock();
            for key in keys {
                if let Some((_, bytes)) = memory.get(key) {
                    found.insert(*key, bytes.clone());
                }
            }
        }
        metrics.memory_hits.fetch_add(found.len() as u64, Ordering::Relaxed);
        let missing: Vec<_> = keys.iter().filter(|key| !found.contains_key(key)).copied().collect();
        if !missing.is_empty() && self.0.disk.get().is_some() {
            let inner = self.0.clone();
            let read = engram_storage::blocking::blocking(move || {
                let Some(disk) = inner.disk.get() else { return Vec::new() };
                missing.into_iter().filter_map(|key| Some((key, disk.get(&key)?))).collect::<Vec<_>>()
            });
            let read = read.await.unwrap_or_default();
            metrics.disk_hits.fetch_add(read.len() as u64, Ordering::Relaxed);
            let mut memory = self.0.memory.lock();
            for (key, bytes) in read {
                memory.put(key, bytes.clone());
                found.insert(key, bytes);
            }
        }
        metrics.misses.fetch_add((keys.len() - found.len()) as u64, Ordering::Relaxed);
        found
    }

    /// Keeps pages. Each holds only its own bytes.
    pub fn put(&self, pages: Vec<(PageKey, Bytes)>) {
        {
            let mut memory = self.0.memory.lock();
            for (key, bytes) in &pages {
                memory.put(*key, bytes.clone());
            }
        }
        if self.0.disk.get().is_some()
            && let Ok(turn) = self.0.writes.clone().try_acquire_owned()
        {
            let inner = self.0.clone();
            // Not waited for: nobody needs what is written now before it was evicted from memory.
            engram_storage::blocking::blocking(move || {
                let Some(disk) = inner.disk.get() else { return };
                let failed = pages.iter().filter(|(key, bytes)| !disk.put(*key, bytes)).count();
                inner.metrics.write_failures.fetch_add(failed as u64, Ordering::Relaxed);
                drop(turn);
            });
        }
    }

    /// Forgets all pages of a block: they are not what its files hold.
    pub fn forget(&self, block: BlockId) {
        self.0.memory.lock().forget(block);
        if let Some(disk) = self.0.disk.get() {
            disk.clock.lock().forget(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_storage::disk::fault::FaultDisk;

    fn key(file: u32, page: u32) -> PageKey {
        PageKey { block: BlockId(7), file, page }
    }

    fn page(n: u32) -> Bytes {
        Bytes::from(vec![u8::try_from(n % 256).unwrap(); 100])
    }

    #[test]
    fn who_is_used_stays_and_the_index_stays_longer() {
        let mut clock = Clock::new(4);
        for n in 0..4 {
            clock.put(key(u32::from(n != 0), n), n);
        }
        clock.get(&key(1, 2));
        clock.put(key(1, 10), 10);
        clock.put(key(1, 11), 11);
        let there: Vec<_> = [0, 1, 2, 3].map(|n| clock.places.contains_key(&key(u32::from(n != 0), n))).into();
        assert_eq!(there, [true, false, true, false]);
        for n in 20..40 {
            clock.put(key(1, n), n);
            assert!(clock.places.len() <= 4 && clock.slots.len() == 4);
        }
        clock.forget(BlockId(7));
        assert!(clock.places.is_empty());
        assert_eq!(Clock::new(0).put(key(1, 1), ()), None);
    }

    #[tokio::test]
    async fn pages_are_there_again_after_a_restart_and_rot_is_a_miss() {
        let (disk, dir) = (FaultDisk::new(), Path::new("cache"));
        let all: Vec<_> = (0..5).map(|n| (key(1, n), page(n))).collect();
        let keys: Vec<_> = all.iter().map(|(key, _)| *key).collect();
        let opened = DiskPages::open(&disk, dir, 4 * SLOT_BYTES).unwrap();
        all.iter().for_each(|(key, bytes)| assert!(opened.put(*key, bytes)));
        assert!(opened.get(&keys[0]).is_none(), "five pages do not go into four slots");

        let pages = Pages::new(0);
        pages.open_disk(&disk, dir, 4 * SLOT_BYTES).unwrap();
        let found = pages.get(&keys).await;
        assert_eq!(found.len(), 4);
        assert!(all[1..].iter().all(|(key, bytes)| found[key] == *bytes));
        let at = SLOT_BYTES + HEADER_BYTES as u64 + 50;
        disk.flip(&dir.join("pages"), at, 3);
        assert_eq!(pages.get(&keys).await.len(), 3);
        pages.forget(BlockId(7));
        assert!(pages.get(&keys).await.is_empty());
        assert_eq!(DiskPages::open(&disk, dir, SLOT_BYTES).unwrap().clock.lock().slots.len(), 1, "it can shrink");
    }
}
