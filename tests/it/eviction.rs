//! Eviction: whole segments go, and no older row of their keys comes back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::{FaultStorage, MemoryStorage, Storage};
use tensorcask::{Compaction, Error, Eviction, Lane, Options, Prune, Reader, Recovery, Store, Value};

use crate::compaction_stops::killed;

/// The newest version that was ever put of each key; `None` if it was deleted since.
pub type Newest = BTreeMap<u64, Option<i64>>;

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn options() -> Options {
    Options::new().synchronous(true).segment_rows(24).hash_seed(7).memtable_keys(120)
}

/// Version `version` as a value of one of two structures, which have active segments of their own.
fn value(version: i64) -> Value {
    if version % 2 == 0 { Value::Int(version) } else { Value::from([("version", Value::Int(version))]) }
}

fn version(value: &Value) -> i64 {
    value.as_int().or_else(|| value["version"].as_int()).unwrap()
}

/// Checks every read against the newest versions, and returns the keys that exist.
pub fn check(reader: &Reader, newest: &Newest, what: &str) -> BTreeMap<u64, i64> {
    let mut found = BTreeMap::new();
    for (key, expected) in newest {
        if let Some(value) = reader.get(*key).unwrap_or_else(|error| panic!("{what}: {error:?}")) {
            assert_eq!(Some(version(&value)), *expected, "{what}: key {key} has an older row, or was deleted");
            found.insert(*key, version(&value));
        }
    }
    let keys: Vec<u64> = newest.keys().copied().collect();
    let there = reader.contains_batch(&keys).unwrap();
    assert!(keys.iter().zip(&there).all(|(key, there)| found.contains_key(key) == *there), "{what}");
    assert_eq!(reader.len().unwrap(), found.len() as u64, "{what}: the number of keys");
    let listed: BTreeMap<u64, i64> = reader
        .iter()
        .map(|entry| entry.unwrap_or_else(|error| panic!("{what}: {error:?}")))
        .map(|(key, value)| (key.as_u64().unwrap(), version(&value)))
        .collect();
    assert_eq!(listed, found, "{what}: what is listed");
    found
}

/// A copy without the files that are derived.
fn without_runs(storage: &MemoryStorage) -> MemoryStorage {
    let copy = killed(storage);
    for entry in copy.list(Path::new("runs")).unwrap() {
        copy.remove(&Path::new("runs").join(entry.name)).unwrap();
    }
    copy
}

/// Checks that everybody finds the same: readers of the files as they are, without an index, and after it was read
/// again.
fn check_all(storage: &MemoryStorage, store: &Store, newest: &Newest, what: &str) {
    store.flush().unwrap();
    let found = check(store.reader(), newest, what);
    for (what, copy) in
        [(format!("{what}; killed"), killed(storage)), (format!("{what}; no index"), without_runs(storage))]
    {
        let reader = options().open_reader_on(Arc::new(copy)).unwrap();
        assert!(reader.open_report().quarantined.is_empty(), "{what}: {:?}", reader.open_report());
        assert!(reader.open_report().missing.is_empty(), "{what}: {:?}", reader.open_report());
        assert_eq!(check(&reader, newest, &what), found, "{what}");
    }
}

fn change(store: &Store, random: &mut Random, newest: &mut Newest, next: &mut i64, keys: u64) {
    for _ in 0..=random.below(30) {
        let key = random.below(keys);
        if random.below(5) == 0 {
            store.delete(key).unwrap();
            newest.insert(key, None);
        } else {
            *next += 1;
            store.put(key, value(*next)).unwrap();
            newest.insert(key, Some(*next));
        }
    }
}

fn prune(store: &Store, random: &mut Random) {
    let rows = store.stats().unwrap().rows_sealed;
    let order = if random.below(2) == 0 { Eviction::OldestFirst } else { Eviction::ColdestFirst };
    let report = store.prune(&Prune::new().to_rows(random.below(rows + 1)).order(order)).unwrap();
    assert!(report.reached && report.skipped.is_empty(), "{report:?}");
}

#[test]
fn no_older_row_comes_back() {
    let seeds = std::env::var("TENSORCASK_SEEDS").map_or(12, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let storage = MemoryStorage::new();
        let mut random = Random(seed);
        let options = || {
            let options = options().value_cache_bytes(1 << 16).eviction(Eviction::ColdestFirst);
            // Evicts while rows are in active segments; a prune seals them first.
            options.max_rows((seed % 3 == 0).then_some(64))
        };
        let mut store = options().open_on(Arc::new(storage.clone())).unwrap();
        let follower = Options::new().memtable_keys(50).value_cache_bytes(1 << 16);
        let follower = follower.open_reader_on(Arc::new(storage.clone())).unwrap();
        let (mut newest, mut next) = (Newest::new(), 0);
        for step in 0..30 {
            let what = format!("seed {seed}, step {step}");
            let keys = if seed % 2 == 0 { 60 } else { 1000 };
            change(&store, &mut random, &mut newest, &mut next, keys);
            match random.below(8) {
                0 | 1 => prune(&store, &mut random),
                2 => store.flush().unwrap(),
                3 => drop(store.compact(&Compaction::new()).unwrap()),
                4 => store.merge_index().unwrap(),
                5 | 6 => {
                    if random.below(2) == 0 {
                        store.close().unwrap();
                    }
                    drop(store);
                    if random.below(3) == 0 {
                        for entry in storage.list(Path::new("runs")).unwrap() {
                            storage.remove(&Path::new("runs").join(entry.name)).unwrap();
                        }
                    }
                    let lane = Lane::Number(random.below(3) as u16);
                    store = options().lane(lane).open_on(Arc::new(storage.clone())).unwrap();
                    assert!(store.open_report().is_clean(), "{what}: {:?}", store.open_report());
                }
                _ => {}
            }
            check_all(&storage, &store, &newest, &what);
            follower.refresh().unwrap();
            let follows = check(&follower, &newest, &format!("{what}; follower"));
            assert_eq!(follows, check(store.reader(), &newest, &what), "{what}");
        }
        store.close().unwrap();
        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    }
}

#[test]
fn a_row_in_an_active_segment_does_not_come_back() {
    let storage = MemoryStorage::new();
    let options = Options::new().synchronous(true).max_rows(64);
    let store = options.open_on(Arc::new(storage.clone())).unwrap();
    // The segment of this structure stays active.
    store.put(0_u64, value(1)).unwrap();
    store.flush().unwrap();
    for key in 0..200_u64 {
        store.put(key, value(2)).unwrap();
        store.flush().unwrap();
    }
    assert!(store.stats().unwrap().segments_evicted > 0);
    assert_eq!((store.get(0_u64).unwrap(), store.get(199_u64).unwrap()), (None, Some(value(2))));
    for copy in [killed(&storage), without_runs(&storage)] {
        assert_eq!(Options::new().open_reader_on(Arc::new(copy)).unwrap().get(0_u64).unwrap(), None);
    }
}

/// A closed store of segments in several of which keys have rows, and some of its keys deleted.
fn overwritten() -> (MemoryStorage, Newest) {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut newest = Newest::new();
    for version in 1..=3_i64 {
        for key in (0..90_u64).step_by(version as usize) {
            store.put(key, value(version)).unwrap();
            newest.insert(key, Some(version));
            if key % 12 == 0 {
                store.flush().unwrap();
            }
        }
        store.flush().unwrap();
    }
    for key in (0..90_u64).step_by(7) {
        store.delete(key).unwrap();
        newest.insert(key, None);
    }
    store.close().unwrap();
    (storage, newest)
}

/// Evicts the segments that nobody read: they are in the middle, so older rows of their keys stay.
fn evict_unread(store: &Store) -> tensorcask::Result<tensorcask::PruneReport> {
    for key in (0..90_u64).filter(|key| key % 2 == 1 && key % 3 != 0).cycle().take(3000) {
        store.get(key)?;
    }
    store.prune(&Prune::new().to_rows(100).order(Eviction::ColdestFirst))
}

#[test]
fn rows_that_hide_older_ones_leave_tombstones() {
    let (storage, newest) = overwritten();
    let store = options().eviction(Eviction::ColdestFirst).open_on(Arc::new(storage.clone())).unwrap();
    let before = check(store.reader(), &newest, "before");
    let dry = store.prune(&Prune::new().to_rows(100).dry_run(true)).unwrap();
    assert!(dry.dry_run && dry.segments_evicted > 0 && dry.reached, "{dry:?}");
    assert_eq!(check(store.reader(), &newest, "after a dry run"), before);
    let report = evict_unread(&store).unwrap();
    assert!(report.tombstones_kept > 0 && report.reached, "{report:?}");
    let after = check(store.reader(), &newest, "evicted");
    assert_eq!(before.len() - after.len(), report.keys_evicted as usize);
    let stats = store.stats().unwrap();
    assert_eq!(stats.segments_evicted as usize, report.segments_evicted);
    assert_eq!((stats.rows_evicted, stats.bytes_evicted), (report.rows_evicted, report.bytes_evicted));
    assert_eq!(stats.disk_bytes, stats.segment_bytes + stats.run_bytes + other_bytes(&storage));
    check_all(&storage, &store, &newest, "evicted");
    // Once the older rows are gone too, so are the tombstones.
    store.prune(&Prune::new().to_rows(0)).unwrap();
    assert!(check(store.reader(), &newest, "empty").is_empty());
    assert_eq!(store.stats().unwrap().rows_sealed, store.stats().unwrap().tombstones);
    store.compact(&Compaction::new()).unwrap();
    assert_eq!(store.stats().unwrap().rows_sealed, 0);
}

fn other_bytes(storage: &MemoryStorage) -> u64 {
    let files = ["", "lanes", "quarantine"].into_iter().flat_map(|folder| {
        let files = storage.list(Path::new(folder)).unwrap().into_iter().filter(|entry| entry.kind.is_file());
        files.map(move |entry| Path::new(folder).join(entry.name))
    });
    files.map(|path| storage.len_bytes(&path).unwrap()).sum()
}

#[test]
fn an_eviction_that_stops_at_any_operation_loses_nothing_that_stays() {
    let (storage, newest) = overwritten();
    let rest = {
        let store = options().eviction(Eviction::ColdestFirst).open_on(Arc::new(killed(&storage))).unwrap();
        let before = check(store.reader(), &newest, "before");
        let report = evict_unread(&store).unwrap();
        let after = check(store.reader(), &newest, "after");
        assert!(after.len() < before.len() && !after.is_empty(), "{before:?} {after:?} {report:?}");
        (before, after)
    };
    let mut operations = 0;
    loop {
        let copy = killed(&storage);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().eviction(Eviction::ColdestFirst).open_on(Arc::new(faults.clone())).unwrap();
        let before = faults.faults().operations();
        faults.faults().fail_after_operations(operations);
        let failed = evict_unread(&store);
        let done = faults.faults().operations() - before;
        faults.faults().clear();
        let what = format!("after {operations} operations: {:?}", failed.as_ref().err());
        // Either all of the segments of a step are there, or none.
        let is_either = |found: &BTreeMap<u64, i64>| assert!(*found == rest.0 || *found == rest.1, "{what}: {found:?}");
        is_either(&check(store.reader(), &newest, &what));
        let copies = [("killed", killed(&copy)), ("no index", without_runs(&copy)), ("power lost", copy.power_loss())];
        for (how, left) in copies {
            let what = format!("{what}; {how}");
            is_either(&check(&options().open_reader_on(Arc::new(left.clone())).unwrap(), &newest, &what));
            let store = options().eviction(Eviction::ColdestFirst).open_on(Arc::new(left.clone())).unwrap();
            let report = store.open_report();
            assert!(report.is_clean() || how == "no index", "{what}: {report:?}");
            is_either(&check(store.reader(), &newest, &what));
            let again = evict_unread(&store).unwrap();
            assert!(again.reached, "{what}: {again:?}");
            let after = check(store.reader(), &newest, &what);
            assert!(after.keys().all(|key| rest.0.contains_key(key)), "{what}");
            store.close().unwrap();
            check(&options().open_reader_on(Arc::new(left)).unwrap(), &newest, &what);
        }
        // The handle goes on.
        if store.put(1_u64, value(9)).and_then(|()| store.flush()).is_ok() {
            let mut newest = newest.clone();
            newest.insert(1, Some(9));
            store.prune(&Prune::new().to_rows(40)).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            check(store.reader(), &newest, &what);
        }
        drop(store);
        if done < operations {
            return;
        }
        operations += 1;
    }
}

#[test]
fn evicting_the_oldest_segments_leaves_no_rows_and_one_small_file() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let sizes = || store.stats().unwrap();
    for round in 0..20_u64 {
        let keys: Vec<u64> = (round * 48..round * 48 + 48).collect();
        store.put_rows(&keys, &[64], &vec![round as f32; 48 * 64]).unwrap();
        let report = store.prune(&Prune::new().to_rows(96)).unwrap();
        assert_eq!((report.tombstones_kept, report.rows_after.min(96)), (0, report.rows_after), "{report:?}");
        assert_eq!(store.len().unwrap(), report.rows_after);
    }
    assert_eq!((sizes().segments, sizes().tombstones), (3, 0), "two of 48 rows, and what evictions left");
    assert!(sizes().disk_bytes < 100_000, "{:?}", sizes());
    store.close().unwrap();
    let store = options().recovery(Recovery::Strict).open_on(Arc::new(storage.clone())).unwrap();
    assert!(store.open_report().is_clean(), "{:?}", store.open_report());
    assert_eq!(store.open_report().rows_indexed, 0, "the index survived");
    assert_eq!(store.stats().unwrap().keys, Some(96));
}

#[test]
fn age_is_that_of_the_last_commit() {
    thread_local!(static NOW: std::cell::Cell<u64> = const { std::cell::Cell::new(1_000_000) });
    let options = |age: Option<u64>| options().clock(|| NOW.get()).max_age(age.map(std::time::Duration::from_secs));
    let storage = MemoryStorage::new();
    let store = options(None).open_on(Arc::new(storage.clone())).unwrap();
    for key in 0..100_u64 {
        NOW.set(1_000_000 * (1 + key));
        store.put(key, value(2)).unwrap();
        store.flush().unwrap();
    }
    let report = store.prune(&Prune::new().older_than(std::time::Duration::from_secs(50))).unwrap();
    assert_eq!((report.segments_evicted, report.keys_evicted, report.reached), (2, 48, true), "{report:?}");
    store.close().unwrap();
    drop(store);
    // Opening evicts too.
    NOW.set(1_000_000 * 130);
    let store = options(Some(50)).open_on(Arc::new(storage.clone())).unwrap();
    assert_eq!(store.len().unwrap(), 28);
    NOW.set(1_000_000 * 1000);
    let store = {
        drop(store);
        options(Some(50)).open_on(Arc::new(storage)).unwrap()
    };
    assert_eq!(store.len().unwrap(), 0);
    assert!(Options::new().max_age(std::time::Duration::ZERO).open_on(Arc::new(MemoryStorage::new())).is_err());
}

#[test]
fn a_cap_that_cannot_hold_is_refused_with_the_smallest_one() {
    let refused = |options: Options, least: &str| {
        let storage = MemoryStorage::new();
        let error = options.open_on(Arc::new(storage.clone())).unwrap_err();
        assert!(matches!(&error, Error::Invalid { what } if what.contains(least)), "{error}");
        assert!(storage.list(Path::new("")).unwrap_or_default().is_empty());
    };
    refused(Options::new().max_disk_bytes((1 << 20) - 1), "1048576");
    refused(Options::new().max_disk_bytes(0), "1048576");
    refused(Options::new().max_rows(15), "16");
    let store = Options::new().max_disk_bytes(1 << 20).open_on(Arc::new(MemoryStorage::new())).unwrap();
    let error = store.put_rows(&[1_u64], &[200_000], &vec![1.0_f32; 200_000]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 524_288, .. }), "{error}");
    let error = store.prune(&Prune::new().order(Eviction::Stop)).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(store.len().unwrap(), 0);
}

#[test]
fn rows_are_capped_and_iterators_that_are_held_see_no_error() {
    let storage = MemoryStorage::new();
    let options = || Options::new().synchronous(true).max_rows(160).hash_seed(7);
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut newest = Newest::new();
    let mut held = Vec::new();
    for key in 0..2000_u64 {
        store.put(key, value(key as i64)).unwrap();
        newest.insert(key, Some(key as i64));
        assert!(store.len().unwrap() <= 160, "{key}");
        if key % 400 == 100 {
            let mut entries = store.iter();
            assert!(entries.next().unwrap().is_ok());
            held.push((key, entries));
        }
    }
    for (when, entries) in held {
        // Keys that are gone are not listed, and no other is listed twice.
        let mut listed: Vec<u64> = entries.map(|entry| entry.unwrap().0.as_u64().unwrap()).collect();
        let all = listed.len();
        listed.sort_unstable();
        listed.dedup();
        assert!(listed.len() == all && listed.iter().all(|key| *key <= when || *key > 1800), "{listed:?}");
    }
    let found = check(store.reader(), &newest, "capped");
    assert!(found.len() >= 120 && found.contains_key(&1999), "{found:?}");
    let error = store.put_batch(&(0..81_u64).collect::<Vec<_>>(), &vec![Value::Int(1); 81]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 80, .. }), "{error}");
    assert_eq!(check(store.reader(), &newest, "nothing was put"), found);
}

fn rows(from: u64) -> (Vec<u64>, Vec<f32>) {
    let keys: Vec<u64> = (from..from + 16).collect();
    let rows = keys.iter().flat_map(|key| (0..256).map(move |at| (key * 256 + at) as f32)).collect();
    (keys, rows)
}

#[test]
fn a_full_store_refuses_puts_and_goes_on() {
    let storage = MemoryStorage::new();
    let options = || Options::new().max_disk_bytes(1 << 20).eviction(Eviction::Stop);
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut put = 0;
    let error = loop {
        let (keys, values) = rows(put);
        match store.put_rows(&keys, &[256], &values) {
            Ok(()) => put += 16,
            Err(error) => break error,
        }
        assert!(put < 2000);
    };
    assert!(matches!(error, Error::Full { what: "bytes on disk", limit: 1_048_576, .. }), "{error}");
    // The last put left nothing behind, and nothing else stopped.
    assert_eq!((store.len().unwrap(), store.contains(put).unwrap()), (put, false));
    // Each put may become a batch of its own, padded to pages.
    assert!(put > 400, "{put} rows of 1 KiB");
    store.flush().unwrap();
    assert!(store.stats().unwrap().disk_bytes <= 1 << 20);
    let all: Vec<u64> = (0..put).collect();
    assert_eq!(store.delete_batch(&all).unwrap() as u64, put);
    store.compact(&Compaction::new()).unwrap();
    let (keys, values) = rows(0);
    store.put_rows(&keys, &[256], &values).unwrap();
    store.close().unwrap();
    // What earlier handles put counts.
    drop(store);
    let store = Options::new().open_on(Arc::new(storage.clone())).unwrap();
    for from in (0..2048).step_by(16) {
        let (keys, values) = rows(from);
        store.put_rows(&keys, &[256], &values).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let (keys, values) = rows(5000);
    assert!(matches!(store.put_rows(&keys, &[256], &values), Err(Error::Full { .. })));
    drop(store);
    let store = options().eviction(Eviction::OldestFirst).open_on(Arc::new(storage)).unwrap();
    assert!(store.stats().unwrap().disk_bytes <= 1 << 20, "opening evicts");
    store.put_rows(&keys, &[256], &values).unwrap();
    assert!(store.contains(5000_u64).unwrap() && !store.contains(0_u64).unwrap());
}

#[test]
fn two_writers_share_a_cap() {
    let storage = MemoryStorage::new();
    let options = |lane| {
        let options = Options::new().synchronous(true).max_disk_bytes(2 << 20);
        options.lane(Lane::Number(lane)).refresh_interval(std::time::Duration::ZERO)
    };
    let stores = [0, 1].map(|lane| options(lane).open_on(Arc::new(storage.clone())).unwrap());
    let mut most = 0;
    for turn in 0..400_u64 {
        let (keys, values) = rows(turn * 16);
        stores[(turn % 2) as usize].put_rows(&keys, &[256], &values).unwrap();
        most = most.max(disk_bytes(&storage));
    }
    let segment = (2 << 20) / 16;
    assert!(most <= (2 << 20) + segment * 2, "{most}");
    assert!(stores.iter().all(|store| store.stats().unwrap().segments_evicted > 0));
    // One fills the store and rests: the other evicts its own rows, or is told that it can evict none.
    for turn in 400..800_u64 {
        let (keys, values) = rows(turn * 16);
        stores[0].put_rows(&keys, &[256], &values).unwrap();
        most = most.max(disk_bytes(&storage));
    }
    let mut refused = 0;
    for turn in 800..1000_u64 {
        let (keys, values) = rows(turn * 16);
        match stores[1].put_rows(&keys, &[256], &values) {
            Ok(()) => {}
            Err(Error::Full { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        most = most.max(disk_bytes(&storage));
    }
    assert!(refused < 200 && most <= (2 << 20) + segment * 2, "{refused} {most}");
    for store in stores {
        store.close().unwrap();
    }
    let reader = Options::new().open_reader_on(Arc::new(storage)).unwrap();
    assert!(reader.open_report().is_clean() && reader.verify(&mut |_, _| {}).unwrap().is_clean());
}

fn disk_bytes(storage: &MemoryStorage) -> u64 {
    let folder = |folder: &str| -> u64 {
        let entries = storage.list(Path::new(folder)).unwrap();
        entries.iter().map(|entry| storage.len_bytes(&Path::new(folder).join(&entry.name)).unwrap_or(0)).sum()
    };
    folder("segments") + folder("runs") + other_bytes(storage)
}
