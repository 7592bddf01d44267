//! The parts of the assembly that blocks need: where they lie, what cuts them from heads and completes them, and what
//! keeps them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::time::Clock;
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use engram_storage::object::metrics::{Op, OpMetrics, StoreMetrics};
use tokio_util::sync::CancellationToken;

use crate::actor::{ChildSpec, Supervisor};
use crate::assembly::{StartError, millis};
use crate::blocks::catalog::Catalog;
use crate::blocks::check::Pace;
use crate::blocks::cutter::{self, CutCounts};
use crate::blocks::keeping::Keeping;
use crate::blocks::late::LateBlocks;
use crate::blocks::reach::{self, Reach};
use crate::blocks::sealer::{self, Rules, SealCounts};
use crate::blocks::{repair, scrubber};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::ingest::{LocalReplica, follower};
use crate::meta::Meta;
use crate::metrics::{Metrics, Reading};
use crate::peer::Peers;
use crate::read::store::Blocks;

/// How often seals are looked at when nothing changes.
const FOLLOWER_EVERY: Duration = Duration::from_secs(5);
/// How often the cutter looks when nothing changes: what failed is tried again.
const CUTTER_EVERY: Duration = Duration::from_secs(5);
/// How often the sealer looks: a sixtieth of a window, within this.
const SEALER_EVERY_MIN: Duration = Duration::from_secs(1);
const SEALER_EVERY_MAX: Duration = Duration::from_secs(15);

/// Where blocks are, and what reads them.
pub(crate) fn open_store(config: &Config, dir: &DataDir, metrics: &Metrics) -> Result<(Store, Blocks), StartError> {
    let store = Store::open(&config.object_store, &dir.blocks())?;
    let blocks = Blocks::new(store.clone(), config.block_cache, Some(dir.cache()));
    let (told, readable) = (store.metrics().clone(), blocks.clone());
    metrics.collect(move || store_readings(&told));
    metrics.collect(move || block_readings(&readable));
    Ok((store, blocks))
}

/// What carries out seals and cuts on this node's heads.
pub(crate) fn following(
    (local, cuts): (&LocalReplica, LateBlocks),
    meta: &Meta,
    clock: &Clock,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> ChildSpec {
    let held = Arc::new(follower::Held::default());
    let readings = held.clone();
    metrics.collect(move || readings.readings());
    follower::child(follower::Config {
        local: local.clone(),
        agreed: Arc::new(meta.clone()),
        cuts: Some(Arc::new(cuts)),
        clock: clock.clone(),
        every: FOLLOWER_EVERY,
        held,
        stop: stop.clone(),
    })
}

/// Where blocks are built.
fn blocks_work(config: &Config, dir: &DataDir) -> PathBuf {
    match config.blocks.work_dir.as_str() {
        "" => dir.blocks_work(),
        chosen => chosen.into(),
    }
}

/// What completes cuts that lack something of this node.
pub(crate) fn late_blocks(
    config: &Config,
    dir: &DataDir,
    (reach, store): (&Reach, &Store),
    clock: &Clock,
) -> Result<LateBlocks, StartError> {
    let work = match config.blocks.work_dir.as_str() {
        "" => dir.blocks_late(),
        chosen => PathBuf::from(chosen).join("late"),
    };
    let window_ms = millis(config.blocks.window);
    Ok(LateBlocks::open((reach, store), Arc::new(RealDisk), work, window_ms, clock.clone())?)
}

/// From heads to blocks, and what becomes of them.
pub(crate) fn start_blocks(
    config: &Config,
    dir: &DataDir,
    (meta, peers, store, reach): (&Meta, &Peers, &Store, &Reach),
    (clock, stop): (&Clock, &CancellationToken),
    metrics: &Metrics,
    supervisor: &mut Supervisor,
) -> (scrubber::Config, Catalog) {
    let (cuts, seals) = (Arc::new(CutCounts::default()), Arc::new(SealCounts::default()));
    let (for_cuts, for_seals, now) = (cuts.clone(), seals.clone(), clock.clone());
    metrics.collect(move || [for_cuts.readings(now.now()), for_seals.readings()].concat());
    let window = config.blocks.window;
    let rules = Rules {
        window_ms: millis(window),
        delay_ms: config.blocks.seal_delay_ms,
        late_ms_max: config.blocks.seal_late_max_ms,
        idle_ms: config.blocks.seal_idle_ms,
    };
    supervisor.spawn(cutter::child(cutter::Config {
        meta: meta.clone(),
        peers: peers.clone(),
        store: store.clone(),
        disk: Arc::new(RealDisk),
        work: blocks_work(config, dir),
        window_ms: rules.window_ms,
        clock: clock.clone(),
        every: CUTTER_EVERY,
        again_after_ms: 5_000,
        reach: reach.clone(),
        counts: cuts,
        stop: stop.clone(),
    }));
    supervisor.spawn(sealer::child(sealer::Config {
        meta: meta.clone(),
        peers: peers.clone(),
        clock: clock.clone(),
        rules,
        reach: reach.clone(),
        every: (window / 60).clamp(SEALER_EVERY_MIN, SEALER_EVERY_MAX),
        counts: seals,
        stop: stop.clone(),
    }));
    let told = reach.clone();
    metrics.collect(move || told.readings());
    supervisor.spawn(reach::child(reach.clone(), store.clone(), stop.clone()));
    let scrubber = scrubber_of(config, dir, (meta, store, reach), (clock, metrics), stop);
    supervisor.spawn(scrubber::child(scrubber.clone()));
    let keeping = Keeping::new(config, dir.compaction(), (meta, peers, store, reach), clock, metrics);
    keeping.start(config, supervisor, stop);
    (scrubber, keeping.catalog())
}

fn scrubber_of(
    config: &Config,
    dir: &DataDir,
    (meta, store, reach): (&Meta, &Store, &Reach),
    (clock, metrics): (&Clock, &Metrics),
    stop: &CancellationToken,
) -> scrubber::Config {
    let handle = scrubber::Scrubbing::default();
    let (told, of, now) = (handle.clone(), meta.clone(), clock.clone());
    metrics.collect(move || told.readings(&of, now.now()));
    scrubber::Config {
        shop: repair::Workshop {
            meta: meta.clone(),
            store: store.clone(),
            disk: Arc::new(RealDisk),
            work: dir.repairs(),
            clock: clock.clone(),
        },
        state: dir.scrubbed(),
        pace: Pace { bytes_per_second: config.blocks.scrub_bytes_per_second },
        handle,
        reach: reach.clone(),
        stop: stop.clone(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn block_readings(blocks: &Blocks) -> Vec<Reading> {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let (own, fetch) = (blocks.metrics(), blocks.fetcher().metrics());
    let pages = blocks.fetcher().pages().metrics();
    let page =
        |kind, value| Reading::counter("blocks_cache_pages", "Pages of blocks by where they were", value).of(kind);
    vec![
        Reading::counter("blocks_opened", "Blocks opened by readers", get(&own.opened)),
        Reading::gauge("blocks_open", "Blocks that readers hold open", blocks.open_count() as f64),
        Reading::counter("blocks_read_corrupt", "Readings of blocks that found damage", get(&own.corrupt)),
        Reading::counter("blocks_chunk_bytes", "Bytes of chunks handed to queries", get(&own.chunk_bytes)),
        Reading::counter("blocks_fetch_requests", "Requests for ranges of blocks", get(&fetch.requests)),
        Reading::counter(
            "blocks_fetch_hedged",
            "Requests sent a second time because they were late",
            get(&fetch.hedged),
        ),
        Reading::counter("blocks_fetch_hedge_wins", "Second requests that answered first", get(&fetch.hedge_wins)),
        page("memory", get(&pages.memory_hits)),
        page("disk", get(&pages.disk_hits)),
        page("miss", get(&pages.misses)),
        Reading::counter(
            "blocks_cache_write_failures",
            "Pages that could not be written to the disk",
            get(&pages.write_failures),
        ),
    ]
}

#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn store_readings(store: &StoreMetrics) -> Vec<Reading> {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let each = |name, help, value: fn(&OpMetrics) -> (&AtomicU64, f64)| {
        Op::ALL.map(|op| {
            let (counter, unit) = value(store.of(op));
            Reading::counter(name, help, get(counter) / unit).of(op.word())
        })
    };
    [
        each("object_store_requests", "Requests to the object store that ended, by kind", |op| (&op.requests, 1.0)),
        each("object_store_errors", "Those of them that failed", |op| (&op.errors, 1.0)),
        each("object_store_seconds", "Time they took, waiting for their turn included", |op| (&op.nanos, 1e9)),
        each("object_store_bytes", "Bytes they carried", |op| (&op.bytes, 1.0)),
    ]
    .concat()
}
