//! Compaction and sweeping of a node, put together from its options.
//!
//! Why a file: both work with the same metadata, store and disk, and what a person asks of blocks is answered with the
//! very plan and workshop that compaction uses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engram_model::time::Clock;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use tokio_util::sync::CancellationToken;

use super::catalog::Catalog;
use super::compactor::{self, Compaction};
use super::job::Workshop;
use super::orphans::Orphans;
use super::planning::Planner;
use super::reach::Reach;
use super::sweeper::{self, Sweeping};
use crate::actor::Supervisor;
use crate::config::Config;
use crate::meta::Meta;
use crate::metrics::Metrics;
use crate::peer::Peers;

/// Sweeping looks at every tenant: ten times less often than compaction, and no less often than this.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(300);
/// How often the store is listed for orphans, at most.
const ORPHANS_EVERY_MS: i64 = 6 * 60 * 60 * 1000;

/// See the module's text.
pub struct Keeping {
    shop: Workshop,
    peers: Peers,
    reach: Reach,
    compaction: Compaction,
    sweeping: Sweeping,
    orphan_after_ms: i64,
}

impl Keeping {
    /// With a work directory that nobody else uses. Nothing runs yet.
    #[must_use]
    pub fn new(
        config: &Config,
        work: PathBuf,
        (meta, peers, store, reach): (&Meta, &Peers, &Store, &Reach),
        clock: &Clock,
        metrics: &Metrics,
    ) -> Self {
        let shop = Workshop {
            planner: Planner::new(meta.clone(), config.compaction.rules(config.window_ms()), clock.clone()),
            store: store.clone(),
            disk: Arc::new(RealDisk),
            work,
            window_ms: config.window_ms(),
        };
        let orphan_after_ms = config.compaction.orphan_after_ms;
        let (compaction, sweeping) = (Compaction::default(), Sweeping::default());
        let (told, now) = (compaction.clone(), clock.clone());
        metrics.collect(move || told.readings(now.now()));
        let told = sweeping.clone();
        metrics.collect(move || told.readings());
        Self { shop, peers: peers.clone(), reach: reach.clone(), compaction, sweeping, orphan_after_ms }
    }

    /// What a person may ask.
    #[must_use]
    pub fn catalog(&self) -> Catalog {
        let orphans = Orphans {
            meta: self.shop.planner.meta().clone(),
            store: self.shop.store.clone(),
            reach: self.reach.clone(),
            clock: self.shop.planner.clock().clone(),
            grace_ms: self.orphan_after_ms,
        };
        Catalog::new(self.shop.clone(), self.compaction.clone(), orphans)
    }

    /// Starts both actors.
    pub fn start(&self, config: &Config, supervisor: &mut Supervisor, stop: &CancellationToken) {
        let every = config.compaction.interval;
        supervisor.spawn(compactor::child(compactor::Config {
            shop: self.shop.clone(),
            peers: self.peers.clone(),
            every,
            jobs_max: config.compaction.jobs_max,
            space_bytes_max: config.compaction.space_bytes_max,
            reach: self.reach.clone(),
            handle: self.compaction.clone(),
            stop: stop.clone(),
        }));
        supervisor.spawn(sweeper::child(sweeper::Config {
            meta: self.shop.planner.meta().clone(),
            peers: self.peers.clone(),
            reach: self.reach.clone(),
            store: self.shop.store.clone(),
            clock: self.shop.planner.clock().clone(),
            every: every.saturating_mul(10).min(SWEEP_EVERY_MAX),
            retention_ms: config.retention_ms,
            grace_ms: config.compaction.grace_ms,
            orphan_after_ms: config.compaction.orphan_after_ms,
            orphans_every_ms: ORPHANS_EVERY_MS.min(config.compaction.orphan_after_ms),
            handle: self.sweeping.clone(),
            stop: stop.clone(),
        }));
    }
}
