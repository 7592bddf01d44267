//! Goal: a head loses nothing that was acknowledged because it is old, and no tenant keeps others from being sealed.
//! Method: one partition with real heads and a keeper or a sealer over it.

use std::sync::Arc;
use std::time::Duration;

use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_node::blocks::reach::{Kind, Reach};
use engram_node::blocks::sealer::{self, Rules};
use engram_node::ingest::keeper;
use engram_node::meta::tenants::TenantChange;
use engram_node::peer::{Append, Peers, Replica as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Ingest, LONG, append, meta, other};

const NEWEST: i64 = 1_700_000_000_000;
const DAY: i64 = 24 * 60 * 60 * 1000;

/// A sample of 1970 in a series of its own beside one of now.
async fn write_old_and_new(ingest: &Ingest) {
    ingest.write(NEWEST).await;
    assert_eq!(ingest.local.append(other(&ingest.meta, 5), LONG).await.unwrap().samples, 1);
}

async fn set_retention(ingest: &Ingest, version: u64, ms: serde_json::Value) {
    let limits = json!({ "compactor_blocks_retention_period_ms": ms }).as_object().unwrap().clone();
    let change = TenantChange { version, limits, shard_size: None };
    ingest.meta.set_tenant(&TenantId::anonymous(), change, LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_stays_until_a_block_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let ingest = Ingest::open(dir.path(), &meta, &Clock::test(0));
    write_old_and_new(&ingest).await;
    keeper::retain(&ingest.keeper(DAY, true)).await;
    assert_eq!(ingest.times(0).await.unwrap().len(), 2, "the sweeper judges blocks by age, nobody judges heads");
    ingest.close().await;
    group.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_blocks_are_made_the_tenants_own_retention_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let ingest = Ingest::open(dir.path(), &meta, &Clock::test(0));
    write_old_and_new(&ingest).await;
    set_retention(&ingest, 0, json!(0)).await;
    keeper::retain(&ingest.keeper(DAY, false)).await;
    assert_eq!(ingest.times(0).await.unwrap().len(), 2, "0: for ever");
    let version = ingest.meta.tenant(&TenantId::anonymous()).version;
    set_retention(&ingest, version, json!(100_000 * DAY)).await;
    keeper::retain(&ingest.keeper(DAY, false)).await;
    assert_eq!(ingest.times(0).await.unwrap().len(), 2, "longer than the node's");
    let version = ingest.meta.tenant(&TenantId::anonymous()).version;
    set_retention(&ingest, version, json!(null)).await;
    keeper::retain(&ingest.keeper(DAY, false)).await;
    assert_eq!(ingest.times(0).await.unwrap(), [NEWEST], "the node's, for who does not say");
    ingest.close().await;
    group.shutdown().await.unwrap();
}

/// Heads of tenants that the metadata does not know lie before and behind that of one it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_cannot_be_sealed_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, group) = meta(dir.path()).await;
    let ingest = Ingest::open(dir.path(), &meta, &Clock::test(0));
    let known = TenantId::new("b").unwrap();
    for name in ["a", "b", "c"] {
        for at in [0, 100_000_000] {
            let one = Append { tenant: TenantId::new(name).unwrap(), ..append(&meta, at) };
            ingest.local.append(one, LONG).await.unwrap();
        }
    }
    meta.tenant_or_create(&known, LONG).await.unwrap();
    let stop = CancellationToken::new();
    let counts = Arc::new(sealer::SealCounts::default());
    let child = sealer::child(sealer::Config {
        meta: meta.clone(),
        peers: Peers::local_only(meta.node_id(), Arc::new(ingest.local.clone())),
        reach: Reach::new(meta.clone(), Kind::Own),
        clock: Clock::test(0),
        rules: Rules { window_ms: 7_200_000, delay_ms: 0, late_ms_max: 0, idle_ms: 0 },
        every: Duration::from_millis(1),
        counts: counts.clone(),
        stop: stop.clone(),
    });
    let sealed = async {
        while meta.seals(&known, PartitionId(0)).is_none() {
            meta.changed(meta.index()).await.unwrap();
        }
    };
    tokio::select! {
        ended = (child.start)() => panic!("the sealer ended: {ended:?}"),
        sealed = tokio::time::timeout(LONG, sealed) => sealed.unwrap(),
    }
    stop.cancel();
    ingest.close().await;
    group.shutdown().await.unwrap();
}
