//! What a group is opened with.

use std::path::PathBuf;

use engram_model::place::NodeId;
use engram_model::time::Clock;
use openraft::{Config, SnapshotPolicy};

use crate::error::Error;
use crate::rpc::{Dial, Network};
use crate::state::NodeSpec;
use crate::store::MemoryDisk;

/// How a node comes to be in a group, at its first start only.
#[derive(Clone, Debug)]
pub enum FirstStart {
    /// It makes a new cluster, as its founder and only voter.
    Bootstrap {
        /// Random name of the cluster.
        cluster_id: String,
        /// Partitions of the cluster, fixed for ever.
        partition_count: u32,
    },
    /// It was admitted to a cluster already and waits for its leader to call.
    Join {
        /// The cluster's name.
        cluster_id: String,
        /// The id its registration was answered with.
        id: NodeId,
    },
}

/// Raft's beats. A follower that hears nothing for an election timeout stands for election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between heartbeats, and how long the answer to one may take: a leader to whom all answer later than that takes
    /// itself for cut off. Longer than the slowest way between zones, there and back.
    pub heartbeat_ms: u64,
    /// Shortest election timeout; several heartbeats and slow fsyncs must fit.
    pub election_min_ms: u64,
    /// Longest election timeout.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 500, election_min_ms: 1500, election_max_ms: 3000 }
    }
}

/// What a group is opened with.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// Where its files lie: `db/` and `snapshots/`.
    pub dir: PathBuf,
    /// A disk in memory instead of it, for a simulation.
    pub memory: Option<MemoryDisk>,
    /// What this node tells about itself; the group is told when it changed.
    pub node: NodeSpec,
    /// How it comes to be in a group if `dir` is empty.
    pub first_start: FirstStart,
    /// How nodes reach each other.
    pub network: Network,
    /// How connections are made, where the network is gRPC.
    pub dial: Dial,
    /// Raft's beats.
    pub timing: Timing,
    /// Entries after which a snapshot is built and older entries are purged.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for followers that are a little late.
    pub snapshot_keep: u64,
    /// Log time.
    pub clock: Clock,
}

impl GroupOptions {
    /// The options of a node in a directory, the rest as usual.
    #[must_use]
    pub fn new(dir: PathBuf, node: NodeSpec, first_start: FirstStart, clock: Clock) -> Self {
        let (network, dial, timing) = (Network::default(), Dial::default(), Timing::default());
        let (snapshot_every, snapshot_keep) = (10_000, 1_000);
        Self { dir, memory: None, node, first_start, network, dial, timing, snapshot_every, snapshot_keep, clock }
    }

    pub(super) fn config(&self) -> Result<Config, Error> {
        let Timing { heartbeat_ms, election_min_ms, election_max_ms } = self.timing;
        let config = Config {
            cluster_name: "engram".to_owned(),
            heartbeat_interval: heartbeat_ms,
            election_timeout_min: election_min_ms,
            election_timeout_max: election_max_ms,
            enable_pre_vote: Some(true),
            // At least lease and election together; without it a leader cut off from its quorum beats on for ever.
            quorum_loss_probe_interval: Some(election_max_ms.saturating_mul(3)),
            enable_leader_restore: Some(false),
            max_payload_entries: 64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.snapshot_keep,
            install_snapshot_timeout: 120_000,
            ..Config::default()
        };
        config.validate().map_err(|e| Error::Settings { why: e.to_string() })
    }
}
