//! What a history must satisfy: one property a file, each tested with planted violations.
//!
//! - `samples`: what was acknowledged is there, once, nobody else's, and nothing that nobody wrote (I1, I2, I2b, I3, I9)
//! - `totals`: range queries count, add up and compare what was acknowledged, of the tenant who asks (I2, I3, I9)
//! - `ledger`: blocks are whole, read once, and digests add up to what was read (I5, I6)
//! - `register`: operations on a register happened in one order that fits their times (I7)
//! - `forward`: terms, applied indexes, epochs and versions only grow (I7)
//! - `agreement`: after the healing, the same question has the same answer at every node, and all replicas hold the
//!   same (I2b, I8); `held` lays them side by side
//! - `available`: acknowledgements do not stop for longer than promised, and nothing fails without a fault (I2)
//! - `constants`: questions about data that never changes have one answer (I2, I3)
//! - `prompt`: without a fault, changes of the metadata are answered in time
//! - `healed`: the cluster is whole and at one with itself soon after the faults (I8)
//! - `bounded`: what nodes take of their machine stays below what follows from the load, and does not grow
//! - `covered`: the faults were there, and work was done while they were
//!
//! A checker reads the history and nothing else. It trusts no answer more than another, and its verdict is one of
//! three: *passed*, *failed* with what was found, *unknown* when the history cannot tell, which it also is when too few
//! answers were seen to tell anything. Only passed is good. What a run left out is *not applicable*, never passed.

mod agreement;
mod available;
mod bounded;
mod constants;
mod covered;
mod forward;
mod healed;
mod held;
mod ledger;
mod prompt;
mod register;
mod samples;
mod totals;

pub(crate) use covered::{ROUND_DARK, ROUND_SERVED};
pub(crate) use healed::{AGREED, FAULTS_OVER, HEAL_BEGINS, LOAD_OVER, ROUND_WHOLE, WHOLE};
pub(crate) use held::{Compared, compare};

use crate::history::History;
use crate::workload::Numbers;
use serde::Serialize;
use std::collections::BTreeMap;

/// Figures that a checker needs, and how much of each: with less it has looked at nothing.
const NEEDED: [(&str, &str, f64); 10] = [
    ("totals", "queries", 10.0),
    ("totals", "exact answers", 10.0),
    ("ledger", "tenants", 1.0),
    ("ledger", "blocks", 1.0),
    ("register", "sets", 10.0),
    ("forward", "answers", 10.0),
    ("prompt", "changes without a fault", 5.0),
    ("constants", "answered", 10.0),
    ("bounded", "looks", 10.0),
    ("bounded", "nodes before and after", 1.0),
];
/// Findings that are told; all are counted.
const TOLD_MAX: usize = 20;

/// What a checker concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The run left out what it looks at.
    NotApplicable,
    Passed,
    Unknown,
    Failed,
}

/// A checker's verdict.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) checker: &'static str,
    /// What it says when it passes.
    pub(crate) property: &'static str,
    pub(crate) outcome: Outcome,
    /// The first findings, in words.
    pub(crate) told: Vec<String>,
    pub(crate) found: u64,
    /// Counts and times by name.
    pub(crate) figures: BTreeMap<&'static str, f64>,
}

impl Verdict {
    fn new(checker: &'static str, property: &'static str) -> Self {
        let (told, figures) = (Vec::new(), BTreeMap::new());
        Self { checker, property, outcome: Outcome::Passed, told, found: 0, figures }
    }

    fn fail(&mut self, text: impl FnOnce() -> String) {
        self.outcome = Outcome::Failed;
        self.found += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(text());
        }
    }

    /// The run did not ask what this looks at.
    fn left_out(mut self) -> Self {
        (self.outcome, self.found) = (Outcome::NotApplicable, 0);
        self.told.clear();
        self
    }

    /// Says *unknown* where too little was seen to tell anything.
    fn enough(mut self) -> Self {
        let checker = self.checker;
        for (_, name, least) in NEEDED.iter().filter(|(of, ..)| *of == checker) {
            let count = self.figures.get(name).copied().unwrap_or(0.0);
            if count < *least {
                self.cannot_tell(format!("{name}: {count}, at least {least} are needed to tell anything"));
            }
        }
        self
    }

    fn cannot_tell(&mut self, why: String) {
        self.outcome = self.outcome.max(Outcome::Unknown);
        self.told.push(why);
    }

    #[allow(clippy::cast_precision_loss, reason = "a figure to be read, far below 2^53")]
    fn count(&mut self, name: &'static str, count: u64) {
        self.figures.insert(name, count as f64);
    }

    fn seconds(&mut self, name: &'static str, micros: u64) {
        self.figures.insert(name, seconds(micros));
    }
}

/// Microseconds as seconds, for people.
#[allow(clippy::cast_precision_loss, reason = "a figure to be read, far below 2^53")]
pub(crate) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// What a scenario promises about availability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Longest time without any acknowledged write, milliseconds; `None`: writes may stop while faults last.
    pub(crate) ack_gap_max_ms: Option<u64>,
    /// The same, counted only from the moment of a fault until 2 s after it was done.
    pub(crate) gap_at_fault_max_ms: Option<u64>,
    /// Nine of ten acknowledged writes that begin while a fault is there take no longer, milliseconds.
    pub(crate) p90_during_max_ms: Option<u64>,
    /// Faults whose names begin like this take all of the cluster: what fails or stands still then, and until 2 s after, is
    /// counted and not held against the promise. Empty: none.
    pub(crate) save: &'static str,
    /// Writes are refused with 503 while faults last: one that nobody refuses was no such fault.
    pub(crate) refused: bool,
    /// Writes, and reads with questions, that may fail while faults last, besides those in flight at a node that is
    /// taken down.
    pub(crate) failed_writes_max: Option<u64>,
    pub(crate) failed_reads_max: Option<u64>,
    /// After the faults, so long may clients still fail, milliseconds.
    pub(crate) settle_ms: u64,
}

/// Who looks at every run; `available` at times without a fault as well.
pub(crate) const ALWAYS: [&str; 10] =
    ["samples", "totals", "register", "forward", "agreement", "prompt", "healed", "constants", "bounded", "covered"];

/// What was asked in a run, besides writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) totals: bool,
    pub(crate) constants: bool,
    /// Configurations were changed, and nodes asked what they know.
    pub(crate) registers: bool,
    /// Blocks were made and looked at.
    pub(crate) blocks: bool,
    /// What nodes take was measured, and they are ours: others have other needs.
    pub(crate) gauges: bool,
}

/// All checkers' verdicts.
pub(crate) fn all(history: &History, numbers: Numbers, promise: Promise, asked: Asked) -> Vec<Verdict> {
    let of = |asked: bool, verdict: Verdict| if asked { verdict.enough() } else { verdict.left_out() };
    vec![
        samples::check(history, numbers),
        of(asked.totals, totals::check(history, numbers)),
        of(asked.blocks, ledger::check(history, numbers)),
        of(asked.registers, register::check(history)),
        of(asked.registers, forward::check(history)),
        agreement::check(history, numbers),
        available::check(history, promise),
        of(asked.registers, prompt::check(history, promise)),
        healed::check(history),
        of(asked.constants, constants::check(history)),
        of(asked.gauges, bounded::check(history)),
        covered::check(history),
    ]
}

#[cfg(test)]
mod tests {
    //! Goal: a history in which nothing was seen passes nowhere.
    use super::*;

    const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 2, series: 1, step_ms: 10, late: true, shapes: true };

    #[test]
    fn who_looked_at_nothing_does_not_pass() {
        let everything = Asked { totals: true, constants: true, registers: true, blocks: true, gauges: true };
        let verdicts = all(&History::default(), NUMBERS, Promise::default(), everything);
        for verdict in &verdicts {
            assert_eq!(verdict.outcome, Outcome::Unknown, "{}", verdict.checker);
        }
        for (checker, name, _) in NEEDED {
            let verdict = verdicts.iter().find(|verdict| verdict.checker == checker).unwrap();
            assert!(verdict.figures.contains_key(name), "{checker} has no figure {name}");
        }
    }

    #[test]
    fn what_was_left_out_is_not_applicable() {
        let nothing = Asked { totals: false, constants: false, registers: false, blocks: false, gauges: false };
        let verdicts = all(&History::default(), NUMBERS, Promise::default(), nothing);
        let left_out: Vec<_> = verdicts.iter().filter(|v| v.outcome == Outcome::NotApplicable).collect();
        assert_eq!(left_out.len(), 7, "{left_out:?}");
        assert!(left_out.iter().all(|verdict| verdict.told.is_empty()));
    }
}

#[cfg(test)]
mod planted {
    //! Histories written by hand.
    use crate::history::{Answer, Call, End, Fault, FaultState, Found, History, Micros, Op, Runs, Stage};

    pub(super) fn op(node: u32, call: Call, began: Micros, ended: Micros, end: End, answer: Option<Answer>) -> Op {
        Op { node, call, began, ended: Some(ended), end, answer, why: String::new() }
    }

    pub(super) fn append(number: u32, began: Micros, end: End) -> Op {
        op(0, Call::Append { writer: 0, number }, began, began + 5, end, Some(Answer::Done))
    }

    pub(super) fn read(node: u32, began: Micros, last: u32, stage: Stage, runs: Runs) -> Op {
        let found = Found { groups: vec![(vec![0], runs)], odd: Vec::new() };
        let call = Call::Read { writer: 0, first: 1, last, stage };
        op(node, call, began, began + 5, End::Ok, Some(Answer::Samples(found)))
    }

    pub(super) fn fault(at: Micros, name: &str, state: FaultState) -> Fault {
        Fault { at, name: name.to_owned(), state, why: String::new() }
    }

    pub(super) fn history(mut ops: Vec<Op>) -> History {
        ops.sort_by_key(|op| op.began);
        History { ops, ..History::default() }
    }
}
