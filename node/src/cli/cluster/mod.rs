//! `engram cluster …`: looking at the cluster, previewing what would happen to it, and having it happen.
//!
//! Map: here the words · [`plan`] previews as tables · [`replicas`] holds replicas against each other · [`watch`] a live view · [`roll`] one node after the other.

pub mod replicas;
pub mod roll;
pub mod watch;

mod plan;

pub(crate) use plan::{applied, plan};

use clap::{Arg, ArgMatches, Command};

use super::client::{Ask, Shape, Target, Verb, escape};
use super::{Action, asked, text, with_node};

/// The grammar.
pub(crate) fn command() -> Command {
    let look = |name: &'static str, about: &'static str| with_node(Command::new(name).about(about));
    let steer = |name, about| look(name, about).arg(node_arg());
    Command::new("cluster")
        .about("Look at the cluster, preview what would happen to it, take nodes out of it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(look("status", "Nodes, partitions and leader as one node sees them"))
        .subcommand(look("nodes", "The nodes: where, in which state, how many replicas each holds"))
        .subcommand(look("ring", "The partitions: which nodes hold them, and which will"))
        .subcommand(replicas::command())
        .subcommand(watch::command())
        .subcommand(plan_command())
        .subcommand(
            look("apply", "Have a plan happen, unless nodes or replicas have changed since it was made").arg(
                Arg::new("PLAN").required(true).help("Its name, as `engram cluster plan` prints it: drain:3@1742"),
            ),
        )
        .subcommand(steer("drain", "Have a node give its replicas and its vote to others"))
        .subcommand(steer("undrain", "Let a node that was drained take replicas again"))
        .subcommand(steer("remove", "Take a node that holds nothing, or does not answer, out for good"))
        .subcommand(roll::command())
}

fn node_arg() -> Arg {
    Arg::new("NODE").required(true).value_parser(clap::value_parser!(u64)).help("The node's id")
}

fn plan_command() -> Command {
    let what = |name: &'static str, about: &'static str| with_node(Command::new(name).about(about));
    let zone = || Arg::new("ZONE").required(true).help("The zone's name");
    let count = |name: &'static str, help: &'static str| {
        Arg::new(name).required(true).value_parser(clap::value_parser!(u64)).help(help)
    };
    Command::new("plan")
        .about("What would happen to replicas, how many bytes would move, what could still fail; changes nothing")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(what("rebalance", "Nothing is changed: what is still to be done"))
        .subcommand(what("drain", "A node gives its replicas to others").arg(node_arg()))
        .subcommand(what("undrain", "A node that was drained takes replicas again").arg(node_arg()))
        .subcommand(what("lose-node", "A node is gone for good").arg(node_arg()))
        .subcommand(what("lose-zone", "All nodes of a zone are gone for good").arg(zone()))
        .subcommand(
            what("add-nodes", "New nodes come")
                .arg(count("COUNT", "How many"))
                .arg(Arg::new("zone").long("zone").required(true).value_name("ZONE").help("Into which zone")),
        )
        .subcommand(
            what("replication-factor", "Another number of replicas of each partition").arg(count("COUNT", "How many")),
        )
        .subcommand(
            what("shard-size", "A tenant uses another number of partitions")
                .arg(Arg::new("TENANT").required(true).help("Which"))
                .arg(count("COUNT", "How many; 0: all")),
        )
}

/// What the words after `engram cluster` ask for.
pub(crate) fn wanted(cluster: &ArgMatches, env: &[(String, String)]) -> Action {
    let (word, inner) = cluster.subcommand().unwrap_or(("status", cluster));
    if word == "plan" {
        let (what, inner) = inner.subcommand().unwrap_or(("rebalance", inner));
        return Action::Ask(preview(&asked(inner, env), what, inner));
    }
    let target = asked(inner, env);
    let node = || inner.get_one::<u64>("NODE").copied().unwrap_or_default();
    match word {
        "replicas" => Action::Replicas(replicas::wanted(target)),
        "watch" => Action::Watch(watch::wanted(inner, target)),
        "rolling-restart" => Action::Roll(roll::wanted(inner, target)),
        "nodes" => Action::Ask(Ask::part_of_cluster(&target, Shape::Nodes)),
        "ring" => Action::Ask(Ask::part_of_cluster(&target, Shape::Ring)),
        "drain" | "undrain" | "remove" => Action::Ask(Ask::steer(&target, node(), word)),
        "apply" => {
            let form = vec![("plan".to_owned(), text(inner, "PLAN").unwrap_or_default())];
            Action::Ask(Ask::of(&target, "/api/v1/cluster/apply", Verb::Form(form), Shape::Applied))
        }
        _ => Action::Ask(Ask::cluster(&target)),
    }
}

fn preview(target: &Target, what: &str, inner: &ArgMatches) -> Ask {
    let number = |name: &str| inner.try_get_one::<u64>(name).ok().flatten().map(u64::to_string);
    let parts = [number("NODE"), text(inner, "TENANT"), number("COUNT"), text(inner, "ZONE"), text(inner, "zone")];
    let named = std::iter::once(what.to_owned()).chain(parts.into_iter().flatten()).collect::<Vec<_>>().join(":");
    Ask::of(target, &format!("/api/v1/cluster/plan?what={}", escape(&named)), Verb::Get, Shape::Preview)
}
