//! `meta.json`: what a block is.
//!
//! Three writers share the file: the TSDB's own fields at the top, Thanos' section (tenant and replica labels,
//! downsampling, files), and ours. Each reader passes over what it does not know. Ours holds the digest of all
//! samples, so that whoever reads the block later can prove that it is what was cut.
//!
//! Source: `prometheus tsdb/block.go` (`BlockMeta`), `thanos pkg/block/metadata/meta.go`.

use std::collections::BTreeMap;
use std::path::Path;

use engram_model::block::BlockId;
use engram_model::digest::Digest;
use engram_model::{Millis, TimeRange};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ranges::{File, Sizes};

/// Longest file that is read.
pub const META_BYTES_MAX: u64 = 16 << 20;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Its name.
    pub ulid: BlockId,
    /// First millisecond inside.
    pub min_time: Millis,
    /// First millisecond outside.
    pub max_time: Millis,
    /// Counts.
    #[serde(default)]
    pub stats: Stats,
    /// Where it comes from.
    #[serde(default)]
    pub compaction: Compaction,
    /// 1.
    pub version: u32,
    /// Thanos' section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thanos: Option<Thanos>,
    /// Ours; blocks of others have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engram: Option<Ours>,
}

/// Counts of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    /// Samples of both kinds.
    pub num_samples: u64,
    /// Series.
    pub num_series: u64,
    /// Chunks.
    pub num_chunks: u64,
    /// Deleted intervals.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_tombstones: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape serde asks for")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where a block comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compaction {
    /// 1 for a block cut from a head, one more at each compaction.
    pub level: u32,
    /// The blocks of level 1 that are in it.
    #[serde(deserialize_with = "null_is_empty")]
    pub sources: Vec<BlockId>,
    /// The blocks it was made of.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Parent>,
}

/// A block another was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// Its name.
    pub ulid: BlockId,
    /// First millisecond inside.
    pub min_time: Millis,
    /// First millisecond outside.
    pub max_time: Millis,
}

/// Thanos' section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thanos {
    /// 1; absent means 1.
    pub version: u32,
    /// External labels: tenant, replica.
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Downsampling.
    pub downsample: Downsample,
    /// Which program made it.
    pub source: String,
    /// Files of the block; without lengths where unknown.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<MetaFile>,
    /// Largest things inside, for guessing how much to fetch.
    pub index_stats: IndexStats,
}

/// Downsampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downsample {
    /// Milliseconds between samples, 0 for raw.
    pub resolution: i64,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetaFile {
    /// Where in the directory.
    pub rel_path: String,
    /// How long; 0 where unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_bytes: u64,
}

/// Largest things inside; 0 where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexStats {
    /// Longest description of a series, bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub series_max_size: u64,
    /// Longest chunk, bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_max_size: u64,
}

/// Our section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    /// 1.
    pub version: u32,
    /// Digest of all samples.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// No chunk crosses a multiple of this.
    pub window_ms: i64,
}

/// A list that Go writes as `null` when it is empty.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A digest as text: numbers above 2^53 do not survive every tool that rewrites JSON.
mod digest_text {
    use engram_model::digest::Digest;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:016x}-{:016x}-{:016x}", digest.count, digest.low, digest.high))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(from)?;
        let bad = || D::Error::custom("a digest is three hexadecimal numbers");
        let mut parts = text.split('-').map(|part| u64::from_str_radix(part, 16).ok());
        let mut next = || parts.next().flatten().ok_or_else(bad);
        let digest = Digest { count: next()?, low: next()?, high: next()? };
        if parts.next().is_some() { Err(bad()) } else { Ok(digest) }
    }
}

impl Meta {
    /// Reads the file; `path` is where it lies, for errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is no meta.json of version 1.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let meta: Self = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(path, 0, error.to_string()))?;
        if meta.version != 1 || meta.thanos.as_ref().is_some_and(|thanos| thanos.version > 1) {
            return Err(Error::corrupt(path, 0, "the version of the block is not 1"));
        }
        if meta.min_time > meta.max_time {
            return Err(Error::corrupt(path, 0, "the block ends before it begins"));
        }
        Ok(meta)
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers, texts and maps keyed by text: there is nothing in it that JSON cannot say.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The range of its samples.
    #[must_use]
    pub fn range(&self) -> TimeRange {
        TimeRange::new(self.min_time, self.max_time)
    }

    /// Lengths of its files where Thanos' section tells them all: saves asking the store.
    #[must_use]
    pub fn sizes(&self) -> Option<Sizes> {
        let files = &self.thanos.as_ref()?.files;
        let size_of = |file: File| {
            let found = files.iter().find(|have| have.rel_path == file.path());
            found.map(|found| found.size_bytes).filter(|size| *size > 0)
        };
        let mut sizes = Sizes { index: size_of(File::Index)?, chunks: Vec::new() };
        let chunk_files = files.iter().filter(|file| file.rel_path.starts_with("chunks/")).count();
        for n in 1..=u32::try_from(chunk_files).ok()? {
            sizes.chunks.push(size_of(File::Chunks(n))?);
        }
        Some(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_prometheus_is_read_and_ours_comes_back() {
        let text = r#"{"ulid": "01M820JS9C959G3GM79CY26EX7", "minTime": 1000000, "maxTime": 1015001,
            "stats": {"numSamples": 3, "numSeries": 2, "numChunks": 2, "numFloatSamples": 3},
            "compaction": {"level": 1, "sources": null, "parents": null, "hints": ["x"]}, "version": 1,
            "thanos": {"labels": null, "downsample": {"resolution": 0}, "source": "sidecar",
              "files": [{"rel_path": "chunks/000001", "size_bytes": 10}, {"rel_path": "index", "size_bytes": 20},
                        {"rel_path": "meta.json"}]}}"#;
        let mut meta = Meta::read(Path::new("meta.json"), text.as_bytes()).unwrap();
        assert_eq!((meta.stats.num_series, meta.range()), (2, TimeRange::new(1_000_000, 1_015_001)));
        assert_eq!(meta.sizes(), Some(Sizes { index: 20, chunks: vec![10] }));
        let digest = Digest { count: 3, low: u64::MAX, high: 1 };
        meta.engram = Some(Ours { version: 1, digest, window_ms: 7_200_000 });
        assert_eq!(Meta::read(Path::new("meta.json"), &meta.to_bytes()).unwrap(), meta);
        assert!(
            Meta::read(Path::new("meta.json"), text.replace("\"version\": 1", "\"version\": 2").as_bytes()).is_err()
        );
        assert!(Meta::read(Path::new("meta.json"), b"{}").is_err());
    }
}
