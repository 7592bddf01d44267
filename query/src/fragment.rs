//! A piece of a plan that may run where its series lie: one aggregation over one selector.
//!
//! Why only this: it is what dashboards ask most, and its answer is small whatever it read. Every series is by itself up
//! to the aggregation, so series may be summed up in several places and the sums put together, as several threads do.
//!
//! ```text
//! engine     hints of a select: this is all it is for ──► whoever has the series
//!            groups, to go on with                   ◄── partials, and series for what it could not sum up
//! ```
//! A partial is of the first steps of the fragment, maybe of all. What it rounds it rounds in another order than one
//! thread would: sums, means and variances may differ in their last bits; sums of whole numbers below 2^53, counts and
//! extremes do not (of equal zeros, either sign may be kept).

use engram_model::{Labels, Matcher, Millis, TimeRange};

use crate::functions::{Function, Kernel, lookup};
use crate::parse::ast::{AggregateOp, Span};
use crate::plan::Selector;

/// Aggregations of which parts can be put together.
pub const OPS: [AggregateOp; 8] = [
    AggregateOp::Sum,
    AggregateOp::Avg,
    AggregateOp::Count,
    AggregateOp::Min,
    AggregateOp::Max,
    AggregateOp::Group,
    AggregateOp::Stddev,
    AggregateOp::Stdvar,
];

/// `sum by (a) (rate(x[5m]))`, with all that its value depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Fragment {
    /// One of [`OPS`].
    pub op: AggregateOp,
    /// Labels of `by` or `without`, sorted.
    pub grouping: Vec<String>,
    /// Whether it is `without`.
    pub without: bool,
    /// The function of a range of each series; none: an instant selector stands there.
    pub func: Option<&'static str>,
    /// Its scalar arguments, in order.
    pub params: Vec<f64>,
    /// Length of the range; 0 without a function.
    pub range_ms: i64,
    /// Which series.
    pub matchers: Vec<Matcher>,
    /// How far back the selector is shifted.
    pub offset_ms: i64,
    /// The moment it is fixed to.
    pub at: Option<Millis>,
    /// First evaluation time.
    pub start: Millis,
    /// Distance of evaluation times, at least 1.
    pub step_ms: i64,
    /// How many there are, at least 1.
    pub steps: usize,
    /// Bounds and switches.
    pub rules: Rules,
    /// Where the function's first argument stands in the query's text, for remarks.
    pub span: Span,
}

/// What of a query's budget holds for its fragments.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// How far back an instant selector looks.
    pub lookback_ms: i64,
    /// Most samples in memory at once.
    pub samples_max: u64,
    /// Most bytes in memory at once; 0: no limit.
    pub bytes_max: u64,
    /// Time left for the query when the fragment was made, in milliseconds.
    pub within_ms: u64,
    /// Keep the metric's name until the end of the query.
    pub delayed_name_removal: bool,
    /// Whether series carry `__type__`.
    pub type_and_unit_labels: bool,
}

impl Fragment {
    /// Its function, where it has one.
    #[must_use]
    pub fn function(&self) -> Option<&'static Function> {
        lookup(self.func?).filter(|function| matches!(function.kernel, Kernel::Range(_)))
    }

    /// Time of the data of a step.
    #[must_use]
    pub fn data_time(&self, step: usize) -> Millis {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let at = self.start.saturating_add(step.saturating_mul(self.step_ms));
        self.at.unwrap_or(at).saturating_sub(self.offset_ms)
    }

    /// How far back of [`Fragment::data_time`] samples count: those exactly so old do not.
    #[must_use]
    pub fn reach_ms(&self) -> i64 {
        if self.func.is_some() { self.range_ms } else { self.rules.lookback_ms }
    }

    /// Samples that the steps from `step` on can look at.
    #[must_use]
    pub fn range_from(&self, step: usize) -> TimeRange {
        let back = self.reach_ms().saturating_sub(1);
        TimeRange::closed(self.data_time(step).saturating_sub(back), self.data_time(self.steps.saturating_sub(1)))
    }

    /// How many steps look at nothing at or after `time`: the first ones.
    #[must_use]
    pub fn steps_before(&self, time: Millis) -> usize {
        let last = self.steps.saturating_sub(1);
        if self.data_time(last) < time {
            return self.steps;
        }
        if self.at.is_some() || self.data_time(0) >= time {
            return 0;
        }
        // The first one before `time`, the last one not.
        let span = time.saturating_sub(self.data_time(0)).saturating_sub(1);
        usize::try_from(span / self.step_ms.max(1) + 1).unwrap_or(last).min(last)
    }

    /// The same of the first `steps` only.
    #[must_use]
    pub fn first(&self, steps: usize) -> Self {
        Self { steps, ..self.clone() }
    }

    /// Whether it is one an engine makes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let is_sorted = self.grouping.windows(2).all(|two| two[0] <= two[1]);
        let times = self.step_ms > 0 && self.steps > 0 && self.range_ms >= 0 && self.rules.lookback_ms > 0;
        let faults = [
            (!OPS.contains(&self.op), "its aggregation is not put together of parts"),
            (!is_sorted, "the labels of its groups are not sorted"),
            (!times, "its times make no sense"),
            (self.func.is_some() != self.function().is_some(), "its function is unknown"),
            (self.func.is_some() == (self.range_ms == 0), "its range does not fit its function"),
        ];
        match faults.into_iter().find(|(is_so, _)| *is_so) {
            Some((_, what)) => Err(what.to_owned()),
            None => Ok(()),
        }
    }

    /// The selector, as the first of a plan.
    pub(crate) fn selector(&self) -> Selector {
        Selector {
            select: 0,
            matchers: self.matchers.clone(),
            offset_ms: self.offset_ms,
            at: self.at,
            extension: crate::parse::ast::Extension::None,
            statistics_only: false,
            span: self.span,
        }
    }
}

/// What one place has summed up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    /// How many steps it is of, from the fragment's first on.
    pub steps: usize,
    /// Series that went in.
    pub series: u64,
    /// Samples that were looked at.
    pub samples: u64,
    /// The groups, none twice.
    pub groups: Vec<PartialGroup>,
    /// What is to be said about the data.
    pub remarks: Vec<Remark>,
}

/// A group in the making.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartialGroup {
    /// Labels of the group.
    pub labels: Labels,
    /// The metric's name is to go when the query ends.
    pub drop_name: bool,
    /// Steps any sample came for, growing.
    pub at: Vec<u32>,
    /// For each of them the answer in the making.
    pub values: Vec<f64>,
    /// What rounding lost, of variances the mean; empty: nothing anywhere.
    pub second: Vec<f64>,
    /// How many samples came; empty where nobody asks.
    pub counts: Vec<f64>,
    /// Whether the mean moves, because the sum would overflow; empty: nowhere.
    pub moving: Vec<bool>,
}

impl PartialGroup {
    /// Whether its columns fit each other and `steps`.
    #[must_use]
    pub fn is_whole(&self, op: AggregateOp, steps: usize) -> bool {
        let (count, last) = (self.at.len(), self.at.last().map_or(0, |at| *at as usize));
        let has_counts = matches!(op, AggregateOp::Avg | AggregateOp::Stddev | AggregateOp::Stdvar);
        let has_second = has_counts || op == AggregateOp::Sum;
        self.values.len() == count
            && last < steps
            && self.at.windows(2).all(|two| two[0] < two[1])
            && (self.second.is_empty() || (has_second && self.second.len() == count))
            && self.counts.len() == if has_counts { count } else { 0 }
            && (self.moving.is_empty() || (op == AggregateOp::Avg && self.moving.len() == count))
    }
}

/// A remark of [`crate::functions::Notes`] on its way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Remark {
    /// Without its place.
    pub text: String,
    /// Whether it is only an info.
    pub info: bool,
    /// Its place.
    pub span: Span,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment(start: Millis, step_ms: i64, steps: usize) -> Fragment {
        Fragment {
            op: AggregateOp::Sum,
            grouping: Vec::new(),
            without: false,
            func: Some("rate"),
            params: Vec::new(),
            range_ms: 300,
            matchers: Vec::new(),
            offset_ms: 7,
            at: None,
            start,
            step_ms,
            steps,
            rules: Rules {
                lookback_ms: 5,
                samples_max: 1,
                bytes_max: 0,
                within_ms: 1,
                delayed_name_removal: false,
                type_and_unit_labels: false,
            },
            span: Span::default(),
        }
    }

    proptest! {
        #[test]
        fn steps_before_a_time_are_counted(
            start in -500_i64..500, step_ms in 1_i64..90, steps in 1_usize..40, time in -900_i64..4000, fixed: bool,
        ) {
            let fragment = Fragment { at: fixed.then_some(70), ..fragment(start, step_ms, steps) };
            let want = (0..steps).take_while(|step| fragment.data_time(*step) < time).count();
            prop_assert_eq!(fragment.steps_before(time), want);
            for step in 0..steps {
                let range = fragment.range_from(step);
                prop_assert_eq!(range.start, fragment.data_time(step) - 299);
                prop_assert_eq!(range.end, fragment.data_time(steps - 1) + 1);
            }
        }
    }

    #[test]
    fn what_no_engine_makes_is_refused() {
        let good = fragment(0, 1, 1);
        assert_eq!(good.check(), Ok(()));
        for bad in [
            Fragment { op: AggregateOp::TopK, ..good.clone() },
            Fragment { grouping: vec!["b".into(), "a".into()], ..good.clone() },
            Fragment { steps: 0, ..good.clone() },
            Fragment { step_ms: 0, ..good.clone() },
            Fragment { func: Some("abs"), ..good.clone() },
            Fragment { func: None, ..good.clone() },
            Fragment { range_ms: 0, ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
