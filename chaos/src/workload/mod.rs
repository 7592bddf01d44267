//! The load a cluster is under while it is broken: clients that write, read and configure, and write down what they saw.
//!
//! - `numbered`: samples whose time and value prove who wrote them, and how answers are taken apart
//! - `shape`: which series are histograms, and which end and begin anew
//! - `append`: writers, in order and late, resending what has no known end
//! - `reader`: raw reads, at any node, at any time
//! - `constant`: questions about data that never changes, native histograms among it
//! - `register`: a tenant's configuration as a compare-and-set register
//! - `totals`: range queries in the same words for every tenant, whose answer follows from what was written
//! - `ledger`: what the store says of its blocks at the end, held against the bucket
//! - `held`: what each single replica holds
//! - `flush`: memory goes to blocks while all this happens
//!
//! Each client mostly asks a node of its own, and another one at once when nobody listens there, as a load balancer would. All
//! chance comes from the run's seed.

mod append;
mod constant;
mod flush;
mod held;
mod ledger;
mod numbered;
mod reader;
pub(crate) mod register;
mod shape;
mod totals;

pub(crate) use constant::QUESTIONS;
pub(crate) use held::{held, hold_alike};
pub(crate) use ledger::{digests, flush_all, look};
pub(crate) use numbered::Numbers;
pub(crate) use reader::read;
pub(crate) use totals::{STEPS, WIDTH};

use crate::client::Client;
use crate::cluster::Roster;
use crate::error::Error;
use crate::history::{Answer, Call, End, Recorder};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// How an operation begins to say that nobody took it: it has no effect, and another node was asked instead.
pub(crate) const NOT_REACHED: &str = "not reached";

/// Readers of raw samples.
pub(crate) const READERS: usize = 2;

/// How much of everything.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    pub(crate) registers: u32,
    pub(crate) configurers: usize,
    /// Whether totals are asked and checked.
    pub(crate) totals: bool,
    /// Whether questions about constant data are asked and checked.
    pub(crate) constants: bool,
    /// Mean pause between two flushes of a tenant; none: nobody flushes.
    pub(crate) flush_every: Option<Duration>,
    /// Mean pause of a client between two operations.
    pub(crate) pause: Duration,
}

/// What all clients of a run share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) numbers: Numbers,
    /// The highest number each writer has begun.
    pub(crate) reached: Arc<Vec<AtomicU32>>,
    over: Arc<AtomicBool>,
    pause: Duration,
}

impl Shared {
    pub(crate) fn new(recorder: Arc<Recorder>, roster: Arc<Roster>, numbers: Numbers, size: &Size) -> Self {
        let reached = Arc::new((0..numbers.writers).map(|_| AtomicU32::new(0)).collect());
        Self { recorder, roster, numbers, reached, over: Arc::default(), pause: size.pause }
    }

    /// Whether the clients are to end.
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.recorder.broken().is_some()
    }

    /// The node a client usually asks.
    fn home(&self, client: u32) -> Option<usize> {
        let nodes = self.roster.listed();
        nodes.get(client as usize % nodes.len().max(1)).copied()
    }

    /// Waits as a client does between two operations.
    async fn rest(&self, chance: &mut StdRng) {
        let most = u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX).saturating_mul(2);
        tokio::time::sleep(Duration::from_micros(chance.random_range(0..=most))).await;
    }

    /// Does one thing at `home` or a node at random, at the next one if nobody is there. Each try is an operation of its own.
    async fn somewhere<F: Future<Output = (End, Option<Answer>, String)> + Send>(
        &self,
        chance: &mut StdRng,
        home: Option<usize>,
        call: &Call,
        act: impl Fn(Client) -> F + Send,
    ) -> (End, Option<Answer>) {
        let mut nodes = self.roster.listed();
        nodes.shuffle(chance);
        // Clients have a node of their own and now and then ask another: so a node that answers nobody stops some of
        // them and not, one after the other, all.
        if let Some(at) =
            home.filter(|_| chance.random_bool(0.8)).and_then(|home| nodes.iter().position(|n| *n == home))
        {
            nodes.swap(0, at);
        }
        let mut last = (End::Fail, None);
        for node in nodes {
            let Some(client) = self.roster.client(node) else { continue };
            let op = self.recorder.begin(node, call.clone());
            let (end, answer, why) = act(client).await;
            self.recorder.end(op, end, answer.clone(), &why);
            last = (end, answer);
            if !why.starts_with(NOT_REACHED) {
                break;
            }
        }
        last
    }
}

/// Sorts a failure: nobody took it, or nobody knows. A node that says it is starting has taken nothing: whoever spreads
/// requests over nodes looks at `/-/ready`, which says so too.
fn failure(why: &str) -> (End, String) {
    let nobody = ["Connection refused", "tcp connect error", "the node is starting, see /-/ready"];
    if nobody.iter().any(|text| why.contains(text)) {
        (End::Fail, format!("{NOT_REACHED}: {why}"))
    } else {
        (End::Unknown, why.to_owned())
    }
}

/// All clients of a run.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) shared: Shared,
    clients: JoinSet<()>,
}

impl Load {
    /// Makes the tenants and the registers, then lets all clients begin.
    ///
    /// # Errors
    /// The cluster does not take the configuration.
    pub(crate) async fn start(shared: Shared, size: &Size, seed: u64) -> Result<Self, Error> {
        let (mut chance, mut clients) = (StdRng::seed_from_u64(seed), JoinSet::new());
        append::prepare(&shared).await?;
        if size.constants {
            constant::prepare(&shared).await?;
            clients.spawn(constant::run(shared.clone(), StdRng::seed_from_u64(chance.random())));
        }
        for writer in 0..shared.numbers.writers {
            clients.spawn(append::write(shared.clone(), writer, StdRng::seed_from_u64(chance.random())));
        }
        for _ in 0..READERS {
            clients.spawn(reader::run(shared.clone(), StdRng::seed_from_u64(chance.random())));
        }
        for client in 0..size.configurers {
            let mine = register::Mine { client, clients: size.configurers, registers: size.registers };
            clients.spawn(register::run(shared.clone(), mine, StdRng::seed_from_u64(chance.random())));
        }
        if size.totals {
            clients.spawn(totals::run(shared.clone(), StdRng::seed_from_u64(chance.random())));
        }
        if let Some(every) = size.flush_every {
            clients.spawn(flush::run(shared.clone(), every, StdRng::seed_from_u64(chance.random())));
        }
        Ok(Self { shared, clients })
    }

    /// Lets the clients finish what they are at, and waits for them.
    ///
    /// # Errors
    /// One of them panicked.
    pub(crate) async fn finish(mut self) -> Result<Shared, Error> {
        self.shared.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended?;
        }
        Ok(self.shared)
    }
}
