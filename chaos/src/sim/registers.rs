//! Registers: tenants nobody writes to, whose configuration clients change by compare-and-set through any node.

use super::clients::{Got, Load, ask};
use super::world::Shared;
use crate::history::{Answer, Call, End};
use crate::workload::NOT_REACHED;
use crate::workload::register::{LIMIT, NO_VERSION, named, register};
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_node::error::Error;
use engram_node::meta::Meta;
use engram_node::meta::tenants::TenantChange;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const REGISTERS: usize = 2;
/// How long a node may take for a change.
const WITHIN: Duration = Duration::from_secs(3);

/// Changes and reads until the load is over. Values are unique over all clients.
pub(super) async fn change(world: Shared, load: Arc<Load>, (client, clients): (u64, u64)) {
    let (mut known, mut value) = (BTreeMap::new(), client);
    while !load.is_over() {
        let node = world.pick(world.hosts.len());
        let key = u32::try_from(world.pick(REGISTERS)).unwrap_or(0);
        let call = match world.below(10) {
            0..=4 => {
                value += clients;
                Call::Set { key, expected: known.get(&key).copied().unwrap_or(0), value }
            }
            5..=6 => Call::Probe { key },
            _ => Call::Get { key },
        };
        if let Some(Answer::Register { version, .. } | Answer::Version { version }) = act(&world, node, call).await {
            known.insert(key, version);
        }
        tokio::time::sleep(world.millis(50, 700)).await;
    }
}

async fn act(world: &Shared, node: usize, call: Call) -> Option<Answer> {
    let op = world.begin(node, call.clone());
    world.tell(|| format!("operation {op}: {call:?} at node {node}"));
    let of = call.clone();
    let got = ask(&world.hosts[node], |life| async move { answer(&life.meta, &of).await }).await;
    let (end, answer, why) = match got {
        Got::Nobody => (End::Fail, None, format!("{NOT_REACHED}: node {node} is down")),
        Got::Nothing => (End::Unknown, None, "no answer".to_owned()),
        Got::Answer(Ok(answer)) => (End::Ok, Some(answer), String::new()),
        Got::Answer(Err(error)) => refused(&call, error),
    };
    world.tell(|| format!("operation {op}: {end:?} {answer:?}"));
    world.end(op, end, answer.clone(), &why);
    answer
}

/// A conflict names the version that it met, which is what a probe wants to know.
fn refused(call: &Call, error: Error) -> (End, Option<Answer>, String) {
    let version = named(&error.message).map(|version| Answer::Version { version });
    match (error.class, call) {
        (Class::Conflict, Call::Probe { .. }) if version.is_some() => (End::Ok, version, String::new()),
        (Class::Conflict, _) => (End::Fail, version, error.message),
        (Class::Unavailable | Class::Timeout, _) => (End::Unknown, None, error.message),
        _ => (End::Fail, None, error.message),
    }
}

async fn answer(meta: &Meta, call: &Call) -> Result<Answer, Error> {
    let nothing = || Answer::Register { version: 0, value: 0 };
    let (key, version, limits) = match call {
        Call::Set { key, expected, value } => (key, *expected, Map::from_iter([(LIMIT.to_owned(), json!(value))])),
        Call::Probe { key } => (key, NO_VERSION, Map::new()),
        Call::Get { key } => return meta.tenant_json(&tenant(*key)).map_or_else(|| Ok(nothing()), |row| told(&row)),
        _ => return Err(Error::new(Class::Internal, "no call of a register")),
    };
    let change = TenantChange { version, limits, shard_size: None };
    told(&meta.set_tenant(&tenant(*key), change, WITHIN).await?)
}

fn told(row: &Value) -> Result<Answer, Error> {
    register(&json!({ "data": row })).ok_or_else(|| Error::new(Class::Internal, format!("no register: {row}")))
}

fn tenant(key: u32) -> TenantId {
    TenantId::new(&format!("register-{key}")).unwrap_or_else(|e| unreachable!("a name of ours: {e}"))
}
