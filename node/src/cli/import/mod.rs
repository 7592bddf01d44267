//! `engram import`: blocks of Prometheus, Thanos, Cortex or Mimir into a running cluster.
//!
//! Why the client reads the source: it stands where the other system's data and rights are; the node takes the bytes,
//! believes none of them, and recomputes every block before queries see it (`blocks/import.rs`). What is done per block:
//!
//! ```text
//! meta.json → take, rewrite, skip or refuse (plan.rs) → known to the cluster already? skip
//!   → as it is, or with other labels and without deleted samples (rewrite.rs) → one request → in the metadata
//! ```
//!
//! An import that broke off is started again: what has arrived is known by its name. A block that is rewritten has a
//! name that follows from the source's and from the labels, so it is known too.
//!
//! What is not taken: the WAL and the head of a Prometheus. Its snapshot writes them as blocks.

mod plan;
mod rewrite;
mod send;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use engram_model::block::BlockId;
use engram_storage::block::Meta;
use engram_storage::object::Store;
use engram_storage::object::options::{Options, Place};

use super::client::Said;
use super::{text, with_url};
pub use plan::Labels;
use plan::Step;
use send::{Answer, Node};

/// What the names of directories for rewritten blocks begin with.
const WORK: &str = "engram-import-";

/// What is to be imported, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The node.
    pub url: String,
    /// Whose data it becomes; none: the anonymous tenant's.
    pub tenant: Option<String>,
    /// The directory, or the part of a bucket, whose entries are blocks.
    pub source: Options,
    /// What becomes of external labels.
    pub labels: Labels,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where blocks are rewritten.
    pub work: PathBuf,
}

/// The grammar.
pub(crate) fn command() -> Command {
    let plain = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    with_url(
        Command::new("import")
            .about("Take in blocks of Prometheus, Thanos, Cortex or Mimir")
            .after_help(
                "SOURCE is what holds the blocks:\n\n    engram import /var/lib/prometheus/data           a data directory \
                 of Prometheus, or a snapshot of one\n    engram import s3://thanos-bucket                 a bucket \
                 of Thanos: external labels are added to the series\n    engram import s3://cortex-bucket/acme --tenant \
                 acme   one tenant of Cortex or Mimir\n\nCredentials of a bucket come from the environment, as for the \
                 provider's own tools. An import that broke off goes on when it is started again.",
            ),
    )
    .arg(Arg::new("SOURCE").required(true).help("A directory, or s3://, gs:// or az:// with bucket and prefix"))
    .arg(plain("tenant", "NAME", "Whose data it becomes [default: anonymous]"))
    .arg(
        plain("external-labels", "WHAT", "What to do with Thanos' external labels: they are part of every series there, so \
              `add` writes them into the block, `ignore` leaves them out")
            .value_parser(["add", "ignore"])
            .default_value("add"),
    )
    .arg(
        plain("drop-label", "NAME", "Do not add this external label, such as the one that tells replicas apart. May be repeated")
            .action(ArgAction::Append),
    )
    .arg(plain("endpoint", "URL", "Address of the source's object store, instead of the provider's"))
    .arg(plain("region", "NAME", "Region of the source's bucket"))
    .arg(plain("work-dir", "DIR", "Where blocks are kept while they are rewritten [default: the system's for temporary files]"))
    .arg(
        Arg::new("dry-run")
            .long("dry-run")
            .action(ArgAction::SetTrue)
            .help("Say what would be done with each block, and do nothing"),
    )
}

/// What the words ask for.
pub(crate) fn wanted(matches: &ArgMatches, url: String) -> Import {
    let of = |name: &str| text(matches, name).unwrap_or_default();
    Import {
        url,
        tenant: text(matches, "tenant"),
        source: Options { url: of("SOURCE"), endpoint: of("endpoint"), region: of("region"), ..Options::default() },
        labels: Labels {
            add: of("external-labels") != "ignore",
            drop: matches.get_many::<String>("drop-label").into_iter().flatten().cloned().collect(),
        },
        dry_run: matches.get_flag("dry-run"),
        work: text(matches, "work-dir").map_or_else(std::env::temp_dir, PathBuf::from),
    }
}

/// Imports; answers what to say at the end.
///
/// # Errors
/// A line for the person.
pub fn run(import: &Import) -> Result<Said, String> {
    // Blocks are read and sent at the same time.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let done = runtime.block_on(async {
        tokio::select! {
            done = all(import) => Some(done),
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    done.unwrap_or_else(|| {
        // A block that is being rewritten is not waited for.
        runtime.shutdown_background();
        clear(&import.work);
        Err("stopped: what has arrived stays; started again, it goes on where it was".to_owned())
    })
}

/// Removes what this process has left in the directory for rewritten blocks.
fn clear(work: &Path) {
    let mine = |name: &str| name.starts_with(WORK) && name.ends_with(&format!("-{}", std::process::id()));
    let entries = std::fs::read_dir(work).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(mine)) {
        // What stays is in a directory for temporary files.
        let _removed = std::fs::remove_dir_all(entry.path());
    }
}

/// What was done with how many blocks.
#[derive(Default)]
struct Counts {
    imported: u64,
    samples: u64,
    known: u64,
    skipped: u64,
    refused: u64,
}

async fn all(import: &Import) -> Result<Said, String> {
    let place = Place::parse(&import.source.url).map_err(|why| format!("SOURCE {:?}: {why}", import.source.url))?;
    if let Place::Local(path) = &place
        && !path.is_dir()
    {
        return Err(format!("{} is no directory", path.display()));
    }
    let store = Store::open(&import.source, Path::new("")).map_err(|e| e.to_string())?;
    let node = Node::new(&import.url, import.tenant.clone())?;
    let found = blocks(&store).await?;
    if let Place::Local(path) = &place {
        warn_of_head(path);
    }
    if plan::tenant_goes(&store).await? {
        tell("the tenant is being deleted there (markers/tenant-deletion-mark.json): what is left of it is imported");
    }
    let marked = plan::marked(&store, &found).await?;
    let superseded = plan::superseded(&found, &marked);
    let (mut counts, total) = (Counts::default(), found.len());
    for (i, (id, meta)) in found.iter().enumerate() {
        let step = match superseded.get(id) {
            _ if marked.contains(id) => Step::Skip("it is marked for deletion there".to_owned()),
            Some(by) => Step::Skip(format!("its samples are in block {by}")),
            None => plan::step(&store, meta, &import.labels).await?,
        };
        let span =
            format!("{} to {}", crate::http::format_time(meta.min_time), crate::http::format_time(meta.max_time));
        let done = one(import, &store, &node, meta, step, &mut counts).await?;
        tell(&format!("{} of {total}: {id}, {span}: {done}", i + 1));
    }
    let Counts { imported, samples, known, skipped, refused } = counts;
    let verb = if import.dry_run { "to import" } else { "imported" };
    let text = format!(
        "{imported} {verb} ({samples} samples), {known} there already, {skipped} skipped, {refused} refused, of {total} blocks\n"
    );
    Ok(Said { text, is_good: refused == 0 })
}

/// Does what is planned with one block; says what that was.
async fn one(
    import: &Import,
    store: &Store,
    node: &Node,
    meta: &Meta,
    step: Step,
    counts: &mut Counts,
) -> Result<String, String> {
    let (id, rewrite) = match step {
        Step::Skip(why) => {
            counts.skipped += 1;
            return Ok(format!("skipped: {why}"));
        }
        Step::Refuse(why) => {
            counts.refused += 1;
            return Ok(format!("REFUSED: {why}"));
        }
        Step::Take => (meta.ulid, None),
        Step::Rewrite(target) => (target.id, Some(target)),
    };
    if let Some(how) = node.known(id).await? {
        counts.known += 1;
        return Ok(how);
    }
    if import.dry_run {
        counts.imported += 1;
        counts.samples += meta.stats.num_samples;
        let how = rewrite.map_or(String::new(), |target| format!(", rewritten as {id}: {}", target.why));
        return Ok(format!("to be imported, {} samples{how}", meta.stats.num_samples));
    }
    let answer = match rewrite {
        None => node.send(id, send::files_of(store, meta.ulid).await?, store.clone()).await?,
        Some(target) => {
            let work = tempdir(&import.work, meta.ulid)?;
            let sent = rewritten(store, node, meta.ulid, target, &work).await;
            // What stays is in a directory for temporary files.
            let _removed = std::fs::remove_dir_all(&work);
            sent?
        }
    };
    match answer {
        Answer::Imported { series, samples, repaired } => {
            counts.imported += 1;
            counts.samples += samples;
            let how = if repaired { "imported in place of the damaged one" } else { "imported" };
            Ok(format!("{how}, {series} series, {samples} samples"))
        }
        Answer::Empty => {
            counts.skipped += 1;
            Ok("skipped: all of it is deleted".to_owned())
        }
        Answer::Refused(why) => {
            counts.refused += 1;
            Ok(format!("REFUSED: {why}"))
        }
    }
}

/// Copies a block, rewrites it and sends it.
async fn rewritten(
    store: &Store,
    node: &Node,
    id: BlockId,
    target: plan::Target,
    work: &Path,
) -> Result<Answer, String> {
    let (copy, new) = (work.join("source").join(id.to_string()), work.join("result"));
    send::copy(store, id, &copy).await?;
    let name = target.id;
    let made = tokio::task::spawn_blocking(move || rewrite::block(&copy, &new, &target).map(|made| (made, new)));
    match made.await.map_err(|e| format!("rewriting block {id} failed: {e}"))? {
        Err(why) => Ok(Answer::Refused(why)),
        Ok((false, _)) => Ok(Answer::Empty),
        Ok((true, dir)) => {
            let local = Store::local(std::sync::Arc::new(engram_storage::disk::real::RealDisk), &dir);
            let local = local.map_err(|e| e.to_string())?;
            node.send(name, send::files_of(&local, name).await?, local.clone()).await
        }
    }
}

fn tempdir(parent: &Path, id: BlockId) -> Result<PathBuf, String> {
    let path = parent.join(format!("{WORK}{id}-{}", std::process::id()));
    std::fs::create_dir_all(path.join("result")).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    Ok(path)
}

/// Every block of the source, with what it says of itself. One without `meta.json` is not whole and left out.
async fn blocks(store: &Store) -> Result<Vec<(BlockId, Meta)>, String> {
    let names = store.list_dirs("").await.map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for id in names.iter().filter_map(|name| name.parse::<BlockId>().ok()) {
        let key = format!("{id}/meta.json");
        match store.get(&key).await.map_err(|e| e.to_string())? {
            None => tell(&format!("{id}: skipped: it has no meta.json, so its upload was not finished")),
            Some(bytes) => match Meta::read(Path::new(&key), &bytes) {
                Ok(meta) if meta.ulid == id => found.push((id, meta)),
                Ok(meta) => return Err(format!("block {id} calls itself {}", meta.ulid)),
                Err(error) => return Err(format!("block {id}: {error}")),
            },
        }
    }
    if found.is_empty() {
        let mut tenants = BTreeSet::new();
        for name in names.iter().take(50) {
            let below = store.list_dirs(name).await.map_err(|e| e.to_string())?;
            if below.iter().any(|inner| inner.parse::<BlockId>().is_ok()) {
                tenants.insert(name.as_str());
            }
        }
        let hint = match tenants.is_empty() {
            true => String::new(),
            false => format!(
                ", but in {}: import one tenant at a time, such as SOURCE/{}",
                tenants.iter().copied().collect::<Vec<_>>().join(", "),
                tenants.first().copied().unwrap_or_default()
            ),
        };
        return Err(format!("there are no blocks in SOURCE{hint}"));
    }
    // Older ones first: what broke off goes on where it was.
    found.sort_by_key(|(id, meta)| (meta.min_time, *id));
    Ok(found)
}

/// The newest samples of a Prometheus are in no block yet.
fn warn_of_head(path: &Path) {
    let holds_any = |name| std::fs::read_dir(path.join(name)).is_ok_and(|mut entries| entries.next().is_some());
    if holds_any("wal") || holds_any("chunks_head") {
        tell(
            "the WAL and the head are not taken: they hold the newest samples, up to three hours. Import a snapshot to have \
             them: curl -XPOST http://<prometheus>/api/v1/admin/tsdb/snapshot (started with --web.enable-admin-api), then \
             its directory snapshots/<name>",
        );
    }
}

fn tell(what: &str) {
    // With nobody to print to there is nobody to tell.
    let _told = writeln!(io::stderr(), "import: {what}");
}
