//! `load`: realistic series in, dashboard queries out, both measured, and what is stored compared with what was
//! acknowledged. It needs nothing of the server but remote write and the query API, so stores can be compared.
//!
//! - `fleet` says which series exist and which value each has when: a formula, so nothing need be remembered;
//! - `batch` is a request built once and patched for each scrape; `writer` sends them;
//! - `queries` asks a dozen kinds of questions; `verify` reads back; `process` looks at CPU and memory;
//! - `report` prints. This file holds the order of the phases.

mod batch;
mod fleet;
mod process;
mod progress;
mod queries;
mod report;
mod verify;
mod writer;

pub(crate) use queries::seconds;
pub(crate) use verify::points;

use crate::args::Load;
use crate::client::{Client, Patience};
use crate::error::Error;
use batch::Batch;
use engram_model::time::{Clock, Stopwatch};
use fleet::Fleet;
use process::{Usage, usage};
use queries::{Amount, KindTally, Suite};
use report::{Cost, Querying, Report, Writing};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use writer::{Orders, Tally};

/// Runs all phases; true when nothing failed and nothing differed.
///
/// # Errors
/// The arguments contradict each other, or the server stopped answering.
pub(crate) async fn run(args: Load) -> Result<bool, Error> {
    let plan = Plan::new(args)?;
    let look = || plan.args.pid.and_then(|pid| usage(&pid.to_string()));
    let before = look();
    if plan.args.pid.is_some() && before.is_none() {
        return Err(Error::Usage("--pid names no process of this machine".into()));
    }
    let (writing, while_writing, batches) = plan.write_phase().await?;
    let between = look();
    let querying = plan.query_phase().await?;
    let after = look();
    let verdict = if plan.args.verify && plan.scrapes > 0 {
        Some(verify::verify(&plan.orders, &batches, plan.args.verify_series).await?)
    } else {
        None
    };
    let samples = plan.orders.acknowledged.load(Ordering::Relaxed);
    let writing = writing.map(|(tally, seconds)| Writing::new(tally, seconds));
    let querying: Vec<Querying> = querying.into_iter().map(Querying::new).collect();
    let querying_while_writing: Vec<Querying> = while_writing.into_iter().map(Querying::new).collect();
    let clean = writing.as_ref().is_none_or(Writing::is_clean)
        && querying.iter().chain(&querying_while_writing).all(Querying::is_clean)
        && verdict.as_ref().is_none_or(|v| v.findings_count == 0);
    let cost = |a: Option<Usage>, b: Option<Usage>, samples| Some(Cost::new(a?, b?, samples, plan.args.series));
    let report = Report {
        run_id: plan.orders.fleet.run().to_string(),
        series: plan.args.series,
        series_created: plan.series_created(),
        scrapes: plan.scrapes,
        server: cost(before, between, samples),
        server_querying: if querying.is_empty() { None } else { cost(between, after, 0) },
        client_cpu_seconds: usage("self").map(|u| u.cpu_seconds),
        writing,
        querying_while_writing,
        querying,
        verdict,
        passed: clean,
    };
    report.print(plan.args.json)?;
    Ok(clean)
}

/// The arguments, understood.
struct Plan {
    args: Load,
    scrapes: usize,
    tenants: Vec<Option<String>>,
    orders: Arc<Orders>,
}

impl Plan {
    fn new(args: Load) -> Result<Self, Error> {
        let wrong = |text: &str| Err(Error::Usage(text.to_string()));
        let interval_ms = i64::try_from(args.interval.as_millis()).unwrap_or(i64::MAX);
        if args.series == 0 || args.batch == 0 || args.concurrency == 0 {
            return wrong("--series, --batch and --concurrency start at 1");
        }
        if !(0.0..=1e6).contains(&args.speedup) || !(0.0..=1e6).contains(&args.churn) {
            return wrong("--speedup and --churn lie between 0 and 1000000");
        }
        let scrapes = match args.duration {
            Some(time) => usize::try_from(time.as_millis() / args.interval.as_millis()).unwrap_or(usize::MAX),
            None => args.scrapes,
        };
        if scrapes > 10_000_000 || args.series > 100_000_000 {
            return wrong("more than 10 million scrapes or 100 million series");
        }
        let now = Clock::real().now();
        let run = args.run_id.clone().unwrap_or_else(|| format!("load-{now}"));
        if run.is_empty() || !run.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return wrong("--run-id takes letters, digits, '-', '_' and '.'");
        }
        let span_ms = interval_ms.saturating_mul(i64::try_from(scrapes.max(1) - 1).unwrap_or(i64::MAX));
        let real_time = args.speedup > 0.0 && args.speedup <= 1.0;
        let first = if real_time { now } else { now.saturating_sub(span_ms) };
        if first < 1 << 36 {
            return wrong("the run would begin before 1973");
        }
        let client = Client::new(&args.url, &query_url(&args)?, args.timeout)?;
        let tenants = match args.tenants {
            0 => vec![None],
            some => (0..some).map(|i| Some(format!("{}{i}", args.tenant_prefix))).collect(),
        };
        let batches = args.series.div_ceil(args.batch);
        let orders = Orders {
            fleet: Fleet::new(&run, args.labels, args.churn, interval_ms),
            client,
            protocol: args.protocol,
            patience: Patience { retries_max: args.retries, wait_max: Duration::from_secs(5) },
            first,
            interval_ms,
            scrapes,
            pace: if args.speedup > 0.0 { args.interval.div_f64(args.speedup) } else { Duration::ZERO },
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            done: AtomicU64::new(0),
            barrier: Barrier::new(args.concurrency.min(batches)),
        };
        Ok(Self { args, scrapes, tenants, orders: Arc::new(orders) })
    }

    /// Everything [`Plan::write_phase`] sends, dealt out to the writers in turn.
    fn batches(&self) -> Vec<Vec<Batch>> {
        let total = self.args.series.div_ceil(self.args.batch);
        let mut hands: Vec<Vec<Batch>> = (0..self.args.concurrency.min(total)).map(|_| Vec::new()).collect();
        let writers = hands.len();
        for number in 0..total {
            let series = number * self.args.batch..((number + 1) * self.args.batch).min(self.args.series);
            let tenant = self.tenants[number % self.tenants.len()].clone();
            let batch = Batch::new(&self.orders.fleet, series, tenant, self.args.protocol, self.scrapes);
            hands[number % writers].push(batch);
        }
        hands
    }

    async fn write_phase(&self) -> Result<(Option<(Tally, f64)>, Vec<KindTally>, Vec<Batch>), Error> {
        if self.scrapes == 0 {
            return Ok((None, Vec::new(), Vec::new()));
        }
        let hands = self.batches();
        let over = Arc::new(AtomicBool::new(false));
        let start = Stopwatch::start();
        let asking = async {
            let live = self.args.speedup > 0.0 && self.args.speedup <= 1.0;
            let suite = self.suite(if live { Some(start) } else { None });
            match self.args.query_while_writing {
                true => queries::run(suite, Amount::UntilStopped, over.clone()).await,
                false => Ok(Vec::new()),
            }
        };
        let writing = async {
            let written = write_all(&self.orders, hands, start).await;
            over.store(true, Ordering::Relaxed); // also after an error, or the others would wait for ever
            written.map(|(tally, batches)| ((tally, start.elapsed().as_secs_f64()), batches))
        };
        let showing = progress::show(&self.orders, self.args.series as u64 * self.scrapes as u64, &over);
        let (written, asked, ()) = tokio::join!(writing, asking, showing);
        let (writing, batches) = written?;
        Ok((Some(writing), asked?, batches))
    }

    async fn query_phase(&self) -> Result<Vec<KindTally>, Error> {
        let amount = match (self.args.query_duration, self.args.queries) {
            (Some(time), _) => Amount::For(time),
            (None, 0) => return Ok(Vec::new()),
            (None, each) => Amount::Each(each),
        };
        Ok(queries::run(self.suite(None), amount, Arc::new(AtomicBool::new(false))).await?)
    }

    fn suite(&self, live_since: Option<Stopwatch>) -> Arc<Suite> {
        let whole = self.orders.time_of(self.scrapes.max(1) - 1);
        Arc::new(Suite {
            client: self.orders.client.clone(),
            tenants: self.tenants.clone(),
            run: self.orders.fleet.run().to_string(),
            targets: (self.args.series / self.orders.fleet.series_per_target()).max(1),
            last: if live_since.is_some() { self.orders.first } else { whole },
            live_since,
            range: self.args.query_range,
            concurrency: self.args.query_concurrency,
        })
    }

    /// Series over the whole run: those of each generation that was seen.
    fn series_created(&self) -> usize {
        let fleet = &self.orders.fleet;
        let per = fleet.series_per_target();
        let lives = |target: usize| match self.scrapes {
            0 => 0,
            scrapes => fleet.life(target, scrapes - 1).generation - fleet.life(target, 0).generation + 1,
        };
        let targets = self.args.series.div_ceil(per);
        (0..targets).map(|t| lives(t) as usize * per.min(self.args.series - t * per)).sum()
    }
}

/// Lets one writer send each hand of batches; gives all batches back in order.
async fn write_all(
    orders: &Arc<Orders>,
    hands: Vec<Vec<Batch>>,
    start: Stopwatch,
) -> Result<(Tally, Vec<Batch>), Error> {
    let mut writers = JoinSet::new();
    for hand in hands {
        writers.spawn(writer::write(orders.clone(), hand, start));
    }
    let (mut tally, mut batches) = (Tally::new(), Vec::new());
    while let Some(done) = writers.join_next().await {
        let (written, seen) = done?;
        tally.merge(&seen);
        batches.extend(written);
    }
    batches.sort_by_key(|batch| batch.series.start);
    Ok((tally, batches))
}

/// `--query-url`, or where `--url` points without its path.
fn query_url(args: &Load) -> Result<String, Error> {
    if let Some(url) = &args.query_url {
        return Ok(url.clone());
    }
    let rest = args.url.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme));
    let Some((scheme, rest)) = rest else {
        return Err(Error::Usage(format!("--url {} does not begin with http:// or https://", args.url)));
    };
    let host = rest.split('/').next().unwrap_or_default();
    Ok(format!("{scheme}://{host}"))
}
