//! What is written more than once: the first place evaluates it, the others get the rows.
//!
//! Rows are kept only where they would be collected anyway or are few: `sum(rate(x[5m])) / count(rate(x[5m]))` over a
//! hundred thousand series streams both times, because to hold its rows would cost more than to make them again.

use hashbrown::HashMap;

use crate::error::Error;
use crate::functions::Notes;
use crate::plan::Shared;

use super::eval::{Evaluator, weight};
use super::row::{Row, Steps};
use super::shards::{batch_series, only_selector};
use super::tally::Tally;

/// Most samples of a streamable expression that are kept, and the part of the budget they may be.
const KEPT_SAMPLES_MAX: u64 = 4 << 20;
const KEPT_OF_BUDGET: u64 = 16;

/// Rows by the number of what they are the rows of, and the steps.
pub(super) type Kept = HashMap<(usize, Steps), KeptRows>;

pub(super) struct KeptRows {
    rows: Vec<Row>,
    counted: Tally,
    /// What was said: some remarks count how often they are made.
    said: Notes,
    /// Places that have yet to come.
    left: usize,
}

impl Evaluator<'_> {
    /// Whether the rows are to be kept for the other places.
    pub(super) fn is_kept(&self, shared: &Shared, steps: Steps) -> bool {
        // A thread of an aggregation sees only its own share.
        if self.shard.is_some() {
            return false;
        }
        let Some(selector) = only_selector(&shared.inner) else { return true };
        let series = self.selections[selector.select].series.len();
        if self.budget.parallelism > 1 && series > batch_series(steps) {
            return false;
        }
        let samples = (series as u64).saturating_mul(steps.count as u64);
        samples <= KEPT_SAMPLES_MAX.min(self.budget.samples_max / KEPT_OF_BUDGET)
    }

    /// The rows, counted as held once more for each place.
    pub(super) fn shared(&self, shared: &Shared, steps: Steps) -> Result<Vec<Row>, Error> {
        if !self.is_kept(shared, steps) {
            return self.rows(&shared.inner, steps);
        }
        let key = (shared.slot, steps);
        if let Some(kept) = self.kept.borrow_mut().get_mut(&key) {
            self.look_again(&kept.counted);
            self.notes.borrow_mut().merge(kept.said.clone());
            kept.left = kept.left.saturating_sub(1);
            if kept.left > 0 {
                self.hold(weight(&kept.rows))?;
                return Ok(kept.rows.clone());
            }
        }
        if let Some(last) = self.kept.borrow_mut().remove(&key) {
            return Ok(last.rows);
        }
        let above = self.notes.take();
        let made = self.framed(|| self.rows(&shared.inner, steps));
        let said = self.notes.replace(above);
        let (rows, counted) = made?;
        self.look_again(&counted);
        self.notes.borrow_mut().merge(said.clone());
        self.hold(weight(&rows))?;
        let kept = KeptRows { rows: rows.clone(), counted, said, left: shared.uses - 1 };
        self.kept.borrow_mut().insert(key, kept);
        Ok(rows)
    }
}
