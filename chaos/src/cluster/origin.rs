//! Which node a connection comes from.
//!
//! Why: a node tells all others one address, so a proxy before it must find out who calls to know which line of the
//! network this is. Nothing in the nodes is changed for it: the kernel knows. The sockets of the nodes' processes are
//! among their open files, and their ports in `/proc/net/tcp`.
//!
//! Reading that table takes tens of milliseconds of a machine with many sockets, and nodes call again and again where
//! nobody listens. So nobody is looked up before it matters, and one look answers for all connections there are.
//!
//! Source: Linux `Documentation/networking/proc_net_tcp.rst`, proc(5) `/proc/[pid]/fd`.

use super::proxy::Pids;
use super::switch;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// How often the table is read before a caller counts as a stranger: it changes while it is read, and lines are missed.
const LOOKS: u32 = 10;

/// Both ports of a connection, the caller's first.
type Ports = (u16, u16);

/// Who holds which connection, of some processes.
#[derive(Debug)]
pub(super) struct Origins {
    pids: Pids,
    /// What was seen at the last look, and when that began.
    seen: Mutex<Option<(Instant, HashMap<Ports, usize>)>>,
}

impl Origins {
    pub(super) fn new(pids: Pids) -> Self {
        Self { pids, seen: Mutex::default() }
    }

    /// The process of that node, if it runs.
    pub(super) fn pid(&self, node: usize) -> Option<u32> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied().flatten()
    }

    /// The node that made a connection, which was there at `since`; `None` when none of ours did. Blocks.
    fn node(&self, ports: Ports, since: Instant) -> Option<usize> {
        let mut since = since;
        for _ in 0..LOOKS {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = seen.take().filter(|(at, _)| *at > since);
            let (at, all) = fresh.unwrap_or_else(|| (Instant::now(), self.look()));
            let node = all.get(&ports).copied();
            *seen = Some((at, all));
            drop(seen);
            if node.is_some() {
                return node;
            }
            // Only what is seen from now on tells more.
            since = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// All connections of all our nodes.
    fn look(&self) -> HashMap<Ports, usize> {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sockets: HashMap<String, usize> = pids
            .iter()
            .enumerate()
            .filter_map(|(node, pid)| Some((node, std::fs::read_dir(format!("/proc/{}/fd", (*pid)?)).ok()?)))
            .flat_map(|(node, files)| files.flatten().filter_map(move |file| Some((socket(&file.path())?, node))))
            .collect();
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let rows = table.lines().filter_map(row);
        rows.filter_map(|(ports, inode)| Some((ports, *sockets.get(inode)?))).collect()
    }
}

/// The number of the socket an open file is.
fn socket(file: &std::path::Path) -> Option<String> {
    let to = std::fs::read_link(file).ok()?;
    Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
}

/// A line of the table: its own port and the other end's, and the number of the socket.
fn row(line: &str) -> Option<(Ports, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = |word: Option<&&str>| u16::from_str_radix(word?.rsplit(':').next()?, 16).ok();
    Some(((port(words.get(1))?, port(words.get(2))?), *words.get(9)?))
}

/// The other end of a connection.
#[derive(Debug)]
pub(super) enum Caller {
    /// Nobody needs to be asked.
    Known(usize),
    /// Looked up when it matters, and then never again.
    Asked { origins: Arc<Origins>, ports: Ports, since: Instant, node: OnceCell<Option<usize>> },
}

impl Caller {
    /// Who calls from one address at another, as it was accepted just now.
    pub(super) fn new(origins: Arc<Origins>, from: SocketAddr, at: SocketAddr) -> Self {
        // In a network of packets the address says it.
        if let Some(node) = switch::end_of(from.ip()) {
            return Self::Known(node);
        }
        Self::Asked { origins, ports: (from.port(), at.port()), since: Instant::now(), node: OnceCell::new() }
    }

    /// The node; `None`: none of ours, or one that is gone.
    pub(super) async fn node(&self) -> Option<usize> {
        match self {
            Self::Known(node) => Some(*node),
            Self::Asked { origins, ports, since, node } => {
                let (origins, ports, since) = (origins.clone(), *ports, *since);
                let look = || async move {
                    tokio::task::spawn_blocking(move || origins.node(ports, since)).await.ok().flatten()
                };
                *node.get_or_init(look).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_socket_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let out = TcpStream::connect(at).unwrap();
        let (_in, from) = listener.accept().unwrap();
        assert_eq!(from, out.local_addr().unwrap());
        let pids = Arc::new(Mutex::new(vec![None, Some(1_u32 << 30), Some(std::process::id())]));
        let origins = Arc::new(Origins::new(pids));
        assert_eq!(Caller::new(origins.clone(), from, at).node().await, Some(2));
        assert_eq!(origins.pid(2), Some(std::process::id()));
        let stranger = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(Caller::new(origins, stranger, at).node().await, None);
    }

    #[test]
    fn a_line_of_the_table_is_taken_apart() {
        let line =
            "   1: 0100007F:1F90 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(row(line), Some(((0x1f90, 0xa1b2), "4711")));
        assert_eq!(row("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"), None);
    }
}
