//! Operations on a register are linearizable: there is one order of them that fits their times and their answers.
//!
//! A register is a version and a value. `Set { expected, value }` takes effect only at version `expected`, and leaves
//! `expected + 1`; one that was refused names the version it met, as a `Probe` does. One without a known end may take
//! effect at any time after it began, or never.
//!
//! The search: of the operations that may be first (none has ended before they began) try one; if its answer fits the
//! state, take it out and go on; else step back. States already met with the same operations left are not tried again.
//! Each register is searched alone. Exponential in theory; versions leave so little choice that it is not here. A search
//! that takes too long says *unknown*.
//!
//! Source: Wing and Gong, "Testing and Verifying Concurrent Objects" (JPDC 1993); Lowe, "Testing for Linearizability"
//! (2017) for the memory of states; Horn and Kroening (FORTE 2015) for searching each key alone.

use super::Verdict;
use crate::history::{Answer, Call, End, History, Micros};
use std::collections::{BTreeMap, HashSet};

const NEVER: Micros = Micros::MAX;
/// Steps of one search.
const STEPS_MAX: u64 = 20_000_000;

/// What an operation did to the register, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It took effect; `told`: what the answer said right after, if that was still its own.
    Took { expected: u64, value: u64, told: Option<u64> },
    /// It took effect or not.
    Perhaps { expected: u64, value: u64 },
    /// It saw this version, and no effect.
    Saw { version: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Step {
    began: Micros,
    ended: Micros,
    act: Act,
}

/// Checks every register of a history.
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::new("register", "compare-and-set on tenant configuration is linearizable");
    let mut registers: BTreeMap<u32, Vec<Step>> = BTreeMap::new();
    let (mut sets, mut unknown) = (0, 0);
    for op in &history.ops {
        let (key, act) = match (&op.call, op.end, &op.answer) {
            (Call::Set { key, expected, value }, End::Ok, Some(Answer::Register { version, value: told })) => {
                sets += 1;
                if *version <= *expected {
                    verdict.fail(|| format!("register {key}: set at version {expected} was answered with {version}"));
                }
                let told = (*version == expected + 1).then_some(*told);
                (*key, Act::Took { expected: *expected, value: *value, told })
            }
            (Call::Set { key, .. }, End::Fail, Some(Answer::Version { version }))
            | (Call::Probe { key }, End::Ok, Some(Answer::Version { version })) => {
                (*key, Act::Saw { version: *version })
            }
            (Call::Set { key, expected, value }, End::Unknown, _) => {
                unknown += 1;
                (*key, Act::Perhaps { expected: *expected, value: *value })
            }
            _ => continue,
        };
        let ended = if matches!(act, Act::Perhaps { .. }) { NEVER } else { op.ended.unwrap_or(NEVER) };
        registers.entry(key).or_default().push(Step { began: op.began, ended, act });
    }
    verdict.count("sets", sets);
    verdict.count("unknown", unknown);
    for (key, steps) in &mut registers {
        steps.sort_by_key(|step| step.began);
        match linearizable(steps) {
            Search::Yes => {}
            Search::No { done, stuck } => verdict.fail(|| {
                format!(
                    "register {key}: no order fits; {done} of {} operations can be ordered, then {stuck}",
                    steps.len()
                )
            }),
            Search::TooLong => {
                verdict.cannot_tell(format!("register {key}: the search of {} operations is too long", steps.len()))
            }
        }
    }
    verdict
}

#[derive(Debug, PartialEq, Eq)]
enum Search {
    Yes,
    /// The longest order that was found, and what could not follow.
    No {
        done: usize,
        stuck: String,
    },
    TooLong,
}

/// The version and the value.
type State = (u64, u64);

/// The state after a step, `None` when the step cannot be here.
fn after(state: State, act: Act) -> Option<State> {
    match act {
        Act::Took { expected, value, told } => {
            (state.0 == expected && told.is_none_or(|told| told == value)).then_some((expected + 1, value))
        }
        Act::Perhaps { expected, value } => (state.0 == expected).then_some((expected + 1, value)),
        Act::Saw { version } => (state.0 == version).then_some(state),
    }
}

/// Searches an order of `steps`, which are sorted by their beginning.
fn linearizable(steps: &[Step]) -> Search {
    let certain = steps.iter().filter(|step| step.ended != NEVER).count();
    let mut taken = vec![0_u64; steps.len().div_ceil(64)];
    let (mut state, mut done, mut first_open) = ((0, 0), 0, 0);
    let mut met: HashSet<(Vec<u64>, State)> = HashSet::new();
    // What was taken, with the state before it; and from where to go on looking.
    let mut path: Vec<(usize, State)> = Vec::new();
    let (mut from, mut budget) = (0, STEPS_MAX);
    let mut best = (0, String::from("nothing"));
    let is_taken = |taken: &[u64], at: usize| taken[at / 64] >> (at % 64) & 1 == 1;
    loop {
        if done == certain {
            return Search::Yes;
        }
        while first_open < steps.len() && is_taken(&taken, first_open) {
            first_open += 1;
        }
        let limit = (first_open..steps.len())
            .filter(|at| !is_taken(&taken, *at))
            .map(|at| steps[at].ended)
            .min()
            .unwrap_or(NEVER);
        let mut next = None;
        for at in from.max(first_open)..steps.len() {
            budget = budget.saturating_sub(1);
            if steps[at].began > limit {
                break;
            }
            if is_taken(&taken, at) {
                continue;
            }
            if let Some(new) = after(state, steps[at].act) {
                taken[at / 64] |= 1 << (at % 64);
                if met.insert((taken.clone(), new)) {
                    next = Some((at, new));
                    break;
                }
                taken[at / 64] &= !(1 << (at % 64));
            }
        }
        if budget == 0 {
            return Search::TooLong;
        }
        if let Some((at, new)) = next {
            path.push((at, state));
            done += usize::from(steps[at].ended != NEVER);
            (state, from) = (new, 0);
            continue;
        }
        if done >= best.0 {
            let stuck = steps.iter().enumerate().find(|(at, s)| !is_taken(&taken, *at) && s.ended == limit);
            best = (done, format!("at version {} there is no place for {:?}", state.0, stuck.map(|(_, s)| s)));
        }
        let Some((at, before)) = path.pop() else { return Search::No { done: best.0, stuck: best.1 } };
        taken[at / 64] &= !(1 << (at % 64));
        done -= usize::from(steps[at].ended != NEVER);
        (state, from, first_open) = (before, at + 1, 0);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what no single register could have answered is found; what one could have is not. Method: planted
    //! histories, and random ones of a true register, whole and with one answer changed.

    use super::super::Outcome;
    use super::super::planted::{history, op};
    use super::*;
    use crate::history::Op;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn set(began: Micros, ended: Micros, expected: u64, value: u64) -> Op {
        let answer = Answer::Register { version: expected + 1, value };
        op(0, Call::Set { key: 1, expected, value }, began, ended, End::Ok, Some(answer))
    }

    fn unknown(began: Micros, expected: u64, value: u64) -> Op {
        op(0, Call::Set { key: 1, expected, value }, began, began + 1, End::Unknown, None)
    }

    fn saw(began: Micros, ended: Micros, version: u64) -> Op {
        op(0, Call::Probe { key: 1 }, began, ended, End::Ok, Some(Answer::Version { version }))
    }

    fn outcome(ops: Vec<Op>) -> Outcome {
        check(&history(ops)).outcome
    }

    #[test]
    fn operations_that_overlap_may_be_in_any_order() {
        assert_eq!(
            outcome(vec![set(1, 10, 0, 7), saw(2, 9, 0), saw(3, 8, 1), set(4, 20, 1, 8), saw(21, 22, 2)]),
            Outcome::Passed
        );
        // Unknown: it may come into effect long after, or never.
        assert_eq!(outcome(vec![unknown(1, 0, 7), saw(5, 6, 0), saw(9, 10, 1)]), Outcome::Passed);
        assert_eq!(outcome(vec![unknown(1, 0, 7), set(5, 6, 0, 8)]), Outcome::Passed);
    }

    #[test]
    fn a_stale_read_a_lost_update_and_a_split_brain_are_found() {
        let stale = vec![set(1, 2, 0, 7), set(3, 4, 1, 8), saw(5, 6, 1)];
        let twice = vec![set(1, 2, 0, 7), set(3, 4, 0, 8)];
        let rolled_back = vec![set(1, 2, 0, 7), set(3, 4, 1, 8), saw(5, 6, 2), set(7, 8, 1, 9)];
        let from_nowhere = vec![saw(1, 2, 0), saw(3, 4, 1)];
        let unknown_twice = vec![unknown(1, 0, 7), saw(2, 3, 1), saw(4, 5, 0)];
        for ops in [stale, twice, rolled_back, from_nowhere, unknown_twice] {
            assert_eq!(outcome(ops.clone()), Outcome::Failed, "{ops:?}");
        }
    }

    #[test]
    fn another_value_than_the_one_set_is_found() {
        let mut wrong = set(1, 2, 0, 7);
        wrong.answer = Some(Answer::Register { version: 1, value: 6 });
        assert_eq!(outcome(vec![wrong]), Outcome::Failed);
    }

    #[test]
    fn histories_of_a_true_register_pass_and_with_one_answer_changed_do_not() {
        for seed in 0..200 {
            let mut chance = StdRng::seed_from_u64(seed);
            let (mut version, mut ops) = (0, Vec::new());
            for i in 0..60_u64 {
                // It takes effect at 10·i; it began up to 40 before and ends up to 40 after.
                let (began, ended) =
                    ((1000 + 10 * i) - chance.random_range(0..40), 1000 + 10 * i + chance.random_range(1..40));
                ops.push(match chance.random_range(0..4) {
                    0 => saw(began, ended, version),
                    1 if chance.random_bool(0.5) => unknown(began, version + chance.random_range(0..2), i),
                    _ => {
                        version += 1;
                        set(began, ended, version - 1, i)
                    }
                });
            }
            let mut changed = ops.clone();
            assert_eq!(outcome(ops), Outcome::Passed, "seed {seed}");
            changed.push(saw(5000, 5001, version + 3));
            assert_eq!(outcome(changed), Outcome::Failed, "seed {seed}");
        }
    }
}
