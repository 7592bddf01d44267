//! The in-memory twin of the gRPC road: calls services of the same process, and cuts roads on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use engram_model::place::NodeId;
use parking_lot::Mutex;

use super::service::Service;
use super::{CallError, Method, PIECE_BYTES};
use crate::store::SnapshotFile;

/// A network of one process. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    members: BTreeMap<NodeId, Service>,
    alone: BTreeSet<NodeId>,
}

impl Hub {
    /// A network without members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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
        self.0.lock().members.insert(id, service);
    }

    pub(crate) fn leave(&self, id: NodeId) {
        self.0.lock().members.remove(&id);
    }

    fn service(&self, from: NodeId, to: NodeId) -> Result<Service, CallError> {
        let inner = self.0.lock();
        if inner.alone.contains(&from) || inner.alone.contains(&to) {
            return Err(CallError::Unreachable(format!("the road from {} to {} is cut", from.0, to.0)));
        }
        let service = inner.members.get(&to).cloned();
        service.ok_or_else(|| CallError::Unreachable(format!("node {} is not there", to.0)))
    }

    pub(crate) async fn call(
        &self,
        (from, to, cluster): (NodeId, NodeId, &str),
        method: Method,
        body: &[u8],
    ) -> Result<Vec<u8>, CallError> {
        let service = self.service(from, to)?;
        service.check(to, cluster).map_err(|e| CallError::Unreachable(e.to_string()))?;
        let answer = service.handle(method, body).await.map_err(|e| CallError::Lost(e.to_string()))?;
        // A cut that came meanwhile loses the answer, as a real one would.
        self.service(to, from).map_err(|e| CallError::Lost(e.to_string()))?;
        Ok(answer)
    }

    pub(crate) async fn snapshot(
        &self,
        (from, to): (NodeId, NodeId),
        head: &[u8],
        snapshot: &SnapshotFile,
    ) -> Result<Vec<u8>, CallError> {
        let lost = |e: crate::Error| CallError::Lost(e.to_string());
        let service = self.service(from, to)?;
        let (head, mut receiving) = service.receive(head).await.map_err(lost)?;
        let mut reader = snapshot.reader();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = reader.read(&mut buffer).map_err(|e| CallError::Lost(e.to_string()))?;
            if read == 0 {
                break;
            }
            let piece = bytes::Bytes::copy_from_slice(&buffer[..read]);
            receiving = self.service(from, to)?.piece(receiving, piece).await.map_err(lost)?;
        }
        service.install(head, receiving).await.map_err(lost)
    }
}
