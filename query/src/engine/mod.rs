//! From a tree to values: clock, deadline and budget are handed in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engram_model::Millis;

use crate::parse::ast::Expr;
use crate::value::{Annotations, Stats, Value};

/// What to evaluate, and over which times.
#[derive(Clone, Debug)]
pub struct Request {
    /// The checked tree.
    pub expr: Expr,
    /// First evaluation time.
    pub start: Millis,
    /// Last evaluation time, inside; equal to `start` for an instant query.
    pub end: Millis,
    /// Distance of evaluation times; 0 for an instant query.
    pub step_ms: i64,
    /// What this query may take.
    pub budget: Budget,
}

/// Bounds and switches of one query.
#[derive(Clone, Debug)]
pub struct Budget {
    /// How far back an instant selector looks for a sample.
    pub lookback_ms: i64,
    /// Most samples in memory at once.
    pub samples_max: u64,
    /// Most series one query may touch; 0: no limit.
    pub series_max: u64,
    /// Wall time after which it is stopped.
    pub timeout: Duration,
    /// Step of subqueries that name none.
    pub subquery_step_ms: i64,
    /// Keep the metric's name until the end of the query (delayed name removal).
    pub delayed_name_removal: bool,
    /// Whether `rate` and friends look at start timestamps, and `start_timestamp()` works.
    pub use_start_timestamps: bool,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            lookback_ms: 5 * 60 * 1000,
            samples_max: 50_000_000,
            series_max: 0,
            timeout: Duration::from_secs(120),
            subquery_step_ms: 60 * 1000,
            delayed_name_removal: false,
            use_start_timestamps: false,
        }
    }
}

/// Stops a query from outside; cheap to clone, checked every few thousand samples.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops the query.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An answer with what there is to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The answer.
    pub value: Value,
    /// Warnings and infos.
    pub annotations: Annotations,
    /// What it cost.
    pub stats: Stats,
}
