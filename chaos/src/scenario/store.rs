//! The object store, and each step of a block's life. Times pass quickly here: a window of five minutes is over in ten
//! seconds, and is cut, uploaded, merged with others and deleted while the run lasts.

use super::{HONEST, Scenario, THREE};
use crate::check::Promise;
use crate::cluster::{Damage, Deed, DiskKind, Kit, Mood, Part, Trap, Verb};
use crate::nemesis::{Act, Pace, Whom};

/// Milliseconds between two numbers of a writer.
pub(crate) const FAST_MS: i64 = 2_000;
/// Windows are cut as soon as they can be, merged at once, and what was merged goes soon.
pub(crate) const QUICK: &[&str] = &[
    "--blocks-window",
    "5m",
    "--blocks-seal-delay",
    "10s",
    "--blocks-seal-late-max",
    "2m",
    "--compaction-ranges",
    "5m,10m,30m",
    "--compaction-interval",
    "1s",
    "--compaction-grace",
    "5s",
    "--query-timeout",
    "5s",
];
/// Writes know nothing of the store; what lies there cannot be read while it does not answer.
const WRITES: Promise = Promise { ack_gap_max_ms: Some(1_000), failed_writes_max: Some(0), ..HONEST };
const WELL: Mood = Mood { down: false, silent: false, refused: 0, late_ms: 0, unanswered: 0, halves: 0, stale: false };
const CALM: Pace = Pace { rounds: 2, hold_ms: 10_000, rest_ms: 8_000 };

const BASE: Scenario = Scenario {
    says: "writes notice nothing; blocks are neither lost nor doubled; what waited is uploaded",
    disk: DiskKind::Plain,
    kit: Kit { store: true, ..Kit::NOTHING },
    pace: CALM,
    after_ms: 8_000,
    promise: WRITES,
    options: QUICK,
    step_ms: FAST_MS,
    ..THREE
};

const fn trap(verb: Verb, ends: &'static str, after: bool) -> Trap {
    Trap { verb, ends, after, merged: false, deed: Deed::Kill }
}

/// Each step of making a block, in its order.
const MAKING: &[Trap] = &[
    trap(Verb::Put, "chunks/000001", false),
    trap(Verb::Put, "chunks/000001", true),
    trap(Verb::Put, "index", false),
    trap(Verb::Put, "index", true),
    trap(Verb::Put, "meta.json", false),
    trap(Verb::Put, "meta.json", true),
    trap(Verb::Get, "index", true),
];
/// Each step of deleting one.
const DELETING: &[Trap] = &[
    trap(Verb::Delete, "meta.json", false),
    trap(Verb::Delete, "meta.json", true),
    trap(Verb::Delete, "index", true),
    trap(Verb::Delete, "chunks/000001", true),
];

pub(super) static STORE: &[Scenario] = &[
    Scenario { name: "store-down", number: "26", fault: "the object store ends every connection", act: DOWN, ..BASE },
    Scenario {
        name: "store-refuses",
        number: "26b",
        fault: "the object store answers half of all requests with 503, slow down",
        act: REFUSES,
        ..BASE
    },
    Scenario {
        name: "store-slow",
        number: "26c",
        fault: "the object store answers 1.5 s late, then not at all",
        act: SLOW,
        ..BASE
    },
    Scenario {
        name: "store-lies",
        number: "27",
        fault: "answers of the object store are lost, uploads end half way, lists are old",
        says: "no block is lost or doubled",
        act: LIES,
        pace: Pace { rounds: 3, ..CALM },
        ..BASE
    },
    Scenario {
        name: "block-made-crash",
        number: "28",
        fault: "kill -9 at each step of making a block: chunks, index, meta.json, reading back; before and after it",
        says: "no sample is lost or doubled, whichever step it was",
        act: Act::Trap(MAKING),
        pace: Pace { rounds: 7, hold_ms: 500, rest_ms: 1_000 },
        promise: HONEST,
        ..BASE
    },
    Scenario {
        name: "block-gone-crash",
        number: "28c",
        fault: "kill -9 at each step of deleting a block that was merged into another",
        says: "no sample is lost or doubled, whichever step it was",
        act: Act::Trap(DELETING),
        pace: Pace { rounds: 4, hold_ms: 500, rest_ms: 1_000 },
        promise: HONEST,
        ..BASE
    },
    Scenario {
        name: "rotten-cache",
        number: "21d",
        fault: "kill -9, then one bit in a million of its copies of parts of blocks is turned over",
        says: "no wrong value is answered: what rots is fetched again",
        act: Act::Damage(Whom::EachNode, &[Damage::Bits(Part::Cache)]),
        pace: Pace { rounds: 3, hold_ms: 500, rest_ms: 6_000 },
        // There must be blocks, and somebody must have read them.
        healthy_ms: 20_000,
        promise: HONEST,
        ..BASE
    },
    Scenario {
        name: "two-owners",
        number: "29",
        fault: "SIGSTOP of a node that has uploaded a merged block and not said so, until another has done it too; then SIGCONT",
        says: "who comes back late changes nothing; no sample is lost or doubled",
        act: Act::Trap(&[Trap { deed: Deed::Pause, merged: true, ..trap(Verb::Put, "meta.json", true) }]),
        // So long after the other one has done it.
        pace: Pace { rounds: 1, hold_ms: 6_000, rest_ms: 5_000 },
        promise: HONEST,
        ..BASE
    },
];

const DOWN: Act = Act::Store(&[Mood { down: true, ..WELL }]);
const REFUSES: Act = Act::Store(&[Mood { refused: 50, ..WELL }]);
const SLOW: Act = Act::Store(&[Mood { late_ms: 1_500, ..WELL }, Mood { silent: true, ..WELL }]);
const LIES: Act = Act::Store(&[
    Mood { unanswered: 50, ..WELL },
    Mood { halves: 50, ..WELL },
    Mood { stale: true, unanswered: 20, ..WELL },
]);

/// What may be mixed with other faults: two owners take their time.
pub(crate) const MIXED: &[Act] = &[DOWN, REFUSES, SLOW, LIES, Act::Trap(MAKING), Act::Trap(DELETING)];
