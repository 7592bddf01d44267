//! The actor kit: bounded mailboxes, asking with a deadline, supervision with restart limits, health.
//!
//! Why our own: a node is a tree of actors whose mailboxes are the admission control and whose drain order is the
//! group commit, so both must be exactly what we say. A request passes messages down, the answer comes back on the
//! request's own channel; nobody asks upward, which in a world of bounded mailboxes would be a deadlock.
//!
//! A restarted child gets the same mailbox: what waits in it is not lost, what was being handled is (its asker sees
//! [`AskError::Stopped`] and answers 503). A child that fails more often than its limit allows is failed for good,
//! the node is no longer ready, and a child marked essential stops the whole node.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Where one answer goes.
pub type Reply<T> = oneshot::Sender<T>;

/// Why a message got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The mailbox is full: refuse early, the caller may retry.
    #[error("{0} is overloaded: its mailbox is full")]
    Full(&'static str),
    /// The actor is gone or was restarted while it handled the message.
    #[error("{0} stopped before it answered")]
    Stopped(&'static str),
    /// No answer in time; whether the message took effect is unknown.
    #[error("{0} did not answer in time")]
    Deadline(&'static str),
}

/// The sending side of a mailbox. Cheap to clone.
pub struct Addr<M> {
    name: &'static str,
    tx: mpsc::Sender<M>,
}

impl<M> Clone for Addr<M> {
    fn clone(&self) -> Self {
        Self { name: self.name, tx: self.tx.clone() }
    }
}

impl<M> Addr<M> {
    /// Puts a message into the mailbox, or says why not. Never waits.
    ///
    /// # Errors
    /// [`AskError::Full`] and [`AskError::Stopped`].
    pub fn try_send(&self, message: M) -> Result<(), AskError> {
        self.tx.try_send(message).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => AskError::Full(self.name),
            mpsc::error::TrySendError::Closed(_) => AskError::Stopped(self.name),
        })
    }

    /// Sends a message that carries a [`Reply`] and waits for the answer, at most `within`.
    ///
    /// # Errors
    /// All of [`AskError`].
    ///
    /// # Cancel safety
    /// Dropping the future gives up the answer; the message is handled all the same.
    pub async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> M, within: Duration) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.try_send(make(reply))?;
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(AskError::Stopped(self.name)),
            Err(_) => Err(AskError::Deadline(self.name)),
        }
    }

    /// As [`Addr::ask`], but waits for room in a full mailbox: for those who have time and must get through. A sender of
    /// requests uses `ask`, or the mailbox bounds nothing.
    ///
    /// # Errors
    /// [`AskError::Stopped`] and [`AskError::Deadline`].
    ///
    /// # Cancel safety
    /// As [`Addr::ask`].
    pub async fn ask_in_line<T>(&self, make: impl FnOnce(Reply<T>) -> M, within: Duration) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.tx.send(make(reply)).await.map_err(|_| AskError::Stopped(self.name))?;
            answer.await.map_err(|_| AskError::Stopped(self.name))
        };
        tokio::time::timeout(within, asked).await.unwrap_or(Err(AskError::Deadline(self.name)))
    }

    /// How many messages wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.tx.max_capacity() - self.tx.capacity()
    }
}

/// The receiving side of a mailbox; it outlives the actor that reads it, so that a restarted one goes on reading.
pub struct Mailbox<M> {
    slot: Arc<Mutex<Option<mpsc::Receiver<M>>>>,
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

/// Makes a mailbox that holds at most `max` messages.
#[must_use]
pub fn mailbox<M>(name: &'static str, max: usize) -> (Addr<M>, Mailbox<M>) {
    let (tx, rx) = mpsc::channel(max);
    (Addr { name, tx }, Mailbox { slot: Arc::new(Mutex::new(Some(rx))) })
}

impl<M> Mailbox<M> {
    /// Takes the mailbox for as long as the returned lease lives; `None` while another lease does.
    #[must_use]
    pub fn open(&self) -> Option<Lease<M>> {
        let rx = self.slot.lock().take()?;
        Some(Lease { rx: Some(rx), slot: self.slot.clone() })
    }
}

/// A mailbox in use; goes back when dropped, also by a panic.
pub struct Lease<M> {
    rx: Option<mpsc::Receiver<M>>,
    slot: Arc<Mutex<Option<mpsc::Receiver<M>>>>,
}

impl<M> Lease<M> {
    /// Waits for messages and takes all that wait, at most `max`; 0 when the mailbox is closed and empty.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken unless the future completes.
    pub async fn recv_many(&mut self, buffer: &mut Vec<M>, max: usize) -> usize {
        match &mut self.rx {
            Some(rx) => rx.recv_many(buffer, max).await,
            None => 0,
        }
    }

    /// Refuses new messages; those that wait can still be received.
    pub fn close(&mut self) {
        if let Some(rx) = &mut self.rx {
            rx.close();
        }
    }
}

impl<M> Drop for Lease<M> {
    fn drop(&mut self) {
        *self.slot.lock() = self.rx.take();
    }
}

/// What a part of the node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Not there yet.
    Starting(String),
    /// Working.
    Running,
    /// Failed a moment ago, coming back.
    Restarting(String),
    /// Failed for good.
    Failed(String),
    /// On its way out.
    Stopping,
}

/// The health of all parts of a node, by name. Shared.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Condition>>>);

impl Health {
    /// Says how a part is.
    pub fn set(&self, part: &str, condition: Condition) {
        self.0.lock().insert(part.to_owned(), condition);
    }

    /// Every part with whether it is ready and why not.
    #[must_use]
    pub fn report(&self) -> Vec<(String, bool, String)> {
        let parts = self.0.lock();
        parts
            .iter()
            .map(|(name, condition)| match condition {
                Condition::Running => (name.clone(), true, "running".to_owned()),
                Condition::Starting(what) => (name.clone(), false, format!("starting: {what}")),
                Condition::Restarting(why) => (name.clone(), false, format!("restarting: {why}")),
                Condition::Failed(why) => (name.clone(), false, format!("failed: {why}")),
                Condition::Stopping => (name.clone(), false, "stopping".to_owned()),
            })
            .collect()
    }

    /// Whether every part is running.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.lock().values().all(|c| *c == Condition::Running)
    }
}

/// How often a child may be restarted.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimit {
    /// Failures allowed within `window`; one more and the child is failed.
    pub failures_max: usize,
    /// The window.
    pub window: Duration,
    /// First wait before a restart; doubles with each failure in the window.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

/// Three failures in ten minutes, waiting 100 ms and up: enough for a fault that passes, few enough not to hide one.
impl Default for RestartLimit {
    fn default() -> Self {
        Self {
            failures_max: 3,
            window: Duration::from_secs(600),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// Why a child ended.
pub type ChildError = Box<dyn std::error::Error + Send + Sync>;

/// A child: a name, and how to start it (again).
pub struct ChildSpec {
    /// Its name in logs and health.
    pub name: String,
    /// How often it may fail.
    pub limit: RestartLimit,
    /// Whether the node stops when it is failed.
    pub essential: bool,
    /// Starts it. Called again for each restart: it rebuilds its state, it does not trust memory after a panic.
    pub start: Box<dyn Fn() -> BoxFuture<'static, Result<(), ChildError>> + Send + Sync>,
}

/// Owns children, restarts them, and ends when they have ended after `stop`.
pub struct Supervisor {
    name: &'static str,
    health: Health,
    stop: CancellationToken,
    children: JoinSet<()>,
}

impl Supervisor {
    /// A supervisor that cancels `stop` when an essential child is failed.
    #[must_use]
    pub fn new(name: &'static str, health: Health, stop: CancellationToken) -> Self {
        Self { name, health, stop, children: JoinSet::new() }
    }

    /// Starts a child and keeps it running.
    pub fn spawn(&mut self, child: ChildSpec) {
        let (health, stop, parent) = (self.health.clone(), self.stop.clone(), self.name);
        let part = format!("{parent}/{}", child.name);
        health.set(&part, Condition::Running);
        self.children.spawn(async move { supervise(part, child, health, stop).await });
    }

    /// Waits until all children have ended; call after `stop` was cancelled. Aborts those that take longer.
    pub async fn join(mut self, within: Duration) {
        let all = async { while self.children.join_next().await.is_some() {} };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!(supervisor = self.name, "children did not stop in time and are aborted");
        }
    }
}

async fn supervise(part: String, child: ChildSpec, health: Health, stop: CancellationToken) {
    // The runtime's clock, which tests move.
    let began = tokio::time::Instant::now();
    let mut failures: VecDeque<Duration> = VecDeque::new();
    loop {
        let ended = std::panic::AssertUnwindSafe((child.start)()).catch_unwind().await;
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("panicked: {}", panic_text(panic.as_ref())),
        };
        if stop.is_cancelled() {
            return;
        }
        let now = began.elapsed();
        failures.push_back(now);
        while failures.front().is_some_and(|at| now.saturating_sub(*at) > child.limit.window) {
            failures.pop_front();
        }
        if failures.len() > child.limit.failures_max {
            tracing::error!(part, why, failures = failures.len(), "failed for good");
            health.set(&part, Condition::Failed(why));
            if child.essential {
                stop.cancel();
            }
            return;
        }
        let wait = backoff(&child.limit, failures.len());
        tracing::warn!(part, why, wait_ms = wait.as_millis(), "failed, restarting");
        health.set(&part, Condition::Restarting(why));
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
        health.set(&part, Condition::Running);
    }
}

fn backoff(limit: &RestartLimit, failures: usize) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    limit.backoff_min.saturating_mul(1 << doublings).min(limit.backoff_max)
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_full_mailbox_refuses_at_once() {
        let (addr, _mailbox) = mailbox::<u32>("test", 2);
        assert!(addr.try_send(1).is_ok() && addr.try_send(2).is_ok());
        assert_eq!(addr.try_send(3), Err(AskError::Full("test")));
        assert_eq!(addr.depth(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_child_reads_the_same_mailbox() {
        let (addr, mailbox) = mailbox::<(u32, Reply<u32>)>("test", 8);
        let (health, stop) = (Health::default(), CancellationToken::new());
        let mut supervisor = Supervisor::new("node", health.clone(), stop.clone());
        supervisor.spawn(ChildSpec {
            name: "doubler".into(),
            limit: RestartLimit::default(),
            essential: true,
            start: Box::new(move || {
                let mailbox = mailbox.clone();
                async move {
                    let mut lease = mailbox.open().ok_or("mailbox is taken")?;
                    let mut batch = Vec::new();
                    while lease.recv_many(&mut batch, 1).await > 0 {
                        for (n, reply) in batch.drain(..) {
                            assert!(n != 13, "unlucky");
                            let _gone = reply.send(n * 2);
                        }
                    }
                    Ok(())
                }
                .boxed()
            }),
        });
        let within = Duration::from_secs(60);
        assert_eq!(addr.ask(|r| (1, r), within).await, Ok(2));
        assert_eq!(addr.ask(|r| (13, r), within).await, Err(AskError::Stopped("test")));
        assert_eq!(addr.ask(|r| (4, r), within).await, Ok(8));
        assert!(health.is_ready());
        for _ in 0..3 {
            let _failed = addr.ask(|r| (13, r), within).await;
        }
        stop.cancelled().await;
        assert!(!health.is_ready(), "{:?}", health.report());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_outside_the_window_are_forgotten() {
        let starts = Arc::new(AtomicUsize::new(0));
        let count = starts.clone();
        let stop = CancellationToken::new();
        let mut supervisor = Supervisor::new("node", Health::default(), stop.clone());
        supervisor.spawn(ChildSpec {
            name: "slow failure".into(),
            limit: RestartLimit { failures_max: 1, window: Duration::from_secs(5), ..RestartLimit::default() },
            essential: true,
            start: Box::new(move || {
                let count = count.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(8)).await;
                    if count.fetch_add(1, Ordering::SeqCst) == 9 { Ok(()) } else { Err("again".into()) }
                }
                .boxed()
            }),
        });
        supervisor.join(Duration::from_secs(600)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 10);
        assert!(!stop.is_cancelled());
    }
}
