//! Reading a head: which series, and their samples; which names and values.
//!
//! A select takes shared references to full chunks and copies the open one (a few hundred bytes); all decoding
//! happens later, at the reader's, without the head's lock. Labels are built of symbols only for series that have
//! samples in the range.

use std::collections::BTreeSet;
use std::sync::Arc;

use engram_model::labels::METRIC_NAME;
use engram_model::merge::merge_columns;
use engram_model::sample::{Exemplar, Metadata};
use engram_model::series::{Columns, ReadError, SampleSource, Series as Readable, Wanted};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use roaring::RoaringBitmap;

use super::picked::Picked;
use super::starts::{StartRun, fill};
use super::symbols::{Symbol, View};
use super::{Head, Series};
use crate::chunk::{Chunk, ValueRef};

/// Series after whose labels a reader lets writers of texts through: some tens of microseconds.
const GIVE_WAY_EVERY: usize = 128;

/// One series of an answer.
#[derive(Clone, Debug)]
pub struct HeadSeries {
    /// Who.
    pub labels: Labels,
    /// Its samples.
    pub chunks: Arc<HeadChunks>,
}

/// The chunks of one series that may hold samples of the range asked for, in order of their first sample. They overlap
/// only where late samples came after their window was sealed; no time has two samples.
#[derive(Clone, Debug)]
pub struct HeadChunks {
    /// Stable hash of the series' labels, as digests use it.
    pub hash: u128,
    /// The chunks. None crosses the border of a window.
    pub chunks: Vec<Chunk>,
    /// When the counters of the chunks' samples began: a sample has the start of the last run at or before it, and
    /// one before all runs has none. Nearly always empty.
    pub starts: Vec<StartRun>,
}

/// The last sample of a series, where no other is wanted.
#[derive(Clone, Copy, Debug)]
struct LastSample {
    hash: u128,
    at: Millis,
    value: f64,
}

impl SampleSource for LastSample {
    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        if range.contains(self.at) {
            out.times.push(self.at);
            out.values.push(self.value);
        }
        Ok(())
    }

    fn series_hash(&self) -> Option<u128> {
        Some(self.hash)
    }
}

impl SampleSource for HeadChunks {
    fn series_hash(&self) -> Option<u128> {
        Some(self.hash)
    }

    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        let (floats, histograms) = (out.times.len(), out.histogram_times.len());
        let reaching = || self.chunks.iter().filter(|chunk| chunk.first < range.end && range.start <= chunk.last);
        if overlap(&self.chunks) {
            let mut sum = Columns::default();
            for chunk in reaching() {
                let mut one = Columns::default();
                chunk.read(self.hash, &mut one)?;
                sum = if sum.is_empty() { one } else { merge_columns(&sum, &one) };
            }
            out.times.append(&mut sum.times);
            out.values.append(&mut sum.values);
            out.histogram_times.append(&mut sum.histogram_times);
            out.histograms.append(&mut sum.histograms);
        } else {
            reaching().try_for_each(|chunk| chunk.read(self.hash, out))?;
        }
        if !(self.starts.is_empty() && out.starts.is_empty() && out.histogram_starts.is_empty()) {
            fill(&self.starts, &out.times, floats, &mut out.starts);
            fill(&self.starts, &out.histogram_times, histograms, &mut out.histogram_starts);
        }
        Ok(())
    }
}

/// Whether chunks, in order of their first sample, overlap.
fn overlap(chunks: &[Chunk]) -> bool {
    chunks.windows(2).any(|two| two[1].first <= two[0].last)
}

impl From<HeadSeries> for Readable {
    fn from(series: HeadSeries) -> Self {
        Self { labels: series.labels, source: series.chunks }
    }
}

impl Head {
    /// The series all matchers pass that may have samples in the range (a chunk of theirs reaches into it), in no
    /// order to rely on.
    #[must_use]
    pub fn select(&self, matchers: &[Matcher], range: TimeRange) -> Vec<HeadSeries> {
        let set = self.index.select(matchers);
        let series = set.iter().filter_map(|series_ref| Some((series_ref, self.get(series_ref)?)));
        let with_chunks =
            series.filter_map(|(series_ref, series)| Some((series, self.chunks_of(series_ref, series, range)?)));
        self.with_labels(with_chunks, |labels, (_, chunks)| HeadSeries { labels, chunks: Arc::new(chunks) })
    }

    /// The chunks of one series that reach into the range, with the starts of their samples.
    fn chunks_of(&self, series_ref: u32, series: &Series, range: TimeRange) -> Option<HeadChunks> {
        let mut chunks = if series.overlaps(range) { series.chunks(range) } else { Vec::new() };
        if !self.frozen.is_empty() {
            chunks.extend(self.frozen.chunks_in(series_ref, range).cloned());
            chunks.sort_by_key(|chunk| chunk.first);
        }
        let (first, last) = (chunks.first()?.first, chunks.iter().map(|chunk| chunk.last).max()?);
        let starts = self.starts.within(series_ref, first, last).to_vec();
        Some(HeadChunks { hash: series.hash(), chunks, starts })
    }

    /// As [`Head::select`], but gives no more than is wanted, ready to be read.
    #[must_use]
    pub fn select_wanted(&self, matchers: &[Matcher], range: TimeRange, wanted: &Wanted) -> Vec<Readable> {
        let set = self.index.select(matchers);
        let mut view = self.symbols.view();
        let keep = wanted.labels.as_ref().and_then(|names| self.kept(names, &view));
        let labels_of = |series: &Series, view: &View<'_>| match &keep {
            None => labels_of(series, view),
            Some(keep) => some_labels_of(series, keep, view),
        };
        let (mut out, mut picked, mut shares) = (Vec::new(), Picked::default(), Vec::new());
        for series_ref in &set {
            let Some(series) = self.get(series_ref) else { continue };
            if (out.len() + shares.len()).is_multiple_of(GIVE_WAY_EVERY) {
                view.give_way();
            }
            let has_starts = !self.starts.within(series_ref, Millis::MIN, Millis::MAX).is_empty();
            let frozen: Vec<&Chunk> = match self.frozen.end > range.start {
                true => self.frozen.chunks_in(series_ref, range).collect(),
                false => Vec::new(),
            };
            if has_starts && (series.overlaps(range) || !frozen.is_empty()) {
                let Some(chunks) = self.chunks_of(series_ref, series, range) else { continue };
                out.push(Readable { labels: labels_of(series, &view), source: Arc::new(chunks) });
            } else if wanted.last_only
                && let Some(last) = last_sample(series, range)
                && frozen.iter().all(|chunk| chunk.last < last.at)
            {
                out.push(Readable { labels: labels_of(series, &view), source: Arc::new(last) });
            } else if !frozen.is_empty() {
                // Whole windows of the past, and few: they need not lie in one piece.
                let Some(chunks) = self.chunks_of(series_ref, series, range) else { continue };
                out.push(Readable { labels: labels_of(series, &view), source: Arc::new(chunks) });
            } else if series.overlaps(range)
                && let Some(share) = picked.take(series, range)
            {
                shares.push((labels_of(series, &view), share));
            }
        }
        out.extend(picked.share_out(shares));
        out
    }

    /// How many series a select would give at most: for limits, before the work.
    #[must_use]
    pub fn count(&self, matchers: &[Matcher]) -> u64 {
        self.index.select(matchers).len()
    }

    /// How many series all matchers pass that have samples about the range; no labels are made.
    #[must_use]
    pub fn count_in(&self, matchers: &[Matcher], range: TimeRange) -> u64 {
        let set = self.index.select(matchers);
        set.iter().filter(|series_ref| self.reaches(*series_ref, range)).count() as u64
    }

    /// The labels of the series all matchers pass that have samples about the range, in no order.
    #[must_use]
    pub fn series_labels(&self, matchers: &[Matcher], range: TimeRange) -> Vec<Labels> {
        let set = self.index.select(matchers);
        let series = self.of_set(&set, range);
        self.with_labels(series.map(|series| (series, ())), |labels, _| labels)
    }

    /// All label names of such series, sorted.
    #[must_use]
    pub fn label_names(&self, matchers: &[Matcher], range: TimeRange) -> Vec<String> {
        let names: BTreeSet<Symbol> = if matchers.is_empty() {
            let alive = |name: &Symbol| self.index.values(*name).any(|(_, list)| self.any_in(list.iter(), range));
            self.index.names().filter(alive).collect()
        } else {
            let set = self.index.select(matchers);
            let series = self.of_set(&set, range);
            series.flat_map(|series| series.pairs.iter().map(|pair| pair.0)).collect()
        };
        self.texts(names)
    }

    /// All values of a label of such series, sorted.
    #[must_use]
    pub fn label_values(&self, name: &str, matchers: &[Matcher], range: TimeRange) -> Vec<String> {
        let Some(name) = self.symbols.find(name) else { return Vec::new() };
        let values: BTreeSet<Symbol> = if matchers.is_empty() {
            let alive = self.index.values(name).filter(|(_, list)| self.any_in(list.iter(), range));
            alive.map(|(value, _)| value).collect()
        } else {
            let set = self.index.select(matchers);
            let series = self.of_set(&set, range);
            series.filter_map(|series| series.pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1)).collect()
        };
        self.texts(values)
    }

    /// The exemplars of the range of the series all matchers pass, grouped by series, each in order of time.
    #[must_use]
    pub fn exemplars(&self, matchers: &[Matcher], range: TimeRange) -> Vec<(Labels, Vec<Exemplar>)> {
        let set = self.index.select(matchers);
        let mut found = std::collections::BTreeMap::<u32, Vec<Exemplar>>::new();
        for (series_ref, exemplar) in self.exemplars.iter() {
            if set.contains(*series_ref) && range.contains(exemplar.at) {
                found.entry(*series_ref).or_default().push(exemplar.clone());
            }
        }
        let view = self.symbols.view();
        let with_labels = |(series_ref, all)| Some((labels_of(self.get(series_ref)?, &view), all));
        found.into_iter().filter_map(with_labels).collect()
    }

    /// What is known of one metric, the latest last.
    #[must_use]
    pub fn metadata_of(&self, metric: &str) -> &[Metadata] {
        self.metadata.get(metric)
    }

    /// What is known of all metrics, in order of name.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &[Metadata])> {
        self.metadata.iter()
    }

    /// The symbols of the names and of the metric's name; `None`: see [`Wanted::labels`].
    fn kept(&self, names: &[String], view: &View<'_>) -> Option<Vec<Symbol>> {
        let is_used = |name: &str| view.find(name).is_some_and(|name| self.index.values(name).next().is_some());
        if is_used("__type__") || is_used("__unit__") {
            return None;
        }
        Some(names.iter().map(String::as_str).chain([METRIC_NAME]).filter_map(|name| view.find(name)).collect())
    }

    /// The series of a set that have samples about the range.
    fn of_set<'a>(&'a self, set: &'a RoaringBitmap, range: TimeRange) -> impl Iterator<Item = &'a Series> {
        set.iter().filter(move |series_ref| self.reaches(*series_ref, range)).filter_map(|found| self.get(found))
    }

    /// Whether a series may have samples in the range, live or frozen.
    fn reaches(&self, series_ref: u32, range: TimeRange) -> bool {
        self.get(series_ref).is_some_and(|series| series.overlaps(range))
            || self.frozen.end > range.start && self.frozen.chunks_in(series_ref, range).next().is_some()
    }

    /// Builds labels, and every now and then lets those through who bring new texts: all tenants of the node share them.
    pub(super) fn with_labels<'a, T, R>(
        &self,
        series: impl Iterator<Item = (&'a Series, T)>,
        make: impl Fn(Labels, (&'a Series, T)) -> R,
    ) -> Vec<R> {
        let (mut view, mut out) = (self.symbols.view(), Vec::new());
        for one in series {
            out.push(make(labels_of(one.0, &view), one));
            if out.len().is_multiple_of(GIVE_WAY_EVERY) {
                view.give_way();
            }
        }
        out
    }

    fn any_in(&self, mut list: impl Iterator<Item = u32>, range: TimeRange) -> bool {
        list.any(|series_ref| self.reaches(series_ref, range))
    }

    fn texts(&self, symbols: BTreeSet<Symbol>) -> Vec<String> {
        let view = self.symbols.view();
        let mut texts: Vec<_> = symbols.into_iter().map(|symbol| view.text(symbol).to_owned()).collect();
        texts.sort_unstable();
        texts
    }
}

/// The last sample of the range, where it is the newest of the series and a float: it lies open, and nothing needs to
/// be decoded.
fn last_sample(series: &Series, range: TimeRange) -> Option<LastSample> {
    let at = series.open.bounds()?.1;
    match series.open.newest()? {
        ValueRef::Float(value) if range.contains(at) => Some(LastSample { hash: series.hash(), at, value }),
        _ => None,
    }
}

fn some_labels_of(series: &Series, keep: &[Symbol], view: &View<'_>) -> Labels {
    let kept = series.pairs.iter().filter(|(name, _)| keep.contains(name));
    Labels::from_sorted(kept.map(|(name, value)| (view.text(*name), view.text(*value))))
}

pub(super) fn labels_of(series: &Series, view: &View<'_>) -> Labels {
    Labels::from_sorted(series.pairs.iter().map(|(name, value)| (view.text(*name), view.text(*value))))
}
