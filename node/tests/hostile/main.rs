//! Goal: bytes from the network that somebody changed neither panic, nor hang, nor take memory without bound. Method: the
//! entries of the fuzz targets, driven by valid inputs that are changed by a seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "test"
)]

#[path = "../../../storage/tests/hostile/drive.rs"]
mod drive;

#[path = "../../fuzz/entries/peer_wire.rs"]
mod peer_wire;
#[path = "../../fuzz/entries/remote_read.rs"]
mod remote_read;
#[path = "../../fuzz/entries/write_decode.rs"]
mod write_decode;

use std::collections::BTreeMap;
use std::sync::Arc;

use drive::drive;
use engram_model::digest::Digest;
use engram_model::series::{Columns, Series};
use engram_model::{Labels, TimeRange};
use engram_node::blocks;
use engram_node::peer::wire::{self, ask, frozen, pack, series};
use engram_node::peer::{self, Counts, Frozen};
use engram_node::read::remote::request;
use engram_node::write::decode::{self, Version};

/// A field of a message of protocol buffers: a number, or bytes.
fn number(tag: u8, value: u64) -> Vec<u8> {
    let mut out = vec![tag << 3];
    engram_storage::codec::put_uvarint(&mut out, value);
    out
}

fn bytes(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2];
    engram_storage::codec::put_uvarint(&mut out, body.len() as u64);
    out.extend_from_slice(body);
    out
}

fn double(tag: u8, value: f64) -> Vec<u8> {
    [&[tag << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn packed(body: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(body).unwrap()
}

/// Two series with samples, an exemplar and metadata, in remote write 1.0.
fn write_v1() -> Vec<u8> {
    let label = |name: &str, value: &str| bytes(1, &[bytes(1, name.as_bytes()), bytes(2, value.as_bytes())].concat());
    let sample = |at: u64| bytes(2, &[double(1, 1.5), number(2, at)].concat());
    let exemplar = bytes(3, &[label("trace", "x"), double(2, 2.0), number(3, 9)].concat());
    let one = [label("__name__", "up"), label("job", "a"), sample(1), sample(2), exemplar].concat();
    let two = [label("__name__", "down"), sample(7)].concat();
    let metadata = bytes(3, &[number(1, 1), bytes(2, b"up"), bytes(4, b"help"), bytes(5, b"s")].concat());
    [bytes(1, &one), bytes(1, &two), metadata].concat()
}

/// The same by symbols, in remote write 2.0.
fn write_v2() -> Vec<u8> {
    let symbols: Vec<u8> =
        ["", "__name__", "up", "job", "a"].iter().flat_map(|text| bytes(4, text.as_bytes())).collect();
    let sample = |at: u64| bytes(2, &[double(1, 1.5), number(2, at)].concat());
    let one = [bytes(1, &[1, 2, 3, 4]), sample(1), sample(2)].concat();
    [symbols, bytes(5, &one)].concat()
}

#[test]
fn remote_write() {
    let (one, two) = (write_v1(), write_v2());
    let bounds = decode::Bounds::default();
    assert_eq!(decode::decode_plain(one.clone(), Version::V1, &bounds).unwrap().batch.series.len(), 2);
    assert_eq!(decode::decode_plain(two.clone(), Version::V2, &bounds).unwrap().batch.series.len(), 1);
    let seeds = [packed(&one), packed(&two), one, two];
    drive("write_decode", 6000, 32 << 20, &seeds, write_decode::run);
}

#[test]
fn remote_read() {
    let matcher =
        |kind: u64, value: &str| bytes(3, &[number(1, kind), bytes(2, b"job"), bytes(3, value.as_bytes())].concat());
    let hints = bytes(4, &[number(1, 15), bytes(2, b"rate"), number(3, 5), number(4, 99), bytes(5, b"job")].concat());
    let query = [number(1, 5), number(2, 99), matcher(0, "a"), matcher(2, "a.*|b"), hints].concat();
    let body = [bytes(1, &query), number(2, 1), number(2, 0)].concat();
    assert_eq!(request::decode_plain(&body).unwrap().queries.len(), 1);
    drive("remote_read", 4000, 32 << 20, &[packed(&body), body], remote_read::run);
}

/// What nodes send each other, each with the number of its kind in front.
fn messages() -> Vec<Vec<u8>> {
    let labels = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
    let columns = Columns { times: (0..50).map(|i| i * 15_000).collect(), values: vec![1.5; 50], ..Columns::default() };
    let one = Series { labels: labels.clone(), source: Arc::new(columns) };
    let mut frame = Vec::new();
    series::put_series(&mut frame, &one, TimeRange::ALL, &mut Columns::default()).unwrap();
    let slice = decode::decode_plain(write_v1(), Version::V1, &decode::Bounds::default()).unwrap().batch;
    let digests = vec![(0, Digest { count: 3, low: 4, high: 5 }), (300_000, Digest::EMPTY)];
    let window = TimeRange::new(0, 7_200_000);
    let part = Frozen { number: 3, window, digests: BTreeMap::from_iter(digests.clone()), series: vec![one] };
    let promise = frozen::put_promise(Some(&part.into()));
    let mut archive = blocks::tar::header("chunks/000001", 700);
    archive.resize(512 + 1024, 7);
    archive.extend(blocks::tar::header("meta.json", 3));
    archive.resize(512 + 1024 + 512 + 512 + 1024, 0);
    let counts = Counts { series: 1, samples: 2, ..Default::default() };
    [
        wire::batch::encode(&slice, &[0, 1], true),
        frame.clone(),
        promise,
        series::put_digests(&digests),
        pack(&frame),
        ask::write(vec![labels]).unwrap(),
        ask::write(counts).unwrap(),
        archive,
    ]
    .into_iter()
    .zip(0_u8..)
    .map(|(body, kind)| [&[kind][..], &body].concat())
    .collect()
}

#[test]
fn what_nodes_send_each_other() {
    drive("peer_wire", 6000, 32 << 20, &messages(), peer_wire::run);
}
