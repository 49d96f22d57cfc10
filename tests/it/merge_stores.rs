//! Merging stores: the newest row of each key wins whatever the order, and a merge that is stopped anywhere loses
//! nothing and can be completed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::{FaultStorage, MemoryStorage, Storage};
use tensorcask::{
    Codec, Compaction, Error, Key, Lane, Merge, MergeReport, Options, Order, Reader, Recovery, Result, Store, Value,
};

use crate::compaction::names;
use crate::compaction_stops::killed;

thread_local! {
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

fn now() -> u64 {
    CLOCK.get()
}

/// The value of each key and when it was put; `None` if it was deleted.
type Model = BTreeMap<String, (u64, Option<Value>)>;

fn options() -> Options {
    Options::new().synchronous(true).segment_rows(16).memtable_keys(40).clock(now)
}

fn as_storage(memory: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(memory.clone())
}

fn open(storage: &MemoryStorage) -> Store {
    options().open_on(as_storage(storage)).unwrap()
}

fn reader(storage: &MemoryStorage) -> Reader {
    options().open_reader_on(as_storage(storage)).unwrap()
}

fn value(number: u64, at: u64) -> Value {
    match number % 3 {
        0 => Value::Int((number * 1000 + at) as i64),
        1 => Value::Str(format!("{number} at {at}")),
        _ => [number as i64, at as i64].into_iter().collect(),
    }
}

/// Puts the values of `numbers`, or deletes them, at time `at`.
fn put(store: &Store, model: &mut Model, at: u64, numbers: impl Iterator<Item = u64>, delete: bool) {
    // Each batch of a structure gets a timestamp of its own.
    CLOCK.set(at * 1000);
    let numbers: Vec<u64> = numbers.collect();
    let keys: Vec<String> = numbers.iter().map(|number| format!("k{number:03}")).collect();
    if delete {
        store.delete_batch(&keys).unwrap();
    } else {
        let values: Vec<Value> = numbers.iter().map(|number| value(*number, at)).collect();
        store.put_batch(&keys, &values).unwrap();
    }
    store.flush().unwrap();
    for (key, number) in keys.into_iter().zip(numbers) {
        model.insert(key, (at, (!delete).then(|| value(number, at))));
    }
}

/// Adds what is newer in `other`.
fn add(model: &mut Model, other: &Model) {
    for (key, row) in other {
        let known = model.entry(key.clone()).or_insert_with(|| row.clone());
        if known.0 < row.0 {
            *known = row.clone();
        }
    }
}

fn check(reader: &Reader, model: &Model) {
    for (key, (at, value)) in model {
        assert_eq!(&reader.get(key.as_str()).unwrap(), value, "{key} of {at}");
    }
    let live: Vec<&String> = model.iter().filter(|(_, row)| row.1.is_some()).map(|(key, _)| key).collect();
    assert_eq!(reader.len().unwrap(), live.len() as u64);
    assert!(reader.range::<&str>(..).map(|key| key.unwrap().to_string()).eq(live.into_iter().cloned()));
    assert!(reader.verify(&mut |_, _| {}).unwrap().is_clean());
}

fn merge(store: &Store, sources: &[Reader], options: &Merge) -> Result<MergeReport> {
    store.merge_from(sources, options, &mut |_, _| {})
}

/// Three stores with overlapping keys, of which the second still has a writer; the first is compacted, and the third sorted.
fn stores() -> Vec<(MemoryStorage, Model)> {
    let mut stores = Vec::new();
    for number in 0..3_u64 {
        let (storage, mut model) = (MemoryStorage::new(), Model::new());
        let codec = if number == 1 { Codec::Zstd { level: 1 } } else { Codec::None };
        let store = options().codec(codec).open_on(as_storage(&storage)).unwrap();
        put(&store, &mut model, 100 + number, number * 20..number * 20 + 60, false);
        put(&store, &mut model, 200 - number, (0..100).step_by(7 + number as usize), false);
        match number {
            0 => drop(store.compact(&Compaction::new()).unwrap()),
            2 => drop(store.compact(&Compaction::new().sort(Order::Keys)).unwrap()),
            _ => {}
        }
        put(&store, &mut model, 300 + number, (number * 20..number * 20 + 60).step_by(5), true);
        put(&store, &mut model, 400 - number, (number * 10..100).step_by(11), false);
        if number == 1 {
            std::mem::forget(store);
        } else {
            store.close().unwrap();
        }
        stores.push((killed(&storage), model));
    }
    stores
}

#[test]
fn the_newest_row_wins_in_every_order() {
    let stores = stores();
    let mut all = Model::new();
    stores.iter().for_each(|(_, model)| add(&mut all, model));
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        for together in [false, true] {
            let target = killed(&stores[order[0]].0);
            CLOCK.set(50);
            let store = open(&target);
            let sources: Vec<Reader> = order[1..].iter().map(|source| reader(&stores[*source].0)).collect();
            let mut merged = 0;
            if together {
                let dry = merge(&store, &sources, &Merge::new().dry_run(true)).unwrap();
                check(store.reader(), &stores[order[0]].1);
                let report = merge(&store, &sources, &Merge::new()).unwrap();
                assert_eq!((dry.rows_merged, dry.conflicts), (report.rows_merged, report.conflicts));
                assert_eq!(report.conflicting_keys.len() as u64, report.conflicts);
                assert!(report.segments_written > 0 && report.rows_replaced > 0);
                merged += report.rows_merged;
            } else {
                sources.iter().for_each(|source| {
                    merged += merge(&store, std::slice::from_ref(source), &Merge::new()).unwrap().rows_merged
                });
            }
            assert!(merged > 20);
            check(store.reader(), &all);
            let again = merge(&store, &sources, &Merge::new()).unwrap();
            assert_eq!((again.rows_merged, again.tombstones_merged), (0, 0), "nothing is copied twice");
            // What is put now is newer, although this clock is behind.
            let mut newer = all.clone();
            put(&store, &mut newer, 60, 0..30, false);
            check(store.reader(), &newer);
            merge(&store, &sources, &Merge::new()).unwrap();
            check(store.reader(), &newer);
            store.compact(&Compaction::new()).unwrap();
            check(store.reader(), &newer);
            store.close().unwrap();
            let strict = options().recovery(Recovery::Strict).open_on(as_storage(&target)).unwrap();
            assert!(strict.open_report().is_clean(), "{:?}", strict.open_report());
            check(strict.reader(), &newer);
        }
    }
}

#[test]
fn a_merge_that_is_stopped_anywhere_loses_nothing_and_is_completed_by_the_next() {
    let stores = stores();
    let (base, before) = &stores[0];
    let sources: Vec<Reader> = stores[1..].iter().map(|(storage, _)| reader(storage)).collect();
    let mut all = before.clone();
    stores.iter().for_each(|(_, model)| add(&mut all, model));
    CLOCK.set(50);
    let rows = |storage: &MemoryStorage| reader(storage).stats().unwrap().rows_sealed;
    let complete = killed(base);
    let store = open(&complete);
    merge(&store, &sources, &Merge::new()).unwrap();
    store.close().unwrap();
    for operations in 0.. {
        let memory = killed(base);
        let faults = FaultStorage::new(as_storage(&memory));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        faults.faults().fail_after_operations(operations);
        let merged = merge(&store, &sources, &Merge::new());
        let failed = merged.is_err();
        let (kill, power) = (killed(&memory), memory.power_loss());
        // The handle that failed shows a mix of both, and the same as others.
        for (key, (_, value)) in &all {
            let found = store.get(key.as_str()).unwrap();
            assert!(found == *value || before.get(key).is_none_or(|(_, old)| found == *old), "{key}: {found:?}");
        }
        std::mem::forget(store);
        for (copy, what) in [(kill, "killed"), (power, "power lost")] {
            let store = open(&copy);
            let report = store.open_report();
            assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{what} {operations}: {report:?}");
            for (key, (_, value)) in &all {
                let found = store.get(key.as_str()).unwrap();
                assert!(
                    found == *value || before.get(key).map_or(found.is_none(), |(_, old)| found == *old),
                    "{what}: {key}"
                );
            }
            if !failed {
                check(store.reader(), &all);
            }
            merge(&store, &sources, &Merge::new()).unwrap();
            check(store.reader(), &all);
            store.close().unwrap();
            assert_eq!(rows(&copy), rows(&complete), "{what} after {operations}: rows are copied once");
            let strict = options().recovery(Recovery::Strict).open_on(as_storage(&copy)).unwrap();
            check(strict.reader(), &all);
        }
        if !failed {
            assert!(operations > 20, "{operations}");
            break;
        }
    }
    for (source, (storage, model)) in sources.iter().zip(&stores[1..]) {
        check(source, model);
        check(open(&killed(storage)).reader(), model);
    }
}

#[test]
fn a_full_disk_is_an_error_and_old_files_stay() {
    let stores = stores();
    let source = [reader(&stores[1].0)];
    let mut all = stores[0].1.clone();
    add(&mut all, &stores[1].1);
    let mut fits = false;
    for bytes in (0..200).map(|step| step * 700) {
        let memory = killed(&stores[0].0);
        let read = |name: &String| memory.read(Path::new("segments").join(name)).unwrap();
        let before: Vec<_> = names(&memory, "segments").iter().map(|name| (name.clone(), read(name))).collect();
        let faults = FaultStorage::new(as_storage(&memory));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        faults.faults().fail_after_bytes(bytes);
        let merged = merge(&store, &source, &Merge::new());
        if let Err(error) = &merged {
            assert!(error.to_string().contains("free space"), "{error}");
        }
        faults.faults().clear();
        drop(store);
        assert!(before.iter().all(|(name, bytes)| read(name) == *bytes), "old files are whole");
        let store = open(&memory);
        assert!(store.open_report().quarantined.is_empty() && store.open_report().missing.is_empty());
        merge(&store, &source, &Merge::new()).unwrap();
        check(store.reader(), &all);
        fits = merged.is_ok();
        if fits {
            break;
        }
    }
    assert!(fits);
}

#[test]
fn stores_that_cannot_be_merged_are_refused_and_nothing_is_changed() {
    let stores = stores();
    let numbers = MemoryStorage::new();
    let store = open(&numbers);
    store.put(7_u64, Value::Int(7)).unwrap();
    store.close().unwrap();
    let files = |storage: &MemoryStorage| ["segments", "runs"].map(|folder| names(storage, folder));
    let target = killed(&stores[0].0);
    let store = open(&target);
    let before = files(&target);
    let refused = merge(&store, &[reader(&stores[1].0), reader(&numbers)], &Merge::new()).unwrap_err();
    assert!(matches!(refused, Error::KeyKind { expected: "str", found: "u64" }), "{refused}");
    let conflict = merge(&store, &[reader(&stores[1].0)], &Merge::new().fail_on_conflict(true)).unwrap_err();
    let Error::Conflict { keys, first } = &conflict else { panic!("{conflict}") };
    assert!(*keys > 10 && first.starts_with('k'), "{conflict}");
    // Two new stores of different kinds, into an empty one.
    let empty = MemoryStorage::new();
    let fresh = open(&empty);
    let refused = merge(&fresh, &[reader(&stores[1].0), reader(&numbers)], &Merge::new()).unwrap_err();
    assert!(matches!(refused, Error::KeyKind { .. }), "{refused}");
    assert_eq!(fresh.key_kind(), None);
    merge(&fresh, &[reader(&numbers)], &Merge::new()).unwrap();
    assert_eq!(
        (fresh.key_kind().map(|kind| kind.name()), fresh.get(7_u64).unwrap()),
        (Some("u64"), Some(Value::Int(7)))
    );

    let damaged = killed(&stores[2].0);
    let name = Path::new("segments").join(&names(&damaged, "segments")[0]);
    damaged.remove(&name).unwrap();
    let refused = merge(&store, &[reader(&damaged)], &Merge::new()).unwrap_err();
    assert!(refused.is_corrupt(), "{refused}");
    assert_eq!(files(&target), before);
    merge(&store, &[reader(&damaged)], &Merge::new().damaged(true)).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let own = Store::open(dir.path(), "m").unwrap();
    own.put("a", Value::Int(1)).unwrap();
    let itself = Reader::open(dir.path(), "m").unwrap();
    assert!(matches!(merge(&own, &[itself], &Merge::new()), Err(Error::Invalid { .. })));
}

#[test]
fn damaged_rows_of_a_source_are_not_copied() {
    let (source, mut model) = (MemoryStorage::new(), Model::new());
    let store = open(&source);
    put(&store, &mut model, 100, (0..90).filter(|number| number % 3 == 1), false);
    store.close().unwrap();
    let bytes = source.read("segments/0000-0000000001.arrow").unwrap();
    let at = bytes.windows(8).position(|window| window == b"4 at 100").unwrap();
    source.corrupt("segments/0000-0000000001.arrow", at as u64, 1).unwrap();
    let store = open(&MemoryStorage::new());
    let error = merge(&store, &[reader(&source)], &Merge::new()).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    let report = merge(&store, &[reader(&source)], &Merge::new().damaged(true)).unwrap();
    assert!((1..=2).contains(&report.rows_damaged), "{report:?}");
    assert_eq!(store.len().unwrap(), 30 - report.rows_damaged);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn copies_of_one_store_that_were_both_written_to_are_merged() {
    let (base, mut model) = (MemoryStorage::new(), Model::new());
    let store = open(&base);
    put(&store, &mut model, 100, 0..40, false);
    store.close().unwrap();
    let target = MemoryStorage::new();
    reader(&base).backup_on(&as_storage(&target), &tensorcask::Backup::new()).unwrap();
    let (mut one, mut two) = (model.clone(), model.clone());
    for (storage, model, at) in [(&base, &mut one, 200), (&target, &mut two, 300)] {
        let store = open(storage);
        put(&store, model, at, at / 10..at / 10 + 30, false);
        put(&store, model, at + 5, 0..at / 50, true);
        store.close().unwrap();
    }
    add(&mut one, &two);
    for lane in [0, 1] {
        let copy = killed(&base);
        let store = options().lane(Lane::Number(lane)).open_on(as_storage(&copy)).unwrap();
        let report = merge(&store, &[reader(&target)], &Merge::new()).unwrap();
        assert!(report.conflicts > 0 && report.rows_kept > 0);
        let keys: Vec<Key> = report.conflicting_keys;
        assert!(keys.iter().all(|key| key.to_string().starts_with('k')));
        check(store.reader(), &one);
        store.close().unwrap();
    }
}

#[test]
fn readers_and_writers_of_other_lanes_go_on_meanwhile() {
    let stores = stores();
    let mut all = stores[0].1.clone();
    stores.iter().for_each(|(_, model)| add(&mut all, model));
    let target = killed(&stores[0].0);
    CLOCK.set(50);
    let store = open(&target);
    let watcher = reader(&target);
    let other = options().lane(Lane::Number(5)).open_on(as_storage(&target)).unwrap();
    let sources: Vec<Reader> = stores[1..].iter().map(|(storage, _)| reader(storage)).collect();
    let (before, merged) = (stores[0].1.clone(), all.clone());
    let mut step = 0;
    let progress = &mut |_: u64, _: u64| {
        step += 1;
        watcher.refresh().unwrap();
        for (key, (_, value)) in merged.iter().skip(step % 7).step_by(7) {
            let found = watcher.get(key.as_str()).unwrap();
            let is_old = before.get(key).map_or(found.is_none(), |(_, old)| found == *old);
            let is_put = all.get(key).is_some_and(|(_, new)| found == *new);
            assert!(is_old || is_put || found == *value, "{key}: {found:?}");
        }
        if step % 2 == 0 {
            // Newer than everything that is merged, although this clock is behind. Only keys that exist are deleted.
            let delete = step % 4 == 0;
            let numbers = (step as u64 * 5 % 90)..(step as u64 * 5 % 90) + 3;
            let is_there = |number: &u64| !delete || other.contains(format!("k{number:03}")).unwrap();
            put(&other, &mut all, 60, numbers.filter(is_there), delete);
        }
    };
    store.merge_from(&sources, &Merge::new(), progress).unwrap();
    assert!(step > 8, "{step}");
    other.close().unwrap();
    for reader in [&watcher, store.reader()] {
        reader.refresh().unwrap();
        check(reader, &all);
    }
    store.close().unwrap();
    let strict = options().recovery(Recovery::Strict).open_on(as_storage(&target)).unwrap();
    check(strict.reader(), &all);
}
