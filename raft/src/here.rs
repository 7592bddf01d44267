//! A group on one thread that can be played again: its chance from a seed, its blocking work at once, its tasks in one
//! hand.
//!
//! Why here and not only outside: the consensus library asks for chance and starts tasks through its runtime's functions,
//! which have no `self` ([`crate::runtime`]), and the store has a thread of its own. While a [`Here`] lives, what this
//! thread asks for comes from the seed and runs on this thread. It is the same code either way.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::{StdRng, ThreadRng};
use rand::{RngExt, SeedableRng, TryRng};
use tokio::task::AbortHandle;

use crate::error::Error;

thread_local! {
    /// While a [`Here`] lives: where chance comes from.
    static CHANCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// While this lives, groups of this thread take chance from a seed and run on this thread.
#[derive(Debug)]
pub struct Here(PhantomData<*const ()>);

impl Here {
    /// From now on.
    #[must_use]
    pub fn begin(seed: u64) -> Self {
        CHANCE.set(Some(StdRng::seed_from_u64(seed)));
        Self(PhantomData)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        CHANCE.set(None);
    }
}

/// Whether a [`Here`] lives on this thread.
pub(crate) fn is_here() -> bool {
    CHANCE.with_borrow(Option::is_some)
}

/// Runs blocking work: off the runtime's workers, or at once.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if is_here() {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|stopped| Error::Stopped { why: stopped.to_string() })?
}

/// The time that a disk takes, by chance; none outside of a [`Here`], where disks take their own.
pub(crate) async fn disk_time() {
    let chosen = CHANCE.with_borrow_mut(|chance| chance.as_mut().map(|chance| chance.random_range(1..=5)));
    if let Some(millis) = chosen {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

/// Chance for the consensus library.
#[derive(Debug)]
pub struct Chance(Option<ThreadRng>);

impl Chance {
    #[allow(clippy::disallowed_methods, reason = "outside of a simulation there is no seed")]
    pub(crate) fn of_thread() -> Self {
        Self(if is_here() { None } else { Some(rand::rng()) })
    }

    fn with<T>(&mut self, real: impl FnOnce(&mut ThreadRng) -> T, seeded: impl FnOnce(&mut StdRng) -> T) -> T {
        match &mut self.0 {
            Some(thread) => real(thread),
            None => CHANCE.with_borrow_mut(|chance| seeded(chance.get_or_insert_with(|| StdRng::seed_from_u64(0)))),
        }
    }
}

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.with(ThreadRng::try_next_u32, StdRng::try_next_u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.with(ThreadRng::try_next_u64, StdRng::try_next_u64)
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Infallible> {
        match &mut self.0 {
            Some(thread) => thread.try_fill_bytes(into),
            None => CHANCE
                .with_borrow_mut(|chance| chance.get_or_insert_with(|| StdRng::seed_from_u64(0)).try_fill_bytes(into)),
        }
    }
}

tokio::task_local! {
    /// Whose task this is, if anybody asked.
    static LIFE: Life;
}

/// Tasks that end together, as those of a process do. A task that is started by one of them is one of them.
#[derive(Clone, Debug, Default)]
pub struct Life(Arc<Mutex<Tasks>>);

#[derive(Debug, Default)]
struct Tasks {
    over: bool,
    running: Vec<AbortHandle>,
    /// How many there may be before those that have ended are looked for.
    sweep_at: usize,
}

impl Life {
    /// Everything that `work` starts belongs to this life. `work` itself does not.
    pub fn scope<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        LIFE.scope(self.clone(), work)
    }

    /// Runs `work` in this life; nothing if it is over.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if self.0.lock().over {
            return;
        }
        let task = plain_spawn(self.scope(work));
        self.adopt(task.abort_handle());
    }

    /// Ends it: no task of it gets to do anything any more.
    pub fn end(&self) {
        let mut tasks = self.0.lock();
        tasks.over = true;
        let running = std::mem::take(&mut tasks.running);
        drop(tasks);
        running.iter().for_each(AbortHandle::abort);
    }

    /// Whose task this is.
    pub(crate) fn current() -> Option<Self> {
        LIFE.try_with(Self::clone).ok()
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.0.lock().over
    }

    fn adopt(&self, task: AbortHandle) {
        let mut tasks = self.0.lock();
        if tasks.over {
            task.abort();
            return;
        }
        tasks.running.push(task);
        if tasks.running.len() > tasks.sweep_at {
            tasks.running.retain(|task| !task.is_finished());
            tasks.sweep_at = tasks.running.len() * 2 + 32;
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the consensus library supervises what it starts")]
fn plain_spawn<T: Future<Output: Send + 'static> + Send + 'static>(work: T) -> tokio::task::JoinHandle<T::Output> {
    tokio::spawn(work)
}

/// Starts a task in the life of the one that asks.
pub(crate) fn spawn<T: Future<Output: Send + 'static> + Send + 'static>(work: T) -> tokio::task::JoinHandle<T::Output> {
    let Some(life) = Life::current() else { return plain_spawn(work) };
    let task = plain_spawn(LIFE.scope(life.clone(), work));
    life.adopt(task.abort_handle());
    task
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn chance_is_the_seeds_while_it_lives() {
        let draw = |seed| {
            let _here = Here::begin(seed);
            (Chance::of_thread().random_range(0..u64::MAX), Chance::of_thread().random_range(0..u64::MAX))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(draw(7).0, draw(7).1);
        assert!(!is_here());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_life_started_ends_with_it() {
        let (life, count) = (Life::default(), Arc::new(AtomicU32::new(0)));
        let ticking = count.clone();
        let child = move || async move {
            loop {
                ticking.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        life.scope(async { drop(spawn(child())) }).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        life.end();
        let seen = count.load(Ordering::Relaxed);
        assert_eq!(seen, 3);
        life.spawn(async { unreachable!("it is over") });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(count.load(Ordering::Relaxed), seen);
    }
}
