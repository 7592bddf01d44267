//! What comes beside samples: exemplars and metadata. Bounded, in memory, logged with the batch.
//!
//! Exemplars are a ring: the oldest gives way. Metadata is a set of what was said of each metric: a full table takes
//! no new metric, a metric of which too much is said forgets what it heard first.

use std::collections::{BTreeMap, HashMap, VecDeque};

use engram_model::Millis;
use engram_model::sample::{Exemplar, Metadata};

/// Most different metadata of one metric: targets of two versions disagree, more is noise.
const OF_METRIC_MAX: usize = 10;

/// The exemplars of a head.
#[derive(Debug, Default)]
pub(super) struct Exemplars {
    ring: VecDeque<(u32, Exemplar)>,
    /// Time of the newest of each series that has one.
    newest: HashMap<u32, Millis>,
    max: u32,
}

impl Exemplars {
    /// Keeps an exemplar, unless it is not newer than the newest of its series, or none are kept.
    pub(super) fn put(&mut self, series: u32, exemplar: &Exemplar, max: u32) -> bool {
        self.max = max;
        self.shrink(max);
        if max == 0 || self.newest.get(&series).is_some_and(|newest| exemplar.at <= *newest) {
            return false;
        }
        self.shrink(max - 1);
        self.ring.push_back((series, exemplar.clone()));
        self.newest.insert(series, exemplar.at);
        true
    }

    fn shrink(&mut self, max: u32) {
        while self.ring.len() > max as usize
            && let Some((series, gone)) = self.ring.pop_front()
        {
            if self.newest.get(&series) == Some(&gone.at) {
                self.newest.remove(&series);
            }
        }
    }

    /// All, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u32, Exemplar)> {
        self.ring.iter()
    }

    /// The limit they were last held to.
    pub(super) fn max(&self) -> u32 {
        self.max
    }

    pub(super) fn forget_series(&mut self, gone: &[u32]) {
        if gone.iter().any(|series| self.newest.remove(series).is_some()) {
            let newest = &mut self.newest;
            gone.iter().for_each(|series| {
                newest.remove(series);
            });
            self.ring.retain(|(series, _)| newest.contains_key(series));
        }
    }
}

/// The metadata of a head's metrics.
#[derive(Debug, Default)]
pub(super) struct MetadataSet {
    metrics: BTreeMap<String, Vec<Metadata>>,
    max: u32,
}

impl MetadataSet {
    /// Notes what is said of a metric, the latest last.
    pub(super) fn put(&mut self, name: &str, metadata: &Metadata, max: u32) {
        self.max = max;
        let room = self.metrics.len() < max as usize;
        match self.metrics.get_mut(name) {
            Some(known) if known.contains(metadata) => {}
            Some(known) => {
                if known.len() == OF_METRIC_MAX {
                    known.remove(0);
                }
                known.push(metadata.clone());
            }
            None if room => {
                self.metrics.insert(name.to_owned(), vec![metadata.clone()]);
            }
            None => {}
        }
    }

    /// All metrics in order of name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[Metadata])> {
        self.metrics.iter().map(|(name, all)| (name.as_str(), all.as_slice()))
    }

    /// What is known of one metric.
    pub(super) fn get(&self, name: &str) -> &[Metadata] {
        self.metrics.get(name).map_or(&[], Vec::as_slice)
    }

    /// How many metrics it was last allowed.
    pub(super) fn max(&self) -> u32 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use engram_model::Labels;

    use super::*;

    fn exemplar(at: Millis) -> Exemplar {
        Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 1.0, at }
    }

    #[test]
    fn the_ring_keeps_the_newest() {
        let mut all = Exemplars::default();
        assert!(all.put(1, &exemplar(5), 2) && !all.put(1, &exemplar(5), 2) && !all.put(1, &exemplar(4), 2));
        assert!(all.put(2, &exemplar(1), 2) && all.put(1, &exemplar(6), 2));
        assert_eq!(all.iter().map(|(of, e)| (*of, e.at)).collect::<Vec<_>>(), [(2, 1), (1, 6)]);
        all.forget_series(&[1]);
        assert_eq!(all.iter().count(), 1);
        assert!(!all.put(3, &exemplar(9), 0) && all.iter().count() == 0 && all.newest.is_empty());
    }

    #[test]
    fn metadata_is_bounded_both_ways() {
        let mut set = MetadataSet::default();
        for i in 0..20 {
            set.put("a", &Metadata { help: i.to_string(), ..Metadata::default() }, 1);
            set.put("b", &Metadata::default(), 1);
        }
        assert_eq!((set.iter().count(), set.get("a").len(), set.get("b").len()), (1, OF_METRIC_MAX, 0));
        assert_eq!(set.get("a")[9].help, "19");
    }
}
