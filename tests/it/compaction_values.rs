//! Compaction keeps values of every kind bit for bit: of all key kinds and codecs, with hashes that collide, and in
//! stores of earlier format versions.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::MemoryStorage;
use tensorcask::{Codec, Compaction, Dtype, Key, Options, Order, Reader, Tensor, Value};

use crate::storages::copy_folder;

fn value(number: u64) -> Value {
    let tensor = |shape: &[usize], seed: u64| {
        let len = Dtype::F32.tensor_len_bytes(shape).unwrap();
        Value::Tensor(
            Tensor::new(Dtype::F32, shape, (0..len).map(|at| (at as u64 * 7 + seed) as u8).collect::<Vec<_>>())
                .unwrap(),
        )
    };
    match number % 7 {
        0 => tensor(&[4], number),
        1 => tensor(&[number as usize % 5, 3], number),
        2 => Value::Map(vec![("x".into(), tensor(&[2], number)), ("y".into(), Value::Int(number as i64))]),
        3 => Value::Bytes(vec![number as u8; number as usize % 40].into()),
        4 => Value::Str(format!("text {number}")),
        5 => Value::List(vec![
            Value::Null,
            Value::Bool(number.is_multiple_of(2)),
            tensor(&[number as usize % 3], number),
        ]),
        _ => Value::Null,
    }
}

fn check(reader: &Reader, expected: &BTreeMap<Key, Value>, gone: &[Key]) {
    for (key, value) in expected {
        assert_eq!(reader.get(key).unwrap().as_ref(), Some(value), "{key}");
    }
    gone.iter().for_each(|key| assert_eq!(reader.get(key).unwrap(), None, "{key}"));
    assert_eq!(reader.len().unwrap(), expected.len() as u64);
    let entries: BTreeMap<Key, Value> = reader.iter().map(|entry| entry.unwrap()).collect();
    assert!(&entries == expected);
    let keys: Vec<Key> = reader.range::<&str>(..).map(|key| key.unwrap()).collect::<Vec<_>>();
    assert!(keys.iter().eq(expected.keys()));
}

#[test]
fn values_of_every_kind_stay() {
    let codecs = [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 3 }];
    for (turn, codec) in codecs.into_iter().cycle().take(6).enumerate() {
        let storage = MemoryStorage::new();
        let options = || {
            let options = Options::new().codec(codec).synchronous(true).segment_rows(40).memtable_keys(64);
            if turn < 3 { options.hash_bits(3) } else { options }
        };
        let store = options().open_on(Arc::new(storage.clone())).unwrap();
        let key = |number: u64| match turn % 2 {
            0 => Key::Str(format!("key {number:04}")),
            _ => Key::Bytes(format!("key {number:04}").into_bytes()),
        };
        let reader = options().value_cache_bytes(1 << 20).open_reader_on(Arc::new(storage.clone())).unwrap();
        let (mut expected, mut state) = (BTreeMap::new(), 99 + turn as u64);
        for round in 0..12_u64 {
            for _ in 0..60 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (number, what) = (state >> 33 & 127, state >> 40);
                if what.is_multiple_of(4) {
                    store.delete(key(number)).unwrap();
                    expected.remove(&key(number));
                } else {
                    store.put(key(number), value(what)).unwrap();
                    expected.insert(key(number), value(what));
                }
            }
            store.flush().unwrap();
            if round % 3 == 0 {
                reader.refresh().unwrap();
            }
            let given = (0..128).rev().step_by(3).map(key).collect();
            let order = [None, Some(Order::Keys), Some(Order::Given(given))].into_iter().nth(round as usize % 3);
            store.compact(&Compaction::new().join(round % 2 == 0).sort(order.flatten())).unwrap();
            let gone: Vec<Key> = (0..128).map(key).filter(|key| !expected.contains_key(key)).collect();
            reader.refresh().unwrap();
            for reader in [store.reader(), &reader] {
                check_all(reader, &expected, &gone, turn % 2 == 0);
            }
        }
        store.close().unwrap();
        drop(store);
        let store = options().open_on(Arc::new(storage)).unwrap();
        assert!(store.open_report().is_clean());
        check_all(store.reader(), &expected, &[], turn % 2 == 0);
    }
}

fn check_all(reader: &Reader, expected: &BTreeMap<Key, Value>, gone: &[Key], is_str: bool) {
    if is_str {
        return check(reader, expected, gone);
    }
    for (key, value) in expected {
        assert_eq!(reader.get(key).unwrap().as_ref(), Some(value), "{key}");
    }
    gone.iter().for_each(|key| assert_eq!(reader.get(key).unwrap(), None, "{key}"));
    assert_eq!(reader.len().unwrap(), expected.len() as u64);
    assert!(reader.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn stores_of_earlier_versions_are_compacted() {
    for version in 1..=2 {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}"));
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&golden, copy.path());
        for entry in std::fs::read_dir(copy.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !copy.path().join(&name).join("store.json").exists() {
                continue;
            }
            let store = Options::new().open(copy.path(), &name).unwrap();
            let all = |reader: &Reader| -> BTreeMap<String, Value> {
                reader.iter().map(|entry| entry.unwrap()).map(|(key, value)| (format!("{key:?}"), value)).collect()
            };
            let before = all(store.reader());
            let report = store.compact(&Compaction::new().live_share(1.0)).unwrap();
            assert!(report.skipped.is_empty(), "{name}: {report:?}");
            assert!(all(store.reader()) == before, "{name}");
            store.close().unwrap();
            drop(store);
            let store = Options::new().open(copy.path(), &name).unwrap();
            assert!(store.open_report().is_clean(), "{name}: {:?}", store.open_report());
            assert!(all(store.reader()) == before, "{name}");
            assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
        }
    }
}

#[test]
fn values_are_packed_and_unpacked() {
    const KEYS: u64 = 300;
    let codecs = [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 3 }];
    for (from, to) in codecs.into_iter().flat_map(|from| codecs.into_iter().map(move |to| (from, to))) {
        let storage = MemoryStorage::new();
        let options = || Options::new().synchronous(true).segment_rows(64).compaction_live_share(0.0);
        let store = options().codec(from).open_on(Arc::new(storage.clone())).unwrap();
        let reader = options().open_reader_on(Arc::new(storage.clone())).unwrap();
        let mut expected = BTreeMap::new();
        // A third of the rows is overwritten.
        for number in (0..KEYS).chain((0..KEYS).step_by(3)) {
            let value = value(number + 7 * expected.len() as u64);
            store.put(format!("key {number:04}"), &value).unwrap();
            expected.insert(Key::Str(format!("key {number:04}")), value);
        }
        store.flush().unwrap();
        let dry = store.compact(&Compaction::new().codec(to).dry_run(true)).unwrap();
        let report = store.compact(&Compaction::new().codec(to)).unwrap();
        assert!(report.skipped.is_empty(), "{report:?}");
        let tensors = if from == to { 0 } else { expected.values().filter(|value| has_tensor(value)).count() as u64 };
        assert_eq!(report.rows_recoded, tensors, "{from:?} {to:?}");
        // A dry run seals nothing, so it sees fewer rows.
        assert!(dry.rows_recoded <= tensors && (dry.rows_recoded > 0) == (tensors > 0), "{from:?} {to:?}: {dry:?}");
        assert_eq!(report.rows_dropped, KEYS / 3, "{from:?} {to:?}");
        reader.refresh().unwrap();
        check(&reader, &expected, &[]);
        check(store.reader(), &expected, &[]);
        let again = store.compact(&Compaction::new().codec(to)).unwrap();
        assert_eq!((again.segments_rewritten, again.rows_recoded), (0, 0), "{from:?} {to:?}: {again:?}");
        store.close().unwrap();
        drop(store);
        let lost = storage.power_loss();
        for storage in [storage, lost] {
            let store = options().open_on(Arc::new(storage)).unwrap();
            assert!(store.open_report().is_clean());
            check(store.reader(), &expected, &[]);
            assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
        }
    }
}

fn has_tensor(value: &Value) -> bool {
    match value {
        Value::Tensor(_) => true,
        Value::Map(items) => items.iter().any(|(_, item)| has_tensor(item)),
        Value::List(items) | Value::Tuple(items) => items.iter().any(has_tensor),
        _ => false,
    }
}

#[test]
fn floats_are_stored_in_a_narrower_dtype() {
    let rows: Vec<f32> = (0..4096).map(|at| at as f32 * 0.37 - 700.0).collect();
    let keys: Vec<u64> = (0..512).collect();
    let read = |options: Options, storage: &MemoryStorage| -> Vec<Value> {
        let reader = options.open_reader_on(Arc::new(storage.clone())).unwrap();
        reader.get_batch(&keys).unwrap().into_iter().map(|found| found.unwrap().unwrap()).collect()
    };
    let open = |options: Options, storage: &MemoryStorage| options.open_on(Arc::new(storage.clone())).unwrap();
    for codec in [Codec::None, Codec::ShuffleZstd { level: 3 }] {
        let (put_narrow, compacted) = (MemoryStorage::new(), MemoryStorage::new());
        let store = open(Options::new().store_as(Dtype::F16).codec(codec), &put_narrow);
        store.put_rows(&keys, &[8], &rows).unwrap();
        store.close().unwrap();
        let store = open(Options::new(), &compacted);
        store.put_rows(&keys, &[8], &rows).unwrap();
        store.flush().unwrap();
        let report = store.compact(&Compaction::new().store_as(Dtype::F16).codec(codec)).unwrap();
        assert_eq!((report.rows_recoded, report.skipped.len()), (512, 0), "{report:?}");
        store.close().unwrap();
        for options in [Options::new(), Options::new().restore_dtype(true)] {
            let narrow = read(options.clone(), &compacted);
            assert!(narrow == read(options, &put_narrow));
        }
        // The dtype as put is the first one, however often rows are stored anew.
        let store = open(Options::new(), &compacted);
        assert_eq!(store.compact(&Compaction::new().store_as(Dtype::BF16)).unwrap().rows_recoded, 0);
    }
    let store = open(Options::new(), &MemoryStorage::new());
    assert!(store.compact(&Compaction::new().store_as(Dtype::I64)).is_err());
}

#[test]
fn packed_rows_stay_packed_when_they_are_stored_in_a_narrower_dtype() {
    for order in [None, Some(Order::Keys)] {
        let storage = MemoryStorage::new();
        let options = Options::new().synchronous(true).codec(Codec::ShuffleZstd { level: 3 });
        let store = options.open_on(Arc::new(storage.clone())).unwrap();
        store.put_rows(&[2_u64, 1], &[4096], &[1.5_f32; 8192]).unwrap();
        store.compact(&Compaction::new().store_as(Dtype::F16).sort(order)).unwrap();
        assert_eq!(store.get(1_u64).unwrap().unwrap().into_tensor().unwrap().data().len(), 8192);
        let bytes = crate::compaction::segment_bytes(&storage);
        assert!(bytes < 8000, "{bytes} bytes: two rows of 8 KiB that are all the same");
    }
}
