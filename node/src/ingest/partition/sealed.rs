//! What a partition's actor does beside appends: it sets windows aside, forgets what blocks hold, and drops what is old
//! or empty.
//!
//! Each of these is a line in the log, and nothing is at the log while it is drawn: what was staged before is applied.
//! A seal and the forgetting of it are durable before the head shows them: whoever has seen what is frozen must find the
//! same after a crash, and who was told that it is forgotten must not find it again.

use engram_model::digest::slot_of;
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_model::{Millis, TimeRange};
use engram_storage::head::Head;

use super::{Forgetting, Proof, State, append_durably, storage_error, with_head};
use crate::error::Error;
use crate::ingest::entry::{self, Kind};
use crate::ingest::heads::SharedHead;

impl State {
    /// Drops series that never had a sample and, with a default retention, what is older than a tenant's.
    pub(super) async fn retain(&mut self, default_ms: Option<i64>) -> Result<(), Error> {
        for (tenant, head) in self.config.heads.all() {
            if head.read().bare_count() > 0 {
                self.log_change(&tenant, &head, |head, payload| head.sweep(payload).map_err(|e| e.to_string())).await?;
            }
            // Age is relative to the tenant's own newest sample: old data can be loaded and stays.
            let Some(default_ms) = default_ms else { continue };
            let chosen = self.config.meta.tenant(&tenant).limits.compactor_blocks_retention_period_ms;
            let keep_ms = chosen.unwrap_or(default_ms);
            let Some(newest) = head.read().max_time().filter(|_| keep_ms > 0) else { continue };
            let before = newest.saturating_sub(keep_ms);
            if head.read().floor() < slot_of(before) {
                let forget = move |head: &mut Head, payload: &mut Vec<u8>| {
                    head.forget_before(before, payload).map(|gone| gone.samples).map_err(|e| e.to_string())
                };
                self.log_change(&tenant, &head, forget).await?;
            }
        }
        Ok(())
    }

    /// Changes a head and puts the change into the log. Not waited for: what is staged later comes after it.
    async fn log_change(
        &self,
        tenant: &TenantId,
        head: &SharedHead,
        change: impl FnOnce(&mut Head, &mut Vec<u8>) -> Result<u64, String> + Send + 'static,
    ) -> Result<(), Error> {
        let mut payload = Vec::new();
        entry::begin(&mut payload, Kind::Append, self.config.partition, tenant);
        let begins_at = payload.len();
        let (done, payload) = with_head(head, false, move |head| (change(head, &mut payload), payload)).await?;
        if let Err(error) = done {
            tracing::error!(%tenant, partition = self.config.partition.0, error, "what is old stays");
        }
        if payload.len() > begins_at {
            self.config.log.append(payload, Box::new(|_| ())).map_err(|e| storage_error(&e))?;
        }
        Ok(())
    }

    /// Sets a window aside; whether it is.
    pub(super) async fn seal(&mut self, tenant: &TenantId, number: u64, window: TimeRange) -> Result<bool, Error> {
        let head = self.config.heads.get_or_create(tenant);
        if head.read().sealed() >= number {
            return Ok(true);
        }
        let can = with_head(&head, false, move |head| head.check_seal(number, window)).await?;
        if let Err(error) = can {
            tracing::error!(%tenant, partition = self.config.partition.0, number, %error, "not sealed");
            return Ok(false);
        }
        let mut payload = Vec::new();
        entry::begin(&mut payload, Kind::Append, self.config.partition, tenant);
        Head::log_seal(number, window, &mut payload);
        append_durably(&self.config.log, payload).await?;
        let part = with_head(&head, false, move |head| head.seal(number, window, &mut Vec::new())).await?;
        match part {
            Ok(part) => {
                let (samples, series) = (part.sample_count(), part.series_count());
                tracing::debug!(%tenant, partition = self.config.partition.0, number, samples, series, "sealed");
                Ok(true)
            }
            Err(error) => unreachable!("settled, and the number was looked at: {error}"),
        }
    }

    /// Forgets what was set aside, if the proof is of just that.
    pub(super) async fn forget(&mut self, tenant: &TenantId, number: u64, proof: Proof) -> Result<Forgetting, Error> {
        let Some(head) = self.config.heads.get(tenant) else { return Ok(Forgetting::NotSealed) };
        let (sealed, part) = {
            let head = head.read();
            (head.sealed(), head.frozen(number).cloned())
        };
        let Some(part) = part else {
            return Ok(if sealed < number { Forgetting::NotSealed } else { Forgetting::Gone });
        };
        let differs = part.digest() != proof.digest;
        #[cfg(feature = "mutants")]
        let differs = differs && !engram_model::mutant::Mutant::ForgetUnchecked.lives();
        if differs {
            return Ok(Forgetting::Differs(part.digest()));
        }
        let mut payload = Vec::new();
        entry::begin(&mut payload, Kind::Append, self.config.partition, tenant);
        Head::log_forget_frozen(number, proof.index, &mut payload);
        append_durably(&self.config.log, payload).await?;
        let forgotten =
            with_head(&head, false, move |head| head.forget_frozen(number, proof.index, &mut Vec::new())).await?;
        match forgotten {
            Ok(forgotten) => {
                let (samples, series) = (forgotten.samples, forgotten.series);
                tracing::debug!(%tenant, partition = self.config.partition.0, number, samples, series, "forgotten");
                Ok(Forgetting::Gone)
            }
            Err(error) => unreachable!("settled, and the part was looked at: {error}"),
        }
    }

    /// Puts full chunks into files, when enough of them lie on the heap. A disk that refuses is no failure: the log
    /// holds their samples, and they wait.
    pub(super) async fn keep_full(&self) -> Result<(), Error> {
        if !self.config.heads.has_full() {
            return Ok(());
        }
        let heads = self.config.heads.clone();
        let kept = engram_storage::blocking::blocking(move || heads.keep_full()).await;
        if let Err(error) = kept.map_err(|e| Error::new(Class::Internal, format!("keeping full chunks failed: {e}")))? {
            tracing::warn!(%error, partition = self.config.partition.0, "full chunks stay in memory for now");
        }
        Ok(())
    }

    /// Makes the chunk files durable that a checkpoint is about to name.
    pub(super) async fn sync_files(&self) -> Result<(), Error> {
        let Some(files) = self.config.heads.files().cloned() else { return Ok(()) };
        let work = move || files.sync().map(|()| files.pin());
        let synced = engram_storage::blocking::blocking(work).await;
        synced
            .map_err(|e| Error::new(Class::Internal, format!("syncing chunk files failed: {e}")))?
            .map_err(|e| storage_error(&e))
    }

    /// Drops a head that holds nothing and is not written.
    pub(super) async fn drop_head(&mut self, tenant: &TenantId, since: Millis) -> Result<bool, Error> {
        let Some(head) = self.config.heads.get(tenant) else { return Ok(true) };
        let index = {
            let head = head.read();
            if !head.is_empty() || self.config.heads.appended_at(tenant, Millis::MIN) >= since {
                return Ok(false);
            }
            head.forgotten_after(TimeRange::ALL)
        };
        let mut payload = Vec::new();
        entry::begin(&mut payload, Kind::HeadEnd, self.config.partition, tenant);
        entry::put_index(&mut payload, index);
        append_durably(&self.config.log, payload).await?;
        self.config.heads.remove(tenant, index);
        Ok(true)
    }

    /// Drops every head, whatever it holds, if this node holds the partition no more. Looked at here: who asked may have
    /// waited, and the node may be a replica again, with appends before this in the line.
    pub(super) async fn leave(&mut self) -> Result<(), Error> {
        let (me, partition) = (self.config.meta.node_id(), self.config.partition);
        let is_mine = || {
            let ring = self.config.meta.ring();
            let is_next = ring.next(partition).is_some_and(|next| next.contains(&me));
            ring.replicas(partition).is_none_or(|set| is_next || set.replicas.contains(&me))
        };
        for (tenant, head) in self.config.heads.all() {
            // Before each: forgetting takes a while, and this node may become a replica again meanwhile.
            if is_mine() {
                return Ok(());
            }
            let index = head.read().forgotten_after(TimeRange::ALL);
            let mut payload = Vec::new();
            entry::begin(&mut payload, Kind::HeadEnd, self.config.partition, &tenant);
            entry::put_index(&mut payload, index);
            append_durably(&self.config.log, payload).await?;
            self.config.heads.remove(&tenant, index);
        }
        Ok(())
    }
}
