//! An error of one item of a batch names the item's position and its key.

use tensorcask::storage::MemoryStorage;
use tensorcask::{AsValue, Dtype, Error, Key, Options, Result, Store, Tensor, Value};

use crate::storages::Kind;

fn open() -> Store {
    let options = Options::new().max_value_bytes(1000).synchronous(true);
    options.open_on(std::sync::Arc::new(MemoryStorage::new())).unwrap()
}

/// Position, key and message of the item that failed.
fn item<T: std::fmt::Debug>(result: Result<T>) -> (usize, String, String) {
    let error = result.unwrap_err();
    let Error::Item(item) = &error else { panic!("{error}") };
    let (position, key) = (item.position, &item.key);
    assert!(error.to_string().starts_with(&format!("key {key} at position {position}: ")), "{error}");
    assert_eq!(error.cause().to_string(), item.error.to_string());
    (position, key.clone(), item.error.to_string())
}

/// The error of a batch whose second value is `value`.
fn put(value: impl Into<Value>) -> (usize, String, String) {
    let store = open();
    let failed = item(store.put_batch(&["good", "bad"], &[Value::Int(1), value.into()]));
    assert!(store.is_empty().unwrap());
    failed
}

#[test]
fn values_that_cannot_be_put() {
    let nested = (0..40).fold(Value::Null, |inner, _| Value::List(vec![inner]));
    let twice = Value::Map(vec![("n".into(), Value::Null), ("n".into(), Value::Null)]);
    let many: Value = (0..5000_i64).collect();
    let cases = [
        (Value::from(vec![0_u8; 1001]), "more than the limit of 1000"),
        (Value::from([("text", "x".repeat(1001))]), "more than the limit of 1000"),
        (Tensor::from_slice(&[251], &[0.0_f32; 251]).unwrap().into(), "more than the limit of 1000"),
        (Tensor::from_slice(&[1; 33], &[0.0_f32]).unwrap().into(), "dimensions"),
        (Tensor::new(Dtype::Bool, &[1], vec![2]).unwrap().into(), "byte 0 of a BOOL tensor is 2"),
        (nested, "nesting"),
        (twice, "the name \"n\" twice"),
        (many, "leaves"),
    ];
    for (value, why) in cases {
        let (position, key, message) = put(value);
        assert!((position, key.as_str()) == (1, "\"bad\"") && message.contains(why), "{position} {key} {message}");
    }
}

#[test]
fn rows_that_cannot_be_put() {
    let store = open();
    let (position, key, message) = item(store.put_rows_bytes(&[7_u64, 8, 9], Dtype::Bool, &[2], &[0, 1, 1, 0, 1, 7]));
    assert_eq!((position, key.as_str()), (2, "9"));
    assert!(message.contains("byte 1 of a BOOL tensor is 7"), "{message}");
}

#[test]
fn keys_that_cannot_be_used() {
    fn refused<'a>(store: &Store, keys: impl Into<tensorcask::Keys<'a>>) -> (usize, String, String) {
        let keys = keys.into();
        let rows = vec![0.0_f32; keys.len()];
        let failed = item(store.put_rows(keys, &[1], &rows));
        let (mut out, mut found) = (rows.clone(), vec![false; keys.len()]);
        let values: Vec<Value> = rows.iter().map(|_| Value::Null).collect();
        assert_eq!(item(store.put_batch(keys, &values)), failed);
        assert_eq!(item(store.get_batch(keys)), failed);
        assert_eq!(item(store.get_batch_into(keys, &[1], &mut out, &mut found)), failed);
        assert_eq!(item(store.contains_batch(keys)), failed);
        assert_eq!(item(store.delete_batch(keys)), failed);
        failed
    }
    for fresh in [true, false] {
        let store = open();
        if !fresh {
            store.put(1_u64, Value::Null).unwrap();
        }
        let (position, key, message) = refused(&store, &[5_i64, 6, -7]);
        assert!((position, key.as_str()) == (2, "-7") && message.contains("cannot be negative"), "{message}");
        let (position, key, _) = refused(&store, &[3, -4]);
        assert_eq!((position, key.as_str()), (1, "-4"));
        let (position, key, message) = refused(&store, &[Key::U64(1), Key::U64(2), Key::Str("three".into())]);
        assert_eq!((position, key.as_str()), (2, "\"three\""));
        assert!(message.contains("keys are u64, but a str key"), "{message}");
    }
    let store = open();
    store.put("text", Value::Null).unwrap();
    // The kind of the store decides, not the kind of the first key.
    let (position, key, message) = refused(&store, &[Key::U64(1), Key::Str("a".into())]);
    assert!((position, key.as_str()) == (0, "1") && message.contains("keys are str, but a u64 key"), "{message}");
    let (position, key, message) = refused(&store, &["a", &"é".repeat(40_000)]);
    assert_eq!((position, key), (1, format!("{:?}…", "é".repeat(40))));
    assert!(message.contains("hash it") && message.contains("80000"), "{message}");
    let (position, key, message) = refused(&open(), &[vec![1], vec![0xab; 70_000]]);
    assert_eq!((position, key), (1, format!("{}…", "ab".repeat(20))));
    assert!(message.contains("hash it") && message.contains("70000"), "{message}");
}

#[test]
fn a_call_with_one_key_fails_with_the_cause_alone() {
    let store = open();
    store.put("a", Value::Null).unwrap();
    assert!(matches!(store.put(1_u64, Value::Null), Err(Error::KeyKind { .. })));
    assert!(matches!(store.put("a", Value::from(vec![0_u8; 1001])), Err(Error::TooLarge { .. })));
    assert!(matches!(store.get(1_u64), Err(Error::KeyKind { .. })));
    assert!(matches!(store.contains(1_u64), Err(Error::KeyKind { .. })));
    assert!(matches!(store.delete(1_u64), Err(Error::KeyKind { .. })));
    let negative = store.get(-1_i64).unwrap_err().to_string();
    assert!(negative.contains("the key -1") && negative.contains("cannot be negative"), "{negative}");
}

#[test]
fn rows_that_do_not_fit_the_buffer() {
    for cache_bytes in [0, 1 << 20] {
        let storage = std::sync::Arc::new(MemoryStorage::new());
        let store = Options::new().value_cache_bytes(cache_bytes).synchronous(true).open_on(storage).unwrap();
        let values = [Tensor::from_slice(&[1], &[1.0_f32]).unwrap().into(), Value::Int(3)];
        store.put_batch(&["one", "two"], &values.each_ref().map(AsValue::as_value)).unwrap();
        let (mut out, mut found) = ([0.0_f32; 3], [false; 3]);
        let failed = item(store.get_batch_into(&["none", "one", "two"], &[1], &mut out, &mut found));
        assert_eq!((failed.0, failed.1.as_str()), (2, "\"two\""));
        assert!(failed.2.contains("the row is int") && failed.2.contains("F32 tensor of shape [1]"), "{}", failed.2);
        let (mut out, mut found) = ([0.0_f64; 2], [false; 2]);
        let failed = item(store.get_batch_into(&["none", "one"], &[1], &mut out, &mut found));
        assert_eq!((failed.0, failed.1.as_str()), (1, "\"one\""));
        assert!(failed.2.contains("a F32 tensor of shape [1], but") && failed.2.contains("F64"), "{}", failed.2);
    }
}

#[test]
fn rows_that_cannot_be_read() {
    let (ones, twos): (Vec<u8>, Vec<u8>) = (vec![0x11; 256], vec![0x22; 256]);
    let storage = Kind::Memory.empty();
    let store = Options::new().synchronous(true).open_on(storage.storage()).unwrap();
    store.put_rows(&["one", "two"], &[256], &[ones, twos.clone()].concat()).unwrap();
    store.close().unwrap();
    let path = storage.files("segments")[0].clone();
    let at = storage.read(&path).windows(256).position(|window| window == twos).unwrap();
    storage.corrupt(&path, at as u64, 1);
    for cache_bytes in [0, 1 << 20] {
        let options = Options::new().value_cache_bytes(cache_bytes);
        let reader = options.clone().open_reader_on(storage.storage()).unwrap();
        let keys = ["none", "one", "two"];
        let (mut out, mut found) = ([0_u8; 768], [false; 3]);
        let error = reader.get_batch_into(&keys, &[256], &mut out, &mut found).unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains("first: key \"two\" at position 2: "), "{error}");
        let Error::DamagedRows { rows } = error else { panic!("{error}") };
        assert!(matches!(&rows[..], [row] if row.position == 2 && row.key == "\"two\"" && row.error.is_corrupt()));
        let mut values = reader.get_batch(&keys).unwrap();
        let failed = values.pop().unwrap();
        assert!(failed.as_ref().is_err_and(Error::is_corrupt) && values.iter().all(Result::is_ok));
        assert_eq!(item(failed).0, 2);
        assert!(matches!(reader.get("two"), Err(Error::Corrupt { .. })));
        // A valid row that is larger than the limit of this handle.
        let reader = options.max_value_bytes(100).open_reader_on(storage.storage()).unwrap();
        let failed = item(reader.get_batch(&keys).unwrap().remove(1));
        assert!((failed.0, failed.1.as_str()) == (1, "\"one\"") && failed.2.contains("more than the limit of 100"));
    }
}
