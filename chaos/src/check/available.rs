//! Clients are served: as well as the scenario promises while faults last, and always when there are none.
//!
//! A write or read *fails* for its client when no node takes it or its end is not known. An operation that was in flight
//! at a node at the moment that node was hit may fail; so may one that the client itself sent to a node that is cut off,
//! when the scenario does not promise otherwise. What no scenario allows: failures when no fault is there and none was
//! for a while, and the healed cluster not serving.
//!
//! The longest gap is the longest stretch of the load in which nobody's write was acknowledged.

use super::{Promise, Verdict, seconds};
use crate::history::{Call, End, Fault, FaultState, History, Micros, Op};
use crate::workload::NOT_REACHED;

/// Gaps longer than this count as "not available".
const GAP_COUNTS: Micros = 1_000_000;

/// A stretch of time, and its end.
pub(super) type Span = (Micros, Micros);

/// Stretches in which a fault was there, each as long as the settling after it; sorted, not overlapping.
pub(super) fn faulty(history: &History, settle_ms: u64) -> Vec<Span> {
    let mut open: Vec<(&str, Micros)> = Vec::new();
    let mut spans: Vec<Span> = Vec::new();
    for fault in &history.faults {
        match fault.state {
            FaultState::Installed | FaultState::Unknown => open.push((&fault.name, fault.at)),
            FaultState::Healed => {
                let Some(at) = open.iter().position(|(name, _)| *name == fault.name) else { continue };
                spans.push((open.remove(at).1, fault.at + settle_ms * 1000));
            }
            FaultState::Struck | FaultState::Skipped => {}
        }
    }
    spans.extend(open.into_iter().map(|(_, from)| (from, Micros::MAX)));
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for (from, to) in spans {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// From when a fault began to be done until it was done: what is in flight then may be lost by it. A process takes a
/// while to die, and answers nobody meanwhile.
fn hits(history: &History) -> Vec<Span> {
    let installed = history.faults.iter().filter(|fault| fault.state == FaultState::Installed);
    let struck = |from: &Fault| {
        let done = |to: &&Fault| to.state == FaultState::Struck && to.name == from.name && to.at >= from.at;
        history.faults.iter().find(done).map_or(from.at, |to| to.at)
    };
    installed.map(|fault| (fault.at, struck(fault))).collect()
}

/// Checks writes and reads of the load.
pub(super) fn check(history: &History, promise: Promise) -> Verdict {
    let mut verdict = Verdict::new("available", "served as promised during faults, and always without them");
    let (from, to) = (history.mark("load").unwrap_or(0), history.mark(super::LOAD_OVER).unwrap_or(history.end()));
    let spans = faulty(history, promise.settle_ms);
    let hits = hits(history);
    let of = |op: &Op| match op.call {
        Call::Append { .. } => Some(true),
        Call::Read { .. } => Some(false),
        _ => None,
    };
    let failed = |op: &Op| op.end != End::Ok && !op.why.starts_with(NOT_REACHED);
    let (mut counts, mut latencies, mut acks) = ([[0_u64; 3]; 2], Vec::new(), vec![from]);
    for op in history.ops.iter().filter(|op| op.began >= from && op.began <= to) {
        let Some(write) = of(op) else { continue };
        let ended = op.ended.unwrap_or(Micros::MAX);
        if write && op.end == End::Ok {
            acks.push(ended);
            latencies.push(ended.saturating_sub(op.began));
        }
        if !failed(op) {
            continue;
        }
        let in_fault = spans.iter().any(|(from, to)| op.began <= *to && ended >= *from);
        let at_hit = hits.iter().any(|(from, to)| op.began <= *to && ended >= *from);
        let kind = if !in_fault {
            0
        } else if at_hit {
            1
        } else {
            2
        };
        counts[usize::from(write)][kind] += 1;
        if kind == 0 {
            let at = seconds(op.began);
            verdict
                .fail(|| format!("failed without a fault: {:?} at node {} at {at:.3} s: {}", op.call, op.node, op.why));
        }
    }
    for (write, name, at_hit, max) in [
        (1, "failed writes", "failed writes in flight at a hit", promise.failed_writes_max),
        (0, "failed reads", "failed reads in flight at a hit", promise.failed_reads_max),
    ] {
        let failed = counts[write][2];
        verdict.count(name, failed + counts[write][0]);
        verdict.count(at_hit, counts[write][1]);
        if let Some(max) = max.filter(|max| failed > *max) {
            verdict.fail(|| format!("{failed} {name} during faults, promised are at most {max}"));
        }
    }
    gaps(&mut verdict, acks, to, promise);
    latencies.sort_unstable();
    for (name, per_mille) in [("write p50 s", 500), ("write p99 s", 990), ("write max s", 1000)] {
        let at = (latencies.len() * per_mille / 1000).min(latencies.len().saturating_sub(1));
        verdict.seconds(name, latencies.get(at).copied().unwrap_or(0));
    }
    verdict
}

fn gaps(verdict: &mut Verdict, mut acks: Vec<Micros>, to: Micros, promise: Promise) {
    acks.push(to);
    acks.sort_unstable();
    let gaps = || acks.windows(2).map(|pair| (pair[1].saturating_sub(pair[0]), pair[0]));
    let (longest, at) = gaps().max().unwrap_or((0, 0));
    verdict.seconds("longest gap s", longest);
    verdict.seconds("unavailable s", gaps().map(|(gap, _)| gap).filter(|gap| *gap > GAP_COUNTS).sum());
    if let Some(max) = promise.ack_gap_max_ms.filter(|max| longest > max * 1000) {
        let (gap, at) = (seconds(longest), seconds(at));
        verdict.fail(|| format!("no write was acknowledged for {gap:.3} s from {at:.3} s on, promised are {max} ms"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{append, fault, history};
    use super::*;

    const STRICT: Promise =
        Promise { ack_gap_max_ms: Some(100), failed_writes_max: Some(0), failed_reads_max: Some(0), settle_ms: 10 };

    fn verdict(failing_at: Option<Micros>, missing: std::ops::Range<u32>, promise: Promise) -> Verdict {
        let acks = (0..100).filter(|n| !missing.contains(n)).map(|n| append(n, u64::from(n) * 10_000, End::Ok));
        let mut ops: Vec<_> = acks.collect();
        ops.extend(failing_at.map(|at| append(200, at, End::Unknown)));
        let mut history = history(ops);
        history.marks = vec![(0, "load".into()), (1_000_000, "load-over".into())];
        let (on, off) = (FaultState::Installed, FaultState::Healed);
        history.faults =
            vec![fault(300_000, "kill", on), fault(302_000, "kill", FaultState::Struck), fault(500_000, "kill", off)];
        check(&history, promise)
    }

    #[test]
    fn what_was_in_flight_at_the_hit_may_fail_and_nothing_else() {
        assert_eq!(verdict(None, 0..0, STRICT).outcome, Outcome::Passed);
        assert_eq!(verdict(Some(299_998), 0..0, STRICT).outcome, Outcome::Passed);
        assert_eq!(verdict(Some(400_000), 0..0, STRICT).outcome, Outcome::Failed);
        let lenient = Promise { failed_writes_max: None, ..STRICT };
        assert_eq!(verdict(Some(400_000), 0..0, lenient).outcome, Outcome::Passed);
        assert_eq!(verdict(Some(301_000), 0..0, STRICT).outcome, Outcome::Passed, "it was not done yet");
        // It settles for 10 ms, then there is no excuse.
        assert_eq!(verdict(Some(505_000), 0..0, lenient).outcome, Outcome::Passed);
        for at in [511_000, 100_000] {
            let verdict = verdict(Some(at), 0..0, lenient);
            assert!(verdict.outcome == Outcome::Failed && verdict.told[0].starts_with("failed without"), "{verdict:?}");
        }
    }

    #[test]
    fn a_gap_in_acknowledgements_is_found_also_at_the_end() {
        for missing in [40..60, 80..100] {
            assert_eq!(verdict(None, missing.clone(), STRICT).outcome, Outcome::Failed);
            let lenient = Promise { ack_gap_max_ms: None, ..STRICT };
            let verdict = verdict(None, missing, lenient);
            assert_eq!(verdict.outcome, Outcome::Passed);
            assert!(verdict.figures["longest gap s"] > 0.15, "{verdict:?}");
        }
    }
}
