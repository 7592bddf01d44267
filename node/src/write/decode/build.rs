//! Fills the flat arrays of a batch, series by series, and takes back what a refused one had put there.

use engram_model::batch::{BatchSeries, HistogramSample, Pair, Run, Text};
use engram_model::labels::{Labels, hash128_encoded};
use engram_model::sample::{Exemplar, Sample};
use engram_model::time::Millis;

use super::histogram::Raw;
use super::{Bounds, DecodeError, Decoded, Reason, Refusal};

/// OpenMetrics: the labels of an exemplar together.
const EXEMPLAR_CHARS_MAX: usize = 128;

/// What an empty histogram weighs beside a label pair: two bytes of a body can ask for one.
const HISTOGRAM_PARTS: usize = 16;

/// Lengths of the arrays where the series at hand began.
#[derive(Clone, Copy, Default)]
struct Mark {
    pairs: usize,
    samples: usize,
    histograms: usize,
    exemplars: usize,
}

/// See the module's text. `begin`, then what the series holds in any order, then `end`.
pub(super) struct Builder<'a> {
    body: &'a [u8],
    pub(super) bounds: &'a Bounds,
    pub(super) out: Decoded,
    /// For the hash; used again.
    scratch: Vec<u8>,
    /// Histogram at hand; used again.
    pub(super) raw: Raw,
    mark: Mark,
    /// Index of the series at hand in the request.
    at: u32,
    /// The first fault of the series at hand.
    fault: Option<Reason>,
    samples: usize,
    parts: usize,
    label_bytes: usize,
}

/// Collects the labels of an exemplar; more than can be valid are not kept, one more tells that there were.
pub(super) fn push_exemplar_pair(pairs: &mut Vec<Pair>, pair: Pair) {
    if pairs.len() <= EXEMPLAR_CHARS_MAX {
        pairs.push(pair);
    }
}

#[inline]
fn bytes_of(body: &[u8], text: Text) -> &[u8] {
    body.get(text.at as usize..text.at as usize + text.len as usize).unwrap_or_default()
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "each entry of an array cost at least one byte of a 32-bit body")]
fn index(len: usize) -> u32 {
    debug_assert!(u32::try_from(len).is_ok(), "{len} entries of a body of 32 bits");
    len as u32
}

/// The first eight bytes of a name as a number that orders as they do; a shorter name ends in zeros. Saves calls that
/// compare a few bytes each: they were the largest part of decoding.
#[inline]
fn prefix(body: &[u8], name: Text) -> u64 {
    let at = name.at as usize;
    let Some(bytes) = body.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(bytes_of(body, name)).for_each(|(to, from)| *to = *from);
        return u64::from_be_bytes(bytes);
    };
    let all = u64::from_be_bytes(*bytes);
    if name.len >= 8 { all } else { all & !(u64::MAX >> (8 * name.len)) }
}

/// Copies this much at once where it may: a copy of known length is two instructions, one of unknown length a call.
const PIECE: usize = 32;

/// Writes a varint length and a text at `at` of `out`, which has `PIECE` bytes to spare behind; returns the new end.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "masked to seven bits before the cast")]
fn put(out: &mut [u8], mut at: usize, body: &[u8], text: Text) -> usize {
    let mut rest = text.len;
    while rest >= 0x80 {
        out[at] = (rest & 0x7f) as u8 | 0x80;
        at += 1;
        rest >>= 7;
    }
    out[at] = (rest & 0x7f) as u8;
    at += 1;
    let (from, len) = (text.at as usize, text.len as usize);
    match body.get(from..).and_then(<[u8]>::first_chunk::<PIECE>) {
        Some(piece) if len <= PIECE => out[at..at + PIECE].copy_from_slice(piece),
        _ => out[at..at + len].copy_from_slice(bytes_of(body, text)),
    }
    at + len
}

/// The stable hash of settled pairs whose texts are `bytes` long.
#[inline]
fn hash(body: &[u8], pairs: &[Pair], bytes: usize, scratch: &mut Vec<u8>) -> u128 {
    // A length takes at most five bytes.
    let room = bytes + pairs.len() * 10 + PIECE;
    if scratch.len() < room {
        scratch.resize(room, 0);
    }
    let mut end = 0;
    for pair in pairs {
        end = put(scratch, end, body, pair.name);
        end = put(scratch, end, body, pair.value);
    }
    hash128_encoded(&scratch[..end])
}

impl<'a> Builder<'a> {
    /// Makes room for `series`, which were counted in the body.
    pub(super) fn new(body: &'a [u8], bounds: &'a Bounds, series: usize) -> Result<Self, DecodeError> {
        if series > bounds.series_max {
            return Err(DecodeError::TooMany { what: "series", max: bounds.series_max });
        }
        let mut out = Decoded::default();
        out.batch.series.reserve_exact(series);
        out.batch.samples.reserve(series);
        Ok(Self {
            body,
            bounds,
            out,
            scratch: Vec::new(),
            raw: Raw::new(bounds.buckets_per_histogram_max),
            mark: Mark::default(),
            at: 0,
            fault: None,
            samples: 0,
            parts: 0,
            label_bytes: 0,
        })
    }

    /// Counts label pairs, symbols, buckets and spans.
    #[inline]
    pub(super) fn count_parts(&mut self, more: usize) -> Result<(), DecodeError> {
        self.parts += more;
        if self.parts > self.bounds.parts_max {
            return Err(DecodeError::TooMany { what: "labels, symbols and buckets", max: self.bounds.parts_max });
        }
        Ok(())
    }

    /// Counts a sample, histogram, exemplar or metadata.
    #[inline]
    pub(super) fn count_sample(&mut self) -> Result<(), DecodeError> {
        self.samples += 1;
        if self.samples > self.bounds.samples_max {
            return Err(DecodeError::TooMany { what: "samples", max: self.bounds.samples_max });
        }
        Ok(())
    }

    #[inline]
    pub(super) fn begin(&mut self) {
        let batch = &self.out.batch;
        self.mark = Mark {
            pairs: batch.pairs.len(),
            samples: batch.samples.len(),
            histograms: batch.histograms.len(),
            exemplars: batch.exemplars.len(),
        };
        self.fault = None;
    }

    /// Marks the whole series at hand as refused; the first reason stays.
    #[cold]
    pub(super) fn fail(&mut self, reason: Reason) {
        self.fault.get_or_insert(reason);
    }

    #[inline]
    pub(super) fn pair(&mut self, pair: Pair) -> Result<(), DecodeError> {
        if self.out.batch.pairs.len() - self.mark.pairs >= self.bounds.labels_per_series_max {
            self.fail(Reason::TooManyLabels(self.bounds.labels_per_series_max));
            return Ok(());
        }
        self.out.batch.pairs.push(pair);
        self.count_parts(1)
    }

    #[inline]
    pub(super) fn sample(&mut self, sample: Sample, start_at: Millis) -> Result<(), DecodeError> {
        self.count_sample()?;
        let batch = &mut self.out.batch;
        if start_at != 0 || !batch.starts.is_empty() {
            // The first start time of a request gives the samples before it theirs: unknown.
            batch.starts.resize(batch.samples.len(), 0);
            batch.starts.push(start_at);
        }
        batch.samples.push(sample);
        Ok(())
    }

    /// Takes the histogram in `self.raw`.
    pub(super) fn histogram(&mut self) -> Result<(), DecodeError> {
        self.count_sample()?;
        self.count_parts(HISTOGRAM_PARTS + self.raw.parts())?;
        match self.raw.finish() {
            Ok(histogram) => {
                let (at, start_at) = (self.raw.at, self.raw.start_at);
                self.out.batch.histograms.push(HistogramSample { at, start_at, histogram: histogram.into() });
            }
            Err(reason) => {
                let series = self.at;
                self.out.refused.push(Refusal { series, samples: 0, histograms: 1, exemplars: 0, reason });
            }
        }
        Ok(())
    }

    /// Takes an exemplar with its labels.
    pub(super) fn exemplar(&mut self, pairs: &[Pair], value: f64, at: Millis) -> Result<(), DecodeError> {
        self.count_sample()?;
        match self.exemplar_labels(pairs) {
            Ok(labels) => {
                let series = index(self.out.batch.series.len());
                self.out.batch.exemplars.push((series, Exemplar { labels, value, at }));
            }
            Err(reason) => {
                let series = self.at;
                self.out.refused.push(Refusal { series, samples: 0, histograms: 0, exemplars: 1, reason });
            }
        }
        Ok(())
    }

    fn exemplar_labels(&self, pairs: &[Pair]) -> Result<Labels, Reason> {
        let bytes: usize = pairs.iter().map(|pair| pair.name.len as usize + pair.value.len as usize).sum();
        if bytes > EXEMPLAR_CHARS_MAX * 4 {
            return Err(Reason::ExemplarTooLong);
        }
        let str_of = |text| std::str::from_utf8(bytes_of(self.body, text)).map_err(|_| Reason::ExemplarLabels);
        let mut texts = Vec::with_capacity(pairs.len());
        for pair in pairs {
            texts.push((str_of(pair.name)?, str_of(pair.value)?));
        }
        if texts.iter().map(|(name, value)| name.chars().count() + value.chars().count()).sum::<usize>()
            > EXEMPLAR_CHARS_MAX
        {
            return Err(Reason::ExemplarTooLong);
        }
        texts.sort_unstable();
        if texts.first().is_some_and(|(name, _)| name.is_empty()) || texts.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(Reason::ExemplarLabels);
        }
        Ok(Labels::from_sorted(texts.into_iter().filter(|(_, value)| !value.is_empty())))
    }

    /// Gives samples of the series at hand that have no start time of their own this one.
    pub(super) fn default_start(&mut self, start_at: Millis) {
        let batch = &mut self.out.batch;
        if start_at == 0 {
            return;
        }
        batch.starts.resize(batch.samples.len(), 0);
        batch.starts[self.mark.samples..].iter_mut().filter(|start| **start == 0).for_each(|start| *start = start_at);
        for histogram in &mut batch.histograms[self.mark.histograms..] {
            if histogram.start_at == 0 {
                histogram.start_at = start_at;
            }
        }
    }

    /// Whether the series at hand holds anything, or has lost something.
    pub(super) fn has_samples(&self) -> bool {
        let batch = &self.out.batch;
        batch.samples.len() > self.mark.samples
            || batch.histograms.len() > self.mark.histograms
            || batch.exemplars.len() > self.mark.exemplars
            || self.out.refused.last().is_some_and(|refusal| refusal.series == self.at)
    }

    /// The value of `name` among the pairs of the series at hand.
    pub(super) fn value_of(&self, name: &[u8]) -> Option<Text> {
        let pairs = &self.out.batch.pairs[self.mark.pairs..];
        pairs.iter().find(|pair| bytes_of(self.body, pair.name) == name).map(|pair| pair.value)
    }

    /// Bytes of the whole body.
    pub(super) fn body_len(&self) -> usize {
        self.body.len()
    }

    /// Index of the series at hand in the request.
    pub(super) fn series_at(&self) -> u32 {
        self.at
    }

    /// Bytes of a text of the body.
    pub(super) fn bytes(&self, text: Text) -> &'a [u8] {
        bytes_of(self.body, text)
    }

    /// Checks all texts of the series at hand, when a quick look could not tell that they are UTF-8.
    pub(super) fn check_utf8(&mut self) {
        let is_text = |text| std::str::from_utf8(bytes_of(self.body, text)).is_ok();
        let pairs = &self.out.batch.pairs[self.mark.pairs..];
        if !pairs.iter().all(|pair| is_text(pair.name) && is_text(pair.value)) {
            self.fail(Reason::NotUtf8);
        }
    }

    /// Finishes the series at hand: kept, refused, or dropped when it holds nothing.
    pub(super) fn end(&mut self) -> Result<(), DecodeError> {
        let judged = match self.fault {
            Some(reason) => Err(reason),
            None => self.settle_labels(),
        };
        let batch = &mut self.out.batch;
        match judged {
            Ok(bytes) => {
                self.label_bytes += bytes;
                if self.label_bytes > self.bounds.label_bytes_max {
                    return Err(DecodeError::TooMany { what: "bytes of labels", max: self.bounds.label_bytes_max });
                }
                let run = |from: usize, to: usize| Run { from: index(from), to: index(to) };
                let series = BatchSeries {
                    hash: 0,
                    pairs: run(self.mark.pairs, batch.pairs.len()),
                    samples: run(self.mark.samples, batch.samples.len()),
                    histograms: run(self.mark.histograms, batch.histograms.len()),
                };
                if series.samples.is_empty()
                    && series.histograms.is_empty()
                    && batch.exemplars.len() == self.mark.exemplars
                {
                    batch.pairs.truncate(self.mark.pairs);
                } else {
                    let hash = hash(self.body, &batch.pairs[self.mark.pairs..], bytes, &mut self.scratch);
                    batch.series.push(BatchSeries { hash, ..series });
                    if batch.series.len() == 1 {
                        // Most requests hold series of one shape: the first tells how much room all will need.
                        let expected = batch.pairs.len().saturating_mul(batch.series.capacity() - 1);
                        batch.pairs.reserve(expected.min(self.body.len() / 4));
                    }
                }
            }
            Err(reason) => self.refuse(reason),
        }
        self.at += 1;
        Ok(())
    }

    #[cold]
    fn refuse(&mut self, reason: Reason) {
        let batch = &mut self.out.batch;
        self.out.refused.push(Refusal {
            series: self.at,
            samples: index(batch.samples.len() - self.mark.samples),
            histograms: index(batch.histograms.len() - self.mark.histograms),
            exemplars: index(batch.exemplars.len() - self.mark.exemplars),
            reason,
        });
        batch.pairs.truncate(self.mark.pairs);
        batch.samples.truncate(self.mark.samples);
        batch.starts.truncate(self.mark.samples);
        batch.histograms.truncate(self.mark.histograms);
        batch.exemplars.truncate(self.mark.exemplars);
    }

    /// Sorts where needed, finds duplicates, drops empty values; returns the bytes of all labels.
    #[inline]
    fn settle_labels(&mut self) -> Result<usize, Reason> {
        let pairs = &mut self.out.batch.pairs[self.mark.pairs..];
        let (mut sorted, mut empties, mut bytes) = (true, false, 0_usize);
        let (mut before, mut before_prefix) = (Text::default(), 0);
        for pair in pairs.iter() {
            if pair.name.len == 0 {
                return Err(Reason::EmptyName);
            }
            let prefix = prefix(self.body, pair.name);
            sorted &= before_prefix < prefix
                || (before_prefix == prefix && bytes_of(self.body, before) < bytes_of(self.body, pair.name));
            (before, before_prefix) = (pair.name, prefix);
            empties |= pair.value.len == 0;
            bytes += pair.name.len as usize + pair.value.len as usize;
        }
        if bytes > self.bounds.label_bytes_per_series_max {
            return Err(Reason::LabelsTooLong(self.bounds.label_bytes_per_series_max));
        }
        if !sorted {
            pairs.sort_by(|a, b| bytes_of(self.body, a.name).cmp(bytes_of(self.body, b.name)));
            for two in pairs.windows(2) {
                if bytes_of(self.body, two[0].name) == bytes_of(self.body, two[1].name) {
                    return Err(Reason::DuplicateName(two[0].name));
                }
            }
        }
        if empties {
            let kept = pairs.iter().filter(|pair| pair.value.len > 0).copied().collect::<Vec<_>>();
            self.out.batch.pairs.truncate(self.mark.pairs);
            self.out.batch.pairs.extend(kept);
        }
        if self.out.batch.pairs.len() == self.mark.pairs {
            return Err(Reason::NoLabels);
        }
        Ok(bytes)
    }

    /// The whole result; start times beside each sample or none at all.
    pub(super) fn finish(self) -> Decoded {
        let mut out = self.out;
        if !out.batch.starts.is_empty() {
            out.batch.starts.resize(out.batch.samples.len(), 0);
        }
        out
    }
}
