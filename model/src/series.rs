//! How rooms hand series to each other: labels, and something that fills columns of samples.
//!
//! Why columns and not an iterator of samples: the reader of a series nearly always wants all of it in a time range,
//! and one call that decodes a chunk into two flat arrays is several times cheaper than a call per sample.

use std::sync::Arc;

use crate::histogram::Histogram;
use crate::labels::Labels;
use crate::time::{Millis, TimeRange};

/// Samples of one series in order of time: floats and histograms apart, each with its times. At one time there is
/// either a float or a histogram. Staleness markers are in it: what they mean is the engine's affair.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Times of the floats, strictly growing.
    pub times: Vec<Millis>,
    /// The floats, as many as `times`.
    pub values: Vec<f64>,
    /// Times of the histograms, strictly growing.
    pub histogram_times: Vec<Millis>,
    /// The histograms, as many as `histogram_times`.
    pub histograms: Vec<Arc<Histogram>>,
    /// Start timestamps beside `times` (0: unknown); empty when no sample carries one.
    pub starts: Vec<Millis>,
    /// Start timestamps beside `histogram_times`; empty when no sample carries one.
    pub histogram_starts: Vec<Millis>,
}

impl Columns {
    /// Empties all columns and keeps their memory.
    pub fn clear(&mut self) {
        self.times.clear();
        self.values.clear();
        self.histogram_times.clear();
        self.histograms.clear();
        self.starts.clear();
        self.histogram_starts.clear();
    }

    /// How many samples of both kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.times.len() + self.histogram_times.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times.is_empty() && self.histogram_times.is_empty()
    }
}

/// Why a series could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A chunk that does not decode: the data is damaged and says so instead of answering wrong.
    #[error("chunk of series {series} is damaged: {what}")]
    Corrupt {
        /// Labels of the series.
        series: String,
        /// What does not decode.
        what: String,
    },
}

/// Gives the samples of one series.
pub trait SampleSource: Send + Sync {
    /// Appends all samples of `range` to `out` (which the caller has cleared), in order of time, none twice.
    /// Samples outside the range may come too when that is cheaper (whole chunks): the caller cuts.
    ///
    /// # Errors
    /// [`ReadError`] when stored bytes do not decode.
    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError>;

    /// The stable hash of *all* labels of the series where it is known without work ([`Labels::hash128`]): so two
    /// sources of one series are found without their labels, of which a select may have been asked for a few only.
    fn series_hash(&self) -> Option<u128> {
        None
    }
}

/// What a reader will make use of; the rest need not be given.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only the last sample of the range, if there is any.
    pub last_only: bool,
    /// Only these labels and the metric's name. All of them come all the same where any series has `__type__` or
    /// `__unit__`: these tell apart what otherwise is one series without its name.
    pub labels: Option<Vec<String>>,
}

/// One series: who it is and where its samples come from.
#[derive(Clone)]
pub struct Series {
    /// Who.
    pub labels: Labels,
    /// From where.
    pub source: Arc<dyn SampleSource>,
}

/// Samples that lie in memory already: tests, subqueries, merged replicas.
impl SampleSource for Columns {
    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        let floats = self.times.partition_point(|t| *t < range.start)..self.times.partition_point(|t| *t < range.end);
        let hists = self.histogram_times.partition_point(|t| *t < range.start)
            ..self.histogram_times.partition_point(|t| *t < range.end);
        out.times.extend_from_slice(&self.times[floats.clone()]);
        out.values.extend_from_slice(&self.values[floats.clone()]);
        if !self.starts.is_empty() {
            out.starts.extend_from_slice(&self.starts[floats]);
        }
        out.histogram_times.extend_from_slice(&self.histogram_times[hists.clone()]);
        out.histograms.extend_from_slice(&self.histograms[hists.clone()]);
        if !self.histogram_starts.is_empty() {
            out.histogram_starts.extend_from_slice(&self.histogram_starts[hists]);
        }
        Ok(())
    }
}
