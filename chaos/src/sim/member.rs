//! One node's part in the metadata: it learns late, proposes over the network, and may be told nothing for long.
//!
//! In some schedules it is a part of a real group ([`super::rafts`]), and this only tells what that says. In the others
//! agreement itself is given ([`engram_raft::Sequence`]): a command that reaches a leader who can speak with a majority
//! is committed, by the product's own `apply`. What is simulated then is what nodes make of it: a view that lags, another
//! one on each node, one that goes back over a crash, answers that are lost after the commit.

use super::host::Host;
use super::rafts;
use super::world::{Event, Shared, World};
use engram_model::place::NodeId;
use engram_raft::group::{Committed, Status};
use engram_raft::{Consensus, Error, Group, Hint, Proposal, View};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pause before a proposal that was not appended is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How long a connection to the leader may be silent before it is given up: the pings of a real one.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// How often a node that the leader cannot reach is tried again.
const HEARTBEAT: Duration = Duration::from_millis(150);

struct State {
    view: Arc<View>,
    /// Whoever waits has a channel of its own: those of one are woken in an order that chance of the runtime decides.
    watchers: Vec<watch::Sender<Arc<View>>>,
}

pub(super) struct Member {
    world: Shared,
    at: usize,
    group: Option<Arc<Group>>,
    state: Mutex<State>,
}

impl Member {
    /// A node that has applied entries of the list up to `index`.
    pub(super) fn new(world: &Shared, at: usize, index: u64) -> Self {
        Self::of(world, at, (None, world.log.view(index)))
    }

    /// A node that takes part in a group.
    pub(super) fn of_group(world: &Shared, at: usize, group: Arc<Group>) -> Self {
        let view = group.watch().borrow().clone();
        Self::of(world, at, (Some(group), view))
    }

    fn of(world: &Shared, at: usize, (group, view): (Option<Arc<Group>>, Arc<View>)) -> Self {
        Self { world: world.clone(), at, group, state: Mutex::new(State { view, watchers: Vec::new() }) }
    }

    /// Its part of the group, where there is one.
    pub(super) fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The applied index.
    pub(super) fn shown(&self) -> u64 {
        self.state().view.applied.unwrap_or(0)
    }

    fn host(&self) -> &Host {
        &self.world.hosts[self.at]
    }

    /// Shows a view, unless it is older than what is shown.
    fn show(&self, view: Arc<View>) {
        let mut state = self.state();
        let index = view.applied.unwrap_or(0);
        if state.view.applied.unwrap_or(0) >= index {
            return;
        }
        state.view = view.clone();
        state.watchers.retain(|watcher| !watcher.is_closed());
        for watcher in &state.watchers {
            watcher.send_replace(view.clone());
        }
        drop(state);
        self.world.note(Event::Shown, self.at as u64, index);
    }

    /// Learns what is committed, when the leader can tell it.
    pub(super) async fn follow(self: Arc<Self>) {
        if let (Some(group), Some(rafts)) = (&self.group, &self.world.rafts) {
            let mut views = group.watch();
            loop {
                let view = views.borrow_and_update().clone();
                rafts.shows(&self.world, self.at, &view);
                self.show(view);
                if views.changed().await.is_err() {
                    return;
                }
            }
        }
        loop {
            let last = self.world.log.last();
            if last <= self.shown() {
                self.host().news.notified().await;
                continue;
            }
            let from = leader(&self.world).filter(|lead| self.world.net.is_open(self.at, *lead));
            let Some(takes) = from.and_then(|lead| self.world.net.pass(&self.world, lead, self.at)) else {
                tokio::time::sleep(HEARTBEAT).await;
                continue;
            };
            tokio::time::sleep(takes + self.host().lag()).await;
            self.show(self.world.log.view(last));
        }
    }

    async fn ask<T>(&self, within: Duration, at_leader: impl Fn(usize) -> Result<T, Error> + Send) -> Result<T, Error> {
        let until = Instant::now() + within;
        loop {
            let lead = leader(&self.world);
            let Some(lead) = lead.filter(|lead| self.world.net.is_open(self.at, *lead)) else {
                if Instant::now() + RETRY_AFTER >= until {
                    return Err(Error::NotLeader { leader: None });
                }
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            };
            let lost = || Error::Unknown { why: "no answer of the leader".to_owned() };
            let given_up = until.min(Instant::now() + SILENT_FOR);
            let there = self.world.net.pass(&self.world, self.at, lead);
            let Some(takes) = there else {
                tokio::time::sleep_until(given_up).await;
                return Err(lost());
            };
            // There, and to disk with a majority.
            tokio::time::sleep(takes + self.world.millis(1, 6)).await;
            if leader(&self.world) != Some(lead) {
                tokio::time::sleep(RETRY_AFTER).await;
                if self.world.percent(50) || Instant::now() >= until {
                    return Err(lost());
                }
                continue;
            }
            let done = at_leader(lead);
            let back = self.world.net.pass(&self.world, lead, self.at);
            let Some(takes) = back.filter(|takes| Instant::now() + *takes < given_up) else {
                tokio::time::sleep_until(given_up).await;
                return Err(lost());
            };
            tokio::time::sleep(takes).await;
            return done;
        }
    }

    async fn shown_at(&self, index: u64, within: Duration) -> Result<Arc<View>, Error> {
        let mut views = self.watch();
        match tokio::time::timeout(within, views.wait_for(|view| view.applied >= Some(index))).await {
            Ok(Ok(view)) => Ok(view.clone()),
            _ => Err(Error::NoQuorum { why: format!("entry {index} is not applied here yet") }),
        }
    }
}

/// Who leads: whom the group chose; without one the first node that lives and speaks with a majority, both ways.
pub(super) fn leader(world: &World) -> Option<usize> {
    if world.rafts.is_some() {
        return rafts::leader(world);
    }
    let count = world.hosts.len();
    let speaks = |at: usize| {
        let both = |other: &usize| world.net.is_open(at, *other) && world.net.is_open(*other, at);
        (0..count).filter(|other| world.hosts[*other].is_up() && both(other)).count() * 2 > count
    };
    (0..count).find(|at| world.hosts[*at].is_up() && speaks(*at))
}

/// Tells all nodes that there is something new.
pub(super) fn announce(world: &World) {
    for host in &world.hosts {
        host.news.notify_one();
    }
}

impl Consensus for Member {
    fn id(&self) -> NodeId {
        self.host().id
    }

    fn propose(&self, proposal: Proposal, within: Duration) -> BoxFuture<'_, Result<Committed, Error>> {
        async move {
            if let (Some(group), Some(rafts)) = (&self.group, &self.world.rafts) {
                let done = group.propose(proposal.clone(), within).await;
                if let Ok(committed) = &done {
                    rafts.acknowledged(&self.world, committed.index, &proposal);
                    self.world.note(Event::Committed, committed.index, self.at as u64);
                }
                return done;
            }
            self.ask(within, move |lead| {
                let at = self.world.hosts[lead].clock.now();
                let done = self.world.log.commit(proposal.clone(), at);
                self.world.note(Event::Committed, self.world.log.last(), u64::from(done.is_ok()));
                announce(&self.world);
                done
            })
            .await
        }
        .boxed()
    }

    fn linearizable(&self, within: Duration) -> BoxFuture<'_, Result<Arc<View>, Error>> {
        async move {
            let until = Instant::now() + within;
            if let Some(group) = &self.group {
                let view = group.linearizable(within).await?;
                return self.shown_at(view.applied.unwrap_or(0), until.saturating_duration_since(Instant::now())).await;
            }
            let no_quorum = |error: Error| Error::NoQuorum { why: error.to_string() };
            let index = self.ask(within, |_| Ok(self.world.log.last())).await.map_err(no_quorum)?;
            self.shown_at(index, until.saturating_duration_since(Instant::now())).await
        }
        .boxed()
    }

    fn applied(&self, index: u64, within: Duration) -> BoxFuture<'_, Result<Arc<View>, Error>> {
        self.shown_at(index, within).boxed()
    }

    fn watch(&self) -> watch::Receiver<Arc<View>> {
        let mut state = self.state();
        let (watcher, views) = watch::channel(state.view.clone());
        state.watchers.retain(|watcher| !watcher.is_closed());
        state.watchers.push(watcher);
        views
    }

    fn status(&self) -> Status {
        if let Some(group) = &self.group {
            return group.status();
        }
        let lead = leader(&self.world);
        let hint = |at: usize| Hint { id: self.world.hosts[at].id, address: format!("host-{at}") };
        let shown = Some(self.shown());
        Status {
            id: self.host().id,
            cluster_id: "sim".to_owned(),
            term: 1,
            role: if lead == Some(self.at) { "leader" } else { "follower" },
            leader: lead.map(hint),
            last_log: shown,
            committed: shown,
            applied: shown,
            snapshot: None,
            purged: None,
            quorum_silent_ms: None,
            voters: self.world.hosts.iter().map(|host| host.id).collect(),
            learners: Vec::new(),
            failed: None,
        }
    }

    fn progress(&self) -> BTreeMap<NodeId, u64> {
        let last = self.world.log.last();
        self.world.hosts.iter().map(|host| (host.id, last)).collect()
    }

    fn add_learner<'a>(&'a self, _: NodeId, _: &'a str, _: Duration) -> BoxFuture<'a, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn forget_learner(&self, _: NodeId, _: Duration) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn set_voters(&self, _: BTreeSet<NodeId>, _: Duration) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn transfer_leader(&self, _: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn backup(&self, _: Duration) -> BoxFuture<'_, Result<std::fs::File, Error>> {
        async { Err(Error::Stopped { why: "a simulation has no files".to_owned() }) }.boxed()
    }
}
