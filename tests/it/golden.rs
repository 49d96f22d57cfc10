//! Files of every format version stay readable. This test wrote the folders in `tests/golden`, each once, when its
//! version was the newest, with `TENSORCASK_WRITE_GOLDEN=1 cargo test --test it golden`. They must open with all later
//! versions.

use std::path::{Path, PathBuf};

use crate::storages::copy_folder;
use tensorcask::{Codec, Compaction, Dtype, Durability, Key, Options, Order, Reader, Recovery, Store, Tensor, Value};

const NEWEST: u32 = 3;

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}"))
}

/// Checks that all files of a store have `version`: writers keep the version of the store.
fn check_version(store: &Path, version: u32) {
    let identity = std::fs::read_to_string(store.join("store.json")).unwrap();
    assert!(identity.contains(&format!("\"format\":{version}")), "{identity}");
    assert_eq!(identity.contains("hash_seed"), version > 1);
    for entry in std::fs::read_dir(store.join("segments")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let header = String::from_utf8_lossy(bytes.get(..4096).unwrap_or(&bytes));
        assert!(header.contains(&format!("{{\"format\":{version},")), "{header}");
    }
    for entry in std::fs::read_dir(store.join("runs")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let footer = bytes.last_chunk::<160>().unwrap();
        assert_eq!((footer[8], footer[112..120] != [0; 8]), (version as u8, version > 1));
    }
}

/// Includes booleans other than 0 and 1, which version 1 did not refuse. Readers return them unchanged.
fn tensor(dtype: Dtype, shape: &[usize], seed: usize) -> Value {
    let len = dtype.tensor_len_bytes(shape).unwrap();
    Value::Tensor(Tensor::new(dtype, shape, (0..len).map(|i| (i * 29 + seed * 13) as u8).collect::<Vec<_>>()).unwrap())
}

fn tree(version: u32, i: usize) -> Value {
    match i % 4 {
        0 => match (Dtype::ALL[i % Dtype::ALL.len()], version) {
            (Dtype::Bool, 2..) => {
                Value::Tensor(Tensor::new(Dtype::Bool, &[2, 4], vec![0, 1, 1, 0, 1, 0, 0, 1]).unwrap())
            }
            (dtype, _) => tensor(dtype, &[2, 4], i),
        },
        1 => Value::Map(vec![
            ("x".into(), tensor(Dtype::F32, &[3], i)),
            ("y".into(), Value::Tuple(vec![Value::Int(i as i64), Value::Null, Value::Bool(i % 8 == 1)])),
        ]),
        2 => tensor(Dtype::BF16, &[i % 11, 3], i),
        _ => Value::List(vec![
            Value::Float(i as f64 * 0.1),
            Value::Str(format!("s{i}")),
            Value::Bytes(vec![i as u8; i % 5].into()),
        ]),
    }
}

/// The contents of each store by module id: keys and values, without deleted keys.
fn contents(version: u32, module: &str) -> Vec<(Key, Value)> {
    match module {
        "strings" => (0..80)
            .filter(|i| i % 10 != 9)
            .map(|i| (Key::Str(format!("k/{i:03}")), tree(version, i + i % 10 / 8 * 100)))
            .collect(),
        "numbers" => (0..300_u64).map(|i| (Key::U64(i * 7), tensor(Dtype::F32, &[4], i as usize))).collect(),
        "packed" => (0..60_u8).map(|i| (Key::Bytes(vec![i, 255 - i]), tensor(Dtype::F64, &[16], i.into()))).collect(),
        "sorted" => (0..90_u64).map(|i| (Key::U64(i * 37 % 90), tree(version, i as usize % 4 + 4))).collect(),
        _ => (0..20).map(|i| (Key::Str(format!("open/{i}")), tree(version, i))).collect(),
    }
}

/// The rows of the last one are in the order of their keys; this was not possible before version 3.
fn modules(version: u32) -> Vec<&'static str> {
    let sorted = (version > 2).then_some("sorted");
    ["strings", "numbers", "packed", "active"].into_iter().chain(sorted).collect()
}

fn write(dir: &Path) {
    let options = || Options::new().segment_rows(64).flush_every(16, 1 << 20).durability(Durability::Buffered);
    for module in modules(NEWEST) {
        let codec = if module == "packed" { Codec::ShuffleZstd { level: 3 } } else { Codec::None };
        let store = options().codec(codec).open(dir, module).unwrap();
        if module == "strings" {
            // These are overwritten and deleted later.
            for i in 0..80 {
                store.put(format!("k/{i:03}"), tree(NEWEST, i)).unwrap();
            }
            store.flush().unwrap();
            let gone: Vec<String> = (0..80).filter(|i| i % 10 == 9).map(|i| format!("k/{i:03}")).collect();
            assert_eq!(store.delete_batch(&gone).unwrap(), 8);
        }
        for (key, value) in contents(NEWEST, module) {
            if store.get(&key).unwrap().as_ref() != Some(&value) {
                store.put(&key, &value).unwrap();
            }
        }
        store.flush().unwrap();
        store.merge_index().unwrap();
        if module == "sorted" {
            store.compact(&Compaction::new().sort(Order::Keys)).unwrap();
        }
        if module == "active" {
            // The state that a killed writer leaves.
            let copy = dir.join("copy");
            copy_folder(&dir.join(module), &copy);
            drop(store);
            std::fs::remove_dir_all(dir.join(module)).unwrap();
            std::fs::rename(copy, dir.join(module)).unwrap();
        } else {
            store.close().unwrap();
            drop(store);
            let store = options().open(dir, module).unwrap();
            store.merge_index().unwrap();
            store.close().unwrap();
        }
        std::fs::remove_dir_all(dir.join(module).join("lanes")).unwrap();
        std::fs::remove_dir_all(dir.join(module).join("quarantine")).unwrap();
    }
}

fn check(reader: &Reader, version: u32, module: &str) {
    let expected = contents(version, module);
    assert_eq!(reader.len().unwrap(), expected.len() as u64, "{module}");
    for (key, value) in &expected {
        assert_eq!(reader.get(key).unwrap().as_ref(), Some(value), "{module}: {key}");
    }
    let report = reader.verify(&mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn version_1_opens() {
    check_golden(1);
}

#[test]
fn version_2_opens() {
    check_golden(2);
}

#[test]
fn version_3_opens() {
    if std::env::var_os("TENSORCASK_WRITE_GOLDEN").is_some() {
        let _ = std::fs::remove_dir_all(golden(NEWEST));
        write(&golden(NEWEST));
    }
    check_golden(3);
}

fn check_golden(version: u32) {
    let dir = tempfile::tempdir().unwrap();
    copy_folder(&golden(version), dir.path());
    for module in modules(version) {
        let reader = Options::new().recovery(Recovery::Strict).open_reader(dir.path(), module).unwrap();
        check(&reader, version, module);
        if module == "strings" {
            assert!(reader.stats().unwrap().tombstones > 0);
            assert_eq!(reader.count_prefix("k/00").unwrap(), 9);
        }
        if module != "active" {
            assert!(reader.stats().unwrap().runs > 0, "{module}");
        }
        let store = Options::new().recovery(Recovery::Strict).open(dir.path(), module).unwrap();
        assert!(store.open_report().is_clean(), "{:?}", store.open_report());
        check(store.reader(), version, module);
        // The store also accepts further rows.
        let (key, value) = contents(version, module).swap_remove(1);
        store.delete(&key).unwrap();
        store.put(&key, &value).unwrap();
        store.close().unwrap();
        drop(store);
        check(Store::open(dir.path(), module).unwrap().reader(), version, module);
        check_version(&dir.path().join(module), version);
    }
}
