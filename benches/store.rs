//! Criterion benches of the store: the costs of a flush, a put, a get and an open as the store grows, each with its
//! control in the same group.
//!
//! `cargo bench --bench store`; `TENSORCASK_BENCH_ROWS` limits the largest store (default 100,000). 1,000,000 rows of
//! 3,072 B and their control take 6 GB in `TENSORCASK_BENCH_DIR`. By default this is a file system in memory if there
//! is one, as a disk that is still busy with the load would distort the results. `cargo bench --bench engine` measures
//! on disk.
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

#[path = "support/folder.rs"]
mod folder;
#[path = "support/random.rs"]
mod random;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/sizes.rs"]
mod sizes;

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use random::Random;
use tensorcask::{Durability, Options, Reader, Result, Store};

/// The dimensions of rows that are read and flushed: 3,072 B.
const DIMS: usize = 768;
/// The dimensions of rows that are in the store before others are flushed: 64 B, so that a million of them fit into
/// memory that was touched before. On a virtual machine the first touch of a page costs ten times the write, and would
/// affect only the largest store.
const SMALL_DIMS: usize = 16;
const FLUSH_ROWS: usize = 2048;
/// Keys per read, put or delete.
const GATHER: usize = 256;

fn sizes() -> Vec<u64> {
    sizes::sizes(&[1_000, 100_000, 1_000_000], 100_000)
}

/// A store that writes only when it is flushed, so that a flush includes all of its work. It neither seals nor merges
/// within a measurement; `cargo bench --bench engine` measures these.
fn open(dir: &Path, module: &str) -> Result<Store> {
    Options::new()
        .segment_bytes(8 << 30)
        .segment_rows(1 << 24)
        .memtable_keys(1 << 22)
        .flush_every(1 << 20, 1 << 30)
        .flush_interval(Duration::from_secs(3600))
        .open(dir, module)
}

fn grow(store: &Store, rows: u64, dims: usize) -> Result<()> {
    let values = vec![0.5_f32; FLUSH_ROWS * dims];
    for start in (0..rows).step_by(FLUSH_ROWS) {
        let keys: Vec<u64> = (start..rows.min(start + FLUSH_ROWS as u64)).collect();
        store.put_rows(&keys, &[dims], values.get(..keys.len() * dims).unwrap_or(&values))?;
        store.flush_with(Durability::Buffered)?;
    }
    store.flush()
}

/// Fills a store with `size` rows, and flushes a few batches.
fn write_rows(store: &Store, size: u64, values: &[f32]) -> Result<()> {
    grow(store, size, SMALL_DIMS)?;
    (1..4).try_for_each(|turn| flush_once(store, turn << 20, values, Durability::Buffered).map(|_| ()))
}

/// Puts and flushes 2,048 new rows; returns the time.
fn flush_once(store: &Store, first: u64, values: &[f32], durability: Durability) -> Result<Duration> {
    let keys: Vec<u64> = (0..FLUSH_ROWS as u64).map(|key| (1 << 40) + first * FLUSH_ROWS as u64 + key).collect();
    let begin = Instant::now();
    store.put_rows(&keys, &[DIMS], values)?;
    store.flush_with(durability)?;
    Ok(begin.elapsed())
}

/// The cost of a flush must not grow with the store: the limit is a factor of 1.3 between the smallest and the largest.
fn flush(c: &mut Criterion) {
    let values = vec![0.25_f32; FLUSH_ROWS * DIMS];
    for durability in [Durability::Buffered, Durability::SyncData] {
        let mut group = c.benchmark_group(format!("flush 2,048 rows, {durability:?}"));
        group.throughput(Throughput::Bytes((FLUSH_ROWS * DIMS * 4) as u64));
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        group.bench_function("control: write to a file", |b| {
            let dir = folder::folder();
            let mut file = File::create(dir.path().join("raw")).expect("a file");
            b.iter(|| {
                file.write_all(bytes).expect("a write");
                if durability == Durability::SyncData {
                    file.sync_data().expect("a sync");
                }
            });
        });
        for size in sizes() {
            let dir = folder::folder();
            let mut store = open(dir.path(), "m").expect("a store");
            write_rows(&store, size, &values).expect("rows");
            let mut flushed = 0;
            group.bench_function(BenchmarkId::new("store", size), |b| {
                b.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        // The store is recreated before it has grown much.
                        if flushed * FLUSH_ROWS as u64 > size.max(400_000) / 8 {
                            store.close().expect("a close");
                            std::fs::remove_dir_all(dir.path().join("m")).expect("a removal");
                            store = open(dir.path(), "m").expect("a store");
                            write_rows(&store, size, &values).expect("rows");
                            flushed = 0;
                        }
                        total += flush_once(&store, flushed, &values, durability).expect("a flush");
                        flushed += 1;
                    }
                    total
                });
            });
        }
        group.finish();
    }
}

/// The rows of `grow` in a plain mapped file.
fn control(dir: &Path, rows: u64) -> memmap2::Mmap {
    let path = dir.join("control");
    let mut file = BufWriter::new(File::create(&path).expect("a file"));
    let row = [0.5_f32; DIMS];
    (0..rows).for_each(|_| file.write_all(bytemuck::cast_slice(&row)).expect("a write"));
    drop(file);
    raw::map(&path).expect("a map")
}

fn reads(c: &mut Criterion) {
    for size in sizes() {
        let dir = folder::folder();
        let store = open(dir.path(), "m").expect("a store");
        grow(&store, size, DIMS).expect("rows");
        store.close().expect("a close");
        let reader = Reader::open(dir.path(), "m").expect("a reader");
        let map = control(dir.path(), size);

        let mut group = c.benchmark_group(format!("{GATHER} random keys of {size}"));
        group.throughput(Throughput::Elements(GATHER as u64));
        let mut out = vec![0.0_f32; GATHER * DIMS];
        let mut found = vec![false; GATHER];
        let mut random = Random(size);
        let mut keys = || -> Vec<u64> { (0..GATHER).map(|_| random.below(size)).collect() };
        group.bench_function("control: raw gather", |b| {
            let mut copied = vec![0_u8; GATHER * DIMS * 4];
            b.iter_batched(
                &mut keys,
                |numbers| raw::gather(&map, &numbers, DIMS * 4, black_box(&mut copied)),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("get_batch_into", |b| {
            b.iter_batched(
                &mut keys,
                |keys| reader.get_batch_into(&keys, &[DIMS], &mut out, &mut found),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("contains_batch", |b| {
            b.iter_batched(&mut keys, |keys| reader.contains_batch(&keys), BatchSize::SmallInput);
        });
        group.bench_function("get_batch_into, all missing", |b| {
            b.iter_batched(
                || keys().iter().map(|key| key + (1 << 50)).collect::<Vec<u64>>(),
                |keys| reader.get_batch_into(&keys, &[DIMS], &mut out, &mut found),
                BatchSize::SmallInput,
            );
        });
        group.finish();

        let mut group = c.benchmark_group(format!("open {size}"));
        group.sample_size(20);
        group.bench_function("control: open and map a file", |b| b.iter(|| raw::map(&dir.path().join("control"))));
        group.bench_function("reader", |b| b.iter(|| Reader::open(dir.path(), "m")));
        group.bench_function("writer, and close", |b| {
            b.iter(|| Store::open(dir.path(), "m").and_then(|store| store.close()))
        });
        group.finish();
    }
}

/// The time that the caller of `put_rows` and `delete_batch` waits: copies and the memtable, without the disk.
fn puts(c: &mut Criterion) {
    let values = vec![0.25_f32; GATHER * DIMS];
    let bytes = bytemuck::cast_slice(&values);
    for size in sizes() {
        let mut group = c.benchmark_group(format!("put and delete {GATHER} keys beside {size}"));
        group.throughput(Throughput::Elements(GATHER as u64)).sample_size(20);
        let mut copy = vec![0_u8; bytes.len()];
        group.bench_function("control: copy of the rows", |b| b.iter(|| copy.copy_from_slice(black_box(bytes))));
        let dir = folder::folder();
        let store = open(dir.path(), "m").expect("a store");
        grow(&store, size, SMALL_DIMS).expect("rows");
        let mut first = 1 << 40;
        // Puts and deletes take turns and are timed separately: the rows that were put are deleted, and both are
        // flushed before they accumulate.
        let mut turn = |iterations: u64, deletes: bool| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let keys: Vec<u64> = (first..first + GATHER as u64).collect();
                first += GATHER as u64;
                let begin = Instant::now();
                store.put_rows(&keys, &[DIMS], &values).expect("rows");
                let put = begin.elapsed();
                let begin = Instant::now();
                assert_eq!(store.delete_batch(&keys).expect("keys"), GATHER);
                total += if deletes { begin.elapsed() } else { put };
                store.flush_with(Durability::Buffered).expect("a flush");
            }
            total
        };
        group.bench_function("put_rows", |b| b.iter_custom(|iterations| turn(iterations, false)));
        group.bench_function("delete_batch", |b| b.iter_custom(|iterations| turn(iterations, true)));
        group.finish();
    }
}

criterion_group!(benches, flush, puts, reads);
criterion_main!(benches);
