//! The heads of one partition, a head for each tenant: written by the partition's actor, read by queries.
//!
//! Why a lock here although state has one owner: a query reads thousands of series, and to send it through the
//! actor's mailbox would stop the writes for that long. The actor is the only writer; readers share.

use std::collections::HashMap;
use std::sync::Arc;

use engram_model::tenant::TenantId;
use engram_storage::head::{Head, HeadOptions, Symbols};
use parking_lot::RwLock;

/// One head, shared.
pub type SharedHead = Arc<RwLock<Head>>;

/// The heads of one partition by tenant. Cheap to clone.
#[derive(Clone)]
pub struct Heads {
    symbols: Arc<Symbols>,
    options: HeadOptions,
    by_tenant: Arc<RwLock<HashMap<TenantId, SharedHead>>>,
}

impl Heads {
    /// No head yet; label texts are shared with all other heads of the node through `symbols`.
    #[must_use]
    pub fn new(symbols: Arc<Symbols>, options: HeadOptions) -> Self {
        Self { symbols, options, by_tenant: Arc::default() }
    }

    /// The tenant's head, if it has one.
    #[must_use]
    pub fn get(&self, tenant: &TenantId) -> Option<SharedHead> {
        self.by_tenant.read().get(tenant).cloned()
    }

    /// The tenant's head, made when there is none.
    #[must_use]
    pub fn get_or_create(&self, tenant: &TenantId) -> SharedHead {
        if let Some(head) = self.get(tenant) {
            return head;
        }
        let mut all = self.by_tenant.write();
        all.entry(tenant.clone()).or_insert_with(|| Arc::new(RwLock::new(self.empty()))).clone()
    }

    /// A head with nothing in it.
    #[must_use]
    pub fn empty(&self) -> Head {
        Head::new(self.symbols.clone(), self.options)
    }

    /// Puts `head` in the place of the tenant's head.
    pub fn replace(&self, tenant: &TenantId, head: Head) {
        *self.get_or_create(tenant).write() = head;
    }

    /// Forgets the tenant's head.
    pub fn remove(&self, tenant: &TenantId) {
        self.by_tenant.write().remove(tenant);
    }

    /// All heads, sorted by tenant.
    #[must_use]
    pub fn all(&self) -> Vec<(TenantId, SharedHead)> {
        let mut all: Vec<_> = self.by_tenant.read().iter().map(|(t, h)| (t.clone(), h.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
