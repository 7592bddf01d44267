//! The tenant's limits, applied to a decoded request: what is kept, what is refused and why.
//!
//! Reasons are a closed list of words, those of Cortex' `cortex_discarded_samples_total` where it has the case, so
//! that dashboards move over.

use std::collections::HashMap;

use engram_model::Millis;
use engram_model::batch::{BatchSeries, WriteBatch};
use engram_model::error::Class;
use engram_model::labels::METRIC_NAME;
use engram_model::tenant::{TenantId, TenantLimits};
use parking_lot::Mutex;

use super::decode::Decoded;
use crate::error::Error;
use crate::peer::Refused;

/// A request after admission.
#[derive(Debug)]
pub struct Admitted {
    /// The batch; times too far ahead have been taken out of it.
    pub batch: WriteBatch,
    /// Indices of the series that go on.
    pub keep: Vec<u32>,
    /// What was refused.
    pub refused: Refused,
}

/// Applies `limits` to a request at time `now`.
#[must_use]
pub fn admit(decoded: Decoded, limits: &TenantLimits, now: Millis) -> Admitted {
    let Decoded { mut batch, refused: unreadable } = decoded;
    let mut refused = Refused::default();
    for refusal in unreadable {
        let samples = u64::from(refusal.samples) + u64::from(refusal.histograms);
        // A refused exemplar costs no sample; a series without any counts as one thing refused.
        let count = if refusal.exemplars > 0 { samples } else { samples.max(1) };
        refused.add(refusal.reason.code(), false, count, || refusal.reason.message(&batch));
    }
    let newest = now.saturating_add(limits.creation_grace_period_ms);
    cut_future(&mut batch, newest, now, &mut refused);
    let mut keep = Vec::with_capacity(batch.series.len());
    for (i, series) in (0_u32..).zip(&batch.series) {
        let samples = (series.samples.len() + series.histograms.len()) as u64;
        match check_series(&batch, series, limits) {
            None => keep.push(i),
            Some((reason, text)) => refused.add(reason, false, samples.max(1), || text),
        }
    }
    let length_max = limits.max_metadata_length as usize;
    for (_, metadata) in &mut batch.metadata {
        truncate(&mut metadata.help, length_max);
        truncate(&mut metadata.unit, length_max);
    }
    batch.metadata.retain(|(metric, _)| !metric.is_empty() && metric.len() <= length_max);
    Admitted { batch, keep, refused }
}

fn truncate(text: &mut String, max: usize) {
    if max > 0 && text.len() > max {
        let mut at = max;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
    }
}

fn check_series(batch: &WriteBatch, series: &BatchSeries, limits: &TenantLimits) -> Option<(&'static str, String)> {
    let pairs = &batch.pairs[series.pairs.range()];
    let names_max = limits.max_label_names_per_series as usize;
    if names_max > 0 && pairs.len() > names_max {
        let text = format!(
            "series has {} labels, limit max_label_names_per_series is {names_max}: {}",
            pairs.len(),
            batch.show(series)
        );
        return Some(("max_label_names_per_series", text));
    }
    let (name_max, value_max) = (limits.max_label_name_length, limits.max_label_value_length);
    let mut named = false;
    for pair in pairs {
        named |= batch.bytes(pair.name) == METRIC_NAME.as_bytes();
        if name_max > 0 && pair.name.len > name_max {
            let text = format!(
                "label name of {} bytes, limit max_label_name_length is {name_max}: {:.100?}",
                pair.name.len,
                batch.str(pair.name)
            );
            return Some(("label_name_too_long", text));
        }
        if value_max > 0 && pair.value.len > value_max {
            let text = format!(
                "value of label {:?} has {} bytes, limit max_label_value_length is {value_max}: {}",
                batch.str(pair.name),
                pair.value.len,
                batch.show(series)
            );
            return Some(("label_value_too_long", text));
        }
    }
    if !named && limits.enforce_metric_name {
        return Some((
            "missing_metric_name",
            format!("series has no metric name, limit enforce_metric_name is on: {}", batch.show(series)),
        ));
    }
    None
}

/// Takes out samples that lie ahead of `newest`. Rare, so it may cost.
fn cut_future(batch: &mut WriteBatch, newest: Millis, now: Millis, refused: &mut Refused) {
    let ahead = batch.samples.iter().any(|s| s.at > newest) || batch.histograms.iter().any(|h| h.at > newest);
    if !ahead {
        return;
    }
    let old = std::mem::take(batch);
    let mut new = WriteBatch { text: old.text, pairs: old.pairs, ..WriteBatch::default() };
    for mut series in old.series {
        let (floats, histograms) = (series.samples.range(), series.histograms.range());
        series.samples.from = index(new.samples.len());
        for i in floats {
            if old.samples[i].at <= newest {
                new.samples.push(old.samples[i]);
                if let Some(start) = old.starts.get(i) {
                    new.starts.push(*start);
                }
            } else {
                refused.add("too_far_in_future", false, 1, || too_far(&new, &series, old.samples[i].at, now));
            }
        }
        series.samples.to = index(new.samples.len());
        series.histograms.from = index(new.histograms.len());
        for i in histograms {
            if old.histograms[i].at <= newest {
                new.histograms.push(old.histograms[i].clone());
            } else {
                refused.add("too_far_in_future", false, 1, || too_far(&new, &series, old.histograms[i].at, now));
            }
        }
        series.histograms.to = index(new.histograms.len());
        new.series.push(series);
    }
    new.exemplars = old.exemplars.into_iter().filter(|(_, e)| e.at <= newest).collect();
    new.metadata = old.metadata;
    *batch = new;
}

fn index(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn too_far(batch: &WriteBatch, series: &BatchSeries, at: Millis, now: Millis) -> String {
    format!(
        "sample at {at} is {} s ahead of this node's clock, limit creation_grace_period: {}",
        at.saturating_sub(now) / 1000,
        batch.show(series)
    )
}

/// Token buckets of all tenants that have a rate.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<TenantId, Bucket>>);

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Millis,
}

impl Rates {
    /// Takes `samples` out of the tenant's bucket.
    ///
    /// # Errors
    /// Limited when it does not hold as many; the bucket is left as it was.
    #[allow(clippy::cast_precision_loss, reason = "sample counts are far below 2^53")]
    pub fn admit(&self, tenant: &TenantId, limits: &TenantLimits, samples: u64, now: Millis) -> Result<(), Error> {
        if limits.ingestion_rate == 0 {
            return Ok(());
        }
        let rate = limits.ingestion_rate as f64;
        let size = (limits.ingestion_burst_size.max(limits.ingestion_rate)) as f64;
        let mut buckets = self.0.lock();
        let bucket = buckets.entry(tenant.clone()).or_insert(Bucket { tokens: size, at: now });
        let elapsed = now.saturating_sub(bucket.at).max(0) as f64 / 1000.0;
        *bucket = Bucket { tokens: (bucket.tokens + elapsed * rate).min(size), at: now };
        if bucket.tokens < samples as f64 {
            return Err(Error::new(
                Class::Limited,
                format!(
                    "tenant {tenant}: {samples} samples are above the limit ingestion_rate of {} samples/s (burst {size})",
                    limits.ingestion_rate
                ),
            ));
        }
        bucket.tokens -= samples as f64;
        Ok(())
    }
}
