//! Chunks: compressed runs of one series, in the encodings of Prometheus.
//!
//! Why one door for floats and histograms: the head, chunk files and blocks move chunks about without caring what
//! is inside; only whoever appends or reads cares, and does it here. An [`Open`] chunk takes samples in order of
//! time; when the next does not fit it becomes a [`Chunk`], which never changes. `docs/formats/chunk.md` draws the
//! bytes.
//!
//! Map: [`file`] full chunks outside of the heap · `bits` the bit order and small numbers · `xor` floats · `layout`, `histogram` native histograms.

mod bits;
pub mod file;
pub mod histogram;
mod layout;
#[cfg(test)]
mod tests;
pub(crate) mod xor;

use std::sync::Arc;

use engram_model::histogram::Histogram;
use engram_model::sample::Value;
use engram_model::series::{Columns, ReadError};
use engram_model::{Millis, TimeRange};

use crate::codec::Broken;
pub use file::{ChunkBytes, ChunkFiles};
use histogram::HistogramOpen;
use xor::XorOpen;

/// Samples after which a chunk is full, as in Prometheus: longer ones compress little better and cost more to read
/// when few of their samples are wanted.
pub const SAMPLES_MAX: u16 = 120;

/// How a chunk is encoded. The numbers are those of the block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Floats.
    Xor = 1,
    /// Histograms of integer counts.
    Histogram = 2,
    /// Histograms of float counts.
    FloatHistogram = 3,
}

impl Kind {
    /// The kind of a number; none for one we do not know.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Xor),
            2 => Some(Self::Histogram),
            3 => Some(Self::FloatHistogram),
            _ => None,
        }
    }
}

/// A chunk that no longer changes. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Time of the first sample.
    pub first: Millis,
    /// Time of the last sample.
    pub last: Millis,
    /// The encoded samples.
    pub bytes: ChunkBytes,
    /// How many samples.
    pub count: u16,
    /// How they are encoded.
    pub kind: Kind,
}

impl Chunk {
    /// Takes bytes from outside: decodes them once and checks that times grow.
    ///
    /// # Errors
    /// They are no chunk of this kind, or an empty one.
    pub fn checked(kind: Kind, bytes: &[u8]) -> Result<Self, Broken> {
        let mut columns = Columns::default();
        decode(kind, bytes, &mut columns)?;
        let times = if kind == Kind::Xor { &columns.times } else { &columns.histogram_times };
        let (Some(first), Some(last)) = (times.first(), times.last()) else {
            return Err(Broken { at: 0, what: "chunk is empty" });
        };
        if times.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Broken { at: 0, what: "times of a chunk do not grow" });
        }
        let count = u16::try_from(times.len()).map_err(|_| Broken { at: 0, what: "chunk has too many samples" })?;
        Ok(Self { first: *first, last: *last, bytes: bytes.into(), count, kind })
    }

    /// Appends all samples to the columns of their kind; on failure the columns are as before.
    ///
    /// # Errors
    /// The bytes are damaged.
    pub fn decode(&self, out: &mut Columns) -> Result<(), Broken> {
        decode(self.kind, self.bytes.checked()?, out)
    }
}

impl Chunk {
    /// As [`Chunk::decode`], for who reads the series of this hash: a chunk of a file is named by it.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`].
    pub(crate) fn read(&self, series_hash: u128, out: &mut Columns) -> Result<(), ReadError> {
        self.decode(out).map_err(|broken| {
            let place = self.bytes.place().map(|(path, at)| format!(" ({} at byte {at})", path.display()));
            let what = format!("{broken}{}", place.unwrap_or_default());
            ReadError::Corrupt { series: format!("{series_hash:032x}"), what }
        })
    }
}

/// Appends all samples of encoded bytes to the columns of their kind; on failure the columns are as before.
///
/// # Errors
/// The bytes are no chunk of this kind.
pub fn decode(kind: Kind, bytes: &[u8], out: &mut Columns) -> Result<(), Broken> {
    match kind {
        Kind::Xor => xor::decode(bytes, &mut out.times, &mut out.values),
        Kind::Histogram => histogram::decode(bytes, true, &mut out.histogram_times, &mut out.histograms),
        Kind::FloatHistogram => histogram::decode(bytes, false, &mut out.histogram_times, &mut out.histograms),
    }
}

/// Encodes floats in order of time, times strictly growing, into as many chunks as it takes.
#[must_use]
pub fn encode_floats(samples: &[(Millis, f64)]) -> Vec<Chunk> {
    let mut open = Open::default();
    let mut full: Vec<_> =
        samples.iter().filter_map(|(at, value)| open.append(*at, ValueRef::Float(*value), false)).collect();
    full.extend(open.view());
    full
}

/// Encodes samples in order of time, times strictly growing, into as many chunks as it takes; none crosses a multiple of
/// `window_ms` (above 0). Histograms are those that [`histogram::is_storable`].
#[must_use]
pub fn encode<'a>(samples: impl IntoIterator<Item = (Millis, ValueRef<'a>)>, window_ms: i64) -> Vec<Chunk> {
    let (mut open, mut full) = (Open::default(), Vec::new());
    for (at, value) in samples {
        let cut = open.bounds().is_some_and(|(first, _)| first.div_euclid(window_ms) != at.div_euclid(window_ms));
        full.extend(open.append(at, value, cut));
    }
    full.extend(open.view());
    full
}

/// The samples of columns, floats and histograms in one order of time, for [`encode`].
pub fn in_order(columns: &Columns) -> impl Iterator<Item = (Millis, ValueRef<'_>)> {
    let (mut float, mut histogram) = (0, 0);
    std::iter::from_fn(move || {
        let (next_float, next_histogram) = (columns.times.get(float), columns.histogram_times.get(histogram));
        let is_float = next_float.is_some_and(|at| next_histogram.is_none_or(|other| at < other));
        if is_float {
            float += 1;
            Some((columns.times[float - 1], ValueRef::Float(columns.values[float - 1])))
        } else {
            histogram += 1;
            next_histogram.map(|at| (*at, ValueRef::Histogram(&columns.histograms[histogram - 1])))
        }
    })
}

/// A value to append, borrowed.
#[derive(Clone, Copy, Debug)]
pub enum ValueRef<'a> {
    /// A float.
    Float(f64),
    /// A histogram that [`histogram::is_storable`].
    Histogram(&'a Arc<Histogram>),
}

impl ValueRef<'_> {
    /// Whether two values are one, bit for bit.
    #[must_use]
    pub fn same(self, other: ValueRef<'_>) -> bool {
        match (self, other) {
            (Self::Float(a), ValueRef::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Histogram(a), ValueRef::Histogram(b)) => a == b,
            _ => false,
        }
    }

    /// As a value of its own.
    #[must_use]
    pub fn to_value(self) -> Value {
        match self {
            Self::Float(value) => Value::Float(value),
            Self::Histogram(h) => Value::Histogram(Arc::clone(h)),
        }
    }
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Float(value) => Self::Float(*value),
            Value::Histogram(h) => Self::Histogram(h),
        }
    }
}

/// The chunk of a series that still takes samples.
#[derive(Clone, Debug, Default)]
pub(crate) enum Open {
    /// None yet.
    #[default]
    None,
    /// Floats.
    Float(XorOpen),
    /// Histograms; boxed, for most series hold floats.
    Histogram(Box<HistogramOpen>),
}

impl Open {
    /// Appends a sample later than all before. When it does not fit, or `cut` asks for it, it begins a new chunk
    /// and the full one is handed out.
    #[inline]
    pub(crate) fn append(&mut self, at: Millis, value: ValueRef<'_>, cut: bool) -> Option<Chunk> {
        match (&mut *self, value) {
            (Self::Float(open), ValueRef::Float(value)) if !cut && open.count() < SAMPLES_MAX => {
                open.append(at, value);
                return None;
            }
            (Self::Histogram(open), ValueRef::Histogram(h)) if !cut && open.count() < SAMPLES_MAX && open.fits(h) => {
                open.append(at, h);
                return None;
            }
            _ => {}
        }
        let next = match value {
            ValueRef::Float(value) => Self::Float(XorOpen::new(at, value)),
            ValueRef::Histogram(h) => {
                let reset = matches!(self, Self::Histogram(open) if open.resets(h));
                Self::Histogram(Box::new(HistogramOpen::new(at, h, reset)))
            }
        };
        std::mem::replace(self, next).view()
    }

    /// What it holds now, as a chunk of its own; nothing while there is none.
    pub(crate) fn view(&self) -> Option<Chunk> {
        match self {
            Self::None => None,
            Self::Float(open) => Some(Chunk {
                first: open.first(),
                last: open.last(),
                bytes: open.bytes().into(),
                count: open.count(),
                kind: Kind::Xor,
            }),
            Self::Histogram(open) => Some(Chunk {
                first: open.first(),
                last: open.last(),
                bytes: open.bytes().into(),
                count: open.count(),
                kind: if open.is_integer() { Kind::Histogram } else { Kind::FloatHistogram },
            }),
        }
    }

    /// Kind, first and last time and the bytes so far, where it may hold samples of the range.
    pub(crate) fn in_range(&self, range: TimeRange) -> Option<(Kind, (Millis, Millis), &[u8])> {
        let bounds = self.bounds().filter(|(first, last)| *first < range.end && range.start <= *last)?;
        match self {
            Self::None => None,
            Self::Float(open) => Some((Kind::Xor, bounds, open.bytes())),
            Self::Histogram(open) if open.is_integer() => Some((Kind::Histogram, bounds, open.bytes())),
            Self::Histogram(open) => Some((Kind::FloatHistogram, bounds, open.bytes())),
        }
    }

    /// Times of the first and the last sample.
    #[inline]
    pub(crate) fn bounds(&self) -> Option<(Millis, Millis)> {
        match self {
            Self::None => None,
            Self::Float(open) => Some((open.first(), open.last())),
            Self::Histogram(open) => Some((open.first(), open.last())),
        }
    }

    /// The newest sample's value.
    #[inline]
    pub(crate) fn newest(&self) -> Option<ValueRef<'_>> {
        match self {
            Self::None => None,
            Self::Float(open) => Some(ValueRef::Float(open.value())),
            Self::Histogram(open) => Some(ValueRef::Histogram(open.newest())),
        }
    }

    /// How many samples.
    pub(crate) fn count(&self) -> u16 {
        match self {
            Self::None => 0,
            Self::Float(open) => open.count(),
            Self::Histogram(open) => open.count(),
        }
    }

    /// Memory its buffers take, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Float(open) => open.capacity(),
            Self::Histogram(open) => open.capacity(),
        }
    }
}
