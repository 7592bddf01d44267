//! Questions about data that never changes have one answer each, whatever is broken: that, or none.
//!
//! A store that computes with a part of what it holds, because a node that has the rest does not answer, is found here
//! and hardly anywhere else: nothing is missing afterwards.

use super::Verdict;
use crate::history::{Answer, Call, History};
use crate::workload::QUESTIONS;

/// Checks every answer.
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::new("constants", "questions about data that never changes have one answer");
    let mut answered = 0;
    for op in &history.ops {
        let (Call::Constant { question }, Some(Answer::Constant { right, told })) = (&op.call, &op.answer) else {
            continue;
        };
        answered += 1;
        if !right {
            let query = QUESTIONS.get(*question).map_or("?", |(query, _)| *query);
            verdict.fail(|| format!("{query} at node {}: {told}", op.node));
        }
    }
    verdict.count("answered", answered);
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{history, op};
    use super::*;
    use crate::history::End;

    #[test]
    fn one_wrong_answer_is_found() {
        let asked = |right| {
            let answer = Answer::Constant { right, told: "[]".to_owned() };
            op(1, Call::Constant { question: 0 }, 5, 9, End::Ok, Some(answer))
        };
        assert_eq!(check(&history(vec![asked(true)])).outcome, Outcome::Passed);
        assert_eq!(check(&history(vec![asked(true), asked(false)])).outcome, Outcome::Failed);
    }
}
