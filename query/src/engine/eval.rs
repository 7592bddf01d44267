//! The walk over the plan: all branches are here, the work is in the files beside.
//!
//! Rows are *pushed*: [`Evaluator::stream`] makes one row after another and hands each to a sink, so that an
//! aggregation over a hundred thousand series holds its groups and one row. What needs all rows at once (matching,
//! sorting, quantiles of buckets) collects them first ([`Evaluator::rows`]).

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engram_model::labels::METRIC_NAME;
use engram_model::series::Series;
use engram_model::time::Stopwatch;
use engram_model::{Labels, MatchOp, Millis};

use crate::error::Error;
use crate::functions::{Note, Notes};
use crate::parse::ast::{Span, ValueType};
use crate::plan::{Node, Plan, Selector};
use crate::port::Selection;

use super::pace::Pace;
use super::profile::Profile;
use super::row::{Bits, Column, Row, Steps, has_duplicates, merge_kinds, merge_same};
use super::shared::Kept;
use super::tally::Tally;
use super::{Budget, Cancel, SamplePool};

/// Takes one row; it may take the row's memory and leave any other row in its place.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&mut Row) -> Result<(), Error>;

/// What a sample takes, and a series besides its labels: the list's entry, the labels' head, the source's.
const SAMPLE_BYTES: u64 = 16;
const SERIES_BYTES: u64 = 96;

/// What all threads of a query count together.
pub(super) struct Counters {
    /// What all queries hold together.
    pool: Option<Arc<SamplePool>>,
    /// Samples held now.
    held: AtomicU64,
    /// Bytes of the series selected, which are held as long as the query runs.
    pub(super) series_bytes: u64,
    /// Most samples held at once.
    pub(super) peak: AtomicU64,
}

impl Counters {
    /// Nothing counted yet.
    pub(super) fn new(pool: Option<Arc<SamplePool>>, series_bytes: u64) -> Self {
        Self { pool, series_bytes, held: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }
}

impl Counters {
    /// Bytes in memory while `samples` are held.
    pub(super) fn bytes(&self, samples: u64) -> u64 {
        samples.saturating_mul(SAMPLE_BYTES).saturating_add(self.series_bytes)
    }
}

/// Bytes of the series of a selection: their labels, and what stands around each.
pub(super) fn selection_bytes(selection: &Selection) -> u64 {
    selection.series.iter().chain(&selection.late).map(|one| one.labels.as_bytes().len() as u64 + SERIES_BYTES).sum()
}

/// However a query ends, what it held is free again.
impl Drop for Counters {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.give(self.held.load(Ordering::Relaxed));
        }
    }
}

/// What running a plan needs, the same for all threads.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) selections: &'a [Selection],
    pub(super) budget: &'a Budget,
    pub(super) cancel: &'a Cancel,
    pub(super) counters: &'a Counters,
    pub(super) watch: Stopwatch,
    /// Where each node's work is written down, when it is.
    pub(super) profile: Option<&'a Profile>,
}

/// Runs a plan. One thread's.
pub(super) struct Evaluator<'a> {
    pub(super) parts: Parts<'a>,
    /// Warnings and infos so far.
    pub(super) notes: RefCell<Notes>,
    /// Of this selector, only these series are read: another thread reads the others.
    pub(super) shard: Option<(&'a Selector, Range<usize>)>,
    /// Rows of what is written more than once, until the last place has them.
    pub(super) kept: RefCell<Kept>,
    /// Samples looked at and read.
    pub(super) tally: RefCell<Tally>,
    /// The node at work, by its place; only with a profile.
    pub(super) at: Cell<usize>,
    /// Whether to go on.
    pub(super) pace: Pace<'a>,
}

impl<'a> std::ops::Deref for Evaluator<'a> {
    type Target = Parts<'a>;

    fn deref(&self) -> &Parts<'a> {
        &self.parts
    }
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(parts: Parts<'a>) -> Self {
        Self {
            parts,
            shard: None,
            notes: RefCell::default(),
            kept: RefCell::default(),
            tally: RefCell::new(Tally::new(parts.budget.count_steps)),
            at: Cell::new(0),
            pace: Pace::new(parts.cancel, parts.watch, parts.budget.timeout),
        }
    }

    /// Puts rows into the order of their labels, where it decides which are chosen or which comes first: the order they come
    /// in depends on where they lie and on who summed them up.
    pub(super) fn in_order(&self, rows: &mut [Row]) -> Result<(), Error> {
        self.pace.sort_by(rows, |a, b| a.labels.cmp(&b.labels))
    }

    /// Counts work done and, every few thousand samples, stops when the time or the client is gone.
    #[inline]
    pub(super) fn tick(&self, work: u64) -> Result<(), Error> {
        self.pace.tick(work)
    }

    /// Counts samples that are held from now on.
    pub(super) fn hold(&self, samples: u64) -> Result<(), Error> {
        let held = self.counters.held.fetch_add(samples, Ordering::Relaxed) + samples;
        self.counters.peak.fetch_max(held, Ordering::Relaxed);
        if let Some(profile) = self.profile {
            profile.held(self.at.get(), held);
        }
        let room = self.counters.pool.as_ref().map_or(Ok(()), |pool| pool.take(samples));
        self.check_held(held)?;
        room
    }

    /// Counts samples that are held no longer.
    pub(super) fn release(&self, samples: u64) {
        let less = |held: u64| Some(held.saturating_sub(samples));
        let before = self.counters.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if let (Some(pool), Ok(before)) = (&self.counters.pool, before) {
            pool.give(samples.min(before));
        }
    }

    /// Makes a remark about a place of the query.
    pub(super) fn note(&self, note: &Note, metric_name: &str, span: Span) {
        self.notes.borrow_mut().add_at(note, metric_name, span);
    }

    /// Ends the query when a kernel has said so.
    pub(super) fn check_failure(&self) -> Result<(), Error> {
        match self.notes.borrow_mut().take_failure() {
            Some(text) => Err(Error::Execution(text)),
            None => Ok(()),
        }
    }

    /// Labels after a function has changed what the series means. With delayed removal they stay until the end.
    pub(super) fn without_name(&self, labels: &Labels) -> Labels {
        if self.budget.delayed_name_removal { labels.clone() } else { without_metadata(labels) }
    }

    /// Refuses more steps than samples may be held beside those that are, before a column of them is made.
    fn check_steps(&self, steps: Steps) -> Result<(), Error> {
        self.tick(1)?;
        self.check_held(self.counters.held.load(Ordering::Relaxed).saturating_add(steps.count as u64))
    }

    fn check_held(&self, held: u64) -> Result<(), Error> {
        if held > self.budget.samples_max {
            return Err(too_many_samples(self.budget));
        }
        if self.budget.bytes_max != 0 && self.counters.bytes(held) > self.budget.bytes_max {
            return Err(too_many_bytes(self.budget));
        }
        Ok(())
    }

    /// Makes the rows of a vector or scalar one by one.
    pub(super) fn stream(&self, node: &Node, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        match self.profile {
            Some(profile) if !self.is_at(node) => self.measured_stream(profile, node, steps, sink),
            _ => self.plain_stream(node, steps, sink),
        }
    }

    pub(super) fn plain_stream(&self, node: &Node, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        self.check_steps(steps)?;
        if steps.count == 0 {
            return Ok(());
        }
        match node {
            Node::Instant(selector) => self.stream_selector(selector, steps, sink),
            Node::Call(call) => self.stream_call(call, steps, sink),
            Node::Negate(inner, _) => self.stream_negated(inner, steps, sink),
            Node::Shared(shared) if !self.is_kept(shared, steps) => self.stream(&shared.inner, steps, sink),
            Node::Binary(binary) if binary.lhs.yields() != binary.rhs.yields() => {
                self.stream_with_scalar(binary, steps, sink)
            }
            _ => {
                for row in &mut self.rows(node, steps)? {
                    self.release(row.column.weight());
                    sink(row)?;
                }
                Ok(())
            }
        }
    }

    /// All rows of a vector or scalar, counted as held.
    pub(super) fn rows(&self, node: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        match self.profile {
            Some(profile) if !self.is_at(node) => self.measured_rows(profile, node, steps),
            _ => self.plain_rows(node, steps),
        }
    }

    pub(super) fn plain_rows(&self, node: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        self.check_steps(steps)?;
        if steps.count == 0 {
            return Ok(Vec::new());
        }
        let rows = match node {
            Node::Number(value, _) => vec![constant(*value, steps)],
            Node::Once(inner) => return self.once(inner, steps),
            Node::Shared(shared) => return self.shared(shared, steps),
            Node::Nothing(_) => Vec::new(),
            Node::Aggregate(aggregate) => self.aggregate(aggregate, steps)?,
            Node::Binary(binary) => match (binary.lhs.yields(), binary.rhs.yields()) {
                (ValueType::Scalar, ValueType::Scalar) => vec![self.scalars(binary, steps)?],
                (ValueType::Vector, ValueType::Vector) => self.vectors(binary, steps)?,
                _ => return self.collect(node, steps),
            },
            Node::Call(call) => match self.whole_call(call, steps)? {
                Some(rows) => rows,
                None => return self.collect(node, steps),
            },
            Node::Instant(_) | Node::Negate(..) => return self.collect(node, steps),
            Node::Text(..) | Node::Range(_) | Node::Subquery(_) => {
                return Err(Error::Execution("a range vector or string stands where a vector is needed".to_owned()));
            }
        };
        self.hold(weight(&rows))?;
        Ok(rows)
    }

    /// Collects what is streamed, counted as held.
    fn collect(&self, node: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        self.stream(node, steps, &mut |row| {
            self.hold(row.column.weight())?;
            rows.push(std::mem::take(row));
            Ok(())
        })?;
        Ok(rows)
    }

    /// One value for each step: a scalar expression.
    pub(super) fn scalar(&self, node: &Node, steps: Steps) -> Result<Column, Error> {
        let (rows, counted) = self.framed(|| self.rows(node, steps))?;
        // On several threads each evaluates it, and the first one counts.
        if self.shard.as_ref().is_none_or(|(_, shard)| shard.start == 0) {
            self.look_again(&counted);
        }
        self.release(weight(&rows));
        match rows.into_iter().next() {
            Some(row) => Ok(row.column),
            None => Ok(constant(f64::NAN, steps).column),
        }
    }

    /// Evaluates at the first step and says the same at all.
    fn once(&self, inner: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        let first = Steps { count: 1, is_instant: true, ..steps };
        let (mut rows, counted) = self.framed(|| self.rows(inner, first))?;
        self.look_at_all_steps(&counted, steps);
        if steps.count == 1 {
            return Ok(rows);
        }
        for row in &mut rows {
            self.release(row.column.weight());
            let narrow = std::mem::replace(&mut row.column, Column::new(steps.count));
            let Some(point) = narrow.get(0) else { continue };
            self.pace.each(0..steps.count, |step| row.column.put_point(step, point.clone()))?;
            self.hold(row.column.weight())?;
        }
        Ok(rows)
    }

    fn stream_negated(&self, inner: &Node, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        let negate = |row: &mut Row| {
            row.labels = self.without_name(&row.labels);
            row.drop_name = true;
            let Column { values, present, histograms } = &mut row.column;
            self.pace.each(present.iter(), |step| values[step] = -values[step])?;
            self.pace.each(histograms.iter_mut(), |(_, h)| *h = super::histograms::scaled(h, -1.0))
        };
        if self.names_stay_unique(inner)? {
            return self.stream(inner, steps, &mut |row| {
                negate(row)?;
                sink(row)
            });
        }
        let mut rows = self.rows(inner, steps)?;
        self.release(weight(&rows));
        rows.iter_mut().try_for_each(negate)?;
        self.merged_kinds(rows, inner)?.iter_mut().try_for_each(sink)
    }

    /// Whether rows of `node` differ even without their names, so that a function that drops names can push its rows
    /// on without looking at all of them. Unknown counts as no.
    ///
    /// # Errors
    /// When the query is to stop: a million series take a while.
    pub(super) fn names_stay_unique(&self, node: &Node) -> Result<bool, Error> {
        if self.budget.delayed_name_removal {
            return Ok(true);
        }
        match node {
            Node::Number(..) | Node::Aggregate(_) | Node::Nothing(_) => Ok(true),
            Node::Instant(selector) => self.selection_stays_unique(selector),
            Node::Range(range) => self.selection_stays_unique(&range.of),
            Node::Negate(inner, _) | Node::Once(inner) => self.names_stay_unique(inner),
            Node::Shared(shared) => self.names_stay_unique(&shared.inner),
            Node::Binary(b) => match (b.lhs.yields(), b.rhs.yields()) {
                (ValueType::Scalar, ValueType::Scalar) => Ok(true),
                (ValueType::Vector, ValueType::Scalar) => self.names_stay_unique(&b.lhs),
                (ValueType::Scalar, ValueType::Vector) => self.names_stay_unique(&b.rhs),
                _ => Ok(false),
            },
            Node::Call(_) if node.yields() == ValueType::Scalar => Ok(true),
            Node::Call(call) if super::call::is_row_by_row(call.func) => {
                for arg in call.args.iter().filter(|arg| arg.yields() != ValueType::String) {
                    if !self.names_stay_unique(arg)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Node::Call(_) | Node::Text(..) | Node::Subquery(_) => Ok(false),
        }
    }

    fn selection_stays_unique(&self, selector: &Selector) -> Result<bool, Error> {
        let series = &self.selections[selector.select].series;
        let has_one_name = selector.matchers.iter().any(|m| m.op == MatchOp::Equal && &*m.name == METRIC_NAME);
        let names_only = |one: &Series| one.labels.get("__type__").is_none() && one.labels.get("__unit__").is_none();
        self.tick(series.len() as u64 / 8)?;
        if has_one_name && series.iter().all(names_only) {
            // No series comes twice, and they agree in all that goes.
            return Ok(true);
        }
        let mut seen = hashbrown::HashSet::with_capacity(series.len());
        for one in series {
            self.tick(1)?;
            if !seen.insert(without_metadata(&one.labels).hash128()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends a function of the instant-vector kind whose rows may have come to the same labels.
    pub(super) fn merged(&self, rows: Vec<Row>, steps: Steps) -> Result<Vec<Row>, Error> {
        if self.budget.delayed_name_removal && steps.is_instant {
            return Ok(rows);
        }
        merge_same(rows, &self.pace)
    }

    /// Ends an operator that merges whole series, of the rows of `inner`. A float and a histogram at one step stay side by
    /// side as long as nothing above looks at single steps.
    pub(super) fn merged_kinds(&self, rows: Vec<Row>, inner: &Node) -> Result<Vec<Row>, Error> {
        let mut rows = merge_kinds(rows, &self.pace)?;
        let mut whole = Some(&self.plan.root);
        while let Some(node) = whole {
            whole = match node {
                Node::Negate(below, _) | Node::Once(below) => Some(below),
                Node::Shared(shared) => Some(&shared.inner),
                Node::Call(call) if matches!(call.func, "label_replace" | "label_join") => call.args.first(),
                _ => None,
            };
            if whole.is_some_and(|below| std::ptr::eq(below, inner)) {
                return Ok(rows);
            }
        }
        rows.iter_mut().for_each(|row| row.column.take_one_kind());
        Ok(rows)
    }

    /// Ends a function of ranges whose rows may have come to the same labels, which is an error at once.
    pub(super) fn distinct(&self, rows: &[Row]) -> Result<(), Error> {
        if !self.budget.delayed_name_removal && has_duplicates(rows, &self.pace)? {
            return Err(super::row::duplicates());
        }
        Ok(())
    }
}

fn too_many_samples(budget: &Budget) -> Error {
    Error::OverBudget(format!(
        "query processing would load too many samples into memory in query execution: the limit is {} samples at once \
         ({}): take a shorter range, a longer step or fewer series",
        budget.samples_max,
        budget.limit("max_samples_per_query")
    ))
}

fn too_many_bytes(budget: &Budget) -> Error {
    Error::OverBudget(format!(
        "the query would hold too many bytes of samples and labels in memory: the limit is {} bytes at once ({}): take a \
         shorter range, a longer step or fewer series",
        budget.bytes_max,
        budget.limit("max_bytes_per_query")
    ))
}

/// Labels that say what a metric is, and go when a function makes something else of it.
pub(super) fn is_metadata(label: &str) -> bool {
    matches!(label, "__name__" | "__type__" | "__unit__")
}

/// Labels without [`is_metadata`].
pub(super) fn without_metadata(labels: &Labels) -> Labels {
    labels.without(is_metadata)
}

/// A number at all steps.
pub(super) fn constant(value: f64, steps: Steps) -> Row {
    let mut column = Column::new(steps.count);
    (0..steps.count).for_each(|step| column.put(step, value));
    Row { labels: Labels::empty(), drop_name: false, column }
}

/// Samples in rows.
pub(super) fn weight(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.column.weight()).sum()
}

/// All steps at which any row has a value.
pub(super) fn taken(rows: &[Row], steps: Steps) -> Bits {
    let mut bits = Bits::new(steps.count);
    rows.iter().for_each(|row| bits.join(&row.column.taken()));
    bits
}

/// Seconds of a time.
pub(super) fn seconds(at: Millis) -> f64 {
    at as f64 / 1000.0
}
