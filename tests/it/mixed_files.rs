//! Files of other stores among those of a store, and interrupted openings. No row disappears silently, no number is
//! used twice, and a healthy store is reported as clean.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tensorcask::storage::{FaultStorage, MemoryStorage, Storage};
use tensorcask::{Lane, Options, Reader, Recovery, Store, Value};

fn options() -> Options {
    Options::new().synchronous(true).refresh_interval(Duration::ZERO)
}

fn open(storage: &MemoryStorage, lane: u16) -> Store {
    options().lane(Lane::Number(lane)).open_on(Arc::new(storage.clone())).unwrap()
}

fn reader(storage: &MemoryStorage) -> Reader {
    options().open_reader_on(Arc::new(storage.clone())).unwrap()
}

fn put(store: &Store, keys: std::ops::Range<u64>) {
    for key in keys {
        store.put(key, Value::Int(key as i64)).unwrap();
    }
    store.flush().unwrap();
}

fn sealed_name(lane: u16, number: u64) -> String {
    format!("segments/{lane:04}-{number:010}.arrow")
}

fn active_name(number: u64) -> String {
    sealed_name(0, number) + ".open"
}

/// Everything that was written, as after a kill.
fn killed(storage: &MemoryStorage) -> MemoryStorage {
    storage.power_loss_keeping(|_, _, len_bytes| len_bytes)
}

/// A store with `sealed` segments of ten rows. If `active`, a killed writer has left five more rows, from 500 on, in
/// its active segment.
fn store(sealed: u64, active: bool) -> MemoryStorage {
    let storage = MemoryStorage::new();
    for number in 0..sealed {
        let store = open(&storage, 0);
        put(&store, number * 10..number * 10 + 10);
        store.close().unwrap();
    }
    let writer = open(&storage, 0);
    if active {
        put(&writer, 500..505);
    }
    killed(&storage)
}

fn is_there(reader: &Reader, mut keys: impl Iterator<Item = u64>) -> bool {
    keys.all(|key| reader.get(key).unwrap() == Some(Value::Int(key as i64)))
}

fn strict_refuses(storage: &MemoryStorage) {
    for lane in [Lane::Auto, Lane::Number(0), Lane::Number(3)] {
        let strict = options().recovery(Recovery::Strict).lane(lane);
        assert!(strict.open_on(Arc::new(storage.clone())).unwrap_err().is_corrupt());
    }
}

fn files(storage: &MemoryStorage, folder: &str) -> Vec<String> {
    storage.list(Path::new(folder)).unwrap().into_iter().map(|entry| format!("{folder}/{}", entry.name)).collect()
}

#[test]
fn rows_of_an_active_segment_are_served_behind_a_bad_file_with_its_sealed_name() {
    let foreign = store(3, false).read(sealed_name(0, 2)).unwrap();
    for bytes in [&foreign[..], b"", b"garbage"] {
        for first_lane in [0, 1] {
            let storage = store(1, true);
            storage.write(sealed_name(0, 2), bytes).unwrap();
            strict_refuses(&storage);
            for turn in 0..3_u64 {
                assert!(is_there(&reader(&storage), 500..505));
                let store = open(&storage, (first_lane + turn as u16) % 2);
                assert!(!store.open_report().is_clean());
                put(&store, 900 + turn..901 + turn);
                assert!(is_there(store.reader(), (0..10).chain(500..505).chain(900..901 + turn)), "turn {turn}");
                store.close().unwrap();
            }
            let all = [files(&storage, "segments"), files(&storage, "quarantine")].concat();
            assert!(all.iter().any(|path| storage.read(path).unwrap() == bytes), "the file is gone");
        }
    }
}

#[test]
fn an_active_file_beside_its_sealed_segment_is_a_copy_only_if_it_has_no_rows_of_its_own() {
    let (one, two) = (store(1, true), store(1, true));
    // `two` is another store; `fork` is a copy of `one` that is written to on its own.
    let fork = killed(&one);
    let before = one.read(active_name(2)).unwrap();
    open(&one, 0).close().unwrap();
    let forked = open(&fork, 0);
    put(&forked, 600..605);
    for (bytes, is_copy) in [
        (before, true),
        (killed(&fork).read(active_name(2)).unwrap(), false),
        (two.read(active_name(2)).unwrap(), false),
    ] {
        let both = killed(&one);
        both.write(active_name(2), &bytes).unwrap();
        assert_eq!(reader(&both).open_report().is_clean(), is_copy);
        if !is_copy {
            strict_refuses(&both);
        }
        for lane in [0, 1, 0] {
            let store = open(&both, lane);
            assert_eq!(store.open_report().is_clean(), is_copy, "{:?}", store.open_report());
            assert_eq!(store.verify(&mut |_, _| {}).unwrap().is_clean(), is_copy);
            assert!(is_there(store.reader(), (0..10).chain(500..505)));
            assert_eq!(both.read(active_name(2)).unwrap(), bytes);
        }
    }
}

#[test]
fn the_newest_segment_of_a_lane_is_missed_after_its_marks_were_written_anew() {
    // The newest segment is sealed, and an older segment of another structure is active when the writer is killed.
    let storage = MemoryStorage::new();
    let writer = options().segment_rows(20).open_on(Arc::new(storage.clone())).unwrap();
    put(&writer, 0..5);
    for key in 100..125_u64 {
        writer.put(key, Value::Str("x".into())).unwrap();
    }
    writer.flush().unwrap();
    // Void segment numbers of another lane.
    let other = store(3, false);
    let lane = open(&other, 1);
    put(&lane, 700..710);
    lane.close().unwrap();
    drop(lane);
    other.write(sealed_name(1, 1), b"garbage").unwrap();
    for (storage, newest) in [(killed(&storage), 2), (other, 3)] {
        open(&storage, 0).close().unwrap();
        storage.remove(Path::new(&sealed_name(0, newest))).unwrap();
        assert_eq!(reader(&storage).open_report().missing.len(), 1);
        let store = open(&storage, 0);
        assert_eq!(store.open_report().missing.len(), 1, "{:?}", store.open_report());
        put(&store, 900..901);
        store.close().unwrap();
        assert!(!files(&storage, "segments").contains(&sealed_name(0, newest)), "a number was given out twice");
    }
}

#[test]
fn a_segment_under_the_name_of_an_unfinished_repair_is_kept() {
    let whole = store(2, true);
    for from in [sealed_name(0, 1), sealed_name(0, 2), active_name(3)] {
        for number in [1, 2, 3, 9] {
            let storage = killed(&whole);
            let bytes = storage.read(&from).unwrap();
            storage.remove(Path::new(&from)).unwrap();
            storage.write(sealed_name(0, number) + ".tmp", &bytes).unwrap();
            strict_refuses(&storage);
            for lane in [0, 1, 0] {
                assert!(!reader(&storage).open_report().is_clean());
                let store = open(&storage, lane);
                assert!(!store.open_report().quarantined.is_empty(), "{from} as {number}: {:?}", store.open_report());
                assert_eq!(storage.read(sealed_name(0, number) + ".tmp").unwrap(), bytes);
            }
        }
    }
}

#[test]
fn the_identity_is_read_from_damaged_segments_if_nothing_else_tells_it() {
    for remove in [true, false] {
        let storage = store(1, false);
        let len_bytes = storage.len_bytes(Path::new(&sealed_name(0, 1))).unwrap();
        storage.corrupt(sealed_name(0, 1), len_bytes - 2, 0x41).unwrap();
        if remove {
            storage.remove(Path::new("store.json")).unwrap();
        } else {
            storage.corrupt("store.json", 20, 1).unwrap();
        }
        assert!(is_there(&reader(&storage), 0..10));
        assert!(is_there(open(&storage, 0).reader(), 0..10));
    }
}

#[test]
fn a_repair_that_is_stopped_anywhere_loses_nothing_and_is_acknowledged_once() {
    let end = |storage: &MemoryStorage, path: &str| storage.len_bytes(Path::new(path)).unwrap();
    for (bytes, lost) in [(None, 0..0), (Some(&b"garbage"[..]), 10..20)] {
        let storage = store(3, true);
        match bytes {
            Some(bytes) => storage.write(sealed_name(0, 2), bytes).unwrap(),
            None => storage.corrupt(sealed_name(0, 2), end(&storage, &sealed_name(0, 2)) - 2, 0x41).unwrap(),
        }
        for operations in 0.. {
            let copy = killed(&storage);
            let fault = FaultStorage::new(Arc::new(copy.clone()));
            fault.faults().fail_after_operations(operations);
            let is_done = options().open_on(Arc::new(fault.clone())).is_ok();
            let copy = copy.power_loss();
            for lane in [0, 1, 0] {
                assert!(is_there(&reader(&copy), (0..30).chain(500..505).filter(|key| !lost.contains(key))));
                let store = open(&copy, lane);
                assert!(is_there(store.reader(), (0..30).chain(500..505).filter(|key| !lost.contains(key))));
                assert!(!store.open_report().is_clean());
                assert!(!store.verify(&mut |_, _| {}).unwrap().is_clean());
                store.close().unwrap();
            }
            // The loss is acknowledged, and then the quarantine folder is emptied.
            open(&copy, 0).acknowledge_damage().unwrap();
            assert!(open(&copy, 0).open_report().is_clean());
            files(&copy, "quarantine").iter().for_each(|path| copy.remove(Path::new(path)).unwrap());
            let store = open(&copy, 0);
            assert!(store.open_report().is_clean(), "{operations}: {:?}", store.open_report());
            if is_done {
                break;
            }
        }
    }
}

#[test]
fn a_store_of_a_newer_version_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    options().open(dir.path(), "m").unwrap().close().unwrap();
    // The checksum covers the members that every version has.
    let identity = r#"{"format":99,"store":"00000000-0000-0000-0000-000000000007","hash":0,"crc32":CRC}"#;
    let crc = crc32fast::hash(b"99 00000000-0000-0000-0000-000000000007 0").to_string();
    std::fs::write(dir.path().join("m/store.json"), identity.replace("CRC", &crc)).unwrap();
    for folder in ["lanes", "quarantine", "runs", "segments"] {
        std::fs::remove_dir_all(dir.path().join("m").join(folder)).unwrap();
    }
    let error = options().open(dir.path(), "m").unwrap_err();
    assert!(matches!(error, tensorcask::Error::NewerFormat { found: 99, .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path().join("m")).unwrap().count(), 1);
}

#[test]
fn readers_and_writers_that_open_while_others_write_and_merge_find_a_clean_store() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    options().open(dir.path(), "m").unwrap().close().unwrap();
    let options = || options().segment_rows(7).memtable_keys(50).flush_every(3, 1 << 20);
    std::thread::scope(|scope| {
        let (dir, stop) = (dir.path(), &stop);
        let writers: Vec<_> = (0..2_u16)
            .map(|lane| {
                scope.spawn(move || {
                    for turn in 0..12_u64 {
                        let store = options().lane(Lane::Number(lane)).open(dir, "m").unwrap();
                        assert!(store.open_report().is_clean(), "{:?}", store.open_report());
                        let first = (u64::from(lane) * 100 + turn) * 1000;
                        put(&store, first..first + 40);
                        store.merge_index().unwrap();
                        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
                        store.close().unwrap();
                    }
                })
            })
            .collect();
        let reading = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let reader = options().open_reader(dir, "m").unwrap();
                assert!(reader.open_report().is_clean(), "{:?}", reader.open_report());
            }
        });
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(reading.join().is_ok() && written.iter().all(Result::is_ok));
    });
}
