//! What an operator does with tenants: look, create, change, mark for deletion.
//!
//! A change names the version it was made for and is refused when the tenant has another by now: two operators at once
//! must not overwrite each other unseen. The version is compared twice: here, after a linearizable read, because the
//! new limits are the old ones with the named fields changed and must be made of the right old ones; and by the group,
//! because between that read and the commit somebody may have been faster.

use std::time::Duration;

use engram_model::error::Class;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_raft::state::TenantRow;
use engram_raft::{Command, Outcome, Proposal, View};
use serde_json::{Map, Value, json};

use super::Meta;
use crate::config::nearest;
use crate::error::Error;

/// The author of changes that come through the API, as the metadata remember it.
const BY: &str = "admin API";

/// A change of a tenant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantChange {
    /// The version it was made for; 0: the tenant is to be created.
    pub version: u64,
    /// Limits by name; those not named stay.
    pub limits: Map<String, Value>,
    /// How many partitions it uses, 0: all; `None` to keep the number.
    pub shard_size: Option<u32>,
}

/// `limits` with the named ones changed.
///
/// # Errors
/// Invalid for a name nobody knows, with the nearest known one, and for a value that does not fit.
pub fn changed(limits: &TenantLimits, changes: &Map<String, Value>) -> Result<TenantLimits, Error> {
    let internal = |e: serde_json::Error| Error::new(Class::Internal, format!("limits: {e}"));
    let mut all = match serde_json::to_value(limits).map_err(internal)? {
        Value::Object(all) => all,
        other => return Err(Error::new(Class::Internal, format!("limits are no object but {other}"))),
    };
    for (name, value) in changes {
        let Some(old) = all.get(name) else {
            let hint = nearest(name, all.keys().cloned());
            return Err(Error::invalid(format!("limit {name:.100?} is not known{hint}")));
        };
        if value.as_i64().is_some_and(|number| number < 0) {
            return Err(Error::invalid(format!("limit {name} must not be negative, got {value}")));
        }
        let old = old.clone();
        all.insert(name.clone(), value.clone());
        if let Err(why) = serde_json::from_value::<TenantLimits>(Value::Object(all.clone())) {
            return Err(Error::invalid(format!("limit {name}: {why} (it is {old} now)")));
        }
    }
    serde_json::from_value(Value::Object(all)).map_err(internal)
}

fn row_json(tenant: &TenantId, row: &TenantRow) -> Value {
    json!({
        "tenant": tenant.as_str(), "version": row.version, "shardSize": row.shard_size(),
        "shardSizeLargest": row.shard_size_ever(), "limits": row.limits,
        "createdAtMs": row.created.at, "createdBy": row.created.by,
        "changedAtMs": row.changed.at, "changedBy": row.changed.by,
        "deleted": row.deleted.is_some(), "deletedAtMs": row.deleted.as_ref().map(|stamp| stamp.at),
    })
}

fn conflict(tenant: &TenantId, expected: u64, found: u64) -> Error {
    let text = match (expected, found) {
        (0, found) => format!("tenant {tenant} exists already, at version {found}: name that version to change it"),
        (expected, 0) => {
            format!("tenant {tenant} does not exist, so it is not at version {expected}: version 0 creates")
        }
        (expected, found) => format!("tenant {tenant} is at version {found}, not {expected}: read it again"),
    };
    Error::new(Class::Conflict, text)
}

impl Meta {
    /// All tenants, sorted by name, without their limits.
    #[must_use]
    pub fn tenants_json(&self) -> Value {
        let short = |(tenant, row): (&TenantId, &std::sync::Arc<TenantRow>)| {
            json!({ "tenant": tenant.as_str(), "version": row.version, "shardSize": row.shard_size(),
                    "createdAtMs": row.created.at, "deleted": row.deleted.is_some() })
        };
        self.view().tenants.iter().map(short).collect()
    }

    /// One tenant's configuration; `None` when there is no such tenant.
    #[must_use]
    pub fn tenant_json(&self, tenant: &TenantId) -> Option<Value> {
        let view = self.view();
        view.tenants.get(tenant).map(|row| row_json(tenant, row))
    }

    /// Creates or changes a tenant; answers what it is then.
    ///
    /// # Errors
    /// Conflict for another version than the tenant has; Invalid for limits that are none and for a tenant marked for
    /// deletion; Limited for one tenant too many; Unavailable or Timeout without a quorum: then look before trying
    /// again, with the same version, which makes it safe.
    pub async fn set_tenant(&self, tenant: &TenantId, change: TenantChange, within: Duration) -> Result<Value, Error> {
        let view = self.group.linearizable(within).await?;
        let old = view.tenants.get(tenant);
        let found = old.map_or(0, |row| row.version);
        if found != change.version {
            return Err(conflict(tenant, change.version, found));
        }
        let limits = changed(old.map_or(&self.defaults.limits, |row| &row.limits), &change.limits)?;
        let command = if old.is_none() {
            self.room_for(tenant, &view)?;
            let shard_size = change.shard_size.unwrap_or(self.defaults.shard_size);
            Command::CreateTenant { tenant: tenant.clone(), limits, shard_size }
        } else {
            let limits = (!change.limits.is_empty()).then_some(limits);
            Command::UpdateTenant {
                tenant: tenant.clone(),
                expected: change.version,
                limits,
                shard_size: change.shard_size,
            }
        };
        self.commit(tenant, change.version, command, within).await
    }

    /// Marks a tenant for deletion: from now on it takes no samples. The sweeper takes its blocks, and forgets it when
    /// nothing of it is left.
    ///
    /// # Errors
    /// `NotFound`, Conflict, and as [`Meta::set_tenant`].
    pub async fn delete_tenant(&self, tenant: &TenantId, version: u64, within: Duration) -> Result<Value, Error> {
        let command = Command::DeleteTenant { tenant: tenant.clone(), expected: version };
        self.commit(tenant, version, command, within).await
    }

    /// Proposes and answers the tenant as of that entry or later.
    async fn commit(&self, tenant: &TenantId, expected: u64, command: Command, by: Duration) -> Result<Value, Error> {
        let committed = self.group.propose(Proposal { by: BY.to_owned(), command }, by).await?;
        if let Outcome::Tenant { version, created: false } = committed.outcome
            && expected == 0
        {
            return Err(conflict(tenant, expected, version));
        }
        let view = self.group.applied(committed.index, by).await?;
        let row = view.tenants.get(tenant).map(|row| row_json(tenant, row));
        row.ok_or_else(|| Error::new(Class::Internal, format!("tenant {tenant} is not there after its change")))
    }

    /// # Errors
    /// Limited when the cluster has as many tenants as it may.
    pub(super) fn room_for(&self, tenant: &TenantId, view: &View) -> Result<(), Error> {
        let max = self.defaults.tenants_max as usize;
        if view.tenants.len() < max {
            return Ok(());
        }
        let text = format!("tenant {tenant} would be one too many: limit tenants-max is {max}");
        Err(Error::new(Class::Limited, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn only_the_named_limits_change() {
        let old = TenantLimits { max_exemplars: 7, ..TenantLimits::default() };
        let new =
            changed(&old, &changes(json!({"ingestion_rate": 5000, "out_of_order_time_window_ms": 60000}))).unwrap();
        let want = TenantLimits { ingestion_rate: 5000, out_of_order_time_window_ms: 60_000, ..old.clone() };
        assert_eq!(new, want);
        assert_eq!(changed(&old, &Map::new()).unwrap(), old);
        let chosen = changed(&old, &changes(json!({"promql_experimental": true}))).unwrap();
        assert_eq!(chosen.promql_experimental, Some(true));
        assert_eq!(changed(&chosen, &changes(json!({"promql_experimental": null}))).unwrap(), old);
    }

    #[test]
    fn bad_limits_are_refused_by_name() {
        for (bad, part) in [
            (json!({"ingestion_rat": 1}), "did you mean \"ingestion_rate\"?"),
            (json!({"xyz": 1}), "limit \"xyz\" is not known"),
            (json!({"ingestion_rate": "many"}), "limit ingestion_rate: invalid type"),
            (json!({"max_query_length_ms": -1}), "limit max_query_length_ms must not be negative"),
            (json!({"max_exemplars": 5_000_000_000_u64}), "limit max_exemplars: invalid value"),
            (json!({"ingestion_rate": null}), "limit ingestion_rate: invalid type"),
            (json!({"ingestion_rate": 1.5}), "limit ingestion_rate: invalid type"),
        ] {
            let error = changed(&TenantLimits::default(), &changes(bad)).unwrap_err();
            assert_eq!(error.class, Class::Invalid);
            assert!(error.message.contains(part), "{part} is not in {error}");
        }
    }
}
