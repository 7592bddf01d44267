//! A replica on another node: the port over gRPC.
//!
//! Two connections a node: one carries the stream of appends ([`super::appends`]), the other what queries ask, so that
//! a large answer does not hold up a write. Both are kept alive by HTTP/2 pings, because a half-open one would swallow
//! requests until their deadlines. Who failed just now is not called for a moment: a dead node costs its callers
//! nothing. Each connection has its own mark of that: a query that broke off holds up no write.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::sample::Metadata;
use engram_model::series::Series;
use engram_model::tenant::TenantId;
use engram_model::{Labels, Millis, TimeRange};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::set_aside::Arriving;
use super::stats::{Call, Peer};
use super::wire::ask::{ANSWER_BYTES_MAX, Answer, Question, read};
use super::wire::proto::ingest_client::IngestClient;
use super::wire::proto::{AskRequest, Frame};
use super::wire::{self, MESSAGE_BYTES_MAX, failed};
use super::{
    Append, Appended, Counts, Exemplars, Found, HeldWindows, PartitionView, Replica, Select, SetAside, SlotDigests,
    Summed, Summing, appends,
};
use crate::error::{Error, is_unknown_call};
use crate::tls::{Tls, told};

/// Names of the request metadata every call carries: the cluster, the caller, the node that is meant.
pub const CLUSTER_KEY: &str = "engram-cluster";
/// See [`CLUSTER_KEY`].
pub const FROM_KEY: &str = "engram-from";
/// See [`CLUSTER_KEY`].
pub const TO_KEY: &str = "engram-to";

/// Time to reach another node's port.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A ping on an idle connection, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_WITHIN: Duration = Duration::from_secs(3);
/// Bytes on their way in one stream, and in one connection, before the receiver must have read some.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How long a node that failed is not called again; doubles up to the second. Who needs it all the same waits so long,
/// so it is short: a node that is back must not be missed for a majority.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_millis(500);

/// What is asked whatever the replica set is: an epoch no partition has.
const ANY_EPOCH: Epoch = Epoch(0);
/// What a select brings, see `proto/ingest.proto`.
const SERIES: u32 = 0;
const BOTH: u32 = 1;
const DIGESTS: u32 = 2;

pub(super) type Client = IngestClient<InterceptedService<Channel, Ticket>>;

/// What every call carries.
#[derive(Clone)]
pub struct Ticket {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
}

impl Interceptor for Ticket {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER_KEY, self.cluster.clone());
        metadata.insert(FROM_KEY, self.from.clone());
        metadata.insert(TO_KEY, self.to.clone());
        Ok(request)
    }
}

/// When calls failed last, and how often in a row.
#[derive(Debug, Default)]
pub(super) struct Mark(Mutex<Option<(Instant, u32)>>);

impl Mark {
    pub(super) fn failed(&self) {
        let mut last = self.0.lock();
        let times = last.map_or(0, |(_, times)| times);
        *last = Some((Instant::now(), times.saturating_add(1)));
    }

    pub(super) fn answered(&self) {
        *self.0.lock() = None;
    }

    /// Until when no call is worth trying.
    fn rests_until(&self) -> Option<Instant> {
        let (at, times) = (*self.0.lock())?;
        Some(at + REST_MIN.saturating_mul(1 << times.saturating_sub(1).min(8)).min(REST_MAX))
    }

    /// Whether a call is worth trying.
    pub(super) fn is_well(&self) -> bool {
        self.rests_until().is_none_or(|until| until <= Instant::now())
    }

    /// Waits until a call is worth trying again. Who has a majority without it does not wait for this.
    async fn rested(&self) {
        if let Some(until) = self.rests_until() {
            tokio::time::sleep_until(until).await;
        }
    }
}

/// See the module's text.
pub struct Remote {
    node: NodeId,
    address: String,
    client: Client,
    /// Of what queries ask.
    mark: Arc<Mark>,
    /// Of the stream of appends.
    appends_mark: Arc<Mark>,
    stats: Arc<Peer>,
    appends: appends::Handle,
    _tasks: JoinSet<()>,
}

impl Remote {
    /// A way to the node at an address; nothing is connected yet.
    ///
    /// # Errors
    /// Unavailable for an address that is none.
    pub fn open(nodes: (NodeId, NodeId), cluster: &str, way: (&str, &Tls)) -> Result<Self, Error> {
        Self::counted(nodes, cluster, way, Arc::default())
    }

    /// As [`Remote::open`], with counters that outlive it.
    ///
    /// # Errors
    /// Unavailable for an address that is none.
    pub fn counted(
        (here, node): (NodeId, NodeId),
        cluster: &str,
        (address, tls): (&str, &Tls),
        stats: Arc<Peer>,
    ) -> Result<Self, Error> {
        let bad =
            |e: &dyn std::fmt::Display| Error::unavailable(format!("address {address:?} of node {}: {e}", node.0));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| bad(&e))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .tcp_nodelay(true);
        let ticket = Ticket {
            cluster: cluster.parse().map_err(|e| bad(&e))?,
            from: MetadataValue::from(here.0),
            to: MetadataValue::from(node.0),
        };
        let client = || {
            IngestClient::with_interceptor(tls.channel(&endpoint), ticket.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
        let (mark, appends_mark, mut tasks) = (Arc::default(), Arc::<Mark>::default(), JoinSet::new());
        let name = format!("node {} at {address}", node.0);
        let appends = appends::open(client(), name, (appends_mark.clone(), stats.clone()), &mut tasks);
        let (client, address) = (client(), address.to_owned());
        Ok(Self { node, address, client, mark, appends_mark, stats, appends, _tasks: tasks })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether a call is worth trying: neither a query nor a write failed just now.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.mark.is_well() && self.appends_mark.is_well()
    }

    fn lost(&self, status: &Status) -> Error {
        self.mark.failed();
        Error::unavailable(format!("node {} at {}: {}", self.node.0, self.address, told(status)))
    }

    fn damaged(&self, what: &dyn std::fmt::Display) -> Error {
        Error::new(Class::Internal, format!("node {} at {}: {what}", self.node.0, self.address))
    }

    /// Hands each frame to `each`, until the end.
    async fn frames(
        &self,
        kind: Call,
        call: impl Future<Output = Result<tonic::Response<Streaming<Frame>>, Status>>,
        each: impl FnMut(Frame) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut running = self.stats.begin(kind);
        let done = self.read_frames(kind, call, each).await;
        running.ended(&done);
        done
    }

    async fn read_frames(
        &self,
        kind: Call,
        call: impl Future<Output = Result<tonic::Response<Streaming<Frame>>, Status>>,
        mut each: impl FnMut(Frame) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut frames = call.await.map_err(|status| self.lost(&status))?.into_inner();
        let mut bytes = 0_usize;
        while let Some(frame) = frames.message().await.map_err(|status| self.lost(&status))? {
            self.mark.answered();
            self.stats.received(kind, frame.encoded_len());
            if let Some(failure) = frame.failure {
                return Err(failed(failure));
            }
            bytes += frame.body.len();
            if bytes > ANSWER_BYTES_MAX {
                let text = format!(
                    "the answer of node {} is larger than {ANSWER_BYTES_MAX} bytes: narrow the query with more matchers or a shorter range",
                    self.node.0
                );
                return Err(Error::new(Class::Limited, text));
            }
            each(frame)?;
        }
        Ok(())
    }

    async fn selected(&self, requests: Vec<Select>, digests: u32) -> Result<Vec<Found>, Error> {
        self.mark.rested().await;
        let mut found: Vec<Found> = vec![Found::default(); requests.len()];
        let request = wire::proto::SelectRequest { digests, ..wire::selects(&requests) };
        let mut client = self.client.clone();
        self.stats.sent(Call::Select, request.encoded_len());
        let call = client.select(Request::new(request));
        self.frames(Call::Select, call, |frame| {
            let unknown = || self.damaged(&format!("answered part {} of {}", frame.part, requests.len()));
            let into = found.get_mut(frame.part as usize).ok_or_else(unknown)?;
            match frame.kind {
                1 => into.digests.extend(wire::series::read_digests(&frame.body).map_err(|e| self.damaged(&e))?),
                2 => wire::series::read_series(&frame.body, &mut into.series).map_err(|e| self.damaged(&e))?,
                other => return Err(self.damaged(&format!("answered a frame of kind {other}"))),
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    fn ask<T: Answer + Send + 'static>(
        &self,
        question: Question,
        select: &Select,
        (name, max): (String, usize),
    ) -> BoxFuture<'_, Result<T, Error>> {
        let request = AskRequest {
            question: question as u32,
            tenant: select.tenant.as_str().to_owned(),
            part: Some(wire::part(select)),
            matchers: wire::matchers(&select.matchers),
            name,
            max: max as u64,
        };
        async move { read(&self.asked(request).await?) }.boxed()
    }

    async fn asked(&self, request: AskRequest) -> Result<Bytes, Error> {
        self.mark.rested().await;
        let mut client = self.client.clone();
        self.stats.sent(Call::Ask, request.encoded_len());
        self.pieces(Call::Ask, client.ask(Request::new(request))).await
    }

    /// An answer that comes in pieces.
    async fn pieces(
        &self,
        kind: Call,
        call: impl Future<Output = Result<tonic::Response<Streaming<Frame>>, Status>>,
    ) -> Result<Bytes, Error> {
        let mut pieces: Vec<Bytes> = Vec::new();
        self.frames(kind, call, |frame| {
            pieces.push(frame.body);
            Ok(())
        })
        .await?;
        match pieces.as_slice() {
            [one] => Ok(one.clone()),
            many => Ok(many.concat().into()),
        }
    }

    async fn summed(&self, requests: Vec<Select>, summing: Summing) -> Result<Summed, Error> {
        self.mark.rested().await;
        let request = wire::partial::request(&requests, &summing);
        let (mut client, mut is_older) = (self.client.clone(), false);
        self.stats.sent(Call::Sum, request.encoded_len());
        let call = async {
            let called = client.sum(Request::new(request)).await;
            is_older = called.as_ref().is_err_and(is_unknown_call);
            // It has answered: nothing is wrong with the node.
            if is_older { Err(Status::unimplemented("")) } else { called }
        };
        let answer = self.pieces(Call::Sum, call).await;
        if is_older {
            self.mark.answered();
            return Ok(Summed::Declined("unknown"));
        }
        let answer = answer?;
        let read = tokio::task::spawn_blocking(move || wire::partial::read_summed(&answer));
        read.await.map_err(|e| self.damaged(&e))?
    }
}

/// All of one partition, whoever's.
fn all_of(partition: PartitionId, epoch: Epoch) -> Select {
    Select {
        tenant: TenantId::anonymous(),
        partition,
        epoch,
        range: TimeRange::ALL,
        matchers: Arc::default(),
        series_max: 0,
        wanted: Arc::default(),
        as_of: u64::MAX,
    }
}

impl Replica for Remote {
    fn append(&self, request: Append, within: Duration) -> BoxFuture<'_, Result<Appended, Error>> {
        async move {
            let began = Instant::now();
            self.appends_mark.rested().await;
            self.appends.append(request, within.saturating_sub(began.elapsed())).await
        }
        .boxed()
    }

    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        async move { Ok(self.selected(vec![request], SERIES).await?.pop().unwrap_or_default().series) }.boxed()
    }

    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        async move {
            let found = self.selected(requests, SERIES).await?;
            Ok(found.into_iter().map(|one| one.series).collect())
        }
        .boxed()
    }

    fn sum_up(&self, requests: Vec<Select>, summing: Summing) -> BoxFuture<'_, Result<Summed, Error>> {
        self.summed(requests, summing).boxed()
    }

    fn found_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        self.selected(requests, BOTH).boxed()
    }

    fn series(&self, request: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>> {
        self.ask(Question::Series, &request, Default::default())
    }

    fn label_names(&self, request: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.ask(Question::Names, &request, Default::default())
    }

    fn label_values(&self, request: Select, name: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        self.ask(Question::Values, &request, (name, 0))
    }

    fn metadata(&self, request: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>> {
        self.ask(Question::Metadata, &request, Default::default())
    }

    fn exemplars(&self, request: Select) -> BoxFuture<'_, Result<Exemplars, Error>> {
        self.ask(Question::Exemplars, &request, Default::default())
    }

    fn counts(&self, request: Select, max: usize) -> BoxFuture<'_, Result<Counts, Error>> {
        self.ask(Question::Counts, &request, (String::new(), max))
    }

    fn everything(&self, request: Select) -> BoxFuture<'_, Result<PartitionView, Error>> {
        async move {
            let all = Select { range: TimeRange::ALL, matchers: Arc::default(), ..request };
            let found = self.selected(vec![all], SERIES).await?.pop().unwrap_or_default();
            // Series and digests of one moment do not come over the wire: the digests are made of what has come.
            let digests =
                engram_storage::blocking::blocking(move || super::digests_of(&found.series).map(|d| (found.series, d)));
            let (series, digests) = digests.await.map_err(|e| self.damaged(&e))?.map_err(|e| self.damaged(&e))?;
            Ok(PartitionView { series, digests })
        }
        .boxed()
    }

    fn digests(&self, request: Select) -> BoxFuture<'_, Result<Vec<(Millis, Digest)>, Error>> {
        self.ask(Question::Digests, &request, Default::default())
    }

    fn digests_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<SlotDigests>, Error>> {
        async move {
            let found = self.selected(requests, DIGESTS).await?;
            Ok(found.into_iter().map(|one| one.digests).collect())
        }
        .boxed()
    }

    fn inventory(&self, partition: PartitionId, epoch: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>> {
        self.ask(Question::Inventory, &all_of(partition, epoch), Default::default())
    }

    fn known(&self, partition: PartitionId, epoch: Epoch, index: u64) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let as_of = Select { as_of: index, ..all_of(partition, epoch) };
            match self.ask(Question::Known, &as_of, Default::default()).await {
                // It is older than the question. It fences no reader either, but without it nobody could write on nodes
                // that are newer until a majority is.
                Err(error) if error.class == Class::Invalid => Ok(()),
                answered => answered,
            }
        }
        .boxed()
    }

    fn windows(&self, partition: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>> {
        self.ask(Question::Windows, &all_of(partition, ANY_EPOCH), Default::default())
    }

    fn set_aside(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        number: u64,
    ) -> BoxFuture<'_, Result<Option<SetAside>, Error>> {
        let request = AskRequest {
            question: Question::Frozen as u32,
            tenant: tenant.as_str().to_owned(),
            part: Some(wire::part(&all_of(partition, ANY_EPOCH))),
            max: number,
            ..AskRequest::default()
        };
        async move {
            self.mark.rested().await;
            let mut client = self.client.clone();
            let frames = client.ask(Request::new(request)).await.map_err(|status| self.lost(&status))?.into_inner();
            let name = format!("node {} at {}", self.node.0, self.address);
            Arriving::new(frames, name, self.mark.clone()).promised().await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[tokio::test]
    async fn a_query_that_failed_holds_up_no_write() {
        // Nothing is connected: the actor of the stream gets no turn here.
        let remote = Remote::open((NodeId(1), NodeId(2)), "c", ("127.0.0.1:1", &Tls::plain())).unwrap();
        let append = || Append {
            tenant: TenantId::anonymous(),
            limits: Arc::default(),
            partition: PartitionId(0),
            epoch: Epoch(1),
            batch: Arc::default(),
            picks: Arc::default(),
            metadata: false,
            memory: None,
            repair: false,
            as_of: 0,
            packed: Arc::default(),
        };
        let sent = || remote.stats.waiting.load(Ordering::Relaxed);
        remote.appends_mark.failed();
        assert!(remote.append(append(), Duration::from_secs(9)).now_or_never().is_none());
        assert!(!remote.is_well() && sent() == 0, "the way of the writes itself rests");
        remote.appends_mark.answered();
        remote.mark.failed();
        assert!(remote.append(append(), Duration::from_secs(9)).now_or_never().is_none());
        assert!(!remote.is_well() && sent() == 1, "the way of the queries is another one");
    }
}
