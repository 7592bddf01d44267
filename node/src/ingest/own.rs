//! What this node's own replicas hold, in numbers: the answer of `admin/replicas`.
//!
//! Why: every read asks a majority, and a majority hides what one replica lacks. Who asks each node for its own and lays
//! the answers side by side sees which replica lacks what; repair, which compares the same digests, mends it.
//!
//! Two replicas that hold the same may differ for a moment, because each forgets by itself what a block holds now. So the
//! seals that are still open are told with what this replica has done about each: of slots that lie in the window of a
//! seal which one replica has forgotten and another has not, nothing can be said; of all others equal digests are due.
//!
//! Nobody else is asked, and nothing is waited for but the heads.

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::block::Seal;
use engram_model::digest::Digest;
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};
use engram_storage::head::Head;
use serde_json::{Value, json};

use super::LocalReplica;
use super::repair::Completed;
use crate::error::Error;
use crate::meta::Meta;

/// Tells it.
#[derive(Clone)]
pub struct Own {
    /// The heads.
    pub local: LocalReplica,
    /// The replica sets and the seals.
    pub meta: Meta,
    /// Which replicas that are to come have all they need.
    pub complete: Completed,
}

/// What one head holds, under one look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holding {
    tenant: TenantId,
    digests: BTreeMap<Millis, Digest>,
    /// What is older is forgotten by age.
    floor: Millis,
    /// The highest seal that was applied; 0: none.
    sealed: u64,
    /// What is set aside: number, window, digest.
    aside: Vec<(u64, TimeRange, Digest)>,
}

impl Holding {
    fn of(tenant: TenantId, head: &Head) -> Self {
        Self {
            tenant,
            digests: head.digests().clone(),
            floor: head.floor(),
            sealed: head.sealed(),
            aside: head.frozen_parts().map(|part| (part.number(), part.window(), part.digest())).collect(),
        }
    }

    /// What this replica has done about each seal that is open, or set aside here.
    fn seals(&self, open: &[Seal]) -> Vec<Value> {
        let mut all: BTreeMap<u64, (TimeRange, bool)> =
            self.aside.iter().map(|(number, window, _)| (*number, (*window, false))).collect();
        all.extend(open.iter().map(|seal| (seal.number, (seal.window, seal.cut.is_some()))));
        let row = |(number, (window, cut)): (u64, (TimeRange, bool))| {
            let aside = self.aside.iter().find(|(at, ..)| *at == number).map(|(.., digest)| digest);
            let state = match aside {
                Some(_) => "aside",
                None if number > self.sealed => "waits",
                None => "forgotten",
            };
            json!({ "seal": number, "start": window.start, "end": window.end, "cut": cut, "state": state,
                    "digest": aside.map(shown) })
        };
        all.into_iter().map(row).collect()
    }

    fn json(&self, open: &[Seal], slots: bool) -> Value {
        let floor = Some(self.floor).filter(|floor| *floor > Millis::MIN);
        let mut row = json!({
            "tenant": self.tenant.as_str(),
            "digest": shown(&self.digests.values().copied().sum()),
            "floorMs": floor,
            "sealed": self.sealed,
            "seals": self.seals(open),
        });
        if slots {
            let slot = |(start, digest)| json!({ "startMs": start, "digest": shown(digest) });
            row["slots"] = self.digests.iter().map(slot).collect();
        }
        row
    }
}

impl Own {
    /// What is held of one tenant or of all, in one partition or in all, as JSON; with `slots` the digest of each slot, too.
    ///
    /// # Errors
    /// Invalid when there is no such partition; Internal when a thread failed.
    pub async fn json(
        &self,
        tenant: Option<TenantId>,
        partition: Option<PartitionId>,
        slots: bool,
    ) -> Result<Value, Error> {
        let count = u32::try_from(self.local.heads.len()).unwrap_or(u32::MAX);
        let wanted: Vec<PartitionId> = match partition {
            Some(one) if one.0 >= count => {
                return Err(Error::invalid(format!("there are partitions 0 to {}", count.saturating_sub(1))));
            }
            Some(one) => vec![one],
            None => (0..count).map(PartitionId).collect(),
        };
        let mut partitions = Vec::new();
        for partition in wanted {
            partitions.extend(self.partition(partition, tenant.as_ref(), slots).await?);
        }
        Ok(json!({ "node": self.meta.node_id().0, "applied": self.meta.applied(), "partitions": partitions }))
    }

    /// One partition; none when this node has nothing to do with it.
    async fn partition(
        &self,
        partition: PartitionId,
        tenant: Option<&TenantId>,
        slots: bool,
    ) -> Result<Option<Value>, Error> {
        let held = self.local.holdings(partition, tenant.cloned()).await;
        // After the heads: a seal that one of them has forgotten is told as forgotten, or is closed everywhere.
        let (ring, me) = (self.meta.ring(), self.meta.node_id());
        let set = ring.replicas(partition);
        let next = ring.next(partition);
        let (epoch, replicas) = set.map_or((0, &[][..]), |set| (set.epoch.0, &set.replicas[..]));
        let role = match next {
            _ if replicas.contains(&me) => "replica",
            Some(next) if next.contains(&me) => "coming",
            _ => "none",
        };
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        let complete = match role {
            "replica" => held.is_ok(),
            "coming" => self.complete.lock().get(&partition).is_some_and(|of| of.0 == epoch),
            _ => false,
        };
        let mut row = json!({ "partition": partition.0, "epoch": epoch, "replicas": ids(replicas),
                              "next": next.map(ids), "role": role, "complete": complete });
        match held {
            Ok(held) if held.is_empty() && role == "none" => return Ok(None),
            Ok(held) => {
                let one = |holding: Holding| {
                    let seals = self.meta.seals(&holding.tenant, partition);
                    holding.json(seals.as_ref().map_or(&[], |seals| &seals.open), slots)
                };
                row["tenants"] = held.into_iter().map(one).collect();
            }
            Err(error) if error.class == engram_model::error::Class::Internal => return Err(error),
            Err(error) => row["error"] = json!(error.message),
        }
        Ok(Some(row))
    }
}

impl LocalReplica {
    /// What the heads of one partition hold, each under one look, sorted by tenant.
    async fn holdings(&self, partition: PartitionId, only: Option<TenantId>) -> Result<Vec<Holding>, Error> {
        let replica: Arc<Self> = Arc::new(self.clone());
        self.on_thread(move || {
            let heads = replica.heads_of(partition)?;
            let wanted = |tenant: &TenantId| only.as_ref().is_none_or(|only| only == tenant);
            let all = heads.all().into_iter().filter(|(tenant, _)| wanted(tenant));
            Ok(all.map(|(tenant, head)| Holding::of(tenant, &head.read())).collect())
        })
        .await
    }
}

fn shown(digest: &Digest) -> Value {
    json!({ "count": digest.count, "low": format!("{:016x}", digest.low), "high": format!("{:016x}", digest.high) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::block::Cut;

    #[test]
    fn a_seal_waits_is_set_aside_and_is_forgotten() {
        let digest = Digest { count: 3, low: 1, high: 2 };
        let window = |start| TimeRange { start, end: start + 100 };
        let holding = Holding {
            tenant: TenantId::anonymous(),
            digests: BTreeMap::from([(0, digest)]),
            floor: Millis::MIN,
            sealed: 6,
            aside: vec![(5, window(500), digest)],
        };
        let seal = |number, cut| Seal { number, window: window(100), cut, forgotten_by: Vec::new() };
        let cut = Cut { block: None, digest, index: 9 };
        let rows = holding.seals(&[seal(6, Some(cut)), seal(7, None)]);
        let told: Vec<_> = rows.iter().map(|row| (row["seal"].clone(), row["state"].clone())).collect();
        assert_eq!(told, [(json!(5), json!("aside")), (json!(6), json!("forgotten")), (json!(7), json!("waits"))]);
        assert_eq!(rows[0]["digest"]["count"], 3);
        assert_eq!((&rows[1]["cut"], &rows[1]["digest"]), (&json!(true), &Value::Null));
        let row = holding.json(&[], true);
        assert_eq!((&row["floorMs"], &row["slots"][0]["startMs"]), (&Value::Null, &json!(0)));
        assert!(holding.json(&[], false).get("slots").is_none());
    }
}
