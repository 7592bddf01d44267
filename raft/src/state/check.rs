//! What may be said of a block.
//!
//! Why: what is committed of a block is believed for years: by planners, by readers who fetch the byte ranges it
//! names, by sweepers who delete the objects it names. So nothing gets in that contradicts itself, and nothing that
//! could lead out of the block's directory. Checking needs no I/O; that the objects are there is the proposer's word.

use engram_model::TimeRange;
use engram_model::block::{BlockFile, BlockId, BlockMeta, LEVEL_MAX, Origin, SHARDS_MAX};
use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;

use super::TEXT_BYTES_MAX;
use crate::error::Refusal;

/// Most objects of one block.
pub const FILES_MAX: usize = 4_096;
/// Most blocks one block may replace.
pub const SOURCES_MAX: usize = 1_024;

/// Checks what holds of every block.
pub(super) fn block(block: &BlockMeta, tenant: &TenantId, index: u64) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::BadBlock { block: block.id, why });
    if block.tenant != *tenant {
        return bad(format!("of tenant {}, not of {tenant}", block.tenant));
    }
    if block.range.is_empty() {
        return bad("its time range is empty".to_owned());
    }
    if !(1..=LEVEL_MAX).contains(&block.level) {
        return bad(format!("level {}, must be 1 to {LEVEL_MAX}", block.level));
    }
    if let Some(shard) = block.shard
        && (shard.count > SHARDS_MAX || shard.index >= shard.count)
    {
        return bad(format!("part {} of {}, at most {SHARDS_MAX} are allowed", shard.index, shard.count));
    }
    if block.series == 0 || block.chunks < block.series || block.digest.count < block.chunks {
        let (series, chunks, samples) = (block.series, block.chunks, block.digest.count);
        return bad(format!("{series} series in {chunks} chunks of {samples} samples"));
    }
    if block.as_of > index {
        return bad(format!("as of index {}, this is {index}", block.as_of));
    }
    if block.sources.len() > SOURCES_MAX || !sorted(&block.sources) {
        return bad(format!("{} sources, must be at most {SOURCES_MAX}, sorted, each once", block.sources.len()));
    }
    if let Err(why) = files(&block.files) {
        return bad(why);
    }
    Ok(())
}

/// Whether names are in order and each once.
pub(super) fn sorted(ids: &[BlockId]) -> bool {
    ids.is_sorted_by(|a, b| a < b)
}

fn files(files: &[BlockFile]) -> Result<(), String> {
    if !(1..=FILES_MAX).contains(&files.len()) {
        return Err(format!("{} objects, must be 1 to {FILES_MAX}", files.len()));
    }
    if !files.is_sorted_by(|a, b| a.name < b.name) {
        return Err("its objects are not sorted by name, each once".to_owned());
    }
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let fine = |name: &str| name.len() <= TEXT_BYTES_MAX && name.bytes().all(plain) && name.split('/').all(part);
    match files.iter().find(|file| !fine(&file.name)) {
        Some(file) => Err(format!("object name {:.100?} is not allowed", file.name)),
        None => Ok(()),
    }
}

/// Checks a block that was cut for a seal.
pub(super) fn cut(
    block: &BlockMeta,
    (tenant, partition, seal): (&TenantId, PartitionId, u64),
    window: TimeRange,
    index: u64,
) -> Result<(), Refusal> {
    self::block(block, tenant, index)?;
    let bad = |why: String| Err(Refusal::BadBlock { block: block.id, why });
    if block.origin != (Origin::Cut { partition, seal }) || block.level != 1 || !block.sources.is_empty() {
        return bad(format!("{:?} of level {}, not a cut of seal {seal}", block.origin, block.level));
    }
    if block.range.start < window.start || block.range.end > window.end {
        return bad("it reaches over its window".to_owned());
    }
    Ok(())
}

/// Checks a block that replaces others.
pub(super) fn replacement(
    block: &BlockMeta,
    sources: &[BlockId],
    level: u32,
    within: TimeRange,
) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::BadBlock { block: block.id, why });
    if block.origin != Origin::Compacted || block.sources != sources {
        return bad(format!(
            "{:?} of {} sources, not made of these {}",
            block.origin,
            block.sources.len(),
            sources.len()
        ));
    }
    if block.level != level {
        return bad(format!("level {}, must be {level}", block.level));
    }
    if block.range.start < within.start || block.range.end > within.end {
        return bad("it reaches over its sources".to_owned());
    }
    Ok(())
}
