//! Processes that are killed, paused and restarted.

use super::{Scenario, THREE, UNNOTICED};
use crate::check::Promise;
use crate::cluster::Scarce;
use crate::nemesis::{Act, Pace, Whom};

pub(super) static PROCESS: &[Scenario] = &[
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
        promise: Promise { gap_at_fault_max_ms: Some(500), ..UNNOTICED },
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
    Scenario {
        name: "flood",
        number: "32",
        fault: "far more writes, new series and queries than can be served, with 512 MiB of memory a node",
        says: "what is too much is refused and nobody dies of it; others' samples are neither lost nor mixed up",
        act: Act::Flood,
        options: &[
            "--limits-ingestion-rate",
            "1500",
            "--limits-ingestion-burst-size",
            "3000",
            "--limits-max-global-series-per-user",
            "100000",
        ],
        pace: Pace { rounds: 2, hold_ms: 12_000, rest_ms: 6_000 },
        ..THREE
    },
    Scenario {
        name: "scarce",
        number: "34",
        fault: "each node in turn can open no file more, start no thread more, gets no memory",
        says: "the node lives on or is killed by the kernel, and comes back whole",
        act: Act::Scarce(&[Scarce::Files, Scarce::Threads, Scarce::Memory]),
        pace: Pace { rounds: 9, hold_ms: 4_000, rest_ms: 2_000 },
        ..THREE
    },
];
