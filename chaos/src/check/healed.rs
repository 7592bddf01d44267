//! After the faults the cluster heals by itself, within a bound: every node active, every partition whole, one leader; and
//! reads agree, so what refused writes left behind is settled (I2b, I8).
//!
//! The harness looks and marks when it is so; a mark that is not there never came. Healing counts from the moment at which
//! the last thing was done that the cluster cannot do for itself (a node is started again, a line is joined again), so a
//! node's start, its coming back and all copying belong to it. It is measured in each round; where the next fault comes
//! before the cluster is whole there is no figure of that round, and the last one must end.

use super::{Verdict, seconds};
use crate::history::{History, Micros};

/// The marks, in their order. The first two are in each round, `ROUND_WHOLE` only where it came before the next fault.
pub(crate) const HEAL_BEGINS: &str = "heal-begins";
pub(crate) const ROUND_WHOLE: &str = "round-whole";
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
    let (times, unmeasured) = rounds(history, over);
    verdict.count("rounds healed", times.len() as u64);
    verdict.count("rounds not whole before the next", unmeasured);
    if let Some(longest) = times.iter().max() {
        verdict.seconds("heal s", *longest);
    }
    for took in times.iter().filter(|took| **took > WHOLE_MAX) {
        verdict.fail(|| format!("it took {:.1} s until every partition is whole", seconds(*took)));
    }
    if history.mark(WHOLE).is_none() {
        verdict.fail(|| "it never came that every partition is whole".to_owned());
    }
    match (history.mark(LOAD_OVER), history.mark(AGREED)) {
        (Some(from), Some(at)) => {
            let took = at.saturating_sub(from);
            verdict.seconds("agree s", took);
            if took > AGREED_MAX {
                verdict.fail(|| format!("it took {:.1} s until all nodes answer alike", seconds(took)));
            }
        }
        _ => verdict.fail(|| "it never came that all nodes answer alike".to_owned()),
    }
    verdict
}

/// How long each round took to heal; and how many had not when the next fault came.
fn rounds(history: &History, over: Micros) -> (Vec<Micros>, u64) {
    let (mut times, mut unmeasured, mut from) = (Vec::new(), 0, None);
    for (at, name) in &history.marks {
        match name.as_str() {
            HEAL_BEGINS => from = Some(*at),
            super::ROUND_SERVED | super::ROUND_DARK => unmeasured += u64::from(from.take().is_some()),
            ROUND_WHOLE => times.extend(from.take().map(|from| at.saturating_sub(from))),
            // Whoever marked no beginning is measured from the last fault's end.
            WHOLE => times.push(at.saturating_sub(from.take().unwrap_or(over))),
            _ => {}
        }
    }
    (times, unmeasured)
}

#[cfg(test)]
mod tests {
    use super::super::{Outcome, ROUND_SERVED};
    use super::*;

    fn verdict(marks: &[(Micros, &str)]) -> Verdict {
        let marks = marks.iter().map(|(at, name)| (at * 1_000_000, (*name).to_owned())).collect();
        check(&History { marks, ..History::default() })
    }

    fn outcome(marks: &[(Micros, &str)]) -> Outcome {
        verdict(marks).outcome
    }

    #[test]
    fn what_heals_late_or_never_is_found() {
        assert_eq!(outcome(&[(1, FAULTS_OVER), (3, WHOLE), (5, LOAD_OVER), (7, AGREED)]), Outcome::Passed);
        assert_eq!(outcome(&[(1, FAULTS_OVER), (32, WHOLE), (35, LOAD_OVER), (36, AGREED)]), Outcome::Failed);
        assert_eq!(outcome(&[(1, FAULTS_OVER), (3, WHOLE), (5, LOAD_OVER)]), Outcome::Failed);
        assert_eq!(outcome(&[(1, FAULTS_OVER)]), Outcome::Failed);
        assert_eq!(outcome(&[]), Outcome::Unknown);
        assert!(!verdict(&[(1, FAULTS_OVER)]).figures.contains_key("heal s"), "what never came took no time");
    }

    #[test]
    fn healing_counts_from_where_it_begins_and_in_every_round() {
        let end = [(60, FAULTS_OVER), (61, WHOLE), (62, LOAD_OVER), (63, AGREED)];
        let slow = [(10, HEAL_BEGINS), (41, ROUND_WHOLE), (50, ROUND_SERVED), (59, HEAL_BEGINS)];
        assert_eq!(outcome(&[&slow[..], &end].concat()), Outcome::Failed);
        let late_start = [(10, HEAL_BEGINS), (20, ROUND_WHOLE), (21, ROUND_SERVED), (29, HEAL_BEGINS)];
        assert_eq!(outcome(&[&late_start[..], &end].concat()), Outcome::Failed, "ready after 31 s, then whole at once");
        let quick = [(10, HEAL_BEGINS), (12, ROUND_WHOLE), (15, ROUND_SERVED), (20, HEAL_BEGINS), (30, ROUND_SERVED)];
        let passed = verdict(&[&quick[..], &[(58, HEAL_BEGINS)], &end].concat());
        assert_eq!(passed.outcome, Outcome::Passed, "{:?}", passed.told);
        assert_eq!((passed.figures["heal s"], passed.figures["rounds not whole before the next"]), (3.0, 1.0));
    }
}
