//! Puts of keys that do not exist.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tensorcask::storage::{FaultStorage, MemoryStorage};
use tensorcask::{Codec, Error, Lane, Options, Store, Tensor, Value};

fn memory(options: Options) -> Store {
    options.open_on(Arc::new(MemoryStorage::new())).unwrap()
}

fn ints(numbers: &[i64]) -> Vec<Value> {
    numbers.iter().map(|number| Value::Int(*number)).collect()
}

#[test]
fn existing_keys_are_kept_and_the_first_of_duplicates_wins() {
    let store = memory(Options::new());
    store.put_batch(&["a", "b"], &ints(&[1, 2])).unwrap();
    store.delete("b").unwrap();
    let keys = ["a", "b", "c", "b", "d", "c"];
    let written = store.put_batch_if_absent(&keys, &ints(&[10, 20, 30, 40, 50, 60])).unwrap();
    assert_eq!(written, [false, true, true, false, true, false]);
    let found = store.get_batch(&["a", "b", "c", "d"]).unwrap();
    assert!(found.into_iter().map(|found| found.unwrap().unwrap()).eq(ints(&[1, 20, 30, 50])));
    assert_eq!(store.len().unwrap(), 4);
    assert_eq!(store.put_batch_if_absent(&keys, &ints(&[0; 6])).unwrap(), [false; 6]);
    // All kinds of lengths, and the rest of a handle's life.
    assert!(store.put_batch_if_absent(&Vec::<String>::new(), &ints(&[])).unwrap().is_empty());
    assert!(store.put_batch_if_absent(&["a"], &ints(&[1, 2])).is_err());
    assert!(matches!(store.put_if_absent(1_u64, Value::Null), Err(Error::KeyKind { .. })));
    store.flush().unwrap();
    assert_eq!(store.waiting(), tensorcask::Waiting::default(), "a put that failed left bytes reserved");
    store.close().unwrap();
    assert!(matches!(store.put_if_absent("e", Value::Null), Err(Error::Closed)));
}

#[test]
fn rows_of_every_structure_are_put_in_chunks() {
    for options in [
        Options::new(),
        Options::new().codec(Codec::Zstd { level: 1 }),
        Options::new().synchronous(true),
        Options::new().store_as(tensorcask::Dtype::F16),
    ] {
        let store = memory(options.flush_every(10, 400).buffer_bytes(2000));
        let keys: Vec<u64> = (0..1000).collect();
        let rows: Vec<f32> = keys.iter().flat_map(|key| [*key as f32, 0.5]).collect();
        store.put_rows(&keys[300..400], &[2], &vec![-1.0_f32; 200]).unwrap();
        // In sealed segments and runs, too.
        store.merge_index().unwrap();
        let written = store.put_rows_if_absent(&keys, &[2], &rows).unwrap();
        assert!(keys.iter().zip(&written).all(|(key, written)| *written != (300..400).contains(key)));
        assert_eq!(written.len(), 1000);
        let first = |key: u64| store.get(key).unwrap().unwrap().into_tensor().unwrap();
        assert_eq!(first(350).to_vec::<f32>().unwrap_or_else(|_| vec![-1.0; 2]), [-1.0, -1.0]);
        assert_eq!(first(401).shape(), [2]);
        assert_eq!(store.len().unwrap(), 1000);
        store.flush().unwrap();
        assert_eq!(store.waiting(), tensorcask::Waiting::default());
        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    }
    // Values of several structures keep their positions.
    let store = memory(Options::new());
    let values =
        [Value::Int(1), Value::from("text"), Value::Int(2), Value::from(Tensor::from_slice(&[1], &[1_u8]).unwrap())];
    store.put(2_u64, Value::Null).unwrap();
    assert_eq!(store.put_batch_if_absent(&[1_u64, 2, 3, 1], &values).unwrap(), [true, false, true, false]);
    assert_eq!(store.get(3_u64).unwrap(), Some(Value::Int(2)));
}

#[test]
fn of_many_threads_one_puts_a_key() {
    let store = memory(Options::new().memtable_keys(200));
    let wins: Vec<AtomicU64> = (0..500).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8_i64 {
            let (store, wins) = (&store, &wins);
            scope.spawn(move || {
                for first in (0..500_u64).step_by(10) {
                    let keys: Vec<u64> = (first..first + 10).collect();
                    let written = store.put_batch_if_absent(&keys, &ints(&[thread; 10])).unwrap();
                    for (key, _) in keys.iter().zip(written).filter(|(_, written)| *written) {
                        wins[*key as usize].fetch_add(1 << (8 * thread), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    for (key, wins) in wins.iter().enumerate() {
        let Some(Value::Int(thread)) = store.get(key as u64).unwrap() else { panic!("{key} is not there") };
        assert_eq!(
            wins.load(Ordering::Relaxed),
            1 << (8 * thread),
            "of {key} the value of the one that put it is kept"
        );
    }
}

/// A plain put that returned before is never replaced.
#[test]
fn a_put_that_has_returned_is_kept() {
    let store = memory(Options::new());
    std::thread::scope(|scope| {
        let (store, keys) = (&store, 0..3000_u64);
        let putting = scope.spawn({
            let keys = keys.clone();
            move || keys.for_each(|key| store.put(key, Value::Int(1)).unwrap())
        });
        let mut written = HashMap::new();
        for key in keys {
            written.insert(key, store.put_if_absent(key, Value::Int(2)).unwrap());
        }
        putting.join().unwrap();
        // The plain put follows, or it was there.
        assert!(written.keys().all(|key| store.get(*key).unwrap() == Some(Value::Int(1))));
    });
}

#[test]
fn rows_that_another_lane_has_flushed_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let never = std::time::Duration::from_secs(1000);
    let open = || Options::new().refresh_interval(never).lane(Lane::Auto).open(dir.path(), "m").unwrap();
    let (one, two) = (open(), open());
    for round in 0..3 {
        let key = format!("key {round}");
        one.put(&*key, Value::Int(round)).unwrap();
        one.flush().unwrap();
        assert!(!two.put_if_absent(&*key, Value::Int(9)).unwrap());
        assert_eq!(two.put_rows_if_absent(&[&*key], &[1], &[1_u8]).unwrap(), [false]);
    }
}

#[test]
fn damage_and_failing_disks_are_errors() {
    let memory = MemoryStorage::new();
    let store = Options::new().open_on(Arc::new(memory.clone())).unwrap();
    store.put_rows(&[1_u64, 2], &[4], &[1.0_f32; 8]).unwrap();
    store.close().unwrap();
    drop(store);
    let path = "segments/0000-0000000001.arrow";
    let bytes = memory.read(path).unwrap();
    // The keys of the batch.
    let at =
        bytes.windows(16).position(|window| window == [[1, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]].concat());
    memory.corrupt(path, at.unwrap() as u64 + 9, 1).unwrap();
    let store = Options::new().open_on(Arc::new(memory.clone())).unwrap();
    let refused = store.put_batch_if_absent(&[7_u64, 2], &ints(&[1, 2])).unwrap_err();
    assert!(refused.is_corrupt() && matches!(&refused, Error::Item(item) if item.position == 1), "{refused}");
    assert_eq!(store.waiting().bytes, 0);
    assert!(!store.contains(7_u64).unwrap());

    let full = FaultStorage::new(Arc::new(MemoryStorage::new()));
    let store = Options::new().open_on(Arc::new(full.clone())).unwrap();
    store.put(1_u64, Value::Null).unwrap();
    full.faults().fail_after_bytes(0);
    assert!(store.put_if_absent(2_u64, Value::Null).and_then(|_| store.flush()).is_err());
    assert!(matches!(store.put_if_absent(3_u64, Value::Null), Err(Error::Poisoned { .. })));
}
