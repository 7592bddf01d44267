//! Deletions that are ordered but not carried out yet: what they hide from every reader.
//!
//! A deletion is an index of the metadata, selectors and a time. Heads never carry one out, so it hides their samples
//! always; a block made after it holds none of them any more, so it hides those of older blocks only.

use std::sync::Arc;

use engram_model::block::Deletion;
use engram_model::error::Class;
use engram_model::series::{Columns, ReadError, SampleSource, Series};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::parse::parse_selector;

use crate::error::Error;

/// The deletions that concern a read.
#[derive(Clone, Debug, Default)]
pub struct Hider(Arc<Vec<Rule>>);

#[derive(Clone, Debug)]
struct Rule {
    index: u64,
    selectors: Vec<Vec<Matcher>>,
    range: TimeRange,
}

/// Samples of a source without those of some times.
struct Hidden {
    inner: Arc<dyn SampleSource>,
    ranges: Vec<TimeRange>,
}

impl SampleSource for Hidden {
    fn series_hash(&self) -> Option<u128> {
        self.inner.series_hash()
    }

    fn read(&self, range: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        let mut all = Columns::default();
        self.inner.read(range, &mut all)?;
        let stays = |at: &Millis| !self.ranges.iter().any(|hidden| hidden.contains(*at));
        let floats: Vec<bool> = all.times.iter().map(stays).collect();
        let histograms: Vec<bool> = all.histogram_times.iter().map(stays).collect();
        keep(&floats, all.times, &mut out.times);
        keep(&floats, all.values, &mut out.values);
        keep(&floats, all.starts, &mut out.starts);
        keep(&histograms, all.histogram_times, &mut out.histogram_times);
        keep(&histograms, all.histograms, &mut out.histograms);
        keep(&histograms, all.histogram_starts, &mut out.histogram_starts);
        Ok(())
    }
}

fn keep<T>(stays: &[bool], all: Vec<T>, out: &mut Vec<T>) {
    out.extend(all.into_iter().zip(stays).filter(|(_, stays)| **stays).map(|(one, _)| one));
}

impl Hider {
    /// Those of the deletions that hide something in `range`.
    ///
    /// # Errors
    /// Internal when a selector does not parse: it did when the deletion was ordered.
    pub fn new(deletions: &[Arc<Deletion>], range: TimeRange) -> Result<Self, Error> {
        let rule = |deletion: &Arc<Deletion>| {
            let selectors = deletion.selectors.iter().map(|text| {
                parse_selector(text).map_err(|e| {
                    Error::new(Class::Internal, format!("deletion {}: the selector {text:?}: {e}", deletion.index))
                })
            });
            Ok(Rule { index: deletion.index, selectors: selectors.collect::<Result<_, _>>()?, range: deletion.range })
        };
        let concerned = deletions.iter().filter(|deletion| deletion.range.overlaps(range));
        Ok(Self(Arc::new(concerned.map(rule).collect::<Result<_, Error>>()?)))
    }

    /// Whether nothing is hidden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that a block does not carry out itself, made with the metadata of index `as_of`.
    #[must_use]
    pub fn after(&self, as_of: u64) -> Self {
        if self.0.iter().all(|rule| rule.index > as_of) {
            return self.clone();
        }
        Self(Arc::new(self.0.iter().filter(|rule| rule.index > as_of).cloned().collect()))
    }

    /// What is hidden of a series. All its labels are needed.
    #[must_use]
    pub fn ranges(&self, labels: &Labels) -> Vec<TimeRange> {
        let passes = |matcher: &Matcher| matcher.matches(labels.get(&matcher.name).unwrap_or(""));
        let hides = |rule: &&Rule| rule.selectors.iter().any(|selector| selector.iter().all(passes));
        self.0.iter().filter(hides).map(|rule| rule.range).collect()
    }

    /// The series without what is hidden. All its labels are needed.
    #[must_use]
    pub fn hide(&self, series: Series) -> Series {
        let ranges = self.ranges(&series.labels);
        if ranges.is_empty() {
            return series;
        }
        Series { labels: series.labels, source: Arc::new(Hidden { inner: series.source, ranges }) }
    }
}

/// Whether nothing of `range` is left when `hidden` is taken away.
#[must_use]
pub fn covers(hidden: &[TimeRange], range: TimeRange) -> bool {
    let mut hidden = hidden.to_vec();
    hidden.sort_unstable_by_key(|one| one.start);
    let reached = hidden.iter().fold(range.start, |at, one| if one.start <= at { at.max(one.end) } else { at });
    reached >= range.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletion(index: u64, selectors: &[&str], range: TimeRange) -> Arc<Deletion> {
        let selectors = selectors.iter().map(|text| (*text).to_owned()).collect();
        Arc::new(Deletion { index, selectors, range, at: 0, by: "me".to_owned() })
    }

    fn times(series: &Series) -> (Vec<i64>, Vec<i64>, Vec<i64>) {
        let mut out = Columns::default();
        series.source.read(TimeRange::ALL, &mut out).unwrap();
        assert_eq!((out.times.len(), out.histogram_times.len()), (out.values.len(), out.histograms.len()));
        (out.times, out.histogram_times, out.starts)
    }

    #[test]
    fn samples_of_the_time_and_the_series_are_hidden_and_no_others() {
        let columns = Columns {
            times: vec![1, 2, 3],
            values: vec![1.0, 2.0, 3.0],
            starts: vec![0, 1, 2],
            histogram_times: vec![4, 5],
            histograms: vec![Arc::default(), Arc::default()],
            ..Columns::default()
        };
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
        let series = Series { labels, source: Arc::new(columns) };
        let all = [
            deletion(5, &["nothing", "up{job=~\"a|b\"}"], TimeRange::new(2, 5)),
            deletion(9, &["up"], TimeRange::new(1, 2)),
        ];
        let hider = Hider::new(&all, TimeRange::ALL).unwrap();
        assert_eq!(times(&hider.hide(series.clone())), (vec![], vec![5], vec![]));
        assert_eq!(times(&hider.after(5).hide(series.clone())), (vec![2, 3], vec![4, 5], vec![1, 2]));
        assert!(hider.after(9).is_empty() && !hider.after(4).is_empty());
        assert!(Hider::new(&all, TimeRange::new(5, 9)).unwrap().is_empty());
        let other = Series { labels: Labels::from_pairs([("__name__", "up"), ("job", "c")]), ..series };
        assert_eq!(times(&hider.hide(other)).0, [2, 3], "the second selector has no job");
        assert!(Hider::new(&[deletion(1, &["{"], TimeRange::ALL)], TimeRange::ALL).is_err());
    }

    #[test]
    fn a_range_is_covered_without_holes_or_not_at_all() {
        let range = TimeRange::new;
        assert!(covers(&[range(5, 9), range(1, 5)], range(1, 9)));
        assert!(!covers(&[range(6, 9), range(1, 5)], range(1, 9)));
        assert!(!covers(&[], range(1, 2)));
        assert!(covers(&[TimeRange::ALL], range(-5, 5)));
    }
}
