//! All that the engine asks of the world: series for a range and matchers.

use std::sync::Arc;

use engram_model::error::{Class, Classed};
use engram_model::series::{ReadError, Series};
use engram_model::{Matcher, TimeRange};
use futures::future::BoxFuture;

use crate::fragment::{Fragment, Partial};

/// What a select is for; the answerer may use it to read less, and may ignore it.
#[derive(Clone, Debug, Default)]
pub struct SelectHints {
    /// The function directly above, empty when none.
    pub func: String,
    /// Step of the query in milliseconds, 0 for an instant query.
    pub step_ms: i64,
    /// Range of the matrix selector in milliseconds, 0 for an instant selector.
    pub range_ms: i64,
    /// Labels the query looks at, besides the metric's name; `None`: all. Series that lack the others stay series of
    /// their own. Whoever has series with `__type__` or `__unit__` gives all labels.
    pub projection: Option<Vec<String>>,
    /// Only the last sample of the range is looked at.
    pub last_only: bool,
    /// All that the select is for: the answerer may give [`Selection::partials`] of it instead of series.
    pub fragment: Option<Arc<Fragment>>,
}

/// Why the world could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A stored chunk is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A limit of the tenant on what one query may fetch.
    #[error("{0}")]
    Limited(String),
    /// What is stored cannot be read: it is damaged, or gone.
    #[error("{0}")]
    Damaged(String),
    /// No quorum, still starting, too busy.
    #[error("{0}")]
    Unavailable(String),
}

impl Classed for SourceError {
    fn class(&self) -> Class {
        match self {
            Self::Read(_) | Self::Damaged(_) => Class::Internal,
            // Asking again cannot help: the caller must ask for less.
            Self::Limited(_) => Class::Invalid,
            Self::Unavailable(_) => Class::Unavailable,
        }
    }
}

/// Up to so many series of a select come sorted by their labels; of more the engine puts into order what needs one.
///
/// Why not all: sorting a million label sets would take longer than the sum that was asked for, and does not change it
/// but for last bits that its compensation loses.
pub const SORTED_MAX: usize = 256;

/// What a select yields.
#[derive(Clone, Default)]
pub struct Selection {
    /// The series, none twice; sorted by labels where they are [`SORTED_MAX`] or fewer.
    pub series: Vec<Series>,
    /// Warnings for the user (partial data and the like).
    pub warnings: Vec<String>,
    /// Where the hints had a fragment: what was summed up already, of series that are not among `series`. All are of
    /// the same number of steps.
    pub partials: Vec<Partial>,
    /// The series of the partials, for the steps after theirs: samples that those can look at. Empty when the partials
    /// are of all steps.
    pub late: Vec<Series>,
}

impl Selection {
    /// Series that were selected, in whatever form they came.
    #[must_use]
    pub fn series_count(&self) -> u64 {
        self.series.len() as u64 + self.partials.iter().map(|partial| partial.series).sum::<u64>()
    }
}

/// One tenant's data at one moment.
pub trait Queryable: Send + Sync {
    /// All series that pass every matcher and may have samples in `range`.
    fn select<'a>(
        &'a self,
        range: TimeRange,
        matchers: &'a [Matcher],
        hints: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>>;
}

/// Shared as the engine holds it.
pub type SharedQueryable = Arc<dyn Queryable>;
