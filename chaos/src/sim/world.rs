//! The world of one schedule: its chance, its time, what happened in it, and who lives there.
//!
//! All chance comes from one generator that is asked in the order in which things happen, and things happen in an order
//! that the seed decides: one thread, a clock that moves only when nobody has anything to do. So a seed is a schedule.
//! [`World::note`] folds everything that passes between nodes, disks and clients into one number; two runs of a seed
//! that differ in anything differ in that.

use super::host::{Host, Planted, bucket};
use super::net::Net;
use super::rafts::Rafts;
use crate::history::{Answer, Call, End, Fault, FaultState, History, Micros, Op};
use crate::workload::Numbers;
use engram_model::place::NodeId;
use engram_raft::{Sequence, View};
use engram_storage::object::Store;
use engram_storage::object::faults::Faults;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Wall-clock time at which every schedule begins.
pub(super) const BEGINS_AT: i64 = 1_790_000_000_000;

/// What is folded into the trace.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Sent = 1,
    Lost,
    Synced,
    Began,
    Ended,
    Fault,
    Committed,
    Shown,
    Recovered,
    Mark,
    Leads,
    Full,
}

/// How a schedule is run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// Whether every event is printed.
    pub(super) aloud: bool,
    pub(super) planted: Planted,
    /// Who agrees on the metadata; none: the seed says.
    pub(super) consensus: Option<Agrees>,
}

/// Who agrees on the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Agrees {
    /// One list: what is committed is committed.
    List,
    /// A group of real consensus.
    Raft,
}

impl Agrees {
    /// What the seed says.
    pub(super) fn of(seed: u64) -> Self {
        if seed % 16 == 1 { Self::Raft } else { Self::List }
    }
}

#[derive(Debug)]
struct Trace {
    hash: u64,
    events: u64,
    /// Whether every event is printed, too.
    aloud: bool,
}

/// See the module's text.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) numbers: Numbers,
    pub(super) hosts: Vec<Host>,
    pub(super) net: Net,
    /// The agreed commands, where no group agrees on them.
    pub(super) log: Sequence,
    /// The group that agrees on them, in some schedules.
    pub(super) rafts: Option<Rafts>,
    /// What runs besides nodes and clients.
    pub(super) tasks: Mutex<JoinSet<()>>,
    /// The index at which the cluster was made: no node ever knew less.
    pub(super) founded: u64,
    /// The bucket.
    pub(super) store: Store,
    pub(super) store_faults: Faults,
    pub(super) planted: Planted,
    /// How much the clock of a node is ahead or behind, at most.
    pub(super) clocks_differ_ms: i64,
    began: Instant,
    chance: Mutex<StdRng>,
    trace: Mutex<Trace>,
    history: Mutex<History>,
    /// What must never happen and no checker of histories sees.
    troubles: Mutex<Vec<String>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn new(
        seed: u64,
        numbers: Numbers,
        (hosts, log, rafts): (Vec<Host>, Sequence, Option<Rafts>),
        clocks_differ_ms: i64,
        how: How,
    ) -> Self {
        let net = Net::new(hosts.len());
        let (store, store_faults) = bucket();
        Self {
            founded: log.last(),
            store,
            store_faults,
            planted: how.planted,
            clocks_differ_ms,
            seed,
            numbers,
            hosts,
            net,
            log,
            rafts,
            tasks: Mutex::default(),
            began: Instant::now(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            trace: Mutex::new(Trace { hash: seed, events: 0, aloud: how.aloud }),
            history: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    /// Microseconds since the schedule began.
    pub(super) fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The newest agreed state that any node could know.
    pub(super) fn view(&self) -> Arc<View> {
        self.rafts.as_ref().map_or_else(|| self.log.view(self.log.last()), Rafts::view)
    }

    /// Runs something besides nodes and clients, until the schedule is over.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Ends what runs besides nodes and clients.
    pub(super) fn halt(&self) {
        lock(&self.tasks).abort_all();
    }

    /// A number of the range.
    pub(super) fn below(&self, end: u64) -> u64 {
        lock(&self.chance).random_range(0..end.max(1))
    }

    /// A place in a list of so many.
    pub(super) fn pick(&self, count: usize) -> usize {
        lock(&self.chance).random_range(0..count.max(1))
    }

    /// True in so many of a hundred cases.
    pub(super) fn percent(&self, of_hundred: u64) -> bool {
        self.below(100) < of_hundred
    }

    /// Milliseconds between two bounds.
    pub(super) fn millis(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most.saturating_sub(least) + 1))
    }

    /// The host that has an id.
    pub(super) fn host_of(&self, id: NodeId) -> Option<usize> {
        self.hosts.iter().position(|host| host.id == id)
    }

    /// Folds an event into the trace.
    pub(super) fn note(&self, event: Event, a: u64, b: u64) {
        let now = self.now();
        let mut trace = lock(&self.trace);
        for part in [now, event as u64, a, b] {
            trace.hash = (trace.hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        trace.events += 1;
        if trace.aloud {
            super::say_all(&format!("{:>9.3} {event:?} {a} {b}", crate::check::seconds(now)));
        }
    }

    /// Says something to whoever watches a schedule.
    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        let aloud = lock(&self.trace).aloud;
        if aloud {
            super::say_all(&format!("{:>9.3} {}", crate::check::seconds(self.now()), what()));
        }
    }

    /// The trace so far: its number, and how many events are in it.
    pub(super) fn trace(&self) -> (u64, u64) {
        let trace = lock(&self.trace);
        (trace.hash, trace.events)
    }

    pub(super) fn begin(&self, node: usize, call: Call) -> usize {
        let node = u32::try_from(node).unwrap_or(u32::MAX);
        let why = "it never ended".to_owned();
        let op = Op { node, call, began: self.now(), ended: None, end: End::Unknown, answer: None, why };
        let at = {
            let mut history = lock(&self.history);
            history.ops.push(op);
            history.ops.len() - 1
        };
        self.note(Event::Began, at as u64, u64::from(node));
        at
    }

    pub(super) fn end(&self, op: usize, end: End, answer: Option<Answer>, why: &str) {
        self.note(Event::Ended, op as u64, end as u64);
        if !why.is_empty() {
            self.tell(|| format!("operation {op}: {why}"));
        }
        let now = self.now();
        if let Some(op) = lock(&self.history).ops.get_mut(op) {
            (op.ended, op.end, op.answer, op.why) = (Some(now), end, answer, why.to_owned());
        }
    }

    pub(super) fn fault(&self, name: String, state: FaultState) {
        self.note(Event::Fault, state as u64, name.len() as u64);
        self.tell(|| format!("{state:?}: {name}"));
        let fault = Fault { at: self.now(), name, state, why: String::new() };
        lock(&self.history).faults.push(fault);
    }

    pub(super) fn mark(&self, name: &str) {
        self.note(Event::Mark, name.len() as u64, 0);
        self.tell(|| format!("--- {name}"));
        let at = self.now();
        lock(&self.history).marks.push((at, name.to_owned()));
    }

    /// Notes what must never happen.
    pub(super) fn trouble(&self, what: String) {
        self.tell(|| format!("TROUBLE {what}"));
        lock(&self.troubles).push(what);
    }

    /// What was seen, and what must never happen and did.
    pub(super) fn finish(&self) -> (History, Vec<String>) {
        (std::mem::take(&mut *lock(&self.history)), std::mem::take(&mut *lock(&self.troubles)))
    }
}

/// A world as its tasks hold it.
pub(super) type Shared = Arc<World>;
