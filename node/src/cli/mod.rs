//! The command line: what a person types.
//!
//! `engram` alone runs a node. Flags of options come from the table in `config/table.rs`, so that help, file and
//! environment never differ. The small clients (`query`, `cluster status`, `tenant`, `snapshot`, `flush`, `export`, `import`, `verify`) speak HTTP like anybody else: what they can
//! do, a script can.

pub mod client;
pub mod cluster;
pub mod dev;
pub mod export;
pub mod import;
pub mod metadata;
pub mod tenants;
pub mod tls;
pub mod verify;

mod blocks;
mod explain;
mod show;
mod tables;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::table::{KEYS, section_title};
use crate::config::{self, Config, Given, Loaded};

const ADDRESS_DEFAULT: &str = "http://127.0.0.1:9009";
const ABOUT: &str = "A replicated, multi-tenant metrics store that speaks the API of Prometheus";
const LONG_ABOUT: &str = "A replicated, multi-tenant metrics store that speaks the API of Prometheus.

Without a command, Engram runs a node. With nothing at all it is a cluster of one that
keeps its data in ./data and answers on http://127.0.0.1:9009; point a Prometheus at it with

    remote_write:
      - url: http://127.0.0.1:9009/api/v1/write

and add that address to Grafana as a Prometheus data source.";
const AFTER: &str = "Every option can stand in three places: as a flag, as an environment variable, and as a key of the file \
given by --config. A flag comes before the variable, that before the file. `engram config defaults` prints a file with \
all of them, explained.";

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Run a node.
    Run(Box<Loaded>),
    /// Print a text and end.
    Print(String),
    /// Ask a node, print its answer.
    Ask(client::Ask),
    /// Change a tenant, print what it is then.
    Change(tenants::Change),
    /// Write what a tenant has.
    Export(export::Export),
    /// Take in blocks of another system.
    Import(Box<import::Import>),
    /// Hold blocks against the metadata.
    Verify(verify::Verify),
    /// Make certificates.
    Make(tls::Make),
    /// Show how the cluster is, again and again.
    Watch(cluster::watch::Watch),
    /// Hold replicas against each other.
    Replicas(cluster::replicas::Replicas),
    /// Restart the nodes one by one.
    Roll(cluster::roll::Roll),
    /// A cluster on this machine.
    Dev(dev::Dev),
    /// Back up or restore the metadata.
    Metadata(metadata::Metadata),
}

/// Why nothing is done.
#[derive(Debug)]
pub enum Stop {
    /// Help, version, or words that clap does not understand.
    Usage(clap::Error),
    /// A configuration that is refused.
    Config(config::Error),
}

/// The whole program: reads arguments and environment, then either calls `run` or does the small thing that was asked.
///
/// The exit code is 0 for success, 1 for a failure, 2 for words we do not understand.
pub fn main(run: impl FnOnce(Loaded) -> ExitCode) -> ExitCode {
    let env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match parse(std::env::args_os(), &env) {
        Ok(Action::Run(loaded)) => {
            for warning in &loaded.warnings {
                complain(warning);
            }
            run(*loaded)
        }
        Ok(Action::Print(text)) => say(&text),
        Ok(Action::Ask(ask)) => told(client::ask(&ask)),
        Ok(Action::Change(change)) => told(tenants::run(&change)),
        Ok(Action::Export(export)) => told(export::run(&export)),
        Ok(Action::Import(import)) => told(import::run(&import)),
        Ok(Action::Verify(verify)) => told(verify::run(&verify)),
        Ok(Action::Make(make)) => told(tls::run(&make)),
        Ok(Action::Watch(watch)) => cluster::watch::run(&watch),
        Ok(Action::Replicas(replicas)) => told(cluster::replicas::run(&replicas)),
        Ok(Action::Roll(roll)) => cluster::roll::run(&roll),
        Ok(Action::Dev(dev)) => dev::run(&dev),
        Ok(Action::Metadata(what)) => metadata::run(&what),
        Err(Stop::Usage(error)) => {
            let code = if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
            // With nobody to print to there is nobody to tell.
            let _printed = error.print();
            code
        }
        Err(Stop::Config(error)) => {
            complain(&error.to_string());
            ExitCode::from(2)
        }
    }
}

fn told(answer: Result<client::Said, String>) -> ExitCode {
    match answer {
        Ok(said) => {
            let printed = say(&said.text);
            if said.is_good { printed } else { ExitCode::FAILURE }
        }
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // `engram … | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str) {
    // With nobody to print to there is nobody to tell.
    let _printed = writeln!(io::stderr().lock(), "engram: {text}");
}

/// What the arguments and the environment ask for.
///
/// # Errors
/// Words we do not understand, a configuration that is refused; also help and version, which end the program.
pub fn parse(args: impl IntoIterator<Item = OsString>, env: &[(String, String)]) -> Result<Action, Stop> {
    let matches = command().try_get_matches_from(args).map_err(Stop::Usage)?;
    let load = |matches: &ArgMatches| config::load(&given(matches, env), env).map_err(Stop::Config);
    match matches.subcommand() {
        None => load(&matches).map(|loaded| Action::Run(Box::new(loaded))),
        Some(("run", run)) => load(run).map(|loaded| Action::Run(Box::new(loaded))),
        Some(("config", config)) => match config.subcommand() {
            Some(("check", check)) => load(check).map(|loaded| Action::Print(checked(&loaded))),
            _ => Ok(Action::Print(defaults())),
        },
        Some(("metadata", words)) => Ok(Action::Metadata(metadata::wanted(words, |inner| asked(inner, env)))),
        Some(("dev", words)) => Ok(Action::Dev(dev::wanted(words))),
        Some(("cluster", words)) => Ok(cluster::wanted(words, env)),
        Some(("tenant", tenant)) => Ok(match tenants::wanted(tenant, |inner| asked(inner, env)) {
            tenants::Wanted::Ask(ask) => Action::Ask(ask),
            tenants::Wanted::Change(change) => Action::Change(change),
        }),
        Some(("blocks", inner)) => Ok(Action::Ask(blocks::wanted(inner, |inner| asked(inner, env)))),
        Some(("delete-series", inner)) => Ok(Action::Ask(blocks::deletion(inner, &asked(inner, env)))),
        Some(("export", export)) => Ok(Action::Export(export::wanted(export, address(export, env)))),
        Some(("import", import)) => Ok(Action::Import(Box::new(import::wanted(import, address(import, env))))),
        Some(("verify", verify)) => Ok(Action::Verify(verify::wanted(verify, address(verify, env)))),
        Some(("tls", tls)) => Ok(Action::Make(tls::wanted(tls))),
        Some(("snapshot", snapshot)) => Ok(Action::Ask(client::Ask::snapshot(&asked(snapshot, env)))),
        Some(("flush", flush)) => Ok(Action::Ask(client::Ask::flush(&asked(flush, env), flush.get_flag("wait")))),
        Some((_, query)) => {
            let ask = if query.get_flag("explain") { client::Ask::explain } else { client::Ask::query };
            Ok(Action::Ask(ask(
                &asked(query, env),
                text(query, "EXPR").unwrap_or_default(),
                ["time", "start", "end", "step"].map(|name| (name, text(query, name))),
            )))
        }
    }
}

/// File and flags of a command that has the options.
fn given(matches: &ArgMatches, env: &[(String, String)]) -> Given {
    let from_env = || env.iter().find(|(name, _)| name == "ENGRAM_CONFIG").map(|(_, value)| value.clone());
    let file = text(matches, "config").or_else(from_env).map(PathBuf::from);
    let flags = KEYS.iter().filter_map(|key| {
        let by_hand = matches.value_source(key.name) == Some(ValueSource::CommandLine);
        by_hand.then(|| text(matches, key.name).map(|value| (key.name, value)))?
    });
    Given { file, flags: flags.collect() }
}

/// The node that is asked, with a scheme whether one was given or not.
fn address(matches: &ArgMatches, env: &[(String, String)]) -> String {
    let from_env = || env.iter().find(|(name, _)| name == "ENGRAM_URL").map(|(_, value)| value.clone());
    let given = text(matches, "url").or_else(from_env).unwrap_or_else(|| ADDRESS_DEFAULT.to_owned());
    if given.contains("://") { given } else { format!("http://{given}") }
}

fn asked(matches: &ArgMatches, env: &[(String, String)]) -> client::Target {
    client::Target { url: address(matches, env), tenant: text(matches, "tenant"), json: matches.get_flag("json") }
}

fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.try_get_one::<String>(name).ok().flatten().cloned()
}

fn checked(loaded: &Loaded) -> String {
    let mut out = String::new();
    for warning in &loaded.warnings {
        out.push_str(&format!("warning: {warning}\n"));
    }
    for (key, origin) in KEYS.iter().zip(&loaded.origins) {
        if *origin != config::Origin::Default {
            out.push_str(&format!("{} = {}  ({origin})\n", key.name, (key.get)(&loaded.config)));
        }
    }
    out.push_str("the configuration is good\n");
    out
}

fn defaults() -> String {
    format!(
        "# Every option of Engram with its default. Each is also a flag (query.timeout: --query-timeout)\n\
         # and an environment variable (ENGRAM_QUERY_TIMEOUT). Leave out what you do not change.\n\n{}",
        Config::default().to_yaml(true)
    )
}

/// The whole grammar.
#[must_use]
pub fn command() -> Command {
    let styles = Styles::styled().header(AnsiColor::Green.on_default().bold()).literal(AnsiColor::Cyan.on_default());
    let top = Command::new("engram")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .long_about(LONG_ABOUT)
        .after_help(AFTER)
        .styles(styles)
        .max_term_width(110)
        .args_conflicts_with_subcommands(true)
        .subcommand(with_options(Command::new("run").about("Run a node (what happens without a command)")))
        .subcommand(
            Command::new("config")
                .about("Check or explain the configuration")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(with_options(
                    Command::new("check")
                        .about("Check file, environment and flags, and say where each value comes from"),
                ))
                .subcommand(
                    Command::new("defaults").about("Print a file with every option, its default and its meaning"),
                ),
        )
        .subcommand(cluster::command())
        .subcommand(dev::command())
        .subcommand(metadata::command())
        .subcommand(tenants::command())
        .subcommand(with_target(
            Command::new("snapshot")
                .about("Write all a tenant has as blocks of Prometheus, below the node's data directory"),
        ))
        .subcommand(blocks::command())
        .subcommand(blocks::delete_command())
        .subcommand(export::command())
        .subcommand(
            with_target(Command::new("flush").about("Bring what a tenant has in memory to blocks, now")).arg(
                Arg::new("wait")
                    .long("wait")
                    .action(ArgAction::SetTrue)
                    .help("Answer when the blocks are there, not when they are ordered"),
            ),
        )
        .subcommand(import::command())
        .subcommand(verify::command())
        .subcommand(tls::command())
        .subcommand(query_command());
    with_options(top)
}

fn query_command() -> Command {
    let moment = "RFC 3339 or seconds since 1970";
    with_target(Command::new("query").about("Evaluate a PromQL expression on a node"))
        .arg(Arg::new("EXPR").required(true).help("The expression, in quotes: 'sum by (job) (up)'"))
        .arg(Arg::new("time").long("time").value_name("TIME").help(format!("When, {moment} [default: now]")))
        .arg(
            Arg::new("start")
                .long("start")
                .value_name("TIME")
                .requires("end")
                .conflicts_with("time")
                .help(format!("First evaluation of a range, {moment}")),
        )
        .arg(
            Arg::new("end")
                .long("end")
                .value_name("TIME")
                .requires("start")
                .help(format!("Last evaluation of a range, {moment}")),
        )
        .arg(
            Arg::new("step")
                .long("step")
                .value_name("DURATION")
                .requires("start")
                .help("Distance of evaluations [default: a 60th of the range]"),
        )
        .arg(
            Arg::new("explain")
                .long("explain")
                .action(ArgAction::SetTrue)
                .help("Tell what each operator did instead of the result"),
        )
}

/// Of whom to ask what concerns one tenant.
fn with_target(command: Command) -> Command {
    with_node(command).arg(Arg::new("tenant").long("tenant").value_name("NAME").help("Whose data [default: anonymous]"))
}

/// Which node.
fn with_url(command: Command) -> Command {
    command.arg(
        Arg::new("url")
            .long("url")
            .value_name("URL")
            .help(format!("Any node of the cluster [env: ENGRAM_URL] [default: {ADDRESS_DEFAULT}]")),
    )
}

/// Of whom to ask.
fn with_node(command: Command) -> Command {
    with_url(command)
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print the node's answer as it is"))
}

fn with_options(mut command: Command) -> Command {
    command = command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help_heading(section_title(""))
            .help("Read options from this YAML file [env: ENGRAM_CONFIG]"),
    );
    let defaults = Config::default();
    for key in KEYS {
        let default = Some((key.get)(&defaults)).filter(|text| !text.is_empty());
        let default = default.map_or_else(String::new, |text| format!(" [default: {text}]"));
        let help = format!("{} [env: {}]{default}", key.help, key.env());
        let mut arg = Arg::new(key.name)
            .long(key.flag())
            .value_name(key.short)
            .help_heading(section_title(key.section()))
            .help(help);
        if key.switch {
            arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
        }
        command = command.arg(arg);
    }
    command
}
