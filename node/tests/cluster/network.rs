//! What lies between nodes: a proxy before each one's port, that can keep back, delay and stagger what one node says to
//! another, one way.
//!
//! Who calls is known by the system: the socket at the other end belongs to a process (`/proc`). Bytes that are kept
//! back arrive when the way is open again, as TCP would bring them, if nobody has given up by then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// What happens to what one node says to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing arrives.
    pub held: bool,
    /// It takes so long.
    pub delay: Duration,
    /// One piece of so many takes longer by a retransmission, and all behind it; 0: none.
    pub lost_one_in: u64,
}

type Rules = HashMap<(usize, usize), Rule>;

#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    rules: watch::Sender<Rules>,
    processes: Mutex<HashMap<u32, usize>>,
    chance: AtomicU64,
}

impl Default for Network {
    fn default() -> Self {
        let processes = Mutex::default();
        Self(Arc::new(Inner { rules: watch::Sender::new(Rules::new()), processes, chance: AtomicU64::new(1) }))
    }
}

impl Network {
    /// Opens the way to node `to` at an address; answers where the node itself is to listen.
    pub fn stand_before(&self, to: usize, address: &str) -> String {
        let behind = crate::harness::free_address();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (listener, network, target) = (TcpListener::from_std(listener).unwrap(), self.clone(), behind.clone());
        #[allow(clippy::disallowed_methods, reason = "test: ends with the runtime")]
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (network, target) = (network.clone(), target.clone());
                #[allow(clippy::disallowed_methods, reason = "test: ends with the runtime")]
                tokio::spawn(async move {
                    let from = network.who(peer.port());
                    let Ok(onward) = TcpStream::connect(target).await else { return };
                    network.join(stream, onward, (from, to)).await;
                });
            }
        });
        behind
    }

    pub fn is_process(&self, process: u32, node: usize) {
        self.0.processes.lock().insert(process, node);
    }

    /// What `from` says to `to` is treated so from now on.
    pub fn rule(&self, from: usize, to: usize, rule: Rule) {
        self.0.rules.send_modify(|rules| _ = rules.insert((from, to), rule));
    }

    /// All is as it was.
    pub fn heal(&self) {
        self.0.rules.send_modify(Rules::clear);
    }

    /// The node whose process has the socket with that port.
    fn who(&self, port: u16) -> Option<usize> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let own = u16::from_str_radix(fields.get(1)?.split_once(':')?.1, 16).ok()?;
            (own == port && *fields.get(9)? != "0").then(|| (*fields[9]).to_owned())
        })?;
        let wanted = format!("socket:[{inode}]");
        let processes = self.0.processes.lock().clone();
        processes.into_iter().find_map(|(process, node)| {
            let open = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
            let has = open.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|l| l.as_os_str() == &*wanted));
            has.then_some(node)
        })
    }

    async fn join(&self, near: TcpStream, far: TcpStream, (from, to): (Option<usize>, usize)) {
        for stream in [&near, &far] {
            let _slow = stream.set_nodelay(true);
        }
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let way = |from: Option<usize>, to: Option<usize>| Some((from?, to?));
        let there = self.pump(near_in, far_out, way(from, Some(to)));
        let back = self.pump(far_in, near_out, way(Some(to), from));
        tokio::join!(there, back);
    }

    async fn pump(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Option<(usize, usize)>) {
        let (tx, mut rx) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
        let reading = async move {
            let mut last = Instant::now();
            loop {
                let mut piece = vec![0; 64 << 10];
                match from.read(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => piece.truncate(n),
                }
                last = last.max(Instant::now() + self.takes(way));
                if tx.send((last, piece)).await.is_err() {
                    return;
                }
            }
        };
        let writing = async {
            let mut rules = self.0.rules.subscribe();
            while let Some((due, piece)) = rx.recv().await {
                tokio::time::sleep_until(due).await;
                let open = |rules: &Rules| way.is_none_or(|way| !rules.get(&way).is_some_and(|rule| rule.held));
                if rules.wait_for(open).await.is_err() || to.write_all(&piece).await.is_err() {
                    return;
                }
            }
            let _gone = to.shutdown().await;
        };
        // Who cannot write any more reads no more: the sender sees the connection break.
        tokio::select! {
            () = writing => {}
            () = async { reading.await; std::future::pending::<()>().await } => {}
        }
    }

    fn takes(&self, way: Option<(usize, usize)>) -> Duration {
        let rule = way.and_then(|way| self.0.rules.borrow().get(&way).copied()).unwrap_or_default();
        let n = self.0.chance.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let lost = rule.lost_one_in > 0 && n.is_multiple_of(rule.lost_one_in);
        rule.delay + if lost { Duration::from_millis(200) + rule.delay } else { Duration::ZERO }
    }
}
