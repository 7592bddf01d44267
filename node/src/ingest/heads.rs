//! The heads of one partition, a head for each tenant: written by the partition's actor, read by queries.
//!
//! Why a lock here although state has one owner: a query reads thousands of series, and to send it through the
//! actor's mailbox would stop the writes for that long. The actor is the only writer; readers share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use engram_model::Millis;
use engram_model::tenant::TenantId;
use engram_storage::chunk::ChunkFiles;
use engram_storage::head::{Head, HeadOptions, Symbols, keep_full};
use parking_lot::RwLock;

/// One head, shared.
pub type SharedHead = Arc<RwLock<Head>>;

/// The heads of one partition by tenant. Cheap to clone.
#[derive(Clone)]
pub struct Heads {
    symbols: Arc<Symbols>,
    options: HeadOptions,
    files: Option<Arc<ChunkFiles>>,
    by_tenant: Arc<RwLock<HashMap<TenantId, Held>>>,
    /// The highest index at which a head that was dropped had forgotten samples.
    dropped_at: Arc<AtomicU64>,
    /// Whether entries of the log are still to be applied.
    is_recovering: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Held {
    head: SharedHead,
    /// When the last append came, by the node's clock; [`UNKNOWN`] after recovery.
    appended_at: Arc<AtomicI64>,
}

const UNKNOWN: Millis = Millis::MIN;

impl Heads {
    /// No head yet; label texts are shared with all other heads of the node through `symbols`.
    #[must_use]
    pub fn new(symbols: Arc<Symbols>, options: HeadOptions) -> Self {
        Self {
            symbols,
            options,
            files: None,
            by_tenant: Arc::default(),
            dropped_at: Arc::default(),
            is_recovering: Arc::default(),
        }
    }

    /// As [`Self::new`], of heads that put their full chunks into files.
    #[must_use]
    pub fn with_files(symbols: Arc<Symbols>, options: HeadOptions, files: Arc<ChunkFiles>) -> Self {
        Self { files: Some(files), ..Self::new(symbols, options) }
    }

    /// Whether entries of the log are still to be applied: until then the heads hold a part only, and who asks for all is
    /// to be told so.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::Acquire)
    }

    /// Says whether entries of the log are still to be applied.
    pub fn set_recovering(&self, is_recovering: bool) {
        self.is_recovering.store(is_recovering, Ordering::Release);
    }

    /// The files of full chunks.
    #[must_use]
    pub fn files(&self) -> Option<&Arc<ChunkFiles>> {
        self.files.as_ref()
    }

    /// Whether enough full chunks lie on the heap to be worth a file.
    #[must_use]
    pub fn has_full(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.is_due())
    }

    /// Puts the full chunks of all heads into files. Only for the one who writes the heads; it may take its time.
    ///
    /// # Errors
    /// The disk refuses; the chunks stay where they are.
    pub fn keep_full(&self) -> Result<(), engram_storage::Error> {
        let Some(files) = &self.files else { return Ok(()) };
        let heads = self.all();
        let (mut full, mut starts) = (Vec::new(), Vec::with_capacity(heads.len()));
        for (_, head) in &heads {
            starts.push(full.len());
            full.extend(head.write().take_full());
        }
        let done = keep_full(files, &mut full);
        for ((_, head), start) in heads.iter().zip(starts).rev() {
            head.write().put_kept(full.split_off(start));
        }
        done
    }

    /// The tenant's head, if it has one.
    #[must_use]
    pub fn get(&self, tenant: &TenantId) -> Option<SharedHead> {
        self.by_tenant.read().get(tenant).map(|held| held.head.clone())
    }

    /// The tenant's head, made when there is none.
    #[must_use]
    pub fn get_or_create(&self, tenant: &TenantId) -> SharedHead {
        self.held(tenant).head
    }

    /// As [`Self::get_or_create`], for an append that came `now`.
    #[must_use]
    pub fn for_append(&self, tenant: &TenantId, now: Millis) -> SharedHead {
        let held = self.held(tenant);
        held.appended_at.fetch_max(now, Ordering::Relaxed);
        held.head
    }

    fn held(&self, tenant: &TenantId) -> Held {
        if let Some(held) = self.by_tenant.read().get(tenant) {
            return held.clone();
        }
        let mut all = self.by_tenant.write();
        let new = || Held { head: Arc::new(RwLock::new(self.empty())), appended_at: Arc::new(AtomicI64::new(UNKNOWN)) };
        all.entry(tenant.clone()).or_insert_with(new).clone()
    }

    /// When the tenant's last append came, by the node's clock, at least `since`; nothing is known of before the node
    /// started.
    #[must_use]
    pub fn appended_at(&self, tenant: &TenantId, since: Millis) -> Millis {
        let all = self.by_tenant.read();
        all.get(tenant).map_or(since, |held| held.appended_at.load(Ordering::Relaxed)).max(since)
    }

    /// A head with nothing in it.
    #[must_use]
    pub fn empty(&self) -> Head {
        Head::with_files(self.symbols.clone(), self.options, self.files.clone())
    }

    /// Puts `head` in the place of the tenant's head.
    pub fn replace(&self, tenant: &TenantId, head: Head) {
        *self.get_or_create(tenant).write() = head;
    }

    /// Drops the tenant's head, which had forgotten samples at `index` of the metadata at the latest.
    pub fn remove(&self, tenant: &TenantId, index: u64) {
        // The mark first: a reader that finds no head looks at it afterwards.
        self.dropped_at.fetch_max(index, Ordering::SeqCst);
        self.by_tenant.write().remove(tenant);
    }

    /// The highest index at which a head that was dropped had forgotten samples; 0: none.
    #[must_use]
    pub fn dropped_at(&self) -> u64 {
        self.dropped_at.load(Ordering::SeqCst)
    }

    /// Takes what a checkpoint says of heads that were dropped before it.
    pub fn note_dropped(&self, index: u64) {
        self.dropped_at.fetch_max(index, Ordering::SeqCst);
    }

    /// All heads, sorted by tenant.
    #[must_use]
    pub fn all(&self) -> Vec<(TenantId, SharedHead)> {
        let mut all: Vec<_> = self.by_tenant.read().iter().map(|(t, h)| (t.clone(), h.head.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
