//! The run was worth something: there was a fault, each was taken away again, and work was done while it was there.
//!
//! A run in which nothing broke because nothing was broken must not pass; nor one whose clients stood still when it
//! mattered. So there is at least one fault, and in the time of each that was there for a second or longer operations
//! began; where the fault leaves a majority alive (the adversary says so of each round), some also succeeded. A fault
//! that this machine cannot do, or of which nobody knows whether it was there, makes the verdict *unknown*.
//!
//! Source: openraft's Jepsen suite, `error-handling-semantics.md` (coverage apart from findings).

use super::Verdict;
use crate::history::{Call, End, FaultState, History, Micros, Op};
use std::collections::BTreeMap;

/// What the adversary marks before a round: its fault leaves a majority of everything alive, or perhaps not.
pub(crate) const ROUND_SERVED: &str = "round: a majority lives";
pub(crate) const ROUND_DARK: &str = "round: perhaps no majority lives";

/// Operations that must have ended well in the whole run.
const OPERATIONS_MIN: usize = 100;
/// Faults that are there for less time need no operations in it.
const SHORT: Micros = 1_000_000;

/// A fault's time: from when it was done until it was taken away.
struct Span<'a> {
    name: &'a str,
    from: Micros,
    to: Micros,
}

/// Checks that the history is one of a broken cluster under load.
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::new("covered", "faults were there and healed, and operations succeeded while each was");
    let spans = spans(history, &mut verdict);
    let fewest = spans.iter().filter(|span| span.to - span.from >= SHORT).map(|span| worked(history, span)).collect();
    let (began, succeeded) = conclude(fewest, &mut verdict);
    let well = history.ops.iter().filter(|op| op.end == End::Ok).count();
    let installed = history.faults.iter().filter(|fault| fault.state == FaultState::Installed).count();
    if installed == 0 {
        verdict.cannot_tell("there was no fault, that proves nothing".to_owned());
    }
    verdict.count("operations", history.ops.len() as u64);
    verdict.count("succeeded", well as u64);
    verdict.count("faults", installed as u64);
    verdict.count("fewest operations in a fault", began);
    verdict.count("fewest succeeded in a fault", succeeded);
    if well < OPERATIONS_MIN {
        verdict.cannot_tell(format!("only {well} operations succeeded, that proves nothing"));
    }
    verdict
}

/// The faults that were installed and healed; what else became of one is told.
fn spans<'a>(history: &'a History, verdict: &mut Verdict) -> Vec<Span<'a>> {
    let mut open: BTreeMap<&str, Vec<Micros>> = BTreeMap::new();
    let mut spans = Vec::new();
    for fault in &history.faults {
        let (name, at) = (fault.name.as_str(), fault.at);
        match fault.state {
            FaultState::Installed => open.entry(name).or_default().push(at),
            FaultState::Struck => {
                if let Some(from) = open.get_mut(name).and_then(|all| all.last_mut()) {
                    *from = at;
                }
            }
            FaultState::Healed => {
                let from = open.get_mut(name).and_then(Vec::pop);
                spans.extend(from.map(|from| Span { name, from, to: at }));
            }
            FaultState::Skipped => verdict.cannot_tell(format!("skipped: {name}: {}", fault.why)),
            FaultState::Unknown => verdict.cannot_tell(format!("perhaps not installed: {name}: {}", fault.why)),
        }
    }
    for (name, _) in open.iter().filter(|(_, all)| !all.is_empty()) {
        verdict.cannot_tell(format!("never healed: {name}"));
    }
    spans
}

/// What was begun while a fault was there, what of it succeeded before it was taken away, and whether something had to.
fn worked<'a>(history: &History, span: &Span<'a>) -> (&'a str, u64, u64, bool) {
    let works = |op: &&Op| !matches!(op.call, Call::Status | Call::Get { .. } | Call::Flush { .. });
    let during = || history.ops.iter().filter(works).filter(|op| op.began >= span.from && op.began <= span.to);
    let well = during().filter(|op| op.end == End::Ok && op.ended.is_some_and(|ended| ended <= span.to)).count();
    let mut rounds =
        history.marks.iter().filter(|(at, name)| *at <= span.from && (name == ROUND_SERVED || name == ROUND_DARK));
    let served = rounds.next_back().is_some_and(|(_, name)| name == ROUND_SERVED);
    (span.name, during().count() as u64, well as u64, served)
}

/// The fewest operations of all faults; a fault without any is told.
fn conclude(all: Vec<(&str, u64, u64, bool)>, verdict: &mut Verdict) -> (u64, u64) {
    for (name, began, well, served) in &all {
        if *began == 0 {
            verdict.cannot_tell(format!("nobody asked for anything during: {name}"));
        } else if *served && *well == 0 {
            verdict.cannot_tell(format!("of {began} operations none succeeded during: {name}"));
        }
    }
    let began = all.iter().map(|(_, began, ..)| *began).min().unwrap_or(0);
    (began, all.iter().filter(|(.., served)| *served).map(|(_, _, well, _)| *well).min().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{append, fault, history};
    use super::*;
    use crate::history::Fault;

    /// 200 operations, one each 100 ms; none in `quiet`, and those in `failing` fail.
    fn load(quiet: std::ops::Range<u32>, failing: std::ops::Range<u32>) -> History {
        let end = |n| if failing.contains(&n) { End::Unknown } else { End::Ok };
        let ops = (1..200).filter(|n| !quiet.contains(n)).map(|n| append(n, u64::from(n) * 100_000, end(n)));
        let mut history = history(ops.collect());
        history.faults = kill(5);
        history.marks = vec![(4_000_000, ROUND_SERVED.to_owned())];
        history
    }

    fn kill(at: Micros) -> Vec<Fault> {
        let of = |seconds: Micros, state| fault(seconds * 1_000_000, "kill", state);
        vec![of(at, FaultState::Installed), of(at, FaultState::Struck), of(at + 3, FaultState::Healed)]
    }

    #[test]
    fn a_fault_that_was_not_there_proves_nothing() {
        let mut history = load(0..0, 0..0);
        let passed = check(&history);
        assert_eq!(passed.outcome, Outcome::Passed, "{:?}", passed.told);
        assert!(passed.figures["fewest succeeded in a fault"] > 25.0, "{:?}", passed.figures);
        for state in [FaultState::Skipped, FaultState::Unknown, FaultState::Installed] {
            let mut other = history.clone();
            other.faults.push(fault(9_000_000, "kill", state));
            assert_eq!(check(&other).outcome, Outcome::Unknown, "{state:?}");
        }
        let none = History { faults: Vec::new(), ..history.clone() };
        assert_eq!(check(&none).outcome, Outcome::Unknown, "there was no fault at all");
        history.ops.truncate(90);
        assert_eq!(check(&history).outcome, Outcome::Unknown);
    }

    #[test]
    fn a_fault_during_which_nothing_was_done_proves_nothing() {
        assert_eq!(check(&load(45..85, 0..0)).outcome, Outcome::Unknown, "nobody asked");
        assert_eq!(check(&load(0..0, 45..85)).outcome, Outcome::Unknown, "a majority lived and nothing succeeded");
        let mut dark = load(0..0, 45..85);
        dark.marks.push((4_500_000, ROUND_DARK.to_owned()));
        assert_eq!(check(&dark).outcome, Outcome::Passed, "nothing had to succeed");
        // Of two faults one suffices.
        let mut two = load(45..85, 0..0);
        two.faults.extend(kill(12));
        assert_eq!(check(&two).outcome, Outcome::Unknown);
    }
}
