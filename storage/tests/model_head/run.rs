//! A head and the model beside it, through the same steps.

use std::sync::Arc;

use engram_model::sample::Value;
use engram_model::{Matcher, TimeRange};
use engram_storage::chunk::ChunkFiles;
use engram_storage::head::{AppendLimits, Head, HeadOptions, Symbols};

use crate::checks::{check_content, check_frozen, check_labels};
use crate::model::{LIMITS, Model, WINDOW, batch_of};
use crate::steps::Step;

pub struct Run {
    pub head: Head,
    pub model: Model,
    pub log: Vec<Vec<u8>>,
}

pub fn head_in(files: &Arc<ChunkFiles>) -> Head {
    Head::with_files(Arc::new(Symbols::new()), HeadOptions { window_ms: WINDOW }, Some(files.clone()))
}

impl Run {
    pub fn new(head: Head) -> Self {
        Self { head, model: Model::default(), log: Vec::new() }
    }

    pub fn step(&mut self, i: usize, step: &Step) {
        let mut payload = Vec::new();
        match step {
            Step::Write { series, late_ms, repair } => {
                let limits = AppendLimits { out_of_order_window_ms: *late_ms, repair: *repair, ..LIMITS };
                let (batch, picks) = batch_of(series);
                let staged = self.head.stage(&batch, &picks, &limits, &mut payload);
                let receipt = self.head.apply(&batch, &staged);
                let (mut appended, mut duplicates, mut refused) = (0, 0, Vec::new());
                for (pick, (labels, samples)) in series.iter().enumerate() {
                    let floats = samples.iter().filter(|(_, v, _)| matches!(v, Value::Float(_)));
                    let hists = samples.iter().filter(|(_, v, _)| matches!(v, Value::Histogram(_)));
                    self.model.series.entry(labels.clone()).or_default();
                    for (at, value, start) in floats.chain(hists) {
                        let outcome = self.model.append(labels, *at, value, &limits);
                        // The first start stays, unless repair has put a greater value in.
                        if outcome.is_none() {
                            self.model.start(labels, *at, *start);
                        }
                        match outcome {
                            None => appended += 1,
                            Some(None) => duplicates += 1,
                            Some(Some(reason)) => refused.push((u32::try_from(pick).unwrap(), *at, reason)),
                        }
                    }
                }
                let got: Vec<_> = receipt.refused.iter().map(|r| (r.series, r.at, r.reason)).collect();
                assert_eq!((receipt.appended, receipt.duplicates, got), (appended, duplicates, refused));
            }
            Step::Forget(before) => {
                self.head.forget_before(*before, &mut payload).unwrap();
                self.model.forget(*before);
            }
            Step::Seal { window, step } => {
                let number = self.head.sealed() + step;
                self.head.seal(number, TimeRange::new(window.0, window.1), &mut payload).unwrap();
                self.model.seal(number, *window);
            }
            Step::ForgetFrozen(rank) => {
                if let Some(number) = self.model.parts.keys().nth(*rank).copied() {
                    let before = self.head.sample_count();
                    let (window, index) = (self.head.frozen(number).unwrap().window(), 100 + i as u64);
                    let forgotten = self.head.forget_frozen(number, index, &mut payload).unwrap();
                    assert_eq!(forgotten.samples, before - self.head.sample_count());
                    assert!(forgotten.samples == 0 || self.head.forgotten_after(window) == index);
                    self.model.forget_frozen(number);
                }
            }
            Step::Sweep => {
                self.head.sweep(&mut payload).unwrap();
                self.model.series.retain(|_, samples| !samples.is_empty());
            }
        }
        if !payload.is_empty() {
            self.log.push(payload);
        }
    }

    pub fn check(&self, queries: &[(Vec<Matcher>, i64, i64)]) {
        let Self { head, model, .. } = self;
        let with_samples = model.series.values().map(|s| s.len() as u64).sum::<u64>();
        assert_eq!((head.sample_count(), head.series_count()), (with_samples, model.series.len()));
        assert_eq!(head.digests(), &head.recompute_digests().unwrap());
        assert_eq!(head.digests().values().map(|d| d.count).sum::<u64>(), with_samples);
        check_frozen(head, model);
        check_content(head, model, &[], TimeRange::ALL);
        for (matchers, start, length) in queries {
            check_content(head, model, matchers, TimeRange::new(*start, start + length));
            check_content(head, model, matchers, TimeRange::ALL);
            check_labels(head, model, matchers);
        }
    }
}
