//! Aggregations on several threads: each gathers the groups of its share of the series, then they are joined in order.
//!
//! Only where every series is by itself up to the aggregation: one selector, functions and operators that take rows one
//! by one. Sums are then rounded in another place than on one thread, in the last bits; that is why one thread is the
//! default. Histograms are left to one thread.

use std::ops::Range;

use crate::error::Error;
use crate::functions::{Kernel, Notes, lookup};
use crate::parse::ast::ValueType;
use crate::plan::{Aggregate, Node, Selector};

use super::aggregate::Groups;
use super::call::is_row_by_row;
use super::eval::{Evaluator, Parts};
use super::row::Steps;

/// Fewest series that are worth a thread.
pub(super) const SERIES_PER_THREAD: usize = 256;

impl Evaluator<'_> {
    /// Gathers the groups on several threads; `None`: one thread is to do it.
    pub(super) fn in_shards<'p>(&self, aggregate: &'p Aggregate, steps: Steps) -> Result<Option<Groups<'p>>, Error> {
        if self.budget.parallelism < 2 || self.shard.is_some() {
            return Ok(None);
        }
        let Some(selector) = only_selector(&aggregate.inner) else { return Ok(None) };
        let series = self.selections[selector.select].series.len();
        let threads = self.budget.parallelism.min(series / SERIES_PER_THREAD);
        if threads < 2 || !self.names_stay_unique(&aggregate.inner) {
            return Ok(None);
        }
        let parts = self.parts;
        let gathered = std::thread::scope(|scope| {
            let shards = (0..threads).map(|i| share(series, threads, i));
            let running: Vec<_> =
                shards.map(|shard| scope.spawn(move || gather(parts, aggregate, (selector, shard), steps))).collect();
            running.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        let mut all: Option<Groups<'p>> = None;
        let mut refused = false;
        let mut said = Vec::new();
        for one in gathered {
            let (groups, notes) = match one {
                Ok(done) => done?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            said.push(notes);
            match (&mut all, groups) {
                (_, None) => refused = true,
                (Some(all), Some(groups)) => all.merge(groups),
                (none, groups) => *none = groups,
            }
        }
        match all {
            Some(all) if refused => {
                self.release(all.held);
                Ok(None)
            }
            all => {
                said.into_iter().for_each(|notes| self.notes.borrow_mut().merge(notes));
                Ok(all)
            }
        }
    }
}

/// Gathers the groups of one share of the series. Without groups where there are histograms.
fn gather<'p>(
    parts: Parts<'_>,
    aggregate: &'p Aggregate,
    shard: (&Selector, Range<usize>),
    steps: Steps,
) -> Result<(Option<Groups<'p>>, Notes), Error> {
    let mut evaluator = Evaluator::new(parts);
    evaluator.shard = Some(shard);
    let groups = evaluator.groups(aggregate, steps, false)?;
    Ok((groups, evaluator.notes.into_inner()))
}

/// The share of thread `i` of `n`.
fn share(series: usize, n: usize, i: usize) -> Range<usize> {
    series * i / n..series * (i + 1) / n
}

/// The selector whose series are worked off one by one; `None`: there is another way in, or more than one.
pub(super) fn only_selector(node: &Node) -> Option<&Selector> {
    match node {
        Node::Instant(selector) => Some(selector),
        Node::Negate(inner) => only_selector(inner),
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
