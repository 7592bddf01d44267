//! The remote-write decoder: the bytes of a request become a [`WriteBatch`], or a reason why not.
//!
//! Why by hand: this runs for every sample there is. A generated decoder makes a string for each label and a vector
//! for each series, most of the cost of a write; here labels stay where they are and are pointed at. And the bytes
//! are a stranger's: what they ask us to allocate is bounded before it is allocated.
//!
//! The way of a body: snappy block, its declared length checked first (`decode`) · one pass over the top level that
//! counts series and finds symbols · one pass over the series (`v1`, `v2`) that fills flat arrays
//! (`build`), native histograms checked and made absolute (`histogram`).
//!
//! Two kinds of fault. What makes the body unreadable is a [`DecodeError`] and nothing of it is kept. What concerns
//! one series, histogram or exemplar is a [`Refusal`]: the others are stored. A series' labels come out sorted,
//! unique, without empty values; whether it has a name, and what the tenant's limits say, is admission's affair.
//!
//! Notes on the wire are in `docs/formats/remote-write.md`.

use engram_model::batch::WriteBatch;

mod build;
mod error;
mod histogram;
mod refusal;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod wire;

pub use error::DecodeError;
pub use refusal::{Reason, Refusal};

/// Which protocol the content type names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`.
    V2,
}

/// What one body may ask for. These protect the node; the limits of a tenant are tighter and come later.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes after decompression; never more than 4 GiB, positions are 32 bits.
    pub body_bytes_max: usize,
    /// Series.
    pub series_max: usize,
    /// Samples, histograms, exemplars and metadata together.
    pub samples_max: usize,
    /// Label pairs, symbols, histogram buckets and spans together.
    pub parts_max: usize,
    /// Bytes of labels summed over the series: version 2 can name one long symbol a million times.
    pub label_bytes_max: usize,
    /// Labels of one series; above it the series is refused.
    pub labels_per_series_max: usize,
    /// Bytes of the labels of one series; above it the series is refused.
    pub label_bytes_per_series_max: usize,
    /// Buckets of one histogram; above it the histogram is refused.
    pub buckets_per_histogram_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            body_bytes_max: 100 << 20,
            series_max: 500_000,
            samples_max: 2_000_000,
            parts_max: 16_000_000,
            label_bytes_max: 512 << 20,
            labels_per_series_max: 256,
            label_bytes_per_series_max: 64 << 10,
            buckets_per_histogram_max: 4096,
        }
    }
}

/// What a body held.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// What may be stored.
    pub batch: WriteBatch,
    /// What may not, in order of the request. The texts in it point into the batch.
    pub refused: Vec<Refusal>,
}

/// Snappy makes at most 64 bytes of 3: a body that declares more than this many times its size lies.
const EXPANSION_MAX: usize = 22;

/// Decodes the body of a remote-write request, compressed with snappy's block format.
///
/// # Errors
/// [`DecodeError`]: the sender must change the request. Nothing of it may be stored.
pub fn decode(compressed: &[u8], version: Version, bounds: &Bounds) -> Result<Decoded, DecodeError> {
    let max = bounds.body_bytes_max.min(u32::MAX as usize);
    let len = snap::raw::decompress_len(compressed)?;
    if len > max {
        return Err(DecodeError::TooLarge { len, max });
    }
    if len > compressed.len().saturating_mul(EXPANSION_MAX) {
        return Err(DecodeError::Expansion { len, compressed: compressed.len() });
    }
    decode_plain(snap::raw::Decoder::new().decompress_vec(compressed)?, version, bounds)
}

/// As [`decode`], of a body that is not compressed.
///
/// # Errors
/// As [`decode`].
pub fn decode_plain(body: Vec<u8>, version: Version, bounds: &Bounds) -> Result<Decoded, DecodeError> {
    let max = bounds.body_bytes_max.min(u32::MAX as usize);
    if body.len() > max {
        return Err(DecodeError::TooLarge { len: body.len(), max });
    }
    let mut decoded = match version {
        Version::V1 => v1::decode(&body, bounds)?,
        Version::V2 => v2::decode(&body, bounds)?,
    };
    decoded.batch.text = body;
    Ok(decoded)
}
