//! A run in buckets of a quarter of a second: enough to see what a fault did, few enough to draw.

use crate::check::seconds;
use crate::history::{Answer, Call, End, FaultState, History, Micros};
use crate::workload::NOT_REACHED;
use serde::Serialize;

/// Length of a bucket.
const BUCKET: Micros = 250_000;
/// Buckets at most: two hours; what is longer is cut off.
const BUCKETS_MAX: usize = 28_800;

/// One bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Bucket {
    pub(super) acknowledged: u32,
    pub(super) failed: u32,
    pub(super) read: u32,
    pub(super) reads_failed: u32,
    /// The slowest acknowledged write that ended here.
    pub(super) slowest_ms: f64,
}

/// A stretch of time with a name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Band {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) name: String,
}

/// The whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Timeline {
    pub(super) bucket_seconds: f64,
    pub(super) buckets: Vec<Bucket>,
    pub(super) faults: Vec<Band>,
    /// When a leader of a greater term was first seen: its term and its id in the cluster.
    pub(super) leaders: Vec<(f64, u64, u64)>,
    /// When the sum of all epochs was first seen to have grown.
    pub(super) epochs: Vec<(f64, u64)>,
    pub(super) marks: Vec<(f64, String)>,
}

impl Timeline {
    pub(super) fn of(history: &History) -> Self {
        let count = usize::try_from(history.end() / BUCKET).unwrap_or(usize::MAX).saturating_add(1).min(BUCKETS_MAX);
        let mut line =
            Self { bucket_seconds: seconds(BUCKET), buckets: vec![Bucket::default(); count], ..Self::default() };
        let mut ops: Vec<_> = history.ops.iter().collect();
        ops.sort_by_key(|op| op.ended);
        for op in ops {
            let ended = op.ended.unwrap_or(history.end());
            if let Some(Answer::Status { term, leader, epochs, .. }) = &op.answer {
                line.look(seconds(ended), *term, *leader, epochs.iter().sum());
            }
            let Some(bucket) = usize::try_from(ended / BUCKET).ok().and_then(|at| line.buckets.get_mut(at)) else {
                continue;
            };
            let well = op.end == End::Ok;
            match op.call {
                _ if op.why.starts_with(NOT_REACHED) => {}
                Call::Append { .. } if well => {
                    bucket.acknowledged += 1;
                    bucket.slowest_ms = bucket.slowest_ms.max(seconds(ended - op.began) * 1000.0);
                }
                Call::Append { .. } => bucket.failed += 1,
                Call::Read { .. } if well => bucket.read += 1,
                Call::Read { .. } => bucket.reads_failed += 1,
                _ => {}
            }
        }
        line.faults = bands(history);
        line.marks = history.marks.iter().map(|(at, name)| (seconds(*at), name.clone())).collect();
        line
    }

    /// How long it is.
    pub(super) fn seconds(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "buckets are at most 28,800")]
        let count = self.buckets.len() as f64;
        count * self.bucket_seconds
    }

    /// Seconds in which at least one fault was there.
    pub(super) fn broken_seconds(&self) -> f64 {
        let mut spans: Vec<(f64, f64)> = self.faults.iter().map(|band| (band.from, band.to)).collect();
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut sum, mut until) = (0.0, 0.0_f64);
        for (from, to) in spans {
            sum += (to - from.max(until)).max(0.0);
            until = until.max(to);
        }
        sum
    }

    /// Nodes know different leaders at one time; each term has one at most, so only a greater term is another leader.
    fn look(&mut self, at: f64, term: u64, leader: Option<u64>, epochs: u64) {
        if let Some(leader) = leader.filter(|_| self.leaders.last().is_none_or(|(_, last, _)| *last < term)) {
            self.leaders.push((at, term, leader));
        }
        if self.epochs.last().is_none_or(|(_, last)| *last < epochs) {
            self.epochs.push((at, epochs));
        }
    }
}

fn bands(history: &History) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    let end = seconds(history.end());
    for fault in &history.faults {
        let at = seconds(fault.at);
        match fault.state {
            // Said of one that is there already it is no other.
            FaultState::Unknown if bands.iter().any(|band| band.name == fault.name && band.to >= end) => {}
            FaultState::Installed | FaultState::Unknown => {
                bands.push(Band { from: at, to: end, name: fault.name.clone() })
            }
            FaultState::Healed => {
                if let Some(band) = bands.iter_mut().rev().find(|band| band.name == fault.name) {
                    band.to = at;
                }
            }
            FaultState::Struck | FaultState::Skipped => {}
        }
    }
    bands
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Fault, Op};

    #[test]
    fn operations_fall_into_the_bucket_they_ended_in() {
        let append = |began, ended, end| Op {
            node: 0,
            call: Call::Append { writer: 0, number: 1 },
            began,
            ended: Some(ended),
            end,
            answer: None,
            why: String::new(),
        };
        let ops = vec![append(0, 1000, End::Ok), append(200_000, 300_000, End::Ok), append(1, 300_001, End::Unknown)];
        let fault = |at, state| Fault { at, name: "f".into(), state, why: String::new() };
        let faults = vec![fault(100_000, FaultState::Installed), fault(200_000, FaultState::Healed)];
        let line = Timeline::of(&History { ops, faults, ..History::default() });
        assert_eq!(line.buckets.len(), 2);
        assert_eq!((line.buckets[0].acknowledged, line.buckets[1].acknowledged, line.buckets[1].failed), (1, 1, 1));
        assert!((line.buckets[1].slowest_ms - 100.0).abs() < 1e-6);
        assert_eq!(line.faults, [Band { from: 0.1, to: 0.2, name: "f".into() }]);
        let mut seen = Timeline::default();
        for (at, term, leader) in
            [(1.0, 1, Some(1)), (2.0, 2, Some(3)), (2.5, 1, Some(1)), (3.0, 2, Some(3)), (4.0, 3, None)]
        {
            seen.look(at, term, leader, 0);
        }
        assert_eq!(seen.leaders, [(1.0, 1, 1), (2.0, 2, 3)], "a node that is behind names the old one");
        let band = |from, to| Band { from, to, name: String::new() };
        let line = Timeline { faults: vec![band(4.0, 5.0), band(0.0, 2.0), band(1.0, 3.0)], ..Timeline::default() };
        assert!((line.broken_seconds() - 4.0).abs() < 1e-9);
    }
}
