//! Criterion benches of checksums and of the key hash: CRC-32 of a block, of each of its rows, and of rows by columns
//! as the store computes it. The control is a copy of the same bytes.
//!
//! `cargo bench --bench checksum`; everything is in memory.
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tensorcask::storage::MemoryStorage;
use tensorcask::{Dtype, Options, Verify};

const KEYS: u64 = 4096;

fn rows(c: &mut Criterion) {
    for row_bytes in [128_usize, 3072] {
        let values: Vec<u8> = (0..KEYS as usize * row_bytes).map(|at| (at / 7) as u8).collect();
        let keys: Vec<u64> = (0..KEYS).collect();
        let mut out = vec![0_u8; values.len()];
        let mut found = vec![false; keys.len()];
        let mut group = c.benchmark_group(format!("{KEYS} rows of {row_bytes} B"));
        group.throughput(Throughput::Bytes(values.len() as u64));
        group.bench_function("control: copy", |b| b.iter(|| out.copy_from_slice(black_box(&values))));
        group.bench_function("control: CRC-32 of the block", |b| b.iter(|| crc32fast::hash(black_box(&values))));
        group.bench_function("CRC-32 of each row and its key", |b| {
            b.iter(|| {
                let rows = black_box(&values).chunks_exact(row_bytes).zip(&keys);
                rows.fold(0, |sum, (row, key)| sum ^ row_crc(1, &key.to_le_bytes(), row))
            });
        });
        for verify in [Verify::Never, Verify::Always] {
            let store = Options::new().verify(verify).open_on(Arc::new(MemoryStorage::new())).expect("a store");
            store.put_rows_bytes(&keys, Dtype::U8, &[row_bytes], &values).expect("rows");
            store.flush().expect("a flush");
            group.bench_function(format!("get_batch_into in order, {verify:?}"), |b| {
                b.iter(|| store.get_batch_into_bytes(&keys, Dtype::U8, &[row_bytes], &mut out, &mut found));
            });
        }
        group.finish();
    }
}

/// The checksum of a row with a seed, as FORMAT.md specifies it.
fn row_crc(seed: u32, key: &[u8], row: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    for part in [(key.len() as u32).to_le_bytes().as_slice(), key, row] {
        hasher.update(part);
    }
    hasher.finalize()
}

fn keys(c: &mut Criterion) {
    for key_bytes in [8_usize, 20, 64] {
        let keys: Vec<u8> = (0..KEYS as usize * key_bytes).map(|at| (at / 3) as u8).collect();
        let mut out = vec![0_u8; keys.len()];
        let mut group = c.benchmark_group(format!("{KEYS} keys of {key_bytes} B"));
        group.throughput(Throughput::Elements(KEYS));
        group.bench_function("control: copy", |b| b.iter(|| out.copy_from_slice(black_box(&keys))));
        group.bench_function("control: xxh3 of the block", |b| {
            b.iter(|| xxhash_rust::xxh3::xxh3_64(black_box(&keys)));
        });
        group.bench_function("xxh3 of each", |b| {
            b.iter(|| {
                black_box(&keys).chunks_exact(key_bytes).fold(0, |sum, key| sum ^ xxhash_rust::xxh3::xxh3_64(key))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, rows, keys);
criterion_main!(benches);
