//! Values are read back bit for bit: every dtype, any shape, packed or not, with the value cache or without.

use tensorcask::{Codec, Dtype, Options, Store, Tensor, TensorView, Value, ValueCacheFill, ValueCachePolicy};

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    // All bit patterns, including NaN payloads.
    (0..len).map(|i| (i * 37 + seed * 101 + 7) as u8).collect()
}

/// The same, with valid booleans.
fn elements(dtype: Dtype, len: usize, seed: usize) -> Vec<u8> {
    let mut bytes = bytes(len, seed);
    if dtype == Dtype::Bool {
        bytes.iter_mut().for_each(|byte| *byte &= 1);
    }
    bytes
}

const SHAPES: [&[usize]; 7] = [&[], &[0], &[1], &[3, 8], &[2, 0, 5], &[4, 2, 2, 3], &[64, 300]];

#[test]
fn every_dtype_and_shape_comes_back() {
    for codec in [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 3 }] {
        let dir = tempfile::tempdir().unwrap();
        let store = Options::new().codec(codec).open(dir.path(), "m").unwrap();
        let mut expected = Vec::new();
        for &dtype in Dtype::ALL {
            for (s, shape) in SHAPES.iter().enumerate() {
                let Some(len) = dtype.tensor_len_bytes(shape) else { continue };
                let tensor = Tensor::new(dtype, shape, elements(dtype, len, s)).unwrap();
                store.put(format!("{dtype}/{s}"), &tensor).unwrap();
                let rows = elements(dtype, len * 3, s + 50);
                let keys: Vec<String> = (0..3).map(|i| format!("{dtype}/{s}/row{i}")).collect();
                store.put_rows_bytes(&keys, dtype, shape, &rows).unwrap();
                expected.push((format!("{dtype}/{s}"), tensor, keys, rows));
            }
        }
        let check = |store: &tensorcask::Reader| {
            for (key, tensor, keys, rows) in &expected {
                assert_eq!(store.get(key).unwrap(), Some(Value::Tensor(tensor.clone())), "{key}");
                let (mut out, mut found) = (vec![0; rows.len()], [false; 3]);
                let dtype = tensor.dtype();
                assert_eq!(store.get_batch_into_bytes(keys, dtype, tensor.shape(), &mut out, &mut found).unwrap(), 3);
                assert_eq!(&out, rows, "{key}");
            }
        };
        check(store.reader());
        store.close().unwrap();
        check(store.reader());
        drop(store);
        let store = Store::open(dir.path(), "m").unwrap();
        assert!(store.open_report().is_clean());
        check(store.reader());
        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    }
}

#[test]
fn shapes_may_differ_from_row_to_row() {
    let dir = tempfile::tempdir().unwrap();
    for codec in [Codec::None, Codec::ShuffleZstd { level: 1 }] {
        let module = codec.name();
        let store = Options::new().codec(codec).open(dir.path(), module).unwrap();
        let tensor = |i: usize| {
            Tensor::from_slice(&[i % 23, 5], &(0..(i % 23) * 5).map(|x| (x * i) as f32).collect::<Vec<_>>()).unwrap()
        };
        for i in 0..500 {
            let value = Value::Map(vec![("t".into(), tensor(i).into()), ("n".into(), Value::Int(i as i64))]);
            store.put(i as u64, &value).unwrap();
        }
        store.close().unwrap();
        drop(store);
        let store = Store::open(dir.path(), module).unwrap();
        // The 23 shapes do not each get their own segment.
        assert!(store.stats().unwrap().segments <= 6, "{:?}", store.stats());
        for i in 0..500 {
            let value = store.get(i as u64).unwrap().unwrap();
            assert_eq!(value.get("t"), Some(&tensor(i).into()));
            assert_eq!(value.get("n"), Some(&Value::Int(i as i64)));
        }
    }
}

#[test]
fn down_casts_are_restored_when_asked() {
    let values: Vec<f32> = (0..64).map(|i| i as f32 * 0.37 - 9.0).collect();
    for dtype in [Dtype::F16, Dtype::BF16] {
        for codec in [Codec::None, Codec::Zstd { level: 1 }] {
            let dir = tempfile::tempdir().unwrap();
            let store = Options::new().store_as(dtype).codec(codec).open(dir.path(), "m").unwrap();
            store.put_rows(&["a", "b"], &[32], &values).unwrap();
            store.put("c", TensorView::from_slice(&[2], &[1_i32, 2]).unwrap()).unwrap();
            store.close().unwrap();
            drop(store);
            let store = Options::new().open(dir.path(), "m").unwrap();
            assert_eq!(store.get("a").unwrap().unwrap().into_tensor().unwrap().dtype(), dtype);
            assert_eq!(store.get("c").unwrap().unwrap().into_tensor().unwrap().dtype(), Dtype::I32);
            drop(store);
            let store = Options::new().restore_dtype(true).open(dir.path(), "m").unwrap();
            let (mut out, mut found) = (vec![0.0_f32; 64], [false; 2]);
            assert_eq!(store.get_batch_into(&["a", "b"], &[32], &mut out, &mut found).unwrap(), 2);
            let tolerance = if dtype == Dtype::F16 { 1e-3 } else { 1e-2 };
            assert!(values.iter().zip(&out).all(|(a, b)| (a - b).abs() <= a.abs() * tolerance + 1e-6));
            assert_ne!(values, out);
        }
    }
}

#[test]
fn values_outlive_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    store.put_rows(&["a"], &[4096], &[1.5_f32; 4096]).unwrap();
    store.close().unwrap();
    let value = store.get("a").unwrap().unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("m")).unwrap();
    let tensor = value.into_tensor().unwrap();
    assert_eq!(tensor.as_slice::<f32>(), Some(&[1.5_f32; 4096][..]));
}

#[test]
fn the_value_cache_never_serves_what_was_superseded() {
    for (policy, fill) in [
        (ValueCachePolicy::Lru, ValueCacheFill::OnRead),
        (ValueCachePolicy::StopWhenFull, ValueCacheFill::OnWrite),
        (ValueCachePolicy::Lru, ValueCacheFill::OnReadAndWrite),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().value_cache_bytes(1 << 20).value_cache_policy(policy).value_cache_fill(fill);
        let store = options.open(dir.path(), "m").unwrap();
        for version in 0..5_i64 {
            for key in 0..200_u64 {
                store.put(key, Value::Int(version * 1000 + key as i64)).unwrap();
                if key % 7 == 0 {
                    store.delete(key).unwrap();
                }
            }
            for _ in 0..2 {
                for key in 0..200_u64 {
                    let expected = (key % 7 != 0).then_some(Value::Int(version * 1000 + key as i64));
                    assert_eq!(store.get(key).unwrap(), expected);
                }
            }
        }
        let cache = store.stats().unwrap().value_cache.unwrap();
        assert!(cache.hits > 0 && cache.bytes <= 1 << 20, "{cache:?}");
    }
}

#[test]
fn threads_read_while_one_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Options::new().segment_rows(500).memtable_keys(800).value_cache_bytes(4096).open(dir.path(), "m").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for key in (0..4000_u64).step_by(13) {
                        if let Some(Value::Int(found)) = store.get(key).unwrap() {
                            assert_eq!(found as u64 % 10_000, key);
                        }
                    }
                }
            });
        }
        for version in 0..3 {
            for key in 0..4000_u64 {
                store.put(key, Value::Int((version * 10_000 + key) as i64)).unwrap();
                // The handle that put a row can read it immediately.
                assert_eq!(store.get(key).unwrap(), Some(Value::Int((version * 10_000 + key) as i64)));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(store.len().unwrap(), 4000);
    store.close().unwrap();
}
