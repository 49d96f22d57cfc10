//! The value cache: it serves no value that a put has superseded, and stays within its bound.
//!
//! Mutations that these checks detect: loading the epoch after the lookup; not comparing it; comparing it before the
//! shard is locked; a put that supersedes before its rows are inserted; making room after an entry was inserted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::thread;

use crate::engine::admit::admit_put;
use crate::engine::model::check;
use crate::engine::options::{Options, ValueCachePolicy};
use crate::engine::read::get::get_batch;
use crate::engine::rows::row::{PendingBatch, Source};
use crate::engine::state::State;
use crate::engine::state::value_cache::ValueCache;
use crate::engine::write::schemas::Schemas;
use crate::engine::write::testing::batch;
use crate::io::memory::MemoryStorage;
use crate::key::KeyKind;
use crate::segment::writer::StoreIdentity;
use crate::value::Value;

const KEY: u64 = 1;

/// A store without a writer. The n-th put of its one key has the value n.
struct Shared {
    state: State,
    /// How many puts have returned.
    put: AtomicUsize,
}

impl Shared {
    fn new() -> Self {
        let options = Options::new().value_cache_bytes(1 << 10);
        let state = State::new(Arc::new(MemoryStorage::new()), options, StoreIdentity::new(0, Some(0)), false).unwrap();
        state.identity().fix_key_kind(KeyKind::U64).unwrap();
        Self { state, put: AtomicUsize::new(0) }
    }

    /// As `Puts::put`.
    fn put(&self, pending: &Arc<PendingBatch>) {
        let source = Source::Pending(Arc::clone(pending));
        let inserting = self.state.memtable().lock_inserts();
        let id = self.state.memtable().add_batch(source.clone(), 1).unwrap();
        admit_put(&self.state, &inserting, &pending.hashes, &pending.columns, (id, &source));
        drop(inserting);
        self.put.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) {
        let puts = self.put.load(Ordering::Relaxed) as i64;
        let value = get_batch(&self.state, (&[KEY][..]).into()).unwrap().pop().unwrap().unwrap();
        let found = value.and_then(|value| value.as_int());
        assert!(found >= Some(puts), "{found:?} after {puts} puts");
    }
}

#[test]
fn a_value_that_was_superseded_does_not_stay() {
    let mut schemas = Schemas::default();
    let batches = [1, 2, 3].map(|value| batch(&mut schemas, 0, &[KEY], &Value::Int(value)).1);
    check(1000, move || {
        let shared = Arc::new(Shared::new());
        shared.put(&batches[0]);
        let readers = [0, 1].map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (0..2).for_each(|_| shared.get()))
        });
        for pending in &batches[1..] {
            shared.put(pending);
            shared.get();
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        shared.get();
    });
}

/// Room for two of three values.
const BYTES: usize = 512;

fn check_bound(cache: &ValueCache) {
    let stats = cache.stats().unwrap();
    assert!(stats.bytes <= BYTES && stats.entries <= 2, "{stats:?}");
}

#[test]
fn the_bound_holds_at_every_moment() {
    for policy in [ValueCachePolicy::Lru, ValueCachePolicy::StopWhenFull] {
        check(300, move || {
            let cache = Arc::new(ValueCache::new(&Options::new().value_cache_bytes(BYTES).value_cache_policy(policy)));
            let threads = [0_u8, 1].map(|thread| {
                let cache = Arc::clone(&cache);
                thread::spawn(move || {
                    for key in [thread, 1 - thread, 2] {
                        let epoch = cache.epoch();
                        cache.keep_read(u64::from(key), &[key], &Value::Int(0), epoch);
                        cache.supersede([(u64::from(key), &[key][..])].into_iter());
                        cache.keep_put(u64::from(key), &[key], &Value::Int(1));
                        check_bound(&cache);
                    }
                })
            });
            (0..4).for_each(|_| check_bound(&cache));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            check_bound(&cache);
        });
    }
}
