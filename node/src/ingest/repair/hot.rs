//! Slots that are being written and have not been seen equal for long: what a refused write left on one replica is taken
//! from them, too.
//!
//! Why not by digests: what is on its way differs at every moment, and a sum says not by what. Why not at once: mostly two
//! looks a moment apart do find an instant at which the replicas are equal, and that costs nothing. Then the other replica
//! is read first, and this one when what was on its way has come: what is lacking then is lacking for good.
//!
//! Bound: a look reads at most [`HOT_SAMPLES_MAX`] samples of other replicas, the slots that wait longest first. Where
//! more is being written, it takes as many looks longer.

use std::time::Duration;

use engram_model::digest::SLOT_MS;
use engram_model::series::Series;
use engram_model::{Millis, TimeRange};
use tokio::time::Instant;

use super::Config;
use super::compare::Spot;
use super::take::{At, Why, in_time};

/// Looks for an instant at which the replicas are equal.
const LOOKS: usize = 4;
/// Samples of other replicas that are read at one look, as far as slots allow.
const HOT_SAMPLES_MAX: u64 = 2_000_000;
/// How long all of it may take.
const HOT_WITHIN: Duration = Duration::from_secs(60);

/// A slot that is being written, as another replica has it.
#[derive(Clone)]
pub(super) struct Hot {
    pub(super) at: At,
    pub(super) slot: Millis,
    /// What the other replica has in it.
    pub(super) samples: u64,
    /// When it was equal last.
    pub(super) since: Instant,
}

impl Hot {
    pub(super) fn spot(&self) -> Spot {
        (self.at.partition, self.at.node, self.at.tenant.clone(), self.slot)
    }

    fn range(&self) -> TimeRange {
        TimeRange { start: self.slot, end: self.slot.saturating_add(SLOT_MS) }
    }
}

impl Config {
    /// Takes what is lacking here. Those that are done with until they have differed for as long again: found equal, or
    /// taken from.
    pub(super) async fn take_hot(&self, hot: Vec<Hot>) -> Vec<Hot> {
        let mut done = Vec::new();
        if hot.is_empty() {
            return done;
        }
        let all = async {
            let left = self.still_differing(hot, &mut done).await;
            let read = self.read_hot(within(left)).await;
            tokio::time::sleep(self.patience.settle).await;
            for (one, theirs) in read {
                if self.put_hot(&one, theirs).await {
                    done.push(one);
                }
            }
        };
        if tokio::time::timeout(HOT_WITHIN, all).await.is_err() {
            tracing::debug!("slots that are being written are taken from later");
        }
        done
    }

    /// Those that are equal at no moment of a few.
    async fn still_differing(&self, mut hot: Vec<Hot>, equal: &mut Vec<Hot>) -> Vec<Hot> {
        for _ in 0..LOOKS {
            tokio::time::sleep(self.patience.again_after).await;
            let mut left = Vec::new();
            for one in hot {
                match self.differing(&one.at, one.range(), Why::Comparing).await {
                    Ok(differing) if differing.contains_key(&one.slot) => left.push(one),
                    Ok(_) => equal.push(one),
                    Err(error) => tracing::debug!(node = one.at.node.0, %error, "not compared"),
                }
            }
            hot = left;
        }
        hot
    }

    async fn read_hot(&self, hot: Vec<Hot>) -> Vec<(Hot, Vec<Series>)> {
        let mut read = Vec::new();
        for one in hot {
            let Ok(other) = self.peers.replica(one.at.node) else { continue };
            match in_time(other.select(one.at.select(one.range()))).await {
                Ok(series) => read.push((one, series)),
                Err(error) => tracing::debug!(node = one.at.node.0, %error, "not read"),
            }
        }
        read
    }

    /// Whether everything that was lacking is here now.
    async fn put_hot(&self, one: &Hot, theirs: Vec<Series>) -> bool {
        let Ok(own) = self.peers.replica(self.here()) else { return false };
        let (partition, node, slot) = (one.at.partition.0, one.at.node.0, one.slot);
        let put = async {
            let mine = in_time(own.select(one.at.select(one.range()))).await?;
            self.put(&one.at, (mine, theirs), one.range()).await
        };
        match put.await {
            Ok((0, _)) => true,
            Ok((samples, _)) => {
                tracing::info!(partition, node, slot, samples, "taken out of a slot that is being written");
                true
            }
            Err(error) => {
                tracing::debug!(partition, node, slot, %error, "not taken");
                false
            }
        }
    }
}

/// As many as one look may read, one at least.
fn within(hot: Vec<Hot>) -> Vec<Hot> {
    let mut sum = 0_u64;
    let fits = |one: &Hot| {
        let is_first = sum == 0;
        sum = sum.saturating_add(one.samples.max(1));
        is_first || sum <= HOT_SAMPLES_MAX
    };
    hot.into_iter().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use engram_model::place::{Epoch, NodeId, PartitionId};
    use engram_model::tenant::TenantId;

    use super::*;

    #[test]
    fn a_look_reads_no_more_than_it_may_and_one_slot_at_least() {
        let at = At { node: NodeId(2), partition: PartitionId(0), epoch: Epoch(1), tenant: TenantId::anonymous() };
        let hot = |samples: &[u64]| {
            let one = |(slot, samples)| Hot { at: at.clone(), slot, samples, since: Instant::now() };
            within((0..).zip(samples.iter().copied()).map(one).collect()).len()
        };
        assert_eq!(hot(&[]), 0);
        assert_eq!(hot(&[HOT_SAMPLES_MAX * 2, 1]), 1);
        assert_eq!(hot(&[HOT_SAMPLES_MAX / 2, HOT_SAMPLES_MAX / 2, 1]), 2);
        assert_eq!(hot(&[0, 0, 0]), 3);
    }
}
