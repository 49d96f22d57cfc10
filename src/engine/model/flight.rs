//! Single flight: threads that ask for overlapping keys compute each key once and do not deadlock.
//!
//! Mutations that these checks detect: no second lookup after a computation has ended or a lease was taken; releasing a
//! lease before its rows are flushed; releasing the number of a claim before its keys; a lookup for absent keys outside
//! of the lock of inserts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::thread;

use crate::engine::model::check;
use crate::engine::model::store::open;
use crate::engine::options::{Lane, Options};
use crate::engine::store::Store;
use crate::error::{Error, Result};
use crate::io::memory::MemoryStorage;
use crate::value::Value;

fn int(key: u64) -> Value {
    Value::Int(key as i64)
}

/// Asks for `keys`, and counts those that are computed.
fn ask(store: &Store, keys: &[u64], computed: &AtomicUsize) {
    let compute = |at: &[usize]| {
        computed.fetch_add(at.len(), Ordering::Relaxed);
        Ok(at.iter().filter_map(|&at| keys.get(at)).map(|key| int(*key)).collect())
    };
    let values = store.get_or_compute(keys, compute).unwrap();
    assert!(values.iter().zip(keys).all(|(value, key)| *value == int(*key)));
}

fn in_threads<const N: usize>(runs: [Box<dyn FnOnce() + Send>; N]) {
    runs.map(thread::spawn).into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn each_key_is_computed_once() {
    check(300, || {
        let store = open(&MemoryStorage::new(), Options::new());
        let computed = Arc::new(AtomicUsize::new(0));
        in_threads([&[1, 2][..], &[2, 3, 1], &[3, 2]].map(|keys: &[u64]| -> Box<dyn FnOnce() + Send> {
            let (store, computed, keys) = (store.clone(), Arc::clone(&computed), keys.to_vec());
            Box::new(move || ask(&store, &keys, &computed))
        }));
        assert_eq!(computed.load(Ordering::Relaxed), 3);
        store.close().unwrap();
    });
}

#[test]
fn a_computation_that_fails_leaves_its_keys_to_the_others() {
    check(300, || {
        let store = open(&MemoryStorage::new(), Options::new());
        let computed = Arc::new(AtomicUsize::new(0));
        let failing = {
            let store = store.clone();
            move || {
                // Finds the key, or fails.
                let failed = store.get_or_compute(&[1_u64, 2], |_| Err(Error::compute("no memory")));
                assert!(matches!(failed, Ok(_) | Err(Error::Compute { .. })));
            }
        };
        let asking = {
            let (store, computed) = (store.clone(), Arc::clone(&computed));
            move || ask(&store, &[2, 1], &computed)
        };
        in_threads([Box::new(failing), Box::new(asking.clone()), Box::new(asking)]);
        assert_eq!(computed.load(Ordering::Relaxed), 2);
        store.close().unwrap();
    });
}

#[test]
fn computations_that_need_each_other_end() {
    check(300, || {
        let store = open(&MemoryStorage::new(), Options::new());
        let nested = |own: u64, other: u64| -> Box<dyn FnOnce() + Send> {
            let store = store.clone();
            Box::new(move || {
                let inner = || -> Result<Value> {
                    let found = store.get_or_compute(&[other], |_| Ok(vec![int(other)]))?;
                    assert_eq!(found, [int(other)]);
                    Ok(int(own))
                };
                assert_eq!(store.get_or_compute(&[own], |_| Ok(vec![inner()?])).unwrap(), [int(own)]);
            })
        };
        in_threads([nested(1, 2), nested(2, 1), nested(2, 3)]);
        store.close().unwrap();
    });
}

#[test]
fn handles_of_several_lanes_compute_each_key_once() {
    check(60, || {
        let storage = MemoryStorage::new();
        let stores = [0, 1].map(|lane| open(&storage, Options::new().lane(Lane::Number(lane))));
        let computed = Arc::new(AtomicUsize::new(0));
        in_threads([0, 1].map(|at: usize| -> Box<dyn FnOnce() + Send> {
            let (store, computed) = (stores[at].clone(), Arc::clone(&computed));
            Box::new(move || ask(&store, if at == 0 { &[1, 2] } else { &[2, 1] }, &computed))
        }));
        assert_eq!(computed.load(Ordering::Relaxed), 2);
        stores.iter().for_each(|store| store.close().unwrap());
    });
}

#[test]
fn one_of_several_threads_puts_an_absent_key() {
    check(200, || {
        let store = open(&MemoryStorage::new(), Options::new().flush_every(1, 1 << 20));
        let written = Arc::new(AtomicUsize::new(0));
        in_threads([1, 2].map(|number: u64| -> Box<dyn FnOnce() + Send> {
            let (store, written) = (store.clone(), Arc::clone(&written));
            Box::new(move || {
                if store.put_if_absent(1_u64, int(number)).unwrap() {
                    written.fetch_add(number as usize, Ordering::Relaxed);
                }
            })
        }));
        assert_eq!(store.get(1_u64).unwrap(), Some(int(written.load(Ordering::Relaxed) as u64)));
        store.close().unwrap();
    });
}
