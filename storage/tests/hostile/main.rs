//! Goal: bytes from a disk or a bucket that somebody changed neither panic, nor hang, nor take memory without bound, and
//! are never taken for data. Method: the entries of the fuzz targets, driven by valid inputs that are changed by a seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "test"
)]

mod drive;

#[path = "../../fuzz/entries/block_read.rs"]
mod block_read;
#[path = "../../fuzz/entries/block_small_files.rs"]
mod block_small_files;
#[path = "../../fuzz/entries/chunk_decode.rs"]
mod chunk_decode;
#[path = "../../fuzz/entries/head_replay.rs"]
mod head_replay;
#[path = "../../fuzz/entries/log_replay.rs"]
mod log_replay;

use std::sync::Arc;

use drive::{Chance, drive};
use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::histogram::{BucketSpan, Histogram};
use engram_model::sample::Sample;
use engram_model::{Labels, TimeRange};
use engram_storage::chunk::{ValueRef, encode, encode_floats};
use engram_storage::codec::{crc32c, put_uvarint, put_varint};
use engram_storage::head::{AppendLimits, Head, HeadOptions, SERIES_MAX, Symbols};

/// Inputs that are lists of edits already.
fn edits(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|seed| Chance::edits(seed, 60)).collect()
}

#[test]
fn a_block() {
    drive("block_read", 1500, 32 << 20, &edits(40), block_read::run);
}

#[test]
fn a_log() {
    drive("log_replay", 1500, 32 << 20, &edits(40), log_replay::run);
}

#[test]
fn meta_json_and_tombstones() {
    let plain = r#"{"ulid":"01ARZ3NDEKTSV4RRFFQ69G5FAV","minTime":0,"maxTime":7200000,"stats":{"numSamples":9,"numSeries":3,
        "numChunks":3},"compaction":{"level":2,"sources":["01ARZ3NDEKTSV4RRFFQ69G5FAV"],"parents":[{"ulid":
        "01ARZ3NDEKTSV4RRFFQ69G5FAV","minTime":0,"maxTime":5}],"hints":["from-out-of-order"]},"version":1,"thanos":{"labels":
        {"cluster":"x","__org_id__":"y"},"downsample":{"resolution":0},"source":"compactor","segment_files":["000001"],
        "files":[{"rel_path":"chunks/000001","size_bytes":9},{"rel_path":"index","size_bytes":8}],"version":1,
        "index_stats":{"series_max_size":5,"chunk_max_size":6}},"engram":{"version":1,"digest":
        "0000000000000009-0000000000000001-0000000000000002","window_ms":7200000}}"#;
    let mut tombstones = vec![0x01, 0x30, 0xba, 0x30, 1];
    let mut body = Vec::new();
    for series in 0..3 {
        put_uvarint(&mut body, series);
        put_varint(&mut body, -5);
        put_varint(&mut body, 1 << 40);
    }
    tombstones.extend_from_slice(&body);
    tombstones.extend_from_slice(&crc32c(&body).to_be_bytes());
    let seeds = [plain.as_bytes().to_vec(), b"{\"version\":1}".to_vec(), tombstones];
    drive("block_small_files", 6000, 4 << 20, &seeds, block_small_files::run);
}

fn histogram(n: u64) -> Arc<Histogram> {
    let one = Histogram {
        schema: 2,
        zero_threshold: 0.001,
        zero_count: 1.0,
        count: 6.0 + n as f64,
        sum: 3.5,
        positive_spans: vec![BucketSpan { offset: 0, length: 2 }, BucketSpan { offset: 3, length: 1 }],
        positive_buckets: vec![1.0, 2.0, 2.0 + n as f64],
        ..Histogram::default()
    };
    Arc::new(one)
}

#[test]
fn chunks() {
    let floats: Vec<(i64, f64)> = (0..200).map(|i| (i * 15_000 + i % 7, (i * i % 13) as f64 / 3.0)).collect();
    let whole: Vec<Arc<Histogram>> = (0..60).map(histogram).collect();
    let mut all = encode_floats(&floats);
    all.extend(encode(whole.iter().zip(0..).map(|(one, i)| (i * 15_000, ValueRef::Histogram(one))), 7_200_000));
    let seeds: Vec<Vec<u8>> = all
        .iter()
        .flat_map(|chunk| (0..3).map(move |kind| [&[kind][..], chunk.bytes.checked().unwrap()].concat()))
        .collect();
    drive("chunk_decode", 6000, 64 << 20, &seeds, chunk_decode::run);
}

fn put_text(batch: &mut WriteBatch, text: &str) -> Text {
    let at = u32::try_from(batch.text.len()).unwrap();
    batch.text.extend_from_slice(text.as_bytes());
    Text { at, len: u32::try_from(text.len()).unwrap() }
}

fn batch(at: i64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for i in 0..5_u32 {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &*i.to_string())]);
        for (name, value) in labels.iter() {
            let pair = Pair { name: put_text(&mut batch, name), value: put_text(&mut batch, value) };
            batch.pairs.push(pair);
        }
        batch.samples.push(Sample { at: at + i64::from(i), value: f64::from(i) });
        batch.series.push(BatchSeries {
            hash: labels.hash128(),
            pairs: Run { from: i * 2, to: i * 2 + 2 },
            samples: Run { from: i, to: i + 1 },
            histograms: Run::default(),
        });
    }
    batch
}

/// What a head writes into the log in its life: appends, a seal, a forgetting, and a checkpoint.
fn life() -> Vec<Vec<u8>> {
    let limits = AppendLimits {
        series_max: 0,
        out_of_order_window_ms: 60_000,
        in_order_age_max_ms: 0,
        exemplars_max: 0,
        metadata_max: 0,
        repair: false,
    };
    let mut head = Head::new(Arc::new(Symbols::new()), HeadOptions::default());
    let mut payloads = Vec::new();
    for i in 0..6 {
        let (batch, mut payload) = (batch(i * 2_000_000), Vec::new());
        let staged = head.stage(&batch, &[0, 1, 2, 3, 4], &limits, &mut payload);
        let _receipt = head.apply(&batch, &staged);
        payloads.push(payload);
    }
    let mut payload = Vec::new();
    head.seal(1, TimeRange::new(0, 7_200_000), &mut payload).unwrap();
    payloads.push(std::mem::take(&mut payload));
    let mut checkpoint = Vec::new();
    head.snapshot(&mut |piece: &[u8]| checkpoint.push(piece.to_vec())).unwrap();
    Head::log_forget_frozen(1, 7, &mut payload);
    payloads.push(payload);
    let record = |payload: &Vec<u8>| [&u16::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat();
    let all: Vec<Vec<u8>> = payloads.iter().map(record).collect();
    let checkpoint: Vec<Vec<u8>> = checkpoint.iter().map(record).collect();
    vec![all.concat(), checkpoint.concat(), all[..2].concat(), [checkpoint.concat(), all[7].clone()].concat()]
}

#[test]
fn what_the_log_holds_for_a_head() {
    // A ref is believed up to the most series of a head, and its slot is made with all before it: 128 MiB.
    let slots = SERIES_MAX as usize * size_of::<usize>();
    drive("head_replay", 6000, slots + (64 << 20), &life(), head_replay::run);
}
