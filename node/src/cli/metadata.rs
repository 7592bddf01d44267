//! `engram metadata …`: a backup of the agreed metadata, a new cluster made of it, and going on when the majority is lost.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use engram_model::place::NodeId;
use engram_raft::backup::{self, About};
use engram_raft::recover;
use engram_raft::state::NodeSpec;

use super::client::{Target, causes};
use super::show::{failure, table};
use super::{complain, say, text, with_url};
use crate::data_dir::DataDir;
use crate::members::identity::IdentityFile;

/// Longest a backup may take.
const BACKUP_WITHIN: Duration = Duration::from_secs(30 * 60);

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Metadata {
    /// Ask a node for a backup.
    Backup(Target, PathBuf),
    /// Read a backup and say what it is.
    Check(PathBuf),
    /// Make the data directory of a cluster of one node.
    Restore {
        /// The backup.
        file: PathBuf,
        /// Where.
        data_dir: PathBuf,
        /// The node's zone until it says otherwise.
        zone: String,
        /// Whether the cluster gets another name.
        new_cluster_id: bool,
    },
    /// Have a node that does not run go on without those that are lost.
    Recover {
        /// Its data directory.
        data_dir: PathBuf,
        /// Who is lost for good.
        lost: Vec<String>,
        /// The cluster's name, typed by a person who means it; none: only look.
        force: Option<String>,
    },
}

/// The grammar.
pub(super) fn command() -> Command {
    let file = |help: &'static str| Arg::new("FILE").required(true).help(help);
    Command::new("metadata")
        .about("Back up the metadata: nodes, tenants and their limits, which blocks there are")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            with_url(Command::new("backup").about("Write all of it, as of now, to a file"))
                .arg(file("Where to; it gets its name when it is whole"))
                .arg(Arg::new("json").long("json").hide(true).action(ArgAction::SetTrue)),
        )
        .subcommand(Command::new("check").about("Read a backup to its end and say what is in it").arg(file("Which")))
        .subcommand(
            Command::new("restore")
                .about("Make the data directory of a cluster of one node from a backup; others join it")
                .arg(file("The backup"))
                .arg(Arg::new("data-dir").long("data-dir").required(true).value_name("DIR").help("Empty, or not there"))
                .arg(
                    Arg::new("zone")
                        .long("zone")
                        .value_name("NAME")
                        .default_value("default")
                        .help("The node's zone, as it will be started with"),
                )
                .arg(
                    Arg::new("new-cluster-id")
                        .long("new-cluster-id")
                        .action(ArgAction::SetTrue)
                        .help("Give the cluster another name: when nodes of the old one still run or may come back"),
                ),
        )
        .subcommand(recover_command())
}

fn recover_command() -> Command {
    Command::new("recover")
        .about("The majority of the voters is lost for good: have this node, which does not run, go on without them")
        .long_about(
            "Says what the data directory of a node that does not run knows of its cluster. With --lost and --force-single \
             it makes that node the only voter and declares the lost ones dead. What they had answered and this node had \
             not received is lost for ever, and none of them may be started again with its data.",
        )
        .arg(Arg::new("data-dir").long("data-dir").required(true).value_name("DIR").help("Of the node that is to go on"))
        .arg(
            Arg::new("lost")
                .long("lost")
                .value_name("ID,ID")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("Nodes that will never come back"),
        )
        .arg(
            Arg::new("force-single")
                .long("force-single")
                .value_name("CLUSTER")
                .requires("lost")
                .help("Do it; the cluster's name says that you mean this one"),
        )
}

/// What the words ask for.
pub(super) fn wanted(metadata: &ArgMatches, target: impl Fn(&ArgMatches) -> Target) -> Metadata {
    let (word, inner) = metadata.subcommand().unwrap_or(("check", metadata));
    let file = PathBuf::from(text(inner, "FILE").unwrap_or_default());
    match word {
        "backup" => Metadata::Backup(target(inner), file),
        "restore" => Metadata::Restore {
            file,
            data_dir: text(inner, "data-dir").unwrap_or_default().into(),
            zone: text(inner, "zone").unwrap_or_default(),
            new_cluster_id: inner.get_flag("new-cluster-id"),
        },
        "recover" => Metadata::Recover {
            data_dir: text(inner, "data-dir").unwrap_or_default().into(),
            lost: inner.get_many::<String>("lost").into_iter().flatten().cloned().collect(),
            force: text(inner, "force-single"),
        },
        _ => Metadata::Check(file),
    }
}

/// Does it.
pub(super) fn run(what: &Metadata) -> ExitCode {
    let done = match what {
        Metadata::Backup(target, file) => back_up(target, file),
        Metadata::Check(file) => backup::check(file).map(|about| shown(&about)).map_err(|e| e.to_string()),
        Metadata::Restore { file, data_dir, zone, new_cluster_id } => restore(file, data_dir, zone, *new_cluster_id),
        Metadata::Recover { data_dir, lost, force } => recover(data_dir, lost, force.as_deref()),
    };
    match done {
        Ok(text) => say(&text),
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn shown(about: &About) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    table(&[
        row("cluster", about.cluster.clone()),
        row("as of", format!("{}, index {}", crate::http::format_time(about.at), about.index)),
        row("written by", format!("Engram {}", about.version)),
        row("nodes", about.nodes.to_string()),
        row("tenants", about.tenants.to_string()),
        row("blocks", about.blocks.to_string()),
    ])
}

/// Into a file beside, read to its end and synced, before it gets its name.
fn back_up(target: &Target, file: &Path) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let part = PathBuf::from(format!("{}.part", file.display()));
    let say = |e: std::io::Error| format!("{}: {e}", part.display());
    let mut out = File::create(&part).map_err(say)?;
    let about = runtime
        .block_on(fetch(target, &mut out))
        .and_then(|()| out.sync_all().map_err(say))
        .and_then(|()| backup::check(&part).map_err(|e| e.to_string()))
        .and_then(|about| std::fs::rename(&part, file).map(|()| about).map_err(say));
    if about.is_err() {
        // What is not whole is worth nothing; that it cannot be removed is the smaller trouble.
        let _gone = std::fs::remove_file(&part);
    }
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(say)?;
    about.map(|about| shown(&about))
}

async fn fetch(target: &Target, out: &mut File) -> Result<(), String> {
    // A second installation fails and changes nothing: another part of the program was first.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(BACKUP_WITHIN).build();
    let client = client.map_err(|error| format!("cannot make a client: {error}"))?;
    let url = format!("{}/api/v1/admin/metadata/backup", target.url.trim_end_matches('/'));
    let lost = |error: reqwest::Error| format!("cannot ask {url}: {}", causes(&error));
    let mut answer = client.get(&url).send().await.map_err(lost)?;
    if !answer.status().is_success() {
        return Err(failure(&answer.text().await.map_err(lost)?));
    }
    while let Some(piece) = answer.chunk().await.map_err(lost)? {
        out.write_all(&piece).map_err(|e| format!("writing the backup: {e}"))?;
    }
    Ok(())
}

fn restore(file: &Path, data_dir: &Path, zone: &str, new_cluster_id: bool) -> Result<String, String> {
    let is_empty = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if data_dir.exists() && !is_empty(data_dir) {
        return Err(format!(
            "{} is not empty: a restored cluster begins in a directory of its own",
            data_dir.display()
        ));
    }
    backup::check(file).map_err(|e| e.to_string())?;
    let dir = DataDir::open(data_dir).map_err(|e| e.to_string())?;
    let name = new_cluster_id.then(|| uuid::Uuid::new_v4().to_string());
    // The node tells its addresses when it starts.
    let spec = NodeSpec { zone: zone.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), ..NodeSpec::default() };
    let restored = backup::restore(file, &dir.meta(), name, &spec).map_err(|e| e.to_string())?;
    IdentityFile::open(&dir.member())?.change(|identity| {
        identity.cluster = Some(restored.cluster.clone());
        identity.node = Some(restored.id.0);
    })?;
    Ok(format!(
        "{}\nrestored to {} as cluster {}, of which it is the only node, {}.\nStart it without --join and --bootstrap-expect; \
         others join it with empty data directories.\n",
        shown(&restored.about),
        data_dir.display(),
        restored.cluster,
        restored.id.0
    ))
}

fn recover(data_dir: &Path, lost: &[String], force: Option<&str>) -> Result<String, String> {
    let number = |id: &String| id.parse().map(NodeId).map_err(|_| format!("{id:?} is no id of a node"));
    let lost: BTreeSet<NodeId> = lost.iter().map(number).collect::<Result<_, _>>()?;
    if !data_dir.exists() {
        return Err(format!("there is no {}", data_dir.display()));
    }
    // Held to the end: a node that runs is not recovered from under its feet.
    let dir = DataDir::open(data_dir).map_err(|e| e.to_string())?;
    let Some(cluster) = force else {
        let about = recover::look(&dir.meta()).map_err(|e| e.to_string())?;
        return Ok(survivor(&about, &lost, data_dir));
    };
    let about = recover::take_over(&dir.meta(), &lost, cluster).map_err(|e| e.to_string())?;
    let lost: Vec<String> = lost.iter().map(|id| id.0.to_string()).collect();
    let (lost, id) = (lost.join(", "), about.id.0);
    Ok(format!(
        "Node {id} is now the only voter of cluster {cluster}. Dead for it: node {lost}; delete their data directories, they must \
         never be started with them again.\nStart node {id} as before. It answers queries with what it has, and takes writes; \
         others join it with empty data directories, and get copies by themselves.\n"
    ))
}

/// What a survivor knows, and what would be next.
fn survivor(about: &recover::Survivor, lost: &BTreeSet<NodeId>, data_dir: &Path) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let voters: Vec<String> = about.voters.iter().map(|id| id.0.to_string()).collect();
    let mut rows = vec![
        row("cluster", about.cluster.clone()),
        row("this node", about.id.0.to_string()),
        row("log", format!("ends at term {}, entry {}; applied {}", about.last.0, about.last.1, about.applied)),
        row("voters", voters.join(", ")),
        row("not here", format!("{} of its partitions have no replica on this node", about.foreign)),
    ];
    for (id, (state, address)) in &about.nodes {
        let is_lost = if lost.contains(id) { ", LOST" } else { "" };
        rows.push(row(&format!("node {}", id.0), format!("{state} at {address}{is_lost}")));
    }
    format!(
        "{}\nNothing has been changed. Only when the nodes that are lost will NEVER come back, and those that are left are no majority of \
         the voters:\n  engram metadata recover --data-dir {} --lost ID,ID --force-single {}\nOf several nodes that are left take the \
         one whose log has the greatest term, then the greatest entry. What the lost ones had answered and it had not received is lost.\n",
        table(&rows),
        data_dir.display(),
        about.cluster
    )
}
