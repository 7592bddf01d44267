//! What may be asked, with defaults that suit a store on this machine.

use crate::client::Protocol;
use crate::cluster::{Network, network_used};
use std::path::PathBuf;
use std::time::Duration;

/// Engram's adversary: load, measurement and proof against a running store.
#[derive(clap::Parser, Debug)]
#[command(name = "engram-chaos", version, about, max_term_width = 110)]
pub(crate) enum Command {
    /// Write realistic series by remote write, then query them, measure both and verify what is stored.
    Load(Load),
    /// Kill a node with SIGKILL in the middle of writes, again and again, and look for lost or invented samples.
    Kill(Kill),
    /// Break a real cluster under load, check what it promised, and report: a scenario, `smoke` or `all`.
    Run(Run),
    /// Break clusters in ever new ways until something is found.
    Soak(Soak),
    /// Run builds that are broken on purpose, and require each to be caught: needs a node built with `--features mutants`.
    Mutants(Mutants),
    /// Run whole clusters in one thread with simulated time, network and disks, one schedule for each seed.
    #[cfg(any(test, feature = "sim"))]
    Sim(Sim),
    /// Name every scenario: what is done, what is promised.
    List,
    /// Becomes another program that ends when we end.
    #[command(hide = true)]
    Guard {
        #[arg(long)]
        parent: u32,
        /// The network namespace it lives in, as a file.
        #[arg(long)]
        network: Option<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// `engram-chaos run`
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Run {
    /// A scenario's name, several with commas between; `smoke` for the short set, about six minutes; `all` for all but what
    /// is planted, about an hour and a quarter; `planted` for what must be found.
    pub(crate) what: String,
    /// Replays whom faults hit and when, and what clients do; default: new for each run, printed.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Runs of each scenario, with the seed, the seed + 1, …: other nodes are hit, at other times, and clients do other things.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Faults this machine cannot do are no failure.
    #[arg(long)]
    pub(crate) allow_skipped: bool,
    #[command(flatten)]
    pub(crate) how: How,
}

/// Defaults of how much load there is.
const WRITERS: u32 = 8;
const SERIES: u32 = 8;
const PAUSE_MS: u64 = 40;

/// How every run is made.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct How {
    /// The engram binary; default: the one beside this program.
    #[arg(long)]
    pub(crate) engram: Option<PathBuf>,
    /// An older engram binary, for `rolling-upgrade`.
    #[arg(long)]
    pub(crate) engram_old: Option<PathBuf>,
    /// Another store in place of Engram: the file that describes it, as in docs/examples.
    #[arg(long)]
    pub(crate) peer: Option<PathBuf>,
    /// Where reports are written: report.json and report.html, of a soak episodes.jsonl and soak.json, of mutants mutants.md;
    /// default: nowhere.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Where the nodes' data live during a run.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) work_dir: PathBuf,
    /// Keep data, logs and history even when all is well.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Clients that write; default: 8, in a soak drawn for each episode.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) writers: Option<u32>,
    /// Series of each of them, a sample of each in every request; default: 8, in a soak drawn for each episode.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) series: Option<u32>,
    /// Mean pause of a client between two requests, milliseconds; default: 40, in a soak drawn for each episode.
    #[arg(long)]
    pub(crate) pause_ms: Option<u64>,
    /// What lies between nodes.
    #[arg(long, value_enum, default_value_t = Network::Auto)]
    pub(crate) network: Network,
}

impl How {
    /// The options that make a run what it is, where they were given, as they are written.
    pub(crate) fn said(&self) -> String {
        let mut text = String::new();
        let paths = [("engram", &self.engram), ("engram-old", &self.engram_old), ("peer", &self.peer)];
        for (name, path) in paths.iter().filter_map(|(name, path)| Some((name, path.as_ref()?))) {
            text += &format!(" --{name} {}", path.display());
        }
        let (writers, series) = (self.writers.map(u64::from), self.series.map(u64::from));
        let numbers = [("writers", writers), ("series", series), ("pause-ms", self.pause_ms)];
        for (name, value) in numbers.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
            text += &format!(" --{name} {value}");
        }
        // What it was, so that it is the same on a machine that can do more.
        let network = network_used(self.network);
        if network != Network::Auto {
            text += &format!(" --network {}", network.name());
        }
        text
    }

    /// Clients that write, series of each, mean pause in milliseconds; `wanted`: what a scenario takes when nobody says.
    pub(crate) fn load(&self, wanted: Option<(u32, u32, u64)>) -> (u32, u32, u64) {
        let (writers, series, pause_ms) = wanted.unwrap_or((WRITERS, SERIES, PAUSE_MS));
        (self.writers.unwrap_or(writers), self.series.unwrap_or(series), self.pause_ms.unwrap_or(pause_ms))
    }
}

/// `engram-chaos mutants`
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Mutants {
    /// Only these, with commas between.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// The first seed tried.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many seeds a mutant may survive before it counts as not caught.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tries: u32,
    #[command(flatten)]
    pub(crate) how: How,
}

/// `engram-chaos soak`
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Soak {
    /// How long; default: until something is found or Ctrl-C.
    #[arg(long, value_parser = hours)]
    pub(crate) hours: Option<Duration>,
    /// From which everything is drawn; default: new for each soak, printed.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Only this episode of that seed.
    #[arg(long, requires = "seed")]
    pub(crate) episode: Option<u64>,
    #[command(flatten)]
    pub(crate) how: How,
}

/// `engram-chaos sim`
#[cfg(any(test, feature = "sim"))]
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Sim {
    /// Schedules.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seeds: u64,
    /// The first seed; the others count up from it.
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Only this one, with every event.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    pub(crate) seed: Option<u64>,
    /// Schedules at once.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Begin no schedule after so many seconds, whatever is left; what was played is told.
    #[arg(long)]
    pub(crate) within: Option<u64>,
    /// Every so many-th is played a second time, and must be the same schedule then.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) twice_every: u64,
    /// Who agrees on the metadata: one list, or a group of real consensus (default: as the seed says).
    #[arg(long)]
    pub(crate) consensus: Option<crate::sim::Agrees>,
    /// Break the nodes on purpose in this way, and play until a checker sees it.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    pub(crate) mutant: Option<String>,
}

#[cfg(any(test, feature = "sim"))]
impl Sim {
    pub(crate) fn wanted(&self) -> crate::sim::Wanted {
        let (from, seeds) = self.seed.map_or((self.from, self.seeds), |seed| (seed, 1));
        crate::sim::Wanted {
            from,
            seeds,
            threads: self.threads,
            within: self.within.map(Duration::from_secs),
            twice_every: self.twice_every,
            aloud: self.seed.is_some(),
            consensus: self.consensus,
        }
    }
}

/// `engram-chaos load`
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Load {
    /// Where to write: the full address of remote write.
    #[arg(long, default_value = "http://127.0.0.1:9009/api/v1/push", help_heading = "Server")]
    pub(crate) url: String,
    /// Where to query: the address before /api/v1 (default: scheme, host and port of --url).
    #[arg(long, help_heading = "Server")]
    pub(crate) query_url: Option<String>,
    /// Process to watch: reports its CPU and memory (it must run on this machine).
    #[arg(long, help_heading = "Server")]
    pub(crate) pid: Option<u32>,
    /// How many tenants share the series; 0 sends no X-Scope-OrgID at all.
    #[arg(long, default_value_t = 0, help_heading = "Server")]
    pub(crate) tenants: usize,
    /// Tenants are called PREFIX0, PREFIX1, …
    #[arg(long, default_value = "load-", help_heading = "Server")]
    pub(crate) tenant_prefix: String,
    /// Give up on one request after this long.
    #[arg(long, default_value = "30s", value_parser = duration, help_heading = "Server")]
    pub(crate) timeout: Duration,

    /// Series that are active at any moment, over all tenants.
    #[arg(long, default_value_t = 10_000, help_heading = "Series")]
    pub(crate) series: usize,
    /// Time between two samples of a series.
    #[arg(long, default_value = "15s", value_parser = duration, help_heading = "Series")]
    pub(crate) interval: Duration,
    /// Samples of each series; 0 writes nothing and only queries.
    #[arg(long, default_value_t = 60, conflicts_with = "duration", help_heading = "Series")]
    pub(crate) scrapes: usize,
    /// Instead of --scrapes: the stretch of (simulated) time to fill.
    #[arg(long, value_parser = duration, help_heading = "Series")]
    pub(crate) duration: Option<Duration>,
    /// Labels of each series, at least, its name included.
    #[arg(long, default_value_t = 10, help_heading = "Series")]
    pub(crate) labels: usize,
    /// Share of the series replaced by new ones in each (simulated) hour; 1 replaces each once an hour.
    #[arg(long, default_value_t = 0.0, help_heading = "Series")]
    pub(crate) churn: f64,
    /// Names this run's series (label `cluster`) and seeds their values; default: new for each run.
    #[arg(long, help_heading = "Series")]
    pub(crate) run_id: Option<String>,

    /// How fast simulated time passes: 1 is real time, 0 as fast as the server takes it. Timestamps end now,
    /// except in real time, where they are the time of sending.
    #[arg(long, default_value_t = 0.0, help_heading = "Writing")]
    pub(crate) speedup: f64,
    /// Requests in flight at once.
    #[arg(long, default_value_t = 4, help_heading = "Writing")]
    pub(crate) concurrency: usize,
    /// Samples in a request.
    #[arg(long, default_value_t = 2_000, help_heading = "Writing")]
    pub(crate) batch: usize,
    /// Remote write protocol.
    #[arg(long, value_enum, default_value = "1.0", help_heading = "Writing")]
    pub(crate) protocol: Protocol,
    /// How often one request is sent again after 429, 5xx or no answer.
    #[arg(long, default_value_t = 10, help_heading = "Writing")]
    pub(crate) retries: u32,

    /// Queries of each kind, after writing.
    #[arg(long, default_value_t = 0, help_heading = "Querying")]
    pub(crate) queries: u64,
    /// Instead of --queries: repeat the kinds for so long.
    #[arg(long, value_parser = duration, conflicts_with = "queries", help_heading = "Querying")]
    pub(crate) query_duration: Option<Duration>,
    /// Also query while writing, from the first scrape to the last.
    #[arg(long, help_heading = "Querying")]
    pub(crate) query_while_writing: bool,
    /// Queries in flight at once.
    #[arg(long, default_value_t = 2, help_heading = "Querying")]
    pub(crate) query_concurrency: usize,
    /// The stretch of time range queries look at, ending with the last sample.
    #[arg(long, default_value = "1h", value_parser = duration, help_heading = "Querying")]
    pub(crate) query_range: Duration,

    /// After writing, read back: the count of samples of each metric, and --verify-series whole series.
    #[arg(long, help_heading = "Verdict")]
    pub(crate) verify: bool,
    /// How many series --verify compares sample by sample.
    #[arg(long, default_value_t = 200, help_heading = "Verdict")]
    pub(crate) verify_series: usize,
    /// Print the report as one JSON object.
    #[arg(long, help_heading = "Verdict")]
    pub(crate) json: bool,
}

/// `engram-chaos kill`
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Kill {
    /// The engram binary.
    #[arg(long)]
    pub(crate) engram: PathBuf,
    /// Kills.
    #[arg(long, default_value_t = 20)]
    pub(crate) rounds: u32,
    /// Replays the moments of the kills and the pace of the writers; default: new for each run, printed.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Concurrent writers.
    #[arg(long, default_value_t = 4)]
    pub(crate) writers: usize,
    /// Series of each writer, one sample of each in every request.
    #[arg(long, default_value_t = 25)]
    pub(crate) series: usize,
    /// Longest time for a start, and for any one request.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub(crate) patience: Duration,
    /// Keep the data directory and the node's log even when all is well.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// A number of hours, with a fraction or without.
fn hours(text: &str) -> Result<Duration, String> {
    let hours = text.parse::<f64>().ok().filter(|hours| *hours > 0.0 && *hours <= 10_000.0);
    hours.map(|hours| Duration::from_secs_f64(hours * 3600.0)).ok_or_else(|| format!("'{text}' is no number of hours"))
}

/// `15s`, `1h30m`, `250ms`: Prometheus's way to write a stretch of time.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no duration: write 250ms, 15s, 5m, 1h30m or 7d");
    let mut total_ms: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total_ms = number.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(wrong)?;
        rest = tail;
    }
    if total_ms == 0 { Err(wrong()) } else { Ok(Duration::from_millis(total_ms)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Command::command().debug_assert();
    }

    #[test]
    fn hours_end() {
        assert_eq!(hours("0.5"), Ok(Duration::from_mins(30)));
        assert!(["inf", "NaN", "0", "-1", "1e9", "x"].into_iter().all(|text| hours(text).is_err()));
    }

    #[test]
    fn durations_read_as_in_prometheus() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "15", "s", "1x", "-1s", "0s", "99999999999999999999w"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
