//! Another store under the same attack: what a file says of how its nodes are started, written to and asked.
//!
//! Clients speak remote write and Prometheus' query API, so that is all a store must understand. What is Engram's own
//! (tenants made by an API, registers, flushes, the state of the cluster) is left out for others, and faults that mean
//! nothing to them are skipped, which is no pass. Files for three stores are in `docs/examples/`.
//!
//! ```yaml
//! name: victoria-metrics
//! command: [victoria-metrics, "-storageDataPath={data}", "-httpListenAddr=127.0.0.1:{http}"]
//! version: [victoria-metrics, "-version"]
//! ready: http://127.0.0.1:{http}/health
//! write: http://127.0.0.1:{http}/api/v1/write
//! query: http://127.0.0.1:{http}
//! faults: [kill, restart, pause, power, disk-full]
//! ```

use crate::error::Error;
use crate::nemesis::Act;
use serde::Deserialize;
use std::net::Ipv4Addr;
use std::path::Path;

/// Most bytes of a file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A kind of fault that makes sense for a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGTERM and a new start.
    Restart,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// What was not synced is gone.
    Power,
    /// No room.
    DiskFull,
    /// Syncs that fail or are slow.
    Syncs,
}

impl Kind {
    /// The kind of what a scenario does; none: only our own nodes can be broken like this.
    fn of(act: Act) -> Option<Self> {
        match act {
            Act::Kill(_) => Some(Self::Kill),
            Act::Restart(_) => Some(Self::Restart),
            Act::Pause(_) => Some(Self::Pause),
            Act::PowerLoss(_) | Act::SlowThenDark => Some(Self::Power),
            Act::DiskFull(_) => Some(Self::DiskFull),
            Act::Syncs(..) => Some(Self::Syncs),
            _ => None,
        }
    }
}

/// What the file says. In texts, `{host}` stands for the address of the node, `{http}`, `{grpc}` and `{gossip}` for its ports,
/// `{host.N}`, `{http.N}`, `{grpc.N}` and `{gossip.N}` for those of the node of that index, `{data}` for its directory, `{shared}` for one that all nodes have,
/// `{zone}` and `{index}` for numbers from 0.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) name: String,
    command: Vec<String>,
    /// Prints the version in its first line.
    version: Option<Vec<String>>,
    /// The whole address that answers with success when a node is ready.
    ready: String,
    /// The whole address of remote write.
    write: String,
    /// The address before `/api/v1`.
    query: String,
    /// The header that names the tenant; none: there are no tenants.
    pub(crate) tenant_header: Option<String>,
    faults: Vec<Kind>,
    #[serde(default = "one")]
    pub(crate) nodes: usize,
    /// Whether range queries are Prometheus' own to the last sample; where they are not, raw samples are checked only.
    #[serde(default)]
    pub(crate) exact_ranges: bool,
    /// Whether native histograms are sent, and series that end.
    #[serde(default)]
    pub(crate) histograms: bool,
}

fn one() -> usize {
    1
}

/// Where one node listens: for clients, for other nodes, and for what those tell each other of themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) host: Ipv4Addr,
    pub(crate) http: u16,
    pub(crate) grpc: u16,
    pub(crate) gossip: u16,
}

impl Ports {
    /// Of a node that is not there.
    const NONE: Self = Self { host: Ipv4Addr::LOCALHOST, http: 0, grpc: 0, gossip: 0 };

    fn named(self) -> [(&'static str, String); 4] {
        let port = |port: u16| port.to_string();
        let host = ("host", self.host.to_string());
        [host, ("http", port(self.http)), ("grpc", port(self.grpc)), ("gossip", port(self.gossip))]
    }
}

/// One node's place.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) index: usize,
    pub(crate) zone: usize,
    /// The ports of every node, by index.
    pub(crate) ports: Vec<Ports>,
    pub(crate) data: String,
    /// A directory that all nodes have.
    pub(crate) shared: String,
}

impl Place {
    fn fill(&self, text: &str) -> String {
        let own = self.ports.get(self.index).copied().unwrap_or(Ports::NONE).named();
        let own = own.map(|(name, value)| (format!("{{{name}}}"), value));
        let others = self
            .ports
            .iter()
            .enumerate()
            .flat_map(|(node, ports)| ports.named().map(|(name, value)| (format!("{{{name}.{node}}}"), value)));
        let words = [
            ("{data}".to_owned(), self.data.clone()),
            ("{shared}".to_owned(), self.shared.clone()),
            ("{zone}".to_owned(), self.zone.to_string()),
            ("{index}".to_owned(), self.index.to_string()),
        ];
        own.into_iter()
            .chain(others)
            .chain(words)
            .fold(text.to_owned(), |text, (word, value)| text.replace(&word, &value))
    }
}

impl Peer {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, or not what it should be; with line and column.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::Asked(format!("{}: {why}", path.display()));
        if std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len() > FILE_BYTES_MAX {
            return Err(wrong("too long".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let peer: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if peer.command.is_empty() || peer.nodes == 0 {
            return Err("there is nothing to start".to_owned());
        }
        let texts = peer.command.iter().chain([&peer.ready, &peer.write, &peer.query]);
        let names = |text: &str| ["{host.", "{http.", "{grpc.", "{gossip."].iter().any(|word| text.contains(word));
        let (count, ports) = (peer.nodes, vec![Ports::NONE; peer.nodes]);
        let place = Place { index: 0, zone: 0, ports, data: String::new(), shared: String::new() };
        if let Some(text) = texts.map(|text| place.fill(text)).find(|text| names(text)) {
            return Err(format!("{text:?} names a node that is not there: there are {count}, counted from 0"));
        }
        Ok(peer)
    }

    /// Whether its nodes may have addresses of their own: the file says where each is reached.
    pub(crate) fn has_hosts(&self) -> bool {
        [&self.ready, &self.write, &self.query].iter().all(|text| text.contains("{host}"))
    }

    /// Whether a scenario says anything about this store; else why not.
    pub(crate) fn bears(&self, act: Act) -> Result<(), String> {
        match Kind::of(act) {
            Some(kind) if self.faults.contains(&kind) => Ok(()),
            _ => Err(format!("{} is not broken like this: its file does not name the fault", self.name)),
        }
    }

    /// The program and its arguments.
    pub(crate) fn command(&self, place: &Place) -> (String, Vec<String>) {
        let mut words = self.command.iter().map(|word| place.fill(word));
        (words.next().unwrap_or_default(), words.collect())
    }

    /// Where a node is written to, asked, and looked at: the whole address, the address before `/api/v1`, the whole one.
    pub(crate) fn addresses(&self, place: &Place) -> (String, String, String) {
        (place.fill(&self.write), place.fill(&self.query), place.fill(&self.ready))
    }

    /// The first line that the program says of its version.
    pub(crate) fn version(&self) -> String {
        let Some((program, args)) = self.version.as_deref().and_then(<[String]>::split_first) else {
            return "unknown".to_owned();
        };
        first_line(program, args)
    }
}

/// The first line a program prints, wherever it prints it.
pub(crate) fn first_line(program: &str, args: &[String]) -> String {
    let Ok(done) = std::process::Command::new(program).args(args).output() else { return "unknown".to_owned() };
    let text = [done.stdout, done.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Whom;

    #[test]
    fn the_files_of_the_documentation_are_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
        for name in ["cortex.yaml", "prometheus.yaml", "victoria-metrics.yaml"] {
            let peer = Peer::read(&folder.join(name)).unwrap();
            let place = place(0, u16::try_from(peer.nodes).unwrap());
            let (program, args) = peer.command(&place);
            assert_eq!(program, peer.name);
            assert!(
                args.iter().any(|arg| arg.contains("7000")) && args.iter().any(|arg| arg.contains("/d")),
                "{args:?}"
            );
            let left = args.iter().find(|arg| arg.contains(['{', '}']));
            assert!(left.is_none(), "{name} has a word that means nothing: {left:?}");
            assert!(peer.addresses(&place).0.starts_with("http://127.0.0.1:7000/"));
            assert!(peer.bears(Act::Kill(Whom::All)).is_ok() && peer.bears(Act::Churn).is_err());
        }
    }

    fn place(index: usize, nodes: u16) -> Place {
        let ports = |node| Ports {
            host: Ipv4Addr::new(198, 18, 0, 9),
            http: 7000 + node,
            grpc: 8000 + node,
            gossip: 9000 + node,
        };
        let ports = (0..nodes).map(ports).collect();
        Place { index, zone: index, ports, data: "/d".to_owned(), shared: "/s".to_owned() }
    }

    #[test]
    fn a_node_may_name_the_others() {
        let filled = place(1, 12).fill("{http} {http.0} {grpc.2},{grpc.11} {gossip.3} {http.12} {shared}{data}");
        assert_eq!(filled, "7001 7000 8002,8011 9003 {http.12} /s/d");
        assert_eq!(place(1, 12).fill("{host}:{http} {host.3}"), "198.18.0.9:7001 198.18.0.9");
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_the_place() {
        assert!(Peer::parse("name: x\ncommand: []").is_err());
        let other = "name: x\ncommand: [x, '{http.1}']\nready: a\nwrite: b\nquery: c\nfaults: []\n";
        assert!(Peer::parse(other).unwrap_err().contains("{http.1}"));
        assert!(Peer::parse(&format!("{other}nodes: 2")).is_ok());
        let unknown =
            Peer::parse("name: x\ncommand: [x]\nready: a\nwrite: b\nquery: c\nfaults: []\nfoo: 1").unwrap_err();
        assert!(unknown.contains("foo"), "{unknown}");
    }
}
