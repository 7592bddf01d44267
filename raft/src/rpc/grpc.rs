//! The gRPC road: the server the node mounts on its port, and connections to the others.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use super::service::Service;
use super::{CallError, MESSAGE_BYTES_MAX, Method, PIECE_BYTES};
use crate::error::Hint;
use crate::store::SnapshotFile;

/// The stubs of `proto/raft.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated"
)]
mod proto {
    tonic::include_proto!("engram.raft.v1");
}

use proto::raft_client::RaftClient;
use proto::raft_server::{Raft as RaftApi, RaftServer};
use proto::{Payload, Piece};

/// Time to reach another node's port.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A ping on an idle connection, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_WITHIN: Duration = Duration::from_secs(3);
/// Connections kept; addresses that nodes left behind must not pile up.
const CHANNELS_MAX: usize = 4096;
/// Pieces of a snapshot in memory on the sending side.
const PIECES_MAX: usize = 4;

/// The service to mount on the node's gRPC port.
pub type GrpcServer = RaftServer<Api>;

/// The generated service's implementation over [`Service`].
#[derive(Debug)]
pub struct Api(Service);

impl Service {
    /// This node's end as a tonic service.
    #[must_use]
    pub fn into_grpc(self) -> GrpcServer {
        RaftServer::new(Api(self))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// Callers only need to know whether the call may have been heard; see [`lost`].
fn status(error: &crate::Error) -> Status {
    let heard = !matches!(error, crate::Error::Misaddressed { .. });
    Status::new(if heard { Code::Unavailable } else { Code::FailedPrecondition }, error.to_string())
}

impl Api {
    async fn answer(&self, method: Method, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let Payload { body, to, cluster } = request.into_inner();
        self.0.check(NodeId(to), &cluster).map_err(|e| status(&e))?;
        let body = self.0.handle(method, &body).await.map_err(|e| status(&e))?;
        Ok(Response::new(Payload { body, ..Payload::default() }))
    }
}

#[tonic::async_trait]
impl RaftApi for Api {
    async fn append(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.answer(Method::Append, request).await
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.answer(Method::Vote, request).await
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.answer(Method::PreVote, request).await
    }

    async fn transfer_leader(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.answer(Method::TransferLeader, request).await
    }

    async fn snapshot(&self, request: Request<Streaming<Piece>>) -> Result<Response<Payload>, Status> {
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.unwrap_or_default();
        let (head, mut receiving) = self.0.receive(&first.head).await.map_err(|e| status(&e))?;
        let mut next = Some(first);
        while let Some(piece) = next {
            receiving = self.0.piece(receiving, piece.body.into()).await.map_err(|e| status(&e))?;
            next = pieces.message().await?;
        }
        let body = self.0.install(head, receiving).await.map_err(|e| status(&e))?;
        Ok(Response::new(Payload { body, ..Payload::default() }))
    }

    async fn propose(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.answer(Method::Propose, request).await
    }

    async fn read_index(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.answer(Method::ReadIndex, request).await
    }
}

/// How a connection is made: plain text, or whatever the node puts around it.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>);

impl Dial {
    /// By `make`, which gives a channel that connects when it is first used.
    pub fn new(make: impl Fn(&Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

impl Default for Dial {
    fn default() -> Self {
        Self::new(Endpoint::connect_lazy)
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

/// Connections to other nodes, made when first needed. A snapshot has one of its own, so that it cannot hold up
/// heartbeats.
#[derive(Clone)]
pub(crate) struct Channels {
    dial: Dial,
    open: Arc<Mutex<BTreeMap<(String, bool), Channel>>>,
}

impl Channels {
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, open: Arc::default() }
    }

    fn client(&self, address: &str, snapshot: bool) -> Result<RaftClient<Channel>, CallError> {
        let mut channels = self.open.lock();
        let key = (address.to_owned(), snapshot);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|e| CallError::Unreachable(e.to_string()))?
                    .connect_timeout(CONNECT_WITHIN)
                    .http2_keep_alive_interval(PING_EVERY)
                    .keep_alive_timeout(PING_WITHIN)
                    .keep_alive_while_idle(true)
                    .tcp_nodelay(true);
                if channels.len() >= CHANNELS_MAX {
                    channels.clear();
                }
                let channel = (self.dial.0)(&endpoint);
                channels.insert(key, channel.clone());
                channel
            }
        };
        let client = RaftClient::new(channel);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    pub(crate) async fn call(
        &self,
        target: &Hint,
        (cluster, method): (&str, Method),
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let mut client = self.client(&target.address, false)?;
        let mut request = Request::new(Payload { body, to: target.id.0, cluster: cluster.to_owned() });
        request.set_timeout(within);
        let answer = match method {
            Method::Append => client.append(request).await,
            Method::Vote => client.vote(request).await,
            Method::PreVote => client.pre_vote(request).await,
            Method::TransferLeader => client.transfer_leader(request).await,
            Method::Propose => client.propose(request).await,
            Method::ReadIndex => client.read_index(request).await,
        };
        Ok(answer.map_err(lost)?.into_inner().body)
    }

    pub(crate) async fn snapshot(
        &self,
        address: &str,
        head: Vec<u8>,
        snapshot: SnapshotFile,
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let mut client = self.client(address, true)?;
        let mut request = Request::new(pieces(head, snapshot));
        request.set_timeout(within);
        Ok(client.snapshot(request).await.map_err(lost)?.into_inner().body)
    }
}

/// The pieces of a file, read off the runtime's workers. A file that cannot be read ends the stream early; the
/// receiver notices, because the last frame is missing.
fn pieces(head: Vec<u8>, snapshot: SnapshotFile) -> impl Stream<Item = Piece> {
    let (tx, rx) = mpsc::channel(PIECES_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        let mut reader = snapshot.reader();
        let mut head = Some(head);
        loop {
            let mut body = vec![0; PIECE_BYTES];
            match reader.read(&mut body) {
                Ok(0) => return,
                Ok(read) => body.truncate(read),
                Err(error) => return tracing::error!(%error, "metadata snapshot cannot be read"),
            }
            if tx.blocking_send(Piece { head: head.take().unwrap_or_default(), body }).is_err() {
                return;
            }
        }
    });
    // The task ends with the stream; its handle is kept so that it is not taken for forgotten.
    futures::stream::unfold((rx, reading), |(mut rx, reading)| async move {
        rx.recv().await.map(|piece| (piece, (rx, reading)))
    })
}

/// Whether a call that failed may have been heard. Only a refusal and a failure to connect are certain.
fn lost(status: Status) -> CallError {
    if status.code() == Code::FailedPrecondition {
        return CallError::Unreachable(status.to_string());
    }
    let mut source = std::error::Error::source(&status);
    while let Some(error) = source {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return CallError::Unreachable(status.to_string());
        }
        source = error.source();
    }
    CallError::Lost(status.to_string())
}
