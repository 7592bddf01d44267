//! Why a part of a body is refused while the rest is kept.

use engram_model::batch::{Text, WriteBatch};

/// A series, a histogram or an exemplar that was left out of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal {
    /// Index of its series in the request, counted from 0.
    pub series: u32,
    /// Floats that were lost with it.
    pub samples: u32,
    /// Histograms that were lost with it.
    pub histograms: u32,
    /// Exemplars that were lost with it.
    pub exemplars: u32,
    /// Why.
    pub reason: Reason,
}

/// Why something was left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The series has no label that is not empty.
    NoLabels,
    /// A label without a name.
    EmptyName,
    /// One name twice.
    DuplicateName(Text),
    /// A name or value that is not UTF-8.
    NotUtf8,
    /// More labels than a request may give one series.
    TooManyLabels(usize),
    /// More bytes of labels than a request may give one series.
    LabelsTooLong(usize),
    /// Version 2 wants at least one sample, histogram or exemplar.
    NoSamples,
    /// The labels of an exemplar are longer than OpenMetrics allows.
    ExemplarTooLong,
    /// The labels of an exemplar are not labels: twice the same name, no name, or not UTF-8.
    ExemplarLabels,
    /// Metadata repeated long texts until they were larger than the body.
    MetadataTooLong,
    /// A schema that is neither -4..=8 nor -53.
    HistogramSchema(i32),
    /// More buckets than a request may give one histogram.
    HistogramBuckets(usize),
    /// The spans speak of another number of buckets than there are.
    HistogramSpans {
        /// What the spans say.
        said: u64,
        /// How many buckets came.
        got: usize,
    },
    /// A span that goes back, or out of the range of bucket numbers.
    HistogramOffset(i32),
    /// A bucket or the whole holds less than nothing.
    HistogramNegative,
    /// The count is not the sum of the buckets.
    HistogramCount,
    /// A count above 2^53, which a float cannot hold exactly.
    HistogramTooLarge,
    /// Custom boundaries that do not grow, are not finite, or are too few for the buckets.
    HistogramBounds,
    /// Something that custom boundaries exclude (zero bucket, negative buckets) or need, or boundaries without them.
    HistogramMixed,
}

impl Reason {
    /// A name from a closed set, for counting.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoLabels => "missing_labels",
            Self::EmptyName => "label_name_empty",
            Self::DuplicateName(_) => "duplicate_label_names",
            Self::NotUtf8 => "label_invalid_utf8",
            Self::TooManyLabels(_) => "max_label_names_per_series",
            Self::LabelsTooLong(_) => "labels_too_long",
            Self::NoSamples => "no_samples",
            Self::ExemplarTooLong => "exemplar_labels_too_long",
            Self::ExemplarLabels => "exemplar_labels_invalid",
            Self::MetadataTooLong => "metadata_too_long",
            Self::HistogramSchema(_)
            | Self::HistogramBuckets(_)
            | Self::HistogramSpans { .. }
            | Self::HistogramOffset(_)
            | Self::HistogramNegative
            | Self::HistogramCount
            | Self::HistogramTooLarge
            | Self::HistogramBounds
            | Self::HistogramMixed => "native_histogram_invalid",
        }
    }

    /// What to tell the sender. `batch` is the one the refusal came with.
    #[must_use]
    pub fn message(&self, batch: &WriteBatch) -> String {
        match self {
            Self::NoLabels => "series without labels".into(),
            Self::EmptyName => "label without a name".into(),
            Self::DuplicateName(name) => {
                format!("duplicate label name {:?}", String::from_utf8_lossy(batch.bytes(*name)))
            }
            Self::NotUtf8 => "label is not UTF-8".into(),
            Self::TooManyLabels(max) => format!("series has more than {max} labels"),
            Self::LabelsTooLong(max) => format!("series has more than {max} bytes of labels"),
            Self::NoSamples => "series has neither samples nor histograms".into(),
            Self::ExemplarTooLong => "exemplar has more than 128 characters of labels".into(),
            Self::ExemplarLabels => "exemplar has invalid labels".into(),
            Self::MetadataTooLong => "metadata is longer than the request".into(),
            Self::HistogramSchema(schema) => {
                format!("histogram has schema {schema}, -4 to 8 for exponential or -53 for custom buckets is known")
            }
            Self::HistogramBuckets(max) => format!("histogram has more than {max} buckets"),
            Self::HistogramSpans { said, got } => format!("histogram spans need {said} buckets, {got} were provided"),
            Self::HistogramOffset(offset) => format!("histogram has a span whose offset is {offset}"),
            Self::HistogramNegative => "histogram has a negative observation count".into(),
            Self::HistogramCount => "histogram's observation count differs from the sum of its buckets".into(),
            Self::HistogramTooLarge => "histogram has an observation count above 2^53".into(),
            Self::HistogramBounds => {
                "histogram custom bounds must be finite, strictly increasing and enough for the buckets".into()
            }
            Self::HistogramMixed => "histogram mixes custom bounds with what belongs to exponential buckets".into(),
        }
    }
}
