//! What a run leaves behind: a text to read, JSON to compute with, and one page that shows when what happened.
//!
//! - [`mod@self`]: the figures of a run, its text and JSON
//! - `timeline`: acknowledgements, failures and times in buckets of a quarter of a second
//! - `totals`: sums over many runs
//! - `html`: the page; it loads nothing from anywhere

mod html;
mod timeline;
mod totals;

use crate::check::{Outcome, Verdict, seconds};
use crate::error::Error;
use crate::history::{FaultState, History};
use crate::scenario::Scenario;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use timeline::Timeline;
pub(crate) use totals::Totals;

/// A fault, for readers.
#[derive(Clone, Debug, Serialize)]
struct FaultLine {
    at_seconds: f64,
    name: String,
    state: FaultState,
    why: String,
}

/// One run of one scenario.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    scenario: &'static str,
    number: &'static str,
    fault: &'static str,
    says: &'static str,
    seed: u64,
    pub(crate) outcome: Outcome,
    pub(crate) took_seconds: f64,
    /// Whether something was planted that had to be found.
    planted: bool,
    /// Why the run did not come to its end.
    broken: Option<String>,
    verdicts: Vec<Verdict>,
    faults: Vec<FaultLine>,
    timeline: Timeline,
    pub(crate) replay: String,
    /// Where the nodes' data, logs and the history are, when they were kept.
    pub(crate) kept: Option<PathBuf>,
}

impl Report {
    pub(crate) fn new(
        scenario: &Scenario,
        seed: u64,
        history: &History,
        verdicts: Vec<Verdict>,
        broken: Option<String>,
        took: Duration,
    ) -> Self {
        let worst = verdicts.iter().map(|verdict| verdict.outcome).max().unwrap_or(Outcome::Unknown);
        let outcome = match scenario.planted {
            // What was planted must be found, by the checker it was planted for.
            Some(checker) => {
                let found = verdicts.iter().any(|v| v.checker == checker && v.outcome == Outcome::Failed);
                if found { Outcome::Passed } else { worst.max(Outcome::Unknown) }
            }
            None if broken.is_some() => Outcome::Failed,
            None => worst,
        };
        let line = |fault: &crate::history::Fault| FaultLine {
            at_seconds: seconds(fault.at),
            name: fault.name.clone(),
            state: fault.state,
            why: fault.why.clone(),
        };
        Self {
            scenario: scenario.name,
            number: scenario.number,
            fault: scenario.fault,
            says: scenario.says,
            seed,
            outcome,
            took_seconds: took.as_secs_f64(),
            planted: scenario.planted.is_some(),
            broken,
            verdicts,
            faults: history.faults.iter().map(line).collect(),
            timeline: Timeline::of(history),
            replay: format!("engram-chaos run {} --seed {seed}", scenario.name),
            kept: None,
        }
    }

    /// It was another store, as this file describes it.
    pub(crate) fn with_peer(&mut self, file: &Path) {
        self.replay += &format!(" --peer {}", file.display());
    }

    /// The run without its timeline, for a list of very many.
    pub(crate) fn brief(&self) -> serde_json::Value {
        serde_json::json!({
            "scenario": self.scenario, "seed": self.seed, "outcome": self.outcome, "tookSeconds": self.took_seconds,
            "broken": self.broken, "verdicts": self.verdicts, "faults": self.faults, "replay": self.replay,
            "kept": self.kept,
        })
    }

    /// Whether nothing was done because this machine cannot.
    pub(crate) fn skipped(&self) -> bool {
        self.faults.iter().any(|fault| fault.state == FaultState::Skipped)
    }

    /// What checkers have found: each with its first finding. And why the run did not come to its end.
    pub(crate) fn findings(&self) -> (Vec<(&'static str, String)>, Option<&str>) {
        let failed = self.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Failed);
        let first = |verdict: &Verdict| {
            let told = verdict.told.first().cloned().unwrap_or_default();
            (verdict.checker, format!("{} findings, first: {told}", verdict.found))
        };
        (failed.map(first).collect(), self.broken.as_deref())
    }

    fn word(&self) -> &'static str {
        match self.outcome {
            Outcome::Passed if self.planted => "passed (found what was planted)",
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Unknown if self.skipped() => "skipped",
            Outcome::Unknown => "UNKNOWN",
        }
    }

    fn figure(&self, checker: &str, name: &str) -> f64 {
        let verdict = self.verdicts.iter().find(|verdict| verdict.checker == checker);
        verdict.and_then(|verdict| verdict.figures.get(name)).copied().unwrap_or(0.0)
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let of = |checker, name| self.figure(checker, name);
        let mut text = format!("{} (seed {}): {} in {:.0} s", self.scenario, self.seed, self.word(), self.took_seconds);
        if self.skipped() {
            return self.faults.iter().fold(text, |text, fault| format!("{text}\n  {}", fault.why));
        }
        text += &format!(
            "\n  {} faults, {} operations; samples: {} acknowledged, {} lost ({:.1} s), {} stale, {} doubled, {} phantom",
            of("covered", "faults"),
            of("covered", "operations"),
            of("samples", "acknowledged"),
            of("samples", "lost"),
            of("samples", "lost window"),
            of("samples", "stale"),
            of("samples", "doubled"),
            of("samples", "phantom") + of("samples", "wrong tenant") + of("samples", "wrong series"),
        );
        text += &format!(
            "\n  writes failed {} (+{} in flight at a hit), reads {} (+{}); longest gap {:.2} s, unavailable {:.1} s; p99 {:.0} ms; healed in {:.1} s, agreed in {:.1} s",
            of("available", "failed writes"),
            of("available", "failed writes in flight at a hit"),
            of("available", "failed reads"),
            of("available", "failed reads in flight at a hit"),
            of("available", "longest gap s"),
            of("available", "unavailable s"),
            of("available", "write p99 s") * 1000.0,
            of("healed", "heal s"),
            of("healed", "agree s"),
        );
        if let Some(why) = &self.broken {
            text += &format!("\n  BROKEN {why}");
        }
        for verdict in self.verdicts.iter().filter(|verdict| verdict.outcome != Outcome::Passed) {
            text += &format!("\n  {} {:?}: {} found", verdict.checker, verdict.outcome, verdict.found);
            for told in verdict.told.iter().take(5) {
                text += &format!("\n    {told}");
            }
        }
        if self.outcome != Outcome::Passed {
            text += &format!("\n  replay: {}", self.replay);
        }
        if let Some(kept) = &self.kept {
            text += &format!("\n  data, logs, history: {}", kept.display());
        }
        text
    }
}

/// All runs of one call.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Reports {
    what: String,
    seed: u64,
    /// What was attacked, with its version.
    store: String,
    version: &'static str,
    pub(crate) interrupted: bool,
    runs: Vec<Report>,
}

impl Reports {
    pub(crate) fn new(what: &str, seed: u64, store: &str) -> Self {
        let (what, store) = (what.to_owned(), store.to_owned());
        Self { what, seed, store, version: env!("CARGO_PKG_VERSION"), interrupted: false, runs: Vec::new() }
    }

    pub(crate) fn add(&mut self, report: Report) {
        self.runs.push(report);
    }

    fn is_good(report: &Report, allow_skipped: bool) -> bool {
        report.outcome == Outcome::Passed || allow_skipped && report.skipped()
    }

    /// Whether everything passed; what was skipped only counts as passed when that is allowed.
    pub(crate) fn passed(&self, allow_skipped: bool) -> bool {
        !self.interrupted && self.runs.iter().all(|report| Self::is_good(report, allow_skipped))
    }

    /// The last line.
    pub(crate) fn summary(&self, allow_skipped: bool) -> String {
        let passed = self.runs.iter().filter(|report| report.outcome == Outcome::Passed).count();
        let failed = self.runs.iter().filter(|report| !Self::is_good(report, allow_skipped)).count();
        let skipped = self.runs.iter().filter(|report| report.skipped()).count();
        let skipped = if skipped > 0 { format!(" ({skipped} skipped)") } else { String::new() };
        format!(
            "{}\nchaos: seed {}{skipped}\nchaos: {passed} passed, {} failed",
            Totals::of(&self.runs).text(),
            self.seed,
            failed + usize::from(self.interrupted)
        )
    }

    /// Writes `report.json` and `report.html` into a directory.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder)?;
        let failed = |e: serde_json::Error| Error::Usage(e.to_string());
        let mut all = serde_json::to_value(self).map_err(failed)?;
        all["totals"] = serde_json::to_value(Totals::of(&self.runs)).map_err(failed)?;
        let json = serde_json::to_vec_pretty(&all).map_err(|e| Error::Usage(e.to_string()))?;
        std::fs::write(folder.join("report.json"), json)?;
        Ok(std::fs::write(folder.join("report.html"), html::page(self))?)
    }
}
