//! Sends each partition's slice to its replicas and waits for a majority of each.
//!
//! One look at the ring per request: the partitions of the tenant's shard, each with its replica set and epoch. While a
//! set is being replaced by another, each of the two must have its majority. A slow or dead replica does not slow the
//! request once the others are a majority; what was sent to it is on its way all the same. Without a majority the answer
//! comes as soon as that is certain. A set that changes meanwhile is looked up again, unless it had its majority.

use std::sync::Arc;
use std::time::Duration;

use engram_model::Class;
use engram_model::batch::WriteBatch;
use engram_model::place::{Epoch, NodeId, PartitionId, Sets, partition_of, tenant_partitions};
use engram_model::tenant::TenantId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::error::{Error, Stage};
use crate::meta::{Meta, RingView, TenantView};
use crate::peer::{Append, Appended, Peers};

/// One admitted request.
pub struct Slices<'a> {
    /// Whose data.
    pub tenant: &'a TenantId,
    /// The tenant's limits and shard.
    pub config: &'a TenantView,
    /// The request.
    pub batch: &'a Arc<WriteBatch>,
    /// Which of its series were admitted.
    pub keep: &'a [u32],
    /// The memory the request takes, see [`Append::memory`].
    pub memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// Stores the admitted series and all metadata of a request on a majority of each partition's replicas.
///
/// # Errors
/// Unavailable or Timeout when some partition has no majority in time. Other partitions' slices may be stored then.
///
/// # Cancel safety
/// Dropping the future leaves it open which slices are stored; replicas finish what they have begun.
pub async fn distribute(
    meta: &Meta,
    peers: &Peers,
    Slices { tenant, config, batch, keep, memory }: Slices<'_>,
    within: Duration,
) -> Result<Appended, Error> {
    let ring = meta.ring();
    let partitions = tenant_partitions(tenant, ring.partition_count(), config.shard_size);
    let mut slices: Vec<Vec<u32>> = vec![Vec::new(); partitions.len()];
    if let [only] = slices.as_mut_slice() {
        only.extend_from_slice(keep);
    } else {
        for series in keep {
            slices[partition_of(batch.series[*series as usize].hash, &partitions)].push(*series);
        }
    }
    let mut writes = FuturesUnordered::new();
    for (i, (partition, picks)) in partitions.iter().zip(slices).enumerate() {
        // The first partition of a tenant's order is in every shard of it: that one keeps the metadata.
        let metadata = i == 0 && !batch.metadata.is_empty();
        if picks.is_empty() && !metadata {
            continue;
        }
        let request = Append {
            tenant: tenant.clone(),
            limits: config.limits.clone(),
            partition: *partition,
            epoch: Epoch::default(),
            batch: batch.clone(),
            picks: Arc::new(picks),
            metadata,
            memory: memory.clone(),
            repair: false,
            as_of: 0,
            packed: Arc::default(),
        };
        writes.push(store(meta, peers, ring.clone(), request, within));
    }
    let mut total = Appended::default();
    while let Some(one) = writes.next().await {
        let one = one?;
        total.samples += one.samples;
        total.histograms += one.histograms;
        total.exemplars += one.exemplars;
        total.exemplars_dropped += one.exemplars_dropped;
        total.refused.merge(one.refused);
    }
    Ok(total)
}

/// One partition's slice. What is stored already is found stored.
async fn store(
    meta: &Meta,
    peers: &Peers,
    ring: Arc<RingView>,
    request: Append,
    within: Duration,
) -> Result<Appended, Error> {
    let append = |node, epoch, left| {
        // The index is that of the newest view: it shows the tenant, which this request may have made.
        let attempt = Append { epoch, as_of: meta.applied(), ..request.clone() };
        async move { peers.replica(node)?.append(attempt, left).await }
    };
    on_majority(meta, ring, request.partition, within, append).await
}

/// Asks the replicas of one partition: as long as its replica set changes under that, those of the newer one again.
/// `ask` is given a replica, the epoch and the time that is left.
pub(super) async fn on_majority<F: Future<Output = Result<Appended, Error>>>(
    meta: &Meta,
    mut ring: Arc<RingView>,
    partition: PartitionId,
    within: Duration,
    ask: impl Fn(NodeId, Epoch, Duration) -> F,
) -> Result<Appended, Error> {
    let until = Instant::now() + within;
    loop {
        let set = ring.replicas(partition).ok_or_else(|| {
            Error::unavailable(format!("partition {} has no replicas: the node is still starting", partition.0))
        })?;
        let sets = Sets::new(&set.replicas, ring.next(partition));
        let (epoch, left) = (set.epoch, until.saturating_duration_since(Instant::now()));
        let newer = Epoch(epoch.0.saturating_add(1));
        let known = async {
            if meta.epoch_reached(partition, newer, left).await.is_err() {
                // It does not become known in time: the answers themselves are all there is.
                std::future::pending::<()>().await;
            }
        };
        let error = match quorum(partition, &sets, known, |node| ask(node, epoch, left)).await {
            Err(error) if error.stage == Stage::Stale => error,
            done => return done,
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || meta.epoch_reached(partition, newer, left).await.is_err() {
            return Err(error);
        }
        ring = meta.ring();
    }
}

/// One partition under one replica set: all replicas at once, the answer when each set has its majority, or as soon as
/// it cannot have it any more. What any replica of the majority refused counts as refused ([`of_both`]): a sample is
/// promised only when all of these have stored it.
///
/// A replica that knows a newer set counts as one that fails: a majority of this set is one all the same, for nobody is
/// complete in the newer one without having asked a majority of this one for what it had stored before. Who has none by
/// the time that `newer` is known here asks the newer set.
async fn quorum<F: Future<Output = Result<Appended, Error>>>(
    partition: PartitionId,
    sets: &Sets,
    newer: impl Future<Output = ()>,
    append: impl Fn(NodeId) -> F,
) -> Result<Appended, Error> {
    let append = &append;
    let mut newer = std::pin::pin!(newer);
    let mut answers: FuturesUnordered<_> = sets.nodes().map(|node| async move { (node, append(node).await) }).collect();
    let (mut good, mut bad, mut stored) = (Vec::new(), Vec::new(), None::<Appended>);
    let (mut why, mut stale) = (Vec::new(), None);
    loop {
        let (node, answer) = tokio::select! {
            biased;
            answer = answers.next() => match answer {
                Some(answer) => answer,
                None => break,
            },
            () = newer.as_mut(), if stale.is_some() => break,
        };
        match answer {
            Ok(done) => {
                good.push(node);
                stored = Some(stored.map_or_else(|| done.clone(), |have| of_both(have, &done)));
                #[cfg(feature = "mutants")]
                if engram_model::mutant::Mutant::MajorityOfOne.lives() {
                    return Ok(stored.unwrap_or_default());
                }
                if sets.have_majority(&good) {
                    return Ok(stored.unwrap_or_default());
                }
            }
            Err(error) => {
                bad.push(node);
                if error.stage == Stage::Stale {
                    stale = Some(error);
                } else {
                    why.push(error);
                }
                if sets.cannot_have_majority(&bad) {
                    break;
                }
            }
        }
    }
    Err(stale.unwrap_or_else(|| no_majority(partition, sets, &why)))
}

/// What two replicas have both stored of one slice. Refusals that read the same are taken to be of the same samples;
/// others to be of different ones, as when each replica's room was taken by another series.
fn of_both(mut have: Appended, other: &Appended) -> Appended {
    if have.refused == other.refused {
        return have;
    }
    let all = have.samples + have.histograms + have.refused.count;
    have.refused.merge(other.refused.clone());
    have.refused.at_most(all);
    let left = all - have.refused.count;
    have.samples = have.samples.min(other.samples).min(left);
    have.histograms = have.histograms.min(other.histograms).min(left - have.samples);
    have
}

fn no_majority(partition: PartitionId, sets: &Sets, why: &[Error]) -> Error {
    if let [only] = why
        && sets.nodes().count() == 1
    {
        return only.clone();
    }
    let unknown = why.iter().any(|error| error.class == Class::Timeout);
    let texts: Vec<&str> = why.iter().map(|error| error.message.as_str()).collect();
    let text = format!(
        "partition {} has no majority of its {} replicas: {}",
        partition.0,
        sets.nodes().count(),
        texts.join("; ")
    );
    Error::new(if unknown { Class::Timeout } else { Class::Unavailable }, text)
}

#[cfg(test)]
mod tests;
