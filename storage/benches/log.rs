//! Group commit on the real disk: how many records a second become durable when this many wait at once.
//!
//! Run with `TMPDIR` on the disk of interest: a memory file system syncs for nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "bench")]

use std::sync::{Arc, mpsc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engram_storage::disk::real::RealDisk;
use engram_storage::log::{NodeLog, Options, Position};

const PAYLOAD: usize = 4 << 10;

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    group.sample_size(20);
    for waiting in [1_u64, 16, 256] {
        let dir = tempfile::tempdir().unwrap();
        let log = NodeLog::open(Arc::new(RealDisk), dir.path(), Options::default(), &mut |_, _| Ok(())).unwrap();
        group.throughput(Throughput::Elements(waiting));
        group.bench_function(BenchmarkId::new("records of 4 KiB at once", waiting), |b| {
            b.iter(|| {
                let (tx, done) = mpsc::channel();
                for _ in 0..waiting {
                    let tx = tx.clone();
                    log.append(vec![7; PAYLOAD], Box::new(move |answer| tx.send(answer).unwrap())).unwrap();
                }
                drop(tx);
                let last: Position = done.iter().last().unwrap().unwrap();
                log.truncate_below(last);
            });
        });
        log.close().unwrap();
    }
    group.finish();
}

criterion_group!(benches, commit);
criterion_main!(benches);
