//! Members that come, go and are replaced.

use super::{Scenario, THREE, UNNOTICED};
use crate::check::Promise;
use crate::cluster::Kit;
use crate::nemesis::{Act, LINES_BREAK, Pace};

pub(super) static MEMBERS: &[Scenario] = &[
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
        name: "churn-cut",
        number: "23",
        fault: "nodes join, old ones are drained and removed, while lines between nodes are cut again and again",
        says: "no change of members gets stuck; nothing is lost or answered wrong",
        act: Act::ChurnCut,
        pace: Pace { rounds: 1, hold_ms: 1_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "lagging-member",
        number: "24",
        fault: "a member misses more of the metadata's log than is kept; its lines break, and it is killed while it catches up",
        says: "it gets the whole and catches up; no configuration change is lost or rolled back",
        act: Act::Lag,
        options: &["--cluster-snapshot-every", "100"],
        pace: Pace { rounds: 2, hold_ms: 2_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "rolling-upgrade",
        number: "30b",
        fault: "each node asked to end and started again as the newer binary, in turn, and then one as the older again",
        says: "old and new nodes work together; clients notice nothing but what was in flight",
        act: Act::Upgrade,
        kit: Kit { older: true, ..Kit::NOTHING },
        pace: Pace { rounds: 4, hold_ms: 1_000, rest_ms: 3_000 },
        promise: UNNOTICED,
        ..THREE
    },
    Scenario {
        name: "certificates",
        number: "36",
        fault: "all certificates are replaced under load, then the CA as well; then all connections break",
        says: "clients notice nothing of certificates; while all connections break writes are refused, and 2 s later all is well",
        act: Act::Rotate,
        promise: Promise { save: LINES_BREAK, ..UNNOTICED },
        kit: Kit { certs: true, ..Kit::NOTHING },
        pace: Pace { rounds: 2, hold_ms: 1_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "certificate-ends",
        number: "36b",
        fault: "the certificate of a node ends while it is used and all connections break; then it gets another",
        says: "the others go on without it; it comes back by itself",
        act: Act::Expire,
        kit: Kit { certs: true, clock: true, ..Kit::NOTHING },
        pace: Pace { rounds: 2, hold_ms: 4_000, rest_ms: 3_000 },
        ..THREE
    },
];
