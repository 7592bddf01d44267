//! The answering side: who may talk to this node, who may join, what this node promises, how it is.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::time::Clock;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::identity::IdentityFile;
use super::proto::cluster_server::{Cluster, ClusterServer};
use super::proto::{Admission, Backfill, Beat, Beating, Complete, Hello, Promised, Welcome};
use super::sizes::Sizes;
use super::{About, PROTOCOL};
use crate::actor::Health;
use crate::blocks::reach::Reach;
use crate::error::Error;
use crate::meta::Meta;
use crate::meta::nodes::NodeSpec;
use crate::tls::Tls;

/// How long a registration may take.
const ADMIT_WITHIN: Duration = Duration::from_secs(10);

/// Partitions whose replica on this node holds all that was acknowledged before an epoch began.
pub type Completed = Arc<Mutex<BTreeMap<PartitionId, Epoch>>>;

/// When a leader looked at this node last.
#[derive(Debug)]
pub struct Heard(Mutex<Instant>);

impl Default for Heard {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Heard {
    /// Just now.
    pub fn now(&self) {
        *self.0.lock() = Instant::now();
    }

    /// How long ago.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.0.lock().elapsed()
    }
}

/// What the service knows; the metadata comes once the node has opened it.
pub struct Door {
    /// What this node tells of itself.
    pub about: About,
    /// What it remembers of itself.
    pub identity: IdentityFile,
    /// Its clock.
    pub clock: Clock,
    /// How far another's clock may be off.
    pub skew_max: Duration,
    /// How it speaks to others.
    pub tls: Tls,
    /// Its parts.
    pub health: Health,
    /// What the leader wants to know of its replicas.
    pub complete: Completed,
    /// Whether a leader still looks at it.
    pub heard: Heard,
    /// The metadata, once there.
    pub meta: OnceLock<Meta>,
    /// What its replicas hold, once there are any.
    pub sizes: OnceLock<Sizes>,
    /// While this node leads: what is left to copy.
    pub backfill: Mutex<Option<Backfill>>,
    /// Random number of this life of the process.
    pub life: u64,
    /// Who can read this node's blocks, once known.
    pub reach: OnceLock<Reach>,
}

/// The service to mount on the gRPC port.
pub type GrpcServer = ClusterServer<Api>;

/// [`Door`] as the generated service.
#[derive(Clone)]
pub struct Api(Arc<Door>);

impl Door {
    /// As a tonic service.
    #[must_use]
    pub fn into_grpc(self: Arc<Self>) -> GrpcServer {
        ClusterServer::new(Api(self)).max_decoding_message_size(64 << 10)
    }

    /// From now on this node can tell of the cluster it belongs to.
    #[must_use]
    pub fn open(&self, meta: Meta) -> Meta {
        // Only the first counts, and a node has one.
        let _first = self.meta.set(meta.clone());
        meta
    }

    /// From now on this node lets others in, as far as they can read its blocks.
    #[must_use]
    pub fn watch(&self, reach: Reach) -> Reach {
        let _first = self.reach.set(reach.clone());
        reach
    }

    /// The cluster this node belongs to, empty for none.
    fn cluster(&self) -> String {
        self.meta.get().map(Meta::cluster_id).or_else(|| self.identity.get().cluster).unwrap_or_default()
    }

    /// Why a caller is not wanted; empty when it is.
    pub(super) fn refusal(&self, hello: &Hello) -> String {
        let own = self.cluster();
        let skew_ms = hello.clock_ms.abs_diff(self.clock.now());
        let why = if hello.protocol != PROTOCOL {
            format!(
                "node at {} speaks version {} of the protocol between nodes (Engram {}), node at {} speaks {} (Engram {}): run the same version",
                hello.grpc,
                hello.protocol,
                hello.version,
                self.about.grpc,
                PROTOCOL,
                env!("CARGO_PKG_VERSION")
            )
        } else if !hello.cluster.is_empty() && !own.is_empty() && hello.cluster != own {
            format!(
                "node at {} belongs to cluster {}, node at {} to cluster {own}: one of the two has the data directory of another cluster, or an address in join is wrong",
                hello.grpc, hello.cluster, self.about.grpc
            )
        } else if u128::from(skew_ms) > self.skew_max.as_millis() {
            format!(
                "clocks of node at {} and node at {} are {skew_ms} ms apart, at most {} ms are allowed (cluster.clock-skew-max): set them by NTP",
                hello.grpc,
                self.about.grpc,
                self.skew_max.as_millis()
            )
        } else if !hello.store.is_empty() && hello.store != self.about.store {
            format!(
                "node at {} keeps blocks in {}, node at {} in {}: all nodes of a cluster name one store (object-store.url)",
                hello.grpc, hello.store, self.about.grpc, self.about.store
            )
        } else if hello.cluster.is_empty()
            && let Some(why) = self.reach.get().and_then(Reach::refusal)
        {
            format!("node at {} cannot join node at {}: {why}", hello.grpc, self.about.grpc)
        } else {
            return String::new();
        };
        tracing::error!(why, "a node is refused");
        why
    }

    fn welcome(&self, hello: &Hello) -> Welcome {
        Welcome {
            protocol: PROTOCOL,
            token: self.identity.get().token,
            cluster: self.cluster(),
            grpc: self.about.grpc.clone(),
            refusal: self.refusal(hello),
        }
    }

    /// A promise is given once, to one founder, and kept for as long as this node has no cluster.
    pub(super) fn promise(&self, hello: &Hello) -> Promised {
        let why = self.refusal(hello);
        if !why.is_empty() {
            return Promised { given: false, why };
        }
        let promised = self.identity.change(|identity| match (&identity.cluster, &identity.promised) {
            (Some(cluster), _) => Err(format!("node at {} belongs to cluster {cluster} already", self.about.grpc)),
            (None, Some(other)) if *other != hello.token => {
                Err(format!("node at {} has promised another founder", self.about.grpc))
            }
            _ => {
                identity.promised = Some(hello.token.clone());
                Ok(())
            }
        });
        match promised {
            Ok(Ok(())) => Promised { given: true, why: String::new() },
            Ok(Err(why)) | Err(why) => Promised { given: false, why },
        }
    }

    async fn admit(&self, hello: Hello) -> Admission {
        let refuse = |refusal: String| Admission { refusal, ..Admission::default() };
        let why = self.refusal(&hello);
        if !why.is_empty() {
            return refuse(why);
        }
        let Some(meta) = self.meta.get() else {
            return refuse(format!("node at {} has no cluster yet", self.about.grpc));
        };
        // Who has an id is known by it: a founder has never registered.
        let known = (hello.node > 0 && !hello.cluster.is_empty()).then_some(NodeId(hello.node));
        let admitted = match known {
            Some(id) => meta.relocate(id, spec_of(hello), ADMIT_WITHIN).await.map(|()| id),
            None => self.admit_new(meta, hello).await,
        };
        match admitted {
            Ok(node) => Admission { cluster: meta.cluster_id(), node: node.0, refusal: String::new() },
            Err(error) => refuse(error.to_string()),
        }
    }

    /// Lets a node in that is no member yet, unless it could not read this node's blocks. Who commits a block afterwards
    /// knows of it: the metadata of this node shows it by then.
    async fn admit_new(&self, meta: &Meta, hello: Hello) -> Result<NodeId, Error> {
        let starting = || Error::unavailable(format!("node at {} is still starting", self.about.grpc));
        let _turn = self.reach.get().ok_or_else(starting)?.admission(ADMIT_WITHIN).await?;
        // A block may have been committed since it was asked before.
        let why = self.refusal(&hello);
        if !why.is_empty() {
            return Err(Error::unavailable(why));
        }
        let token = hello.token.clone();
        meta.admit(&token, spec_of(hello), ADMIT_WITHIN).await
    }

    /// How this node is.
    pub(crate) fn beat(&self, beat: &Beat) -> Beating {
        let refuse = |refusal: String| Beating { refusal, ..Beating::default() };
        let Some(meta) = self.meta.get() else { return refuse("it is still starting".to_owned()) };
        if beat.cluster != meta.cluster_id() || beat.to != meta.node_id().0 {
            return refuse(format!("it is node {} of cluster {}", meta.node_id().0, meta.cluster_id()));
        }
        self.heard.now();
        let complete = self.complete.lock();
        let complete = complete.iter().map(|(id, epoch)| Complete { partition: id.0, epoch: epoch.0 });
        Beating {
            refusal: String::new(),
            applied: meta.applied(),
            ready: self.health.is_ready(),
            clock_ms: self.clock.now(),
            complete: complete.collect(),
            sizes: Vec::new(),
            backfill: *self.backfill.lock(),
            life: self.life,
        }
    }

    /// As [`Self::beat`], with the sizes when they are asked for.
    pub(crate) async fn answer(self: &Arc<Self>, beat: &Beat) -> Beating {
        let mut answer = self.beat(beat);
        if beat.with_sizes && answer.refusal.is_empty() {
            let door = self.clone();
            let sizes = move || door.sizes.get().map(Sizes::now).unwrap_or_default();
            // A look that fails leaves the sizes unknown, which is what no answer means.
            answer.sizes = tokio::task::spawn_blocking(sizes).await.unwrap_or_default();
        }
        answer
    }
}

/// What the metadata are told of a caller.
fn spec_of(hello: Hello) -> NodeSpec {
    let about = About { zone: hello.zone, grpc: hello.grpc, http: hello.http, store: hello.store };
    NodeSpec { version: hello.version, ..about.spec() }
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn meet(&self, request: Request<Hello>) -> Result<Response<Welcome>, Status> {
        Ok(Response::new(self.0.welcome(request.get_ref())))
    }

    async fn promise(&self, request: Request<Hello>) -> Result<Response<Promised>, Status> {
        let door = self.0.clone();
        let promise = move || door.promise(request.get_ref());
        let given = tokio::task::spawn_blocking(promise).await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(given))
    }

    async fn join(&self, request: Request<Hello>) -> Result<Response<Admission>, Status> {
        Ok(Response::new(self.0.admit(request.into_inner()).await))
    }

    async fn beat(&self, request: Request<Beat>) -> Result<Response<Beating>, Status> {
        Ok(Response::new(self.0.answer(request.get_ref()).await))
    }
}
