//! What the API asks of the rooms behind it.
//!
//! Why traits where the rooms are known: the tests of this room send requests to a router whose answers they choose,
//! without a ring, a disk or a cluster.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use engram_model::block::BlockId;
use engram_model::digest::Digest;
use engram_model::place::{NodeId, PartitionId};
use engram_model::sample::{Exemplar, Metadata};
use engram_model::tenant::TenantId;
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::engine::Outcome;
use engram_query::parse::Switches;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde_json::Value;

use crate::blocks;
use crate::blocks::check::Depth;
use crate::blocks::import::{Imported, Known};
use crate::blocks::orphans::Removal;
use crate::error::Error;
use crate::meta::Meta;
use crate::meta::nodes::Steer;
use crate::meta::plans::What;
use crate::meta::tenants::TenantChange;
use crate::read::cardinality::{Cardinality, Usage};
use crate::read::remote::Answer as RemoteAnswer;
use crate::read::remote::request::Request as RemoteRequest;
use crate::read::{QueryRequest, Reader};
use crate::write::decode::Version;
use crate::write::{Writer, Written};

/// A list with warnings beside it.
pub type Listed<T> = Result<(Vec<T>, Vec<String>), Error>;
/// Series with their exemplars.
pub type Exemplars = Vec<(Labels, Vec<Exemplar>)>;

/// Which series, from when to when, and how many.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Series that any of these selects; empty: all.
    pub selectors: Vec<Vec<Matcher>>,
    /// With samples in this time.
    pub range: TimeRange,
    /// At most so many; 0: all.
    pub limit: usize,
}

/// The read path, see [`Reader`].
pub trait Read: Send + Sync {
    /// What the tenant may write in a query.
    fn switches(&self, tenant: &TenantId) -> Switches;
    /// Evaluates a query; dropping the future stops it.
    fn query<'a>(&'a self, tenant: &'a TenantId, query: QueryRequest) -> BoxFuture<'a, Result<Outcome, Error>>;
    /// Raw samples for another Prometheus; dropping the future or the answer ends the read.
    fn remote_read<'a>(
        &'a self,
        tenant: &'a TenantId,
        request: RemoteRequest,
    ) -> BoxFuture<'a, Result<RemoteAnswer, Error>>;
    /// Label sets, sorted.
    fn series<'a>(&'a self, tenant: &'a TenantId, wanted: Wanted) -> BoxFuture<'a, Listed<Labels>>;
    /// Label names, sorted.
    fn label_names<'a>(&'a self, tenant: &'a TenantId, wanted: Wanted) -> BoxFuture<'a, Listed<String>>;
    /// Values of one label, sorted.
    fn label_values<'a>(&'a self, tenant: &'a TenantId, name: &'a str, wanted: Wanted)
    -> BoxFuture<'a, Listed<String>>;
    /// What is known of the metrics; limits of 0: all.
    fn metadata<'a>(
        &'a self,
        tenant: &'a TenantId,
        metric: Option<&'a str>,
        limit: usize,
        limit_per_metric: usize,
    ) -> BoxFuture<'a, Result<BTreeMap<String, Vec<Metadata>>, Error>>;
    /// The digest of each slot of five minutes that holds samples.
    fn digests<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, Result<BTreeMap<Millis, Digest>, Error>>;
    /// Exemplars of the series a query selects.
    fn exemplars<'a>(
        &'a self,
        tenant: &'a TenantId,
        query: &'a str,
        range: TimeRange,
    ) -> BoxFuture<'a, Result<Exemplars, Error>>;
    /// What makes the tenant's data large; lists of at most `max` entries.
    fn cardinality<'a>(&'a self, tenant: &'a TenantId, max: usize) -> BoxFuture<'a, Result<Cardinality, Error>>;
    /// How much the tenant has.
    fn usage<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, Result<Usage, Error>>;
}

impl Read for Reader {
    fn switches(&self, tenant: &TenantId) -> Switches {
        Self::switches(self, tenant)
    }

    fn query<'a>(&'a self, tenant: &'a TenantId, query: QueryRequest) -> BoxFuture<'a, Result<Outcome, Error>> {
        Box::pin(Self::query(self, tenant, query))
    }

    fn remote_read<'a>(
        &'a self,
        tenant: &'a TenantId,
        request: RemoteRequest,
    ) -> BoxFuture<'a, Result<RemoteAnswer, Error>> {
        Box::pin(Self::remote_read(self, tenant, request))
    }

    fn series<'a>(&'a self, tenant: &'a TenantId, wanted: Wanted) -> BoxFuture<'a, Listed<Labels>> {
        Box::pin(Self::series(self, tenant, wanted.selectors, wanted.range, wanted.limit))
    }

    fn label_names<'a>(&'a self, tenant: &'a TenantId, wanted: Wanted) -> BoxFuture<'a, Listed<String>> {
        Box::pin(Self::label_names(self, tenant, wanted.selectors, wanted.range, wanted.limit))
    }

    fn label_values<'a>(
        &'a self,
        tenant: &'a TenantId,
        name: &'a str,
        wanted: Wanted,
    ) -> BoxFuture<'a, Listed<String>> {
        Box::pin(Self::label_values(self, tenant, name, wanted.selectors, wanted.range, wanted.limit))
    }

    fn metadata<'a>(
        &'a self,
        tenant: &'a TenantId,
        metric: Option<&'a str>,
        limit: usize,
        limit_per_metric: usize,
    ) -> BoxFuture<'a, Result<BTreeMap<String, Vec<Metadata>>, Error>> {
        Box::pin(Self::metadata(self, tenant, metric, limit, limit_per_metric))
    }

    fn digests<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, Result<BTreeMap<Millis, Digest>, Error>> {
        Box::pin(Self::digests(self, tenant))
    }

    fn exemplars<'a>(
        &'a self,
        tenant: &'a TenantId,
        query: &'a str,
        range: TimeRange,
    ) -> BoxFuture<'a, Result<Exemplars, Error>> {
        Box::pin(Self::exemplars(self, tenant, query, range))
    }

    fn cardinality<'a>(&'a self, tenant: &'a TenantId, max: usize) -> BoxFuture<'a, Result<Cardinality, Error>> {
        Box::pin(Self::cardinality(self, tenant, max))
    }

    fn usage<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, Result<Usage, Error>> {
        Box::pin(Self::usage(self, tenant))
    }
}

/// The tenants as operators see them, see [`Meta`]. Answers are JSON.
pub trait Tenants: Send + Sync {
    /// All of them, without their limits.
    fn all(&self) -> Value;
    /// One of them.
    fn one(&self, tenant: &TenantId) -> Option<Value>;
    /// Creates or changes one.
    fn set<'a>(&'a self, tenant: &'a TenantId, change: TenantChange) -> BoxFuture<'a, Result<Value, Error>>;
    /// Marks one for deletion, if it is at that version.
    fn delete<'a>(&'a self, tenant: &'a TenantId, version: u64) -> BoxFuture<'a, Result<Value, Error>>;
}

/// How long a change of a tenant may take.
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

impl Tenants for Meta {
    fn all(&self) -> Value {
        self.tenants_json()
    }

    fn one(&self, tenant: &TenantId) -> Option<Value> {
        self.tenant_json(tenant)
    }

    fn set<'a>(&'a self, tenant: &'a TenantId, change: TenantChange) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(self.set_tenant(tenant, change, CHANGE_WITHIN))
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId, version: u64) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(self.delete_tenant(tenant, version, CHANGE_WITHIN))
    }
}

/// Snapshots, see [`blocks::Snapshots`].
pub trait Snapshots: Send + Sync {
    /// Writes all the tenant has; the name is `moment` with some chance behind it. Dropping the future gives it up.
    fn take<'a>(&'a self, tenant: &'a TenantId, moment: &'a str) -> BoxFuture<'a, Result<blocks::Taken, Error>>;
}

impl Snapshots for blocks::Snapshots {
    fn take<'a>(&'a self, tenant: &'a TenantId, moment: &'a str) -> BoxFuture<'a, Result<blocks::Taken, Error>> {
        Box::pin(Self::take(self, tenant, moment))
    }
}

/// Flushes, see [`blocks::Flusher`].
pub trait Flush: Send + Sync {
    /// Seals all the tenant has; with `wait`, answers when it is in blocks.
    fn flush<'a>(
        &'a self,
        tenant: &'a TenantId,
        wait: Option<Duration>,
    ) -> BoxFuture<'a, Result<Vec<blocks::SealedWindow>, Error>>;
}

impl Flush for blocks::Flusher {
    fn flush<'a>(
        &'a self,
        tenant: &'a TenantId,
        wait: Option<Duration>,
    ) -> BoxFuture<'a, Result<Vec<blocks::SealedWindow>, Error>> {
        Box::pin(Self::flush(self, tenant, wait))
    }
}

/// Blocks that come in, see [`blocks::Imports`].
pub trait Imports: Send + Sync {
    /// What is known of a block by its name.
    fn known(&self, tenant: &TenantId, id: BlockId) -> Known;
    /// Takes a block in that comes as a tar archive. Dropping the future gives it up.
    fn take<'a>(
        &'a self,
        tenant: &'a TenantId,
        id: BlockId,
        archive: BoxStream<'static, Result<Bytes, Error>>,
    ) -> BoxFuture<'a, Result<Imported, Error>>;
}

impl Imports for blocks::Imports {
    fn known(&self, tenant: &TenantId, id: BlockId) -> Known {
        Self::known(self, tenant, id)
    }

    fn take<'a>(
        &'a self,
        tenant: &'a TenantId,
        id: BlockId,
        archive: BoxStream<'static, Result<Bytes, Error>>,
    ) -> BoxFuture<'a, Result<Imported, Error>> {
        Box::pin(Self::take(self, tenant, id, archive))
    }
}

/// The store held against the metadata, see [`blocks::survey`].
pub trait Survey: Send + Sync {
    /// Events as they come, of one tenant or of all. Dropping the stream ends it.
    fn survey(&self, tenant: Option<TenantId>, depth: Depth) -> BoxStream<'static, Result<Value, Error>>;
}

impl Survey for blocks::Surveyor {
    fn survey(&self, tenant: Option<TenantId>, depth: Depth) -> BoxStream<'static, Result<Value, Error>> {
        Self::survey(self, tenant, depth)
    }
}

/// The blocks of tenants, see [`blocks::catalog::Catalog`]. Answers are JSON.
pub trait Blocks: Send + Sync {
    /// All of them.
    fn list(&self, tenant: &TenantId) -> Value;
    /// What compaction would do next.
    fn plan(&self, tenant: &TenantId) -> Value;
    /// One of them.
    fn inspect<'a>(&'a self, tenant: &'a TenantId, id: BlockId) -> BoxFuture<'a, Result<Value, Error>>;
    /// Recomputes one of them.
    fn verify<'a>(&'a self, tenant: &'a TenantId, id: BlockId) -> BoxFuture<'a, Result<Value, Error>>;
    /// Deletes series; the order's index.
    fn delete_series<'a>(
        &'a self,
        tenant: &'a TenantId,
        selectors: Vec<String>,
        range: TimeRange,
    ) -> BoxFuture<'a, Result<Option<u64>, Error>>;
    /// Takes deleted samples out of the blocks now.
    fn clean<'a>(&'a self, tenant: &'a TenantId, wait: bool) -> BoxFuture<'a, Result<(), Error>>;
    /// What lies in the store and in no metadata, and whether it is older than so many milliseconds.
    fn orphans<'a>(&'a self, tenant: &'a TenantId, older_ms: i64) -> BoxFuture<'a, Result<Value, Error>>;
    /// Removes of it what is asked for.
    fn remove_orphans<'a>(&'a self, tenant: &'a TenantId, what: Removal) -> BoxFuture<'a, Result<Value, Error>>;
}

impl Blocks for blocks::catalog::Catalog {
    fn list(&self, tenant: &TenantId) -> Value {
        Self::list(self, tenant)
    }

    fn plan(&self, tenant: &TenantId) -> Value {
        Self::plan(self, tenant)
    }

    fn inspect<'a>(&'a self, tenant: &'a TenantId, id: BlockId) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(Self::inspect(self, tenant, id))
    }

    fn verify<'a>(&'a self, tenant: &'a TenantId, id: BlockId) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(Self::verify(self, tenant, id))
    }

    fn delete_series<'a>(
        &'a self,
        tenant: &'a TenantId,
        selectors: Vec<String>,
        range: TimeRange,
    ) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(Self::delete_series(self, tenant, selectors, range))
    }

    fn clean<'a>(&'a self, tenant: &'a TenantId, wait: bool) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(Self::clean(self, tenant, wait))
    }

    fn orphans<'a>(&'a self, tenant: &'a TenantId, older_ms: i64) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(Self::orphans(self).list(tenant, older_ms))
    }

    fn remove_orphans<'a>(&'a self, tenant: &'a TenantId, what: Removal) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(async move { Self::orphans(self).remove(tenant, &what).await })
    }
}

/// The write path, see [`Writer`].
pub trait Push: Send + Sync {
    /// Largest body taken, in bytes as sent.
    fn body_bytes_max(&self) -> usize;
    /// Takes a share of the memory for a body before it is read; it goes back when the answer is dropped.
    ///
    /// # Errors
    /// Unavailable when there is none left.
    fn reserve(&self, bytes: usize) -> Result<Box<dyn Any + Send>, Error>;
    /// Stores a body; the answer comes when it is durable.
    fn write<'a>(
        &'a self,
        tenant: &'a TenantId,
        version: Version,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Written, Error>>;
}

impl Push for Writer {
    fn body_bytes_max(&self) -> usize {
        Self::body_bytes_max(self)
    }

    fn reserve(&self, bytes: usize) -> Result<Box<dyn Any + Send>, Error> {
        Ok(Box::new(Self::reserve(self, bytes)?))
    }

    fn write<'a>(
        &'a self,
        tenant: &'a TenantId,
        version: Version,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Written, Error>> {
        Box::pin(Self::write(self, tenant, version, body))
    }
}

/// One part of the node and whether it can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Why not, or what it is doing.
    pub detail: String,
}

/// Of which replicas on a node is told what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAsked {
    /// One tenant; none: all.
    pub tenant: Option<TenantId>,
    /// One partition; none: all.
    pub partition: Option<PartitionId>,
    /// Whether the digest of each slot is told, too.
    pub slots: bool,
}

/// What the node as a whole can say of itself.
pub trait Node: Send + Sync {
    /// Every part that must be ready before requests should come here.
    fn parts(&self) -> Vec<Part>;
    /// The metadata as this node sees it, as JSON: nodes, partitions, leader.
    fn cluster_json(&self) -> String;
    /// The exposition text of all metrics.
    fn metrics_text(&self) -> String;
    /// Changes what a node of the cluster is to do.
    fn steer(&self, node: NodeId, act: Steer) -> BoxFuture<'_, Result<(), Error>>;
    /// What would happen to replicas, see [`What`]. The answer is JSON.
    fn plan(&self, what: What) -> BoxFuture<'_, Result<Value, Error>>;
    /// Has a plan happen, by its name, if nothing has changed since.
    fn apply(&self, plan: String) -> BoxFuture<'_, Result<Value, Error>>;
    /// A backup of the metadata: a file that stands at its start.
    fn backup(&self) -> BoxFuture<'_, Result<std::fs::File, Error>>;
    /// What the replicas on this node hold; no other is asked. JSON.
    fn replicas(&self, asked: OwnAsked) -> BoxFuture<'_, Result<Value, Error>>;
    /// How the cluster is now: every node is asked. JSON.
    fn overview(&self) -> BoxFuture<'_, Value>;
}
