//! What a node takes of its machine stays below a ceiling that follows from what it was given, and comes back to where it
//! was when the faults are over. A node that leaks memory, files or threads in what it does about a fault answers every
//! question rightly, so nothing else here sees it.
//!
//! ```text
//! memory   ≤ 192 MiB + 4 KiB · series in its heads + 32 B · samples in its heads
//! files    ≤ 192 + connections of clients + 4 · blocks that are open
//! threads  ≤ 576: the 512 that a node may have wait for disks, and its own
//! after the healing: each of them ≤ the most any node had before the first fault + a margin
//! ```
//!
//! Series, samples, connections and blocks are the most that the node has told of so far: what is cut or closed is given back to
//! the allocator, not to the kernel at once. The constants for memory and files are two to three times what healthy nodes
//! of such a cluster were measured to take (94 MiB, 68 files: docs/chaos.md), so that a slow machine is no finding, and a
//! leak of a file, a thread or some kilobytes a request is one within a run: clients make some hundred requests a second.
//! Threads come and go: each that waits for a disk is one, and it stays for 10 s after.
//!
//! Source: tokio `runtime::Builder::max_blocking_threads`, `thread_keep_alive`.
//!
//! Scenarios that give a node less (`scarce`) or send it far more (`flood`) have no ceilings of their own: less is below, and
//! what is stored of the flood is in the heads and counted there; what is refused may not stay.

use super::{AGREED, Verdict, WHOLE};
use crate::history::{FaultState, Gauge, History, Micros};
use std::collections::BTreeMap;

const MIB: f64 = 1_048_576.0;

/// What may grow without bound.
struct Kind {
    name: &'static str,
    /// What is divided by this is told.
    unit: f64,
    of: fn(&Gauge) -> u64,
    /// The ceiling of a node that has been given so much.
    ceiling: fn(&Given) -> f64,
    /// How much more there may be after the healing than before the first fault.
    margin: fn(&Given) -> f64,
    peak: &'static str,
    before: &'static str,
    after: &'static str,
}

/// The most of each that a node has told of so far.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    series: f64,
    samples: f64,
    connections: f64,
    blocks: f64,
}

impl Given {
    fn take(&mut self, gauge: &Gauge) {
        if let Some(told) = gauge.told {
            self.series = self.series.max(told.series);
            self.samples = self.samples.max(told.samples);
            self.connections = self.connections.max(told.connections);
            self.blocks = self.blocks.max(told.blocks);
        }
    }

    /// Memory for what is in the heads, bytes.
    fn heads(&self) -> f64 {
        self.series * 4096.0 + self.samples * 32.0
    }

    /// Files of blocks that are kept open to be read.
    fn block_files(&self) -> f64 {
        self.blocks * 4.0
    }
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "MiB of memory",
        unit: MIB,
        of: |gauge| gauge.rss,
        ceiling: |given| 192.0 * MIB + given.heads(),
        margin: |given| 96.0 * MIB + given.heads(),
        peak: "peak MiB",
        before: "MiB before",
        after: "MiB after",
    },
    Kind {
        name: "open files",
        unit: 1.0,
        of: |gauge| gauge.files,
        ceiling: |given| 192.0 + given.connections + given.block_files(),
        margin: |given| 48.0 + given.block_files(),
        peak: "peak open files",
        before: "open files before",
        after: "open files after",
    },
    Kind {
        name: "threads",
        unit: 1.0,
        of: |gauge| gauge.threads,
        ceiling: |_| 576.0,
        margin: |_| 128.0,
        peak: "peak threads",
        before: "threads before",
        after: "threads after",
    },
];

/// Checks all that was measured.
#[allow(clippy::cast_precision_loss, reason = "bytes of a process, far below 2^53")]
pub(super) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::new("bounded", "memory, open files and threads stay below what follows from the load");
    verdict.count("looks", history.gauges.len() as u64);
    let mut given: BTreeMap<u32, Given> = BTreeMap::new();
    let mut over: BTreeMap<(u32, &str), f64> = BTreeMap::new();
    for (at, gauge) in &history.gauges {
        let given = given.entry(gauge.node).or_default();
        given.take(gauge);
        for kind in &KINDS {
            let (has, most) = ((kind.of)(gauge) as f64, (kind.ceiling)(given));
            let peak = verdict.figures.entry(kind.peak).or_insert(0.0);
            *peak = peak.max(has / kind.unit);
            let worst = over.entry((gauge.node, kind.name)).or_insert(0.0);
            // Each new height is told, not each second of it.
            if has > most && has > *worst * 1.1 {
                *worst = has;
                let (node, at) = (gauge.node, super::seconds(*at));
                let (has, most) = (has / kind.unit, most / kind.unit);
                verdict.fail(|| {
                    format!("node {node} has {has:.0} {} at {at:.0} s, with {given:?} at most {most:.0}", kind.name)
                });
            }
        }
    }
    returns(history, &given, &mut verdict);
    verdict
}

/// Whether all is as it was when nothing is broken any more.
#[allow(clippy::cast_precision_loss, reason = "bytes of a process, far below 2^53")]
fn returns(history: &History, given: &BTreeMap<u32, Given>, verdict: &mut Verdict) {
    let installed = |fault: &&crate::history::Fault| fault.state == FaultState::Installed;
    let first = history.faults.iter().find(installed).map_or(Micros::MAX, |fault| fault.at);
    let (load, whole) = (history.mark("load").unwrap_or(Micros::MAX), history.mark(WHOLE).unwrap_or(Micros::MAX));
    let agreed = history.mark(AGREED).unwrap_or(Micros::MAX);
    let within = |from: Micros, to: Micros| history.gauges.iter().filter(move |(at, _)| (from..to).contains(at));
    let after: BTreeMap<u32, Vec<&Gauge>> = within(whole, agreed).fold(BTreeMap::new(), |mut all, (_, gauge)| {
        all.entry(gauge.node).or_default().push(gauge);
        all
    });
    for kind in &KINDS {
        let Some(before) = within(load, first).map(|(_, gauge)| (kind.of)(gauge)).max() else { continue };
        verdict.figures.insert(kind.before, before as f64 / kind.unit);
        for (node, all) in &after {
            // The least of it: what is taken for a moment is no leak.
            let Some(least) = all.iter().map(|gauge| (kind.of)(gauge)).min() else { continue };
            let told = verdict.figures.entry(kind.after).or_insert(0.0);
            *told = told.max(least as f64 / kind.unit);
            let most = before as f64 + (kind.margin)(&given.get(node).copied().unwrap_or_default());
            if least as f64 > most {
                let (least, before, most) = (least as f64 / kind.unit, before as f64 / kind.unit, most / kind.unit);
                verdict.fail(|| {
                    format!(
                        "node {node} keeps {least:.0} {} after the healing; no node had more than {before:.0} before the \
                         first fault, so {most:.0} at most are expected",
                        kind.name
                    )
                });
            }
        }
    }
    let known = within(load, first).next().is_some();
    verdict.count("nodes before and after", if known { after.len() as u64 } else { 0 });
}

#[cfg(test)]
mod tests {
    //! Goal: what a leak looks like is found, what a load looks like is not. Method: a run of a minute, made by hand.
    use super::super::Outcome;
    use super::super::planted::fault;
    use super::*;
    use crate::history::Told;

    /// Two nodes, a look a second; the fault is there from 10 to 40 s, the cluster is whole at 41 s.
    fn run(of: impl Fn(u32, u64) -> Gauge) -> Verdict {
        let second = |at: u64| at * 1_000_000;
        let gauges = (1..60).flat_map(|at| [0, 1].map(|node| (second(at), Gauge { node, ..of(node, at) }))).collect();
        let faults =
            vec![fault(second(10), "kill", FaultState::Installed), fault(second(40), "kill", FaultState::Healed)];
        let marks = [(4, "load"), (41, WHOLE), (50, AGREED)].map(|(at, name)| (second(at), name.to_owned())).to_vec();
        check(&History { gauges, faults, marks, ..History::default() })
    }

    fn healthy(at: u64) -> Gauge {
        let told = Told { series: 64.0, samples: 120_000.0, connections: 13.0, ..Told::default() };
        Gauge { rss: (64 << 20) + at * 200_000, files: 55, threads: 25, told: Some(told), ..Gauge::default() }
    }

    fn told(verdict: &Verdict) -> &str {
        verdict.told.first().map_or("", String::as_str)
    }

    #[test]
    fn a_healthy_run_passes_and_its_peaks_are_told() {
        let verdict = run(|_, at| healthy(at));
        assert_eq!((verdict.outcome, verdict.found), (Outcome::Passed, 0), "{:?}", verdict.told);
        let figure = |name: &str| verdict.figures[name];
        assert_eq!((figure("looks"), figure("peak open files"), figure("threads before")), (118.0, 55.0, 25.0));
        assert!(figure("peak MiB") > 74.0 && figure("MiB after") > figure("MiB before"));
        assert_eq!(figure("nodes before and after"), 2.0);
    }

    #[test]
    fn what_is_far_above_is_found_wherever_it_happens() {
        type Peak = (fn(&mut Gauge), &'static str);
        let peaks: [Peak; 3] = [
            (|gauge| gauge.rss = 2 << 30, "2048 MiB of memory"),
            (|gauge| gauge.files = 300, "300 open files"),
            (|gauge| gauge.threads = 700, "700 threads"),
        ];
        for (peak, word) in peaks {
            let verdict = run(|node, at| {
                let mut gauge = healthy(at);
                if node == 1 && (20..25).contains(&at) {
                    peak(&mut gauge);
                }
                gauge
            });
            assert_eq!((verdict.outcome, verdict.found), (Outcome::Failed, 1));
            assert!(told(&verdict).contains("node 1 has") && told(&verdict).contains(word), "{:?}", verdict.told);
        }
    }

    #[test]
    fn what_was_given_raises_the_ceiling_and_nothing_else_does() {
        let flood = |series: f64| {
            run(move |_, at| {
                let mut gauge = healthy(at);
                if at > 20 {
                    gauge.rss = 600 << 20;
                    gauge.told = gauge.told.map(|told| Told { series, ..told });
                }
                gauge
            })
        };
        assert_eq!(flood(150_000.0).outcome, Outcome::Passed, "{:?}", flood(150_000.0).told);
        assert_eq!(flood(1_000.0).outcome, Outcome::Failed);
        let callers = |connections: f64| {
            run(move |_, at| {
                let mut gauge = healthy(at);
                if (20..30).contains(&at) {
                    gauge.files = 400;
                    gauge.told = gauge.told.map(|told| Told { connections, ..told });
                }
                gauge
            })
        };
        assert_eq!((callers(300.0).outcome, callers(30.0).outcome), (Outcome::Passed, Outcome::Failed));
    }

    #[test]
    fn a_leak_below_the_ceiling_is_found_by_what_stays() {
        type Leak = (fn(&mut Gauge, u64), &'static str);
        let leaks: [Leak; 3] = [
            (|gauge, much| gauge.rss += much * 4_000_000, "MiB of memory after the healing"),
            (|gauge, much| gauge.files += much * 2, "open files after the healing"),
            (|gauge, much| gauge.threads += much * 5, "threads after the healing"),
        ];
        for (leak, word) in leaks {
            let from = |last: u64| {
                run(move |node, at| {
                    let mut gauge = healthy(at);
                    // A little more each second of the fault, at one node.
                    leak(&mut gauge, if node == 0 && at < last { at.saturating_sub(10).min(30) } else { 0 });
                    gauge
                })
            };
            let verdict = from(60);
            assert!(verdict.outcome == Outcome::Failed && told(&verdict).contains(word), "{:?}", verdict.told);
            assert!(verdict.told.iter().all(|told| told.contains("node 0 keeps")), "{:?}", verdict.told);
            assert_eq!(from(45).outcome, Outcome::Passed, "it was given back");
        }
    }

    #[test]
    fn dead_nodes_and_silent_ones_are_borne() {
        let verdict = run(|node, at| {
            let up = node == 0 || !(10..30).contains(&at);
            if up { healthy(at) } else { Gauge { told: None, files: 5, threads: 1, ..Gauge::default() } }
        });
        assert_eq!(verdict.outcome, Outcome::Passed, "{:?}", verdict.told);
        assert_eq!(check(&History::default()).figures["looks"], 0.0);
    }
}
