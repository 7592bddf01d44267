//! Range queries answer what follows from what was written, for the tenant who asks.
//!
//! The model is the history itself. Of each number it is known whether it was acknowledged before a query began, and
//! whether it was attempted before the query ended; what an answer may be lies between the two:
//!
//! ```text
//! numbers of a window:   acknowledged before ⊆ seen ⊆ attempted before the answer
//! count                  series · |acknowledged|  ≤ count ≤  series · |attempted|
//! sum of series 0        Σ acknowledged           ≤ sum   ≤  Σ attempted          (exact: windows are small)
//! observations            Σ counts of acknowledged ≤ sum  ≤  Σ counts of attempted
//! greatest of all        last acknowledged        ≤ max   ≤  last attempted, and one that was attempted
//! ```
//!
//! While nothing is under way the two are one, and so the answer must be. A row of a writer of another tenant is another
//! tenant's answer, whatever its value.

use super::Verdict;
use crate::history::{Answer, Call, Cell, End, History, Micros, Op, Total};
use crate::workload::{Numbers, STEPS, WIDTH};
use std::collections::BTreeMap;

const NEVER: Micros = Micros::MAX;

/// First attempt and first acknowledgement of each number of a writer.
type Sent = Vec<(Micros, Micros)>;

/// Checks all totals of a history.
pub(super) fn check(history: &History, numbers: Numbers) -> Verdict {
    let mut verdict = Verdict::new("totals", "range queries give what was acknowledged, and nobody else's");
    let sent = sent(history);
    let (mut asked, mut exact) = (0, 0);
    for op in &history.ops {
        let (Call::Totals { tenant, total, first }, Some(Answer::Totals { cells }), End::Ok) =
            (&op.call, &op.answer, op.end)
        else {
            continue;
        };
        asked += 1;
        let mut told: BTreeMap<(u32, u32), f64> = BTreeMap::new();
        for Cell { writer, step, value } in cells {
            let theirs = *writer >= numbers.writers || numbers.tenant(*writer) != numbers.tenant(*tenant);
            if theirs {
                *verdict.figures.entry("wrong tenant").or_default() += 1.0;
                verdict.fail(|| format!("wrong tenant: {} was given a row of writer {writer}", who(op)));
            } else if *step >= STEPS || told.insert((*writer, *step), *value).is_some() {
                verdict.fail(|| format!("{}: a step of writer {writer} that was not asked, or twice", who(op)));
            }
        }
        for writer in (0..numbers.writers).filter(|w| numbers.tenant(*w) == numbers.tenant(*tenant)) {
            let Some(sent) = sent.get(&writer) else { continue };
            for step in 0..STEPS {
                let last = first + step * WIDTH;
                let bounds = bounds(sent, writer, (last + 1 - WIDTH, last), op, numbers, *total);
                exact += u64::from(bounds.0.to_bits() == bounds.1.to_bits());
                judge(op, (writer, step), told.get(&(writer, step)).copied(), bounds, &mut verdict);
            }
        }
    }
    verdict.count("queries", asked);
    verdict.count("exact answers", exact);
    verdict
}

fn who(op: &Op) -> String {
    format!("{:?} at node {} at {:.3} s", op.call, op.node, super::seconds(op.began))
}

fn sent(history: &History) -> BTreeMap<u32, Sent> {
    let mut writers: BTreeMap<u32, Sent> = BTreeMap::new();
    for op in &history.ops {
        let Call::Append { writer, number } = op.call else { continue };
        let (of, at) = (writers.entry(writer).or_default(), number as usize);
        if of.len() <= at {
            of.resize(at + 1, (NEVER, NEVER));
        }
        // Also where nobody seemed to listen: who says so may not know all that became of it.
        of[at].0 = of[at].0.min(op.began);
        if op.end == End::Ok {
            of[at].1 = of[at].1.min(op.ended.unwrap_or(NEVER));
        }
    }
    writers
}

/// Least and greatest that may be answered.
fn bounds(sent: &Sent, writer: u32, window: (u32, u32), op: &Op, numbers: Numbers, total: Total) -> (f64, f64) {
    let ended = op.ended.unwrap_or(NEVER);
    let of = |number: u32| sent.get(number as usize).copied().unwrap_or((NEVER, NEVER));
    let all = window.0.max(1)..=window.1;
    let sure = all.clone().filter(|number| of(*number).1 < op.began);
    let perhaps = all.filter(|number| of(*number).0 < ended);
    let value = |number: u32| match total {
        Total::Count => f64::from(numbers.series),
        Total::Sum => Numbers::value(writer, 0, number),
        Total::Max => Numbers::value(writer, numbers.last_float(), number),
        Total::Observed => {
            let observed = numbers.observed().and_then(|series| numbers.histogram(writer, series, number));
            observed.map_or(0.0, |histogram| histogram.count)
        }
    };
    match total {
        Total::Max => (sure.map(value).fold(0.0, f64::max), perhaps.map(value).fold(0.0, f64::max)),
        Total::Count | Total::Sum | Total::Observed => {
            (sure.map(value).fold(0.0, |a, b| a + b), perhaps.map(value).fold(0.0, |a, b| a + b))
        }
    }
}

fn judge(op: &Op, at: (u32, u32), told: Option<f64>, (least, most): (f64, f64), verdict: &mut Verdict) {
    let value = told.unwrap_or(0.0);
    let name = if value < least {
        "too little"
    } else if value > most {
        "too much"
    } else {
        return;
    };
    *verdict.figures.entry(name).or_default() += 1.0;
    let (writer, step) = at;
    verdict.fail(|| {
        format!(
            "{name}: {}, writer {writer}, step {step}: {value}, and it is {least} at least and {most} at most",
            who(op)
        )
    });
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{append, history, op};
    use super::*;

    const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 4, series: 2, step_ms: 10, late: true, shapes: true };

    fn ask(total: Total, cells: &[(u32, u32, f64)]) -> Op {
        let cells = cells.iter().map(|(writer, step, value)| Cell { writer: *writer, step: *step, value: *value });
        let answer = Answer::Totals { cells: cells.collect() };
        op(1, Call::Totals { tenant: 0, total, first: 20 }, 1_000, 1_005, End::Ok, Some(answer))
    }

    fn verdict(total: Total, cells: &[(u32, u32, f64)]) -> Verdict {
        let mut ops: Vec<Op> = (1..=30).map(|n| append(n, u64::from(n), End::Ok)).collect();
        // Under way while it is asked; and begun after the answer.
        ops.push(append(31, 999, End::Unknown));
        ops.push(append(32, 2_000, End::Ok));
        ops.push(ask(total, cells));
        check(&history(ops), NUMBERS)
    }

    #[test]
    fn what_was_acknowledged_must_be_counted_and_what_is_under_way_may_be() {
        for second in [20.0, 22.0] {
            let verdict = verdict(Total::Count, &[(0, 0, 40.0), (0, 1, second)]);
            assert_eq!(verdict.outcome, Outcome::Passed, "{:?}", verdict.told);
        }
        for (cells, name) in [
            (vec![(0, 0, 39.0), (0, 1, 20.0)], "too little"),
            (vec![(0, 0, 40.0)], "too little"),
            (vec![(0, 0, 40.0), (0, 1, 24.0)], "too much"),
            (vec![(0, 0, 40.0), (0, 1, 20.0), (0, 2, 2.0)], "too much"),
            (vec![(0, 0, 40.0), (0, 1, 20.0), (1, 0, 40.0)], "wrong tenant"),
        ] {
            let verdict = verdict(Total::Count, &cells);
            assert_eq!((verdict.outcome, verdict.figures.get(name)), (Outcome::Failed, Some(&1.0)), "{cells:?}");
        }
    }

    #[test]
    fn sums_and_maxima_are_exact_where_all_is_known() {
        let (sum, max): (f64, f64) = ((1..=20).map(f64::from).sum(), Numbers::value(0, 0, 20));
        let rest: f64 = (21..=30).map(f64::from).sum();
        assert_eq!(verdict(Total::Sum, &[(0, 0, sum), (0, 1, rest)]).outcome, Outcome::Passed);
        assert_eq!(verdict(Total::Sum, &[(0, 0, sum + 1.0), (0, 1, rest)]).outcome, Outcome::Failed);
        let observed = |numbers: std::ops::RangeInclusive<u32>| -> f64 {
            numbers.map(|number| NUMBERS.histogram(0, 1, number).unwrap().count).sum()
        };
        let cells = |more| [(0, 0, observed(1..=20)), (0, 1, observed(21..=30) + more)];
        assert_eq!(verdict(Total::Observed, &cells(0.0)).outcome, Outcome::Passed);
        assert_eq!(verdict(Total::Observed, &cells(-1.0)).outcome, Outcome::Failed);
        let last = Numbers::value(0, 0, 31);
        assert_eq!(verdict(Total::Max, &[(0, 0, max), (0, 1, last)]).outcome, Outcome::Passed);
        assert_eq!(verdict(Total::Max, &[(0, 0, max - 1.0), (0, 1, last)]).outcome, Outcome::Failed);
        assert_eq!(verdict(Total::Max, &[(0, 0, max), (0, 1, last + 1.0)]).outcome, Outcome::Failed);
    }
}
