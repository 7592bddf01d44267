//! Functions over ranges: a window moves over the columns of one series, a kernel makes each position a value.
//!
//! Both ends of the window only move forward, so finding it costs nothing per step; the kernel sees slices. A subquery
//! is evaluated first and its rows become such columns.

use std::borrow::Cow;
use std::sync::Arc;

use engram_model::histogram::ResetHint;
use engram_model::series::Columns;
use engram_model::{Labels, Millis};

use crate::error::Error;
use crate::functions::slide::{Place, Scratch, Slide};
use crate::functions::{Function, Note, RangeKernel, Window, is_counter_name};
use crate::parse::ast::{Extension, Span};
use crate::plan::{Call, Node, Subquery};
use crate::value::RangeSeries;

use super::eval::{Evaluator, Sink, weight};
use super::pace::Pace;
use super::row::{Bits, Column, Row, Steps};
use super::select::drop_stale;
use super::tally::{Reading, window_weight};

/// Most windows worked off between two looks whether to stop.
const WINDOWS_AT_ONCE: usize = 1 << 16;
/// And of their samples, where each is added for each window it is in.
const SAMPLES_AT_ONCE: usize = 1 << 22;

/// Position of a window in the columns of a series.
#[derive(Default)]
pub(super) struct Cursor {
    floats: (usize, usize),
    histograms: (usize, usize),
}

impl Cursor {
    /// Moves to the samples of `(start, end]`; neither may go back.
    #[inline]
    pub(super) fn move_to(&mut self, columns: &Columns, start: Millis, end: Millis) {
        advance(&columns.times, &mut self.floats, start, end);
        if !columns.histogram_times.is_empty() {
            advance(&columns.histogram_times, &mut self.histograms, start, end);
        }
    }

    /// The window here; `range` is what the query asked for, without what an extension adds.
    #[inline]
    pub(super) fn window<'c>(
        &self,
        columns: &'c Columns,
        range: (Millis, Millis),
        at: Millis,
        extension: Extension,
    ) -> Window<'c> {
        let floats = self.floats.0..self.floats.1;
        let histograms = self.histograms.0..self.histograms.1;
        Window {
            times: &columns.times[floats.clone()],
            values: &columns.values[floats.clone()],
            starts: columns.starts.get(floats).unwrap_or_default(),
            histogram_times: &columns.histogram_times[histograms.clone()],
            histograms: &columns.histograms[histograms.clone()],
            histogram_starts: columns.histogram_starts.get(histograms).unwrap_or_default(),
            range_start: range.0,
            range_end: range.1,
            at,
            extension,
        }
    }
}

#[inline]
fn advance(times: &[Millis], window: &mut (usize, usize), start: Millis, end: Millis) {
    while window.1 < times.len() && times[window.1] <= end {
        window.1 += 1;
    }
    while window.0 < window.1 && times[window.0] <= start {
        window.0 += 1;
    }
}

/// The steps whose windows, the first of which ends at `begin`, reach a sample; none when there is no sample. A series
/// that lived for an hour costs the steps of that hour and not those of the week asked for.
fn steps_reached(times: &[Millis], begin: Millis, each: i64, range_ms: i64, count: usize) -> std::ops::Range<usize> {
    let (Some(oldest), Some(newest)) = (times.first(), times.last()) else { return 0..0 };
    if each <= 0 {
        return 0..count;
    }
    let [begin, each] = [begin, each].map(i128::from);
    let step = |n: i128| usize::try_from(n.max(0)).unwrap_or(usize::MAX).min(count);
    // The end of a window lies in it, its start does not.
    let first = (i128::from(*oldest) - begin + each - 1).div_euclid(each);
    let last = (i128::from(*newest) + i128::from(range_ms) - 1 - begin).div_euclid(each);
    let first = step(first);
    first..step(last + 1).max(first)
}

/// The first place at or after `from` whose time is above `time`. Most scrapes come on time: `stride`, how far the last
/// search went, is tried first.
#[inline]
fn first_after(times: &[Millis], from: usize, time: Millis, stride: &mut usize) -> usize {
    let guess = from + *stride;
    if guess > from
        && times.get(guess - 1).is_some_and(|at| *at <= time)
        && times.get(guess).is_some_and(|at| *at > time)
    {
        return guess;
    }
    let found = from + times[from..].iter().take_while(|at| **at <= time).count();
    *stride = found - from;
    found
}

/// The range argument of a function, seen alike for selectors and subqueries.
struct Ranged<'a> {
    node: &'a Node,
    range_ms: i64,
    extension: Extension,
}

impl Ranged<'_> {
    fn data_time(&self, at: Millis) -> Millis {
        match self.node {
            Node::Range(range) => range.of.data_time(at),
            Node::Subquery(subquery) => subquery.data_time(at),
            _ => at,
        }
    }

    fn reading(&self) -> Reading {
        match self.node {
            Node::Subquery(_) => Reading::Inner,
            Node::Range(range) if range.of.at.is_some() => Reading::Fixed,
            _ => Reading::Moving,
        }
    }
}

/// How one function is applied to each series.
struct Applied<'a> {
    kernel: RangeKernel,
    function: &'a Function,
    ranged: Ranged<'a>,
    /// Scalar arguments over all steps.
    params: Vec<Column>,
    /// Where the first argument stands.
    span: Span,
    steps: Steps,
    /// A way over all windows at once, where the function has one.
    slide: Option<Slide>,
}

/// Windows to be found.
struct Windows {
    /// Of these steps.
    of: std::ops::Range<usize>,
    /// The end of the first one.
    end: Millis,
    /// From one end to the next.
    each: i64,
    /// Where they have so many samples together, no more are looked for.
    samples_max: usize,
}

/// Memory used from series to series.
#[derive(Default)]
struct Reused {
    params: Vec<f64>,
    scratch: Scratch,
}

impl Evaluator<'_> {
    /// The rows of `rate(x[5m])` and all others of its kind.
    pub(super) fn stream_range_function(
        &self,
        call: &Call,
        function: &Function,
        kernel: RangeKernel,
        steps: Steps,
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let Some(ranged) = ranged(call) else {
            return Err(Error::Execution(format!("{} needs a range vector", call.func)));
        };
        check_extension(function, ranged.extension)?;
        let params = call.args.iter().filter(|arg| !is_range(arg)).map(|arg| self.scalar(arg, steps));
        let params = params.collect::<Result<Vec<_>, _>>()?;
        let span = match call.args.first() {
            // Upstream has put the subquery's answer in its place by then, which stands nowhere: remarks name 1:1.
            Some(Node::Subquery(_)) => Span::default(),
            first => first.map_or(call.span, Node::span),
        };
        // Before an aggregation is shared out, its rows were found to stay different.
        let is_unique = !function.drops_name || self.shard.is_some() || self.names_stay_unique(ranged.node)?;
        let slide = Slide::of(function.name).filter(|_| ranged.extension == Extension::None);
        let applied = Applied { kernel, function, ranged, params, span, steps, slide };
        if is_unique {
            return self.apply(&applied, sink);
        }
        let mut rows = Vec::new();
        self.apply(&applied, &mut |row| {
            self.hold(row.column.weight())?;
            rows.push(std::mem::take(row));
            Ok(())
        })?;
        self.distinct(&rows)?;
        self.release(weight(&rows));
        rows.iter_mut().try_for_each(sink)
    }

    fn apply(&self, applied: &Applied<'_>, sink: Sink<'_>) -> Result<(), Error> {
        let mut row = Row::default();
        let mut reused = Reused::default();
        self.each_ranged(&applied.ranged, applied.steps, &mut |labels, drop_name, columns| {
            self.apply_to_series(applied, labels, columns, &mut reused, &mut row.column)?;
            self.check_failure()?;
            if row.column.is_empty() {
                return Ok(());
            }
            self.check_counter(applied, labels, &row.column);
            row.drop_name = applied.function.drops_name || drop_name;
            row.labels = if row.drop_name { self.without_name(labels) } else { labels.clone() };
            sink(&mut row)
        })
    }

    /// Moves the window over one series.
    fn apply_to_series(
        &self,
        applied: &Applied<'_>,
        labels: &Labels,
        columns: &mut Columns,
        reused: &mut Reused,
        out: &mut Column,
    ) -> Result<(), Error> {
        let steps = applied.steps;
        out.reset(steps.count);
        if !(self.budget.use_start_timestamps && applied.function.reads_starts) {
            columns.starts.clear();
            columns.histogram_starts.clear();
        }
        if let Some(slide) = applied.slide
            && columns.histogram_times.is_empty()
            && columns.starts.is_empty()
            && self.slide_over(slide, applied, columns, &mut reused.scratch, out)?
        {
            return Ok(());
        }
        let params = &mut reused.params;
        let mut notes = self.notes.borrow_mut();
        notes.enter(labels.metric_name(), applied.span);
        self.each_window(&applied.ranged, columns, steps, |step, window| {
            params.clear();
            params.extend(applied.params.iter().map(|column| column.values[step]));
            if let Some(point) = (applied.kernel)(window, params, &mut notes) {
                out.put_point(step, point);
            }
        })
    }

    /// Computes all windows at once, a bounded number of them at a time. False: their times are too far out to be
    /// counted on.
    fn slide_over(
        &self,
        slide: Slide,
        applied: &Applied<'_>,
        columns: &Columns,
        scratch: &mut Scratch,
        out: &mut Column,
    ) -> Result<bool, Error> {
        let Applied { ranged, steps, .. } = applied;
        let (times, steps) = (columns.times.as_slice(), *steps);
        let begin = ranged.data_time(steps.start);
        let each = if steps.count > 1 { ranged.data_time(steps.at(1)).saturating_sub(begin) } else { 0 };
        let last = i64::try_from(steps.count - 1).ok().and_then(|n| n.checked_mul(each)?.checked_add(begin));
        if last != Some(ranged.data_time(steps.last())) || begin.checked_sub(ranged.range_ms).is_none() {
            return Ok(false);
        }
        let reached = steps_reached(times, begin, each, ranged.range_ms, steps.count);
        let samples_max = if slide.adds_each() { SAMPLES_AT_ONCE } else { usize::MAX };
        let mut from = reached.start;
        while from < reached.end {
            let Ok(end) = i64::try_from(from).map(|n| begin + n * each) else { return Ok(false) };
            let run = Windows { of: from..reached.end.min(from + WINDOWS_AT_ONCE), end, each, samples_max };
            self.place_windows(ranged, times, run, steps, scratch)?;
            slide.run(times, &columns.values, scratch, |step, value| out.put(from + step, value));
            from += scratch.places.len();
        }
        Ok(true)
    }

    /// Finds windows.
    fn place_windows(
        &self,
        ranged: &Ranged<'_>,
        times: &[Millis],
        windows: Windows,
        steps: Steps,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Windows { of, mut end, each, samples_max } = windows;
        let places = &mut scratch.places;
        places.clear();
        // The first window may lie far from the first sample: a chunk is read whole.
        let first = times.partition_point(|at| *at <= end - ranged.range_ms);
        let (mut window, mut looked_at) = ((first, first), 0);
        let mut strides = (0, 0);
        for step in of {
            let start = end - ranged.range_ms;
            window.1 = first_after(times, window.1, end, &mut strides.1);
            window.0 = first_after(times, window.0, start, &mut strides.0).min(window.1);
            looked_at += window.1 - window.0;
            if self.budget.count_steps {
                self.look_at_window(step, (&times[window.0..window.1], &[], &[]), end, ranged.reading(), steps);
            }
            places.push(Place { from: window.0, to: window.1, start, end });
            end = end.wrapping_add(each);
            if looked_at >= samples_max {
                break;
            }
        }
        self.look_at_windows(looked_at as u64);
        self.tick((looked_at / 8 + places.len()) as u64)
    }

    /// Calls `f` for each step whose window has samples.
    fn each_window(
        &self,
        ranged: &Ranged<'_>,
        columns: &Columns,
        steps: Steps,
        mut f: impl FnMut(usize, &Window<'_>),
    ) -> Result<(), Error> {
        let lookback = self.budget.lookback_ms;
        let (before, after) = match ranged.extension {
            Extension::None => (0, 0),
            Extension::Anchored => (lookback, 0),
            Extension::Smoothed => (lookback, lookback),
        };
        let mut cursor = Cursor::default();
        let mut looked_at = 0;
        for step in 0..steps.count {
            let at = steps.at(step);
            let end = ranged.data_time(at);
            let start = end.saturating_sub(ranged.range_ms);
            cursor.move_to(columns, start.saturating_sub(before), end.saturating_add(after));
            let window = cursor.window(columns, (start, end), at, ranged.extension);
            let samples = window.times.len() + window.histogram_times.len();
            if samples > 0 {
                looked_at += window_weight(&window);
                let read = (window.times, window.histogram_times, window.histograms);
                let newest = end.saturating_add(after);
                self.look_at_window(step, read, newest, ranged.reading(), steps);
                f(step, &window);
            }
            self.tick((window.times.len() / 4 + window.histograms.len() + 1) as u64)?;
        }
        self.look_at_windows(looked_at);
        Ok(())
    }

    /// The series of a range argument, staleness markers taken out; the flag: its name is to go already.
    fn each_ranged(
        &self,
        ranged: &Ranged<'_>,
        steps: Steps,
        f: &mut dyn FnMut(&Labels, bool, &mut Columns) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match ranged.node {
            Node::Range(range) => self.each_series(&range.of, &mut |labels, columns| {
                drop_stale(columns);
                f(labels, false, columns)
            }),
            Node::Subquery(subquery) => {
                let inner = inner_steps(subquery, steps);
                let (rows, counted) = self.framed(|| self.rows(&subquery.inner, inner))?;
                self.read_inner(&counted, subquery, inner, steps);
                let held = weight(&rows);
                let mut columns = Columns::default();
                for row in &rows {
                    self.to_columns(row, inner, &mut columns)?;
                    f(&row.labels, row.drop_name, &mut columns)?;
                }
                self.release(held);
                Ok(())
            }
            _ => Err(Error::Execution("a range vector is needed".to_owned())),
        }
    }

    /// A row as the samples of a series.
    fn to_columns(&self, row: &Row, steps: Steps, out: &mut Columns) -> Result<(), Error> {
        out.clear();
        self.pace.each(row.column.present.iter(), |step| {
            out.times.push(steps.at(step));
            out.values.push(row.column.values[step]);
        })?;
        self.pace.each(&mut row.column.histograms.iter(), |(step, histogram)| {
            out.histogram_times.push(steps.at(*step));
            let told = matches!(histogram.reset_hint, ResetHint::Reset | ResetHint::NoReset);
            // What a hint says holds between stored samples; between those a subquery happens to meet it need not.
            let histogram = if told { Cow::Owned(unhinted(histogram)) } else { Cow::Borrowed(histogram) };
            out.histograms.push(histogram.into_owned());
        })
    }

    /// Says so when a counter's function met a metric that does not look like one.
    fn check_counter(&self, applied: &Applied<'_>, labels: &Labels, column: &Column) {
        let name = labels.metric_name();
        if !applied.function.wants_counter || name.is_empty() || column.present.is_empty() {
            return;
        }
        if self.budget.type_and_unit_labels {
            let kind = labels.get("__type__").unwrap_or_default();
            if !matches!(kind, "counter" | "histogram") {
                self.note(&Note::PossibleNonCounterLabel(kind.to_owned()), name, applied.span);
            }
        } else if !is_counter_name(name) {
            self.note(&Note::PossibleNonCounter, name, applied.span);
        }
    }

    /// The steps at which any series of a range argument has a sample.
    pub(super) fn steps_with_samples(&self, call: &Call, steps: Steps) -> Result<Bits, Error> {
        let mut bits = Bits::new(steps.count);
        let Some(ranged) = ranged(call) else { return Ok(bits) };
        if let Some(function) = crate::functions::lookup(call.func) {
            check_extension(function, ranged.extension)?;
        }
        self.each_ranged(&ranged, steps, &mut |_, _, columns| {
            self.each_window(&ranged, columns, steps, |step, _| bits.set(step))
        })?;
        Ok(bits)
    }

    /// A subquery as the answer of a query.
    pub(super) fn subquery_result(&self, subquery: &Subquery, at: Millis) -> Result<(Vec<Row>, Steps), Error> {
        let steps = inner_steps(subquery, Steps::new(at, at, 1));
        let (rows, counted) = self.framed(|| self.rows(&subquery.inner, steps))?;
        self.look_at_answer(&counted);
        Ok((rows, steps))
    }
}

fn is_range(node: &Node) -> bool {
    matches!(node, Node::Range(_) | Node::Subquery(_))
}

/// The range argument of a call.
fn ranged(call: &Call) -> Option<Ranged<'_>> {
    call.args.iter().find_map(|node| match node {
        Node::Range(range) => Some(Ranged { node, range_ms: range.range_ms, extension: range.of.extension }),
        Node::Subquery(s) => Some(Ranged { node, range_ms: s.range_ms, extension: Extension::None }),
        _ => None,
    })
}

/// Whether a function can do with what an extension adds to its windows.
fn check_extension(function: &Function, extension: Extension) -> Result<(), Error> {
    let (word, allowed): (_, fn(&Function) -> bool) = match extension {
        Extension::None => return Ok(()),
        Extension::Anchored => ("anchored", |f| f.anchored),
        Extension::Smoothed => ("smoothed", |f| f.smoothed),
    };
    if allowed(function) {
        return Ok(());
    }
    let mut names = crate::functions::FUNCTIONS.iter().filter(|f| allowed(f)).map(|f| f.name).collect::<Vec<_>>();
    names.sort_unstable();
    Err(Error::Execution(format!(
        "{word} modifier can only be used with: {} - not with {}",
        names.join(", "),
        function.name
    )))
}

/// The evaluation times of a subquery: multiples of its step, whatever the query's own times are.
pub(super) fn inner_steps(subquery: &Subquery, outer: Steps) -> Steps {
    let end = subquery.data_time(outer.last());
    let open = subquery.data_time(outer.start).saturating_sub(subquery.range_ms);
    let mut start = open / subquery.step_ms * subquery.step_ms;
    if start <= open {
        start = start.saturating_add(subquery.step_ms);
    }
    Steps::new(start, end, subquery.step_ms)
}

fn unhinted(histogram: &engram_model::histogram::Histogram) -> Arc<engram_model::histogram::Histogram> {
    Arc::new(engram_model::histogram::Histogram { reset_hint: ResetHint::Unknown, ..histogram.clone() })
}

/// Rows as series of an answer.
pub(super) fn to_series(rows: Vec<Row>, steps: Steps, pace: &Pace<'_>) -> Result<Vec<RangeSeries>, Error> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        let mut floats = Vec::with_capacity(row.column.present.count());
        pace.each(row.column.present.iter(), |step| floats.push((steps.at(step), row.column.values[step])))?;
        let histograms = row.column.histograms.into_iter().map(|(step, h)| (steps.at(step), h)).collect();
        out.push(RangeSeries { floats, histograms, labels: row.labels });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_step_that_has_samples_is_left_out(
            times in proptest::collection::btree_set(-500_i64..500, 0..6),
            begin in -600_i64..600,
            each in 0_i64..70,
            range_ms in 1_i64..90,
            count in 1_usize..40,
        ) {
            let times: Vec<i64> = times.into_iter().collect();
            let reached = steps_reached(&times, begin, each, range_ms, count);
            prop_assert!(reached.start <= reached.end && reached.end <= count);
            for step in 0..count {
                let end = begin + step as i64 * each;
                let has = times.iter().any(|at| *at > end - range_ms && *at <= end);
                prop_assert!(!has || reached.contains(&step), "step {step} is not in {reached:?}");
            }
            let (Some(oldest), Some(newest)) = (times.first(), times.last()) else { return Ok(()) };
            if each > 0 && !reached.is_empty() {
                let end = |step: usize| begin + step as i64 * each;
                prop_assert!(end(reached.start) >= *oldest && end(reached.end - 1) - range_ms < *newest);
            }
        }

        #[test]
        fn strides_find_what_a_search_finds(
            gaps in proptest::collection::vec(1_i64..40, 0..60),
            step in 1_i64..90,
        ) {
            let mut at = 0;
            let times: Vec<i64> = gaps.into_iter().map(|gap| { at += gap; at }).collect();
            let (mut from, mut stride) = (0, 0);
            for n in 0..40 {
                from = first_after(&times, from, n * step, &mut stride);
                prop_assert_eq!(from, times.partition_point(|t| *t <= n * step));
            }
        }
    }
}
