//! What a write request becomes: flat arrays that point into the request's own bytes.
//!
//! Why flat: a request holds thousands of series with a dozen labels each; an allocation per label would be most of
//! the cost of a write. The decoder fills the arrays, admission marks what is refused, the distributor picks indices
//! per partition, and each replica reads the same shared batch.

use std::sync::Arc;

use crate::histogram::Histogram;
use crate::sample::{Exemplar, Metadata, Sample};
use crate::time::Millis;

/// A piece of [`WriteBatch::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Text {
    /// First byte.
    pub at: u32,
    /// How many bytes.
    pub len: u32,
}

/// One label pair of a series, both sides in [`WriteBatch::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pair {
    /// The name.
    pub name: Text,
    /// The value.
    pub value: Text,
}

/// A run in one of the batch's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Run {
    /// First index.
    pub from: u32,
    /// Index after the last.
    pub to: u32,
}

impl Run {
    /// As indices of a slice.
    #[must_use]
    pub fn range(self) -> std::ops::Range<usize> {
        self.from as usize..self.to as usize
    }

    /// How many.
    #[must_use]
    pub fn len(self) -> usize {
        (self.to - self.from) as usize
    }

    /// Whether none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.from == self.to
    }
}

/// One series of a batch with the samples that came for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSeries {
    /// The stable hash of its labels, see [`crate::labels::hash128`].
    pub hash: u128,
    /// Its pairs in [`WriteBatch::pairs`]: sorted by name, unique, no value empty, all UTF-8.
    pub pairs: Run,
    /// Its floats in [`WriteBatch::samples`].
    pub samples: Run,
    /// Its native histograms in [`WriteBatch::histograms`].
    pub histograms: Run,
}

/// A native histogram with its time and start time (0: unknown).
#[derive(Clone, Debug)]
pub struct HistogramSample {
    /// When.
    pub at: Millis,
    /// When its counter began, 0 when unknown.
    pub start_at: Millis,
    /// The distribution.
    pub histogram: Arc<Histogram>,
}

/// A decoded write request of one tenant. See the module's text.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    /// The bytes all names and values lie in (UTF-8 wherever a [`Text`] of a kept series points).
    pub text: Vec<u8>,
    /// All label pairs.
    pub pairs: Vec<Pair>,
    /// All series.
    pub series: Vec<BatchSeries>,
    /// All floats.
    pub samples: Vec<Sample>,
    /// Start timestamps beside `samples`; empty when the request carries none.
    pub starts: Vec<Millis>,
    /// All native histograms.
    pub histograms: Vec<HistogramSample>,
    /// Exemplars, each with the index of its series.
    pub exemplars: Vec<(u32, Exemplar)>,
    /// Metadata, each with its metric's name.
    pub metadata: Vec<(String, Metadata)>,
}

impl WriteBatch {
    /// The bytes of one text.
    #[inline]
    #[must_use]
    pub fn bytes(&self, text: Text) -> &[u8] {
        &self.text[text.at as usize..text.at as usize + text.len as usize]
    }

    /// One text as a string; empty when it is not UTF-8 (a kept series has been checked).
    #[inline]
    #[must_use]
    pub fn str(&self, text: Text) -> &str {
        std::str::from_utf8(self.bytes(text)).unwrap_or_default()
    }

    /// The pairs of one series as text, in order of name.
    pub fn labels_of(&self, series: &BatchSeries) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.pairs[series.pairs.range()].iter().map(|pair| (self.str(pair.name), self.str(pair.value)))
    }

    /// The labels of a series for an error text, at most a few hundred bytes of them.
    #[must_use]
    pub fn show(&self, series: &BatchSeries) -> String {
        let mut text = crate::Labels::from_sorted(self.labels_of(series)).to_string();
        let mut at = text.len().min(400);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
        text
    }

    /// How many samples of both kinds.
    #[must_use]
    pub fn sample_count(&self) -> usize {
        self.samples.len() + self.histograms.len()
    }
}
