//! What heads still hold, by time.
//!
//! Why asked of every replica and not of one: replicas differ for a while, and a window that only one of them has must
//! be sealed too. [`windows`] takes what answers; for [`held`] that is not enough: what is decided by it (that a deletion may be forgotten, that a tenant is
//! gone) is wrong as soon as a single head holds a sample. A replica that does not answer is an error, not a no.

use std::sync::Arc;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::digest::{Digest, SLOT_MS};
use engram_model::place::{PartitionId, Sets, majority, tenant_partitions};
use engram_model::tenant::TenantId;
use futures::future::join_all;

use crate::error::Error;
use crate::meta::Meta;
use crate::peer::{HeldWindows, Peers, Select};

/// How long a replica may take to say what it holds.
const WINDOWS_WITHIN: Duration = Duration::from_secs(10);

/// What each replica of a partition that answers has, by tenant and window.
///
/// # Errors
/// Unavailable when no majority answers: what was acknowledged might be seen by none of those that do.
pub async fn windows(meta: &Meta, peers: &Peers, partition: PartitionId) -> Result<Vec<Vec<HeldWindows>>, Error> {
    let ring = meta.ring();
    let replicas = ring.replicas(partition).map(|set| set.replicas.clone()).unwrap_or_default();
    let asked = replicas.iter().map(|node| async move {
        let asking = async { peers.replica(*node)?.windows(partition).await };
        let late = |_| Error::unavailable(format!("node {} does not answer", node.0));
        tokio::time::timeout(WINDOWS_WITHIN, asking).await.map_err(late)?
    });
    let (mut answers, mut last) = (Vec::new(), None);
    for answer in join_all(asked).await {
        match answer {
            Ok(held) => answers.push(held),
            Err(error) => last = Some(error),
        }
    }
    if answers.len() >= majority(replicas.len()) {
        return Ok(answers);
    }
    let why = last.map(|error| error.message).unwrap_or_default();
    Err(Error::unavailable(format!("no majority of the replicas of partition {} answers: {why}", partition.0)))
}

/// The slots of time of which some head of the tenant holds samples, in no order.
///
/// # Errors
/// Those of the replicas.
pub async fn held(meta: &Meta, peers: &Peers, tenant: &TenantId) -> Result<Vec<TimeRange>, Error> {
    let (ring, view) = (meta.ring(), meta.tenant(tenant));
    let mut held = Vec::new();
    for partition in tenant_partitions(tenant, ring.partition_count(), view.shard_size_largest) {
        let Some(set) = ring.replicas(partition) else { continue };
        // Who takes the partition over holds samples too.
        for node in Sets::new(&set.replicas, ring.next(partition)).nodes() {
            let request = Select {
                tenant: tenant.clone(),
                partition,
                epoch: set.epoch,
                range: TimeRange::ALL,
                matchers: Arc::default(),
                series_max: 0,
                wanted: Arc::default(),
                as_of: u64::MAX,
            };
            let slots = peers.replica(node)?.digests(request).await?;
            let with_samples = slots.into_iter().filter(|(_, digest)| *digest != Digest::EMPTY);
            held.extend(with_samples.map(|(start, _)| TimeRange::new(start, start.saturating_add(SLOT_MS))));
        }
    }
    Ok(held)
}
