//! `engram tls`: certificates for the nodes of a cluster, for those who have no CA.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use engram_model::time::Clock;

use super::client::Said;
use super::text;
use crate::tls::NAME_DEFAULT;
use crate::tls::issue::{self, DAYS_MAX, Wanted};

/// What is asked for.
#[derive(Debug)]
pub enum Make {
    /// A CA.
    Ca {
        /// Where.
        dir: PathBuf,
        /// For how long.
        days: u32,
    },
    /// A node's certificate.
    Node {
        /// Where the CA is.
        dir: PathBuf,
        /// What it is to be.
        wanted: Wanted,
    },
}

/// The grammar.
pub(super) fn command() -> Command {
    let dir = Arg::new("dir").long("dir").value_name("DIR").default_value("tls").help("Where the CA's files are");
    let days = |days: &'static str| {
        let range = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX));
        Arg::new("days")
            .long("days")
            .value_name("N")
            .default_value(days)
            .value_parser(range)
            .help("How long it is good")
    };
    Command::new("tls")
        .about("Make certificates for the nodes of a cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("init-ca")
                .about("Make a CA: ca.pem goes to every node, ca.key stays where certificates are issued")
                .arg(dir.clone())
                .arg(days("3650")),
        )
        .subcommand(
            Command::new("issue")
                .about("Issue a node's certificate by that CA: NAME.pem and NAME.key")
                .arg(Arg::new("NAME").required(true).help("The node, for people; also the name of the files"))
                .arg(dir)
                .arg(days("365"))
                .arg(
                    Arg::new("node-name")
                        .long("node-name")
                        .value_name("NAME")
                        .default_value(NAME_DEFAULT)
                        .help("The name all certificates of the cluster bear, see cluster.tls.name"),
                )
                .arg(
                    Arg::new("host")
                        .long("host")
                        .value_name("HOST")
                        .action(ArgAction::Append)
                        .help("Another name or address it is for; nodes do not look at it, other tools may"),
                ),
        )
}

/// What the arguments say.
pub(super) fn wanted(matches: &ArgMatches) -> Make {
    let (word, inner) = matches.subcommand().unwrap_or(("init-ca", matches));
    let dir = text(inner, "dir").unwrap_or_default().into();
    let days = inner.get_one::<u32>("days").copied().unwrap_or(1);
    if word == "init-ca" {
        return Make::Ca { dir, days };
    }
    let hosts = inner.get_many::<String>("host").into_iter().flatten().cloned().collect();
    let name = text(inner, "NAME").unwrap_or_default();
    Make::Node { dir, wanted: Wanted { name, node: text(inner, "node-name").unwrap_or_default(), hosts, days } }
}

/// Does it; answers what to do next.
///
/// # Errors
/// What is in the way.
pub(super) fn run(make: &Make) -> Result<Said, String> {
    let now = Clock::real().now();
    let text = match make {
        Make::Ca { dir, days } => {
            let [certificate, key] = issue::init_ca(dir, *days, now)?;
            format!(
                "{} is the CA of the cluster: it goes to every node.\n\
                 {} issues certificates: keep it away from the nodes.\n\
                 Next, for each node: engram tls issue NAME --dir {}\n",
                certificate.display(),
                key.display(),
                dir.display()
            )
        }
        Make::Node { dir, wanted } => {
            let [certificate, key] = issue::issue(dir, wanted, now)?;
            let name = if wanted.node == NAME_DEFAULT { String::new() } else { format!("\n    name: {}", wanted.node) };
            format!(
                "On that node, with these files where it can read them:\n\n\
                 cluster:\n  tls:\n    cert: {}\n    key: {}\n    ca: {}{name}\n",
                certificate.display(),
                key.display(),
                dir.join("ca.pem").display()
            )
        }
    };
    Ok(Said { text, is_good: true })
}
