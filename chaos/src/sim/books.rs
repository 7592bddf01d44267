//! The book of blocks: what is read is whole, and read once.
//!
//! Whenever somebody looks at what a node knows, no block may be read beside one that replaced it. At the end every block
//! that is read lies in the bucket with all its objects, with the bytes that were agreed; what was lost on the way from
//! several blocks to one, the reads show.

use super::world::Shared;
use engram_model::block::{BlockId, BlockMeta};
use engram_model::tenant::TenantId;
use engram_node::blocks::check::{self, Depth, Pace};
use engram_node::meta::Meta;
use std::collections::BTreeSet;

fn tenants(world: &Shared) -> Vec<TenantId> {
    let names = (0..world.numbers.tenants).map(|tenant| world.numbers.tenant(tenant));
    names.filter_map(|name| TenantId::new(&name).ok()).collect()
}

/// The blocks that a node reads.
fn read(meta: &Meta, tenant: &TenantId) -> Vec<BlockMeta> {
    let rows = meta.blocks(tenant).blocks;
    rows.iter().filter(|row| row.marked.is_none()).map(|row| row.meta.clone()).collect()
}

/// Looks at what a node knows.
pub(super) fn look(world: &Shared, meta: &Meta) {
    for tenant in tenants(world) {
        let blocks = read(meta, &tenant);
        let names: BTreeSet<BlockId> = blocks.iter().map(|block| block.id).collect();
        for block in &blocks {
            if let Some(source) = block.sources.iter().find(|source| names.contains(source)) {
                world.trouble(format!("block {source} of {tenant} is read beside {}, which replaced it", block.id));
            }
        }
    }
}

/// Holds the bucket against the metadata.
pub(super) async fn balance(world: &Shared) {
    let Some(life) = world.hosts.iter().find_map(|host| host.life()) else { return };
    look(world, &life.meta);
    for tenant in tenants(world) {
        for block in read(&life.meta, &tenant) {
            match check::block(&world.store, &block, Depth::Objects, Pace::default()).await {
                Ok(checked) if checked.found.is_empty() => {}
                Ok(checked) => world.trouble(format!("block {} of {tenant}: {}", block.id, checked.why())),
                // It was replaced and deleted while it was looked at.
                Err(_) if !read(&life.meta, &tenant).iter().any(|one| one.id == block.id) => {}
                Err(error) => {
                    world.trouble(format!("block {} of {tenant} cannot be checked: {}", block.id, error.message))
                }
            }
        }
    }
}
