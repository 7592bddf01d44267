//! The in-memory twin of the gRPC road: calls services of the same process, and cuts roads on demand.
//!
//! A simulation has a [`Carrier`] decide when a message comes, if it does, and whether twice; a call is then served by a task
//! of the node that serves it, and dies with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::service::Service;
use super::{CallError, Method, PIECE_BYTES};
use crate::here::Life;
use crate::store::SnapshotFile;

/// What carries the messages of a simulated network.
pub trait Carrier: Send + Sync {
    /// Ends when a message of one node has come to another, and says so; or when whoever waits for it gives up.
    fn carry(&self, from: NodeId, to: NodeId) -> BoxFuture<'static, bool>;
    /// Whether a request that has come comes once more, and how much later.
    fn again(&self, from: NodeId, to: NodeId) -> Option<Duration>;
}

/// A network of one process. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    members: BTreeMap<NodeId, Member>,
    alone: BTreeSet<NodeId>,
    carrier: Option<Arc<dyn Carrier>>,
    snapshots: u64,
}

#[derive(Clone)]
struct Member {
    service: Service,
    /// Whose tasks serve it; the callers' own where it has none.
    life: Option<Life>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("members", &self.members.keys()).field("alone", &self.alone).finish_non_exhaustive()
    }
}

fn lost(why: impl fmt::Display) -> CallError {
    CallError::Lost(why.to_string())
}

impl Hub {
    /// A network without members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on messages come as the carrier says.
    pub fn carried_by(&self, carrier: Arc<dyn Carrier>) {
        self.0.lock().carrier = Some(carrier);
    }

    /// Cuts a node off from all others.
    pub fn isolate(&self, id: NodeId) {
        self.0.lock().alone.insert(id);
    }

    /// Takes every cut back.
    pub fn heal(&self) {
        self.0.lock().alone.clear();
    }

    pub(crate) fn join(&self, id: NodeId, service: Service) {
        let life = Life::current();
        // Whoever died while it started must not take the place of who came after it.
        if life.as_ref().is_none_or(|life| !life.is_over()) {
            self.0.lock().members.insert(id, Member { service, life });
        }
    }

    /// A node is not there any more.
    pub fn leave(&self, id: NodeId) {
        self.0.lock().members.remove(&id);
    }

    /// Snapshots that were sent and installed.
    #[must_use]
    pub fn snapshots(&self) -> u64 {
        self.0.lock().snapshots
    }

    fn member(&self, from: NodeId, to: NodeId) -> Result<Member, CallError> {
        let inner = self.0.lock();
        if inner.alone.contains(&from) || inner.alone.contains(&to) {
            return Err(CallError::Unreachable(format!("the road from {} to {} is cut", from.0, to.0)));
        }
        let member = inner.members.get(&to).cloned();
        member.ok_or_else(|| CallError::Unreachable(format!("node {} is not there", to.0)))
    }

    /// Whether a message came over, where there is a carrier; without one all do.
    async fn carry(&self, from: NodeId, to: NodeId) -> Result<(), CallError> {
        let carrier = self.0.lock().carrier.clone();
        let Some(carrier) = carrier else { return Ok(()) };
        if carrier.carry(from, to).await { Ok(()) } else { Err(lost("silence")) }
    }

    pub(crate) async fn call(
        &self,
        (from, to, cluster): (NodeId, NodeId, &str),
        method: Method,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, CallError> {
        self.carry(from, to).await?;
        let found = self.member(from, to);
        let checked = found.and_then(|member| match member.service.check(to, cluster) {
            Ok(()) => Ok(member),
            Err(error) => Err(CallError::Unreachable(error.to_string())),
        });
        let answer = match checked {
            // Refused by a machine that is there: who called must get to hear that, too.
            Err(refused) => return self.carry(to, from).await.and(Err(refused)),
            Ok(member) => self.serve(&member, (from, to), method, body).await?,
        };
        self.carry(to, from).await?;
        // A cut that came meanwhile loses the answer, as a real one would.
        self.member(to, from).map_err(lost)?;
        Ok(answer)
    }

    async fn serve(
        &self,
        member: &Member,
        (from, to): (NodeId, NodeId),
        method: Method,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, CallError> {
        let Some(life) = &member.life else {
            return member.service.handle(method, &body).await.map_err(lost);
        };
        let carrier = self.0.lock().carrier.clone();
        if let Some(later) = carrier.and_then(|carrier| carrier.again(from, to)) {
            let (service, body) = (member.service.clone(), body.clone());
            life.spawn(async move {
                tokio::time::sleep(later).await;
                // Nobody waits for what the second one brings.
                let _unheard = service.handle(method, &body).await;
            });
        }
        let (reply, answer) = oneshot::channel();
        let service = member.service.clone();
        life.spawn(async move {
            // Who called may have left.
            let _left = reply.send(service.handle(method, &body).await);
        });
        answer.await.map_err(|_| lost("it died"))?.map_err(lost)
    }

    pub(crate) async fn snapshot(
        &self,
        (from, to): (NodeId, NodeId),
        head: &[u8],
        snapshot: &SnapshotFile,
    ) -> Result<Vec<u8>, CallError> {
        self.carry(from, to).await?;
        let service = self.member(from, to)?.service;
        let (head, mut receiving) = service.receive(head).await.map_err(lost)?;
        let mut reader = snapshot.reader();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = reader.read(&mut buffer).map_err(lost)?;
            if read == 0 {
                break;
            }
            let piece = bytes::Bytes::copy_from_slice(&buffer[..read]);
            self.carry(from, to).await?;
            receiving = self.member(from, to)?.service.piece(receiving, piece).await.map_err(lost)?;
        }
        let answer = service.install(head, receiving).await.map_err(lost)?;
        self.0.lock().snapshots += 1;
        self.carry(to, from).await?;
        Ok(answer)
    }
}
