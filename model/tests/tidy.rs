#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]
//! The house rules a machine can check, so that review is left for the thought.
//!
//! Goal: the arrows between crates and rooms, a door in each folder and file, sizes, one place for status codes,
//! metric names, no paths of anybody's machine. Method: read the tree as text; the words looked for are told with
//! each rule. A rule that has become wrong is changed here, with its reason, not worked round.

use std::fs;
use std::path::{Path, PathBuf};

/// No file is longer; the aim is 500.
const LINES_MAX: usize = 800;

/// What each crate may depend on (of ours).
const CRATES: [(&str, &[&str]); 6] = [
    ("model", &[]),
    ("storage", &["model"]),
    ("raft", &["model"]),
    ("query", &["model"]),
    ("node", &["model", "storage", "raft", "query"]),
    ("chaos", &["model", "node", "storage", "raft", "query"]),
];

/// Where alone `chaos` may name the crates it simulates: elsewhere it meets the node as a process.
const SIMULATION: &str = "chaos/src/sim/";

/// What each room of the node may use: other rooms, then crates besides `model`. `lib.rs` assembles and may use all.
const ROOMS: [(&str, &[&str], &[&str]); 9] = [
    ("http", &["write", "read", "blocks", "meta"], &["query"]),
    // What comes over the wire is what `peer` sent; epochs are held against `meta`.
    ("grpc", &["read", "ingest", "peer", "meta", "tls"], &["storage"]),
    ("write", &["peer", "meta", "actor"], &[]),
    ("read", &["peer", "meta", "actor"], &["query", "storage"]),
    // `peer` is also the port a partition answers through, so that a local replica is asked like a remote one.
    ("ingest", &["blocks", "peer", "meta", "actor"], &["storage"]),
    // A snapshot asks all replicas of a tenant, as a query does; deletions name series by selectors, which `query` parses.
    ("blocks", &["read", "peer", "meta", "actor"], &["storage", "query"]),
    // A remote replica answers in chunks, or in sums as the engine has them; a stream to one is an actor.
    ("peer", &["actor", "tls"], &["storage", "query"]),
    ("meta", &[], &["raft"]),
    ("tls", &[], &[]),
];

/// Files that may name a status code besides the one table, `node/src/error.rs`, and why.
const CODES_ALLOWED: [(&str, &str); 3] = [
    ("chaos/", "reads the codes of a server, gives none"),
    ("raft/src/rpc/grpc.rs", "between two nodes of a group; says only whether a call may have been heard"),
    ("node/src/http/answer.rs", "gives those no class stands for: no such path, wrong method, body too large or slow"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every file below `folder`, as paths relative to the root, without what a build leaves behind.
fn files(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if !["target", ".git", "data", "node_modules", "__pycache__"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

/// Our Rust files.
fn sources() -> Vec<(String, String)> {
    CRATES.iter().flat_map(|(name, _)| files(name)).filter(|(path, _)| path.ends_with(".rs")).collect()
}

fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// A line without its comment: words in comments bind nobody. Good enough for text without `//` in strings.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// The text before the unit tests of a file; they may name what they like.
fn before_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]").map_or(text, |(code, _)| code)
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.contains("/benches/") || path.ends_with("/tests.rs")
}

#[test]
fn crates_depend_only_downward() {
    let mut found = Vec::new();
    for (name, may) in CRATES {
        let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("engram-")) {
            let other = line.split(|c: char| !c.is_ascii_lowercase()).next().unwrap();
            if !may.contains(&other) {
                found.push(format!("{name} depends on {other}"));
            }
        }
    }
    for (path, text) in files("chaos/src").into_iter().filter(|(path, _)| !path.starts_with(SIMULATION)) {
        let simulated = ["node", "storage", "raft", "query"].map(|name| format!("engram_{name}::"));
        if text.lines().map(code).any(|line| simulated.iter().any(|name| line.contains(name))) {
            found.push(format!("{path} links what it is to meet as a process"));
        }
    }
    assert_none("a crate may depend only on those below it (table CRATES)", &found);
}

#[test]
fn rooms_of_the_node_use_only_what_the_table_allows() {
    let mut found = Vec::new();
    for (path, text) in files("node/src") {
        // Unit tests may name what they like, in a file of their own as well.
        let is_code = |inside: &&str| inside.ends_with(".rs") && !is_test(&path);
        let Some(inside) = path.strip_prefix("node/src/").filter(is_code) else { continue };
        let room = inside.split(['/', '.']).next().unwrap();
        let Some((_, rooms, crates)) = ROOMS.iter().find(|(name, ..)| *name == room) else { continue };
        for line in before_tests(&text).lines().map(code) {
            for (other, ..) in ROOMS.iter().filter(|(name, ..)| *name != room && !rooms.contains(name)) {
                if line.contains(&format!("crate::{other}::")) || line.trim() == format!("use crate::{other};") {
                    found.push(format!("{path}: {room} uses {other}"));
                }
            }
            for other in ["query", "storage", "raft"].iter().filter(|name| !crates.contains(name)) {
                if line.contains(&format!("engram_{other}")) {
                    found.push(format!("{path}: {room} uses the crate {other}"));
                }
            }
        }
    }
    found.dedup();
    assert_none("a room may use only the rooms its row names (table ROOMS)", &found);
}

#[test]
fn every_file_and_folder_has_a_door() {
    let mut found = Vec::new();
    let mut folders = std::collections::BTreeMap::new();
    for (path, text) in sources() {
        let first = text.lines().find(|line| !line.starts_with("#![") && !line.trim().is_empty());
        if !first.is_some_and(|line| line.starts_with("//! ") && line.len() > 6) {
            found.push(format!("{path} does not open with why it exists (`//!`)"));
        }
        let (folder, name) = path.rsplit_once('/').unwrap();
        if path.contains("/src/") {
            let door = ["mod.rs", "lib.rs", "main.rs"].contains(&name);
            *folders.entry(folder.to_string()).or_insert(false) |= door;
        }
    }
    let doorless = |(folder, door): (String, bool)| {
        // A folder that holds only the tests of the file beside it is that file's.
        (!door && !root().join(format!("{folder}.rs")).exists()).then(|| format!("{folder} has no mod.rs"))
    };
    found.extend(folders.into_iter().filter_map(doorless));
    assert_none("doors", &found);
}

#[test]
fn no_file_is_too_long_to_proofread() {
    let long = |(path, text): (String, String)| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{path}: {lines} lines"))
    };
    let found: Vec<String> = sources().into_iter().filter_map(long).collect();
    assert_none("split the file: branches in the parent, pure steps in helpers", &found);
}

#[test]
fn status_codes_are_given_in_one_place() {
    const WORDS: [&str; 2] = ["StatusCode::", "Code::"];
    let mut found = Vec::new();
    for (path, text) in sources() {
        let allowed = CODES_ALLOWED.iter().any(|(prefix, _)| path.starts_with(prefix));
        if path == "node/src/error.rs" || allowed || is_test(&path) {
            continue;
        }
        for (number, line) in before_tests(&text).lines().enumerate() {
            let names_one = WORDS.iter().any(|word| {
                code(line).match_indices(word).any(|(at, _)| {
                    let before = code(line)[..at].chars().next_back();
                    let after = code(line)[at + word.len()..].chars().next();
                    !before.is_some_and(|c| c.is_alphanumeric()) && after.is_some_and(|c| c.is_ascii_uppercase())
                })
            });
            if names_one {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none("a wrong code loses samples, so node/src/error.rs alone turns a class into one", &found);
}

#[test]
fn metric_names_are_well_formed() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        if is_test(&path) || path.starts_with("chaos/") {
            continue;
        }
        for line in before_tests(&text).lines().map(code) {
            let whole = line.split('"').skip(1).step_by(2).filter(|word| word.starts_with("engram_") && word.len() > 7);
            let registered = ["register(\"", "register_with_unit(\""].iter().filter_map(|call| line.split_once(call));
            let prefixed = registered.filter_map(|(_, rest)| Some(format!("engram_{}", rest.split('"').next()?)));
            for name in whole.map(str::to_string).chain(prefixed) {
                if let Some(reason) = malformed(&name) {
                    found.push(format!("{path}: {name}: {reason}"));
                }
            }
        }
    }
    assert_none("metrics are <prefix>_<room>_<noun>_<unit>, in seconds and bytes", &found);
}

fn malformed(name: &str) -> Option<&'static str> {
    let parts: Vec<&str> = name.split('_').collect();
    let plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !parts.iter().all(plain) {
        return Some("small letters, digits and single underscores only");
    }
    if parts.len() < 3 {
        return Some("names no room and noun");
    }
    let units = ["ms", "millis", "milliseconds", "us", "minutes", "hours", "kb", "mb", "kib", "mib", "percent"];
    units.contains(parts.last()?).then_some("the units are seconds, bytes and ratio")
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    let words: Vec<String> = ["root", "work", "home", "Users", "farm"].iter().map(|name| format!("/{name}/")).collect();
    let mut found = Vec::new();
    for (path, text) in files("") {
        if path.ends_with(".lock") || [".git", ".cargo/config.toml", "model/tests/tidy.rs"].contains(&path.as_str()) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for word in &words {
                let names_one = line.match_indices(word.as_str()).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || ".-_}*".contains(c))
                });
                if names_one {
                    found.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert_none("paths are told by variables or relative to the tree", &found);
}

#[test]
fn the_rules_see_what_they_forbid() {
    assert_eq!(malformed("engram_wal_flush_seconds"), None);
    assert!(malformed("engram_wal_flush_ms").is_some());
    assert!(malformed("engram__wal_flush").is_some());
    assert!(malformed("engram_flushes").is_some());
    assert_eq!(code("let a = 1; // crate::read::x"), "let a = 1; ");
    assert_eq!(before_tests("a\n#[cfg(test)]\nmod tests;"), "a\n");
}
