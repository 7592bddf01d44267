//! What was acknowledged against what is read back.
//!
//! Two looks: the number of samples of each metric and tenant, for everything; and sample by sample, labels
//! included, for some series drawn by the run's seed. The fleet is a formula, so the truth needs no copy. A request
//! without a final answer may or may not be there: it widens the count and is checked for its value only.

use super::batch::{Batch, Fate};
use super::fleet::mix;
use super::queries::seconds;
use super::writer::Orders;
use crate::client::Client;
use crate::error::Error;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Samples one counting query may touch: below every server's usual limit.
const SAMPLES_PER_QUERY: usize = 4_000_000;
/// Findings told in words; the rest are counted.
const FINDINGS_TOLD: usize = 20;

/// The outcome of the comparison.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    /// Samples counted on the server.
    pub(crate) counted: u64,
    /// Samples it acknowledged.
    pub(crate) acknowledged: u64,
    /// Samples whose end is unknown.
    pub(crate) unknown: u64,
    /// Series compared sample by sample.
    pub(crate) series_compared: usize,
    /// Their samples.
    pub(crate) samples_compared: u64,
    /// How many things differ.
    pub(crate) findings_count: u64,
    /// The first of them.
    pub(crate) findings: Vec<String>,
}

impl Verdict {
    fn find(&mut self, text: String) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_TOLD {
            self.findings.push(text);
        }
    }
}

/// Reads back and compares.
///
/// # Errors
/// The server did not answer a query; what differs is a finding, no error.
pub(crate) async fn verify(orders: &Orders, batches: &[Batch], series_max: usize) -> Result<Verdict, Error> {
    let mut verdict = Verdict::default();
    count(orders, batches, &mut verdict).await?;
    let series_count: usize = batches.iter().map(|batch| batch.series.len()).sum();
    let mut drawn = BTreeSet::new();
    for draw in 0..series_max.min(series_count) as u64 {
        drawn.insert(usize::try_from(mix(0xd1a3, draw) % series_count as u64).unwrap_or(0));
    }
    for series in drawn {
        if let Some(batch) = batches.iter().find(|batch| batch.series.contains(&series)) {
            compare(orders, batch, series, &mut verdict).await?;
        }
    }
    Ok(verdict)
}

/// Expected samples: acknowledged, unknown.
type Expected = (u64, u64);

async fn count(orders: &Orders, batches: &[Batch], verdict: &mut Verdict) -> Result<(), Error> {
    let mut series: BTreeMap<(Option<String>, usize), usize> = BTreeMap::new();
    for batch in batches {
        for one in batch.series.clone() {
            *series.entry((batch.tenant.clone(), orders.fleet.metric(one))).or_default() += 1;
        }
    }
    for ((tenant, metric), series_count) in series {
        let window = (SAMPLES_PER_QUERY / series_count.max(1)).max(1);
        let mut from = 0;
        while from < orders.scrapes {
            let to = (from + window).min(orders.scrapes);
            let expected = expected(orders, batches, &tenant, metric, from..to);
            let name = orders.fleet.names()[metric];
            let range_ms = orders.time_of(to - 1) - orders.time_of(from) + 1;
            let query = format!("sum(count_over_time({name}{{cluster=\"{}\"}}[{range_ms}ms]))", orders.fleet.run());
            let counted = ask_count(&orders.client, query, orders.time_of(to - 1), tenant.as_deref()).await?;
            let (acknowledged, unknown) = expected;
            verdict.counted += counted;
            verdict.acknowledged += acknowledged;
            verdict.unknown += unknown;
            if counted < acknowledged || counted > acknowledged + unknown {
                let who = tenant.as_deref().unwrap_or("-");
                verdict.find(format!(
                    "{name}, tenant {who}, scrapes {from} to {}: {counted} samples stored, {acknowledged} acknowledged, \
                     {unknown} unknown",
                    to - 1
                ));
            }
            from = to;
        }
    }
    Ok(())
}

fn expected(
    orders: &Orders,
    batches: &[Batch],
    tenant: &Option<String>,
    metric: usize,
    scrapes: std::ops::Range<usize>,
) -> Expected {
    let mut sum = (0, 0);
    for batch in batches.iter().filter(|batch| batch.tenant == *tenant) {
        let of_metric = batch.series.clone().filter(|s| orders.fleet.metric(*s) == metric).count() as u64;
        for fate in &batch.fates[scrapes.clone()] {
            match fate {
                Fate::Acknowledged => sum.0 += of_metric,
                Fate::Unknown => sum.1 += of_metric,
                Fate::Unsent => {}
            }
        }
    }
    sum
}

async fn ask_count(client: &Client, query: String, at: i64, tenant: Option<&str>) -> Result<u64, Error> {
    let answer = client.ask("query", &[("query", query), ("time", seconds(at))], tenant).await?;
    let value = answer["data"]["result"][0]["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, whole and positive")]
    Ok(value.unwrap_or(0.0) as u64)
}

async fn compare(orders: &Orders, batch: &Batch, series: usize, verdict: &mut Verdict) -> Result<(), Error> {
    let fleet = &orders.fleet;
    let target = fleet.target(series);
    let labels = fleet.labels(series, 0);
    let matchers: Vec<String> = labels
        .iter()
        .filter(|(name, _)| name != "pod" && name != "__name__")
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    let name = fleet.names()[fleet.metric(series)];
    let last = orders.time_of(orders.scrapes - 1);
    let query = format!("{name}{{{}}}[{}ms]", matchers.join(","), last - orders.first + 1);
    let answer = orders
        .client
        .ask("query", &[("query", query.clone()), ("time", seconds(last))], batch.tenant.as_deref())
        .await?;
    let mut stored: BTreeMap<i64, (f64, &str)> = BTreeMap::new();
    for found in answer["data"]["result"].as_array().into_iter().flatten() {
        let pod = found["metric"]["pod"].as_str().unwrap_or_default();
        if found["metric"].as_object().map_or(0, serde_json::Map::len) != labels.len() {
            verdict.find(format!("{query}: other labels than were written: {}", found["metric"]));
        }
        for (at, value) in points(&found["values"]) {
            if stored.insert(at, (value, pod)).is_some() {
                verdict.find(format!("{query}: two samples at {at}"));
            }
        }
    }
    verdict.series_compared += 1;
    for (scrape, fate) in batch.fates.iter().enumerate() {
        let at = orders.time_of(scrape);
        let life = fleet.life(target, scrape);
        let (value, pod) = (fleet.value(series, scrape, life), super::fleet::Fleet::pod(target, life.generation));
        match (fate, stored.remove(&at)) {
            (Fate::Acknowledged, None) => verdict.find(format!("{query}: the acknowledged sample at {at} is missing")),
            (Fate::Unsent, Some(_)) => verdict.find(format!("{query}: a sample at {at} that nobody sent")),
            (_, Some((have, have_pod))) if have.to_bits() != value.to_bits() || have_pod != pod => {
                verdict.find(format!("{query} at {at}: {have} of {have_pod} is stored, {value} of {pod} was sent"));
            }
            (_, found) => verdict.samples_compared += u64::from(found.is_some()),
        }
    }
    for at in stored.keys() {
        verdict.find(format!("{query}: a sample at {at} that nobody sent"));
    }
    Ok(())
}

/// The points of a JSON matrix row: times in milliseconds and values.
pub(crate) fn points(values: &Value) -> Vec<(i64, f64)> {
    let point = |pair: &Value| {
        let at = pair[0].as_f64()?;
        let value = pair[1].as_str()?.parse().ok()?;
        #[allow(clippy::cast_possible_truncation, reason = "a time of the API is far below 2^53 ms")]
        Some(((at * 1000.0).round() as i64, value))
    };
    values.as_array().into_iter().flatten().filter_map(point).collect()
}
