//! `engram cluster watch`: how the cluster is, again and again.
//!
//! On a terminal a page that is drawn anew; elsewhere one line for each change, for logs and scripts.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use engram_model::time::Stopwatch;
use serde_json::Value;

use super::plan::{count, margin};
use crate::cli::blocks::short_size;
use crate::cli::client::{Ask, Shape, Target, Verb, fetch};
use crate::cli::show::{brief, failure, table};
use crate::cli::{complain, with_node};
use crate::config::units::{format_duration_ms, parse_duration_ms};

/// Clears the screen and goes to its corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// What to watch, and until when.
#[derive(Clone, Debug)]
pub struct Watch {
    target: Target,
    every: Duration,
    until_healthy: bool,
    within: Option<Duration>,
}

/// The grammar.
pub(super) fn command() -> Command {
    with_node(Command::new("watch").about("How the cluster is, again and again: nodes, moves, what is left to copy"))
        .arg(
            Arg::new("every")
                .long("every")
                .value_name("DURATION")
                .default_value("1s")
                .value_parser(duration)
                .help("How often to look"),
        )
        .arg(
            Arg::new("until-healthy")
                .long("until-healthy")
                .action(ArgAction::SetTrue)
                .help("End as soon as every node is there and nothing is left to copy"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .value_parser(duration)
                .help("End with a failure after this time"),
        )
}

/// A length of time above zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let millis = parse_duration_ms(text).map_err(str::to_owned)?;
    let millis = u64::try_from(millis).ok().filter(|millis| *millis > 0).ok_or("it must be above 0")?;
    Ok(Duration::from_millis(millis))
}

pub(super) fn wanted(matches: &ArgMatches, target: Target) -> Watch {
    let time = |name: &str| matches.get_one::<Duration>(name).copied();
    Watch {
        target,
        every: time("every").unwrap_or(Duration::from_secs(1)),
        until_healthy: matches.get_flag("until-healthy"),
        within: time("timeout"),
    }
}

/// How the cluster is now.
///
/// # Errors
/// A line for the person.
pub(super) fn overview(target: &Target) -> Result<Value, String> {
    let ask = Ask::of(target, "/api/v1/cluster/overview", Verb::Get, Shape::Overview);
    let (is_good, body) = fetch(&ask)?;
    let data = serde_json::from_str::<Value>(&body).ok().and_then(|mut body| Some(body.get_mut("data")?.take()));
    match data {
        Some(data) if is_good => Ok(data),
        _ => Err(failure(&body)),
    }
}

/// Watches until it is interrupted, or until what was asked for.
pub(in crate::cli) fn run(watch: &Watch) -> ExitCode {
    let (began, mut last) = (Stopwatch::start(), String::new());
    let is_page = std::io::stdout().is_terminal() && !watch.target.json;
    loop {
        let seen = overview(&watch.target);
        let healthy = seen.as_ref().is_ok_and(|data| data["healthy"] == true);
        let text = match &seen {
            Ok(data) if watch.target.json => format!("{data}\n"),
            Ok(data) if is_page => format!("{CLEAR}{}", page(data)),
            Ok(data) => format!("{}\n", line(data)),
            Err(why) => format!("no answer: {why}\n"),
        };
        if (is_page || text != last) && !print(&text) {
            return ExitCode::SUCCESS;
        }
        last = text;
        if watch.until_healthy && healthy {
            return ExitCode::SUCCESS;
        }
        if watch.within.is_some_and(|within| began.elapsed() >= within) {
            complain("the time is over");
            return ExitCode::FAILURE;
        }
        std::thread::sleep(watch.every);
    }
}

/// Whether there is still somebody who reads.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn left(data: &Value) -> String {
    let backfill = &data["backfill"];
    match (backfill["copies"].as_u64(), backfill["bytesLeft"].as_u64()) {
        (Some(0), _) => "nothing to copy".to_owned(),
        (Some(copies), Some(bytes)) => {
            let copies = if copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") };
            let millis = |seconds: f64| format_duration_ms(millis_of(seconds));
            let time = backfill["secondsLeft"].as_f64().map_or_else(String::new, |left| format!(", {}", millis(left)));
            format!("{copies} left, {}{time}", short_size(bytes))
        }
        _ => "the leader does not say what is left".to_owned(),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "seconds to show; the cast saturates")]
fn millis_of(seconds: f64) -> i64 {
    (seconds as i64).saturating_mul(1000)
}

/// One line for logs.
pub(super) fn line(data: &Value) -> String {
    let nodes = data["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let there = nodes.iter().filter(|node| node["answers"] == true && node["ready"] == true).count();
    let under = data["underReplicated"].as_u64().unwrap_or(0);
    let moving = data["moving"].as_u64().unwrap_or(0);
    let mut parts = vec![
        format!("{there}/{} nodes", nodes.len()),
        data["leader"].as_u64().map_or("NO LEADER".to_owned(), |id| format!("leader {id}")),
        format!("term {}", brief(&data["term"])),
        format!("ring {}", brief(&data["ring"])),
        format!("{under} under-replicated"),
        format!("{moving} moving"),
        left(data),
        margin(&data["quorum"]),
    ];
    if data["healthy"] == true {
        parts.push("healthy".to_owned());
    }
    parts.join(" · ")
}

/// The whole screen.
pub(super) fn page(data: &Value) -> String {
    let mut out = format!("{}\n\n", line(data));
    let header = ["NODE", "ZONE", "STATE", "ANSWERS", "ROLE", "REPLICAS", "SAMPLES", "SIZE", "BEHIND", "HTTP"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for node in data["nodes"].as_array().into_iter().flatten() {
        let cell = |name: &str| brief(&node[name]);
        let role = match (node["leads"] == true, node["voter"] == true) {
            (true, _) => "leader",
            (_, true) => "voter",
            _ => "",
        };
        let answers = match (node["answers"] == true, node["ready"] == true) {
            (true, true) => "ready",
            (true, false) => "NOT READY",
            _ => "SILENT",
        };
        rows.push(vec![
            cell("id"),
            cell("zone"),
            cell("state"),
            answers.to_owned(),
            role.to_owned(),
            cell("replicas"),
            cell("samples"),
            node["bytes"].as_u64().map_or_else(String::new, short_size),
            cell("behind"),
            cell("http"),
        ]);
    }
    out.push_str(&table(&rows));
    let pending = data["pending"].as_u64().unwrap_or(0);
    let (partitions, moving) = (data["partitions"].as_u64().unwrap_or(0), data["moving"].as_u64().unwrap_or(0));
    out.push_str(&format!(
        "\n{}, {moving} moving, {pending} to be moved; {}\n",
        count(partitions, "partition"),
        left(data)
    ));
    for problem in data["problems"].as_array().into_iter().flatten() {
        out.push_str(&format!("! {}\n", brief(problem)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_what_an_operator_asks_first() {
        let mut data = json!({
            "leader": 1, "term": 3, "ring": 40, "underReplicated": 2, "moving": 1, "partitions": 8, "pending": 4, "healthy": false,
            "nodes": [{"id": 1, "zone": "a", "state": "active", "answers": true, "ready": true, "leads": true, "replicas": 8,
                       "samples": 10, "bytes": 2048, "behind": 0, "http": "h:1"},
                      {"id": 5, "zone": "b", "state": "suspect", "answers": false, "ready": false, "replicas": 8}],
            "quorum": {"withoutQuorum": 0, "nodes": 1, "zones": 1, "short": 2},
            "backfill": {"copies": 3, "bytesLeft": 4096, "secondsLeft": 90.0}, "problems": ["node 5 is suspect"],
        });
        assert_eq!(
            line(&data),
            "1/2 nodes · leader 1 · term 3 · ring 40 · 2 under-replicated · 1 moving · 3 copies left, 4.0KiB, 1m30s · 1 node or 1 zone may fail"
        );
        let shown = page(&data);
        for part in ["SILENT", "leader", "2.0KiB", "8 partitions, 1 moving, 4 to be moved", "! node 5 is suspect"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        data["backfill"] = Value::Null;
        data["leader"] = Value::Null;
        assert!(line(&data).contains("NO LEADER") && line(&data).contains("does not say"), "{}", line(&data));
    }

    #[test]
    fn lengths_of_time_are_above_zero() {
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert!(duration("0s").is_err() && duration("x").is_err());
    }
}
