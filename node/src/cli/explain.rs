//! What the operators of a query did, as a tree with aligned columns: the root first, children below it.

use serde_json::Value;

use super::show::{brief, table};

/// Longest piece of the query's text in a line.
const TEXT_CHARS_MAX: usize = 60;

/// The tree of an answer's `explain`.
pub(super) fn tree(explain: &Value) -> String {
    let header = ["OPERATOR", "IN", "OUT", "SAMPLES", "PEAK", "BYTES", "SELF", "TOTAL", "TEXT", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    add(&mut rows, explain, "", "");
    table(&rows)
}

/// A node and its children; `first` stands before its name, `rest` before those of its children.
fn add(rows: &mut Vec<Vec<String>>, node: &Value, first: &str, rest: &str) {
    let field = |name: &str| node.get(name).map_or(String::new(), brief);
    let text: String = field("text").chars().take(TEXT_CHARS_MAX).collect();
    let marks = node.get("marks").and_then(Value::as_array).into_iter().flatten().map(brief);
    let select = node.get("select").map(|select| {
        let part = |name: &str| select.get(name).map_or(String::new(), brief);
        format!("select {}: {} series in {}", part("select"), part("series"), millis(select.get("fetchSeconds")))
    });
    rows.push(vec![
        format!("{first}{}", field("operator")),
        field("seriesIn"),
        field("seriesOut"),
        field("samples"),
        field("samplesPeak"),
        field("bytesPeak"),
        millis(node.get("selfSeconds")),
        millis(node.get("totalSeconds")),
        text,
        select.into_iter().chain(marks).collect::<Vec<_>>().join("; "),
    ]);
    let children: Vec<&Value> = node.get("children").and_then(Value::as_array).into_iter().flatten().collect();
    for (i, child) in children.iter().enumerate() {
        let (branch, trunk) = if i + 1 < children.len() { ("├─ ", "│  ") } else { ("└─ ", "   ") };
        add(rows, child, &format!("{rest}{branch}"), &format!("{rest}{trunk}"));
    }
}

fn millis(seconds: Option<&Value>) -> String {
    format!("{:.3}ms", seconds.and_then(Value::as_f64).unwrap_or(0.0) * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_stand_in_a_tree_with_columns() {
        let leaf = serde_json::json!({"operator": "select", "text": "up", "marks": ["narrowed by x=\"1\""],
            "seriesIn": 3, "seriesOut": 3, "samples": 9, "samplesPeak": 3, "bytesPeak": 400, "totalSeconds": 0.001, "selfSeconds": 0.001,
            "select": {"select": 0, "series": 3, "fetchSeconds": 0.0005}});
        let root = serde_json::json!({"operator": "+", "text": "up + up", "marks": [], "seriesIn": 6, "seriesOut": 3,
            "samples": 0, "samplesPeak": 9, "bytesPeak": 500, "totalSeconds": 0.0025, "selfSeconds": 0.0005, "children": [leaf, leaf]});
        let lines = [
            "OPERATOR   IN  OUT  SAMPLES  PEAK  BYTES  SELF     TOTAL    TEXT",
            "+          6   3    0        9     500    0.500ms  2.500ms  up + up",
            "├─ select  3   3    9        3     400    1.000ms  1.000ms  up       select 0: 3 series in 0.500ms; narrowed by x=\"1\"",
            "└─ select  3   3    9        3     400    1.000ms  1.000ms  up       select 0: 3 series in 0.500ms; narrowed by x=\"1\"",
        ];
        assert_eq!(tree(&root), format!("{}\n", lines.join("\n")));
    }
}
