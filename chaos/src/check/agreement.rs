//! After the healing, the same question has the same answer, at every node and every time.
//!
//! A read that asks a majority can hide for ever that replicas differ: which majority answers decides what is seen. So
//! everything is read many times at all nodes, at rest, and all answers about a writer must be the same.
//!
//! Source: DESIGN §9, I2b and I8; the fault that this finds elsewhere: 12 of 24 reads short after two zones were killed.

use super::Verdict;
use crate::history::{Answer, Call, Found, History, Stage};
use std::collections::BTreeMap;

/// Checks the reads after the healing.
pub(super) fn check(history: &History) -> Verdict {
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
    verdict.count("reads", reads);
    verdict.count("differing", differing);
    verdict.count("unanswered", unanswered);
    if reads == 0 {
        verdict.cannot_tell("nothing was read after the healing".to_owned());
    }
    verdict
}

fn samples(found: &Found) -> u64 {
    let of = |runs: &[(u32, u32)]| runs.iter().map(|(first, last)| u64::from(last - first) + 1).sum::<u64>();
    found.groups.iter().map(|(series, runs)| series.len() as u64 * of(runs)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{history, read};
    use super::*;
    use crate::history::End;

    #[test]
    fn one_answer_that_differs_is_found() {
        let read = |node, runs: &[(u32, u32)]| read(node, 1, 9, Stage::Again, runs.to_vec());
        let same = vec![read(0, &[(1, 4)]), read(1, &[(1, 4)]), read(2, &[(1, 4)])];
        assert_eq!(check(&history(same.clone())).outcome, Outcome::Passed);
        let mut one_short = same.clone();
        one_short.push(read(1, &[(1, 2), (4, 4)]));
        let verdict = check(&history(one_short));
        assert_eq!((verdict.outcome, verdict.figures["differing"]), (Outcome::Failed, 1.0));
        let mut silent = same;
        (silent[1].answer, silent[1].end) = (None, End::Unknown);
        assert_eq!(check(&history(silent)).outcome, Outcome::Failed);
        assert_eq!(check(&history(Vec::new())).outcome, Outcome::Unknown);
    }
}
