//! Where blocks live for years: a directory of this machine, or a bucket of S3, GCS or Azure.
//!
//! Why one type for both: the rest of the store must not know which it is. The differences that matter are kept in
//! here: a bucket has no directories and lists late, a directory has no atomic upload and must be synced.
//!
//! ```text
//! <prefix>/<tenant>/<ulid>/index            key, below the root or the bucket's prefix
//! <prefix>/<tenant>/<ulid>/chunks/000001
//! <prefix>/<tenant>/<ulid>/meta.json        written last, removed first: a block with it is whole
//! ```
//!
//! Map: [`options`] where and how · `local` a directory · `remote` a bucket · [`metrics`] what it costs · [`faults`] a
//! bucket in memory that fails when told to, for tests.
//!
//! What it promises: when [`Store::put_block`] has returned, the block is durable as far as the place can promise that.
//! Objects are never changed after that. All requests are limited in number and in time, and sent again after a wait
//! when the store is busy. An upload that was given up may leave parts in a bucket, which its lifecycle rule removes.

mod local;
mod remote;

pub mod faults;
pub mod metrics;
pub mod options;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_model::block::{BlockFile, BlockId};
use engram_model::tenant::TenantId;
use engram_model::time::Stopwatch;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::{MultipartUpload, ObjectStore};
use tokio::sync::Semaphore;

use crate::Error;
use crate::codec::crc32c_append;
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use local::{Local, each_piece};
use metrics::{Op, StoreMetrics};
use options::{Options, Place};
use remote::Remote;

/// The file that makes a block whole.
const META: &str = "meta.json";
/// Largest object that is read whole.
const WHOLE_BYTES_MAX: u64 = 64 << 20;
/// Parts of one file in flight.
const PARTS_IN_FLIGHT: usize = 4;
/// Most parts of an object, a little below what S3 takes.
const PARTS_MAX: u64 = 9_000;
/// Objects of one block that are removed at once.
const REMOVES_IN_FLIGHT: usize = 8;

/// A place for blocks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: Backend,
    /// Where blocks come from that are put.
    disk: Arc<dyn Disk>,
    turns: Arc<Semaphore>,
    /// Longest one request may take, with all that is sent again.
    deadline: Duration,
    part_bytes: u64,
    metrics: Arc<StoreMetrics>,
}

#[derive(Clone, Debug)]
enum Backend {
    Local(Local),
    Remote(Remote),
}

/// The key of a file of a block.
#[must_use]
pub fn block_key(tenant: &TenantId, id: BlockId, file: &str) -> String {
    format!("{tenant}/{id}/{file}")
}

/// The key of a file in a directory.
fn below(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

impl Store {
    /// The place `options` choose; the directory `otherwise` when they choose none. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Misuse`] for options that contradict each other, [`Error::Io`].
    pub fn open(options: &Options, otherwise: &Path) -> Result<Self, Error> {
        let place = options.check(otherwise.to_owned()).map_err(|what| Error::Misuse { what })?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let backend = match place {
            Place::Local(root) => Backend::Local(Local::open(disk.clone(), &root)?),
            Place::Bucket { provider, bucket, prefix } => {
                Backend::Remote(Remote::open(provider, &bucket, &prefix, options)?)
            }
        };
        Ok(Self::of(backend, disk, options))
    }

    /// A directory of `disk`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn local(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, Error> {
        Ok(Self::of(Backend::Local(Local::open(disk.clone(), root)?), disk, &Options::default()))
    }

    /// Any bucket the crate speaks to; its keys begin with `prefix`, which has no `/` at its ends. Blocks that are put
    /// come from `disk`.
    #[must_use]
    pub fn over(inner: Arc<dyn ObjectStore>, prefix: &str, disk: Arc<dyn Disk>, options: &Options) -> Self {
        Self::of(Backend::Remote(Remote::over(inner, prefix)), disk, options)
    }

    fn of(backend: Backend, disk: Arc<dyn Disk>, options: &Options) -> Self {
        Self(Arc::new(Inner {
            backend,
            disk,
            turns: Arc::new(Semaphore::new(options.requests_max.clamp(1, Semaphore::MAX_PERMITS))),
            deadline: options.timeout.saturating_add(options.retry_timeout),
            part_bytes: options.part_bytes,
            metrics: Arc::default(),
        }))
    }

    /// The same store for another node: blocks that are put come from `disk`, requests are counted together.
    #[must_use]
    pub fn with_disk(&self, disk: Arc<dyn Disk>) -> Self {
        let Inner { backend, turns, deadline, part_bytes, metrics, .. } = &*self.0;
        let (backend, turns, metrics) = (backend.clone(), turns.clone(), metrics.clone());
        Self(Arc::new(Inner { backend, disk, turns, deadline: *deadline, part_bytes: *part_bytes, metrics }))
    }

    /// What its requests cost so far.
    #[must_use]
    pub fn metrics(&self) -> &Arc<StoreMetrics> {
        &self.0.metrics
    }

    /// The directory it is, when it is one: what is in it may be read without asking the store.
    #[must_use]
    pub fn local_root(&self) -> Option<&Path> {
        match &self.0.backend {
            Backend::Local(local) => Some(&local.root),
            Backend::Remote(_) => None,
        }
    }

    /// The directory of a block, when the store is one.
    #[must_use]
    pub fn local_block(&self, tenant: &TenantId, id: BlockId) -> Option<PathBuf> {
        self.local_root().map(|root| root.join(tenant.as_str()).join(id.to_string()))
    }

    /// One request, in its turn, within its time, counted.
    async fn request<T>(
        &self,
        (op, key): (Op, &str),
        bytes: impl Fn(&T) -> u64,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let watch = Stopwatch::start();
        let done = tokio::time::timeout(self.0.deadline, async {
            let _turn = self.0.turns.acquire().await.map_err(|_| Error::Closed { what: "the object store" })?;
            work.await
        });
        let done = done.await.unwrap_or_else(|_| {
            Err(Error::Remote {
                act: op.word(),
                key: key.to_owned(),
                kind: crate::error::RemoteKind::Timeout,
                why: format!("no answer within {:?}", self.0.deadline).into(),
            })
        });
        let is_error = done.as_ref().is_err_and(|error| !error.is_not_found());
        self.0.metrics.count(op, watch.elapsed(), done.as_ref().map_or(0, bytes), is_error);
        done
    }

    /// Uploads what lies in `dir` as a block: all files, `meta.json` last. Returns them sorted by name, with length and
    /// checksum. A block that is there already with the very same `meta.json` is taken for this one, so an upload may be
    /// tried again; `dir` stays as it is.
    ///
    /// # Errors
    /// [`Error::Misuse`] when `dir` holds no whole block, or another block of this name is there; those of the disk and
    /// of the store. A block that was not there before has no `meta.json` then.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn put_block(&self, dir: &Path, tenant: &TenantId, id: BlockId) -> Result<Vec<BlockFile>, Error> {
        let (dir, disk, prefix) = (dir.to_owned(), self.0.disk.clone(), format!("{tenant}/{id}"));
        let source = Local { disk, root: dir.clone() };
        let (names, meta) = blocking({
            let source = source.clone();
            move || {
                let names: Vec<String> = source.files("")?.into_iter().map(|(name, _)| name).collect();
                let has = |name: &str| names.iter().any(|have| have == name);
                if !has("index") || !has(META) {
                    return Err(Error::Misuse { what: format!("{} holds no whole block", source.root.display()) });
                }
                let meta = source.get(META, 0, WHOLE_BYTES_MAX)?;
                Ok((names, meta))
            }
        })
        .await?;
        let is_there = match self.get(&below(&prefix, META)).await? {
            Some(have) if have == meta => true,
            Some(_) => return Err(Error::Misuse { what: format!("another block is there as {prefix}") }),
            None => false,
        };
        if let Backend::Local(local) = &self.0.backend {
            let (local, tenant) = (local.clone(), tenant.to_string());
            blocking(move || local.make_room_for_tools(&tenant)).await?;
        }
        let mut files = Vec::with_capacity(names.len());
        let names = names.iter().map(String::as_str);
        for name in names.filter(|name| *name != META).chain(std::iter::once(META)) {
            files.push(self.put_file(&source, name, &prefix, is_there).await?);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    async fn put_file(&self, source: &Local, name: &str, prefix: &str, is_there: bool) -> Result<BlockFile, Error> {
        let (key, from) = (below(prefix, name), source.path(name)?);
        let (bytes, crc32c) = match &self.0.backend {
            _ if is_there => {
                let source = source.clone();
                blocking(move || sum(&*source.disk, &from)).await?
            }
            Backend::Local(local) => {
                let (local, to) = (local.clone(), key.clone());
                let work = blocking(move || {
                    local.take_in(&from, &to)?;
                    local.sync_parent(&to)?;
                    sum(&*local.disk, &local.path(&to)?)
                });
                self.request((Op::Put, &key), |(bytes, _)| *bytes, work).await?
            }
            Backend::Remote(remote) => self.upload(remote, source, &from, &key).await?,
        };
        Ok(BlockFile { name: name.to_owned(), bytes, crc32c })
    }

    /// Sends a file; returns its length and checksum.
    async fn upload(&self, remote: &Remote, source: &Local, from: &Path, key: &str) -> Result<(u64, u32), Error> {
        let (disk, path) = (source.disk.clone(), from.to_owned());
        let len = blocking(move || disk.open(&path)?.len()).await?;
        let part_bytes = self.0.part_bytes.max(len.div_ceil(PARTS_MAX));
        let mut parts = Parts { disk: source.disk.clone(), path: from.to_owned(), at: 0, len, crc: 0, part_bytes };
        if len <= part_bytes {
            let bytes = parts.next().await?.unwrap_or_default();
            let size = bytes.len() as u64;
            self.request((Op::Put, key), |_| size, remote.put(key, bytes, true)).await?;
            return Ok((size, parts.crc));
        }
        let mut upload = self.request((Op::Put, key), |_| 0, remote.multipart(key)).await?;
        let sent = self.send_parts(&mut *upload, &mut parts, key).await;
        if let Err(error) = sent {
            // Whether it can be given up or not: the first failure is the one to tell.
            let _left_behind = tokio::time::timeout(self.0.deadline, upload.abort()).await;
            return Err(error);
        }
        let done = async { upload.complete().await.map_err(|e| remote::failed(Op::Put, key, &e)) };
        self.request((Op::Put, key), |_| 0, done).await?;
        Ok((len, parts.crc))
    }

    async fn send_parts(&self, upload: &mut dyn MultipartUpload, parts: &mut Parts, key: &str) -> Result<(), Error> {
        let mut sending = FuturesUnordered::new();
        while let Some(bytes) = parts.next().await? {
            if sending.len() >= PARTS_IN_FLIGHT
                && let Some(sent) = sending.next().await
            {
                let () = sent?;
            }
            let size = bytes.len() as u64;
            let part = upload.put_part(bytes.into());
            let part = async move { part.await.map_err(|e| remote::failed(Op::Put, key, &e)) };
            sending.push(self.request((Op::Put, key), move |()| size, part));
        }
        while let Some(sent) = sending.next().await {
            sent?;
        }
        Ok(())
    }

    /// The bytes `at..at + len` of an object.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the object ends before, and those of the store.
    pub async fn get_range(&self, key: &str, at: u64, len: u64) -> Result<Bytes, Error> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let work = async {
            let bytes = match &self.0.backend {
                Backend::Local(local) => {
                    let (local, key) = (local.clone(), key.to_owned());
                    blocking(move || local.get(&key, at, len)).await?
                }
                Backend::Remote(remote) => remote.get(key, Some((at, len))).await?.bytes(key, len).await?,
            };
            if bytes.len() as u64 != len {
                let what = format!("{len} bytes were asked for, {} came", bytes.len());
                return Err(Error::corrupt(Path::new(key), at, what));
            }
            Ok(bytes)
        };
        self.request((Op::Get, key), |bytes: &Bytes| bytes.len() as u64, work).await
    }

    /// A small object as a whole; nothing when it is not there.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above 64 MiB, [`Error::Corrupt`] when it ends before its length, and those of the store.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let work = async {
            match &self.0.backend {
                Backend::Local(local) => {
                    let (local, own) = (local.clone(), key.to_owned());
                    blocking(move || match local.size(&own)? {
                        len if len > WHOLE_BYTES_MAX => {
                            Err(Error::TooLarge { what: "an object", len, max: WHOLE_BYTES_MAX })
                        }
                        len => local.get(&own, 0, len),
                    })
                    .await
                }
                Backend::Remote(remote) => {
                    let body = remote.get(key, None).await?;
                    let len = body.len;
                    let bytes = body.bytes(key, WHOLE_BYTES_MAX).await?;
                    if bytes.len() as u64 != len {
                        return Err(Error::corrupt(Path::new(key), bytes.len() as u64, "the object ends early"));
                    }
                    Ok(bytes)
                }
            }
        };
        local::found(self.request((Op::Get, key), |bytes: &Bytes| bytes.len() as u64, work).await)
    }

    /// How long an object is; nothing when it is not there.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        let work = async {
            match &self.0.backend {
                Backend::Local(local) => {
                    let (local, key) = (local.clone(), key.to_owned());
                    blocking(move || local.size(&key)).await
                }
                Backend::Remote(remote) => remote.size(key).await,
            }
        };
        local::found(self.request((Op::Head, key), |_| 0, work).await)
    }

    /// Writes a small object, over one that is there.
    ///
    /// # Errors
    /// Those of the store; whether it was written is unknown then.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        self.put_small(key, bytes, true).await.map(|_| ())
    }

    /// Writes a small object unless there is one; says whether it did. Of many who try at once, one is told yes. One
    /// whose answer got lost and who tries again may be told no.
    ///
    /// # Errors
    /// Those of the store; whether it was written is unknown then.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<bool, Error> {
        self.put_small(key, bytes, false).await
    }

    async fn put_small(&self, key: &str, bytes: Bytes, over: bool) -> Result<bool, Error> {
        let size = bytes.len() as u64;
        let work = async {
            match &self.0.backend {
                Backend::Local(local) => {
                    let (local, key) = (local.clone(), key.to_owned());
                    blocking(move || local.put(&key, &bytes, over)).await
                }
                Backend::Remote(remote) => remote.put(key, bytes, over).await,
            }
        };
        self.request((Op::Put, key), |_| size, work).await
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        let work = async {
            match &self.0.backend {
                Backend::Local(local) => {
                    let (local, key) = (local.clone(), key.to_owned());
                    blocking(move || local.remove(&key)).await
                }
                Backend::Remote(remote) => remote.remove(key).await,
            }
        };
        self.request((Op::Delete, key), |()| 0, work).await
    }

    /// Names one level below a key that have something below them, sorted; the empty key is the root.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_dirs(&self, key: &str) -> Result<Vec<String>, Error> {
        let work = async {
            match &self.0.backend {
                Backend::Local(local) => {
                    let (local, key) = (local.clone(), key.to_owned());
                    blocking(move || local.dirs(&key)).await
                }
                Backend::Remote(remote) => remote.dirs(key).await,
            }
        };
        self.request((Op::List, key), |_| 0, work).await
    }

    /// Every object below a key by its name from there on, with its length, sorted by name.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_files(&self, key: &str) -> Result<Vec<(String, u64)>, Error> {
        let work = async {
            match &self.0.backend {
                Backend::Local(local) => {
                    let (local, key) = (local.clone(), key.to_owned());
                    blocking(move || local.files(&key)).await
                }
                Backend::Remote(remote) => remote.files(key).await,
            }
        };
        self.request((Op::List, key), |_| 0, work).await
    }

    /// Tenants that have something, sorted. What is no tenant's name is left out.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_tenants(&self) -> Result<Vec<TenantId>, Error> {
        Ok(self.list_dirs("").await?.iter().filter_map(|name| TenantId::new(name).ok()).collect())
    }

    /// Blocks of a tenant of which there is anything, sorted: those without `meta.json` too.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_blocks(&self, tenant: &TenantId) -> Result<Vec<BlockId>, Error> {
        Ok(self.list_dirs(tenant.as_str()).await?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The objects of a block with their lengths.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn block_files(&self, tenant: &TenantId, id: BlockId) -> Result<Vec<(String, u64)>, Error> {
        self.list_files(&format!("{tenant}/{id}")).await
    }

    /// Removes a block, `meta.json` first. One that is not there, or only in part, is no error.
    ///
    /// # Errors
    /// Those of the store: try again.
    pub async fn delete_block(&self, tenant: &TenantId, id: BlockId) -> Result<(), Error> {
        let dir = format!("{tenant}/{id}");
        self.remove(&below(&dir, META)).await?;
        if let Backend::Local(local) = &self.0.backend {
            let (local, key) = (local.clone(), dir.clone());
            return self.request((Op::Delete, &dir), |()| 0, blocking(move || local.remove_all(&key))).await;
        }
        let keys: Vec<_> = self.list_files(&dir).await?.into_iter().map(|(name, _)| below(&dir, &name)).collect();
        let mut removing = futures::stream::iter(keys)
            .map(|key| async move { self.remove(&key).await })
            .buffer_unordered(REMOVES_IN_FLIGHT);
        while let Some(removed) = removing.next().await {
            removed?;
        }
        Ok(())
    }
}

/// A file that is sent in parts.
struct Parts {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    at: u64,
    len: u64,
    crc: u32,
    part_bytes: u64,
}

impl Parts {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let len = self.part_bytes.min(self.len - self.at);
        if len == 0 {
            return Ok(None);
        }
        let (disk, path, at, crc) = (self.disk.clone(), self.path.clone(), self.at, self.crc);
        let (bytes, crc) = blocking(move || {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            if disk.open(&path)?.read_at(at, &mut bytes)? != bytes.len() {
                return Err(Error::corrupt(&path, at, "the file has become shorter"));
            }
            let crc = crc32c_append(crc, &bytes);
            Ok((Bytes::from(bytes), crc))
        })
        .await?;
        (self.at, self.crc) = (at + len, crc);
        Ok(Some(bytes))
    }
}

/// Length and checksum of a file.
fn sum(disk: &dyn Disk, path: &Path) -> Result<(u64, u32), Error> {
    let mut crc = 0;
    let len = each_piece(&*disk.open(path)?, |_, piece| {
        crc = crc32c_append(crc, piece);
        Ok(())
    })?;
    Ok((len, crc))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let failed = |e: tokio::task::JoinError| Error::Misuse { what: format!("work on the disk failed: {e}") };
    crate::blocking::blocking(work).await.map_err(failed)?
}
