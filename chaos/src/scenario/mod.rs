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
use crate::cluster::{Disk, DiskKind, Injected, Kit, Scarce, packets};
use crate::error::Error;
pub(crate) use crate::hard::{Blocks, HARD};
use crate::nemesis::{Act, Pace};
pub(crate) use disk::{SMALL_DISK, SMALL_SEGMENTS};
use std::sync::LazyLock;
pub(crate) use store::{FAST_MS, MIXED, QUICK};

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
    /// Writers, series of each and their mean pause in milliseconds, where it takes another load than the usual one.
    pub(crate) load: Option<(u32, u32, u64)>,
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
    load: None,
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
    ("33b", "pairs of one Prometheus that do not agree", "deduplication of such pairs"),
];

/// The scenarios a name stands for: one, several with commas between, `smoke`, `all`, or `planted`.
///
/// # Errors
/// A word names nothing; with the name that is nearest to it.
pub(crate) fn named(names: &str) -> Result<Vec<&'static Scenario>, Error> {
    let every = || ALL.iter().chain(HARD).chain(PLANTED);
    let is = |one: &Scenario, name: &str| {
        name == one.name
            || name == "planted" && one.planted.is_some()
            || one.planted.is_none() && name == "all"
            || name == "smoke" && one.smoke
    };
    if let Some(word) = names.split(',').find(|word| every().all(|one| !is(one, word))) {
        let known = every().map(|one| one.name).chain(["all", "smoke", "planted"]);
        let nearest = known.min_by_key(|name| distance(word, name)).unwrap_or_default();
        let text = format!("there is no scenario {word:?}; did you mean {nearest:?}? `engram-chaos list` names all");
        return Err(Error::Asked(text));
    }
    Ok(every().filter(|one| names.split(',').any(|name| is(one, name))).collect())
}

/// How many letters must be changed, put in or left out to come from one word to another.
///
/// Source: Wagner and Fischer, "The String-to-String Correction Problem" (JACM 1974).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, one) in from.bytes().enumerate() {
        let mut above = std::mem::replace(&mut row[0], at + 1);
        for (column, other) in to.bytes().enumerate() {
            let changed = above + usize::from(one != other);
            above = row[column + 1];
            row[column + 1] = changed.min(above + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

impl Scenario {
    /// What is checked besides what always is: blocks (`ledger`), gaps and failures during faults (`available`), or the one
    /// checker that must find something.
    pub(crate) fn checked(&self) -> &'static str {
        let gaps = self.promise.ack_gap_max_ms.is_some();
        match (self.planted, self.blocks.is_some() || self.kit.store) {
            (Some(checker), _) => checker,
            (None, true) if gaps => "ledger, available",
            (None, true) => "ledger",
            (None, false) if gaps => "available",
            (None, false) => "",
        }
    }

    /// Whether this machine can do what is to be done; else why not.
    pub(crate) fn possible(&self) -> Result<(), String> {
        Disk::possible(self.disk)?;
        self.kit.possible()?;
        match self.act {
            Act::Scarce(kinds) => kinds.iter().try_for_each(|kind| kind.possible())?,
            Act::Flood => Scarce::MemoryTo(0).possible()?,
            Act::Network(shape) if shape.needs_packets() => packets()?,
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
        let count = |names: &str| named(names).unwrap().len();
        assert_eq!(count("kill-all,ring"), 2);
        assert!(count("smoke") > 2 && count("all") == ALL.len() + HARD.len());
        // Of everything a little: processes, lines, power, blocks, members.
        let (smoke, is) = (named("smoke").unwrap(), |name: &str| named(name).unwrap()[0].smoke);
        assert!(smoke.iter().any(|one| one.disk == DiskKind::Ext4) && smoke.iter().any(|one| one.blocks.is_some()));
        assert!(["kill-all", "isolate-leader", "power-all", "blocks-kill", "strand"].into_iter().all(is));
    }

    #[test]
    fn a_word_that_names_nothing_is_refused() {
        for (names, nearest) in
            [("kill-all,power-al", "power-all"), ("smok", "smoke"), ("kill-all,", "all"), ("", "all")]
        {
            let why = named(names).map(|all| all.len()).unwrap_err().to_string();
            assert!(why.contains(&format!("mean {nearest:?}")), "{names}: {why}");
        }
        assert_eq!([distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")], [3, 0, 3]);
    }
}
