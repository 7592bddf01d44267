//! An object store of our own: it speaks as much of S3 as nodes do, and is as bad as it is told to be.
//!
//! Why not a proxy before a real one: half of what goes wrong with such stores happens *between* doing and answering: an
//! object is there and nobody is told, a list is of a minute ago, a node dies on the byte before the last. Who holds the
//! objects and the connections can do all of it, to the request, and needs no other program.
//!
//! - [`mod@self`]: the server, its moods, and traps: what becomes of a node at a certain request
//! - `http`: requests and answers as bytes
//! - `shelf`: the objects
//!
//! It keeps everything in memory, believes every signature, and knows one bucket.
//!
//! Source: Amazon S3 API Reference (PutObject, GetObject, HeadObject, ListObjectsV2, DeleteObject, DeleteObjects,
//! CreateMultipartUpload, UploadPart, CompleteMultipartUpload, AbortMultipartUpload).

mod http;
mod shelf;

use super::bucket::Bucket;
use super::origin::{Caller, Origins};
use super::proxy::Pids;
use crate::error::Error;
use http::{Answer, Request};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal};
use shelf::Shelf;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// The bucket.
pub(super) const BUCKET: &str = "chaos";
/// Springs of a trap that are remembered.
const SPRINGS_MAX: usize = 16;
/// How the object is called that says what a block is; it is put last.
const SAYS_WHAT: &str = "/meta.json";

/// How the store is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mood {
    /// It ends every connection at once.
    pub(crate) down: bool,
    /// It takes requests and answers none.
    pub(crate) silent: bool,
    /// Of a hundred requests so many are refused: 503 and "slow down".
    pub(crate) refused: u32,
    /// Every answer is late by so many milliseconds.
    pub(crate) late_ms: u64,
    /// Of a hundred changes so many are made and not answered.
    pub(crate) unanswered: u32,
    /// Of a hundred uploads so many end half way, and leave nothing.
    pub(crate) halves: u32,
    /// Lists show what was there when this was set.
    pub(crate) stale: bool,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Delete,
    List,
}

impl Mood {
    /// What can be met in it, each by its name.
    pub(crate) fn kinds(self) -> Vec<&'static str> {
        let all = [
            (self.down, "down"),
            (self.silent, "silent"),
            (self.refused > 0, "refused"),
            (self.late_ms > 0, "late"),
            (self.unanswered > 0, "unanswered"),
            (self.halves > 0, "half"),
            (self.stale, "old list"),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
    }
}

/// What becomes of whoever makes a certain request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Kill,
    Pause,
}

/// Waits for a request of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    pub(crate) verb: Verb,
    /// How the object's name ends.
    pub(crate) ends: &'static str,
    /// Whether it is done first; else it never is.
    pub(crate) after: bool,
    /// Only where it says what a block is that was made of others.
    pub(crate) merged: bool,
    pub(crate) deed: Deed,
}

/// The store; it ends with this.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
    mood: watch::Sender<Mood>,
    sprung: mpsc::Receiver<usize>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Inner {
    shelf: Mutex<Shelf>,
    trap: Mutex<Option<Trap>>,
    /// What the mood did to requests, and how often.
    met: Mutex<BTreeMap<&'static str, u64>>,
    /// The sources of the block whose maker is in the trap, and how often another was made of any of them since.
    watched: Mutex<(Vec<String>, usize)>,
    origins: Arc<Origins>,
    springs: mpsc::Sender<usize>,
}

impl Store {
    /// Listens at `address`.
    ///
    /// # Errors
    /// It is taken.
    pub(super) async fn start(address: SocketAddr, pids: Pids, seed: u64) -> Result<Self, Error> {
        let (listener, origins) = (TcpListener::bind(address).await?, Arc::new(Origins::new(pids)));
        let (springs, sprung) = mpsc::channel(SPRINGS_MAX);
        let (shelf, trap, met, watched) = (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        let inner = Arc::new(Inner { shelf, trap, met, watched, origins, springs });
        let (mood, moods) = watch::channel(Mood::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, inner.clone(), moods, StdRng::seed_from_u64(seed)));
        Ok(Self { address, inner, mood, sprung, _tasks: tasks })
    }

    /// What nodes are told about it.
    pub(super) fn options(&self) -> Vec<String> {
        let endpoint = format!("http://{}", self.address);
        let url = format!("s3://{BUCKET}");
        let pairs = [
            ("url", url.as_str()),
            ("endpoint", &endpoint),
            ("access-key", "chaos"),
            ("secret-key", "chaos"),
            ("path-style", "true"),
            ("timeout", "3s"),
            ("connect-timeout", "1s"),
            ("retry-timeout", "5s"),
            ("backoff-max", "1s"),
        ];
        pairs.iter().map(|(name, value)| format!("--object-store-{name}={value}")).collect()
    }

    /// Changes how it is.
    pub(crate) fn set(&self, mood: Mood) {
        let mut shelf = self.inner.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.freeze(mood.stale);
        drop(shelf);
        self.inner.met.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.mood.send_replace(mood);
    }

    /// What the mood did to requests since it was set, and how often.
    pub(crate) fn met(&self) -> BTreeMap<&'static str, u64> {
        self.inner.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often a block was made of what the one that was caught was making another of.
    pub(crate) fn made_again(&self) -> usize {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Lays a trap, in place of any other.
    pub(crate) fn lay(&mut self, trap: Trap) {
        while self.sprung.try_recv().is_ok() {}
        *self.inner.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(trap);
    }

    /// Waits until somebody is in the trap; takes it away when nobody is in time.
    pub(crate) async fn caught(&mut self, within: Duration) -> Option<usize> {
        let node = tokio::time::timeout(within, self.sprung.recv()).await.ok().flatten();
        *self.inner.trap.lock().unwrap_or_else(PoisonError::into_inner) = None;
        node
    }

    /// How many objects there are.
    pub(crate) fn objects(&self) -> usize {
        self.inner.shelf.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What is in it now and later, for who looks from outside.
    pub(super) fn bucket(&self) -> Bucket {
        Bucket::Ours(Objects(self.inner.clone()))
    }
}

/// The objects of a store of ours, past all its moods.
#[derive(Clone, Debug)]
pub(crate) struct Objects(Arc<Inner>);

impl Objects {
    /// How long an object is; `None`: it is not there.
    pub(super) fn bytes(&self, key: &str) -> Option<u64> {
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner).bytes(key)
    }

    /// The names that follow `prefix`, up to the next slash.
    pub(super) fn below(&self, prefix: &str) -> BTreeSet<String> {
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner).below(prefix)
    }
}

async fn accept(listener: TcpListener, inner: Arc<Inner>, moods: watch::Receiver<Mood>, mut chance: StdRng) {
    let mut lines = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, from)) = accepted else { continue };
                let Ok(at) = stream.local_addr() else { continue };
                let caller = Caller::new(inner.origins.clone(), from, at);
                let line = Line { inner: inner.clone(), moods: moods.clone(), caller };
                lines.spawn(line.serve(stream, StdRng::seed_from_u64(chance.random())));
            }
            Some(_) = lines.join_next() => {}
        }
    }
}

/// One connection.
struct Line {
    inner: Arc<Inner>,
    moods: watch::Receiver<Mood>,
    caller: Caller,
}

impl Line {
    async fn serve(mut self, stream: TcpStream, mut chance: StdRng) {
        let mut stream = http::Stream::new(stream);
        // Ends where the other side ends, or says what is no request.
        while let Ok(Some(request)) = stream.request().await {
            let Some(answer) = self.answer(&request, &mut chance).await else { return };
            if stream.out().write_all(&answer.bytes(&request.method)).await.is_err() {
                return;
            }
        }
    }

    /// `None`: the connection ends without a word.
    async fn answer(&mut self, request: &Request, chance: &mut StdRng) -> Option<Answer> {
        let mood = *self.moods.borrow_and_update();
        let met = |kind| *self.inner.met.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_insert(0) += 1;
        if mood.silent {
            met("silent");
            // Until somebody loses patience, or the mood is another.
            self.moods.changed().await.ok();
            return None;
        }
        if mood.late_ms > 0 {
            met("late");
            tokio::time::sleep(Duration::from_millis(mood.late_ms)).await;
        }
        let mut hit = |percent: u32| percent > 0 && chance.random_range(0..100) < percent;
        let verb = request.verb();
        let changes = matches!(verb, Verb::Put | Verb::Delete);
        if mood.down {
            met("down");
            return None;
        }
        if verb == Verb::Put && hit(mood.halves) {
            met("half");
            return None;
        }
        if hit(mood.refused) {
            met("refused");
            return Some(Answer::error(503, "SlowDown"));
        }
        let trap = self.trap(request);
        if let Some(trap) = trap.filter(|trap| !trap.after) {
            self.spring(trap).await;
            return None;
        }
        let (answer, old) = {
            let mut shelf = self.inner.shelf.lock().unwrap_or_else(PoisonError::into_inner);
            (shelf.answer(request), shelf.is_old())
        };
        if verb == Verb::List && old {
            met("old list");
        }
        self.watch(request, trap.is_some());
        if let Some(trap) = trap {
            self.spring(trap).await;
            return None;
        }
        if changes && hit(mood.unanswered) {
            met("unanswered");
            return None;
        }
        Some(answer)
    }

    /// Remembers of what the block is made whose maker is caught, and counts others that are made of the same.
    fn watch(&self, request: &Request, caught: bool) {
        let Some(sources) = merged_of(request) else { return };
        let mut watched = self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if caught {
            *watched = (sources, 0);
        } else if sources.iter().any(|one| watched.0.contains(one)) {
            watched.1 += 1;
        }
    }

    /// The trap, if this request is the one it waits for; it is taken away with that.
    fn trap(&self, request: &Request) -> Option<Trap> {
        let mut laid = self.inner.trap.lock().unwrap_or_else(PoisonError::into_inner);
        let merged = || merged_of(request).is_some();
        let of =
            |trap: &&mut Trap| trap.verb == request.verb() && request.names(trap.ends) && (!trap.merged || merged());
        laid.as_mut().filter(of).map(|trap| *trap)?;
        laid.take()
    }

    /// Does to the caller what the trap says. When nobody knows who that is the trap lies there again: the table of
    /// sockets changes while it is read.
    async fn spring(&self, trap: Trap) {
        let node = self.caller.node().await;
        let pid = node.and_then(|node| self.inner.origins.pid(node)).and_then(|pid| i32::try_from(pid).ok());
        let (Some(node), Some(pid)) = (node, pid.and_then(Pid::from_raw)) else {
            *self.inner.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(trap);
            return;
        };
        let signal = if trap.deed == Deed::Kill { Signal::KILL } else { Signal::STOP };
        // One that is gone already is where it should be.
        let _gone = rustix::process::kill_process(pid, signal);
        // Nobody waits any more only when the run is over.
        let _over = self.inner.springs.send(node).await;
    }
}

/// The blocks that one is made of which this request puts; `None`: it puts none that was made of others.
fn merged_of(request: &Request) -> Option<Vec<String>> {
    if request.verb() != Verb::Put || !request.key.ends_with(SAYS_WHAT) {
        return None;
    }
    let says: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
    let sources: Vec<_> = says["compaction"]["sources"].as_array()?.iter().filter_map(|id| id.as_str()).collect();
    (sources.len() > 1).then(|| sources.into_iter().map(ToOwned::to_owned).collect())
}

#[cfg(test)]
mod tests {
    //! Goal: the store does what its words are, and in each mood what that says. Method: HTTP by a client of another make.

    use super::*;

    async fn store() -> (Store, String, reqwest::Client) {
        // As the program does; a second time it is there already.
        let _there = rustls::crypto::ring::default_provider().install_default();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let store = Store::start(free, Pids::default(), 1).await.unwrap();
        let root = format!("http://{free}/{BUCKET}");
        (store, root, reqwest::Client::builder().timeout(Duration::from_millis(500)).build().unwrap())
    }

    #[tokio::test]
    async fn objects_are_put_listed_read_in_parts_and_deleted() {
        let (store, root, http) = store().await;
        for name in ["t/a/index", "t/a/chunks/1", "t/b/index", "u/c"] {
            let put = http.put(format!("{root}/{name}")).body(format!("bytes of {name}")).send().await.unwrap();
            assert!(put.status().is_success() && put.headers().contains_key("etag"));
        }
        assert_eq!(store.objects(), 4);
        let part = http.get(format!("{root}/t/a/index")).header("range", "bytes=9-11").send().await.unwrap();
        assert_eq!(part.status().as_u16(), 206);
        assert_eq!(part.headers()["content-range"], "bytes 9-11/18");
        assert_eq!(part.text().await.unwrap(), "t/a");
        let list = |query: &str| http.get(format!("{root}?list-type=2&{query}")).send();
        let text = list("prefix=t/&delimiter=/").await.unwrap().text().await.unwrap();
        assert!(text.contains("<Prefix>t/a/</Prefix>") && text.contains("<Prefix>t/b/</Prefix>"), "{text}");
        let text = list("prefix=t%2Fa%2F").await.unwrap().text().await.unwrap();
        assert!(text.contains("<Key>t/a/chunks/1</Key>") && !text.contains("t/b"), "{text}");
        let again = http.put(format!("{root}/u/c")).header("if-none-match", "*").body("x").send().await.unwrap();
        assert_eq!(again.status().as_u16(), 412);
        let body = "<Delete><Object><Key>u/c</Key></Object></Delete>";
        assert!(http.post(format!("{root}?delete")).body(body).send().await.unwrap().status().is_success());
        assert_eq!(http.head(format!("{root}/u/c")).send().await.unwrap().status().as_u16(), 404);
    }

    #[tokio::test]
    async fn a_large_object_comes_in_parts() {
        let (store, root, http) = store().await;
        let made = http.post(format!("{root}/big?uploads")).send().await.unwrap().text().await.unwrap();
        let id = made.split("<UploadId>").nth(1).and_then(|rest| rest.split('<').next()).unwrap().to_owned();
        for (part, text) in [(2, "world"), (1, "hello ")] {
            let url = format!("{root}/big?partNumber={part}&uploadId={id}");
            assert!(http.put(url).body(text).send().await.unwrap().status().is_success());
        }
        assert_eq!(store.objects(), 0, "not before it is complete");
        let done = http.post(format!("{root}/big?uploadId={id}")).body("<x/>").send().await.unwrap();
        assert!(done.status().is_success());
        let whole = http.get(format!("{root}/big")).send().await.unwrap().text().await.unwrap();
        assert_eq!(whole, "hello world");
    }

    #[tokio::test]
    async fn moods_are_felt() {
        let (store, root, http) = store().await;
        let put = |name: &str| http.put(format!("{root}/{name}")).body("x").send();
        put("before").await.unwrap();
        store.set(Mood { down: true, ..Mood::default() });
        assert!(put("a").await.is_err());
        store.set(Mood { silent: true, ..Mood::default() });
        assert!(put("b").await.is_err());
        store.set(Mood { refused: 100, ..Mood::default() });
        assert_eq!(put("c").await.unwrap().status().as_u16(), 503);
        store.set(Mood { halves: 100, ..Mood::default() });
        assert!(put("d").await.is_err());
        assert_eq!(store.objects(), 1);
        store.set(Mood { unanswered: 100, ..Mood::default() });
        assert!(put("e").await.is_err());
        assert!(store.objects() == 2, "it is there and nobody was told");
        store.set(Mood { stale: true, ..Mood::default() });
        put("f").await.unwrap();
        let list = http.get(format!("{root}?list-type=2&prefix=")).send().await.unwrap().text().await.unwrap();
        assert!(list.contains("<Key>e</Key>") && !list.contains("<Key>f</Key>"), "{list}");
        assert_eq!(store.met(), BTreeMap::from([("old list", 1)]), "what was met before is forgotten");
        assert_eq!(Mood { stale: true, halves: 1, ..Mood::default() }.kinds(), ["half", "old list"]);
        assert_eq!((store.bucket().bytes("f"), store.bucket().bytes("d")), (Some(1), None));
    }

    #[tokio::test]
    async fn who_makes_a_block_of_the_same_is_counted() {
        let (store, root, http) = store().await;
        let put = |block: &str, sources: &str| {
            let body = format!("{{\"compaction\":{{\"level\":2,\"sources\":[{sources}]}}}}");
            http.put(format!("{root}/t/{block}/meta.json")).body(body).send()
        };
        let trap = Trap { verb: Verb::Put, ends: "meta.json", after: true, merged: true, deed: Deed::Pause };
        *store.inner.trap.lock().unwrap() = Some(trap);
        assert!(put("cut", "\"cut\"").await.is_ok(), "a block of nothing else is not waited for");
        assert!(put("ab", "\"a\",\"b\"").await.is_err());
        // Nobody knows who that was, so the trap lies there again.
        *store.inner.trap.lock().unwrap() = None;
        put("cd", "\"c\",\"d\"").await.unwrap();
        assert_eq!(store.made_again(), 0);
        put("bc", "\"b\",\"c\"").await.unwrap();
        assert_eq!(store.made_again(), 1);
    }
}
