//! Partition: the only writer of one partition's heads on this node.
//!
//! Why one writer: it gives the group commit for free (what waits in the mailbox goes to the log together), and order
//! without locks: appends are *staged* (series found or made, bytes for the log written) in order of arrival, *flushed*
//! by the log in that order, *applied* to the head in that order and then answered. Nothing is visible before it is
//! durable, and replay decides every sample as it was decided the first time.
//!
//! Map: here appends and checkpoints · [`handle`] what is asked · [`budget`] what may wait at the log · [`sealed`] what is
//! sealed, forgotten and dropped.
//!
//! Positions: applied ≤ flushed ≤ accepted, checked as answers of the log come in.

mod budget;
mod handle;
mod sealed;

use std::collections::VecDeque;
use std::sync::Arc;

use engram_model::Millis;
use engram_model::batch::{BatchSeries, WriteBatch};
use engram_model::place::PartitionId;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_storage::head::{AppendLimits, Head, Reason, Receipt, Staged};
use engram_storage::log::{NodeLog, Position};
use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::entry::{self, Kind};
use super::heads::{Heads, SharedHead};
use crate::actor::{ChildSpec, Lease, Mailbox, Reply, RestartLimit, mailbox};
use crate::error::Error;
use crate::meta::Meta;
use crate::peer::{Append, Appended, Refused};
pub use budget::LogBudget;
pub use handle::{Forgetting, Handle, Message, Proof};

/// Appends that may wait to be staged; above it the sender is told to come again.
const MAILBOX_MAX: usize = 1024;
/// Appends that may be at the log at once.
const PENDING_MAX: usize = 256;
/// Who may wait at once for what was accepted before; more make the actor wait for the log.
const SETTLING_MAX: usize = 256;
/// Appends taken from the mailbox in one go.
const DRAIN_MAX: usize = 64;
/// A slice of more series than this is staged and applied on a thread that may take its time: at half a microsecond
/// each they would hold the runtime for longer than a task may.
const SHORT_SERIES_MAX: usize = 1000;
/// Bytes of a checkpoint that may wait at the log.
const CHECKPOINT_AHEAD_BYTES: usize = 4 << 20;

/// What a partition's actor works with.
#[derive(Clone)]
pub struct Config {
    /// Which partition.
    pub partition: PartitionId,
    /// Its heads.
    pub heads: Heads,
    /// The heads of all partitions of this node: a tenant's series are counted over all of them.
    pub all_heads: Arc<Vec<Heads>>,
    /// The node's log.
    pub log: Arc<NodeLog>,
    /// What may wait at the log, shared by all partitions.
    pub budget: LogBudget,
    /// Knows the epoch of its replica set.
    pub meta: Meta,
    /// When appends come.
    pub clock: Clock,
    /// Ends the actor after what was accepted is answered.
    pub stop: CancellationToken,
}

/// Makes the actor's address and the child that runs it. It is essential and never restarted in place: its heads are
/// what the log says, so after a panic the process ends and recovery rebuilds them.
#[must_use]
pub fn child(config: Config) -> (Handle, ChildSpec) {
    let (addr, mailbox) = mailbox("partition", MAILBOX_MAX);
    let spec = ChildSpec {
        name: format!("partition-{}", config.partition.0),
        limit: RestartLimit { failures_max: 0, ..RestartLimit::default() },
        essential: true,
        start: Box::new(move || run(config.clone(), mailbox.clone()).boxed()),
    };
    (Handle { addr }, spec)
}

/// An append on its way through the log.
struct Pending {
    sequence: u64,
    head: SharedHead,
    request: Append,
    staged: Staged,
    reply: Reply<Result<Appended, Error>>,
    _room: Option<OwnedSemaphorePermit>,
}

struct State {
    config: Config,
    pending: VecDeque<Pending>,
    accepted_count: u64,
    /// Who is told when all appends below a number are visible, in order of the number.
    settling: VecDeque<(u64, Reply<()>)>,
    flushed_tx: mpsc::Sender<(u64, Result<Position, engram_storage::Error>)>,
}

async fn run(config: Config, mailbox: Mailbox<Message>) -> Result<(), crate::actor::ChildError> {
    let mut lease = mailbox.open().ok_or("mailbox is in use")?;
    let (flushed_tx, mut flushed_rx) = mpsc::channel(PENDING_MAX + DRAIN_MAX);
    let stop = config.stop.clone();
    let mut state =
        State { config, pending: VecDeque::new(), accepted_count: 0, settling: VecDeque::new(), flushed_tx };
    let mut messages = Vec::with_capacity(DRAIN_MAX);
    let mut closed = false;
    loop {
        tokio::select! {
            biased;
            Some((sequence, result)) = flushed_rx.recv(), if !state.pending.is_empty() => {
                state.flushed(sequence, result).await?;
            }
            () = stop.cancelled(), if !closed => {
                closed = true;
                lease.close();
            }
            count = lease.recv_many(&mut messages, DRAIN_MAX), if state.pending.len() < PENDING_MAX => {
                if count == 0 {
                    break;
                }
                for message in messages.drain(..) {
                    state.handle(message, &mut flushed_rx).await?;
                }
            }
        }
    }
    state.settle(&mut flushed_rx).await?;
    drop::<Lease<Message>>(lease);
    Ok(())
}

type Flushed = mpsc::Receiver<(u64, Result<Position, engram_storage::Error>)>;

impl State {
    async fn handle(&mut self, message: Message, flushed: &mut Flushed) -> Result<(), Error> {
        match message {
            Message::Append { request, reply } => {
                let room = self.room_for(&request, flushed).await?;
                self.accept(request, reply, room).await?;
            }
            Message::Retain { keep_ms, reply } => {
                self.settle(flushed).await?;
                self.retain(keep_ms).await?;
                // Nobody waiting any more is no failure.
                let _gone = reply.send(());
            }
            Message::Seal { tenant, number, window, reply } => {
                self.settle(flushed).await?;
                let done = self.seal(&tenant, number, window).await?;
                let _gone = reply.send(done);
            }
            Message::Forget { tenant, number, proof, reply } => {
                self.settle(flushed).await?;
                let done = self.forget(&tenant, number, proof).await?;
                let _gone = reply.send(done);
            }
            Message::Drop { tenant, since, reply } => {
                self.settle(flushed).await?;
                let done = self.drop_head(&tenant, since).await?;
                let _gone = reply.send(done);
            }
            Message::Settle { reply } => {
                // Peers that compare ask this all the time: what comes after it does not wait for the log.
                self.settling.retain(|(_, reply)| !reply.is_closed());
                if self.settling.len() >= SETTLING_MAX {
                    self.settle(flushed).await?;
                }
                self.settling.push_back((self.accepted_count, reply));
                self.tell_settled();
            }
            Message::Leave { reply } => {
                self.settle(flushed).await?;
                self.leave().await?;
                let _gone = reply.send(());
            }
            // Whoever asked has given the round up.
            Message::Checkpoint { reply, .. } if reply.is_closed() => {}
            Message::Checkpoint { round, reply } => {
                self.settle(flushed).await?;
                // A sync that failed ends the actor, and with it the node: what the disk holds is unknown.
                self.sync_files().await?;
                let done = self.checkpoint(round).await;
                let _gone = reply.send(done);
            }
        }
        Ok(())
    }

    /// Waits for room at the log. What this actor holds of it comes back only when it answers what is flushed, so it
    /// goes on answering while it waits.
    async fn room_for(
        &mut self,
        request: &Append,
        flushed: &mut Flushed,
    ) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let budget = self.config.budget.clone();
        let mut room = std::pin::pin!(budget.reserve(request));
        loop {
            tokio::select! {
                biased;
                room = room.as_mut() => return Ok(room),
                Some((sequence, result)) = flushed.recv(), if !self.pending.is_empty() => {
                    self.flushed(sequence, result).await?;
                }
            }
        }
    }

    /// Stages an append and hands its bytes to the log.
    async fn accept(
        &mut self,
        request: Append,
        reply: Reply<Result<Appended, Error>>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Error> {
        let at = self.config.meta.is_at(request.partition, request.epoch);
        #[cfg(feature = "mutants")]
        let at = at.or_else(|stale| engram_model::mutant::Mutant::StaleEpoch.lives().then_some(()).ok_or(stale));
        if let Err(stale) = at {
            let _gone = reply.send(Err(stale));
            return Ok(());
        }
        if self.config.log.waits_for_room() {
            // Sooner than to let it wait for its deadline and not know what became of it.
            let text = "the disk of this node is full, nothing can be written: make room, or retry later";
            let _gone = reply.send(Err(Error::unavailable(text)));
            return Ok(());
        }
        let head = self.config.heads.for_append(&request.tenant, self.config.clock.now());
        let mut payload = Vec::with_capacity(64 + request.picks.len() * 24);
        entry::begin(&mut payload, Kind::Append, request.partition, &request.tenant);
        let limits = AppendLimits {
            // What is older than a seal waits for the next one, so a series may begin anywhere in the past.
            in_order_age_max_ms: 0,
            metadata_max: if request.metadata { request.limits.max_metadata_per_user } else { 0 },
            // What the others have was let in there; it is not judged a second time.
            series_max: if request.repair { 0 } else { self.series_max(&request) },
            repair: request.repair,
            ..AppendLimits::of(&request.limits)
        };
        let begins_at = payload.len();
        let (batch, picks) = (request.batch.clone(), request.picks.clone());
        let stage = move |head: &mut Head| (head.stage(&batch, &picks, &limits, &mut payload), payload);
        let (staged, payload) = with_head(&head, is_short(&request), stage).await?;
        if payload.len() == begins_at {
            // Every series was refused: there is nothing to make durable, and an entry without a body is none.
            return self
                .apply(Pending { sequence: self.accepted_count, head, request, staged, reply, _room: room })
                .await;
        }
        let sequence = self.accepted_count;
        self.accepted_count += 1;
        let flushed = self.flushed_tx.clone();
        let done = Box::new(move |result| {
            // The channel holds more than can be pending, and ends only with the actor.
            let _gone = flushed.try_send((sequence, result));
        });
        if let Err(error) = self.config.log.append(payload, done) {
            // Closed or failed. The series that were staged exist without an entry now: this actor must end.
            let error = storage_error(&error);
            let _gone = reply.send(Err(error.clone()));
            return Err(error);
        }
        self.pending.push_back(Pending { sequence, head, request, staged, reply, _room: room });
        Ok(())
    }

    /// How many series the tenant's head here may hold: its limit, less what its heads in other partitions hold. 0: no
    /// limit; where others have used all of it, the one series that 0 cannot express.
    fn series_max(&self, request: &Append) -> u64 {
        let max = request.limits.max_global_series_per_user;
        if max == 0 {
            return 0;
        }
        let here = request.partition.0 as usize;
        let others = self.config.all_heads.iter().enumerate().filter(|(i, _)| *i != here);
        let used: u64 = others
            .filter_map(|(_, heads)| heads.get(&request.tenant))
            .map(|head| head.read().series_count() as u64)
            .sum();
        max.saturating_sub(used).max(1)
    }

    /// The log says what became of the oldest pending append: apply it and answer.
    async fn flushed(&mut self, sequence: u64, result: Result<Position, engram_storage::Error>) -> Result<(), Error> {
        let Some(pending) = self.pending.pop_front() else {
            unreachable!("the log answered append {sequence}, and none is pending");
        };
        assert_eq!(pending.sequence, sequence, "the log answers in the order of the appends");
        match result {
            Ok(_) => {
                self.apply(pending).await?;
                self.tell_settled();
                self.keep_full().await
            }
            Err(error) => {
                let error = storage_error(&error);
                let _gone = pending.reply.send(Err(error.clone()));
                Err(error)
            }
        }
    }

    /// Tells those who wait for nothing that is still at the log.
    fn tell_settled(&mut self) {
        let visible_count = self.pending.front().map_or(self.accepted_count, |oldest| oldest.sequence);
        while let Some((_, reply)) = self.settling.pop_front_if(|(count, _)| *count <= visible_count) {
            let _gone = reply.send(());
        }
    }

    /// Makes visible what is durable, and answers.
    async fn apply(&self, pending: Pending) -> Result<(), Error> {
        let Pending { head, request, staged, reply, .. } = pending;
        let batch = request.batch.clone();
        let receipt = with_head(&head, is_short(&request), move |head| head.apply(&batch, &staged)).await?;
        // What this replica cannot read any more says nothing about the sample: the others decide, and nobody is told that
        // it was at fault.
        let damaged = receipt.refused.iter().find(|one| one.reason == Reason::Damaged).map(|one| {
            let series = &request.batch.series[one.series as usize];
            let text = describe(&request.batch, series, one.reason, one.at, &request.limits);
            Error::new(engram_model::Class::Internal, text)
        });
        let _gone = reply.send(damaged.map_or_else(|| Ok(answer(&request, &receipt)), Err));
        Ok(())
    }

    /// Waits until nothing is at the log.
    async fn settle(&mut self, flushed: &mut Flushed) -> Result<(), Error> {
        while !self.pending.is_empty() {
            let Some((sequence, result)) = flushed.recv().await else { break };
            self.flushed(sequence, result).await?;
        }
        Ok(())
    }

    /// Writes every head into the log, piece by piece, on a thread that may block.
    async fn checkpoint(&self, round: Position) -> Result<(), Error> {
        let (partition, log) = (self.config.partition, self.config.log.clone());
        for (tenant, head) in self.config.heads.all() {
            let log = log.clone();
            let work = move || checkpoint_head(&log, partition, &tenant, &head);
            engram_storage::blocking::blocking(work)
                .await
                .map_err(|e| Error::new(engram_model::Class::Internal, format!("checkpoint: {e}")))?
                .map_err(|e| storage_error(&e))?;
        }
        let mut end = Vec::new();
        entry::begin(&mut end, Kind::PartitionEnd, partition, &TenantId::anonymous());
        entry::put_end(&mut end, self.config.heads.dropped_at(), round.0);
        append_durably(&log, end).await.map(|_| ())
    }
}

fn is_short(request: &Append) -> bool {
    request.picks.len() <= SHORT_SERIES_MAX
}

/// Changes a head: here when nobody reads it and the work is short, else on a thread that may wait. A query that reads
/// a million series holds the head for a while, and the runtime's threads have all other tenants to serve.
async fn with_head<T: Send + 'static>(
    head: &SharedHead,
    short: bool,
    work: impl FnOnce(&mut Head) -> T + Send + 'static,
) -> Result<T, Error> {
    if short && let Some(mut head) = head.try_write() {
        return Ok(work(&mut head));
    }
    let head = head.clone();
    engram_storage::blocking::blocking(move || work(&mut head.write()))
        .await
        .map_err(|e| Error::new(engram_model::Class::Internal, format!("changing a head failed: {e}")))
}

/// Appends an entry and waits until it is on disk, and with it all entries before.
///
/// # Errors
/// The log is failed or closed.
pub async fn append_durably(log: &Arc<NodeLog>, entry: Vec<u8>) -> Result<Position, Error> {
    let (done, answer) = tokio::sync::oneshot::channel();
    let log = log.clone();
    let append = move || {
        log.append(
            entry,
            Box::new(move |result| {
                let _gone = done.send(result);
            }),
        )
    };
    let internal = |e: &dyn std::fmt::Display| Error::new(engram_model::Class::Internal, format!("the log: {e}"));
    engram_storage::blocking::blocking(append).await.map_err(|e| internal(&e))?.map_err(|e| storage_error(&e))?;
    answer.await.map_err(|e| internal(&e))?.map_err(|e| storage_error(&e))
}

/// Appends an entry and blocks this thread until it is on disk.
fn append_and_wait(log: &NodeLog, entry: Vec<u8>) -> Result<(), engram_storage::Error> {
    let (done, answer) = std::sync::mpsc::sync_channel(1);
    log.append(
        entry,
        Box::new(move |result| {
            let _gone = done.send(result);
        }),
    )?;
    match answer.recv() {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(log.failed().unwrap_or(engram_storage::Error::Closed { what: "node log" })),
    }
}

fn checkpoint_head(
    log: &NodeLog,
    partition: PartitionId,
    tenant: &TenantId,
    head: &SharedHead,
) -> Result<(), engram_storage::Error> {
    let mark = |kind| {
        let mut bytes = Vec::new();
        entry::begin(&mut bytes, kind, partition, tenant);
        bytes
    };
    // The end of the partition's round is durable only after all pieces. They are waited for in between all the same:
    // the appends of other partitions queue behind what is at the log, and it takes memory.
    let append = |bytes| log.append(bytes, Box::new(|_| ()));
    append(mark(Kind::CheckpointBegin))?;
    let (mut failed, mut waiting_bytes) = (None, 0);
    let handed_out = head.read().snapshot(&mut |piece| {
        if failed.is_none() {
            let mut bytes = mark(Kind::CheckpointPiece);
            bytes.extend_from_slice(piece);
            waiting_bytes += bytes.len();
            failed = if waiting_bytes < CHECKPOINT_AHEAD_BYTES {
                append(bytes).err()
            } else {
                waiting_bytes = 0;
                append_and_wait(log, bytes).err()
            };
        }
    });
    assert!(handed_out.is_ok(), "a checkpoint is written between appends: {handed_out:?}");
    match failed {
        Some(error) => Err(error),
        None => append(mark(Kind::CheckpointEnd)),
    }
}

fn storage_error(error: &engram_storage::Error) -> Error {
    use engram_model::Classed;
    Error::new(error.class(), error.to_string())
}

fn answer(request: &Append, receipt: &Receipt) -> Appended {
    let batch = &request.batch;
    let mut refused = Refused::default();
    for one in &receipt.refused {
        let series = &batch.series[one.series as usize];
        let limited = one.reason == Reason::SeriesLimit;
        refused
            .add(reason_word(one.reason), limited, 1, || describe(batch, series, one.reason, one.at, &request.limits));
    }
    let count = |run: fn(&BatchSeries) -> usize| -> u64 {
        request.picks.iter().map(|pick| run(&batch.series[*pick as usize]) as u64).sum()
    };
    Appended {
        samples: count(|series| series.samples.len()) - (refused.count - receipt.histograms_refused),
        histograms: count(|series| series.histograms.len()) - receipt.histograms_refused,
        exemplars: receipt.exemplars,
        exemplars_dropped: receipt.exemplars_refused,
        refused,
    }
}

/// The word for what is beyond the out-of-order window, or below what the head has forgotten by age.
pub const TOO_OLD: &str = "sample-too-old";

/// The words of the closed list of reasons, Cortex' where it has the case.
fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::SeriesLimit => "per_user_series_limit",
        Reason::DuplicateDifferentValue => "new-value-for-timestamp",
        Reason::OutOfOrder => "sample-out-of-order",
        Reason::TooOld => TOO_OLD,
        Reason::BadHistogram => "native_histogram_invalid",
        Reason::Damaged => "damaged",
    }
}

fn describe(batch: &WriteBatch, series: &BatchSeries, reason: Reason, at: Millis, limits: &TenantLimits) -> String {
    let labels = batch.show(series);
    match reason {
        Reason::SeriesLimit => format!(
            "limit max_global_series_per_user of {} is reached, no new series: {labels}",
            limits.max_global_series_per_user
        ),
        Reason::DuplicateDifferentValue => {
            format!("duplicate sample for timestamp {at}: another value is stored for it: {labels}")
        }
        Reason::OutOfOrder => format!(
            "out of order sample at {at}: older than the newest of its series, and limit out_of_order_time_window is 0: {labels}"
        ),
        Reason::TooOld => format!(
            "sample at {at} is too old: beyond limit out_of_order_time_window of {} ms, or beyond the retention: {labels}",
            limits.out_of_order_time_window_ms
        ),
        Reason::BadHistogram => format!("native histogram at {at} contradicts itself: {labels}"),
        Reason::Damaged => format!("the stored chunk that the sample at {at} belongs into is damaged: {labels}"),
    }
}
