//! `engram export`: what a tenant has, taken out of a running node over HTTP.
//!
//! Why beside snapshots: a snapshot lies on the node's disk and holds everything; this writes where the person stands,
//! a part of the series if so wished, as text or as blocks. It needs nothing of the node but its API.
//!
//! - `openmetrics`: one metric after the other, so that all lines of a metric stand together.
//! - `blocks`: one block of Prometheus a window of time, each verified when it is written; native histograms and
//!   staleness markers are in them.
//!
//! A file is written under another name and renamed at the end; blocks that are there stay when a later one fails.
//!
//! Map: [`source`] series over remote read · [`openmetrics`] lines of text.

mod openmetrics;
mod source;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use engram_model::block::BlockId;
use engram_model::series::Columns;
use engram_model::time::{Clock, Stopwatch};
use engram_model::{Matcher, Millis, TimeRange};
use engram_query::parse::parse_selector;
use engram_storage::block::writer::clean;
use engram_storage::block::{BlockWriter, Spec};
use engram_storage::disk::Disk;
use engram_storage::disk::real::RealDisk;

use super::client::Said;
use super::{text, with_url};
use crate::config::units::parse_duration_ms;
use crate::http::parse_time;
use openmetrics::LeftOut;
use source::Source;

/// Where the windows of blocks begin and end: a multiple of this.
const WINDOW_MS: i64 = 2 * 60 * 60 * 1000;
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// What is to be exported, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The node.
    pub url: String,
    /// Whose data; none: the anonymous tenant's.
    pub tenant: Option<String>,
    /// As what.
    pub format: Format,
    /// Series that one of these selects; empty: all.
    pub selectors: Vec<String>,
    /// Only samples at or after this.
    pub start: Option<Millis>,
    /// Only samples at or before this.
    pub end: Option<Millis>,
    /// A file (none: standard output), or the directory of the blocks.
    pub output: Option<PathBuf>,
}

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text.
    OpenMetrics,
    /// Blocks of Prometheus, each at most this long.
    Blocks(i64),
}

/// The grammar.
pub(crate) fn command() -> Command {
    let time = |name: &'static str, help: &str| {
        Arg::new(name)
            .long(name)
            .value_name("TIME")
            .value_parser(parse_time)
            .allow_hyphen_values(true)
            .help(format!("{help}, RFC 3339 or seconds since 1970"))
    };
    with_url(
        Command::new("export")
            .about("Write a tenant's samples as OpenMetrics text or as blocks of Prometheus")
            .after_help(
                "Examples:\n\n    engram export --tenant acme > acme.om\n    \
                 engram export --format blocks --output ./blocks --match '{job=\"api\"}' --start 2026-01-01T00:00:00Z\n\n\
                 The text has no words for native histograms and staleness markers: they are left out and counted. \
                 Blocks hold them.",
            ),
    )
    .arg(Arg::new("tenant").long("tenant").value_name("NAME").help("Whose data [default: anonymous]"))
    .arg(
        Arg::new("format")
            .long("format")
            .value_name("FORMAT")
            .value_parser(["openmetrics", "blocks"])
            .default_value("openmetrics")
            .help("As what"),
    )
    .arg(
        Arg::new("match")
            .long("match")
            .value_name("SELECTOR")
            .action(ArgAction::Append)
            .help("Only series that this selects, such as '{job=\"api\"}'. May be repeated"),
    )
    .arg(time("start", "Only samples at or after this"))
    .arg(time("end", "Only samples at or before this"))
    .arg(
        Arg::new("output")
            .long("output")
            .short('o')
            .value_name("PATH")
            .required_if_eq("format", "blocks")
            .help("The file [default: standard output], or the directory of the blocks"),
    )
    .arg(
        Arg::new("block-duration")
            .long("block-duration")
            .value_name("DURATION")
            .default_value("24h")
            .value_parser(window)
            .help("Length of a block, a multiple of 2h"),
    )
}

fn window(text: &str) -> Result<i64, String> {
    let millis = parse_duration_ms(text).map_err(|why| why.to_string())?;
    if millis > 0 && millis % WINDOW_MS == 0 { Ok(millis) } else { Err("it is no multiple of 2h".to_owned()) }
}

/// What the words ask for.
pub(crate) fn wanted(matches: &ArgMatches, url: String) -> Export {
    let millis = |name: &str| matches.get_one::<Millis>(name).copied();
    let format = match text(matches, "format").as_deref() {
        Some("blocks") => Format::Blocks(millis("block-duration").unwrap_or(WINDOW_MS)),
        _ => Format::OpenMetrics,
    };
    Export {
        url,
        tenant: text(matches, "tenant"),
        format,
        selectors: matches.get_many::<String>("match").into_iter().flatten().cloned().collect(),
        start: millis("start"),
        end: millis("end"),
        output: text(matches, "output").filter(|path| path != "-").map(PathBuf::from),
    }
}

/// Exports; answers what to say at the end.
///
/// # Errors
/// A line for the person.
pub fn run(export: &Export) -> Result<Said, String> {
    let selectors = match export.selectors.is_empty() {
        true => vec![Vec::new()],
        false => export
            .selectors
            .iter()
            .map(|text| parse_selector(text).map_err(|why| format!("--match {text:?}: {why}")))
            .collect::<Result<Vec<_>, _>>()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let source = Source::new(&export.url, export.tenant.clone())?;
    let work = async {
        match export.format {
            Format::OpenMetrics => lines(export, &source, &selectors).await,
            Format::Blocks(length) => blocks(export, &source, &selectors, length).await,
        }
    };
    runtime.block_on(work)?;
    Ok(Said { text: String::new(), is_good: true })
}

/// What has been done so far, told on standard error now and then.
struct Progress {
    watch: Stopwatch,
    told: Duration,
    is_terminal: bool,
    series: u64,
    samples: u64,
}

impl Progress {
    fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { watch: Stopwatch::start(), told: Duration::ZERO, is_terminal, series: 0, samples: 0 }
    }

    fn tell(&mut self, step: impl FnOnce() -> String) {
        let now = self.watch.elapsed();
        if now.saturating_sub(self.told) >= TOLD_EVERY {
            self.told = now;
            self.say(&step(), if self.is_terminal { "\r" } else { "\n" });
        }
    }

    fn end(&self, what: &str) {
        self.say(what, "\n");
    }

    fn say(&self, what: &str, end: &str) {
        let (series, samples, seconds) = (self.series, self.samples, self.watch.elapsed().as_secs_f64());
        // With nobody to print to there is nobody to tell.
        let _told = write!(io::stderr(), "export: {what}, {series} series, {samples} samples, {seconds:.0} s{end}");
    }
}

/// The output of text: a file that gets its name at the end, or standard output.
enum Output {
    File(BufWriter<File>, PathBuf, PathBuf),
    Standard(BufWriter<io::Stdout>),
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::Standard(BufWriter::new(io::stdout()))) };
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".part");
        let unfinished = PathBuf::from(unfinished);
        let file = File::create(&unfinished).map_err(|e| format!("cannot write {}: {e}", unfinished.display()))?;
        Ok(Self::File(BufWriter::new(file), unfinished, path.to_owned()))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), String> {
        match self {
            Self::File(file, path, _) => {
                file.write_all(bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
            }
            Self::Standard(out) => out.write_all(bytes).map_err(|e| format!("cannot write: {e}")),
        }
    }

    fn finish(self) -> Result<(), String> {
        match self {
            Self::Standard(mut out) => out.flush().map_err(|e| format!("cannot write: {e}")),
            Self::File(mut file, unfinished, path) => {
                let done = file.flush().and_then(|()| file.get_ref().sync_all());
                let done = done.and_then(|()| std::fs::rename(&unfinished, &path));
                done.map_err(|e| format!("cannot write {}: {e}", path.display()))
            }
        }
    }
}

async fn lines(export: &Export, source: &Source, selectors: &[Vec<Matcher>]) -> Result<(), String> {
    let range = (export.start.unwrap_or(i64::MIN), export.end.unwrap_or(i64::MAX - 1));
    let mut output = Output::open(export.output.as_deref())?;
    let (mut progress, mut left) = (Progress::new(), LeftOut::default());
    let bounds = source.bounds().await?;
    // The API of names takes no times that lie far away.
    let asked = bounds.map(|(oldest, newest)| (range.0.max(oldest), range.1.min(newest)));
    let mut names = match asked {
        Some(asked) if asked.0 <= asked.1 => source.names(&export.selectors, asked).await?,
        _ => Vec::new(),
    };
    // Series without a name are looked for too, to be counted.
    names.push(String::new());
    let (mut out, mut columns) = (Vec::new(), Columns::default());
    for (i, name) in names.iter().enumerate() {
        let named: Vec<Vec<Matcher>> = selectors
            .iter()
            .map(|matchers| matchers.iter().cloned().chain([Matcher::equal("__name__", name)]).collect())
            .collect();
        let mut union = source.union(&named, range).await?;
        while let Some((labels, chunks)) = union.next().await? {
            columns.clear();
            chunks
                .iter()
                .try_for_each(|chunk| chunk.decode(&mut columns))
                .map_err(|e| format!("series {labels}: {e}"))?;
            out.clear();
            progress.samples += openmetrics::put_series(&mut out, &labels, &columns, &mut left);
            progress.series += 1;
            output.put(&out)?;
            progress.tell(|| format!("{i} of {} metrics", names.len() - 1));
        }
    }
    output.put(openmetrics::END)?;
    output.finish()?;
    progress.end(&format!("{} metrics", names.len() - 1));
    for (count, what) in [
        (left.histograms, "native histograms: the text has no words for them, use --format blocks"),
        (left.markers, "staleness markers: the text has no words for them, use --format blocks"),
        (left.nameless, "samples of series without a name: use --format blocks"),
    ] {
        if count > 0 {
            let _told = writeln!(io::stderr(), "export: left out {count} {what}");
        }
    }
    Ok(())
}

async fn blocks(export: &Export, source: &Source, selectors: &[Vec<Matcher>], length: i64) -> Result<(), String> {
    let Some(dir) = &export.output else { return Err("--output is missing".to_owned()) };
    RealDisk.create_dir(dir).map_err(|e| e.to_string())?;
    let mut all = Blocks { source, selectors, dir, length, progress: Progress::new() };
    let Some((oldest, newest)) = source.bounds().await? else {
        all.progress.end("the tenant has no samples");
        return Ok(());
    };
    let (oldest, newest) = (export.start.unwrap_or(oldest).max(oldest), export.end.unwrap_or(newest).min(newest));
    let (mut at, mut count) = (oldest, 0_u64);
    while at <= newest {
        let start = at.div_euclid(length).saturating_mul(length);
        let window = TimeRange::new(start, start.saturating_add(length));
        let done = all.one(window, (at, newest.min(window.end - 1))).await;
        if done.is_err() {
            // What is unfinished is no block; the first failure is the one to tell.
            let _cleaned = clean(&RealDisk, dir);
        }
        count += u64::from(done?);
        all.progress.tell(|| format!("{count} blocks up to {}", crate::http::format_time(window.end)));
        at = window.end;
    }
    all.progress.end(&format!("{count} blocks in {}", dir.display()));
    Ok(())
}

/// What is the same for all blocks of an export.
struct Blocks<'a> {
    source: &'a Source,
    selectors: &'a [Vec<Matcher>],
    dir: &'a Path,
    length: i64,
    progress: Progress,
}

impl Blocks<'_> {
    /// Writes the block of one window with the samples of `range`, both ends inside; says whether there were any.
    async fn one(&mut self, window: TimeRange, range: (Millis, Millis)) -> Result<bool, String> {
        let id = BlockId::new(Clock::real().now(), uuid::Uuid::new_v4().as_u128());
        let mut union = self.source.union(self.selectors, range).await?;
        let spec = Spec::cut(id, window, self.length);
        let mut writer = BlockWriter::create(Arc::new(RealDisk), self.dir, spec).map_err(|e| e.to_string())?;
        while let Some((labels, chunks)) = union.next().await? {
            writer.add(&labels, &chunks).map_err(|e| e.to_string())?;
            self.progress.series += 1;
            let end = window.end;
            self.progress.tell(|| format!("block up to {}, {} bytes", crate::http::format_time(end), union.bytes()));
        }
        let written = writer.finish().map_err(|e| e.to_string())?;
        self.progress.samples += written.as_ref().map_or(0, |written| written.report.digest().count);
        Ok(written.is_some())
    }
}
