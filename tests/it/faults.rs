//! A file system that fails: errors are returned, reads continue, and rows that were flushed before survive.

use std::sync::Arc;

use tensorcask::storage::{FaultStorage, MemoryStorage, Storage};
use tensorcask::{Error, Lane, Options, Recovery, Result, Store};

const DIMS: usize = 16;

fn row(key: u64) -> Vec<f32> {
    vec![key as f32; DIMS]
}

fn options() -> Options {
    Options::new().synchronous(true).segment_rows(30).memtable_keys(50).flush_every(8, 1 << 20)
}

/// Puts and flushes until an error occurs. Returns the number of flushed keys.
fn workload(store: &Store, flushed: &mut u64) -> Result<()> {
    for batch in 0..20_u64 {
        let keys: Vec<u64> = (batch * 7..batch * 7 + 7).collect();
        store.put_rows(&keys, &[DIMS], &keys.iter().flat_map(|key| row(*key)).collect::<Vec<_>>())?;
        // Rows that were put can be read, even if the disk failed.
        assert!(store.contains_batch(&keys)?.iter().all(|there| *there));
        if batch % 3 == 2 {
            store.flush()?;
            *flushed = batch * 7 + 7;
        }
    }
    store.close()?;
    *flushed = 140;
    Ok(())
}

fn check(storage: &MemoryStorage, flushed: u64) {
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    for key in 0..140 {
        match store.get(key).unwrap() {
            Some(value) => assert_eq!(value.into_tensor().unwrap().to_vec::<f32>().unwrap(), row(key)),
            None => assert!(key >= flushed, "key {key} of {flushed} that were flushed is gone"),
        }
    }
    let found = store.verify(&mut |_, _| {}).unwrap();
    assert!(found.is_clean(), "{found:?}");
    store.close().unwrap();
}

#[test]
fn every_operation_may_fail() {
    let count = {
        let faulty = FaultStorage::new(Arc::new(MemoryStorage::new()));
        let store = options().open_on(Arc::new(faulty.clone())).unwrap();
        let before = faulty.faults().operations();
        workload(&store, &mut 0).unwrap();
        faulty.faults().operations() - before
    };
    assert!(count > 40);
    for failing in 0..count {
        let memory = MemoryStorage::new();
        let faulty = FaultStorage::new(Arc::new(memory.clone()));
        let store = options().open_on(Arc::new(faulty.clone())).unwrap();
        faulty.faults().fail_after_operations(failing);
        let mut flushed = 0;
        let failure = workload(&store, &mut flushed).unwrap_err();
        assert!(!failure.to_string().is_empty());
        // Reads continue.
        for key in 0..flushed {
            assert!(store.get(key).unwrap().is_some());
        }
        faulty.faults().clear();
        let _ = store.close();
        drop(store);
        check(&memory, flushed);
        // Also after power loss, as flushes that returned had synced.
        check(&memory.power_loss(), flushed);
    }
}

#[test]
fn opening_may_fail_anywhere_and_loses_nothing() {
    let memory = MemoryStorage::new();
    let store = options().open_on(Arc::new(memory.clone())).unwrap();
    let keys: Vec<u64> = (0..140).collect();
    store.put_rows(&keys, &[DIMS], &keys.iter().flat_map(|key| row(*key)).collect::<Vec<_>>()).unwrap();
    store.flush().unwrap();
    // The state after a crash: sealed and active segments.
    let crashed = memory.power_loss();
    for failing in 0..40 {
        let copy = crashed.power_loss();
        let faulty = FaultStorage::new(Arc::new(copy.clone()));
        faulty.faults().fail_after_operations(failing);
        if let Ok(store) = options().open_on(Arc::new(faulty.clone())) {
            let _ = store.close();
        }
        check(&copy, 140);
    }
}

#[test]
fn a_full_disk_poisons_the_writer() {
    for space in [10_u64, 500, 1500, 4000, 9000] {
        let memory = MemoryStorage::new();
        let faulty = FaultStorage::new(Arc::new(memory.clone()));
        let store = options().open_on(Arc::new(faulty.clone())).unwrap();
        faulty.faults().fail_after_bytes(space);
        let mut flushed = 0;
        let failure = workload(&store, &mut flushed).unwrap_err();
        assert!(matches!(&failure, Error::Poisoned { .. }), "{failure}");
        assert!(failure.to_string().contains("free space"), "{failure}");
        // The same files are not written again.
        faulty.faults().clear();
        assert!(matches!(store.put_rows(&[9999_u64], &[DIMS], &row(1)), Err(Error::Poisoned { .. })));
        assert!(matches!(store.flush(), Err(Error::Poisoned { .. })));
        assert!(matches!(store.close(), Err(Error::Poisoned { .. })));
        drop(store);
        check(&memory, flushed);
    }
}

#[test]
fn a_failed_sync_is_not_retried() {
    let memory = MemoryStorage::new();
    let faulty = FaultStorage::new(Arc::new(memory) as Arc<dyn Storage>);
    let store = options().synchronous(false).open_on(Arc::new(faulty.clone())).unwrap();
    store.put_rows(&[1_u64], &[DIMS], &row(1)).unwrap();
    faulty.faults().fail_syncs(true);
    assert!(matches!(store.flush(), Err(Error::Poisoned { .. })));
    faulty.faults().clear();
    assert!(matches!(store.flush(), Err(Error::Poisoned { .. })));
    assert!(store.contains(1).unwrap());
}

/// A store with sealed segments of two lanes, a run, a segment number of lane 0 without a file, and an active segment
/// of lane 2.
fn shared_store(storage: &MemoryStorage) -> Store {
    let faulty = FaultStorage::new(Arc::new(storage.clone()));
    let killed = options().open_on(Arc::new(faulty.clone())).unwrap();
    killed.put_rows(&[1000_u64], &[DIMS], &row(1000)).unwrap();
    faulty.faults().fail_after_bytes(1200);
    killed.flush().unwrap_err();
    drop(killed);
    for lane in 0..2_u16 {
        let store = options().lane(Lane::Number(lane)).open_on(Arc::new(storage.clone())).unwrap();
        let keys: Vec<u64> = (0..60).map(|key| key + 100 * u64::from(lane)).collect();
        store.put_rows(&keys, &[DIMS], &keys.iter().flat_map(|key| row(*key)).collect::<Vec<_>>()).unwrap();
        store.close().unwrap();
    }
    let store = options().lane(Lane::Number(2)).open_on(Arc::new(storage.clone())).unwrap();
    store.put_rows(&[200_u64], &[DIMS], &row(200)).unwrap();
    store.flush().unwrap();
    store
}

fn files(storage: &MemoryStorage) -> Vec<String> {
    let folders = ["segments", "runs", "lanes", "quarantine"];
    let names = folders.iter().flat_map(|folder| {
        let entries = storage.list(std::path::Path::new(folder)).unwrap();
        entries.into_iter().map(move |entry| format!("{folder}/{}", entry.name))
    });
    names.chain(["store.json".to_owned()]).collect()
}

#[test]
fn one_file_that_may_not_be_read_stops_no_reader() {
    let storage = MemoryStorage::new();
    let _writer = shared_store(&storage);
    let names = files(&storage);
    assert!(names.iter().any(|name| name.ends_with(".run")) && names.iter().any(|name| name.ends_with(".open")));
    for name in &names {
        let faulty = FaultStorage::new(Arc::new(storage.clone()));
        faulty.faults().deny([name]);
        let reader = options().open_reader_on(Arc::new(faulty.clone())).unwrap();
        let (report, lost) = (reader.open_report(), name.starts_with("segments/"));
        let is_told = lost || name == "store.json";
        for key in (0..60_u64).chain(100..160).chain([200]) {
            match reader.get(key).unwrap() {
                Some(value) => assert_eq!(value.into_tensor().unwrap().to_vec::<f32>().unwrap(), row(key), "{name}"),
                None => assert!(lost, "{name}: key {key} is gone"),
            }
        }
        assert!(reader.len().unwrap() >= 31, "{name}: the rows of other files are there");
        let told = report.quarantined.iter().any(|file| file.path.ends_with(name) && file.moved_to.is_none());
        assert_eq!(told, is_told, "{name}: {report:?}");
        assert_eq!(report.is_clean(), !(is_told || name.ends_with(".run")), "{name}: {report:?}");
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().is_clean(), !is_told, "{name}");
        reader.refresh().unwrap();
        // In strict mode opening fails as a whole.
        let strict = options().recovery(Recovery::Strict).open_reader_on(Arc::new(faulty.clone()));
        assert_eq!(strict.is_err(), !report.is_clean(), "{name}");
    }
    assert_eq!(files(&storage), names);
}

#[test]
fn a_writer_leaves_what_it_may_not_read_where_it_is() {
    let storage = MemoryStorage::new();
    drop(shared_store(&storage));
    for name in files(&storage).iter().filter(|name| name.ends_with(".arrow") || name.ends_with(".run")) {
        let before = storage.read(name).unwrap();
        let faulty = FaultStorage::new(Arc::new(storage.clone()));
        faulty.faults().deny([name]);
        let store = options().lane(Lane::Number(3)).open_on(Arc::new(faulty.clone())).unwrap();
        assert!(!store.open_report().is_clean(), "{name}");
        store.put_rows(&[300_u64], &[DIMS], &row(300)).unwrap();
        store.close().unwrap();
        assert_eq!(storage.read(name).unwrap(), before, "{name}");
        let strict = options().lane(Lane::Number(3)).recovery(Recovery::Strict).open_on(Arc::new(faulty));
        assert!(strict.is_err(), "{name}");
    }
    // A lane of another user is skipped, but is an error if it was requested.
    let faulty = FaultStorage::new(Arc::new(storage.clone()));
    faulty.faults().deny(["lanes/0000.lock", "lanes/0001.lock"]);
    let store = options().lane(Lane::Auto).open_on(Arc::new(faulty.clone())).unwrap();
    assert_eq!(store.lane(), 2);
    store.close().unwrap();
    assert!(options().open_on(Arc::new(faulty)).unwrap_err().is_denied());
}
