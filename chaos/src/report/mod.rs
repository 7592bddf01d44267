//! What a run leaves behind: a text to read, JSON to compute with, and one page that shows when what happened.
//!
//! - [`mod@self`]: the figures of a run, its text and JSON
//! - `build`: which programs it was
//! - `timeline`: acknowledgements, failures and times in buckets of a quarter of a second
//! - `gauges`: what nodes took: their peaks, and lines below the timeline
//! - `totals`: sums over many runs
//! - `html`: the page; it loads nothing from anywhere

mod build;
mod gauges;
mod html;
mod timeline;
mod totals;

use crate::args::How;
use crate::check::{Outcome, Verdict, seconds};
use crate::cluster::{Env, network};
use crate::error::Error;
use crate::history::{FaultState, History};
use crate::scenario::Scenario;
pub(crate) use build::Build;
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
    /// Why the harness could not do its work.
    harness: Option<String>,
    verdicts: Vec<Verdict>,
    faults: Vec<FaultLine>,
    timeline: Timeline,
    /// What each node took.
    nodes: Vec<gauges::Node>,
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
            harness: None,
            verdicts,
            faults: history.faults.iter().map(line).collect(),
            timeline: Timeline::of(history),
            nodes: gauges::nodes(history),
            replay: format!("engram-chaos run {} --seed {seed}", scenario.name),
            kept: None,
        }
    }

    /// How it was made, so that it can be made again: everything that is not as it is when nobody says anything.
    pub(crate) fn made(&mut self, how: &How, env: &Env) {
        for (name, value) in env.iter().rev() {
            self.replay = format!("{name}={} {}", value.display(), self.replay);
        }
        self.replay += &how.said();
    }

    /// The run without its timeline, for a list of very many.
    pub(crate) fn brief(&self) -> serde_json::Value {
        serde_json::json!({
            "scenario": self.scenario, "seed": self.seed, "outcome": self.outcome, "tookSeconds": self.took_seconds,
            "broken": self.broken, "harness": self.harness, "verdicts": self.verdicts, "faults": self.faults, "replay": self.replay,
            "kept": self.kept,
        })
    }

    /// Whether nothing was done because this machine cannot. A run that did something has a verdict like any other.
    pub(crate) fn skipped(&self) -> bool {
        let any = |state| self.faults.iter().any(|fault| fault.state == state);
        let nothing = !any(FaultState::Installed) && self.broken.is_none() && self.harness.is_none();
        self.outcome == Outcome::Unknown && any(FaultState::Skipped) && nothing
    }

    /// The harness failed: nothing is proved, whatever the checkers saw, unless they saw a violation.
    pub(crate) fn give_up(&mut self, why: String) {
        self.outcome = self.outcome.max(Outcome::Unknown);
        self.harness = Some(why);
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
            Outcome::Unknown | Outcome::NotApplicable => "UNKNOWN",
        }
    }

    /// Seconds for people; "–" where nobody measured any.
    fn seconds(&self, checker: &str, name: &str, digits: usize) -> String {
        let verdict = self.verdicts.iter().find(|verdict| verdict.checker == checker);
        let figure = verdict.and_then(|verdict| verdict.figures.get(name));
        figure.map_or("–".to_owned(), |figure| format!("{figure:.digits$} s"))
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
            "\n  failed: writes {} (+{} in flight at a hit), reads {} (+{}), questions {} (+{}); \
             first acknowledgement after {}, longest gap {}, at a fault {}, unavailable {:.1} s; p99 {:.0} ms, during faults \
             {:.0} ms; healed in {}, agreed in {}",
            of("available", "failed writes"),
            of("available", "failed writes in flight at a hit"),
            of("available", "failed reads"),
            of("available", "failed reads in flight at a hit"),
            of("available", "failed questions"),
            of("available", "failed questions in flight at a hit"),
            self.seconds("available", "first acknowledgement s", 2),
            self.seconds("available", "longest gap s", 2),
            self.seconds("available", "longest gap at a fault s", 2),
            of("available", "unavailable s"),
            of("available", "write p99 s") * 1000.0,
            of("available", "write p99 s during faults") * 1000.0,
            self.seconds("healed", "heal s", 1),
            self.seconds("healed", "agree s", 1),
        );
        if let Some(peaks) = gauges::peaks(&self.nodes) {
            text += &format!("\n  {peaks}");
        }
        if let Some(why) = &self.broken {
            text += &format!("\n  BROKEN {why}");
        }
        if let Some(why) = &self.harness {
            text += &format!("\n  the harness failed, this proves nothing: {why}");
        }
        for verdict in self.verdicts.iter().filter(|verdict| verdict.outcome > Outcome::Passed) {
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
    /// The programs that took part.
    builds: Vec<Build>,
    version: &'static str,
    /// What lay between the nodes.
    network: String,
    pub(crate) interrupted: bool,
    runs: Vec<Report>,
}

impl Reports {
    pub(crate) fn new(what: &str, seed: u64, store: &str, builds: Vec<Build>) -> Self {
        let (what, store) = (what.to_owned(), store.to_owned());
        let (version, network) = (env!("CARGO_PKG_VERSION"), network());
        Self { what, seed, store, builds, version, network, interrupted: false, runs: Vec::new() }
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
        let builds: Vec<String> = self.builds.iter().map(Build::text).collect();
        format!(
            "{}\n{}\nchaos: seed {}{skipped}\nchaos: {passed} passed, {} failed",
            Totals::of(&self.runs).text(),
            builds.join("\n"),
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

#[cfg(test)]
mod tests {
    //! Goal: a run is called what it was. Method: reports made by hand.
    use super::*;
    use crate::history::Fault;
    use crate::scenario;
    use clap::Parser;

    fn report(states: &[FaultState], broken: Option<&str>) -> Report {
        let fault = |(at, state): (usize, &FaultState)| Fault {
            at: at as u64,
            name: "scarce".to_owned(),
            state: *state,
            why: "no control group".to_owned(),
        };
        let history = History { faults: states.iter().enumerate().map(fault).collect(), ..History::default() };
        Report::new(&scenario::ALL[0], 7, &history, Vec::new(), broken.map(str::to_owned), Duration::ZERO)
    }

    #[test]
    fn a_run_that_failed_is_not_skipped_because_one_of_its_faults_was() {
        let skipped = report(&[FaultState::Skipped], None);
        assert!(skipped.skipped() && skipped.text().contains(": skipped in"));
        let (on, off) = (FaultState::Installed, FaultState::Skipped);
        for report in [report(&[off, on], Some("lost")), report(&[off], Some("lost")), report(&[off, on], None)] {
            let text = report.text();
            assert!(!report.skipped() && !text.contains(": skipped in") && text.contains("replay"), "{text}");
            let mut all = Reports::new("all", 7, "engram", Vec::new());
            all.add(report);
            assert!(!all.passed(true) && all.summary(true).contains("1 failed"));
        }
    }

    #[test]
    fn a_harness_that_failed_proves_nothing_and_hides_nothing() {
        let mut passed = report(&[], None);
        passed.outcome = Outcome::Passed;
        passed.give_up("no loop device".to_owned());
        assert_eq!(passed.outcome, Outcome::Unknown);
        assert!(passed.text().contains("no loop device") && !passed.skipped());
        let mut failed = report(&[], Some("lost"));
        failed.give_up("no loop device".to_owned());
        assert_eq!(failed.outcome, Outcome::Failed);
    }

    #[test]
    fn what_was_never_measured_took_no_time() {
        let text = report(&[FaultState::Installed], Some("it ended")).text();
        assert!(text.contains("healed in –, agreed in –"), "{text}");
    }

    #[test]
    fn a_replay_is_the_same_call() {
        let words = "engram-chaos run x --writers 48 --series 1 --engram /b/engram --engram-old /old --keep";
        let Ok(crate::args::Command::Run(run)) = crate::args::Command::try_parse_from(words.split(' ')) else {
            panic!("these are arguments of a run");
        };
        let mut report = report(&[], None);
        report.made(&run.how, &vec![("ENGRAM_MUTANT", "stale-epoch".into())]);
        assert_eq!(
            report.replay,
            "ENGRAM_MUTANT=stale-epoch engram-chaos run kill-node --seed 7 --engram /b/engram --engram-old /old \
             --writers 48 --series 1"
        );
    }
}
