//! The runtime of the consensus library: tokio, with what a simulation must be able to repeat taken into our own hands.
//!
//! Two things: chance and tasks come from [`crate::here`]; and those who wait for a `watch` are woken in the order in
//! which they came. Tokio's own spreads its waiters over several lists by chance of its own, which no seed reaches.
//! Outside of a simulation it is tokio all the same.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{AsyncRuntime, OptionalSend, OptionalSync, TokioRuntime};
use tokio::sync::{Notify, watch};

use crate::here::{self, Chance};

/// See the module's text.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Chance;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = Ordered;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        here::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Chance {
        Chance::of_thread()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// A `watch` whose waiters are woken in the order in which they came.
#[derive(Debug)]
pub struct Ordered;

/// Tells waiters that they may look, also when the sender goes.
#[derive(Debug)]
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    value: watch::Sender<T>,
    /// Declared after `value`: when it rings for the last time, the channel is closed.
    bell: Bell,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    value: watch::Receiver<T>,
    bell: Arc<Notify>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), bell: Bell(self.bell.0.clone()) }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), bell: self.bell.clone() }
    }
}

impl<T> Sender<T> {
    /// A channel that holds a value.
    pub(crate) fn new(value: T) -> Self {
        Self { value: watch::Sender::new(value), bell: Bell(Arc::default()) }
    }

    /// Puts another value in its place.
    pub(crate) fn replace(&self, value: T) {
        self.value.send_replace(value);
        self.bell.0.notify_waiters();
    }

    /// The value.
    pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    /// A receiver of all that comes.
    pub(crate) fn receiver(&self) -> Receiver<T> {
        Receiver { value: self.value.subscribe(), bell: self.bell.0.clone() }
    }
}

impl<T> Receiver<T> {
    /// The value.
    pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    /// The same channel, for those who may be woken in any order.
    pub(crate) fn plain(&self) -> watch::Receiver<T> {
        self.value.clone()
    }

    /// Waits until there is another value than the last one that was waited for.
    pub(crate) async fn next(&mut self) -> Result<(), watch::error::RecvError> {
        loop {
            let mut rung = pin!(self.bell.notified());
            rung.as_mut().enable();
            match self.value.has_changed() {
                Ok(true) => {
                    self.value.mark_unchanged();
                    return Ok(());
                }
                Ok(false) => rung.await,
                // Closed: the last value may not have been seen yet.
                Err(_) => return self.value.changed().await,
            }
        }
    }
}

impl<T: Clone> Receiver<T> {
    /// Waits until the value is as `wanted`.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&T) -> bool + Send) -> Result<T, watch::error::RecvError> {
        loop {
            {
                let value = self.value.borrow_and_update();
                if wanted(&value) {
                    return Ok(value.clone());
                }
            }
            self.next().await?;
        }
    }
}

impl Watch for Ordered {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(init);
        let receiver = sender.receiver();
        (sender, receiver)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<Ordered, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.value.send(value).map_err(|refused| SendError(refused.0));
        self.bell.0.notify_waiters();
        sent
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = self.value.send_if_modified(modify);
        if modified {
            self.bell.0.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        self.receiver()
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<Ordered, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        self.next().await.map_err(|_| RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_are_woken_in_the_order_in_which_they_came() {
        let (sender, order) = (Sender::new(0), Arc::new(parking_lot::Mutex::new(Vec::new())));
        let mut waiters = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (mut receiver, order) = (sender.receiver(), order.clone());
            waiters.spawn(async move {
                receiver.until(|value| *value == 1).await.unwrap();
                order.lock().push(number);
            });
            tokio::task::yield_now().await;
        }
        sender.replace(1);
        while waiters.join_next().await.is_some() {}
        assert_eq!(*order.lock(), (0..40).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn whoever_waits_is_told_the_last_value_and_then_that_nobody_sends() {
        let sender = Sender::new(0);
        let (mut early, mut late) = (sender.receiver(), sender.receiver());
        let waiting = tokio::task::JoinSet::from_iter([async move { early.until(|value| *value == 9).await.is_err() }]);
        tokio::task::yield_now().await;
        sender.replace(1);
        drop(sender);
        assert_eq!(waiting.join_all().await, [true]);
        assert!(late.next().await.is_ok() && late.next().await.is_err());
        assert_eq!(*late.borrow(), 1);
    }
}
