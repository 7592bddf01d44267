//! Forgetting: samples before a time go, and series that have none left.
//!
//! Why it is logged: refs of forgotten series are given to new ones, and the floor decides on late samples; a replay
//! that did not forget at the same place would judge otherwise.

use engram_model::Millis;
use engram_model::digest::slot_of;

use super::{Head, Unapplied, payload};
use crate::codec::{Broken, put_varint};

/// What was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Samples.
    pub samples: u64,
    /// Series that had no other samples.
    pub series: u64,
}

impl Head {
    /// Forgets all samples before `before` (rounded down to a slot, so that digests lose whole slots), and refuses
    /// such samples from now on. Series without samples go. Appends the payload to log; losing it in a crash is
    /// harmless as long as nothing staged later survives.
    ///
    /// # Errors
    /// [`Unapplied`]: nothing was done; apply first.
    ///
    /// # Panics
    /// A chunk in memory does not decode: memory is damaged and the actor must rebuild from the log.
    pub fn forget_before(&mut self, before: Millis, payload: &mut Vec<u8>) -> Result<Forgotten, Unapplied> {
        if self.unapplied > 0 {
            return Err(Unapplied { batches: self.unapplied });
        }
        payload.push(payload::FORGET);
        put_varint(payload, before);
        match self.forget(before) {
            Ok(forgotten) => Ok(forgotten),
            Err(broken) => unreachable!("a chunk the head itself encoded does not decode: {broken}"),
        }
    }

    pub(super) fn forget(&mut self, before: Millis) -> Result<Forgotten, Broken> {
        let before = slot_of(before);
        self.floor = self.floor.max(before);
        let (mut samples, mut gone) = (0, Vec::new());
        for (slot, series_ref) in self.slots.iter_mut().zip(0..) {
            let Some(series) = slot.as_deref_mut() else { continue };
            samples += series.forget(before)?;
            if series.bounds().is_none() {
                gone.push(series_ref);
            }
        }
        self.starts.forget(before);
        self.digests = self.digests.split_off(&before);
        self.sample_count -= samples;
        self.remove_series(&gone);
        Ok(Forgotten { samples, series: gone.len() as u64 })
    }
}
