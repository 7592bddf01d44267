//! Scenarios in which one safeguard alone keeps a promise: each is made so that the store without that safeguard breaks
//! it where clients see it. What proves that is `mutants`.

use crate::cluster::DiskKind;
use crate::nemesis::{Act, Pace, Whom};
use crate::scenario::{Scenario, THREE};

/// Time runs faster in what is written, so that windows of five minutes end while the run lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// Between two numbers of a writer, milliseconds of the samples' time.
    pub(crate) step_ms: i64,
    /// Mean pause between two flushes, milliseconds.
    pub(crate) flush_every_ms: u64,
}

/// All of them.
pub(crate) static HARD: &[Scenario] = &[
    Scenario {
        name: "power-slow",
        number: "6b",
        fault: "every sync begins 300 ms later, then power loss of all zones together",
        says: "nothing is acknowledged before it is synced",
        disk: DiskKind::Ext4,
        act: Act::SlowThenDark,
        pace: Pace { rounds: 2, hold_ms: 3_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "blocks-kill",
        number: "28b",
        fault: "kill -9 of each node in turn, while windows become blocks and blocks become one",
        says: "cuts and compactions lose and invent nothing",
        act: Act::Kill(Whom::EachNode),
        smoke: true,
        after_ms: 30_000,
        blocks: Some(Blocks { step_ms: 2_000, flush_every_ms: 1_000 }),
        ..THREE
    },
    Scenario {
        name: "blocks-bridge",
        number: "28d",
        fault: "a node learns late of windows that were flushed; then the one is killed that has what the block lacks",
        says: "a replica forgets only what a block holds, though it learns of the cut late",
        act: Act::BridgeThenKill,
        pace: Pace { rounds: 3, hold_ms: 4_000, rest_ms: 3_000 },
        blocks: Some(Blocks { step_ms: 500, flush_every_ms: 300 }),
        ..THREE
    },
    Scenario {
        name: "strand",
        number: "31b",
        fault: "a coordinator sees only two replicas, and not that they have given their partitions away",
        says: "who holds a partition no more takes no writes for it",
        nodes: 6,
        zones: 6,
        act: Act::Strand,
        smoke: true,
        pace: Pace { rounds: 1, hold_ms: 6_000, rest_ms: 3_000 },
        ..THREE
    },
];
