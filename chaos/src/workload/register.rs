//! Registers: a tenant's configuration, changed by compare-and-set from everywhere at once.
//!
//! A register is a tenant nobody writes to; its value is one of its limits. A change names the version it was made for,
//! and the answer to one for a wrong version names the true one: that is the linearizable read the API has. A plain
//! `GET` is answered from what the node has applied, which may be old but must never go back.

use super::{Shared, failure};
use crate::client::Client;
use crate::history::{Answer, Call, End};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The limit that holds a register's value.
pub(crate) const LIMIT: &str = "max_global_series_per_user";
/// A version no register ever has.
pub(crate) const NO_VERSION: u64 = 1 << 40;

/// Which client of how many this is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mine {
    pub(super) client: usize,
    pub(super) clients: usize,
    pub(super) registers: u32,
}

/// Changes and reads until the run is over.
pub(super) async fn run(shared: Shared, mine: Mine, mut chance: StdRng) {
    let mut known: BTreeMap<u32, u64> = BTreeMap::new();
    // Values are unique over all clients.
    let mut value = mine.client as u64;
    while !shared.is_over() {
        let key = chance.random_range(0..mine.registers);
        let path = path(key);
        let answer = match chance.random_range(0..10) {
            0..=4 => {
                value += mine.clients as u64;
                let expected = known.get(&key).copied().unwrap_or(0);
                let body = json!({ "version": expected, "limits": { LIMIT: value } });
                let call = Call::Set { key, expected, value };
                shared.somewhere(&mut chance, None, &call, |client| put(client, &path, &body)).await
            }
            5..=7 => {
                let body = json!({ "version": NO_VERSION, "limits": {} });
                let act = |client| probe(client, &path, &body);
                shared.somewhere(&mut chance, None, &Call::Probe { key }, act).await
            }
            _ => shared.somewhere(&mut chance, None, &Call::Get { key }, |client| get(client, &path)).await,
        };
        if let Some(Answer::Register { version, .. } | Answer::Version { version }) = answer.1 {
            known.insert(key, version);
        }
        shared.rest(&mut chance).await;
        status(&shared, &mut chance).await;
    }
}

fn path(key: u32) -> String {
    format!("admin/tenants/register-{key}")
}

/// The register that an answer tells of.
pub(crate) fn register(answer: &Value) -> Option<Answer> {
    let version = answer["data"]["version"].as_u64()?;
    Some(Answer::Register { version, value: answer["data"]["limits"][LIMIT].as_u64()? })
}

/// The version that a conflict's text names; 0 when there is no such tenant.
pub(crate) fn named(text: &str) -> Option<u64> {
    if text.contains("does not exist") {
        return Some(0);
    }
    let rest = text.split_once("at version ")?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

async fn put(client: Client, path: &str, body: &Value) -> (End, Option<Answer>, String) {
    match client.put(path, body).await {
        Ok((200, answer)) => match register(&answer) {
            Some(register) => (End::Ok, Some(register), String::new()),
            None => (End::Unknown, None, format!("no register: {answer}")),
        },
        Ok((409, answer)) => {
            let why = answer["error"].as_str().unwrap_or_default().to_owned();
            (End::Fail, named(&why).map(|version| Answer::Version { version }), why)
        }
        Ok((status, answer)) => {
            let (end, why) = failure(&format!("{status}: {answer}"));
            (end, None, why)
        }
        Err(error) => {
            let (end, why) = failure(&error.to_string());
            (end, None, why)
        }
    }
}

async fn probe(client: Client, path: &str, body: &Value) -> (End, Option<Answer>, String) {
    match put(client, path, body).await {
        (End::Fail, Some(version), _) => (End::Ok, Some(version), String::new()),
        other => other,
    }
}

async fn get(client: Client, path: &str) -> (End, Option<Answer>, String) {
    match client.ask(path, &[], None).await {
        Ok(answer) => match register(&answer) {
            Some(register) => (End::Ok, Some(register), String::new()),
            None => (End::Fail, None, format!("no register: {answer}")),
        },
        Err(error) if error.to_string().contains(": 404:") => {
            (End::Ok, Some(Answer::Register { version: 0, value: 0 }), String::new())
        }
        Err(error) => {
            let (_, why) = failure(&error.to_string());
            (End::Fail, None, why)
        }
    }
}

/// What a node at random knows of the cluster.
async fn status(shared: &Shared, chance: &mut StdRng) {
    shared.somewhere(chance, None, &Call::Status, look).await;
}

async fn look(client: Client) -> (End, Option<Answer>, String) {
    match client.ask("cluster/status", &[], None).await {
        Ok(answer) => {
            let (raft, number) = (&answer["data"]["raft"], |v: &Value| v.as_u64().unwrap_or(0));
            let partitions = answer["data"]["partitions"].as_array();
            let epochs = partitions.into_iter().flatten().map(|row| number(&row["epoch"])).collect();
            let (term, applied, leader) = (number(&raft["term"]), number(&raft["applied"]), raft["leader"].as_u64());
            let leases = answer["data"]["leases"].as_array().into_iter().flatten();
            let lease = |row: &Value| {
                (row["key"].as_str().unwrap_or("?").to_owned(), number(&row["node"]), number(&row["fence"]))
            };
            let (id, fences) = (number(&answer["data"]["node"]), leases.map(lease).collect());
            (End::Ok, Some(Answer::Status { term, applied, leader, epochs, id, fences }), String::new())
        }
        Err(error) => (End::Fail, None, failure(&error.to_string()).1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_the_version() {
        assert_eq!(named("tenant reg is at version 2, not 99999999: read it again"), Some(2));
        assert_eq!(named("tenant reg exists already, at version 17: name that version to change it"), Some(17));
        assert_eq!(named("tenant reg does not exist, so it is not at version 5: version 0 creates"), Some(0));
        assert_eq!(named("another text"), None);
    }
}
