//! Replay in bulk: samples of many payloads are gathered and then put in series by series.
//!
//! Why: a payload has one sample of each series, so replay in the order of the log walks all series for each scrape, and
//! with a million of them finds none in the processor's caches. Gathered, a series takes several samples at one visit.
//!
//! What a sample's fate depends on is its series, in order, and what all series share: the floor, the frozen parts and the
//! time of the newest sample. The first two change only by payloads before which all that is gathered is put in
//! ([`Head::settle`]); the third grows while samples come, and decides when a sample may be too late. Where it could decide
//! differently, samples are put in as they came.
//!
//! So series know nothing of each other, and ranges of them are filled by several threads. A thread puts in what is newer
//! than all its series has, which is nearly everything; what is not, and all of that series behind it, is left to the
//! rules of `append`, by the caller.
//!
//! Memory: at most [`SAMPLES_MAX`] samples of 20 bytes, and 4 bytes each for their order; given back by [`Head::settle`].

use std::collections::BTreeMap;

use engram_model::Millis;
use engram_model::digest::Digest;

use super::Head;
use super::append::{Outcome, Rules, SlotSum, digest_of};
use super::frozen::FrozenSet;
use super::payload::APPEND;
use super::series::Series;
use super::starts::Stamp;
use crate::chunk::ValueRef;
use crate::codec::{Broken, Reader};

/// Most samples that wait.
const SAMPLES_MAX: usize = 4 << 20;
/// So many samples are worth a thread.
const SAMPLES_MIN: usize = 1 << 15;

/// Samples of one set of rules that are not put in yet.
#[derive(Debug)]
pub(super) struct Gathered {
    rules: Rules,
    /// The series of each sample, in the order in which they came.
    refs: Vec<u32>,
    samples: Vec<(Millis, f64)>,
    /// Series that were made for them.
    created: Vec<u32>,
    min_at: Millis,
    max_at: Millis,
    /// Threads that may put them in.
    threads: usize,
}

/// What all series share while samples are put in.
#[derive(Clone, Copy)]
struct Shared<'a> {
    floor: Millis,
    frozen: &'a FrozenSet,
    window_ms: i64,
}

/// A range of series: the refs from `first` on, their slots, and their samples by index.
struct Part<'a> {
    first: u32,
    slots: &'a mut [Option<Box<Series>>],
    order: &'a [u32],
}

/// What putting in a part has done, for the head to take over.
#[derive(Default)]
struct Done {
    digests: BTreeMap<Millis, Digest>,
    /// Series of which chunks became full, and their bytes.
    full: Vec<(u32, usize)>,
    appended: u64,
    newest: Option<Millis>,
    /// Samples that are not newer than all of their series, and those behind them.
    left: Vec<u32>,
}

impl Gathered {
    fn new(rules: Rules, threads: usize) -> Self {
        Self {
            threads,
            rules,
            refs: Vec::new(),
            samples: Vec::new(),
            created: Vec::new(),
            min_at: Millis::MAX,
            max_at: Millis::MIN,
        }
    }

    #[inline]
    pub(super) fn push(&mut self, series_ref: u32, at: Millis, value: f64) {
        self.refs.push(series_ref);
        self.samples.push((at, value));
        self.min_at = self.min_at.min(at);
        self.max_at = self.max_at.max(at);
    }

    pub(super) fn create(&mut self, series_ref: u32) {
        self.created.push(series_ref);
    }

    /// Whether no sample can be refused for its age, whichever of them the newest was when it came.
    fn is_timeless(&self, newest: Option<Millis>) -> bool {
        let Rules { out_of_order_window_ms: late, in_order_age_max_ms: in_order, repair, .. } = self.rules;
        let in_order = if in_order > 0 { in_order.max(late) } else { i64::MAX };
        let late = if late > 0 { late } else { i64::MAX };
        let age_max = newest.unwrap_or(self.max_at).max(self.max_at).saturating_sub(self.min_at);
        repair || age_max <= in_order.min(late)
    }

    /// Indices of the samples by series, those of one series as they came.
    fn by_series(&self) -> Vec<u32> {
        let end = self.refs.iter().max().map_or(0, |last| *last as usize + 1);
        // Where the next sample of each series goes.
        let mut next = vec![0_u32; end + 1];
        self.refs.iter().for_each(|series_ref| next[*series_ref as usize + 1] += 1);
        let mut sum = 0;
        for count in &mut next {
            sum += *count;
            *count = sum;
        }
        let mut order = vec![0_u32; self.refs.len()];
        for (i, series_ref) in (0_u32..).zip(&self.refs) {
            let at = &mut next[*series_ref as usize];
            order[*at as usize] = i;
            *at += 1;
        }
        order
    }
}

impl Part<'_> {
    /// Cuts a range of series and their samples into as many parts as there may be threads for.
    fn cut<'a>(gathered: &Gathered, slots: &'a mut [Option<Box<Series>>], order: &'a [u32]) -> Vec<Part<'a>> {
        let count = gathered.threads.min(order.len() / SAMPLES_MIN).max(1);
        let mut rest = Part { first: 0, slots, order };
        let mut parts = Vec::with_capacity(count);
        for left in (2..=count).rev() {
            let Some(middle) = rest.order.get(rest.order.len() / left) else { break };
            let border = gathered.refs[*middle as usize];
            let samples = rest.order.partition_point(|i| gathered.refs[*i as usize] < border);
            let (own, order) = rest.order.split_at(samples);
            let slots = std::mem::take(&mut rest.slots);
            let (slots, behind) = slots.split_at_mut(((border - rest.first) as usize).min(slots.len()));
            parts.push(Part { first: rest.first, slots, order: own });
            rest = Part { first: border, slots: behind, order };
        }
        parts.push(rest);
        parts
    }

    fn put(self, gathered: &Gathered, shared: Shared<'_>) -> Done {
        let (mut done, mut slot) = (Done::default(), SlotSum::default());
        let series_of = |i: &u32| gathered.refs[*i as usize];
        for run in self.order.chunk_by(|a, b| series_of(a) == series_of(b)) {
            let series_ref = run.first().map_or(0, series_of);
            let series = self.slots.get_mut((series_ref - self.first) as usize).and_then(Option::as_deref_mut);
            let Some(series) = series else {
                done.left.extend(run);
                continue;
            };
            for (i, k) in run.iter().zip(0..) {
                let (at, value) = gathered.samples[*i as usize];
                let frozen = if at < shared.frozen.end { shared.frozen.bounds(series_ref) } else { None };
                let last = series.last().max(frozen.map(|bounds| bounds.1));
                if at < shared.floor || last.is_some_and(|last| at <= last) {
                    done.left.extend(&run[k..]);
                    break;
                }
                let value = ValueRef::Float(value);
                let full_bytes = series.append(at, value, shared.window_ms);
                if full_bytes > 0 {
                    done.full.push((series_ref, full_bytes));
                }
                slot.add(at, digest_of(series.hash(), at, value), &mut done.digests);
                done.appended += 1;
                done.newest = done.newest.max(Some(at));
            }
        }
        slot.flush(&mut done.digests);
        done
    }
}

impl Head {
    /// As [`Head::replay`], but samples may wait until [`Head::settle`]: before that the head is not to be read. As many as
    /// `threads` put them in.
    ///
    /// # Errors
    /// As [`Head::replay`].
    pub fn gather(&mut self, payload: &[u8], threads: usize) -> Result<(), Broken> {
        if payload.first() == Some(&APPEND) {
            let mut from = Reader::new(payload);
            from.u8()?;
            self.replay_append(&mut from, false, Some(threads))?;
            from.end()?;
        } else {
            self.put_gathered();
            let receipt = self.replay(payload)?;
            self.gathered_count += receipt.appended;
        }
        if self.gathered.as_ref().is_some_and(|gathered| gathered.refs.len() >= SAMPLES_MAX) {
            self.put_gathered();
        }
        Ok(())
    }

    /// Puts in all that was gathered, and says how many samples were taken since the last time.
    pub fn settle(&mut self) -> u64 {
        self.put_gathered();
        self.gathered = None;
        std::mem::take(&mut self.gathered_count)
    }

    /// What waits under these rules; what waits under others is put in.
    pub(super) fn gathered_under(&mut self, rules: &Rules, threads: usize) -> &mut Gathered {
        if self.gathered.as_ref().is_some_and(|gathered| gathered.rules != *rules) {
            self.put_gathered();
            self.gathered = None;
        }
        self.gathered.get_or_insert_with(|| Box::new(Gathered::new(*rules, threads)))
    }

    pub(super) fn put_gathered(&mut self) {
        let Some(mut gathered) = self.gathered.take() else { return };
        if gathered.is_timeless(self.newest) {
            let order = gathered.by_series();
            // Where series have starts, these are noted with each sample.
            let left = if self.starts.is_empty() { self.put_parts(&gathered, &order) } else { order };
            self.put_in_order(&gathered, left.into_iter().map(|i| i as usize));
        } else {
            self.put_in_order(&gathered, 0..gathered.refs.len());
        }
        self.note_bare(gathered.created.drain(..));
        // The buffers stay for what comes next.
        gathered.refs.clear();
        gathered.samples.clear();
        (gathered.min_at, gathered.max_at) = (Millis::MAX, Millis::MIN);
        self.gathered = Some(gathered);
    }

    /// Puts in what is newer than all of its series, by several threads; the others' indices.
    fn put_parts(&mut self, gathered: &Gathered, order: &[u32]) -> Vec<u32> {
        let shared = Shared { floor: self.floor, frozen: &self.frozen, window_ms: self.options.window_ms };
        let mut parts = Part::cut(gathered, &mut self.slots, order);
        let last = parts.pop();
        let done: Vec<Done> = std::thread::scope(|scope| {
            let others: Vec<_> =
                parts.into_iter().map(|part| scope.spawn(move || part.put(gathered, shared))).collect();
            let own = last.map(|part| part.put(gathered, shared));
            let joined = others.into_iter().map(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.chain(own).collect()
        });
        let mut left = Vec::new();
        for done in done {
            for (slot, digest) in done.digests {
                self.digests.entry(slot).or_default().add(digest);
            }
            done.full.into_iter().for_each(|(series_ref, bytes)| self.waiting.note(series_ref, bytes));
            self.sample_count += done.appended;
            self.gathered_count += done.appended;
            self.newest = self.newest.max(done.newest);
            left.extend(done.left);
        }
        left
    }

    fn put_in_order(&mut self, gathered: &Gathered, indices: impl Iterator<Item = usize>) {
        let mut slot = SlotSum::default();
        for i in indices {
            let (series_ref, (at, value)) = (gathered.refs[i], gathered.samples[i]);
            let stamp = Stamp { at, start: 0 };
            let outcome = self.put(series_ref, stamp, ValueRef::Float(value), &gathered.rules, &mut slot);
            self.gathered_count += u64::from(matches!(outcome, Outcome::Appended | Outcome::Replaced));
        }
        slot.flush(&mut self.digests);
    }
}
