//! Caps together with merges, re-encoding, computed rows and other writers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tensorcask::storage::{FaultStorage, MemoryStorage, Storage};
use tensorcask::{
    Codec, Compaction, Durability, Eviction, Lane, Merge, Options, Prune, Reader, Result, Store, Tensor, Value,
};

use crate::compaction_stops::killed;
use crate::eviction::Random;

const CAP: u64 = 2 << 20;

/// Puts `rows` rows of 1 KiB under the keys from `from` on.
fn put(store: &Store, from: u64, rows: u64) {
    let keys: Vec<u64> = (from..from + rows).collect();
    store.put_rows(&keys, &[256], &vec![from as f32; 256 * keys.len()]).unwrap();
}

fn reader(storage: &MemoryStorage) -> Reader {
    Options::new().open_reader_on(Arc::new(storage.clone())).unwrap()
}

fn disk_bytes(store: &Store) -> u64 {
    store.stats().unwrap().disk_bytes
}

#[test]
fn a_merge_keeps_the_caps_and_the_newest_rows() {
    let source = MemoryStorage::new();
    let other = Options::new().open_on(Arc::new(source.clone())).unwrap();
    // They are written as one large batch.
    put(&other, 0, 8000);
    put(&other, 8000, 10);
    other.close().unwrap();
    for own in [0, 20, 900] {
        let store = Options::new().max_disk_bytes(CAP).open_on(Arc::new(MemoryStorage::new())).unwrap();
        (0..own).step_by(10).for_each(|from| put(&store, 100_000 + from, 10));
        let merged = store.merge_from(&[reader(&source)], &Merge::new(), &mut |_, _| {}).unwrap();
        assert_eq!(merged.rows_merged, 8010);
        let (bytes, keys) = (disk_bytes(&store), store.len().unwrap());
        assert!(bytes <= CAP && keys > 1000, "{own}: {keys} keys in {bytes} bytes");
        store.close().unwrap();
        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    }
}

#[test]
fn rows_that_are_written_meanwhile_do_not_count_twice() {
    // Several stores at once keep the processors, and so the writers, busy.
    let fill = || {
        let options = Options::new().max_disk_bytes(CAP / 2).eviction(Eviction::Stop);
        let store = options.open_on(Arc::new(MemoryStorage::new())).unwrap();
        let keys = |from: u64| (from..from + 16).collect::<Vec<u64>>();
        let mut fits =
            (0..).step_by(16).take_while(|from| store.put_rows(&keys(*from), &[256], &[1.0_f32; 4096]).is_ok());
        let last: u64 = fits.by_ref().last().unwrap();
        assert!(last > 650, "full with {last} rows of 1 KiB");
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| (0..15).for_each(|_| fill())))));
}

#[test]
fn unpacking_keeps_the_caps_and_does_not_empty_the_store() {
    let options = || Options::new().codec(Codec::ShuffleZstd { level: 1 }).max_disk_bytes(CAP);
    let store = options().open_on(Arc::new(MemoryStorage::new())).unwrap();
    (0..9600).step_by(16).for_each(|from| put(&store, from, 16));
    // Unpacked, each of these segments would take more than the cap.
    let report = store.compact(&Compaction::new().codec(Codec::None)).unwrap();
    assert!(report.skipped.iter().any(|skipped| skipped.why.contains("under a cap")), "{report:?}");
    assert!(disk_bytes(&store) <= CAP);
    assert_eq!(store.len().unwrap(), 9600);
    let store = options().segment_rows(100).open_on(Arc::new(MemoryStorage::new())).unwrap();
    (0..9600).step_by(16).for_each(|from| put(&store, from, 16));
    let report = store.compact(&Compaction::new().join(false).codec(Codec::None)).unwrap();
    assert!(report.segments_written > 0, "{report:?}");
    assert!(disk_bytes(&store) <= CAP && store.len().unwrap() > 1000, "{} keys", store.len().unwrap());
}

#[test]
fn computed_rows_that_are_too_many_for_a_cap_are_returned() {
    let storage = || Arc::new(MemoryStorage::new());
    let keys: Vec<u64> = (0..12).collect();
    let rows = Options::new().max_rows(16).open_on(storage()).unwrap();
    let mut out = [0.0_f32; 12];
    let compute = |at: &[usize]| Ok(at.iter().map(|at| *at as f32).collect());
    let report = rows.get_or_compute_rows(&keys, &[1], &mut out, compute).unwrap();
    assert_eq!((report.computed, report.not_kept, out[11]), (12, 12, 11.0));
    let bytes = Options::new().max_disk_bytes(1 << 20).open_on(storage()).unwrap();
    let value = Value::Bytes(vec![1; 600_000].into());
    assert_eq!(bytes.get_or_compute(&keys[..1], |_| Ok(vec![value.clone()])).unwrap(), std::slice::from_ref(&value));
    assert!(rows.is_empty().unwrap() && bytes.is_empty().unwrap());
    // A value that no store takes is an error.
    let small = Options::new().max_value_bytes(1000).open_on(storage()).unwrap();
    assert!(small.get_or_compute(&keys[..1], |_| Ok(vec![value.clone()])).is_err());
}

#[test]
fn old_rows_that_another_writer_has_not_sealed_count_as_in_use() {
    thread_local!(static NOW: Cell<u64> = const { Cell::new(1_000_000) });
    let storage = MemoryStorage::new();
    let open = |lane| {
        let options = Options::new().synchronous(true).clock(|| NOW.get()).lane(Lane::Number(lane));
        options.open_on(Arc::new(storage.clone())).unwrap()
    };
    let [own, other] = [0, 1].map(open);
    other.put(1_u64, 1_i64).unwrap();
    other.flush().unwrap();
    NOW.set(1_000_000_000);
    let prune = || own.prune(&Prune::new().older_than(Duration::from_secs(10))).unwrap();
    let report = prune();
    assert_eq!((report.reached, report.segments_in_use), (false, 1), "{report:?}");
    other.close().unwrap();
    let report = prune();
    assert_eq!((report.reached, report.keys_evicted), (true, 1), "{report:?}");
}

fn value(key: u64, version: i64) -> Value {
    match key % 3 {
        0 => Value::Int(version),
        1 => Value::List(vec![Value::Int(version), Value::Bytes(vec![7; 500].into())]),
        _ => Value::Tensor(Tensor::from_slice(&[40], &[version; 40]).unwrap()),
    }
}

fn version(value: &Value) -> i64 {
    match value {
        Value::List(items) => items[0].as_int().unwrap(),
        Value::Tensor(tensor) => tensor.to_vec::<i64>().unwrap()[0],
        value => value.as_int().unwrap(),
    }
}

/// The version of each key below 120.
fn versions(storage: &MemoryStorage) -> Vec<Option<i64>> {
    let reader = reader(storage);
    let report = reader.open_report();
    assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{report:?}");
    let all: Vec<Option<i64>> = (0..120_u64).map(|key| reader.get(key).unwrap().map(|found| version(&found))).collect();
    assert_eq!(reader.len().unwrap() as usize, all.iter().flatten().count());
    all
}

#[test]
fn merging_repacking_and_evicting_that_stop_anywhere_bring_no_older_row_back() {
    let options = || Options::new().synchronous(true).segment_rows(16).memtable_keys(40).hash_seed(7);
    let [base, source] = [MemoryStorage::new(), MemoryStorage::new()];
    let [store, other] = [&base, &source].map(|storage| options().open_on(Arc::new(storage.clone())).unwrap());
    let put = |store: &Store, keys: &mut dyn Iterator<Item = u64>, version| {
        keys.for_each(|key| store.put(key, value(key, version)).unwrap());
        store.flush().unwrap();
        // What is put next is later.
        std::thread::sleep(Duration::from_millis(2));
    };
    put(&other, &mut (0..90), 1);
    put(&store, &mut (30..120), 2);
    put(&other, &mut (0..90).step_by(5), 3);
    (0..90_u64).step_by(7).for_each(|key| assert!(other.delete(key).unwrap()));
    put(&store, &mut (30..120).step_by(6), 4);
    (30..120_u64).step_by(4).for_each(|key| assert!(store.delete(key).unwrap()));
    store.close().unwrap();
    other.close().unwrap();
    let merge = |store: &Store| store.merge_from(&[reader(&source)], &Merge::new(), &mut |_, _| {});
    let run = |storage: Arc<dyn Storage>| -> Result<()> {
        let store = options().open_on(storage)?;
        merge(&store)?;
        store.compact(&Compaction::new().codec(Codec::Zstd { level: 1 }))?;
        store.prune(&Prune::new().to_rows(60))?;
        store.compact(&Compaction::new().codec(Codec::None))?;
        store.close()
    };
    let before = versions(&base);
    let copy = killed(&base);
    merge(&options().open_on(Arc::new(copy.clone())).unwrap()).unwrap();
    let after = versions(&copy);
    for operations in 0.. {
        let copy = killed(&base);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        faults.faults().fail_after_operations(operations);
        let done = run(Arc::new(faults.clone()));
        faults.faults().clear();
        for left in [killed(&copy), copy.power_loss()] {
            let found = versions(&left);
            for (key, found) in found.iter().enumerate().filter(|(_, found)| found.is_some()) {
                assert!(
                    [before[key], after[key]].contains(found),
                    "after {operations} operations, key {key}: {found:?}"
                );
            }
            let store = options().open_on(Arc::new(left.clone())).unwrap();
            store.close().unwrap();
            assert_eq!(versions(&left), found, "after {operations} operations");
        }
        if done.is_ok() {
            assert!(operations > 100, "{operations}");
            return;
        }
    }
}

/// Each thread puts and deletes versions of its own keys, by turns through two handles: it finds the newest one or none,
/// whatever is evicted, compacted and merged meanwhile.
fn soak(seed: u64, caps: fn(Options) -> Options) {
    let storage = MemoryStorage::new();
    let open = |lane| {
        let options = Options::new().lane(Lane::Number(lane)).memtable_keys(400).refresh_interval(Duration::ZERO);
        caps(options.value_cache_bytes(1 << 16)).open_on(Arc::new(storage.clone())).unwrap()
    };
    let stores = [open(0), open(1)];
    let over = AtomicBool::new(false);
    let own_keys = |thread: u64| {
        let mut random = Random(seed * 31 + thread);
        let mut newest = BTreeMap::<u64, Option<i64>>::new();
        let mut at = 0;
        for next in 1_i64.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            if random.below(6) == 0 {
                stores[at].flush_with(Durability::Buffered).unwrap();
                at = 1 - at;
                stores[at].refresh().unwrap();
            }
            let (store, key) = (&stores[at], thread * 10_000 + random.below(300));
            match random.below(6) {
                0 => {
                    store.delete(key).unwrap();
                    newest.insert(key, None);
                }
                1 => {
                    if store.put_if_absent(key, value(key, next)).unwrap() {
                        newest.insert(key, Some(next));
                    }
                }
                2 => {
                    let found = version(&store.get_or_compute(&[key], |_| Ok(vec![value(key, next)])).unwrap()[0]);
                    assert!(found == next || newest.get(&key) == Some(&Some(found)), "seed {seed}, key {key}: {found}");
                    newest.insert(key, Some(found));
                }
                _ => {
                    store.put(key, value(key, next)).unwrap();
                    newest.insert(key, Some(next));
                }
            }
            let key = thread * 10_000 + random.below(300);
            if let Some(found) = store.get(key).unwrap() {
                assert_eq!(newest.get(&key), Some(&Some(version(&found))), "seed {seed}, key {key}");
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let own_keys = &own_keys;
            scope.spawn(move || own_keys(thread));
        }
        let (mut random, start) = (Random(seed), Instant::now());
        while start.elapsed() < Duration::from_secs(2) {
            let store = &stores[random.below(2) as usize];
            match random.below(6) {
                0 => drop(store.prune(&Prune::new().to_rows(store.stats().unwrap().rows_sealed / 2)).unwrap()),
                1 => drop(store.compact(&Compaction::new()).unwrap()),
                2 => store.merge_index().unwrap(),
                3 => drop(store.compact(&Compaction::new().codec(Codec::Zstd { level: 1 })).unwrap()),
                4 => assert!(store.snapshot().unwrap().iter().all(|entry| entry.is_ok())),
                _ => {
                    store.flush().unwrap();
                    let lost = reader(&storage.power_loss());
                    assert!(lost.open_report().is_clean(), "{:?}", lost.open_report());
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    stores.iter().for_each(|store| store.close().unwrap());
    let reader = reader(&storage);
    assert!(reader.open_report().is_clean() && reader.verify(&mut |_, _| {}).unwrap().is_clean());
    assert_eq!(reader.len().unwrap(), reader.iter().count() as u64);
    assert!(storage.list(Path::new("quarantine")).unwrap().is_empty());
}

#[test]
fn threads_find_the_newest_row_or_none_under_every_cap() {
    soak(1, |options| options.max_disk_bytes(2 << 20));
    soak(2, |options| options.max_rows(400).eviction(Eviction::ColdestFirst).hash_bits(6));
    soak(3, |options| options.max_age(Duration::from_millis(300)));
}
