//! The sending end: what openraft and the group call, over either road.

use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft::{BasicNode, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::grpc::{Channels, Dial};
use super::service::SnapshotHead;
use super::{CallError, Method, Network};
use crate::codec;
use crate::error::Hint;
use crate::group::TypeConfig;
use crate::runtime::Receiver;
use crate::state::View;
use crate::store::SnapshotFile;

/// How long the answer to entries may take. The consensus library gives three quarters of a heartbeat, which is less
/// than a slow way between zones takes: the leader would send the same entries for ever and commit nothing.
const APPEND_WITHIN: Duration = Duration::from_secs(2);

/// Makes links to other nodes.
#[derive(Clone)]
pub(crate) struct Links {
    me: NodeId,
    cluster: Arc<str>,
    network: Network,
    channels: Channels,
    views: Receiver<Arc<View>>,
}

impl Links {
    pub(crate) fn new(me: NodeId, cluster: &str, (network, dial): (Network, Dial), views: Receiver<Arc<View>>) -> Self {
        Self { me, cluster: cluster.into(), network, channels: Channels::new(dial), views }
    }

    /// A link to a node.
    pub(crate) fn to(&self, target: Hint) -> Link {
        Link { links: self.clone(), target }
    }

    /// Where the node is now: the agreed state knows of moves, the list of members only what was true when it joined.
    pub(crate) fn newest(&self, target: Hint) -> Hint {
        let view = self.views.borrow();
        let address = view.nodes.get(&target.id).map(|row| row.spec.grpc.clone()).filter(|a| !a.is_empty());
        Hint { id: target.id, address: address.unwrap_or(target.address) }
    }
}

/// The way to one node.
pub(crate) struct Link {
    links: Links,
    target: Hint,
}

impl Link {
    /// One request, one answer, within a deadline.
    pub(crate) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        request: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        let body = codec::encode("request", request).map_err(|e| CallError::Unreachable(e.to_string()))?;
        let (me, cluster, target) = (self.links.me, &*self.links.cluster, self.links.newest(self.target.clone()));
        let call = async {
            match &self.links.network {
                Network::Grpc => self.links.channels.call(&target, (cluster, method), body, within).await,
                Network::Memory(hub) => hub.call((me, target.id, cluster), method, body).await,
            }
        };
        let late = |_| CallError::Lost(format!("no answer within {} ms", within.as_millis()));
        let answer = tokio::time::timeout(within, call).await.map_err(late)??;
        codec::decode("answer", &answer).map_err(|e| CallError::Lost(e.to_string()))
    }

    async fn rpc<Q: Serialize, A: DeserializeOwned>(
        &self,
        (method, action): (Method, RPCTypes),
        request: &Q,
        timeout: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        match tokio::time::timeout(timeout, self.call(method, request, timeout)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(CallError::Unreachable(why))) => Err(RPCError::Unreachable(Unreachable::from_string(why))),
            Ok(Err(CallError::Lost(why))) => Err(RPCError::Network(NetworkError::from_string(why))),
            Err(_) => {
                Err(RPCError::Timeout(Timeout { action, id: self.links.me.0, target: self.target.id.0, timeout }))
            }
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        self.to(Hint { id: NodeId(target), address: node.addr.clone() })
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = option.soft_ttl().max(APPEND_WITHIN);
        self.rpc((Method::Append, RPCTypes::AppendEntries), &rpc, timeout).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.rpc((Method::Vote, RPCTypes::Vote), &rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.rpc((Method::PreVote, RPCTypes::Vote), &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |why: String| StreamingError::Unreachable(Unreachable::from_string(why));
        let target = self.links.newest(self.target.clone());
        let cluster = self.links.cluster.to_string();
        let head = SnapshotHead { to: target.id, cluster, vote, meta: snapshot.meta };
        let head = codec::encode("snapshot head", &head).map_err(|e| unreachable(e.to_string()))?;
        let (within, roads) = (option.soft_ttl(), (self.links.me, target.id));
        let send = async {
            match &self.links.network {
                Network::Grpc => self.links.channels.snapshot(&target.address, head, snapshot.snapshot, within).await,
                Network::Memory(hub) => hub.snapshot(roads, &head, &snapshot.snapshot).await,
            }
        };
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = tokio::time::timeout(within, send) => answer,
        };
        match answer {
            Ok(Ok(body)) => codec::decode("snapshot answer", &body).map_err(|e| unreachable(e.to_string())),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!("snapshot not installed within {} ms", within.as_millis()))),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.rpc((Method::TransferLeader, RPCTypes::TransferLeader), &req, option.soft_ttl()).await
    }
}
