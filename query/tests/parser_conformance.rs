//! Puts the shared list of expressions to the parser: what is accepted, the canonical text, the exact error, with all
//! experimental features on and with none. Whatever parses must also print to text that parses to the same tree.
//!
//! The list is not part of the project; where it is absent the test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

/// Prints past the test harness, which keeps what passing tests print: a count nobody sees proves nothing.
macro_rules! tell {
    ($($what:tt)*) => {
        std::io::Write::write_all(&mut std::io::stdout(), format!("{}\n", format_args!($($what)*)).as_bytes()).unwrap()
    };
}

use std::path::PathBuf;

use engram_query::parse::{Switches, parse, to_json};
use serde_json::Value;

const SHOWN_MAX: usize = 40;

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/parser.jsonl")
}

/// The tree without places, matchers in order: equal for two texts that mean the same.
/// What is printed may need a switch that the text did not (`offset +(5)` prints as `offset (5)`), upstream too.
fn shape(text: &str) -> Result<Value, String> {
    let mut value = to_json(&parse(text, &Switches::all()).map_err(|e| e.to_string())?);
    sort_matchers(&mut value);
    Ok(value)
}

fn sort_matchers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(sort_matchers),
        Value::Object(fields) => {
            if let Some(Value::Array(matchers)) = fields.get_mut("matchers") {
                matchers.sort_by_key(Value::to_string);
            }
            fields.values_mut().for_each(sort_matchers);
        }
        _ => {}
    }
}

/// What differs from what is expected of one expression.
fn differences(case: &Value) -> Vec<String> {
    let text = case["q"].as_str().unwrap();
    let mut found = Vec::new();
    for (switches, ok, err) in [(Switches::all(), "ok", "err"), (Switches::default(), "ok_default", "err_default")] {
        match (parse(text, &switches), case[ok].as_bool().unwrap()) {
            (Ok(expr), true) => {
                let printed = expr.to_string();
                if let Some(wanted) = case["print"].as_str()
                    && wanted != printed
                {
                    found.push(format!("printed {printed}\n  wanted  {wanted}"));
                }
                if shape(text) != shape(&printed) {
                    found.push(format!("reads back differently: {printed}"));
                }
            }
            (Err(errors), false) => {
                let wanted = case[err].as_str().unwrap();
                if errors.to_string() != wanted {
                    found.push(format!("says    {errors}\n  wanted  {wanted}"));
                }
            }
            (Ok(_), false) => found.push(format!("accepted, wanted {}", case[err])),
            (Err(errors), true) => found.push(format!("refused ({ok}): {errors}")),
        }
    }
    found
}

#[test]
fn the_shared_expressions_parse_as_in_prometheus() {
    let path = std::env::var_os("PARSER_CASES").map_or_else(file, PathBuf::from);
    let Ok(cases) = std::fs::read_to_string(&path) else {
        tell!("SKIPPED: parser.jsonl is not there ({})", path.display());
        return;
    };
    let (mut passed, mut failed) = (0, 0);
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let found = differences(&case);
        if found.is_empty() {
            passed += 1;
            continue;
        }
        failed += 1;
        if failed <= SHOWN_MAX {
            tell!("{}\n  {}", case["q"], found.join("\n  "));
        }
    }
    tell!("parser.jsonl: {passed} passed, {failed} failed");
    assert_eq!(failed, 0, "{failed} of {} expressions differ", passed + failed);
}
