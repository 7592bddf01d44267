//! After the healing, the same question has the same answer, at every node and every time.
//!
//! A read that asks a majority can hide for ever that replicas differ: which majority answers decides what is seen. So
//! everything is read many times at all nodes, at rest, and all answers about a writer must be the same. Where replicas
//! were rebuilt or damaged it is read again while each node in turn is away: what too few replicas have is missing then.
//! And the digests that the nodes tell of each tenant must be the digest of what was read. Last, each node tells what its
//! own replicas hold, and all members of a partition's set must hold the same ([`held`]).
//!
//! Source: DESIGN §9, I2b and I8; the fault that this finds elsewhere: 12 of 24 reads short after two zones were killed.

use super::{Verdict, held, ledger};
use crate::history::{Answer, Call, Found, Held, History, Stage};
use crate::workload::Numbers;
use engram_model::digest::Digest;
use std::collections::BTreeMap;

/// Checks the reads after the healing.
pub(super) fn check(history: &History, numbers: Numbers) -> Verdict {
    let mut verdict = Verdict::new("agreement", "identical reads after the healing are identical, at every node");
    let mut answers: BTreeMap<u32, Vec<(u32, &Found)>> = BTreeMap::new();
    let mut unanswered = 0;
    for op in &history.ops {
        let Call::Read { writer, stage: Stage::Final | Stage::Again, .. } = op.call else { continue };
        match &op.answer {
            Some(Answer::Samples(found)) => answers.entry(writer).or_default().push((op.node, found)),
            _ => {
                unanswered += 1;
                verdict.fail(|| format!("writer {writer} was not read at node {} at rest: {}", op.node, op.why));
            }
        }
    }
    let (mut reads, mut differing) = (0, 0);
    for (writer, all) in &answers {
        reads += all.len() as u64;
        let Some((_, most)) = all.iter().max_by_key(|(_, found)| samples(found)) else { continue };
        for (node, found) in all.iter().filter(|(_, found)| found != most) {
            differing += 1;
            verdict.fail(|| {
                format!(
                    "writer {writer} has {} samples at node {node}, in another read {}",
                    samples(found),
                    samples(most)
                )
            });
        }
    }
    digests(history, numbers, &mut verdict);
    replicas(history, &mut verdict);
    verdict.count("reads", reads);
    verdict.count("differing", differing);
    verdict.count("unanswered", unanswered);
    if reads == 0 {
        verdict.cannot_tell("nothing was read after the healing".to_owned());
    }
    verdict
}

/// Each node's digest of each tenant is the digest of what was read.
fn digests(history: &History, numbers: Numbers, verdict: &mut Verdict) {
    let (read, mut shown, mut told) = (ledger::read(history), BTreeMap::new(), 0);
    for op in &history.ops {
        let Call::Digest { tenant } = op.call else { continue };
        let Some(Answer::Digest(stored)) = &op.answer else {
            verdict.fail(|| format!("node {} told no digest of tenant {tenant} at rest: {}", op.node, op.why));
            continue;
        };
        told += 1;
        let writers = (0..numbers.writers).filter(|writer| numbers.tenant(*writer) == numbers.tenant(tenant));
        let sum = || writers.filter_map(|w| Some(ledger::digest(numbers, w, read.get(&w)?))).sum::<Digest>();
        let shown = shown.entry(tenant).or_insert_with(sum);
        if shown != stored {
            verdict.fail(|| format!("tenant {tenant}: node {} has {stored:?} stored, {shown:?} was read", op.node));
        }
    }
    verdict.count("digests", told);
}

/// All replicas of a partition hold the same.
fn replicas(history: &History, verdict: &mut Verdict) {
    let mut looks: BTreeMap<(bool, &str), Vec<&Held>> = BTreeMap::new();
    for op in &history.ops {
        let Call::Held { tenant, stage } = &op.call else { continue };
        match &op.answer {
            Some(Answer::Held { replicas }) => {
                looks.entry((*stage == Stage::Again, tenant)).or_default().extend(replicas);
            }
            _ => verdict.fail(|| format!("node {} does not tell what it holds of {tenant}: {}", op.node, op.why)),
        }
    }
    let (mut replicas, mut alike, mut left_out) = (0, 0, 0);
    for ((again, tenant), told) in &looks {
        let compared = held::compare(told.iter().copied());
        (replicas, alike) = (replicas + compared.replicas, alike + compared.alike);
        left_out += compared.left_out;
        let when = if *again { ", all in blocks" } else { "" };
        for what in compared.differing {
            verdict.fail(|| format!("replicas of {tenant} differ{when}: {what}"));
        }
    }
    verdict.count("replicas", replicas);
    verdict.count("slots alike", alike);
    verdict.count("slots left out", left_out);
}

fn samples(found: &Found) -> u64 {
    let of = |runs: &[(u32, u32)]| runs.iter().map(|(first, last)| u64::from(last - first) + 1).sum::<u64>();
    found.groups.iter().map(|(series, runs)| series.len() as u64 * of(runs)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::held::planted::held;
    use super::super::planted::{history, op, read};
    use super::*;
    use crate::history::End;

    const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 2, series: 1, step_ms: 10, late: true, shapes: true };

    #[test]
    fn a_digest_of_one_node_that_is_not_what_was_read_is_found() {
        let of =
            |last| ledger::digest(NUMBERS, 0, &Found { groups: vec![(vec![0], vec![(1, last)])], odd: Vec::new() });
        let told = |node, last| op(node, Call::Digest { tenant: 0 }, 9, 10, End::Ok, Some(Answer::Digest(of(last))));
        let with = |more: Vec<_>| {
            let reads = (0..3).map(|node| read(node, 1, 9, Stage::Again, vec![(1, 4)]));
            check(&history(reads.chain(more).collect()), NUMBERS).outcome
        };
        assert_eq!(with(vec![told(0, 4), told(1, 4)]), Outcome::Passed);
        assert_eq!(with(vec![told(0, 4), told(1, 3)]), Outcome::Failed);
        assert_eq!(with(vec![told(0, 5)]), Outcome::Failed);
        assert_eq!(with(vec![op(0, Call::Digest { tenant: 0 }, 9, 10, End::Fail, None)]), Outcome::Failed);
    }

    #[test]
    fn a_replica_that_lacks_something_is_found_though_reads_agree() {
        let told = |node: u32, replicas: Vec<Held>| {
            let call = Call::Held { tenant: "chaos-0".to_owned(), stage: Stage::Final };
            op(node, call, 9, 10, End::Ok, Some(Answer::Held { replicas }))
        };
        let with = |more: Vec<_>| {
            let reads = (0..3).map(|node| read(node, 1, 9, Stage::Again, vec![(1, 4)]));
            check(&history(reads.chain(more).collect()), NUMBERS).outcome
        };
        let all = |counts: [&[u64]; 3]| {
            let nodes = [(0, 1), (1, 2), (2, 4)];
            nodes
                .iter()
                .zip(counts)
                .map(|((node, id), counts)| told(*node, vec![held(*id, counts)]))
                .collect::<Vec<_>>()
        };
        assert_eq!(with(all([&[9, 4], &[9, 4], &[9, 4]])), Outcome::Passed);
        assert_eq!(with(all([&[9, 4], &[9, 4], &[9, 3]])), Outcome::Failed);
        assert_eq!(with(all([&[9, 4], &[9, 4], &[9]])), Outcome::Failed);
        let mut silent = all([&[9], &[9], &[9]]);
        (silent[2].answer, silent[2].end) = (None, End::Fail);
        assert_eq!(with(silent), Outcome::Failed);
    }

    #[test]
    fn one_answer_that_differs_is_found() {
        let read = |node, runs: &[(u32, u32)]| read(node, 1, 9, Stage::Again, runs.to_vec());
        let same = vec![read(0, &[(1, 4)]), read(1, &[(1, 4)]), read(2, &[(1, 4)])];
        assert_eq!(check(&history(same.clone()), NUMBERS).outcome, Outcome::Passed);
        let mut one_short = same.clone();
        one_short.push(read(1, &[(1, 2), (4, 4)]));
        let verdict = check(&history(one_short), NUMBERS);
        assert_eq!((verdict.outcome, verdict.figures["differing"]), (Outcome::Failed, 1.0));
        let mut silent = same;
        (silent[1].answer, silent[1].end) = (None, End::Unknown);
        assert_eq!(check(&history(silent), NUMBERS).outcome, Outcome::Failed);
        assert_eq!(check(&history(Vec::new()), NUMBERS).outcome, Outcome::Unknown);
    }
}
