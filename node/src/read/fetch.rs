//! Bytes of blocks that lie in a bucket: as few requests as can be, no more bytes than may be.
//!
//! Why: a request costs money and tens of milliseconds, whatever it brings. So the ranges one step of a reading asks
//! for become pages, pages that are near each other one request, and the requests of a step go out together; pages that
//! came are kept. A request that takes longer than nearly all others is sent a second time and the first answer is
//! taken, for a tenth of the requests at most, so that a store in trouble is not hit twice as hard.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engram_model::block::BlockId;
use engram_model::time::Stopwatch;
use engram_query::value::BlockStats;
use engram_storage::Error;
use engram_storage::object::Store;
use engram_storage::ranges::{Fetched, File, Sizes, Want};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::cache::{PAGE_BYTES, PageKey, Pages};

/// Pages between two wanted ones that are fetched along: cheaper than another request.
const GAP_PAGES: u32 = 2;
/// Pages of one request.
const RUN_PAGES_MAX: u32 = 128;
/// Requests whose times are remembered.
const TIMES_MAX: usize = 128;
/// Fewer say nothing about what is slow.
const TIMES_MIN: usize = 20;
/// No request is sent again before.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// One in so many requests may be sent again.
const HEDGE_SHARE: u64 = 10;

/// What a query fetched. Shared by all that is done for it.
#[derive(Debug, Default)]
pub struct Cost {
    /// Requests to the store.
    pub requests: AtomicU64,
    /// Bytes that came from it.
    pub bytes: AtomicU64,
    /// Pages that were cached.
    pub cached_pages: AtomicU64,
    /// Chunks that were read.
    pub chunks: AtomicU64,
    /// Bytes of chunks, wherever they lay.
    pub chunk_bytes: AtomicU64,
    /// Blocks that were looked at.
    pub blocks: AtomicU64,
}

impl Cost {
    /// All of it so far.
    #[must_use]
    pub fn stats(&self) -> BlockStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockStats {
            blocks: get(&self.blocks),
            chunks: get(&self.chunks),
            chunk_bytes: get(&self.chunk_bytes),
            cached_pages: get(&self.cached_pages),
            fetch_requests: get(&self.requests),
            fetched_bytes: get(&self.bytes),
        }
    }
}

/// How long requests take, to know which one is late.
#[derive(Debug, Default)]
struct Times {
    last: Vec<Duration>,
    next: usize,
    /// Nearly all take less.
    late: Option<Duration>,
}

impl Times {
    fn add(&mut self, took: Duration) {
        if self.last.len() < TIMES_MAX {
            self.last.push(took);
        } else {
            self.last[self.next] = took;
        }
        self.next = (self.next + 1) % TIMES_MAX;
        if self.last.len() >= TIMES_MIN && self.next.is_multiple_of(8) {
            let mut sorted = self.last.clone();
            sorted.sort_unstable();
            self.late = sorted.get(sorted.len() * 95 / 100).map(|late| (*late).max(HEDGE_MIN));
        }
    }
}

/// What the fetcher did.
#[derive(Debug, Default)]
pub struct FetchMetrics {
    /// Requests for ranges.
    pub requests: AtomicU64,
    /// Those that were sent a second time.
    pub hedged: AtomicU64,
    /// Those of the second ones that were first.
    pub hedge_wins: AtomicU64,
}

/// Fetches ranges of blocks through the cache. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    pages: Pages,
    /// Pages in flight.
    in_flight: Semaphore,
    in_flight_max: u32,
    hedging: bool,
    times: Mutex<Times>,
    metrics: FetchMetrics,
}

/// Pages of one file that are fetched by one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    file: File,
    first: u32,
    last: u32,
}

/// Joins sorted pages that are near each other.
fn runs(pages: impl IntoIterator<Item = (File, u32)>) -> Vec<Run> {
    let mut all: Vec<Run> = Vec::new();
    for (file, page) in pages {
        match all.last_mut() {
            Some(run) if run.file == file && page - run.last <= GAP_PAGES + 1 && page - run.first < RUN_PAGES_MAX => {
                run.last = page;
            }
            _ => all.push(Run { file, first: page, last: page }),
        }
    }
    all
}

fn page_of(at: u64) -> u32 {
    u32::try_from(at / PAGE_BYTES).unwrap_or(u32::MAX)
}

/// The bytes of a want, out of the pages it lies in; fewer when one is missing.
fn assemble(want: Want, page: impl Fn(u32) -> Option<Bytes>) -> Bytes {
    let end = want.at + want.len;
    let (first, last) = (page_of(want.at), page_of(end - 1));
    let mut all = Vec::new();
    for n in first..=last {
        let Some(bytes) = page(n) else { break };
        let start = u64::from(n) * PAGE_BYTES;
        let from = usize::try_from(want.at.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
        let until = usize::try_from(end - start).unwrap_or(usize::MAX).min(bytes.len());
        if first == last {
            return bytes.slice(from..until.max(from));
        }
        all.extend_from_slice(&bytes[from..until.max(from)]);
    }
    all.into()
}

impl Fetcher {
    /// From a store, with at most so many bytes in flight.
    #[must_use]
    pub fn new(store: Store, pages: Pages, in_flight_bytes_max: u64, hedging: bool) -> Self {
        let pages_max = (in_flight_bytes_max / PAGE_BYTES).max(u64::from(RUN_PAGES_MAX));
        let in_flight_max = u32::try_from(pages_max).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
        Self(Arc::new(Inner {
            store,
            pages,
            in_flight: Semaphore::new(usize::try_from(in_flight_max).unwrap_or(1 << 16)),
            in_flight_max,
            hedging,
            times: Mutex::default(),
            metrics: FetchMetrics::default(),
        }))
    }

    /// What it did so far.
    #[must_use]
    pub fn metrics(&self) -> &FetchMetrics {
        &self.0.metrics
    }

    /// The cache in front of it.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        &self.0.pages
    }

    /// The bytes of some ranges of a block whose objects have `key` (tenant and name) in front.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Nothing is lost but what was on its way.
    pub async fn fetch(
        &self,
        (block, key): (BlockId, &str),
        sizes: &Sizes,
        wants: &[Want],
        cost: &Cost,
    ) -> Result<Fetched, Error> {
        let mut pages = BTreeSet::new();
        for want in wants.iter().filter(|want| want.len > 0) {
            pages.extend((page_of(want.at)..=page_of(want.at + want.len - 1)).map(|page| (want.file, page)));
        }
        let keys: Vec<_> = pages.iter().map(|(file, page)| PageKey::new(block, *file, *page)).collect();
        let mut have = self.0.pages.get(&keys).await;
        cost.cached_pages.fetch_add(have.len() as u64, Ordering::Relaxed);
        let missing = pages.into_iter().filter(|(file, page)| !have.contains_key(&PageKey::new(block, *file, *page)));
        let mut fetching: FuturesUnordered<_> =
            runs(missing).into_iter().map(|run| self.run(block, key, sizes, run, cost)).collect();
        while let Some(came) = fetching.next().await {
            let came = came?;
            have.extend(came.iter().cloned());
            self.0.pages.put(came);
        }
        let mut fetched = Fetched::new();
        for want in wants.iter().filter(|want| want.len > 0) {
            let page = |page| have.get(&PageKey::new(block, want.file, page)).cloned();
            fetched.insert(*want, assemble(*want, page));
        }
        Ok(fetched)
    }

    /// Fetches a run and cuts it into pages.
    async fn run(
        &self,
        block: BlockId,
        key: &str,
        sizes: &Sizes,
        run: Run,
        cost: &Cost,
    ) -> Result<Vec<(PageKey, Bytes)>, Error> {
        let at = u64::from(run.first) * PAGE_BYTES;
        let want = sizes.clip(run.file, at, u64::from(run.last - run.first + 1) * PAGE_BYTES);
        let turns = (run.last - run.first + 1).min(self.0.in_flight_max);
        let _turn = self.0.in_flight.acquire_many(turns).await.map_err(|_| Error::Closed { what: "reading blocks" })?;
        let key = format!("{key}/{}", run.file.path());
        let bytes = self.hedged(&key, want.at, want.len, cost).await?;
        let page = |n: u32| {
            let from = usize::try_from(u64::from(n - run.first) * PAGE_BYTES).unwrap_or(usize::MAX).min(bytes.len());
            let until = from.saturating_add(usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX)).min(bytes.len());
            // A copy: a slice would keep the whole run in memory for one page of it.
            (PageKey::new(block, run.file, n), Bytes::copy_from_slice(&bytes[from..until]))
        };
        Ok((run.first..=run.last).map(page).collect())
    }

    async fn one(&self, key: &str, at: u64, len: u64, cost: &Cost) -> Result<Bytes, Error> {
        let watch = Stopwatch::start();
        cost.requests.fetch_add(1, Ordering::Relaxed);
        self.0.metrics.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.0.store.get_range(key, at, len).await?;
        cost.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.0.times.lock().add(watch.elapsed());
        Ok(bytes)
    }

    /// When a request is late, if it may be sent again at all.
    fn late(&self) -> Option<Duration> {
        let metrics = &self.0.metrics;
        let may = metrics.hedged.load(Ordering::Relaxed) < metrics.requests.load(Ordering::Relaxed) / HEDGE_SHARE;
        if self.0.hedging && may { self.0.times.lock().late } else { None }
    }

    async fn hedged(&self, key: &str, at: u64, len: u64, cost: &Cost) -> Result<Bytes, Error> {
        let mut first = std::pin::pin!(self.one(key, at, len, cost));
        let Some(late) = self.late() else { return first.await };
        if let Ok(done) = tokio::time::timeout(late, &mut first).await {
            return done;
        }
        self.0.metrics.hedged.fetch_add(1, Ordering::Relaxed);
        let second = std::pin::pin!(self.one(key, at, len, cost));
        match futures::future::select(first, second).await {
            futures::future::Either::Left((Ok(bytes), _)) => Ok(bytes),
            futures::future::Either::Right((Ok(bytes), _)) => {
                self.0.metrics.hedge_wins.fetch_add(1, Ordering::Relaxed);
                Ok(bytes)
            }
            // The one that failed is not believed while the other has not.
            futures::future::Either::Left((Err(_), second)) => second.await,
            futures::future::Either::Right((Err(_), first)) => first.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_storage::disk::fault::FaultDisk;
    use engram_storage::object::faults::{Fault, FaultStore, Faults};
    use engram_storage::object::metrics::Op;
    use engram_storage::object::options::Options;
    use proptest::prelude::*;

    const BLOCK: BlockId = BlockId(9);

    async fn bucket(bytes: &[u8], hedging: bool) -> (Fetcher, Faults, Sizes) {
        let (store, faults) = FaultStore::memory(Arc::new(FaultDisk::new()), &Options::default());
        store.put("b/index", bytes.to_vec().into()).await.unwrap();
        let fetcher = Fetcher::new(store, Pages::new(100 * PAGE_BYTES), 1, hedging);
        faults.forget();
        (fetcher, faults, Sizes { index: bytes.len() as u64, chunks: Vec::new() })
    }

    fn text(len: u64) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
    }

    #[test]
    fn near_pages_are_one_request() {
        let file = File::Index;
        let run = |first, last| Run { file, first, last };
        let pages = |all: &[u32]| runs(all.iter().map(|page| (file, *page)));
        assert_eq!(pages(&[1, 2, 5, 9, 200]), [run(1, 5), run(9, 9), run(200, 200)]);
        assert_eq!(pages(&(0..130).collect::<Vec<_>>()), [run(0, 127), run(128, 129)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_fetched_is_what_lies_there(
            len in 1_u64..600_000,
            asked in proptest::collection::vec((0_u64..600_000, 1_u64..200_000), 1..6),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let bytes = text(len);
                let (fetcher, faults, sizes) = bucket(&bytes, true).await;
                let wants: Vec<_> = asked.iter().map(|(at, n)| sizes.clip(File::Index, *at, *n)).collect();
                for round in 0..2 {
                    let cost = Cost::default();
                    let have = fetcher.fetch((BLOCK, "b"), &sizes, &wants, &cost).await.unwrap();
                    for want in wants.iter().filter(|want| want.len > 0) {
                        let (from, until) = (usize::try_from(want.at).unwrap(), usize::try_from(want.at + want.len).unwrap());
                        let got = have.from(File::Index, want.at);
                        assert!(got.starts_with(&bytes[from..until]));
                    }
                    assert_eq!(round == 1, cost.requests.load(Ordering::Relaxed) == 0 && round == 1);
                }
                assert!(faults.count(Op::Get).0 <= 3);
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_request_is_sent_again_and_the_first_answer_is_taken() {
        let (fetcher, faults, sizes) = bucket(&text(30 * PAGE_BYTES), true).await;
        let want = |page: u64| [Want { file: File::Index, at: page * PAGE_BYTES, len: 10 }];
        let cost = Cost::default();
        for page in 0..24 {
            fetcher.fetch((BLOCK, "b"), &sizes, &want(page), &cost).await.unwrap();
        }
        faults.next(Op::Get, "index", 1, Fault::Delay(Duration::from_secs(30)));
        let began = tokio::time::Instant::now();
        fetcher.fetch((BLOCK, "b"), &sizes, &want(26), &cost).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1));
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let metrics = fetcher.metrics();
        assert_eq!((load(&metrics.hedged), load(&metrics.hedge_wins)), (1, 1));
        faults.next(Op::Get, "index", 1, Fault::Fail);
        assert!(fetcher.fetch((BLOCK, "b"), &sizes, &want(28), &cost).await.is_err());
        for _ in 0..2 {
            faults.next(Op::Get, "index", 1, Fault::Delay(Duration::from_secs(30)));
        }
        let began = tokio::time::Instant::now();
        fetcher.fetch((BLOCK, "b"), &sizes, &want(29), &cost).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(30), "both were late");
    }
}
