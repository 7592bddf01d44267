//! What a person may ask of blocks and have done to them: list, look into one, check one, see the plan, delete series.
//!
//! Why here and not in the API's room: the answers come from the very plans, readings and checks that compaction works
//! with. Answers are JSON, shaped for `engram blocks`.

use std::sync::Arc;
use std::time::Duration;

use engram_model::block::{BlockFile, BlockId, BlockMeta, BlockRow, Deletion, Origin};
use engram_model::digest::Digest;
use engram_model::error::{Class, Classed};
use engram_model::tenant::TenantId;
use engram_model::time::Stopwatch;
use engram_model::{Millis, TimeRange};
use engram_storage::block::{Block, BlockDir, LabelValues, Open, Tombstones, verify};
use engram_storage::codec::crc32c_append;
use engram_storage::compact::Job;
use engram_storage::disk::Disk;
use serde_json::{Value, json};

use super::compactor::Compaction;
use super::fetch::{self, Missing};
use super::job::{PROPOSE_WITHIN, Workshop};
use super::orphans::Orphans;
use super::planning::hidden_of;
use crate::error::Error;

/// Label names that are counted when one looks into a block.
const NAMES_MAX: usize = 100;
/// Longest a cleaning is waited for.
const CLEAN_WITHIN: Duration = Duration::from_secs(30 * 60);
/// Bytes read at once for a checksum.
const PIECE_BYTES: usize = 1 << 20;

/// See the module's text. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    shop: Workshop,
    compaction: Compaction,
    orphans: Orphans,
}

impl Catalog {
    /// With what compaction works with.
    #[must_use]
    pub fn new(shop: Workshop, compaction: Compaction, orphans: Orphans) -> Self {
        Self { shop, compaction, orphans }
    }

    /// What lies in the store and in no metadata.
    #[must_use]
    pub fn orphans(&self) -> &Orphans {
        &self.orphans
    }

    /// All blocks of a tenant, in order of time.
    #[must_use]
    pub fn list(&self, tenant: &TenantId) -> Value {
        let view = self.shop.planner.meta().blocks(tenant);
        let mut rows = view.blocks;
        rows.sort_by_key(|row| (row.meta.range.start, row.meta.range.end, row.meta.id));
        json!({
            "tenant": tenant.as_str(),
            "index": view.index,
            "blocks": rows.iter().map(|row| row_json(row)).collect::<Vec<_>>(),
            "deletions": view.deletions.iter().map(|one| json!({
                "index": one.index, "selectors": one.selectors, "start": one.range.start, "end": one.range.end,
                "at": one.at, "by": one.by,
            })).collect::<Vec<_>>(),
        })
    }

    fn row(&self, tenant: &TenantId, id: BlockId) -> Result<Arc<BlockRow>, Error> {
        let row = self.shop.planner.meta().block(tenant, id);
        row.ok_or_else(|| Error::new(Class::NotFound, format!("tenant {tenant} has no block {id}")))
    }

    /// All that is known of one block, with how many values its labels have.
    ///
    /// # Errors
    /// `NotFound`, Internal when its index is damaged, and those of the store.
    pub async fn inspect(&self, tenant: &TenantId, id: BlockId) -> Result<Value, Error> {
        let row = self.row(tenant, id)?;
        let meta = &row.meta;
        let mut open = Open::new(fetch::place_of(meta), Tombstones::default());
        let block: Arc<Block> = Arc::new(fetch::drive(&self.shop.store, meta, &mut open).await.map_err(missing)?);
        let names: Vec<String> = block.index().label_names().map(str::to_owned).collect();
        let mut labels = Vec::new();
        for name in names.iter().take(NAMES_MAX) {
            let mut values = LabelValues::new(block.clone(), name);
            let found = fetch::drive(&self.shop.store, meta, &mut values).await.map_err(missing)?;
            labels.push((found.len(), name));
        }
        labels.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let labels: Vec<_> = labels.iter().map(|(count, name)| json!({ "name": name, "values": count })).collect();
        let sum = |file: &BlockFile| format!("{:08x}", file.crc32c);
        let file = |one: &BlockFile| json!({ "name": one.name, "bytes": one.bytes, "crc32c": sum(one) });
        let mut all = row_json(&row);
        all["files"] = meta.files.iter().map(file).collect();
        all["labelNames"] = json!(names.len());
        all["labels"] = json!(labels);
        all["sources"] = meta.sources.iter().map(ToString::to_string).collect();
        Ok(all)
    }

    /// Reads every byte of a block and holds all of it against the metadata.
    ///
    /// # Errors
    /// `NotFound`, and those of the disk and the store. Damage is no error but what is answered.
    pub async fn verify(&self, tenant: &TenantId, id: BlockId) -> Result<Value, Error> {
        let watch = Stopwatch::start();
        let row = self.row(tenant, id)?;
        let name = BlockId::new(self.shop.planner.now(), uuid::Uuid::new_v4().as_u128()).to_string();
        let dir = self.shop.work.join(name);
        let fetched = fetch::block(&self.shop.store, &self.shop.disk, &row.meta, &dir.join("sources")).await;
        let found = match fetched {
            Err(Missing::Failed(error)) => Err(error),
            Err(Missing::Damaged(why)) => Ok(Err(why)),
            Ok(path) => {
                let (disk, meta) = (self.shop.disk.clone(), row.meta.clone());
                let failed = |e| Error::new(Class::Internal, format!("checking a block failed: {e}"));
                let checked = engram_storage::blocking::blocking(move || check(&*disk, &path, &meta)).await;
                checked.map_err(failed).and_then(|found| found)
            }
        };
        self.shop.clear(&dir).await;
        let found = found?;
        Ok(json!({
            "id": id.to_string(),
            "ok": found.is_ok(),
            "damage": found.err(),
            "series": row.meta.series,
            "chunks": row.meta.chunks,
            "samples": row.meta.digest.count,
            "bytes": row.meta.bytes(),
            "digest": digest_text(row.meta.digest),
            "seconds": watch.elapsed().as_secs_f64(),
        }))
    }

    /// What compaction would do for a tenant now.
    #[must_use]
    pub fn plan(&self, tenant: &TenantId) -> Value {
        let planned = self.shop.planner.plan(tenant, false);
        let now = self.shop.planner.now();
        json!({
            "tenant": tenant.as_str(),
            "index": planned.view.index,
            "jobs": planned.jobs.iter().map(|job| job_json(job, now)).collect::<Vec<_>>(),
            "unwritten": planned.unwritten,
        })
    }

    /// Deletes series: hidden from every query from now on. Samples that come later and lie in the range are deleted too
    /// until the order is carried out everywhere; so the range ends now at the latest. Says the order's index; none when
    /// there is nothing to delete.
    ///
    /// # Errors
    /// Invalid for selectors that are none, Limited for too many orders, and those of the metadata.
    pub async fn delete_series(
        &self,
        tenant: &TenantId,
        selectors: Vec<String>,
        range: TimeRange,
    ) -> Result<Option<u64>, Error> {
        let range = TimeRange::new(range.start, range.end.min(self.shop.planner.now().saturating_add(1)));
        if range.is_empty() {
            return Ok(None);
        }
        let order = Deletion { index: 0, selectors, range, at: 0, by: String::new() };
        // What cannot be read later must not be ordered now.
        hidden_of(&order).map_err(|error| Error::invalid(error.message))?;
        let meta = self.shop.planner.meta();
        match meta.add_deletion("admin API", tenant, order.selectors, range, PROPOSE_WITHIN).await {
            Ok(index) => {
                tracing::info!(%tenant, deletion = index, start = range.start, end = range.end, "series are deleted");
                self.compaction.wake();
                Ok(Some(index))
            }
            Err(error) if error.class == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes deleted samples out of the blocks now; with `wait`, answers when no block holds any.
    ///
    /// # Errors
    /// Timeout when that takes too long: it goes on.
    pub async fn clean(&self, tenant: &TenantId, wait: bool) -> Result<(), Error> {
        let within = if wait { CLEAN_WITHIN } else { Duration::ZERO };
        match self.compaction.clean(&self.shop.planner, tenant, within).await {
            Err(error) if wait => Err(error),
            _ => Ok(()),
        }
    }
}

/// Recomputes a block; the inner error says what is wrong with it.
fn check(disk: &dyn Disk, path: &std::path::Path, meta: &BlockMeta) -> Result<Result<(), String>, Error> {
    let done = (|| {
        for file in &meta.files {
            let opened = disk.open(&path.join(&file.name))?;
            let (mut at, mut crc, mut piece) = (0_u64, 0, vec![0; PIECE_BYTES]);
            loop {
                let got = opened.read_at(at, &mut piece)?;
                if got == 0 {
                    break;
                }
                crc = crc32c_append(crc, &piece[..got]);
                at += got as u64;
            }
            if (at, crc) != (file.bytes, file.crc32c) {
                let what = format!("{at} bytes, checksum {crc:08x}; agreed were {}, {:08x}", file.bytes, file.crc32c);
                return Err(engram_storage::Error::corrupt(&path.join(&file.name), 0, what));
            }
        }
        let block = BlockDir::open(disk, path)?;
        let report = verify(&block, block.meta())?;
        let found = (report.series, report.chunks, report.digest());
        if found != (meta.series, meta.chunks, meta.digest) {
            let what = format!("series, chunks and digest are {found:?} and not what was agreed");
            return Err(engram_storage::Error::corrupt(path, 0, what));
        }
        Ok(())
    })();
    match done {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.is_not_found() || matches!(error, engram_storage::Error::Corrupt { .. }) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(Error::new(error.class(), error.to_string())),
    }
}

fn missing(missing: Missing) -> Error {
    match missing {
        Missing::Damaged(why) => Error::new(Class::Internal, why),
        Missing::Failed(error) => error,
    }
}

fn digest_text(digest: Digest) -> String {
    format!("{:016x}-{:016x}-{:016x}", digest.count, digest.low, digest.high)
}

fn row_json(row: &BlockRow) -> Value {
    let meta = &row.meta;
    let origin = match meta.origin {
        Origin::Cut { partition, seal } => format!("cut of partition {}, seal {seal}", partition.0),
        Origin::Compacted => format!("compacted from {}", meta.sources.len()),
        Origin::Imported => "imported".to_owned(),
    };
    let state = match (&row.quarantined, &row.marked) {
        (_, Some(mark)) => format!("going: {}", mark.why),
        (Some(why), None) => format!("DAMAGED: {why}"),
        (None, None) => "read".to_owned(),
    };
    json!({
        "id": meta.id.to_string(),
        "level": meta.level,
        "start": meta.range.start,
        "end": meta.range.end,
        "shard": meta.shard.map(|shard| json!({ "index": shard.index, "count": shard.count })),
        "series": meta.series,
        "chunks": meta.chunks,
        "samples": meta.digest.count,
        "bytes": meta.bytes(),
        "digest": digest_text(meta.digest),
        "origin": origin,
        "state": state,
        "asOf": meta.as_of,
        "madeAt": meta.made_at,
        "committedAt": row.index,
    })
}

fn job_json(job: &Job, now: Millis) -> Value {
    json!({
        "kind": job.kind.as_str(),
        "start": job.range.start,
        "end": job.range.end,
        "sources": job.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "results": job.outputs.iter().map(|output| json!({
            "start": output.range.start,
            "end": output.range.end,
            "shard": output.shard.map(|shard| json!({ "index": shard.index, "count": shard.count })),
        })).collect::<Vec<_>>(),
        "level": job.level,
        "bytes": job.bytes,
        "waitsMs": now.saturating_sub(job.due_at).max(0),
    })
}
