//! How large the replicas of this node are: what a copy of each would have to bring.
//!
//! Samples are known at any time. Bytes cost a walk over all series, so they are looked at twice a minute and taken
//! from the samples in between.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::proto::Size;
use crate::ingest::heads::Heads;

/// How long the bytes of a sample are taken for what they were.
const WALK_EVERY: Duration = Duration::from_secs(30);

/// See the module's text.
pub struct Sizes {
    heads: Arc<Vec<Heads>>,
    /// By partition: when it was walked, and the bytes of a sample then.
    walked: Mutex<Vec<Option<(Instant, f64)>>>,
}

impl Sizes {
    /// Of these heads, by partition.
    #[must_use]
    pub fn new(heads: Arc<Vec<Heads>>) -> Self {
        let walked = Mutex::new(vec![None; heads.len()]);
        Self { heads, walked }
    }

    /// What each partition holds, without those that hold nothing. Takes its time.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate; the cast saturates"
    )]
    pub fn now(&self) -> Vec<Size> {
        let mut sizes = Vec::new();
        for (partition, heads) in (0_u32..).zip(self.heads.iter()) {
            let samples: u64 = heads.all().iter().map(|(_, head)| head.read().sample_count()).sum();
            if samples == 0 {
                continue;
            }
            let at = partition as usize;
            let known = self.walked.lock()[at].filter(|(when, _)| when.elapsed() < WALK_EVERY);
            let each = known.map_or_else(|| bytes(heads) as f64 / samples as f64, |(_, each)| each);
            if known.is_none() {
                self.walked.lock()[at] = Some((Instant::now(), each));
            }
            sizes.push(Size { partition, samples, bytes: (samples as f64 * each) as u64 });
        }
        sizes
    }
}

/// Memory and files.
fn bytes(heads: &Heads) -> u64 {
    let memory: usize = heads.all().iter().map(|(_, head)| head.read().heap_bytes()).sum();
    memory as u64 + heads.files().map_or(0, |files| files.held().1)
}
