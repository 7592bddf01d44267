//! Clients are served: as well as the scenario promises while faults last, and always when there are none.
//!
//! A write, read or question *fails* for its client when no node takes it or its end is not known. What is in flight at
//! a node that is taken down may be lost, between the moment at which the fault began and the one at which the process
//! was gone: two operations of each client. Every other failure while a fault is there counts against what the scenario
//! promises. What no scenario allows: failures when no fault is
//! there and none was for a while.
//!
//! The longest gap is the longest stretch of the load in which nobody's write was acknowledged. It counts from the first
//! acknowledgement on; how long that took is a figure of its own, and bounded. Gaps *at a fault* are those that reach into
//! the time from its beginning until 2 s after it was done: what the fault does, apart from what a busy machine does.

use super::{Promise, Verdict, seconds};
use crate::history::{Call, End, FaultState, History, Micros, Op};
use crate::workload::{NOT_REACHED, READERS};
use std::collections::BTreeMap;

/// Gaps longer than this count as "not available".
const GAP_COUNTS: Micros = 1_000_000;
/// Longest time from the beginning of the load to the first acknowledgement, where gaps are bounded.
const FIRST_MAX: Micros = 1_000_000;
/// So long after it was done a gap is the fault's.
const AT_FAULT: Micros = 2_000_000;
/// Gaps at a fault are to be shorter than this; how many were not is told.
const GAP_AIM: Micros = 100_000;
/// What a client may lose at a node that is taken down. Killed: what is in flight, and what it sends while the kernel still
/// takes connections for the dying process, to break them when it comes to that one. Asked to end: what it sends on
/// connections that were idle, and that the node closes at that moment; clients keep two.
const LOST_MAX: usize = 2;
/// So long before its first blow a node may already fail because of it: its disk loses its power first.
const BEFORE_BLOW: Micros = 1_000_000;

/// A stretch of time, and its end.
pub(super) type Span = (Micros, Micros);

/// Stretches in which a fault was there, each as long as the settling after it; sorted, not overlapping.
pub(super) fn faulty(history: &History, settle_ms: u64) -> Vec<Span> {
    let mut open: Vec<(&str, Micros)> = Vec::new();
    let mut spans: Vec<Span> = Vec::new();
    for fault in &history.faults {
        match fault.state {
            FaultState::Installed => open.push((&fault.name, fault.at)),
            // Said of one that is there already it opens nothing: its end is the end of both.
            FaultState::Unknown if open.iter().any(|(name, _)| *name == fault.name) => {}
            FaultState::Unknown => open.push((&fault.name, fault.at)),
            FaultState::Healed => {
                let Some(at) = open.iter().position(|(name, _)| *name == fault.name) else { continue };
                spans.push((open.remove(at).1, fault.at + settle_ms * 1000));
            }
            FaultState::Struck | FaultState::Skipped => {}
        }
    }
    spans.extend(open.into_iter().map(|(_, from)| (from, Micros::MAX)));
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for (from, to) in spans {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// Stretches in which nothing is promised.
fn saved(history: &History, promise: Promise) -> Vec<Span> {
    let named = |name: &str| !promise.save.is_empty() && name.starts_with(promise.save);
    let faults = history.faults.iter().filter(|fault| named(&fault.name)).cloned().collect();
    faulty(&History { faults, ..History::default() }, AT_FAULT / 1000)
}

/// From when each fault began to be done until a while after it was.
fn strikes(history: &History) -> Vec<Span> {
    let installed = history.faults.iter().filter(|fault| fault.state == FaultState::Installed);
    let spans = installed.map(|from| {
        let mut rest = history.faults.iter().filter(|to| to.name == from.name && to.at >= from.at);
        let struck = rest.find(|to| to.state == FaultState::Struck).map_or(from.at, |to| to.at);
        (from.at, struck.saturating_add(AT_FAULT))
    });
    spans.collect()
}

/// Who has one operation at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Writer(u32),
    Reader,
    Totals,
    Constants,
}

impl Client {
    fn of(op: &Op) -> Option<Self> {
        match op.call {
            Call::Append { writer, .. } => Some(Self::Writer(writer)),
            Call::Read { .. } => Some(Self::Reader),
            Call::Totals { .. } => Some(Self::Totals),
            Call::Constant { .. } => Some(Self::Constants),
            _ => None,
        }
    }

    /// How many have this name.
    const fn count(self) -> usize {
        if matches!(self, Self::Reader) { READERS } else { 1 }
    }
}

/// Nodes that are taken down, and who has lost something there.
struct Downs {
    /// The node and its time.
    all: Vec<(u32, Span)>,
    lost: BTreeMap<(usize, Client), usize>,
}

impl Downs {
    fn of(history: &History) -> Self {
        let began = |at: Micros| {
            let mut before = history.faults.iter().filter(|fault| fault.at <= at);
            let last = before.next_back().filter(|fault| fault.state == FaultState::Installed);
            last.map_or(at, |fault| fault.at.max(at.saturating_sub(BEFORE_BLOW)))
        };
        let all = history.downs.iter().map(|down| {
            let span = (began(down.from), down.gone.unwrap_or(Micros::MAX));
            (down.node, span)
        });
        Self { all: all.collect(), lost: BTreeMap::new() }
    }

    /// Whether this was in flight at a node that is taken down, and its client had not lost too much there before.
    fn excuse(&mut self, op: &Op, client: Client) -> bool {
        let ended = op.ended.unwrap_or(Micros::MAX);
        let hit = |(node, (from, to)): &(u32, Span)| *node == op.node && op.began <= *to && ended >= *from;
        let Some(at) = self.all.iter().position(hit) else { return false };
        let lost = self.lost.entry((at, client)).or_default();
        *lost += 1;
        *lost <= client.count() * LOST_MAX
    }
}

/// Failures of one kind of operation.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    calm: u64,
    in_flight: u64,
    during: u64,
}

/// Checks writes, reads and questions of the load.
pub(super) fn check(history: &History, promise: Promise) -> Verdict {
    let mut verdict = Verdict::new("available", "served as promised during faults, and always without them");
    let (from, to) = (history.mark("load").unwrap_or(0), history.mark(super::LOAD_OVER).unwrap_or(history.end()));
    let (spans, mut downs) = (faulty(history, promise.settle_ms), Downs::of(history));
    let failed = |op: &Op| op.end != End::Ok && !op.why.starts_with(NOT_REACHED);
    let (mut writes, mut reads, mut questions) = (Failures::default(), Failures::default(), Failures::default());
    let (mut acks, mut refused, mut excepted) = (Vec::new(), 0_u64, 0_u64);
    let saved = saved(history, promise);
    for op in history.ops.iter().filter(|op| op.began >= from && op.began <= to) {
        let Some(client) = Client::of(op) else { continue };
        let of = match client {
            Client::Writer(_) => &mut writes,
            Client::Reader => &mut reads,
            Client::Totals | Client::Constants => &mut questions,
        };
        let ended = op.ended.unwrap_or(Micros::MAX);
        if op.end == End::Ok && matches!(client, Client::Writer(_)) {
            acks.push((op.began, ended));
        }
        if !failed(op) {
            continue;
        }
        let within = |spans: &[Span]| spans.iter().any(|(from, to)| op.began <= *to && ended >= *from);
        if within(&saved) {
            excepted += 1;
        } else if !within(&spans) {
            of.calm += 1;
            let at = seconds(op.began);
            verdict
                .fail(|| format!("failed without a fault: {:?} at node {} at {at:.3} s: {}", op.call, op.node, op.why));
        } else if downs.excuse(op, client) {
            of.in_flight += 1;
        } else {
            of.during += 1;
            refused += u64::from(matches!(client, Client::Writer(_)) && op.why.starts_with("503"));
        }
    }
    let reads_max = promise.failed_reads_max;
    for (of, name, in_flight, max) in [
        (writes, "failed writes", "failed writes in flight at a hit", promise.failed_writes_max),
        (reads, "failed reads", "failed reads in flight at a hit", reads_max),
        (questions, "failed questions", "failed questions in flight at a hit", reads_max),
    ] {
        verdict.count(name, of.during + of.calm);
        verdict.count(in_flight, of.in_flight);
        if let Some(max) = max.filter(|max| of.during > *max) {
            verdict.fail(|| format!("{} {name} during faults, promised are at most {max}", of.during));
        }
    }
    verdict.count("failed while nothing was promised", excepted);
    verdict.count("writes refused with 503", refused);
    if promise.refused && refused == 0 {
        verdict.fail(|| "no write was refused with 503".to_owned());
    }
    latencies(&mut verdict, &acks, &faulty(history, 0), promise);
    let times = Times { load: (from, to), strikes: strikes(history), saved };
    gaps(&mut verdict, acks.iter().map(|(_, ended)| *ended).collect(), &times, promise);
    verdict
}

fn latencies(verdict: &mut Verdict, acks: &[(Micros, Micros)], spans: &[Span], promise: Promise) {
    let sorted = |acks: &mut dyn Iterator<Item = &(Micros, Micros)>| {
        let mut all: Vec<Micros> = acks.map(|(began, ended)| ended.saturating_sub(*began)).collect();
        all.sort_unstable();
        all
    };
    let at = |all: &[Micros], per_mille: usize| {
        all.get((all.len() * per_mille / 1000).min(all.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    let all = sorted(&mut acks.iter());
    for (name, per_mille) in [("write p50 s", 500), ("write p99 s", 990), ("write max s", 1000)] {
        verdict.seconds(name, at(&all, per_mille));
    }
    let in_fault = |began: Micros| spans.iter().any(|(from, to)| (*from..=*to).contains(&began));
    let during = sorted(&mut acks.iter().filter(|(began, _)| in_fault(*began)));
    for (name, per_mille) in [("write p90 s during faults", 900), ("write p99 s during faults", 990)] {
        verdict.seconds(name, at(&during, per_mille));
    }
    let p90 = at(&during, 900);
    if let Some(max) = promise.p90_during_max_ms.filter(|max| p90 > max * 1000) {
        let p90 = seconds(p90);
        verdict.fail(|| format!("one in ten writes took {p90:.3} s or longer during faults, promised are {max} ms"));
    }
}

/// Stretches of time that count for gaps.
struct Times {
    load: Span,
    strikes: Vec<Span>,
    saved: Vec<Span>,
}

fn gaps(verdict: &mut Verdict, mut acks: Vec<Micros>, times: &Times, promise: Promise) {
    let (from, to) = times.load;
    acks.sort_unstable();
    let Some(first) = acks.first().copied() else {
        return verdict.cannot_tell("no write was ever acknowledged".to_owned());
    };
    verdict.seconds("first acknowledgement s", first.saturating_sub(from));
    if promise.ack_gap_max_ms.is_some() && first.saturating_sub(from) > FIRST_MAX {
        verdict.fail(|| format!("the first write was acknowledged after {:.3} s", seconds(first - from)));
    }
    acks.push(to.max(first));
    acks.sort_unstable();
    let gaps: Vec<(Micros, Micros)> = acks.windows(2).map(|pair| (pair[1].saturating_sub(pair[0]), pair[0])).collect();
    let within =
        |spans: &[Span], (gap, at): (Micros, Micros)| spans.iter().any(|(from, to)| at <= *to && at + gap >= *from);
    let promised: Vec<_> = gaps.iter().filter(|gap| !within(&times.saved, **gap)).collect();
    let at_faults = promised.iter().copied().filter(|gap| within(&times.strikes, **gap));
    verdict.count("gaps at faults above 0.1 s", at_faults.clone().filter(|(gap, _)| *gap > GAP_AIM).count() as u64);
    verdict.seconds("unavailable s", gaps.iter().map(|(gap, _)| *gap).filter(|gap| *gap > GAP_COUNTS).sum());
    for (name, longest, max) in [
        ("longest gap s", gaps.iter().max(), None),
        ("longest gap while promised s", promised.iter().copied().max(), promise.ack_gap_max_ms),
        ("longest gap at a fault s", at_faults.max(), promise.gap_at_fault_max_ms),
    ] {
        let (longest, at) = longest.copied().unwrap_or((0, 0));
        verdict.seconds(name, longest);
        if let Some(max) = max.filter(|max| longest > max * 1000) {
            let (gap, at) = (seconds(longest), seconds(at));
            verdict
                .fail(|| format!("no write was acknowledged for {gap:.3} s from {at:.3} s on, promised are {max} ms"));
        }
    }
}

#[cfg(test)]
mod tests;
