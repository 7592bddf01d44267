//! The state machine: applies committed entries, publishes views, builds and installs snapshots.
//!
//! A batch of entries becomes one RocksDB batch of their rows and the applied position: all or nothing, and synced before
//! the view is published, so that nothing that was shown goes back when power is lost. The view is published before
//! callers get their outcomes, so whoever was answered sees it.
//!
//! Snapshots are built from a view that is pinned when the builder is asked for, not when it runs. Installing takes
//! many batches; a marker names the file first, so a crash in between is finished at the next start and no half of a
//! state is ever read.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::type_config::alias::{EntryOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::snapshot::{APPLIED_KEY, Meta};
use super::{Batch, Db, LogId, Pinned, RAFT, SnapshotDir, SnapshotFile, blocking};
use crate::codec;
use crate::command::Outcome;
use crate::error::Error;
use crate::group::TypeConfig;
use crate::here;
use crate::runtime::{Receiver, Sender};
use crate::state::{Base, Draft, Table, View, Writes, apply};

/// Entries of one batch.
const BATCH_ENTRIES_MAX: usize = 256;
/// Names the snapshot whose installation has begun and not ended.
const INSTALLING: &str = "installing";

/// What is applied, in the `meta` table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) log_id: Option<LogId>,
    pub(super) membership: StoredMembershipOf<TypeConfig>,
}

impl Applied {
    pub(super) fn read(base: &dyn Base) -> Result<Self, Error> {
        let bytes = base.get(Table::Meta, APPLIED_KEY)?;
        bytes.map_or_else(|| Ok(Self::default()), |b| codec::decode("applied", &b))
    }

    pub(super) fn write(&self, batch: &mut Batch<'_>) -> Result<(), Error> {
        batch.put(Table::Meta.name(), APPLIED_KEY, codec::encode("applied", self)?)
    }

    pub(super) fn index(&self) -> Option<u64> {
        self.log_id.map(|id| id.index)
    }

    /// What a snapshot of it covers.
    pub(super) fn meta(&self) -> Meta {
        Meta { last_log_id: self.log_id, last_membership: self.membership.clone() }
    }
}

/// The state machine.
pub(crate) struct Machine {
    pub(super) db: Arc<Db>,
    snapshots: Arc<SnapshotDir>,
    applied: Applied,
    views: Sender<Arc<View>>,
}

impl Machine {
    /// Opens the state; finishes an installation that was interrupted.
    pub(crate) fn open(db: Arc<Db>, snapshots: Arc<SnapshotDir>) -> Result<Self, Error> {
        if let Some(name) = db.raft_get::<String>(INSTALLING)? {
            let snapshot = snapshots.named(&name)?;
            let meta = snapshot.verify()?;
            replace(&db, &snapshot, &meta)?;
        }
        let applied = Applied::read(&*db)?;
        let view = View::load(&*db, applied.index())?;
        Ok(Self { db, snapshots, applied, views: Sender::new(Arc::new(view)) })
    }

    /// Follows the views.
    pub(crate) fn watch(&self) -> Receiver<Arc<View>> {
        self.views.receiver()
    }

    /// What is applied.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.applied.log_id
    }

    async fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let (entries, responders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let (db, applied, view) = (self.db.clone(), self.applied.clone(), self.views.borrow().clone());
        let (outcomes, applied, view) = blocking(move || apply_entries(&db, applied, &view, entries)).await?;
        self.applied = applied;
        self.views.replace(Arc::new(view));
        for (responder, outcome) in responders.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }
}

/// Rows of a draft into a batch of the database.
pub(super) fn put(batch: &mut Batch<'_>, writes: Writes) -> Result<(), Error> {
    for ((table, key), value) in writes {
        match value {
            Some(value) => batch.put(table.name(), key, value)?,
            None => batch.delete(table.name(), key)?,
        }
    }
    Ok(())
}

fn apply_entries(
    db: &Db,
    mut applied: Applied,
    view: &View,
    entries: Vec<EntryOf<TypeConfig>>,
) -> Result<(Vec<Outcome>, Applied, View), Error> {
    let mut draft = Draft::new(db);
    let mut outcomes = Vec::with_capacity(entries.len());
    for entry in entries {
        let index = entry.log_id.index;
        outcomes.push(match entry.payload {
            EntryPayload::Blank => Outcome::Internal,
            EntryPayload::Normal(envelope) => apply(&mut draft, &envelope, index)?,
            EntryPayload::Membership(membership) => {
                applied.membership = StoredMembershipOf::<TypeConfig>::new(Some(entry.log_id), membership);
                Outcome::Internal
            }
        });
        applied.log_id = Some(entry.log_id);
    }
    let (writes, changes) = draft.finish();
    let mut batch = db.batch();
    put(&mut batch, writes)?;
    applied.write(&mut batch)?;
    // A node that comes back learns from a leader only what is committed; until it does, it must show what it had shown.
    db.write(batch, true)?;
    let view = view.after(applied.index(), changes);
    Ok((outcomes, applied, view))
}

/// Puts a verified snapshot in the place of the whole state.
fn replace(db: &Db, snapshot: &SnapshotFile, meta: &Meta) -> Result<(), Error> {
    db.raft_put(INSTALLING, &snapshot.name())?;
    for table in Table::ALL {
        if let Some((last, _)) = db.last(table.name())? {
            let mut batch = db.batch();
            // The range ends before its end, so the last key goes by itself.
            batch.delete_range(table.name(), b"", &last)?;
            batch.delete(table.name(), &last)?;
            db.write(batch, false)?;
        }
    }
    snapshot.fill(db)?;
    let mut last = db.batch();
    Applied { log_id: meta.last_log_id, membership: meta.last_membership.clone() }.write(&mut last)?;
    last.delete(RAFT, INSTALLING)?;
    db.write(last, true)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<TypeConfig>)> {
        Ok((self.applied.log_id, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.try_next().await? {
            batch.push(entry);
            if batch.len() >= BATCH_ENTRIES_MAX {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.apply_batch(batch).await }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let (db, snapshots) = (self.db.clone(), self.snapshots.clone());
        if here::is_here() {
            return Builder { go: None, work: Some(Work::Done(build(&Pinned::new(&db), &snapshots).map(Some))) };
        }
        let (pinned, is_pinned) = oneshot::channel();
        let (go, may_go) = oneshot::channel();
        // The pinned view borrows the database, so it lives on the stack of the thread that will read it.
        let work = tokio::task::spawn_blocking(move || {
            let view = Pinned::new(&db);
            if pinned.send(()).is_err() || may_go.blocking_recv().is_err() {
                return Ok(None);
            }
            build(&view, &snapshots).map(Some)
        });
        // An error means that the thread has ended; `build_snapshot` will say why.
        if is_pinned.await.is_err() {
            tracing::warn!("metadata snapshot could not be begun");
        }
        Builder { go: Some(go), work: Some(Work::There(work)) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, snapshot: SnapshotFile) -> io::Result<()> {
        let (db, snapshots, meta) = (self.db.clone(), self.snapshots.clone(), meta.clone());
        let (applied, view) = blocking(move || {
            let found = snapshot.verify()?;
            if found != meta {
                return Err(Error::corrupt("snapshot", format!("it covers {found}, announced was {meta}")));
            }
            let snapshot = snapshots.keep(&snapshot, &meta)?;
            replace(&db, &snapshot, &meta)?;
            let applied = Applied::read(&*db)?;
            let view = View::load(&*db, applied.index())?;
            Ok((applied, view))
        })
        .await?;
        self.applied = applied;
        self.views.replace(Arc::new(view));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        let (db, snapshots) = (self.db.clone(), self.snapshots.clone());
        let current = move || match snapshots.current() {
            Ok(current) => Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot })),
            // The state is whole, only its copy is not: make another, a follower may have nothing else to start from.
            Err(Error::Corrupt { why, .. }) => {
                tracing::error!(%why, "metadata snapshot is damaged, it is built anew");
                build(&Pinned::new(&db), &snapshots).map(Some)
            }
            Err(other) => Err(other),
        };
        blocking(current).await
    }
}

/// Writes a snapshot of a pinned view.
fn build(view: &Pinned<'_>, snapshots: &SnapshotDir) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, Error> {
    let applied = Applied::read(view)?;
    let meta = applied.meta();
    let snapshot = snapshots.write(view, &meta)?;
    Ok(Snapshot { meta, snapshot })
}

type Built = Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, Error>;

enum Work {
    /// On a thread that waits to be told to go on.
    There(JoinHandle<Built>),
    /// Done where it was asked for.
    Done(Built),
}

/// A snapshot about to be written: its view is pinned already.
pub(crate) struct Builder {
    go: Option<oneshot::Sender<()>>,
    work: Option<Work>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let Some(work) = self.work.take() else {
            return Err(io::Error::other("the snapshot was built already"));
        };
        if self.go.take().is_some_and(|go| go.send(()).is_err()) {
            tracing::debug!("the snapshot's thread has ended before it was told to go on");
        }
        here::disk_time().await;
        let built = match work {
            Work::There(work) => work.await.map_err(io::Error::other)?,
            Work::Done(built) => built,
        };
        match built {
            Ok(Some(snapshot)) => Ok(snapshot),
            Ok(None) => Err(io::Error::other("the snapshot was given up")),
            Err(error) => Err(error.into_io()),
        }
    }
}
