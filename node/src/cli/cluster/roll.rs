//! `engram cluster rolling-restart`: one node after the other, never one more than every partition can do without.
//!
//! Before each node the whole cluster must be healthy, and no partition and not the metadata group may lose its majority
//! without the node. Then the command is run; the next node's turn comes when the node is there with another life and
//! everything is healthy again. Nodes that do not lead go first. A node that is stopped by `SIGTERM` gives the lead away
//! by itself before it goes.

use std::process::{Command as Process, ExitCode};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use engram_model::time::Stopwatch;
use serde_json::Value;

use super::watch::{duration, overview};
use crate::cli::client::{Ask, Shape, Target, Verb, escape, fetch};
use crate::cli::show::{brief, failure};
use crate::cli::{complain, say, text, with_url};

/// How often the cluster is looked at while a node restarts.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What to run, and for whom.
#[derive(Clone, Debug)]
pub struct Roll {
    target: Target,
    exec: String,
    only: Vec<u64>,
    within: Duration,
    dry_run: bool,
}

/// The grammar.
pub(super) fn command() -> Command {
    with_url(Command::new("rolling-restart").about("Restart the nodes one by one, each only when all is healthy"))
        .arg(Arg::new("exec").long("exec").required(true).value_name("COMMAND").help(
            "What restarts a node, run by sh: {node} becomes the host of its HTTP address, {id}, {zone}, {http}, {grpc} \
             what they say. Example: 'systemctl --host {node} restart engram'",
        ))
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("ID,…")
                .value_delimiter(',')
                .value_parser(clap::value_parser!(u64))
                .help("Only these nodes [default: all]"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .default_value("15m")
                .value_parser(duration)
                .help("How long a node may take until all is healthy again"),
        )
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(clap::ArgAction::SetTrue)
                .help("Check, and say what would be run, in which order"),
        )
        .arg(Arg::new("json").long("json").hide(true).action(clap::ArgAction::SetTrue))
}

pub(super) fn wanted(matches: &ArgMatches, target: Target) -> Roll {
    Roll {
        target,
        exec: text(matches, "exec").unwrap_or_default(),
        only: matches.get_many::<u64>("only").into_iter().flatten().copied().collect(),
        within: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(900)),
        dry_run: matches.get_flag("dry-run"),
    }
}

/// A node as it was when its turn was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    id: u64,
    zone: String,
    http: String,
    grpc: String,
    leads: bool,
    life: String,
}

/// The nodes to restart, those that lead last, zone by zone.
fn order(data: &Value, only: &[u64]) -> Result<Vec<Node>, String> {
    let field = |node: &Value, name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let mut nodes: Vec<Node> = data["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| {
            Some(Node {
                id: node["id"].as_u64()?,
                zone: field(node, "zone"),
                http: field(node, "http"),
                grpc: field(node, "grpc"),
                leads: node["leads"] == true,
                life: field(node, "life"),
            })
        })
        .collect();
    if let Some(unknown) = only.iter().find(|id| !nodes.iter().any(|node| node.id == **id)) {
        return Err(format!("there is no node {unknown}"));
    }
    nodes.retain(|node| only.is_empty() || only.contains(&node.id));
    nodes.sort_by(|a, b| (a.leads, &a.zone, a.id).cmp(&(b.leads, &b.zone, b.id)));
    Ok(nodes)
}

/// The command for one node.
fn filled(exec: &str, node: &Node) -> String {
    let host = node.http.rsplit_once(':').map_or(node.http.as_str(), |(host, _)| host);
    exec.replace("{node}", host)
        .replace("{id}", &node.id.to_string())
        .replace("{zone}", &node.zone)
        .replace("{http}", &node.http)
        .replace("{grpc}", &node.grpc)
}

/// Why the cluster is not in a state to lose a node; nothing when it is.
fn healthy(data: &Value) -> Result<(), String> {
    if data["healthy"] == true {
        return Ok(());
    }
    let problems: Vec<String> = data["problems"].as_array().into_iter().flatten().map(brief).collect();
    Err(format!("the cluster is not healthy: {}", problems.join("; ")))
}

/// Whether everything goes on without the node.
fn spared(target: &Target, node: &Node) -> Result<(), String> {
    let path = format!("/api/v1/cluster/plan?what={}", escape(&format!("lose-node:{}", node.id)));
    let (is_good, body) = fetch(&Ask::of(target, &path, Verb::Get, Shape::Preview))?;
    let answer: Value = serde_json::from_str(&body).map_err(|_| failure(&body))?;
    if !is_good {
        return Err(failure(&body));
    }
    let data = &answer["data"];
    match (data["quorum"]["during"]["withoutQuorum"].as_u64(), data["metadata"]["hasQuorum"].as_bool()) {
        (Some(0), Some(true)) => Ok(()),
        (Some(0), _) => Err(format!("without node {} the metadata group has no majority", node.id)),
        (Some(some), _) => Err(format!("without node {} {some} partitions have no majority", node.id)),
        (None, _) => Err("the answer is none of a plan".to_owned()),
    }
}

/// Restarts them.
pub(in crate::cli) fn run(roll: &Roll) -> ExitCode {
    match rolled(roll) {
        Ok(count) if roll.dry_run => say(&format!("{count} nodes would be restarted, none was\n")),
        Ok(count) => say(&format!("{count} nodes restarted, the cluster is healthy\n")),
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn rolled(roll: &Roll) -> Result<usize, String> {
    let first = overview(&roll.target)?;
    healthy(&first)?;
    let mut left = order(&first, &roll.only)?;
    let addresses: Vec<String> = order(&first, &[])?.into_iter().map(|node| node.http).collect();
    let mut done = 0;
    while !left.is_empty() {
        // Who leads may have changed: whoever leads now goes last.
        let data = ask_any(roll, &addresses, None)?.1;
        healthy(&data)?;
        let ids: Vec<u64> = left.iter().map(|node| node.id).collect();
        left = order(&data, &ids)?;
        let node = left.remove(0);
        let command = filled(&roll.exec, &node);
        spared(&ask_any(roll, &addresses, Some(&node.http))?.0, &node)?;
        let _said = say(&format!("node {} in zone {}: {command}\n", node.id, node.zone));
        done += 1;
        if roll.dry_run {
            continue;
        }
        let status = Process::new("sh").arg("-c").arg(&command).status().map_err(|e| format!("sh: {e}"))?;
        if !status.success() {
            return Err(format!("the command for node {} ended with {status}; nothing else is restarted", node.id));
        }
        back(roll, &addresses, &node)?;
    }
    Ok(done)
}

/// Waits until the node lives anew and all is healthy.
fn back(roll: &Roll, addresses: &[String], node: &Node) -> Result<(), String> {
    let began = Stopwatch::start();
    let mut why = String::new();
    while began.elapsed() < roll.within {
        why = match ask_any(roll, addresses, Some(&node.http)) {
            Ok((_, data)) => {
                let nodes = data["nodes"].as_array().into_iter().flatten();
                let now = nodes.filter(|one| one["id"] == node.id).find_map(|one| one["life"].as_str());
                match (now, healthy(&data)) {
                    (Some(life), Ok(())) if life != node.life => {
                        let seconds = began.elapsed().as_secs();
                        let _said = say(&format!("node {} is back, all is healthy after {seconds} s\n", node.id));
                        return Ok(());
                    }
                    (Some(life), _) if life == node.life => "it has not been restarted yet".to_owned(),
                    (_, Err(problems)) => problems,
                    _ => "it does not answer".to_owned(),
                }
            }
            Err(why) => why,
        };
        std::thread::sleep(LOOK_EVERY);
    }
    Err(format!("node {} is not back within {} s: {why}; nothing else is restarted", node.id, roll.within.as_secs()))
}

/// The cluster as the first node tells that answers, `but` one that is not asked.
fn ask_any(roll: &Roll, addresses: &[String], but: Option<&str>) -> Result<(Target, Value), String> {
    let others = addresses.iter().filter(|address| but != Some(address.as_str()));
    let given = Some(&roll.target.url).filter(|url| but.is_none_or(|but| !url.ends_with(but)));
    let mut why = "there is no other node to ask".to_owned();
    for url in given.into_iter().chain(others) {
        let target = Target { url: url.clone(), ..roll.target.clone() };
        match overview(&target) {
            Ok(data) => return Ok((target, data)),
            Err(error) => why = error,
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_leads_goes_last_and_the_command_is_filled_in() {
        let node = |id: u64, zone: &str, leads: bool| json!({"id": id, "zone": zone, "leads": leads, "http": format!("host{id}:9009"), "grpc": "g:1", "life": "1"});
        let data =
            json!({"nodes": [node(1, "a", true), node(7, "b", false), node(5, "b", false), node(9, "a", false)]});
        let ids = |only: &[u64]| order(&data, only).unwrap().iter().map(|node| node.id).collect::<Vec<_>>();
        assert_eq!((ids(&[]), ids(&[1, 7])), (vec![9, 5, 7, 1], vec![7, 1]));
        assert!(order(&data, &[3]).is_err());
        let first = &order(&data, &[]).unwrap()[0];
        assert_eq!(filled("ssh {node} restart {id} {zone} {http}", first), "ssh host9 restart 9 a host9:9009");
        assert!(healthy(&json!({"healthy": false, "problems": ["x"]})).unwrap_err().ends_with(": x"));
    }
}
