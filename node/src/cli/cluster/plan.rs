//! A preview as a page: what would move, how much, and what could still fail before, meanwhile and after.

use serde_json::Value;

use crate::cli::blocks::short_size;
use crate::cli::show::{brief, table};

/// Moves that are listed; JSON has all.
const MOVES_SHOWN: usize = 24;

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| brief(value), short_size)
}

/// `1 zone`, `2 zones`.
pub(super) fn count(value: u64, one: &str) -> String {
    if value == 1 { format!("1 {one}") } else { format!("{value} {one}s") }
}

/// What may fail: `1 node or 1 zone may fail`.
pub(super) fn margin(of: &Value) -> String {
    let number = |name: &str| of[name].as_u64().unwrap_or(0);
    match (number("withoutQuorum"), number("nodes"), number("zones")) {
        (0, 0, _) => "NO NODE may fail".to_owned(),
        (0, nodes, 0) => format!("{} may fail, no whole zone", count(nodes, "node")),
        (0, nodes, zones) => format!("{} or {} may fail", count(nodes, "node"), count(zones, "zone")),
        (without, ..) => format!("{} WITHOUT QUORUM", count(without, "partition")),
    }
}

/// `cluster/plan`.
pub(crate) fn plan(data: &Value) -> Option<String> {
    let (moves, nodes) = (data.get("moves")?.as_array()?, data.get("nodes")?.as_array()?);
    let number = |name: &str| data[name].as_u64().unwrap_or(0);
    let moved = match moves.len() as u64 {
        0 => "nothing moves".to_owned(),
        some => format!(
            "{}, {} to make, {}",
            count(some, "partition"),
            if number("copies") == 1 { "1 copy".to_owned() } else { format!("{} copies", number("copies")) },
            short_size(number("bytes"))
        ),
    };
    let metadata = &data["metadata"];
    let left = format!("{} of {} voters left", brief(&metadata["left"]), brief(&metadata["voters"]));
    let metadata = if metadata["hasQuorum"] == true { left } else { format!("{left}: NO MAJORITY") };
    let mut out = table(&[
        row(["plan", &brief(data.get("plan")?)]),
        row(["moves", &moved]),
        row(["now", &margin(&data["quorum"]["now"])]),
        row(["meanwhile", &margin(&data["quorum"]["during"])]),
        row(["afterwards", &margin(&data["quorum"]["after"])]),
        row(["metadata", &metadata]),
    ]);
    if let Some(tenant) = data.get("tenant").filter(|tenant| tenant.is_object()) {
        out.push_str(&shard(tenant));
    }
    let mut rows = vec![row(["NODE", "ZONE", "REPLICAS", "AFTER", "TO FETCH", "BYTES"])];
    for node in nodes {
        let cell = |name: &str| brief(&node[name]);
        let id = if node["new"] == true { format!("new {}", cell("id")) } else { cell("id") };
        rows.push(vec![id, cell("zone"), cell("before"), cell("after"), cell("comes"), size(&node["bytes"])]);
    }
    out.push('\n');
    out.push_str(&table(&rows));
    if !moves.is_empty() {
        out.push('\n');
        out.push_str(&list(moves));
    }
    for warning in data["warnings"].as_array().into_iter().flatten() {
        out.push_str(&format!("\nwarning: {}\n", brief(warning)));
    }
    let name = brief(data.get("plan")?);
    out.push_str(&match data["applicable"].as_bool() {
        Some(true) => format!("\nNothing has been changed. To have it happen: engram cluster apply {name}\n"),
        _ => "\nNothing has been changed.\n".to_owned(),
    });
    Some(out)
}

/// What becomes of one tenant.
fn shard(tenant: &Value) -> String {
    let share = tenant["seriesShare"].as_f64().unwrap_or(0.0) * 100.0;
    let cell = |name: &str| brief(&tenant[name]);
    format!(
        "tenant      {}: its samples go to {} partitions, now {}; {share:.1} % of its series to another one\n            nothing \
         is copied: queries cover {} partitions, those of before among them\n",
        cell("name"),
        cell("after"),
        cell("before"),
        cell("read")
    )
}

fn list(moves: &[Value]) -> String {
    let mut rows = vec![row(["PARTITION", "WHY", "FROM", "TO", "BYTES EACH"])];
    for one in moves.iter().take(MOVES_SHOWN) {
        let cell = |name: &str| brief(&one[name]);
        rows.push(vec![cell("partition"), cell("why"), cell("from"), cell("to"), size(&one["bytes"])]);
    }
    let mut out = table(&rows);
    if let Some(more) = moves.len().checked_sub(MOVES_SHOWN).filter(|more| *more > 0) {
        out.push_str(&format!("… and {more} more, see --json\n"));
    }
    out
}

/// `cluster/apply`.
pub(crate) fn applied(data: &Value) -> Option<String> {
    Some(format!("{} is applied: `engram cluster watch` shows how far it is\n", brief(data.get("plan")?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_fits_on_a_screen() {
        let margin = |nodes: u64| json!({"withoutQuorum": 0, "nodes": nodes, "zones": nodes, "short": 0});
        let data = json!({
            "plan": "drain:3@17", "applicable": true, "copies": 2, "bytes": 3072,
            "moves": [{"partition": 4, "why": "leaving", "from": [1, 2, 3], "to": [1, 2, 9], "bytes": 1024}],
            "nodes": [{"id": 9, "zone": "c", "new": false, "before": 1, "after": 2, "comes": 1, "bytes": 1024}],
            "quorum": {"now": margin(1), "during": margin(0), "after": margin(2)},
            "metadata": {"voters": 3, "left": 1, "hasQuorum": false}, "warnings": ["be careful"],
        });
        let want = "\
plan        drain:3@17
moves       1 partition, 2 copies to make, 3.0KiB
now         1 node or 1 zone may fail
meanwhile   NO NODE may fail
afterwards  2 nodes or 2 zones may fail
metadata    1 of 3 voters left: NO MAJORITY

NODE  ZONE  REPLICAS  AFTER  TO FETCH  BYTES
9     c     1         2      1         1.0KiB

PARTITION  WHY      FROM   TO     BYTES EACH
4          leaving  1,2,3  1,2,9  1.0KiB

warning: be careful

Nothing has been changed. To have it happen: engram cluster apply drain:3@17
";
        assert_eq!(plan(&data).unwrap(), want);
        assert_eq!(plan(&json!({})), None);
    }
}
