//! Rows that are put, flushed and overwritten in batches: the newest version is read, and the count is right.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use tensorcask::storage::{FaultStorage, MemoryStorage};
use tensorcask::{Durability, Error, Options, Reader, Store};

use crate::compaction_stops::Hooked;

/// Rows of 4 KiB. 128 of them are enough to be written directly from the caller's memory.
const DIMS: usize = 1024;
const ROWS: u64 = 128;

fn rows(keys: &[u64], version: u64) -> Vec<f32> {
    keys.iter().flat_map(|key| (0..DIMS as u64).map(move |at| (key * 1000 + version * 7 + at) as f32)).collect()
}

fn put(store: &Store, keys: &[u64], version: u64) {
    store.put_rows(keys, &[DIMS], &rows(keys, version)).unwrap();
}

/// Checks that `reader` has the versions of `model`, and no other keys below 10,000.
fn check(reader: &Reader, model: &BTreeMap<u64, u64>) {
    let keys: Vec<u64> = model.keys().copied().collect();
    let mut out = vec![0.0_f32; keys.len() * DIMS];
    let mut found = vec![false; keys.len()];
    assert_eq!(reader.get_batch_into(&keys, &[DIMS], &mut out, &mut found).unwrap(), keys.len());
    for ((key, version), row) in model.iter().zip(out.chunks(DIMS)) {
        assert!(row == rows(&[*key], *version), "key {key} is not of version {version}");
    }
    assert_eq!(reader.len().unwrap(), model.len() as u64);
}

#[test]
fn a_large_put_is_written_part_by_part() {
    let dir = tempfile::tempdir().unwrap();
    // Each put has eight parts, of which a segment holds three.
    let part_bytes = ROWS as usize * DIMS * 4;
    let store = Options::new().segment_bytes(3 * part_bytes as u64).flush_every(1 << 20, part_bytes);
    let store = store.open(dir.path(), "m").unwrap();
    let (mut model, mut written_at_once) = (BTreeMap::new(), 0);
    for turn in 0..6 {
        // Some keys of the previous put are put again, and one key occurs in two parts.
        let mut keys: Vec<u64> = (turn * 7 * ROWS..(turn + 1) * 8 * ROWS).collect();
        keys.push(turn * 7 * ROWS);
        put(&store, &keys, turn);
        // False if the writer is still busy with earlier rows.
        written_at_once += usize::from(store.waiting().is_empty());
        model.extend(keys.iter().map(|key| (*key, turn)));
        check(store.reader(), &model);
        store.flush_with(Durability::Buffered).unwrap();
    }
    assert!(written_at_once > 0);
    store.close().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    check(store.reader(), &model);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn a_flush_waits_for_the_data_of_a_full_segment_and_not_for_its_index() {
    const KEYS: u64 = 20_000;
    let memory = MemoryStorage::new();
    let storage = Hooked::new(Arc::new(memory.clone()));
    let store = Options::new().segment_bytes(4 << 20).segment_rows(1000).open_on(Arc::new(storage.clone())).unwrap();
    let keys: Vec<u64> = (0..KEYS).collect();
    let rows: Vec<f32> = (0..4 * KEYS).map(|at| at as f32).collect();
    store.put_rows(&[KEYS], &[4], &[0.0_f32; 4]).unwrap();
    store.flush().unwrap();
    // A sealed segment is renamed at last.
    let (release, held) = channel::<()>();
    *storage.before_rename.lock().unwrap() = Some(Box::new(move || held.recv().unwrap_or(())));
    let (flushed, done) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.put_rows(&keys, &[4], &rows).unwrap();
            flushed.send(store.flush()).unwrap();
        });
        let in_time = done.recv_timeout(Duration::from_secs(60));
        let lost = memory.power_loss();
        drop(release);
        in_time.expect("the flush waits for the rename").unwrap();
        let reader = Options::new().open_reader_on(Arc::new(lost)).unwrap();
        assert!(reader.open_report().is_clean(), "{:?}", reader.open_report());
        let (mut out, mut found) = (vec![0.0_f32; rows.len()], vec![false; keys.len()]);
        assert_eq!(reader.get_batch_into(&keys, &[4], &mut out, &mut found).unwrap(), keys.len());
        assert!(out == rows);
    });
    store.close().unwrap();
    let reader = Options::new().open_reader_on(Arc::new(memory.power_loss())).unwrap();
    assert_eq!(reader.len().unwrap(), KEYS + 1);
}

#[test]
fn batches_that_are_flushed_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new().segment_bytes(2 << 20).memtable_keys(400);
    let store = options().open(dir.path(), "m").unwrap();
    let reader = {
        put(&store, &[5000], 0);
        store.flush().unwrap();
        Reader::open(dir.path(), "m").unwrap()
    };
    let mut model = BTreeMap::from([(5000, 0)]);
    let mut written_at_once = 0;
    for turn in 0..24_u64 {
        // Half of the keys are new, some occur twice, and every third turn uses two puts.
        let mut keys: Vec<u64> = (turn * ROWS / 2..turn * ROWS / 2 + ROWS).collect();
        keys.extend([turn, turn * ROWS / 2, turn]);
        put(&store, &keys, turn);
        // False if the writer is sealing for a merge.
        written_at_once += usize::from(store.waiting().is_empty());
        model.extend(keys.iter().map(|key| (*key, turn)));
        check(store.reader(), &model);
        if turn % 3 == 0 {
            put(&store, &keys[..ROWS as usize], 100 + turn);
            model.extend(keys[..ROWS as usize].iter().map(|key| (*key, 100 + turn)));
            check(store.reader(), &model);
        }
        store.flush_with(if turn % 2 == 0 { Durability::Buffered } else { Durability::SyncData }).unwrap();
        if turn % 5 == 0 {
            assert_eq!(store.delete_batch(&[turn * ROWS / 2, 9999]).unwrap(), 1);
            model.remove(&(turn * ROWS / 2));
            store.flush().unwrap();
        }
        reader.refresh().unwrap();
        check(&reader, &model);
    }
    check(store.reader(), &model);
    assert!(written_at_once > 0);
    store.close().unwrap();
    assert!(store.stats().unwrap().runs > 0);
    let store = options().open(dir.path(), "m").unwrap();
    assert!(store.open_report().is_clean());
    check(store.reader(), &model);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn overwriting_keeps_one_entry_a_key_and_the_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    let put = |store: &Store, keys: &[u64], version: u64| {
        let rows: Vec<u64> = keys.iter().map(|key| key << 8 | version).collect();
        store.put_rows(keys, &[1], &rows).unwrap();
    };
    let keys: Vec<u64> = (0..20_000).collect();
    for version in 0..10 {
        put(&store, &keys, version);
        assert_eq!(store.len().unwrap(), 20_000);
        assert_eq!(store.stats().unwrap().memtable_keys, 20_000);
    }
    store.close().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    assert_eq!((store.stats().unwrap().runs, store.stats().unwrap().memtable_keys), (1, 0));
    // Keys that are in a run, new keys, and duplicates of both.
    let mut keys: Vec<u64> = (15_000..25_000).collect();
    keys.extend(18_000..22_000);
    put(&store, &keys, 77);
    assert_eq!(store.len().unwrap(), 25_000);
    assert_eq!(store.stats().unwrap().memtable_keys, 10_000);
    assert_eq!(store.delete_batch(&keys).unwrap(), 10_000);
    assert_eq!(store.len().unwrap(), 15_000);
    put(&store, &keys, 78);
    assert_eq!(store.len().unwrap(), 25_000);
    store.close().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    assert_eq!(store.len().unwrap(), 25_000);
    let mut out = vec![0_u64; keys.len()];
    let mut found = vec![false; keys.len()];
    store.get_batch_into(&keys, &[1], &mut out, &mut found).unwrap();
    assert!(keys.iter().zip(&out).all(|(key, row)| *row == key << 8 | 78));
}

#[test]
fn what_was_flushed_survives_power_loss() {
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(3 << 20).open_on(Arc::new(storage.clone())).unwrap();
    let mut model = BTreeMap::new();
    for turn in 0..12_u64 {
        let keys: Vec<u64> = (turn * ROWS..(turn + 1) * ROWS).collect();
        put(&store, &keys, turn);
        // The put may have filled a segment, and sealing makes its rows durable.
        let after = Options::new().open_on(Arc::new(storage.power_loss())).unwrap();
        let kept = after.len().unwrap() as usize;
        assert!(kept == model.len() || kept == model.len() + ROWS as usize, "{kept} rows");
        model.extend(keys.iter().map(|key| (*key, turn)));
        store.flush().unwrap();
        let after = Options::new().open_on(Arc::new(storage.power_loss())).unwrap();
        check(after.reader(), &model);
    }
}

#[test]
fn a_failed_write_in_a_put_stops_the_writer_and_nothing_else() {
    let storage = FaultStorage::new(Arc::new(MemoryStorage::new()));
    let faults = storage.faults();
    let store = Options::new().open_on(Arc::new(storage)).unwrap();
    let keys: Vec<u64> = (0..ROWS).collect();
    put(&store, &keys, 1);
    store.flush().unwrap();
    faults.fail_after_bytes(100_000);
    let failed = store.put_rows(&keys, &[DIMS], &rows(&keys, 2));
    assert!(matches!(failed, Err(Error::Poisoned { .. })), "{failed:?}");
    assert!(matches!(store.put(1_u64, &tensorcask::Value::Null), Err(Error::Poisoned { .. })));
    assert!(matches!(store.flush(), Err(Error::Poisoned { .. })));
    check(store.reader(), &keys.iter().map(|key| (*key, 1)).collect());
}

#[test]
fn of_two_threads_puts_the_one_that_is_read_is_the_one_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_bytes(4 << 20).memtable_keys(500).open(dir.path(), "m").unwrap();
    let keys: Vec<u64> = (0..ROWS).collect();
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (store, keys) = (&store, &keys);
            scope.spawn(move || {
                for turn in 0..20 {
                    // One thread makes small puts, which wait in the queue.
                    let part = if thread == 2 { &keys[turn as usize..=turn as usize] } else { keys };
                    put(store, part, thread * 1000 + turn);
                    store.flush_with(Durability::Buffered).unwrap();
                }
            });
        }
    });
    assert_eq!(store.len().unwrap(), ROWS);
    let read = |store: &Reader| {
        let mut out = vec![0.0_f32; keys.len() * DIMS];
        store.get_batch_into(&keys, &[DIMS], &mut out, &mut vec![false; keys.len()]).unwrap();
        out
    };
    let before = read(store.reader());
    store.close().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    assert!(read(store.reader()) == before);
    assert_eq!(store.len().unwrap(), ROWS);
}

#[test]
fn a_writer_at_rest_wakes_for_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    for turn in 0..2_u64 {
        put(&store, &[turn], turn);
        let begin = std::time::Instant::now();
        while !store.waiting().is_empty() {
            assert!(begin.elapsed().as_secs() < 30, "nobody writes");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // By then the writer sleeps.
        std::thread::sleep(std::time::Duration::from_millis(1300 * (1 - turn)));
    }
}

#[test]
fn a_firm_flush_reaches_segments_that_were_sealed_without_one() {
    let storage = MemoryStorage::new();
    let options = || Options::new().durability(Durability::Buffered).segment_rows(40);
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = BTreeMap::new();
    for first in (0..200).step_by(50) {
        let keys: Vec<u64> = (first..first + 50).collect();
        put(&store, &keys, 1);
        store.flush().unwrap();
        model.extend(keys.iter().map(|key| (*key, 1)));
    }
    store.flush_with(Durability::SyncData).unwrap();
    let after = options().open_reader_on(Arc::new(storage.power_loss())).unwrap();
    check(&after, &model);
    assert!(after.open_report().quarantined.is_empty(), "{:?}", after.open_report());
}

#[test]
fn rows_may_wait_for_ever_to_be_written() {
    let storage = MemoryStorage::new();
    let store = Options::new().flush_interval(Duration::MAX).open_on(Arc::new(storage.clone())).unwrap();
    put(&store, &[1], 1);
    std::thread::sleep(Duration::from_millis(20));
    store.flush().unwrap();
    put(&store, &[2], 1);
    store.close().unwrap();
    let reader = Options::new().open_reader_on(Arc::new(storage)).unwrap();
    check(&reader, &BTreeMap::from([(1, 1), (2, 1)]));
}

/// A writer was killed while it sealed one segment and wrote the next segment of the same structure.
#[test]
fn two_active_segments_of_one_structure() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new().segment_bytes(2 << 20);
    let segments = dir.path().join("m/segments");
    let active = |name: &str| segments.join(format!("{name}.arrow.open"));
    let mut model = BTreeMap::new();
    let mut put_some = |store: &Store, first: u64| {
        let keys: Vec<u64> = (first..first + ROWS).collect();
        put(store, &keys, first);
        store.flush().unwrap();
        model.extend(keys.iter().map(|key| (*key, first)));
        model.clone()
    };
    let first = "0000-0000000001";
    let store = options().open(dir.path(), "m").unwrap();
    put_some(&store, 0);
    let kept = std::fs::read(active(first)).unwrap();
    store.close().unwrap();
    let store = options().open(dir.path(), "m").unwrap();
    put_some(&store, 64);
    let second = std::fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let second: Vec<String> = second.filter(|name| name.ends_with(".open")).collect();
    let newer = std::fs::read(segments.join(&second[0])).unwrap();
    store.close().unwrap();
    // The state that the kill leaves.
    std::fs::remove_dir_all(dir.path().join("m/runs")).unwrap();
    for entry in std::fs::read_dir(&segments).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    std::fs::write(active(first), kept).unwrap();
    std::fs::write(segments.join(&second[0]), newer).unwrap();

    let store = options().open(dir.path(), "m").unwrap();
    assert_eq!(store.open_report().quarantined.len(), 0);
    for first in (200..2000).step_by(200) {
        let model = put_some(&store, first);
        check(store.reader(), &model);
    }
    store.close().unwrap();
    let store = options().open(dir.path(), "m").unwrap();
    check(store.reader(), &model);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}
