//! Deleted series.

use serde::{Deserialize, Serialize};

use crate::time::{Millis, TimeRange};

/// An order to delete samples of a tenant: hidden at once in every query, taken out when blocks are cut and compacted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Index of the metadata that ordered it: names it, and says which blocks were made before it.
    pub index: u64,
    /// Series that one of these selectors selects, as PromQL writes a selector: `{job="a",instance=~"b.*"}`.
    pub selectors: Vec<String>,
    /// Samples of this time.
    pub range: TimeRange,
    /// When it was ordered.
    pub at: Millis,
    /// Who ordered it.
    pub by: String,
}
