//! Compaction that fails, or that others look at while it runs: no row is lost, and no deleted row comes back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tensorcask::storage::{AppendFile, DirEntry, FaultStorage, FileKind, LockGuard, MemoryStorage, ReadFile, Storage};
use tensorcask::{Compaction, Durability, Lane, Options, Recovery, Result};

use crate::compaction::{Model, check, check_import, closed_history, delete, import, names, options, put};

/// A copy of everything that is there, as after a kill.
pub fn killed(storage: &MemoryStorage) -> MemoryStorage {
    let copy = MemoryStorage::new();
    for folder in ["", "segments", "runs", "lanes", "quarantine"] {
        for entry in storage.list(Path::new(folder)).unwrap().into_iter().filter(|entry| entry.kind.is_file()) {
            let path = Path::new(folder).join(entry.name);
            copy.write(&path, &storage.read(&path).unwrap()).unwrap();
        }
        copy.create_dir(Path::new(folder)).unwrap();
    }
    copy
}

/// Runs something once, between a listing of the segments and its use.
type Hook = Box<dyn FnOnce() + Send>;

/// Runs something each time.
type Repeated = Box<dyn FnMut() + Send>;

/// A storage with such hooks.
#[derive(Clone)]
pub struct Hooked {
    inner: Arc<dyn Storage>,
    hook: Arc<Mutex<Option<Hook>>>,
    /// To run before names in the segments folder become durable.
    before_sync: Arc<Mutex<Option<Repeated>>>,
    /// To run before a file is renamed.
    pub before_rename: Arc<Mutex<Option<Repeated>>>,
}

impl Hooked {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, hook: Arc::default(), before_sync: Arc::default(), before_rename: Arc::default() }
    }
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooked").finish_non_exhaustive()
    }
}

impl Storage for Hooked {
    fn kind(&self, path: &Path) -> Result<Option<FileKind>> {
        self.inner.kind(path)
    }
    fn changed(&self, path: &Path) -> Result<Option<SystemTime>> {
        self.inner.changed(path)
    }
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.inner.create_dir(path)
    }
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let listed = self.inner.list(path);
        if path == Path::new("segments") {
            let hook = self.hook.lock().unwrap().take();
            // On a thread that holds no lock.
            hook.into_iter().for_each(|hook| std::thread::spawn(hook).join().unwrap());
        }
        listed
    }
    fn len_bytes(&self, path: &Path) -> Result<u64> {
        self.inner.len_bytes(path)
    }
    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>> {
        self.inner.create(path)
    }
    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>> {
        self.inner.open_append(path, len_bytes)
    }
    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>> {
        self.inner.open(path, capacity_bytes)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.before_rename.lock().unwrap().iter_mut().for_each(|hook| hook());
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.inner.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> Result<()> {
        if path == Path::new("segments") {
            self.before_sync.lock().unwrap().iter_mut().for_each(|hook| hook());
        }
        self.inner.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
        self.inner.try_lock(path)
    }
    fn describe(&self, path: &Path) -> PathBuf {
        self.inner.describe(path)
    }
}

#[test]
fn a_refresh_between_two_steps_loses_no_key() {
    let storage = MemoryStorage::new();
    let store = Arc::new(options().open_on(Arc::new(storage.clone())).unwrap());
    let mut model = Model::new();
    put(&store, &mut model, 0..64, 0);
    let hooked = Hooked::new(Arc::new(storage.clone()));
    let patient = Options::new().refresh_interval(Duration::from_secs(600));
    let reader = patient.open_reader_on(Arc::new(hooked.clone())).unwrap();
    check(&reader, &model);
    put(&store, &mut model, 0..64, 1);
    // Replaces the first segment, no row of which counts.
    store.compact(&Compaction::new().join(false)).unwrap();
    put(&store, &mut model, 0..63, 2);
    let compacting = Arc::clone(&store);
    *hooked.hook.lock().unwrap() = Some(Box::new(move || {
        // Replaces the second one, of which the last row counts.
        compacting.compact(&Compaction::new().join(false)).map(drop).unwrap();
    }));
    reader.refresh().unwrap();
    assert!(hooked.hook.lock().unwrap().is_none());
    check(&reader, &model);
}

#[test]
fn a_key_that_occurs_twice_in_a_batch_hides_no_new_row() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    store.put_rows(&["a", "a", "b"], &[1], &[1.0_f32, 2.0, 3.0]).unwrap();
    store.flush().unwrap();
    let reader = Options::new().open_reader_on(Arc::new(storage)).unwrap();
    store.put_rows(&["c"], &[1], &[4.0_f32]).unwrap();
    // The two rows of `a` that the reader knows have one copy. So there are as many rows as it finds copies.
    store.compact(&Compaction::new()).unwrap();
    reader.refresh().unwrap();
    assert_eq!(reader.contains_batch(&["a", "b", "c"]).unwrap(), [true; 3]);
}

#[test]
fn rows_that_are_not_synced_replace_none_that_are() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(Arc::new(storage.clone())).unwrap();
    import(&store, 0);
    store.close().unwrap();
    drop(store);
    let store = Options::new().durability(Durability::Buffered).open_on(Arc::new(storage.clone())).unwrap();
    import(&store, 1);
    store.close().unwrap();
    assert!(!names(&storage, "segments").contains(&"0000-0000000001.arrow".to_owned()), "closing compacts");
    let lost = storage.power_loss();
    let reader = Options::new().open_reader_on(Arc::new(lost)).unwrap();
    let version = reader.get(0_u64).unwrap().unwrap().into_tensor().unwrap().to_vec::<f32>().unwrap()[0];
    check_import(&reader, version as u32);
}

#[test]
fn a_tombstone_stays_while_an_older_row_is_in_an_active_segment() {
    let storage = MemoryStorage::new();
    let options = Options::new().segment_rows(256).compaction_bytes_per_s(None).flush_every(1 << 20, 1 << 30);
    let store = options.open_on(Arc::new(storage.clone())).unwrap();
    import(&store, 0);
    let keys: Vec<u64> = (1000..1100).collect();
    store.put_rows(&keys, &[3], &[1.0_f32; 300]).unwrap();
    store.flush().unwrap();
    // A segment of tombstones is full, and that of the rows is not.
    assert_eq!(store.delete_batch(&keys).unwrap(), 100);
    store.flush().unwrap();
    assert_eq!(store.delete_batch(&(0..512_u64).collect::<Vec<_>>()).unwrap(), 512);
    store.flush().unwrap();
    let start = Instant::now();
    while store.merges_running() > 0 || names(&storage, "segments").iter().filter(|n| n.ends_with(".arrow")).count() < 2
    {
        assert!(start.elapsed().as_secs() < 10, "{:?}", names(&storage, "segments"));
        std::thread::sleep(Duration::from_millis(10));
    }
    store.merge_index().unwrap();
    // Compaction in the background begins with the rows, and goes on with the tombstones.
    let start = Instant::now();
    while names(&storage, "segments").contains(&"0000-0000000001.arrow".to_owned()) {
        assert!(start.elapsed().as_secs() < 60, "{:?}", names(&storage, "segments"));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let reader = Options::new().open_reader_on(Arc::new(killed(&storage))).unwrap();
    assert_eq!((reader.len().unwrap(), reader.get(1005_u64).unwrap().is_none()), (0, true));
}

#[test]
fn a_handle_goes_on_after_a_compaction_that_failed() {
    let (storage, model) = closed_history();
    let mut operations = 0;
    loop {
        let copy = killed(&storage);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        let mut model = model.clone();
        let before = faults.faults().operations();
        faults.faults().fail_after_operations(operations);
        let failed = store.compact(&Compaction::new());
        let done = faults.faults().operations() - before;
        faults.faults().clear();
        let what = format!("after {operations} operations: {:?}", failed.as_ref().err());
        check(store.reader(), &model);
        let poisoned = store.put("probe", tensorcask::Value::Int(1)).and_then(|()| store.flush()).is_err();
        if !poisoned {
            store.delete("probe").unwrap();
            delete(&store, &mut model, (0..400).step_by(2));
            put(&store, &mut model, (1..400).step_by(50), 7);
            let _again = store.compact(&Compaction::new()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            check(store.reader(), &model);
        }
        let closed = store.close();
        assert!(poisoned || closed.is_ok(), "{what}: {closed:?}");
        drop(store);
        for (what, storage) in
            [(format!("{what}; killed"), killed(&copy)), (format!("{what}; power lost"), copy.power_loss())]
        {
            let store = options().open_on(Arc::new(storage.clone())).unwrap();
            assert!(store.open_report().is_clean(), "{what}: {:?}", store.open_report());
            check(store.reader(), &model);
            store.compact(&Compaction::new()).unwrap();
            check(store.reader(), &model);
            store.close().unwrap();
        }
        if done < operations {
            return;
        }
        operations += 1;
    }
}

#[test]
fn a_full_disk_stops_compaction_and_nothing_else() {
    let (storage, model) = closed_history();
    for bytes in (0..60_000).step_by(701) {
        let copy = killed(&storage);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        let mut model = model.clone();
        faults.faults().fail_after_bytes(bytes);
        let failed = store.compact(&Compaction::new());
        faults.faults().clear();
        let what = format!("after {bytes} bytes: {:?}", failed.as_ref().err());
        check(store.reader(), &model);
        let temporary = names(&copy, "segments").iter().any(|name| name.contains("tmp"));
        assert!(!temporary, "{what}: {:?}", names(&copy, "segments"));
        if store.put("probe", tensorcask::Value::Int(1)).and_then(|()| store.flush()).is_ok() {
            store.delete("probe").unwrap();
            put(&store, &mut model, (1..400).step_by(50), 7);
        }
        let _poisoned = store.close();
        drop(store);
        let store = options().open_on(Arc::new(killed(&copy))).unwrap();
        assert!(store.open_report().is_clean(), "{what}: {:?}", store.open_report());
        check(store.reader(), &model);
    }
}

/// Runs a compaction on a copy of `storage` that fails from each of its operations on, and `check` on what is left then.
fn stop_at_each(storage: &MemoryStorage, check: impl Fn(&MemoryStorage)) {
    let mut operations = 0;
    loop {
        let copy = killed(storage);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        faults.faults().fail_after_operations(operations);
        let before = faults.faults().operations();
        let _failed = store.compact(&Compaction::new().join(false).live_share(0.5));
        let done = faults.faults().operations() - before;
        let _failed = store.close();
        drop(store);
        check(&copy);
        if done < operations {
            return;
        }
        operations += 1;
    }
}

#[test]
fn power_is_lost_while_a_killed_compaction_is_cleaned_up() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = Model::new();
    put(&store, &mut model, 0..128, 0);
    put(&store, &mut model, (0..128).step_by(2), 1);
    store.close().unwrap();
    drop(store);
    stop_at_each(&storage, |left| {
        // What was not durable before is not durable now: the same storage is opened.
        let store = options().open_on(Arc::new(left.clone())).unwrap();
        let reader = options().open_reader_on(Arc::new(left.power_loss())).unwrap();
        check(&reader, &model);
        check(store.reader(), &model);
    });
}

#[test]
fn a_row_map_of_a_segment_that_never_was_hides_none() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = Model::new();
    put(&store, &mut model, 0..128, 0);
    put(&store, &mut model, (0..128).step_by(2), 1);
    store.close().unwrap();
    drop(store);
    stop_at_each(&storage, |left| {
        let lost = left.power_loss();
        let store = options().open_on(Arc::new(lost.clone())).unwrap();
        let mut model = model.clone();
        // As many rows as the segment that was not finished had, in one of the same number.
        put(&store, &mut model, 1000..1064, 5);
        check(&options().open_reader_on(Arc::new(lost.power_loss())).unwrap(), &model);
        store.merge_index().unwrap();
        store.close().unwrap();
        let store = options().recovery(Recovery::Strict).open_on(Arc::new(lost)).unwrap();
        assert_eq!(store.open_report().rows_indexed, 0);
        check(store.reader(), &model);
    });
}

#[test]
fn a_compacted_segment_of_another_copy_removes_no_rows() {
    let storage = MemoryStorage::new();
    options().open_on(Arc::new(storage.clone())).unwrap().close().unwrap();
    let other = killed(&storage);
    let write = |storage: &MemoryStorage, version| {
        let store = options().open_on(Arc::new(storage.clone())).unwrap();
        let mut model = Model::new();
        put(&store, &mut model, version * 100..version * 100 + 64, version);
        put(&store, &mut model, version * 100..version * 100 + 60, version + 1);
        store.close().unwrap();
        model
    };
    let (model, _) = (write(&storage, 1), write(&other, 3));
    let store = options().open_on(Arc::new(other.clone())).unwrap();
    store.compact(&Compaction::new()).unwrap();
    store.close().unwrap();
    let before = names(&storage, "segments");
    for name in names(&other, "segments").into_iter().filter(|name| !before.contains(name)) {
        let path = Path::new("segments").join(name);
        storage.write(&path, &other.read(&path).unwrap()).unwrap();
    }
    let bytes: Vec<_> = before.iter().map(|name| storage.read(Path::new("segments").join(name)).unwrap()).collect();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    drop(store);
    let folders = ["segments", "quarantine"];
    let left: Vec<_> = folders
        .iter()
        .flat_map(|folder| names(&storage, folder).into_iter().map(move |name| Path::new(folder).join(name)))
        .map(|path| storage.read(path).unwrap())
        .collect();
    assert!(bytes.iter().all(|bytes| left.contains(bytes)), "{before:?} of {} keys", model.len());
}

#[test]
fn iterators_that_are_held_list_every_key_once() {
    for seals in [false, true] {
        let storage = MemoryStorage::new();
        let store = options().open_on(Arc::new(storage.clone())).unwrap();
        let mut model = Model::new();
        put(&store, &mut model, 0..400, 0);
        put(&store, &mut model, (0..400).step_by(3), 1);
        delete(&store, &mut model, (0..400).step_by(5));
        // Some rows are in an active segment.
        put(&store, &mut model, 1..20, 2);
        if seals {
            store.compact(&Compaction::new().live_share(0.0).join(false)).unwrap();
        }
        let follower = Options::new().open_reader_on(Arc::new(storage.clone())).unwrap();
        let live: Vec<&String> = model.iter().filter(|(_, version)| version.is_some()).map(|(key, _)| key).collect();
        for reader in [store.reader(), &follower] {
            let (mut keys, mut entries) = (reader.keys(), reader.iter());
            let mut listed: Vec<String> = keys.by_ref().take(7).map(|key| key.unwrap().to_string()).collect();
            let mut valued: Vec<String> = entries.by_ref().take(70).map(|entry| entry.unwrap().0.to_string()).collect();
            let mut other = Model::new();
            for version in 3..6 {
                // Each turn moves rows that count, and forgets what nobody holds.
                put(&store, &mut other, 1000..1064, version);
                store.compact(&Compaction::new()).unwrap();
                reader.refresh().unwrap();
            }
            listed.extend(keys.map(|key| key.unwrap().to_string()));
            valued.extend(entries.map(|entry| entry.unwrap().0.to_string()));
            for mut found in [listed, valued] {
                found.retain(|key| !key.starts_with("key-010"));
                found.sort();
                assert_eq!(found.len(), live.len());
                assert!(found.iter().eq(live.iter().copied()));
            }
        }
    }
}

#[test]
fn a_key_that_was_deleted_between_two_refreshes_is_gone() {
    for memtable_keys in [1, 1 << 20] {
        let storage = MemoryStorage::new();
        let store = options().open_on(Arc::new(storage.clone())).unwrap();
        let mut model = Model::new();
        put(&store, &mut model, 0..200, 0);
        let reader = Options::new().memtable_keys(memtable_keys).value_cache_bytes(1 << 20);
        let reader = reader.open_reader_on(Arc::new(storage.clone())).unwrap();
        check(&reader, &model);
        delete(&store, &mut model, (0..200).step_by(2));
        assert_eq!(store.compact(&Compaction::new()).unwrap().tombstones_dropped, 100);
        reader.refresh().unwrap();
        check(&reader, &model);
    }
}

#[test]
fn a_store_is_opened_while_a_compaction_fails() {
    let storage = MemoryStorage::new();
    let open = |lane, storage: Arc<dyn Storage>| options().lane(Lane::Number(lane)).open_on(storage).unwrap();
    let store = open(0, Arc::new(storage.clone()));
    let mut model = Model::new();
    put(&store, &mut model, 0..64, 0);
    put(&store, &mut model, 0..50, 1);
    store.close().unwrap();
    drop(store);
    let faults = FaultStorage::new(Arc::new(storage.clone()));
    let hooked = Hooked::new(Arc::new(faults.clone()));
    let store = open(0, Arc::new(hooked.clone()));
    let (memory, faults) = (storage.clone(), faults.faults());
    *hooked.before_sync.lock().unwrap() = Some(Box::new(move || {
        // The new segment has its name: another writer removes those that it replaces. Then the name cannot be synced.
        if names(&memory, "segments").len() > 2 && names(&memory, "segments").iter().all(|name| !name.ends_with(".tmp"))
        {
            let memory: Arc<dyn Storage> = Arc::new(memory.clone());
            let opened = std::thread::spawn(move || drop(options().lane(Lane::Number(1)).open_on(memory).unwrap()));
            opened.join().unwrap();
            faults.fail_syncs(true);
        }
    }));
    assert!(store.compact(&Compaction::new().join(false)).is_err());
    *hooked.before_sync.lock().unwrap() = None;
    check(store.reader(), &model);
    drop(store);
    let reader = options().open_reader_on(Arc::new(storage)).unwrap();
    check(&reader, &model);
}

#[test]
fn closing_does_not_wait_for_a_slow_compaction() {
    let store = Options::new().open_on(Arc::new(MemoryStorage::new())).unwrap();
    let keys: Vec<u64> = (0..2000).collect();
    for rows in [2000, 1500] {
        store.put_rows(&keys[..rows], &[256], &vec![1.0_f32; 256 * rows]).unwrap();
    }
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| store.compact(&Compaction::new().bytes_per_s(Some(1000))));
        while !store.compaction_progress().is_some_and(|progress| progress.is_rewriting) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let start = Instant::now();
        store.close().unwrap();
        assert!(slow.join().unwrap().is_err());
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    });
    assert_eq!(store.len().unwrap(), 2000);
}
