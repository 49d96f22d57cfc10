//! `get_or_compute`: threads compute each key once, whatever fails.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::{Duration, Instant};

use tensorcask::storage::MemoryStorage;
use tensorcask::{Dtype, Error, Lane, Options, Store, Tensor, Value};

const DIMS: usize = 5;

fn row(key: &str) -> [f32; DIMS] {
    let length = key.len() as f32;
    let sum = key.bytes().map(f32::from).sum();
    [length, sum, sum * length, -length, 0.5]
}

fn rows(keys: &[String], at: &[usize]) -> Vec<f32> {
    at.iter().flat_map(|&at| row(&keys[at])).collect()
}

fn memory() -> Store {
    Options::new().open_on(Arc::new(MemoryStorage::new())).unwrap()
}

/// Fails instead of hanging.
fn within_a_minute<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || done.send(run()).unwrap());
    match ended.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("threads wait for each other"),
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

#[test]
fn missing_keys_are_computed_once_and_fill_all_positions() {
    let store = memory();
    let keys: Vec<String> = ["a", "bb", "a", "ccc", "bb", "a"].map(String::from).to_vec();
    store.put_rows(&["ccc"], &[DIMS], &row("ccc")).unwrap();
    let mut out = vec![0.0; keys.len() * DIMS];
    let mut calls = Vec::new();
    let mut ask = |out: &mut [f32]| {
        let compute = |at: &[usize]| {
            calls.push(at.to_vec());
            Ok(rows(&keys, at))
        };
        store.get_or_compute_rows(&keys, &[DIMS], out, compute).unwrap()
    };
    let first = ask(&mut out);
    assert_eq!((first.found, first.computed, first.duplicates, first.waited), (1, 2, 3, 0));
    assert_eq!(out, rows(&keys, &[0, 1, 2, 3, 4, 5]));
    out.fill(0.0);
    let second = ask(&mut out);
    assert_eq!((second.found, second.computed, second.duplicates), (6, 0, 0));
    assert_eq!((out, calls), (rows(&keys, &[0, 1, 2, 3, 4, 5]), vec![vec![0, 1]]));
    assert_eq!(store.len().unwrap(), 3);
    // Integers, rows without elements, and no keys.
    let none = store.get_or_compute_rows::<f32>(&Vec::<String>::new(), &[DIMS], &mut [], |_| unreachable!()).unwrap();
    assert_eq!(none.found, 0);
    let empty = memory();
    let report = empty.get_or_compute_rows::<u8>(&[1, 2], &[0], &mut [], |_| Ok(Vec::new())).unwrap();
    assert_eq!((report.computed, empty.len().unwrap()), (2, 2));
}

#[test]
fn values_of_any_structure_are_computed() {
    let store = memory();
    let value = |key: u64| {
        let tensor = Tensor::from_slice(&[2], &[key as f32, 0.5]).unwrap();
        Value::from([("tensor", Value::from(tensor)), ("list", [key as i64, 7].into_iter().collect())])
    };
    let keys = [3_u64, 9, 3, 4];
    let mut calls = 0;
    for _ in 0..2 {
        let values = store.get_or_compute(&keys, |at| {
            calls += 1;
            Ok(at.iter().map(|&at| value(keys[at])).collect())
        });
        assert_eq!(values.unwrap(), keys.map(value));
    }
    assert_eq!(calls, 1);
    let short = store.get_or_compute(&[5_u64, 6], |_| Ok(vec![Value::Null])).unwrap_err();
    assert!(short.to_string().contains("1 values, but 2"), "{short}");
    assert!(store.get(5_u64).unwrap().is_none());
}

#[test]
fn what_cannot_be_computed_is_an_error_and_puts_nothing() {
    let store = memory();
    let mut out = [0.0_f32; 2 * DIMS];
    let short = store.get_or_compute_rows(&["a", "b"], &[DIMS], &mut out, |_| Ok(vec![1.0; DIMS])).unwrap_err();
    assert!(matches!(short, Error::Invalid { .. }) && short.to_string().contains("5 elements, but 10"), "{short}");
    let failed = store.get_or_compute_rows(&["a", "b"], &[DIMS], &mut out, |_| {
        Err(Error::compute(std::io::Error::other("out of memory")))
    });
    let failed = failed.unwrap_err();
    assert!(matches!(failed, Error::Compute { .. }) && failed.to_string().contains("out of memory"), "{failed}");
    for shape in [&[DIMS + 1][..], &[1], &[usize::MAX, 2]] {
        let wrong = store.get_or_compute_rows(&["a", "b"], shape, &mut out, |_| unreachable!()).unwrap_err();
        assert!(matches!(wrong, Error::Invalid { .. }), "{wrong}");
    }
    let kind = store.put(1_u64, Value::Null).and_then(|()| store.get_or_compute(&["a"], |_| unreachable!()).map(drop));
    assert!(matches!(kind.unwrap_err().cause(), Error::KeyKind { .. }));
    assert_eq!(store.len().unwrap(), 1);
    // A stored row of another shape is an error of its position, and hits need no writer.
    store.put_rows(&[7_u64], &[1], &[1_i32]).unwrap();
    let other = store.get_or_compute_rows(&[5_u64, 7], &[DIMS], &mut out, |_| unreachable!()).unwrap_err();
    assert!(matches!(&other, Error::Item(item) if item.position == 1), "{other}");
    store.close().unwrap();
    let mut one = [0_i32];
    assert_eq!(store.get_or_compute_rows(&[7_u64], &[1], &mut one, |_| unreachable!()).unwrap().found, 1);
    assert!(matches!(store.get_or_compute_rows(&[8_u64], &[1], &mut one, |_| unreachable!()), Err(Error::Closed)));
}

#[test]
fn the_first_call_returns_what_later_calls_return() {
    let lossy = Options::new().store_as(Dtype::F16);
    let store = lossy.clone().restore_dtype(true).open_on(Arc::new(MemoryStorage::new())).unwrap();
    let mut outs = [[0.0_f32; 2]; 2];
    for out in &mut outs {
        store.get_or_compute_rows(&["a"], &[2], out, |_| Ok(vec![0.1, 1.0e-9])).unwrap();
    }
    assert_eq!(outs[0], outs[1]);
    assert_ne!(outs[0][0], 0.1);
    let value = || Value::from(Tensor::from_slice(&[1], &[0.1_f32]).unwrap());
    let values = [0, 1].map(|_| store.get_or_compute(&["v"], |_| Ok(vec![value()])).unwrap());
    assert!(values[0] == values[1] && values[0] != [value()]);
    // Rows that cannot come back in the caller's dtype are not computed.
    let store = lossy.open_on(Arc::new(MemoryStorage::new())).unwrap();
    let refused = store.get_or_compute_rows(&["a"], &[2], &mut outs[0], |_| unreachable!()).unwrap_err();
    assert!(matches!(refused, Error::Mismatch { .. }), "{refused}");
}

#[test]
fn damaged_rows_are_computed_again() {
    let memory = MemoryStorage::new();
    let open = || Options::new().open_on(Arc::new(memory.clone())).unwrap();
    let keys: Vec<String> = (0..40).map(|key| format!("key {key}")).collect();
    let all: Vec<usize> = (0..keys.len()).collect();
    let store = open();
    store.put_rows(&keys, &[DIMS], &rows(&keys, &all)).unwrap();
    store.close().unwrap();
    drop(store);
    let path = "segments/0000-0000000001.arrow";
    let bytes = memory.read(path).unwrap();
    let value = row("key 7").map(f32::to_le_bytes).concat();
    let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
    memory.corrupt(path, at as u64 + 5, 0x10).unwrap();
    let store = open();
    let mut out = vec![0.0; keys.len() * DIMS];
    for damaged in [1, 0] {
        let report = store.get_or_compute_rows(&keys, &[DIMS], &mut out, |at| Ok(rows(&keys, at))).unwrap();
        assert_eq!((report.damaged, report.computed, report.found), (damaged, damaged, 40 - damaged));
        assert_eq!(out, rows(&keys, &all));
    }
}

/// 64 threads ask for 1,112 texts in overlapping batches, in different orders; some computations fail as `fault` says.
fn ask_from_64_threads(fault: impl Fn(usize) -> Result<(), Error> + Send + Sync + 'static) -> (usize, usize, usize) {
    const TEXTS: usize = 1112;
    const BATCH: usize = 121;
    within_a_minute(move || {
        let store = memory();
        let texts: Vec<String> = (0..TEXTS).map(|text| format!("text {}", text * 7919)).collect();
        let (computed, calls, failures) = (Mutex::new(HashMap::new()), AtomicUsize::new(0), AtomicUsize::new(0));
        let start = Barrier::new(64);
        std::thread::scope(|scope| {
            for thread in 0..64_usize {
                let (store, texts, computed, calls, failures) = (&store, &texts, &computed, &calls, &failures);
                let (start, fault) = (&start, &fault);
                scope.spawn(move || {
                    start.wait();
                    let mut first = thread * 97;
                    for round in 0..12 {
                        let mut batch: Vec<String> =
                            (0..BATCH).map(|at| texts[(first + at * (1 + round % 3)) % TEXTS].clone()).collect();
                        if thread % 2 == 1 {
                            batch.reverse();
                        }
                        let mut out = vec![0.0; BATCH * DIMS];
                        let compute = |at: &[usize]| {
                            fault(calls.fetch_add(1, Ordering::Relaxed))?;
                            std::thread::sleep(Duration::from_millis(1));
                            let mut computed = computed.lock().unwrap();
                            at.iter().for_each(|&at| *computed.entry(batch[at].clone()).or_insert(0) += 1);
                            Ok(rows(&batch, at))
                        };
                        let asked = || store.get_or_compute_rows(&batch, &[DIMS], &mut out, compute);
                        match catch_unwind(AssertUnwindSafe(asked)) {
                            Ok(Ok(_)) => assert_eq!(out, rows(&batch, &(0..BATCH).collect::<Vec<_>>())),
                            _ => drop(failures.fetch_add(1, Ordering::Relaxed)),
                        }
                        first += BATCH;
                    }
                });
            }
        });
        let computed = computed.into_inner().unwrap();
        assert_eq!(store.len().unwrap(), computed.len() as u64);
        (computed.len(), computed.values().sum(), failures.into_inner())
    })
}

#[test]
fn threads_compute_each_key_once() {
    assert_eq!(ask_from_64_threads(|_| Ok(())), (1112, 1112, 0));
}

#[test]
fn computations_that_fail_or_panic_leave_their_keys_to_others() {
    let (keys, computed, failures) = ask_from_64_threads(|call| match call % 4 {
        1 => Err(Error::compute("no memory")),
        3 => panic!("a computation panics, as the test expects"),
        _ => Ok(()),
    });
    // Nothing was computed twice, and only the calls that failed themselves returned an error.
    assert_eq!((keys, computed), (1112, 1112));
    assert!(failures > 0);
}

#[test]
fn a_computation_that_asks_for_its_own_key_is_an_error() {
    within_a_minute(|| {
        let store = memory();
        let ask = |keys: &[u64], compute: &dyn Fn() -> tensorcask::Result<i32>| {
            let mut out = vec![0; keys.len()];
            store
                .get_or_compute_rows(keys, &[], &mut out, |at| compute().map(|number| vec![number; at.len()]))
                .map(|_| out)
        };
        let error = ask(&[1], &|| ask(&[2, 1], &|| Ok(3)).map(|_| 4)).unwrap_err();
        assert!(matches!(error, Error::Recursion { .. }), "{error}");
        // The inner call had computed key 2 before.
        assert_eq!(store.contains_batch(&[1_u64, 2]).unwrap(), [false, true]);
        // Other keys may be asked for, to a depth.
        assert_eq!(ask(&[1], &|| ask(&[5], &|| Ok(5)).map(|out| out[0] + 1)).unwrap(), [6]);
        fn deeper(store: &Store, key: u64) -> tensorcask::Result<Vec<Value>> {
            store.get_or_compute(&[key], |_| deeper(store, key + 1))
        }
        assert!(matches!(deeper(&store, 100), Err(Error::Recursion { .. })));
    });
}

#[test]
fn computations_that_need_each_other_s_keys_do_not_wait_for_ever() {
    within_a_minute(|| {
        let store = memory();
        let both = Barrier::new(2);
        let computed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for (own, other) in [(1_u64, 2_u64), (2, 1)] {
                let (store, both, computed) = (&store, &both, &computed);
                scope.spawn(move || {
                    let values = store.get_or_compute(&[own], |_| {
                        both.wait();
                        store.get_or_compute(&[other], |_| {
                            computed.fetch_add(1, Ordering::Relaxed);
                            Ok(vec![Value::Int(other as i64)])
                        })?;
                        Ok(vec![Value::Int(own as i64)])
                    });
                    assert_eq!(values.unwrap(), [Value::Int(own as i64)]);
                });
            }
        });
        // One thread computes the other's key too.
        assert!((1..=2).contains(&computed.into_inner()));
        assert_eq!(store.len().unwrap(), 2);
    });
}

/// Two handles in lanes of their own are like two processes.
#[test]
fn another_handle_waits_for_the_lease() {
    within_a_minute(|| {
        let storage = MemoryStorage::new();
        let open = |timeout| {
            Options::new().lane(Lane::Auto).lease_timeout(timeout).open_on(Arc::new(storage.clone())).unwrap()
        };
        let (one, two) = (open(Duration::from_secs(30)), open(Duration::MAX));
        let (hasty, careless) = (open(Duration::from_millis(200)), open(Duration::ZERO));
        let value = |number| Ok(vec![Value::Int(number)]);
        let (computing, started) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                one.get_or_compute(&["k"], |_| {
                    computing.send(()).unwrap();
                    std::thread::sleep(Duration::from_secs(1));
                    value(1)
                })
            });
            started.recv().unwrap();
            let start = Instant::now();
            assert_eq!(careless.get_or_compute(&["k"], |_| value(2)).unwrap(), [Value::Int(2)]);
            assert!(start.elapsed() < Duration::from_millis(200));
            assert_eq!(hasty.get_or_compute(&["k"], |_| value(3)).unwrap(), [Value::Int(3)]);
            assert!(start.elapsed() > Duration::from_millis(200));
            // Keys that nobody computes are not delayed.
            let mut order = Vec::new();
            let values = two.get_or_compute(&["k", "other"], |at| {
                order.push((at.to_vec(), start.elapsed()));
                value(4)
            });
            assert_eq!(values.unwrap()[1], Value::Int(4));
            assert!(order.len() == 1 && order[0].0 == [1] && order[0].1 < Duration::from_millis(700), "{order:?}");
        });
        assert!(one.lease_failure().is_none() && careless.lease_failure().is_none());
        // A computation that fails releases its lease.
        let failed = one.get_or_compute(&["x"], |_| Err(Error::compute("no memory")));
        assert!(failed.is_err());
        let start = Instant::now();
        assert_eq!(two.get_or_compute(&["x"], |_| value(5)).unwrap(), [Value::Int(5)]);
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn without_leases_keys_are_computed_and_the_reason_is_known() {
    let storage = tensorcask::storage::FaultStorage::new(Arc::new(MemoryStorage::new()));
    storage.faults().deny(["lanes/leases-07.lock"]);
    let store = Options::new().open_on(Arc::new(storage)).unwrap();
    assert!(store.lease_failure().is_none());
    assert_eq!(store.get_or_compute(&["k"], |_| Ok(vec![Value::Null])).unwrap(), [Value::Null]);
    assert!(store.lease_failure().is_some_and(Error::is_denied));
    assert_eq!(store.get_or_compute(&["k", "l"], |_| Ok(vec![Value::Null])).unwrap().len(), 2);
}
