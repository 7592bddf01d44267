//! `soak`: episodes without end, each with faults, sizes and a load of its own, until something is found.
//!
//! Each run of a fixed list finds what it was made for; what nobody thought of shows itself in mixtures. So each episode
//! draws a few kinds of faults of all there are, a cluster to do them to and a strength of load from its seed ("swarm
//! testing": leaving kinds out finds more than always mixing all). An episode is a run as any other: it has a seed, all
//! checkers look at it, and `--episode` plays it again alone.
//!
//! Disk and memory stay bounded for as long as it takes: an episode's data and history go when it has passed, what stays is
//! one line of JSON each and the sums. The first violation ends it, with everything kept.
//!
//! Source: Groce et al., "Swarm Testing" (ISSTA 2012).

use crate::args::Soak;
use crate::check::Outcome;
use crate::cluster::{Disk, DiskKind, Injected, Syncs};
use crate::error::Error;
use crate::nemesis::{Act, Pace, Shape, Whom};
use crate::report::{Report, Totals};
use crate::run::{self, say};
use crate::scenario::{Blocks, HONEST, Scenario, THREE};
use engram_model::time::{Clock, Stopwatch};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::io::Write;
use std::time::Duration;

/// Faults that need nothing but processes and their network.
const PLAIN: &[Act] = &[
    Act::Kill(Whom::EachNode),
    Act::Kill(Whom::Zone),
    Act::Kill(Whom::AllZonesButOne),
    Act::Kill(Whom::Leader),
    Act::Kill(Whom::All),
    Act::Pause(Whom::EachNode),
    Act::Pause(Whom::Leader),
    Act::Restart(Whom::EachNode),
    Act::Network(Shape::IsolateNode),
    Act::Network(Shape::IsolateLeader),
    Act::Network(Shape::Shatter),
    Act::Network(Shape::Halves),
    Act::Network(Shape::Bridge),
    Act::Network(Shape::OneWay),
    Act::Network(Shape::Slow(30)),
    Act::Network(Shape::Lossy),
    Act::Network(Shape::Narrow(125_000)),
    Act::Churn,
    Act::WipeNode,
];
/// Faults that need a disk of a node's own.
const POWER: &[Act] = &[
    Act::PowerLoss(Whom::EachNode),
    Act::PowerLoss(Whom::Leader),
    Act::PowerLoss(Whom::Zone),
    Act::PowerLoss(Whom::All),
];
/// Faults that need strace.
const TRACED: &[Act] = &[Act::Syncs(Whom::EachNode, Syncs::Slow(100)), Act::Syncs(Whom::Leader, Syncs::Slow(300))];

/// What one episode is.
#[derive(Debug)]
struct Episode {
    seed: u64,
    scenario: &'static Scenario,
    writers: u32,
    series: u32,
    pause_ms: u64,
}

impl Episode {
    /// Draws the one of that number.
    fn draw(first_seed: u64, number: u64) -> Self {
        let seed = first_seed.wrapping_mul(1_000_003).wrapping_add(number);
        let mut chance = StdRng::seed_from_u64(seed);
        let power = chance.random_bool(0.4) && Disk::possible(DiskKind::Ext4).is_ok();
        let traced = Injected::possible().is_ok();
        let mut all = PLAIN.to_vec();
        all.extend(POWER.iter().filter(|_| power));
        all.extend(TRACED.iter().filter(|_| traced));
        let few = chance.random_range(2..=4);
        let mut acts: Vec<Act> = all.sample(&mut chance, few).copied().collect();
        if power && !acts.iter().any(|act| POWER.contains(act)) {
            acts.extend(POWER.choose(&mut chance));
        }
        let nodes = [3, 3, 4, 5, 6].choose(&mut chance).copied().unwrap_or(3);
        let scenario = Scenario {
            name: "soak",
            number: "37",
            fault: "a few kinds of faults, drawn from all",
            nodes,
            zones: 3,
            disk: if power { DiskKind::Ext4 } else { DiskKind::Plain },
            act: Act::AnyOf(acts.leak()),
            pace: Pace {
                rounds: chance.random_range(2..=5),
                hold_ms: chance.random_range(500..=6_000),
                rest_ms: chance.random_range(500..=4_000),
            },
            promise: HONEST,
            blocks: chance.random_bool(0.5).then(|| Blocks {
                step_ms: [100, 500, 2_000].choose(&mut chance).copied().unwrap_or(500),
                flush_every_ms: chance.random_range(200..=3_000),
            }),
            ..THREE
        };
        Self {
            seed,
            // A few hundred bytes each: an episode takes at least half a minute.
            scenario: Box::leak(Box::new(scenario)),
            writers: chance.random_range(3..=12),
            series: chance.random_range(2..=16),
            pause_ms: chance.random_range(10..=80),
        }
    }

    fn text(&self, number: u64) -> String {
        let Scenario { nodes, disk, act, pace, blocks, .. } = self.scenario;
        format!(
            "episode {number}: {nodes} nodes, {disk:?} disks, {act:?}, {pace:?}, blocks {blocks:?}, {} writers of {} series",
            self.writers, self.series
        )
    }
}

/// Runs episodes until the time is over, something is found, or somebody interrupts; true when nothing was found.
///
/// # Errors
/// The harness could not do its work.
pub(crate) async fn run(args: Soak) -> Result<bool, Error> {
    let engram = run::engram(&args.how)?;
    let first_seed = args.seed.unwrap_or_else(|| Clock::real().now().unsigned_abs() % 1_000_000);
    say(&format!("soak: seed {first_seed}, {}", run::store(&args.how, &engram)?))?;
    let mut lines = match &args.how.out {
        Some(out) => {
            std::fs::create_dir_all(out)?;
            Some(std::fs::File::create(out.join("episodes.jsonl"))?)
        }
        None => None,
    };
    let (watch, mut totals) = (Stopwatch::start(), Totals::default());
    let until = args.hours.map(|hours| Duration::from_secs_f64(hours.max(0.0) * 3600.0));
    let mut number = args.episode.unwrap_or(0);
    let mut well = true;
    while totals.runs == 0 || args.episode.is_none() && until.is_none_or(|until| watch.elapsed() < until) {
        let episode = Episode::draw(first_seed, number);
        say(&episode.text(number))?;
        let how = crate::args::How {
            writers: episode.writers,
            series: episode.series,
            pause_ms: episode.pause_ms,
            ..args.how.clone()
        };
        let mut report = tokio::select! {
            report = run::one(episode.scenario, &engram, Vec::new(), episode.seed, &how) => report?,
            _ = tokio::signal::ctrl_c() => {
                say("interrupted: every node is ended")?;
                break;
            }
        };
        report.replay = format!("engram-chaos soak --seed {first_seed} --episode {number}{}", args.how.said());
        totals.add(&report);
        say(&report.text())?;
        if let Some(lines) = &mut lines {
            put(lines, &report)?;
        }
        well = report.outcome == Outcome::Passed;
        if !well {
            break;
        }
        number += 1;
    }
    say(&format!("{}\nsoak: {}", totals.text(), if well { "nothing was found" } else { "STOPPED at a violation" }))?;
    if let Some(out) = &args.how.out {
        let json = serde_json::to_vec_pretty(&totals).map_err(|e| Error::Usage(e.to_string()))?;
        std::fs::write(out.join("soak.json"), json)?;
    }
    Ok(well)
}

fn put(lines: &mut std::fs::File, report: &Report) -> Result<(), Error> {
    let line = serde_json::to_string(&report.brief()).map_err(|e| Error::Usage(e.to_string()))?;
    Ok(writeln!(lines, "{line}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_is_its_seed() {
        for number in 0..50 {
            let (one, other) = (Episode::draw(7, number), Episode::draw(7, number));
            assert_eq!(one.text(number), other.text(number));
        }
        assert_ne!(Episode::draw(7, 1).text(0), Episode::draw(7, 2).text(0));
    }
}
