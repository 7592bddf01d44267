//! The report: one struct, printed for people or as JSON.

use super::process::Usage;
use super::queries::KindTally;
use super::verify::Verdict;
use super::writer::Tally;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

/// Latencies in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

impl Latency {
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a run are far below 2^53")]
    fn of(us: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1000.0;
        let at = |quantile| ms(us.value_at_quantile(quantile));
        Self { p50_ms: at(0.5), p90_ms: at(0.9), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: ms(us.max()) }
    }
}

/// The writing half.
#[derive(Debug, Serialize)]
pub(crate) struct Writing {
    seconds: f64,
    samples_per_second: f64,
    samples_acknowledged: u64,
    samples_unknown: u64,
    requests: u64,
    retries: u64,
    bytes_raw: u64,
    bytes_sent: u64,
    latency: Latency,
    errors: BTreeMap<String, u64>,
}

/// One kind of query.
#[derive(Debug, Serialize)]
pub(crate) struct Querying {
    kind: &'static str,
    answers: u64,
    empty: u64,
    bytes: u64,
    latency: Latency,
    errors: BTreeMap<String, u64>,
}

/// What a process cost over the run.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    before: Usage,
    after: Usage,
    cpu_seconds: f64,
    cpu_seconds_per_million_samples: Option<f64>,
    rss_bytes_per_series: Option<f64>,
    disk_write_bytes_per_sample: Option<f64>,
}

impl Cost {
    /// From two looks at a process; per sample and series where there were any.
    #[allow(clippy::cast_precision_loss, reason = "a report needs three digits")]
    pub(crate) fn new(before: Usage, after: Usage, samples: u64, series: usize) -> Self {
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        let wrote = samples > 0;
        let disk = after.disk_write_bytes.zip(before.disk_write_bytes).map(|(b, a)| b.saturating_sub(a) as f64);
        Self {
            before,
            after,
            cpu_seconds,
            cpu_seconds_per_million_samples: wrote.then(|| cpu_seconds * 1e6 / samples as f64),
            rss_bytes_per_series: (wrote && series > 0)
                .then(|| (after.rss_bytes as f64 - before.rss_bytes as f64) / series as f64),
            disk_write_bytes_per_sample: disk.filter(|_| wrote).map(|bytes| bytes / samples as f64),
        }
    }
}

/// Everything there is to say about a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) run_id: String,
    pub(crate) series: usize,
    /// Series that existed over the whole run, churn included.
    pub(crate) series_created: usize,
    pub(crate) scrapes: usize,
    pub(crate) writing: Option<Writing>,
    pub(crate) querying_while_writing: Vec<Querying>,
    pub(crate) querying: Vec<Querying>,
    pub(crate) server: Option<Cost>,
    /// The server between writing and the end: what the queries cost.
    pub(crate) server_querying: Option<Cost>,
    pub(crate) client_cpu_seconds: Option<f64>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) passed: bool,
}

impl Writing {
    /// The numbers of a finished writing phase.
    #[allow(clippy::cast_precision_loss, reason = "a report needs three digits")]
    pub(crate) fn new(tally: Tally, seconds: f64) -> Self {
        Self {
            seconds,
            samples_per_second: tally.acknowledged as f64 / seconds.max(1e-9),
            samples_acknowledged: tally.acknowledged,
            samples_unknown: tally.unknown,
            requests: tally.requests,
            retries: tally.retries,
            bytes_raw: tally.raw_bytes,
            bytes_sent: tally.sent_bytes,
            latency: Latency::of(&tally.latency_us),
            errors: tally.errors,
        }
    }

    /// Whether every sample was acknowledged.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }
}

impl Querying {
    /// The numbers of one kind.
    pub(crate) fn new(tally: KindTally) -> Self {
        Self {
            kind: tally.name,
            answers: tally.latency_us.len(),
            empty: tally.empty,
            bytes: tally.bytes,
            latency: Latency::of(&tally.latency_us),
            errors: tally.errors,
        }
    }

    /// Whether every question was answered.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }
}

impl Report {
    /// Prints it on standard output.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(crate) fn print(&self, json: bool) -> std::io::Result<()> {
        let out = &mut std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return writeln!(out);
        }
        writeln!(
            out,
            "run {}: {} series, {} in all, {} scrapes",
            self.run_id, self.series, self.series_created, self.scrapes
        )?;
        if let Some(writing) = &self.writing {
            print_writing(out, writing)?;
        }
        print_queries(out, "queries while writing", &self.querying_while_writing)?;
        print_queries(out, "queries", &self.querying)?;
        if let Some(cost) = &self.server {
            print_cost(out, "server", cost)?;
        }
        if let Some(cost) = &self.server_querying {
            writeln!(out, "server, queries only: {:.2} CPU s", cost.cpu_seconds)?;
        }
        if let Some(cpu) = self.client_cpu_seconds {
            writeln!(out, "this tool: {cpu:.2} CPU s")?;
        }
        if let Some(verdict) = &self.verdict {
            print_verdict(out, verdict)?;
        }
        writeln!(out, "{}", if self.passed { "passed" } else { "FAILED" })
    }
}

#[allow(clippy::cast_precision_loss, reason = "a report needs three digits")]
fn print_writing(out: &mut impl Write, writing: &Writing) -> std::io::Result<()> {
    let w = writing;
    writeln!(
        out,
        "wrote {} samples in {:.1} s: {:.0} samples/s ({} requests, {} sent again, {} samples without acknowledgement)",
        w.samples_acknowledged, w.seconds, w.samples_per_second, w.requests, w.retries, w.samples_unknown
    )?;
    let per = w.bytes_sent as f64 / (w.samples_acknowledged + w.samples_unknown).max(1) as f64;
    writeln!(
        out,
        "  {:.1} MB, {:.1} MB compressed, {per:.1} B a sample",
        w.bytes_raw as f64 / 1e6,
        w.bytes_sent as f64 / 1e6
    )?;
    writeln!(out, "  latency ms: {}", row(&w.latency))?;
    print_errors(out, &w.errors)
}

fn row(l: &Latency) -> String {
    format!(
        "p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms
    )
}

fn print_errors(out: &mut impl Write, errors: &BTreeMap<String, u64>) -> std::io::Result<()> {
    errors.iter().try_for_each(|(reason, count)| writeln!(out, "  ERROR {count} x {reason}"))
}

fn print_queries(out: &mut impl Write, title: &str, kinds: &[Querying]) -> std::io::Result<()> {
    if kinds.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}, ms:")?;
    writeln!(
        out,
        "  {:28}{:>8}{:>7}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "kind", "answers", "empty", "p50", "p90", "p99", "p99.9", "max"
    )?;
    for kind in kinds {
        let l = &kind.latency;
        writeln!(
            out,
            "  {:28}{:>8}{:>7}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
            kind.kind, kind.answers, kind.empty, l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms
        )?;
        print_errors(out, &kind.errors)?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a report needs three digits")]
fn print_cost(out: &mut impl Write, who: &str, cost: &Cost) -> std::io::Result<()> {
    write!(out, "{who}: {:.2} CPU s", cost.cpu_seconds)?;
    if let Some(per) = cost.cpu_seconds_per_million_samples {
        write!(out, ", {per:.2} for a million samples")?;
    }
    let mb = |bytes: u64| bytes as f64 / 1e6;
    write!(out, "; memory {:.0} to {:.0} MB", mb(cost.before.rss_bytes), mb(cost.after.rss_bytes))?;
    if let Some(per) = cost.rss_bytes_per_series {
        write!(out, ", {per:.0} B a series")?;
    }
    if let Some(per) = cost.disk_write_bytes_per_sample {
        write!(out, "; {per:.1} B written to disk a sample")?;
    }
    writeln!(out)
}

fn print_verdict(out: &mut impl Write, verdict: &Verdict) -> std::io::Result<()> {
    writeln!(
        out,
        "verified: {} samples stored, {} acknowledged, {} unknown; {} series compared sample by sample ({} samples)",
        verdict.counted, verdict.acknowledged, verdict.unknown, verdict.series_compared, verdict.samples_compared
    )?;
    for finding in &verdict.findings {
        writeln!(out, "  DIFFERS {finding}")?;
    }
    let untold = verdict.findings_count - verdict.findings.len() as u64;
    if untold > 0 { writeln!(out, "  … and {untold} more") } else { Ok(()) }
}
