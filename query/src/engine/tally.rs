//! Samples looked at and samples read, counted as Prometheus counts them.
//!
//! Why so exactly: people compare `stats=all` of two servers, and size limits by it. *Looked at* counts a sample once
//! for each step whose value it is part of; *read* counts it once for each selector, at the step that is the first to
//! need it. Three things are counted by themselves and then put to the whole by rules of their own:
//!
//! ```text
//! what is fixed by `@`      looked at: again at every step     read: once, at the first step
//! an inner of a subquery    looked at: not; its answers are    read: at the step of the query that needs it first,
//!                           (of the whole answer, at the end)        not at all where no window has it
//! what is written twice     looked at and read again
//! ```
//!
//! Without [`Budget::count_steps`](super::Budget) only what is looked at is counted, in all: one addition a series.
//!
//! Source: `prometheus util/stats/query_stats.go`, `promql/engine.go`, Prometheus 3.14.

use std::cell::RefMut;
use std::sync::Arc;

use engram_model::Millis;
use engram_model::histogram::Histogram;

use crate::error::Error;
use crate::functions::Window;
use crate::plan::Subquery;

use super::eval::Evaluator;
use super::row::{Column, Steps, histogram_weight};

/// Counts by step.
#[derive(Clone, Debug, Default)]
struct ByStep {
    looked_at: Vec<u64>,
    read: Vec<u64>,
}

/// What was counted since the last frame was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Samples looked at.
    pub(super) looked_at: u64,
    /// Samples read; 0 where steps are not counted.
    pub(super) read: u64,
    by_step: Option<Box<ByStep>>,
}

fn add(to: &mut Vec<u64>, step: usize, samples: u64) {
    if to.len() <= step {
        to.resize(step + 1, 0);
    }
    to[step] += samples;
}

impl Tally {
    /// Nothing yet; by step, too, where that is asked for.
    pub(super) fn new(counts_steps: bool) -> Self {
        Self { by_step: counts_steps.then(Box::default), ..Self::default() }
    }

    /// Counts at one step.
    fn at(&mut self, step: usize, looked_at: u64, read: u64) {
        self.looked_at += looked_at;
        self.at_step(step, looked_at, read);
    }

    /// As [`Self::at`], for samples that are in the sum already.
    fn at_step(&mut self, step: usize, looked_at: u64, read: u64) {
        let Some(by_step) = &mut self.by_step else { return };
        self.read += read;
        add(&mut by_step.looked_at, step, looked_at);
        add(&mut by_step.read, step, read);
    }

    /// Takes over what was counted over the same steps.
    pub(super) fn merge(&mut self, other: &Self) {
        self.looked_at += other.looked_at;
        self.read += other.read;
        let (Some(mine), Some(theirs)) = (&mut self.by_step, &other.by_step) else { return };
        theirs.looked_at.iter().enumerate().for_each(|(step, samples)| add(&mut mine.looked_at, step, *samples));
        theirs.read.iter().enumerate().for_each(|(step, samples)| add(&mut mine.read, step, *samples));
    }

    /// Takes over what was counted at one step and holds for all.
    fn merge_once(&mut self, once: &Self, steps: Steps) {
        self.looked_at += once.looked_at.saturating_mul(steps.count as u64);
        let Some(by_step) = &mut self.by_step else { return };
        self.read += once.read;
        (0..steps.count).for_each(|step| add(&mut by_step.looked_at, step, once.looked_at));
        add(&mut by_step.read, 0, once.read);
    }

    /// Takes over what a subquery's inner has read: each part at the first step whose window can have it.
    fn merge_reads(&mut self, inner: &Self, subquery: &Subquery, inner_steps: Steps, steps: Steps) {
        let (Some(mine), Some(theirs)) = (&mut self.by_step, &inner.by_step) else { return };
        if steps.count <= 1 {
            self.read += inner.read;
            add(&mut mine.read, 0, inner.read);
            return;
        }
        for (at, read) in theirs.read.iter().enumerate().filter(|(_, read)| **read > 0) {
            let time = inner_steps.at(at).saturating_add(subquery.offset_ms);
            let after = time.saturating_sub(steps.start).max(0);
            let step = usize::try_from(after / steps.step_ms + i64::from(after % steps.step_ms != 0));
            let step = step.unwrap_or(usize::MAX).min(steps.count - 1);
            if time <= steps.at(step).saturating_sub(subquery.range_ms) {
                continue;
            }
            self.read += read;
            add(&mut mine.read, step, *read);
        }
    }

    /// Looked at and read by step, for `count` steps; none where steps are not counted.
    pub(super) fn into_steps(self, count: usize) -> Option<(Vec<u64>, Vec<u64>)> {
        let mut by_step = self.by_step?;
        by_step.looked_at.resize(count, 0);
        by_step.read.resize(count, 0);
        Some((by_step.looked_at, by_step.read))
    }
}

/// Times of floats; times of histograms, and these.
type Samples<'a> = (&'a [Millis], &'a [Millis], &'a [Arc<Histogram>]);

/// How windows of a range argument are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// From storage, each step what the one before has not read.
    Moving,
    /// From storage, once: `@` keeps the window where it is.
    Fixed,
    /// Nothing: the inner of the subquery has read.
    Inner,
}

impl Evaluator<'_> {
    fn counts_steps(&self) -> bool {
        self.budget.count_steps
    }

    fn tally(&self) -> RefMut<'_, Tally> {
        self.tally.borrow_mut()
    }

    fn looked_at(&self, samples: u64) {
        if let Some(profile) = self.profile {
            profile.looked_at(self.at.get(), samples);
        }
    }

    /// Counts what a selector has put into a column, which weighs `weight`.
    pub(super) fn look_at_column(&self, column: &Column, weight: u64) {
        self.looked_at(weight);
        let mut tally = self.tally();
        tally.looked_at += weight;
        if self.counts_steps() {
            column.present.iter().for_each(|step| tally.at_step(step, 1, 1));
            for (step, histogram) in &column.histograms {
                let weight = histogram_weight(histogram);
                tally.at_step(*step, weight, weight);
            }
        }
    }

    /// Counts samples that the only step has read.
    pub(super) fn look_at_once(&self, samples: u64) {
        self.looked_at(samples);
        self.tally().at(0, samples, samples);
    }

    /// Counts samples of windows, in all.
    pub(super) fn look_at_windows(&self, samples: u64) {
        self.looked_at(samples);
        self.tally().looked_at += samples;
    }

    /// Says of a window whose samples are in the sum already at which step it was. `newest` is the last time it can
    /// have.
    pub(super) fn look_at_window(
        &self,
        step: usize,
        (times, histogram_times, histograms): Samples<'_>,
        newest: Millis,
        reading: Reading,
        steps: Steps,
    ) {
        if !self.counts_steps() {
            return;
        }
        let weight_of = |histograms: &[Arc<Histogram>]| histograms.iter().map(|h| histogram_weight(h)).sum::<u64>();
        let weight = times.len() as u64 + weight_of(histograms);
        let read = match reading {
            Reading::Inner => 0,
            _ if step == 0 => weight,
            Reading::Fixed => 0,
            Reading::Moving => {
                let after = newest.saturating_sub(steps.step_ms);
                let floats = times.len() - times.partition_point(|at| *at <= after);
                floats as u64 + weight_of(&histograms[histogram_times.partition_point(|at| *at <= after)..])
            }
        };
        self.tally().at_step(step, weight, read);
    }

    /// Runs `f` and gives what it has counted, which is in no sum yet.
    pub(super) fn framed<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<(T, Tally), Error> {
        let above = self.tally.replace(Tally::new(self.counts_steps()));
        let done = f();
        let counted = self.tally.replace(above);
        done.map(|value| (value, counted))
    }

    /// Counts once more what was counted over the same steps.
    pub(super) fn look_again(&self, counted: &Tally) {
        self.tally().merge(counted);
    }

    /// Counts what was counted at one step and holds for all.
    pub(super) fn look_at_all_steps(&self, once: &Tally, steps: Steps) {
        self.tally().merge_once(once, steps);
    }

    /// Counts what a subquery that is the whole answer has counted: all of it at the only step.
    pub(super) fn look_at_answer(&self, inner: &Tally) {
        self.tally().at(0, inner.looked_at, inner.read);
    }

    /// Counts what the inner of a subquery has read.
    pub(super) fn read_inner(&self, inner: &Tally, subquery: &Subquery, inner_steps: Steps, steps: Steps) {
        self.tally().merge_reads(inner, subquery, inner_steps, steps);
    }
}

/// What a window weighs in samples.
pub(super) fn window_weight(window: &Window<'_>) -> u64 {
    window.times.len() as u64 + window.histograms.iter().map(|h| histogram_weight(h)).sum::<u64>()
}
