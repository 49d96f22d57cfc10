//! Rows with commit timestamps of their own: whatever is sorted, joined, merged, evicted, stopped and opened again, the
//! newest row of a key counts, and no older one comes back.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tensorcask::storage::{MemoryStorage, Storage};
use tensorcask::{
    Codec, Compaction, Durability, Eviction, Key, Lane, Merge, Options, Order, Prune, Reader, Store, Tensor, Value,
};

use crate::compaction::{names, segment_bytes};
use crate::compaction_stops::killed;
use crate::eviction::Random;
use crate::forged::{places, reseal, set};
use crate::storages::copy_folder;

thread_local! {
    static CLOCK: Cell<u64> = const { Cell::new(1) };
    /// The cap on rows of stores.
    static MOST_ROWS: Cell<Option<u64>> = const { Cell::new(None) };
}

fn now() -> u64 {
    CLOCK.get()
}

fn options() -> Options {
    Options::new().synchronous(true).segment_rows(24).memtable_keys(60).clock(now)
}

fn open(storage: &MemoryStorage, lane: u16) -> Store {
    options().max_rows(MOST_ROWS.get()).lane(Lane::Number(lane)).open_on(Arc::new(storage.clone())).unwrap()
}

fn reader(storage: &MemoryStorage) -> Reader {
    options().open_reader_on(Arc::new(storage.clone())).unwrap()
}

/// A closed store with these keys, each put at its time, and sorted if that is asked.
fn store_of(rows: &[(u64, u64)], sort: bool) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let store = open(&storage, 0);
    for (key, at) in rows {
        CLOCK.set(*at);
        store.put(*key, Value::Int(*at as i64)).unwrap();
        store.flush().unwrap();
    }
    if sort {
        assert!(store.compact(&Compaction::new().sort(Order::Keys)).unwrap().rows_sorted > 0);
    }
    store.close().unwrap();
    storage
}

/// A store in which a merge of a sorted store was killed, so that a segment with commit timestamps of rows is active in
/// lane 1. Its keys are 2, put at 100,000, and 9, put at 1000.
fn killed_merge() -> MemoryStorage {
    let source = reader(&store_of(&[(9, 1000), (2, 100_000)], true));
    let storage = MemoryStorage::new();
    let (store, mut copy) = (open(&storage, 1), None);
    store.merge_from(&[source], &Merge::new(), &mut |_, _| copy = Some(killed(&storage))).unwrap();
    copy.unwrap()
}

#[test]
fn an_old_row_of_a_killed_merge_does_not_come_back_when_a_newer_one_is_evicted() {
    let storage = killed_merge();
    CLOCK.set(10);
    let store = open(&storage, 0);
    assert_eq!(store.get(9_u64).unwrap(), Some(Value::Int(1000)));
    let survey = store.survey(100, 10).unwrap();
    assert_eq!((survey.segments[0].first_commit_s, survey.segments[0].last_commit_s), (0.001, 0.1), "{survey:?}");
    let newer = reader(&store_of(&[(9, 50_000)], false));
    store.merge_from(&[newer], &Merge::new(), &mut |_, _| {}).unwrap();
    assert_eq!(store.get(9_u64).unwrap(), Some(Value::Int(50_000)));
    let report = store.prune(&Prune::new().to_rows(0)).unwrap();
    assert_eq!((report.segments_evicted, report.tombstones_kept), (1, 1), "{report:?}");
    for reader in [store.reader(), &reader(&killed(&storage))] {
        assert_eq!(reader.get(9_u64).unwrap(), None);
    }
}

#[test]
fn a_killed_merge_of_sorted_rows_is_refused_by_a_store_that_cannot_hold_them() {
    let source = reader(&killed_merge());
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2"), folder.path());
    let store = Options::new().open(folder.path(), "numbers").unwrap();
    let refused = store.merge_from(&[source], &Merge::new(), &mut |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains("format version 2"), "{refused}");
}

#[test]
fn tombstones_of_evicted_rows_take_less_space_than_the_rows() {
    let storage = MemoryStorage::new();
    let options = Options::new().synchronous(true).eviction(Eviction::ColdestFirst);
    let store = options.open_on(Arc::new(storage.clone())).unwrap();
    let compact = || store.compact(&Compaction::new().join(false).live_share(0.1)).unwrap();
    let all: Vec<u64> = (0..20_000).collect();
    store.put_rows(&all, &[1], &vec![1_f32; all.len()]).unwrap();
    compact();
    for key in 0..1000_u64 {
        store.put_rows(&[key * 3], &[1], &[2_f32]).unwrap();
        store.flush().unwrap();
    }
    assert_eq!(compact().segments_rewritten, 1, "rows that were flushed one by one are joined");
    for _ in 0..100 {
        store.get_batch(&all[15_000..15_500]).unwrap();
    }
    let before = segment_bytes(&storage);
    let report = store.prune(&Prune::new().to_rows(20_000).order(Eviction::ColdestFirst)).unwrap();
    assert_eq!(report.tombstones_kept, 1000, "{report:?}");
    let after = segment_bytes(&storage);
    assert!(after < before, "{before} bytes before, {after} after");
    for reader in [store.reader(), &Options::new().open_reader_on(Arc::new(killed(&storage))).unwrap()] {
        assert_eq!((reader.get(3_u64).unwrap(), reader.len().unwrap()), (None, 19_000));
    }
}

#[test]
fn rows_that_are_sorted_or_joined_with_newer_ones_again_and_again_become_too_old() {
    const AGE: Duration = Duration::from_secs(100);
    for compaction in [Compaction::new(), Compaction::new().sort(Order::Keys)] {
        let storage = MemoryStorage::new();
        let store = options().max_age(Some(AGE)).open_on(Arc::new(storage)).unwrap();
        for at in 1..40_u64 {
            CLOCK.set(at * 10_000_000);
            store.put(1000 - at, Value::Int(at as i64)).unwrap();
            store.compact(&compaction).unwrap();
            store.prune(&Prune::new().older_than(AGE)).unwrap();
            let oldest = store.iter().map(|entry| entry.unwrap().1.as_int().unwrap() as u64).min().unwrap();
            assert!(at - oldest < 10 + 4, "a row is {} seconds old", (at - oldest) * 10);
            assert_eq!(store.len().unwrap(), at - oldest + 1, "newer rows stay");
        }
        assert!(store.stats().unwrap().segments < 9, "{:?}", store.stats());
    }
}

#[test]
fn a_row_that_claims_to_be_newer_than_its_batch_is_damaged() {
    let storage = store_of(&[(9, 1000), (2, 100_000)], true);
    let name = Path::new("segments").join(names(&storage, "segments").pop().unwrap());
    let mut bytes = storage.read(&name).unwrap().to_vec();
    let places = places(&bytes);
    let time = 50_000_u64.to_le_bytes();
    for frame in &places.0[1..] {
        set(&mut bytes, frame + 24, &time);
    }
    set(&mut bytes, places.1.unwrap() + 56, &time);
    reseal(&mut bytes, &places);
    storage.write(&name, &bytes).unwrap();
    let source = reader(&storage);
    assert_eq!(source.get(9_u64).unwrap(), Some(Value::Int(1000)));
    assert!(source.get(2_u64).unwrap_err().is_corrupt());
    assert!(!source.verify(&mut |_, _| {}).unwrap().is_clean());
    let target = MemoryStorage::new();
    let store = open(&target, 0);
    assert!(store.merge_from(&[source], &Merge::new(), &mut |_, _| {}).unwrap_err().is_corrupt());
}

/// The version that a value has.
fn version(value: &Value) -> u64 {
    let version = match value {
        Value::Int(number) => *number as u64,
        Value::Tensor(tensor) => tensor.to_vec::<f32>().unwrap()[0] as u64,
        other => other["version"].as_int().unwrap() as u64,
    };
    assert_eq!(*value, value_of(version));
    version
}

/// The value of a version, of one of four structures.
fn value_of(version: u64) -> Value {
    let number = ("version", Value::Int(version as i64));
    let tensor = |len: usize| Value::Tensor(Tensor::from_slice(&[len], &vec![version as f32; len]).unwrap());
    match version % 4 {
        0 => number.1,
        1 => Value::from([number, ("tensor", tensor(3))]),
        2 => tensor(2),
        _ => Value::from([number, ("text", "x".repeat(version as usize % 7).into()), ("empty", tensor(0))]),
    }
}

/// The newest version of each key that its store has seen, and whether it is a value.
type Model = BTreeMap<u64, (u64, bool)>;

/// The keys of a test.
#[derive(Debug, Clone, Copy)]
struct Keys {
    count: u64,
    /// Whether they are texts, of which one is empty.
    are_texts: bool,
}

impl Keys {
    fn key(self, number: u64) -> Key {
        if self.are_texts {
            Key::Str("k".repeat((number % 12) as usize) + &"y".repeat(number as usize / 12))
        } else {
            Key::U64(number)
        }
    }

    fn number(self, key: &Key) -> u64 {
        match key {
            Key::Str(text) => text.matches('k').count() as u64 + text.matches('y').count() as u64 * 12,
            other => other.as_u64().unwrap(),
        }
    }

    fn all(self) -> Vec<Key> {
        (0..self.count).map(|number| self.key(number)).collect()
    }

    /// All keys in order.
    fn range(self, reader: &Reader) -> Vec<Key> {
        let keys: Vec<_> = if self.are_texts { reader.prefix("").collect() } else { reader.range(0_u64..).collect() };
        keys.into_iter().map(|key| key.unwrap()).collect()
    }
}

/// What there is, by all ways to read it.
fn look(reader: &Reader, keys: Keys, what: &str) -> BTreeMap<u64, u64> {
    let all: Vec<u64> = (0..keys.count).collect();
    let batch = reader.get_batch(&keys.all()).unwrap().into_iter().map(|found| found.unwrap().as_ref().map(version));
    let found: BTreeMap<u64, u64> =
        all.iter().zip(batch).filter_map(|(key, version)| version.map(|version| (*key, version))).collect();
    for key in all {
        assert_eq!(reader.get(keys.key(key)).unwrap().as_ref().map(version), found.get(&key).copied(), "{what}");
    }
    let entries = reader.iter().map(|entry| entry.unwrap());
    let listed: BTreeMap<u64, u64> = entries.map(|(key, value)| (keys.number(&key), version(&value))).collect();
    assert_eq!((listed, reader.len().unwrap()), (found.clone(), found.len() as u64), "{what}");
    let mut in_order: Vec<Key> = found.keys().map(|key| keys.key(*key)).collect();
    in_order.sort();
    assert!(keys.range(reader).eq(&in_order), "{what}");
    found
}

/// One of the stores.
struct One {
    storage: MemoryStorage,
    store: Store,
    follower: Reader,
    model: Model,
    evicted: bool,
}

impl One {
    fn put(&mut self, random: &mut Random, keys: Keys, next: &mut u64) {
        let every = random.below(5);
        for _ in 0..=random.below(30) {
            let key = random.below(keys.count);
            *next += 1;
            CLOCK.set(*next * 10);
            let is_value = random.below(6) > 0;
            if is_value {
                self.store.put(keys.key(key), value_of(*next)).unwrap()
            } else {
                self.store.delete(keys.key(key)).map(drop).unwrap();
            }
            self.model.insert(key, (*next, is_value));
            if every < 3 || random.below(9) == 0 {
                self.store.flush().unwrap();
            }
        }
        self.store.flush().unwrap();
    }

    fn compact(&self, random: &mut Random, keys: Keys, what: &str) {
        let live_share = [0.5, 0.95, 1.0][random.below(3) as usize];
        let mut compaction = Compaction::new().join(random.below(2) == 0).live_share(live_share);
        match random.below(4) {
            0 => compaction = compaction.sort(Order::Keys),
            1 => {
                let given = (0..keys.count).map(|_| keys.key(random.below(keys.count + 5))).collect();
                compaction = compaction.sort(Order::Given(given));
            }
            _ => {}
        }
        let is_divided = random.below(3) == 0;
        if is_divided {
            compaction = compaction.sorted_segment_bytes(2000 + random.below(8000));
        }
        if random.below(5) == 0 {
            compaction = compaction.codec([Codec::None, Codec::Zstd { level: 1 }][random.below(2) as usize]);
        }
        let held = self.store.keys();
        let expected = look(self.store.reader(), keys, what);
        assert!(self.store.compact(&compaction).unwrap().skipped.is_empty(), "{what}");
        let mut listed: Vec<u64> = held.map(|key| keys.number(&key.unwrap())).collect();
        listed.sort_unstable();
        listed.dedup();
        let is_whole = MOST_ROWS.get().is_some() || listed.len() == expected.len();
        assert!(is_whole && listed.iter().all(|key| expected.contains_key(key)), "{what}: an iterator that was held");
        let again = self.store.compact(&compaction).unwrap();
        assert!(is_divided || again.segments_rewritten == 0, "{what}: {compaction:?} {again:?}");
    }

    /// Merges another store, or is killed meanwhile.
    fn merge(&mut self, other: &Self, random: &mut Random, keys: Keys, what: &str) {
        let source = reader(&killed(&other.storage));
        let (theirs, before) = (look(&source, keys, what), look(self.store.reader(), keys, what));
        let stop_at = if random.below(3) == 0 { random.below(8) } else { u64::MAX };
        let (mut calls, mut copy) = (0, None);
        let storage = self.storage.clone();
        let mut progress = |_, _| {
            if calls == stop_at {
                copy = Some(killed(&storage));
            }
            calls += 1;
        };
        self.store.merge_from(&[source], &Merge::new(), &mut progress).unwrap();
        let is_partial = copy.is_some();
        if let Some(copy) = copy {
            self.storage = copy;
            self.follower = follower(&self.storage);
            self.store = open(&self.storage, random.below(4) as u16);
        }
        let after = look(self.store.reader(), keys, what);
        for key in 0..keys.count {
            let (own, its) =
                [&self.model, &other.model].map(|model| model.get(&key).copied().unwrap_or_default()).into();
            let [old, new, found] = [&before, &theirs, &after].map(|versions| versions.get(&key).copied());
            let may_be = match new {
                Some(version) if version > own.0 => found == new || is_partial && found == old,
                _ if its.0 > own.0 => found.is_none() || found == old,
                // A tombstone that was needless is gone.
                _ => found == old || old.is_none() && found == new,
            };
            let may_be = may_be || MOST_ROWS.get().is_some() && found.is_none();
            assert!(may_be, "{what}: key {key}: {old:?} and {new:?} are {found:?}; {own:?}, {its:?}");
            match (old, new, found) {
                (_, Some(new), Some(found)) if found == new => drop(self.model.insert(key, (new, true))),
                (Some(_), _, None) => drop(self.model.insert(key, (its.0.max(own.0), false))),
                (_, _, None) if its.0 > own.0 && !is_partial => drop(self.model.insert(key, (its.0, false))),
                _ => {}
            }
        }
    }

    fn prune(&mut self, random: &mut Random) {
        let rows = self.store.stats().unwrap().rows_sealed;
        let order = if random.below(2) == 0 { Eviction::OldestFirst } else { Eviction::ColdestFirst };
        let report = self.store.prune(&Prune::new().to_rows(random.below(rows + 1)).order(order)).unwrap();
        assert!(report.skipped.is_empty(), "{report:?}");
        self.evicted |= report.segments_evicted > 0;
    }

    fn open_again(&mut self, random: &mut Random, what: &str) {
        self.store.flush().unwrap();
        match random.below(3) {
            0 => self.store.close().unwrap(),
            1 => self.storage = killed(&self.storage),
            _ => {
                self.store.flush_with(Durability::SyncData).unwrap();
                self.storage = self.storage.power_loss();
            }
        }
        self.follower = follower(&self.storage);
        if random.below(3) == 0 {
            remove_runs(&self.storage);
        }
        self.store = open(&self.storage, random.below(4) as u16);
        let report = self.store.open_report();
        assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{what}: {report:?}");
    }

    fn check(&self, keys: Keys, what: &str) {
        let found = look(self.store.reader(), keys, what);
        for key in 0..keys.count {
            let expected = self.model.get(&key).filter(|(_, is_value)| *is_value).map(|(version, _)| *version);
            let found = found.get(&key).copied();
            assert!(found == expected || self.evicted && found.is_none(), "{what}: {key}: {found:?}, not {expected:?}");
        }
        self.follower.refresh().unwrap();
        assert_eq!(look(&self.follower, keys, what), found, "{what}: a reader that follows");
        let copy = killed(&self.storage);
        remove_runs(&copy);
        assert_eq!(look(&reader(&copy), keys, what), found, "{what}: without an index");
        assert!(self.store.verify(&mut |_, _| {}).unwrap().is_clean(), "{what}");
    }
}

fn follower(storage: &MemoryStorage) -> Reader {
    options().memtable_keys(50).value_cache_bytes(1 << 16).open_reader_on(Arc::new(storage.clone())).unwrap()
}

fn remove_runs(storage: &MemoryStorage) {
    for name in names(storage, "runs") {
        storage.remove(&Path::new("runs").join(name)).unwrap();
    }
}

#[test]
fn the_newest_row_counts_whatever_is_done() {
    let seeds = std::env::var("TENSORCASK_SEEDS").map_or(8, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let (mut random, mut next) = (Random(seed), 1);
        let keys = Keys { count: [12, 40, 150][(seed % 3) as usize], are_texts: seed % 2 > 0 };
        MOST_ROWS.set((seed % 4 == 3).then_some(120));
        let new = |lane| {
            let storage = MemoryStorage::new();
            One {
                store: open(&storage, lane),
                follower: follower(&storage),
                storage,
                model: Model::new(),
                evicted: MOST_ROWS.get().is_some(),
            }
        };
        let mut stores: Vec<One> = (0..3).map(new).collect();
        for step in 0..60 {
            let mut one = stores.remove(random.below(3) as usize);
            let what = format!("seed {seed}, step {step}");
            match random.below(14) {
                0..=4 => one.put(&mut random, keys, &mut next),
                5..=7 => one.compact(&mut random, keys, &what),
                8..=10 => {
                    let other = random.below(2) as usize;
                    one.merge(&stores[other], &mut random, keys, &what);
                }
                11 => one.prune(&mut random),
                _ => one.open_again(&mut random, &what),
            }
            one.check(keys, &what);
            stores.push(one);
        }
    }
}
