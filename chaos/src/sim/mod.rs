//! A whole cluster in one thread, with simulated time, network, disks and metadata: thousands of schedules a minute.
//!
//! Why: a bug that needs three coincidences is found by trying very often, and is understood by trying it again. A
//! schedule is made by its seed alone and is the same each time: the runtime's clock stands still until nobody has
//! anything to do, what would run on other threads runs at once, and all chance comes from one generator.
//!
//! What runs is the product: partition actors, node log, heads and their recovery, distributor, reader with the query
//! engine, repair, and the state machine of the metadata; in one schedule of sixteen the whole metadata group, with
//! real consensus. What is simulated, and so not tested here: consensus in the others ([`engram_raft::Sequence`] has its
//! place), the bytes between nodes, HTTP, the reconciler's choices, threads.
//!
//! Map: [`world`] chance, time, trace · [`net`] messages · [`far`] replicas on other nodes · [`member`] the metadata as
//! one node knows it · [`rafts`] the group with real consensus · [`host`] a machine and the lives on it · [`clients`] load,
//! [`registers`] and who configures · [`plan`] faults · [`play`] one schedule from its founding to its verdicts.

mod books;
mod clients;
mod far;
mod host;
mod member;
#[cfg(feature = "mutants")]
mod mutants;
mod net;
mod plan;
mod play;
mod rafts;
mod registers;
#[cfg(test)]
mod tests;
mod world;

#[cfg(feature = "mutants")]
pub(crate) use mutants::hunt;

use crate::error::Error;
use rafts::Figures;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
pub(crate) use world::Agrees;
use world::How;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The first seed.
    pub(crate) from: u64,
    pub(crate) seeds: u64,
    /// At once, each on a thread of its own.
    pub(crate) threads: usize,
    /// After which no schedule begins any more.
    pub(crate) within: Option<Duration>,
    /// Every so many-th seed is played a second time, and must be the same schedule then.
    pub(crate) twice_every: u64,
    /// Whether every event is printed.
    pub(crate) aloud: bool,
    /// Who agrees on the metadata, in all of them; none: as each seed says.
    pub(crate) consensus: Option<Agrees>,
}

/// Failing seeds that are told.
const TOLD_MAX: usize = 10;

/// What nodes log of one seed.
const LOGGED: &str = "engram_node=debug,engram_storage=info,engram_raft=info";

/// Prints a line, whoever listens.
fn say_all(text: &str) {
    // When standard output is closed there is nobody left to tell.
    let _closed = writeln!(std::io::stdout(), "{text}");
}

/// Plays the seeds; whether all were good.
///
/// # Errors
/// No runtime could be made.
pub(crate) fn run(wanted: Wanted) -> Result<bool, Error> {
    let watch = engram_model::time::Stopwatch::start();
    if wanted.aloud {
        let lines =
            tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false).with_env_filter(LOGGED);
        // Who looks at a seed within a test may have one already.
        let _had_one = lines.with_writer(std::io::stdout).try_init();
    }
    let (played_count, ops, failed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
    let groups = Mutex::new((0, Figures::default()));
    let alike_after = Mutex::new((Duration::ZERO, Duration::ZERO));
    play_all(wanted, |at, played| {
        played_count.fetch_add(1, Ordering::Relaxed);
        ops.fetch_add(played.ops.0 as u64, Ordering::Relaxed);
        add(&groups, &played.group);
        tell(played, wanted, &failed);
        {
            let mut alike_after = lock(&alike_after);
            *alike_after = (alike_after.0 + played.alike_after, alike_after.1.max(played.alike_after));
        }
        if at > 0 && at % 1000 == 0 {
            let seconds = watch.elapsed().as_secs_f64();
            say_all(&format!("{at} schedules in {seconds:.1} s, {} failed", lock(&failed).len()));
        }
        true
    })?;
    let (seconds, failed) = (watch.elapsed().as_secs_f64(), lock(&failed));
    let count = played_count.load(Ordering::Relaxed);
    #[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
    let rate = count as f64 / seconds.max(1e-9);
    say_all(&format!(
        "{count} schedules, from seed {} on: {seconds:.1} s, {rate:.1} a second, {} operations",
        wanted.from,
        ops.load(Ordering::Relaxed)
    ));
    let (with_group, Figures { terms, purges, snapshots }) = *lock(&groups);
    say_all(&format!("{with_group} with a group: {terms} terms, {snapshots} snapshots sent, {purges} purges"));
    let (sum, most) = *lock(&alike_after);
    #[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
    let mean = sum.as_secs_f64() / count.max(1) as f64;
    let most = most.as_secs_f64();
    say_all(&format!("replicas held the same {mean:.1} s after the faults, {most:.1} s at most, in simulated time"));
    say_all(&format!("sim: {} passed, {} failed", count - failed.len() as u64, failed.len()));
    Ok(failed.is_empty())
}

/// Plays the seeds, some at once, as long as `each` says so.
fn play_all(wanted: Wanted, each: impl Fn(u64, &play::Played) -> bool + Sync) -> Result<(), Error> {
    let (next, broken) = (AtomicU64::new(0), Mutex::new(None));
    let watch = engram_model::time::Stopwatch::start();
    let is_late = || wanted.within.is_some_and(|within| watch.elapsed() > within);
    let how = How { aloud: wanted.aloud, consensus: wanted.consensus, ..How::default() };
    let work = || loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        if at >= wanted.seeds || is_late() {
            return;
        }
        let twice = !wanted.aloud && (wanted.from + at).is_multiple_of(wanted.twice_every.max(1));
        match play_seed(wanted.from + at, how, twice) {
            Ok(played) if each(at, &played) => {}
            Ok(_) => next.store(wanted.seeds, Ordering::Relaxed),
            Err(error) => *lock(&broken) = Some(error),
        }
    };
    std::thread::scope(|scope| (0..wanted.threads.max(1)).for_each(|_| drop(scope.spawn(work))));
    let broken = lock(&broken).take();
    broken.map_or(Ok(()), Err)
}

/// Adds what happened to a group, if there was one.
fn add(groups: &Mutex<(u64, Figures)>, one: &Figures) {
    let (played, all) = &mut *lock(groups);
    *played += u64::from(one.terms > 0);
    all.terms += one.terms;
    all.purges += one.purges;
    all.snapshots += one.snapshots;
}

/// Plays a seed, and again when `twice`: that both are alike is what all else here stands on.
fn play_seed(seed: u64, how: How, twice: bool) -> Result<play::Played, Error> {
    let mut played = play::play(seed, how)?;
    if twice {
        let again = play::play(seed, how)?;
        if (played.trace, played.events) != (again.trace, again.events) {
            let (first, second) = ((played.trace, played.events), (again.trace, again.events));
            played.troubles.push(format!("the seed gave two schedules: {first:x?} and {second:x?}"));
        }
    }
    Ok(played)
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Says what is wrong with a schedule, and how to see it again.
fn tell(played: &play::Played, wanted: Wanted, failed: &Mutex<Vec<u64>>) {
    if wanted.aloud {
        let (all, well) = played.ops;
        say_all(&format!(
            "trace {:016x} of {} events, {well} of {all} operations went well, {:?}",
            played.trace, played.events, played.group
        ));
    }
    if played.is_good() {
        return;
    }
    let mut failed = lock(failed);
    failed.push(played.seed);
    if failed.len() > TOLD_MAX {
        return;
    }
    let with = match wanted.consensus {
        None => "",
        Some(Agrees::List) => " --consensus list",
        Some(Agrees::Raft) => " --consensus raft",
    };
    say_all(&format!("seed {} FAILED; again: engram-chaos sim --seed {}{with}", played.seed, played.seed));
    for trouble in &played.troubles {
        say_all(&format!("  {trouble}"));
    }
    for verdict in &played.bad {
        say_all(&format!("  {}: {} findings", verdict.checker, verdict.found));
        verdict.told.iter().take(5).for_each(|text| say_all(&format!("    {text}")));
    }
}
