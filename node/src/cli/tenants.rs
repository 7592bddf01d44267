//! `engram tenant …`: what an operator types to look at tenants and to change them.
//!
//! A change goes to the version the operator has seen: `--version` says which; without it, the tenant is read first and
//! what was read is used, so that a change by somebody else in between is noticed and not overwritten.

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

use super::client::{self, Ask, Said, Shape, Target, Verb};
use super::{text, with_node};
use crate::config::units::parse_duration_ms;

/// A change of one tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which node, how to print.
    pub target: Target,
    /// Whose.
    pub tenant: String,
    /// Which.
    pub act: Act,
    /// The version the change is for; none: the one the tenant has when asked.
    pub version: Option<u64>,
}

/// What to do with a tenant.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Create it or change what is named.
    Set {
        /// Limits by name.
        limits: Map<String, Value>,
        /// How many partitions it uses; 0: all.
        shard_size: Option<u32>,
    },
    /// Mark it for deletion.
    Remove,
}

/// What the words after `engram tenant` ask for.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// To look.
    Ask(Ask),
    /// To change.
    Change(Change),
}

/// The grammar.
pub(crate) fn command() -> Command {
    let name = || Arg::new("NAME").required(true).help("The tenant");
    let version = || {
        Arg::new("version")
            .long("version")
            .value_name("N")
            .value_parser(clap::value_parser!(u64))
            .help("Only if the tenant is at this version, 0: only if there is none [default: the one it has now]")
    };
    let set = Command::new("set")
        .about("Create a tenant, or change some of its limits")
        .after_help(
            "Limits that are not named stay as they are; a new tenant gets the node's defaults (limits.…). `engram tenant \
             get` lists all names. Examples:\n\n    engram tenant set acme --limit ingestion_rate=5000\n    \
             engram tenant set acme --limit out_of_order_time_window_ms=5m --shard-size 4",
        )
        .arg(name())
        .arg(
            Arg::new("limit")
                .long("limit")
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .value_parser(limit)
                .help("A limit: a whole number, a duration (5m) for those that end in _ms; promql_experimental takes true, false \
                     or default. May be repeated"),
        )
        .arg(
            Arg::new("shard-size")
                .long("shard-size")
                .value_name("N")
                .value_parser(clap::value_parser!(u32))
                .help("How many partitions its new samples spread over, 0: all. What is stored stays readable"),
        )
        .arg(version());
    let remove = Command::new("rm")
        .about("Mark a tenant for deletion")
        .after_help(
            "From then on its samples are refused; what is stored can be read until retention has taken it. There is no \
             way back: the name stays taken.",
        )
        .arg(name())
        .arg(version());
    Command::new("tenant")
        .about("Look at tenants, change their limits")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_node(Command::new("ls").about("All tenants")))
        .subcommand(with_node(Command::new("get").about("One tenant with its limits").arg(name())))
        .subcommand(with_node(set))
        .subcommand(with_node(remove))
}

/// `NAME=VALUE`.
fn limit(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as ingestion_rate=5000")?;
    if let Ok(number) = value.parse::<u64>() {
        return Ok((name.to_owned(), json!(number)));
    }
    match value {
        "true" | "false" => return Ok((name.to_owned(), json!(value == "true"))),
        // A choice that can be left to the node.
        "default" => return Ok((name.to_owned(), Value::Null)),
        _ => {}
    }
    if !name.ends_with("_ms") {
        return Err(format!("{value:?} is no whole number, true, false or default"));
    }
    let millis = parse_duration_ms(value).map_err(|why| format!("{value:?} is no duration such as 5m: {why}"))?;
    Ok((name.to_owned(), json!(millis)))
}

/// What `engram tenant <matches>` asks for.
pub(crate) fn wanted(matches: &ArgMatches, target: impl FnOnce(&ArgMatches) -> Target) -> Wanted {
    let (verb, inner) = matches.subcommand().unwrap_or(("ls", matches));
    let target = target(inner);
    let tenant = text(inner, "NAME").unwrap_or_default();
    let version = || inner.get_one::<u64>("version").copied();
    match verb {
        "get" => Wanted::Ask(show(&target, &tenant)),
        "set" => {
            let limits = inner.get_many::<(String, Value)>("limit").into_iter().flatten().cloned().collect();
            let act = Act::Set { limits, shard_size: inner.get_one::<u32>("shard-size").copied() };
            Wanted::Change(Change { target, tenant, act, version: version() })
        }
        "rm" => Wanted::Change(Change { target, tenant, act: Act::Remove, version: version() }),
        _ => Wanted::Ask(Ask::of(&target, "/api/v1/admin/tenants", Verb::Get, Shape::Tenants)),
    }
}

fn path(tenant: &str) -> String {
    format!("/api/v1/admin/tenants/{}", client::escape(tenant))
}

fn show(target: &Target, tenant: &str) -> Ask {
    Ask::of(target, &path(tenant), Verb::Get, Shape::Tenant)
}

impl Change {
    /// The request that makes this change to that version.
    #[must_use]
    pub fn ask(&self, version: u64) -> Ask {
        let path = path(&self.tenant);
        match &self.act {
            Act::Remove => {
                let path = format!("{path}?version={version}");
                Ask::of(&self.target, &path, Verb::Delete, Shape::Tenant)
            }
            Act::Set { limits, shard_size } => {
                let mut body = json!({ "version": version, "limits": limits });
                if let Some(size) = shard_size {
                    body["shardSize"] = json!(size);
                }
                Ask::of(&self.target, &path, Verb::Put(body.to_string()), Shape::Tenant)
            }
        }
    }
}

/// Makes the change, after a look at the tenant's version when none is given.
///
/// # Errors
/// A line for the person.
pub fn run(change: &Change) -> Result<Said, String> {
    let version = match change.version {
        Some(version) => version,
        None => read_version(change)?,
    };
    client::ask(&change.ask(version))
}

/// The version the tenant has; 0 when there is none and it may be made.
fn read_version(change: &Change) -> Result<u64, String> {
    let (is_good, body) = client::fetch(&show(&change.target, &change.tenant))?;
    let answer: Option<Value> = serde_json::from_str(&body).ok();
    if is_good {
        let version = answer.as_ref().and_then(|answer| answer["data"]["version"].as_u64());
        return version.ok_or_else(|| format!("no version in the answer: {}", super::show::cut(&body)));
    }
    let missing = answer.is_some_and(|answer| answer["errorType"] == "not_found");
    if missing && change.act != Act::Remove { Ok(0) } else { Err(super::show::failure(&body)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Wanted, clap::Error> {
        let matches = command().try_get_matches_from(line.split_whitespace())?;
        Ok(wanted(&matches, |inner| Target {
            url: text(inner, "url").unwrap_or_else(|| "node:1".to_owned()),
            tenant: None,
            json: inner.get_flag("json"),
        }))
    }

    #[test]
    fn looking_is_a_get() {
        for (line, want, shape) in [
            ("tenant ls", "http://node:1/api/v1/admin/tenants", Shape::Tenants),
            ("tenant get a/b --url x", "http://x/api/v1/admin/tenants/a%2Fb", Shape::Tenant),
        ] {
            let Ok(Wanted::Ask(ask)) = words(line) else { panic!("{line}") };
            assert_eq!((ask.url.as_str(), ask.verb, ask.shape), (want, Verb::Get, shape));
        }
    }

    #[test]
    fn a_change_says_all_that_was_typed() {
        let line =
            "tenant set acme --limit ingestion_rate=5000 --limit max_query_length_ms=1h --shard-size 4 --version 2";
        let Ok(Wanted::Change(change)) = words(line) else { panic!("refused") };
        assert_eq!(change.version, Some(2));
        let Verb::Put(body) = change.ask(2).verb else { panic!("not put") };
        let body: Value = serde_json::from_str(&body).unwrap();
        let limits = json!({"ingestion_rate": 5000, "max_query_length_ms": 3_600_000});
        assert_eq!(body, json!({"version": 2, "limits": limits, "shardSize": 4}));
        let Ok(Wanted::Change(change)) = words("tenant rm acme") else { panic!("refused") };
        assert_eq!(change.version, None);
        let ask = change.ask(5);
        assert_eq!((ask.url.as_str(), ask.verb), ("http://node:1/api/v1/admin/tenants/acme?version=5", Verb::Delete));
    }

    #[test]
    fn a_choice_is_yes_no_or_the_nodes() {
        for (text, want) in [("x=true", json!(true)), ("x=false", json!(false)), ("x=default", Value::Null)] {
            assert_eq!(limit(text), Ok(("x".to_owned(), want)));
        }
    }

    #[test]
    fn words_that_make_no_sense_are_refused() {
        for line in [
            "tenant",
            "tenant get",
            "tenant set",
            "tenant set a --limit x",
            "tenant set a --limit x=1h",
            "tenant set a --limit x_ms=soon",
            "tenant set a --shard-size -1",
            "tenant rm a --version x",
        ] {
            assert!(words(line).is_err(), "{line}");
        }
        command().debug_assert();
    }
}
