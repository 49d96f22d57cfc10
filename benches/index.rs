//! Criterion benches of the index through the public API, with values of eight bytes, whose cost is negligible:
//! inserting into the memtable, finding present and absent keys in the memtable and in a run, and building a run, as
//! the store grows.
//!
//! `cargo bench --bench index`; `TENSORCASK_BENCH_ROWS` bounds the largest store (default 1,000,000; up to 100,000,000,
//! which take 10 GB of `TENSORCASK_BENCH_DIR`).
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

#[path = "support/folder.rs"]
mod folder;
#[path = "support/random.rs"]
mod random;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/sizes.rs"]
mod sizes;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashTable;
use random::{Random, mix};
use tensorcask::{Options, Store};
use xxhash_rust::xxh3::xxh3_64;

const BATCH: usize = 1024;
const LOAD: u64 = 65_536;
/// Counters from here on are never put.
const ABSENT: u64 = 1 << 50;
/// A cache line, which is also a bucket of a run.
const LINE: usize = 64;

fn sizes() -> Vec<u64> {
    sizes::sizes(&[100_000, 1_000_000, 10_000_000, 100_000_000], 1_000_000)
}

/// A store whose memtable holds everything, and which writes only when it is flushed.
fn open(dir: &Path, size: u64) -> Store {
    let room = size as usize + (1 << 25);
    let options = Options::new().memtable_keys(room).segment_rows(1 << 24).segment_bytes(1 << 30);
    let options = options.flush_every(room, 1 << 40).buffer_bytes(1 << 40).flush_interval(Duration::from_secs(3600));
    options.open(dir, "m").expect("a store")
}

fn load(store: &Store, size: u64) {
    for start in (0..size).step_by(LOAD as usize) {
        let keys: Vec<u64> = (start..size.min(start + LOAD)).map(mix).collect();
        store.put_rows(&keys, &[], &keys).expect("rows");
    }
    store.flush().expect("a flush");
}

/// The control of the memtable: hashbrown's bare table with the same hash as the store.
struct Bare(HashTable<(u64, u64)>);

impl Bare {
    fn of(size: u64) -> Self {
        let mut bare = Self(HashTable::new());
        (0..size).for_each(|row| bare.insert(mix(row), row));
        bare
    }

    fn hash(key: u64) -> u64 {
        xxh3_64(&key.to_le_bytes())
    }

    fn insert(&mut self, key: u64, row: u64) {
        self.0.insert_unique(Self::hash(key), (key, row), |entry| Self::hash(entry.0));
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.0.find(Self::hash(key), |entry| entry.0 == key).map(|entry| entry.1)
    }
}

fn inserts(c: &mut Criterion) {
    for size in sizes() {
        let mut group = c.benchmark_group(format!("insert {BATCH} new keys beside {size} in the memtable"));
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
        let mut bare = Bare::of(size);
        let mut next = ABSENT;
        let mut keys = move || -> Vec<u64> {
            next += BATCH as u64;
            (next..next + BATCH as u64).map(mix).collect()
        };
        group.bench_function("control: hashbrown", |b| {
            b.iter_batched(
                &mut keys,
                |keys| keys.iter().for_each(|key| bare.insert(*key, *key)),
                BatchSize::SmallInput,
            );
        });
        drop(bare);
        let dir = folder::folder();
        let store = open(dir.path(), size);
        load(&store, size);
        group.bench_function("put_rows of eight-byte rows, not yet written", |b| {
            b.iter_batched(&mut keys, |keys| store.put_rows(&keys, &[], &keys), BatchSize::SmallInput);
        });
        group.finish();
    }
}

fn lookups(c: &mut Criterion) {
    for size in sizes() {
        let dir = folder::folder();
        let store = open(dir.path(), size);
        load(&store, size);
        let bare = Bare::of(size);
        let name = format!("{BATCH} keys of {size} in the memtable");
        lookup(c, &name, &store, size, "hashbrown", &mut |keys| {
            keys.iter().filter_map(|key| bare.get(black_box(*key))).fold(0, |sum, row| sum ^ row)
        });
        drop(bare);
        // Closing seals the segments and merges the index.
        store.close().expect("a close");
        let store = open(dir.path(), size);
        let lines = raw::map(&run_file(&dir.path().join("m"))).expect("a map");
        let count = (lines.len() / LINE) as u64;
        let name = format!("{BATCH} keys of {size} in a run");
        let (mut numbers, mut out) = (Vec::new(), vec![0_u8; BATCH * LINE]);
        lookup(c, &name, &store, size, "a random line of the run's file", &mut |keys| {
            // The control reads other lines, as the lookups have brought those of the keys into the cache.
            let place = |key: &u64| ((u128::from(mix(*key)) * u128::from(count)) >> 64) as u64;
            numbers.clear();
            numbers.extend(keys.iter().map(place));
            raw::gather(&lines, &numbers, LINE, &mut out);
            out.iter().step_by(LINE).fold(0, |sum, byte| sum ^ u64::from(*byte))
        });
    }
}

fn run_file(store: &Path) -> std::path::PathBuf {
    let mut files = std::fs::read_dir(store.join("runs")).expect("a folder of runs");
    files.next().expect("a run").expect("a run").path()
}

/// Hits and misses, compared to the cost of touching one place in memory.
fn lookup(c: &mut Criterion, name: &str, store: &Store, size: u64, control: &str, look: &mut dyn FnMut(&[u64]) -> u64) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut random = Random(size);
    let mut keys = |first: u64| -> Vec<u64> { (0..BATCH).map(|_| mix(first + random.below(size))).collect() };
    let (mut out, mut found) = (vec![0_u64; BATCH], vec![false; BATCH]);
    group.bench_function(format!("control: {control}"), |b| {
        b.iter_batched(|| keys(0), |keys| look(&keys), BatchSize::SmallInput);
    });
    group.bench_function("hit: contains_batch", |b| {
        b.iter_batched(|| keys(0), |keys| store.contains_batch(&keys), BatchSize::SmallInput);
    });
    group.bench_function("hit: get_batch_into of eight-byte rows", |b| {
        b.iter_batched(
            || keys(0),
            |keys| store.get_batch_into(&keys, &[], &mut out, &mut found),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("miss: contains_batch", |b| {
        b.iter_batched(|| keys(ABSENT), |keys| store.contains_batch(&keys), BatchSize::SmallInput);
    });
    group.finish();
}

/// Builds one run from all sealed segments: reads their sorted blocks, merges them, and writes buckets.
fn merges(c: &mut Criterion) {
    for size in sizes() {
        let dir = folder::folder();
        let store = open(dir.path(), size);
        load(&store, size);
        store.close().expect("a close");
        drop(store);
        let mut group = c.benchmark_group(format!("merge {size} keys to a run"));
        group.throughput(Throughput::Elements(size)).sample_size(10);
        let pairs: Vec<(u64, u64)> = (0..size).map(|row| (mix(mix(row)), row)).collect();
        group.bench_function("control: copy of the same pairs", |b| {
            let mut copy = pairs.clone();
            b.iter(|| copy.copy_from_slice(black_box(&pairs)));
        });
        group.bench_function("control: sort_unstable of the same pairs", |b| {
            b.iter_batched(|| pairs.clone(), |mut pairs| pairs.sort_unstable(), BatchSize::PerIteration);
        });
        group.bench_function("merge_index", |b| {
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    std::fs::remove_dir_all(dir.path().join("m/runs")).expect("a removal");
                    let store = open(dir.path(), size);
                    let begin = Instant::now();
                    store.merge_index().expect("a merge");
                    total += begin.elapsed();
                    store.close().expect("a close");
                }
                total
            });
        });
        group.finish();
    }
}

criterion_group!(benches, inserts, lookups, merges);
criterion_main!(benches);
