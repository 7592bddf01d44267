//! Goal: series that come and go leave nothing behind: no series, no text, no posting list, no chunk, no file. Method: a
//! day of pods that live an hour, clock-driven, at 1:4000 of a million new series an hour; windows are sealed and
//! forgotten as a sealer and a cutter would, and what the head holds is looked at each hour.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::path::Path;
use std::sync::Arc;

use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::sample::Sample;
use engram_model::{Labels, TimeRange};
use engram_storage::chunk::ChunkFiles;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::head::{AppendLimits, Head, HeadOptions, Symbols, keep_full};

const NEW_EACH_HOUR: usize = 250;
const HOUR_MS: i64 = 3_600_000;
const SCRAPE_MS: i64 = 10_000;
const WINDOW_MS: i64 = 2 * HOUR_MS;
const LIMITS: AppendLimits = AppendLimits {
    series_max: 0,
    out_of_order_window_ms: 0,
    in_order_age_max_ms: 0,
    exemplars_max: 0,
    metadata_max: 0,
    repair: false,
};

fn put_text(batch: &mut WriteBatch, text: &str) -> Text {
    let at = u32::try_from(batch.text.len()).unwrap();
    batch.text.extend_from_slice(text.as_bytes());
    Text { at, len: u32::try_from(text.len()).unwrap() }
}

/// The pods of one hour, one sample each.
fn pods(hour: i64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for i in 0..u32::try_from(NEW_EACH_HOUR).unwrap() {
        let (pod, id) = (format!("pod-{hour}-{i}"), format!("{:016x}", u64::from(i) * 77 + hour.unsigned_abs()));
        let labels = Labels::from_pairs([("__name__", "cpu"), ("job", "web"), ("pod", &pod), ("uid", &id)]);
        let from = i * 4;
        for (name, value) in labels.iter() {
            let pair = Pair { name: put_text(&mut batch, name), value: put_text(&mut batch, value) };
            batch.pairs.push(pair);
        }
        batch.samples.push(Sample { at: 0, value: f64::from(i) });
        batch.series.push(BatchSeries {
            hash: labels.hash128(),
            pairs: Run { from, to: from + 4 },
            samples: Run { from: i, to: i + 1 },
            histograms: Run::default(),
        });
    }
    batch
}

/// What must not grow from day to day.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    series: usize,
    texts: usize,
    text_bytes: usize,
    heap_bytes: usize,
    files: usize,
}

impl Held {
    fn of(head: &Head, symbols: &Symbols, disk: &FaultDisk) -> Self {
        Self {
            series: head.series_count(),
            texts: symbols.len(),
            text_bytes: symbols.text_bytes(),
            heap_bytes: head.heap_bytes(),
            files: disk.list(Path::new("d")).unwrap().len(),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            series: self.series.max(other.series),
            texts: self.texts.max(other.texts),
            text_bytes: self.text_bytes.max(other.text_bytes),
            heap_bytes: self.heap_bytes.max(other.heap_bytes),
            files: self.files.max(other.files),
        }
    }
}

#[test]
fn a_day_of_new_series_each_hour_holds_no_more_than_its_morning() {
    let disk = FaultDisk::new();
    let files = ChunkFiles::open_all(&(Arc::new(disk.clone()) as _), Path::new("d"), 1, 2 << 10).unwrap().remove(0);
    let symbols = Arc::new(Symbols::new());
    let options = HeadOptions { window_ms: WINDOW_MS };
    let mut head = Head::with_files(Arc::clone(&symbols), options, Some(Arc::clone(&files)));
    let picks: Vec<u32> = (0..u32::try_from(NEW_EACH_HOUR).unwrap()).collect();
    let (mut morning, mut rest, mut taken, mut forgotten) = (Held::default(), Held::default(), 0, 0);
    for hour in 0..24 {
        let mut batch = pods(hour);
        for scrape in 0..HOUR_MS / SCRAPE_MS {
            let at = hour * HOUR_MS + scrape * SCRAPE_MS;
            let step = f64::from(i32::try_from(scrape).unwrap());
            batch.samples.iter_mut().for_each(|sample| (sample.at, sample.value) = (at, sample.value + step));
            let staged = head.stage(&batch, &picks, &LIMITS, &mut Vec::new());
            taken += head.apply(&batch, &staged).appended;
            if files.is_due() {
                let mut full = head.take_full();
                keep_full(&files, &mut full).unwrap();
                head.put_kept(full);
            }
        }
        // Half a window after its end a window is sealed, and cut before the next hour.
        let newest = head.max_time().unwrap();
        let ended = head.windows().into_iter().map(|stat| stat.window);
        for window in ended.filter(|window| window.end + WINDOW_MS / 2 <= newest + SCRAPE_MS).collect::<Vec<_>>() {
            let number = head.sealed() + 1;
            head.seal(number, window, &mut Vec::new()).unwrap();
            forgotten += head.forget_frozen(number, number, &mut Vec::new()).unwrap().samples;
        }
        files.collect();
        let held = Held::of(&head, &symbols, &disk);
        if hour < 6 {
            morning = morning.max(held);
        } else {
            rest = rest.max(held);
        }
    }
    assert_eq!(taken, 24 * (NEW_EACH_HOUR as u64) * (HOUR_MS / SCRAPE_MS).unsigned_abs());
    assert_eq!(taken, forgotten + head.sample_count());
    let limit = |morning: usize| morning + morning / 10;
    assert!(rest.series <= limit(morning.series) && morning.series <= 3 * NEW_EACH_HOUR, "{morning:?} {rest:?}");
    assert!(rest.texts <= limit(morning.texts) && rest.text_bytes <= limit(morning.text_bytes), "{morning:?} {rest:?}");
    // Tables double when they grow, and keep that.
    assert!(rest.heap_bytes <= 2 * morning.heap_bytes, "{morning:?} {rest:?}");
    assert!(rest.files <= 2 * morning.files && morning.files > 0, "{morning:?} {rest:?}");
    assert_eq!(head.digests(), &head.recompute_digests().unwrap());
    // And when nobody sends any more, nothing is left.
    let number = head.sealed() + 1;
    head.seal(number, TimeRange::new(0, 100 * WINDOW_MS), &mut Vec::new()).unwrap();
    head.forget_frozen(number, number, &mut Vec::new()).unwrap();
    files.collect();
    assert!(head.is_empty() && symbols.is_empty() && disk.list(Path::new("d")).unwrap().is_empty());
}
