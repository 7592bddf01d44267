//! Native histograms from the wire: the same message in both versions.
//!
//! The wire has deltas for integers and absolute counts for floats; the model has absolute counts for both. Checks
//! are those of Prometheus, so what it would refuse is refused here, and two more: bucket numbers must fit 32 bits,
//! and integer counts must be exact as floats.
//!
//! Source: `prometheus model/histogram/{generic,histogram,float_histogram}.go`, `prompb/types.proto`.

use engram_model::histogram::{
    BucketSpan, CUSTOM_BUCKETS_SCHEMA, EXPONENTIAL_SCHEMA_MAX, EXPONENTIAL_SCHEMA_MIN, Histogram, ResetHint,
};
use engram_model::time::Millis;

use super::wire::{Cursor, Tag, zigzag};
use super::{DecodeError, Reason};

/// Counts up to here are exact as floats.
const EXACT_MAX: u64 = 1 << 53;

/// One side of a histogram as it came.
#[derive(Default)]
struct Side {
    spans: Vec<BucketSpan>,
    deltas: Vec<i64>,
    counts: Vec<f64>,
}

/// A histogram as it came; its vectors are used again for the next one. None grows above `buckets_max` by more than
/// one: that one tells that there were too many.
#[derive(Default)]
pub(super) struct Raw {
    buckets_max: usize,
    pub(super) at: Millis,
    pub(super) start_at: Millis,
    count: Number,
    zero_count: Number,
    sum: f64,
    schema: i32,
    zero_threshold: f64,
    reset_hint: ResetHint,
    positive: Side,
    negative: Side,
    custom_values: Vec<f64>,
}

/// A count in one of its two forms.
#[derive(Clone, Copy)]
enum Number {
    Integer(u64),
    Float(f64),
}

impl Default for Number {
    fn default() -> Self {
        Self::Integer(0)
    }
}

impl Number {
    fn as_integer(self) -> u64 {
        if let Self::Integer(count) = self { count } else { 0 }
    }

    fn as_float(self) -> f64 {
        if let Self::Float(count) = self { count } else { 0.0 }
    }
}

impl Side {
    fn clear(&mut self) {
        self.spans.clear();
        self.deltas.clear();
        self.counts.clear();
    }

    /// Each field of the message has its number plus 0, 1, 2 for the two sides.
    fn field(&mut self, which: u64, tag: &Tag, message: &mut Cursor<'_>, max: usize) -> Result<(), DecodeError> {
        match which {
            0 => {
                push(&mut self.spans, span(message.message(tag)?)?, max);
                Ok(())
            }
            1 => message.each_varint(tag, |_, raw| {
                push(&mut self.deltas, zigzag(raw), max);
                Ok(())
            }),
            _ => message.each_double(tag, |count| {
                push(&mut self.counts, count, max);
                Ok(())
            }),
        }
    }

    /// Absolute counts of an integer histogram and their sum.
    fn absolute(&self) -> Result<(Vec<f64>, u128), Reason> {
        let mut out = Vec::with_capacity(self.deltas.len());
        let (mut count, mut sum) = (0_i64, 0_u128);
        for &delta in &self.deltas {
            count = count.checked_add(delta).ok_or(Reason::HistogramTooLarge)?;
            let whole = u64::try_from(count).map_err(|_| Reason::HistogramNegative)?;
            sum += u128::from(whole);
            out.push(exact(whole)?);
        }
        Ok((out, sum))
    }
}

fn push<T>(to: &mut Vec<T>, value: T, max: usize) {
    if to.len() <= max {
        to.push(value);
    }
}

fn span(mut message: Cursor<'_>) -> Result<BucketSpan, DecodeError> {
    let mut span = BucketSpan { offset: 0, length: 0 };
    while let Some(tag) = message.tag()? {
        match tag.field {
            1 => span.offset = message.zigzag32(&tag)?,
            2 => {
                let length = message.number(&tag)?;
                let what = "span is longer than 32 bits";
                span.length = u32::try_from(length).map_err(|_| DecodeError::Malformed { at: tag.at, what })?;
            }
            _ => message.skip(&tag)?,
        }
    }
    Ok(span)
}

#[allow(clippy::cast_precision_loss, reason = "checked to be exact")]
fn exact(count: u64) -> Result<f64, Reason> {
    if count > EXACT_MAX { Err(Reason::HistogramTooLarge) } else { Ok(count as f64) }
}

/// Spans against buckets; returns the index behind the last bucket.
fn check_spans(spans: &[BucketSpan], buckets: usize) -> Result<i64, Reason> {
    let (mut said, mut behind) = (0_u64, 0_i64);
    for (i, span) in spans.iter().enumerate() {
        behind += i64::from(span.offset) + i64::from(span.length);
        if (i > 0 && span.offset < 0) || i32::try_from(behind).is_err() {
            return Err(Reason::HistogramOffset(span.offset));
        }
        said += u64::from(span.length);
    }
    if said != buckets as u64 {
        return Err(Reason::HistogramSpans { said, got: buckets });
    }
    Ok(behind)
}

impl Raw {
    pub(super) fn new(buckets_max: usize) -> Self {
        Self { buckets_max, ..Self::default() }
    }

    /// Reads one message; it is not judged yet.
    pub(super) fn read(&mut self, mut message: Cursor<'_>) -> Result<(), DecodeError> {
        self.positive.clear();
        self.negative.clear();
        self.custom_values.clear();
        (self.at, self.start_at) = (0, 0);
        (self.count, self.zero_count) = (Number::default(), Number::default());
        (self.sum, self.schema, self.zero_threshold) = (0.0, 0, 0.0);
        self.reset_hint = ResetHint::Unknown;
        let max = self.buckets_max;
        while let Some(tag) = message.tag()? {
            match tag.field {
                1 => self.count = Number::Integer(message.number(&tag)?),
                2 => self.count = Number::Float(message.double(&tag)?),
                3 => self.sum = message.double(&tag)?,
                4 => self.schema = message.zigzag32(&tag)?,
                5 => self.zero_threshold = message.double(&tag)?,
                6 => self.zero_count = Number::Integer(message.number(&tag)?),
                7 => self.zero_count = Number::Float(message.double(&tag)?),
                8..=10 => self.negative.field(tag.field - 8, &tag, &mut message, max)?,
                11..=13 => self.positive.field(tag.field - 11, &tag, &mut message, max)?,
                14 => {
                    self.reset_hint = match message.number(&tag)? {
                        1 => ResetHint::Reset,
                        2 => ResetHint::NoReset,
                        3 => ResetHint::Gauge,
                        _ => ResetHint::Unknown,
                    }
                }
                15 => self.at = message.signed(&tag)?,
                16 => message.each_double(&tag, |bound| {
                    push(&mut self.custom_values, bound, max);
                    Ok(())
                })?,
                17 => self.start_at = message.signed(&tag)?,
                _ => message.skip(&tag)?,
            }
        }
        Ok(())
    }

    /// How many things it is made of.
    pub(super) fn parts(&self) -> usize {
        let side = |side: &Side| side.spans.len() + side.deltas.len() + side.counts.len();
        side(&self.positive) + side(&self.negative) + self.custom_values.len()
    }

    /// Judges what was read and makes it absolute.
    pub(super) fn finish(&self) -> Result<Histogram, Reason> {
        let integer = matches!(self.count, Number::Integer(_));
        let len = |side: &Side| if integer { side.deltas.len() } else { side.counts.len() };
        let buckets = len(&self.positive) + len(&self.negative);
        let spans = self.positive.spans.len().max(self.negative.spans.len());
        if buckets.max(spans).max(self.custom_values.len()) > self.buckets_max {
            return Err(Reason::HistogramBuckets(self.buckets_max));
        }
        let behind = check_spans(&self.positive.spans, len(&self.positive))?;
        check_spans(&self.negative.spans, len(&self.negative))?;
        let mut made = if integer { self.integer()? } else { self.float()? };
        self.check_layout(&made, behind)?;
        made.positive_spans = self.positive.spans.clone();
        made.negative_spans = self.negative.spans.clone();
        made.custom_values = self.custom_values.clone();
        Ok(made)
    }

    fn bare(&self) -> Histogram {
        Histogram {
            reset_hint: self.reset_hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            sum: self.sum,
            ..Histogram::default()
        }
    }

    fn integer(&self) -> Result<Histogram, Reason> {
        let (positive_buckets, positive) = self.positive.absolute()?;
        let (negative_buckets, negative) = self.negative.absolute()?;
        let (count, zero_count) = (self.count.as_integer(), self.zero_count.as_integer());
        let in_buckets = positive + negative + u128::from(zero_count);
        // Observations that are NaN fall into no bucket, but make the sum NaN.
        let agrees = if self.sum.is_nan() { in_buckets <= u128::from(count) } else { in_buckets == u128::from(count) };
        if !agrees {
            return Err(Reason::HistogramCount);
        }
        let (count, zero_count) = (exact(count)?, exact(zero_count)?);
        Ok(Histogram { integer: true, count, zero_count, positive_buckets, negative_buckets, ..self.bare() })
    }

    /// Sums of floats are not compared with the count: rounding would refuse honest histograms.
    fn float(&self) -> Result<Histogram, Reason> {
        let (count, zero_count) = (self.count.as_float(), self.zero_count.as_float());
        let mut counts = self.positive.counts.iter().chain(&self.negative.counts).chain([&count, &zero_count]);
        if counts.any(|&count| count < 0.0) {
            return Err(Reason::HistogramNegative);
        }
        let positive_buckets = self.positive.counts.clone();
        let negative_buckets = self.negative.counts.clone();
        Ok(Histogram { integer: false, count, zero_count, positive_buckets, negative_buckets, ..self.bare() })
    }

    /// What the schema allows. `behind` is the index behind the last positive bucket.
    #[allow(clippy::float_cmp, reason = "custom buckets want exactly no zero bucket")]
    fn check_layout(&self, made: &Histogram, behind: i64) -> Result<(), Reason> {
        let bounds = &self.custom_values;
        if self.schema != CUSTOM_BUCKETS_SCHEMA {
            if !(EXPONENTIAL_SCHEMA_MIN..=EXPONENTIAL_SCHEMA_MAX).contains(&self.schema) {
                return Err(Reason::HistogramSchema(self.schema));
            }
            return if bounds.is_empty() { Ok(()) } else { Err(Reason::HistogramMixed) };
        }
        let no_zero = made.zero_count == 0.0 && made.zero_threshold == 0.0;
        if !no_zero || !self.negative.spans.is_empty() || !made.negative_buckets.is_empty() {
            return Err(Reason::HistogramMixed);
        }
        if let Some(first) = self.positive.spans.first()
            && first.offset < 0
        {
            return Err(Reason::HistogramOffset(first.offset));
        }
        let grows = bounds.windows(2).all(|two| two[0] < two[1]) && bounds.iter().all(|bound| bound.is_finite());
        // The last bucket, up to +Inf, has no boundary of its own.
        if !grows || behind > bounds.len() as i64 + 1 {
            return Err(Reason::HistogramBounds);
        }
        Ok(())
    }
}
