//! `engram cluster replicas`: the replicas of a tenant's partitions held against each other, slot by slot.
//!
//! Every node is asked for its own (`admin/replicas`), because a read asks a majority and hides what one replica lacks.
//! Slots older than what one of them keeps are left out, and those in the window of a seal that one has forgotten and
//! another has not. What differs and is being written differs for a moment all the time; what still differs some tens of
//! seconds later deserves a look. The exit code is 1 when something differs or a replica did not answer.

use std::collections::{BTreeMap, BTreeSet};

use clap::Command;
use engram_model::digest::SLOT_MS;
use engram_model::tenant::TenantId;
use serde_json::{Value, json};

use crate::cli::client::{Ask, Said, Shape, Target, Verb, escape, fetch};
use crate::cli::show::{failure, table};
use crate::cli::with_target;

/// Whose replicas, asked where.
#[derive(Clone, Debug)]
pub struct Replicas {
    target: Target,
}

/// The grammar.
pub(super) fn command() -> Command {
    with_target(Command::new("replicas").about("Hold the replicas of a tenant's partitions against each other"))
}

pub(super) fn wanted(target: Target) -> Replicas {
    Replicas { target }
}

/// Asks every node; answers what differs.
///
/// # Errors
/// A line for the person.
pub(in crate::cli) fn run(replicas: &Replicas) -> Result<Said, String> {
    let target = &replicas.target;
    let status = data(target, "/api/v1/cluster/status")?;
    let tenant = target.tenant.clone().unwrap_or_else(|| TenantId::anonymous().as_str().to_owned());
    let path = format!("/api/v1/admin/replicas?slots=true&tenant={}", escape(&tenant));
    let mut told = BTreeMap::new();
    for node in list(&status["nodes"]).iter().filter(|node| node["state"] != "dead") {
        let (Some(id), Some(http)) = (node["id"].as_u64(), node["http"].as_str()) else { continue };
        let at = Target { url: format!("http://{http}"), ..target.clone() };
        told.insert(id, data(&at, &path));
    }
    Ok(said(&compare(list(&status["partitions"]), &told), target.json))
}

fn data(target: &Target, path: &str) -> Result<Value, String> {
    let (is_good, body) = fetch(&Ask::of(target, path, Verb::Get, Shape::Cluster))?;
    let data = serde_json::from_str::<Value>(&body).ok().and_then(|mut body| Some(body.get_mut("data")?.take()));
    data.filter(|_| is_good).ok_or_else(|| failure(&body))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What comes of laying replicas side by side.
#[derive(Debug, Default)]
struct Compared {
    /// Partition, slot if it is about one, what.
    odd: Vec<(u64, Option<i64>, String)>,
    replicas: u64,
    alike: u64,
    left_out: u64,
}

fn compare(partitions: &[Value], told: &BTreeMap<u64, Result<Value, String>>) -> Compared {
    let mut compared = Compared::default();
    for partition in partitions {
        let id = partition["id"].as_u64().unwrap_or(0);
        let (mut rows, mut epochs) = (Vec::new(), BTreeSet::new());
        for node in list(&partition["replicas"]).iter().filter_map(Value::as_u64) {
            let row = match told.get(&node) {
                Some(Ok(own)) => list(&own["partitions"]).iter().find(|row| row["partition"] == id),
                Some(Err(why)) => {
                    compared.odd.push((id, None, format!("node {node} does not answer: {why}")));
                    continue;
                }
                None => None,
            };
            match row {
                Some(row) if row["complete"] == true => {
                    epochs.insert(row["epoch"].as_u64());
                    rows.push((node, row));
                }
                Some(row) => {
                    let why = row["error"].as_str().unwrap_or("it is not complete");
                    compared.odd.push((id, None, format!("node {node}: {why}")));
                }
                None => compared.odd.push((id, None, format!("node {node} knows nothing of it"))),
            }
        }
        compared.replicas += rows.len() as u64;
        if epochs.len() > 1 {
            compared.odd.push((id, None, "its replicas are being changed".to_owned()));
        } else {
            slots(id, &rows, &mut compared);
        }
    }
    compared
}

fn slots(partition: u64, rows: &[(u64, &Value)], compared: &mut Compared) {
    let floor = rows.iter().filter_map(|(_, row)| row["tenants"][0]["floorMs"].as_i64()).max();
    let windows = forgotten_by_some(rows);
    let of = |row: &Value| -> BTreeMap<i64, Value> {
        let slot = |slot: &Value| Some((slot["startMs"].as_i64()?, slot["digest"].clone()));
        list(&row["tenants"][0]["slots"]).iter().filter_map(slot).collect()
    };
    let held: Vec<(u64, BTreeMap<i64, Value>)> = rows.iter().map(|(node, row)| (*node, of(row))).collect();
    let all: BTreeSet<i64> = held.iter().flat_map(|(_, slots)| slots.keys()).copied().collect();
    for slot in all {
        let inside = |(start, end): &(i64, i64)| slot < *end && *start < slot.saturating_add(SLOT_MS);
        if floor.is_some_and(|floor| slot < floor) || windows.iter().any(inside) {
            compared.left_out += 1;
            continue;
        }
        let digests: BTreeSet<String> = held.iter().map(|(_, slots)| format!("{:?}", slots.get(&slot))).collect();
        if digests.len() == 1 {
            compared.alike += 1;
            continue;
        }
        let count = |slots: &BTreeMap<i64, Value>| slots.get(&slot).and_then(|one| one["count"].as_u64()).unwrap_or(0);
        let each = held.iter().map(|(node, slots)| format!("node {node}: {}", count(slots)));
        compared.odd.push((partition, Some(slot), each.collect::<Vec<_>>().join(", ")));
    }
}

/// Windows of seals that some have forgotten and others have not, or do not know.
fn forgotten_by_some(rows: &[(u64, &Value)]) -> Vec<(i64, i64)> {
    let mut by_seal: BTreeMap<u64, ((i64, i64), Vec<bool>)> = BTreeMap::new();
    for seal in rows.iter().flat_map(|(_, row)| list(&row["tenants"][0]["seals"])) {
        let (Some(number), Some(start), Some(end)) =
            (seal["seal"].as_u64(), seal["start"].as_i64(), seal["end"].as_i64())
        else {
            continue;
        };
        by_seal.entry(number).or_insert(((start, end), Vec::new())).1.push(seal["state"] == "forgotten");
    }
    let uneven =
        by_seal.into_values().filter(|(_, all)| all.len() < rows.len() || all.iter().any(|one| *one != all[0]));
    uneven.map(|(window, _)| window).collect()
}

fn said(compared: &Compared, json: bool) -> Said {
    let is_good = compared.odd.is_empty();
    let Compared { odd, replicas, alike, left_out } = compared;
    if json {
        let odd: Vec<Value> =
            odd.iter().map(|(at, slot, what)| json!({ "partition": at, "slotMs": slot, "what": what })).collect();
        let all = json!({ "replicas": replicas, "alike": alike, "leftOut": left_out, "differing": odd });
        return Said { text: format!("{all}\n"), is_good };
    }
    let mut text = String::new();
    if !is_good {
        let mut rows = vec![["PARTITION", "SLOT", "SAMPLES"].map(str::to_owned).to_vec()];
        rows.extend(odd.iter().map(|(at, slot, what)| {
            vec![at.to_string(), slot.map_or_else(|| "-".to_owned(), crate::http::format_time), what.clone()]
        }));
        text.push_str(&table(&rows));
    }
    text.push_str(&format!(
        "{replicas} replicas: {alike} slots alike, {left_out} left out, {} differences\n",
        odd.len()
    ));
    Said { text, is_good }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(counts: &[u64], forgotten: Option<bool>) -> Result<Value, String> {
        let slots: Vec<Value> = (0_i64..)
            .zip(counts)
            .map(|(slot, count)| json!({ "startMs": slot * SLOT_MS, "digest": { "count": count, "low": "1" } }))
            .collect();
        let seal = |forgotten| {
            let state = if forgotten { "forgotten" } else { "aside" };
            json!({ "seal": 1, "start": 0, "end": SLOT_MS, "state": state })
        };
        let seals: Vec<Value> = forgotten.into_iter().map(seal).collect();
        let tenants = json!([{ "slots": slots, "seals": seals, "floorMs": null }]);
        Ok(json!({ "partitions": [{ "partition": 3, "epoch": 1, "complete": true, "tenants": tenants }] }))
    }

    fn of(told: [Result<Value, String>; 3]) -> Compared {
        let partitions = [json!({ "id": 3, "replicas": [1, 2, 3] })];
        compare(&partitions, &(1..).zip(told).collect())
    }

    #[test]
    fn what_one_replica_lacks_is_told() {
        let good = of([own(&[4, 5], None), own(&[4, 5], None), own(&[4, 5], None)]);
        assert_eq!((good.odd.len(), good.alike, good.replicas), (0, 2, 3));
        assert!(said(&good, false).is_good);
        let hole = of([own(&[4, 5], None), own(&[4], None), own(&[4, 5], None)]);
        assert_eq!(hole.odd, [(3, Some(SLOT_MS), "node 1: 5, node 2: 0, node 3: 5".to_owned())]);
        let text = said(&hole, false);
        assert!(
            !text.is_good && text.text.contains("1970-01-01T00:05:00") && text.text.contains("node 2: 0"),
            "{text:?}"
        );
        assert!(said(&hole, true).text.contains("\"slotMs\":300000"));
        let silent = of([own(&[4], None), Err("gone".to_owned()), own(&[4], None)]);
        assert_eq!((silent.odd.len(), silent.alike), (1, 1));
    }

    #[test]
    fn what_only_some_have_forgotten_is_left_out() {
        let some = of([own(&[4, 5], Some(false)), own(&[0, 5], Some(true)), own(&[4, 5], Some(false))]);
        assert_eq!((some.odd.len(), some.left_out, some.alike), (0, 1, 1));
        let none = of([own(&[4], Some(false)), own(&[3], Some(false)), own(&[4], Some(false))]);
        assert_eq!((none.odd.len(), none.left_out), (1, 0));
    }
}
