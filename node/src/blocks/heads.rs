//! What the heads of a tenant still hold, by time.
//!
//! Why asked of every replica and not of one: what is decided by it (that a deletion may be forgotten, that a tenant is
//! gone) is wrong as soon as a single head holds a sample. A replica that does not answer is an error, not a no.

use std::sync::Arc;

use engram_model::TimeRange;
use engram_model::digest::{Digest, SLOT_MS};
use engram_model::place::{Sets, tenant_partitions};
use engram_model::tenant::TenantId;

use crate::error::Error;
use crate::meta::Meta;
use crate::peer::{Peers, Select};

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
