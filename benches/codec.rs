//! Criterion benches of codecs through the public API: packing rows on put, and unpacking them on read. The controls
//! are plain zstd, row by row at the same level, and a copy.
//!
//! `cargo bench --bench codec`; everything is in memory.
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

#[path = "support/random.rs"]
mod random;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use random::Random;
use tensorcask::storage::MemoryStorage;
use tensorcask::{Codec, Element, Options, Store, Verify};

const ROWS: usize = 256;
const DIMS: usize = 768;
const LEVEL: i32 = 3;

/// Rows like those of encoders: about normal, with dimensions of different scale, few of them active.
fn features() -> Vec<f32> {
    let mut random = Random(5);
    let mut normal = move || (0..6).map(|_| random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5).sum::<f32>();
    let scales: Vec<f32> = (0..DIMS).map(|_| normal().exp()).collect();
    (0..ROWS).flat_map(|_| scales.iter().map(|scale| (normal() * scale).max(0.0)).collect::<Vec<_>>()).collect()
}

/// A store in memory that writes only when it is flushed.
fn open(storage: &Arc<MemoryStorage>, codec: Codec) -> Store {
    let options = Options::new().codec(codec).verify(Verify::Never).flush_every(1 << 20, 1 << 40);
    let options = options.flush_interval(Duration::from_secs(3600));
    options.open_on(Arc::<MemoryStorage>::clone(storage)).expect("a store")
}

fn codecs<T: Element>(c: &mut Criterion, dtype: &str, rows: &[T]) {
    let bytes: &[u8] = bytemuck::cast_slice(rows);
    let row_bytes = bytes.len() / ROWS;
    let keys: Vec<u64> = (0..ROWS as u64).collect();
    let codecs = [Codec::None, Codec::Zstd { level: LEVEL }, Codec::ShuffleZstd { level: LEVEL }];

    let mut group = c.benchmark_group(format!("pack {ROWS} rows of {DIMS} {dtype}"));
    group.throughput(Throughput::Bytes(bytes.len() as u64)).sample_size(20);
    let mut copy = vec![0_u8; bytes.len()];
    group.bench_function("control: copy", |b| b.iter(|| copy.copy_from_slice(black_box(bytes))));
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).expect("a compressor");
    group.bench_function("control: zstd of each row", |b| {
        b.iter(|| bytes.chunks(row_bytes).map(|row| compressor.compress(row).expect("a row").len()).sum::<usize>());
    });
    for codec in codecs {
        group.bench_function(format!("put_rows, {}", codec.name()), |b| {
            b.iter_batched(
                || open(&Arc::new(MemoryStorage::new()), codec),
                |store| {
                    store.put_rows(&keys, &[DIMS], rows).expect("rows");
                    store
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();

    let mut group = c.benchmark_group(format!("unpack {ROWS} rows of {DIMS} {dtype}"));
    group.throughput(Throughput::Bytes(bytes.len() as u64)).sample_size(20);
    group.bench_function("control: copy", |b| b.iter(|| copy.copy_from_slice(black_box(bytes))));
    let packed: Vec<Vec<u8>> = bytes.chunks(row_bytes).map(|row| compressor.compress(row).expect("a row")).collect();
    let mut decompressor = zstd::bulk::Decompressor::new().expect("a decompressor");
    group.bench_function("control: zstd of each row", |b| {
        b.iter(|| {
            for (row, place) in packed.iter().zip(copy.chunks_mut(row_bytes)) {
                decompressor.decompress_to_buffer(row, place).expect("a row");
            }
        });
    });
    let (mut out, mut found) = (rows.to_vec(), vec![false; ROWS]);
    for codec in codecs {
        let storage = Arc::new(MemoryStorage::new());
        let store = open(&storage, codec);
        store.put_rows(&keys, &[DIMS], rows).expect("rows");
        store.flush().expect("a flush");
        group.bench_function(format!("get_batch_into, unverified, {}", codec.name()), |b| {
            b.iter(|| store.get_batch_into(&keys, &[DIMS], &mut out, &mut found));
        });
    }
    group.finish();
}

fn both(c: &mut Criterion) {
    let rows = features();
    codecs(c, "f32", &rows);
    let half: Vec<f16> = rows.iter().map(|value| f16::from_f32(*value)).collect();
    codecs(c, "f16", &half);
}

criterion_group!(benches, both);
criterion_main!(benches);
