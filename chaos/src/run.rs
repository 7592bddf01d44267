//! `run`: a scenario from the first node to the verdict.
//!
//! ```text
//! start ─ load ─ faults, one round after the other ─ healed: whole? ─ more load ─ load over: agree? ─ read all ─ check
//! ```
//!
//! Whatever happens, every process it started ends with it: on an error, on Ctrl-C, and when it is killed itself.

use crate::args::{How, Run};
use crate::binary;
use crate::check::{self, Asked, Outcome};
use crate::cluster::{self, Cluster, Env, Network, Spec};
use crate::error::Error;
use crate::history::{Answer, FaultState, History, Recorder, Stage};
use crate::interrupt;
use crate::nemesis::Nemesis;
use crate::peer::{self, Peer};
use crate::report::{Build, Report, Reports};
use crate::scenario::{self, MISSING, Scenario};
use crate::workload::{self, Load, Numbers, Shared, Size};
use engram_model::time::{Clock, Stopwatch};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A history that grows beyond this proves nothing.
const HISTORY_BYTES_MAX: u64 = 1 << 30;
/// Clients give up on one request after this.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time until the cluster is whole and agrees; the verdict's bound is shorter.
const HEAL_WITHIN: Duration = Duration::from_secs(90);
/// Options of every node: small, and quick to notice.
const OPTIONS: [&str; 8] =
    ["--partitions", "8", "--shard-size", "4", "--cluster-repair-every", "1s", "--cluster-suspect-after", "2s"];
/// With blocks: windows as short as they can be, sealed soon, made one soon.
const BLOCKS: [&str; 14] = [
    "--blocks-window",
    "5m",
    "--blocks-seal-delay",
    "30s",
    "--blocks-seal-late-max",
    "30s",
    "--compaction-ranges",
    "5m,10m",
    "--compaction-interval",
    "1s",
    "--compaction-grace",
    "20s",
    "--query-timeout",
    "10s",
];
/// Nodes agree when so many rounds of reads in a row, over so long, were the same: longer than nodes take between two
/// looks at each other.
const ALIKE_ROUNDS: u32 = 4;
const ALIKE_FOR: Duration = Duration::from_secs(3);
/// A node is away for so long before what the others have is read: by then they know.
const AWAY: Duration = Duration::from_secs(3);
/// How often everything is read again at each node at the end.
const AGAIN: usize = 2;

/// Runs what was named; true when all of it passed.
///
/// # Errors
/// Nothing of that name, or the reports could not be written.
pub(crate) async fn run(args: Run) -> Result<bool, Error> {
    let scenarios = scenario::named(&args.what)?;
    let engram = engram(&args.how)?;
    let seed = args.seed.unwrap_or_else(|| Clock::real().now().unsigned_abs() % 1_000_000);
    let mut reports = Reports::new(&args.what, seed, &store(&args.how, &engram)?, builds(&args.how, &engram));
    say(&cluster::network())?;
    let mut interrupted = std::pin::pin!(interrupt::asked_to_end());
    'scenarios: for scenario in scenarios {
        for round in 0..u64::from(args.repeat) {
            let report = tokio::select! {
                report = one(scenario, &engram, Vec::new(), seed + round, &args.how) => {
                    report.unwrap_or_else(|error| unplayed(scenario, seed + round, &args.how, &error))
                }
                () = &mut interrupted => {
                    say("interrupted: every node is ended")?;
                    reports.interrupted = true;
                    break 'scenarios;
                }
            };
            say(&report.text())?;
            reports.add(report);
            if let Some(out) = &args.how.out {
                reports.write(out)?;
            }
        }
    }
    say(&reports.summary(args.allow_skipped))?;
    if let Some(out) = &args.how.out {
        // Also what was interrupted says so.
        reports.write(out)?;
        say(&format!("report: {}", out.join("report.html").display()))?;
    }
    Ok(reports.passed(args.allow_skipped))
}

/// Prints what can be run, one a line, and what cannot.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn list() -> Result<bool, Error> {
    let mut out = std::io::stdout();
    writeln!(out, "checked in every run: {}; besides that as the third column says", check::ALWAYS.join(", "))?;
    writeln!(out, "smoke: part of the short set; plant: passes when the checker finds what is planted\n")?;
    for one in scenario::ALL.iter().chain(scenario::HARD).chain(scenario::PLANTED) {
        let marks = if one.smoke {
            "smoke"
        } else if one.planted.is_some() {
            "plant"
        } else {
            ""
        };
        let possible = one.possible().err().map_or(String::new(), |why| format!(" [skipped here: {why}]"));
        let needs = if one.kit.older { " [needs --engram-old]" } else { "" };
        let checked = one.checked();
        writeln!(
            out,
            "{:<17} {:>6}  {checked:<17} {marks:<5}  {}: {}{needs}{possible}",
            one.name, one.number, one.fault, one.says
        )?;
    }
    for (number, what, waits) in MISSING {
        writeln!(out, "{name:<17} {number:>6}  {0:<17} {0:<5}  {what}: not yet, it needs {waits}", "", name = "-")?;
    }
    Ok(true)
}

/// A run that never began: it proves nothing, and hides nothing of the others.
fn unplayed(scenario: &Scenario, seed: u64, how: &How, error: &Error) -> Report {
    let mut report = Report::new(scenario, seed, &History::default(), Vec::new(), None, Duration::ZERO);
    report.made(how, &Vec::new());
    report.give_up(error.to_string());
    report
}

/// The programs that take part.
pub(crate) fn builds(how: &How, engram: &Path) -> Vec<Build> {
    let node = how.peer.is_none().then(|| Build::of("node", engram));
    let older = how.engram_old.as_deref().map(|older| Build::of("older node", older));
    let own = std::env::current_exe().ok().map(|own| Build::of("harness", &own));
    node.into_iter().chain(older).chain(own).collect()
}

/// What is attacked, with its version as it says it itself.
pub(crate) fn store(how: &How, engram: &Path) -> Result<String, Error> {
    if let Some(path) = &how.peer {
        let peer = Peer::read(path)?;
        return Ok(format!("{}, {}", peer.name, peer.version()));
    }
    let program = engram.display().to_string();
    Ok(format!("{program}, {}", peer::first_line(&program, &["--version".to_owned()])))
}

/// The node's binary: the one that is named, or the one beside this program.
///
/// # Errors
/// There is none.
pub(crate) fn engram(how: &How) -> Result<PathBuf, Error> {
    if how.peer.is_some() {
        return Ok(PathBuf::new());
    }
    let engram = how.engram.clone().map_or_else(beside, Ok)?;
    if let (Network::Packets, Err(why)) = (how.network, cluster::packets()) {
        return Err(Error::Asked(format!("--network packets: {why}")));
    }
    how.engram_old.iter().chain([&engram]).try_for_each(|path| binary::there(path))?;
    Ok(engram)
}

fn beside() -> Result<PathBuf, Error> {
    let path = std::env::current_exe()?.with_file_name("engram");
    if path.exists() {
        return Ok(path);
    }
    Err(Error::Asked(format!("{} is not there: name the node's binary with --engram", path.display())))
}

/// Whether there is another binary to begin with; else why not.
fn older(engram: &Path, args: &How) -> Result<Result<(), String>, Error> {
    let Some(older) = &args.engram_old else { return Ok(Err("name an older binary with --engram-old".to_owned())) };
    Ok(if binary::same(older, engram)? { Err("--engram-old names the same program".to_owned()) } else { Ok(()) })
}

/// One run of a scenario, with nodes of that binary that have `env` in their environment.
///
/// # Errors
/// The harness could not do its work; what a cluster does wrong is in the report.
pub(crate) async fn one(
    scenario: &'static Scenario,
    engram: &Path,
    env: Env,
    seed: u64,
    args: &How,
) -> Result<Report, Error> {
    let watch = Stopwatch::start();
    let mut folder = tempfile::Builder::new().prefix("engram-chaos-").tempdir_in(&args.work_dir)?;
    if args.keep {
        // Also when somebody interrupts.
        folder.disable_cleanup(true);
        say(&format!("{}: {}", scenario.name, folder.path().display()))?;
    }
    let recorder = Arc::new(Recorder::new(&folder.path().join("history.jsonl"), HISTORY_BYTES_MAX)?);
    let peer = args.peer.as_deref().map(Peer::read).transpose()?;
    let numbers = numbers(scenario, peer.as_ref(), args);
    let promise = if peer.is_some() { scenario::HONEST } else { scenario.promise };
    let possible = peer.as_ref().map_or(Ok(()), |peer| peer.bears(scenario.act)).and_then(|()| scenario.possible());
    let possible = if scenario.kit.older { possible.and(older(engram, args)?) } else { possible };
    let (size, mut broken, mut harness) = (size(scenario, peer.as_ref(), args), None, None);
    let ours = peer.is_none();
    let asked = Asked {
        totals: size.totals,
        constants: size.constants,
        registers: size.configurers > 0,
        blocks: ours && (scenario.blocks.is_some() || scenario.kit.store),
        gauges: ours,
    };
    if let Err(why) = possible {
        recorder.fault(scenario.name, FaultState::Skipped, &why);
    } else {
        let (nodes, zones) = peer.as_ref().map_or((scenario.nodes, scenario.zones), |peer| (peer.nodes, peer.nodes));
        let spec = Spec {
            engram: engram.to_owned(),
            older: args.engram_old.clone(),
            nodes,
            zones,
            options: options(scenario, folder.path())?,
            peer,
            env: env.clone(),
            disk: scenario.disk,
            kit: scenario.kit,
            folder: folder.path().to_owned(),
            patience: Duration::from_secs(60),
            seed,
            recorder: recorder.clone(),
        };
        match Cluster::new(spec, CLIENT_TIMEOUT).await {
            Ok(mut cluster) => {
                let played = play(scenario, &mut cluster, (numbers, &size), &recorder, seed).await;
                broken = played.err().map(|error| error.to_string()).or(panicked(&cluster));
                let every: Vec<usize> = (0..cluster.count()).collect();
                harness = cluster.kill_any(&every).await.err();
            }
            Err(error) => harness = Some(error),
        }
    }
    // A history that could not be kept, or is not whole, proves nothing.
    let history = recorder.finish().unwrap_or_else(|error| {
        harness = Some(error);
        History::default()
    });
    let verdicts = check::all(&history, numbers, promise, asked);
    let mut report = Report::new(scenario, seed, &history, verdicts, broken, watch.elapsed());
    report.made(args, &env);
    if let Some(error) = harness {
        report.give_up(error.to_string());
    }
    let passed = report.outcome == Outcome::Passed;
    if !(passed || report.skipped()) || args.keep {
        report.kept = Some(folder.keep());
    }
    Ok(report)
}

/// What is written: other stores have no tenants that are made by an API, so nothing is sent late to them.
fn numbers(scenario: &Scenario, peer: Option<&Peer>, args: &How) -> Numbers {
    // Nobody gets ahead of the clock, however fast the times of samples pass.
    let own = (scenario.step_ms, (scenario.step_ms * 5_400).max(1_800_000));
    let (step_ms, ago_ms) = scenario.blocks.map_or(own, |blocks| (blocks.step_ms, 86_400_000));
    let base = (Clock::real().now() - ago_ms) / 1000 * 1000;
    let tenants = if peer.is_some_and(|peer| peer.tenant_header.is_none()) { 1 } else { 4 };
    let (writers, series, _) = args.load(scenario.load);
    Numbers {
        base,
        tenants,
        writers,
        series,
        step_ms,
        late: peer.is_none(),
        shapes: peer.is_none_or(|peer| peer.histograms),
    }
}

/// How much load: what is Engram's own is left out for others.
fn size(scenario: &Scenario, peer: Option<&Peer>, args: &How) -> Size {
    let flush_every = scenario.blocks.map(|blocks| Duration::from_millis(blocks.flush_every_ms));
    let ours = Size {
        registers: 2,
        configurers: 3,
        totals: true,
        constants: true,
        flush_every,
        pause: Duration::from_millis(args.load(scenario.load).2),
    };
    match peer {
        Some(peer) => Size {
            registers: 0,
            configurers: 0,
            totals: peer.exact_ranges,
            constants: false,
            flush_every: None,
            ..ours
        },
        None => ours,
    }
}

/// Options of every node; with blocks, a bucket that all of them reach.
fn options(scenario: &Scenario, folder: &Path) -> Result<Vec<String>, Error> {
    // What a scenario says stands instead of what is said to all.
    let (usual, _) = OPTIONS.as_chunks::<2>();
    let usual = usual.iter().filter(|[name, _]| !scenario.options.contains(name)).flatten();
    let mut all: Vec<String> = usual.chain(scenario.options).map(ToString::to_string).collect();
    if scenario.blocks.is_some() {
        let bucket = folder.join("bucket");
        std::fs::create_dir_all(&bucket)?;
        all.extend(BLOCKS.iter().map(ToString::to_string));
        all.push(format!("--object-store-url=file://{}", bucket.display()));
    }
    Ok(all)
}

/// Everything between the first start and the last read.
async fn play(
    scenario: &Scenario,
    cluster: &mut Cluster,
    (numbers, size): (Numbers, &Size),
    recorder: &Arc<Recorder>,
    seed: u64,
) -> Result<(), Error> {
    recorder.mark("start");
    let every: Vec<usize> = (0..cluster.count()).collect();
    cluster.start(&every).await?;
    cluster.whole(HEAL_WITHIN).await?;
    let shared = Shared::new(recorder.clone(), cluster.roster.clone(), numbers, size);
    let load = Load::start(shared, size, seed).await?;
    recorder.mark("load");
    tokio::time::sleep(Duration::from_millis(scenario.healthy_ms)).await;
    let mut nemesis = Nemesis::new(recorder.clone(), seed.rotate_left(32) ^ 0x5eed, CLIENT_TIMEOUT);
    nemesis.rounds(cluster, scenario.act, scenario.pace).await?;
    recorder.mark(check::FAULTS_OVER);
    cluster.whole(HEAL_WITHIN).await?;
    recorder.mark(check::WHOLE);
    tokio::time::sleep(Duration::from_millis(scenario.after_ms)).await;
    let shared = load.finish().await?;
    recorder.mark(check::LOAD_OVER);
    agree(&shared, cluster.peer().is_none()).await;
    recorder.mark(check::AGREED);
    // Nodes that ended by themselves after the healing would be noticed nowhere else.
    for node in cluster.running() {
        cluster.alive(node)?;
    }
    let bucket = cluster.bucket().filter(|_| cluster.peer().is_none());
    if cluster.peer().is_none() {
        workload::held(&shared, Stage::Final).await;
    }
    for stage in std::iter::once(Stage::Final).chain(std::iter::repeat_n(Stage::Again, AGAIN)) {
        if stage == Stage::Again && bucket.is_some() {
            // From here on everything is read from blocks.
            workload::flush_all(&shared).await?;
        }
        for writer in 0..numbers.writers {
            for node in shared.roster.listed() {
                workload::read(&shared, node, writer, stage).await;
            }
        }
    }
    if bucket.is_some() {
        // What replicas still hold came after their windows were cut, and has had its time.
        workload::hold_alike(&shared, true, HEAL_WITHIN).await;
        workload::held(&shared, Stage::Again).await;
    }
    if cluster.peer().is_none() {
        workload::digests(&shared).await;
        if scenario.act.rebuilds() {
            each_away(cluster, &shared).await?;
        }
    }
    if let Some(bucket) = bucket {
        workload::look(&shared, &bucket).await;
    }
    Ok(())
}

/// Takes each node away in turn and reads everything at the others: what too few replicas have is missing then.
async fn each_away(cluster: &mut Cluster, shared: &Shared) -> Result<(), Error> {
    for node in cluster.running() {
        cluster.kill(&[node]).await?;
        tokio::time::sleep(AWAY).await;
        for writer in 0..shared.numbers.writers {
            for at in shared.roster.listed().into_iter().filter(|at| *at != node) {
                workload::read(shared, at, writer, Stage::Again).await;
            }
        }
        cluster.start(&[node]).await?;
        cluster.whole(HEAL_WITHIN).await?;
    }
    Ok(())
}

/// Waits until all nodes answer alike about all writers, so often in a row that no luck of majorities can be the reason,
/// and, where it can be asked, until all replicas hold the same; the checkers say whether that was in time.
async fn agree(shared: &Shared, held: bool) {
    let (watch, mut alike) = (Stopwatch::start(), None);
    let mut before: Vec<Answer> = Vec::new();
    while watch.elapsed() < HEAL_WITHIN {
        let (mut now, mut one) = (Vec::new(), true);
        for writer in 0..shared.numbers.writers {
            let mut answers = Vec::new();
            for node in shared.roster.listed() {
                answers.push(workload::read(shared, node, writer, Stage::Load).await);
            }
            one &= answers.iter().all(|answer| answer.is_some() && *answer == answers[0]);
            now.extend(answers.into_iter().next().flatten());
        }
        if one && now == before {
            let (since, rounds) = alike.get_or_insert_with(|| (Stopwatch::start(), 0));
            *rounds += 1;
            let often = *rounds >= ALIKE_ROUNDS && since.elapsed() >= ALIKE_FOR;
            if often && (!held || workload::hold_alike(shared, false, Duration::ZERO).await) {
                return;
            }
        } else {
            alike = None;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a node said before it died of a bug.
fn panicked(cluster: &Cluster) -> Option<String> {
    let logs = cluster.logs().into_iter().enumerate();
    logs.filter_map(|(node, path)| {
        let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned();
        let line = text.lines().find(|line| line.contains("panicked at"))?;
        Some(format!("node {node}: {line}"))
    })
    .next()
}

pub(crate) fn say(text: &str) -> Result<(), Error> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
