//! Compaction rewrites segments without dead rows. Live rows are never lost, with concurrent readers and with an
//! interruption at any point.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorcask::storage::FaultStorage;
use tensorcask::storage::MemoryStorage;
use tensorcask::storage::Storage;
use tensorcask::{Compaction, Durability, Lane, Options, Order, Reader, Recovery, Store, Value};

pub const DIMS: usize = 16;

/// The expected version of each key, or `None` if it was deleted.
pub type Model = BTreeMap<String, Option<u32>>;

pub fn key(number: u32) -> String {
    format!("key-{number:05}")
}

pub fn row(number: u32, version: u32) -> Vec<f32> {
    (0..DIMS).map(|at| (number * 31 + version * 1000) as f32 + at as f32).collect()
}

/// Small segments, so that few rows fill many of them.
pub fn options() -> Options {
    Options::new().synchronous(true).segment_rows(64).hash_seed(7)
}

pub fn put(store: &Store, model: &mut Model, numbers: impl Iterator<Item = u32>, version: u32) {
    for chunk in numbers.collect::<Vec<_>>().chunks(16) {
        let keys: Vec<String> = chunk.iter().map(|number| key(*number)).collect();
        let rows: Vec<f32> = chunk.iter().flat_map(|number| row(*number, version)).collect();
        store.put_rows(&keys, &[DIMS], &rows).unwrap();
        model.extend(keys.into_iter().map(|key| (key, Some(version))));
    }
    store.flush().unwrap();
}

pub fn delete(store: &Store, model: &mut Model, numbers: impl Iterator<Item = u32>) {
    let keys: Vec<String> = numbers.map(key).collect();
    store.delete_batch(&keys).unwrap();
    store.flush().unwrap();
    model.extend(keys.into_iter().map(|key| (key, None)));
}

/// Puts rows, overwrites a third of them, deletes a fifth, and puts some of these again.
pub fn history(store: &Store) -> Model {
    let mut model = Model::new();
    put(store, &mut model, 0..400, 0);
    put(store, &mut model, (0..400).step_by(3), 1);
    delete(store, &mut model, (0..400).step_by(5));
    put(store, &mut model, (0..400).step_by(25), 2);
    model
}

/// A closed store with this history.
pub fn closed_history() -> (MemoryStorage, Model) {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let model = history(&store);
    store.close().unwrap();
    (storage, model)
}

pub fn check(reader: &Reader, model: &Model) {
    for (key, version) in model {
        let number: u32 = key["key-".len()..].parse().unwrap();
        let found =
            reader.get(key.as_str()).unwrap().map(|value| value.into_tensor().unwrap().to_vec::<f32>().unwrap());
        assert_eq!(found, version.map(|version| row(number, version)), "{key}");
    }
    let live: Vec<&String> = model.iter().filter(|(_, version)| version.is_some()).map(|(key, _)| key).collect();
    assert_eq!(reader.len().unwrap(), live.len() as u64);
    let listed: Vec<String> = reader.range::<&str>(..).map(|key| key.unwrap().to_string()).collect();
    assert!(listed.iter().eq(live), "a scan in order lists what is there");
    assert!(reader.verify(&mut |_, _| {}).unwrap().is_clean());
}

pub fn names(storage: &dyn Storage, folder: &str) -> Vec<String> {
    storage.list(Path::new(folder)).unwrap().into_iter().map(|entry| entry.name).collect()
}

pub fn segment_bytes(storage: &dyn Storage) -> u64 {
    let entries = storage.list(Path::new("segments")).unwrap();
    entries.iter().map(|entry| storage.len_bytes(&Path::new("segments").join(&entry.name)).unwrap()).sum()
}

#[test]
fn what_counts_stays_and_the_rest_goes() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let model = history(&store);
    let follower = Options::new().open_reader_on(Arc::new(storage.clone())).unwrap();
    check(&follower, &model);
    let before = segment_bytes(&storage);
    let dry = store.compact(&Compaction::new().dry_run(true)).unwrap();
    assert_eq!((segment_bytes(&storage), dry.dry_run), (before, true));
    let report = store.compact(&Compaction::new()).unwrap();
    assert_eq!((report.live_rows, report.tombstones_dropped), (336, 64), "{report:?}");
    assert!(report.skipped.is_empty() && report.bytes_freed > before / 3, "{report:?}");
    check(store.reader(), &model);

    let fresh_storage = MemoryStorage::new();
    let fresh = options().segment_rows(1 << 20).open_on(Arc::new(fresh_storage.clone())).unwrap();
    let mut copy = Model::new();
    for version in 0..3 {
        let of_version = model.iter().filter(|(_, found)| **found == Some(version));
        put(&fresh, &mut copy, of_version.map(|(key, _)| key["key-".len()..].parse().unwrap()), version);
    }
    fresh.close().unwrap();
    let again = store.compact(&Compaction::new()).unwrap();
    assert_eq!(again.rows_dropped, 0, "{again:?}");

    follower.refresh().unwrap();
    check(&follower, &model);
    store.close().unwrap();
    assert_eq!(store.open_report().quarantined.len(), 0);
    for _ in 0..2 {
        let store = options().recovery(Recovery::Strict).open_on(Arc::new(storage.clone())).unwrap();
        assert!(store.open_report().is_clean(), "{:?}", store.open_report());
        assert_eq!(store.open_report().rows_indexed, 0);
        check(store.reader(), &model);
        store.close().unwrap();
    }
    check(&options().open_reader_on(Arc::new(storage)).unwrap(), &model);
}

/// Runs `action` on copies of `storage`, each of which fails one operation later than the last. Calls `check` with the
/// state after a kill and after a power failure.
pub fn fail_at_each(storage: &MemoryStorage, action: impl Fn(&Store), check: impl Fn(MemoryStorage, &str)) {
    let mut operations = 0;
    loop {
        let copy = storage.power_loss_keeping(|_, _, len| len);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        faults.faults().fail_after_operations(operations);
        action(&store);
        let done = faults.faults().operations();
        let killed = copy.power_loss_keeping(|_, _, len| len);
        let lost = copy.power_loss();
        std::mem::forget(store);
        check(killed, &format!("killed after {operations} operations"));
        check(lost, &format!("power lost after {operations} operations"));
        if done < operations {
            return;
        }
        operations += 1;
    }
}

#[test]
fn a_stop_at_any_operation_loses_nothing() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let model = history(&store);
    store.merge_index().unwrap();
    store.close().unwrap();
    let compact = |store: &Store| drop(store.compact(&Compaction::new()));
    fail_at_each(&storage, compact, |memory, what| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let reader = options().open_reader_on(Arc::clone(&storage)).unwrap();
        check(&reader, &model);
        let maps: Vec<_> = names(&*storage, "runs").into_iter().filter(|name| name.ends_with(".moved")).collect();
        if !maps.is_empty() {
            // Row maps are derived data: without them, the rows are indexed again.
            let copy = memory.power_loss_keeping(|_, _, len| len);
            maps.iter().for_each(|name| copy.remove(&Path::new("runs").join(name)).unwrap());
            check(&options().open_reader_on(Arc::new(copy)).unwrap(), &model);
        }
        let store = options().open_on(Arc::clone(&storage)).unwrap();
        let report = store.open_report();
        assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{what}: {report:?}");
        assert!(report.rows_indexed <= 16, "what no run covered before: {what}: {report:?}");
        check(store.reader(), &model);
        store.compact(&Compaction::new()).unwrap();
        check(store.reader(), &model);
        store.close().unwrap();
        reader.refresh().unwrap();
        check(&reader, &model);
        let names = names(&*storage, "segments");
        assert!(names.iter().all(|name| name.ends_with(".arrow")), "{what}: {names:?}");
        let strict = options().recovery(Recovery::Strict).open_on(storage).unwrap();
        assert!(strict.open_report().is_clean());
        check(strict.reader(), &model);
    });
}

#[test]
fn a_store_of_deleted_rows_becomes_empty() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = Model::new();
    put(&store, &mut model, 0..200, 0);
    delete(&store, &mut model, 0..200);
    let follower = Options::new().open_reader_on(Arc::new(storage.clone())).unwrap();
    store.compact(&Compaction::new()).unwrap();
    check(store.reader(), &model);
    follower.refresh().unwrap();
    check(&follower, &model);
    assert!(segment_bytes(&storage) < 10_000, "{} bytes", segment_bytes(&storage));
    put(&store, &mut model, 0..10, 1);
    store.close().unwrap();
    let store = options().recovery(Recovery::Strict).open_on(Arc::new(storage)).unwrap();
    check(store.reader(), &model);
}

#[test]
fn a_tombstone_stays_while_an_older_row_does() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = Model::new();
    put(&store, &mut model, 0..60, 0);
    delete(&store, &mut model, 0..6);
    // Only a tenth of the segment's rows is dead, so it stays, and so do the tombstones of its rows.
    let report = store.compact(&Compaction::new().live_share(0.5).join(false)).unwrap();
    assert_eq!((report.rows_dropped, report.tombstones_dropped), (0, 0), "{report:?}");
    check(store.reader(), &model);
    // A writer of another lane may have older rows that are not visible yet.
    let other = options().lane(Lane::Number(1)).open_on(Arc::new(storage.clone())).unwrap();
    let report = store.compact(&Compaction::new().live_share(1.0)).unwrap();
    assert_eq!((report.rows_dropped, report.tombstones_dropped), (6, 0), "{report:?}");
    check(store.reader(), &model);
    other.close().unwrap();
    drop(other);
    let report = store.compact(&Compaction::new().live_share(1.0)).unwrap();
    assert_eq!(report.tombstones_dropped, 6, "{report:?}");
    check(store.reader(), &model);
    store.close().unwrap();
    check(options().open_on(Arc::new(storage)).unwrap().reader(), &model);
}

#[test]
fn damaged_segments_are_left_to_tell_of_it() {
    let (storage, model) = closed_history();
    // Damage a value of the first segment.
    let name = "segments/0000-0000000001.arrow";
    let bytes = storage.read(name).unwrap();
    let value: Vec<u8> = row(7, 0).iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
    storage.corrupt(name, at as u64 + 5, 0x10).unwrap();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let report = store.compact(&Compaction::new()).unwrap();
    assert_eq!(report.skipped.len(), 1, "{report:?}");
    assert!(store.get(key(7).as_str()).unwrap_err().is_corrupt());
    let rest: Model = model.iter().filter(|(found, _)| **found != key(7)).map(|(key, to)| (key.clone(), *to)).collect();
    for (key, version) in &rest {
        assert_eq!(store.get(key.as_str()).unwrap().is_some(), version.is_some(), "{key}");
    }
    assert!(!store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn puts_deletes_and_reads_go_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let open = |lane| {
        let options = Options::new().segment_rows(512).memtable_keys(2048).lane(Lane::Number(lane));
        options.durability(Durability::Buffered).open(dir.path(), "m").unwrap()
    };
    let (store, other) = (open(0), open(1));
    let (stop, rounds) = (AtomicBool::new(false), 12_u32);
    let keys = 2000_u32;
    // Keys that do not change; the others change all the time.
    let steady = |number: u32| number.is_multiple_of(5);
    let mut model = Model::new();
    put(&store, &mut model, (0..keys).filter(|number| steady(*number)), 0);
    let reader = Reader::open(dir.path(), "m").unwrap();
    let look = |reader: &Reader| {
        for number in (0..keys).filter(|number| steady(*number)) {
            let found = reader.get(key(number).as_str()).unwrap().map(|value| value.into_tensor().unwrap());
            assert_eq!(found.unwrap().to_vec::<f32>().unwrap(), row(number, 0), "{number}");
        }
        let is_steady = |name: &String| steady(name["key-".len()..].parse().unwrap());
        let listed = reader.keys().map(|key| key.unwrap().to_string()).filter(is_steady);
        assert_eq!(listed.count(), (keys / 5) as usize);
        let listed = reader.range::<&str>(..).map(|key| key.unwrap().to_string()).filter(is_steady);
        assert_eq!(listed.count(), (keys / 5) as usize);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                look(&reader);
                reader.refresh().unwrap();
                look(store.reader());
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                store.compact(&Compaction::new()).unwrap();
                other.compact(&Compaction::new()).unwrap();
            }
        });
        let mut models = [Model::new(), Model::new()];
        for round in 1..=rounds {
            for (writer, model) in [&store, &other].into_iter().zip(&mut models) {
                let own = |number: &u32| !steady(*number) && u32::from(writer.lane()) == number % 2;
                put(writer, model, (0..keys).filter(own).skip(round as usize % 3).step_by(2), round);
                delete(writer, model, (0..keys).filter(own).skip(round as usize).step_by(7));
            }
        }
        stop.store(true, Ordering::Release);
        models.into_iter().for_each(|own| model.extend(own));
    });
    for handle in [&store, &other] {
        handle.refresh().unwrap();
        check(handle.reader(), &model);
    }
    reader.refresh().unwrap();
    check(&reader, &model);
    drop((store, other));
    let store = open(0);
    assert!(store.open_report().quarantined.is_empty() && store.open_report().missing.is_empty());
    check(store.reader(), &model);
    let report = store.compact(&Compaction::new()).unwrap();
    assert!(report.skipped.is_empty());
    check(store.reader(), &model);
    assert_eq!(store.get("absent").unwrap(), None::<Value>);
}

#[test]
fn writers_and_readers_agree_after_every_step() {
    let storage = MemoryStorage::new();
    let open = |lane| {
        let options = Options::new().segment_rows(96).memtable_keys(128).lane(Lane::Number(lane)).synchronous(true);
        options.hash_seed(7).open_on(Arc::new(storage.clone())).unwrap()
    };
    let mut writers = [open(0), open(1)];
    let readers = [Options::new(), Options::new().memtable_keys(64)];
    let readers = readers.map(|options| options.open_reader_on(Arc::new(storage.clone())).unwrap());
    let (keys, mut model) = (300_u32, Model::new());
    let mut state = 12345_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..120 {
        let (what, lane, from) = (draw(8), draw(2) as usize, draw(u64::from(keys)) as u32);
        let writer = &writers[lane];
        writer.refresh().unwrap();
        match what {
            0..3 => put(writer, &mut model, (from..keys).step_by(2), step),
            3 => delete(writer, &mut model, (from..keys).step_by(3)),
            4 => drop(writer.compact(&Compaction::new().live_share(0.7)).unwrap()),
            5 => drop(writer.compact(&Compaction::new().sort(Order::Keys)).unwrap()),
            6 => writer.merge_index().unwrap(),
            _ => {
                writer.close().unwrap();
                // Meanwhile the other writer may compact its segments.
                writers[1 - lane].compact(&Compaction::new()).unwrap();
                writers[lane] = open(lane as u16);
                assert!(writers[lane].open_report().is_clean(), "step {step}: {:?}", writers[lane].open_report());
            }
        }
        for reader in writers.iter().map(Store::reader).chain(readers.iter().filter(|_| draw(3) == 0)) {
            reader.refresh().unwrap();
            check(reader, &model);
        }
        if step % 10 == 0 {
            check(&Options::new().open_reader_on(Arc::new(storage.clone())).unwrap(), &model);
        }
    }
}

/// Puts the same 2 MiB of rows as version `version`.
pub fn import(store: &Store, version: u32) {
    const WIDTH: usize = 1024;
    let keys: Vec<u64> = (0..512).collect();
    let rows = vec![version as f32; keys.len() * WIDTH];
    store.put_rows(&keys, &[WIDTH], &rows).unwrap();
    store.flush().unwrap();
}

pub fn check_import(reader: &Reader, version: u32) {
    for key in 0..512_u64 {
        let found = reader.get(key).unwrap().unwrap().into_tensor().unwrap().to_vec::<f32>().unwrap();
        assert!(found.iter().all(|value| *value == version as f32), "{key}");
    }
}

#[test]
fn the_same_rows_put_again_and_again_take_no_more_room() {
    let storage = MemoryStorage::new();
    for version in 0..5 {
        let store = Options::new().open_on(Arc::new(storage.clone())).unwrap();
        assert!(store.open_report().is_clean(), "{:?}", store.open_report());
        import(&store, version);
        store.close().unwrap();
        check_import(store.reader(), version);
        assert!(segment_bytes(&storage) < 5 << 20, "{version}: {} bytes", segment_bytes(&storage));
    }
    let kept = Options::new().compaction_live_share(0.0).open_on(Arc::new(storage.clone())).unwrap();
    let before = segment_bytes(&storage);
    import(&kept, 5);
    kept.close().unwrap();
    assert!(segment_bytes(&storage) > before, "that is turned off");
}

#[test]
fn a_store_at_rest_compacts_itself() {
    let storage = MemoryStorage::new();
    let options = Options::new().segment_rows(256).memtable_keys(512).compaction_bytes_per_s(None);
    let store = options.open_on(Arc::new(storage.clone())).unwrap();
    let reader = Options::new().open_reader_on(Arc::new(storage.clone())).unwrap();
    for version in 0..6 {
        import(&store, version);
    }
    let start = std::time::Instant::now();
    while segment_bytes(&storage) > 5 << 20 {
        check_import(store.reader(), 5);
        reader.refresh().unwrap();
        check_import(&reader, 5);
        assert!(start.elapsed().as_secs() < 60, "{} bytes", segment_bytes(&storage));
    }
    store.close().unwrap();
    let store = Options::new().recovery(Recovery::Strict).open_on(Arc::new(storage)).unwrap();
    check_import(store.reader(), 5);
}

#[test]
fn a_range_or_prefix_of_keys_is_deleted() {
    let store = options().open_on(Arc::new(MemoryStorage::new())).unwrap();
    let mut model = Model::new();
    put(&store, &mut model, 0..300, 0);
    assert_eq!(store.delete_prefix("key-001").unwrap(), 100);
    assert_eq!(store.delete_range(key(250)..key(260)).unwrap(), 10);
    assert_eq!((store.delete_prefix("no").unwrap(), store.delete_range(key(250)..key(260)).unwrap()), (0, 0));
    model
        .iter_mut()
        .filter(|(key, _)| key.starts_with("key-001") || key.starts_with("key-0025"))
        .for_each(|(_, v)| *v = None);
    check(store.reader(), &model);
    let numbers = options().open_on(Arc::new(MemoryStorage::new())).unwrap();
    (0..50_u64).for_each(|key| numbers.put(key, Value::Int(1)).unwrap());
    assert_eq!(numbers.delete_range(10_u64..=20).unwrap(), 11);
    assert_eq!(numbers.len().unwrap(), 39);
    assert!(numbers.delete_prefix("key").is_err());
}
