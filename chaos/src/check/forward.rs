//! What only grows, only grows: at each node Raft's term and applied index, each partition's epoch, the fence of each lease
//! and each register's version as that node tells them; one version of a register has one value everywhere: the one that
//! somebody set at the version before, and was told so, or was told nothing; and a fence is given once, to one node for
//! one thing, whoever tells of it.
//!
//! A node whose disk was replaced is another one: it has another id in the cluster, by which its answers are told apart
//! from those of its place before.
//!
//! Of two answers of a node, the second counts as later when it was asked for after the first had come. Answers without
//! a leader or with another set of partitions are compared all the same: terms, epochs and versions may not go back, not
//! even over a kill or a power loss. The applied index may, over one: Raft keeps it in memory, and a node that restarts
//! learns from the leader again how far the log is committed. So it is compared with answers since the last fault only.
//!
//! Source: Raft (Ongaro, dissertation, figure 3.1: `currentTerm` is persistent, `lastApplied` volatile); DESIGN §4 for
//! epochs.

use super::Verdict;
use crate::history::{Answer, Call, End, History, Micros};
use std::collections::BTreeMap;

/// The highest value known of something, and since when.
#[derive(Clone, Debug, Default)]
struct Highest {
    /// Answers by the time they had come, values growing.
    known: Vec<(Micros, u64)>,
}

impl Highest {
    /// Takes an answer; the higher value that was known before it was asked for, if there is one.
    fn take(&mut self, began: Micros, ended: Micros, value: u64) -> Option<u64> {
        let before = self.known.partition_point(|(at, _)| *at < began);
        let known = before.checked_sub(1).map(|at| self.known[at].1);
        let at = self.known.partition_point(|(at, _)| *at <= ended);
        let value_here = at.checked_sub(1).map_or(value, |at| self.known[at].1.max(value));
        self.known.insert(at, (ended, value_here));
        for later in &mut self.known[at..] {
            later.1 = later.1.max(value_here);
        }
        known.filter(|known| *known > value)
    }
}

/// What may be a register's value at a version: each change that was not refused, with its beginning, and whether it was
/// acknowledged.
type Sets = BTreeMap<(u32, u64), Vec<(Micros, u64, bool)>>;

fn sets(history: &History) -> Sets {
    let mut sets = Sets::new();
    for op in history.ops.iter().filter(|op| op.end != End::Fail) {
        if let Call::Set { key, expected, value } = op.call {
            sets.entry((key, expected + 1)).or_default().push((op.began, value, op.end == End::Ok));
        }
    }
    sets
}

/// Why nobody can have seen this value at this version, if that is so.
fn unfounded(sets: &Sets, key: u32, version: u64, value: u64, ended: Micros) -> Option<String> {
    if version == 0 {
        return (value != 0).then(|| format!("register {key} does not exist yet and has value {value}"));
    }
    let all = sets.get(&(key, version)).map(Vec::as_slice).unwrap_or_default();
    if let Some((_, set, _)) = all.iter().find(|(_, _, acknowledged)| *acknowledged)
        && *set != value
    {
        return Some(format!("register {key} has value {value} at version {version}, {set} was acknowledged there"));
    }
    let known = all.iter().any(|(began, set, _)| *set == value && *began <= ended);
    (!known).then(|| format!("register {key} has value {value} at version {version}, which nobody had set there"))
}

/// Checks all answers about versions.
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict =
        Verdict::new("forward", "terms, applied indexes, epochs, fences and versions only grow at each node");
    let mut highest: BTreeMap<(u32, u64, String), Highest> = BTreeMap::new();
    let mut given: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    let sets = sets(history);
    let mut values: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    let (mut looked, mut leaders, mut last_term) = (0, 0_u64, None);
    let mut ops: Vec<_> = history.ops.iter().filter(|op| op.end == End::Ok).collect();
    ops.sort_by_key(|op| op.ended);
    for op in ops {
        let (ended, mut told, mut who) = (op.ended.unwrap_or(Micros::MAX), Vec::new(), 0);
        match (&op.call, &op.answer) {
            (Call::Status, Some(Answer::Status { term, applied, leader, epochs, id, fences })) => {
                who = *id;
                for (key, node, fence) in fences {
                    told.push((format!("fence of {key}"), *fence));
                    let first = given.entry(*fence).or_insert_with(|| (key.clone(), *node));
                    if *first != (key.clone(), *node) {
                        let (of, whose) = first;
                        verdict.fail(|| {
                            format!("fence {fence} is node {node}'s for {key}, and was node {whose}'s for {of}")
                        });
                    }
                }
                let lives = history.faults.iter().filter(|fault| fault.at < ended).count();
                told.extend([("term".to_owned(), *term), (format!("applied index after {lives} faults"), *applied)]);
                told.extend(epochs.iter().enumerate().map(|(at, epoch)| (format!("epoch of partition {at}"), *epoch)));
                // Nodes know different leaders at one time; a term has one at most.
                if leader.is_some() && Some(*term) > last_term {
                    (leaders, last_term) = (leaders + 1, Some(*term));
                }
            }
            (Call::Get { key }, Some(Answer::Register { version, value })) => {
                told.push((format!("version of register {key}"), *version));
                if let Some(why) = unfounded(&sets, *key, *version, *value, ended) {
                    verdict.fail(|| format!("node {}: {why}", op.node));
                }
                let first = values.entry((*key, *version)).or_insert(*value);
                if first != value {
                    verdict.fail(|| format!("register {key} has value {first} and value {value} at version {version}"));
                }
            }
            // It says what came after its own change.
            (Call::Set { key, expected, .. }, Some(Answer::Register { version, value })) if *version > expected + 1 => {
                if let Some(why) = unfounded(&sets, *key, *version, *value, ended) {
                    verdict.fail(|| format!("node {}: {why}", op.node));
                }
                continue;
            }
            _ => continue,
        }
        looked += 1;
        for (name, value) in told {
            if let Some(known) = highest.entry((op.node, who, name.clone())).or_default().take(op.began, ended, value) {
                let at = super::seconds(op.began);
                verdict.fail(|| format!("node {}: {name} is {value} at {at:.3} s, it was {known} before", op.node));
            }
        }
    }
    verdict.count("answers", looked);
    verdict.count("leaders seen", leaders);
    verdict.count("fences seen", given.len() as u64);
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{fault, history, op};
    use super::*;
    use crate::history::Op;

    fn status(node: u32, began: Micros, ended: Micros, term: u64, epoch: u64) -> Op {
        told(node, (began, ended), term, vec![4, epoch], 0, &[])
    }

    fn told(
        node: u32,
        (began, ended): (Micros, Micros),
        term: u64,
        epochs: Vec<u64>,
        id: u64,
        fences: &[(&str, u64, u64)],
    ) -> Op {
        let fences = fences.iter().map(|(key, node, fence)| ((*key).to_owned(), *node, *fence)).collect();
        let answer = Answer::Status { term, applied: 9, leader: Some(1), epochs, id, fences };
        op(node, Call::Status, began, ended, End::Ok, Some(answer))
    }

    #[test]
    fn a_fence_goes_back_nowhere_and_is_given_once() {
        let seen = |node, at, id, fences: &[(&str, u64, u64)]| told(node, (at, at + 1), 5, Vec::new(), id, fences);
        let good = [
            seen(0, 1, 7, &[("cut/a/1", 2, 30), ("cut/b/1", 2, 31)]),
            seen(0, 5, 7, &[("cut/a/1", 3, 40)]),
            // Another node that is behind; given back and taken again; the same place with an empty disk.
            seen(1, 9, 8, &[("cut/a/1", 2, 30)]),
            seen(0, 13, 7, &[("cut/b/1", 2, 41)]),
            seen(0, 17, 9, &[("cut/a/1", 2, 30)]),
        ];
        let verdict = check(&history(good.to_vec()));
        assert_eq!((verdict.outcome, verdict.figures["fences seen"]), (Outcome::Passed, 4.0), "{:?}", verdict.told);
        for (wrong, word) in [
            (seen(0, 21, 7, &[("cut/a/1", 2, 30)]), "it was 40 before"),
            (seen(1, 21, 8, &[("cut/a/1", 4, 40)]), "fence 40 is node 4's"),
            (seen(1, 21, 8, &[("cut/c/1", 3, 40)]), "and was node 3's for cut/a/1"),
        ] {
            let verdict = check(&history([good.to_vec(), vec![wrong]].concat()));
            assert!(verdict.outcome == Outcome::Failed && verdict.told[0].contains(word), "{:?}", verdict.told);
        }
    }

    fn get(node: u32, began: Micros, version: u64, value: u64) -> Op {
        op(node, Call::Get { key: 2 }, began, began + 1, End::Ok, Some(Answer::Register { version, value }))
    }

    fn set(began: Micros, key: u32, expected: u64, value: u64, end: End) -> Op {
        let answer = (end == End::Ok).then_some(Answer::Register { version: expected + 1, value });
        op(3, Call::Set { key, expected, value }, began, began + 1, end, answer)
    }

    #[test]
    fn a_value_that_nobody_set_at_its_version_is_found() {
        let sets = || vec![set(1, 2, 0, 7, End::Ok), set(3, 2, 1, 8, End::Unknown), set(3, 2, 1, 9, End::Fail)];
        let with = |more: Op| {
            let verdict = check(&history([sets(), vec![more]].concat()));
            (verdict.outcome, verdict.told.first().cloned().unwrap_or_default())
        };
        assert_eq!(with(get(0, 9, 1, 7)).0, Outcome::Passed);
        assert_eq!(with(get(0, 9, 2, 8)).0, Outcome::Passed, "it may have taken effect");
        assert_eq!(
            with(op(0, Call::Get { key: 2 }, 1, 2, End::Ok, Some(Answer::Register { version: 0, value: 0 }))).0,
            Outcome::Passed
        );
        for (wrong, word) in [
            (get(0, 9, 1, 6), "was acknowledged there"),
            (get(0, 9, 2, 9), "nobody had set"),
            (get(0, 9, 3, 8), "nobody had set"),
            (get(0, 1, 2, 8), "nobody had set"),
            (get(0, 9, 0, 8), "does not exist"),
        ] {
            let (outcome, told) = with(wrong);
            assert!(outcome == Outcome::Failed && told.contains(word), "{told}");
        }
        // An acknowledged change that names what came after it.
        let later = Some(Answer::Register { version: 2, value: 5 });
        assert_eq!(with(op(3, Call::Set { key: 2, expected: 0, value: 7 }, 5, 6, End::Ok, later)).0, Outcome::Failed);
    }

    fn applied(began: Micros, applied: u64) -> Op {
        let answer = Answer::Status { term: 1, applied, leader: None, epochs: Vec::new(), id: 0, fences: Vec::new() };
        op(0, Call::Status, began, began + 1, End::Ok, Some(answer))
    }

    #[test]
    fn what_raft_keeps_in_memory_may_go_back_over_a_fault() {
        let mut history = history(vec![applied(1, 9), applied(14, 8)]);
        history.faults = vec![fault(10, "power loss", crate::history::FaultState::Installed)];
        assert_eq!(check(&history).outcome, Outcome::Passed);
    }

    #[test]
    fn answers_that_overlap_and_other_nodes_say_nothing() {
        let ops = vec![
            status(0, 1, 9, 5, 5),
            status(0, 2, 8, 4, 4),
            status(1, 20, 21, 3, 3),
            set(1, 2, 6, 1, End::Ok),
            set(1, 2, 5, 2, End::Ok),
            get(0, 5, 7, 1),
            get(1, 9, 6, 2),
        ];
        assert_eq!(check(&history(ops)).outcome, Outcome::Passed);
    }

    #[test]
    fn a_term_an_epoch_and_a_version_that_go_back_are_found() {
        for ops in [
            vec![status(0, 1, 2, 5, 5), status(0, 3, 4, 4, 5)],
            vec![status(0, 1, 2, 5, 5), status(0, 3, 4, 5, 4)],
            vec![status(0, 1, 2, 5, 5), status(0, 1, 9, 4, 5), status(0, 3, 4, 4, 5)],
            vec![applied(1, 9), applied(4, 8)],
            vec![get(0, 1, 7, 1), get(0, 3, 6, 2)],
            vec![get(0, 1, 7, 1), get(1, 3, 7, 2)],
        ] {
            assert_eq!(check(&history(ops.clone())).outcome, Outcome::Failed, "{ops:?}");
        }
    }
}
