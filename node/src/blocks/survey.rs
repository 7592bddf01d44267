//! The whole store held against the metadata: every block checked, and what is there without being agreed.
//!
//! Why asked for and not only done by the scrubber: after a restore, a migration or a doubt somebody wants to know now,
//! and to have it on paper. A survey changes nothing: damage that it finds is quarantined by the scrubber, which looks
//! again.
//!
//! ```text
//! blocks of the metadata, tenant by tenant, oldest name first   → one event each
//! names in the store that the metadata do not know              → one event each
//! the end                                                       → counts; who does not see it has not seen all
//! ```
//!
//! Marked blocks are left out: their objects may be deleted at any moment.

use std::collections::BTreeSet;

use engram_model::block::{BlockId, BlockRow};
use engram_model::error::Classed;
use engram_model::tenant::TenantId;
use engram_storage::object::Store;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::{Value, json};
use std::sync::Arc;

use super::check::{self, Depth, Pace};
use super::job::PROPOSE_WITHIN;
use crate::error::Error;
use crate::meta::Meta;

/// Blocks that are checked at once.
const AT_ONCE: usize = 2;

/// Holds stores against metadata. Cheap to clone.
#[derive(Clone)]
pub struct Surveyor {
    store: Store,
    meta: Meta,
}

/// What was seen so far.
#[derive(Default)]
struct Sums {
    blocks: u64,
    bytes: u64,
    damaged: u64,
    extra: u64,
    unknown: u64,
    orphans: u64,
}

impl Surveyor {
    /// Of this store and these metadata.
    #[must_use]
    pub fn new(store: Store, meta: Meta) -> Self {
        Self { store, meta }
    }

    /// Events of a survey, of one tenant or of all, as JSON objects. An error ends it: nothing can be said then.
    #[must_use]
    pub fn survey(&self, tenant: Option<TenantId>, depth: Depth) -> BoxStream<'static, Result<Value, Error>> {
        let (own, whose) = (self.clone(), tenant.clone());
        let tenants: Vec<TenantId> = match &tenant {
            Some(tenant) => vec![tenant.clone()],
            None => self.meta.tenants_with_blocks().into_iter().map(|(tenant, _)| tenant).collect(),
        };
        let blocks = tenants.into_iter().flat_map({
            let meta = self.meta.clone();
            move |tenant| meta.blocks(&tenant).blocks.into_iter().filter(|row| row.marked.is_none())
        });
        let checked = stream::iter(blocks)
            .map(move |row| {
                let own = own.clone();
                async move { own.one(row, depth).await }
            })
            .buffered(AT_ONCE);
        let own = self.clone();
        let orphans = stream::once(async move { own.orphans(whose).await }).flat_map(|found| {
            let all: Vec<Result<Value, Error>> = match found {
                Ok(all) => all.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(all)
        });
        let mut sums = Sums::default();
        let counted = checked.chain(orphans).map(Some).chain(stream::iter([None])).map(move |event| match event {
            Some(Ok(event)) => {
                sums.add(&event);
                Ok(event)
            }
            Some(Err(error)) => Err(error),
            None => Ok(sums.end()),
        });
        counted.boxed()
    }

    async fn one(&self, row: Arc<BlockRow>, depth: Depth) -> Result<Value, Error> {
        let (tenant, id) = (row.meta.tenant.clone(), row.meta.id);
        let checked = check::block(&self.store, &row.meta, depth, Pace::default()).await;
        // Deleted in between: nothing is to be said of it.
        let is_gone = self.meta.block(&tenant, id).is_none_or(|row| row.marked.is_some());
        let common = |event: &str| json!({"event": event, "tenant": tenant.as_str(), "block": id, "quarantined": row.quarantined.as_deref()});
        match checked {
            _ if is_gone => Ok(common("gone")),
            // One that cannot be read now does not hide the state of the others.
            Err(error) => {
                let mut event = common("unknown");
                event["why"] = error.message.into();
                Ok(event)
            }
            Ok(checked) => {
                let mut event = common("block");
                let found = |one: &check::Found| json!({"file": one.file, "fault": one.fault.word(), "what": one.what});
                event["bytes"] = checked.bytes.into();
                event["found"] = checked.found.iter().map(found).collect();
                event["extra"] = checked.extra.into();
                Ok(event)
            }
        }
    }

    /// What is in the store and not in the metadata.
    async fn orphans(&self, tenant: Option<TenantId>) -> Result<Vec<Value>, Error> {
        let failed = |e: engram_storage::Error| Error::new(e.class(), e.to_string());
        let tenants = match tenant {
            Some(tenant) => vec![tenant],
            None => self.store.list_tenants().await.map_err(failed)?,
        };
        let mut found = Vec::new();
        for tenant in tenants {
            let listed = self.store.list_blocks(&tenant).await.map_err(failed)?;
            // The metadata after the listing, as a majority has them: what was committed in between is known.
            self.meta.see(PROPOSE_WITHIN).await?;
            let known: BTreeSet<BlockId> = self.meta.blocks(&tenant).blocks.iter().map(|row| row.meta.id).collect();
            for id in listed.into_iter().filter(|id| !known.contains(id)) {
                let files = self.store.block_files(&tenant, id).await.map_err(failed)?;
                let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
                let is_whole = files.iter().any(|(name, _)| name == "meta.json");
                found.push(json!({
                    "event": "orphan", "tenant": tenant.as_str(), "block": id, "bytes": bytes, "whole": is_whole,
                }));
            }
        }
        Ok(found)
    }
}

impl Sums {
    fn add(&mut self, event: &Value) {
        match event["event"].as_str() {
            Some("block") => {
                self.blocks += 1;
                self.bytes += event["bytes"].as_u64().unwrap_or(0);
                // One in quarantine is not read, whatever this look finds of it.
                let is_sound = event["quarantined"].is_null() && event["found"].as_array().is_none_or(Vec::is_empty);
                self.damaged += u64::from(!is_sound);
                self.extra += event["extra"].as_array().map_or(0, |extra| extra.len() as u64);
            }
            Some("unknown") => {
                self.blocks += 1;
                self.unknown += 1;
            }
            Some("orphan") => self.orphans += 1,
            _ => {}
        }
    }

    fn end(&self) -> Value {
        json!({
            "event": "end", "blocks": self.blocks, "bytes": self.bytes, "damaged": self.damaged,
            "extra": self.extra, "unknown": self.unknown, "orphans": self.orphans,
        })
    }
}
