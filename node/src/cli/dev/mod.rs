//! `engram dev …`: a cluster of several nodes on this machine, for trying things out.
//!
//! One process starts the nodes as its children and keeps them: when it ends, however it ends, they do. It answers a
//! socket in its directory, so that another terminal can kill a node and start it again.
//!
//! Map: here the words and the asking side · [`launch`] the process that keeps the nodes · [`ports`] who listens where.

mod launch;
mod ports;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{complain, say, text};

/// Where the cluster lies unless told otherwise.
const DIR_DEFAULT: &str = "dev-cluster";
/// Most nodes on one machine.
const NODES_MAX: u64 = 30;
/// The socket in the directory.
const SOCKET: &str = "control";
/// Longest an answer may take: a node stops in order.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Dev {
    dir: PathBuf,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// Start a cluster and keep it.
    Cluster { nodes: u64, zones: u64, any_ports: bool, options: Vec<String> },
    /// Ask the process that keeps it.
    Ask(String),
}

/// The grammar.
pub(super) fn command() -> Command {
    let with_dir = |command: Command| {
        command.arg(
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .default_value(DIR_DEFAULT)
                .help("Where its data, logs and ports are kept"),
        )
    };
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        let parser = clap::value_parser!(u64).range(1..=NODES_MAX);
        Arg::new(name).long(name).value_name("COUNT").default_value(default).value_parser(parser).help(help)
    };
    let one = |name: &'static str, about: &'static str| {
        let node = Arg::new("NODE").required(true).help("Its number, from 1, or its HTTP address");
        with_dir(Command::new(name).about(about)).arg(node)
    };
    Command::new("dev")
        .about("A cluster of several nodes on this machine, for trying things out")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            with_dir(Command::new("cluster").about("Start a cluster and keep it until Ctrl-C, which stops all of it"))
                .arg(number("nodes", "3", "How many nodes; what is there already goes on with its data"))
                .arg(number("zones", "3", "Over how many zones"))
                .arg(
                    Arg::new("any-ports")
                        .long("any-ports")
                        .action(ArgAction::SetTrue)
                        .help("Take any free ports for new nodes, not those from 9009 and 9095 on"),
                )
                .arg(
                    Arg::new("OPTIONS")
                        .last(true)
                        .num_args(0..)
                        .help("Options of every node: -- --limits-max-exemplars 7"),
                ),
        )
        .subcommand(with_dir(Command::new("status").about("Which nodes run, and where they answer")))
        .subcommand(one("kill", "Kill a node as a power cut would"))
        .subcommand(one("stop", "Stop a node in order"))
        .subcommand(one("start", "Start a node that does not run"))
        .subcommand(one("restart", "Stop a node in order and start it again"))
        .subcommand(with_dir(Command::new("down").about("Stop all nodes and the process that keeps them")))
}

/// What the words ask for.
pub(super) fn wanted(dev: &ArgMatches) -> Dev {
    let (word, inner) = dev.subcommand().unwrap_or(("status", dev));
    let number = |name: &str| inner.try_get_one::<u64>(name).ok().flatten().copied();
    let options = || inner.get_many::<String>("OPTIONS").into_iter().flatten().cloned().collect();
    let what = match (word, text(inner, "NODE")) {
        ("cluster", _) => What::Cluster {
            nodes: number("nodes").unwrap_or(3),
            zones: number("zones").unwrap_or(3),
            any_ports: inner.get_flag("any-ports"),
            options: options(),
        },
        (word, Some(node)) => What::Ask(format!("{word} {node}")),
        (word, None) => What::Ask(word.to_owned()),
    };
    Dev { dir: text(inner, "dir").unwrap_or_else(|| DIR_DEFAULT.to_owned()).into(), what }
}

/// Does it.
pub(super) fn run(dev: &Dev) -> ExitCode {
    let done = match &dev.what {
        What::Cluster { nodes, zones, any_ports, options } => {
            launch::run(&dev.dir, (*nodes, *zones, *any_ports), options).map(|()| String::new())
        }
        What::Ask(line) => ask(&dev.dir, line),
    };
    match done {
        Ok(text) => say(&text),
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// Asks the process that keeps the cluster.
fn ask(dir: &Path, line: &str) -> Result<String, String> {
    let path = dir.join(SOCKET);
    let none =
        |e: std::io::Error| format!("no cluster runs in {}: {e}; start one with `engram dev cluster`", dir.display());
    let mut stream = UnixStream::connect(&path).map_err(none)?;
    let broken = |e: std::io::Error| format!("{}: {e}", path.display());
    stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(broken)?;
    writeln!(stream, "{line}").map_err(broken)?;
    let mut answer = String::new();
    for line in BufReader::new(stream).lines() {
        answer.push_str(&line.map_err(broken)?);
        answer.push('\n');
    }
    match answer.strip_prefix("error: ") {
        Some(why) => Err(why.trim_end().to_owned()),
        None => Ok(answer),
    }
}
