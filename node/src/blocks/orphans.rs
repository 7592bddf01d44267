//! What lies in the store and in no metadata, for a person who decides: listed, and removed when told to.
//!
//! Why a person: a whole block that nobody knows was left by a crash between upload and commit, or is the only copy of
//! its samples after the metadata was restored from an old backup. The sweeper cannot tell and lets it be; whoever has
//! compared its time with `blocks ls`, or imported it, can.
//!
//! ```text
//! listing of the store → the metadata as of now, asked from a majority → what is unknown, with age, size and why it stays
//!   removal: the same, then for each once more the metadata → objects, `meta.json` first
//! ```
//!
//! What no removal touches: names younger than the grace (a commit may be on its way), and parts where blocks lie that
//! Engram did not make. Such blocks, and those whose names are older than the cluster, go only when they are named one by
//! one. Ages are told by the clocks of those who gave the names.

use std::collections::BTreeSet;
use std::path::Path;

use engram_model::Millis;
use engram_model::block::BlockId;
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_storage::block::Meta as BlockJson;
use engram_storage::object::{Store, block_key};
use serde_json::{Value, json};

use super::job::PROPOSE_WITHIN;
use super::reach::Reach;
use super::uploader::storage_error;
use crate::error::Error;
use crate::meta::Meta;

/// Blocks of one answer.
const LISTED_MAX: usize = 1000;

/// Looks for what nobody knows. Cheap to clone.
#[derive(Clone)]
pub struct Orphans {
    /// Who knows of blocks.
    pub meta: Meta,
    /// Where they lie.
    pub store: Store,
    /// Whether the store is this cluster's.
    pub reach: Reach,
    /// What ages are counted by.
    pub clock: Clock,
    /// Nothing younger is removed.
    pub grace_ms: i64,
}

/// What is to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Only these; empty: all that may be.
    pub ids: Vec<BlockId>,
    /// Only what is older, in milliseconds; never less than the grace.
    pub older_ms: i64,
}

/// Who made what lies there.
#[derive(Clone, Debug)]
enum Maker {
    Engram(Box<BlockJson>),
    Other,
    /// There is no `meta.json`: an upload that was not finished, or a deletion.
    Unknown,
}

/// One that no metadata names.
#[derive(Clone, Debug)]
struct Orphan {
    id: BlockId,
    maker: Maker,
    files: usize,
    bytes: u64,
    age_ms: i64,
    /// Why a removal of everything would leave it; none: it would go.
    stays: Option<String>,
}

fn made_at(id: BlockId) -> Millis {
    i64::try_from(id.0 >> 80).unwrap_or(i64::MAX)
}

impl Orphan {
    fn json(&self) -> Value {
        let mut all = json!({
            "id": self.id.to_string(), "files": self.files, "bytes": self.bytes, "ageMs": self.age_ms, "stays": self.stays,
            "whole": !matches!(self.maker, Maker::Unknown),
            "madeBy": match self.maker { Maker::Engram(_) => "engram", Maker::Other => "another", Maker::Unknown => "unknown" },
        });
        if let Maker::Engram(meta) = &self.maker {
            all["start"] = meta.min_time.into();
            all["end"] = meta.max_time.into();
            all["series"] = meta.stats.num_series.into();
            all["samples"] = meta.stats.num_samples.into();
            all["level"] = meta.compaction.level.into();
        }
        all
    }
}

impl Orphans {
    /// What of a tenant nobody knows, oldest name first.
    ///
    /// # Errors
    /// The store or the metadata do not answer.
    pub async fn list(&self, tenant: &TenantId, older_ms: i64) -> Result<Value, Error> {
        let (found, more) = self.find(tenant, &Removal { ids: Vec::new(), older_ms }).await?;
        let orphans: Vec<Value> = found.iter().map(Orphan::json).collect();
        Ok(
            json!({ "tenant": tenant.as_str(), "graceMs": self.grace_ms.max(older_ms), "orphans": orphans, "more": more }),
        )
    }

    /// Removes the objects of what nobody knows; says of each what became of it.
    ///
    /// # Errors
    /// `NotFound` for a tenant this cluster does not have, whose blocks may be another's; Unavailable when the store is
    /// not this cluster's, or when store or metadata do not answer: what is removed by then is removed.
    pub async fn remove(&self, tenant: &TenantId, what: &Removal) -> Result<Value, Error> {
        if !self.reach.is_open() {
            return Err(self.reach.closed());
        }
        let (found, more) = self.find(tenant, what).await?;
        if self.meta.tenant(tenant).version == 0 {
            let text = format!("there is no tenant {tenant} here: what lies under its name may be another cluster's");
            return Err(Error::new(Class::NotFound, text));
        }
        let (mut removed, mut kept, mut bytes) = (Vec::new(), Vec::new(), 0);
        let unknown: BTreeSet<BlockId> = found.iter().map(|one| one.id).collect();
        for id in what.ids.iter().filter(|id| !unknown.contains(id)) {
            kept.push(json!({ "id": id.to_string(), "why": "it is in the metadata, or not in the store" }));
        }
        for one in &found {
            let id = one.id;
            if let Some(why) = &one.stays {
                kept.push(json!({ "id": id.to_string(), "why": why }));
                continue;
            }
            // A commit may have come since.
            self.meta.see(PROPOSE_WITHIN).await?;
            if self.meta.block(tenant, id).is_some() {
                kept.push(json!({ "id": id.to_string(), "why": "it is in the metadata now" }));
                continue;
            }
            self.store.delete_block(tenant, id).await.map_err(|e| storage_error(&e))?;
            tracing::warn!(%tenant, block = %id, bytes = one.bytes, "what no metadata names is removed, as was asked for");
            bytes += one.bytes;
            removed.push(id.to_string());
        }
        Ok(json!({ "tenant": tenant.as_str(), "removed": removed, "bytes": bytes, "kept": kept, "more": more }))
    }

    /// What nobody knows, and how many more there are.
    async fn find(&self, tenant: &TenantId, what: &Removal) -> Result<(Vec<Orphan>, usize), Error> {
        let listed = self.store.list_blocks(tenant).await.map_err(|e| storage_error(&e))?;
        // The metadata after the listing, and as a majority has them: what was committed anywhere before is known.
        self.meta.see(PROPOSE_WITHIN).await?;
        let known: BTreeSet<BlockId> = self.meta.blocks(tenant).blocks.iter().map(|row| row.meta.id).collect();
        let wanted = |id: &BlockId| what.ids.is_empty() || what.ids.contains(id);
        let unknown: Vec<BlockId> = listed.into_iter().filter(|id| !known.contains(id)).collect();
        let mut all = Vec::new();
        let now = self.clock.now();
        for id in unknown.iter().take(LISTED_MAX) {
            let files = self.store.block_files(tenant, *id).await.map_err(|e| storage_error(&e))?;
            all.push(Orphan {
                id: *id,
                maker: self.maker(tenant, *id).await?,
                files: files.len(),
                bytes: files.iter().map(|(_, bytes)| bytes).sum(),
                age_ms: now.saturating_sub(made_at(*id)),
                stays: None,
            });
        }
        let is_shared = unknown.len() > LISTED_MAX || all.iter().any(|one| matches!(one.maker, Maker::Other));
        let born = self.meta.cluster_made_at().unwrap_or(Millis::MAX);
        all.retain(|one| wanted(&one.id));
        for one in &mut all {
            one.stays = stays(one, born, (self.grace_ms.max(what.older_ms), is_shared), !what.ids.is_empty());
        }
        Ok((all, unknown.len().saturating_sub(LISTED_MAX)))
    }

    async fn maker(&self, tenant: &TenantId, id: BlockId) -> Result<Maker, Error> {
        let key = block_key(tenant, id, "meta.json");
        let Some(bytes) = self.store.get(&key).await.map_err(|e| storage_error(&e))? else { return Ok(Maker::Unknown) };
        // What cannot be read is not ours to delete.
        Ok(match BlockJson::read(Path::new(&key), &bytes) {
            Ok(meta) if meta.engram.is_some() => Maker::Engram(Box::new(meta)),
            _ => Maker::Other,
        })
    }
}

/// Why it would stay; `is_named`: somebody has asked for it by its name.
fn stays(one: &Orphan, born: Millis, (grace_ms, is_shared): (i64, bool), is_named: bool) -> Option<String> {
    let text = match one.maker {
        Maker::Other if !is_named => "it was imported, or another system made it: it goes only by its name",
        Maker::Unknown if is_shared => "it is a part of a block, and other systems' blocks lie beside it",
        _ if one.age_ms < grace_ms => "it is younger than the grace, a commit may be on its way",
        _ if made_at(one.id) <= born && !is_named => "its name is older than this cluster, it goes only by its name",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_young_or_others_or_older_than_the_cluster_stays() {
        let orphan = |maker, at, age_ms| {
            let id = BlockId::new(at, 7);
            Orphan { id, maker, files: 1, bytes: 1, age_ms, stays: None }
        };
        let part = |at, age_ms| orphan(Maker::Unknown, at, age_ms);
        assert_eq!(stays(&part(101, 50), 100, (50, false), false), None);
        assert!(stays(&part(101, 49), 100, (50, false), true).is_some(), "however it is asked for");
        assert!(stays(&part(101, 50), 100, (50, true), true).is_some());
        assert!(stays(&part(100, 50), 100, (50, false), false).is_some());
        assert_eq!(stays(&part(100, 50), 100, (50, false), true), None);
        let other = |age_ms| orphan(Maker::Other, 101, age_ms);
        assert!(stays(&other(50), 100, (50, false), false).is_some());
        assert_eq!(stays(&other(50), 100, (50, true), true), None);
        assert!(stays(&other(49), 100, (50, true), true).is_some());
    }
}
