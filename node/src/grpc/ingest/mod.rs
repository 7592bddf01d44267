//! The data plane's answering side: slices of writes and questions for this node's replicas.
//!
//! What comes in is checked before memory is taken for it; the epoch of every request is held against this node's
//! metadata, which first catches up where the caller knows more. Answers are encoded on threads that may take their
//! time, a few frames ahead of the connection.
//!
//! Map: here the bytes · [`fenced`] the replicas behind them.

pub mod fenced;

mod handing;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use engram_model::error::Class;
use engram_model::place::{Epoch, PartitionId};
use engram_model::series::Columns;
use engram_model::tenant::TenantId;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::handing::{Handing, Places};
use super::Guard;
use crate::error::Error;
use crate::meta::Meta;
use crate::peer::wire::ask::{Question, write};
use crate::peer::wire::proto::ingest_server::{Ingest, IngestServer};
use crate::peer::wire::proto::{Answer, Answers, AskRequest, Frame, Reason, SelectRequest, Slice, Slices, SumRequest};
use crate::peer::wire::{self, FRAME_BYTES, MESSAGE_BYTES_MAX, batch, failure, partial, series};
use crate::peer::{Append, Appended, Found, Replica, Select, Summed};
use crate::read::sums::Sums;
use fenced::Fenced;

/// Bytes of slices from other nodes, unpacked, that may be in flight.
const IN_FLIGHT_BYTES: usize = 512 << 20;
/// One permit stands for this many bytes.
const PERMIT_BYTES: usize = 4096;
/// Largest slice, unpacked.
const SLICE_BYTES_MAX: usize = 512 << 20;
/// A slice up to this many bytes is unpacked here, a larger one on a thread that may take its time.
const UNPACK_HERE_BYTES_MAX: usize = 32 << 10;
/// Slices of one stream that may be in flight; above, no more are read and the sender feels it.
const RUNNING_MAX: usize = 4096;
/// Frames of an answer ahead of the connection.
const FRAMES_AHEAD: usize = 4;
/// Bytes of one piece of an answer.
const PIECE_BYTES: usize = 1 << 20;

/// What answers.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    fenced: Fenced,
    meta: Meta,
    guard: Guard,
    stop: CancellationToken,
    room: Arc<Semaphore>,
    handing: Places,
}

/// The service to mount.
pub type GrpcServer = IngestServer<Api>;

impl Api {
    /// Answers for `local`, with `sums` also those of its series. With `stop`, streams of slices end with what has come: their senders go elsewhere at once.
    #[must_use]
    pub fn new(local: Arc<dyn Replica>, meta: Meta, stop: CancellationToken, sums: Option<Sums>) -> Self {
        let guard = Guard::new(&meta.cluster_id(), meta.node_id().0);
        let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES));
        let (handing, fenced) = (Places::default(), Fenced::new(local, meta.clone(), sums));
        Self(Arc::new(Inner { fenced, meta, guard, stop, room, handing }))
    }

    /// As a tonic service.
    #[must_use]
    pub fn into_grpc(self) -> GrpcServer {
        IngestServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Inner {
    /// Unpacks a slice.
    async fn unpack(&self, slice: Slice) -> Result<Append, Error> {
        let bad =
            |what: &dyn std::fmt::Display| Error::new(Class::Internal, format!("a slice of another node: {what}"));
        let tenant = TenantId::new(&slice.tenant).map_err(|e| bad(&e))?;
        let body = slice.body.clone();
        let unpack = move || -> Result<_, String> {
            let body = wire::unpack(&body, SLICE_BYTES_MAX)?;
            batch::decode(body).map_err(|e| e.to_string())
        };
        let batch = if slice.body.len() <= UNPACK_HERE_BYTES_MAX {
            unpack()
        } else {
            tokio::task::spawn_blocking(unpack).await.map_err(|e| bad(&e))?
        }
        .map_err(|e| bad(&e))?;
        let bytes = batch.text.len() + 64 * batch.series.len() + 16 * batch.samples.len() + 32 * batch.pairs.len();
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX);
        let memory = self.room.clone().try_acquire_many_owned(permits).map_err(|_| {
            Error::unavailable(format!(
                "node {}: writes of other nodes fill their budget of {IN_FLIGHT_BYTES} bytes, retry later",
                self.meta.node_id().0
            ))
        })?;
        let picks = (0..u32::try_from(batch.series.len()).unwrap_or(0)).collect();
        Ok(Append {
            limits: self.meta.tenant(&tenant).limits,
            tenant,
            partition: PartitionId(slice.partition),
            epoch: Epoch(slice.epoch),
            batch: Arc::new(batch),
            picks: Arc::new(picks),
            metadata: slice.metadata,
            memory: Some(Arc::new(memory)),
            repair: slice.repair,
            as_of: slice.as_of,
            packed: Arc::new(OnceLock::new()),
        })
    }

    async fn sum_up(&self, request: SumRequest) -> Result<Vec<u8>, Error> {
        let (selects, summing) = partial::read_request(request)?;
        let summed = match summing {
            Some(summing) => self.fenced.sum_up(selects, summing).await?,
            None => Summed::Declined("unknown"),
        };
        let encoded = tokio::task::spawn_blocking(move || partial::put_summed(&summed)).await;
        encoded.map_err(|e| Error::new(Class::Internal, format!("encoding a sum: {e}")))
    }

    async fn answer(&self, request: AskRequest) -> Result<Vec<u8>, Error> {
        let select = wire::read_select(&request)?;
        let question = Question::of(request.question)
            .ok_or_else(|| Error::invalid(format!("question {} is not known", request.question)))?;
        let local = &self.fenced;
        match question {
            Question::Series => write(local.series(select).await?),
            Question::Names => write(local.label_names(select).await?),
            Question::Values => write(local.label_values(select, request.name).await?),
            Question::Metadata => write(local.metadata(select).await?),
            Question::Exemplars => write(local.exemplars(select).await?),
            Question::Counts => write(local.counts(select, usize::try_from(request.max).unwrap_or(usize::MAX)).await?),
            Question::Digests => write(local.digests(select).await?),
            Question::Inventory => write(local.inventory(select.partition, select.epoch).await?),
            Question::Windows => write(local.windows(select.partition).await?),
            Question::Known => write(local.known(select.partition, select.epoch, select.as_of).await?),
            Question::Frozen => unreachable!("answered as a stream of its own"),
        }
    }
}

/// One stream of slices being answered.
struct Appending {
    inner: Arc<Inner>,
    frames: Streaming<Slices>,
    arrived: VecDeque<Slice>,
    running: FuturesUnordered<BoxFuture<'static, Answer>>,
    ended: bool,
}

impl Appending {
    /// Takes one slice on: unpacked here, so that slices reach their partition in the order they came.
    async fn take(&mut self, slice: Slice) {
        let (id, within) = (slice.id, Duration::from_millis(u64::from(slice.within_ms)));
        let unpacked = self.inner.unpack(slice).await;
        let inner = self.inner.clone();
        let stored = async move {
            match unpacked {
                Ok(request) => inner.fenced.append(request, within).await,
                Err(error) => Err(error),
            }
        };
        self.running.push(stored.map(move |done| told(id, done)).boxed());
    }

    /// The next answers, all that are there.
    async fn next(mut self) -> Option<(Result<Answers, Status>, Self)> {
        loop {
            while let Some(slice) = self.arrived.pop_front() {
                self.take(slice).await;
            }
            if self.ended && self.running.is_empty() {
                return None;
            }
            tokio::select! {
                biased;
                Some(first) = self.running.next(), if !self.running.is_empty() => {
                    let mut answers = vec![first];
                    while let Some(Some(more)) = self.running.next().now_or_never() {
                        answers.push(more);
                    }
                    return Some((Ok(Answers { answers }), self));
                }
                () = self.inner.stop.cancelled(), if !self.ended => self.ended = true,
                frame = self.frames.message(), if !self.ended && self.running.len() < RUNNING_MAX => match frame {
                    Ok(Some(frame)) => self.arrived.extend(frame.slices),
                    // The sender is gone: what it sent is stored all the same, nobody is told.
                    Ok(None) | Err(_) => self.ended = true,
                },
            }
        }
    }
}

fn told(id: u64, done: Result<Appended, Error>) -> Answer {
    match done {
        Err(error) => Answer { id, failure: Some(failure(&error)), ..Answer::default() },
        Ok(done) => Answer {
            id,
            samples: done.samples,
            histograms: done.histograms,
            exemplars: done.exemplars,
            exemplars_dropped: done.exemplars_dropped,
            refused: done.refused.count,
            first: done.refused.first.unwrap_or_default(),
            reasons: done
                .refused
                .by_reason
                .iter()
                .map(|(word, count)| Reason { word: (*word).to_owned(), count: *count })
                .collect(),
            limited: done.refused.limited,
            failure: None,
        },
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Ingest for Api {
    type AppendStream = Out<Answers>;
    type SelectStream = Out<Frame>;
    type AskStream = Out<Frame>;
    type SumStream = Out<Frame>;

    async fn append(&self, request: Request<Streaming<Slices>>) -> Result<Response<Self::AppendStream>, Status> {
        self.0.guard.check(request.metadata())?;
        let appending = Appending {
            inner: self.0.clone(),
            frames: request.into_inner(),
            arrived: VecDeque::new(),
            running: FuturesUnordered::new(),
            ended: false,
        };
        Ok(Response::new(futures::stream::unfold(appending, Appending::next).boxed()))
    }

    async fn select(&self, request: Request<SelectRequest>) -> Result<Response<Self::SelectStream>, Status> {
        self.0.guard.check(request.metadata())?;
        let inner = self.0.clone();
        let request = request.into_inner();
        let digests = request.digests;
        let found = async move {
            let selects = wire::read_selects(request)?;
            let found = match digests {
                0 => {
                    let series = inner.fenced.select_all(selects.clone()).await?;
                    series.into_iter().map(|series| Found { series, ..Found::default() }).collect()
                }
                1 => inner.fenced.found_all(selects.clone()).await?,
                _ => {
                    let digests = inner.fenced.digests_all(selects.clone()).await?;
                    digests.into_iter().map(|digests| Found { digests, ..Found::default() }).collect()
                }
            };
            Ok::<_, Error>((selects, found))
        };
        let (tx, rx) = mpsc::channel(FRAMES_AHEAD);
        let encode = |(selects, found): (Vec<Select>, Vec<Found>), tx: mpsc::Sender<Frame>| {
            let done = send_found(&selects, found, &tx);
            if let Err(error) = done {
                let _gone = tx.blocking_send(Frame { failure: Some(failure(&error)), ..Frame::default() });
            }
        };
        Ok(Response::new(produced(found, encode, (tx, rx))))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        self.0.guard.check(request.metadata())?;
        let inner = self.0.clone();
        let request = request.into_inner();
        if request.question == Question::Frozen as u32 {
            let part = async move { inner.handing.take(&inner.fenced, request).await };
            let send = |part: Handing, tx: mpsc::Sender<Frame>| part.send(FRAME_BYTES, &tx);
            return Ok(Response::new(produced(part, send, mpsc::channel(FRAMES_AHEAD))));
        }
        let answer = async move { inner.answer(request).await.map(Bytes::from) };
        Ok(Response::new(produced(answer, send_pieces, mpsc::channel(FRAMES_AHEAD))))
    }

    async fn sum(&self, request: Request<SumRequest>) -> Result<Response<Self::SumStream>, Status> {
        self.0.guard.check(request.metadata())?;
        let inner = self.0.clone();
        let request = request.into_inner();
        let answer = async move { inner.sum_up(request).await.map(Bytes::from) };
        Ok(Response::new(produced(answer, send_pieces, mpsc::channel(FRAMES_AHEAD))))
    }
}

/// Sends an answer piece by piece; stops when nobody reads any more.
fn send_pieces(mut rest: Bytes, tx: mpsc::Sender<Frame>) {
    loop {
        let body = rest.split_to(rest.len().min(PIECE_BYTES));
        if tx.blocking_send(Frame { body, ..Frame::default() }).is_err() || rest.is_empty() {
            return;
        }
    }
}

/// Waits for an answer, then lets a thread that may block send it piece by piece, no further ahead than the channel.
fn produced<T: Send + 'static>(
    answer: impl Future<Output = Result<T, Error>> + Send + 'static,
    send: impl FnOnce(T, mpsc::Sender<Frame>) + Send + 'static,
    (tx, rx): (mpsc::Sender<Frame>, mpsc::Receiver<Frame>),
) -> Out<Frame> {
    async move {
        match answer.await {
            Err(error) => {
                let frame = Frame { failure: Some(failure(&error)), ..Frame::default() };
                futures::stream::once(async { Ok(frame) }).boxed()
            }
            Ok(answer) => {
                let sending = tokio::task::spawn_blocking(move || send(answer, tx));
                // The thread ends with the stream: sending fails then. An answer is whole only when the thread says so.
                let next = |(mut rx, sending): (mpsc::Receiver<Frame>, Option<JoinHandle<()>>)| async move {
                    if let Some(frame) = rx.recv().await {
                        return Some((Ok(frame), (rx, sending)));
                    }
                    let error = sending?.await.err()?;
                    let error = Error::new(Class::Internal, format!("sending an answer failed: {error}"));
                    Some((Ok(Frame { failure: Some(failure(&error)), ..Frame::default() }), (rx, None)))
                };
                futures::stream::unfold((rx, Some(sending)), next).boxed()
            }
        }
    }
    .flatten_stream()
    .boxed()
}

/// Sends digests, then series in frames; stops when nobody reads any more.
fn send_found(selects: &[Select], found: Vec<Found>, tx: &mpsc::Sender<Frame>) -> Result<(), Error> {
    let mut columns = Columns::default();
    for (part, (select, one)) in (0_u32..).zip(selects.iter().zip(found)) {
        if !one.digests.is_empty() {
            let body = series::put_digests(&one.digests).into();
            if tx.blocking_send(Frame { part, kind: 1, body, failure: None }).is_err() {
                return Ok(());
            }
        }
        let mut frame = Vec::new();
        for one in &one.series {
            series::put_series(&mut frame, one, select.range, &mut columns)
                .map_err(|e| Error::new(Class::Internal, e.to_string()))?;
            if frame.len() >= FRAME_BYTES {
                let body = std::mem::take(&mut frame).into();
                if tx.blocking_send(Frame { part, kind: 2, body, failure: None }).is_err() {
                    return Ok(());
                }
            }
        }
        if !frame.is_empty() && tx.blocking_send(Frame { part, kind: 2, body: frame.into(), failure: None }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
