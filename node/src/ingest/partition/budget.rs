//! Bytes that may wait at the log.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::peer::Append;

/// Bytes that may wait at the log, shared by all partitions of a node. Smaller than the log's own queue, so that an
/// actor waits here, where waiting costs nothing, and never blocks a thread in the log.
#[derive(Clone)]
pub struct LogBudget {
    free: Arc<Semaphore>,
    permits: u32,
}

/// One permit of the budget stands for this many bytes.
const PERMIT_BYTES: usize = 4096;

impl LogBudget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let permits = u32::try_from((bytes / PERMIT_BYTES).max(1)).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(permits as usize)), permits }
    }

    /// Waits for room for the log entry of `request`, whose size is estimated from above.
    pub(super) async fn reserve(&self, request: &Append) -> Option<OwnedSemaphorePermit> {
        let batch = &request.batch;
        // All labels as if they were new; histograms are no longer in the log than in the body.
        let labels: usize = request
            .picks
            .iter()
            .flat_map(|pick| &batch.pairs[batch.series[*pick as usize].pairs.range()])
            .map(|pair| (pair.name.len + pair.value.len + 4) as usize)
            .sum();
        let body = if batch.histograms.is_empty() { 0 } else { batch.text.len() };
        let beside = 64 * (batch.metadata.len() + batch.exemplars.len());
        let bytes = labels + body + beside + 24 * batch.samples.len() + 256;
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX).min(self.permits);
        // The semaphore is never closed.
        self.free.clone().acquire_many_owned(permits).await.ok()
    }
}
