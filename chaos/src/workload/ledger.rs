//! The end of a run with blocks: everything goes to blocks, and what the store says of them is held against the bucket.

use super::{Shared, failure};
use crate::client::Client;
use crate::cluster::Bucket;
use crate::error::Error;
use crate::history::{Answer, BlockSeen, Call, End};
use engram_model::time::Stopwatch;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Longest time until all of a tenant is in blocks.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);
/// A block may be replaced while it is looked at: then all are looked at again, so often.
const LOOKS: u32 = 20;

/// Has everything become blocks.
///
/// # Errors
/// It does not in time.
pub(crate) async fn flush_all(shared: &Shared) -> Result<(), Error> {
    for tenant in 0..shared.numbers.tenants {
        let (watch, name) = (Stopwatch::start(), shared.numbers.tenant(tenant));
        loop {
            let node = shared.roster.listed().into_iter().next().unwrap_or(0);
            let client = shared.roster.client(node).ok_or_else(|| Error::Usage("no node is listed".to_owned()))?;
            match client.post_as("admin/flush?wait=true", Some(&name)).await {
                Ok(()) => break,
                Err(error) if watch.elapsed() > FLUSH_WITHIN => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
    Ok(())
}

/// Asks each node for the digest of all that each tenant has stored.
pub(crate) async fn digests(shared: &Shared) {
    for tenant in 0..shared.numbers.tenants {
        for node in shared.roster.listed() {
            let Some(client) = shared.roster.client(node) else { continue };
            let op = shared.recorder.begin(node, Call::Digest { tenant });
            match client.digest(Some(&shared.numbers.tenant(tenant))).await {
                Ok(digest) => shared.recorder.end(op, End::Ok, Some(Answer::Digest(digest)), ""),
                Err(error) => shared.recorder.end(op, End::Fail, None, &error.to_string()),
            }
        }
    }
}

/// Asks what there is of each tenant, and looks whether it lies in the bucket.
pub(crate) async fn look(shared: &Shared, bucket: &Bucket) {
    for tenant in 0..shared.numbers.tenants {
        let node = shared.roster.listed().into_iter().next().unwrap_or(0);
        let Some(client) = shared.roster.client(node) else { continue };
        let op = shared.recorder.begin(node, Call::Ledger { tenant });
        let (end, answer, why) = match ledger(&client, &shared.numbers.tenant(tenant), bucket).await {
            Ok(answer) => (End::Ok, Some(answer), String::new()),
            Err(error) => {
                let (end, why) = failure(&error.to_string());
                (end, None, why)
            }
        };
        shared.recorder.end(op, end, answer, &why);
    }
}

async fn ledger(client: &Client, tenant: &str, bucket: &Bucket) -> Result<Answer, Error> {
    for _ in 1..LOOKS {
        let looked = once(client, tenant, bucket).await;
        let after = index(client, tenant).await?;
        match looked {
            Ok((answer, before)) if after == before => return Ok(answer),
            _ => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
    Ok(once(client, tenant, bucket).await?.0)
}

/// The blocks that are read, by name.
async fn index(client: &Client, tenant: &str) -> Result<BTreeSet<String>, Error> {
    let answer = client.ask("admin/blocks", &[], Some(tenant)).await?;
    let rows = answer["data"]["blocks"].as_array().into_iter().flatten();
    Ok(rows.filter(|row| row["state"] == "read").filter_map(|row| Some(row["id"].as_str()?.to_owned())).collect())
}

async fn once(client: &Client, tenant: &str, bucket: &Bucket) -> Result<(Answer, BTreeSet<String>), Error> {
    let names = index(client, tenant).await?;
    let mut blocks = Vec::new();
    for id in &names {
        let row = client.ask(&format!("admin/blocks/{id}"), &[], Some(tenant)).await?["data"].take();
        let verified = client.ask_post(&format!("admin/blocks/{id}/verify"), Some(tenant)).await?;
        let damage = (verified["data"]["ok"] != true).then(|| format!("damaged: {}", verified["data"]["damage"]));
        let sources = row["sources"].as_array().into_iter().flatten();
        blocks.push(BlockSeen {
            id: id.clone(),
            samples: row["samples"].as_u64().unwrap_or(0),
            sources: sources.filter_map(|id| Some(id.as_str()?.to_owned())).collect(),
            wrong: missing(&row, bucket, &format!("{tenant}/{id}")).or(damage),
        });
    }
    let stored = client.digest(Some(tenant)).await?;
    let strangers = bucket.of(tenant).into_iter().filter(|id| !names.contains(id));
    Ok((Answer::Ledger { blocks, stored, strangers: strangers.collect() }, names))
}

/// The first object of a block that is not in the bucket as it was agreed.
fn missing(row: &Value, bucket: &Bucket, block: &str) -> Option<String> {
    let files = row["files"].as_array().filter(|files| !files.is_empty());
    let Some(files) = files else { return Some("it names no objects".to_owned()) };
    files.iter().find_map(|file| {
        let name = file["name"].as_str().unwrap_or_default();
        match bucket.bytes(&format!("{block}/{name}")) {
            Some(have) if Some(have) == file["bytes"].as_u64() => None,
            Some(have) => Some(format!("{name} has {have} bytes, agreed are {}", file["bytes"])),
            None => Some(format!("{name} is not there")),
        }
    })
}
