//! Forgetting: samples before a time go, and series that have none left.
//!
//! Why it is logged: refs of forgotten series are given to new ones, and the floor decides on late samples; a replay
//! that did not forget at the same place would judge otherwise.
//!
//! Series whose samples were all refused are swept: they hold nothing, and somebody who sends new names with old samples
//! must not fill the head with them.

use engram_model::digest::slot_of;
use engram_model::{Millis, TimeRange};

use super::{Head, NotForgotten, Unapplied, payload};
use crate::chunk::Chunk;
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
    /// Forgets all live samples before `before` (rounded down to a slot, so that digests lose whole slots), and
    /// refuses such samples from now on. What is frozen stays until a block holds it. Series without samples go. Appends the payload to log; losing it in a crash is
    /// harmless as long as nothing staged later survives.
    ///
    /// # Errors
    /// [`NotForgotten`]: nothing was done.
    ///
    /// # Panics
    /// A chunk in memory does not decode: memory is damaged and the actor must rebuild from the log.
    pub fn forget_before(&mut self, before: Millis, payload: &mut Vec<u8>) -> Result<Forgotten, NotForgotten> {
        self.check_applied()?;
        let border = TimeRange::new(slot_of(before).saturating_sub(1), slot_of(before).saturating_add(1));
        let divided = |chunk: &Chunk| chunk.first < slot_of(before) && chunk.last >= slot_of(before);
        self.check_chunks(border, divided).map_err(NotForgotten::Damaged)?;
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
            if series.is_empty() && !self.frozen.holds(series_ref) {
                gone.push(series_ref);
            }
        }
        let frozen_from = self.frozen.parts.values().map(|part| part.window().start).min();
        self.starts.forget(frozen_from.map_or(before, |from| from.min(before)));
        self.digests = self.digests.split_off(&before);
        for part in self.frozen.parts.values() {
            for (slot, digest) in part.digests().range(..before) {
                self.digests.entry(*slot).or_default().add(*digest);
            }
        }
        self.sample_count -= samples;
        self.remove_series(&gone);
        Ok(Forgotten { samples, series: gone.len() as u64 })
    }
    /// How many series may hold nothing: they were made for samples that were all refused.
    #[must_use]
    pub fn bare_count(&self) -> u64 {
        self.bare.len()
    }

    /// Drops series without samples that were made for samples that were all refused, and says how many. Appends the
    /// payload to log when there are any.
    ///
    /// # Errors
    /// [`Unapplied`]: nothing was done; a batch that is on its way may have samples for them.
    pub fn sweep(&mut self, payload: &mut Vec<u8>) -> Result<u64, Unapplied> {
        self.check_applied()?;
        if self.bare.is_empty() {
            return Ok(0);
        }
        payload.push(payload::SWEEP);
        Ok(self.drop_bare())
    }

    pub(super) fn drop_bare(&mut self) -> u64 {
        let bare = std::mem::take(&mut self.bare);
        let gone: Vec<u32> = bare.iter().filter(|series_ref| self.bounds_of(*series_ref).is_none()).collect();
        self.remove_series(&gone);
        gone.len() as u64
    }
}
