//! Start timestamps of samples: when the counter a sample belongs to began, where its sender said so.
//!
//! Why beside the series and not in its chunks: chunks are in Prometheus' encodings, which have no room for it, and a
//! pointer in each series would be paid for by the many that have no starts. A counter keeps its start until it is
//! reset, so a series' starts are *runs*: from a time on, samples have this start. A head none of whose samples has a
//! start holds nothing here, and a series without one holds nothing.
//!
//! ```text
//! samples    10   20   30   40   50   60        runs of the series: (20, 15) (40, 33) (60, 0)
//! starts      -   15   15   33   33    -        before the first run, and where a run says 0: unknown
//! ```
//!
//! A run covers each millisecond from its time to the next run's, with samples or without, so a late sample is put in
//! without a look at its neighbours: its millisecond becomes a run of its own. Costs: 16 bytes a run, so a sender
//! that gives each sample its own start (delta counters) pays 16 bytes a sample, which are bounded as samples are.
//!
//! What a start is not: part of a sample's identity. A sample that is there already is a duplicate whatever start it
//! comes with, the first stays, and digests do not know starts.

use engram_model::Millis;
use hashbrown::HashMap;

use crate::codec::{Broken, Reader, put_uvarint, put_varint};

/// Most runs of a series that are read back.
const RUNS_MAX: usize = 1 << 28;

/// When a sample was taken, and when its counter began (0: unknown).
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) at: Millis,
    pub(super) start: Millis,
}

/// Samples at and after `from` have this start, up to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartRun {
    /// First time.
    pub from: Millis,
    /// When the counter began; 0: unknown.
    pub start: Millis,
}

/// The runs of all series that have any, by ref. Of one series: times grow, no start follows itself, the first is
/// known.
#[derive(Debug, Default)]
pub(super) struct Starts(HashMap<u32, Vec<StartRun>>);

impl Starts {
    /// Whether no series has starts.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes the start of a sample later than all of its series.
    #[inline]
    pub(super) fn append(&mut self, series_ref: u32, stamp: Stamp) {
        if stamp.start != 0 || !self.0.is_empty() {
            self.append_run(series_ref, stamp);
        }
    }

    fn append_run(&mut self, series_ref: u32, Stamp { at, start }: Stamp) {
        let Some(runs) = self.0.get_mut(&series_ref) else {
            if start != 0 {
                self.0.insert(series_ref, vec![StartRun { from: at, start }]);
            }
            return;
        };
        // A late sample's run may end just here, where no sample was yet.
        while runs.last().is_some_and(|last| last.from >= at) {
            runs.pop();
        }
        if runs.last().map_or(0, |last| last.start) != start {
            push(runs, StartRun { from: at, start });
        }
        self.drop_if_empty(series_ref);
    }

    /// Notes the start of a sample that is not the newest of its series, or that replaced another.
    pub(super) fn sew(&mut self, series_ref: u32, Stamp { at, start }: Stamp) {
        if start == 0 && !self.0.contains_key(&series_ref) {
            return;
        }
        let runs = self.0.entry(series_ref).or_default();
        let after = runs.partition_point(|run| run.from <= at);
        let old = start_before(runs, after);
        if old == start {
            return self.drop_if_empty(series_ref);
        }
        let begin = after - usize::from(after > 0 && runs[after - 1].from == at);
        let resumed = at.checked_add(1).filter(|next| runs.get(after).is_none_or(|run| run.from > *next));
        let resumed = resumed.map(|from| StartRun { from, start: old });
        runs.splice(begin..after, std::iter::once(StartRun { from: at, start }).chain(resumed));
        normalise(runs);
        self.drop_if_empty(series_ref);
    }

    /// Forgets what concerns samples before a time only.
    pub(super) fn forget(&mut self, before: Millis) {
        self.0.retain(|_, runs| {
            forget_runs(runs, before);
            !runs.is_empty()
        });
        self.shrink();
    }

    /// As [`Self::forget`], of one series.
    pub(super) fn forget_series(&mut self, series_ref: u32, before: Millis) {
        if let Some(runs) = self.0.get_mut(&series_ref) {
            forget_runs(runs, before);
            self.drop_if_empty(series_ref);
        }
    }

    /// Forgets whole series.
    pub(super) fn remove(&mut self, gone: &[u32]) {
        if !self.0.is_empty() {
            gone.iter().for_each(|series_ref| drop(self.0.remove(series_ref)));
            self.shrink();
        }
    }

    /// Takes the runs of a series as a checkpoint has them, in place of its own.
    pub(super) fn restore(&mut self, series_ref: u32, runs: Vec<StartRun>) {
        self.0.remove(&series_ref);
        if !runs.is_empty() {
            self.0.insert(series_ref, runs);
        }
    }

    /// The runs of a series.
    pub(super) fn of(&self, series_ref: u32) -> &[StartRun] {
        self.0.get(&series_ref).map_or(&[], Vec::as_slice)
    }

    /// The runs of a series that concern samples from `first` to `last`.
    pub(super) fn within(&self, series_ref: u32, first: Millis, last: Millis) -> &[StartRun] {
        if self.0.is_empty() {
            return &[];
        }
        let runs = self.of(series_ref);
        let from = runs.partition_point(|run| run.from <= first).saturating_sub(1);
        let to = runs.partition_point(|run| run.from <= last);
        runs.get(from..to).unwrap_or_default()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let runs: usize = self.0.values().map(|runs| runs.capacity() * size_of::<StartRun>()).sum();
        runs + self.0.allocation_size()
    }

    fn drop_if_empty(&mut self, series_ref: u32) {
        if self.0.get(&series_ref).is_some_and(Vec::is_empty) {
            self.0.remove(&series_ref);
        }
    }

    /// A head that had starts once need not keep the table of that time.
    fn shrink(&mut self) {
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to_fit();
        }
    }
}

fn forget_runs(runs: &mut Vec<StartRun>, before: Millis) {
    let covering = runs.partition_point(|run| run.from <= before).saturating_sub(1);
    runs.drain(..covering);
    if let Some(first) = runs.first_mut() {
        first.from = first.from.max(before);
    }
    normalise(runs);
    runs.shrink_to_fit();
}

/// Grows by half: most series have one run, and few have many.
fn push(runs: &mut Vec<StartRun>, run: StartRun) {
    if runs.len() == runs.capacity() {
        runs.reserve_exact(runs.len() / 2 + 1);
    }
    runs.push(run);
}

/// What holds before the run at `after`.
fn start_before(runs: &[StartRun], after: usize) -> Millis {
    after.checked_sub(1).map_or(0, |i| runs[i].start)
}

/// Drops runs that say what held before them.
fn normalise(runs: &mut Vec<StartRun>) {
    let mut holds = 0;
    runs.retain(|run| std::mem::replace(&mut holds, run.start) != run.start);
}

/// Appends a start for each time past the first `from` of them, if any is known; `starts` is then as long as `times`.
/// A column that has starts already stays as long as its times.
pub(super) fn fill(runs: &[StartRun], times: &[Millis], from: usize, starts: &mut Vec<Millis>) {
    let was_empty = starts.is_empty();
    if was_empty && runs.is_empty() {
        return;
    }
    starts.resize(from, 0);
    starts.reserve(times.len() - from);
    let (mut next, mut any) = (0, false);
    for at in &times[from..] {
        while runs.get(next).is_some_and(|run| run.from <= *at) {
            next += 1;
        }
        let start = start_before(runs, next);
        any |= start != 0;
        starts.push(start);
    }
    if was_empty && !any {
        starts.clear();
    }
}

/// The runs of one series of a checkpoint: each as steps from the one before.
pub(super) fn put_runs(out: &mut Vec<u8>, runs: &[StartRun]) {
    put_uvarint(out, runs.len() as u64);
    let mut before = StartRun { from: 0, start: 0 };
    for run in runs {
        put_varint(out, run.from.wrapping_sub(before.from));
        put_varint(out, run.start.wrapping_sub(before.start));
        before = *run;
    }
}

pub(super) fn read_runs(from: &mut Reader<'_>) -> Result<Vec<StartRun>, Broken> {
    let count = from.length(RUNS_MAX)?;
    let mut runs: Vec<StartRun> = Vec::with_capacity(count.min(16));
    let mut before = StartRun { from: 0, start: 0 };
    for i in 0..count {
        let at = from.at();
        let run = StartRun {
            from: before.from.wrapping_add(from.varint()?),
            start: before.start.wrapping_add(from.varint()?),
        };
        if run.start == before.start || (i > 0 && run.from <= before.from) {
            return Err(Broken { at, what: "runs of starts do not grow or repeat themselves" });
        }
        push(&mut runs, run);
        before = run;
    }
    Ok(runs)
}

/// Starts of the samples of one payload: most are the one before, or unknown.
#[derive(Debug, Default)]
pub(super) struct StartCode {
    known: Millis,
}

impl StartCode {
    pub(super) fn put(&mut self, out: &mut Vec<u8>, start: Millis) {
        match start {
            0 => out.push(0),
            _ if start == self.known => out.push(1),
            _ => {
                out.push(2);
                put_varint(out, start.wrapping_sub(self.known));
                self.known = start;
            }
        }
    }

    pub(super) fn read(&mut self, from: &mut Reader<'_>) -> Result<Millis, Broken> {
        let at = from.at();
        match from.u8()? {
            0 => Ok(0),
            1 => Ok(self.known),
            2 => {
                self.known = self.known.wrapping_add(from.varint()?);
                Ok(self.known)
            }
            _ => Err(Broken { at, what: "unknown form of a start" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Goal: runs say of each sample what a map of samples says. Method: the same appends, late samples and
        /// forgetting to both, and the runs to bytes and back.
        #[test]
        fn runs_are_a_map_of_starts(steps in proptest::collection::vec((0_i64..40, 0_i64..3, 0_u8..12), 0..80)) {
            let (mut starts, mut model) = (Starts::default(), BTreeMap::new());
            for (at, start, what) in steps {
                let stamp = Stamp { at: at - 20, start };
                if what == 0 {
                    starts.forget(stamp.at);
                    model = model.split_off(&stamp.at);
                    if model.is_empty() {
                        starts.remove(&[7]);
                    }
                } else {
                    match model.last_key_value() {
                        Some((last, _)) if stamp.at <= *last => starts.sew(7, stamp),
                        _ => starts.append(7, stamp),
                    }
                    model.insert(stamp.at, stamp.start);
                }
                let times: Vec<_> = model.keys().copied().collect();
                let mut got = vec![];
                fill(starts.of(7), &times, 0, &mut got);
                let want: Vec<_> = model.values().copied().collect();
                let any = want.iter().any(|start| *start != 0);
                prop_assert_eq!(&got, if any { &want } else { &[][..] }, "{:?}", starts.of(7));
                let mut bytes = vec![];
                put_runs(&mut bytes, starts.of(7));
                prop_assert_eq!(read_runs(&mut Reader::new(&bytes)).unwrap(), starts.of(7));
                if let (Some(first), Some(last)) = (times.get(times.len() / 3), times.get(times.len() / 2)) {
                    let some: Vec<_> = times.iter().copied().filter(|at| first <= at && at <= last).collect();
                    let (mut part, mut whole) = (vec![], vec![]);
                    fill(starts.within(7, *first, *last), &some, 0, &mut part);
                    fill(starts.of(7), &some, 0, &mut whole);
                    prop_assert_eq!(part, whole);
                }
            }
        }

        #[test]
        fn starts_of_a_payload_come_back(all in proptest::collection::vec(prop_oneof![0_i64..3, any::<i64>()], 0..20)) {
            let (mut bytes, mut code) = (vec![], StartCode::default());
            all.iter().for_each(|start| code.put(&mut bytes, *start));
            let (mut from, mut code) = (Reader::new(&bytes), StartCode::default());
            for start in &all {
                prop_assert_eq!(code.read(&mut from).unwrap(), *start);
            }
            prop_assert!(from.is_empty());
        }
    }

    #[test]
    fn a_column_is_as_long_as_its_times_or_empty() {
        let runs = [StartRun { from: 5, start: 3 }];
        let mut starts = vec![];
        fill(&runs, &[1, 2], 0, &mut starts);
        assert!(starts.is_empty());
        fill(&runs, &[1, 2, 5], 2, &mut starts);
        assert_eq!(starts, [0, 0, 3]);
        fill(&[], &[1, 2, 5, 6], 3, &mut starts);
        assert_eq!(starts, [0, 0, 3, 0]);
    }

    #[test]
    fn what_is_forgotten_takes_no_memory() {
        let mut starts = Starts::default();
        assert_eq!(starts.heap_bytes(), 0);
        (0..1000).for_each(|i| starts.append(i, Stamp { at: 1, start: 1 }));
        (0..1000).for_each(|i| starts.append(i, Stamp { at: 2, start: 0 }));
        starts.forget(2);
        assert!(starts.is_empty() && starts.heap_bytes() == 0);
    }
}
