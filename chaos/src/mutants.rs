//! `mutants`: nodes that are broken on purpose, each in one known place, and whether the checkers see it.
//!
//! A checker that has never caught anything proves nothing. The node's own feature `mutants` (`model/src/mutant.rs`) has
//! one broken place per mutant, chosen by an environment variable; here each is run in the scenario that must betray it,
//! and the checker that must say so is named. Another checker's finding is told, and is not enough: then the right one
//! is blind. The unbroken program passes the same scenarios, which `run` shows.
//!
//! A mutant that survives one seed gets another: what a fault hits is chance. One that survives all is a failure.

use crate::args::{How, Mutants};
use crate::binary;
use crate::error::Error;
use crate::interrupt;
use crate::report::Report;
use crate::run::{self, say};
use crate::scenario::{self, Scenario};
use serde::Serialize;
use std::path::Path;

/// Chooses the mutant, as the node reads it.
const VARIABLE: &str = "ENGRAM_MUTANT";

/// A mutant and who must see it.
#[derive(Debug, Serialize)]
struct Hunt {
    mutant: &'static str,
    is: &'static str,
    scenario: &'static str,
    checker: &'static str,
    /// Many writers of one series each: a request is then for one partition, and not refused for another's sake.
    alone: bool,
}

static HUNTS: &[Hunt] = &[
    Hunt {
        mutant: "ack-before-fsync",
        is: "the log answers before it syncs",
        scenario: "power-slow",
        checker: "samples",
        alone: false,
    },
    Hunt {
        mutant: "majority-of-one",
        is: "a write is acknowledged when one replica has it",
        scenario: "isolate-node",
        checker: "samples",
        alone: false,
    },
    Hunt {
        mutant: "forget-unchecked",
        is: "replicas forget what was cut, whatever the block's digest",
        scenario: "blocks-bridge",
        checker: "samples",
        alone: false,
    },
    Hunt {
        mutant: "compaction-drops-chunk",
        is: "a compaction loses chunks and counts them as doubles",
        scenario: "blocks-kill",
        checker: "samples",
        alone: false,
    },
    Hunt {
        mutant: "stale-epoch",
        is: "a replica takes writes for a replica set that is no more",
        scenario: "strand",
        checker: "samples",
        alone: true,
    },
    Hunt {
        mutant: "cache-across-tenants",
        is: "answers are kept without the tenant they are for",
        scenario: "kill-node",
        checker: "totals",
        alone: false,
    },
];

/// What became of one.
#[derive(Debug, Serialize)]
struct Caught {
    hunt: &'static Hunt,
    seed: u64,
    seconds: f64,
    /// `None`: it survived.
    saw: Option<String>,
    also: Vec<&'static str>,
}

/// Hunts all, or those that were named; true when each was caught by the checker that must.
///
/// # Errors
/// There is none of that name, or the harness could not do its work.
pub(crate) async fn run(args: Mutants) -> Result<bool, Error> {
    if let Some(name) = args.only.iter().find(|name| HUNTS.iter().all(|hunt| hunt.mutant != **name)) {
        let all: Vec<_> = HUNTS.iter().map(|hunt| hunt.mutant).collect();
        return Err(Error::Asked(format!("there is no mutant {name:?}; there are {}", all.join(", "))));
    }
    let engram = run::engram(&args.how)?;
    if !binary::holds(&engram, VARIABLE) {
        let text = format!("{} has no mutants: build it with `--features mutants`", engram.display());
        return Err(Error::Asked(text));
    }
    let mut end = std::pin::pin!(interrupt::asked_to_end());
    let (mut caught, builds) = (Vec::new(), run::builds(&args.how, &engram));
    builds.iter().try_for_each(|build| say(&build.text()))?;
    for hunt in HUNTS.iter().filter(|hunt| args.only.is_empty() || args.only.iter().any(|name| name == hunt.mutant)) {
        let one = tokio::select! {
            one = self::hunt(hunt, &engram, &args) => one?,
            () = &mut end => {
                say("interrupted: every node is ended")?;
                return Ok(false);
            }
        };
        say(&one.text())?;
        caught.push(one);
    }
    say(&table(&caught))?;
    if let Some(out) = &args.how.out {
        std::fs::create_dir_all(out)?;
        let named: String = builds.iter().map(|build| format!("\n{}", build.text())).collect();
        std::fs::write(out.join("mutants.md"), format!("{}\n{named}\n", table(&caught)))?;
        let json = serde_json::json!({ "builds": builds, "mutants": caught });
        let json = serde_json::to_vec_pretty(&json).map_err(|e| Error::Usage(e.to_string()))?;
        std::fs::write(out.join("mutants.json"), json)?;
    }
    Ok(caught.iter().all(|one| one.saw.is_some()))
}

async fn hunt(hunt: &'static Hunt, engram: &Path, args: &Mutants) -> Result<Caught, Error> {
    let wanted = scenario::named(hunt.scenario)?;
    let scenario: &'static Scenario =
        wanted.first().copied().ok_or_else(|| Error::Usage(format!("there is no scenario {:?}", hunt.scenario)))?;
    let (mut seconds, mut also) = (0.0, Vec::new());
    let usual = args.how.clone();
    let how = if hunt.alone { How { writers: Some(48), series: Some(1), pause_ms: Some(150), ..usual } } else { usual };
    for seed in args.seed..args.seed + u64::from(args.tries) {
        let env = vec![(VARIABLE, hunt.mutant.into())];
        let report = run::one(scenario, engram, env, seed, &how).await?;
        seconds += report.took_seconds;
        if report.skipped() {
            return Err(Error::Usage(report.text()));
        }
        let (saw, others) = judge(hunt, &report);
        also.extend(others);
        if saw.is_some() {
            clear(&report, args)?;
            return Ok(Caught { hunt, seed, seconds, saw, also });
        }
        say(&format!("{} survived seed {seed}:\n{}", hunt.mutant, report.text()))?;
    }
    Ok(Caught { hunt, seed: args.seed, seconds, saw: None, also })
}

/// What the checker that must see it saw, and who else did.
fn judge(hunt: &Hunt, report: &Report) -> (Option<String>, Vec<&'static str>) {
    let (findings, broken) = report.findings();
    let saw = findings.iter().find(|(checker, _)| *checker == hunt.checker).map(|(_, what)| what.clone());
    let mut also: Vec<_> = findings.iter().map(|(checker, _)| *checker).filter(|one| *one != hunt.checker).collect();
    if broken.is_some() {
        also.push("the run itself");
    }
    (saw, also)
}

/// What failed is kept for whoever wants to know why; here it had to fail.
fn clear(report: &Report, args: &Mutants) -> Result<(), Error> {
    match &report.kept {
        Some(kept) if !args.how.keep => Ok(std::fs::remove_dir_all(kept)?),
        _ => Ok(()),
    }
}

impl Caught {
    fn text(&self) -> String {
        let Hunt { mutant, is, scenario, checker, .. } = self.hunt;
        match &self.saw {
            Some(saw) => format!("{mutant}: caught in {scenario}, seed {}, by {checker}: {saw}", self.seed),
            None => format!("{mutant} ({is}): SURVIVED {scenario}; {checker} must see it"),
        }
    }
}

/// The table of all, as docs/chaos.md has it.
fn table(caught: &[Caught]) -> String {
    let mut text = "| mutant | what it does | scenario | seed | s | caught by | what it saw | others that failed |\n\
                    |---|---|---|---|---|---|---|---|"
        .to_owned();
    for one in caught {
        let Hunt { mutant, is, scenario, checker, .. } = one.hunt;
        let (by, saw) = one.saw.as_ref().map_or(("NOBODY", ""), |saw| (checker, saw.as_str()));
        let saw: String = saw.chars().take(160).collect::<String>().replace('|', "/");
        let (seed, seconds, also) = (one.seed, one.seconds, one.also.join(", "));
        text += &format!("\n| {mutant} | {is} | {scenario} | {seed} | {seconds:.0} | {by} | {saw} | {also} |");
    }
    let survived = caught.iter().filter(|one| one.saw.is_none()).count();
    text + &format!("\nmutants: {} caught, {survived} survived", caught.len() - survived)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_a_scenario_that_exists() {
        for hunt in HUNTS {
            assert_eq!(scenario::named(hunt.scenario).unwrap().len(), 1, "{}", hunt.scenario);
        }
    }

    #[test]
    fn the_table_says_who_survived() {
        let one = |saw| Caught { hunt: &HUNTS[0], seed: 3, seconds: 9.0, saw, also: vec!["agreement"] };
        let text = table(&[one(Some("lost: 3 | of 4".to_owned())), one(None)]);
        assert!(text.contains("| 3 | 9 | samples | lost: 3 / of 4 | agreement |"), "{text}");
        assert!(text.ends_with("1 caught, 1 survived") && text.contains("NOBODY"), "{text}");
    }
}
