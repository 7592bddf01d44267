//! After the faults the cluster heals by itself, within a bound: every node active, every partition whole, one leader; and
//! reads agree, so what refused writes left behind is settled (I2b, I8).
//!
//! The harness looks and marks when it is so; a mark that is not there never came.

use super::{Verdict, seconds};
use crate::history::{History, Micros};

/// The marks, in their order.
pub(crate) const FAULTS_OVER: &str = "faults-over";
pub(crate) const WHOLE: &str = "whole";
pub(crate) const LOAD_OVER: &str = "load-over";
pub(crate) const AGREED: &str = "agreed";

/// Longest time until the cluster is whole.
const WHOLE_MAX: Micros = 30_000_000;
/// Longest time until reads agree (I2b).
const AGREED_MAX: Micros = 30_000_000;

/// Checks the marks of a history.
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::new("healed", "whole again and at one with itself within 30 s after the faults");
    let Some(over) = history.mark(FAULTS_OVER) else {
        verdict.cannot_tell("the faults never ended".to_owned());
        return verdict;
    };
    for (mark, from, max, figure, text) in [
        (WHOLE, Some(over), WHOLE_MAX, "heal s", "every partition is whole"),
        (AGREED, history.mark(LOAD_OVER), AGREED_MAX, "agree s", "all nodes answer alike"),
    ] {
        match (history.mark(mark), from) {
            (Some(at), Some(from)) => {
                let took = at.saturating_sub(from);
                verdict.seconds(figure, took);
                if took > max {
                    verdict.fail(|| format!("it took {:.1} s until {text}", seconds(took)));
                }
            }
            _ => verdict.fail(|| format!("it never came that {text}")),
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn outcome(marks: &[(Micros, &str)]) -> Outcome {
        let marks = marks.iter().map(|(at, name)| (at * 1_000_000, (*name).to_owned())).collect();
        check(&History { marks, ..History::default() }).outcome
    }

    #[test]
    fn what_heals_late_or_never_is_found() {
        assert_eq!(outcome(&[(1, FAULTS_OVER), (3, WHOLE), (5, LOAD_OVER), (7, AGREED)]), Outcome::Passed);
        assert_eq!(outcome(&[(1, FAULTS_OVER), (32, WHOLE), (35, LOAD_OVER), (36, AGREED)]), Outcome::Failed);
        assert_eq!(outcome(&[(1, FAULTS_OVER), (3, WHOLE), (5, LOAD_OVER)]), Outcome::Failed);
        assert_eq!(outcome(&[(1, FAULTS_OVER)]), Outcome::Failed);
        assert_eq!(outcome(&[]), Outcome::Unknown);
    }
}
