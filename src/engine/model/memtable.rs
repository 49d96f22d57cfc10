//! Memtable and version: lookups find rows while they move from the memtable to the version.
//!
//! Mutations that these checks detect: pruning the memtable before the run is published; loading the version before the
//! memtable is read; losing one of two concurrent changes of the version; unlocking a shard between the read and the
//! write of pruning; not looking up again when a batch is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use shuttle::thread;

use crate::engine::follow::refresh;
use crate::engine::lookup::find::find;
use crate::engine::lookup::query::Query;
use crate::engine::model::check;
use crate::engine::model::store::{open, synchronous};
use crate::engine::open::open_reader;
use crate::engine::options::{Compaction, Options};
use crate::engine::runs::build::memory_run;
use crate::engine::runs::publish::publish_run;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::index::entries::EntryTable;
use crate::io::Storage;
use crate::io::memory::MemoryStorage;
use crate::key::KeyRef;
use crate::names::{self, SEGMENTS};
use crate::segment::reader::Segment;
use crate::value::Value;

/// The second key is put twice.
const PUTS: [u64; 3] = [1, 2, 2];

/// A store of two segments: one with the first two puts, one with the third.
fn two_segments() -> MemoryStorage {
    let storage = MemoryStorage::new();
    for puts in [&PUTS[..2], &PUTS[2..]] {
        let store = open(&storage, synchronous());
        puts.iter().for_each(|key| store.put(*key, Value::Int(1)).unwrap());
        store.close().unwrap();
    }
    storage
}

/// Checks that both keys are found, and the newer row of the second.
fn look_up(state: &State) {
    let query = |key| Query { key: KeyRef::U64(key), hash: state.hasher().hash_key(KeyRef::U64(key)) };
    find(state, &[1, 2].map(query), |located| {
        let found: Vec<_> = located.rows.iter().map(|row| row.as_ref().map(|row| row.version().timestamp)).collect();
        assert!(found[0].is_some() && found[1] > found[0], "{found:?}");
    });
}

fn publish(state: &State, segments: &[Arc<Segment>], absorbed: &[Arc<LoadedRun>]) -> Arc<LoadedRun> {
    let run = Arc::new(memory_run(state, segments.to_vec(), false).unwrap());
    publish_run(state, &run, absorbed);
    run
}

#[test]
fn rows_are_found_while_runs_are_published() {
    check(200, || {
        let (state, _) = open_reader(Arc::new(two_segments()), Options::new()).unwrap();
        let segments = state.versions().load().uncovered();
        assert_eq!((segments.len(), state.memtable().is_empty()), (2, false));
        let runs = [0, 1].map(|at| {
            let (state, segments) = (Arc::clone(&state), segments.clone());
            thread::spawn(move || publish(&state, &segments[at..=at], &[]))
        });
        let reader = {
            let state = Arc::clone(&state);
            thread::spawn(move || (0..3).for_each(|_| look_up(&state)))
        };
        look_up(&state);
        let runs = runs.map(|run| run.join().unwrap());
        assert_eq!((state.versions().load().runs().len(), state.memtable().is_empty()), (2, true));
        publish(&state, &segments, &runs);
        reader.join().unwrap();
        look_up(&state);
    });
}

/// The segments of a storage, by path.
fn segments_of(storage: &MemoryStorage) -> BTreeMap<PathBuf, Bytes> {
    let names =
        storage.list(Path::new(SEGMENTS)).unwrap().into_iter().map(|entry| Path::new(SEGMENTS).join(entry.name));
    names.map(|path| (path.clone(), storage.read(&path).unwrap())).collect()
}

#[test]
fn rows_are_found_while_compaction_replaces_their_segments() {
    for (in_run, publishing, schedules) in [(false, false, 1200), (true, false, 100), (false, true, 100)] {
        // Made once: the schedules should differ only in what happens while a reader looks.
        let compacted = Arc::new(OnceLock::new());
        check(schedules, move || {
            let (storage, compacted) = compacted.get_or_init(|| {
                let before = two_segments();
                let after = before.power_loss();
                let store = open(&after, synchronous());
                assert_eq!(store.compact(&Compaction::new()).unwrap().rows_dropped, 1);
                store.close().unwrap();
                (before, segments_of(&after))
            });
            let storage = storage.power_loss();
            let (state, _) = open_reader(Arc::new(storage.clone()), Options::new()).unwrap();
            let segments = state.versions().load().uncovered();
            if in_run {
                publish(&state, &segments, &[]);
            }
            compacted.iter().for_each(|(path, bytes)| storage.write(path, bytes).unwrap());
            segments.iter().for_each(|segment| storage.remove(&names::sealed(segment.id)).unwrap());
            let reader = {
                let state = Arc::clone(&state);
                thread::spawn(move || (0..2).for_each(|_| look_up(&state)))
            };
            // A run of the segments before compaction, which may be finished at any time.
            let publisher = publishing.then(|| {
                let state = Arc::clone(&state);
                thread::spawn(move || drop(publish(&state, &segments, &[])))
            });
            refresh(&state).unwrap();
            reader.join().unwrap();
            publisher.into_iter().for_each(|publisher| publisher.join().unwrap());
            look_up(&state);
            assert_eq!(state.versions().load().segments().len(), 1);
        });
    }
}

#[test]
fn entries_that_stay_or_come_are_found_while_others_are_pruned() {
    let hashes: Vec<u64> = (1..=24_u64).map(|number| number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
    check(200, move || {
        let table = Arc::new(EntryTable::new(1000));
        table.insert_new(&hashes[..8], 0);
        table.insert_new(&hashes[8..16], 1);
        let rows = |table: &EntryTable, hash: u64| {
            let mut rows = 0;
            table.find(hash, &mut |_| rows += 1);
            rows
        };
        let prune = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.prune(|entry| entry.batch != 0))
        };
        let insert = {
            let (table, hashes) = (Arc::clone(&table), hashes.clone());
            thread::spawn(move || drop(table.insert_new(&hashes[16..], 2)))
        };
        hashes[8..16].iter().for_each(|hash| assert_eq!(rows(&table, *hash), 1, "it stays"));
        prune.join().unwrap();
        insert.join().unwrap();
        assert_eq!(table.len(), 16);
        assert!(hashes[8..].iter().all(|hash| rows(&table, *hash) == 1));
    });
}
