//! From what replicas set aside for one seal to one verified block directory.
//!
//! Why so many sums: after the commit the heads forget, so nothing may get lost between here and the disk. What each
//! replica sends is summed again and held against the digest it names; what is merged, what deletions take out and
//! what is written are summed too, and `written + deleted = merged` must hold, where "written" was read back from the
//! disk and recomputed by the block writer. A difference is a bug or damage: nothing is committed then.
//!
//! One series is decoded at a time; of what replicas send, a frame each is held ([`super::parts`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use engram_model::block::BlockId;
use engram_model::digest::{Digest, slot_of};
use engram_model::error::{Class, Classed};
use engram_model::merge::merge_columns;
use engram_model::series::{Columns, Series};
use engram_model::{Millis, TimeRange};
use engram_storage::block::{self, BlockWriter, Spec, Written};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::Disk;
use tokio_util::sync::CancellationToken;

use super::parts::{Part, Row};
use crate::error::Error;
use crate::read::hide::Hider;

/// A number that nobody else has.
pub(super) fn unique() -> u128 {
    engram_storage::blocking::unique_here().unwrap_or_else(|| uuid::Uuid::new_v4().as_u128())
}

/// What is to be cut.
pub struct Cutting {
    /// The window of the seal.
    pub window: TimeRange,
    /// What a majority of the replicas set aside.
    pub parts: Vec<Part>,
    /// What has been deleted until now.
    pub hidden: Hider,
    /// No chunk crosses a multiple of this.
    pub window_ms: i64,
}

/// What came of it.
#[derive(Debug)]
pub struct Built {
    /// The block; none when nothing was set aside, or all of it is deleted.
    pub written: Option<Written>,
    /// Digest of everything that was set aside, deleted samples too.
    pub digest: Digest,
}

/// Writes the block below the directory `parent`, which exists.
///
/// # Errors
/// Internal when sums differ or a chunk does not decode, Cancelled, those of the disk, and of a part that breaks off.
/// Nothing is left below `parent` then.
pub fn build(
    disk: Arc<dyn Disk>,
    parent: &Path,
    id: BlockId,
    cutting: Cutting,
    cancel: &CancellationToken,
) -> Result<Built, Error> {
    let built = write(disk.clone(), parent, id, cutting, cancel);
    if built.is_err() {
        // Here and not with the caller, who may be gone: a part that breaks off breaks off again, and fills the disk.
        for name in [BlockWriter::unfinished_name(id), id.to_string()] {
            if let Err(error) = block::remove(&*disk, &parent.join(&name)) {
                tracing::warn!(name, %error, "what is left of a cut is removed at the next start");
            }
        }
    }
    built
}

fn write(
    disk: Arc<dyn Disk>,
    parent: &Path,
    id: BlockId,
    cutting: Cutting,
    cancel: &CancellationToken,
) -> Result<Built, Error> {
    let storage = |e: engram_storage::Error| Error::new(e.class(), e.to_string());
    let spec = Spec::cut(id, cutting.window, cutting.window_ms);
    let mut writer = BlockWriter::create(disk, parent, spec).map_err(storage)?;
    let mut sums = Sums::of(&cutting.parts);
    let mut row = Row::of(cutting.parts.into_iter().map(|part| part.series))?;
    loop {
        if cancel.is_cancelled() {
            return Err(Error::new(Class::Cancelled, "the cut was given up"));
        }
        let same = row.next()?;
        let Some((_, Series { labels, .. })) = same.first() else { break };
        let columns = sums.read(&same, cutting.window)?;
        let kept = sums.keep(labels.hash128(), &columns, &cutting.hidden.ranges(labels));
        let chunks = chunk::encode(kept, cutting.window_ms);
        if !chunks.is_empty() {
            writer.add(labels, &chunks).map_err(storage)?;
        }
    }
    sums.check_parts()?;
    let written = writer.finish().map_err(storage)?;
    let found = written.as_ref().map(|written| written.report.digest()).unwrap_or_default();
    let mut accounted = found;
    accounted.add(sums.deleted);
    if accounted != sums.merged {
        return Err(differs("what was written", accounted, sums.merged));
    }
    Ok(Built { written, digest: sums.merged })
}

fn differs(what: &str, found: Digest, expected: Digest) -> Error {
    let text = format!(
        "{what} ({} samples) is not what was set aside ({} samples): a bug, or damage; nothing is committed",
        found.count, expected.count
    );
    Error::new(Class::Internal, text)
}

/// What was seen, kept by hand.
struct Sums {
    /// Of each part, what it says less what was read of it: nothing in the end.
    parts: Vec<BTreeMap<Millis, Digest>>,
    merged: Digest,
    deleted: Digest,
}

impl Sums {
    fn of(parts: &[Part]) -> Self {
        let parts = parts.iter().map(|part| part.digests.clone()).collect();
        Self { parts, merged: Digest::EMPTY, deleted: Digest::EMPTY }
    }

    /// The union of one series' samples.
    fn read(&mut self, same: &[(usize, Series)], window: TimeRange) -> Result<Columns, Error> {
        let mut union: Option<Columns> = None;
        for (part, series) in same {
            let mut one = Columns::default();
            series.source.read(window, &mut one).map_err(|e| Error::new(Class::Internal, e.to_string()))?;
            let hash = series.labels.hash128();
            for (at, value) in samples(&one, window) {
                self.parts[*part].entry(slot_of(at)).or_default().remove(digest_of(hash, at, value));
            }
            union = Some(match union {
                None => one,
                Some(have) => merge_columns(&have, &one),
            });
        }
        let mut union = union.unwrap_or_default();
        cut_to(&mut union, window);
        Ok(union)
    }

    /// The samples that no order deletes.
    fn keep<'a>(&mut self, hash: u128, columns: &'a Columns, hidden: &[TimeRange]) -> Vec<(Millis, ValueRef<'a>)> {
        let mut kept = samples(columns, TimeRange { start: Millis::MIN, end: Millis::MAX });
        kept.retain(|(at, value)| {
            let digest = digest_of(hash, *at, *value);
            self.merged.add(digest);
            let is_hidden = hidden.iter().any(|range| range.contains(*at));
            if is_hidden {
                self.deleted.add(digest);
            }
            !is_hidden
        });
        kept
    }

    /// Whether each part held what it said.
    fn check_parts(&self) -> Result<(), Error> {
        for left in &self.parts {
            if let Some((slot, rest)) = left.iter().find(|(_, rest)| **rest != Digest::EMPTY) {
                let text = format!(
                    "a replica sent other samples than its digest of slot {slot} says ({} too few): a bug, or damage",
                    rest.count.cast_signed()
                );
                return Err(Error::new(Class::Internal, text));
            }
        }
        Ok(())
    }
}

/// Drops what lies outside of the window: sources may give whole chunks.
fn cut_to(columns: &mut Columns, window: TimeRange) {
    let cut =
        |times: &[Millis]| times.partition_point(|at| *at < window.start)..times.partition_point(|at| *at < window.end);
    let (floats, histograms) = (cut(&columns.times), cut(&columns.histogram_times));
    columns.times = columns.times[floats.clone()].to_vec();
    columns.values = columns.values[floats].to_vec();
    columns.histogram_times = columns.histogram_times[histograms.clone()].to_vec();
    columns.histograms = columns.histograms[histograms].to_vec();
    // Version 1 of the format has no room for them.
    columns.starts.clear();
    columns.histogram_starts.clear();
}

/// The samples of a range, in order of time.
fn samples(columns: &Columns, range: TimeRange) -> Vec<(Millis, ValueRef<'_>)> {
    let floats = columns.times.iter().zip(&columns.values).map(|(at, value)| (*at, ValueRef::Float(*value)));
    let histograms = columns.histogram_times.iter().zip(&columns.histograms);
    let histograms = histograms.map(|(at, histogram)| (*at, ValueRef::Histogram(histogram)));
    let mut all: Vec<_> = floats.chain(histograms).filter(|(at, _)| range.contains(*at)).collect();
    if !columns.histogram_times.is_empty() {
        all.sort_by_key(|(at, _)| *at);
    }
    all
}

fn digest_of(hash: u128, at: Millis, value: ValueRef<'_>) -> Digest {
    match value {
        ValueRef::Float(value) => Digest::of_float(hash, at, value),
        ValueRef::Histogram(histogram) => Digest::of_histogram(hash, at, histogram),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Frozen;
    use engram_model::Labels;
    use engram_model::block::Deletion;
    use engram_storage::block::BlockDir;
    use engram_storage::block::verify;
    use engram_storage::disk::fault::FaultDisk;
    use proptest::prelude::*;

    const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };

    fn labels(n: usize) -> Labels {
        Labels::from_pairs([("__name__", "up"), ("n", ["a", "b", "c"][n % 3])])
    }

    /// A part of these samples: series, time, value.
    fn part(samples: &BTreeMap<(usize, i64), f64>) -> Frozen {
        let (mut series, mut digests) = (Vec::new(), BTreeMap::<_, Digest>::new());
        for n in 0..3 {
            let own: Vec<(i64, f64)> = samples.range((n, 0)..(n + 1, 0)).map(|((_, at), v)| (*at, *v)).collect();
            for (at, value) in &own {
                let digest = Digest::of_float(labels(n).hash128(), *at, *value);
                digests.entry(slot_of(*at)).or_default().add(digest);
            }
            let (times, values) = own.into_iter().unzip();
            let columns = Columns { times, values, ..Columns::default() };
            if !columns.times.is_empty() {
                series.push(Series { labels: labels(n), source: Arc::new(columns) });
            }
        }
        Frozen { number: 1, window: WINDOW, digests, series }
    }

    fn cut(parts: Vec<Frozen>, hidden: Hider) -> (FaultDisk, Result<Built, Error>) {
        let disk = FaultDisk::new();
        disk.create_dir(Path::new("/w")).unwrap();
        let parts = parts.into_iter().map(Part::from).collect();
        let cutting = Cutting { window: WINDOW, parts, hidden, window_ms: 7_200_000 };
        let built = build(Arc::new(disk.clone()), Path::new("/w"), BlockId(7), cutting, &CancellationToken::new());
        (disk, built)
    }

    fn hidden(selector: &str, range: TimeRange) -> Hider {
        let deletion = Deletion { index: 1, selectors: vec![selector.to_owned()], range, at: 0, by: "t".to_owned() };
        Hider::new(&[Arc::new(deletion)], TimeRange::ALL).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// The block holds the union of what replicas hold, less what is deleted; the greater value wins.
        #[test]
        fn a_block_is_the_union_less_the_deleted(
            parts in prop::collection::vec(
                prop::collection::btree_map((0_usize..3, 0_i64..40), 0_u32..3, 0..40), 1..4),
            deleted in prop::option::of((0_i64..40, 0_i64..40)),
        ) {
            let spread = |(n, at): &(usize, i64)| (*n, at * 170_000);
            let parts: Vec<BTreeMap<(usize, i64), f64>> = parts
                .iter()
                .map(|part| part.iter().map(|(key, v)| (spread(key), f64::from(*v))).collect())
                .collect();
            let range = deleted.map(|(a, b)| TimeRange { start: a.min(b) * 170_000, end: a.max(b) * 170_000 });
            let orders = range.map(|range| hidden("{n=\"b\"}", range)).unwrap_or_default();
            let (disk, built) = cut(parts.iter().map(part).collect(), orders);
            let built = built.unwrap();
            let mut union = BTreeMap::new();
            for (key, value) in parts.iter().flatten() {
                let have = union.entry(*key).or_insert(*value);
                *have = have.max(*value);
            }
            let digest = |all: &BTreeMap<(usize, i64), f64>| {
                all.iter().map(|((n, at), v)| Digest::of_float(labels(*n).hash128(), *at, *v)).sum::<Digest>()
            };
            prop_assert_eq!(built.digest, digest(&union));
            union.retain(|(n, at), _| *n != 1 || !range.is_some_and(|range| range.contains(*at)));
            prop_assert_eq!(built.written.is_some(), !union.is_empty());
            if let Some(written) = built.written {
                let dir = BlockDir::open(&disk, &written.path).unwrap();
                let report = verify(&dir, dir.meta()).unwrap();
                prop_assert_eq!(report.digest(), digest(&union));
            }
        }
    }

    #[test]
    fn what_a_replica_did_not_say_is_noticed() {
        let samples = BTreeMap::from([((0, 1), 1.0), ((1, 2), 2.0)]);
        let mut lying = part(&samples);
        lying.digests.clear();
        let (_, built) = cut(vec![lying], Hider::default());
        assert!(built.unwrap_err().message.contains("than its digest"));
        let mut short = part(&samples);
        short.series.pop();
        let (_, built) = cut(vec![short], Hider::default());
        assert!(built.unwrap_err().message.contains("than its digest"));
    }

    #[test]
    fn nothing_gives_no_block() {
        let (disk, built) = cut(vec![part(&BTreeMap::new())], Hider::default());
        let built = built.unwrap();
        assert!(built.written.is_none() && built.digest == Digest::EMPTY);
        assert!(disk.list_dirs(Path::new("/w")).unwrap().is_empty());
    }
}
