//! The read path: one view of the metadata per query, a fair queue before the engine, a budget on everything.
//!
//! Order: parse (cheap, refuses early) → [`queue`] (tenants in turn) → [`select`] (which replicas hold the data) →
//! the engine on a thread of its own pool. A client that leaves cancels its query: the handler's future is dropped,
//! the guard in it stops the engine at its next check.
//!
//! Blocks: [`store`] opens and reads them, [`fetch`] brings ranges of a bucket, [`cache`] keeps pages of it, [`hide`] takes
//! out what is deleted.
//!
//! Aggregations run where their series lie where they can: [`sums`] is the other nodes' side of that.
//!
//! Beside queries: [`cardinality`] what makes a tenant large · [`remote`] raw samples for other servers.

pub mod cache;
pub mod cardinality;
pub mod fanout;
pub mod fetch;
pub mod hide;
pub mod queue;
pub mod remote;
pub mod select;
pub mod store;
pub mod sums;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::sample::{Exemplar, Metadata};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Stopwatch;
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::engine::{self, Budget, Cancel, Outcome, SamplePool};
use engram_query::parse::{self, Switches};
use engram_query::port::SharedQueryable;
use engram_query::value::BlockStats;

use cardinality::{Cardinality, Usage};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::Error;
use crate::memory;
use crate::meta::Meta;
use crate::metrics::ReadMetrics;
use crate::peer::Peers;
use crate::peer::stats::Stats;

/// A query that held more samples at once, or failed, may have left much freed memory behind.
const HEAVY_SAMPLES: u64 = 1_000_000;

/// A query starts over so often at most because samples went from heads to blocks while it read.
const RESTARTS_MAX: u32 = 8;
/// How long this node may take to see what others have seen, before it looks whether that is enough.
const SEE_WITHIN: Duration = Duration::from_secs(10);

/// Characters of a slow query that are logged.
const SLOW_TEXT_MAX: usize = 1000;

/// Most threads of one query: past it, joining their groups costs what they save.
const THREADS_MAX: usize = 16;

/// Bounds of the read path.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Queries evaluated at once.
    pub concurrent_max: usize,
    /// Queries of one tenant that may wait.
    pub queue_max: usize,
    /// Longest a query may take, waiting included, unless it asks for less.
    pub timeout: Duration,
    /// A query that takes longer is logged with what it cost.
    pub slow_after: Option<Duration>,
    /// How far back an instant selector looks, unless the query says otherwise.
    pub lookback_ms: i64,
    /// Most samples of one query in memory, whatever the tenant's limit says.
    pub samples_max: u64,
    /// Most bytes one query holds in memory, whatever the tenant's limit says.
    pub bytes_max: u64,
    /// Samples all queries of this node hold in memory together, and those it sums up for others.
    pub pool: Arc<SamplePool>,
    /// Whether other nodes sum up what lies with them.
    pub push_down: bool,
    /// Whether the experimental part of PromQL may be used by tenants that have not chosen.
    pub experimental: bool,
}

impl ReadOptions {
    /// What sums up for other nodes, within the same bounds.
    #[must_use]
    pub fn sums(&self, metrics: &ReadMetrics) -> sums::Sums {
        sums::Sums::new(self.concurrent_max, self.pool.clone(), metrics.fragments())
    }
}

/// A query as the API takes it.
#[derive(Clone, Debug)]
pub struct QueryRequest {
    /// PromQL.
    pub text: String,
    /// First evaluation time.
    pub start: Millis,
    /// Last evaluation time.
    pub end: Millis,
    /// Distance of evaluation times; 0: instant.
    pub step_ms: i64,
    /// What the client is willing to wait.
    pub timeout: Option<Duration>,
    /// What the client wants instead of the default.
    pub lookback_ms: Option<i64>,
    /// Most series in the answer; 0: all.
    pub limit: usize,
    /// Whether the answer comes with what each operator did.
    pub explain: bool,
    /// Whether samples are counted by step, too.
    pub count_steps: bool,
}

/// The door of the read path. Cheap to clone.
#[derive(Clone)]
pub struct Reader(Arc<Inner>);

struct Inner {
    options: ReadOptions,
    meta: Meta,
    peers: Peers,
    blocks: store::Blocks,
    queue: queue::Queue,
    cores: usize,
    metrics: ReadMetrics,
}

/// What was asked, kept for the log of slow queries.
struct Asked {
    text: String,
    start: Millis,
    end: Millis,
    step_ms: i64,
}

impl Asked {
    fn of(query: &QueryRequest) -> Self {
        let text = query.text.chars().take(SLOW_TEXT_MAX).collect();
        Self { text, start: query.start, end: query.end, step_ms: query.step_ms }
    }

    fn tell(&self, tenant: &TenantId, took: Duration, result: &Result<Outcome, Error>) {
        let Self { text, start, end, step_ms } = self;
        let (stats, error) = match result {
            Ok(outcome) => (outcome.stats.clone(), String::new()),
            Err(error) => (engram_query::value::Stats::default(), error.to_string()),
        };
        let BlockStats { blocks, chunks, chunk_bytes, fetch_requests, fetched_bytes, .. } = stats.blocks;
        let (series, samples, seconds) = (stats.series_total, stats.samples_total, took.as_secs_f64());
        tracing::info!(
            %tenant, query = text, start, end, step_ms, seconds, series, samples, blocks, chunks, chunk_bytes,
            fetch_requests, fetched_bytes, error, "a slow query"
        );
    }
}

/// Stops the query when the handler that waits for it is dropped.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Reader {
    /// A reader over the given ring and peers.
    #[must_use]
    pub fn new(options: ReadOptions, meta: Meta, peers: Peers, blocks: store::Blocks, metrics: ReadMetrics) -> Self {
        let queue = queue::Queue::new(options.concurrent_max, options.queue_max);
        let cores = engram_storage::blocking::cores();
        Self(Arc::new(Inner { options, meta, peers, blocks, queue, cores, metrics }))
    }

    /// What the tenant may write in a query: all, or what Prometheus 3.14 takes without feature flags.
    #[must_use]
    pub fn switches(&self, tenant: &TenantId) -> Switches {
        if self.experimental(&self.0.meta.tenant(tenant).limits) {
            Switches::all()
        } else {
            Switches { duration_expressions: true, ..Switches::default() }
        }
    }

    /// The tenant's own choice, or else the server's.
    fn experimental(&self, limits: &TenantLimits) -> bool {
        limits.promql_experimental.unwrap_or(self.0.options.experimental)
    }

    /// Samples that running queries hold in memory.
    #[must_use]
    pub fn samples_held(&self) -> u64 {
        self.0.options.pool.held()
    }

    /// What went to other nodes and came back.
    #[must_use]
    pub fn peer_stats(&self) -> Stats {
        self.0.peers.stats().cloned().unwrap_or_default()
    }

    /// How many queries run and how many wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        self.0.queue.load()
    }

    /// Evaluates a query.
    ///
    /// # Errors
    /// Invalid for a text that does not parse or cannot be evaluated on this data, Limited for a full queue,
    /// Timeout, Unavailable when data cannot be read.
    ///
    /// # Cancel safety
    /// Dropping the future stops the query.
    pub async fn query(&self, tenant: &TenantId, query: QueryRequest) -> Result<Outcome, Error> {
        let watch = Stopwatch::start();
        let kind = if query.step_ms == 0 { "instant" } else { "range" };
        let timeout = query.timeout.map_or(self.0.options.timeout, |t| t.min(self.0.options.timeout));
        let asked = self.0.options.slow_after.map(|after| (after, Asked::of(&query)));
        let result = match tokio::time::timeout(timeout, self.run(tenant, query, timeout, watch)).await {
            Ok(result) => result,
            Err(_) => Err(Error::from(engram_query::error::Error::Timeout { stage: "expression evaluation" })),
        };
        let cost = result.as_ref().map(|o| (o.stats.samples_total, o.stats.series_total));
        self.0.metrics.observe(kind, watch.elapsed(), cost);
        if let Some((_, asked)) = asked.filter(|(after, _)| watch.elapsed() >= *after) {
            asked.tell(tenant, watch.elapsed(), &result);
        }
        result
    }

    async fn run(
        &self,
        tenant: &TenantId,
        query: QueryRequest,
        timeout: Duration,
        watch: Stopwatch,
    ) -> Result<Outcome, Error> {
        let mut expr = parse::parse(&query.text, &self.switches(tenant)).map_err(|e| parse_error(&e))?;
        if timeout.is_zero() {
            return Err(Error::from(engram_query::error::Error::Timeout { stage: "query execution" }));
        }
        if query.step_ms != 0 {
            engine::check_range_type(expr.value_type()).map_err(|e| parse_error(&e))?;
        }
        parse::resolve_durations(&mut expr, query.start, query.end, query.step_ms).map_err(|e| parse_error(&e))?;
        let limits = self.0.meta.tenant(tenant).limits;
        let length = query.end.saturating_sub(query.start);
        if limits.max_query_length_ms > 0 && length > limits.max_query_length_ms {
            return Err(Error::invalid(format!(
                "tenant {tenant}: the query spans {length} ms, limit max_query_length_ms is {}: take a shorter range",
                limits.max_query_length_ms
            )));
        }
        let experimental = self.experimental(&limits);
        let place = self.0.queue.enter(tenant).await?;
        let request = engine::Request {
            text: query.text,
            expr,
            start: query.start,
            end: query.end,
            step_ms: query.step_ms,
            budget: Budget {
                lookback_ms: query.lookback_ms.unwrap_or(self.0.options.lookback_ms),
                samples_max: limits.max_samples_per_query.min(self.0.options.samples_max),
                bytes_max: match limits.max_bytes_per_query {
                    0 => self.0.options.bytes_max,
                    max => max.min(self.0.options.bytes_max),
                },
                owner: format!("tenant {tenant}"),
                series_max: limits.max_fetched_series_per_query,
                timeout: timeout.saturating_sub(watch.elapsed()),
                delayed_name_removal: experimental,
                use_start_timestamps: experimental,
                explain: query.explain,
                count_steps: query.count_steps,
                parallelism: self.threads_each(),
                pool: Some(self.0.options.pool.clone()),
                push_down: self.0.options.push_down,
                ..Budget::default()
            },
        };
        let cancel = Cancel::default();
        let _guard = CancelOnDrop(cancel.clone());
        let (prepared, blocks) = self.prepare(tenant, &request).await?;
        let evaluation = engram_storage::blocking::blocking(move || {
            let outcome = prepared.run(&cancel);
            let heavy = outcome.as_ref().map_or(true, |done| done.stats.samples_peak > HEAVY_SAMPLES);
            drop((prepared, place));
            if heavy {
                // Not waited for: the answer does not depend on it.
                engram_storage::blocking::blocking(memory::give_back);
            }
            outcome
        });
        match evaluation.await {
            Ok(outcome) => {
                let mut outcome = outcome?;
                outcome.stats.blocks = blocks;
                Ok(outcome)
            }
            Err(failed) => Err(Error::new(Class::Internal, format!("the query failed inside the engine: {failed}"))),
        }
    }

    /// Reads all a query needs; what that took of blocks.
    async fn prepare(
        &self,
        tenant: &TenantId,
        request: &engine::Request,
    ) -> Result<(engine::Prepared, BlockStats), Error> {
        let mut restarts = 0;
        loop {
            let view = self.view(tenant).pushing(self.0.metrics.fragments());
            let source: SharedQueryable = Arc::new(view.clone());
            let prepared = engine::prepare(request, &source).await;
            if !self.starts_over(&view, &mut restarts).await {
                let blocks = view.cost().stats();
                self.0.metrics.fetched(&blocks);
                return Ok((prepared?, blocks));
            }
        }
    }

    /// Threads for one more query: the cores, shared by the queries that run.
    fn threads_each(&self) -> usize {
        (self.0.cores / self.load().0.max(1)).clamp(1, THREADS_MAX)
    }

    /// Label sets of the series any of `selectors` selects, sorted; at most `limit` (0: all), with a warning when cut.
    ///
    /// # Errors
    /// Limited for a full queue, Timeout, Unavailable when data cannot be read.
    pub async fn series(
        &self,
        tenant: &TenantId,
        selectors: Vec<Vec<Matcher>>,
        range: TimeRange,
        limit: usize,
    ) -> Result<(Vec<Labels>, Vec<String>), Error> {
        let selectors = Arc::new(selectors);
        let read = self.fresh(tenant, move |view| {
            let selectors = selectors.clone();
            async move { view.series(&selectors, range).await }.boxed()
        });
        Ok(cut(self.in_turn(tenant, read).await?, limit))
    }

    /// Label names, as [`Reader::series`].
    ///
    /// # Errors
    /// Limited for a full queue, Timeout, Unavailable when data cannot be read.
    pub async fn label_names(
        &self,
        tenant: &TenantId,
        selectors: Vec<Vec<Matcher>>,
        range: TimeRange,
        limit: usize,
    ) -> Result<(Vec<String>, Vec<String>), Error> {
        let selectors = Arc::new(selectors);
        let read = self.fresh(tenant, move |view| {
            let selectors = selectors.clone();
            async move { view.label_names(&selectors, range).await }.boxed()
        });
        let names = self.in_turn(tenant, read).await?;
        Ok(cut(names.into_iter().collect(), limit))
    }

    /// Values of one label, as [`Reader::series`].
    ///
    /// # Errors
    /// Limited for a full queue, Timeout, Unavailable when data cannot be read.
    pub async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        selectors: Vec<Vec<Matcher>>,
        range: TimeRange,
        limit: usize,
    ) -> Result<(Vec<String>, Vec<String>), Error> {
        let asked = Arc::new((name.to_owned(), selectors));
        let read = self.fresh(tenant, move |view| {
            let asked = asked.clone();
            async move { view.label_values(&asked.0, &asked.1, range).await }.boxed()
        });
        let values = self.in_turn(tenant, read).await?;
        Ok(cut(values.into_iter().collect(), limit))
    }

    /// What is known of the metrics: each name with its distinct metadata. Limits of 0: all.
    ///
    /// # Errors
    /// Limited for a full queue, Timeout, Unavailable when data cannot be read.
    pub async fn metadata(
        &self,
        tenant: &TenantId,
        metric: Option<&str>,
        limit: usize,
        limit_per_metric: usize,
    ) -> Result<BTreeMap<String, Vec<Metadata>>, Error> {
        let mut all: BTreeMap<String, BTreeSet<Metadata>> = BTreeMap::new();
        for (name, metadata) in self.in_turn(tenant, self.view(tenant).metadata()).await? {
            if metric.is_none_or(|wanted| wanted == name) {
                all.entry(name).or_default().insert(metadata);
            }
        }
        let most = |limit: usize| if limit == 0 { usize::MAX } else { limit };
        Ok(all
            .into_iter()
            .take(most(limit))
            .map(|(name, set)| (name, set.into_iter().take(most(limit_per_metric)).collect()))
            .collect())
    }

    /// The digest of each slot that holds samples of the tenant.
    ///
    /// # Errors
    /// Unavailable when data cannot be read.
    pub async fn digests(&self, tenant: &TenantId) -> Result<BTreeMap<Millis, Digest>, Error> {
        self.fresh(tenant, |view| async move { view.digests(TimeRange::ALL).await }.boxed()).await
    }

    /// Exemplars of all series that a query selects.
    ///
    /// # Errors
    /// Invalid for a text that does not parse, Unavailable when data cannot be read.
    pub async fn exemplars(
        &self,
        tenant: &TenantId,
        query: &str,
        range: TimeRange,
    ) -> Result<Vec<(Labels, Vec<Exemplar>)>, Error> {
        let expr = parse::parse(query, &self.switches(tenant)).map_err(|e| parse_error(&e))?;
        let view = self.view(tenant);
        let mut all: BTreeMap<Labels, Vec<Exemplar>> = BTreeMap::new();
        for matchers in parse::selectors(&expr) {
            for (labels, exemplars) in self.in_turn(tenant, view.exemplars(&matchers, range)).await? {
                all.entry(labels).or_insert(exemplars);
            }
        }
        Ok(all.into_iter().collect())
    }

    /// What makes the tenant's data large, over all its partitions, as far as it lies in heads; lists of at most `max` entries.
    ///
    /// # Errors
    /// Unavailable when data cannot be read, Timeout after `query.timeout`.
    pub async fn cardinality(&self, tenant: &TenantId, max: usize) -> Result<Cardinality, Error> {
        self.in_time(cardinality::of(&self.view(tenant).heads(), max)).await
    }

    /// How much the tenant has, in heads and blocks; the series are those of the heads.
    ///
    /// # Errors
    /// Unavailable when data cannot be read, Timeout after `query.timeout`.
    pub async fn usage(&self, tenant: &TenantId) -> Result<Usage, Error> {
        let view = self.view(tenant);
        let usage = cardinality::usage(&self.in_time(view.counts(0)).await?);
        Ok(view.block_rows().iter().fold(usage, |usage, row| usage.with_block(&row.meta)))
    }

    /// No answer takes longer than a query may.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let late = |_| Error::new(Class::Timeout, "counting took longer than query.timeout");
        tokio::time::timeout(self.0.options.timeout, work).await.map_err(late)?
    }

    /// Does `work` when it is the tenant's turn, within the time a query has: looking for names and series costs what a
    /// query costs.
    async fn in_turn<T>(&self, tenant: &TenantId, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let turn = async {
            let _place = self.0.queue.enter(tenant).await?;
            work.await
        };
        let late = |_| Error::new(Class::Timeout, "reading the labels took longer than query.timeout");
        tokio::time::timeout(self.0.options.timeout, turn).await.map_err(late)?
    }

    fn view(&self, tenant: &TenantId) -> select::View {
        select::View::new(&self.0.meta, &self.0.peers, &self.0.blocks, tenant)
    }

    /// Whether what was read with `view` is to be read again, with a newer one that is there now.
    async fn starts_over(&self, view: &select::View, restarts: &mut u32) -> bool {
        if !view.is_stale() || *restarts == RESTARTS_MAX {
            return false;
        }
        *restarts += 1;
        // A head knows more than this node does, which may be catching up: all that is agreed by now is enough. Without a
        // leader, whatever comes next.
        self.0.meta.see(SEE_WITHIN).await.is_ok() || self.0.meta.changed(view.index()).await.is_ok()
    }

    /// Reads with one view of the metadata; starts over with a newer one where that is needed.
    async fn fresh<T>(
        &self,
        tenant: &TenantId,
        read: impl Fn(select::View) -> BoxFuture<'static, Result<T, Error>> + Send + Sync,
    ) -> Result<T, Error> {
        let mut restarts = 0;
        loop {
            let view = self.view(tenant);
            let done = read(view.clone()).await;
            if !self.starts_over(&view, &mut restarts).await {
                return done;
            }
        }
    }
}

fn parse_error(error: &impl std::fmt::Display) -> Error {
    Error::invalid(format!("invalid parameter \"query\": {error}"))
}

fn cut<T>(mut all: Vec<T>, limit: usize) -> (Vec<T>, Vec<String>) {
    if limit > 0 && all.len() > limit {
        all.truncate(limit);
        return (all, vec!["results truncated due to limit".to_owned()]);
    }
    (all, Vec::new())
}
