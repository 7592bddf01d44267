//! Aggregations on several threads: the series are cut into batches, and whichever thread is free takes the next.
//!
//! Why batches and not a share for each thread: series differ in length and cores in what else they do, so the threads
//! of equal shares wait for the slowest. A thread that comes late finds less to do, and one that never gets a core holds
//! nobody up: the thread that asked works too, and takes what is left.
//!
//! Groups of batches are joined in the order of the series, whoever gathered them, so that the same query rounds the
//! same way each time. Threads are made for the aggregation and not kept: that costs some 30 µs each, and no batch of
//! one query then waits behind those of another.
//!
//! Only where every series is by itself up to the aggregation: one selector, functions and operators that take rows one
//! by one. Sums are then rounded in another place than without batches, in the last bits; that is why one thread is the
//! default. Histograms are left to one thread.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::functions::{Kernel, Notes, lookup};
use crate::parse::ast::ValueType;
use crate::plan::{Aggregate, Node, Selector};

use super::aggregate::Groups;
use super::call::is_row_by_row;
use super::eval::{Evaluator, Parts};
use super::row::Steps;
use super::tally::Tally;

/// Most series of a batch: enough that joining its groups is little beside making them.
const BATCH_SERIES_MAX: usize = 1024;
/// Fewest, however many steps there are.
const BATCH_SERIES_MIN: usize = 64;
/// Values of a batch: a millisecond's work.
const BATCH_VALUES: usize = 1 << 17;

/// Series of a batch; as many or fewer are not worth a second thread.
pub(super) fn batch_series(steps: Steps) -> usize {
    (BATCH_VALUES / steps.count.max(1)).clamp(BATCH_SERIES_MIN, BATCH_SERIES_MAX)
}

/// One aggregation that several threads work off.
struct Work<'w, 'p> {
    parts: Parts<'w>,
    aggregate: &'p Aggregate,
    selector: &'w Selector,
    steps: Steps,
    /// Series of the selector, and of a batch.
    series: usize,
    batch: usize,
    /// The next batch nobody has taken.
    next: AtomicUsize,
    joined: Mutex<Joined<'p>>,
}

/// What the batches came to.
#[derive(Default)]
struct Joined<'p> {
    /// Groups of the batches before `next`.
    groups: Option<Groups<'p>>,
    notes: Notes,
    counted: Tally,
    next: usize,
    /// Those of later ones.
    later: BTreeMap<usize, (Groups<'p>, Notes, Tally)>,
    /// Why no more is to be done: an error, or none where histograms came.
    stopped: Option<Option<Error>>,
}

impl Evaluator<'_> {
    /// Gathers the groups on several threads; `None`: one thread is to do it.
    pub(super) fn in_shards<'p>(&self, aggregate: &'p Aggregate, steps: Steps) -> Result<Option<Groups<'p>>, Error> {
        if self.budget.parallelism < 2 || self.shard.is_some() {
            return Ok(None);
        }
        let Some(selector) = only_selector(&aggregate.inner) else { return Ok(None) };
        let series = self.selections[selector.select].series.len();
        let batch = batch_series(steps);
        let threads = self.budget.parallelism.min(series.div_ceil(batch));
        if threads < 2 || !self.names_stay_unique(&aggregate.inner)? {
            return Ok(None);
        }
        let joined = Joined { counted: Tally::new(self.budget.count_steps), ..Joined::default() };
        let (next, joined) = (AtomicUsize::new(0), Mutex::new(joined));
        let work = Work { parts: self.parts, aggregate, selector, steps, series, batch, next, joined };
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(|| work.work_off())));
            work.work_off();
        });
        let done = work.joined.into_inner().unwrap_or_else(PoisonError::into_inner);
        match done.stopped {
            Some(Some(error)) => Err(error),
            Some(None) => {
                let gathered = done.groups.into_iter().chain(done.later.into_values().map(|(groups, ..)| groups));
                gathered.for_each(|groups| self.release(groups.held));
                Ok(None)
            }
            None => {
                self.notes.borrow_mut().merge(done.notes);
                self.look_again(&done.counted);
                Ok(done.groups)
            }
        }
    }
}

impl<'p> Work<'_, 'p> {
    /// Takes batches until there is none left, or no use in going on.
    fn work_off(&self) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let start = at.saturating_mul(self.batch);
            if start >= self.series {
                return;
            }
            let end = self.series.min(start + self.batch);
            let gathered = self.gather(start..end);
            let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
            match gathered {
                Ok((Some(groups), notes, counted)) => joined.add(at, groups, notes, counted),
                Ok((None, ..)) => joined.stop(None),
                Err(error) => joined.stop(Some(error)),
            }
            if joined.stopped.is_some() {
                return;
            }
        }
    }

    /// The groups of some of the series; none where there are histograms.
    fn gather(&self, series: Range<usize>) -> Result<(Option<Groups<'p>>, Notes, Tally), Error> {
        let mut evaluator = Evaluator::new(self.parts);
        evaluator.shard = Some((self.selector, series));
        let groups = evaluator.groups(self.aggregate, self.steps, false)?;
        Ok((groups, evaluator.notes.into_inner(), evaluator.tally.into_inner()))
    }
}

impl<'p> Joined<'p> {
    /// Adds the groups of a batch, once those of all before it are there.
    fn add(&mut self, at: usize, groups: Groups<'p>, notes: Notes, counted: Tally) {
        self.later.insert(at, (groups, notes, counted));
        while let Some((groups, notes, counted)) = self.later.remove(&self.next) {
            self.next += 1;
            self.notes.merge(notes);
            self.counted.merge(&counted);
            match &mut self.groups {
                Some(all) => all.merge(groups),
                none => *none = Some(groups),
            }
        }
    }

    /// The first reason counts; an error counts more than histograms.
    fn stop(&mut self, why: Option<Error>) {
        match &self.stopped {
            Some(Some(_)) => {}
            _ if why.is_some() => self.stopped = Some(why),
            None => self.stopped = Some(None),
            Some(None) => {}
        }
    }
}

/// The selector whose series are worked off one by one; `None`: there is another way in, or more than one.
pub(super) fn only_selector(node: &Node) -> Option<&Selector> {
    match node {
        Node::Instant(selector) => Some(selector),
        Node::Negate(inner, _) => only_selector(inner),
        Node::Shared(shared) => only_selector(&shared.inner),
        Node::Binary(b) => match (b.lhs.yields(), b.rhs.yields()) {
            (ValueType::Vector, ValueType::Scalar) => only_selector(&b.lhs),
            (ValueType::Scalar, ValueType::Vector) => only_selector(&b.rhs),
            _ => None,
        },
        Node::Call(call) if is_row_by_row(call.func) => match lookup(call.func)?.kernel {
            Kernel::Range(_) => call.args.iter().find_map(|arg| match arg {
                Node::Range(range) => Some(&range.of),
                _ => None,
            }),
            Kernel::Vector(_) => only_selector(call.args.iter().find(|arg| arg.yields() == ValueType::Vector)?),
            Kernel::Special => None,
        },
        _ => None,
    }
}
