//! Sends each partition's slice to its replicas and waits for a majority of each.
//!
//! One look at the ring per request: the partitions of the tenant's shard, each with its replica set and epoch. A slow
//! or dead replica does not slow the request once the others are a majority.

use std::sync::Arc;
use std::time::Duration;

use engram_model::batch::WriteBatch;
use engram_model::place::{majority, partition_of, tenant_partitions};
use engram_model::tenant::TenantId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::Error;
use crate::meta::{Meta, TenantView};
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
        let set = ring.replicas(*partition).ok_or_else(|| {
            Error::unavailable(format!("partition {} has no replicas: the node is still starting", partition.0))
        })?;
        let request = Append {
            tenant: tenant.clone(),
            limits: config.limits.clone(),
            partition: *partition,
            epoch: set.epoch,
            batch: batch.clone(),
            picks: Arc::new(picks),
            metadata,
            memory: memory.clone(),
        };
        writes.push(quorum(peers, set.replicas.clone(), request, within));
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

/// One partition: all replicas at once, the answer when a majority has answered well. Counts are those of the replica
/// that refused least: the others lack what it knows already.
async fn quorum(
    peers: &Peers,
    replicas: Vec<engram_model::place::NodeId>,
    request: Append,
    within: Duration,
) -> Result<Appended, Error> {
    let need = majority(replicas.len());
    let mut answers: FuturesUnordered<_> = replicas
        .iter()
        .map(|node| {
            let (node, request) = (*node, request.clone());
            async move { peers.replica(node)?.append(request, within).await }
        })
        .collect();
    let (mut best, mut good, mut last_error): (Option<Appended>, usize, Option<Error>) = (None, 0, None);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(done) => {
                good += 1;
                if best.as_ref().is_none_or(|have| done.refused.count < have.refused.count) {
                    best = Some(done);
                }
                if good == need {
                    return Ok(best.unwrap_or_default());
                }
            }
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.unwrap_or_else(|| Error::unavailable(format!("partition {} has no replicas", request.partition.0))))
}
