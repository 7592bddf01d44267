//! A replica on another node: the port of [`engram_node::peer`] over the simulated network, to the very door that a
//! real node opens to others ([`Fenced`](engram_node::grpc::ingest::fenced::Fenced)).
//!
//! What is not here: bytes. Requests and answers pass as values; how they are written down is tested elsewhere.

use super::host::Planted;
use super::world::Shared;
use engram_model::Labels;
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::sample::Metadata;
use engram_model::series::Series;
use engram_model::tenant::TenantId;
use engram_node::error::Error;
use engram_node::peer::{
    Append, Appended, Counts, Exemplars, Found, HeldWindows, PartitionView, Replica, Select, SetAside, SlotDigests,
    Summed, Summing, Ways,
};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// When a connection that has gone silent is given up: the pings of a real one.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// How long a node that failed is not called by those who have a choice.
const REST: Duration = Duration::from_millis(300);

/// The ways from one node to the others.
pub(super) struct Roads {
    world: Shared,
    from: usize,
    /// When calls failed.
    failed: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

impl Roads {
    pub(super) fn new(world: &Shared, from: usize) -> Self {
        Self { world: world.clone(), from, failed: Arc::default() }
    }
}

impl Ways for Roads {
    fn replica(&self, node: NodeId) -> Result<Option<Arc<dyn Replica>>, Error> {
        let Some(to) = self.world.host_of(node) else { return Ok(None) };
        let (world, from, failed) = (self.world.clone(), self.from, self.failed.clone());
        Ok(Some(Arc::new(Far { world, from, to, failed })))
    }

    fn is_well(&self, node: NodeId) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(&node).is_none_or(|at| at.elapsed() > REST)
    }

    fn is_far(&self, node: NodeId) -> bool {
        self.world.host_of(node) != Some(self.from)
    }
}

struct Far {
    world: Shared,
    from: usize,
    to: usize,
    failed: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

impl Far {
    /// Carries a request there, has it served, carries the answer back. Whoever is there dies with what it serves.
    fn call<T: Send + 'static>(
        &self,
        within: Duration,
        serve: impl Fn(Arc<dyn Replica>) -> BoxFuture<'static, Result<T, Error>> + Send + Sync + 'static,
    ) -> BoxFuture<'_, Result<T, Error>> {
        let (world, from, to) = (self.world.clone(), self.from, self.to);
        async move {
            let answered = tokio::time::timeout(within, carry(&world, (from, to), serve)).await;
            let silent = || Error::new(Class::Timeout, format!("node {to} does not answer node {from}"));
            let answer = answered.unwrap_or_else(|_| Err(silent()));
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            match &answer {
                Err(error) if matches!(error.class, Class::Timeout | Class::Unavailable) => {
                    failed.insert(self.world.hosts[to].id, Instant::now());
                }
                _ => drop(failed.remove(&self.world.hosts[to].id)),
            }
            drop(failed);
            answer
        }
        .boxed()
    }
}

async fn carry<T: Send + 'static>(
    world: &Shared,
    (from, to): (usize, usize),
    serve: impl Fn(Arc<dyn Replica>) -> BoxFuture<'static, Result<T, Error>> + Send + Sync + 'static,
) -> Result<T, Error> {
    let Some(takes) = world.net.pass(world, from, to) else { return std::future::pending().await };
    tokio::time::sleep(takes).await;
    let unreachable = || Error::unavailable(format!("node {to} cannot be reached from node {from}"));
    let Some(life) = world.hosts[to].life() else {
        // Nobody listens: the machine says so, if the way back is open.
        let Some(takes) = world.net.pass(world, to, from) else { return std::future::pending().await };
        tokio::time::sleep(takes).await;
        return Err(unreachable());
    };
    let (reply, answer) = oneshot::channel();
    let again = world.net.doubles(world).then(|| (serve(life.fenced.clone()), world.millis(1, 400)));
    let serving = serve(life.fenced.clone());
    life.spawn(async move {
        // Who asked may have left.
        let _gone = reply.send(serving.await);
    });
    if let Some((second, later)) = again {
        life.spawn(async move {
            tokio::time::sleep(later).await;
            let _nobody_waits = second.await;
        });
    }
    drop(life);
    let Ok(answer) = answer.await else {
        // It died. A process that ends closes its connections, a machine does not.
        if world.percent(50) {
            return Err(Error::new(Class::Timeout, format!("node {to} broke the connection; the outcome is unknown")));
        }
        return std::future::pending().await;
    };
    let Some(takes) = world.net.pass(world, to, from) else { return std::future::pending().await };
    tokio::time::sleep(takes).await;
    answer
}

impl Replica for Far {
    fn append(&self, request: Append, within: Duration) -> BoxFuture<'_, Result<Appended, Error>> {
        let lies = self.world.planted == Planted::FalseAnswer;
        self.call(within, move |replica| {
            let request = request.clone();
            if lies {
                let samples =
                    request.picks.iter().map(|pick| request.batch.series[*pick as usize].samples.range().len());
                let done = Appended { samples: samples.sum::<usize>() as u64, ..Appended::default() };
                return async move { Ok(done) }.boxed();
            }
            async move { replica.append(request, within).await }.boxed()
        })
    }

    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.select(request).await }.boxed()
        })
    }

    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let requests = requests.clone();
            async move { replica.select_all(requests).await }.boxed()
        })
    }

    fn series(&self, request: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.series(request).await }.boxed()
        })
    }

    fn label_names(&self, request: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.label_names(request).await }.boxed()
        })
    }

    fn label_values(&self, request: Select, name: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let (request, name) = (request.clone(), name.clone());
            async move { replica.label_values(request, name).await }.boxed()
        })
    }

    fn metadata(&self, request: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.metadata(request).await }.boxed()
        })
    }

    fn exemplars(&self, request: Select) -> BoxFuture<'_, Result<Exemplars, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.exemplars(request).await }.boxed()
        })
    }

    fn counts(&self, request: Select, max: usize) -> BoxFuture<'_, Result<Counts, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.counts(request, max).await }.boxed()
        })
    }

    fn everything(&self, request: Select) -> BoxFuture<'_, Result<PartitionView, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.everything(request).await }.boxed()
        })
    }

    fn digests(&self, request: Select) -> BoxFuture<'_, Result<SlotDigests, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let request = request.clone();
            async move { replica.digests(request).await }.boxed()
        })
    }

    fn windows(&self, partition: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>> {
        self.call(SILENT_FOR, move |replica| async move { replica.windows(partition).await }.boxed())
    }

    /// A part may break off on its way.
    fn set_aside(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
    ) -> BoxFuture<'_, Result<Option<SetAside>, Error>> {
        let tenant = tenant.clone();
        let whole = self.call(SILENT_FOR, move |replica| {
            let tenant = tenant.clone();
            async move {
                let Some(part) = replica.set_aside(&tenant, partition, number).await? else { return Ok(None) };
                let SetAside { number, window, digests, series } = part;
                let series: Vec<Vec<Series>> = series.try_collect().await?;
                Ok(Some((number, window, digests, series)))
            }
            .boxed()
        });
        async move {
            let Some((number, window, digests, series)) = whole.await? else { return Ok(None) };
            let mut frames: Vec<_> = series.into_iter().flatten().map(|one| Ok(vec![one])).collect();
            if self.world.net.pass(&self.world, self.to, self.from).is_none() {
                frames.truncate(self.world.pick(frames.len()));
                frames.push(Err(Error::unavailable(format!("node {}: the connection broke", self.to))));
            }
            Ok(Some(SetAside { number, window, digests, series: stream::iter(frames).boxed() }))
        }
        .boxed()
    }

    fn known(&self, partition: PartitionId, epoch: Epoch, index: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.call(SILENT_FOR, move |replica| async move { replica.known(partition, epoch, index).await }.boxed())
    }

    fn sum_up(&self, requests: Vec<Select>, summing: Summing) -> BoxFuture<'_, Result<Summed, Error>> {
        let loses = self.world.planted == Planted::LostGroup;
        self.call(SILENT_FOR, move |replica| {
            let (requests, summing) = (requests.clone(), summing.clone());
            async move {
                let mut summed = replica.sum_up(requests, summing).await?;
                if let (true, Summed::Done(partial)) = (loses, &mut summed) {
                    partial.groups.pop();
                }
                Ok(summed)
            }
            .boxed()
        })
    }

    fn inventory(&self, partition: PartitionId, epoch: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>> {
        self.call(SILENT_FOR, move |replica| async move { replica.inventory(partition, epoch).await }.boxed())
    }

    fn digests_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<SlotDigests>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let requests = requests.clone();
            async move { replica.digests_all(requests).await }.boxed()
        })
    }

    fn found_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        self.call(SILENT_FOR, move |replica| {
            let requests = requests.clone();
            async move { replica.found_all(requests).await }.boxed()
        })
    }
}
