//! Who may evaluate next: tenants in turn, queries of one tenant in order.
//!
//! Why not one line for all: a tenant with a hundred waiting dashboards would make everybody else wait behind them.
//! Each tenant has its own line of bounded length; free places go round the lines.

use std::collections::{BTreeMap, VecDeque};
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

#[derive(Default)]
struct Lines {
    running: usize,
    waiting: BTreeMap<TenantId, VecDeque<oneshot::Sender<Place>>>,
    /// The tenant served last: the next one in order of name has the turn.
    last: Option<TenantId>,
}

/// The right to run one query; goes to the next in line when dropped.
pub struct Place(Option<Arc<Shared>>);

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
            if lines.running < self.0.running_max && lines.waiting.is_empty() {
                lines.running += 1;
                return Ok(Place(Some(self.0.clone())));
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
    /// The next waiter whose client is still there, tenants in turn.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        loop {
            let after = self.last.as_ref().and_then(|last| {
                let bounds = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
                self.waiting.range::<TenantId, _>(bounds).next().map(|(tenant, _)| tenant.clone())
            });
            let tenant = after.or_else(|| self.waiting.keys().next().cloned())?;
            let line = self.waiting.get_mut(&tenant)?;
            let waiter = line.pop_front();
            if line.is_empty() {
                self.waiting.remove(&tenant);
            }
            self.last = Some(tenant);
            if let Some(waiter) = waiter.filter(|w| !w.is_closed()) {
                return Some(waiter);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        loop {
            let next = {
                let mut lines = shared.lines.lock();
                let next = lines.next();
                if next.is_none() {
                    lines.running -= 1;
                }
                next
            };
            let Some(waiter) = next else { return };
            match waiter.send(Place(Some(shared.clone()))) {
                Ok(()) => return,
                // The client left in between: the place is still ours to give.
                Err(mut place) => drop(place.0.take()),
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
}
