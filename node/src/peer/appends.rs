//! The stream of slices to one node: sole owner of its connection for appends.
//!
//! Why a stream: slices arrive in the order they were sent, so a replica sees each series' samples in order; what waits
//! while a frame is on its way goes out together with the next (the replica's group commit then takes it together too);
//! and nobody waits for an answer to send the next slice.
//!
//! What is sent is sent, also when its sender has its majority and is gone: the replica needs it all the same. A replica
//! that is too slow fills its own queue here and is refused more; it heals by repair. When the stream breaks, whoever
//! waits is told that the outcome is unknown, and a write that is repeated finds its samples there already.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::error::Class;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::remote::{Client, Mark};
use super::stats::{Call, Peer, Running};
use super::wire::failed;
use super::wire::proto::{Answer, Answers, Slice, Slices};
use super::{Append, Appended, Refused};
use crate::actor::Reply;
use crate::error::Error;
use crate::tls::told;

/// Slices that wait to be sent.
const QUEUE_MAX: usize = 1024;
/// Bytes of requests that wait to be sent; far below what a node may have in flight, so that one slow replica does not
/// take the room of all.
const QUEUE_BYTES: usize = 64 << 20;
/// Slices on their way.
const PENDING_MAX: usize = 2048;
/// Slices and bytes of one frame.
const FRAME_SLICES_MAX: usize = 64;
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Frames between this actor and the connection.
const FRAMES_AHEAD: usize = 2;
/// How long the other node may take to open the stream.
const OPEN_WITHIN: Duration = Duration::from_secs(3);
/// A slice of more series is encoded on a thread that may take its time.
const SHORT_SERIES_MAX: usize = 500;
/// One permit of the queue stands for this many bytes.
const PERMIT_BYTES: usize = 1024;

/// Who waits for an answer, and what is known of the call.
struct Waiting(Reply<Result<Appended, Error>>, Running);

impl Waiting {
    fn tell(mut self, answer: Result<Appended, Error>) {
        self.1.ended(&answer);
        let _gone = self.0.send(answer);
    }
}

struct Job {
    request: Append,
    until: Instant,
    reply: Waiting,
    _room: OwnedSemaphorePermit,
}

/// The address of the actor.
pub(super) struct Handle {
    tx: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    stats: Arc<Peer>,
    name: Arc<str>,
}

/// Starts the actor in `tasks`.
pub(super) fn open(
    client: Client,
    name: String,
    (mark, stats): (Arc<Mark>, Arc<Peer>),
    tasks: &mut JoinSet<()>,
) -> Handle {
    let (tx, rx) = mpsc::channel(QUEUE_MAX);
    let name: Arc<str> = name.into();
    let link = Link { client, name: name.clone(), mark, stats: stats.clone() };
    tasks.spawn(run(link, rx));
    Handle { tx, room: Arc::new(Semaphore::new(QUEUE_BYTES / PERMIT_BYTES)), stats, name }
}

impl Handle {
    /// Sends a slice and waits for its answer.
    pub(super) async fn append(&self, request: Append, within: Duration) -> Result<Appended, Error> {
        let full = || Error::unavailable(format!("{} is too slow: the queue of writes to it is full", self.name));
        // The whole request stays in memory until its slice is encoded.
        let bytes = request.batch.text.len() + 16 * request.batch.samples.len();
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX);
        let permits = permits.min(u32::try_from(QUEUE_BYTES / PERMIT_BYTES).unwrap_or(u32::MAX));
        let room = self.room.clone().try_acquire_many_owned(permits).map_err(|_| full())?;
        let (reply, answer) = tokio::sync::oneshot::channel();
        let reply = Waiting(reply, self.stats.begin(Call::Append));
        let job = Job { request, until: Instant::now() + within, reply, _room: room };
        let sent = self.tx.try_send(job);
        self.stats.waits(self.tx.max_capacity() - self.tx.capacity());
        if let Err(refused) = sent {
            refused.into_inner().reply.tell(Err(full()));
        }
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::unavailable(format!("the way to {} was closed", self.name))),
            Err(_) => Err(Error::new(Class::Timeout, format!("{} did not answer in time", self.name))),
        }
    }
}

struct Link {
    client: Client,
    name: Arc<str>,
    mark: Arc<Mark>,
    stats: Arc<Peer>,
}

async fn run(mut link: Link, mut rx: mpsc::Receiver<Job>) {
    let mut waiting = Vec::with_capacity(FRAME_SLICES_MAX);
    while rx.recv_many(&mut waiting, FRAME_SLICES_MAX).await > 0 {
        let mut stream = Stream { waiting: std::mem::take(&mut waiting), pending: HashMap::new(), next_id: 0 };
        let why = link.session(&mut stream, &mut rx).await;
        link.mark.failed();
        link.stats.stream(false);
        tracing::debug!(peer = &*link.name, why, "the stream of writes broke");
        // Who comes while nobody can be reached is told at once, and not when the next attempt is made.
        while let Ok(job) = rx.try_recv() {
            stream.waiting.push(job);
        }
        stream.give_up(&link.name, &why);
    }
}

/// What is on its way in one stream.
struct Stream {
    waiting: Vec<Job>,
    pending: HashMap<u64, Waiting>,
    next_id: u64,
}

impl Link {
    /// Sends and receives until the stream breaks; answers why.
    async fn session(&mut self, stream: &mut Stream, rx: &mut mpsc::Receiver<Job>) -> String {
        let (frames, sent) = mpsc::channel::<Slices>(FRAMES_AHEAD);
        let opened = tokio::time::timeout(OPEN_WITHIN, self.client.append(ReceiverStream::new(sent))).await;
        let mut answers: Streaming<Answers> = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return told(&status),
            Err(_) => return format!("no answer within {} ms", OPEN_WITHIN.as_millis()),
        };
        self.stats.stream(true);
        loop {
            tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        self.mark.answered();
                        self.stats.received(Call::Append, answer.encoded_len());
                        stream.answered(answer);
                    }
                    Ok(None) => return "the other side closed the stream".to_owned(),
                    Err(status) => return told(&status),
                },
                place = frames.reserve(), if !stream.waiting.is_empty() && stream.pending.len() < PENDING_MAX => {
                    let Ok(place) = place else { return "the connection is gone".to_owned() };
                    let frame = stream.frame().await;
                    self.stats.sent(Call::Append, frame.encoded_len());
                    self.stats.waits(rx.len() + stream.waiting.len());
                    place.send(frame);
                }
                count = rx.recv_many(&mut stream.waiting, FRAME_SLICES_MAX), if stream.waiting.is_empty() => {
                    if count == 0 {
                        return "this node stops".to_owned();
                    }
                }
            }
        }
    }
}

impl Stream {
    /// The next frame: what waits, up to its bounds.
    async fn frame(&mut self) -> Slices {
        let (mut slices, mut bytes, mut taken) = (Vec::new(), 0, 0);
        for job in &self.waiting {
            if bytes > FRAME_BYTES_MAX {
                break;
            }
            taken += 1;
            let request = job.request.clone();
            let body = if request.picks.len() <= SHORT_SERIES_MAX {
                request.packed()
            } else {
                // A panic there leaves an empty body, which the replica refuses.
                tokio::task::spawn_blocking(move || request.packed()).await.unwrap_or_default()
            };
            bytes += body.len();
            let left = job.until.saturating_duration_since(Instant::now());
            slices.push(Slice {
                id: self.next_id + taken as u64,
                tenant: job.request.tenant.as_str().to_owned(),
                partition: job.request.partition.0,
                epoch: job.request.epoch.0,
                as_of: job.request.as_of,
                within_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
                metadata: job.request.metadata,
                repair: job.request.repair,
                body,
            });
        }
        for job in self.waiting.drain(..taken) {
            self.next_id += 1;
            self.pending.insert(self.next_id, job.reply);
        }
        Slices { slices }
    }

    fn answered(&mut self, answers: Answers) {
        for answer in answers.answers {
            if let Some(reply) = self.pending.remove(&answer.id) {
                reply.tell(appended(answer));
            }
        }
    }

    fn give_up(self, name: &str, why: &str) {
        for job in self.waiting {
            job.reply.tell(Err(Error::unavailable(format!("{name}: {why}"))));
        }
        for (_, reply) in self.pending {
            let text = format!("{name}: {why}; whether the samples are stored there is unknown");
            reply.tell(Err(Error::new(Class::Timeout, text)));
        }
    }
}

/// The words of the closed list of reasons that may come from another node.
const REASONS: [&str; 6] = [
    "per_user_series_limit",
    "new-value-for-timestamp",
    "sample-out-of-order",
    "sample-too-old",
    "native_histogram_invalid",
    "damaged",
];

fn appended(answer: Answer) -> Result<Appended, Error> {
    if let Some(failure) = answer.failure {
        return Err(failed(failure));
    }
    let word = |text: &str| REASONS.into_iter().find(|known| *known == text).unwrap_or("other");
    Ok(Appended {
        samples: answer.samples,
        histograms: answer.histograms,
        exemplars: answer.exemplars,
        exemplars_dropped: answer.exemplars_dropped,
        refused: Refused {
            count: answer.refused,
            first: (!answer.first.is_empty()).then_some(answer.first),
            by_reason: answer.reasons.iter().map(|reason| (word(&reason.word), reason.count)).collect(),
            limited: answer.limited,
        },
    })
}
