//! Comparing: a look at every other replica, and what is to be done about each slot that differs.
//!
//! ```text
//! differs, both as at the last look      quiet: pulled, once for these digests
//! differs, and one of them has changed   it is being written: waits, and is hot when it was not equal for `hot_after`
//! equal                                  forgotten
//! ```

use std::collections::HashMap;
use std::time::Duration;

use engram_model::Millis;
use engram_model::TimeRange;
use engram_model::digest::Digest;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::TenantId;
use tokio::time::Instant;

use super::Config;
use super::hot::Hot;
use super::take::{At, Why};
use crate::error::Error;

/// How long comparing with one replica may take; what is left is for the next look.
const COMPARE_WITHIN: Duration = Duration::from_secs(60);
/// Slots whose difference is remembered from one look to the next.
const NOTED_MAX: usize = 100_000;

/// One slot of one tenant in one partition, as another node has it.
pub(super) type Spot = (PartitionId, NodeId, TenantId, Millis);
/// Digests, own and the other's.
type Pair = (Digest, Digest);

/// What is remembered between looks.
#[derive(Default)]
pub struct Comparing {
    /// Slots that differed at the last look.
    noted: HashMap<Spot, Noted>,
    /// Digests of slots that were pulled and still differ: pulling again would bring nothing.
    tried: HashMap<Spot, Pair>,
}

#[derive(Clone, Copy, Debug)]
struct Noted {
    digests: Pair,
    /// When it was seen equal last, or pulled, or seen for the first time.
    since: Instant,
}

/// What is to be done about a slot that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Quiet,
    Hot,
}

/// What one look finds.
#[derive(Default)]
struct Looking {
    noted: HashMap<Spot, Noted>,
    hot: Vec<Hot>,
}

impl Comparing {
    /// Compares with every other replica that can be reached, and pulls.
    pub async fn look(&mut self, config: &Config, now: Instant) {
        let mut found = Looking::default();
        for partition in config.all() {
            let Some((sets, epoch, _)) = config.sets(partition) else { continue };
            let others: Vec<NodeId> = sets.nodes().filter(|node| *node != config.here()).collect();
            if others.is_empty() {
                continue;
            }
            let own: HashMap<TenantId, Digest> = match config.inventory(config.here(), partition, epoch).await {
                Ok(own) => own.into_iter().collect(),
                Err(error) => {
                    tracing::debug!(partition = partition.0, %error, "not compared");
                    continue;
                }
            };
            for node in others.into_iter().filter(|node| config.peers.is_well(*node)) {
                let comparing = self.compare(config, (partition, epoch, node), &own, (&mut found, now));
                match tokio::time::timeout(COMPARE_WITHIN, comparing).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(partition = partition.0, node = node.0, %error, "not compared"),
                    Err(_) => tracing::debug!(partition = partition.0, node = node.0, "not compared in time"),
                }
            }
        }
        let Looking { noted, mut hot } = found;
        self.noted = noted;
        let noted = &self.noted;
        self.tried.retain(|spot, _| noted.contains_key(spot));
        // Who waits longest comes first: what is too much for one look is for the next.
        hot.sort_by_key(|one| one.since);
        for one in config.take_hot(hot).await {
            if let Some(noted) = self.noted.get_mut(&one.spot()) {
                noted.since = now;
            }
        }
    }

    /// Compares with one other replica and pulls what is quiet.
    async fn compare(
        &mut self,
        config: &Config,
        (partition, epoch, node): (PartitionId, Epoch, NodeId),
        own: &HashMap<TenantId, Digest>,
        (found, now): (&mut Looking, Instant),
    ) -> Result<(), Error> {
        for (tenant, total) in config.inventory(node, partition, epoch).await? {
            if total.count == 0 || own.get(&tenant) == Some(&total) {
                continue;
            }
            let at = At { node, partition, epoch, tenant };
            let (mut quiet, mut pulled) = (Vec::new(), Vec::new());
            for (slot, digests) in config.differing(&at, TimeRange::ALL, Why::Comparing).await? {
                let spot = (partition, node, at.tenant.clone(), slot);
                let (verdict, since) = self.judge(&spot, digests, (now, config.patience.hot_after));
                match verdict {
                    Verdict::Wait => {}
                    Verdict::Quiet => {
                        quiet.push((slot, digests.1.count));
                        pulled.push((spot.clone(), digests));
                    }
                    Verdict::Hot => found.hot.push(Hot { at: at.clone(), slot, samples: digests.1.count, since }),
                }
                if found.noted.len() < NOTED_MAX {
                    found.noted.insert(spot, Noted { digests, since });
                }
            }
            if !quiet.is_empty() {
                tracing::info!(
                    partition = partition.0,
                    node = node.0,
                    slots = quiet.len(),
                    "replicas differ, taking what is missing here"
                );
                config.pull(&at, &quiet).await?;
                // Only now: what broke off is tried again.
                self.tried.extend(pulled);
            }
        }
        Ok(())
    }

    /// What is to be done about a slot that differs now, and since when it does.
    fn judge(&self, spot: &Spot, digests: Pair, (now, hot_after): (Instant, Duration)) -> (Verdict, Instant) {
        let Some(noted) = self.noted.get(spot) else { return (Verdict::Wait, now) };
        let verdict = if noted.digests == digests {
            if self.tried.get(spot) == Some(&digests) { Verdict::Wait } else { Verdict::Quiet }
        } else if now.saturating_duration_since(noted.since) >= hot_after {
            Verdict::Hot
        } else {
            Verdict::Wait
        };
        (verdict, noted.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_pulled_when_quiet_and_also_when_it_never_is() {
        let (start, hot_after) = (Instant::now(), Duration::from_secs(10));
        let spot = (PartitionId(1), NodeId(2), TenantId::anonymous(), 0);
        let digest = |count: u64| Digest { count, low: count, high: count };
        let mut comparing = Comparing::default();
        let mut look = |own, other, seconds| {
            let now = start + Duration::from_secs(seconds);
            let digests = (digest(own), digest(other));
            let (verdict, since) = comparing.judge(&spot, digests, (now, hot_after));
            comparing.noted.insert(spot.clone(), Noted { digests, since });
            if verdict == Verdict::Quiet {
                comparing.tried.insert(spot.clone(), digests);
            }
            verdict
        };
        assert_eq!(look(1, 2, 0), Verdict::Wait, "seen for the first time");
        assert_eq!(look(1, 2, 5), Verdict::Quiet);
        assert_eq!(look(1, 2, 10), Verdict::Wait, "pulled already, it would bring nothing");
        assert_eq!(look(2, 3, 9), Verdict::Wait, "it is being written");
        assert_eq!(look(3, 4, 10), Verdict::Hot, "and has been for ten seconds");
        assert_eq!(look(4, 5, 15), Verdict::Hot, "until it is pulled");
        assert_eq!(look(4, 5, 20), Verdict::Quiet);
    }
}
