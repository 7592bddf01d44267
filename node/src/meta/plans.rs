//! Plans: what would happen to replicas, and having it happen if nothing has changed since.

use std::time::Duration;

use engram_model::error::Class;
use engram_raft::placement::preview::preview;
use engram_raft::placement::under_replicated;
use engram_raft::{Command, Proposal, Refusal};

pub use engram_raft::placement::preview::{Load, Margin, PlanName, Preview, Shard, ShardSize, What};

use super::Meta;
use super::nodes::NodeState;
use crate::error::Error;

impl Meta {
    /// What would happen, as the reconciler would do it. `option` is this node's replication factor, for clusters that
    /// have agreed on none.
    ///
    /// # Errors
    /// Conflict with the reason when it cannot be asked of the cluster as it is.
    pub fn preview(&self, what: &What, option: usize) -> Result<Preview, Error> {
        let view = self.view();
        preview(&view, what, view.replication_factor(option)).map_err(|why| Error::new(Class::Conflict, why))
    }

    /// Replicas each partition should have.
    #[must_use]
    pub fn replication_factor(&self, option: usize) -> usize {
        self.view().replication_factor(option)
    }

    /// Has a plan happen if the ring is still the one it was made of.
    ///
    /// # Errors
    /// Conflict when the ring has changed since; Invalid for a plan that only asks; what the group answers.
    pub async fn apply_plan(&self, plan: &PlanName, within: Duration) -> Result<(), Error> {
        let ring = plan.ring;
        let only = |why: &str| Err(Error::invalid(format!("{} cannot be applied: {why}", plan.what)));
        let command = match plan.what {
            What::Drain(id) => Command::SteerNode { id, to: NodeState::Draining, ring },
            What::Undrain(id) => Command::SteerNode { id, to: NodeState::Active, ring },
            What::ReplicationFactor(factor) => {
                Command::SetReplicationFactor { factor: u32::try_from(factor).unwrap_or(u32::MAX), ring }
            }
            What::ShardSize(ShardSize { ref tenant, size, version: Some(expected) }) => {
                // The tenant's version is compared when it is applied; what the preview said of nodes is of this ring.
                let found = self.view().ring();
                if found != ring {
                    return Err(engram_raft::Error::from(Refusal::Ring { expected: ring, found }).into());
                }
                Command::UpdateTenant { tenant: tenant.clone(), expected, limits: None, shard_size: Some(size) }
            }
            What::ShardSize(_) => return only("it does not say of which version of the tenant: ask for a plan first"),
            What::Rebalance => return only("the cluster does that by itself"),
            What::AddNodes(..) => return only("start the nodes, with --join and the zone, and it happens"),
            What::LoseNode(_) => return only("it is a question; `engram cluster remove` takes a silent node out"),
            What::LoseZone(_) => return only("it is a question"),
        };
        self.group.propose(Proposal { by: "operator".to_owned(), command }, within).await?;
        Ok(())
    }

    /// Partitions with fewer replicas that live than they should have; `option` as in [`Meta::preview`].
    #[must_use]
    pub fn under_replicated(&self, option: usize) -> usize {
        let view = self.view();
        under_replicated(&view, view.replication_factor(option))
    }

    /// Partitions whose replica set is being replaced.
    #[must_use]
    pub fn moving(&self) -> usize {
        self.view().partitions.iter().filter(|(_, row)| row.next.is_some()).count()
    }

    /// A backup of all metadata, as of everything that was answered before: a file that stands at its start.
    ///
    /// # Errors
    /// Unavailable without a majority of voters; Internal when the disk fails.
    pub async fn backup(&self, within: Duration) -> Result<std::fs::File, Error> {
        Ok(self.group.backup(within).await?)
    }
}
