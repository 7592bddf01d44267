//! What a history must satisfy: one property a file, each tested with planted violations.
//!
//! - `samples`: what was acknowledged is there, once, nobody else's, and nothing that nobody wrote (I1, I2, I2b, I3, I9)
//! - `totals`: range queries count, add up and compare what was acknowledged, of the tenant who asks (I2, I3, I9)
//! - `ledger`: blocks are whole, read once, and digests add up to what was read (I5, I6)
//! - `register`: operations on a register happened in one order that fits their times (I7)
//! - `forward`: terms, applied indexes, epochs and versions only grow (I7)
//! - `agreement`: after the healing, the same question has the same answer at every node (I2b, I8)
//! - `available`: acknowledgements do not stop for longer than promised, and nothing fails without a fault (I2)
//! - `constants`: questions about data that never changes have one answer (I2, I3)
//! - `prompt`: without a fault, changes of the metadata are answered in time
//! - `healed`: the cluster is whole and at one with itself soon after the faults (I8)
//! - `covered`: the faults were there, and work was done while they were
//!
//! A checker reads the history and nothing else. It trusts no answer more than another, and its verdict is one of
//! three: *passed*, *failed* with what was found, *unknown* when the history cannot tell. Only passed is good.

mod agreement;
mod available;
mod constants;
mod covered;
mod forward;
mod healed;
mod ledger;
mod prompt;
mod register;
mod samples;
mod totals;

pub(crate) use healed::{AGREED, FAULTS_OVER, LOAD_OVER, WHOLE};

use crate::history::History;
use crate::workload::Numbers;
use serde::Serialize;
use std::collections::BTreeMap;

/// Findings that are told; all are counted.
const TOLD_MAX: usize = 20;

/// What a checker concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
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

/// What a scenario promises about availability, and which faults it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Longest time without any acknowledged write, milliseconds; `None`: writes may stop while faults last.
    pub(crate) ack_gap_max_ms: Option<u64>,
    /// Writes and reads that may fail while faults last, besides those in flight at a node that is killed.
    pub(crate) failed_writes_max: Option<u64>,
    pub(crate) failed_reads_max: Option<u64>,
    /// After the faults, so long may clients still fail, milliseconds.
    pub(crate) settle_ms: u64,
}

/// All checkers' verdicts.
pub(crate) fn all(history: &History, numbers: Numbers, promise: Promise) -> Vec<Verdict> {
    vec![
        samples::check(history, numbers),
        totals::check(history, numbers),
        ledger::check(history, numbers),
        register::check(history),
        forward::check(history),
        agreement::check(history),
        available::check(history, promise),
        prompt::check(history, promise),
        healed::check(history),
        constants::check(history),
        covered::check(history),
    ]
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
