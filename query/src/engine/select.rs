//! Selectors: from stored samples to the value of each step.
//!
//! A series is read once into flat columns whose memory the next one reuses. Both columns are then walked with one
//! pointer each, so that a step costs what it moves forward and not a search.
//!
//! An instant selector takes the last sample of `(time - lookback, time]`, if it is no staleness marker.

use std::sync::Arc;

use engram_model::sample::is_stale;
use engram_model::series::Columns;
use engram_model::{Labels, Millis};

use crate::error::Error;
use crate::functions::{Note, Point, Window};
use crate::parse::ast::Extension;
use crate::plan::{RangeSelector, Selector};
use crate::port::SourceError;
use crate::value::RangeSeries;

use super::eval::{Evaluator, Sink, seconds};
use super::range::Cursor;
use super::row::{Column, Row, Steps, histogram_weight};

/// What of a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// Its value.
    Value,
    /// Its time in seconds.
    Time,
    /// Its start timestamp in seconds.
    Start,
    /// Its time in milliseconds; it must be a float. Who takes it counts it.
    Millis,
}

/// Takes a series and its samples.
type SeriesSink<'a> = &'a mut dyn FnMut(&Labels, &mut Columns) -> Result<(), Error>;

impl Evaluator<'_> {
    /// Reads the series of a selector, one after another.
    pub(super) fn each_series(&self, selector: &Selector, sink: SeriesSink<'_>) -> Result<(), Error> {
        let range = self.plan.selects[selector.select].range;
        let (mut columns, mut held) = (Columns::default(), 0);
        let mut all = self.selections[selector.select].series.as_slice();
        if let Some((sharded, shard)) = &self.shard
            && std::ptr::eq(*sharded, selector)
        {
            all = &all[shard.clone()];
        }
        for series in all {
            columns.clear();
            series.source.read(range, &mut columns).map_err(|e| Error::Source(SourceError::Read(e)))?;
            if selector.statistics_only && !columns.histograms.is_empty() {
                super::histograms::to_statistics(&mut columns, range.start);
            }
            let weight = columns_weight(&columns);
            self.tick(weight + 1)?;
            // The columns keep their memory from series to series, and all threads count in one place: what is held
            // only grows.
            if weight > held {
                self.hold(weight - held)?;
                held = weight;
            }
            sink(&series.labels, &mut columns)?;
        }
        self.release(held);
        Ok(())
    }

    /// The rows of an instant selector.
    pub(super) fn stream_selector(&self, selector: &Selector, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        if selector.extension == Extension::Smoothed {
            return self.stream_smoothed(selector, steps, sink);
        }
        self.stream_taken(selector, Take::Value, steps, &mut |_, row| sink(row))
    }

    /// As [`Self::stream_selector`], with a choice of what is taken.
    pub(super) fn stream_taken(
        &self,
        selector: &Selector,
        take: Take,
        steps: Steps,
        sink: &mut dyn FnMut(&Labels, &mut Row) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let lookback = self.budget.lookback_ms;
        let mut row = Row::default();
        // Upstream forgets the offset where `timestamp` meets `@`.
        let ignores_offset = matches!(take, Take::Time | Take::Start) && selector.at.is_some();
        self.each_series(selector, &mut |labels, columns| {
            row.column.reset(steps.count);
            let mut last = Last::default();
            let mut weight = 0;
            for run in steps.runs() {
                self.tick(run.len() as u64 / 8)?;
                for step in run {
                    let at = steps.at(step);
                    let time = if ignores_offset { selector.at.unwrap_or(at) } else { selector.data_time(at) };
                    let Some(hit) = last.seek(columns, time, lookback) else { continue };
                    weight += put_hit(&mut row.column, step, columns, hit, take).ok_or_else(|| {
                        let what = "this should be an info metric, with float samples";
                        Error::Execution(format!("{what}: {labels}"))
                    })?;
                }
            }
            if take != Take::Millis {
                self.look_at_column(&row.column, weight);
            }
            if row.column.is_empty() {
                return Ok(());
            }
            row.labels = labels.clone();
            row.drop_name = false;
            sink(labels, &mut row)
        })
    }

    /// The rows of a `smoothed` instant selector: between two samples a value lies on the line that joins them.
    fn stream_smoothed(&self, selector: &Selector, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        let lookback = self.budget.lookback_ms;
        let mut row = Row::default();
        self.each_series(selector, &mut |labels, columns| {
            drop_stale(columns);
            row.column.reset(steps.count);
            let mut cursor = Cursor::default();
            let mut notes = self.notes.borrow_mut();
            notes.enter(labels.metric_name(), selector.span);
            self.pace.each(0..steps.count, |step| {
                let time = selector.data_time(steps.at(step));
                cursor.move_to(columns, time.saturating_sub(lookback), time.saturating_add(lookback));
                let window = cursor.window(columns, (time, time), steps.at(step), Extension::Smoothed);
                if !window.values.is_empty() && !window.histograms.is_empty() {
                    notes.add(Note::MixedFloatsHistograms);
                } else if let Some(point) = smoothed(&window, time, &mut notes) {
                    row.column.put_point(step, point);
                }
            })?;
            drop(notes);
            if row.column.is_empty() {
                return Ok(());
            }
            row.labels = labels.clone();
            row.drop_name = false;
            sink(&mut row)
        })
    }

    /// The samples of a range selector at one time.
    pub(super) fn range_result(&self, range: &RangeSelector, at: Millis) -> Result<Vec<RangeSeries>, Error> {
        let mut out = Vec::new();
        let selector = &range.of;
        let end = selector.data_time(at);
        let start = end.saturating_sub(range.range_ms);
        let lookback = self.budget.lookback_ms;
        let (low, high) = match selector.extension {
            Extension::None => (start, end),
            Extension::Anchored => (start.saturating_sub(lookback), end),
            Extension::Smoothed => (start.saturating_sub(lookback), end.saturating_add(lookback)),
        };
        self.each_series(selector, &mut |labels, columns| {
            drop_stale(columns);
            let mut cursor = Cursor::default();
            cursor.move_to(columns, low, high);
            let window = cursor.window(columns, (start, end), at, selector.extension);
            let mut series = RangeSeries { labels: labels.clone(), ..RangeSeries::default() };
            if selector.extension == Extension::None {
                series.floats = window.times.iter().copied().zip(window.values.iter().copied()).collect();
                let histograms = window.histogram_times.iter().copied().zip(window.histograms.iter().cloned());
                series.histograms = histograms.collect();
            } else if window.histograms.is_empty() {
                series.floats = extended(&window);
            } else {
                let word = if selector.extension == Extension::Anchored { "anchored" } else { "smoothed" };
                return Err(Error::Execution(format!("{word} modifier is not supported with histograms")));
            }
            let weight =
                series.floats.len() as u64 + series.histograms.iter().map(|(_, h)| histogram_weight(h)).sum::<u64>();
            self.look_at_once(weight);
            self.hold(weight)?;
            if weight > 0 {
                out.push(series);
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// A found sample, by its index in its column.
enum Hit {
    Float(usize),
    Histogram(usize),
}

/// Finds the last sample at or before growing times.
#[derive(Default)]
struct Last {
    /// Floats at or before the last time asked for.
    floats: usize,
    /// Histograms at or before it.
    histograms: usize,
}

impl Last {
    #[inline]
    fn seek(&mut self, columns: &Columns, time: Millis, lookback: i64) -> Option<Hit> {
        while self.floats < columns.times.len() && columns.times[self.floats] <= time {
            self.floats += 1;
        }
        while self.histograms < columns.histogram_times.len() && columns.histogram_times[self.histograms] <= time {
            self.histograms += 1;
        }
        let float = self.floats.checked_sub(1).map(|i| (columns.times[i], i));
        let histogram = self.histograms.checked_sub(1).map(|i| (columns.histogram_times[i], i));
        let oldest = time.saturating_sub(lookback);
        match (float, histogram) {
            (Some((at, i)), other) if other.is_none_or(|(h, _)| h <= at) => {
                (at > oldest && !is_stale(columns.values[i])).then_some(Hit::Float(i))
            }
            (_, Some((at, i))) => (at > oldest && !columns.histograms[i].is_stale()).then_some(Hit::Histogram(i)),
            _ => None,
        }
    }
}

/// Puts what is taken of a found sample into a column, and says what the sample weighs; `None`: it should be a float.
#[inline]
fn put_hit(column: &mut Column, step: usize, columns: &Columns, hit: Hit, take: Take) -> Option<u64> {
    let start = |starts: &[Millis], i: usize| seconds(starts.get(i).copied().unwrap_or(0));
    match (hit, take) {
        (Hit::Float(i), Take::Value) => column.put(step, columns.values[i]),
        (Hit::Histogram(i), Take::Value) => {
            column.histograms.push((step, Arc::clone(&columns.histograms[i])));
            return Some(histogram_weight(&columns.histograms[i]));
        }
        (Hit::Float(i), Take::Time) => column.put(step, seconds(columns.times[i])),
        (Hit::Histogram(i), Take::Time) => column.put(step, seconds(columns.histogram_times[i])),
        (Hit::Float(i), Take::Start) => column.put(step, start(&columns.starts, i)),
        (Hit::Histogram(i), Take::Start) => column.put(step, start(&columns.histogram_starts, i)),
        (Hit::Float(i), Take::Millis) => column.put(step, columns.times[i] as f64),
        (Hit::Histogram(_), Take::Millis) => return None,
    }
    Some(1)
}

/// What columns weigh in samples.
pub(super) fn columns_weight(columns: &Columns) -> u64 {
    columns.times.len() as u64 + columns.histograms.iter().map(|h| histogram_weight(h)).sum::<u64>()
}

/// Takes staleness markers out: ranges do not see them.
pub(super) fn drop_stale(columns: &mut Columns) {
    // Counting a run takes a fraction of looking at one after the other, and most series have none.
    if columns.values.chunks(32).any(|run| run.iter().filter(|v| is_stale(**v)).count() > 0) {
        let keep = columns.values.iter().map(|v| !is_stale(*v)).collect::<Vec<_>>();
        retain(&mut columns.times, &keep);
        retain(&mut columns.values, &keep);
        retain(&mut columns.starts, &keep);
    }
    if columns.histograms.iter().any(|h| h.is_stale()) {
        let keep = columns.histograms.iter().map(|h| !h.is_stale()).collect::<Vec<_>>();
        retain(&mut columns.histogram_times, &keep);
        retain(&mut columns.histograms, &keep);
        retain(&mut columns.histogram_starts, &keep);
    }
}

/// Keeps what `keep` says; an empty column stays so.
fn retain<T>(column: &mut Vec<T>, keep: &[bool]) {
    let mut wanted = keep.iter().copied();
    column.retain(|_| wanted.next().unwrap_or(true));
}

/// The value at `time` from the samples around it; the last one stays as long as the window has it.
fn smoothed(window: &Window<'_>, time: Millis, notes: &mut crate::functions::Notes) -> Option<Point> {
    if window.histograms.is_empty() {
        let i = window.times.partition_point(|t| *t < time);
        return match window.times.get(i) {
            Some(at) if *at == time => Some(Point::Float(window.values[i])),
            _ if i == 0 => None,
            Some(_) => Some(Point::Float(between(window, i - 1, i, time))),
            None => Some(Point::Float(window.values[i - 1])),
        };
    }
    super::histograms::smoothed(window, time, notes)
}

/// The value at `time` on the line through two floats.
fn between(window: &Window<'_>, left: usize, right: usize, time: Millis) -> f64 {
    let (t1, t2) = (window.times[left], window.times[right]);
    let (v1, v2) = (window.values[left], window.values[right]);
    v1 + (v2 - v1) * (time - t1) as f64 / (t2 - t1) as f64
}

/// The samples of an anchored or smoothed range, with one at either end of it.
fn extended(window: &Window<'_>) -> Vec<(Millis, f64)> {
    let (start, end) = (window.range_start, window.range_end);
    let is_smoothed = window.extension == Extension::Smoothed;
    let times = window.times;
    let Some(newest) = times.len().checked_sub(1) else { return Vec::new() };
    let mut first = times[..newest].partition_point(|t| *t <= start).saturating_sub(1);
    let mut last = if is_smoothed { times[..newest].partition_point(|t| *t < end) } else { newest };
    if times[last] <= start {
        return Vec::new();
    }
    let left = match is_smoothed && times[first] < start && first < newest {
        true => between(window, first, first + 1, start),
        false => window.values[first],
    };
    let right = match is_smoothed && last > 0 && times[last] > end {
        true => between(window, last - 1, last, end),
        false => window.values[last],
    };
    if times[first] <= start {
        first += 1;
    }
    // From here `last` is the first index that is left out.
    if times[last] < end {
        last += 1;
    }
    let mut out = vec![(start, left)];
    if first < last {
        out.extend(times[first..last].iter().copied().zip(window.values[first..last].iter().copied()));
    }
    out.push((end, right));
    out
}
