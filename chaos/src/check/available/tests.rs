//! Goal: what a scenario does not promise to forgive is found, and what was in flight at a node that is taken down is
//! forgiven once. Method: planted histories.

use super::super::Outcome;
use super::super::planted::{append, fault, history, op};
use super::*;
use crate::history::{Down, Stage, Total};

const STRICT: Promise = Promise {
    ack_gap_max_ms: Some(100),
    gap_at_fault_max_ms: None,
    p90_during_max_ms: None,
    save: "",
    refused: false,
    failed_writes_max: Some(0),
    failed_reads_max: Some(0),
    settle_ms: 10,
};
const FORGIVING: Promise = Promise { failed_writes_max: None, failed_reads_max: None, ..STRICT };

/// A write every 10 ms for a second at node 1, which is killed from 0.300 to 0.302 s and back at 0.5 s.
fn load(missing: std::ops::Range<u32>, more: Vec<Op>) -> History {
    let acks = (0..100).filter(|n| !missing.contains(n)).map(|n| append(n, u64::from(n) * 10_000, End::Ok));
    let mut history = history(acks.chain(more).collect());
    history.marks = vec![(0, "load".into()), (1_000_000, "load-over".into())];
    let (on, off) = (FaultState::Installed, FaultState::Healed);
    history.faults =
        vec![fault(300_000, "kill", on), fault(302_000, "kill", FaultState::Struck), fault(500_000, "kill", off)];
    history.downs = vec![Down { node: 1, from: 300_500, gone: Some(301_900) }];
    history
}

fn failed(node: u32, began: Micros) -> Op {
    let call = Call::Append { writer: 0, number: 200 };
    op(node, call, began, began + 5, End::Unknown, None)
}

fn outcome(more: Vec<Op>, promise: Promise) -> Outcome {
    check(&load(0..0, more), promise).outcome
}

#[test]
fn what_was_in_flight_at_the_hit_may_fail_and_nothing_else() {
    assert_eq!(outcome(Vec::new(), STRICT), Outcome::Passed);
    assert_eq!(outcome(vec![failed(1, 299_998)], STRICT), Outcome::Passed);
    assert_eq!(outcome(vec![failed(1, 400_000)], STRICT), Outcome::Failed);
    assert_eq!(outcome(vec![failed(1, 400_000)], FORGIVING), Outcome::Passed);
    assert_eq!(outcome(vec![failed(1, 301_000)], STRICT), Outcome::Passed, "it was not gone yet");
    // It settles for 10 ms, then there is no excuse.
    assert_eq!(outcome(vec![failed(1, 505_000)], FORGIVING), Outcome::Passed);
    for at in [511_000, 100_000] {
        let verdict = check(&load(0..0, vec![failed(1, at)]), FORGIVING);
        assert!(verdict.outcome == Outcome::Failed && verdict.told[0].starts_with("failed without"), "{verdict:?}");
    }
}

#[test]
fn in_flight_is_forgiven_at_the_node_that_is_taken_down_only_and_not_for_ever() {
    assert_eq!(outcome(vec![failed(2, 301_000)], STRICT), Outcome::Failed, "another node was not hit");
    let often = |times| (0..times).map(|n| failed(1, 299_998 + 500 * n)).collect::<Vec<_>>();
    assert_eq!(outcome(often(2), STRICT), Outcome::Passed);
    assert_eq!(outcome(often(3), STRICT), Outcome::Failed, "one client again and again");
    let other = op(1, Call::Append { writer: 1, number: 9 }, 301_000, 301_005, End::Unknown, None);
    assert_eq!(outcome(vec![failed(1, 299_998), other], STRICT), Outcome::Passed);
    // Nobody was taken down: a fault as such excuses nothing.
    let mut paused = load(0..0, vec![failed(1, 301_000)]);
    paused.downs.clear();
    assert_eq!(check(&paused, STRICT).outcome, Outcome::Failed);
}

#[test]
fn a_fault_of_which_nobody_knows_ends_with_its_end() {
    let mut history = load(0..0, vec![failed(2, 700_000)]);
    history.faults.insert(2, fault(490_000, "kill", FaultState::Unknown));
    assert_eq!(check(&history, FORGIVING).outcome, Outcome::Failed);
}

#[test]
fn questions_that_fail_are_found_as_reads_are() {
    let read = Call::Read { writer: 0, first: 1, last: 9, stage: Stage::Load };
    let totals = Call::Totals { tenant: 0, total: Total::Count, first: 20 };
    for call in [read, totals, Call::Constant { question: 0 }] {
        let at = |began| op(2, call.clone(), began, began + 5, End::Fail, None);
        assert_eq!(outcome(vec![at(100_000)], FORGIVING), Outcome::Failed, "without a fault: {call:?}");
        assert_eq!(outcome(vec![at(400_000)], STRICT), Outcome::Failed, "{call:?}");
        assert_eq!(outcome(vec![at(400_000)], FORGIVING), Outcome::Passed, "{call:?}");
    }
}

#[test]
fn a_gap_in_acknowledgements_is_found_also_at_the_end() {
    for missing in [40..60, 80..100] {
        assert_eq!(check(&load(missing.clone(), Vec::new()), STRICT).outcome, Outcome::Failed);
        let verdict = check(&load(missing, Vec::new()), Promise { ack_gap_max_ms: None, ..STRICT });
        assert_eq!(verdict.outcome, Outcome::Passed);
        assert!(verdict.figures["longest gap s"] > 0.15, "{verdict:?}");
    }
}

#[test]
fn a_gap_at_a_fault_has_a_bound_of_its_own_and_the_beginning_is_none() {
    let at_fault = Promise { ack_gap_max_ms: Some(1_000), gap_at_fault_max_ms: Some(100), ..STRICT };
    let verdict = check(&load(30..60, Vec::new()), at_fault);
    assert!(verdict.outcome == Outcome::Failed && verdict.figures["gaps at faults above 0.1 s"] == 1.0, "{verdict:?}");
    // Before the fault, and the time until the first: neither is the fault's.
    for missing in [5..25, 0..20] {
        let verdict = check(&load(missing, Vec::new()), at_fault);
        assert_eq!(verdict.outcome, Outcome::Passed, "{verdict:?}");
    }
    assert!(check(&load(0..20, Vec::new()), at_fault).figures["first acknowledgement s"] > 0.19);
    let mut late = load(0..0, Vec::new());
    late.ops.iter_mut().for_each(|op| op.ended = op.ended.map(|at| at + 1_100_000));
    assert!(check(&late, at_fault).told.iter().any(|told| told.starts_with("the first write")), "a late beginning");
}

#[test]
fn what_takes_all_of_the_cluster_is_saved_by_name_and_only_for_its_time() {
    let mut history = load(31..46, vec![failed(2, 400_000)]);
    let saving = Promise { save: "all lines", ..STRICT };
    assert_eq!(check(&history, saving).found, 2, "a failure and a gap");
    let of = |at, state| fault(at, "all lines break", state);
    let lines = [of(350_000, FaultState::Installed), of(420_000, FaultState::Healed)];
    history.faults.splice(2..2, lines);
    let verdict = check(&history, saving);
    assert_eq!(verdict.outcome, Outcome::Passed, "{verdict:?}");
    assert_eq!((verdict.figures["failed while nothing was promised"], verdict.figures["failed writes"]), (1.0, 0.0));
    let mut before = history.clone();
    before.ops.push(failed(2, 340_000));
    assert_eq!(check(&before, saving).outcome, Outcome::Failed);
}

#[test]
fn writes_that_a_fault_slows_down_and_refusals_that_do_not_come_are_found() {
    let quick = Promise { p90_during_max_ms: Some(250), ..FORGIVING };
    assert_eq!(outcome(Vec::new(), quick), Outcome::Passed);
    let slow = |at| op(2, Call::Append { writer: 3, number: 1 }, at, at + 300_000, End::Ok, None);
    let slowed = (0..10).map(|n| slow(310_000 + n)).collect();
    assert_eq!(outcome(slowed, quick), Outcome::Failed);
    let before = (0..10).map(|n| slow(100_000 + n)).collect();
    assert_eq!(outcome(before, quick), Outcome::Passed, "no fault was there");
    let full = Promise { refused: true, ..FORGIVING };
    assert_eq!(outcome(vec![failed(2, 400_000)], full), Outcome::Failed);
    let mut refused = failed(2, 400_000);
    refused.why = "503: no space".to_owned();
    assert_eq!(outcome(vec![refused], full), Outcome::Passed);
}
