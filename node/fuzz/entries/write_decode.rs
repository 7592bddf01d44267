//! Any bytes as a remote-write body: no harm, and whatever is kept keeps what a batch promises.
//!
//! Whoever includes this names the room it is about beside it.
use engram_model::Labels;

use super::decode::{self, Bounds, Decoded, Version};

fn check(decoded: &Decoded) {
    let batch = &decoded.batch;
    let (mut pairs, mut samples, mut histograms) = (0, 0, 0);
    for series in &batch.series {
        assert_eq!((series.pairs.from, series.samples.from, series.histograms.from), (pairs, samples, histograms));
        (pairs, samples, histograms) = (series.pairs.to, series.samples.to, series.histograms.to);
        let mut before = "";
        for pair in &batch.pairs[series.pairs.range()] {
            let name = std::str::from_utf8(batch.bytes(pair.name)).expect("a name that is not UTF-8 was kept");
            assert!(std::str::from_utf8(batch.bytes(pair.value)).is_ok_and(|value| !value.is_empty()));
            assert!(before < name, "{before:?} stands before {name:?}");
            before = name;
        }
        assert_eq!(series.hash, Labels::from_pairs(batch.labels_of(series)).hash128());
    }
    assert_eq!(batch.histograms.len(), histograms as usize);
    for sample in &batch.histograms {
        let histogram = &sample.histogram;
        let buckets =
            |spans: &[engram_model::histogram::BucketSpan]| spans.iter().map(|s| s.length as usize).sum::<usize>();
        assert_eq!(buckets(&histogram.positive_spans), histogram.positive_buckets.len());
        assert_eq!(buckets(&histogram.negative_spans), histogram.negative_buckets.len());
    }
    assert!(batch.starts.is_empty() || batch.starts.len() == batch.samples.len());
    assert!(batch.exemplars.iter().all(|(at, _)| (*at as usize) < batch.series.len()));
    decoded.refused.iter().for_each(|refusal| assert!(!refusal.reason.message(batch).is_empty()));
}

/// One case.
pub fn run(data: &[u8]) {
    let bounds = Bounds { body_bytes_max: 1 << 20, ..Bounds::default() };
    for version in [Version::V1, Version::V2] {
        if let Ok(decoded) = decode::decode_plain(data.to_vec(), version, &bounds) {
            check(&decoded);
        }
        if let Ok(decoded) = decode::decode(data, version, &bounds) {
            check(&decoded);
        }
    }
}
