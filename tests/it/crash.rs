//! Power loss and `kill -9`: flushed rows survive, and no wrong row is ever returned.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tensorcask::storage::{MemoryStorage, Storage};
use tensorcask::{Dtype, Durability, Options, Reader, Recovery, Store};

const DIMS: usize = 24;

fn row(key: u64, version: u64) -> Vec<f32> {
    (0..DIMS).map(|i| (key * 1000 + version * 50 + i as u64) as f32).collect()
}

fn options() -> Options {
    Options::new().synchronous(true).segment_rows(40).memtable_keys(90).flush_every(8, 1 << 20)
}

/// Versions of each key: the last flushed one, and those put since.
type Promised = BTreeMap<u64, (Option<u64>, Vec<u64>)>;

/// Runs puts and flushes, and calls `at` after every step.
fn script(storage: &MemoryStorage, at: &mut dyn FnMut(&MemoryStorage, &Promised)) {
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut promised = Promised::new();
    let mut state = 12345_u64;
    let mut random = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for step in 0..60 {
        if random(5) == 0 {
            store.flush().unwrap();
            for (flushed, since) in promised.values_mut() {
                *flushed = since.last().copied().or(*flushed);
                since.clear();
            }
        } else {
            let keys: Vec<u64> = (0..1 + random(12)).map(|_| random(80)).collect();
            let rows: Vec<f32> = keys.iter().flat_map(|key| row(*key, step)).collect();
            store.put_rows(&keys, &[DIMS], &rows).unwrap();
            for key in keys {
                promised.entry(key).or_default().1.push(step);
            }
        }
        at(storage, &promised);
    }
}

fn check(reader: &Reader, promised: &Promised) {
    for key in 0..80_u64 {
        let (flushed, since) = promised.get(&key).cloned().unwrap_or_default();
        match reader.get(key).unwrap() {
            None => assert_eq!(flushed, None, "key {key} was flushed and is gone"),
            Some(value) => {
                let found = value.into_tensor().unwrap().to_vec::<f32>().unwrap();
                let possible = flushed.into_iter().chain(since);
                assert!(possible.into_iter().any(|version| row(key, version) == found), "key {key} has {found:?}");
            }
        }
    }
    assert!(reader.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn power_loss_keeps_what_was_flushed() {
    let mut seed = 7_u64;
    script(&MemoryStorage::new(), &mut |storage, promised| {
        // Only synced bytes survive.
        let bare = storage.power_loss();
        let store = options().recovery(Recovery::Strict).open_on(Arc::new(bare)).unwrap();
        check(store.reader(), promised);
        // Some unsynced bytes survive: a random prefix of each file.
        let partly = storage.power_loss_keeping(|_, synced, len| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            synced + (seed >> 33) % (len - synced + 1)
        });
        let reader = options().open_reader_on(Arc::new(partly.clone()));
        if let Ok(reader) = reader {
            check(&reader, promised);
        }
        let store = options().recovery(Recovery::Strict).open_on(Arc::new(partly.clone())).unwrap();
        check(store.reader(), promised);
        // All unsynced bytes survive, but with holes: pages are written back in any order.
        let mut unsynced = Vec::new();
        let holes = storage.power_loss_keeping(|path, synced, len| {
            unsynced.push((path.to_owned(), synced, len));
            len
        });
        for (path, synced, len) in unsynced.into_iter().filter(|(_, synced, len)| synced < len) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            holes.corrupt(path, synced + (seed >> 33) % (len - synced), 0x15).unwrap();
        }
        let strict = options().recovery(Recovery::Strict);
        strict.clone().open_reader_on(Arc::new(holes.clone())).unwrap();
        check(strict.open_on(Arc::new(holes)).unwrap().reader(), promised);
        // The store can be used afterwards.
        store.put_rows(&[500_u64], &[DIMS], &row(500, 1)).unwrap();
        store.close().unwrap();
        drop(store);
        let store = options().open_on(Arc::new(partly)).unwrap();
        assert!(store.open_report().is_clean());
        assert!(store.contains(500).unwrap());
        check(store.reader(), promised);
    });
}

#[test]
fn holes_in_values_cut_the_tail() {
    let storage = MemoryStorage::new();
    let store = options().flush_every(1 << 20, 1 << 30).open_on(Arc::new(storage.clone())).unwrap();
    store.put_rows(&[1_u64], &[DIMS], &row(1, 0)).unwrap();
    store.flush().unwrap();
    store.put_rows(&[2_u64], &[DIMS], &row(2, 0)).unwrap();
    store.flush_with(Durability::Buffered).unwrap();
    // The frame of the second batch is whole, but its last value is not, as when pages are written back out of order.
    let copy = storage.power_loss_keeping(|_, _, len| len);
    let path = "segments/0000-0000000001.arrow.open";
    let len = copy.read(path).unwrap().len() as u64;
    copy.corrupt(path, len - 96 - 64, 0xFF).unwrap();
    let store = options().recovery(Recovery::Strict).open_on(Arc::new(copy)).unwrap();
    assert!(store.open_report().bytes_cut > 0);
    assert!(store.contains(1).unwrap());
    assert!(!store.contains(2).unwrap());
}

const ACTIVE: &str = "segments/0000-0000000001.arrow.open";
const MARKS: &str = "lanes/0000.synced";

/// Writes one batch for each entry of `batches`, flushed with its durability level. Returns the storage, and the end
/// offsets of the batches.
fn batches(batches: &[(u64, Durability)]) -> (MemoryStorage, Vec<usize>) {
    let storage = MemoryStorage::new();
    let store = options().flush_every(1 << 20, 1 << 30).open_on(Arc::new(storage.clone())).unwrap();
    let end = |(key, durability): &(u64, Durability)| {
        store.put_rows(&[*key], &[DIMS], &row(*key, 0)).unwrap();
        store.flush_with(*durability).unwrap();
        storage.read(ACTIVE).unwrap().len()
    };
    let ends = batches.iter().map(end).collect();
    let copy = storage.power_loss_keeping(|_, _, len| len);
    // The file keeps its name, although that may not be synced.
    copy.write(ACTIVE, &storage.read(ACTIVE).unwrap()).unwrap();
    (copy, ends)
}

#[test]
fn a_hole_before_a_whole_batch_that_was_never_synced_is_a_torn_tail() {
    use Durability::{Buffered, SyncData};
    for synced in [0, 1, 2] {
        let all = (0..5).map(|key| (key, if key < synced { SyncData } else { Buffered })).collect::<Vec<_>>();
        let (storage, ends) = batches(&all);
        for lose_marks in [false, true] {
            let copy = storage.power_loss();
            if lose_marks {
                copy.truncate(MARKS, 0).unwrap();
            }
            // In the message and in the frame of the second batch that was not synced.
            let (start, end) = (ends[synced as usize], ends[synced as usize + 1]);
            for at in [start + 6, start + 200, end - 20] {
                let copy = copy.power_loss();
                copy.corrupt(ACTIVE, at as u64, 0x15).unwrap();
                let strict = options().recovery(Recovery::Strict);
                let reader = strict.clone().open_reader_on(Arc::new(copy.clone())).unwrap();
                let store = strict.open_on(Arc::new(copy.clone())).unwrap();
                assert!(store.open_report().bytes_cut > 0);
                for reader in [&reader, store.reader()] {
                    for key in 0..5 {
                        assert_eq!(reader.contains(key).unwrap(), key <= synced, "{key} of {synced} at {at}");
                    }
                }
                store.put_rows(&[9_u64], &[DIMS], &row(9, 0)).unwrap();
                store.close().unwrap();
                assert!(store.contains(9).unwrap());
            }
        }
    }
}

#[test]
fn a_hole_in_what_was_synced_is_damage() {
    use Durability::{Buffered, SyncData};
    // Three batches that one sync made durable, and one that was not synced.
    let (storage, ends) = batches(&[(0, Buffered), (1, Buffered), (2, SyncData), (3, Buffered)]);
    for lose_marks in [false, true] {
        for at in (0..ends[2]).step_by(13) {
            let copy = storage.power_loss();
            // Without marks, the last batch is kept, as its frame records the sync as well.
            copy.truncate(ACTIVE, if lose_marks { storage.read(ACTIVE).unwrap().len() } else { ends[2] } as u64)
                .unwrap();
            if lose_marks {
                copy.truncate(MARKS, 0).unwrap();
            }
            copy.corrupt(ACTIVE, at as u64, 0x15).unwrap();
            // No row is silently missing: it is found, or opening fails, or reading it fails.
            let strict = options().recovery(Recovery::Strict);
            if let Ok(reader) = strict.clone().open_reader_on(Arc::new(copy.clone())) {
                assert!((0..3_u64).all(|key| !matches!(reader.get(key), Ok(None))), "byte {at}");
            }
            if let Ok(store) = strict.open_on(Arc::new(copy.clone())) {
                assert!((0..3_u64).all(|key| !matches!(store.get(key), Ok(None))), "byte {at}");
            }
            // Lookups of other keys succeed.
            let store = options().open_on(Arc::new(copy)).unwrap();
            let served = (0..3_u64).filter(|key| matches!(store.get(*key), Ok(Some(_)))).count();
            let whole = at < ends[0] || served == 2;
            assert!(whole || served == 3, "byte {at}: {served}");
        }
    }
}

#[test]
fn without_marks_a_whole_batch_behind_a_hole_makes_it_damage() {
    let (storage, ends) = batches(&[(0, Durability::SyncData), (1, Durability::Buffered), (2, Durability::Buffered)]);
    storage.remove(MARKS.as_ref()).unwrap();
    storage.corrupt(ACTIVE, ends[0] as u64 + 6, 0x15).unwrap();
    let strict = options().recovery(Recovery::Strict);
    assert!(strict.clone().open_reader_on(Arc::new(storage.clone())).unwrap_err().is_corrupt());
    assert!(strict.open_on(Arc::new(storage)).unwrap_err().is_corrupt());
}

#[test]
fn a_file_that_lost_its_synced_end_is_damaged() {
    let (storage, ends) = batches(&[(0, Durability::SyncData), (1, Durability::SyncData)]);
    for keep in [20, ends[0] - 50, ends[0], ends[0] + 50, ends[1] - 1] {
        let copy = storage.power_loss();
        copy.truncate(ACTIVE, keep as u64).unwrap();
        let strict = options().recovery(Recovery::Strict);
        assert!(strict.clone().open_reader_on(Arc::new(copy.clone())).unwrap_err().is_corrupt(), "{keep}");
        assert!(strict.open_on(Arc::new(copy.clone())).unwrap_err().is_corrupt(), "{keep}");
        let reader = options().open_reader_on(Arc::new(copy.clone())).unwrap();
        assert!(!reader.open_report().is_clean(), "{keep}");
        let store = options().open_on(Arc::new(copy)).unwrap();
        assert_eq!(store.open_report().quarantined.len(), 1, "{keep}");
        assert_eq!(store.contains(0).unwrap(), keep >= ends[0], "{keep}");
    }
}

#[test]
fn marks_are_written_anew_before_they_are_many() {
    let storage = MemoryStorage::new();
    let store = options().segment_rows(1 << 20).memtable_keys(1 << 20).open_on(Arc::new(storage.clone())).unwrap();
    for key in 0..4200_u64 {
        store.put_rows(&[key], &[DIMS], &row(key, 0)).unwrap();
        store.flush().unwrap();
    }
    assert!(storage.read(MARKS).unwrap().len() < 4097 * 24);
    let copy = storage.power_loss_keeping(|_, _, len| len);
    copy.corrupt(ACTIVE, copy.read(ACTIVE).unwrap().len() as u64 - 10, 1).unwrap();
    assert!(options().recovery(Recovery::Strict).open_on(Arc::new(copy)).unwrap_err().is_corrupt());
}

const CHILD: &str = "TENSORCASK_CRASH_CHILD";

/// Not a test: the code of the child process of the next test.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let store = Options::new().segment_rows(300).memtable_keys(500).open(dir, "m").unwrap();
    for batch in 0_u64.. {
        let keys: Vec<u64> = (batch * 10..batch * 10 + 10).collect();
        let rows: Vec<f32> = keys.iter().flat_map(|key| row(*key, 0)).collect();
        store.put_rows(&keys, &[DIMS], &rows).unwrap();
        if batch % 3 == 0 {
            store.flush().unwrap();
            println!("\nflushed {}", batch * 10 + 10);
        }
    }
}

#[test]
fn kill_9_loses_nothing_that_was_flushed() {
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut flushed = 0_u64;
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            if let Some(keys) = line.strip_prefix("flushed ") {
                flushed = keys.parse().unwrap();
            }
            if flushed > 1000 + round * 777 {
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        let store = Options::new().recovery(Recovery::Strict).open(dir.path(), "m").unwrap();
        assert!(store.len().unwrap() >= flushed);
        let keys: Vec<u64> = (0..flushed).collect();
        let (mut out, mut found) = (vec![0.0_f32; keys.len() * DIMS], vec![false; keys.len()]);
        assert_eq!(store.get_batch_into(&keys, &[DIMS], &mut out, &mut found).unwrap(), keys.len());
        assert!(keys.iter().zip(out.chunks(DIMS)).all(|(key, found)| found == row(*key, 0)));
        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    }
}

#[test]
fn a_dropped_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    store.put_rows_bytes(&["a"], Dtype::U8, &[2], &[1, 2]).unwrap();
    drop(store);
    assert!(Reader::open(dir.path(), "m").unwrap().contains("a").unwrap());
    assert!(Store::open(dir.path(), "m").unwrap().open_report().is_clean());
}
