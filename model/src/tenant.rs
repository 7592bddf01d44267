//! Tenants: the owners of data, and their limits.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest tenant name in bytes, as Cortex documents it.
pub const TENANT_NAME_BYTES_MAX: usize = 150;
/// The tenant of requests that name none while authentication is off.
pub const ANONYMOUS: &str = "anonymous";

/// A tenant's name: 1 to 150 bytes of `A-Za-z0-9!-_.*'()`, not `.`, `..`, `__markers__` or `user-index.json.gz`.
/// Source: Cortex "Tenant ID naming conventions" (names become folder and object names).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// Why a name cannot be a tenant's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTenant {
    /// No name.
    #[error("tenant ID is empty")]
    Empty,
    /// Too long.
    #[error("tenant ID is too long: {bytes} bytes, max {TENANT_NAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A character that is not allowed.
    #[error("tenant ID {name:?} contains unsupported character {character:?}")]
    Character {
        /// The name, shortened.
        name: String,
        /// The first bad character.
        character: char,
    },
    /// A word the object store's layout needs.
    #[error("tenant ID {name:?} is reserved")]
    Reserved {
        /// The name.
        name: String,
    },
}

impl TenantId {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadTenant`], the caller must choose another name.
    pub fn new(name: &str) -> Result<Self, BadTenant> {
        if name.is_empty() {
            return Err(BadTenant::Empty);
        }
        if name.len() > TENANT_NAME_BYTES_MAX {
            return Err(BadTenant::TooLong { bytes: name.len() });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
        if let Some(character) = name.chars().find(|c| !allowed(*c)) {
            return Err(BadTenant::Character { name: name.to_owned(), character });
        }
        if matches!(name, "." | ".." | "__markers__" | "user-index.json.gz") {
            return Err(BadTenant::Reserved { name: name.to_owned() });
        }
        Ok(Self(name.into()))
    }

    /// The tenant of requests that name none.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TenantId {
    type Error = BadTenant;

    fn try_from(name: String) -> Result<Self, BadTenant> {
        Self::new(&name)
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.0.as_ref().to_owned()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a tenant may do. One flat table; names follow Cortex where it has the limit; 0 means "no limit" unless said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Samples a second this tenant may send, over the cluster; 0: no limit.
    pub ingestion_rate: u64,
    /// Samples it may send at once above the rate.
    pub ingestion_burst_size: u64,
    /// Longest label name in bytes.
    pub max_label_name_length: u32,
    /// Longest label value in bytes, the metric's name too.
    pub max_label_value_length: u32,
    /// Most labels of a series.
    pub max_label_names_per_series: u32,
    /// Whether every series must have a metric name, as remote write asks of its senders.
    pub enforce_metric_name: bool,
    /// Most active series; 0: no limit.
    pub max_global_series_per_user: u64,
    /// How far ahead of this node's clock a sample may lie, in milliseconds.
    pub creation_grace_period_ms: i64,
    /// How far behind the tenant's newest sample one may still come, in milliseconds; 0: must be in order.
    pub out_of_order_time_window_ms: i64,
    /// Exemplars kept in memory; 0: none.
    pub max_exemplars: u32,
    /// Metrics with metadata kept.
    pub max_metadata_per_user: u32,
    /// Longest help text, unit or metric name of metadata, in bytes; longer texts are cut.
    pub max_metadata_length: u32,
    /// Most buckets of a native histogram; 0: no limit.
    pub max_native_histogram_buckets: u32,
    /// Longest range of a query in milliseconds; 0: no limit.
    pub max_query_length_ms: i64,
    /// Most series one query may touch; 0: no limit.
    pub max_fetched_series_per_query: u64,
    /// Most bytes of chunks one query may read from blocks; 0: no limit.
    pub max_fetched_chunk_bytes_per_query: u64,
    /// Most samples one query may hold in memory at once.
    pub max_samples_per_query: u64,
    /// Most bytes one query may hold in memory at once, its series' labels included; 0: no limit.
    pub max_bytes_per_query: u64,
    /// Whether this tenant may use the experimental part of PromQL; none: as the server says.
    pub promql_experimental: Option<bool>,
    /// How far behind the tenant's newest sample all of a block must lie for it to be deleted, in milliseconds; 0: blocks
    /// are kept for ever; none: as the server says.
    pub compactor_blocks_retention_period_ms: Option<i64>,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            ingestion_rate: 0,
            ingestion_burst_size: 0,
            max_label_name_length: 1024,
            max_label_value_length: 2048,
            max_label_names_per_series: 30,
            enforce_metric_name: true,
            max_global_series_per_user: 0,
            creation_grace_period_ms: 10 * 60 * 1000,
            out_of_order_time_window_ms: 0,
            max_exemplars: 10_000,
            max_metadata_per_user: 8000,
            max_metadata_length: 1024,
            max_native_histogram_buckets: 0,
            max_query_length_ms: 0,
            max_fetched_series_per_query: 0,
            max_fetched_chunk_bytes_per_query: 2 << 30,
            max_samples_per_query: 50_000_000,
            max_bytes_per_query: 0,
            promql_experimental: None,
            compactor_blocks_retention_period_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_cortex_documents() {
        for good in ["a", "team-1", "A.b_c*'()!", &"x".repeat(150)] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", ".", "..", "__markers__", "user-index.json.gz", "a/b", "a b", "ü", "a|b", "a\n", &"x".repeat(151)]
        {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
    }
}
