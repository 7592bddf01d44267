//! From a tree to values: clock, deadline and budget are handed in.
//!
//! In two parts, because they belong on different threads. [`prepare`] makes the plan and awaits all data it can need,
//! each select once; [`Prepared::run`] then computes, without waiting for anything, and is given a thread of its own.
//!
//! ```text
//! eval.rs      the walk over the plan         row.rs        one series over all steps
//! select.rs    samples → values of steps      range.rs      functions over moving windows
//! binary.rs    operators                      matching.rs   which series of two vectors meet
//! aggregate.rs sum, avg, quantile …           ranked.rs     topk, limitk, count_values …
//! call.rs      functions of whole vectors     buckets.rs    quantiles of histograms
//! relabel.rs   label_replace, label_join      info.rs       info()
//! histograms.rs operators on histograms       answer.rs     rows → answer
//! shards.rs    aggregations on several threads   shared.rs  what is written twice
//! push.rs      what may run where series lie
//! profile.rs   what each node did        tally.rs      samples looked at and read, by step
//! wanted.rs    what of the series is looked at   pace.rs   whether to stop
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use engram_model::Millis;
use engram_model::time::Stopwatch;
use futures::future::try_join_all;

use crate::error::Error;
use crate::parse::ast::{Expr, ValueType};
use crate::plan::{self, Plan, Times};
use crate::port::{Selection, SharedQueryable};
use crate::value::{Annotations, Stats, Step, Value};

use row::Steps;

mod aggregate;
mod answer;
mod binary;
mod buckets;
mod call;
mod eval;
mod histograms;
mod info;
mod matching;
mod pace;
mod profile;
mod push;
mod range;
mod ranked;
mod relabel;
mod row;
mod select;
mod shards;
mod shared;
mod tally;
mod wanted;

pub use push::{has_kind, sum_up};

/// What to evaluate, and over which times.
#[derive(Clone, Debug)]
pub struct Request {
    /// The text the tree was made from; warnings name lines and columns of it. Empty: they name none.
    pub text: String,
    /// The checked tree.
    pub expr: Expr,
    /// First evaluation time.
    pub start: Millis,
    /// Last evaluation time, inside; equal to `start` for an instant query.
    pub end: Millis,
    /// Distance of evaluation times; 0 for an instant query.
    pub step_ms: i64,
    /// What this query may take.
    pub budget: Budget,
}

/// Samples that all queries of a process hold together, and how many that may be.
///
/// Why beside each query's own bound: twenty queries that each keep theirs could still fill the machine.
#[derive(Debug)]
pub struct SamplePool {
    held: AtomicU64,
    max: u64,
}

impl SamplePool {
    /// Room for `max` samples.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self { held: AtomicU64::new(0), max }
    }

    /// How many are held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes room; what was taken stays taken until it is given back, also when there was none.
    ///
    /// # Errors
    /// [`Error::Busy`] when there is none left.
    pub fn take(&self, samples: u64) -> Result<(), Error> {
        let held = self.held.fetch_add(samples, Ordering::Relaxed) + samples;
        if held > self.max {
            return Err(Error::Busy { max: self.max });
        }
        Ok(())
    }

    /// Gives back what was taken.
    pub fn give(&self, samples: u64) {
        self.held.fetch_sub(samples, Ordering::Relaxed);
    }
}

/// Bounds and switches of one query.
#[derive(Clone, Debug)]
pub struct Budget {
    /// How far back an instant selector looks for a sample.
    pub lookback_ms: i64,
    /// Most samples in memory at once.
    pub samples_max: u64,
    /// Most bytes in memory at once: of samples, 16 each, and of the series selected; 0: no limit.
    pub bytes_max: u64,
    /// Whose query it is, for the texts of limits: `tenant acme`. Empty: nobody's.
    pub owner: String,
    /// What all queries of the process may hold together; none: each has only its own bound.
    pub pool: Option<Arc<SamplePool>>,
    /// Most series one query may touch; 0: no limit.
    pub series_max: u64,
    /// Wall time after which it is stopped.
    pub timeout: Duration,
    /// Step of subqueries that name none.
    pub subquery_step_ms: i64,
    /// Keep the metric's name until the end of the query (delayed name removal).
    pub delayed_name_removal: bool,
    /// Whether `rate` and friends look at start timestamps, and `start_timestamp()` works.
    pub use_start_timestamps: bool,
    /// Whether series carry `__type__`, so that it and not the name says what a counter is.
    pub type_and_unit_labels: bool,
    /// How many threads one query may use; 0 counts as 1. More only help aggregations over many series.
    pub parallelism: usize,
    /// Whether the plan is made cheaper before it is run; off only to compare.
    pub optimise: bool,
    /// Whether aggregations may run where their series lie.
    pub push_down: bool,
    /// Whether the answer comes with what each operator did, which costs some time.
    pub explain: bool,
    /// Whether samples are counted by step, and those read, too; costs a little for each step of each series.
    pub count_steps: bool,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            lookback_ms: 5 * 60 * 1000,
            samples_max: 50_000_000,
            bytes_max: 0,
            owner: String::new(),
            pool: None,
            series_max: 0,
            timeout: Duration::from_secs(120),
            subquery_step_ms: 60 * 1000,
            delayed_name_removal: false,
            use_start_timestamps: false,
            type_and_unit_labels: false,
            parallelism: 1,
            optimise: true,
            push_down: true,
            explain: false,
            count_steps: false,
        }
    }
}

impl Budget {
    /// A limit's name, with whose it is.
    fn limit(&self, name: &str) -> String {
        if self.owner.is_empty() { name.to_owned() } else { format!("{name} of {}", self.owner) }
    }
}

/// Stops a query from outside; cheap to clone, looked at every few thousand samples.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Flag>);

#[derive(Debug)]
struct Flag {
    stop: AtomicBool,
    looks: AtomicU64,
    /// The look that finds it stopped, whatever happens outside.
    at_look: u64,
}

impl Default for Flag {
    fn default() -> Self {
        Self { stop: AtomicBool::new(false), looks: AtomicU64::new(0), at_look: u64::MAX }
    }
}

impl Cancel {
    /// A query that finds itself stopped when it looks for the `look`th time, the first being 1. For tests: a client that
    /// leaves at every moment there is.
    #[must_use]
    pub fn at_look(look: u64) -> Self {
        Self(Arc::new(Flag { at_look: look, ..Flag::default() }))
    }

    /// Stops the query.
    pub fn cancel(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it is to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed)
    }

    /// How often queries have looked whether they are to stop.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.0.looks.load(Ordering::Relaxed)
    }

    /// Whether it is to stop, asked by the query.
    fn look(&self) -> bool {
        let looks = self.0.looks.fetch_add(1, Ordering::Relaxed) + 1;
        if looks >= self.0.at_look {
            self.cancel();
        }
        self.is_cancelled()
    }
}

/// An answer with what there is to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The answer.
    pub value: Value,
    /// Warnings and infos.
    pub annotations: Annotations,
    /// What it cost.
    pub stats: Stats,
    /// What each operator did, where that was asked for.
    pub explain: Option<Box<Step>>,
}

/// A query whose data is at hand.
pub struct Prepared {
    text: String,
    plan: Plan,
    start: Millis,
    end: Millis,
    step_ms: i64,
    budget: Budget,
    selections: Vec<Selection>,
    select_seconds: f64,
    /// Of each select, the time until its series were there.
    fetch_seconds: Vec<f64>,
    watch: Stopwatch,
}

/// Makes the plan and fetches all series it names, identical selectors once and all at the same time.
///
/// # Errors
/// [`Error::BadRequest`] when the times or durations make no sense, [`Error::OverBudget`] when there are too many
/// series, [`Error::Source`] when the data cannot be read.
///
/// # Cancel safety
/// May be dropped at any time; nothing was changed.
pub async fn prepare(request: &Request, source: &SharedQueryable) -> Result<Prepared, Error> {
    let watch = Stopwatch::start();
    let times = Times {
        start: request.start,
        end: request.end,
        step_ms: request.step_ms,
        lookback_ms: request.budget.lookback_ms,
        subquery_step_ms: request.budget.subquery_step_ms,
    };
    if request.step_ms < 0 || (request.step_ms == 0 && request.start != request.end) {
        return Err(Error::BadRequest("the step of a range query must be greater than 0".to_owned()));
    }
    let mut plan = plan::plan(&request.expr, times)?;
    if request.budget.optimise {
        plan::optimise(&mut plan);
    }
    wanted::fill_hints(&mut plan, &request.budget);
    if request.budget.push_down {
        push::fill_fragments(&mut plan, Steps::new(request.start, request.end, request.step_ms), &request.budget);
    }
    if request.step_ms != 0 {
        check_range_type(plan.yields)?;
    }
    let selects = plan.selects.iter().map(|select| async move {
        if select.is_empty {
            return Ok((Selection::default(), 0.0));
        }
        let selection = source.select(select.range, &select.matchers, &select.hints).await?;
        Ok::<_, Error>((selection, watch.elapsed().as_secs_f64()))
    });
    let (selections, fetch_seconds): (Vec<_>, Vec<_>) = try_join_all(selects).await?.into_iter().unzip();
    let series = selections.iter().map(Selection::series_count).sum::<u64>();
    if request.budget.series_max != 0 && series > request.budget.series_max {
        return Err(Error::OverBudget(format!(
            "the query selects {series} series, which is more than the limit of {} ({}): narrow its selectors",
            request.budget.series_max,
            request.budget.limit("max_fetched_series_per_query")
        )));
    }
    Ok(Prepared {
        text: request.text.clone(),
        plan,
        start: request.start,
        end: request.end,
        step_ms: request.step_ms,
        budget: request.budget.clone(),
        selections,
        fetch_seconds,
        select_seconds: watch.elapsed().as_secs_f64(),
        watch,
    })
}

/// Whether a range query can give values of this type.
///
/// # Errors
/// [`Error::BadRequest`] for ranges and texts.
pub fn check_range_type(yields: ValueType) -> Result<(), Error> {
    if matches!(yields, ValueType::Matrix | ValueType::String) {
        return Err(Error::BadRequest(format!(
            "invalid expression type \"{}\" for range query, must be Scalar or instant Vector",
            yields.documented()
        )));
    }
    Ok(())
}

impl Prepared {
    /// Computes the answer. Takes as long as it takes: call it on a thread that may be kept busy.
    ///
    /// # Errors
    /// [`Error::Execution`] where the data does not allow an answer, [`Error::OverBudget`], [`Error::Timeout`] (counted
    /// from [`prepare`] on), [`Error::Cancelled`].
    pub fn run(&self, cancel: &Cancel) -> Result<Outcome, Error> {
        answer::run(self, cancel)
    }
}

/// [`prepare`] and [`Prepared::run`] in one, for callers whose thread may be kept busy.
///
/// # Errors
/// As both.
pub async fn evaluate(request: &Request, source: &SharedQueryable, cancel: &Cancel) -> Result<Outcome, Error> {
    prepare(request, source).await?.run(cancel)
}
