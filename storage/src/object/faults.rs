//! A bucket that misbehaves when told to.
//!
//! Why: object stores answer late, fail, answer twice, list what is gone, and sometimes send half. Whoever speaks to a
//! [`super::Store`] is tested against that here, over the same client code; a directory's failures are those of
//! [`crate::disk::fault::FaultDisk`].
//!
//! A [`Rule`] says which requests it spoils and how. Every request is written down, so tests can count them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;

use super::Store;
use super::metrics::Op;
use super::options::Options;
use crate::disk::Disk;

/// What is done to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused and has no effect.
    Fail,
    /// It has its effect, and is told to have failed.
    FailAfter,
    /// It waits so long first, by the runtime's clock.
    Delay(Duration),
    /// Only so many bytes come; of what is written at once, only so many stay.
    Cut(usize),
    /// The lowest bit of this byte is turned, on its way from the store or to it.
    Flip(usize),
}

impl Fault {
    /// What is left of bytes.
    fn spoil(self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Cut(len) => bytes.truncate(len),
            Self::Flip(at) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1;
                }
            }
            Self::Fail | Self::FailAfter | Self::Delay(_) => {}
        }
        bytes
    }
}

/// Which requests are spoilt.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of this kind.
    pub op: Op,
    /// Whose key has this in it.
    pub key_has: String,
    /// So many of these pass first.
    pub skip: u64,
    /// Then so many are spoilt.
    pub times: u64,
    /// How.
    pub fault: Fault,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What kind.
    pub op: Op,
    /// Of which object.
    pub key: String,
    /// Of which bytes, for reads of a part.
    pub range: Option<Range<u64>>,
    /// How many bytes went or came.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Plan {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// What lists still show as it was, when they are stale.
    stale: Option<BTreeMap<Key, ObjectMeta>>,
}

/// What is ordered from a bucket, and what it saw. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    /// Adds a rule; the first that fits a request is used.
    pub fn add(&self, rule: Rule) {
        self.0.lock().rules.push(rule);
    }

    /// Spoils the next `times` requests of a kind whose key has `key_has` in it.
    pub fn next(&self, op: Op, key_has: &str, times: u64, fault: Fault) {
        self.add(Rule { op, key_has: key_has.to_owned(), skip: 0, times, fault });
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.0.lock().rules.clear();
    }

    /// The requests so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.0.lock().seen.clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.0.lock().seen.clear();
    }

    /// How many requests of a kind there were, and their bytes.
    #[must_use]
    pub fn count(&self, op: Op) -> (u64, u64) {
        let plan = self.0.lock();
        plan.seen.iter().filter(|seen| seen.op == op).fold((0, 0), |sum, seen| (sum.0 + 1, sum.1 + seen.bytes))
    }

    fn choose(&self, op: Op, key: &Key) -> Option<Fault> {
        let mut plan = self.0.lock();
        let fits = |rule: &&mut Rule| rule.op == op && rule.times > 0 && key.as_ref().contains(&rule.key_has);
        let rule = plan.rules.iter_mut().find(fits)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }

    fn note(&self, op: Op, key: &Key, range: Option<Range<u64>>, bytes: u64) {
        self.0.lock().seen.push(Seen { op, key: key.to_string(), range, bytes });
    }

    /// What a request meets before it has an effect.
    async fn before(&self, op: Op, key: &Key) -> Result<Option<Fault>> {
        let fault = self.choose(op, key);
        match fault {
            Some(Fault::Fail) => {
                self.note(op, key, None, 0);
                Err(refused(op, key))
            }
            Some(Fault::Delay(wait)) => {
                tokio::time::sleep(wait).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

fn refused(op: Op, key: &Key) -> Error {
    Error::Generic { store: "faults", source: format!("{} {key} was told to fail", op.word()).into() }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl FaultStore {
    /// Around another bucket.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// An empty bucket in memory, as a store; blocks that are put come from `disk`.
    #[must_use]
    pub fn memory(disk: Arc<dyn Disk>, options: &Options) -> (Store, Faults) {
        let bucket = Self::in_memory();
        (bucket.store(disk, options), bucket.faults)
    }

    /// An empty bucket in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()), Faults::default())
    }

    /// This bucket as a store; blocks that are put come from `disk`.
    #[must_use]
    pub fn store(&self, disk: Arc<dyn Disk>, options: &Options) -> Store {
        Store::over(Arc::new(self.clone()), "", disk, options)
    }

    /// Whether lists show the objects of this moment from now on, whatever comes and goes.
    ///
    /// # Errors
    /// The bucket cannot be listed.
    pub async fn freeze_lists(&self, frozen: bool) -> Result<()> {
        let now = match frozen {
            true => {
                let all: Vec<_> = self.inner.list(None).try_collect().await?;
                Some(all.into_iter().map(|meta| (meta.location.clone(), meta)).collect())
            }
            false => None,
        };
        self.faults.0.lock().stale = now;
        Ok(())
    }

    fn stale(&self, prefix: Option<&Key>) -> Option<Vec<ObjectMeta>> {
        let plan = self.faults.0.lock();
        let below = |key: &Key| prefix.is_none_or(|prefix| key.prefix_matches(prefix) && key != prefix);
        Some(plan.stale.as_ref()?.iter().filter(|(key, _)| below(key)).map(|(_, meta)| meta.clone()).collect())
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults of {}", self.inner)
    }
}

#[derive(Debug)]
struct FaultUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Faults,
    key: Key,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (faults, key, bytes) = (self.faults.clone(), self.key.clone(), data.content_length() as u64);
        let part = self.inner.put_part(data);
        Box::pin(async move {
            let fault = faults.before(Op::Put, &key).await?;
            faults.note(Op::Put, &key, None, bytes);
            part.await?;
            if fault == Some(Fault::FailAfter) { Err(refused(Op::Put, &key)) } else { Ok(()) }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.faults.before(Op::Put, &self.key).await?;
        self.faults.note(Op::Put, &self.key, None, 0);
        let done = self.inner.complete().await?;
        if fault == Some(Fault::FailAfter) { Err(refused(Op::Put, &self.key)) } else { Ok(done) }
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Key, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let fault = self.faults.before(Op::Put, location).await?;
        self.faults.note(Op::Put, location, None, payload.content_length() as u64);
        let payload = match fault {
            Some(fault @ (Fault::Cut(_) | Fault::Flip(_))) => {
                fault.spoil(payload.iter().flat_map(|piece| piece.iter().copied()).collect()).into()
            }
            _ => payload,
        };
        let done = self.inner.put_opts(location, payload, opts).await?;
        if fault == Some(Fault::FailAfter) { Err(refused(Op::Put, location)) } else { Ok(done) }
    }

    async fn put_multipart_opts(&self, location: &Key, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.faults.before(Op::Put, location).await?;
        self.faults.note(Op::Put, location, None, 0);
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultUpload { inner, faults: self.faults.clone(), key: location.clone() }))
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        let op = if options.head { Op::Head } else { Op::Get };
        let fault = self.faults.before(op, location).await?;
        let is_part = options.range.is_some();
        let found = self.inner.get_opts(location, options).await;
        let bytes = found.as_ref().map_or(0, |found| found.range.end - found.range.start);
        let range = found.as_ref().ok().filter(|_| is_part).map(|found| found.range.clone());
        self.faults.note(op, location, range, if op == Op::Head { 0 } else { bytes });
        let mut found = found?;
        if let Some(fault @ (Fault::Cut(_) | Fault::Flip(_))) = fault {
            let (range, meta) = (found.range.clone(), found.meta.clone());
            let bytes = fault.spoil(found.bytes().await?.to_vec());
            let payload =
                GetResultPayload::Stream(futures::stream::once(async move { Ok(Bytes::from(bytes)) }).boxed());
            let attributes = object_store::Attributes::default();
            found = GetResult { payload, meta, range, attributes, extensions: Default::default() };
        }
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    let fault = this.faults.before(Op::Delete, &location).await?;
                    this.faults.note(Op::Delete, &location, None, 0);
                    let one = futures::stream::once({
                        let location = location.clone();
                        async move { Ok(location) }
                    });
                    this.inner.delete_stream(one.boxed()).try_collect::<Vec<_>>().await?;
                    if fault == Some(Fault::FailAfter) { Err(refused(Op::Delete, &location)) } else { Ok(location) }
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        futures::stream::once(async move {
            let key = prefix.clone().unwrap_or_default();
            this.faults.before(Op::List, &key).await?;
            this.faults.note(Op::List, &key, None, 0);
            let all = match this.stale(prefix.as_ref()) {
                Some(all) => all,
                None => this.inner.list(prefix.as_ref()).try_collect().await?,
            };
            Ok::<_, Error>(futures::stream::iter(all.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let key = prefix.cloned().unwrap_or_default();
        self.faults.before(Op::List, &key).await?;
        self.faults.note(Op::List, &key, None, 0);
        let Some(all) = self.stale(prefix) else { return self.inner.list_with_delimiter(prefix).await };
        let (mut dirs, mut objects) = (BTreeSet::new(), Vec::new());
        for meta in all {
            let mut parts = meta.location.parts().skip(key.parts().count());
            match (parts.next(), parts.next()) {
                (Some(first), Some(_)) => {
                    dirs.insert(key.parts().chain(std::iter::once(first)).collect::<Key>());
                }
                _ => objects.push(meta.clone()),
            }
        }
        Ok(ListResult { common_prefixes: dirs.into_iter().collect(), objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
