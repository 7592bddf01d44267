//! Warnings and infos of one evaluation: what may be wrong with the data, what with the query.
//!
//! Why a collector of its own: a kernel runs once per series and step, and the same remark would be made millions of
//! times. It is made with a small value here; the text with position is made once, at the end.
//!
//! Remarks with the same text are one. Of two positions the later one stays, as upstream; what counts or spans times
//! (fixed buckets, overlapping starts) is added up instead.
//!
//! Source: `prometheus util/annotations/annotations.go`, Prometheus 3.14.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use engram_model::Millis;

use super::calendar::rfc3339;
use crate::fragment::Remark;
use crate::histogram::text::{go_float, go_float_precision, go_quote};
use crate::parse::ast::Span;
use crate::value::Annotations;

/// What two histograms were put together for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramOperation {
    /// `+`
    Addition,
    /// `-`
    Subtraction,
    /// `sum`, `avg` and their `_over_time`.
    Aggregation,
}

impl HistogramOperation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Addition => "addition",
            Self::Subtraction => "subtraction",
            Self::Aggregation => "aggregation",
        }
    }
}

/// One remark. Those that speak of a metric take its name from [`Notes::enter`].
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A quantile outside of 0..=1.
    InvalidQuantile(f64),
    /// A ratio outside of -1..=1, and what it was capped to.
    InvalidRatio(f64, f64),
    /// An `le` label that is no number: its value. Names the metric where there is one.
    BadBucketLabel(String),
    /// Floats and histograms in one range; names the metric.
    MixedFloatsHistograms,
    /// Floats and histograms in one aggregation.
    MixedFloatsHistogramsAggregation,
    /// Classic buckets beside a native histogram; names the metric where there is one.
    MixedClassicNative,
    /// A counter's function on a gauge histogram; names the metric.
    HistogramNotCounter,
    /// A gauge's function on a counter histogram; names the metric.
    HistogramNotGauge,
    /// Exponential and custom buckets; names the metric.
    MixedExponentialCustom,
    /// A float counter whose name does not say so; names the metric.
    PossibleNonCounter,
    /// A float counter whose `__type__` label (given) does not say so; names the metric.
    PossibleNonCounterLabel(String),
    /// Classic buckets that had to be made to grow.
    ForcedMonotonicity(ForcedMonotonicity),
    /// Operand types that have no meaning: left, operator, right.
    IncompatibleTypesInBinOp(&'static str, &'static str, &'static str),
    /// Histograms left out of this aggregation.
    HistogramIgnoredInAggregation(&'static str),
    /// Histograms left out of a range that has floats too; names the metric.
    HistogramIgnoredInMixedRange,
    /// Histograms that cannot be put together by this operator.
    IncompatibleBucketLayoutInBinOp(&'static str),
    /// `sort` in a range query.
    SortInRangeQuery,
    /// `histogram_quantile` met NaN and answers NaN; names the metric where there is one.
    QuantileNanResult,
    /// `histogram_quantile` met NaN and is too high; names the metric where there is one.
    QuantileNanSkew,
    /// `histogram_fraction` left NaN out; names the metric where there is one.
    FractionNans,
    /// One histogram says there was a counter reset, another that there was none.
    CounterResetCollision(HistogramOperation),
    /// Custom boundaries that differ were cut down to the common ones.
    MismatchedCustomBuckets(HistogramOperation),
    /// A sample starts before the one before it ended; names the metric, counted.
    StartTimeOverlap,
}

/// What was done to classic buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForcedMonotonicity {
    /// First evaluation time.
    pub first: Millis,
    /// Last evaluation time.
    pub last: Millis,
    /// Lowest boundary that was changed.
    pub bucket_min: f64,
    /// Highest boundary that was changed.
    pub bucket_max: f64,
    /// Largest change of a count.
    pub diff_max: f64,
    /// How many histograms it was done to.
    pub samples: u64,
}

impl ForcedMonotonicity {
    /// Widens it by what was done elsewhere; samples stay.
    pub fn join(&mut self, other: Self) {
        self.bucket_min = self.bucket_min.min(other.bucket_min);
        self.bucket_max = self.bucket_max.max(other.bucket_max);
        self.diff_max = self.diff_max.max(other.diff_max);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// How a remark changes when it is made again.
#[derive(Clone, Debug, PartialEq)]
enum Extra {
    None,
    Forced { first: Millis, last: Millis, bucket_min: f64, bucket_max: f64, diff_max: f64, samples: u64 },
    Overlaps(u64),
}

#[derive(Clone, Debug)]
struct Entry {
    info: bool,
    span: Span,
    extra: Extra,
}

/// Collects remarks. The engine says what is being looked at ([`Self::enter`]), kernels say what they see.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Name of the metric being looked at.
    name: String,
    /// Where the argument stands that is being looked at.
    span: Span,
    /// By text without position.
    entries: BTreeMap<String, Entry>,
    /// The note made last since [`Self::enter`], to make the same one again for nothing.
    last: Option<Note>,
    /// Why the whole query must fail.
    failure: Option<String>,
}

impl Notes {
    /// An empty collection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what the following notes are about: the metric's name (may be empty) and where the function's **first**
    /// argument stands, which is the position upstream shows for functions of ranges.
    pub fn enter(&mut self, metric_name: &str, span: Span) {
        self.name.clear();
        self.name.push_str(metric_name);
        self.span = span;
        self.last = None;
    }

    /// Makes a remark about what was entered.
    pub fn add(&mut self, note: Note) {
        if self.last.as_ref() == Some(&note) && !matches!(note, Note::StartTimeOverlap | Note::ForcedMonotonicity(_)) {
            return;
        }
        self.insert(&note);
        self.last = Some(note);
    }

    /// Makes a remark about a metric and place of its own.
    pub fn add_at(&mut self, note: &Note, metric_name: &str, span: Span) {
        let kept = (std::mem::replace(&mut self.name, metric_name.to_owned()), self.span);
        self.span = span;
        self.insert(note);
        (self.name, self.span) = kept;
    }

    /// Makes the whole query fail with this text, once the kernel is back. The first text stays.
    pub fn fail(&mut self, text: String) {
        self.failure.get_or_insert(text);
    }

    /// Why the query must fail, if it must; asked by the engine after each series.
    pub fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes over what another collection has (of another thread, of another operand).
    pub fn merge(&mut self, other: Self) {
        for (text, entry) in other.entries {
            self.put(text, entry);
        }
        if let Some(text) = other.failure {
            self.fail(text);
        }
        self.last = None;
    }

    /// As they travel; none where one of them counts, which does not.
    #[must_use]
    pub fn into_remarks(self) -> Option<Vec<Remark>> {
        let remark = |(text, entry): (String, Entry)| match entry.extra {
            Extra::None => Some(Remark { text, info: entry.info, span: entry.span }),
            _ => None,
        };
        self.entries.into_iter().map(remark).collect()
    }

    /// Takes over what was said elsewhere.
    pub fn add_remark(&mut self, remark: &Remark) {
        self.put(remark.text.clone(), Entry { info: remark.info, span: remark.span, extra: Extra::None });
    }

    /// The finished texts; `query` turns positions into lines and columns. An empty query gives texts without.
    #[must_use]
    pub fn render(&self, query: &str) -> Annotations {
        let mut out = Annotations::default();
        for (text, entry) in &self.entries {
            let full = entry.render(text, query);
            if entry.info {
                out.infos.insert(full)
            } else {
                out.warnings.insert(full)
            };
        }
        out
    }

    fn insert(&mut self, note: &Note) {
        let (text, info) = note.text(&self.name);
        let extra = match note {
            Note::ForcedMonotonicity(f) => Extra::Forced {
                first: f.first,
                last: f.last,
                bucket_min: f.bucket_min,
                bucket_max: f.bucket_max,
                diff_max: f.diff_max,
                samples: f.samples,
            },
            Note::StartTimeOverlap => Extra::Overlaps(1),
            _ => Extra::None,
        };
        self.put(text, Entry { info, span: self.span, extra });
    }

    fn put(&mut self, text: String, new: Entry) {
        match self.entries.entry(text) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(new);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => place.get_mut().join(new),
        }
    }
}

impl Entry {
    fn join(&mut self, new: Self) {
        match (&mut self.extra, new.extra) {
            (
                Extra::Forced { first, last, bucket_min, bucket_max, diff_max, samples },
                Extra::Forced { first: f, last: l, bucket_min: low, bucket_max: high, diff_max: d, samples: n },
            ) => {
                *first = (*first).min(f);
                *last = (*last).max(l);
                *bucket_min = bucket_min.min(low);
                *bucket_max = bucket_max.max(high);
                *diff_max = diff_max.max(d);
                *samples = samples.wrapping_add(n);
            }
            (Extra::Overlaps(count), Extra::Overlaps(more)) => *count += more,
            _ => self.span = new.span,
        }
    }

    fn render(&self, text: &str, query: &str) -> String {
        if query.is_empty() {
            return text.to_owned();
        }
        let place = place(self.span.start, query);
        match &self.extra {
            Extra::None => format!("{text} ({place})"),
            Extra::Overlaps(1) => format!("{text} ({place})"),
            Extra::Overlaps(count) => format!("{text} ({count} occurrences) ({place})"),
            Extra::Forced { first, last, bucket_min, bucket_max, diff_max, samples } => format!(
                "{text}, from buckets {} to {}, with a max diff of {}, over {samples} samples from {} to {} ({place})",
                go_float(*bucket_min),
                go_float(*bucket_max),
                go_float_precision(*diff_max, 2),
                rfc3339(first / 1000),
                rfc3339(last / 1000),
            ),
        }
    }
}

/// `line:column` of a byte offset, both from 1, columns in bytes.
#[must_use]
pub fn place(offset: u32, query: &str) -> String {
    let Some(before) = usize::try_from(offset).ok().and_then(|at| query.as_bytes().get(..at)) else {
        return "invalid position".to_owned();
    };
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().position(|b| *b == b'\n').unwrap_or(before.len()) + 1;
    format!("{line}:{column}")
}

const MONOTONICITY: &str = "input to histogram_quantile needed to be fixed for monotonicity (see \
    https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)";

impl Note {
    /// The text without position, and whether it is only an info.
    fn text(&self, name: &str) -> (String, bool) {
        let named = |text: &str| format!("{text} {}", go_quote(name));
        let for_name = |text: String| {
            if name.is_empty() { text } else { format!("{text} for metric name {}", go_quote(name)) }
        };
        let (what, info) = match self {
            Self::InvalidQuantile(q) => {
                (format!("quantile value should be between 0 and 1, got {}", go_float(*q)), false)
            }
            Self::InvalidRatio(ratio, to) => (
                format!(
                    "ratio value should be between -1 and 1, got {}, capping to {}",
                    go_float(*ratio),
                    go_float(*to)
                ),
                false,
            ),
            Self::BadBucketLabel(value) => (
                for_name(format!("bucket label \"le\" is missing or has a malformed value of {}", go_quote(value))),
                false,
            ),
            Self::MixedFloatsHistograms => (named("encountered a mix of histograms and floats for metric name"), false),
            Self::MixedFloatsHistogramsAggregation => {
                ("encountered a mix of histograms and floats for aggregation".to_owned(), false)
            }
            Self::MixedClassicNative => {
                (for_name("vector contains a mix of classic and native histograms".to_owned()), false)
            }
            Self::HistogramNotCounter => (named("this native histogram metric is not a counter:"), false),
            Self::HistogramNotGauge => (named("this native histogram metric is not a gauge:"), false),
            Self::MixedExponentialCustom => (
                named(
                    "vector contains a mix of histograms with exponential and custom buckets schemas for metric name",
                ),
                false,
            ),
            Self::IncompatibleBucketLayoutInBinOp(op) => {
                (format!("incompatible bucket layout encountered for binary operator {op}"), false)
            }
            Self::SortInRangeQuery => {
                ("sort is ineffective for range queries since results are always ordered by labels".to_owned(), false)
            }
            Self::CounterResetCollision(op) => {
                (format!("conflicting counter resets during histogram {}", op.as_str()), false)
            }
            Self::StartTimeOverlap => (
                format!(
                    "sample has start time that overlaps with previous sample timestamp for metric {}",
                    go_quote(name)
                ),
                false,
            ),
            info => (info.info_text(name), true),
        };
        let level = if info { "PromQL info: " } else { "PromQL warning: " };
        (format!("{level}{what}"), info)
    }

    fn info_text(&self, name: &str) -> String {
        let mut out = match self {
            Self::PossibleNonCounter => {
                "metric might not be a counter, name does not end in _total/_sum/_count/_bucket:".to_owned()
            }
            Self::PossibleNonCounterLabel(kind) => format!(
                "metric might not be a counter, __type__ label is not set to \"counter\" or \"histogram\", got {}:",
                go_quote(kind)
            ),
            Self::IncompatibleTypesInBinOp(left, op, right) => {
                return format!(
                    "incompatible sample types encountered for binary operator \"{op}\": {left} {op} {right}"
                );
            }
            Self::HistogramIgnoredInAggregation(op) => return format!("ignored histogram in {op} aggregation"),
            Self::HistogramIgnoredInMixedRange => {
                "ignored histograms in a range containing both floats and histograms for metric name".to_owned()
            }
            Self::MismatchedCustomBuckets(op) => {
                return format!("mismatched custom buckets were reconciled during {}", op.as_str());
            }
            Self::ForcedMonotonicity(_) => return for_name(MONOTONICITY, name),
            Self::QuantileNanResult => {
                return for_name("input to histogram_quantile has NaN observations, result is NaN", name);
            }
            Self::QuantileNanSkew => {
                return for_name("input to histogram_quantile has NaN observations, result is skewed higher", name);
            }
            _ => {
                return for_name(
                    "input to histogram_fraction has NaN observations, which are excluded from all fractions",
                    name,
                );
            }
        };
        write!(out, " {}", go_quote(name)).unwrap_or_else(|_| unreachable!("a String takes everything"));
        out
    }
}

fn for_name(text: &str, name: &str) -> String {
    if name.is_empty() { text.to_owned() } else { format!("{text} for metric name {}", go_quote(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forced(at: Millis, bucket: f64) -> Note {
        Note::ForcedMonotonicity(ForcedMonotonicity {
            first: at,
            last: at,
            bucket_min: bucket,
            bucket_max: bucket,
            diff_max: 1.234,
            samples: 1,
        })
    }

    #[test]
    fn the_same_note_is_made_once_and_what_counts_is_counted() {
        let mut notes = Notes::new();
        notes.enter("m", Span { start: 24, end: 30 });
        for (at, bucket) in [(60_000, 10.0), (0, 5.0), (120_000, 7.0)] {
            notes.add(forced(at, bucket));
        }
        notes.add(Note::StartTimeOverlap);
        let mut other = Notes::new();
        other.enter("m", Span { start: 2, end: 3 });
        other.add(Note::StartTimeOverlap);
        other.add(Note::HistogramNotCounter);
        notes.add(Note::HistogramNotCounter);
        notes.merge(other);
        let texts = notes.render("histogram_quantile(\n0.5, m_bucket)");
        let infos: Vec<_> = texts.infos.into_iter().collect();
        assert_eq!(
            infos,
            ["PromQL info: input to histogram_quantile needed to be fixed for monotonicity (see \
              https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile) for metric name \
              \"m\", from buckets 5 to 10, with a max diff of 1.2, over 3 samples from 1970-01-01T00:00:00Z to \
              1970-01-01T00:02:00Z (2:5)"]
        );
        let warnings: Vec<_> = texts.warnings.into_iter().collect();
        assert_eq!(
            warnings,
            [
                "PromQL warning: sample has start time that overlaps with previous sample timestamp for metric \"m\" \
                 (2 occurrences) (2:5)",
                "PromQL warning: this native histogram metric is not a counter: \"m\" (1:3)",
            ]
        );
    }

    #[test]
    fn texts_name_what_they_are_about() {
        let text = |note: Note, name: &str| {
            let mut notes = Notes::new();
            notes.add_at(&note, name, Span { start: 5, end: 6 });
            let texts = notes.render("rate(m[5m])");
            texts.infos.into_iter().chain(texts.warnings).collect::<String>()
        };
        assert_eq!(
            text(Note::PossibleNonCounter, "m"),
            "PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"m\" (1:6)"
        );
        assert_eq!(
            text(Note::PossibleNonCounterLabel("gauge".to_owned()), "m"),
            "PromQL info: metric might not be a counter, __type__ label is not set to \"counter\" or \"histogram\", \
             got \"gauge\": \"m\" (1:6)"
        );
        assert_eq!(
            text(Note::BadBucketLabel("Hello".to_owned()), ""),
            "PromQL warning: bucket label \"le\" is missing or has a malformed value of \"Hello\" (1:6)"
        );
        assert_eq!(
            text(Note::InvalidQuantile(1.2), "m"),
            "PromQL warning: quantile value should be between 0 and 1, got 1.2 (1:6)"
        );
        assert_eq!(
            text(Note::IncompatibleTypesInBinOp("float", "</", "histogram"), "m"),
            "PromQL info: incompatible sample types encountered for binary operator \"</\": float </ histogram (1:6)"
        );
        assert_eq!(place(99, "m"), "invalid position");
    }
}
