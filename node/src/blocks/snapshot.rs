//! A snapshot: everything a tenant has at one moment, written as blocks while the node goes on.
//!
//! Why: samples can be taken out of a running node, and whoever takes them knows that nothing is missing. Each
//! partition hands over its series and its digests under one look; what is written later does not change them. Of each
//! window one block is written, series in order of labels, one series of one window decoded at a time; then the sum of
//! what was read back from the disk is held against the digests. Only when they agree does the snapshot get its name.
//!
//! ```text
//! snapshots/<name>.tmp-for-creation/<tenant>/<block>/…   while it is written; removed when it fails, or at a start
//! snapshots/<name>/<tenant>/<block>/…                    whole, durable, verified
//! ```
//!
//! What lies in blocks already is read window by window, as a query would read it, and merged with what the heads hold of
//! that window; deleted samples are left out.
//!
//! Memory: labels and references of all series of the tenant, and their open chunks; full chunks are shared with the
//! head. That is about as much as the tenant's head without its samples, so few snapshots run at once.
//!
//! A series that lies in two partitions (the tenant's shard grew) is one series of the block. Samples it has in both
//! count twice in the digests of the heads; how much that is, is counted when they are merged.
//!
//! Version 1 of the format has no room for start timestamps, exemplars and metadata: they are not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_model::block::BlockId;
use engram_model::digest::{Digest, slot_of};
use engram_model::error::{Class, Classed};
use engram_model::merge::merge_columns;
use engram_model::series::{Columns, Series};
use engram_model::tenant::TenantId;
use engram_model::time::{Clock, Stopwatch};
use engram_model::{Millis, TimeRange};
use engram_storage::block::{BlockWriter, Spec};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::Disk;
use engram_storage::head::HeadOptions;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::memory;
use crate::meta::Meta;
use crate::peer::{PartitionView, Peers};
use crate::read::select::{View, digests_of};
use crate::read::store::Blocks;

/// What the directory of a snapshot ends in until it is whole.
const UNFINISHED: &str = ".tmp-for-creation";
/// Snapshots of different tenants that are taken at once.
const AT_ONCE_MAX: usize = 2;
/// Blocks of one snapshot: nearly two years of windows. Each is a directory and some syncs.
const BLOCKS_MAX: usize = 8192;

/// Looks at heads that forget while they are asked.
const LOOKS_MAX: u32 = 8;

/// Digests by the start of their slot.
type Slots = BTreeMap<Millis, Digest>;

/// A snapshot that is whole, durable and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// The directory that holds the tenant's blocks.
    pub path: PathBuf,
    /// How many blocks; none when the tenant has no samples.
    pub blocks: usize,
    /// How many samples are in them.
    pub samples: u64,
}

/// Takes snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots(Arc<Inner>);

struct Inner {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    source: (Meta, Peers, Blocks),
    clock: Clock,
    running: Mutex<BTreeSet<TenantId>>,
}

/// The right to take a snapshot of a tenant, until it is dropped.
struct Turn(Arc<Inner>, TenantId);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.running.lock().remove(&self.1);
    }
}

impl Snapshots {
    /// Snapshots below the directory `root`, which is made when it is not there and freed of unfinished ones.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        source: (Meta, Peers, Blocks),
        clock: Clock,
    ) -> Result<Self, engram_storage::Error> {
        disk.create_dir(root)?;
        for name in disk.list_dirs(root)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
            remove(&root.join(name));
        }
        // A path that works wherever the person who reads it stands; as it is where there is no current directory.
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        Ok(Self(Arc::new(Inner { root, disk, source, clock, running: Mutex::default() })))
    }

    /// Writes all the tenant has at this moment. The name is `moment` with some chance behind it.
    ///
    /// # Errors
    /// Conflict while another one of the tenant is taken, Limited while others are or for too many blocks, Unavailable
    /// when a partition cannot be read, Internal when the disk refuses or what was written is not what the heads hold.
    /// Nothing is left behind then.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work before its next series and removes what was written.
    pub async fn take(&self, tenant: &TenantId, moment: &str) -> Result<Taken, Error> {
        let turn = self.turn(tenant)?;
        let cancel = CancellationToken::new();
        let _guard = cancel.clone().drop_guard();
        let (view, parts) = self.look(tenant).await?;
        let name = format!("{moment}-{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
        let window_ms = HeadOptions::default().window_ms;
        let runtime = tokio::runtime::Handle::current();
        let job = Job { inner: self.0.clone(), tenant: tenant.clone(), name, window_ms, cancel, view, runtime };
        let work = move || {
            let done = job.run(parts);
            memory::give_back();
            drop(turn);
            done
        };
        let failed = |e| Error::new(Class::Internal, format!("taking the snapshot failed: {e}"));
        engram_storage::blocking::blocking(work).await.map_err(failed)?
    }

    /// What the heads hold, and the blocks that were there when they were asked.
    async fn look(&self, tenant: &TenantId) -> Result<(View, Vec<PartitionView>), Error> {
        let (meta, peers, blocks) = &self.0.source;
        let mut looks = 0;
        loop {
            let view = View::new(meta, peers, blocks, tenant);
            match view.everything().await {
                // A head has forgotten what a newer look finds in a block.
                Err(error) if error.is_stale_view() && looks < LOOKS_MAX => meta.changed(view.index()).await?,
                done => return Ok((view, done?)),
            };
            looks += 1;
        }
    }

    fn turn(&self, tenant: &TenantId) -> Result<Turn, Error> {
        let mut running = self.0.running.lock();
        if running.contains(tenant) {
            let text = format!("a snapshot of tenant {tenant} is being taken: wait until it is there");
            return Err(Error::new(Class::Conflict, text));
        }
        if running.len() >= AT_ONCE_MAX {
            let text = format!("{AT_ONCE_MAX} snapshots of other tenants are being taken: retry later");
            return Err(Error::new(Class::Limited, text));
        }
        running.insert(tenant.clone());
        Ok(Turn(self.0.clone(), tenant.clone()))
    }
}

/// One snapshot on its thread.
struct Job {
    inner: Arc<Inner>,
    tenant: TenantId,
    name: String,
    window_ms: i64,
    cancel: CancellationToken,
    view: View,
    runtime: tokio::runtime::Handle,
}

impl Job {
    fn run(&self, views: Vec<PartitionView>) -> Result<Taken, Error> {
        let watch = Stopwatch::start();
        let unfinished = self.inner.root.join(format!("{}{UNFINISHED}", self.name));
        let path = self.inner.root.join(&self.name);
        let done = self.write(&unfinished, views).and_then(|(blocks, samples)| {
            self.name_it(&unfinished, &path).map_err(|e| storage_error(&e))?;
            Ok(Taken { name: self.name.clone(), path: path.join(self.tenant.as_str()), blocks, samples })
        });
        let (tenant, name, seconds) = (&self.tenant, &self.name, watch.elapsed().as_secs_f64());
        match &done {
            Ok(taken) => {
                tracing::info!(%tenant, name, blocks = taken.blocks, samples = taken.samples, seconds, "snapshot");
            }
            Err(error) => {
                remove(&unfinished);
                remove(&path);
                tracing::warn!(%tenant, %error, seconds, "a snapshot was not taken");
            }
        }
        done
    }

    /// Makes it durable under its name.
    fn name_it(&self, unfinished: &Path, path: &Path) -> Result<(), engram_storage::Error> {
        let disk = &*self.inner.disk;
        disk.sync_dir(&unfinished.join(self.tenant.as_str()))?;
        disk.sync_dir(unfinished)?;
        disk.rename(unfinished, path)?;
        disk.sync_dir(&self.inner.root)
    }

    /// Writes the blocks; says how many, with how many samples.
    fn write(&self, unfinished: &Path, views: Vec<PartitionView>) -> Result<(usize, u64), Error> {
        let dir = unfinished.join(self.tenant.as_str());
        self.inner.disk.create_dir(&dir).map_err(|e| storage_error(&e))?;
        let mut windows = windows(&views, self.window_ms);
        for start in self.view.block_windows(TimeRange::ALL, self.window_ms) {
            windows.entry(start).or_default();
        }
        if windows.len() > BLOCKS_MAX {
            let text = format!(
                "tenant {}: the samples lie in {} windows of time, a snapshot has at most {BLOCKS_MAX}",
                self.tenant,
                windows.len()
            );
            return Err(Error::new(Class::Limited, text));
        }
        let mut series: Vec<Series> = views.into_iter().flat_map(|view| view.series).collect();
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        let (mut blocks, mut samples) = (0, 0);
        for (start, held) in windows {
            // The first window of all time is cut short at its start, never at its end.
            let end = (start.div_euclid(self.window_ms) + 1).saturating_mul(self.window_ms);
            let range = TimeRange::new(start, end);
            let count = match self.elsewhere(range, &series)? {
                Some((all, slots)) => self.block(&dir, range, &all, slots)?,
                None => self.block(&dir, range, &series, held)?,
            };
            samples += count;
            blocks += usize::from(count > 0);
        }
        Ok((blocks, samples))
    }

    /// The series of a window that blocks hold or of which something is deleted, heads and blocks beside each other in
    /// order of labels, and the digests of them all; none when the heads alone know all of it.
    fn elsewhere(&self, range: TimeRange, heads: &[Series]) -> Result<Option<(Vec<Series>, Slots)>, Error> {
        let hider = self.view.hider(range)?;
        if hider.is_empty() && self.view.block_windows(range, self.window_ms).is_empty() {
            return Ok(None);
        }
        let mut all: Vec<Series> = heads.iter().map(|series| hider.hide(series.clone())).collect();
        all.extend(self.runtime.block_on(self.view.of_blocks(range))?);
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        let slots = digests_of(&all, range)?;
        Ok(Some((all, slots)))
    }

    /// Writes the block of the window `range`, of which heads and blocks hold `held`; says how many samples it has.
    fn block(&self, dir: &Path, range: TimeRange, series: &[Series], held: Slots) -> Result<u64, Error> {
        let storage = |e: engram_storage::Error| storage_error(&e);
        let start = range.start;
        let id = BlockId::new(self.inner.clock.now(), uuid::Uuid::new_v4().as_u128());
        let spec = Spec::cut(id, range, self.window_ms);
        let mut writer = BlockWriter::create(self.inner.disk.clone(), dir, spec).map_err(storage)?;
        let mut held = Held { slots: held, range };
        for same in series.chunk_by(|a, b| a.labels == b.labels) {
            if self.cancel.is_cancelled() {
                return Err(Error::new(Class::Cancelled, "the snapshot was given up: nobody waits for it"));
            }
            let columns = held.read(same)?;
            let chunks = chunk::encode(samples(&columns, range), self.window_ms);
            if !chunks.is_empty() {
                writer.add(&same[0].labels, &chunks).map_err(storage)?;
            }
        }
        // Read back from the disk and recomputed in there.
        let written = writer.finish().map_err(storage)?;
        let found = written.map(|written| written.report.slots).unwrap_or_default();
        let count = found.values().copied().sum::<Digest>().count;
        held.check(found).map_err(|text| {
            Error::new(Class::Internal, format!("tenant {}, window {start}: {text}: a bug, or damage", self.tenant))
        })?;
        Ok(count)
    }
}

/// What heads and blocks hold of a window, less what was found to be in two of them.
struct Held {
    slots: Slots,
    range: TimeRange,
}

impl Held {
    /// Reads the samples of one series from all its partitions.
    fn read(&mut self, same: &[Series]) -> Result<Columns, Error> {
        let hash = same[0].labels.hash128();
        let mut sum = Columns::default();
        for (i, series) in same.iter().enumerate() {
            let mut one = Columns::default();
            series.source.read(self.range, &mut one).map_err(|e| Error::new(Class::Internal, e.to_string()))?;
            if i == 0 {
                sum = one;
                continue;
            }
            let both = merge_columns(&sum, &one);
            for (part, is_source) in [(&sum, true), (&one, true), (&both, false)] {
                for (at, value) in samples(part, self.range) {
                    let slot = self.slots.entry(slot_of(at)).or_default();
                    let digest = digest_of(hash, at, value);
                    if is_source { slot.remove(digest) } else { slot.add(digest) }
                }
            }
            sum = both;
        }
        Ok(sum)
    }

    /// Holds what is in the block against it.
    fn check(mut self, mut found: Slots) -> Result<(), String> {
        for slots in [&mut self.slots, &mut found] {
            slots.retain(|_, digest| *digest != Digest::EMPTY);
        }
        if self.slots == found {
            return Ok(());
        }
        let count = |slots: &Slots| slots.values().copied().sum::<Digest>().count;
        Err(format!("what was written ({} samples) is not what is held ({})", count(&found), count(&self.slots)))
    }
}

/// The digests of all partitions by window.
fn windows(views: &[PartitionView], window_ms: i64) -> BTreeMap<Millis, Slots> {
    let mut all: BTreeMap<Millis, Slots> = BTreeMap::new();
    for (slot, digest) in views.iter().flat_map(|view| &view.digests).filter(|(_, digest)| *digest != Digest::EMPTY) {
        let start = slot.div_euclid(window_ms).saturating_mul(window_ms);
        all.entry(start).or_default().entry(*slot).or_default().add(*digest);
    }
    all
}

/// The samples of a range, in order of time.
fn samples(columns: &Columns, range: TimeRange) -> Vec<(Millis, ValueRef<'_>)> {
    let floats = columns.times.iter().zip(&columns.values).map(|(at, value)| (*at, ValueRef::Float(*value)));
    let histograms = columns.histogram_times.iter().zip(&columns.histograms);
    let histograms = histograms.map(|(at, histogram)| (*at, ValueRef::Histogram(histogram)));
    let mut all: Vec<_> = floats.chain(histograms).filter(|(at, _)| range.contains(*at)).collect();
    all.sort_by_key(|(at, _)| *at);
    all
}

fn digest_of(hash: u128, at: Millis, value: ValueRef<'_>) -> Digest {
    match value {
        ValueRef::Float(value) => Digest::of_float(hash, at, value),
        ValueRef::Histogram(histogram) => Digest::of_histogram(hash, at, histogram),
    }
}

/// Removes a directory with all that is in it; what cannot be removed is told, and tried again at the next start.
fn remove(dir: &Path) {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "what is left of a snapshot cannot be removed");
        }
        _ => {}
    }
}

fn storage_error(error: &engram_storage::Error) -> Error {
    Error::new(error.class(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::Labels;

    const WINDOW: i64 = 7_200_000;

    fn part(labels: &Labels, samples: &[(i64, f64)]) -> PartitionView {
        let columns = Columns {
            times: samples.iter().map(|sample| sample.0).collect(),
            values: samples.iter().map(|sample| sample.1).collect(),
            ..Columns::default()
        };
        let series = vec![Series { labels: labels.clone(), source: Arc::new(columns) }];
        let digests = samples.iter().map(|(at, v)| (slot_of(*at), Digest::of_float(labels.hash128(), *at, *v)));
        PartitionView { series, digests: digests.collect() }
    }

    /// The digests of a block that holds these samples.
    fn block(labels: &Labels, columns: &Columns, range: TimeRange) -> Slots {
        let mut slots = Slots::new();
        for (at, value) in samples(columns, range) {
            slots.entry(slot_of(at)).or_default().add(digest_of(labels.hash128(), at, value));
        }
        slots
    }

    #[test]
    fn a_series_of_two_partitions_counts_once() {
        let labels = Labels::from_pairs([("__name__", "up")]);
        let views =
            [part(&labels, &[(-1, 8.0), (1, 1.0), (2, 2.0)]), part(&labels, &[(2, 3.0), (3, 1.0), (WINDOW, 1.0)])];
        let windows = windows(&views, WINDOW);
        assert_eq!(windows.keys().copied().collect::<Vec<_>>(), [-WINDOW, 0, WINDOW]);
        let same: Vec<Series> = views.iter().flat_map(|view| view.series.clone()).collect();
        for (start, slots) in windows {
            let mut held = Held { slots, range: TimeRange::new(start, start + WINDOW) };
            let columns = held.read(&same).unwrap();
            if start == 0 {
                assert_eq!(
                    (columns.times.as_slice(), columns.values.as_slice()),
                    (&[1, 2, 3][..], &[1.0, 3.0, 1.0][..])
                );
            }
            let found = block(&labels, &columns, held.range);
            held.check(found).unwrap();
        }
    }

    #[test]
    fn what_is_missing_or_other_is_noticed() {
        let labels = Labels::from_pairs([("__name__", "up")]);
        let range = TimeRange::new(0, WINDOW);
        let whole = part(&labels, &[(1, 1.0), (2, 2.0)]);
        for other in [&[(1, 1.0)][..], &[(1, 1.0), (2, 2.5)], &[(1, 1.0), (2, 2.0), (3, 3.0)]] {
            let other = part(&labels, other);
            let slots = windows(std::slice::from_ref(&whole), WINDOW).remove(&0).unwrap();
            let mut held = Held { slots, range };
            let columns = held.read(&other.series).unwrap();
            let found = block(&labels, &columns, range);
            assert!(held.check(found).unwrap_err().contains("is not what is held (2)"));
        }
    }
}
