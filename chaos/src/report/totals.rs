//! Sums over many runs: how long something was broken, how often what, and what came of it.

use super::Report;
use crate::history::FaultState;
use serde::Serialize;
use std::collections::BTreeMap;

/// See the module's text.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Totals {
    pub(crate) runs: u64,
    passed: u64,
    hours: f64,
    /// Hours in which at least one fault was there.
    fault_hours: f64,
    operations: u64,
    acknowledged: u64,
    lost: u64,
    stale: u64,
    doubled: u64,
    phantom: u64,
    unavailable_seconds: f64,
    heal_seconds_max: f64,
    /// Faults by kind.
    installed: BTreeMap<String, u64>,
    skipped: BTreeMap<String, u64>,
}

impl Totals {
    pub(crate) fn of<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Self {
        let mut totals = Self::default();
        reports.into_iter().for_each(|report| totals.add(report));
        totals
    }

    /// One run more.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, far below 2^53")]
    pub(crate) fn add(&mut self, report: &Report) {
        let count = |checker, name| report.figure(checker, name) as u64;
        self.runs += 1;
        self.passed += u64::from(report.outcome == crate::check::Outcome::Passed);
        self.hours += report.took_seconds / 3600.0;
        self.fault_hours += report.timeline.broken_seconds() / 3600.0;
        self.operations += count("covered", "operations");
        self.acknowledged += count("samples", "acknowledged");
        self.lost += count("samples", "lost");
        self.stale += count("samples", "stale");
        self.doubled += count("samples", "doubled");
        self.phantom +=
            ["phantom", "wrong tenant", "wrong series"].map(|name| count("samples", name)).iter().sum::<u64>();
        self.unavailable_seconds += report.figure("available", "unavailable s");
        self.heal_seconds_max = self.heal_seconds_max.max(report.figure("healed", "heal s"));
        for fault in &report.faults {
            let by_kind = match fault.state {
                FaultState::Installed => &mut self.installed,
                FaultState::Skipped => &mut self.skipped,
                _ => continue,
            };
            *by_kind.entry(kind(&fault.name)).or_default() += 1;
        }
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let list = |all: &BTreeMap<String, u64>| {
            all.iter().map(|(kind, count)| format!("{count} × {kind}")).collect::<Vec<_>>().join(" · ")
        };
        let mut text = format!(
            "{} runs in {:.2} h, {} passed; something was broken for {:.2} h; {} operations, {} samples acknowledged, \
             {} lost, {} stale, {} doubled, {} phantom; unavailable {:.1} s; longest healing {:.1} s\ninstalled: {}",
            self.runs,
            self.hours,
            self.passed,
            self.fault_hours,
            self.operations,
            self.acknowledged,
            self.lost,
            self.stale,
            self.doubled,
            self.phantom,
            self.unavailable_seconds,
            self.heal_seconds_max,
            list(&self.installed),
        );
        if !self.skipped.is_empty() {
            text += &format!("\nskipped: {}", list(&self.skipped));
        }
        text
    }
}

/// A fault's name without whom it hit: words with digits become `#`.
fn kind(name: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in name.split_whitespace() {
        let numbered = !word.starts_with('-') && word.chars().any(|c| c.is_ascii_digit());
        match (numbered, words.last()) {
            (true, Some(&"#")) => {}
            (true, _) => words.push("#"),
            (false, _) if word == "nodes" => words.push("node"),
            (false, _) => words.push(word),
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_does_not_say_whom_it_hit() {
        for (name, want) in [
            ("kill -9 node 1", "kill -9 node #"),
            ("kill -9 nodes 0, 2", "kill -9 node #"),
            ("[1] and [0] see only node 2", "# and # see only node #"),
            ("every node alone", "every node alone"),
        ] {
            assert_eq!(kind(name), want);
        }
    }
}
