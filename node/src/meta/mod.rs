//! What the node knows of the agreed metadata, in words of `model`; only this room and the assembly name the raft crate.
//!
//! Reads are local: the last applied view, an `Arc` behind a watch. Changes are proposed to the group. One request
//! takes one [`RingView`] and one [`TenantView`] and uses them to its end. What operators do with tenants: [`tenants`].
//! Blocks, seals, deletions and leases: [`blocks`]. What nodes ask about each other: [`nodes`]. What would happen to
//! replicas: [`plans`].

pub mod blocks;
pub mod nodes;
pub mod plans;
pub mod tenants;

use std::sync::Arc;
use std::time::Duration;

use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId, ReplicaSet};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_raft::{Command, Consensus, Outcome, Proposal, View};
use serde_json::json;
use tokio::sync::watch;

use crate::error::Error;

/// Most leases that are told.
const LEASES_TOLD_MAX: usize = 1_000;

/// What a new tenant gets.
#[derive(Clone, Debug)]
pub struct TenantDefaults {
    /// Its limits.
    pub limits: TenantLimits,
    /// How many partitions it uses; 0: all.
    pub shard_size: u32,
    /// Most tenants of the cluster: a sender cannot make more by inventing names.
    pub tenants_max: u32,
}

/// The door to the metadata. Cheap to clone.
#[derive(Clone)]
pub struct Meta {
    group: Arc<dyn Consensus>,
    views: watch::Receiver<Arc<View>>,
    defaults: Arc<TenantDefaults>,
    /// Tells the leases of this life of the process from those of earlier ones.
    life: u64,
}

/// The ring at one applied index.
#[derive(Clone)]
pub struct RingView(Arc<View>);

impl RingView {
    /// How many partitions the cluster has.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        self.0.cluster.as_ref().map_or(0, |cluster| cluster.partition_count)
    }

    /// Who holds a partition, and since which epoch.
    #[must_use]
    pub fn replicas(&self, partition: PartitionId) -> Option<&ReplicaSet> {
        self.0.partitions.get(&partition).map(|row| &row.current)
    }
}

/// A tenant's configuration at one applied index.
#[derive(Clone, Debug)]
pub struct TenantView {
    /// Its limits.
    pub limits: Arc<TenantLimits>,
    /// How many partitions it uses now; 0: all.
    pub shard_size: u32,
    /// The most it ever used: what reads must cover.
    pub shard_size_largest: u32,
    /// Index of the metadata since which it is that; 0: the tenant does not exist.
    pub grown_at: u64,
    /// Version for compare-and-set; 0: the tenant does not exist.
    pub version: u64,
}

impl Meta {
    /// Reads from and proposes to `group`.
    #[must_use]
    pub fn new(group: Arc<dyn Consensus>, defaults: TenantDefaults) -> Self {
        Self::of_life(group, defaults, uuid::Uuid::new_v4().as_u64_pair().0)
    }

    /// As [`Self::new`]; `life` is a number that no other life of this process, or of any other, has.
    #[must_use]
    pub fn of_life(group: Arc<dyn Consensus>, defaults: TenantDefaults, life: u64) -> Self {
        let views = group.watch();
        Self { group, views, defaults: Arc::new(defaults), life }
    }

    fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    /// The ring as it is now.
    #[must_use]
    pub fn ring(&self) -> Arc<RingView> {
        Arc::new(RingView(self.view()))
    }

    /// The epoch of a partition's replica set.
    #[must_use]
    pub fn epoch(&self, partition: PartitionId) -> Option<Epoch> {
        self.views.borrow().partitions.get(&partition).map(|row| row.current.epoch)
    }

    /// The id of this node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.group.id()
    }

    /// The tenant's configuration; what a new one would get when there is none.
    #[must_use]
    pub fn tenant(&self, tenant: &TenantId) -> TenantView {
        self.existing(&self.view(), tenant).unwrap_or_else(|| TenantView {
            limits: Arc::new(self.defaults.limits.clone()),
            shard_size: self.defaults.shard_size,
            shard_size_largest: self.defaults.shard_size,
            grown_at: 0,
            version: 0,
        })
    }

    fn existing(&self, view: &View, tenant: &TenantId) -> Option<TenantView> {
        let row = view.tenants.get(tenant)?;
        Some(TenantView {
            limits: Arc::new(row.limits.clone()),
            shard_size: row.shard_size(),
            shard_size_largest: row.shard_size_ever(),
            grown_at: row.grown_at(),
            version: row.version,
        })
    }

    /// Index since which the tenant uses as many partitions as it ever did; 0 when there is no such tenant.
    #[must_use]
    pub fn grown_at(&self, tenant: &TenantId) -> u64 {
        self.views.borrow().tenants.get(tenant).map_or(0, |row| row.grown_at())
    }

    /// The tenant's configuration; a tenant that is new is made first.
    ///
    /// # Errors
    /// Limited when the cluster has as many tenants as it may; Unavailable or Timeout when the group does not answer.
    pub async fn tenant_or_create(&self, tenant: &TenantId, within: Duration) -> Result<TenantView, Error> {
        let view = self.view();
        if let Some(row) = view.tenants.get(tenant)
            && row.deleted.is_some()
        {
            return Err(Error::invalid(format!("tenant {tenant} is marked for deletion and takes no samples")));
        }
        if let Some(existing) = self.existing(&view, tenant) {
            return Ok(existing);
        }
        self.room_for(tenant, &view)?;
        let command = Command::CreateTenant {
            tenant: tenant.clone(),
            limits: self.defaults.limits.clone(),
            shard_size: self.defaults.shard_size,
        };
        self.propose("first write", command, within).await?;
        let mut views = self.group.watch();
        let seen = views.wait_for(|view| view.tenants.get(tenant).is_some());
        match tokio::time::timeout(within, seen).await {
            Ok(Ok(view)) => {
                let view = view.clone();
                Ok(self.existing(&view, tenant).unwrap_or_else(|| self.tenant(tenant)))
            }
            Ok(Err(_)) => Err(Error::unavailable("the metadata group is stopping")),
            Err(_) => Err(Error::new(Class::Timeout, "the metadata did not show the new tenant in time")),
        }
    }

    /// Proposes a change and waits until it is applied.
    ///
    /// # Errors
    /// What the group answers; also a refusal (an old version, an unknown tenant).
    pub async fn propose(&self, by: &str, command: Command, within: Duration) -> Result<Outcome, Error> {
        Ok(self.group.propose(Proposal { by: by.to_owned(), command }, within).await?.outcome)
    }

    /// The whole cluster as `engram cluster status` shows it; `option` is this node's replication factor, for clusters
    /// that have agreed on none.
    #[must_use]
    pub fn status_json(&self, option: usize) -> serde_json::Value {
        let view = self.view();
        let status = self.group.status();
        let nodes: Vec<_> = view
            .nodes
            .iter()
            .map(|(id, node)| {
                json!({ "id": id.0, "zone": node.spec.zone, "state": node.state.to_string(), "http": node.spec.http,
                        "grpc": node.spec.grpc, "version": node.spec.version })
            })
            .collect();
        let partitions: Vec<_> = view
            .partitions
            .iter()
            .map(|(id, row)| {
                let replicas: Vec<u64> = row.current.replicas.iter().map(|node| node.0).collect();
                let next: Option<Vec<u64>> = row.next.as_ref().map(|next| next.iter().map(|node| node.0).collect());
                json!({ "id": id.0, "epoch": row.current.epoch.0, "replicas": replicas, "next": next })
            })
            .collect();
        json!({
            "cluster": view.cluster.as_ref().map(|cluster| cluster.id.clone()),
            "node": self.node_id().0,
            "raft": {
                "term": status.term, "role": status.role, "leader": status.leader.map(|hint| hint.id.0), "voters": status.voters.iter().map(|id| id.0).collect::<Vec<_>>(),
                "lastLog": status.last_log, "committed": status.committed, "applied": status.applied, "snapshot": status.snapshot,
            },
            "nodes": nodes,
            "partitions": partitions,
            "leases": leases_of(&view),
            "ring": view.ring(),
            "replicationFactor": view.cluster.as_ref().and_then(|cluster| cluster.replication_factor),
            "underReplicated": self.under_replicated(option),
            "moving": view.partitions.iter().filter(|(_, row)| row.next.is_some()).count(),
            "tenants": view.tenants.len(),
            "tenantsDeleted": view.tenants.iter().filter(|(_, row)| row.deleted.is_some()).count(),
        })
    }

    /// Names of all tenants, sorted.
    #[must_use]
    pub fn tenant_names(&self) -> Vec<TenantId> {
        self.view().tenants.iter().map(|(tenant, _)| tenant.clone()).collect()
    }
}

/// The leases of the greatest fences, those first.
fn leases_of(view: &View) -> Vec<serde_json::Value> {
    let mut leases: Vec<_> = view.leases.iter().collect();
    leases.sort_unstable_by_key(|(_, row)| std::cmp::Reverse(row.fence));
    let told = leases.into_iter().take(LEASES_TOLD_MAX).map(|(key, row)| {
        json!({ "key": key, "node": row.holder.node.0, "fence": row.fence, "expiresAtMs": row.expires_at })
    });
    told.collect()
}
