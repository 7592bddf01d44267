//! Which node a connection comes from.
//!
//! Why: a node tells all others one address, so a proxy before it must find out who calls to know which line of the
//! network this is. Nothing in the nodes is changed for it: the kernel knows. The caller's socket is looked up by its
//! port in `/proc/net/tcp`, and its number among the open files of the nodes' processes.
//!
//! Source: Linux `Documentation/networking/proc_net_tcp.rst`, proc(5) `/proc/[pid]/fd`.

use std::net::SocketAddr;
use std::time::Duration;

/// How often the table is read before a caller counts as a stranger: it changes while it is read, and lines are missed.
const LOOKS: u32 = 10;

/// The node, of those with these process ids, that holds the socket at `caller`; `None` when none does. Blocks.
pub(super) fn caller(caller: SocketAddr, pids: &[Option<u32>]) -> Option<usize> {
    for _ in 0..LOOKS {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        if let Some(inode) = inode(&table, caller) {
            let socket = format!("socket:[{inode}]");
            if let Some(node) = pids.iter().position(|pid| pid.is_some_and(|pid| holds(pid, &socket))) {
                return Some(node);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// The number of the socket whose local address is `local`, an IPv4 one.
fn inode(table: &str, local: SocketAddr) -> Option<&str> {
    let SocketAddr::V4(local) = local else { return None };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(local.ip().octets()), local.port());
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.into_iter().find(|row| row.get(1) == Some(&wanted.as_str())).and_then(|row| row.get(9).copied())
}

fn holds(pid: u32, socket: &str) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_in, from) = listener.accept().unwrap();
        assert_eq!(from, out.local_addr().unwrap());
        assert_eq!(caller(from, &[None, Some(1_u32 << 30), Some(std::process::id())]), Some(2));
        assert_eq!(caller("127.0.0.1:1".parse().unwrap(), &[Some(std::process::id())]), None);
    }
}
