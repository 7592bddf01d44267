//! Start and stop of a node. See the crate's text for the order and its reasons.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use engram_model::time::Clock;
use engram_query::engine::SamplePool;
use engram_raft::Group;
use engram_storage::disk::real::RealDisk;
use engram_storage::log::metrics::SYNC_BOUNDS_US;
use engram_storage::log::{LogMetrics, NodeLog};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actor::{ChildSpec, Condition, Health, Supervisor};
use crate::blocks::catalog::Catalog;
use crate::blocks::reach::{Kind, Reach};
use crate::blocks::{Flusher, Imports, Snapshots, Surveyor, scrubber};
use crate::cluster::{self, Services};
use crate::config::Config;
use crate::data_dir::{DataDir, DirError};
use crate::http::{self, App, HttpMetrics};
use crate::ingest::heads::Heads;
use crate::ingest::reached::Reached;
use crate::ingest::{LocalReplica, keeper, open};
use crate::meta::{Meta, TenantDefaults};
use crate::metrics::{Distribution, Metrics, ReadMetrics, Reading, WriteMetrics};
use crate::read::{ReadOptions, Reader};
use crate::recovery::{self, Found};
use crate::shelves::{following, late_blocks, open_store, start_blocks};
use crate::status::Status;
use crate::write::{WriteOptions, Writer};

/// Why a node did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A port.
    #[error("listen on {address} (--{option}): {source}")]
    Listen {
        /// Where.
        address: String,
        /// Which option says so.
        option: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The metadata group.
    #[error("metadata: {0}")]
    Meta(#[from] engram_raft::Error),
    /// The log.
    #[error(transparent)]
    Storage(#[from] engram_storage::Error),
    /// An essential part has failed.
    #[error("{0}")]
    Failed(String),
}

/// How long the metadata group may take to stop.
const META_STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long the other parts may take when the group has failed.
const GROUP_GONE_WITHIN: Duration = Duration::from_secs(2);
/// How often the keeper looks.
const KEEPER_EVERY: Duration = Duration::from_secs(60);

/// A running node.
pub struct Node {
    /// Where the HTTP API answers.
    pub http_address: SocketAddr,
    /// Where other nodes are answered.
    pub grpc_address: SocketAddr,
    /// Ready or not, part by part.
    pub health: Health,
    stop: CancellationToken,
    config: Config,
    servers: JoinSet<Result<(), StartError>>,
    supervisor: Option<Supervisor>,
    /// What makes blocks and what becomes of them; stops first.
    blocks: Option<Supervisor>,
    partitions_stop: CancellationToken,
    keeper: keeper::Config,
    scrubber: scrubber::Config,
    log: Arc<NodeLog>,
    group: Arc<Group>,
    log_failure: Arc<parking_lot::Mutex<Option<String>>>,
    _dir: DataDir,
}

/// The paths, once they are there.
struct Paths {
    reader: Reader,
    writer: Writer,
    snapshots: Snapshots,
    flusher: Flusher,
    imports: Imports,
    surveyor: Surveyor,
    catalog: Catalog,
}

impl Node {
    /// Starts a node; it is ready when this returns. Cancelling `stop` makes [`Node::run`] stop it.
    ///
    /// # Errors
    /// What the operator must mend: the directory, a port, damage on disk.
    pub async fn start(config: Config, clock: Clock, stop: CancellationToken) -> Result<Self, StartError> {
        let dir = DataDir::open(&config.data_dir)?;
        let http_listener = listen(&config.http_listen, "http-listen").await?;
        let grpc_listener = listen(&config.grpc_listen, "grpc-listen").await?;
        let (http_address, grpc_address) = (address_of(&http_listener)?, address_of(&grpc_listener)?);
        let (metrics, health) = (Metrics::default(), not_ready());
        let (mut servers, http_metrics) = (JoinSet::new(), HttpMetrics::new(&metrics));
        let tls = cluster::tls(&config, (&clock, &metrics), &mut servers, &stop)?;
        let front = Front::new(http::starting(health.clone()));
        servers.spawn(serve_http(&config, http_listener, (&front, &http_metrics), stop.clone()));
        let door = Arc::new(cluster::door(&config, &dir, (http_address, grpc_address), (&clock, &tls), &health)?);
        let services = Services::default();
        servers.spawn(services.serve(&config, &door, grpc_listener, stop.clone()));
        let group = Arc::new(cluster::open_group(&config, &dir, &door, &services, &health).await?);
        health.set("node/metadata", Condition::Running);

        let meta = door.open(Meta::new(group.clone(), tenant_defaults(&config)));
        let (store, readable) = open_store(&config, &dir, &metrics)?;
        let reach = door.watch(Reach::new(meta.clone(), Kind::of(&config.object_store, !config.join.is_empty())));
        let found = recovery::read(&config, &dir, &meta, &health).await;
        let Found { heads, log, reached, unfinished } = cluster::or_close(&group, found).await?;
        let log_failure = end_on_failure(&log, &stop);

        let partitions_stop = CancellationToken::new();
        let mut supervisor = Supervisor::new("ingest", health.clone(), stop.clone());
        let (local, keeper) =
            start_partitions(&config, (&reach, &clock), (&heads, &log, &reached), &partitions_stop, &mut supervisor);
        collect_metrics(&metrics, &local, &log, &group);
        let cuts = late_blocks(&config, &dir, (&reach, &store), &clock)?;
        let follower = following((&local, cuts), &meta, &clock, &metrics, &partitions_stop);

        let (read, read_metrics) = (read_options(&config), ReadMetrics::new(&metrics));
        let peers = services.peers(&config, (&meta, &tls), (Arc::new(local.clone()), &stop), read.sums(&read_metrics));
        let (written, parts) = (WriteMetrics::new(&metrics), (heads.clone(), keeper.partitions.clone()));
        let source = (meta.clone(), peers.clone(), readable.clone());
        let snapshots = Snapshots::open(Arc::new(RealDisk), &dir.snapshots(), source, clock.clone())?;
        let imports = Imports::open(Arc::new(RealDisk), &dir.imports(), store.clone(), reach.clone(), clock.clone())?;
        let mut blocks = Supervisor::new("blocks", health.clone(), stop.clone());
        let (scrubber, catalog) =
            start_blocks(&config, &dir, (&meta, &peers, &store, &reach), (&clock, &stop), &metrics, &mut blocks);
        let paths = Paths {
            catalog,
            snapshots,
            imports,
            surveyor: Surveyor::new(store.clone(), meta.clone()),
            flusher: Flusher::new(meta.clone(), peers.clone(), reach),
            writer: Writer::new(write_options(&config), meta.clone(), peers.clone(), clock.clone(), written),
            reader: Reader::new(read, meta.clone(), peers.clone(), readable, read_metrics),
        };
        collect_queries(&metrics, &paths.reader);
        let status = Status::new(&config, (meta.clone(), &door), (local, metrics), &health);
        // From here on partitions are served, each once it is recovered.
        front.open(http::router(Arc::new(app(&config, paths, status, http_metrics, &clock))));
        cluster::or_close(&group, recovery::finish(unfinished).await).await?;
        start_walkers(&mut supervisor, &keeper, follower);
        cluster::start(&config, (&meta, &peers, &door), parts, &partitions_stop, &mut supervisor);
        Ok(Self {
            http_address,
            grpc_address,
            health,
            stop,
            config,
            servers,
            supervisor: Some(supervisor),
            blocks: Some(blocks),
            partitions_stop,
            keeper,
            scrubber,
            log,
            group,
            log_failure,
            _dir: dir,
        })
    }

    /// Writes a checkpoint of every head and drops the log before it, as the keeper does when the log has grown.
    ///
    /// # Errors
    /// The log failed; what was there before stays.
    pub async fn checkpoint(&self) -> Result<(), StartError> {
        keeper::round(&self.keeper).await.map_err(|e| StartError::Failed(format!("checkpoint: {e}")))
    }

    /// What hands the lead of the metadata over before the node is stopped.
    pub(crate) fn heir(&self) -> impl Future<Output = ()> + Send + use<> {
        let group = self.group.clone();
        async move { cluster::hand_over(&group).await }
    }

    /// Checks every block once and quarantines what is damaged, as the scrubber does in its own time.
    ///
    /// # Errors
    /// The object store or the metadata do not answer.
    pub async fn scrub(&self) -> Result<(), StartError> {
        scrubber::round(&self.scrubber).await.map_err(|e| StartError::Failed(format!("scrub: {e}")))
    }

    /// Runs until `stop` is cancelled, by the operator or by an essential part that failed, then stops in order.
    ///
    /// # Errors
    /// What failed, when it was not the operator who stopped it.
    pub async fn run(mut self) -> Result<(), StartError> {
        let (mut failure, mut patience, group) = (None, self.config.shutdown_timeout, self.group.clone());
        tokio::select! {
            () = self.stop.cancelled() => {}
            Some(ended) = self.servers.join_next() => failure = ended_early(ended),
            // Its disk failed: without it this node learns of nothing any more, and only a restart opens it anew.
            why = group.failed() => {
                // Whoever waits for an answer of it waits for nothing.
                patience = GROUP_GONE_WITHIN;
                failure = Some(StartError::Meta(why));
            }
        }
        self.stop.cancel();
        tracing::info!("stopping: requests in flight finish, the log is flushed");
        while let Some(ended) = self.servers.join_next().await {
            failure = failure.or(ended_early(ended));
        }
        // A cut that is not committed is begun again at the next start.
        if let Some(blocks) = self.blocks.take() {
            blocks.join(patience).await;
        }
        self.partitions_stop.cancel();
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.join(patience).await;
        }
        let (log, reached) = (self.log.clone(), self.keeper.reached.clone());
        let closed = tokio::task::spawn_blocking(move || {
            log.close()?;
            reached.note(log.durable().0)
        })
        .await;
        if let Ok(Err(error)) = closed {
            failure = failure.or(Some(StartError::Storage(error)));
        }
        match tokio::time::timeout(META_STOP_WITHIN, self.group.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the metadata group did not close cleanly"),
            Err(_) => tracing::warn!("the metadata group did not close in time"),
        }
        if let Some(why) = self.log_failure.lock().take() {
            failure = Some(StartError::Failed(why));
        }
        let failed_part = self.health.report().into_iter().find(|(_, _, text)| text.starts_with("failed"));
        match (failure, failed_part) {
            (Some(failure), _) => Err(failure),
            (None, Some((part, _, why))) => Err(StartError::Failed(format!("{part} {why}"))),
            (None, None) => Ok(()),
        }
    }
}

fn ended_early(ended: Result<Result<(), StartError>, tokio::task::JoinError>) -> Option<StartError> {
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(error) => Some(StartError::Failed(format!("a server ended: {error}"))),
    }
}

async fn listen(address: &str, option: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen {
        address: address.to_owned(),
        option,
        source,
    })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|e| StartError::Failed(format!("the listener has no address: {e}")))
}

/// What goes through all heads and takes what it finds for all there is.
fn start_walkers(supervisor: &mut Supervisor, keeper: &keeper::Config, follower: ChildSpec) {
    supervisor.spawn(keeper::child(keeper.clone()));
    supervisor.spawn(follower);
}

/// How a node is before anything runs.
fn not_ready() -> Health {
    let health = Health::default();
    health.set("node/metadata", Condition::Starting("opening the group".into()));
    health.set("node/log", Condition::Starting("waiting for the metadata".into()));
    health
}

/// A failed log ends the node: memory and disk may tell different stories from here on.
fn end_on_failure(log: &NodeLog, stop: &CancellationToken) -> Arc<parking_lot::Mutex<Option<String>>> {
    let why = Arc::new(parking_lot::Mutex::new(None));
    let (told, stop) = (why.clone(), stop.clone());
    log.on_failed(move |error| {
        tracing::error!(%error, "the log is failed, the node ends");
        *told.lock() = Some(error.to_string());
        stop.cancel();
    });
    why
}

fn start_partitions(
    config: &Config,
    (reach, clock): (&Reach, &Clock),
    (heads, log, reached): (&Arc<Vec<Heads>>, &Arc<NodeLog>, &Reached),
    stop: &CancellationToken,
    supervisor: &mut Supervisor,
) -> (LocalReplica, keeper::Config) {
    let handles = open::start((heads, log), (reach.meta(), clock), stop, supervisor);
    let keeper = keeper::Config {
        partitions: handles.clone(),
        heads: heads.clone(),
        log: log.clone(),
        retention_ms: config.retention_ms,
        makes_blocks: Arc::new({
            let reach = reach.clone();
            move || reach.makes_blocks()
        }),
        segment_bytes: config.log.segment_bytes_max,
        checkpoint_bytes_min: config.log.checkpoint_bytes_min,
        every: KEEPER_EVERY,
        reached: reached.clone(),
        turn: Arc::new(tokio::sync::Semaphore::new(1)),
        stop: stop.clone(),
    };
    (LocalReplica::new(heads.clone(), handles, clock.now()), keeper)
}

fn tenant_defaults(config: &Config) -> TenantDefaults {
    let limits = config.limits.clone();
    TenantDefaults { limits, shard_size: config.shard_size, tenants_max: config.tenants_max }
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Serves whatever the front has in force, until `stop`.
fn serve_http(
    config: &Config,
    listener: TcpListener,
    (front, metrics): (&Front, &HttpMetrics),
    stop: CancellationToken,
) -> impl Future<Output = Result<(), StartError>> + Send + use<> {
    let options = http::server::ServeOptions { stop_within: config.shutdown_timeout, ..Default::default() };
    let serving = http::server::serve(listener, front.router(), options, metrics.clone(), stop);
    async move { serving.await.map_err(|e| StartError::Failed(format!("the HTTP server: {e}"))) }
}

#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn collect_metrics(metrics: &Metrics, local: &LocalReplica, log: &Arc<NodeLog>, group: &Arc<Group>) {
    let (local, log, group) = (local.clone(), log.clone(), group.clone());
    metrics.collect(move || local.readings());
    let for_syncs = log.clone();
    metrics.collect(move || log_readings(log.metrics()));
    metrics.collect_distribution(move || sync_seconds(for_syncs.metrics()));
    metrics.collect(move || {
        let status = group.status();
        let index = |index: Option<u64>| index.unwrap_or(0) as f64;
        vec![
            Reading::gauge("meta_term", "Term of the metadata group", status.term as f64),
            Reading::gauge("meta_applied_index", "Last metadata entry applied on this node", index(status.applied)),
            Reading::gauge(
                "meta_leader",
                "Whether the group has a leader",
                f64::from(u8::from(status.leader.is_some())),
            ),
        ]
    });
}

#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn collect_queries(metrics: &Metrics, reader: &Reader) {
    metrics.collect_with(reader.peer_stats());
    let reader = reader.clone();
    metrics.collect(move || {
        let (running, waiting) = reader.load();
        vec![
            Reading::gauge("query_running", "Queries that are evaluated now", running as f64),
            Reading::gauge("query_waiting", "Queries that wait for their turn", waiting as f64),
            Reading::gauge(
                "query_samples_held",
                "Samples running queries hold in memory",
                reader.samples_held() as f64,
            ),
        ]
    });
}

#[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
fn log_readings(log: &LogMetrics) -> Vec<Reading> {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    vec![
        Reading::counter("log_groups", "Groups written and synced", get(&log.groups)),
        Reading::counter("log_records", "Records written", get(&log.records)),
        Reading::counter("log_payload_bytes", "Bytes given to the log", get(&log.payload_bytes)),
        Reading::counter("log_disk_bytes", "Bytes the log wrote", get(&log.disk_bytes)),
        Reading::counter("log_sync_seconds", "Time spent in syncs", get(&log.sync_nanos) / 1e9),
        Reading::gauge("log_segments", "Segments on disk", get(&log.segments)),
    ]
}

/// How long syncs of the log take.
fn sync_seconds(log: &LogMetrics) -> Distribution {
    let counts = log.sync_buckets.iter().map(|count| count.load(Ordering::Relaxed));
    let bounds = SYNC_BOUNDS_US.iter().map(|us| Duration::from_micros(*us).as_secs_f64()).chain([f64::INFINITY]);
    Distribution {
        name: "log_sync_duration_seconds",
        help: "Time of one sync of the log",
        sum: Duration::from_nanos(log.sync_nanos.load(Ordering::Relaxed)).as_secs_f64(),
        buckets: bounds.zip(counts).collect(),
    }
}

fn write_options(config: &Config) -> WriteOptions {
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    WriteOptions {
        in_flight_bytes_max: bytes(config.write.in_flight_bytes_max),
        body_bytes_max: bytes(config.write.body_bytes_max),
        bounds: crate::write::decode::Bounds {
            body_bytes_max: bytes(config.write.decoded_bytes_max),
            ..Default::default()
        },
        deadline: config.write.timeout,
    }
}

fn read_options(config: &Config) -> ReadOptions {
    ReadOptions {
        concurrent_max: config.query.concurrent_max,
        queue_max: config.query.queue_max,
        timeout: config.query.timeout,
        slow_after: u64::try_from(config.query.slow_after_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis),
        lookback_ms: i64::try_from(config.query.lookback.as_millis()).unwrap_or(i64::MAX),
        samples_max: config.query.samples_max,
        bytes_max: config.query.bytes_max,
        pool: Arc::new(SamplePool::new(config.query.node_samples_max)),
        push_down: config.query.push_down,
        experimental: config.promql_experimental,
    }
}

fn app(config: &Config, paths: Paths, status: Status, metrics: HttpMetrics, clock: &Clock) -> App {
    App {
        read: Arc::new(paths.reader),
        push: Arc::new(paths.writer),
        tenants: Arc::new(status.meta.clone()),
        blocks: Arc::new(paths.catalog),
        snapshots: Arc::new(paths.snapshots),
        flush: Arc::new(paths.flusher),
        imports: Arc::new(paths.imports),
        survey: Arc::new(paths.surveyor),
        node: Arc::new(status),
        metrics,
        clock: clock.clone(),
        started_at: clock.now(),
        body_within: Duration::from_secs(60),
        about: http::About {
            node_name: config.node_name_or_host(),
            flags: config.to_flags(),
            config_yaml: config.to_yaml(false),
            retention: config
                .to_flags()
                .into_iter()
                .find(|(k, _)| k == "retention")
                .map(|(_, v)| v)
                .unwrap_or_default(),
        },
    }
}

/// The router in force: first the one that says "starting", then the real one, without closing the port in between.
#[derive(Clone)]
struct Front(Arc<ArcSwap<Router>>);

impl Front {
    fn new(first: Router) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(first)))
    }

    fn open(&self, router: Router) {
        self.0.store(Arc::new(router));
    }

    fn router(&self) -> Router {
        Router::new().fallback_service(self.clone())
    }
}

impl tower::Service<::http::Request<Body>> for Front {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<Body>) -> Self::Future {
        let router = Router::clone(&self.0.load());
        Box::pin(tower::ServiceExt::oneshot(router, request))
    }
}
