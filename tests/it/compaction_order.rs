//! Compaction sorts rows, and joins batches that are too small. Rows keep the commit timestamps that say which is newest.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::{MemoryStorage, Storage};
use tensorcask::{
    Codec, Compaction, Dtype, Error, Key, Lane, Merge, Options, Order, Prune, Reader, Recovery, Store, Tensor, Value,
};

use crate::compaction::{
    Model, check, closed_history, delete, fail_at_each, history, names, options, put, segment_bytes,
};
use crate::storages::copy_folder;

fn sorted() -> Compaction {
    Compaction::new().sort(Order::Keys)
}

/// The numbers of all keys, as they lie in segments.
fn in_storage_order(reader: &Reader) -> Vec<u32> {
    let number = |key: Key| key.to_string()["key-".len()..].parse().unwrap();
    reader.keys().map(|key| number(key.unwrap())).collect()
}

/// The live keys of `model` in descending order, without every seventh.
fn descending(model: &Model) -> Vec<Key> {
    let live = model.iter().rev().filter(|(_, version)| version.is_some());
    live.enumerate().filter(|(at, _)| at % 7 > 0).map(|(_, (key, _))| Key::from(key.as_str())).collect()
}

#[test]
fn rows_are_sorted_and_the_newest_stays_the_newest() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = history(&store);
    let follower = Options::new().open_reader_on(Arc::new(storage.clone())).unwrap();
    check(&follower, &model);
    let held = store.keys();
    let planned = store.compact(&sorted().dry_run(true)).unwrap();
    let report = store.compact(&sorted()).unwrap();
    // One of values, and one of no tombstones.
    assert_eq!((report.rows_sorted, report.segments_written), (336, 2), "{report:?}");
    assert!(planned.segments_rewritten > 1, "{planned:?}");
    let mut listed: Vec<Key> = held.map(|key| key.unwrap()).collect();
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 336, "an iterator that was held lists every key");
    let order = in_storage_order(store.reader());
    assert!(order.is_sorted() && order.len() == 336, "{order:?}");
    follower.refresh().unwrap();
    for reader in [store.reader(), &follower] {
        check(reader, &model);
    }
    let again = store.compact(&sorted()).unwrap();
    assert_eq!((again.segments_rewritten, again.rows_sorted), (0, 0), "{again:?}");
    assert_eq!(store.compact(&sorted().dry_run(true)).unwrap().segments_rewritten, 0);

    // Newer rows win over sorted ones, and older ones do not: of another lane, and after another sorting.
    put(&store, &mut model, (0..400).step_by(4), 5);
    delete(&store, &mut model, (0..400).step_by(11));
    check(store.reader(), &model);
    store.compact(&Compaction::new().sort(Order::Given(descending(&model)))).unwrap();
    let order = in_storage_order(store.reader());
    let given = descending(&model).len();
    assert!(order[..given].is_sorted_by(|a, b| a > b) && order[given..].is_sorted(), "{order:?}");
    assert_eq!(store.compact(&Compaction::new().sort(Order::Given(descending(&model)))).unwrap().segments_rewritten, 0);
    // Joining keeps the rows in the order in which they are.
    put(&store, &mut model, 0..30, 6);
    store.compact(&Compaction::new().live_share(1.0)).unwrap();
    check(store.reader(), &model);
    follower.refresh().unwrap();
    check(&follower, &model);
    store.close().unwrap();
    let strict = options().recovery(Recovery::Strict).open_on(Arc::new(storage)).unwrap();
    assert!(strict.open_report().is_clean() && strict.open_report().rows_indexed == 0);
    check(strict.reader(), &model);
}

#[test]
fn a_large_store_becomes_several_segments_each_in_order() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let model = history(&store);
    let report = store.compact(&sorted().sorted_segment_bytes(16_000)).unwrap();
    assert!(report.segments_written > 2, "{report:?}");
    check(store.reader(), &model);
    let order = in_storage_order(store.reader());
    assert!(order.windows(2).filter(|pair| pair[0] > pair[1]).count() < report.segments_written, "{order:?}");
}

#[test]
fn a_stop_of_sorting_at_any_operation_loses_nothing() {
    let (storage, model) = closed_history();
    let compact = |store: &Store| drop(store.compact(&sorted()));
    fail_at_each(&storage, compact, |memory, what| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        check(&options().open_reader_on(Arc::clone(&storage)).unwrap(), &model);
        let copy = memory.power_loss_keeping(|_, _, len| len);
        for name in names(&*storage, "runs") {
            copy.remove(&Path::new("runs").join(name)).unwrap();
        }
        check(&options().open_reader_on(Arc::new(copy)).unwrap(), &model);
        let store = options().open_on(Arc::clone(&storage)).unwrap();
        let report = store.open_report();
        assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{what}: {report:?}");
        store.compact(&sorted()).unwrap();
        check(store.reader(), &model);
        assert!(in_storage_order(store.reader()).is_sorted(), "{what}");
        store.close().unwrap();
        let strict = options().recovery(Recovery::Strict).open_on(storage).unwrap();
        assert!(strict.open_report().is_clean());
        check(strict.reader(), &model);
    });
}

#[test]
fn damaged_sorted_segments_tell_what_they_know() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = history(&store);
    store.compact(&sorted()).unwrap();
    put(&store, &mut model, (0..400).step_by(9), 7);
    store.close().unwrap();
    drop(store);
    let name = names(&storage, "segments").into_iter().find(|name| {
        let bytes = storage.read(format!("segments/{name}")).unwrap();
        String::from_utf8_lossy(&bytes[..4096]).contains("\"row_times\":true")
    });
    let name = format!("segments/{}", name.unwrap());
    let len = storage.read(&name).unwrap().len();
    for at in (8..len).step_by(len / 300 + 1) {
        let copy = storage.power_loss();
        copy.corrupt(&name, at as u64, 0x20).unwrap();
        for _ in 0..2 {
            // An older row never shows: a key has its newest value, or an error. The second time, intact rows were saved.
            let store = options().open_on(Arc::new(copy.clone())).unwrap();
            let mut damaged = 0;
            for (key, version) in &model {
                let number: u32 = key["key-".len()..].parse().unwrap();
                match store.get(key.as_str()) {
                    Ok(found) => {
                        let found = found.map(|value| value.into_tensor().unwrap().to_vec::<f32>().unwrap());
                        let expected = version.map(|version| crate::compaction::row(number, version));
                        assert!(found == expected || found.is_none() && damaged_is_told(&store), "{at}: {key}");
                    }
                    Err(error) => {
                        assert!(error.is_corrupt(), "{at}: {error}");
                        damaged += 1;
                    }
                }
            }
            assert!(damaged < 300, "{at}: {damaged}");
            store.close().unwrap();
        }
    }
}

/// Whether the store says that rows may be missing.
fn damaged_is_told(store: &Store) -> bool {
    !store.verify(&mut |_, _| {}).unwrap().is_clean()
}

#[test]
fn rows_that_were_flushed_one_by_one_get_into_few_batches() {
    const ROWS: u64 = 1500;
    let bytes_of = |one_by_one: bool| {
        let storage = MemoryStorage::new();
        let store = Options::new().synchronous(true).open_on(Arc::new(storage.clone())).unwrap();
        for number in 0..ROWS {
            store.put(number, Value::from([("x", Value::Int(number as i64)), ("y", "some text".into())])).unwrap();
            if one_by_one {
                store.flush().unwrap();
            }
        }
        store.compact(&Compaction::new()).unwrap();
        assert_eq!(store.compact(&Compaction::new()).unwrap().segments_rewritten, 0);
        let bytes = segment_bytes(&storage);
        store.close().unwrap();
        let reader = Options::new().open_reader_on(Arc::new(storage)).unwrap();
        for number in 0..ROWS {
            assert_eq!(reader.get(number).unwrap().unwrap().get("x"), Some(&Value::Int(number as i64)));
        }
        bytes
    };
    let (fresh, compacted) = (bytes_of(false), bytes_of(true));
    // Each row has 8 bytes more, its commit timestamp.
    assert!(compacted < fresh + ROWS * 8 + 4096, "{compacted} bytes, {fresh} if put at once");
}

#[test]
fn small_batches_of_several_segments_are_joined_at_once() {
    let storage = MemoryStorage::new();
    let open = |rows| Options::new().synchronous(true).segment_rows(rows).open_on(Arc::new(storage.clone())).unwrap();
    let store = open(10);
    for number in 0..60_u64 {
        store.put(number, Value::Int(number as i64)).unwrap();
        store.flush().unwrap();
    }
    store.close().unwrap();
    drop(store);
    let store = open(1000);
    assert_eq!(store.compact(&Compaction::new()).unwrap().segments_rewritten, 6);
    assert_eq!(store.compact(&Compaction::new()).unwrap().segments_rewritten, 0);
}

#[test]
fn the_size_of_sorted_segments_does_not_count_what_is_no_rows() {
    let storage = MemoryStorage::new();
    let store = Options::new().synchronous(true).segment_rows(200).open_on(Arc::new(storage)).unwrap();
    for number in (0..2000_u64).rev() {
        store.put(number, Value::Int(number as i64)).unwrap();
        store.flush().unwrap();
    }
    let report = store.compact(&sorted().sorted_segment_bytes(40_000)).unwrap();
    assert!((2..6).contains(&report.segments_written), "{report:?}");
    let again = store.compact(&sorted().sorted_segment_bytes(40_000)).unwrap();
    assert_eq!(again.segments_rewritten, 0, "{again:?}");
}

#[test]
fn large_rows_that_sorting_brings_together_get_batches_of_their_own() {
    let storage = MemoryStorage::new();
    let store = Options::new().synchronous(true).open_on(Arc::new(storage.clone())).unwrap();
    let keys: Vec<u64> = (0..400).rev().collect();
    let value = |key: u64| Value::Str("x".repeat(if key < 30 { 1 << 20 } else { 1 }));
    store.put_batch(&keys, &keys.iter().map(|key| value(*key)).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.compact(&sorted()).unwrap().rows_sorted, 400);
    assert!(keys.iter().all(|key| store.get(*key).unwrap() == Some(value(*key))));
    store.close().unwrap();
    let bytes = storage.read(Path::new("segments").join(names(&storage, "segments").pop().unwrap())).unwrap();
    let bodies = crate::forged::places(&bytes).0.into_iter().map(|at| bytes[at + 64..at + 72].try_into().unwrap());
    let largest = bodies.map(u64::from_le_bytes).max().unwrap();
    assert!(largest < 9 << 20, "a batch of {largest} bytes");
}

#[test]
fn sorting_and_packing_work_together() {
    let storage = MemoryStorage::new();
    let store = Options::new().synchronous(true).segment_rows(50).open_on(Arc::new(storage.clone())).unwrap();
    let value = |key: u64| {
        let tensor = Tensor::from_slice(&[8, 8], &[key as f32; 64]).unwrap();
        Value::from([("tensor", Value::Tensor(tensor)), ("number", Value::Int(key as i64))])
    };
    let keys: Vec<u64> = (0..300).map(|at| at * 7919 % 1000).collect();
    keys.iter().for_each(|key| store.put(*key, value(*key)).unwrap());
    let report = store.compact(&sorted().codec(Codec::ShuffleZstd { level: 3 }).store_as(Dtype::F16)).unwrap();
    assert_eq!((report.rows_recoded, report.rows_sorted), (300, 300), "{report:?}");
    let order: Vec<Key> = store.keys().map(|key| key.unwrap()).collect();
    assert!(order.is_sorted());
    for key in &keys {
        let found = store.get(*key).unwrap().unwrap();
        let tensor = found.get("tensor").unwrap().as_tensor().unwrap().cast(Dtype::F32).unwrap();
        assert_eq!(tensor.to_vec::<f32>().unwrap(), [*key as f32; 64]);
    }
}

#[test]
fn packed_rows_get_into_few_batches() {
    let storage = MemoryStorage::new();
    let store = Options::new().synchronous(true).open_on(Arc::new(storage)).unwrap();
    let tensor = Tensor::from_slice(&[1 << 19], &vec![0_u8; 1 << 19]).unwrap();
    for key in (0..300_u64).rev() {
        store.put(key, tensor.clone()).unwrap();
    }
    let pack = sorted().codec(Codec::Zstd { level: 1 });
    let report = store.compact(&pack).unwrap();
    assert_eq!((report.rows_recoded, report.rows_sorted), (300, 300), "{report:?}");
    assert_eq!(store.compact(&pack).unwrap().segments_rewritten, 0);
    let report = store.compact(&sorted().codec(Codec::None)).unwrap();
    assert_eq!((report.rows_recoded, report.rows_sorted), (300, 300), "{report:?}");
    assert!((0..300_u64).all(|key| store.get(key).unwrap() == Some(Value::Tensor(tensor.clone()))));
}

#[test]
fn stores_that_cannot_be_sorted_are_refused_and_nothing_is_changed() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2");
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&golden, copy.path());
    let store = Options::new().open(copy.path(), "numbers").unwrap();
    let refused = store.compact(&sorted()).unwrap_err();
    assert!(refused.to_string().contains("format version 2"), "{refused}");
    // A new store has the rows sorted.
    let target = Store::open(copy.path(), "new").unwrap();
    target.merge_from(&[Reader::open(copy.path(), "numbers").unwrap()], &Merge::new(), &mut |_, _| {}).unwrap();
    let keys = Order::Given(vec![Key::from("text")]);
    assert!(matches!(target.compact(&Compaction::new().sort(keys)).unwrap_err().cause(), Error::KeyKind { .. }));
    assert_eq!(target.compact(&sorted()).unwrap().rows_sorted, 0, "they were in order");
    target.put(7_u64, target.get(14_u64).unwrap().unwrap()).unwrap();
    assert_eq!(target.compact(&sorted()).unwrap().rows_sorted, 300);
    target.close().unwrap();
    // Sorted rows do not fit into a store of an older version.
    let sorted = Reader::open(copy.path(), "new").unwrap();
    let refused = store.merge_from(&[sorted], &Merge::new(), &mut |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains("format version 2"), "{refused}");
    assert_eq!(store.len().unwrap(), 300);
}

#[test]
fn sorted_stores_are_merged_pruned_and_salvaged() {
    let (mut expected, mut sources) = (BTreeMap::new(), Vec::new());
    for part in 0..3_u64 {
        let storage = MemoryStorage::new();
        let options = Options::new().synchronous(true).segment_rows(40).lane(Lane::Number(part as u16));
        let store = options.open_on(Arc::new(storage.clone())).unwrap();
        for key in (0..200_u64).rev().filter(|key| key % 3 != part) {
            let value = Value::Int((key * 10 + part) as i64);
            store.put(key, &value).unwrap();
            expected.insert(key, value);
        }
        if part != 1 {
            store.compact(&sorted()).unwrap();
        }
        store.close().unwrap();
        sources.push(Options::new().open_reader_on(Arc::new(storage)).unwrap());
    }
    let storage = MemoryStorage::new();
    let store = Options::new().synchronous(true).segment_rows(60).open_on(Arc::new(storage.clone())).unwrap();
    sources.reverse();
    store.merge_from(&sources, &Merge::new(), &mut |_, _| {}).unwrap();
    let all = |reader: &Reader| -> BTreeMap<u64, Value> {
        let entries = reader.iter().map(|entry| entry.unwrap());
        entries.map(|(key, value)| (u64::try_from(key).unwrap(), value)).collect()
    };
    assert_eq!(all(store.reader()), expected);
    assert_eq!(store.merge_from(&sources, &Merge::new(), &mut |_, _| {}).unwrap().rows_merged, 0);
    store.compact(&sorted()).unwrap();
    assert_eq!(all(store.reader()), expected);
    store.put(7_u64, Value::Int(-1)).unwrap();
    store.flush().unwrap();
    let report = store.prune(&Prune::new().to_rows(50)).unwrap();
    assert!(report.keys_evicted > 0, "{report:?}");
    assert!(all(store.reader()).iter().all(|(key, value)| *key == 7 || expected[key] == *value));
    assert_ne!(store.get(7_u64).unwrap(), Some(expected[&7].clone()), "no older row comes back");
}
