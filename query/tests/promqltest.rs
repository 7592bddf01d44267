//! Goal: the engine answers as Prometheus 3.14 does. Method: Prometheus' own scripts (kept outside of this repository)
//! and ours, evaluation by evaluation, with every experimental feature on.
//!
//! What is known to fail is counted per file, and the count must be met exactly: it can get neither worse nor better
//! unseen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

/// Prints past the test harness, which keeps what passing tests print: a count nobody sees proves nothing.
macro_rules! tell {
    ($($what:tt)*) => {
        std::io::Write::write_all(&mut std::io::stdout(), format!("{}\n", format_args!($($what)*)).as_bytes()).unwrap()
    };
}

#[path = "promqltest/compare.rs"]
mod compare;
mod memory;
#[path = "promqltest/runner.rs"]
mod runner;
#[path = "promqltest/script.rs"]
mod script;
#[path = "promqltest/series.rs"]
mod series;
#[path = "promqltest/storage.rs"]
mod storage;

use std::path::{Path, PathBuf};

use runner::Names;

/// Evaluations of Prometheus' scripts that fail, by file.
const KNOWN_FAILURES: [(&str, usize); 0] = [];

/// Evaluations that cannot pass when names go at once, by file: Prometheus wrote and runs them for names that go at the
/// end. They expect names in warnings, names in labels after `rate`, and `__type__` to survive arithmetic.
const ONLY_WITH_DELAYED_NAMES: [(&str, usize); 4] = [
    ("histograms.test", 12),
    ("name_label_dropping.test", 8),
    ("native_histograms.test", 13),
    ("type_and_unit.test", 4),
];

fn scripts(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ext| ext == "test"));
    files.sort();
    files
}

/// Runs all scripts of a folder; returns what does not agree with `known`.
fn run_all(folder: &Path, names: Names, known: &[(&str, usize)]) -> Vec<String> {
    let verbose = std::env::var("VERBOSE").is_ok();
    let mut wrong = Vec::new();
    let (mut passed, mut failed, mut needing) = (0, 0, 0);
    let names_text = if matches!(names, Names::Delayed) { "names go at the end" } else { "names go at once" };
    for file in scripts(folder) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let commands = script::parse(&std::fs::read_to_string(&file).unwrap());
        let report = runner::run(commands.unwrap_or_else(|e| panic!("{name}: {e}")), names);
        let allowed = known.iter().find(|(have, _)| *have == name).map_or(0, |(_, count)| *count);
        let told = if allowed == 0 { String::new() } else { format!(" ({allowed} need delayed names)") };
        tell!(
            "{name}, {names_text}: {} passed, {} failed{told}",
            report.passed,
            report.failures.len().abs_diff(allowed)
        );
        if allowed != report.failures.len() || verbose {
            report.failures.iter().for_each(|failure| tell!("  {failure}"));
        }
        if allowed != report.failures.len() {
            wrong.push(format!("{name}: {} failures, {allowed} known", report.failures.len()));
        }
        passed += report.passed;
        failed += report.failures.len().abs_diff(allowed);
        needing += allowed;
    }
    let told = if needing == 0 { String::new() } else { format!(" ({needing} need delayed names)") };
    let folder = folder.file_name().unwrap_or_default().display();
    tell!("{folder}, {names_text}: {passed} passed, {failed} failed{told}");
    wrong
}

#[test]
fn the_scripts_of_prometheus_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/promqltest");
    let folder = std::env::var("PROMQLTEST_DIR").map_or(folder, PathBuf::from);
    if scripts(&folder).is_empty() {
        tell!("SKIPPED: {} holds no scripts; only our own were run", folder.display());
        return;
    }
    let wrong = run_all(&folder, Names::Delayed, &KNOWN_FAILURES);
    assert_eq!(wrong, Vec::<String>::new());
    let wrong = run_all(&folder, Names::Eager, &ONLY_WITH_DELAYED_NAMES);
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn our_scripts_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    assert!(!scripts(&folder).is_empty(), "{} holds no scripts", folder.display());
    for names in [Names::Delayed, Names::Eager] {
        assert_eq!(run_all(&folder, names, &[]), Vec::<String>::new());
    }
}

/// Data of every kind under the names parser tests use most.
const ANYTHING: &str = "load 1m
  foo{bar=\"a\", le=\"1\"} 0+1x10
  foo{bar=\"b\", le=\"+Inf\"} 0+2x3 stale NaN -Inf 3
  some_metric{foo=\"bar\"} {{schema:0 count:4 sum:10 buckets:[1 2 1]}}x4 5 {{schema:-53 count:1 sum:1 custom_values:[5] buckets:[1]}}
  test{a=\"bc\"} 1 _ _ 4
  a 1x10
  bar{on=\"x\"} 3x10
";

#[test]
fn no_expression_breaks_the_engine() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/parser.jsonl");
    let mut texts: Vec<String> = Vec::new();
    for line in std::fs::read_to_string(&file).unwrap_or_default().lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        texts.push(case["q"].as_str().unwrap().to_owned());
    }
    if texts.is_empty() {
        tell!("SKIPPED: {} is not there; only our own expressions were run", file.display());
    }
    let functions = engram_query::functions::FUNCTIONS.iter().map(|f| f.name);
    for name in functions {
        texts.extend(
            ["foo", "foo[5m]", "some_metric[5m]", "0.5, foo[5m]", "foo[5m:1m], 0.5", "NaN, {__name__=~\".+\"}"]
                .map(|args| format!("{name}({args})")),
        );
    }
    let data = runner::data_of(script::parse(ANYTHING).unwrap());
    let answered = texts.iter().filter(|text| runner::survives(text, &data)).count();
    tell!("{answered} of {} expressions were answered", texts.len());
    assert!(answered > 50);
}
