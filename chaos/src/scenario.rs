//! What there is to run: each scenario is a fault, what is promised while it lasts, and a cluster to do it to.
//!
//! The numbers are those of a list of 37 scenarios that a store of this kind should survive; those that are not here are
//! in [`MISSING`], each with what it waits for, so that nobody mistakes silence for strength.

use crate::check::Promise;
use crate::cluster::{Disk, DiskKind, Injected, Syncs};
pub(crate) use crate::hard::{Blocks, HARD};
use crate::nemesis::{Act, Pace, Shape, Whom};

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
    pub(crate) act: Act,
    pub(crate) pace: Pace,
    /// Load after the healing, milliseconds.
    pub(crate) after_ms: u64,
    pub(crate) promise: Promise,
    /// Options of the nodes, besides those of every run.
    pub(crate) options: &'static [&'static str],
    /// Whether what is written becomes blocks during the run; `None`: it stays in memory.
    pub(crate) blocks: Option<Blocks>,
    /// Part of the short run.
    pub(crate) smoke: bool,
    /// The checker that must find what is planted; `None`: nothing is.
    pub(crate) planted: Option<&'static str>,
}

/// Clients notice nothing but what was in flight at a node that is gone.
const UNNOTICED: Promise =
    Promise { ack_gap_max_ms: Some(1_000), failed_writes_max: Some(0), failed_reads_max: Some(0), settle_ms: 5_000 };
/// Somebody may be refused or kept waiting; nobody is told a lie.
pub(crate) const HONEST: Promise =
    Promise { ack_gap_max_ms: None, failed_writes_max: None, failed_reads_max: None, settle_ms: 10_000 };

pub(crate) const THREE: Scenario = Scenario {
    name: "",
    number: "",
    fault: "",
    says: "nothing acknowledged is lost; no wrong answer",
    nodes: 3,
    zones: 3,
    disk: DiskKind::Plain,
    act: Act::Any,
    pace: Pace { rounds: 3, hold_ms: 4_000, rest_ms: 3_000 },
    after_ms: 2_000,
    promise: HONEST,
    options: &[],
    blocks: None,
    smoke: false,
    planted: None,
};

/// Small enough to fill, large enough to work for a while.
const SMALL_DISK: u64 = 256 << 20;

/// All scenarios that can be run.
pub(crate) static ALL: &[Scenario] = &[
    Scenario {
        name: "kill-node",
        number: "1",
        fault: "kill -9 of each node in turn",
        says: "nothing acknowledged is lost; clients notice nothing but what was in flight",
        act: Act::Kill(Whom::EachNode),
        promise: UNNOTICED,
        smoke: true,
        ..THREE
    },
    Scenario {
        name: "kill-zone",
        number: "2",
        fault: "kill -9 of all nodes of a zone at once; six nodes in three zones",
        says: "nothing acknowledged is lost; clients notice nothing but what was in flight",
        nodes: 6,
        act: Act::Kill(Whom::Zone),
        pace: Pace { rounds: 2, hold_ms: 8_000, rest_ms: 4_000 },
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "kill-two-zones",
        number: "3",
        fault: "kill -9 of two zones of three",
        says: "no write is acknowledged without a majority; after the healing no read flickers",
        act: Act::Kill(Whom::AllZonesButOne),
        ..THREE
    },
    Scenario {
        name: "kill-all",
        number: "4",
        fault: "kill -9 of all nodes at one moment",
        act: Act::Kill(Whom::All),
        pace: Pace { rounds: 3, hold_ms: 1_000, rest_ms: 3_000 },
        smoke: true,
        ..THREE
    },
    Scenario {
        name: "leftovers",
        number: "3b",
        fault: "kill -9 of each node in turn, then 45 s of load without a fault",
        says: "what refused writes left behind is on a majority or unseen 30 s after the faults, also under load",
        act: Act::Kill(Whom::EachNode),
        after_ms: 45_000,
        ..THREE
    },
    Scenario {
        name: "kill-leader",
        number: "4b",
        fault: "kill -9 of the metadata leader, again and again",
        says: "samples do not need the leader; configuration changes are linearizable",
        act: Act::Kill(Whom::Leader),
        pace: Pace { rounds: 4, hold_ms: 3_000, rest_ms: 3_000 },
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "power-node",
        number: "5",
        fault: "power loss of each node in turn: what was not synced is gone",
        says: "nothing acknowledged is lost; clients notice nothing but what was in flight",
        disk: DiskKind::Ext4,
        act: Act::PowerLoss(Whom::EachNode),
        ..THREE
    },
    Scenario {
        name: "power-all",
        number: "6",
        fault: "power loss of all zones together",
        disk: DiskKind::Ext4,
        act: Act::PowerLoss(Whom::All),
        pace: Pace { rounds: 3, hold_ms: 1_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "power-leader",
        number: "7",
        fault: "power loss of the metadata leader",
        says: "no configuration change is lost or rolled back",
        disk: DiskKind::Ext4,
        act: Act::PowerLoss(Whom::Leader),
        ..THREE
    },
    Scenario {
        name: "pause-node",
        number: "8",
        fault: "SIGSTOP of each node in turn, then SIGCONT",
        act: Act::Pause(Whom::EachNode),
        ..THREE
    },
    Scenario {
        name: "pause-leader",
        number: "8b",
        fault: "SIGSTOP of the metadata leader, then SIGCONT",
        says: "a leader that wakes up late answers nothing stale",
        act: Act::Pause(Whom::Leader),
        smoke: true,
        ..THREE
    },
    Scenario {
        name: "isolate-node",
        number: "10, 14",
        fault: "one node cut off from the others, clients still reach it",
        says: "it acknowledges nothing alone and answers nothing old",
        act: Act::Network(Shape::IsolateNode),
        ..THREE
    },
    Scenario {
        name: "isolate-leader",
        number: "10b",
        fault: "the metadata leader cut off from the others",
        says: "it acknowledges nothing alone and answers nothing old; the others elect another",
        act: Act::Network(Shape::IsolateLeader),
        smoke: true,
        ..THREE
    },
    Scenario {
        name: "shatter",
        number: "11",
        fault: "every node cut off from every other",
        says: "no write succeeds without a majority",
        act: Act::Network(Shape::Shatter),
        ..THREE
    },
    Scenario {
        name: "ring",
        number: "12",
        fault: "five nodes, each sees a majority, no two the same",
        nodes: 5,
        zones: 5,
        act: Act::Network(Shape::Ring),
        pace: Pace { rounds: 2, hold_ms: 8_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "halves",
        number: "12b",
        fault: "five nodes cut into two and three",
        nodes: 5,
        zones: 5,
        act: Act::Network(Shape::Halves),
        pace: Pace { rounds: 2, hold_ms: 8_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "bridge",
        number: "13",
        fault: "two nodes do not see each other, both see the third",
        act: Act::Network(Shape::Bridge),
        ..THREE
    },
    Scenario {
        name: "one-way",
        number: "13b",
        fault: "what one node sends does not arrive, what is sent to it does",
        act: Act::Network(Shape::OneWay),
        ..THREE
    },
    Scenario {
        name: "slow-net",
        number: "15",
        fault: "every line between nodes late by 50 to 100 ms each way",
        act: Act::Network(Shape::Slow(50)),
        ..THREE
    },
    Scenario {
        name: "lossy-net",
        number: "15b",
        fault: "connections between nodes break again and again",
        act: Act::Network(Shape::Lossy),
        ..THREE
    },
    Scenario {
        name: "narrow-net",
        number: "15c",
        fault: "the lines of one node carry 1 Mbit/s",
        says: "a slow zone does not slow acknowledgements down",
        act: Act::Network(Shape::Narrow(125_000)),
        ..THREE
    },
    Scenario {
        name: "slow-disk",
        number: "16",
        fault: "every sync of one node takes 300 ms longer",
        says: "a slow zone does not slow acknowledgements down",
        act: Act::Syncs(Whom::EachNode, Syncs::Slow(300)),
        ..THREE
    },
    Scenario {
        name: "failed-sync",
        number: "17",
        fault: "every sync of one node fails with an error of the disk",
        says: "no acknowledgement after a failed sync; the node ends itself and comes back whole",
        act: Act::Syncs(Whom::EachNode, Syncs::Fail),
        pace: Pace { rounds: 3, hold_ms: 2_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "disk-full",
        number: "19",
        fault: "the disk of each node in turn is full, then has room again",
        says: "what does not fit is not acknowledged; the node recovers",
        disk: DiskKind::Small(SMALL_DISK),
        act: Act::DiskFull(Whom::EachNode),
        options: &["--log-segment-bytes-max", "8MiB"],
        ..THREE
    },
    Scenario {
        name: "wipe-node",
        number: "22",
        fault: "a node loses its disk for good, is removed, and joins empty as a new one",
        says: "its replicas are rebuilt from the others",
        act: Act::WipeNode,
        pace: Pace { rounds: 2, hold_ms: 1_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "churn",
        number: "31",
        fault: "nodes join, old ones are drained and removed",
        says: "replicas move under load; nothing is lost or answered wrong",
        act: Act::Churn,
        pace: Pace { rounds: 2, hold_ms: 1_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "rolling-restart",
        number: "30",
        fault: "each node asked to end and started again, in turn",
        says: "clients notice nothing but what was in flight",
        act: Act::Restart(Whom::EachNode),
        pace: Pace { rounds: 3, hold_ms: 1_000, rest_ms: 3_000 },
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "random",
        number: "37",
        fault: "ten faults drawn from those that need no disk of their own",
        act: Act::Any,
        pace: Pace { rounds: 10, hold_ms: 3_000, rest_ms: 3_000 },
        ..THREE
    },
];

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
    ("9", "pause between a write and its sync", "named points to stop at inside of the node"),
    ("18", "writes that are cut short or fail now and then", "choosing the files they go to"),
    ("20, 21", "torn and rotten files", "offline damage of logs and chunk files between stop and start"),
    ("23", "membership changes while the network is cut", "churn and the network's faults at the same time"),
    ("24", "snapshots of the metadata while they are sent and broken off", "a setting for how often they are made"),
    ("25", "clocks that are wrong", "an offset of the clock as a setting of the node"),
    (
        "26 to 29",
        "an object store that fails, lies or is slow; a crash at each step of a block's life",
        "a store in our hands",
    ),
    ("32, 34", "overload, too few files, threads or bytes", "control groups"),
    ("33", "replicas of one Prometheus", "deduplication of such pairs; resending is part of every scenario"),
    ("35", "rules and alerts", "rules"),
    ("36", "certificates that end or are replaced", "certificates"),
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
        if matches!(self.act, Act::Syncs(..) | Act::PlantedLie | Act::SlowThenDark) {
            Injected::possible()
        } else {
            Ok(())
        }
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
