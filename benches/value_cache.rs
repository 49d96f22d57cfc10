//! Criterion benches of the value cache through the public API: values that are in it, and values that evict others.
//! The controls are the same reads without a cache, and a `HashMap` with a lock, on one thread and on two.
//!
//! `cargo bench --bench value_cache`; everything is in memory.
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

#[path = "support/random.rs"]
mod random;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use parking_lot::Mutex;
use random::Random;
use tensorcask::storage::MemoryStorage;
use tensorcask::{Codec, Options, Store, Value};

const ROWS: u64 = 20_000;
const DIMS: usize = 768;
const BATCH: usize = 256;
/// Holds every value.
const AMPLE_BYTES: usize = 256 << 20;
/// Holds a tenth of the values.
const SCARCE_BYTES: usize = 6 << 20;

/// A store of packed rows, for which a value cache is useful.
fn store(value_cache_bytes: usize) -> Store {
    let options = Options::new().codec(Codec::Zstd { level: 1 }).value_cache_bytes(value_cache_bytes);
    let store = options.open_on(Arc::new(MemoryStorage::new())).expect("a store");
    let keys: Vec<u64> = (0..ROWS).collect();
    for keys in keys.chunks(2000) {
        let rows: Vec<f32> = keys.iter().flat_map(|key| (0..DIMS).map(move |at| (*key as usize + at) as f32)).collect();
        store.put_rows(keys, &[DIMS], &rows).expect("rows");
    }
    store.flush().expect("a flush");
    store
}

fn draw(random: &mut Random) -> Vec<u64> {
    (0..BATCH).map(|_| random.below(ROWS)).collect()
}

fn get(store: &Store, keys: &[u64]) -> usize {
    let values = store.get_batch(keys).expect("values");
    values.iter().filter(|value| matches!(value, Ok(Some(_)))).count()
}

/// Gets a batch of keys; returns the number of keys found.
type Get<'a> = &'a (dyn Fn(&[u64]) -> usize + Sync);

/// The time of `iterations` batches on each of `threads` concurrent threads.
fn race(threads: u64, iterations: u64, get: Get<'_>) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut random = Random(thread << 40);
                for _ in 0..iterations {
                    assert_eq!(get(&draw(&mut random)), BATCH);
                }
            });
        }
    });
    begin.elapsed()
}

fn value_cache(c: &mut Criterion) {
    let (without, ample, scarce) = (store(0), store(AMPLE_BYTES), store(SCARCE_BYTES));
    let keys: Vec<u64> = (0..ROWS).collect();
    let map: HashMap<u64, Value> = keys
        .chunks(BATCH)
        .flat_map(|keys| {
            // This also fills the value cache.
            let values = ample.get_batch(keys).expect("values");
            let pairs = keys.iter().zip(values);
            pairs.filter_map(|(key, value)| Some((*key, value.ok()??))).collect::<Vec<_>>()
        })
        .collect();
    let map = Mutex::new(map);
    let locked = |keys: &[u64]| {
        let values: Vec<Option<Value>> = keys.iter().map(|key| map.lock().get(key).cloned()).collect();
        values.iter().flatten().count()
    };
    for threads in [1_u64, 2] {
        let mut group = c.benchmark_group(format!("{BATCH} packed values of {DIMS} f32, {threads} threads"));
        group.throughput(Throughput::Elements(threads * BATCH as u64)).sample_size(20);
        let contenders: [(&str, Get<'_>); 4] = [
            ("control: HashMap behind a Mutex", &locked),
            ("control: no value cache", &|keys| get(&without, keys)),
            ("hit", &|keys| get(&ample, keys)),
            ("nine of ten are inserted and push another out", &|keys| get(&scarce, keys)),
        ];
        for (name, contender) in contenders {
            group.bench_function(name, |b| b.iter_custom(|iterations| race(threads, iterations, contender)));
        }
        group.finish();
    }
}

criterion_group!(benches, value_cache);
criterion_main!(benches);
