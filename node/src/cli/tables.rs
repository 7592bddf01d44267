//! The cluster's status and the tenants as tables: what a person looks for first stands first.
//!
//! Each function answers `None` for JSON of another shape, from an older or newer node; the caller then shows it by its
//! structure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::show::{brief, table};
use crate::config::units::format_duration_ms;

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

fn moment(value: &Value) -> String {
    value.as_i64().map_or_else(|| brief(value), crate::http::format_time)
}

/// `cluster/status`.
pub(crate) fn cluster(data: &Value) -> Option<String> {
    let raft = data.get("raft")?;
    let (nodes, partitions) = (data.get("nodes")?.as_array()?, data.get("partitions")?.as_array()?);
    let leader =
        raft["leader"].as_u64().map_or("none: changes of the metadata wait".to_owned(), |id| format!("node {id}"));
    let tenants = match data["tenantsDeleted"].as_u64().unwrap_or(0) {
        0 => brief(data.get("tenants")?),
        deleted => format!("{}, {deleted} of them marked for deletion", brief(data.get("tenants")?)),
    };
    let this_node = format!("{} ({})", brief(data.get("node")?), brief(&raft["role"]));
    let log = format!("applied {} of {} committed", brief(&raft["applied"]), brief(&raft["committed"]));
    let mut out = table(&[
        row(["cluster", &brief(data.get("cluster")?)]),
        row(["this node", &this_node]),
        row(["leader", &leader]),
        row(["term", &brief(&raft["term"])]),
        row(["metadata", &log]),
        row(["voters", &brief(&raft["voters"])]),
        row(["tenants", &tenants]),
        row(["partitions", &partition_line(data, partitions)]),
    ]);
    out.push('\n');
    out.push_str(&node_table(nodes, partitions));
    Some(out)
}

/// The nodes of `cluster/status`.
pub(crate) fn nodes(data: &Value) -> Option<String> {
    Some(node_table(data.get("nodes")?.as_array()?, data.get("partitions")?.as_array()?))
}

fn node_table(nodes: &[Value], partitions: &[Value]) -> String {
    let mut held = BTreeMap::<u64, u64>::new();
    for node in partitions.iter().filter_map(|one| one["replicas"].as_array()).flatten().filter_map(Value::as_u64) {
        *held.entry(node).or_default() += 1;
    }
    let mut rows = vec![row(["NODE", "ZONE", "STATE", "REPLICAS", "VERSION", "HTTP", "GRPC"])];
    for node in nodes {
        let held = node["id"].as_u64().and_then(|id| held.get(&id)).copied().unwrap_or(0).to_string();
        let cell = |name: &str| brief(&node[name]);
        rows.push(vec![cell("id"), cell("zone"), cell("state"), held, cell("version"), cell("http"), cell("grpc")]);
    }
    table(&rows)
}

/// The partitions of `cluster/status`.
pub(crate) fn ring(data: &Value) -> Option<String> {
    let ids = |list: &Value| {
        let all: Vec<String> = list.as_array()?.iter().map(brief).collect();
        Some(all.join(" "))
    };
    let mut rows = vec![row(["PARTITION", "EPOCH", "REPLICAS", "NEXT"])];
    for one in data.get("partitions")?.as_array()? {
        let next = one.get("next").and_then(ids).unwrap_or_default();
        rows.push(row([&brief(one.get("id")?), &brief(one.get("epoch")?), &ids(one.get("replicas")?)?, &next]));
    }
    Some(table(&rows))
}

/// `64, 3 replicas each, none under-replicated`.
fn partition_line(data: &Value, partitions: &[Value]) -> String {
    let counts = || partitions.iter().map(|one| one["replicas"].as_array().map_or(0, Vec::len));
    let (fewest, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
    let each = match (fewest, most) {
        (1, 1) => "1 replica each".to_owned(),
        (fewest, most) if fewest == most => format!("{most} replicas each"),
        (fewest, most) => format!("{fewest} to {most} replicas"),
    };
    let of = |name: &str| data[name].as_u64().unwrap_or(0);
    let under = match of("underReplicated") {
        0 => "none under-replicated".to_owned(),
        some => format!("{some} UNDER-REPLICATED"),
    };
    let moving = match of("moving") {
        0 => String::new(),
        some => format!(", {some} moving"),
    };
    format!("{}, {each}, {under}{moving}", partitions.len())
}

fn shard(size: &Value) -> String {
    if size.as_u64() == Some(0) { "all".to_owned() } else { brief(size) }
}

/// `admin/tenants`.
pub(crate) fn tenants(data: &Value) -> Option<String> {
    let all = data.as_array()?;
    if all.is_empty() {
        return Some("no tenants: the first write of one makes it, or `engram tenant set`\n".to_owned());
    }
    let mut rows = vec![row(["TENANT", "VERSION", "PARTITIONS", "CREATED", "STATE"])];
    for one in all {
        let state = if one.get("deleted")?.as_bool()? { "marked for deletion" } else { "active" };
        let created = moment(one.get("createdAtMs")?);
        let (name, version) = (brief(one.get("tenant")?), brief(one.get("version")?));
        rows.push(row([&name, &version, &shard(one.get("shardSize")?), &created, state]));
    }
    Some(table(&rows))
}

/// `admin/tsdb/snapshot`.
pub(crate) fn snapshot(data: &Value) -> Option<String> {
    let lines = ["name", "path", "blocks", "samples"].map(|key| Some(row([key, &brief(data.get(key)?)])));
    Some(table(&lines.into_iter().collect::<Option<Vec<_>>>()?))
}

/// `admin/flush`.
pub(crate) fn flush(data: &Value) -> Option<String> {
    let windows = data.get("windows")?.as_array()?;
    if windows.is_empty() {
        return Some("nothing to flush: all of it is in blocks\n".to_owned());
    }
    let mut rows = vec![row(["PARTITION", "SEAL", "FROM", "TO", "SAMPLES", "BLOCK"])];
    for window in windows {
        let block = match (window.get("block")?, window.get("cut")?) {
            (Value::Null, Value::Bool(false)) => "to be cut".to_owned(),
            (block, _) => brief(block),
        };
        let at = |key: &str| Some(moment(window.get(key)?));
        rows.push(row([
            &brief(window.get("partition")?),
            &brief(window.get("seal")?),
            &at("start")?,
            &at("end")?,
            &brief(window.get("samples")?),
            &block,
        ]));
    }
    Some(table(&rows))
}

/// `admin/tenants/<tenant>`.
pub(crate) fn tenant(data: &Value) -> Option<String> {
    let limits = data.get("limits")?.as_object()?;
    let by = |at: &str, by: &str| format!("{} by {}", moment(&data[at]), brief(&data[by]));
    let state = match data.get("deletedAtMs")? {
        Value::Null => "active".to_owned(),
        at => format!("marked for deletion at {}, takes no samples", moment(at)),
    };
    let size = shard(data.get("shardSize")?);
    let ever = shard(&data["shardSizeLargest"]);
    let partitions = if size == ever { size } else { format!("{size} (reads look at {ever}: it was larger)") };
    let mut out = table(&[
        row(["tenant", &brief(data.get("tenant")?)]),
        row(["version", &brief(data.get("version")?)]),
        row(["state", &state]),
        row(["partitions", &partitions]),
        row(["created", &by("createdAtMs", "createdBy")]),
        row(["changed", &by("changedAtMs", "changedBy")]),
    ]);
    let mut rows = vec![row(["LIMIT", "VALUE", ""])];
    for (name, value) in limits {
        let millis = value.as_i64().filter(|ms| *ms != 0 && name.ends_with("_ms"));
        rows.push(row([name, &brief(value), &millis.map_or(String::new(), format_duration_ms)]));
    }
    out.push('\n');
    out.push_str(&table(&rows));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cluster_fits_on_a_screen() {
        let partitions: Vec<_> = (0..64).map(|id| json!({"id": id, "epoch": 1, "replicas": [1]})).collect();
        let mut data = json!({
            "cluster": "c", "node": 1, "tenants": 3, "tenantsDeleted": 1, "underReplicated": 0, "moving": 0,
            "raft": {"term": 2, "role": "leader", "leader": 1, "voters": [1], "applied": 9, "committed": 9},
            "nodes": [{"id": 1, "zone": "a", "state": "active", "http": "h:1", "grpc": "g:1", "version": "0.1.0"}],
            "partitions": partitions,
        });
        let want = "\
cluster     c
this node   1 (leader)
leader      node 1
term        2
metadata    applied 9 of 9 committed
voters      1
tenants     3, 1 of them marked for deletion
partitions  64, 1 replica each, none under-replicated

NODE  ZONE  STATE   REPLICAS  VERSION  HTTP  GRPC
1     a     active  64        0.1.0    h:1   g:1
";
        assert_eq!(cluster(&data).unwrap(), want);
        data["raft"]["leader"] = Value::Null;
        data["partitions"][0]["replicas"] = json!([1, 2]);
        data["underReplicated"] = json!(63);
        let text = cluster(&data).unwrap();
        assert!(
            text.contains("64, 1 to 2 replicas, 63 UNDER-REPLICATED") && text.contains("leader      none"),
            "{text}"
        );
        assert_eq!(cluster(&json!({"leader": 1})), None);
    }

    #[test]
    fn tenants_are_shown_in_words() {
        let all = json!([{"tenant": "a", "version": 1, "shardSize": 0, "createdAtMs": 0, "deleted": false},
                         {"tenant": "b", "version": 2, "shardSize": 4, "createdAtMs": 0, "deleted": true}]);
        let want = "\
TENANT  VERSION  PARTITIONS  CREATED               STATE
a       1        all         1970-01-01T00:00:00Z  active
b       2        4           1970-01-01T00:00:00Z  marked for deletion
";
        assert_eq!(tenants(&all).unwrap(), want);
        assert!(tenants(&json!([])).unwrap().starts_with("no tenants"));
        let one = json!({"tenant": "b", "version": 2, "shardSize": 4, "shardSizeLargest": 8, "createdAtMs": 0,
            "createdBy": "first write", "changedAtMs": 0, "changedBy": "admin API", "deleted": true, "deletedAtMs": 0,
            "limits": {"ingestion_rate": 0, "max_query_length_ms": 90000, "x_ms": 0}});
        let text = tenant(&one).unwrap();
        for part in
            ["4 (reads look at 8: it was larger)", "max_query_length_ms  90000  1m30s\n", "x_ms                 0\n"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!((tenant(&json!([])), tenants(&json!({}))), (None, None));
    }
}
