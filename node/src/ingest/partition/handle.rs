//! What a partition is asked, and the address by which others do.

use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};
use engram_storage::log::Position;

use crate::actor::{Addr, AskError, Reply};
use crate::error::Error;
use crate::peer::{Append, Appended};

/// What a partition is asked.
pub enum Message {
    /// Store a slice.
    Append {
        /// The slice.
        request: Append,
        /// Answered after it is durable and applied.
        reply: Reply<Result<Appended, Error>>,
    },
    /// Drop samples older than a tenant's newest by more than it keeps, and series that never had any.
    Retain {
        /// How long samples of tenants that do not say stay, in milliseconds, 0: for ever; none: age is not looked at.
        keep_ms: Option<i64>,
        /// Answered when done.
        reply: Reply<()>,
    },
    /// Set a window aside.
    Seal {
        /// Whose.
        tenant: TenantId,
        /// The seal's number.
        number: u64,
        /// The window.
        window: TimeRange,
        /// Answered when it is durable, also when it had been sealed before; false when damage is in the way.
        reply: Reply<bool>,
    },
    /// Forget what was set aside, if it is what the cut holds.
    Forget {
        /// Whose.
        tenant: TenantId,
        /// The seal's number.
        number: u64,
        /// What is to be forgotten, and when it was committed.
        proof: Proof,
        /// Answered when it is durable.
        reply: Reply<Forgetting>,
    },
    /// Drop a head that is empty and has had no append for long.
    Drop {
        /// Whose.
        tenant: TenantId,
        /// No append at or after this time.
        since: Millis,
        /// Answered with whether it is gone.
        reply: Reply<bool>,
    },
    /// Make visible everything that was accepted before this message.
    Settle {
        /// Answered when done.
        reply: Reply<()>,
    },
    /// Forget the tenant's head: this node holds the partition no more.
    Leave {
        /// Answered when that is in the log.
        reply: Reply<()>,
    },
    /// Write a checkpoint of every head into the log.
    Checkpoint {
        /// Where the round begins in the log.
        round: Position,
        /// Answered when all of it is durable.
        reply: Reply<Result<(), Error>>,
    },
}

/// What a block holds, proven, of what a seal set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The digest of the samples that are safe elsewhere.
    pub digest: Digest,
    /// The index of the metadata at which that was committed.
    pub index: u64,
}

/// What became of samples that were to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgetting {
    /// They are gone, now or since before.
    Gone,
    /// The digest of what is frozen here is another one: nothing was forgotten.
    Differs(Digest),
    /// The seal is not applied here.
    NotSealed,
}

/// The address of a partition's actor.
#[derive(Clone)]
pub struct Handle {
    pub(super) addr: Addr<Message>,
}

impl Handle {
    /// Stores a slice; the answer comes after it is on disk and visible.
    ///
    /// # Errors
    /// Unavailable for a full mailbox, an old epoch or a failed log, Timeout when the outcome is unknown.
    pub async fn append(&self, request: Append, within: Duration) -> Result<Appended, Error> {
        self.addr.ask(|reply| Message::Append { request, reply }, within).await?
    }

    /// Drops series that never had samples and, unless `keep_ms` is none, samples older than a tenant's newest by more
    /// than it keeps, or by more than `keep_ms` when it does not say; 0 keeps all.
    ///
    /// # Errors
    /// Why the actor did not answer.
    pub async fn retain(&self, keep_ms: Option<i64>, within: Duration) -> Result<(), AskError> {
        self.addr.ask_in_line(|reply| Message::Retain { keep_ms, reply }, within).await
    }

    /// Sets a window aside under the number of a seal; one that was applied before is left as it is. False when damage
    /// is in the way.
    ///
    /// # Errors
    /// Why the actor did not answer.
    pub async fn seal(
        &self,
        tenant: &TenantId,
        number: u64,
        window: TimeRange,
        within: Duration,
    ) -> Result<bool, AskError> {
        let tenant = tenant.clone();
        self.addr.ask_in_line(|reply| Message::Seal { tenant, number, window, reply }, within).await
    }

    /// Forgets what was set aside under a number, if its digest is that of the proof.
    ///
    /// # Errors
    /// Why the actor did not answer.
    pub async fn forget(
        &self,
        tenant: &TenantId,
        number: u64,
        proof: Proof,
        within: Duration,
    ) -> Result<Forgetting, AskError> {
        let tenant = tenant.clone();
        self.addr.ask_in_line(|reply| Message::Forget { tenant, number, proof, reply }, within).await
    }

    /// Drops the tenant's head if it is empty and had no append at or after `since`; whether it is gone.
    ///
    /// # Errors
    /// Why the actor did not answer.
    pub async fn drop_head(&self, tenant: &TenantId, since: Millis, within: Duration) -> Result<bool, AskError> {
        let tenant = tenant.clone();
        self.addr.ask_in_line(|reply| Message::Drop { tenant, since, reply }, within).await
    }

    /// Waits until everything that was accepted before is visible.
    ///
    /// # Errors
    /// Why the actor did not answer.
    pub async fn settle(&self, within: Duration) -> Result<(), AskError> {
        self.addr.ask_in_line(|reply| Message::Settle { reply }, within).await
    }

    /// Forgets every head: this node holds the partition no more.
    ///
    /// # Errors
    /// Why the actor did not answer.
    pub async fn leave(&self, within: Duration) -> Result<(), AskError> {
        self.addr.ask_in_line(|reply| Message::Leave { reply }, within).await
    }

    /// Writes a checkpoint of every head into the log.
    ///
    /// # Errors
    /// Why the actor did not answer, or the log failed.
    pub async fn checkpoint(&self, round: Position, within: Duration) -> Result<(), Error> {
        self.addr.ask_in_line(|reply| Message::Checkpoint { round, reply }, within).await?
    }

    /// How many messages wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.addr.depth()
    }
}
