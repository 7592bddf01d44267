//! Changes of the metadata are answered in time when nothing is broken, and how long they take at all.
//!
//! A configuration change goes through the metadata group: while it has no leader, or its log does not get on, samples
//! still flow and nobody would notice. What begins while a fault is there, or shortly after, may take as long as it likes;
//! its times are figures only. What begins otherwise has an end that is known, within a bound.

use super::available::faulty;
use super::{Promise, Verdict, seconds};
use crate::history::{Call, End, History, Micros, Op};
use crate::workload::NOT_REACHED;

/// Longest time a change may take without a fault; as long as clients wait.
const WITHIN: Micros = 5_000_000;

/// Checks all changes and majority reads of registers.
pub(super) fn check(history: &History, promise: Promise) -> Verdict {
    let mut verdict = Verdict::new("prompt", "without a fault, changes of the metadata are answered within 5 s");
    let (from, to) = (history.mark("load").unwrap_or(0), history.mark(super::LOAD_OVER).unwrap_or(history.end()));
    let spans = faulty(history, promise.settle_ms);
    let (mut calm, mut broken) = (Vec::new(), Vec::new());
    let asks = |op: &&Op| matches!(op.call, Call::Set { .. } | Call::Probe { .. }) && op.began >= from;
    for op in history.ops.iter().filter(asks).filter(|op| !op.why.starts_with(NOT_REACHED)) {
        let ended = op.ended.unwrap_or(Micros::MAX);
        let took = ended.saturating_sub(op.began);
        if spans.iter().any(|(from, to)| op.began <= *to && ended >= *from) || ended > to {
            broken.push(took);
            continue;
        }
        calm.push(took);
        if op.end == End::Unknown || took > WITHIN {
            let (at, took) = (seconds(op.began), seconds(took));
            verdict.fail(|| {
                format!("{:?} at node {} at {at:.3} s took {took:.3} s without a fault: {}", op.call, op.node, op.why)
            });
        }
    }
    for (times, count, p99, max) in [
        (calm, "changes without a fault", "p99 s", "max s"),
        (broken, "changes during faults", "p99 s during faults", "max s during faults"),
    ] {
        let mut times: Vec<Micros> = times.into_iter().filter(|took| *took < Micros::MAX / 2).collect();
        times.sort_unstable();
        verdict.count(count, times.len() as u64);
        let at = |per_mille: usize| times.get(times.len() * per_mille / 1000).or(times.last()).copied().unwrap_or(0);
        verdict.seconds(p99, at(990));
        verdict.seconds(max, at(1000));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{fault, history, op};
    use super::*;
    use crate::history::FaultState;

    fn set(began: Micros, took: Micros, end: End) -> Op {
        op(1, Call::Set { key: 0, expected: 1, value: 2 }, began, began + took, end, None)
    }

    #[test]
    fn slow_is_forgiven_during_faults_only() {
        let verdict = |ops| {
            let mut history = history(ops);
            history.faults =
                vec![fault(10_000_000, "cut", FaultState::Installed), fault(20_000_000, "cut", FaultState::Healed)];
            history.marks = vec![(0, "load".to_owned()), (90_000_000, super::super::LOAD_OVER.to_owned())];
            check(&history, Promise { settle_ms: 1_000, ..Promise::default() })
        };
        let fine = vec![
            set(1, 4_000_000, End::Ok),
            set(9_000_000, 9_000_000, End::Ok),
            set(20_500_000, 6_000_000, End::Unknown),
        ];
        let passed = verdict(fine);
        assert_eq!(passed.outcome, Outcome::Passed, "{:?}", passed.told);
        assert_eq!((passed.figures["changes without a fault"], passed.figures["max s"]), (1.0, 4.0));
        assert_eq!(verdict(vec![set(30_000_000, 5_000_001, End::Ok)]).outcome, Outcome::Failed);
        assert_eq!(verdict(vec![set(30_000_000, 9, End::Unknown)]).outcome, Outcome::Failed);
        // A refusal is an answer.
        assert_eq!(verdict(vec![set(30_000_000, 9, End::Fail)]).outcome, Outcome::Passed);
    }
}
