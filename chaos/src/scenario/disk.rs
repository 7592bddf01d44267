//! Disks that lose their power, fail, are slow, full or rot; and clocks that are wrong.

use super::{HONEST, Scenario, THREE, UNNOTICED, UNSLOWED};
use crate::check::Promise;
use crate::cluster::{Damage, DiskKind, Kit, Part, Syncs};
use crate::nemesis::{Act, Pace, Shift, Whom};

/// Small enough to fill; large enough that what a fast machine writes in a run, and the 65 MiB that are set aside for the
/// metadata's log, do not fill it by themselves.
pub(crate) const SMALL_DISK: u64 = 256 << 20;
/// A log that needs a new file every second or two.
pub(crate) const SMALL_SEGMENTS: &[&str] = &["--log-segment-bytes-max", "1MiB"];
/// Long enough for the log to have filled what was set aside for it.
const FULL: Pace = Pace { rounds: 3, hold_ms: 10_000, rest_ms: 4_000 };
const ROT: &str =
    "no wrong value is answered; what rots on one node spreads nowhere, and the node is replaced if it must be";
const MEDDLED: Kit = Kit { meddle: true, ..Kit::NOTHING };
const CLOCKED: Kit = Kit { clock: true, ..Kit::NOTHING };
const CLOCKS: &str = "nothing lost, nothing valid refused, nothing stale; clients notice nothing";

pub(super) static DISK: &[Scenario] = &[
    Scenario {
        name: "power-node",
        number: "5",
        fault: "power loss of each node in turn: what was not synced is gone",
        says: "nothing acknowledged is lost; clients notice nothing but what was in flight",
        disk: DiskKind::Ext4,
        act: Act::PowerLoss(Whom::EachNode),
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "power-all",
        number: "6",
        fault: "power loss of all zones together",
        disk: DiskKind::Ext4,
        act: Act::PowerLoss(Whom::All),
        smoke: true,
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
        name: "slow-disk",
        number: "16",
        fault: "every sync of one node takes 300 ms longer",
        says: "a slow zone does not slow acknowledgements down",
        promise: UNSLOWED,
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
        name: "sync-once",
        number: "17b",
        fault: "one sync fails once, of one kind of file (the log, the metadata's log, a folder), then power loss; at \
                each node in turn, then at all at once",
        says: "nothing that was written before a failed sync is acknowledged, whatever later syncs say; the node ends itself",
        disk: DiskKind::Ext4,
        kit: MEDDLED,
        act: Act::SyncOnce,
        pace: Pace { rounds: 6, hold_ms: 1_000, rest_ms: 4_000 },
        // Folders are synced where the log goes on in another file.
        options: SMALL_SEGMENTS,
        ..THREE
    },
    Scenario {
        name: "pause-in-sync",
        number: "9",
        fault: "each node in turn stopped between a write and its sync, then let go on or killed there",
        act: Act::HeldSync(Whom::EachNode),
        pace: Pace { rounds: 4, hold_ms: 3_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "interrupted-calls",
        number: "18",
        fault: "calls on files answer EINTR, EAGAIN or ENOSPC now and then, a kind a round",
        says: "what failed is not acknowledged; the node goes on or ends itself, and comes back whole",
        act: Act::Calls(Whom::EachNode),
        pace: Pace { rounds: 6, hold_ms: 3_000, rest_ms: 2_000 },
        // Names are changed and room is set aside where the log goes on in another file.
        options: SMALL_SEGMENTS,
        ..THREE
    },
    Scenario {
        name: "short-writes",
        number: "18b",
        fault: "one of three writes to files is cut short by the kernel, at each node in turn",
        says: "what is left is written after it; clients notice nothing",
        kit: MEDDLED,
        act: Act::CutShort(Whom::EachNode),
        pace: Pace { rounds: 3, hold_ms: 4_000, rest_ms: 2_000 },
        promise: UNNOTICED,
        options: SMALL_SEGMENTS,
        ..THREE
    },
    Scenario {
        name: "disk-full",
        number: "19",
        fault: "the disk of each node in turn is full until its log cannot grow, then has room again",
        says: "what does not fit is not acknowledged; the others serve; the node recovers",
        disk: DiskKind::Small(SMALL_DISK),
        act: Act::DiskFull(Whom::EachNode),
        pace: FULL,
        options: SMALL_SEGMENTS,
        ..THREE
    },
    Scenario {
        name: "disks-full",
        number: "19b",
        fault: "the disks of all nodes are full at once until no log can grow, then have room again",
        says: "writes are refused as unavailable, none is acknowledged and lost; all recover",
        disk: DiskKind::Small(SMALL_DISK),
        act: Act::DiskFull(Whom::All),
        promise: Promise { refused: true, ..HONEST },
        pace: Pace { rounds: 2, ..FULL },
        options: SMALL_SEGMENTS,
        ..THREE
    },
    Scenario {
        name: "torn-log",
        number: "20",
        fault: "kill -9, then the log's end is torn: 1 to 64 bytes cut off, a last page of zeros, a file too short",
        says: "nothing but the torn end is lost there, and nothing in the cluster",
        act: Act::Damage(Whom::EachNode, &[Damage::Torn, Damage::ZeroPage, Damage::Short]),
        pace: Pace { rounds: 3, hold_ms: 1_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "rotten-log",
        number: "21",
        fault: "kill -9, then one bit in a million of its log is turned over",
        says: ROT,
        act: Act::Damage(Whom::EachNode, &[Damage::Bits(Part::Log)]),
        pace: Pace { rounds: 2, hold_ms: 1_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "rotten-meta",
        number: "21b",
        fault: "kill -9, then one bit in a million of its metadata is turned over",
        says: ROT,
        act: Act::Damage(Whom::EachNode, &[Damage::Bits(Part::Meta)]),
        pace: Pace { rounds: 3, hold_ms: 1_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "rotten-live",
        number: "21c",
        fault: "one bit in a million of the log under a running node is turned over, then kill -9",
        says: ROT,
        act: Act::LiveDamage(Whom::EachNode, Damage::Bits(Part::Log)),
        pace: Pace { rounds: 2, hold_ms: 5_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "rotten-chunks",
        number: "21e",
        fault: "one bit in a million of the files of full chunks under a running node is turned over, then kill -9; then it is \
                replaced",
        says: ROT,
        act: Act::LiveDamage(Whom::EachNode, Damage::Bits(Part::Chunks)),
        pace: Pace { rounds: 1, hold_ms: 5_000, rest_ms: 4_000 },
        // One node: nobody repairs a second one while it is replaced.
        // A partition's share of what may wait in memory is small, each tenant has one, and checkpoints name the files soon.
        options: &[
            "--partitions",
            "128",
            "--shard-size",
            "1",
            "--log-segment-bytes-max",
            "1MiB",
            "--log-checkpoint-bytes-min",
            "4MiB",
        ],
        load: Some((4, 100, 100)),
        healthy_ms: 25_000,
        ..THREE
    },
    Scenario {
        name: "clock-jump",
        number: "25",
        fault: "the clock of each node in turn ten minutes ahead, or behind",
        says: CLOCKS,
        act: Act::Clock(Whom::EachNode, Shift::Jump(600_000)),
        kit: CLOCKED,
        pace: Pace { rounds: 4, ..THREE.pace },
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "clock-day",
        number: "25b",
        fault: "the clock of the metadata leader a day ahead, or behind; samples two days ahead are allowed",
        says: CLOCKS,
        act: Act::Clock(Whom::Leader, Shift::Jump(86_400_000)),
        kit: CLOCKED,
        options: &["--limits-creation-grace-period", "2d"],
        pace: Pace { rounds: 4, ..THREE.pace },
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "clock-twitch",
        number: "25c",
        fault: "the clocks of all nodes 200 ms ahead and behind, a hundred times a second",
        says: CLOCKS,
        act: Act::Clock(Whom::All, Shift::Twitch(200)),
        kit: CLOCKED,
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "clock-pace",
        number: "25d",
        fault: "the clock of each node in turn twice as fast, or half as fast",
        says: CLOCKS,
        act: Act::Clock(Whom::EachNode, Shift::Pace(200)),
        kit: CLOCKED,
        pace: Pace { rounds: 4, ..THREE.pace },
        promise: UNNOTICED,
        ..THREE
    },
];
