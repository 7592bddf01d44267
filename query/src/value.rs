//! What a query answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use engram_model::histogram::Histogram;
use engram_model::sample::Value as SampleValue;
use engram_model::{Labels, Millis};
use serde::Serialize;

/// The answer of a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// One number.
    Scalar {
        /// Evaluation time.
        at: Millis,
        /// The number.
        value: f64,
    },
    /// One string.
    String {
        /// Evaluation time.
        at: Millis,
        /// Its bytes.
        value: Vec<u8>,
    },
    /// One sample a series; the order matters (`sort`, `topk`).
    Vector(Vec<InstantSample>),
    /// Many samples a series, sorted by labels.
    Matrix(Vec<RangeSeries>),
}

/// A series with one value.
#[derive(Clone, Debug, PartialEq)]
pub struct InstantSample {
    /// Who.
    pub labels: Labels,
    /// When: the evaluation time, or the sample's own for a raw selection.
    pub at: Millis,
    /// What.
    pub value: SampleValue,
}

/// A series with the values of many steps.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RangeSeries {
    /// Who.
    pub labels: Labels,
    /// Floats in order of time.
    pub floats: Vec<(Millis, f64)>,
    /// Histograms in order of time.
    pub histograms: Vec<(Millis, Arc<Histogram>)>,
}

/// Texts for the user beside the answer, each once: what may be wrong with the data, what with the query.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Annotations {
    /// `PromQL warning: …`
    pub warnings: BTreeSet<String>,
    /// `PromQL info: …`
    pub infos: BTreeSet<String>,
}

impl Annotations {
    /// Takes over all texts of `other`.
    pub fn merge(&mut self, other: Self) {
        self.warnings.extend(other.warnings);
        self.infos.extend(other.infos);
    }
}

/// One operator of an evaluated plan: what it did, with those whose rows it took.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name: `sum`, `rate`, `/`, `select` …
    pub operator: String,
    /// Where it stands in the query's text.
    pub text: String,
    /// What the optimiser has done: `folded`, `narrowed by …`, `#0 of 2 places` …
    pub marks: Vec<String>,
    /// Series it took, of its children and from storage.
    pub series_in: u64,
    /// Series it gave.
    pub series_out: u64,
    /// Samples it looked at itself.
    pub samples: u64,
    /// Most samples the query held while it or its children were at work.
    pub samples_peak: u64,
    /// Most bytes of samples and labels the query held while it or its children were at work.
    pub bytes_peak: u64,
    /// Time it and its children took.
    pub total_seconds: f64,
    /// Time it took itself.
    pub self_seconds: f64,
    /// What a selector fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select: Option<SelectCost>,
    /// Those whose rows it took.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Self>,
}

/// What was fetched for a selector.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SelectCost {
    /// Number of the select; selectors of the same number share it.
    pub select: usize,
    /// Series it gave.
    pub series: u64,
    /// Bytes they take, without samples.
    pub bytes: u64,
    /// Time until they were there.
    pub fetch_seconds: f64,
}

/// Samples by evaluation time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SamplesByStep {
    /// First evaluation time.
    pub start: Millis,
    /// Distance of evaluation times.
    pub step_ms: i64,
    /// Samples looked at, of each step.
    pub looked_at: Vec<u64>,
    /// Samples read, of each step.
    pub read: Vec<u64>,
}

/// What was read of blocks for a query. The engine does not know blocks: whoever hands it their samples fills this in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockStats {
    /// Blocks that were looked into, once for each selector.
    pub blocks: u64,
    /// Chunks that were read of them.
    pub chunks: u64,
    /// Bytes of those chunks, wherever they lay.
    pub chunk_bytes: u64,
    /// Pages that were found in a cache.
    pub cached_pages: u64,
    /// Requests to the object store.
    pub fetch_requests: u64,
    /// Bytes that came from it.
    pub fetched_bytes: u64,
}

/// What a query cost.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Stats {
    /// Samples looked at, as Prometheus counts `totalQueryableSamples`.
    pub samples_total: u64,
    /// Samples read from storage, as Prometheus counts `samplesRead`; 0 where the budget does not ask for steps.
    pub samples_read: u64,
    /// Both by step, where the budget asks for it.
    pub samples_by_step: Option<SamplesByStep>,
    /// Most samples held at once.
    pub samples_peak: u64,
    /// Most bytes of samples and labels held at once.
    pub bytes_peak: u64,
    /// Series selected.
    pub series_total: u64,
    /// Seconds spent on selecting.
    pub select_seconds: f64,
    /// Seconds spent on evaluating.
    pub eval_seconds: f64,
    /// What was read of blocks.
    pub blocks: BlockStats,
}
