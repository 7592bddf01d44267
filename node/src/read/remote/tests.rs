//! Goal: both forms of the answer hold exactly the samples of the sources, in order, none twice. Method: series whose
//! samples are chosen, answers decoded again.

use std::sync::Arc;

use engram_model::Labels;
use engram_model::histogram::{BucketSpan, Histogram};

use super::frames::FrameReader;
use super::wire::{Field, Fields};
use super::*;
use crate::read::queue::Queue;
use engram_model::series::{ReadError, SampleSource};

const DAY: Millis = 24 * 3600 * 1000;

fn histogram(count: f64, integer: bool) -> Arc<Histogram> {
    Arc::new(Histogram {
        integer,
        schema: 3,
        zero_threshold: 0.001,
        zero_count: 1.0,
        count: count + 4.0,
        sum: 5.5,
        positive_spans: vec![BucketSpan { offset: -2, length: 2 }],
        positive_buckets: vec![count, 3.0],
        ..Histogram::default()
    })
}

/// Gives everything, whatever was asked for: the reader must cut.
struct Everything(Columns);

impl SampleSource for Everything {
    fn read(&self, _: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
        *out = self.0.clone();
        Ok(())
    }
}

fn series(i: i64, times: impl Iterator<Item = Millis> + Clone) -> Series {
    let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:03}"))]);
    let mut columns = Columns::default();
    for (n, at) in times.enumerate() {
        if i % 3 == 2 {
            columns.histogram_times.push(at);
            columns.histograms.push(histogram(n as f64, i % 2 == 0));
        } else {
            columns.times.push(at);
            columns.values.push(n as f64 / 3.0 + i as f64);
        }
    }
    Series { labels, source: Arc::new(Everything(columns)) }
}

async fn pieces(rest: Vec<(u64, TimeRange, Series)>) -> Pieces {
    let place = Queue::new(1, 1).enter(&TenantId::anonymous()).await.unwrap();
    let within = Duration::from_secs(600);
    Pieces { rest, open: None, window_ms: 7_200_000, watch: Stopwatch::start(), within, _place: place }
}

#[tokio::test]
async fn a_stream_holds_every_sample_of_the_range() {
    let times = (0..1000).map(|n| n * 3_600_000 + 7);
    let range = TimeRange::new(5 * DAY, 36 * DAY);
    let mut rest: Vec<_> = (0..7).map(|i| (1, range, series(i, times.clone()))).collect();
    rest.push((0, TimeRange::new(0, DAY), series(50, times.clone())));
    rest.reverse();
    let mut next = Some(pieces(rest).await);
    let mut reader = FrameReader::default();
    let mut found: Vec<(u64, Labels, Columns)> = Vec::new();
    while let Some(state) = next.take() {
        let Some((bytes, left)) = state.next_piece().await.unwrap() else { break };
        reader.push(&bytes);
        while let Some(part) = reader.next_part().unwrap() {
            let is_same = found.last().is_some_and(|last| last.0 == part.query && last.1 == part.labels);
            if !is_same {
                found.push((part.query, part.labels.clone(), Columns::default()));
            }
            let columns = &mut found.last_mut().unwrap().2;
            part.chunks.iter().for_each(|chunk| chunk.decode(columns).unwrap());
        }
        next = Some(left);
    }
    assert!(reader.is_empty());
    // In the order of the requests, each series once though its range was read in three slices.
    let order: Vec<_> = found.iter().map(|(query, labels, _)| (*query, labels.get("i").unwrap().to_owned())).collect();
    let mut sorted = order.clone();
    sorted.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    assert_eq!(order, sorted);
    assert_eq!(found.len(), 8);
    for (query, labels, have) in found {
        let i: i64 = labels.get("i").unwrap().parse().unwrap();
        let range = if query == 1 { range } else { TimeRange::new(0, DAY) };
        let mut want = Columns::default();
        read(&series(i, times.clone()), range, &mut want).unwrap();
        let count = times.clone().filter(|at| range.contains(*at)).count();
        assert_eq!(
            (want.len(), want.times.iter().chain(&want.histogram_times).all(|at| range.contains(*at))),
            (count, true)
        );
        assert_eq!((&have.times, &have.values), (&want.times, &want.values));
        assert_eq!((&have.histogram_times, &have.histograms), (&want.histogram_times, &want.histograms));
        assert_eq!(have.histograms.first().map(|h| h.integer), want.histograms.first().map(|h| h.integer));
    }
}

#[tokio::test]
async fn a_stream_that_nobody_takes_is_broken_off() {
    let mut late = pieces(vec![(0, TimeRange::new(0, DAY), series(0, 0..5))]).await;
    late.within = Duration::ZERO;
    assert_eq!(late.next_piece().await.err().unwrap().class, Class::Timeout);
}

/// Labels, samples and histograms of a series, each as it is on the wire.
type Plain = (String, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Each series of each result.
fn decoded(body: &[u8]) -> Vec<Vec<Plain>> {
    let plain = snap::raw::Decoder::new().decompress_vec(body).unwrap();
    let (mut results, mut fields) = (Vec::new(), Fields::new(&plain));
    while let Some((number, Field::Bytes(result))) = fields.next_field().unwrap() {
        assert_eq!(number, 1);
        let (mut all, mut fields) = (Vec::new(), Fields::new(result));
        while let Some((1, Field::Bytes(one))) = fields.next_field().unwrap() {
            let (mut labels, mut samples, mut histograms, mut fields) =
                (Vec::new(), Vec::new(), Vec::new(), Fields::new(one));
            while let Some((number, Field::Bytes(bytes))) = fields.next_field().unwrap() {
                match number {
                    1 => labels.push(String::from_utf8_lossy(bytes).into_owned()),
                    2 => samples.push(bytes.to_vec()),
                    4 => histograms.push(bytes.to_vec()),
                    other => panic!("field {other}"),
                }
            }
            all.push((labels.join(","), samples, histograms));
        }
        results.push(all);
    }
    results
}

#[test]
fn a_sampled_answer_holds_every_sample_or_is_refused() {
    let range = TimeRange::new(10, 20);
    let found = || vec![(range, vec![series(0, 0..15), series(1, 100..105), series(2, 15..40)]), (range, Vec::new())];
    let pool = Arc::new(SamplePool::new(12));
    let held = || Held { pool: pool.clone(), samples: 0 };
    let results = decoded(&whole(found(), 10, held()).unwrap());
    assert_eq!(pool.held(), 0, "given back");
    let counts = |all: &[Plain]| all.iter().map(|one| (one.1.len(), one.2.len())).collect::<Vec<_>>();
    assert_eq!(results.iter().map(|all| counts(all)).collect::<Vec<_>>(), [vec![(5, 0), (0, 5)], vec![]]);
    // The first sample of the first series: 10/3 at 10 ms.
    let mut want = vec![0x09];
    want.extend_from_slice(&(10.0_f64 / 3.0).to_le_bytes());
    want.extend_from_slice(&[0x10, 10]);
    assert_eq!(results[0][0].1[0], want);
    let error = whole(found(), 9, held()).unwrap_err();
    assert_eq!((error.class, error.stage), (Class::Invalid, Stage::Execution));
    let small = Held { pool: Arc::new(SamplePool::new(6)), samples: 0 };
    assert_eq!(whole(found(), 100, small).unwrap_err().class, Class::Unavailable);
}

#[test]
fn histograms_are_written_in_the_form_they_came_in() {
    let fields_of = |integer: bool| {
        let source =
            Columns { histogram_times: vec![1], histograms: vec![histogram(2.0, integer)], ..Columns::default() };
        let series = Series { labels: Labels::from_pairs([("a", "b")]), source: Arc::new(source) };
        let held = Held { pool: Arc::new(SamplePool::new(100)), samples: 0 };
        let results = decoded(&whole(vec![(TimeRange::ALL, vec![series])], 100, held).unwrap());
        let message = results[0][0].2[0].clone();
        let (mut numbers, mut fields) = (Vec::new(), Fields::new(&message));
        let mut deltas = Vec::new();
        while let Some((number, field)) = fields.next_field().unwrap() {
            numbers.push(number);
            if let (12, Field::Bytes(bytes)) = (number, field) {
                deltas = bytes.to_vec();
            }
        }
        (numbers, deltas)
    };
    assert_eq!(fields_of(true), (vec![1, 3, 4, 5, 6, 11, 12, 15], vec![4, 2]), "2, then 1 more, zigzag");
    assert_eq!(fields_of(false), (vec![2, 3, 4, 5, 7, 11, 13, 15], Vec::new()));
}

#[test]
fn all_of_time_is_read_in_a_bounded_number_of_slices() {
    for range in [
        TimeRange::ALL,
        TimeRange::new(i64::MIN, i64::MAX),
        TimeRange::new(-5, 3),
        TimeRange::new(7, 8),
        TimeRange::new(i64::MAX - 1, i64::MAX),
    ] {
        let (mut at, mut slices) = (range.start, 0);
        while at < range.end {
            let end = slice_end(TimeRange::new(at, range.end));
            assert!(end > at && end <= range.end);
            (at, slices) = (end, slices + 1);
        }
        assert!(slices <= 2 * SLICES_MAX + 2, "{slices}");
    }
}
