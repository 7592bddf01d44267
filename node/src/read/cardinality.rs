//! What makes a tenant's data large: counts of its partitions, put together.
//!
//! A series lies in one partition, so counts of series add up; a label's values lie in many, so they are collected and
//! counted once each, one label after the other: the memory is that of the largest label. Lists of a partition are cut
//! at [`LIST_MAX`]; with more metrics or pairs than that in one partition, the small ones are counted too low.
//!
//! A series whose partition changed when the tenant's shard size did counts once in each, until retention has taken the
//! samples of the older one.

use std::collections::BTreeMap;

use engram_model::block::BlockMeta;
use engram_model::{Millis, TimeRange};

use super::select::View;
use crate::error::Error;
use crate::peer::Counts;

/// Most entries of a list that one partition sends.
pub const LIST_MAX: usize = 1000;

/// How much a tenant has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Series.
    pub series: u64,
    /// Samples, those of native histograms too.
    pub samples: u64,
    /// Chunks the samples lie in.
    pub chunks: u64,
    /// Times of the oldest and the newest sample.
    pub bounds: Option<(Millis, Millis)>,
}

impl Usage {
    /// With what a block holds. Its series are not counted: most are those of the heads.
    #[must_use]
    pub fn with_block(self, block: &BlockMeta) -> Self {
        let own = (block.range.start, block.range.end.saturating_sub(1));
        Self {
            samples: self.samples + block.digest.count,
            chunks: self.chunks + block.chunks,
            bounds: Some(self.bounds.map_or(own, |have| (have.0.min(own.0), have.1.max(own.1)))),
            ..self
        }
    }
}

/// A name with its count.
pub type Counted = (String, u64);

/// What `status/tsdb` tells, over all partitions. Each list has its greatest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cardinality {
    /// The sums.
    pub usage: Usage,
    /// Different label pairs.
    pub label_pairs: u64,
    /// Series of each metric.
    pub series_by_metric: Vec<Counted>,
    /// Values of each label.
    pub values_by_label: Vec<Counted>,
    /// Bytes of the values of each label.
    pub bytes_by_label: Vec<Counted>,
    /// Series of each `label=value`.
    pub series_by_pair: Vec<Counted>,
}

/// Sums of all partitions.
#[must_use]
pub fn usage(parts: &[Counts]) -> Usage {
    parts.iter().fold(Usage::default(), |all, part| Usage {
        series: all.series + part.series,
        samples: all.samples + part.samples,
        chunks: all.chunks + part.chunks,
        bounds: match (all.bounds, part.bounds) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, other) => one.or(other),
        },
    })
}

/// Asks all partitions of the tenant.
///
/// # Errors
/// Unavailable when one cannot be read.
pub(super) async fn of(view: &View, max: usize) -> Result<Cardinality, Error> {
    let parts = view.counts(LIST_MAX).await?;
    let (mut label_pairs, mut values, mut bytes) = (0, Vec::new(), Vec::new());
    for name in view.label_names(&[], TimeRange::ALL).await? {
        let all = view.label_values(&name, &[], TimeRange::ALL).await?;
        label_pairs += all.len() as u64;
        bytes.push((name.clone(), all.iter().map(|value| value.len() as u64).sum()));
        values.push((name, all.len() as u64));
    }
    Ok(Cardinality {
        usage: usage(&parts),
        label_pairs,
        series_by_metric: top(added(parts.iter().map(|part| &part.series_by_metric)), max),
        values_by_label: top(values, max),
        bytes_by_label: top(bytes, max),
        series_by_pair: top(added(parts.iter().map(|part| &part.series_by_pair)), max),
    })
}

/// The same names of several lists as one, with the sum of their counts.
fn added<'a>(lists: impl Iterator<Item = &'a Vec<Counted>>) -> Vec<Counted> {
    let mut all = BTreeMap::<&str, u64>::new();
    for (name, count) in lists.flatten() {
        *all.entry(name).or_default() += count;
    }
    all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// The `max` greatest; of equals those first in order of name.
fn top(mut all: Vec<Counted>, max: usize) -> Vec<Counted> {
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(max);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_add_up_and_the_greatest_come_first() {
        let part = |series, bounds, all: &[(&str, u64)]| Counts {
            series,
            samples: 10 * series,
            chunks: series,
            bounds,
            series_by_metric: all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            series_by_pair: Vec::new(),
        };
        let parts = [
            part(3, Some((5, 9)), &[("b", 2), ("a", 1)]),
            part(0, None, &[]),
            part(4, Some((-1, 7)), &[("c", 3), ("a", 1)]),
        ];
        assert_eq!(usage(&parts), Usage { series: 7, samples: 70, chunks: 7, bounds: Some((-1, 9)) });
        let merged = top(added(parts.iter().map(|part| &part.series_by_metric)), 2);
        assert_eq!(merged, [("c".to_owned(), 3), ("a".to_owned(), 2)]);
        assert_eq!(usage(&[]), Usage::default());
    }
}
