//! The system calls without a safe form that a network of our own needs: a namespace, a device whose packets we hold, its
//! address, and waiting for several of them.
//!
//! Nothing here is ever done to the network of the machine: devices and addresses are made in namespaces of ours only,
//! and both vanish when the last process and the last open file of theirs are gone.
//!
//! Source: Linux `Documentation/networking/tuntap.rst`; netdevice(7), network_namespaces(7), ppoll(2).
#![allow(
    unsafe_code,
    reason = "unshare, setns, ppoll and the requests of netdevice(7) have no safe form here; without them there are no packets to lose"
)]

use std::fs::File;
use std::io::{Error, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Packets that wait for us in a device before the kernel drops some.
const QUEUE_PACKETS: i32 = 4096;

/// Gives this thread a network namespace of its own: with nothing in it but a loopback, which is up. Threads that are
/// begun by it later are in the same one.
pub(super) fn own_namespace() -> Result<()> {
    // SAFETY: the call takes no memory of ours; sockets that are open stay in the namespace they were made in.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    up("lo")
}

/// Moves this thread into the network namespace that a file is.
pub(super) fn enter(namespace: &Path) -> Result<()> {
    let file = File::open(namespace)?;
    // SAFETY: the descriptor is open for the whole call, and the call takes no memory of ours.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// The network namespace of this thread, which lives at least as long as what is returned.
pub(super) fn namespace() -> Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Makes a device in the namespace of this thread: what is sent through it is read from the file, what is written to the
/// file has arrived there; one packet at a time, never waiting. It goes with the file. The first address is the one that
/// connections are made from.
pub(super) fn device(name: &str, addresses: &[Ipv4Addr], mask: Ipv4Addr, mtu: u16) -> Result<File> {
    let options = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    ask(options.as_raw_fd(), libc::TUNSETIFF, name, flags(libc::IFF_TUN | libc::IFF_NO_PI))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let fd = socket.as_raw_fd();
    for (at, address) in addresses.iter().enumerate() {
        let label = if at == 0 { name.to_owned() } else { format!("{name}:{at}") };
        ask(fd, libc::SIOCSIFADDR, &label, told(*address))?;
        ask(fd, libc::SIOCSIFNETMASK, &label, told(mask))?;
    }
    ask(fd, libc::SIOCSIFMTU, name, Told { ifru_mtu: mtu.into() })?;
    ask(fd, libc::SIOCSIFTXQLEN, name, Told { ifru_mtu: QUEUE_PACKETS })?;
    up(name)?;
    Ok(options)
}

/// Waits until one of them can be read, or so long. Being interrupted counts as a while.
pub(super) fn wait(files: &mut [libc::pollfd], at_most: Option<Duration>) -> Result<()> {
    let time = at_most.map(|time| libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the list is ours for the whole call and as long as is said; the time is null or outlives the call, and no
    // mask of signals is given.
    let ready = unsafe { libc::ppoll(files.as_mut_ptr(), files.len() as libc::nfds_t, time, std::ptr::null()) };
    match check(ready.min(0)) {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
        done => done,
    }
}

/// One that is waited for until it can be read.
pub(super) fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

type Told = libc::__c_anonymous_ifr_ifru;

fn up(name: &str) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    ask(socket.as_raw_fd(), libc::SIOCSIFFLAGS, name, flags(libc::IFF_UP))
}

#[allow(clippy::cast_possible_truncation, reason = "the flags that are used here are below 2^15")]
fn flags(all: i32) -> Told {
    Told { ifru_flags: all as libc::c_short }
}

fn told(address: Ipv4Addr) -> Told {
    let mut data: [libc::c_char; 14] = [0; 14];
    // A port of two bytes, then the address.
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    #[allow(clippy::cast_possible_truncation, reason = "it is 2")]
    let family = libc::AF_INET as libc::sa_family_t;
    Told { ifru_addr: libc::sockaddr { sa_family: family, sa_data: data } }
}

/// One request about a device.
fn ask(fd: RawFd, request: libc::c_ulong, name: &str, told: Told) -> Result<()> {
    let mut all = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: told };
    // The last byte stays zero.
    for (to, from) in all.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open for the whole call, and each of these requests reads and writes one `ifreq`, ours.
    check(unsafe { libc::ioctl(fd, request, &raw mut all) })
}

fn check(answer: i32) -> Result<()> {
    if answer < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
