//! Acknowledged samples are there, once, in their own series and tenant; nothing is there that nobody wrote.
//!
//! The elements of a set are the samples (writer, series, number). Each is *attempted* when its first write begins,
//! *acknowledged* when one ends well. A read covers a window of numbers; a sample of the window is present or absent in
//! it. From the times of all reads and writes:
//!
//! - **phantom**: present, though no attempt began before the read ended, or with a value nobody wrote there
//! - **lost**: acknowledged, absent in every read of the end
//! - **stale**: acknowledged before a read began that does not have it, and present in another
//! - **flicker**: present in one read, absent in one that began after that ended. Of samples without a known end this is
//!   allowed while faults last and for 30 s after (I2b): counted, and forbidden later and at the end
//! - **doubled**: twice in one answer · **foreign**: another tenant's or series' value · **refused**: a writer that only
//!   sends what must be taken was told otherwise
//!
//! Source: Jepsen `checker/set-full`, jepsen/src/jepsen/checker.clj (the idea; here with windows, and with doubles counted).

use super::Verdict;
use crate::history::{Answer, Call, End, Found, History, Micros, Odd, Op, Stage};
use crate::workload::{NOT_REACHED, Numbers};
use std::collections::BTreeMap;

const NEVER: Micros = Micros::MAX;
/// How long after the faults leftovers of refused writes may come and go (I2b).
const SETTLED_AFTER: Micros = 30_000_000;

/// What writers know of one number.
#[derive(Clone, Copy, Debug)]
struct Sent {
    began: Micros,
    acknowledged: Micros,
}

/// What readers know of one sample.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The first read that saw it ended here.
    first: Micros,
    /// Reads of the end that had it, and that did not.
    final_present: u32,
    final_absent: u32,
    /// Absent though it was acknowledged before, or seen before.
    stale: bool,
    flicker: bool,
    late_flicker: bool,
    /// The last read that should have had it began here.
    stale_at: Micros,
}

const UNSEEN: Seen = Seen {
    first: NEVER,
    final_present: 0,
    final_absent: 0,
    stale: false,
    flicker: false,
    late_flicker: false,
    stale_at: 0,
};

/// A read that was answered.
struct Read<'a> {
    op: &'a Op,
    found: &'a Found,
    writer: u32,
    window: (u32, u32),
    stage: Stage,
}

struct Writer {
    /// By number.
    sent: Vec<Sent>,
    /// By series, then by number.
    seen: Vec<Vec<Seen>>,
}

/// Checks all samples of a history.
pub(super) fn check(history: &History, numbers: Numbers) -> Verdict {
    let mut verdict = Verdict::new("samples", "no acknowledged sample lost, stale, doubled or foreign; no phantom");
    let mut writers = sent(history, numbers, &mut verdict);
    let reads: Vec<Read<'_>> = history.ops.iter().filter_map(read_of).collect();
    for read in &reads {
        if let Some(writer) = writers.get_mut(&read.writer) {
            present(read, writer, &mut verdict);
        }
        odd(read.found, read.writer, numbers, &mut verdict);
    }
    let settled = history.mark(super::FAULTS_OVER).map_or(NEVER, |over| over.saturating_add(SETTLED_AFTER));
    for read in &reads {
        if let Some(writer) = writers.get_mut(&read.writer) {
            absent(read, writer, settled);
        }
    }
    conclude(&writers, &mut verdict);
    verdict
}

fn read_of(op: &Op) -> Option<Read<'_>> {
    match (&op.call, &op.answer, op.end) {
        (Call::Read { writer, first, last, stage }, Some(Answer::Samples(found)), End::Ok) => {
            Some(Read { op, found, writer: *writer, window: (*first, *last), stage: *stage })
        }
        _ => None,
    }
}

fn sent(history: &History, numbers: Numbers, verdict: &mut Verdict) -> BTreeMap<u32, Writer> {
    let mut writers: BTreeMap<u32, Writer> = BTreeMap::new();
    let (mut operations, mut refused) = (0, 0);
    for op in &history.ops {
        let Call::Append { writer, number } = op.call else { continue };
        operations += 1;
        let of = writers.entry(writer).or_insert_with(|| Writer { sent: Vec::new(), seen: Vec::new() });
        let at = number as usize;
        if of.sent.len() <= at {
            of.sent.resize(at + 1, Sent { began: NEVER, acknowledged: NEVER });
        }
        of.sent[at].began = of.sent[at].began.min(op.began);
        match op.end {
            End::Ok => of.sent[at].acknowledged = of.sent[at].acknowledged.min(op.ended.unwrap_or(NEVER)),
            End::Fail if !op.why.starts_with(NOT_REACHED) => {
                refused += 1;
                verdict.fail(|| format!("refused: number {number} of writer {writer}: {}", op.why));
            }
            End::Fail | End::Unknown => {}
        }
    }
    for of in writers.values_mut() {
        of.seen = vec![vec![UNSEEN; of.sent.len()]; numbers.series as usize];
    }
    verdict.count("writes", operations);
    verdict.count("refused", refused);
    writers
}

/// First pass: what each read has.
fn present(read: &Read<'_>, of: &mut Writer, verdict: &mut Verdict) {
    let Read { op, found, window, stage, .. } = *read;
    let ended = op.ended.unwrap_or(NEVER);
    for (series, runs) in &found.groups {
        for (first, last) in runs {
            for number in *first..=*last {
                let attempted = of.sent.get(number as usize).is_some_and(|sent| sent.began <= ended);
                if !attempted || number < window.0 || number > window.1 {
                    phantom(verdict, || format!("number {number} of {:?} at node {}", op.call, op.node));
                    continue;
                }
                for series in series {
                    if let Some(seen) = of.seen.get_mut(*series as usize).map(|all| &mut all[number as usize]) {
                        seen.first = seen.first.min(ended);
                        seen.final_present += u32::from(stage != Stage::Load);
                    }
                }
            }
        }
    }
}

fn phantom(verdict: &mut Verdict, what: impl FnOnce() -> String) {
    *verdict.figures.entry("phantom").or_default() += 1.0;
    verdict.fail(|| format!("phantom: {}", what()));
}

/// Second pass: what each read lacks.
fn absent(read: &Read<'_>, of: &mut Writer, settled: Micros) {
    let Read { op, found, window, stage, .. } = *read;
    let runs: BTreeMap<u32, &[(u32, u32)]> =
        found.groups.iter().flat_map(|(series, runs)| series.iter().map(|s| (*s, runs.as_slice()))).collect();
    let end = (window.1 as usize + 1).min(of.sent.len());
    for (series, all) in of.seen.iter_mut().enumerate() {
        let mut runs = u32::try_from(series).ok().and_then(|s| runs.get(&s)).copied().unwrap_or_default();
        for (number, seen) in all.iter_mut().enumerate().take(end).skip(window.0 as usize) {
            while runs.first().is_some_and(|(_, last)| (*last as usize) < number) {
                runs = &runs[1..];
            }
            if runs.first().is_some_and(|(first, _)| *first as usize <= number) {
                continue;
            }
            seen.final_absent += u32::from(stage != Stage::Load);
            if of.sent[number].acknowledged < op.began {
                (seen.stale, seen.stale_at) = (true, seen.stale_at.max(op.began));
            } else if seen.first < op.began {
                seen.flicker = true;
                seen.late_flicker |= stage != Stage::Load || op.began > settled;
            }
        }
    }
}

/// Points that no number explains.
fn odd(found: &Found, writer: u32, numbers: Numbers, verdict: &mut Verdict) {
    for Odd { series, at_ms, bits, doubled } in &found.odd {
        let value = f64::from_bits(*bits);
        let name = match numbers.writer_of(value) {
            _ if *doubled => "doubled",
            Some((other, ..)) if numbers.tenant(other) != numbers.tenant(writer) => "wrong tenant",
            Some(_) => "wrong series",
            None => "phantom",
        };
        *verdict.figures.entry(name).or_default() += 1.0;
        verdict.fail(|| format!("{name}: {value} at {at_ms} in {series}"));
    }
}

fn conclude(writers: &BTreeMap<u32, Writer>, verdict: &mut Verdict) {
    let [mut attempted, mut acknowledged, mut lost, mut stale, mut recovered, mut flickered, mut unread] = [0_u64; 7];
    let (mut newest_ack, mut oldest_lost) = (0, NEVER);
    for (writer, of) in writers {
        for (series, all) in of.seen.iter().enumerate() {
            for (number, (seen, sent)) in all.iter().zip(&of.sent).enumerate() {
                if sent.began == NEVER {
                    continue;
                }
                attempted += 1;
                let who = || format!("number {number} of writer {writer}, series {series}");
                if sent.acknowledged == NEVER {
                    recovered += u64::from(seen.final_present > 0);
                    flickered += u64::from(seen.flicker);
                    if seen.final_present > 0 && seen.final_absent > 0 || seen.late_flicker {
                        verdict.fail(|| format!("flicker at the end: {} was never acknowledged", who()));
                    }
                    continue;
                }
                acknowledged += 1;
                newest_ack = newest_ack.max(sent.acknowledged);
                if seen.final_absent > 0 && seen.final_present == 0 {
                    lost += 1;
                    oldest_lost = oldest_lost.min(sent.acknowledged);
                    verdict.fail(|| {
                        format!("lost: {}, acknowledged at {:.3} s", who(), super::seconds(sent.acknowledged))
                    });
                } else if seen.stale {
                    stale += 1;
                    let at = super::seconds(seen.stale_at);
                    verdict.fail(|| {
                        let acked = super::seconds(sent.acknowledged);
                        format!(
                            "stale: {}, acknowledged at {acked:.3} s, absent in a read that began at {at:.3} s",
                            who()
                        )
                    });
                }
                unread += u64::from(seen.final_absent + seen.final_present == 0);
            }
        }
    }
    for (name, count) in [("attempted", attempted), ("acknowledged", acknowledged), ("lost", lost), ("stale", stale)] {
        verdict.count(name, count);
    }
    verdict.count("recovered", recovered);
    verdict.count("flickered", flickered);
    for name in ["doubled", "wrong tenant", "wrong series", "phantom"] {
        verdict.figures.entry(name).or_default();
    }
    verdict.seconds("lost window", if lost > 0 { newest_ack.saturating_sub(oldest_lost) } else { 0 });
    if acknowledged == 0 || unread > 0 {
        verdict
            .cannot_tell(format!("{acknowledged} samples were acknowledged, {unread} of them never read at the end"));
    }
}

#[cfg(test)]
mod tests {
    //! Goal: each violation is found, under its name, and a clean history is clean. Method: planted histories.

    use super::super::Outcome;
    use super::super::planted::{append, history, read};
    use super::*;

    const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 4, series: 1, step_ms: 10, late: true, shapes: true };

    fn clean() -> Vec<Op> {
        vec![
            append(1, 10, End::Ok),
            append(2, 20, End::Unknown),
            append(3, 30, End::Ok),
            read(0, 22, 9, Stage::Load, vec![(1, 1)]),
            read(1, 40, 9, Stage::Load, vec![(1, 3)]),
            read(0, 100, 9, Stage::Final, vec![(1, 3)]),
            read(1, 110, 9, Stage::Final, vec![(1, 3)]),
        ]
    }

    fn verdict(change: impl FnOnce(&mut Vec<Op>)) -> Verdict {
        let mut ops = clean();
        change(&mut ops);
        check(&history(ops), NUMBERS)
    }

    fn found(verdict: &Verdict, word: &str) -> bool {
        verdict.outcome == Outcome::Failed && verdict.told.iter().all(|text| text.starts_with(word))
    }

    #[test]
    fn a_clean_history_passes_with_its_figures() {
        let verdict = verdict(|_| {});
        assert_eq!((verdict.outcome, &verdict.told[..]), (Outcome::Passed, &[][..]));
        let figure = |name| verdict.figures[name];
        assert_eq!((figure("attempted"), figure("acknowledged"), figure("recovered")), (3.0, 2.0, 1.0));
    }

    #[test]
    fn a_lost_sample_is_found() {
        let verdict = verdict(|ops| {
            ops[5] = read(0, 100, 9, Stage::Final, vec![(1, 2)]);
            ops[6] = read(1, 110, 9, Stage::Final, vec![(1, 2)]);
        });
        assert!(found(&verdict, "lost: number 3") && verdict.figures["lost"] == 1.0, "{verdict:?}");
    }

    #[test]
    fn a_stale_read_is_found_and_one_that_began_before_the_acknowledgement_is_none() {
        assert!(found(&verdict(|ops| ops[4] = read(1, 40, 9, Stage::Load, vec![(1, 2)])), "stale: number 3"));
        assert_eq!(verdict(|ops| ops[4] = read(1, 33, 9, Stage::Load, vec![(1, 2)])).outcome, Outcome::Passed);
        // Outside of its window a read says nothing.
        assert_eq!(verdict(|ops| ops[4] = read(1, 40, 2, Stage::Load, vec![(1, 2)])).outcome, Outcome::Passed);
    }

    #[test]
    fn leftovers_may_flicker_during_faults_and_not_at_the_end() {
        let early = verdict(|ops| ops.push(read(1, 60, 9, Stage::Load, vec![(1, 1), (3, 3)])));
        assert_eq!((early.outcome, early.figures["flickered"]), (Outcome::Passed, 1.0));
        let mut long_after = history(clean());
        long_after.ops.push(read(1, 40_000_000, 9, Stage::Load, vec![(1, 1), (3, 3)]));
        assert_eq!(check(&long_after, NUMBERS).outcome, Outcome::Passed);
        long_after.marks.push((5, super::super::FAULTS_OVER.to_owned()));
        assert!(found(&check(&long_after, NUMBERS), "flicker at the end"));
        let late = verdict(|ops| ops[6] = read(1, 110, 9, Stage::Final, vec![(1, 1), (3, 3)]));
        assert!(found(&late, "flicker at the end"), "{late:?}");
    }

    #[test]
    fn phantoms_doubles_and_foreign_values_are_found() {
        let never = verdict(|ops| ops[4] = read(1, 40, 9, Stage::Load, vec![(1, 4)]));
        assert!(found(&never, "phantom"), "{never:?}");
        let early = verdict(|ops| ops[3] = read(0, 12, 9, Stage::Load, vec![(1, 3)]));
        assert!(found(&early, "phantom"), "{early:?}");
        for (value, doubled, word) in [
            (Numbers::value(0, 0, 1), true, "doubled"),
            (Numbers::value(1, 0, 1), false, "wrong tenant"),
            (Numbers::value(2, 0, 1), false, "wrong series"),
            (f64::NAN, false, "phantom"),
        ] {
            let planted = verdict(|ops| {
                if let Some(Answer::Samples(found)) = &mut ops[4].answer {
                    found.odd.push(Odd { series: "s".into(), at_ms: 1, bits: value.to_bits(), doubled });
                }
            });
            assert!(found(&planted, word), "{planted:?}");
        }
    }

    #[test]
    fn refusals_and_unread_samples_do_not_pass() {
        assert!(found(&verdict(|ops| ops.push(append(4, 35, End::Fail))), "refused"));
        let unread = verdict(|ops| ops.truncate(5));
        assert_eq!(unread.outcome, Outcome::Unknown);
        assert_eq!(check(&history(Vec::new()), NUMBERS).outcome, Outcome::Unknown);
    }
}
