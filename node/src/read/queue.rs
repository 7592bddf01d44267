//! Who may evaluate next: tenants in turn, queries of one tenant in order.
//!
//! Why not one line for all: a tenant with a hundred waiting dashboards would make everybody else wait behind them.
//! Each tenant has its own line of bounded length; free places go round the lines.
//!
//! Why a tenant may not take the last places: its queries may each run for minutes, and nobody else could begin one.
//! It may run [`SHARE`] times as many as there are free places (of 20: one tenant 16, two of them 9 each), so that
//! some stay free whoever comes, and a tenant that is alone loses little.
//!
//! Source: dynamic thresholds, Choudhury and Hahne, IEEE/ACM Transactions on Networking 6 (2), 1998.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use engram_model::error::Class;
use engram_model::tenant::TenantId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Error;

/// Places for running queries, and the lines before them. Cheap to clone.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    running_max: usize,
    waiting_max: usize,
    lines: Mutex<Lines>,
}

/// A tenant may run this many queries for each place that is free.
const SHARE: usize = 4;

#[derive(Default)]
struct Lines {
    running: usize,
    running_of: BTreeMap<TenantId, usize>,
    /// Lines are never empty. Who waits could not run: somebody runs, and gives the turn on when done.
    waiting: BTreeMap<TenantId, VecDeque<oneshot::Sender<Place>>>,
    /// The tenant served last: the next one in order of name has the turn.
    last: Option<TenantId>,
}

/// The right to run one query; goes to the next in line when dropped.
pub struct Place(Option<(Arc<Shared>, TenantId)>);

impl Queue {
    /// `running_max` queries at once, at most `waiting_max` of one tenant in line.
    #[must_use]
    pub fn new(running_max: usize, waiting_max: usize) -> Self {
        Self(Arc::new(Shared { running_max: running_max.max(1), waiting_max, lines: Mutex::default() }))
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// Limited when the tenant's line is full.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line; a place given in that moment goes to the next.
    pub async fn enter(&self, tenant: &TenantId) -> Result<Place, Error> {
        let turn = {
            let mut lines = self.0.lines.lock();
            if !lines.waiting.contains_key(tenant) && lines.may_run(tenant, self.0.running_max) {
                lines.begin(tenant);
                return Ok(Place(Some((self.0.clone(), tenant.clone()))));
            }
            let line = lines.waiting.entry(tenant.clone()).or_default();
            line.retain(|waiter| !waiter.is_closed());
            if line.len() >= self.0.waiting_max {
                return Err(Error::new(
                    Class::Limited,
                    format!(
                        "tenant {tenant}: too many outstanding queries, limit is {} (query.queue-max)",
                        self.0.waiting_max
                    ),
                ));
            }
            let (give, turn) = oneshot::channel();
            line.push_back(give);
            turn
        };
        turn.await.map_err(|_| Error::unavailable("the node is stopping"))
    }

    /// How many run and how many wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let lines = self.0.lines.lock();
        (lines.running, lines.waiting.values().map(VecDeque::len).sum())
    }
}

impl Lines {
    fn may_run(&self, tenant: &TenantId, running_max: usize) -> bool {
        let free = running_max.saturating_sub(self.running);
        self.running_of.get(tenant).copied().unwrap_or(0) < SHARE * free
    }

    fn begin(&mut self, tenant: &TenantId) {
        self.running += 1;
        *self.running_of.entry(tenant.clone()).or_default() += 1;
    }

    fn end(&mut self, tenant: &TenantId) {
        self.running -= 1;
        if let Some(count) = self.running_of.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.running_of.remove(tenant);
            }
        }
    }

    /// The next waiter that may run and whose client is still there, tenants in turn; its query has begun.
    fn next(&mut self, running_max: usize) -> Option<(TenantId, oneshot::Sender<Place>)> {
        let turns: Vec<TenantId> = match &self.last {
            None => self.waiting.keys().cloned().collect(),
            Some(last) => {
                let after = self.waiting.range::<TenantId, _>((Bound::Excluded(last), Bound::Unbounded));
                let until = self.waiting.range::<TenantId, _>((Bound::Unbounded, Bound::Included(last)));
                after.chain(until).map(|(tenant, _)| tenant.clone()).collect()
            }
        };
        for tenant in turns {
            if !self.may_run(&tenant, running_max) {
                continue;
            }
            let Some(line) = self.waiting.get_mut(&tenant) else { continue };
            let waiter = std::iter::from_fn(|| line.pop_front()).find(|waiter| !waiter.is_closed());
            if line.is_empty() {
                self.waiting.remove(&tenant);
            }
            if let Some(waiter) = waiter {
                self.begin(&tenant);
                self.last = Some(tenant.clone());
                return Some((tenant, waiter));
            }
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((shared, tenant)) = self.0.take() else { return };
        let mut ended = Some(tenant);
        loop {
            let next = {
                let mut lines = shared.lines.lock();
                if let Some(tenant) = ended.take() {
                    lines.end(&tenant);
                }
                lines.next(shared.running_max)
            };
            let Some((tenant, waiter)) = next else { return };
            if let Err(mut place) = waiter.send(Place(Some((shared.clone(), tenant)))) {
                // The client left in between: the place is still ours to give.
                ended = place.0.take().map(|(_, tenant)| tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tenants_take_turns_and_lines_are_bounded() {
        let queue = Queue::new(1, 2);
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let first = queue.enter(&a).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for tenant in [&a, &a, &b] {
            let (queue, tenant, order) = (queue.clone(), tenant.clone(), order.clone());
            tasks.spawn(async move {
                let _place = queue.enter(&tenant).await.unwrap();
                order.lock().push(tenant.to_string());
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(queue.load(), (1, 3));
        assert_eq!(queue.enter(&a).await.err().map(|e| e.class), Some(Class::Limited));
        drop(first);
        while tasks.join_next().await.is_some() {}
        assert_eq!(*order.lock(), ["a", "b", "a"]);
        assert_eq!(queue.load(), (0, 0));
    }

    #[tokio::test]
    async fn who_leaves_the_line_loses_no_place() {
        let queue = Queue::new(1, 8);
        let tenant = TenantId::anonymous();
        let first = queue.enter(&tenant).await.unwrap();
        {
            let waiting = queue.enter(&tenant);
            futures::pin_mut!(waiting);
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        drop(first);
        assert_eq!(queue.load(), (0, 0));
        assert!(queue.enter(&tenant).await.is_ok());
    }

    #[tokio::test]
    async fn one_tenant_cannot_take_the_last_places() {
        let queue = Queue::new(20, 100);
        let (hog, other) = (TenantId::new("hog").unwrap(), TenantId::new("other").unwrap());
        let mut places = Vec::new();
        for _ in 0..16 {
            places.push(queue.enter(&hog).await.unwrap());
        }
        let waiting = queue.enter(&hog);
        futures::pin_mut!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let others = [queue.enter(&other).await.unwrap(), queue.enter(&other).await.unwrap()];
        assert_eq!(queue.load(), (18, 1));
        drop(others);
        assert!(futures::poll!(waiting.as_mut()).is_pending(), "16 of 20 is its share");
        places.pop();
        assert!(futures::poll!(waiting.as_mut()).is_ready());
    }
}
