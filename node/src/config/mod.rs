//! What a node is told: one file, flags, environment.
//!
//! One table ([`table::KEYS`]) drives all three, so none can know an option the others do not. A flag comes before the
//! environment, that before the file, that before the default. What nobody knows is refused, with the nearest known
//! name: an option that is spelled wrong and silently ignored is found a month later.
//!
//! ```text
//! file.rs   YAML → (key, line, text)      codec.rs  text ↔ value, by kind
//! table.rs  key, meaning, codec, field    units.rs  durations and sizes
//! ```

pub mod codec;
pub mod table;
pub mod units;

mod file;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engram_model::tenant::TenantLimits;
use engram_storage::compact::Rules;
use engram_storage::object;

use crate::read::store::BlockOptions;
use file::Value;
use table::{KEYS, Key, section_title};

/// A name of a node or a zone, checked.
pub type Name = String;

/// How events of the node are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Every option; see [`table::KEYS`] for meanings and units.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is; saying it twice would let the two differ")]
pub struct Config {
    pub data_dir: PathBuf,
    pub http_listen: String,
    pub grpc_listen: String,
    pub node_name: Name,
    pub zone: Name,
    pub join: Vec<String>,
    pub bootstrap_expect: u32,
    pub grpc_advertise: String,
    pub http_advertise: String,
    pub replication_factor: u32,
    pub partitions: u32,
    pub shard_size: u32,
    pub tenants_max: u32,
    pub retention_ms: i64,
    pub shutdown_timeout: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
    pub promql_experimental: bool,
    pub cluster: ClusterConfig,
    pub query: QueryConfig,
    pub write: WriteConfig,
    pub log: LogConfig,
    pub blocks: BlocksConfig,
    pub object_store: object::options::Options,
    pub block_cache: BlockOptions,
    pub compaction: CompactionConfig,
    pub limits: TenantLimits,
}

/// Options of the cluster.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct ClusterConfig {
    pub suspect_after: Duration,
    pub dead_after: Duration,
    pub clock_skew_max: Duration,
    pub repair_every: Duration,
    pub snapshot_every: usize,
    pub plain_text: bool,
    pub tls: TlsConfig,
}

/// Options of TLS between nodes. Files that are not named are empty.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct TlsConfig {
    pub cert: String,
    pub key: String,
    pub ca: String,
    pub name: Name,
}

/// Options of queries.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct QueryConfig {
    pub timeout: Duration,
    pub slow_after_ms: i64,
    pub lookback: Duration,
    pub concurrent_max: usize,
    pub queue_max: usize,
    pub samples_max: u64,
    pub bytes_max: u64,
    pub node_samples_max: u64,
    pub push_down: bool,
}

/// Options of writes.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct WriteConfig {
    pub body_bytes_max: u64,
    pub decoded_bytes_max: u64,
    pub in_flight_bytes_max: u64,
    pub timeout: Duration,
}

/// Options of the log of samples.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct LogConfig {
    pub segment_bytes_max: u64,
    pub checkpoint_bytes_min: u64,
}

/// Options of cutting heads to blocks.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct BlocksConfig {
    pub window: Duration,
    pub seal_delay_ms: i64,
    pub seal_late_max_ms: i64,
    pub seal_idle_ms: i64,
    pub work_dir: String,
    pub scrub_bytes_per_second: u64,
}

/// Options of what becomes of blocks.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table says what each is")]
pub struct CompactionConfig {
    pub ranges_ms: Vec<i64>,
    pub interval: Duration,
    pub jobs_max: usize,
    pub series_max: u64,
    pub bytes_max: u64,
    pub space_bytes_max: u64,
    pub deletion_delay_ms: i64,
    pub grace_ms: i64,
    pub orphan_after_ms: i64,
}

impl CompactionConfig {
    /// The rules of planning with windows of that length: ranges that are shorter are nothing to plan by, and the
    /// window itself is the range where none is left.
    #[must_use]
    pub fn rules(&self, window_ms: i64) -> Rules {
        let mut ranges_ms = self.ranges_ms.clone();
        ranges_ms.retain(|range| *range >= window_ms);
        if ranges_ms.is_empty() && !self.ranges_ms.is_empty() {
            ranges_ms.push(window_ms);
        }
        Rules {
            ranges_ms,
            series_max: self.series_max,
            bytes_max: self.bytes_max,
            rewrite_after_ms: self.deletion_delay_ms,
            ..Rules::default()
        }
    }
}

impl Default for CompactionConfig {
    fn default() -> Self {
        const HOUR: i64 = 3_600_000;
        let rules = Rules::default();
        Self {
            ranges_ms: rules.ranges_ms,
            interval: Duration::from_secs(30),
            jobs_max: 1,
            series_max: rules.series_max,
            bytes_max: rules.bytes_max,
            space_bytes_max: 64 << 30,
            deletion_delay_ms: rules.rewrite_after_ms,
            grace_ms: 2 * HOUR,
            orphan_after_ms: 24 * HOUR,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "./data".into(),
            http_listen: "127.0.0.1:9009".to_owned(),
            grpc_listen: "127.0.0.1:9095".to_owned(),
            node_name: "auto".to_owned(),
            zone: "default".to_owned(),
            join: Vec::new(),
            bootstrap_expect: 0,
            grpc_advertise: "auto".to_owned(),
            http_advertise: "auto".to_owned(),
            replication_factor: 3,
            partitions: 64,
            shard_size: 1,
            tenants_max: 10_000,
            retention_ms: 15 * 24 * 60 * 60 * 1000,
            shutdown_timeout: Duration::from_secs(30),
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            promql_experimental: false,
            cluster: ClusterConfig {
                suspect_after: Duration::from_secs(5),
                dead_after: Duration::from_secs(900),
                clock_skew_max: Duration::from_secs(30),
                repair_every: Duration::from_secs(5),
                snapshot_every: 10_000,
                plain_text: false,
                tls: TlsConfig {
                    cert: String::new(),
                    key: String::new(),
                    ca: String::new(),
                    name: crate::tls::NAME_DEFAULT.to_owned(),
                },
            },
            query: QueryConfig {
                timeout: Duration::from_secs(120),
                slow_after_ms: 10_000,
                lookback: Duration::from_secs(300),
                concurrent_max: 20,
                queue_max: 200,
                samples_max: 50_000_000,
                bytes_max: 2 << 30,
                node_samples_max: 200_000_000,
                push_down: true,
            },
            write: WriteConfig {
                body_bytes_max: 100 << 20,
                decoded_bytes_max: 256 << 20,
                in_flight_bytes_max: 512 << 20,
                timeout: Duration::from_secs(10),
            },
            log: LogConfig { segment_bytes_max: 64 << 20, checkpoint_bytes_min: 1 << 30 },
            blocks: BlocksConfig {
                window: Duration::from_secs(2 * 3600),
                seal_delay_ms: 60 * 60 * 1000,
                seal_late_max_ms: 12 * 60 * 60 * 1000,
                seal_idle_ms: 60 * 60 * 1000,
                work_dir: String::new(),
                scrub_bytes_per_second: 8 << 20,
            },
            object_store: object::options::Options::default(),
            block_cache: BlockOptions::default(),
            compaction: CompactionConfig::default(),
            limits: TenantLimits::default(),
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file, with the line.
    File {
        /// The file.
        path: PathBuf,
        /// The line of the key.
        line: u64,
    },
    /// An environment variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// Why a configuration is refused. Each says where, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file is not there or cannot be read.
    #[error("{path}: cannot read the file: {why}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The file is no YAML map.
    #[error("{path}: {why}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key nobody knows.
    #[error("{path}:{line}: unknown key {key:?}{hint}", path = .path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The key.
        key: String,
        /// The nearest known one.
        hint: String,
    },
    /// A value that does not fit.
    #[error("{origin}: {key} is {value:?}{}{why}, but must be {expects}", if .why.is_empty() { "" } else { ": " })]
    BadValue {
        /// Where it came from.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// The text.
        value: String,
        /// What is wrong with it, may be empty.
        why: String,
        /// What would be right.
        expects: &'static str,
    },
    /// Two values that do not fit together.
    #[error("{0}")]
    Together(String),
}

/// Options as they were given, before anything is believed.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The file to read.
    pub file: Option<PathBuf>,
    /// Flags: key of the table and text.
    pub flags: Vec<(&'static str, String)>,
}

/// A configuration in force, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// One for each of [`KEYS`], in its order.
    pub origins: Vec<Origin>,
    /// Things a person should look at that do not stop the node.
    pub warnings: Vec<String>,
}

/// Reads file and environment and puts flags above them.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(given: &Given, env: &[(String, String)]) -> Result<Loaded, Error> {
    let mut config = Config::default();
    let mut origins = vec![Origin::Default; KEYS.len()];
    let mut set = |key: &'static str, text: &str, origin: Origin| -> Result<(), Error> {
        let Some(at) = KEYS.iter().position(|known| known.name == key) else { return Ok(()) };
        let known = &KEYS[at];
        (known.set)(&mut config, text).map_err(|why| Error::BadValue {
            origin: origin.clone(),
            key: known.name,
            value: if known.secret { codec::HIDDEN } else { text }.to_owned(),
            why,
            expects: known.expects,
        })?;
        origins[at] = origin;
        Ok(())
    };
    if let Some(path) = &given.file {
        for (key, text, line) in read_file(path)? {
            set(key, &text, Origin::File { path: path.clone(), line })?;
        }
    }
    for key in KEYS {
        let name = key.env();
        if let Some((_, text)) = env.iter().find(|(have, _)| *have == name) {
            set(key.name, text, Origin::Env(name))?;
        }
    }
    for (key, text) in &given.flags {
        set(key, text, Origin::Flag(key.replace('.', "-")))?;
    }
    check_together(&config)?;
    Ok(Loaded { config, origins, warnings: unknown_env(env) })
}

fn read_file(path: &Path) -> Result<Vec<(&'static str, String, u64)>, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Unreadable { path: path.to_owned(), why: error.to_string() })?;
    let entries = file::read(&text).map_err(|why| Error::Syntax { path: path.to_owned(), why })?;
    let mut all = Vec::new();
    for entry in entries {
        let Some(key) = KEYS.iter().find(|known| known.name == entry.key) else {
            let section = KEYS.iter().any(|known| known.section() == entry.key);
            if section && entry.value == Value::Nothing {
                continue;
            }
            let hint = nearest(&entry.key, KEYS.iter().map(|known| known.name.to_owned()));
            return Err(Error::UnknownKey { path: path.to_owned(), line: entry.line, key: entry.key, hint });
        };
        match entry.value {
            Value::Text(text) => all.push((key.name, text, entry.line)),
            Value::Nothing => {}
            Value::List => {
                return Err(Error::BadValue {
                    origin: Origin::File { path: path.to_owned(), line: entry.line },
                    key: key.name,
                    value: "[…]".to_owned(),
                    why: String::new(),
                    expects: key.expects,
                });
            }
        }
    }
    Ok(all)
}

/// `, did you mean "x"?` when something known is near.
pub(crate) fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known
        .map(|candidate| (strsim::jaro_winkler(name, &candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, candidate)| format!(", did you mean {candidate:?}?"))
}

/// Variables that look like ours and are not. Refusing them would stop a node whose orchestrator sets
/// `ENGRAM_SERVICE_HOST` and the like for a service of that name; so those pass, and others are told.
fn unknown_env(env: &[(String, String)]) -> Vec<String> {
    let known: Vec<String> =
        KEYS.iter().map(Key::env).chain(["ENGRAM_CONFIG", "ENGRAM_URL"].map(str::to_owned)).collect();
    let injected = |name: &str| {
        let rest = &name["ENGRAM".len()..];
        rest.contains("_SERVICE_") || rest.contains("_PORT")
    };
    env.iter()
        .filter(|(name, _)| name.starts_with("ENGRAM_") && !known.contains(name) && !injected(name))
        .map(|(name, _)| format!("environment variable {name} is not known{}", nearest(name, known.iter().cloned())))
        .collect()
}

/// A window is made of whole slots, of which digests are kept, and is in memory until it is cut: at most a day.
const SLOT_SECONDS: u64 = engram_model::digest::SLOT_MS.cast_unsigned() / 1000;
const WINDOW_SLOTS_MAX: u64 = 24 * 3600 / SLOT_SECONDS;

fn check_together(config: &Config) -> Result<(), Error> {
    let window = config.blocks.window;
    let slots = window.as_secs() / SLOT_SECONDS;
    if Duration::from_secs(slots * SLOT_SECONDS) != window || !(1..=WINDOW_SLOTS_MAX).contains(&slots) {
        return Err(Error::Together(format!("blocks.window is {window:?}, it must be 5m, 10m, 15m … or 1d")));
    }
    if config.write.body_bytes_max > config.write.in_flight_bytes_max {
        return Err(Error::Together(format!(
            "write.body-bytes-max ({}) is larger than write.in-flight-bytes-max ({}): the largest request could never be taken",
            units::format_size(config.write.body_bytes_max),
            units::format_size(config.write.in_flight_bytes_max),
        )));
    }
    let (seeds, expect) = (config.join.len(), config.bootstrap_expect as usize);
    if expect > 0 && (expect > seeds || expect * 2 <= seeds) {
        return Err(Error::Together(format!(
            "bootstrap-expect is {expect} and join names {seeds} addresses: it must be at most their number, so that a \
             cluster can be founded, and more than half of it, so that two cannot"
        )));
    }
    if config.cluster.dead_after <= config.cluster.suspect_after {
        return Err(Error::Together(
            "cluster.dead-after must be longer than cluster.suspect-after: a node is suspect before it is dead"
                .to_owned(),
        ));
    }
    check_tls(config).map_err(Error::Together)?;
    if config.http_listen == config.grpc_listen && !config.http_listen.ends_with(":0") {
        return Err(Error::Together(format!(
            "http-listen and grpc-listen are both {}: they need two ports",
            config.http_listen
        )));
    }
    let rules = config.compaction.rules(config.window_ms()).check(config.window_ms());
    rules.map_err(|why| Error::Together(format!("compaction.ranges: {why}")))?;
    let longest = i64::try_from(config.query.timeout.as_millis()).unwrap_or(i64::MAX);
    if config.compaction.grace_ms < longest {
        return Err(Error::Together(format!(
            "compaction.grace ({}) is shorter than query.timeout ({}): blocks would be deleted under a query",
            units::format_duration_ms(config.compaction.grace_ms),
            units::format_duration_ms(longest),
        )));
    }
    let store = config.object_store.check(config.data_dir.clone());
    store.map_err(|why| Error::Together(format!("object-store: {why}")))?;
    Ok(())
}

/// All of TLS or nothing; and nothing only where nobody else comes, or where a person says so.
fn check_tls(config: &Config) -> Result<(), String> {
    let tls = &config.cluster.tls;
    let missing: Vec<&str> = [("cert", &tls.cert), ("key", &tls.key), ("ca", &tls.ca)]
        .iter()
        .filter(|(_, path)| path.is_empty())
        .map(|(name, _)| *name)
        .collect();
    let (is_on, host) = (missing.is_empty(), config.grpc_listen.rsplit_once(':').map_or("", |(host, _)| host));
    let is_loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match (is_on, config.cluster.plain_text) {
        (true, true) => Err("cluster.plain-text is set and cluster.tls too: take one of them away".to_owned()),
        (false, _) if missing.len() < 3 => {
            Err(format!("cluster.tls needs cert, key and ca; missing: {}", missing.join(", ")))
        }
        (false, false) if !is_loopback => Err(format!(
            "grpc-listen is {}, which other machines reach, and whoever reaches it can read and write everything: set \
             cluster.tls.cert, cluster.tls.key and cluster.tls.ca (`engram tls init-ca` and `engram tls issue NAME` make \
             them), or cluster.plain-text where the network is trusted, or listen on 127.0.0.1",
            config.grpc_listen
        )),
        _ => Ok(()),
    }
}

impl Config {
    /// Where the files for TLS between nodes lie; none for plain text.
    #[must_use]
    pub fn tls_files(&self) -> Option<crate::tls::Files> {
        let tls = &self.cluster.tls;
        let [cert, key, ca] = [&tls.cert, &tls.key, &tls.ca].map(PathBuf::from);
        (!tls.cert.is_empty()).then(|| crate::tls::Files { cert, key, ca, name: tls.name.clone() })
    }

    /// As a file would say it, but for secrets; with `comments`, each key with its meaning.
    #[must_use]
    pub fn to_yaml(&self, comments: bool) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            let name = key.name.rsplit('.').next().unwrap_or(key.name);
            let indent = if key.section().is_empty() { "" } else { "  " };
            if key.section() != section {
                section = key.section();
                let title = if comments { format!("\n# {}.\n", section_title(section)) } else { String::new() };
                put(&mut text, format_args!("{title}{section}:\n"));
            }
            if comments {
                for line in wrapped(&format!("{} Takes {}.", key.help, key.expects), 96) {
                    put(&mut text, format_args!("{indent}# {line}\n"));
                }
            }
            put(&mut text, format_args!("{indent}{name}: {}\n", quoted(&(key.get)(self))));
        }
        text
    }

    /// Every option by its flag's name, with its value.
    #[must_use]
    pub fn to_flags(&self) -> Vec<(String, String)> {
        KEYS.iter().map(|key| (key.flag(), (key.get)(self))).collect()
    }

    /// Length of the windows heads are cut by, in milliseconds.
    #[must_use]
    pub fn window_ms(&self) -> i64 {
        i64::try_from(self.blocks.window.as_millis()).unwrap_or(i64::MAX)
    }

    /// This node's name: the machine's, when none was given.
    #[must_use]
    pub fn node_name_or_host(&self) -> Name {
        if self.node_name != "auto" {
            return self.node_name.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String =
            host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(63).collect();
        if host.is_empty() { "node".to_owned() } else { host }
    }
}

fn put(text: &mut String, what: fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _written = text.write_fmt(what);
}

/// A value as YAML: plain where it reads back as itself.
fn quoted(value: &str) -> String {
    let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "./-_".contains(c)) && !value.starts_with('-');
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}
