//! A whole store in memory: puts, gets and flushes, concurrent with its writer, sealing and merging threads.
//!
//! Mutations that these checks detect, in addition to those of the others: a flush that finds the lane held and wakes
//! no thread; draining the queue before the lane is locked; clearing the memtable while rows are inserted; pushing a
//! batch before its thread may insert the rows; and, as in all debug builds, acquiring locks out of order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use shuttle::thread;

use crate::engine::model::check;
use crate::engine::options::{Options, ValueCacheFill};
use crate::engine::store::Store;
use crate::error::Error;
use crate::io::fault::FaultStorage;
use crate::io::memory::MemoryStorage;
use crate::io::{Durability, Storage};
use crate::value::Value;

/// A key that is overwritten repeatedly, with increasing values.
struct Counter {
    store: Store,
    key: u64,
    /// The value of the last put that returned.
    put: AtomicI64,
}

impl Counter {
    fn put(&self) {
        let value = self.put.load(Ordering::Relaxed) + 1;
        self.store.put(self.key, Value::Int(value)).unwrap();
        self.put.store(value, Ordering::Relaxed);
        self.get();
    }

    /// Checks that the value is that of the last put that returned, or newer.
    fn get(&self) {
        let least = self.put.load(Ordering::Relaxed);
        let found = self.store.get(self.key).unwrap().and_then(|value| value.as_int());
        assert!(found.is_some_and(|found| found >= least), "{found:?}, and {least} was put");
    }
}

pub(super) fn open(storage: &MemoryStorage, options: Options) -> Store {
    open_on(Arc::new(storage.clone()), options)
}

/// Opens a store whose clock stands still.
fn open_on(storage: Arc<dyn Storage>, options: Options) -> Store {
    let never = Duration::from_secs(3600);
    let options = options.clock(|| 1).hash_seed(1).refresh_interval(never).flush_interval(never);
    options.open_on(storage).unwrap()
}

fn counter(options: Options) -> Arc<Counter> {
    let counter = Counter { store: open(&MemoryStorage::new(), options), key: 1, put: AtomicI64::new(0) };
    counter.put();
    Arc::new(counter)
}

/// Puts `puts` times while others read and flush.
fn put_and_get(counter: &Arc<Counter>, puts: usize, readers: usize) {
    let readers: Vec<_> = (0..readers)
        .map(|_| {
            let counter = Arc::clone(counter);
            thread::spawn(move || {
                counter.get();
                counter.store.flush_with(Durability::Buffered).unwrap();
                counter.get();
            })
        })
        .collect();
    (0..puts).for_each(|_| counter.put());
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    counter.get();
    assert_eq!(counter.store.len().unwrap(), 1);
    counter.store.close().unwrap();
    counter.get();
}

/// Each batch is written on the caller's thread.
pub(super) fn synchronous() -> Options {
    Options::new().synchronous(true).flush_every(1, 1 << 20)
}

#[test]
fn a_row_is_found_while_it_moves_from_the_memtable_to_a_run() {
    check(100, || put_and_get(&counter(synchronous().memtable_keys(1)), 2, 2));
}

#[test]
fn a_row_is_found_while_all_threads_of_a_store_move_it() {
    check(100, || put_and_get(&counter(Options::new().flush_every(1, 1 << 20).segment_rows(1).memtable_keys(1)), 3, 1));
}

#[test]
fn a_cached_value_is_not_older_than_the_last_put() {
    for fill in [ValueCacheFill::OnWrite, ValueCacheFill::OnReadAndWrite] {
        check(60, move || {
            put_and_get(
                &counter(synchronous().memtable_keys(1).value_cache_bytes(1 << 10).value_cache_fill(fill)),
                2,
                2,
            )
        });
    }
}

#[test]
fn of_two_puts_of_a_key_one_stays_the_newer_one() {
    check(150, || {
        let storage = MemoryStorage::new();
        let store = open(&storage, Options::new().flush_every(1, 1 << 20));
        let puts = [1, 2].map(|value| {
            let store = store.clone();
            thread::spawn(move || {
                store.put(1_u64, Value::Int(value)).unwrap();
                store.flush_with(Durability::Buffered).unwrap();
            })
        });
        puts.into_iter().for_each(|put| put.join().unwrap());
        let newest = store.get(1_u64).unwrap();
        store.close().unwrap();
        assert_eq!(open(&storage, Options::new()).get(1_u64).unwrap(), newest);
    });
}

#[test]
fn rows_are_written_in_the_order_of_puts_whichever_thread_writes() {
    check(300, || {
        let storage = MemoryStorage::new();
        let store = open(&storage, Options::new().flush_every(1, 1 << 20));
        (1..=3).for_each(|value| store.put(1_u64, Value::Int(value)).unwrap());
        // This thread may write the batches that the writer thread has not begun.
        store.flush_with(Durability::Buffered).unwrap();
        store.close().unwrap();
        assert_eq!(open(&storage, Options::new()).get(1_u64).unwrap(), Some(Value::Int(3)));
    });
}

#[test]
fn what_was_flushed_is_there_after_a_power_failure() {
    check(100, || {
        let storage = MemoryStorage::new();
        let store = open(&storage, Options::new().flush_every(2, 1 << 20));
        let puts: Vec<_> = (0..2_u64)
            .map(|thread| {
                let (store, storage) = (store.clone(), storage.clone());
                thread::spawn(move || {
                    let key = |put| 10 * thread + put;
                    let mut flushed = Vec::new();
                    for put in 0..2 {
                        store.put(key(put), Value::Int(1)).unwrap();
                        store.flush_with(Durability::SyncData).unwrap();
                        flushed.push((key(put), storage.power_loss()));
                    }
                    flushed
                })
            })
            .collect();
        let flushed: Vec<_> = puts.into_iter().flat_map(|put| put.join().unwrap()).collect();
        store.close().unwrap();
        for (key, left) in flushed {
            assert!(open(&left, Options::new()).contains(key).unwrap(), "{key}");
        }
    });
}

#[test]
fn a_disk_that_fails_ends_puts_and_flushes() {
    check(100, || {
        let storage = FaultStorage::new(Arc::new(MemoryStorage::new()));
        let faults = storage.faults();
        let store = open_on(Arc::new(storage), Options::new().flush_every(1, 1 << 20).buffer_bytes(1));
        let puts: Vec<_> = (0..2_u64)
            .map(|key| {
                let store = store.clone();
                thread::spawn(move || {
                    let put = |_| store.put(key, Value::Int(1)).and_then(|()| store.flush());
                    let ended = (0..2).try_for_each(put);
                    assert!(matches!(ended, Ok(()) | Err(Error::Poisoned { .. })), "{ended:?}");
                })
            })
            .collect();
        faults.fail_after_operations(1);
        puts.into_iter().for_each(|put| put.join().unwrap());
        assert!(matches!(store.close(), Err(Error::Poisoned { .. })));
    });
}
