//! Work that may take its time: on a thread for that, so that it does not hold the runtime.
//!
//! Why not the runtime's own call: what runs on other threads ends in an order that nobody chooses. A simulation runs
//! a whole cluster on one thread and must be able to repeat it, so there such work runs where it is asked for, at once
//! ([`Here`]). It is the same work either way.

use std::cell::Cell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};

thread_local! {
    /// While a [`Here`] lives: how many unique numbers it gave.
    static HERE: Cell<Option<u128>> = const { Cell::new(None) };
}

/// While this lives, what this thread asks for runs on this thread.
#[derive(Debug)]
pub struct Here(PhantomData<*const ()>);

impl Here {
    /// From now on.
    #[must_use]
    pub fn begin() -> Self {
        HERE.set(Some(0));
        Self(PhantomData)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        HERE.set(None);
    }
}

/// Work under way, or done.
#[derive(Debug)]
pub enum Running<T> {
    /// On a thread.
    There(JoinHandle<T>),
    /// Done; none once it was taken.
    Done(Option<T>),
}

/// Whether what this thread asks for is to run on this thread.
#[must_use]
pub fn is_here() -> bool {
    HERE.get().is_some()
}

/// While [`Here`] lives, a number it has not given yet; otherwise none, and chance has to give one.
#[must_use]
pub fn unique_here() -> Option<u128> {
    let next = HERE.get()?.wrapping_add(1);
    HERE.set(Some(next));
    // Spread over all bits, as chance would: what is made of a part of it is to differ, too.
    Some(next.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// Threads that work which can be shared may run on.
#[must_use]
pub fn cores() -> usize {
    if is_here() { 1 } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// Waits on a thread that may block. None where that is not so and what is waited for is not there yet: only while
/// [`Here`] lives.
pub fn wait<T>(runtime: &Handle, of: impl Future<Output = T>) -> Option<T> {
    if !is_here() {
        return Some(runtime.block_on(of));
    }
    match pin!(of).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Runs `work` on a thread that may block; it has begun when this returns.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Running<T> {
    if is_here() {
        return Running::Done(Some(work()));
    }
    Running::There(tokio::task::spawn_blocking(work))
}

// What is done is moved out and never pinned.
impl<T> Unpin for Running<T> {}

/// What the work gave.
///
/// # Errors
/// It panicked, or the runtime is shutting down.
impl<T> Future for Running<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::There(handle) => Pin::new(handle).poll(context),
            // Polled after it was ready, which nobody may do.
            Self::Done(done) => done.take().map_or(Poll::Pending, |value| Poll::Ready(Ok(value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_on_this_thread_only_when_told() {
        let me = std::thread::current().id();
        let other = blocking(|| std::thread::current().id()).await.unwrap();
        assert_ne!(other, me);
        {
            let _here = Here::begin();
            assert_eq!(blocking(|| std::thread::current().id()).await.unwrap(), me);
        }
        assert_ne!(blocking(|| std::thread::current().id()).await.unwrap(), me);
    }
}
