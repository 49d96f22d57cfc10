//! Criterion benches of segments through the public API: appending a batch, opening sealed segments, parsing batches on
//! their first use, and scanning the frames of an active segment.
//!
//! `cargo bench --bench segment`; in `TENSORCASK_BENCH_DIR`.
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

#[path = "support/folder.rs"]
mod folder;

use std::fs::File;
use std::hint::black_box;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tensorcask::{Dtype, Durability, Options, Reader, Store};

const ROW_BYTES: usize = 128;
const BATCH_ROWS: u64 = 64;
/// Bytes that are appended before a new file is started, to limit disk space.
const MOST_BYTES: usize = 1 << 30;

/// A store that writes on the caller's thread, and only when it is flushed.
fn open(dir: &Path, segment_rows: u32) -> Store {
    let options =
        Options::new().synchronous(true).segment_rows(segment_rows).segment_bytes(8 << 30).memtable_keys(1 << 22);
    options.flush_every(1 << 20, 1 << 40).flush_interval(Duration::from_secs(3600)).open(dir, "m").expect("a store")
}

fn append(store: &Store, first: u64, rows: u64, row_bytes: usize, values: &[u8]) {
    let keys: Vec<u64> = (first..first + rows).collect();
    store.put_rows_bytes(&keys, Dtype::U8, &[row_bytes], values).expect("rows");
    store.flush_with(Durability::Buffered).expect("a flush");
}

/// A store with this number of batches.
fn batches(dir: &Path, batches: u64, segment_rows: u32) -> Store {
    let store = open(dir, segment_rows);
    let values = vec![1; BATCH_ROWS as usize * ROW_BYTES];
    for batch in 0..batches {
        append(&store, batch * BATCH_ROWS, BATCH_ROWS, ROW_BYTES, &values);
    }
    store
}

fn appends(c: &mut Criterion) {
    for (rows, row_bytes) in [(2048_u64, 3072), (2048, 128)] {
        let mut group = c.benchmark_group(format!("append a batch of {rows} rows of {row_bytes} B"));
        let values = vec![1_u8; rows as usize * row_bytes];
        group.throughput(Throughput::Bytes(values.len() as u64)).sample_size(20);
        let most = (MOST_BYTES / values.len()) as u64;
        group.bench_function("control: write", |b| {
            let dir = folder::folder();
            let mut file = File::create(dir.path().join("raw")).expect("a file");
            let mut written = 0;
            b.iter(|| {
                if written == most {
                    file.rewind().expect("a seek");
                    file.set_len(0).expect("a cut");
                    written = 0;
                }
                written += 1;
                file.write_all(black_box(&values)).expect("a write");
            });
        });
        group.bench_function("put_rows and a buffered flush", |b| {
            let dir = folder::folder();
            let mut store = open(dir.path(), 1 << 24);
            let mut appended = 0;
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    if appended == most {
                        store.close().expect("a close");
                        std::fs::remove_dir_all(dir.path().join("m")).expect("a removal");
                        store = open(dir.path(), 1 << 24);
                        appended = 0;
                    }
                    let begin = Instant::now();
                    append(&store, appended * rows, rows, row_bytes, &values);
                    total += begin.elapsed();
                    appended += 1;
                }
                total
            });
        });
        group.finish();
    }
}

fn opens(c: &mut Criterion) {
    let mut group = c.benchmark_group("open sealed segments");
    for segments in [1_u64, 16, 256] {
        let dir = folder::folder();
        batches(dir.path(), segments, BATCH_ROWS as u32).close().expect("a close");
        let files = || std::fs::read_dir(dir.path().join("m/segments")).expect("segments").flatten();
        group.throughput(Throughput::Elements(segments));
        group.bench_function(BenchmarkId::new("control: open each file and ask for its length", segments), |b| {
            b.iter(|| {
                let length = |path| File::open(path).and_then(|file| file.metadata()).map_or(0, |data| data.len());
                files().map(|entry| length(entry.path())).sum::<u64>()
            });
        });
        group.bench_function(BenchmarkId::new("Reader::open", segments), |b| b.iter(|| Reader::open(dir.path(), "m")));
    }
    group.finish();
}

/// A batch is parsed when one of its rows is read first.
fn parses(c: &mut Criterion) {
    const BATCHES: u64 = 1024;
    let dir = folder::folder();
    batches(dir.path(), BATCHES, 1 << 20).close().expect("a close");
    let keys: Vec<u64> = (0..BATCHES).map(|batch| batch * BATCH_ROWS).collect();
    let mut out = vec![0_u8; keys.len() * ROW_BYTES];
    let mut found = vec![false; keys.len()];
    let mut read = |reader: Reader| {
        let hits = reader.get_batch_into_bytes(&keys, Dtype::U8, &[ROW_BYTES], &mut out, &mut found);
        assert_eq!(hits.expect("rows"), keys.len());
        reader
    };
    let mut group = c.benchmark_group(format!("a row of each of {BATCHES} batches"));
    group.throughput(Throughput::Elements(BATCHES));
    let used = read(Reader::open(dir.path(), "m").expect("a reader"));
    group.bench_function("control: batches that were parsed before", |b| {
        b.iter_batched(|| used.clone(), &mut read, BatchSize::SmallInput);
    });
    group.bench_function("batches that are parsed now", |b| {
        b.iter_batched(|| Reader::open(dir.path(), "m").expect("a reader"), &mut read, BatchSize::PerIteration);
    });
    group.finish();
}

/// A reader scans the frames of a writer's active segment.
fn walks(c: &mut Criterion) {
    let mut group = c.benchmark_group("open while a writer writes");
    for frames in [16_u64, 256, 4096] {
        let dir = folder::folder();
        let writer = batches(dir.path(), frames, 1 << 24);
        group.throughput(Throughput::Elements(frames));
        // Keys and checksums of the rows, which are covered by the checksum of each frame.
        let structure = vec![1_u8; (frames * BATCH_ROWS * 12) as usize];
        group.bench_function(
            BenchmarkId::new("control: CRC-32 of keys and checksums of as many batches", frames),
            |b| {
                b.iter(|| crc32fast::hash(black_box(&structure)));
            },
        );
        group.bench_function(BenchmarkId::new("Reader::open", frames), |b| b.iter(|| Reader::open(dir.path(), "m")));
        writer.close().expect("a close");
    }
    group.finish();
}

criterion_group!(benches, appends, opens, parses, walks);
criterion_main!(benches);
