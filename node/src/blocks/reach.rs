//! Whether what this node puts into the store of blocks can be read by every member of the cluster.
//!
//! Why it is asked at each pass and not once at the start: a node that runs alone keeps its blocks in a directory of its
//! own. Once another node has joined, a block there would be the only copy of what all replicas forget for it, and the
//! others would take the blocks that they cannot see for damaged. So with a store of its own a node makes and changes
//! blocks only while it is the only member, and nobody joins it while there are blocks already.
//!
//! ```text
//! object-store.url is set   → shared: whoever joins must name the same place; the place belongs to one cluster
//! it is not, and no --join  → own: blocks are made while there is one member; join is refused once there are blocks
//! it is not, and --join     → none: samples stay in memory
//! ```
//!
//! A place that is shared says in the object `engram-cluster.json` whose it is: two clusters that were given one bucket
//! by mistake would take each other's blocks for orphans. The second one makes no blocks and says so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engram_model::error::Classed;
use engram_storage::object::Store;
use engram_storage::object::options::{Options, Place, Provider};
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::meta::Meta;
use crate::meta::nodes::NodeState;
use crate::metrics::Reading;

/// The object that says whose a store is.
pub const MARKER: &str = "engram-cluster.json";
/// How often a store that did not answer, or is another cluster's, is asked again.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Commits that may be under way at once; who lets a node in waits for all of them.
const TURNS: u32 = 64;

/// Who can read the store of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every member that names the same place.
    Shared,
    /// This node, which was started to be alone.
    Own,
    /// This node, which was started to be one of several: nothing is put there.
    None,
}

impl Kind {
    /// By the options of a node; `is_one_of_several`: it was told of others.
    #[must_use]
    pub fn of(options: &Options, is_one_of_several: bool) -> Self {
        match (options.url.is_empty(), is_one_of_several) {
            (false, _) => Self::Shared,
            (true, false) => Self::Own,
            (true, true) => Self::None,
        }
    }
}

/// What nodes tell each other of their stores: nodes that tell differently cannot read each other's blocks. Directories
/// may be mounted anywhere, so only that it is one is told.
#[must_use]
pub fn name(options: &Options) -> String {
    if options.url.is_empty() {
        return "a directory of its own".to_owned();
    }
    match options.check(PathBuf::new()) {
        Ok(Place::Bucket { provider, bucket, prefix }) => {
            let scheme = match provider {
                Provider::S3 => "s3",
                Provider::Gcs => "gs",
                Provider::Azure => "az",
            };
            format!("{scheme}://{bucket}/{prefix}")
        }
        Ok(Place::Local(_)) => "a directory that all reach".to_owned(),
        // Such a node does not start.
        Err(why) => why,
    }
}

/// Whose a shared store is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// Nobody has answered yet.
    Unknown,
    Ours,
    /// The name of the other cluster.
    Other(String),
}

/// What [`MARKER`] holds.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    cluster: String,
}

/// See the module's text. Cheap to clone.
#[derive(Clone)]
pub struct Reach(Arc<Inner>);

struct Inner {
    meta: Meta,
    kind: Kind,
    owner: watch::Sender<Owner>,
    turns: Semaphore,
}

impl Reach {
    /// Of this node.
    #[must_use]
    pub fn new(meta: Meta, kind: Kind) -> Self {
        let turns = Semaphore::new(TURNS as usize);
        Self(Arc::new(Inner { meta, kind, owner: watch::Sender::new(Owner::Unknown), turns }))
    }

    /// The metadata it goes by.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.0.meta
    }

    /// Whether what is in the heads is to become blocks.
    #[must_use]
    pub fn makes_blocks(&self) -> bool {
        match self.0.kind {
            Kind::Shared => true,
            Kind::Own => self.0.meta.members().iter().filter(|one| one.state != NodeState::Dead).count() <= 1,
            Kind::None => false,
        }
    }

    /// Whether blocks may be put into the store, changed there, and judged by what lies there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.makes_blocks() && (self.0.kind != Kind::Shared || *self.0.owner.borrow() == Owner::Ours)
    }

    /// Waits until a shared store has turned out to be ours; for ever when there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn opened(&self) {
        let mut owner = self.0.owner.subscribe();
        if self.0.kind != Kind::Shared || owner.wait_for(|owner| *owner == Owner::Ours).await.is_err() {
            std::future::pending().await
        }
    }

    /// While it is held, nobody is let into the cluster: what is committed meanwhile can be read by all its members.
    ///
    /// # Errors
    /// Unavailable when blocks must not be made here.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        let turn = self.0.turns.acquire().await.map_err(|_| Error::unavailable("the node is stopping"))?;
        if self.is_open() { Ok(turn) } else { Err(self.closed()) }
    }

    /// While it is held, nothing is committed that a new member could not read.
    ///
    /// # Errors
    /// Unavailable when commits take too long.
    pub async fn admission(&self, within: Duration) -> Result<SemaphorePermit<'_>, Error> {
        match tokio::time::timeout(within, self.0.turns.acquire_many(TURNS)).await {
            Ok(Ok(all)) => Ok(all),
            _ => Err(Error::unavailable("blocks are being committed: try again")),
        }
    }

    /// Why nobody new can be let in; none when somebody can.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let count: usize = self.0.meta.tenants_with_blocks().iter().map(|(_, blocks)| blocks).sum();
        (self.0.kind != Kind::Shared && count > 0).then(|| {
            format!(
                "it has {count} blocks in a directory of its own, where a new member could not read them: copy its \
                 blocks/ to a store that all nodes reach, start it with --object-store-url naming that, then join"
            )
        })
    }

    /// Why blocks must not be made here.
    #[must_use]
    pub fn closed(&self) -> Error {
        let why = match (&*self.0.owner.borrow(), self.0.kind) {
            (Owner::Other(other), _) => format!(
                "the object store belongs to cluster {other} by its object {MARKER}: give this cluster a prefix of its \
                 own, or remove that object if the other cluster is no more"
            ),
            (_, Kind::Shared) => "the object store has not answered yet".to_owned(),
            _ => "samples stay in memory: a cluster of several nodes makes blocks only in a store that all of them \
                  reach, see object-store.url"
                .to_owned(),
        };
        Error::unavailable(why)
    }

    /// For the node's telemetry.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        let closed = f64::from(u8::from(!self.is_open()));
        vec![Reading::gauge(
            "blocks_store_closed",
            "1 while this node makes no blocks: no store that all members reach, or one that is another cluster's",
            closed,
        )]
    }
}

/// The child that finds out whose a shared store is.
#[must_use]
pub fn child(reach: Reach, store: Store, stop: CancellationToken) -> ChildSpec {
    ChildSpec {
        name: "store-owner".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(reach.clone(), store.clone(), stop.clone()).boxed()),
    }
}

async fn run(reach: Reach, store: Store, stop: CancellationToken) -> Result<(), ChildError> {
    if reach.0.kind == Kind::None {
        tracing::warn!(why = %reach.closed(), "no blocks are made");
    }
    let own = reach.0.meta.cluster_id();
    while reach.0.kind == Kind::Shared && *reach.0.owner.borrow() != Owner::Ours {
        let owner = tokio::select! {
            biased;
            owner = claim(&store, &own) => owner,
            () = stop.cancelled() => return Ok(()),
        };
        match owner {
            Ok(owner) => {
                let is_new = reach.0.owner.send_replace(owner.clone()) != owner;
                if is_new && owner != Owner::Ours {
                    tracing::error!(why = %reach.closed(), "no blocks are made");
                }
            }
            Err(error) => tracing::warn!(%error, "whose the object store is cannot be asked yet"),
        }
        if *reach.0.owner.borrow() != Owner::Ours {
            tokio::select! {
                biased;
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
    stop.cancelled().await;
    Ok(())
}

/// Whose a store is; ours, when it was nobody's.
async fn claim(store: &Store, own: &str) -> Result<Owner, Error> {
    let failed = |e: engram_storage::Error| Error::new(e.class(), e.to_string());
    let marker = serde_json::to_vec(&Marker { cluster: own.to_owned() }).unwrap_or_default();
    let bytes = match store.get(MARKER).await.map_err(failed)? {
        Some(bytes) => bytes,
        None if store.create(MARKER, marker.into()).await.map_err(failed)? => return Ok(Owner::Ours),
        // Somebody was faster.
        None => store.get(MARKER).await.map_err(failed)?.unwrap_or_default(),
    };
    let marker: Marker =
        serde_json::from_slice(&bytes).map_err(|e| Error::unavailable(format!("{MARKER} of the store: {e}")))?;
    Ok(if marker.cluster == own { Owner::Ours } else { Owner::Other(marker.cluster) })
}
