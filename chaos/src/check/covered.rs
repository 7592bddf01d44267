//! The run was worth something: each fault it needed was there, was taken away again, and work was done meanwhile.
//!
//! A run in which nothing broke because nothing was broken must not pass. A fault that this machine cannot do, or of
//! which nobody knows whether it was there, makes the verdict *unknown*.
//!
//! Source: openraft's Jepsen suite, `error-handling-semantics.md` (coverage apart from findings).

use super::Verdict;
use crate::history::{End, FaultState, History};
use std::collections::BTreeMap;

/// Operations that must have ended well in the whole run.
const OPERATIONS_MIN: usize = 100;

/// Checks that the history is one of a broken cluster under load.
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict =
        Verdict::new("covered", "every fault was installed and healed, and operations succeeded meanwhile");
    let (mut installed, mut open) = (0, BTreeMap::new());
    for fault in &history.faults {
        match fault.state {
            FaultState::Installed => {
                installed += 1;
                *open.entry(&fault.name).or_insert(0) += 1;
            }
            FaultState::Healed => *open.entry(&fault.name).or_insert(0) -= 1,
            FaultState::Struck => {}
            FaultState::Skipped => verdict.cannot_tell(format!("skipped: {}: {}", fault.name, fault.why)),
            FaultState::Unknown => verdict.cannot_tell(format!("perhaps not installed: {}: {}", fault.name, fault.why)),
        }
    }
    for (name, _) in open.iter().filter(|(_, count)| **count > 0) {
        verdict.cannot_tell(format!("never healed: {name}"));
    }
    let well = history.ops.iter().filter(|op| op.end == End::Ok).count();
    verdict.count("operations", history.ops.len() as u64);
    verdict.count("succeeded", well as u64);
    verdict.count("faults", installed);
    if well < OPERATIONS_MIN {
        verdict.cannot_tell(format!("only {well} operations succeeded, that proves nothing"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{append, fault, history};
    use super::*;

    #[test]
    fn a_fault_that_was_not_there_proves_nothing() {
        let mut history = history((1..200).map(|n| append(n, u64::from(n), End::Ok)).collect());
        let (on, off) = (FaultState::Installed, FaultState::Healed);
        history.faults = vec![fault(1, "kill", on), fault(2, "kill", off)];
        assert_eq!(check(&history).outcome, Outcome::Passed);
        for state in [FaultState::Skipped, FaultState::Unknown, on] {
            let mut other = history.clone();
            other.faults.push(fault(3, "kill", state));
            assert_eq!(check(&other).outcome, Outcome::Unknown, "{state:?}");
        }
        history.ops.truncate(50);
        assert_eq!(check(&history).outcome, Outcome::Unknown);
    }
}
