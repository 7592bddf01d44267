//! The write path, and why its steps stand in this order.
//!
//! 1. [`Writer::reserve`]: a share of the memory for requests in flight, before the body is read. Refusing here is
//!    cheap for everybody.
//! 2. [`decode`]: bytes → batch, every size checked before memory is taken for it.
//! 3. [`admit`]: the tenant's limits. What is refused is counted and named; the rest goes on: one bad series must not
//!    cost the good ones their place.
//! 4. [`known`]: whoever reads must learn of the partitions it goes to.
//! 5. [`distributor`]: one look at the ring; each partition's slice to all its replicas; done when a majority of each
//!    has it on disk.
//!
//! The answer is made last, from what became durable: a 2xx is a promise.

pub mod admit;
pub mod decode;
pub mod distributor;
pub mod known;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_model::Millis;
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_model::time::{Clock, Stopwatch};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;
use crate::meta::Meta;
use crate::metrics::WriteMetrics;
use crate::peer::{Peers, Refused};

/// Bounds of the write path.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Bytes of all requests in flight, as sent and as unpacked.
    pub in_flight_bytes_max: usize,
    /// Largest body taken, in bytes as sent.
    pub body_bytes_max: usize,
    /// Largest body after decompression, and other bounds of one request.
    pub bounds: decode::Bounds,
    /// How long a write may wait for its majority.
    pub deadline: Duration,
}

/// What became of a request.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Floats stored.
    pub samples: u64,
    /// Native histograms stored.
    pub histograms: u64,
    /// Exemplars stored.
    pub exemplars: u64,
    /// What was refused, when anything was: the request is answered with it, after the good part was stored.
    pub refused: Option<Refusal>,
}

/// The part of a request that was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Invalid, or Limited when all of it may work later.
    pub class: Class,
    /// For the sender: first reason and counts.
    pub message: String,
}

/// A share of the memory for requests in flight; goes back when dropped.
#[derive(Debug)]
pub struct Reservation {
    permit: OwnedSemaphorePermit,
}

/// The door of the write path. Cheap to clone.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    options: WriteOptions,
    meta: Meta,
    peers: Peers,
    clock: Clock,
    rates: admit::Rates,
    known: known::Known,
    in_flight: Arc<Semaphore>,
    metrics: WriteMetrics,
}

/// Compressed bytes up to which a body is decoded on the thread that serves the request.
const DECODE_HERE_BYTES_MAX: usize = 128 << 10;

/// One permit of the in-flight budget stands for this many bytes.
const PERMIT_BYTES: usize = 4096;

impl Writer {
    /// A writer over the given ring and peers.
    #[must_use]
    pub fn new(options: WriteOptions, meta: Meta, peers: Peers, clock: Clock, metrics: WriteMetrics) -> Self {
        let permits = (options.in_flight_bytes_max / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let in_flight = Arc::new(Semaphore::new(permits));
        let (rates, known) = (admit::Rates::default(), known::Known::default());
        Self(Arc::new(Inner { options, meta, peers, clock, rates, known, in_flight, metrics }))
    }

    /// Largest body taken, in bytes as sent.
    #[must_use]
    pub fn body_bytes_max(&self) -> usize {
        self.0.options.body_bytes_max.min(self.0.options.in_flight_bytes_max)
    }

    /// Takes a share of the memory for a body of `bytes`, before it is read.
    ///
    /// # Errors
    /// Unavailable when the requests in flight fill the budget: the sender backs off and retries.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, Error> {
        self.0.reserve(bytes)
    }

    /// Decodes, admits, distributes, and answers when a majority has the good part on disk.
    ///
    /// # Errors
    /// Invalid for a body that does not decode (nothing of it is stored); Limited above the tenant's rate;
    /// Unavailable or Timeout without a majority (the samples may or may not be stored: the sender retries, and a
    /// sample that is there already is no error).
    pub async fn write(&self, tenant: &TenantId, version: decode::Version, body: Bytes) -> Result<Written, Error> {
        let watch = Stopwatch::start();
        let inner = &self.0;
        let result = inner.write(tenant, version, body).await;
        inner.metrics.observe(watch.elapsed(), result.as_ref());
        result
    }
}

impl Inner {
    fn reserve(&self, bytes: usize) -> Result<Reservation, Error> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES).max(1)).unwrap_or(u32::MAX);
        match self.in_flight.clone().try_acquire_many_owned(permits) {
            Ok(permit) => Ok(Reservation { permit }),
            Err(_) => Err(Error::unavailable(format!(
                "requests in flight fill the budget of {} bytes (write.in-flight-bytes-max), retry later",
                self.options.in_flight_bytes_max
            ))),
        }
    }

    /// Decodes here what takes less than half a millisecond, and elsewhere what takes longer.
    async fn decode(&self, version: decode::Version, body: Bytes) -> Result<decode::Decoded, Error> {
        if body.len() <= DECODE_HERE_BYTES_MAX {
            return decode::decode(&body, version, &self.options.bounds).map_err(|e| Error::invalid(e.to_string()));
        }
        let bounds = self.options.bounds.clone();
        tokio::task::spawn_blocking(move || decode::decode(&body, version, &bounds))
            .await
            .map_err(|e| Error::new(Class::Internal, format!("decoding failed: {e}")))?
            .map_err(|e| Error::invalid(e.to_string()))
    }

    async fn write(&self, tenant: &TenantId, version: decode::Version, body: Bytes) -> Result<Written, Error> {
        // A small body may declare a large one inside: its memory counts too, from before it is taken.
        // A replica that is slow to store it keeps the share after the sender has given up.
        let memory = match snap::raw::decompress_len(&body) {
            Ok(bytes) if bytes <= self.options.bounds.body_bytes_max => Some(Arc::new(self.reserve(bytes)?.permit)),
            _ => None,
        };
        let decoded = self.decode(version, body).await?;
        let config = self.meta.tenant_or_create(tenant, self.options.deadline).await?;
        let now: Millis = self.clock.now();
        let total = decoded.batch.sample_count() as u64;
        self.rates.admit(tenant, &config.limits, total, now)?;
        self.metrics.received(decoded.batch.samples.len(), decoded.batch.histograms.len());
        let admitted = admit::admit(decoded, &config.limits, now);
        let mut refused = admitted.refused;
        let batch = Arc::new(admitted.batch);
        let way = (&self.meta, &self.peers);
        self.known.spread(way, tenant, &config, self.options.deadline).await?;
        let slices = distributor::Slices { tenant, config: &config, batch: &batch, keep: &admitted.keep, memory };
        let stored = distributor::distribute(&self.meta, &self.peers, slices, self.options.deadline).await?;
        self.metrics.dropped(stored.exemplars_dropped);
        refused.merge(stored.refused);
        self.metrics.refused(&refused);
        Ok(Written {
            samples: stored.samples,
            histograms: stored.histograms,
            exemplars: stored.exemplars,
            refused: refusal(tenant, &refused, stored.samples + stored.histograms),
        })
    }
}

/// `stored`: how many samples of the request are. Those that were refused while decoding are in no batch, so the whole
/// is the sum of both.
fn refusal(tenant: &TenantId, refused: &Refused, stored: u64) -> Option<Refusal> {
    let first = refused.first.as_ref()?;
    let counts: Vec<String> = refused.by_reason.iter().map(|(reason, n)| format!("{reason}: {n}")).collect();
    Some(Refusal {
        class: if refused.limited { Class::Limited } else { Class::Invalid },
        message: format!(
            "tenant {tenant}: {} of {} samples refused ({}), the others are stored; first: {first}",
            refused.count,
            stored + refused.count,
            counts.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_and_stored_is_the_whole() {
        let mut refused = Refused::default();
        refused.add("duplicate_label_names", false, 1, || "duplicate label name \"a\"".to_owned());
        let said = refusal(&TenantId::anonymous(), &refused, 1).unwrap();
        assert!(said.message.contains(": 1 of 2 samples refused (duplicate_label_names: 1)"), "{}", said.message);
        assert!(refusal(&TenantId::anonymous(), &Refused::default(), 7).is_none());
    }
}
