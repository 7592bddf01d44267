//! `run`: a scenario from the first node to the verdict.
//!
//! ```text
//! start ─ load ─ faults, one round after the other ─ healed: whole? ─ more load ─ load over: agree? ─ read all ─ check
//! ```
//!
//! Whatever happens, every process it started ends with it: on an error, on Ctrl-C, and when it is killed itself.

use crate::args::Run;
use crate::check::{self, Outcome};
use crate::cluster::{Cluster, Spec};
use crate::error::Error;
use crate::history::{Answer, FaultState, Recorder, Stage};
use crate::nemesis::Nemesis;
use crate::report::{Report, Reports};
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
/// Load before the first fault.
const HEALTHY: Duration = Duration::from_secs(2);
/// Longest time until the cluster is whole and agrees; the verdict's bound is shorter.
const HEAL_WITHIN: Duration = Duration::from_secs(90);
/// Options of every node: small, and quick to notice.
const OPTIONS: [&str; 8] =
    ["--partitions", "8", "--shard-size", "4", "--cluster-repair-every", "1s", "--cluster-suspect-after", "2s"];
/// Nodes agree when so many rounds of reads in a row, over so long, were the same: longer than nodes take between two
/// looks at each other.
const ALIKE_ROUNDS: u32 = 4;
const ALIKE_FOR: Duration = Duration::from_secs(3);
/// How often everything is read again at each node at the end.
const AGAIN: usize = 2;

/// Runs what was named; true when all of it passed.
///
/// # Errors
/// Nothing of that name, or the reports could not be written.
pub(crate) async fn run(args: Run) -> Result<bool, Error> {
    let scenarios = scenario::named(&args.what);
    if scenarios.is_empty() {
        return Err(Error::Usage(format!("there is no scenario {:?}; `engram-chaos list` names all", args.what)));
    }
    let engram = args.engram.clone().map_or_else(beside, Ok)?;
    let seed = args.seed.unwrap_or_else(|| Clock::real().now().unsigned_abs() % 1_000_000);
    let mut reports = Reports::new(&args.what, seed, &engram);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    'scenarios: for scenario in scenarios {
        for round in 0..u64::from(args.repeat) {
            let report = tokio::select! {
                report = one(scenario, &engram, seed + round, &args) => report?,
                _ = &mut interrupted => {
                    say("interrupted: every node is ended")?;
                    reports.interrupted = true;
                    break 'scenarios;
                }
            };
            say(&report.text())?;
            reports.add(report);
            if let Some(out) = &args.out {
                reports.write(out)?;
            }
        }
    }
    say(&reports.summary(args.allow_skipped))?;
    if let Some(out) = &args.out {
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
    for one in scenario::ALL.iter().chain(scenario::PLANTED) {
        let marks = if one.smoke {
            "smoke"
        } else if one.planted.is_some() {
            "plant"
        } else {
            ""
        };
        let possible = one.possible().err().map_or(String::new(), |why| format!(" [skipped here: {why}]"));
        writeln!(out, "{:<16} {:>6}  {marks:<5}  {}: {}{possible}", one.name, one.number, one.fault, one.says)?;
    }
    for (number, what, waits) in MISSING {
        writeln!(out, "{:<16} {number:>6}         {what}: not yet, it needs {waits}", "-")?;
    }
    Ok(true)
}

/// The node's binary, where a build leaves it: beside this one.
fn beside() -> Result<PathBuf, Error> {
    let path = std::env::current_exe()?.with_file_name("engram");
    if path.exists() {
        return Ok(path);
    }
    Err(Error::Usage(format!("{} is not there: name the node's binary with --engram", path.display())))
}

async fn one(scenario: &'static Scenario, engram: &Path, seed: u64, args: &Run) -> Result<Report, Error> {
    let watch = Stopwatch::start();
    let folder = tempfile::Builder::new().prefix("engram-chaos-").tempdir_in(&args.work_dir)?;
    let recorder = Arc::new(Recorder::new(&folder.path().join("history.jsonl"), HISTORY_BYTES_MAX)?);
    let numbers =
        Numbers { base: Clock::real().now() - 1_800_000, tenants: 4, writers: args.writers, series: args.series };
    let mut broken = None;
    if let Err(why) = scenario.possible() {
        recorder.fault(scenario.name, FaultState::Skipped, &why);
    } else {
        let spec = Spec {
            engram: engram.to_owned(),
            nodes: scenario.nodes,
            zones: scenario.zones,
            options: OPTIONS.iter().chain(scenario.options).map(ToString::to_string).collect(),
            disk: scenario.disk,
            folder: folder.path().to_owned(),
            patience: Duration::from_secs(60),
            seed,
        };
        let mut cluster = Cluster::new(spec, CLIENT_TIMEOUT).await?;
        if let Err(error) = play(scenario, &mut cluster, numbers, &recorder, seed, args).await {
            broken = Some(error.to_string());
        }
        broken = broken.or(panicked(&cluster));
        let every: Vec<usize> = (0..cluster.count()).collect();
        cluster.kill_any(&every).await?;
    }
    let history = recorder.finish()?;
    let verdicts = check::all(&history, numbers, scenario.promise);
    let mut report = Report::new(scenario, seed, &history, verdicts, broken, watch.elapsed());
    let passed = report.outcome == Outcome::Passed;
    if !(passed || report.skipped()) || args.keep {
        report.kept = Some(folder.keep());
    }
    Ok(report)
}

/// Everything between the first start and the last read.
async fn play(
    scenario: &Scenario,
    cluster: &mut Cluster,
    numbers: Numbers,
    recorder: &Arc<Recorder>,
    seed: u64,
    args: &Run,
) -> Result<(), Error> {
    recorder.mark("start");
    let every: Vec<usize> = (0..cluster.count()).collect();
    cluster.start(&every).await?;
    cluster.whole(HEAL_WITHIN).await?;
    let pause = Duration::from_millis(args.pause_ms);
    let size = Size { readers: 2, registers: 2, configurers: 3, pause };
    let shared = Shared::new(recorder.clone(), cluster.roster.clone(), numbers, &size);
    let load = Load::start(shared, &size, seed).await?;
    recorder.mark("load");
    tokio::time::sleep(HEALTHY).await;
    let mut nemesis = Nemesis::new(recorder.clone(), seed.rotate_left(32) ^ 0x5eed, CLIENT_TIMEOUT);
    nemesis.rounds(cluster, scenario.act, scenario.pace).await?;
    recorder.mark(check::FAULTS_OVER);
    cluster.whole(HEAL_WITHIN).await?;
    recorder.mark(check::WHOLE);
    tokio::time::sleep(Duration::from_millis(scenario.after_ms)).await;
    let shared = load.finish().await?;
    recorder.mark(check::LOAD_OVER);
    agree(&shared).await;
    recorder.mark(check::AGREED);
    // Nodes that ended by themselves after the healing would be noticed nowhere else.
    for node in cluster.running() {
        cluster.alive(node)?;
    }
    for stage in std::iter::once(Stage::Final).chain(std::iter::repeat_n(Stage::Again, AGAIN)) {
        for writer in 0..numbers.writers {
            for node in shared.roster.listed() {
                workload::read(&shared, node, writer, stage).await;
            }
        }
    }
    Ok(())
}

/// Waits until all nodes answer alike about all writers, so often in a row that no luck of majorities can be the reason;
/// the checkers say whether that was in time.
async fn agree(shared: &Shared) {
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
            if *rounds >= ALIKE_ROUNDS && since.elapsed() >= ALIKE_FOR {
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

fn say(text: &str) -> Result<(), Error> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
