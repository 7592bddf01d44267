//! What there is to run: each scenario is a fault, what is promised while it lasts, and a cluster to do it to.
//!
//! The numbers are those of a list of 37 scenarios that a store of this kind should survive; those that are not here are
//! in [`MISSING`], each with what it waits for, so that nobody mistakes silence for strength.

mod disk;
mod members;
mod network;
mod process;
mod store;

use crate::check::Promise;
use crate::cluster::{Disk, DiskKind, Injected, Kit, Scarce};
pub(crate) use crate::hard::{Blocks, HARD};
use crate::nemesis::{Act, Pace};
use std::sync::LazyLock;

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Its number in the list.
    pub(crate) number: &'static str,
    pub(crate) fault: &'static str,
    pub(crate) says: &'static str,
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    pub(crate) disk: DiskKind,
    pub(crate) kit: Kit,
    pub(crate) act: Act,
    pub(crate) pace: Pace,
    /// Load before the first fault, milliseconds.
    pub(crate) healthy_ms: u64,
    /// Load after the healing, milliseconds.
    pub(crate) after_ms: u64,
    pub(crate) promise: Promise,
    /// Options of the nodes, besides those of every run.
    pub(crate) options: &'static [&'static str],
    /// Whether what is written becomes blocks during the run; `None`: it stays in memory.
    pub(crate) blocks: Option<Blocks>,
    /// Milliseconds between two numbers of a writer.
    pub(crate) step_ms: i64,
    /// Part of the short run.
    pub(crate) smoke: bool,
    /// The checker that must find what is planted; `None`: nothing is.
    pub(crate) planted: Option<&'static str>,
}

/// Clients notice nothing but what was in flight at a node that is gone.
const UNNOTICED: Promise = Promise {
    ack_gap_max_ms: Some(1_000),
    failed_writes_max: Some(0),
    failed_reads_max: Some(0),
    settle_ms: 5_000,
    ..HONEST
};
/// Somebody may be refused or kept waiting; nobody is told a lie.
pub(crate) const HONEST: Promise = Promise {
    ack_gap_max_ms: None,
    gap_at_fault_max_ms: None,
    p90_during_max_ms: None,
    save: "",
    refused: false,
    failed_writes_max: None,
    failed_reads_max: None,
    settle_ms: 10_000,
};
/// A zone that is slow slows nobody else down: what it is late by is more than this.
const UNSLOWED: Promise = Promise { p90_during_max_ms: Some(250), ..HONEST };

pub(crate) const THREE: Scenario = Scenario {
    name: "",
    number: "",
    fault: "",
    says: "nothing acknowledged is lost; no wrong answer",
    nodes: 3,
    zones: 3,
    disk: DiskKind::Plain,
    kit: Kit::NOTHING,
    act: Act::Any,
    pace: Pace { rounds: 3, hold_ms: 4_000, rest_ms: 3_000 },
    healthy_ms: 2_000,
    after_ms: 2_000,
    promise: HONEST,
    options: &[],
    blocks: None,
    step_ms: 10,
    smoke: false,
    planted: None,
};

/// All scenarios that can be run.
pub(crate) static ALL: LazyLock<Vec<Scenario>> =
    LazyLock::new(|| [process::PROCESS, disk::DISK, network::NETWORK, members::MEMBERS, store::STORE].concat());

/// What must *not* pass: proof that the suite can see. Run by name, or all by `planted`.
pub(crate) static PLANTED: &[Scenario] = &[Scenario {
    name: "planted-lie",
    number: "-",
    fault: "all disks say that they have synced and have not; then all lose their power",
    says: "the checkers find what is lost: acknowledging before the sync would look like this",
    disk: DiskKind::Ext4,
    act: Act::PlantedLie,
    pace: Pace { rounds: 1, hold_ms: 6_000, rest_ms: 2_000 },
    planted: Some("samples"),
    ..THREE
}];

/// What is not here: number, what it is, what it waits for.
pub(crate) static MISSING: &[(&str, &str, &str)] = &[
    ("35", "rules and alerts through the loss of a leader", "rules: the product evaluates none yet"),
    ("21e", "files of full chunks that rot", "a megabyte of them in a partition; a minute of this load makes less"),
    ("18b", "writes that the kernel cuts short", "a tracer of our own; a disk that fills up cuts some short"),
    ("33b", "pairs of one Prometheus that do not agree", "deduplication of such pairs"),
];

/// The scenarios a name stands for: one, several with commas between, `smoke`, `all`, or `planted`.
pub(crate) fn named(names: &str) -> Vec<&'static Scenario> {
    let is = |one: &Scenario, name: &str| {
        name == one.name
            || name == "planted" && one.planted.is_some()
            || one.planted.is_none() && name == "all"
            || name == "smoke" && one.smoke
    };
    ALL.iter().chain(HARD).chain(PLANTED).filter(|one| names.split(',').any(|name| is(one, name))).collect()
}

impl Scenario {
    /// Whether this machine can do what is to be done; else why not.
    pub(crate) fn possible(&self) -> Result<(), String> {
        Disk::possible(self.disk)?;
        self.kit.possible()?;
        match self.act {
            Act::Scarce(kinds) => kinds.iter().try_for_each(|kind| kind.possible())?,
            Act::Flood => Scarce::MemoryTo(0).possible()?,
            _ => {}
        }
        let traced =
            matches!(self.act, Act::Syncs(..) | Act::Calls(_) | Act::HeldSync(_) | Act::PlantedLie | Act::SlowThenDark);
        if traced { Injected::possible() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sets_are_not_empty() {
        let mut names: Vec<_> = ALL.iter().chain(HARD).map(|one| one.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len() + HARD.len());
        assert!(!names.contains(&"all") && !names.contains(&"smoke"));
        assert_eq!(named("kill-all,ring").len(), 2);
        assert!(
            named("smoke").len() > 2 && named("all").len() == ALL.len() + HARD.len() && named("no such").is_empty()
        );
        // The short run needs nothing a small machine does not have.
        assert!(named("smoke").iter().all(|one| one.disk == DiskKind::Plain && one.nodes == 3));
    }
}
