//! Nodes that are broken on purpose, played until a schedule betrays them: what the simulation cannot see it does not test.
//!
//! Which checker must see which is fixed; that another one does is told, and is not enough. That the same seeds are good
//! without the mutant is what the gate plays.

use super::{Wanted, play_all, say_all};
use crate::error::Error;
use engram_model::mutant::Mutant;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Who must see it: a checker of histories, or the comparison of replicas at the end.
fn seer(mutant: Mutant) -> Option<&'static str> {
    match mutant {
        Mutant::AckBeforeFsync
        | Mutant::MajorityOfOne
        | Mutant::StaleEpoch
        | Mutant::ForgetUnchecked
        | Mutant::CompactionDropsChunk => Some("samples"),
        // It is broken where HTTP is, which is not simulated.
        Mutant::CacheAcrossTenants => None,
    }
}

#[derive(Default)]
struct Seen {
    played: u64,
    /// Seeds in which somebody saw something.
    by: BTreeMap<&'static str, u64>,
    /// The first seed in which the one saw it who must, and what.
    caught: Option<(u64, String)>,
}

/// Plays the seeds with the node broken that way, until it is caught; whether it was.
///
/// # Errors
/// There is no such mutant here, or no runtime could be made.
pub(crate) fn hunt(name: &str, wanted: Wanted) -> Result<bool, Error> {
    let mutant = Mutant::named(name).and_then(|mutant| Some((mutant, seer(mutant)?)));
    let Some((mutant, seer)) = mutant else {
        let all: Vec<_> = Mutant::ALL.into_iter().filter(|one| seer(*one).is_some()).map(Mutant::name).collect();
        return Err(Error::Asked(format!("there is no mutant {name:?} here; there are {}", all.join(", "))));
    };
    mutant.choose();
    let watch = engram_model::time::Stopwatch::start();
    let seen = Mutex::new(Seen::default());
    play_all(wanted, |_, played| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.played += 1;
        for verdict in &played.bad {
            *seen.by.entry(verdict.checker).or_default() += 1;
            if verdict.checker == seer && seen.caught.is_none() {
                let told = verdict.told.first().cloned().unwrap_or_default();
                seen.caught = Some((played.seed, format!("{} findings: {told}", verdict.found)));
            }
        }
        if !played.troubles.is_empty() {
            *seen.by.entry("replicas").or_default() += 1;
        }
        wanted.aloud || seen.caught.is_none()
    })?;
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (played, seconds, by) = (seen.played, watch.elapsed().as_secs_f64(), &seen.by);
    match &seen.caught {
        Some((seed, saw)) => say_all(&format!(
            "{name}: caught in seed {seed} by {seer}, {played} schedules, {seconds:.0} s; {saw}; all who saw something: {by:?}"
        )),
        None => say_all(&format!(
            "{name}: SURVIVED {played} schedules, {seconds:.0} s; {seer} must see it; who saw something: {by:?}"
        )),
    }
    Ok(seen.caught.is_some())
}
