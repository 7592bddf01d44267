//! Encoding and decoding of chunks: samples a second. Run: `cargo bench -p engram-storage --bench chunk`.
//!
//! Shapes of series: a gauge that never changes, one that moves by hundredths, a counter scraped on time and one scraped
//! with jitter, random floats at random times (the worst case).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engram_model::series::Columns;
use engram_storage::chunk::{Chunk, encode_floats};

const CHUNKS: usize = 1000;

/// A small linear congruence: the bench needs noise, not chance.
fn noise(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[allow(clippy::cast_precision_loss, reason = "values of a bench")]
fn samples(shape: &str) -> Vec<(i64, f64)> {
    let (mut state, mut total) = (7, 0.0);
    let mut all = Vec::new();
    for i in 0..120 * CHUNKS {
        let at = i as i64 * 15_000;
        all.push(match shape {
            "constant" => (at, 1.0),
            "gauge" => {
                total += (noise(&mut state) % 201) as f64 - 100.0;
                (at, total / 100.0)
            }
            "counter" => {
                total += (noise(&mut state) % 50) as f64;
                (at, total)
            }
            "late counter" => {
                total += (noise(&mut state) % 50) as f64;
                (at + (noise(&mut state) % 5) as i64, total)
            }
            _ => (at + (noise(&mut state) % 900) as i64, noise(&mut state) as f64 / 977.0),
        });
    }
    all
}

fn bench(c: &mut Criterion) {
    for shape in ["constant", "gauge", "counter", "late counter", "random"] {
        let samples = samples(shape);
        let chunks: Vec<Chunk> = samples.chunks(120).flat_map(encode_floats).collect();
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let mut group = c.benchmark_group(format!("{shape} ({} bytes for 100 samples)", bytes * 100 / samples.len()));
        group.throughput(Throughput::Elements(samples.len() as u64));
        group.bench_function("encode", |b| {
            b.iter(|| samples.chunks(120).map(|run| encode_floats(run).len()).sum::<usize>());
        });
        let mut out = Columns::default();
        group.bench_function("decode", |b| {
            b.iter(|| {
                let mut read = 0;
                for chunk in &chunks {
                    out.clear();
                    if chunk.decode(&mut out).is_ok() {
                        read += out.times.len();
                    }
                }
                assert_eq!(read, samples.len());
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
