//! Compactor: does what is planned, job by job, and says how far behind it is.
//!
//! ```text
//! every interval, after each job, and when somebody asks (clean_tombstones)
//!   → plan for every tenant (planning.rs; pure)        backlog and debt become metrics
//!   → the jobs that wait longest, as many as fit       a bound on jobs, a bound on bytes of disk
//!   → job.rs: lease, merge, upload, one ReplaceBlocks
//!   → deletions that nothing waits for any more are forgotten
//! ```
//!
//! Every node does this; leases keep two of them from doing one job. A job that failed is tried again after a wait that
//! grows; the others go on. Stopping drops the jobs: what they were at is done anew by whoever comes next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::Millis;
use engram_model::block::Deletion;
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_model::time::Stopwatch;
use engram_storage::compact::{Job, JobKind};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::heads;
use super::job::{self, Done, NotDone, PROPOSE_WITHIN, Workshop};
use super::planning::Planned;
use super::reach::Reach;
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::metrics::Reading;
use crate::peer::Peers;

/// First and longest wait after a failure.
const AGAIN_AFTER_MS: i64 = 5_000;
const AGAIN_AFTER_MS_MAX: i64 = 30 * 60 * 1000;
/// A job needs room for its sources and its results.
const SPACE_FACTOR: u64 = 2;
/// How often somebody who waits for a cleaning looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the compactor works with.
#[derive(Clone)]
pub struct Config {
    /// What jobs are done with.
    pub shop: Workshop,
    /// The replicas: their heads may still hold what was deleted.
    pub peers: Peers,
    /// How often to plan when nothing happens.
    pub every: Duration,
    /// Jobs at once.
    pub jobs_max: usize,
    /// Most bytes of the work directory, unless one job alone needs more.
    pub space_bytes_max: u64,
    /// Whether blocks may be changed.
    pub reach: Reach,
    /// The door to it.
    pub handle: Compaction,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// The door to the compactor: asks it to hurry, and tells what it did. Cheap to clone.
#[derive(Clone, Default)]
pub struct Compaction(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Tenants whose deletions are to be carried out now.
    cleaning: Mutex<BTreeSet<TenantId>>,
    wake: Notify,
    counts: Counts,
    backlog: Mutex<Backlog>,
}

#[derive(Default)]
struct Counts {
    jobs: [AtomicU64; 3],
    failures: AtomicU64,
    quarantined: AtomicU64,
    nanos: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    duplicates: AtomicU64,
    deleted: AtomicU64,
}

/// What waits, and what there is.
#[derive(Clone, Debug, Default)]
struct Backlog {
    jobs: u64,
    bytes: u64,
    due_at: Option<Millis>,
    running: u64,
    /// Blocks and bytes of the levels 1, 2, 3 and above.
    levels: [(u64, u64); 4],
    marked: u64,
    quarantined: u64,
    deletions: u64,
}

const LEVELS: [&str; 4] = ["1", "2", "3", "more"];
const KINDS: [JobKind; 3] = [JobKind::Split, JobKind::Merge, JobKind::Rewrite];

impl Compaction {
    /// Carries out the deletions of a tenant now, without waiting until it is worth it; waits at most `within` until no
    /// block holds deleted samples any more.
    ///
    /// # Errors
    /// Timeout: it goes on.
    pub async fn clean(
        &self,
        planner: &super::planning::Planner,
        tenant: &TenantId,
        within: Duration,
    ) -> Result<(), Error> {
        self.0.cleaning.lock().insert(tenant.clone());
        self.0.wake.notify_one();
        let is_done = async {
            while planner.plan(tenant, true).unwritten > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let late = || Error::new(Class::Timeout, "blocks are still being rewritten, they will be in any case");
        tokio::time::timeout(within, is_done).await.map_err(|_| late())
    }

    /// Makes the compactor plan now.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
    pub fn readings(&self, now: Millis) -> Vec<Reading> {
        let counts = &self.0.counts;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let backlog = self.0.backlog.lock().clone();
        let debt = backlog.due_at.map_or(0, |at| now.saturating_sub(at).max(0));
        let mut all: Vec<Reading> = KINDS
            .iter()
            .zip(&counts.jobs)
            .map(|(kind, jobs)| {
                Reading::counter("compaction_jobs", "Jobs of compaction done by this node", get(jobs)).of(kind.as_str())
            })
            .collect();
        all.extend([
            Reading::counter("compaction_failures", "Jobs that failed; each is tried again", get(&counts.failures)),
            Reading::counter(
                "compaction_damaged",
                "Sources found damaged, and quarantined; any deserves a look",
                get(&counts.quarantined),
            ),
            Reading::counter("compaction_seconds", "Time spent in jobs, copies included", get(&counts.nanos) / 1e9),
            Reading::counter("compaction_read_bytes", "Bytes of blocks that were replaced", get(&counts.bytes_in)),
            Reading::counter("compaction_written_bytes", "Bytes of blocks instead of them", get(&counts.bytes_out)),
            Reading::counter(
                "compaction_duplicate_samples",
                "Samples dropped because another of the same time stands for them",
                get(&counts.duplicates),
            ),
            Reading::counter("compaction_deleted_samples", "Deleted samples taken out", get(&counts.deleted)),
            Reading::gauge("compaction_running", "Jobs this node is doing", backlog.running as f64),
            Reading::gauge(
                "compaction_backlog_jobs",
                "Jobs of the cluster that could be done now",
                backlog.jobs as f64,
            ),
            Reading::gauge("compaction_backlog_bytes", "Bytes of their sources", backlog.bytes as f64),
            Reading::gauge(
                "compaction_debt_seconds",
                "How long the oldest of them could have been done; hours deserve a look",
                debt as f64 / 1e3,
            ),
        ]);
        let by_level = |name, help, pick: fn(&(u64, u64)) -> u64| {
            let each = LEVELS.iter().zip(&backlog.levels);
            each.map(|(level, one)| Reading::gauge(name, help, pick(one) as f64).of(level)).collect::<Vec<_>>()
        };
        all.extend(by_level("blocks", "Blocks that are read, by level", |one| one.0));
        all.extend(by_level("blocks_bytes", "Bytes of the blocks that are read, by level", |one| one.1));
        all.extend([
            Reading::gauge("blocks_marked", "Blocks on their way out", backlog.marked as f64),
            Reading::gauge(
                "blocks_quarantined",
                "Blocks known to be damaged; any deserves a look",
                backlog.quarantined as f64,
            ),
            Reading::gauge("blocks_deletions", "Deletions not carried out everywhere yet", backlog.deletions as f64),
        ]);
        all
    }
}

/// The child that compacts.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "compactor".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

type Key = (TenantId, String);

/// A job that waits.
struct Waiting {
    key: Key,
    job: Job,
}

/// A job that was done, or not.
struct Ended {
    key: Key,
    kind: JobKind,
    bytes: u64,
    took: Duration,
    done: Result<Done, NotDone>,
}

/// When what failed is tried again.
#[derive(Debug, Default)]
struct Waits(HashMap<Key, (u32, Millis)>);

impl Waits {
    fn is_due(&self, key: &Key, now: Millis) -> bool {
        self.0.get(key).is_none_or(|(_, at)| *at <= now)
    }

    fn failed(&mut self, key: Key, now: Millis) {
        let (failures, at) = self.0.entry(key).or_default();
        let wait = AGAIN_AFTER_MS.saturating_mul(1 << (*failures).min(16)).min(AGAIN_AFTER_MS_MAX);
        *failures += 1;
        *at = now.saturating_add(wait);
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    let (disk, work) = (config.shop.disk.clone(), config.shop.work.clone());
    engram_storage::blocking::blocking(move || {
        disk.create_dir(&work)?;
        disk.list_dirs(&work)?.iter().try_for_each(|name| job::clear(&*disk, &work.join(name)))
    })
    .await??;
    let (mut running, mut space, mut waits) = (FuturesUnordered::new(), 0_u64, Waits::default());
    loop {
        let waiting = tokio::select! {
            biased;
            waiting = look(&config, running.len()) => waiting,
            () = config.stop.cancelled() => return Ok(()),
        };
        let now = config.shop.planner.now();
        waits.0.retain(|key, _| waiting.iter().any(|one| one.key == *key));
        for Waiting { key, job } in waiting {
            let needs = job.bytes.saturating_mul(SPACE_FACTOR);
            let fits = running.is_empty() || space.saturating_add(needs) <= config.space_bytes_max;
            if config.reach.is_open() && running.len() < config.jobs_max && fits && waits.is_due(&key, now) {
                space = space.saturating_add(needs);
                running.push(start(&config, key, job));
            }
        }
        config.handle.0.backlog.lock().running = running.len() as u64;
        tokio::select! {
            biased; // in an order that can be repeated; none of them is ready for ever
            Some(ended) = running.next() => {
                space = space.saturating_sub(ended.bytes.saturating_mul(SPACE_FACTOR));
                note(&config, ended, &mut waits);
            }
            () = tokio::time::sleep(config.every) => {}
            () = config.handle.0.wake.notified() => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

fn start(config: &Config, key: Key, job: Job) -> BoxFuture<'static, Ended> {
    let (shop, busy) = (config.shop.clone(), config.shop.planner.occupy(&job));
    async move {
        let watch = Stopwatch::start();
        let done = shop.carry_out(&key.0, &job).await;
        drop(busy);
        Ended { key, kind: job.kind, bytes: job.bytes, took: watch.elapsed(), done }
    }
    .boxed()
}

/// Counts what became of a job.
fn note(config: &Config, ended: Ended, waits: &mut Waits) {
    let counts = &config.handle.0.counts;
    let Ended { key, kind, took, done, .. } = ended;
    let (tenant, job) = (key.0.clone(), key.1.clone());
    match done {
        Ok(done) => {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            for (counter, by) in [
                (&counts.nanos, nanos),
                (&counts.bytes_in, done.bytes_in),
                (&counts.bytes_out, done.bytes_out),
                (&counts.duplicates, done.duplicates),
                (&counts.deleted, done.deleted),
            ] {
                counter.fetch_add(by, Ordering::Relaxed);
            }
            if let Some(counter) = KINDS.iter().position(|one| *one == kind).and_then(|i| counts.jobs.get(i)) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            let (kind, blocks, bytes_in, bytes_out) = (kind.as_str(), done.blocks, done.bytes_in, done.bytes_out);
            let seconds = took.as_secs_f64();
            tracing::info!(%tenant, kind, job, blocks, bytes_in, bytes_out, seconds, "compacted");
            waits.0.remove(&key);
        }
        Err(NotDone::NotNow) => waits.failed(key, config.shop.planner.now()),
        Err(NotDone::Damaged(..)) => {
            counts.quarantined.fetch_add(1, Ordering::Relaxed);
            waits.failed(key, config.shop.planner.now());
        }
        Err(NotDone::Failed(error)) => {
            counts.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%tenant, job, %error, "a compaction failed, it is tried again");
            waits.failed(key, config.shop.planner.now());
        }
    }
}

/// Plans for everybody; forgets deletions that are done. The jobs, those that wait longest first.
async fn look(config: &Config, running: usize) -> Vec<Waiting> {
    let planner = &config.shop.planner;
    let cleaning = config.handle.0.cleaning.lock().clone();
    let (mut waiting, mut backlog) = (Vec::new(), Backlog { running: running as u64, ..Backlog::default() });
    let mut finished: BTreeMap<TenantId, Vec<Arc<Deletion>>> = BTreeMap::new();
    for tenant in planner.meta().tenants_with_storage() {
        let clean = cleaning.contains(&tenant);
        // A large tenant's plan takes longer than a task may hold the runtime.
        let (own, whose) = (planner.clone(), tenant.clone());
        let Ok(planned) = engram_storage::blocking::blocking(move || own.plan(&whose, clean)).await else { continue };
        backlog.add(&planned);
        if clean && planned.unwritten == 0 {
            config.handle.0.cleaning.lock().remove(&tenant);
        }
        if !planned.finished.is_empty() {
            finished.insert(tenant.clone(), planned.finished);
        }
        waiting.extend(planned.jobs.into_iter().map(|job| Waiting { key: (tenant.clone(), job.key()), job }));
    }
    waiting.sort_by_key(|one| (one.job.due_at, one.key.clone()));
    *config.handle.0.backlog.lock() = backlog;
    for (tenant, deletions) in finished {
        if let Err(error) = forget(config, &tenant, deletions).await {
            tracing::warn!(%tenant, %error, "deletions that are carried out are not forgotten yet");
        }
    }
    waiting
}

impl Backlog {
    fn add(&mut self, planned: &Planned) {
        self.jobs += planned.jobs.len() as u64;
        self.bytes += planned.jobs.iter().map(|job| job.bytes).sum::<u64>();
        self.due_at = self.due_at.into_iter().chain(planned.jobs.iter().map(|job| job.due_at)).min();
        self.deletions += planned.view.deletions.len() as u64;
        for row in &planned.view.blocks {
            if row.marked.is_some() {
                self.marked += 1;
                continue;
            }
            self.quarantined += u64::from(row.quarantined.is_some());
            let level = usize::try_from(row.meta.level).unwrap_or(usize::MAX).clamp(1, LEVELS.len());
            let one = &mut self.levels[level - 1];
            *one = (one.0 + 1, one.1 + row.meta.bytes());
        }
    }
}

/// Forgets deletions of which neither blocks nor heads hold anything.
async fn forget(config: &Config, tenant: &TenantId, deletions: Vec<Arc<Deletion>>) -> Result<(), Error> {
    let meta = config.shop.planner.meta();
    let held = heads::held(meta, &config.peers, tenant).await?;
    for deletion in deletions {
        if held.iter().any(|window| window.overlaps(deletion.range)) {
            continue;
        }
        match meta.remove_deletion(tenant, deletion.index, None, PROPOSE_WITHIN).await {
            Ok(()) => tracing::info!(%tenant, deletion = deletion.index, "a deletion is carried out everywhere"),
            Err(error) if error.class == Class::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
