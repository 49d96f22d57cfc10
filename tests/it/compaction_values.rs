//! Compaction keeps values of every kind bit for bit: of all key kinds and codecs, with hashes that collide, and in
//! stores of earlier format versions.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::MemoryStorage;
use tensorcask::{Codec, Compaction, Dtype, Key, Options, Reader, Tensor, Value};

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
            store.compact(&Compaction::new().join(round % 2 == 0)).unwrap();
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
