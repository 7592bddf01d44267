//! A network of packets between the nodes, and all of them in our hands.
//!
//! Each node lives in a network namespace of its own, with a loopback and one device, `eth0`. What a node sends is read here,
//! packet by packet, and written to the device of whom it is for: every packet between two nodes, and between nodes and us,
//! passes one thread of ours that can lose, double, delay, turn it over, or have others overtake it.
//!
//! ```text
//! node 0 ─ eth0 198.18.0.1 ─┐                      ┌─ 198.18.255.1  what the harness itself asks and steers by
//! node 1 ─ eth0 198.18.0.2 ─┼─ switch ─ chaos0 ─────┼─ 198.18.255.2  clients
//! node 2 ─ eth0 198.18.0.3 ─┘  (lanes)              └─ 198.18.255.3  the object store of ours
//! ```
//!
//! - [`mod@self`]: namespaces, devices, the thread
//! - `lanes`: what becomes of a packet
//! - `packet`: one as bytes
//! - `kernel`: the system calls
//!
//! The harness goes into a namespace of its own first, so nothing of the machine's network is ever touched: no interface, no
//! address, no route, no packet filter. Namespaces have no names and devices are files of ours; when the harness and the nodes
//! are gone, however they went, so is all of it. It needs root and `/dev/net/tun`. Where it cannot be had, nodes listen on
//! the loopback and a proxy stands before each (`proxy`).
//!
//! The kernel computes and verifies every checksum itself on such devices, so a turned packet is found out where it would
//! be on a wire.

mod kernel;
mod lanes;
mod packet;

use super::links::{CLIENTS, HANDS, Rules, STORE};
use crate::error::Error;
use engram_model::time::Stopwatch;
use lanes::Lanes;
pub(crate) use lanes::{Counts, Pair};
use packet::Head;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Where all addresses are of: for tests of networks, routed nowhere. Source: RFC 2544 appendix C.2.2, RFC 6890.
const MASK: Ipv4Addr = Ipv4Addr::new(255, 254, 0, 0);
/// The largest packet. The usual "jumbo": six times fewer of them to carry than on a common line, and still several to
/// a message.
const PACKET_BYTES_MAX: u16 = 9000;
/// Packets of one device in a row, before others have their turn.
const IN_A_ROW: usize = 64;
/// Who may have an address: nodes from 0 on, then we.
const ENDS: usize = 64;

/// How nodes are to be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Network {
    /// As packets where this machine can, else through proxies.
    #[default]
    Auto,
    /// Each node in a network namespace of its own, a switch of ours between them: needs root and /dev/net/tun.
    Packets,
    /// On the loopback, with a proxy of ours before each node.
    Proxy,
}

impl Network {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Packets => "packets",
            Self::Proxy => "proxy",
        }
    }
}

/// Whether this process is in a namespace of its own; else why not.
static ENTERED: OnceLock<Result<(), String>> = OnceLock::new();

/// Goes into a network namespace of our own, if it is wanted and can be had. To be called before there is any thread: one
/// that is there already stays where it is.
pub(crate) fn enter(wanted: Network) {
    let own = || kernel::own_namespace().map_err(|error| format!("no network namespace: {error}"));
    let entered = match wanted {
        Network::Proxy => Err("--network proxy was asked for".to_owned()),
        Network::Auto | Network::Packets => tried().and_then(|()| own()),
    };
    // Nobody asks before, and nobody sets it twice.
    ENTERED.get_or_init(|| entered);
}

/// Becomes part of the network that a file is; only for who is about to become a node.
pub(super) fn join(namespace: &Path) -> Result<(), Error> {
    Ok(kernel::enter(namespace)?)
}

/// Whether nodes' packets can be in our hands; else why not.
pub(crate) fn possible() -> Result<(), String> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    ENTERED.get().unwrap_or_else(|| TRIED.get_or_init(tried)).clone()
}

/// Whether this process is where nodes of such a network can be reached from.
pub(super) fn entered() -> bool {
    matches!(ENTERED.get(), Some(Ok(())))
}

/// What lies between nodes, for people.
pub(crate) fn said() -> String {
    match possible() {
        Ok(()) => {
            "network: packets, each node in a network namespace of its own, a switch of ours between them".to_owned()
        }
        Err(why) => format!("network: the loopback, a proxy of ours before each node ({why})"),
    }
}

/// What has become of what was wanted.
pub(crate) fn used(wanted: Network) -> Network {
    match ENTERED.get() {
        Some(Ok(())) => Network::Packets,
        Some(Err(_)) => Network::Proxy,
        None => wanted,
    }
}

/// Makes all that is needed once, and forgets it.
fn tried() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("packets need root".to_owned());
    }
    aside(&[address(0)]).map(drop).map_err(|error| format!("no network namespace with a device: {error}"))
}

/// The address of an end.
pub(super) fn address(end: usize) -> Ipv4Addr {
    match end {
        HANDS => Ipv4Addr::new(198, 18, 255, 1),
        CLIENTS => Ipv4Addr::new(198, 18, 255, 2),
        STORE => Ipv4Addr::new(198, 18, 255, 3),
        node => Ipv4Addr::new(198, 18, 0, u8::try_from(node + 1).unwrap_or(u8::MAX)),
    }
}

/// Whose address it is.
pub(super) fn end_of(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    match address.octets() {
        [198, 18, 255, 1] => Some(HANDS),
        [198, 18, 255, 2] => Some(CLIENTS),
        [198, 18, 255, 3] => Some(STORE),
        [198, 18, 0, node @ 1..=255] if usize::from(node) <= HANDS => Some(usize::from(node) - 1),
        _ => None,
    }
}

/// A node's network: it stays while this lives, whoever starts and dies in it.
#[derive(Debug)]
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    /// Where another process finds it, as long as this one lives.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// A namespace with a device in it, made by a thread that ends there: ours stay where they are.
fn aside(addresses: &[Ipv4Addr]) -> std::io::Result<(Namespace, File)> {
    let addresses = addresses.to_vec();
    let made = std::thread::spawn(move || {
        kernel::own_namespace()?;
        let device = kernel::device("eth0", &addresses, MASK, PACKET_BYTES_MAX)?;
        Ok((Namespace(kernel::namespace()?), device))
    });
    made.join().unwrap_or_else(|_| Err(std::io::Error::other("it was made by a thread that died")))
}

/// Where packets of some ends come and go.
#[derive(Debug)]
struct Port {
    ends: Vec<usize>,
    device: File,
}

/// What the thread shares with whoever asks it.
#[derive(Debug)]
struct Shared {
    lanes: Mutex<Lanes>,
    /// Not known to the thread yet.
    plugged: Mutex<Vec<Port>>,
    stopped: AtomicBool,
}

/// The switch. With it goes the thread, and every device.
#[derive(Debug)]
pub(super) struct Switch {
    shared: Arc<Shared>,
    bell: UnixDatagram,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Begins with a device of ours and no nodes.
    ///
    /// # Errors
    /// This process is in no namespace of its own, or the kernel refuses.
    pub(super) fn start(rules: watch::Receiver<Rules>, seed: u64) -> Result<Self, Error> {
        let ends = vec![HANDS, CLIENTS, STORE];
        let addresses: Vec<_> = ends.iter().map(|end| address(*end)).collect();
        if !entered() {
            return Err(Error::Usage("packets need a network namespace of our own".to_owned()));
        }
        let device = kernel::device("chaos0", &addresses, MASK, PACKET_BYTES_MAX)?;
        let (bell, heard) = UnixDatagram::pair()?;
        heard.set_nonblocking(true)?;
        let (lanes, plugged) = (Mutex::new(Lanes::new(seed)), Mutex::new(vec![Port { ends, device }]));
        let shared = Arc::new(Shared { lanes, plugged, stopped: AtomicBool::new(false) });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("switch".to_owned());
        let thread = Some(thread.spawn(move || carry(&theirs, rules, &heard))?);
        Ok(Self { shared, bell, thread })
    }

    /// Makes the network of a node.
    ///
    /// # Errors
    /// The kernel refuses, or there are too many.
    pub(super) fn plug(&self, node: usize) -> Result<Namespace, Error> {
        if node >= HANDS {
            return Err(Error::Usage(format!("there is no address for node {node}")));
        }
        let (namespace, device) = aside(&[address(node)])?;
        let port = Port { ends: vec![node], device };
        self.shared.plugged.lock().unwrap_or_else(PoisonError::into_inner).push(port);
        self.bell.send(&[1])?;
        Ok(namespace)
    }

    /// What became of packets until now, by who sent them to whom.
    pub(super) fn counts(&self) -> BTreeMap<Pair, Counts> {
        self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // It looks when it wakes up; one that has ended needs no bell.
        let _gone = self.bell.send(&[0]);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread: waits for packets and for those that are due, and carries them.
fn carry(shared: &Shared, mut rules: watch::Receiver<Rules>, heard: &UnixDatagram) {
    let (watch, mut buffer) = (Stopwatch::start(), vec![0; usize::from(PACKET_BYTES_MAX)]);
    let (mut ports, mut files, mut known) = (Vec::new(), Vec::new(), rules.borrow_and_update().clone());
    while !shared.stopped.load(Ordering::Relaxed) {
        if heard.recv(&mut [0]).is_ok() || ports.is_empty() {
            ports.append(&mut shared.plugged.lock().unwrap_or_else(PoisonError::into_inner));
            files = std::iter::once(heard.as_raw_fd())
                .chain(ports.iter().map(|port: &Port| port.device.as_raw_fd()))
                .map(kernel::readable)
                .collect();
        }
        let next = shared.lanes.lock().unwrap_or_else(PoisonError::into_inner).next();
        if kernel::wait(&mut files, next.map(|due| due.saturating_sub(watch.elapsed()))).is_err() {
            return;
        }
        if rules.has_changed().unwrap_or(false) {
            known = rules.borrow_and_update().clone();
        }
        let mut lanes = shared.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut give = |to: usize, packet: &[u8]| give(&ports, to, packet);
        lanes.pass(watch.elapsed(), &known, &mut give);
        for (port, _) in ports.iter().zip(&files[1..]).filter(|(_, file)| file.revents != 0) {
            for _ in 0..IN_A_ROW {
                let Ok(bytes) = (&port.device).read(&mut buffer) else { break };
                let packet = &mut buffer[..bytes];
                // What is for nobody, or from somebody else than it says, goes nowhere.
                let Some(head) = Head::of(packet) else { continue };
                let Some(from) = end_of(head.from.into()).filter(|end| port.ends.contains(end)) else { continue };
                let Some(to) = end_of(head.to.into()) else { continue };
                let now = watch.elapsed();
                lanes.pass(now, &known, &mut give);
                lanes.take(((from, to), &head), packet, &known, now, &mut give);
            }
        }
    }
}

fn give(ports: &[Port], to: usize, packet: &[u8]) {
    let port = ports.iter().find(|port| port.ends.contains(&to));
    // The kernel takes no packet whose first byte is turned, nor any when it has no memory: then it is lost, as on a wire.
    let _lost = port.map(|port| (&port.device).write(packet));
}

/// Packets that the kernel of a process's network has refused because of their sums, or because their head was wrong.
pub(super) fn refused(pid: u32) -> u64 {
    sums(&std::fs::read_to_string(format!("/proc/{pid}/net/snmp")).unwrap_or_default())
}

fn sums(snmp: &str) -> u64 {
    let lines: Vec<Vec<&str>> = snmp.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |names: &[&str], values: &[&str]| -> u64 {
        let wanted = |name: &str| matches!((names[0], name), ("Ip:", "InHdrErrors") | ("Tcp:", "InCsumErrors"));
        let both = names.iter().zip(values).filter(|(name, _)| wanted(name));
        both.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    };
    lines
        .windows(2)
        .filter(|two| two[0].first() == two[1].first() && !two[0].is_empty())
        .map(|two| of(&two[0], &two[1]))
        .sum()
}

const _: () = assert!(HANDS < STORE && STORE < CLIENTS && CLIENTS < ENDS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_end_only() {
        for end in (0..5).chain([HANDS - 1, HANDS, STORE, CLIENTS]) {
            assert_eq!(end_of(address(end).into()), Some(end));
        }
        for strange in ["198.18.0.0", "198.18.0.62", "198.18.0.255", "198.18.1.1", "127.0.0.1", "::1"] {
            assert_eq!(end_of(strange.parse().unwrap()), None, "{strange}");
        }
    }

    #[test]
    fn what_the_kernel_refused_is_read_from_its_table() {
        let text = "Ip: Forwarding InHdrErrors\nIp: 1 3\nTcp: InSegs InErrs InCsumErrors\nTcp: 100 9 7\nUdp: InCsumErrors\nUdp: 5\n";
        assert_eq!((sums(text), sums(""), sums("Tcp:\nTcp:\n\n\n")), (10, 0, 0));
    }
}
