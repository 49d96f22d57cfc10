//! Criterion benches of the index from outside: what a lookup costs where values cost nothing (eight-byte rows), in the
//! delta and in a run, for keys that are there and keys that are not, as the store grows.
//!
//! `cargo bench --bench index`; `TENSORCASK_BENCH_ROWS` bounds the largest store (default 1,000,000).
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tensorcask::{Options, Store};

const BATCH: usize = 1024;

fn sizes() -> Vec<u64> {
    let most = std::env::var("TENSORCASK_BENCH_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000);
    [1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|size| *size <= most).collect()
}

/// A store of `size` keys, in the delta or in one run.
fn store(dir: &std::path::Path, size: u64, merged: bool) -> Store {
    let options = || Options::new().delta_keys(1 << 22).flush_interval(Duration::from_millis(10));
    let store = options().open(dir, "m").expect("a store");
    for start in (0..size).step_by(65_536) {
        let keys: Vec<u64> = (start..size.min(start + 65_536)).collect();
        store.put_rows(&keys, &[], &keys).expect("rows");
    }
    store.flush().expect("a flush");
    if !merged {
        return store;
    }
    store.close().expect("a close");
    let store = options().open(dir, "m").expect("a store");
    store.merge_index().expect("a merge");
    store
}

fn lookups(c: &mut Criterion) {
    let mut state = 1_u64;
    let mut random = move |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(state) * u128::from(bound)) >> 64) as u64
    };
    for (name, merged) in [("delta", false), ("run", true)] {
        let mut group = c.benchmark_group(format!("{BATCH} keys in the {name}"));
        group.throughput(Throughput::Elements(BATCH as u64));
        for size in sizes() {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let store = store(dir.path(), size, merged);
            let model: HashMap<u64, u64> = (0..size).map(|key| (key, key)).collect();
            let mut keys = |first: u64| -> Vec<u64> { (0..BATCH).map(|_| first + random(size)).collect() };
            let (mut out, mut found) = (vec![0_u64; BATCH], vec![false; BATCH]);
            group.bench_function(BenchmarkId::new("control: std HashMap", size), |b| {
                b.iter_batched(
                    || keys(0),
                    |keys| keys.iter().filter_map(|key| model.get(black_box(key))).sum::<u64>(),
                    BatchSize::SmallInput,
                );
            });
            group.bench_function(BenchmarkId::new("hit", size), |b| {
                b.iter_batched(
                    || keys(0),
                    |keys| store.get_batch_into(&keys, &[], &mut out, &mut found),
                    BatchSize::SmallInput,
                );
            });
            group.bench_function(BenchmarkId::new("miss", size), |b| {
                b.iter_batched(|| keys(1 << 50), |keys| store.contains_batch(&keys), BatchSize::SmallInput);
            });
        }
        group.finish();
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);
