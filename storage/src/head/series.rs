//! One series of a head: its chunks in order of time, none overlapping another.
//!
//! Why late samples are *sewn in*: a sample older than the series' newest goes into the very chunk whose time it
//! falls in, which is decoded and written anew. Late samples are rare and a chunk is small, so the cost (a few
//! microseconds) is paid by whoever is late; in return every reader sees one sorted run of chunks, nothing is merged
//! at read time, and a duplicate is found where it would lie. Side chunks merged at read time, the way of
//! Prometheus, were rejected: they make each read and each cut pay, and cannot say whether a late sample is new.
//!
//! A chunk never crosses the border of a window, so a block is cut, and a window forgotten, in whole chunks.

use std::sync::Arc;

use engram_model::sample::Value;
use engram_model::series::Columns;
use engram_model::{Millis, TimeRange};

use super::symbols::Symbol;
use crate::chunk::{self, Chunk, Open, SAMPLES_MAX, ValueRef};
use crate::codec::Broken;

/// Which series of a head: small numbers, given again when a series is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesRef(pub u32);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Series {
    /// Stable hash of the labels, high half first: a `u128` would round the size up to the next 16 bytes.
    hash: [u64; 2],
    /// Labels as symbols, in order of name.
    pub(crate) pairs: Box<[(Symbol, Symbol)]>,
    /// Full chunks, in order.
    pub(crate) full: Vec<Chunk>,
    /// The chunk that takes samples, after all full ones.
    pub(crate) open: Open,
    /// The end of the window the open chunk lies in.
    cut_at: Millis,
}

/// The start of the window that holds `at`.
pub(crate) fn window_of(at: Millis, window_ms: i64) -> Millis {
    at.div_euclid(window_ms).saturating_mul(window_ms)
}

/// What lies at one time of a series.
pub(crate) enum Found {
    Nothing,
    Same,
    /// Another value.
    Other(Value),
}

impl Series {
    #[allow(clippy::cast_possible_truncation, reason = "both halves are kept")]
    pub(crate) fn new(hash: u128, pairs: Box<[(Symbol, Symbol)]>) -> Self {
        Self {
            hash: [(hash >> 64) as u64, hash as u64],
            pairs,
            full: Vec::new(),
            open: Open::None,
            cut_at: Millis::MIN,
        }
    }

    #[inline]
    pub(crate) fn hash(&self) -> u128 {
        u128::from(self.hash[0]) << 64 | u128::from(self.hash[1])
    }

    /// Times of the first and the last sample.
    pub(crate) fn bounds(&self) -> Option<(Millis, Millis)> {
        // The open chunk is the last; a series may have only full ones after its open one was forgotten.
        let open = self.open.bounds();
        let last = open.map(|open| open.1).or(self.full.last().map(|chunk| chunk.last))?;
        let first = self.full.first().map(|chunk| chunk.first).or(open.map(|open| open.0))?;
        Some((first, last))
    }

    /// Whether it holds no sample.
    pub(crate) fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.count() == 0
    }

    /// Whether a sample may lie in the range.
    pub(crate) fn overlaps(&self, range: TimeRange) -> bool {
        self.bounds().is_some_and(|(first, last)| first < range.end && range.start <= last)
    }

    pub(crate) fn sample_count(&self) -> u64 {
        self.full.iter().map(|chunk| u64::from(chunk.count)).sum::<u64>() + u64::from(self.open.count())
    }

    /// Time of the newest sample.
    #[inline]
    pub(crate) fn last(&self) -> Option<Millis> {
        match self.open.bounds() {
            Some((_, last)) => Some(last),
            None => self.full.last().map(|chunk| chunk.last),
        }
    }

    /// Appends a sample later than all before. Gives the bytes of the chunk that became full by it; 0: none did.
    #[inline]
    pub(crate) fn append(&mut self, at: Millis, value: ValueRef<'_>, window_ms: i64) -> usize {
        let cut = at >= self.cut_at;
        let full = self.open.append(at, value, cut);
        if cut {
            self.cut_at = window_of(at, window_ms).saturating_add(window_ms);
        }
        let Some(full) = full else { return 0 };
        let bytes = full.bytes.len();
        self.push_full(full);
        bytes
    }

    fn push_full(&mut self, chunk: Chunk) {
        if self.full.len() == self.full.capacity() {
            self.full.reserve_exact(self.full.len() / 2 + 1);
        }
        self.full.push(chunk);
    }

    /// The full chunks that may hold samples of the range.
    pub(super) fn full_in(&self, range: TimeRange) -> &[Chunk] {
        let from = self.full.partition_point(|chunk| chunk.last < range.start);
        let to = self.full.partition_point(|chunk| chunk.first < range.end);
        self.full.get(from..to).unwrap_or_default()
    }

    /// All chunks that may hold samples of the range; the open one is copied.
    pub(crate) fn chunks(&self, range: TimeRange) -> Vec<Chunk> {
        let mut out = self.full_in(range).to_vec();
        if self.open.bounds().is_some_and(|(first, last)| first < range.end && range.start <= last) {
            out.extend(self.open.view());
        }
        out
    }

    /// What lies at `at`, which is not after the newest sample.
    pub(crate) fn find(&self, at: Millis, value: ValueRef<'_>) -> Result<Found, Broken> {
        if let (Some((_, last)), Some(newest)) = (self.open.bounds(), self.open.newest())
            && at == last
        {
            return Ok(if newest.same(value) { Found::Same } else { Found::Other(newest.to_value()) });
        }
        for chunk in self.chunks(TimeRange::closed(at, at)) {
            if let Some((_, found)) = samples_of(&chunk)?.into_iter().find(|(have, _)| *have == at) {
                return Ok(if ValueRef::from(&found).same(value) { Found::Same } else { Found::Other(found) });
            }
        }
        Ok(Found::Nothing)
    }

    /// Puts a sample where its time wants it, replacing what lies there.
    pub(crate) fn sew(&mut self, at: Millis, value: ValueRef<'_>, window_ms: i64) -> Result<(), Broken> {
        let window = window_of(at, window_ms);
        let near = self.full.partition_point(|chunk| chunk.last < at);
        // The chunk that holds the time, else the next of the same window, else the one before, else a new one.
        let holds = |chunk: &Chunk| chunk.first <= at || window_of(chunk.first, window_ms) == window;
        if self.full.get(near).is_some_and(holds) {
            return self.sew_full(near, at, value);
        }
        let open_near = near == self.full.len()
            && self.open.bounds().is_some_and(|(first, _)| first <= at || window_of(first, window_ms) == window);
        if open_near {
            let Some(view) = self.open.view() else { return Ok(()) };
            let (full, open) = encode(&with(samples_of(&view)?, at, value));
            full.into_iter().for_each(|chunk| self.push_full(chunk));
            self.open = open;
            return Ok(());
        }
        let before = near.checked_sub(1).filter(|i| window_of(self.full[*i].first, window_ms) == window);
        if let Some(before) = before {
            return self.sew_full(before, at, value);
        }
        let (_, open) = encode(&[(at, value.to_value())]);
        self.full.splice(near..near, open.view());
        Ok(())
    }

    fn sew_full(&mut self, i: usize, at: Millis, value: ValueRef<'_>) -> Result<(), Broken> {
        let (full, open) = encode(&with(samples_of(&self.full[i])?, at, value));
        self.full.splice(i..=i, full.into_iter().chain(open.view()));
        Ok(())
    }

    /// Drops all samples before `before` and says how many.
    pub(crate) fn forget(&mut self, before: Millis) -> Result<u64, Broken> {
        let count = self.sample_count();
        if self.bounds().is_none_or(|(first, _)| first >= before) {
            return Ok(0);
        }
        let gone = self.full.partition_point(|chunk| chunk.last < before);
        let mut kept = Vec::new();
        if let Some(chunk) = self.full.get(gone)
            && chunk.first < before
        {
            let samples: Vec<_> = samples_of(chunk)?.into_iter().filter(|(at, _)| *at >= before).collect();
            let (full, open) = encode(&samples);
            kept.extend(full.into_iter().chain(open.view()));
        }
        let to = gone + usize::from(!kept.is_empty());
        self.full.splice(..to, kept);
        self.full.shrink_to_fit();
        match self.open.bounds() {
            Some((_, last)) if last < before => {
                self.open = Open::None;
                self.cut_at = Millis::MIN;
            }
            Some((first, _)) if first < before => {
                let Some(view) = self.open.view() else { return Ok(count - self.sample_count()) };
                let samples: Vec<_> = samples_of(&view)?.into_iter().filter(|(at, _)| *at >= before).collect();
                let (full, open) = encode(&samples);
                self.full.extend(full);
                self.open = open;
            }
            _ => {}
        }
        Ok(count - self.sample_count())
    }

    /// Takes out all samples of `window`, as chunks in order of time. Windows of which no chunk crosses the border, which
    /// is all that share the head's, are taken without a look at the samples.
    pub(crate) fn take(&mut self, window: TimeRange) -> Result<Vec<Chunk>, Broken> {
        let from = self.full.partition_point(|chunk| chunk.last < window.start);
        let to = self.full.partition_point(|chunk| chunk.first < window.end).max(from);
        let (mut taken, mut kept) = (Vec::with_capacity(to - from + 1), Vec::new());
        for chunk in &self.full[from..to] {
            divide(chunk, window, &mut taken, &mut kept)?;
        }
        let open = self.open.view().filter(|open| open.first < window.end && window.start <= open.last);
        let mut rest = Vec::new();
        if let Some(open) = &open {
            divide(open, window, &mut taken, &mut rest)?;
        }
        self.full.splice(from..to, kept);
        if open.is_some() {
            self.open = Open::None;
            self.cut_at = Millis::MIN;
            self.full.extend(rest);
        }
        self.full.shrink_to_fit();
        Ok(taken)
    }

    /// Takes the chunks of a checkpoint in place of its own. The last may take samples again when it was open.
    pub(crate) fn restore(&mut self, full: Vec<Chunk>, open: Open, window_ms: i64) {
        self.full = full;
        self.cut_at =
            open.bounds().map_or(Millis::MIN, |(first, _)| window_of(first, window_ms).saturating_add(window_ms));
        self.open = open;
    }

    /// Memory of this series, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        let full: usize = self.full.iter().map(|chunk| chunk.bytes.heap_bytes()).sum();
        size_of::<Self>()
            + self.pairs.len() * 8
            + self.full.capacity() * size_of::<Chunk>()
            + full
            + self.open.heap_bytes()
    }
}

/// Puts the part of a chunk that lies in `window` into `taken`, what lies before and after it into `kept`.
fn divide(chunk: &Chunk, window: TimeRange, taken: &mut Vec<Chunk>, kept: &mut Vec<Chunk>) -> Result<(), Broken> {
    if window.contains(chunk.first) && window.contains(chunk.last) {
        taken.push(chunk.clone());
        return Ok(());
    }
    let samples = samples_of(chunk)?;
    let start = samples.partition_point(|(at, _)| *at < window.start);
    let end = samples.partition_point(|(at, _)| *at < window.end).max(start);
    let chunks_of = |some: &[(Millis, Value)]| {
        let (full, open) = encode(some);
        full.into_iter().chain(open.view())
    };
    kept.extend(chunks_of(&samples[..start]));
    taken.extend(chunks_of(&samples[start..end]));
    kept.extend(chunks_of(&samples[end..]));
    Ok(())
}

/// The samples of a chunk.
pub(crate) fn samples_of(chunk: &Chunk) -> Result<Vec<(Millis, Value)>, Broken> {
    let mut columns = Columns::default();
    chunk.decode(&mut columns)?;
    let floats = columns.times.into_iter().zip(columns.values.into_iter().map(Value::Float));
    let histograms = columns.histogram_times.into_iter().zip(columns.histograms.into_iter().map(Value::Histogram));
    Ok(floats.chain(histograms).collect())
}

/// The samples with one more, or one replaced.
fn with(mut samples: Vec<(Millis, Value)>, at: Millis, value: ValueRef<'_>) -> Vec<(Millis, Value)> {
    match samples.binary_search_by_key(&at, |sample| sample.0) {
        Ok(i) => samples[i].1 = value.to_value(),
        Err(i) => samples.insert(i, (at, value.to_value())),
    }
    samples
}

/// Encodes samples of one window; more than fit in one chunk are shared out evenly, so that the halves have room for
/// the next late sample.
fn encode(samples: &[(Millis, Value)]) -> (Vec<Chunk>, Open) {
    let pieces = samples.len().div_ceil(usize::from(SAMPLES_MAX)).max(1);
    let piece = samples.len().div_ceil(pieces).max(1);
    let (mut full, mut open) = (Vec::new(), Open::None);
    for (i, (at, value)) in samples.iter().enumerate() {
        full.extend(open.append(*at, ValueRef::from(value), i > 0 && i % piece == 0));
    }
    (full, open)
}

/// An open chunk from its bytes: the same samples appended again give the same state.
pub(crate) fn reopen(kind: chunk::Kind, bytes: &[u8]) -> Result<Open, Broken> {
    let checked = Chunk::checked(kind, bytes)?;
    let mut samples = samples_of(&checked)?;
    if let Some((_, Value::Histogram(first))) = samples.first_mut() {
        let hint = chunk::histogram::hint_of(bytes);
        Arc::make_mut(first).reset_hint = hint;
    }
    let mut open = Open::None;
    for (at, value) in &samples {
        if open.append(*at, ValueRef::from(value), false).is_some() {
            return Err(Broken { at: 0, what: "open chunk does not fit in one chunk" });
        }
    }
    Ok(open)
}
