//! The writers: each owns its batches and sends one scrape of them after another.
//!
//! A series is always sent by the same writer, in order of time. Writers meet at a barrier after each scrape: no
//! server may see one series an hour ahead of another, which is where some begin to refuse.

use super::batch::{Batch, Fate};
use super::fleet::Fleet;
use crate::client::{Client, Ending, Patience, Protocol};
use engram_model::time::{Millis, Stopwatch};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Barrier;

/// What every writer of a run knows.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) fleet: Fleet,
    pub(crate) client: Client,
    pub(crate) protocol: Protocol,
    pub(crate) patience: Patience,
    /// Time of the first scrape's samples.
    pub(crate) first: Millis,
    /// Between two scrapes, in the timestamps.
    pub(crate) interval_ms: i64,
    pub(crate) scrapes: usize,
    /// Between two scrapes, on the wall; zero sends as fast as it goes.
    pub(crate) pace: Duration,
    /// Set to end early; checked between scrapes.
    pub(crate) stop: AtomicBool,
    /// Samples acknowledged so far, for the progress bar.
    pub(crate) acknowledged: AtomicU64,
    /// Samples that met their end in whatever way.
    pub(crate) done: AtomicU64,
    pub(crate) barrier: Barrier,
}

impl Orders {
    /// The time of a scrape's samples.
    pub(crate) fn time_of(&self, scrape: usize) -> Millis {
        self.first + self.interval_ms * i64::try_from(scrape).unwrap_or(i64::MAX / self.interval_ms)
    }
}

/// What a writer saw.
#[derive(Debug)]
pub(crate) struct Tally {
    /// From the first byte of a request to its final answer, retries included.
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) requests: u64,
    pub(crate) retries: u64,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) sent_bytes: u64,
    /// Failed requests by reason (status and the start of the text).
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Nothing seen yet.
    pub(crate) fn new() -> Self {
        Self {
            latency_us: new_histogram(),
            requests: 0,
            retries: 0,
            acknowledged: 0,
            unknown: 0,
            raw_bytes: 0,
            sent_bytes: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Takes in what another writer saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        // Histograms of equal bounds always add.
        let _same_bounds = self.latency_us.add(&other.latency_us);
        self.requests += other.requests;
        self.retries += other.retries;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.raw_bytes += other.raw_bytes;
        self.sent_bytes += other.sent_bytes;
        for (reason, count) in &other.errors {
            note(&mut self.errors, reason, *count);
        }
    }
}

/// A histogram of microseconds, up to an hour, with three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap_or_else(|_| unreachable!("these bounds are allowed"))
}

/// Counts a reason; past a hundred different ones they are counted as one.
pub(crate) fn note(errors: &mut BTreeMap<String, u64>, reason: &str, count: u64) {
    let known = errors.len() < 100 || errors.contains_key(reason);
    *errors.entry(if known { reason.to_string() } else { "others".into() }).or_default() += count;
}

/// Sends every scrape of `batches`; gives them back with the fate of each scrape.
pub(crate) async fn write(orders: Arc<Orders>, mut batches: Vec<Batch>, start: Stopwatch) -> (Vec<Batch>, Tally) {
    let mut tally = Tally::new();
    let mut encoder = snap::raw::Encoder::new();
    for scrape in 0..orders.scrapes {
        if !orders.pace.is_zero() {
            let due = orders.pace.saturating_mul(u32::try_from(scrape).unwrap_or(u32::MAX));
            tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
        }
        for batch in &mut batches {
            if orders.stop.load(Ordering::Relaxed) {
                break;
            }
            let raw = batch.fill(&orders.fleet, scrape, orders.time_of(scrape));
            tally.raw_bytes += raw.len() as u64;
            let body = encoder.compress_vec(raw).unwrap_or_else(|e| unreachable!("a batch is below 4 GiB: {e}"));
            tally.sent_bytes += body.len() as u64;
            let samples = batch.series.len() as u64;
            let watch = Stopwatch::start();
            let (ending, retries) =
                orders.client.push(orders.protocol, batch.tenant.as_deref(), body.into(), orders.patience).await;
            tally.latency_us.saturating_record(u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX));
            tally.requests += 1;
            tally.retries += u64::from(retries);
            batch.fates[scrape] = match ending {
                Ending::Acknowledged => {
                    tally.acknowledged += samples;
                    orders.acknowledged.fetch_add(samples, Ordering::Relaxed);
                    Fate::Acknowledged
                }
                Ending::Refused(reason) | Ending::Unknown(reason) => {
                    tally.unknown += samples;
                    note(&mut tally.errors, &reason, 1);
                    Fate::Unknown
                }
            };
            orders.done.fetch_add(samples, Ordering::Relaxed);
        }
        orders.barrier.wait().await;
    }
    (batches, tally)
}
