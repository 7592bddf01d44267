//! `soak`: episodes without end, each with faults, sizes and a load of its own, until something is found.
//!
//! Each run of a fixed list finds what it was made for; what nobody thought of shows itself in mixtures. So each episode
//! draws a few kinds of faults, a cluster to do them to and a strength of load from its seed ("swarm testing": leaving
//! kinds out finds more than always mixing all). It draws of all that can share a cluster; what needs one made for it alone
//! is in [`ALONE`], and what this machine cannot do is said at the beginning. An episode is a run as any other: it has a
//! seed, all checkers look at it, and `--episode` plays it again alone.
//!
//! Disk and memory stay bounded for as long as it takes: an episode's data and history go when nothing was found, what
//! stays is one line of JSON each and the sums. The first violation ends it, with everything kept. An episode of which
//! nobody knows whether its faults were there proves nothing: it is counted, and the next one begins.
//!
//! Source: Groce et al., "Swarm Testing" (ISSTA 2012).

use crate::args::{How, Soak};
use crate::check::Outcome;
use crate::cluster::{self, Damage, Disk, DiskKind, FakeClock, Injected, Kit, Meddle, Part, Scarce, Syncs, packets};
use crate::error::Error;
use crate::interrupt;
use crate::nemesis::{Act, Pace, Shape, Shift, Whom};
use crate::report::{Report, Totals};
use crate::run::{self, say};
use crate::scenario::{Blocks, FAST_MS, HONEST, MIXED, QUICK, SMALL_DISK, SMALL_SEGMENTS, Scenario, THREE};
use engram_model::time::{Clock, Stopwatch};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::io::Write;

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
    Act::ChurnCut,
    Act::WipeNode,
    Act::Lag,
    Act::BridgeThenKill,
    Act::Damage(Whom::EachNode, &[Damage::Torn, Damage::ZeroPage, Damage::Short]),
    Act::Damage(Whom::EachNode, &[Damage::Bits(Part::Log)]),
    Act::Damage(Whom::EachNode, &[Damage::Bits(Part::Meta)]),
    Act::LiveDamage(Whom::EachNode, Damage::Bits(Part::Log)),
];
/// Copies of parts of blocks that rot: there are some where there is a store.
const CACHE: &[Act] = &[Act::Damage(Whom::EachNode, &[Damage::Bits(Part::Cache)])];
/// Faults that need a disk of a node's own.
const POWER: &[Act] = &[
    Act::PowerLoss(Whom::EachNode),
    Act::PowerLoss(Whom::Leader),
    Act::PowerLoss(Whom::Zone),
    Act::PowerLoss(Whom::All),
];
/// Faults that need a small one.
const FULL: &[Act] = &[Act::DiskFull(Whom::EachNode), Act::DiskFull(Whom::All)];
/// Faults that need strace.
const TRACED: &[Act] = &[
    Act::Syncs(Whom::EachNode, Syncs::Slow(100)),
    Act::Syncs(Whom::Leader, Syncs::Slow(300)),
    Act::Syncs(Whom::EachNode, Syncs::Fail),
    Act::Calls(Whom::EachNode),
    Act::HeldSync(Whom::EachNode),
];
/// Faults that need both strace and power.
const DARK: &[Act] = &[Act::SlowThenDark];
/// Faults that need a hand between a node and its files; and of these, what needs power as well.
const MEDDLED: &[Act] = &[Act::CutShort(Whom::EachNode)];
const ONCE: &[Act] = &[Act::SyncOnce];
/// Faults that need clocks that can be set; samples two days ahead are allowed then.
const CLOCKS: &[Act] = &[
    Act::Clock(Whom::EachNode, Shift::Jump(600_000)),
    Act::Clock(Whom::Leader, Shift::Jump(86_400_000)),
    Act::Clock(Whom::All, Shift::Twitch(200)),
    Act::Clock(Whom::EachNode, Shift::Pace(200)),
];
/// Faults that need certificates; and of these, what needs a clock for the one who issues them.
const CERTS: &[Act] = &[Act::Rotate, Act::Expire];
/// Faults that need proxies before clients.
const FRONTS: &[Act] = &[Act::Network(Shape::LostAnswers(2_000))];
/// Faults that need the nodes' packets in our hands.
const PACKETS: &[Act] = &[
    Act::Network(Shape::CutClients),
    Act::Network(Shape::Loss),
    Act::Network(Shape::Disorder),
    Act::Network(Shape::Rot),
];
/// Faults that need control groups.
const SCARCE: &[Act] = &[Act::Scarce(&[Scarce::Files, Scarce::Threads, Scarce::Memory])];
/// What is not among them: what it is, why.
const ALONE: &[(&str, &str)] = &[
    ("strand", "six zones"),
    ("flood", "limits of its own"),
    ("rotten-chunks", "a load and partitions of its own"),
    ("two-owners", "two minutes for one fault"),
    ("rolling-upgrade", "what an older binary does not know"),
];

/// What this machine can do.
#[derive(Clone, Copy, Debug)]
struct Able {
    disks: bool,
    traced: bool,
    clocks: bool,
    groups: bool,
    compiler: bool,
    packets: bool,
}

impl Able {
    fn look() -> Self {
        Self {
            disks: Disk::possible(DiskKind::Ext4).is_ok(),
            traced: Injected::possible().is_ok(),
            clocks: FakeClock::possible().is_ok(),
            groups: [Scarce::Threads, Scarce::Memory].into_iter().all(|what| what.possible().is_ok()),
            compiler: Meddle::possible().is_ok(),
            packets: packets().is_ok(),
        }
    }

    /// What is never drawn, in words.
    fn left_out(self) -> String {
        let here = [
            (self.disks, "power loss and full disks: this machine mounts no disks"),
            (self.traced, "syncs and calls: there is no strace"),
            (self.clocks, "clocks and certificates that end: there is no libfaketime"),
            (self.groups, "threads and memory: there are no control groups"),
            (self.compiler, "writes cut short and syncs that fail once: there is no C compiler"),
            (self.packets, "packets: the network is one of proxies"),
        ];
        let here = here.into_iter().filter(|(is, _)| !*is).map(|(_, what)| what.to_owned());
        let alone = ALONE.iter().map(|(what, why)| format!("{what}: {why}"));
        here.chain(alone).collect::<Vec<_>>().join("; ")
    }
}

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
    fn draw(first_seed: u64, number: u64, able: Able) -> Self {
        let seed = first_seed.wrapping_mul(1_000_003).wrapping_add(number);
        let mut chance = StdRng::seed_from_u64(seed);
        let mut odds = |is: bool, share: f64| chance.random_bool(share) && is;
        let (power, clock, certs) = (odds(able.disks, 0.4), odds(able.clocks, 0.3), odds(able.clocks, 0.25));
        let (small, store, fronts, blocks) = (odds(power, 0.5), odds(true, 0.3), odds(true, 0.25), odds(true, 0.5));
        let meddle = odds(able.compiler, 0.3);
        let nodes = [3, 3, 4, 5, 6].choose(&mut chance).copied().unwrap_or(3);
        let ring: &[Act] = if nodes > 4 { &[Act::Network(Shape::Ring)] } else { &[] };
        // Each with what it needs, and whether one of them must be there: what it needs is there for them.
        let families: [(&[Act], bool, bool); 15] = [
            (PLAIN, true, false),
            (ring, true, false),
            (PACKETS, able.packets, false),
            (TRACED, able.traced, false),
            (SCARCE, able.groups, false),
            (POWER, power, power),
            (DARK, power && able.traced, false),
            (FULL, small, small),
            (CLOCKS, clock, clock),
            (CERTS, certs, certs),
            (FRONTS, fronts, fronts),
            (MIXED, store, store),
            (CACHE, store, false),
            (MEDDLED, meddle, false),
            (ONCE, meddle && power, false),
        ];
        let all: Vec<Act> = families.iter().filter(|(_, may, _)| *may).flat_map(|(acts, ..)| *acts).copied().collect();
        let few = chance.random_range(2..=4);
        let mut acts: Vec<Act> = all.sample(&mut chance, few).copied().collect();
        for (family, _, _) in families.iter().filter(|(_, _, must)| *must) {
            if !acts.iter().any(|act| family.contains(act)) {
                acts.extend(family.choose(&mut chance));
            }
        }
        let disk = match (power, small) {
            (false, _) => DiskKind::Plain,
            (true, false) => DiskKind::Ext4,
            (true, true) => DiskKind::Small(SMALL_DISK),
        };
        let scenario = Scenario {
            name: "soak",
            number: "37",
            fault: "a few kinds of faults, drawn from all that can share a cluster",
            nodes,
            zones: 3,
            disk,
            kit: Kit { clock, store, certs, fronts, older: false, meddle },
            options: options(&acts, store, clock).leak(),
            pace: Pace {
                rounds: chance.random_range(2..=5),
                hold_ms: chance.random_range(500..=6_000),
                rest_ms: chance.random_range(500..=4_000),
            },
            act: Act::AnyOf(acts.leak()),
            promise: HONEST,
            step_ms: if store { FAST_MS } else { THREE.step_ms },
            blocks: (blocks && !store).then(|| Blocks {
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

    /// How it is run; a load that was asked for is not drawn.
    fn how(&self, asked: &How) -> How {
        How {
            writers: asked.writers.or(Some(self.writers)),
            series: asked.series.or(Some(self.series)),
            pause_ms: asked.pause_ms.or(Some(self.pause_ms)),
            ..asked.clone()
        }
    }

    fn text(&self, number: u64) -> String {
        let Scenario { nodes, disk, kit, act, pace, blocks, .. } = self.scenario;
        format!(
            "episode {number}: {nodes} nodes, {disk:?} disks, {kit:?}, {act:?}, {pace:?}, blocks {blocks:?}, {} writers of {} series",
            self.writers, self.series
        )
    }
}

/// What nodes are told so that these can be done to them.
fn options(acts: &[Act], store: bool, clock: bool) -> Vec<&'static str> {
    let is = |wanted: fn(&Act) -> bool| acts.iter().any(wanted);
    let all: [(bool, &[&str]); 4] = [
        (store, QUICK),
        (clock, &["--limits-creation-grace-period", "2d"]),
        (is(|act| matches!(act, Act::DiskFull(_) | Act::Calls(_) | Act::SyncOnce)), SMALL_SEGMENTS),
        (is(|act| matches!(act, Act::Lag)), &["--cluster-snapshot-every", "100"]),
    ];
    all.iter().filter(|(is, _)| *is).flat_map(|(_, words)| *words).copied().collect()
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends {
    passed: u64,
    unknown: u64,
    failed: u64,
    interrupted: bool,
}

impl Ends {
    /// In words, for the last line.
    fn text(self) -> String {
        let Self { passed, unknown, failed, interrupted } = self;
        let what = match (failed > 0, passed > 0) {
            (true, _) => "STOPPED at a violation",
            (false, true) => "nothing was found",
            (false, false) => "nothing was proved: no episode came to its end",
        };
        let cut = if interrupted { ", interrupted" } else { "" };
        format!("soak: {what}; {passed} episodes passed, {unknown} proved nothing, {failed} failed{cut}")
    }

    fn well(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

/// Runs episodes until the time is over, something is found, or somebody interrupts; true when nothing was found, by one
/// episode at least.
///
/// # Errors
/// The harness could not do its work.
pub(crate) async fn run(args: Soak) -> Result<bool, Error> {
    if args.how.peer.is_some() {
        return Err(Error::Asked(
            "a soak mixes faults that only our own nodes can have: it takes no --peer".to_owned(),
        ));
    }
    let (engram, able) = (run::engram(&args.how)?, Able::look());
    let first_seed = args.seed.unwrap_or_else(|| Clock::real().now().unsigned_abs() % 1_000_000);
    let store = run::store(&args.how, &engram)?;
    say(&format!("soak: seed {first_seed}, {store}\n{}\nnever drawn: {}", cluster::network(), able.left_out()))?;
    let builds = run::builds(&args.how, &engram);
    builds.iter().try_for_each(|build| say(&build.text()))?;
    let mut lines = match &args.how.out {
        Some(out) => {
            std::fs::create_dir_all(out)?;
            Some(std::fs::File::create(out.join("episodes.jsonl"))?)
        }
        None => None,
    };
    let (watch, mut totals, mut ends) = (Stopwatch::start(), Totals::default(), Ends::default());
    let mut number = args.episode.unwrap_or(0);
    let mut end = std::pin::pin!(interrupt::asked_to_end());
    while totals.runs == 0 || args.episode.is_none() && args.hours.is_none_or(|hours| watch.elapsed() < hours) {
        let episode = Episode::draw(first_seed, number, able);
        say(&episode.text(number))?;
        let how = episode.how(&args.how);
        let mut report = tokio::select! {
            report = run::one(episode.scenario, &engram, Vec::new(), episode.seed, &how) => report?,
            () = &mut end => {
                say("interrupted: every node is ended")?;
                ends.interrupted = true;
                break;
            }
        };
        report.replay = format!("engram-chaos soak --seed {first_seed} --episode {number}{}", args.how.said());
        totals.add(&report);
        say(&report.text())?;
        if let Some(lines) = &mut lines {
            put(lines, &report)?;
        }
        match report.outcome {
            Outcome::Passed => ends.passed += 1,
            Outcome::Failed => {
                ends.failed += 1;
                break;
            }
            Outcome::Unknown | Outcome::NotApplicable => {
                ends.unknown += 1;
                forget(&report, args.how.keep || args.episode.is_some())?;
            }
        }
        number += 1;
    }
    say(&format!("{}\n{}", totals.text(), ends.text()))?;
    if let Some(out) = &args.how.out {
        let failed = |e: serde_json::Error| Error::Usage(e.to_string());
        let mut all = serde_json::to_value(totals).map_err(failed)?;
        (all["seed"], all["builds"]) = (first_seed.into(), serde_json::to_value(&builds).map_err(failed)?);
        let json = serde_json::to_vec_pretty(&all).map_err(failed)?;
        std::fs::write(out.join("soak.json"), json)?;
    }
    Ok(ends.well())
}

/// What proved nothing need not be kept, or the disk would fill up in a night.
fn forget(report: &Report, keep: bool) -> Result<(), Error> {
    match &report.kept {
        Some(kept) if !keep => Ok(std::fs::remove_dir_all(kept)?),
        _ => Ok(()),
    }
}

fn put(lines: &mut std::fs::File, report: &Report) -> Result<(), Error> {
    let line = serde_json::to_string(&report.brief()).map_err(|e| Error::Usage(e.to_string()))?;
    Ok(writeln!(lines, "{line}")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALL: Able = Able { disks: true, traced: true, clocks: true, groups: true, compiler: true, packets: true };
    const NONE: Able =
        Able { disks: false, traced: false, clocks: false, groups: false, compiler: false, packets: false };

    #[test]
    fn an_episode_is_its_seed() {
        for number in 0..50 {
            let (one, other) = (Episode::draw(7, number, ALL), Episode::draw(7, number, ALL));
            assert_eq!(one.text(number), other.text(number));
        }
        assert_ne!(Episode::draw(7, 1, ALL).text(0), Episode::draw(7, 2, ALL).text(0));
    }

    #[test]
    fn everything_is_drawn_sooner_or_later_and_only_where_it_can_be_done() {
        let families =
            [PLAIN, PACKETS, POWER, FULL, TRACED, DARK, CLOCKS, CERTS, FRONTS, SCARCE, MIXED, CACHE, MEDDLED, ONCE];
        let mut drawn = BTreeSet::new();
        for number in 0..400 {
            let Scenario { act, kit, disk, .. } = Episode::draw(7, number, ALL).scenario;
            let Act::AnyOf(acts) = act else { panic!("{act:?}") };
            drawn.extend(acts.iter().map(|act| format!("{act:?}")));
            let any = |family: &[Act]| acts.iter().any(|act| family.contains(act));
            assert!((kit.meddle || !any(MEDDLED)) && (kit.meddle && *disk != DiskKind::Plain || !any(ONCE)));
            assert!(kit.clock == any(CLOCKS) && kit.certs == any(CERTS) && kit.fronts == any(FRONTS), "{acts:?}");
            assert!(kit.store == any(MIXED) && (*disk != DiskKind::Plain || !any(POWER) && !any(FULL) && !any(DARK)));
            let Act::AnyOf(acts) = Episode::draw(7, number, NONE).scenario.act else { panic!("{act:?}") };
            assert!(
                !acts.iter().any(|act| [POWER, FULL, TRACED, CLOCKS, CERTS, SCARCE, PACKETS].concat().contains(act))
            );
        }
        let missing: Vec<_> =
            families.concat().into_iter().filter(|act| !drawn.contains(&format!("{act:?}"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn only_an_episode_that_passed_proves_anything() {
        let cut = Ends { interrupted: true, ..Ends::default() };
        assert!(!cut.well() && cut.text().contains("nothing was proved") && cut.text().ends_with("interrupted"));
        assert!(!Ends { unknown: 3, ..Ends::default() }.well());
        assert!(Ends { passed: 1, unknown: 3, ..Ends::default() }.well());
        assert!(Ends { passed: 9, failed: 1, ..Ends::default() }.text().contains("STOPPED at a violation"));
        assert!(ALL.left_out().contains("strand") && NONE.left_out().contains("strace"));
    }
}
