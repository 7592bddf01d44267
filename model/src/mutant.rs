//! Mutants: this program, broken on purpose in one known place, to prove that whoever tests it would notice.
//!
//! Why inside and not a patch beside: a patch rots, and nobody notices that it does. Why a feature: without it there is no
//! code of this in the program; and no release build can have it, see below. Which of them a process is, is said once, by
//! `ENGRAM_MUTANT`; each hook is one line at the place it breaks, found by the name of the mutant.

use std::sync::OnceLock;

#[cfg(not(debug_assertions))]
compile_error!("the feature `mutants` breaks the program on purpose: release builds cannot have it");

/// The environment variable that chooses.
pub const VARIABLE: &str = "ENGRAM_MUTANT";

/// What this process is.
static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The log answers when a group is written, and syncs it before the next.
    AckBeforeFsync,
    /// A write is acknowledged when one replica has it.
    MajorityOfOne,
    /// A replica forgets what was cut whatever the digest of the block says.
    ForgetUnchecked,
    /// A compaction loses the last chunk of each series, and counts its samples as doubles.
    CompactionDropsChunk,
    /// A replica takes appends of a replica set that is no more.
    StaleEpoch,
    /// Who asks what another tenant has asked before gets that one's answer.
    CacheAcrossTenants,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::AckBeforeFsync,
        Self::MajorityOfOne,
        Self::ForgetUnchecked,
        Self::CompactionDropsChunk,
        Self::StaleEpoch,
        Self::CacheAcrossTenants,
    ];

    /// Its name in [`VARIABLE`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AckBeforeFsync => "ack-before-fsync",
            Self::MajorityOfOne => "majority-of-one",
            Self::ForgetUnchecked => "forget-unchecked",
            Self::CompactionDropsChunk => "compaction-drops-chunk",
            Self::StaleEpoch => "stale-epoch",
            Self::CacheAcrossTenants => "cache-across-tenants",
        }
    }

    /// Makes this process this one, whatever [`VARIABLE`] says.
    ///
    /// # Panics
    /// It is another one already.
    pub fn choose(self) {
        let chosen = *CHOSEN.get_or_init(|| Some(self));
        assert_eq!(chosen, Some(self), "this process was chosen to be another one");
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name)
    }

    /// Whether this process is this one.
    #[must_use]
    pub fn lives(self) -> bool {
        *CHOSEN.get_or_init(|| chosen(&std::env::var(VARIABLE).unwrap_or_default())) == Some(self)
    }
}

/// # Panics
/// There is none of that name: who misspells one must not find the healthy program good.
fn chosen(name: &str) -> Option<Mutant> {
    let found = Mutant::named(name);
    assert!(found.is_some() || name.is_empty(), "{VARIABLE}: there is no mutant {name:?}");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_chosen_by_its_name_and_none_by_another() {
        for mutant in Mutant::ALL {
            assert_eq!(chosen(mutant.name()), Some(mutant));
        }
        assert_eq!(chosen(""), None);
        assert!(std::panic::catch_unwind(|| chosen("majority-of-two")).is_err());
    }
}
