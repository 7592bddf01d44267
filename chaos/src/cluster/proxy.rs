//! A proxy before each node: the network of the cluster, in our hands.
//!
//! Each node listens on one port and tells others another, its proxy's; so every byte between two nodes passes here,
//! and each direction of each pair has a [`Rule`] of its own. No privileges are needed and no packet filter is touched.
//!
//! ```text
//! node 0 ──connects──▶ proxy of 1 ──▶ node 1      bytes right: rule (0, 1); bytes left: rule (1, 0)
//! ```
//!
//! What it cannot do: lose or turn round single packets. TCP would hide that from the nodes anyway; what they see of a
//! bad network is bytes that are late and connections that break, and these it makes.

use super::links::{CLIENTS, Rule, Rules};
use super::origin::{Caller, Origins};
use crate::error::Error;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The largest piece that is carried at once.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces on the way in one direction of a connection.
const ON_THE_WAY_MAX: usize = 256;

/// Who runs under which process id; nodes come and go.
pub(crate) type Pids = Arc<Mutex<Vec<Option<u32>>>>;

/// The proxy of one node; ends with this.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// What a proxy is made of.
#[derive(Debug)]
pub(crate) struct Between {
    /// The node it stands before, and where that listens.
    pub(crate) to: usize,
    pub(crate) target: SocketAddr,
    /// The processes of the nodes; none: who comes here is a client.
    pub(crate) pids: Option<Pids>,
    pub(crate) rules: watch::Receiver<Rules>,
    pub(crate) seed: u64,
}

impl Proxy {
    /// Listens at `address`, carries to the node.
    ///
    /// # Errors
    /// The address is taken.
    pub(crate) async fn start(address: SocketAddr, between: Between) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, between));
        Ok(Self { address, _tasks: tasks })
    }
}

async fn accept(listener: TcpListener, between: Between) {
    let (mut lines, mut chance) = (JoinSet::new(), StdRng::seed_from_u64(between.seed));
    let origins = between.pids.map(|pids| Arc::new(Origins::new(pids)));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, from)) = accepted else { continue };
                let caller = match (&origins, stream.local_addr()) {
                    (Some(origins), Ok(at)) => Caller::new(origins.clone(), from, at),
                    _ => Caller::Known(CLIENTS),
                };
                let line = Line {
                    caller: Arc::new(caller),
                    to: between.to,
                    target: between.target,
                    rules: between.rules.clone(),
                    chance: StdRng::seed_from_u64(chance.random()),
                };
                lines.spawn(carry(stream, line));
            }
            Some(_) = lines.join_next() => {}
        }
    }
}

struct Line {
    caller: Arc<Caller>,
    to: usize,
    target: SocketAddr,
    rules: watch::Receiver<Rules>,
    chance: StdRng,
}

async fn carry(stream: TcpStream, mut line: Line) {
    let way = |inward| Way { caller: line.caller.clone(), node: line.to, inward, rules: line.rules.clone() };
    let (mut there, mut back) = (way(true), way(false));
    // A route that is cut takes no connections either; the caller's waits, as for an answer that does not come.
    if there.pass().await.is_none() || back.pass().await.is_none() {
        return;
    }
    let Ok(callee) = TcpStream::connect(line.target).await else { return };
    // Only speed is lost when this fails.
    let _slower = stream.set_nodelay(true).and(callee.set_nodelay(true));
    let (caller_in, caller_out) = stream.into_split();
    let (callee_in, callee_out) = callee.into_split();
    let (one, other) = (StdRng::seed_from_u64(line.chance.random()), StdRng::seed_from_u64(line.chance.random()));
    let there = direction(caller_in, callee_out, there, one);
    let back = direction(callee_in, caller_out, back, other);
    // Either end ends both: nodes speak HTTP/2, nobody closes one half and goes on.
    tokio::select! { () = there => {} () = back => {} }
}

/// One direction of a connection.
#[derive(Clone)]
struct Way {
    caller: Arc<Caller>,
    node: usize,
    /// From the caller to the node; else back.
    inward: bool,
    rules: watch::Receiver<Rules>,
}

impl Way {
    /// What happens on it now. `None`: there are rules, and nobody knows whose connection this is: it ends, so that no
    /// rule is evaded; whoever it was may call again.
    async fn rule(&mut self) -> Option<Rule> {
        if self.rules.borrow_and_update().is_open() {
            return Some(Rule::default());
        }
        let caller = self.caller.node().await?;
        let (from, to) = if self.inward { (caller, self.node) } else { (self.node, caller) };
        Some(self.rules.borrow_and_update().rule(from, to))
    }

    /// Waits until nothing is cut.
    async fn pass(&mut self) -> Option<Rule> {
        loop {
            let rule = self.rule().await?;
            if !rule.cut {
                return Some(rule);
            }
            if self.rules.changed().await.is_err() {
                // The cluster is being taken down: nothing passes any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn direction(mut read: OwnedReadHalf, mut write: OwnedWriteHalf, mut way: Way, mut chance: StdRng) {
    // Late pieces wait in line, so that delay costs time and not bandwidth.
    let (tx, mut rx) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY_MAX);
    let mut end = way.clone();
    let taking = async {
        let mut free_at = Instant::now();
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(bytes @ 1..) = read.read(&mut buffer).await {
            let Some(rule) = way.rule().await else { return };
            if rule.breaks(&mut chance) {
                return;
            }
            free_at = free_at.max(Instant::now()) + rule.occupies(bytes);
            let due = free_at + rule.delay(&mut chance);
            if tx.send((due, buffer[..bytes].to_vec())).await.is_err() {
                return;
            }
        }
        // What is on the way arrives before the end does.
        drop(tx);
        std::future::pending::<()>().await;
    };
    let giving = async {
        while let Some((due, piece)) = rx.recv().await {
            tokio::time::sleep_until(due).await;
            if end.pass().await.is_none() || write.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = taking => {} () = giving => {} }
}

#[cfg(test)]
mod tests {
    //! Goal: bytes arrive whole, wait while a direction is cut, and connections break where they are told to.
    //! Method: this process is node 0, an echo is node 1.

    use super::super::links::Links;
    use super::*;
    use std::time::Duration;

    async fn echo(links: &Links, caller: u32) -> (Proxy, JoinSet<()>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.split();
                let _closed = tokio::io::copy(&mut read, &mut write).await;
            }
        });
        let pids = Arc::new(Mutex::new(vec![Some(caller), None]));
        let between = Between { to: 1, target, pids: Some(pids), rules: links.watch(), seed: 1 };
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let proxy = Proxy::start(free, between).await.unwrap();
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        (proxy, tasks, stream)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cut_holds_bytes_until_it_is_healed() {
        let links = Links::new();
        let (_proxy, _tasks, mut stream) = echo(&links, std::process::id()).await;
        let text = vec![7; 300_000];
        let (mut read, mut write) = stream.split();
        let mut answer = vec![0; text.len()];
        let (sent, got) = tokio::join!(write.write_all(&text), read.read_exact(&mut answer));
        assert!(sent.is_ok() && got.is_ok() && answer == text);
        links.set(&[(1, 0)], Rule { cut: true, ..Rule::default() });
        write.write_all(b"still there?").await.unwrap();
        let mut answer = [0; 12];
        let held = tokio::time::timeout(Duration::from_millis(100), read.read_exact(&mut answer)).await;
        assert!(held.is_err());
        links.heal();
        read.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"still there?");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rule_that_breaks_ends_the_connection() {
        let links = Links::new();
        let (_proxy, _tasks, mut stream) = echo(&links, std::process::id()).await;
        links.set(&[(0, 1)], Rule { breaks: 10_000, ..Rule::default() });
        stream.write_all(b"gone").await.unwrap();
        assert!(matches!(stream.read(&mut [0; 4]).await, Ok(0) | Err(_)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whose_connection_nobody_knows_ends_where_there_are_rules() {
        let links = Links::new();
        let (_proxy, _tasks, mut stream) = echo(&links, 1 << 30).await;
        let mut answer = [0; 4];
        stream.write_all(b"open").await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        // Nothing of this line is cut, but who can tell.
        links.set(&[(2, 3)], Rule { cut: true, ..Rule::default() });
        stream.write_all(b"shut").await.unwrap();
        assert!(matches!(stream.read(&mut answer).await, Ok(0) | Err(_)));
    }
}
