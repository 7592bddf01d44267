//! What each node's own replicas hold, asked of each node: see [`crate::check::compare`].

use super::{Shared, constant};
use crate::check::{Compared, compare};
use crate::client::Client;
use crate::error::Error;
use crate::history::{Answer, Call, End, Held, SealSeen, Stage};
use engram_model::Millis;
use engram_model::digest::Digest;
use engram_model::time::Stopwatch;
use serde_json::Value;
use std::time::Duration;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Looks until all replicas hold the same, `within` at most, without leaving anything out if `all`. Whether they do.
pub(crate) async fn hold_alike(shared: &Shared, all: bool, within: Duration) -> bool {
    let watch = Stopwatch::start();
    loop {
        let compared = look_once(shared).await;
        let is_alike = compared.is_ok_and(|found| {
            let differs = |one: &Compared| !one.differing.is_empty() || (all && one.left_out > 0);
            !found.iter().any(differs)
        });
        if is_alike || watch.elapsed() >= within {
            return is_alike;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks every node and writes down what it says.
pub(crate) async fn held(shared: &Shared, stage: Stage) {
    for tenant in tenants(shared) {
        for node in shared.roster.listed() {
            let Some(client) = shared.roster.client(node) else { continue };
            let op = shared.recorder.begin(node, Call::Held { tenant: tenant.clone(), stage });
            match ask(&client, &tenant).await {
                Ok(replicas) => shared.recorder.end(op, End::Ok, Some(Answer::Held { replicas }), ""),
                Err(error) => shared.recorder.end(op, End::Fail, None, &error.to_string()),
            }
        }
    }
}

/// All whose samples there are.
fn tenants(shared: &Shared) -> Vec<String> {
    let numbered = (0..shared.numbers.tenants).map(|tenant| shared.numbers.tenant(tenant));
    numbered.chain([constant::TENANT.to_owned()]).collect()
}

async fn look_once(shared: &Shared) -> Result<Vec<Compared>, Error> {
    let mut found = Vec::new();
    for tenant in tenants(shared) {
        let mut told = Vec::new();
        for node in shared.roster.listed() {
            let Some(client) = shared.roster.client(node) else { continue };
            told.extend(ask(&client, &tenant).await?);
        }
        found.push(compare(told.iter()));
    }
    Ok(found)
}

async fn ask(client: &Client, tenant: &str) -> Result<Vec<Held>, Error> {
    let params = [("tenant", tenant.to_owned()), ("slots", "true".to_owned())];
    let answer = client.ask("admin/replicas", &params, None).await?;
    let data = &answer["data"];
    let bad =
        || Error::Server { url: "admin/replicas".to_owned(), reason: format!("it is not understood: {data:.300}") };
    let node = data["node"].as_u64().ok_or_else(bad)?;
    let rows = data["partitions"].as_array().ok_or_else(bad)?;
    rows.iter().map(|row| replica(row, node).ok_or_else(bad)).collect()
}

fn replica(row: &Value, node: u64) -> Option<Held> {
    let tenant = &row["tenants"][0];
    let list = |value: &Value| value.as_array().map_or(&[][..], Vec::as_slice).to_vec();
    Some(Held {
        partition: u32::try_from(row["partition"].as_u64()?).ok()?,
        epoch: row["epoch"].as_u64()?,
        members: list(&row["replicas"]).iter().filter_map(Value::as_u64).collect(),
        moves: !row["next"].is_null(),
        node,
        complete: row["complete"].as_bool()?,
        why: row["error"].as_str().unwrap_or_default().to_owned(),
        floor: tenant["floorMs"].as_i64(),
        seals: list(&tenant["seals"]).iter().map(seal).collect::<Option<_>>()?,
        slots: list(&tenant["slots"]).iter().map(slot).collect::<Option<_>>()?,
    })
}

fn seal(row: &Value) -> Option<SealSeen> {
    Some(SealSeen {
        number: row["seal"].as_u64()?,
        start: row["start"].as_i64()?,
        end: row["end"].as_i64()?,
        forgotten: row["state"] == "forgotten",
    })
}

fn slot(row: &Value) -> Option<(Millis, Digest)> {
    Some((row["startMs"].as_i64()?, Client::digest_in(&row["digest"])?))
}
