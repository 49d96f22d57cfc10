//! Other programs can read the files: a reader in plain Python that implements only FORMAT.md, arrow-rs, and pyarrow
//! and polars if `TENSORCASK_INTEROP_PYTHON` names a Python that has them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value as Json, json};
use tensorcask::{Codec, Compaction, Dtype, Key, Options, Order, Store, Tensor, Value};

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let symbol = if place <= chunk.len() { ALPHABET[(word >> (18 - 6 * place)) as usize & 63] } else { b'=' };
            text.push(symbol as char);
        }
    }
    text
}

/// A value in the format that `reader.py` prints.
fn to_json(value: &Value) -> Json {
    let all = |items: &[Value]| items.iter().map(to_json).collect::<Vec<_>>();
    match value {
        Value::Null => Json::Null,
        Value::Bool(flag) => json!(flag),
        Value::Int(number) => json!({ "int": number }),
        Value::Float(number) => {
            json!({ "float": number.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
        }
        Value::Str(text) => json!(text),
        Value::Bytes(bytes) => json!({ "bytes": base64(bytes) }),
        Value::List(items) => json!({ "list": all(items) }),
        Value::Tuple(items) => json!({ "tuple": all(items) }),
        Value::Map(items) => {
            json!({ "map": items.iter().map(|(name, item)| json!([name, to_json(item)])).collect::<Vec<_>>() })
        }
        Value::Tensor(tensor) => {
            json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape(), "data": base64(tensor.data()) })
        }
    }
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    // No NaN, as other programs need not preserve its bits: the top bits of each element's last byte are clear.
    (0..len).map(|i| ((i * 31 + seed * 17) % 0x38) as u8).collect()
}

fn tensor(dtype: Dtype, shape: &[usize], seed: usize) -> Tensor {
    let mut data = bytes(dtype.tensor_len_bytes(shape).unwrap(), seed);
    if dtype == Dtype::Bool {
        data.iter_mut().for_each(|byte| *byte &= 1);
    }
    Tensor::new(dtype, shape, data).unwrap()
}

/// The newest value of each key.
type Expected = BTreeMap<Key, Value>;

fn values() -> Vec<(String, Value)> {
    let mut values = Vec::new();
    for &dtype in Dtype::ALL {
        for (s, shape) in [&[4][..], &[2, 4], &[], &[0, 3], &[1, 8, 2]].iter().enumerate() {
            if dtype.tensor_len_bytes(shape).is_some() {
                values.push((format!("tensors/{dtype}/{s}"), Value::Tensor(tensor(dtype, shape, s))));
            }
        }
    }
    for i in 0..40 {
        let tree = Value::Map(vec![
            ("tokens".into(), tensor(Dtype::F32, &[3, 2], i).into()),
            ("a/b~c".into(), Value::List(vec![Value::Int(i as i64 - 7), Value::Null, Value::Bool(i % 3 == 0)])),
            ("rest".into(), Value::Tuple(vec![Value::Float(i as f64 / 3.0), Value::Str(format!("größe {i}"))])),
            ("raw".into(), Value::Bytes(bytes(i % 6, i).into())),
        ]);
        values.push((format!("trees/{i:03}"), tree));
        values.push((format!("ragged/{i:03}"), tensor(Dtype::F16, &[i % 9, 2], i).into()));
        values.push((format!("long keys/{}", "x".repeat(i * 3)), Value::Int(i as i64)));
    }
    values
}

/// A store of string keys with sealed segments of many structures, overwrites, deletes and runs. If `open`, its last
/// segments stay active.
fn write_store(dir: &Path, codec: Codec, open: bool) -> (Store, Expected) {
    let options = || Options::new().codec(codec).segment_rows(60).memtable_keys(100).flush_every(16, 1 << 20);
    let mut expected = Expected::new();
    let store = options().open(dir, "m").unwrap();
    for (key, value) in values() {
        store.put(&key, &value).unwrap();
        expected.insert(Key::Str(key), value);
    }
    store.close().unwrap();
    let store = options().open(dir, "m").unwrap();
    for i in (0..40).step_by(4) {
        let (key, value) = (format!("trees/{i:03}"), Value::Str(format!("overwritten {i}")));
        store.put(&key, &value).unwrap();
        expected.insert(Key::Str(key), value);
        let key = format!("ragged/{i:03}");
        assert!(store.delete(&key).unwrap());
        expected.remove(&Key::Str(key));
    }
    store.flush().unwrap();
    if !open {
        store.close().unwrap();
    }
    (store, expected)
}

fn python() -> Option<String> {
    let named = std::env::var("TENSORCASK_INTEROP_PYTHON").ok();
    let name = named.clone().unwrap_or_else(|| "python3".into());
    let works = Command::new(&name).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(works || named.is_none(), "TENSORCASK_INTEROP_PYTHON names {name}, which does not run");
    if !works {
        println!("\n*** python3 is not there: the reader in Python was NOT run ***\n");
    }
    works.then_some(name)
}

fn check_with_reader(python: &str, store: &Path, expected: &Expected) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/reader.py");
    let output = Command::new(python).arg(script).arg(store).env("PYTHONIOENCODING", "utf-8").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: BTreeMap<String, Json> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let row: Json = serde_json::from_str(line).unwrap();
        found.insert(row["key"].to_string(), row["value"].clone());
    }
    assert_eq!(found.len(), expected.len());
    for (key, value) in expected {
        let (found, mut wanted) = (&found[&serde_json::to_string(key).unwrap()], to_json(value));
        if found["data"] == "packed" {
            wanted["data"] = "packed".into();
        }
        assert_eq!(*found, wanted, "{key}");
    }
}

#[test]
fn a_reader_that_knows_only_the_format_page() {
    let Some(python) = python() else { return };
    for codec in [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 3 }] {
        for open in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (store, expected) = write_store(dir.path(), codec, open);
            check_with_reader(&python, &dir.path().join("m"), &expected);
            drop(store);
            let store = Store::open(dir.path(), "m").unwrap();
            let report = store.compact(&Compaction::new().live_share(1.0)).unwrap();
            assert!(report.rows_dropped > 0 && report.skipped.is_empty(), "{report:?}");
            store.close().unwrap();
            check_with_reader(&python, &dir.path().join("m"), &expected);
            let store = Store::open(dir.path(), "m").unwrap();
            let backwards = expected.keys().rev().cloned().collect();
            let report = store.compact(&Compaction::new().sort(Order::Given(backwards))).unwrap();
            assert!(report.rows_sorted > 0, "{report:?}");
            store.close().unwrap();
            check_with_reader(&python, &dir.path().join("m"), &expected);
        }
    }
    // Other kinds of keys, enough of them for runs with full buckets.
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    let keys: Vec<u64> = (0..6000).map(|i| i * i).collect();
    let rows: Vec<u16> = (0..12_000).collect();
    store.put_rows(&keys, &[2], &rows).unwrap();
    store.put_rows(&keys[..10], &[2], &rows[20..40]).unwrap();
    store.close().unwrap();
    assert_eq!(store.stats().unwrap().runs, 1);
    let row = |at: usize| Value::Tensor(Tensor::from_slice(&[2], &rows[at * 2..at * 2 + 2]).unwrap());
    let expected =
        keys.iter().enumerate().map(|(i, key)| (Key::U64(*key), row(if i < 10 { i + 10 } else { i }))).collect();
    check_with_reader(&python, &dir.path().join("m"), &expected);

    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().hash_bits(8).open(dir.path(), "m").unwrap();
    let expected: Expected =
        (0..5000_u32).map(|i| (Key::Bytes(i.to_be_bytes().to_vec()), Value::Int(i.into()))).collect();
    for (key, value) in &expected {
        store.put(key, value).unwrap();
    }
    store.close().unwrap();
    check_with_reader(&python, &dir.path().join("m"), &expected);
}

#[test]
fn the_reader_sees_damage() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (store, expected) = write_store(dir.path(), Codec::None, false);
    drop(store);
    let segments = dir.path().join("m/segments");
    let path = std::fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    let good = std::fs::read(&path).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/reader.py");
    for offset in (0..good.len()).step_by(good.len() / 12) {
        let mut bad = good.clone();
        bad[offset] ^= 0x15;
        std::fs::write(&path, &bad).unwrap();
        let output = Command::new(&python).arg(&script).arg(dir.path().join("m")).output().unwrap();
        // A flipped byte of padding is harmless; all others are detected.
        if output.status.success() {
            assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), expected.len());
        }
    }
}

#[test]
fn arrow_rs_opens_sealed_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = write_store(dir.path(), Codec::None, false);
    for entry in std::fs::read_dir(dir.path().join("m/segments")).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        let reader = arrow::ipc::reader::FileReader::try_new(file, None).unwrap();
        let rows: usize = reader.map(|batch| batch.unwrap().num_rows()).sum();
        assert!(rows > 0);
    }
}

/// The columns of a value as in the segment.
fn columns(value: &Value, name: String, found: &mut Vec<(String, Json)>) {
    let tensor = |tensor: &Tensor| json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape(), "data": base64(tensor.data()) });
    match value {
        Value::Null => {}
        Value::Map(items) => items.iter().for_each(|(part, item)| {
            columns(item, format!("{name}/{}", part.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::List(items) | Value::Tuple(items) => {
            items.iter().enumerate().for_each(|(at, item)| columns(item, format!("{name}/{at}"), found));
        }
        Value::Tensor(leaf) => found.push((name, tensor(leaf))),
        Value::Bool(flag) => found.push((name, json!({ "scalar": flag }))),
        Value::Int(number) => found.push((name, json!({ "scalar": number }))),
        Value::Float(number) => found.push((name, json!({ "scalar": number }))),
        Value::Str(text) => found.push((name, json!({ "scalar": text }))),
        Value::Bytes(bytes) => found.push((name, json!({ "scalar": base64(bytes) }))),
    }
}

#[test]
fn pyarrow_and_polars_open_sealed_segments() {
    let Ok(python) = std::env::var("TENSORCASK_INTEROP_PYTHON") else {
        println!("\n*** TENSORCASK_INTEROP_PYTHON is not set: pyarrow and polars were NOT run ***\n");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(60).open(dir.path(), "m").unwrap();
    let mut lines = String::new();
    for (key, value) in values() {
        store.put(&key, &value).unwrap();
        let mut found = Vec::new();
        columns(&value, "value".into(), &mut found);
        for (column, mut row) in found {
            row["key"] = json!(key);
            row["column"] = json!(column);
            lines.push_str(&format!("{row}\n"));
        }
    }
    store.close().unwrap();
    let expected = dir.path().join("expected.jsonl");
    std::fs::write(&expected, lines).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/arrow_check.py");
    let output = Command::new(python).arg(script).arg(dir.path().join("m")).arg(expected).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
}
