//! Groups that another place has gathered: how they leave here, and how they are put to those of this place.
//!
//! ```text
//! first steps      groups of the series here  +  partials
//! the later ones   groups of the series here  +  rows of the late series
//! ```

use engram_model::series::Series;

use crate::error::Error;
use crate::fragment::{Partial, PartialGroup};
use crate::parse::ast::AggregateOp;
use crate::plan::{Aggregate, Selector};
use crate::port::Selection;

use super::super::eval::{Evaluator, Parts};
use super::super::row::{Row, Steps};
use super::super::shards::only_selector;
use super::{Group, Groups};

/// Whether means are in the making.
fn counts(op: AggregateOp) -> bool {
    matches!(op, AggregateOp::Avg | AggregateOp::Stddev | AggregateOp::Stdvar)
}

impl Group {
    fn into_partial(self, op: AggregateOp) -> PartialGroup {
        let steps: Vec<usize> = self.seen.iter().collect();
        let pick = |numbers: &[f64]| steps.iter().map(|step| numbers[*step]).collect::<Vec<f64>>();
        let has_second = steps.iter().any(|step| self.second.get(*step).is_some_and(|lost| lost.to_bits() != 0));
        let moves = op == AggregateOp::Avg && !self.moving.is_empty();
        PartialGroup {
            labels: self.labels,
            drop_name: self.drop_name,
            values: pick(&self.value),
            second: if has_second { pick(&self.second) } else { Vec::new() },
            counts: if counts(op) { pick(&self.count) } else { Vec::new() },
            moving: if moves { steps.iter().map(|step| self.moving.has(*step)).collect() } else { Vec::new() },
            at: steps.into_iter().filter_map(|step| u32::try_from(step).ok()).collect(),
        }
    }

    /// Fills an empty group.
    fn fill(&mut self, op: AggregateOp, from: &PartialGroup) {
        self.drop_name = from.drop_name;
        for (i, (at, value)) in from.at.iter().zip(&from.values).enumerate() {
            let step = *at as usize;
            self.seen.set(step);
            self.floats.set(step);
            self.value[step] = *value;
            if let Some(second) = from.second.get(i) {
                self.second[step] = *second;
            }
            if counts(op) {
                self.count[step] = from.counts.get(i).copied().unwrap_or_default();
            }
            if from.moving.get(i).is_some_and(|moves| *moves) {
                self.moving.set(step);
            }
        }
    }
}

impl Groups<'_> {
    /// As they travel.
    pub(in super::super) fn into_partials(self) -> Vec<PartialGroup> {
        let op = self.aggregate.op;
        self.list.into_iter().map(|group| group.into_partial(op)).collect()
    }
}

impl Evaluator<'_> {
    /// Puts to the groups what came in other forms than series of all steps.
    pub(super) fn add_pushed(&self, aggregate: &Aggregate, groups: &mut Groups<'_>, steps: Steps) -> Result<(), Error> {
        let Some(selector) = only_selector(&aggregate.inner) else { return Ok(()) };
        let Some(selection) = self.selections.get(selector.select) else { return Ok(()) };
        let Some(pushed) = selection.partials.first().map(|partial| partial.steps) else { return Ok(()) };
        let fragment = self.plan.selects.get(selector.select).and_then(|select| select.hints.fragment.as_ref());
        let fits = |f: &crate::fragment::Fragment| {
            f.op == aggregate.op && (f.start, f.steps) == (steps.start, steps.count) && pushed <= f.steps
        };
        if !fragment.is_some_and(|f| fits(f)) || selection.partials.iter().any(|partial| partial.steps != pushed) {
            return Err(Error::Execution("partial sums came that were not asked for".to_owned()));
        }
        let first = Steps { count: pushed, ..steps };
        for partial in &selection.partials {
            self.add_partial(aggregate, groups, partial, first)?;
        }
        if pushed < steps.count && !selection.late.is_empty() {
            let later = Steps { start: steps.at(pushed), count: steps.count - pushed, ..steps };
            self.add_late(aggregate, groups, (selector, &selection.late), (later, pushed))?;
        }
        Ok(())
    }

    fn add_partial(
        &self,
        aggregate: &Aggregate,
        groups: &mut Groups<'_>,
        partial: &Partial,
        steps: Steps,
    ) -> Result<(), Error> {
        let mut notes = self.notes.borrow_mut();
        partial.remarks.iter().for_each(|remark| notes.add_remark(remark));
        drop(notes);
        self.look_at_windows(partial.samples);
        for from in &partial.groups {
            if !from.is_whole(aggregate.op, steps.count) {
                return Err(Error::Execution("a partial sum of another node is not whole".to_owned()));
            }
            let (at, is_new) = groups.of(&from.labels);
            if is_new {
                groups.held += groups.steps.count as u64;
                self.hold(groups.steps.count as u64)?;
            }
            self.tick(1 + from.at.len() as u64)?;
            let mut one = Groups::new(aggregate, steps);
            let (only, _) = one.of(&from.labels);
            one.list[only].fill(aggregate.op, from);
            if let Some(one) = one.list.pop() {
                groups.list[at].merge(aggregate.op, one);
            }
        }
        Ok(())
    }

    /// Adds the rows of series that are read in place of the selector's, for the steps from `later`'s first on.
    fn add_late(
        &self,
        aggregate: &Aggregate,
        groups: &mut Groups<'_>,
        (selector, late): (&Selector, &[Series]),
        (later, offset): (Steps, usize),
    ) -> Result<(), Error> {
        let mut selections = vec![Selection::default(); self.selections.len()];
        selections[selector.select].series = late.to_vec();
        let late = Evaluator::new(Parts { selections: &selections, ..self.parts });
        let mut wide = Row::default();
        late.stream(&aggregate.inner, later, &mut |row| {
            wide.labels = std::mem::take(&mut row.labels);
            wide.drop_name = row.drop_name;
            wide.column.reset(groups.steps.count);
            row.column.present.iter().for_each(|step| wide.column.put(step + offset, row.column.values[step]));
            wide.column.histograms.extend(row.column.histograms.drain(..).map(|(step, h)| (step + offset, h)));
            self.add_row(groups, &wide)
        })?;
        self.notes.borrow_mut().merge(late.notes.take());
        self.look_again(&late.tally.take());
        Ok(())
    }
}
