//! Looks at whether a query is to stop, often enough and not too often.
//!
//! Why: a query that nobody waits for any more, or whose time is up, must give its thread and its memory back within
//! 100 ms, whatever it is doing. So every loop whose length the data or the query decides counts what it does here, in
//! units of a microsecond or less, and each [`CHECK_EVERY`] units it looks. What has no look inside is bounded
//! otherwise: the chunks of one series, the function of one window, the match of one label value.
//!
//! Once a look has said "stop", all that follow say so, too: what goes on for the sake of order ends at the next one.

use std::cell::Cell;
use std::cmp::Ordering;
use std::time::Duration;

use engram_model::time::Stopwatch;

use crate::error::Error;

use super::Cancel;

/// Units of work between two looks.
const CHECK_EVERY: u64 = 8192;
/// Items of a loop between two counts.
const RUN: usize = 4096;
/// What is said where a query is stopped.
const STAGE: &str = "expression evaluation";

/// One thread's count of work, and where it looks.
pub(super) struct Pace<'a> {
    cancel: &'a Cancel,
    watch: Stopwatch,
    timeout: Duration,
    /// Work since the last look.
    unchecked: Cell<u64>,
}

impl<'a> Pace<'a> {
    /// Looks at the first tick, and then every few thousand units.
    pub(super) fn new(cancel: &'a Cancel, watch: Stopwatch, timeout: Duration) -> Self {
        Self { cancel, watch, timeout, unchecked: Cell::new(CHECK_EVERY) }
    }

    /// Counts work that was done or is to be done now.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Timeout`].
    #[inline]
    pub(super) fn tick(&self, work: u64) -> Result<(), Error> {
        let unchecked = self.unchecked.get().saturating_add(work);
        self.unchecked.set(unchecked);
        if unchecked < CHECK_EVERY { Ok(()) } else { self.look() }
    }

    #[cold]
    fn look(&self) -> Result<(), Error> {
        if self.cancel.look() {
            return Err(Error::Cancelled { stage: STAGE });
        }
        if self.watch.elapsed() > self.timeout {
            return Err(Error::Timeout { stage: STAGE });
        }
        self.unchecked.set(self.unchecked.get() % CHECK_EVERY);
        Ok(())
    }

    /// Calls `f` for each item, counting one unit for each.
    ///
    /// # Errors
    /// Those of [`Self::tick`].
    #[inline]
    pub(super) fn each<T>(&self, mut items: impl Iterator<Item = T>, mut f: impl FnMut(T)) -> Result<(), Error> {
        loop {
            let mut done = 0;
            for item in items.by_ref().take(RUN) {
                f(item);
                done += 1;
            }
            self.tick(done)?;
            if done < RUN as u64 {
                return Ok(());
            }
        }
    }

    /// Sorts as [`slice::sort_by`] does, with looks in between: sorted runs are merged, by number, and the items are moved
    /// once. An error leaves them in any order, none lost.
    ///
    /// # Errors
    /// Those of [`Self::tick`].
    pub(super) fn sort_by<T: Default>(
        &self,
        items: &mut [T],
        compare: impl Fn(&T, &T) -> Ordering,
    ) -> Result<(), Error> {
        if items.len() <= RUN {
            self.tick(items.len() as u64)?;
            items.sort_by(compare);
            return Ok(());
        }
        let mut order: Vec<usize> = (0..items.len()).collect();
        for run in order.chunks_mut(RUN) {
            self.tick(CHECK_EVERY)?;
            run.sort_by(|a, b| compare(&items[*a], &items[*b]));
        }
        let mut merged = Vec::with_capacity(order.len());
        let mut length = RUN;
        while length < order.len() {
            merged.clear();
            for pair in order.chunks(2 * length) {
                let (left, right) = pair.split_at(length.min(pair.len()));
                self.merge(left, right, &mut merged, |a, b| compare(&items[a], &items[b]))?;
            }
            std::mem::swap(&mut order, &mut merged);
            length *= 2;
        }
        let mut sorted: Vec<T> = order.iter().map(|at| std::mem::take(&mut items[*at])).collect();
        items.swap_with_slice(&mut sorted);
        Ok(())
    }

    /// Merges two sorted lists; of equals the left one comes first.
    fn merge(
        &self,
        left: &[usize],
        right: &[usize],
        out: &mut Vec<usize>,
        compare: impl Fn(usize, usize) -> Ordering,
    ) -> Result<(), Error> {
        let (mut left, mut right) = (left, right);
        while let ([a, after_a @ ..], [b, after_b @ ..]) = (left, right) {
            if compare(*a, *b) == Ordering::Greater {
                out.push(*b);
                right = after_b;
            } else {
                out.push(*a);
                left = after_a;
            }
            self.tick(1)?;
        }
        out.extend_from_slice(left);
        out.extend_from_slice(right);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

        #[test]
        fn sorting_with_looks_is_sorting(keys in proptest::collection::vec(0_u8..50, 0..20_000)) {
            let cancel = Cancel::default();
            let pace = Pace::new(&cancel, Stopwatch::start(), Duration::MAX);
            let mut items: Vec<(u8, usize)> = keys.into_iter().enumerate().map(|(i, key)| (key, i)).collect();
            let mut want = items.clone();
            want.sort_by_key(|(key, _)| *key);
            pace.sort_by(&mut items, |a, b| a.0.cmp(&b.0)).unwrap();
            prop_assert_eq!(items, want);
        }
    }

    #[test]
    fn after_a_stop_all_looks_say_stop() {
        let cancel = Cancel::at_look(2);
        let pace = Pace::new(&cancel, Stopwatch::start(), Duration::MAX);
        let mut done = 0;
        assert_eq!(pace.each(0..1_000_000, |_| done += 1), Err(Error::Cancelled { stage: STAGE }));
        // The first look is after the first run, the second one no more than CHECK_EVERY units later.
        assert_eq!((done, cancel.looks()), (2 * RUN, 2));
        assert!(pace.tick(0).is_err() && pace.tick(1).is_err());
        let mut items: Vec<usize> = (0..3 * RUN).rev().collect();
        assert!(pace.sort_by(&mut items, usize::cmp).is_err());
        items.sort_unstable();
        assert_eq!(items, (0..3 * RUN).collect::<Vec<_>>());
    }

    #[test]
    fn time_that_is_up_stops() {
        let cancel = Cancel::default();
        let pace = Pace::new(&cancel, Stopwatch::start(), Duration::ZERO);
        assert_eq!(pace.tick(1), Err(Error::Timeout { stage: STAGE }));
    }
}
