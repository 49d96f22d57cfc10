//! Copies of live stores: they have every row that was flushed before, open clean, and are told apart when both are
//! written to.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tensorcask::storage::{DiskStorage, FaultStorage, MemoryStorage, Storage};
use tensorcask::{Backup, Compaction, Error, Lane, Options, Reader, Recovery, Store, Value};

use crate::compaction::{Model, check, closed_history, delete, history, names, options, put};
use crate::storages::copy_folder;

const ROLE: &str = "TENSORCASK_BACKUP_ROLE";
const DIR: &str = "TENSORCASK_BACKUP_DIR";

fn backup(reader: &Reader) -> MemoryStorage {
    let target = MemoryStorage::new();
    reader.backup_on(&as_storage(&target), &Backup::new().verify(true)).unwrap();
    target
}

fn as_storage(memory: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(memory.clone())
}

/// A store opened strictly is clean, before and after it is written to.
fn check_copy(copy: &MemoryStorage, model: &Model) {
    let strict = || options().recovery(Recovery::Strict);
    let mut model = model.clone();
    check(&strict().open_reader_on(as_storage(copy)).unwrap(), &model);
    for lane in [0, 1, 0] {
        let store = strict().lane(Lane::Number(lane)).open_on(as_storage(copy)).unwrap();
        assert!(store.open_report().is_clean(), "{:?}", store.open_report());
        put(&store, &mut model, 390..392, 9 + u32::from(lane));
        delete(&store, &mut model, 5..7);
        check(store.reader(), &model);
        store.close().unwrap();
    }
}

#[test]
fn a_copy_has_what_was_flushed_and_is_a_store_of_its_own() {
    let storage = MemoryStorage::new();
    let store = options().open_on(as_storage(&storage)).unwrap();
    let mut model = history(&store);
    // Rows of another lane, and rows that are sealed, active, merged, and compacted.
    let other = options().lane(Lane::Number(3)).open_on(as_storage(&storage)).unwrap();
    put(&other, &mut model, 500..530, 0);
    store.refresh().unwrap();
    delete(&store, &mut model, 520..525);
    for step in 0..3 {
        let reader = options().open_reader_on(as_storage(&storage)).unwrap();
        let before = whole(&storage);
        let copy = backup(&reader);
        for folder in ["segments", "runs", "lanes", "quarantine"] {
            assert_eq!(names(&storage, folder), names(&before, folder), "nothing is changed in the source");
        }
        // Everything in the copy is durable.
        let copy = copy.power_loss();
        let listed = names(&copy, "segments");
        assert!(listed.iter().all(|name| !name.ends_with(".tmp")), "{listed:?}");
        check_copy(&copy, &model);
        match step {
            0 => store.merge_index().unwrap(),
            _ => drop(store.compact(&Compaction::new()).unwrap()),
        }
        other.refresh().unwrap();
    }
}

#[test]
fn a_copy_that_fails_changes_nothing_and_a_complete_one_is_durable() {
    let (storage, model) = closed_history();
    let reader = options().open_reader_on(as_storage(&storage)).unwrap();
    for operations in 0.. {
        let target = MemoryStorage::new();
        let faults = FaultStorage::new(as_storage(&target));
        faults.faults().fail_after_operations(operations);
        let faulty: Arc<dyn Storage> = Arc::new(faults.clone());
        match reader.backup_on(&faulty, &Backup::new()) {
            Ok(_) => {
                check_copy(&target.power_loss(), &model);
                break;
            }
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
        assert!(operations < 1000);
    }
    check(&reader, &model);
    assert!(options().recovery(Recovery::Strict).open_on(as_storage(&storage)).unwrap().open_report().is_clean());
}

#[test]
fn a_full_disk_is_an_error_and_a_target_that_is_not_empty_is_refused() {
    let (storage, _) = closed_history();
    let reader = options().open_reader_on(as_storage(&storage)).unwrap();
    let faults = FaultStorage::new(as_storage(&MemoryStorage::new()));
    faults.faults().fail_after_bytes(20_000);
    let full: Arc<dyn Storage> = Arc::new(faults);
    let error = reader.backup_on(&full, &Backup::new()).unwrap_err();
    assert!(error.to_string().contains("free space"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    store.put("a", Value::Int(1)).unwrap();
    let taken = |dir: &Path| store.backup_to(dir).unwrap_err().to_string();
    std::fs::create_dir_all(dir.path().join("taken/x")).unwrap();
    assert!(taken(&dir.path().join("taken")).contains("something else lies at that path"));
    assert!(taken(&dir.path().join("m")).contains("something else lies at that path"));
    assert!(taken(&dir.path().join("m/copies/x")).contains("choose another folder"));
    assert!(taken(&dir.path().join("m/lanes/../x")).contains("choose another folder"));
    assert!(taken(&dir.path().join(".x")).contains("starts with a dot"));
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["m", "taken"]);
    assert!(!dir.path().join("m/copies").exists());
    std::fs::remove_dir(dir.path().join("taken/x")).unwrap();
    assert_eq!(store.backup_to(dir.path().join("taken")).unwrap().rows, 1);
    store.backup_to(dir.path().join("new/folder/n")).unwrap();
    assert_eq!(Reader::open(dir.path().join("new/folder"), "n").unwrap().get("a").unwrap(), Some(Value::Int(1)));
}

#[test]
fn sealed_segments_are_linked_and_the_copy_does_not_change_with_the_source() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| Options::new().segment_rows(100).open(dir.path(), name).unwrap();
    let store = open("m");
    let keys: Vec<u64> = (0..350).collect();
    store.put_rows(&keys, &[8], &vec![1.0_f32; 350 * 8]).unwrap();
    store.flush().unwrap();
    let copy = store.backup_with(dir.path().join("copy"), &Backup::new().link(false), &mut |_, _| {}).unwrap();
    let mut seen = Vec::new();
    let linked = store
        .backup_with(dir.path().join("linked"), &Backup::new().verify(true), &mut |done, all| seen.push((done, all)));
    let linked = linked.unwrap();
    assert_eq!((copy.rows, copy.segments_linked, copy.bytes_copied), (350, 0, copy.bytes));
    assert_eq!((linked.rows, linked.segments_linked, linked.rows_verified), (350, linked.segments, Some(350)));
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0) && seen.last().is_some_and(|(done, all)| done == all));
    let links =
        |name: &str| std::fs::metadata(dir.path().join(name).join("segments/0000-0000000001.arrow")).unwrap().nlink();
    assert_eq!((links("m"), links("linked"), links("copy")), (2, 2, 1));
    for name in ["copy", "linked"] {
        let other = open(name);
        assert!(other.open_report().is_clean());
        other.put_rows(&keys, &[8], &vec![2.0_f32; 350 * 8]).unwrap();
        other.compact(&Compaction::new()).unwrap();
        other.close().unwrap();
    }
    store.put_rows(&keys[..10], &[8], &[3.0_f32; 80]).unwrap();
    store.close().unwrap();
    let first = |name: &str, key: u64| {
        let value = Reader::open(dir.path(), name).unwrap().get(key).unwrap().unwrap().into_tensor().unwrap();
        value.to_vec::<f32>().unwrap()[0]
    };
    assert_eq!((first("m", 0), first("m", 10), first("copy", 0), first("linked", 349)), (3.0, 1.0, 2.0, 2.0));
    // A segment that a symbolic link leads to.
    let first_segment =
        dir.path().join("copy/segments").join(names(&DiskStorage::new(dir.path().join("copy")), "segments")[0].clone());
    std::fs::rename(&first_segment, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../../elsewhere", &first_segment).unwrap();
    Reader::open(dir.path(), "copy").unwrap().backup_to(dir.path().join("nested/of-link")).unwrap();
    assert!(
        std::fs::symlink_metadata(dir.path().join("nested/of-link/segments").join(first_segment.file_name().unwrap()))
            .unwrap()
            .is_file()
    );
    std::fs::rename(dir.path().join("nested/of-link"), dir.path().join("of-link")).unwrap();
    for name in ["m", "copy", "linked", "of-link"] {
        assert!(Reader::open(dir.path(), name).unwrap().verify(&mut |_, _| {}).unwrap().is_clean());
    }
}

#[test]
fn a_store_that_lost_rows_is_copied_only_on_request_and_the_copy_tells() {
    for name in ["0000-0000000002.arrow", "0000-0000000003.arrow"] {
        for remove in [false, true] {
            let (storage, _) = closed_history();
            let path = Path::new("segments").join(name);
            let len = storage.len_bytes(&path).unwrap();
            match remove {
                true => storage.remove(&path).unwrap(),
                false => storage.corrupt(&path, len - 2, 0x41).unwrap(),
            }
            let reader = options().open_reader_on(as_storage(&storage)).unwrap();
            assert!(!reader.open_report().is_clean());
            let lost = reader.open_report().quarantined.iter().any(|file| file.rows_lost != Some(0)) || remove;
            let refused = reader.backup_on(&as_storage(&MemoryStorage::new()), &Backup::new());
            assert_eq!(refused.is_err_and(|error| error.is_corrupt()), lost, "{name} {remove}");
            let target = MemoryStorage::new();
            let report = reader.backup_on(&as_storage(&target), &Backup::new().damaged(true)).unwrap();
            assert_eq!(!(report.left_out.is_empty() && report.missing.is_empty()), lost);
            let copy = options().open_reader_on(as_storage(&target)).unwrap();
            let (found, expected) = (copy.open_report(), reader.open_report());
            assert_eq!(
                (found.quarantined.len(), found.missing.len(), found.is_clean()),
                (expected.quarantined.len(), expected.missing.len(), false)
            );
            assert_eq!(copy.len().unwrap(), reader.len().unwrap());
            // Once the loss is acknowledged, the copy is clean.
            let store = options().open_on(as_storage(&storage)).unwrap();
            store.acknowledge_damage().unwrap();
            store.close().unwrap();
            let copy = backup(store.reader());
            assert!(options().recovery(Recovery::Strict).open_on(as_storage(&copy)).unwrap().open_report().is_clean());
        }
    }
}

#[test]
fn a_snapshot_shows_what_was_there() {
    let storage = MemoryStorage::new();
    let store = options().refresh_interval(Duration::ZERO).open_on(as_storage(&storage)).unwrap();
    let model = history(&store);
    let snapshot = store.snapshot().unwrap();
    let mut newer = model.clone();
    put(&store, &mut newer, 0..450, 5);
    store.compact(&Compaction::new()).unwrap();
    delete(&store, &mut newer, 100..200);
    store.close().unwrap();
    assert!(!snapshot.refresh().unwrap());
    assert_eq!(snapshot.get("key-00449").unwrap(), None);
    check(&snapshot, &model);
    check(&snapshot.snapshot().unwrap(), &newer);
}

/// Copies one folder over another, as `cp -r` does.
fn copy_over(from: &MemoryStorage, to: &MemoryStorage) {
    for folder in ["", "segments", "runs", "lanes", "quarantine"] {
        for entry in from.list(Path::new(folder)).unwrap().into_iter().filter(|entry| entry.kind.is_file()) {
            let path = Path::new(folder).join(entry.name);
            to.write(&path, &from.read(&path).unwrap()).unwrap();
        }
    }
}

fn whole(storage: &MemoryStorage) -> MemoryStorage {
    let copy = MemoryStorage::new();
    ["segments", "runs", "lanes", "quarantine"].iter().for_each(|folder| copy.create_dir(Path::new(folder)).unwrap());
    copy_over(storage, &copy);
    copy
}

fn add(storage: &MemoryStorage, numbers: std::ops::Range<u32>, close: bool) {
    let store = options().open_on(as_storage(storage)).unwrap();
    put(&store, &mut Model::new(), numbers.into_iter(), 0);
    if close {
        store.close().unwrap();
    }
}

#[test]
fn a_folder_copied_over_another_is_reported() {
    // Names, what is copied over what, and whether rows may be lost.
    let mut cases: Vec<(&str, MemoryStorage, MemoryStorage, bool)> = Vec::new();
    for close in [true, false] {
        let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
        add(&one, 0..50, true);
        add(&two, 100..120, close);
        cases.push(("two stores of the same file names", whole(&two), whole(&one), true));
        let base = whole(&one);
        let (left, right) = (whole(&base), whole(&base));
        add(&left, 200..230, close);
        add(&right, 300..330, close);
        cases.push(("copies that were both written to", whole(&left), whole(&right), true));
        add(&right, 400..430, true);
        cases.push(("the shorter of two copies", whole(&left), whole(&right), true));
        cases.push(("an older copy over a newer one", whole(&base), whole(&left), true));
        cases.push(("a newer copy over an older one", whole(&left), whole(&base), false));
        cases.push(("a copy over itself", whole(&left), whole(&left), false));
    }
    for (what, from, to, lost) in cases {
        copy_over(&from, &to);
        let reader = options().open_reader_on(as_storage(&to)).unwrap();
        assert_eq!(!reader.open_report().quarantined.is_empty(), lost, "{what}: {:?}", reader.open_report());
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().is_clean(), !lost, "{what}");
        let strict = || options().recovery(Recovery::Strict).open_on(as_storage(&to));
        assert_eq!(strict().is_err_and(|error| error.is_corrupt()), lost, "{what}");
        let files = |storage: &MemoryStorage| [names(storage, "segments"), names(storage, "quarantine")].concat();
        let before = files(&to);
        for lane in [0, 1, 0] {
            let store = options().lane(Lane::Number(lane)).open_on(as_storage(&to)).unwrap();
            assert_eq!(!store.open_report().quarantined.is_empty(), lost, "{what}: {:?}", store.open_report());
            put(&store, &mut Model::new(), 900..901, 0);
            store.close().unwrap();
        }
        // Nothing is removed; active segments are sealed.
        let is_there = |name: &String| files(&to).contains(&name.trim_end_matches(".open").to_owned());
        assert!(before.iter().all(is_there), "{what}");
        let store = options().open_on(as_storage(&to)).unwrap();
        store.acknowledge_damage().unwrap();
        store.close().unwrap();
        let foreign = options().open_on(as_storage(&to)).unwrap();
        assert!(foreign.open_report().quarantined.is_empty(), "{what}: {:?}", foreign.open_report());
    }
}

/// Not a test: the code of the child processes.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = Path::new(&dir);
    match role.as_str() {
        "copier" => {
            let reader = Reader::open(dir, "m").unwrap();
            println!("\ncopying");
            reader.backup_with(dir.join("copy"), &Backup::new().link(false), &mut |_, _| {}).unwrap();
        }
        _ => write_for_ever(dir, role.parse().unwrap()),
    }
}

/// The number of a writer's keys that are never deleted.
const STAYING: u64 = 50;

/// Overwrites the keys of writer `number`, and tells which version of all of them is flushed. Every tenth version of
/// half of them is deleted again.
fn write_for_ever(dir: &Path, number: u64) {
    let options = Options::new().lane(Lane::Auto).segment_rows(150).memtable_keys(300);
    let store = options.open(dir, "m").unwrap();
    let keys: Vec<u64> = (0..100).map(|key| number * 1000 + key).collect();
    for version in 1_u64.. {
        store.put_rows(&keys, &[1], &[version; 100]).unwrap();
        if version % 10 == 0 {
            store.delete_batch(&keys[STAYING as usize..]).unwrap();
        }
        store.flush().unwrap();
        println!("\nflushed {version}");
        if version % 7 == 0 {
            store.compact(&Compaction::new()).unwrap();
        }
    }
}

fn child(role: &str, dir: &Path) -> (Child, std::io::Lines<BufReader<std::process::ChildStdout>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "backup::child_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[test]
fn a_copy_has_all_that_processes_flushed_before_it_began() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path(), "m").unwrap().close().unwrap();
    let flushed: Vec<Arc<AtomicU64>> = (0..2).map(|_| Arc::default()).collect();
    let mut children = Vec::new();
    for (number, flushed) in flushed.iter().enumerate() {
        let (child, lines) = child(&number.to_string(), dir.path());
        children.push(child);
        let flushed = Arc::clone(flushed);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let version = line.strip_prefix("flushed ").and_then(|version| version.parse().ok());
                flushed.store(version.unwrap_or(flushed.load(Ordering::SeqCst)), Ordering::SeqCst);
            }
        });
    }
    while flushed.iter().any(|flushed| flushed.load(Ordering::SeqCst) < 2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let reader = Reader::open(dir.path(), "m").unwrap();
    for turn in 0..12 {
        let before: Vec<u64> = flushed.iter().map(|flushed| flushed.load(Ordering::SeqCst)).collect();
        let name = format!("copy-{turn}");
        reader
            .backup_with(dir.path().join(&name), &Backup::new().link(turn % 2 == 0).verify(true), &mut |_, _| {})
            .unwrap();
        let copy = Options::new().recovery(Recovery::Strict).open(dir.path(), &name).unwrap();
        assert!(copy.open_report().is_clean(), "{:?}", copy.open_report());
        for (number, before) in before.into_iter().enumerate() {
            for key in 0..100 {
                let value = copy.get(number as u64 * 1000 + key).unwrap();
                let version = value.map(|value| value.into_tensor().unwrap().to_vec::<u64>().unwrap()[0]);
                let is_new = version.map_or(key >= STAYING, |version| version >= before);
                assert!(is_new, "key {key} of {number} has version {version:?}, {before} was flushed");
            }
        }
        copy.close().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    children.iter_mut().for_each(|child| child.kill().unwrap());
    for mut child in children {
        child.wait().unwrap();
    }
}

#[test]
fn a_killed_copy_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(50).open(dir.path(), "m").unwrap();
    let keys: Vec<u64> = (0..3000).collect();
    store.put_rows(&keys, &[64], &vec![1.0_f32; 3000 * 64]).unwrap();
    store.close().unwrap();
    let (mut killed, mut complete) = (0, 0);
    for turn in 0..40_u64 {
        let (mut copier, mut lines) = child("copier", dir.path());
        lines.find(|line| line.as_ref().is_ok_and(|line| line == "copying")).unwrap().unwrap();
        std::thread::sleep(Duration::from_micros(turn * 700));
        copier.kill().unwrap();
        copier.wait().unwrap();
        match Reader::open(dir.path(), "copy") {
            Ok(reader) => {
                complete += 1;
                assert_eq!(reader.len().unwrap(), 3000);
                assert!(reader.open_report().is_clean());
                drop(reader);
                std::fs::remove_dir_all(dir.path().join("copy")).unwrap();
            }
            Err(error) => {
                killed += 1;
                assert!(error.is_not_found(), "{error}");
                assert!(Reader::open(dir.path(), ".copy.copying").is_err());
            }
        }
    }
    assert!(killed > 0, "{killed} killed, {complete} complete");
    // The next copy removes what was left.
    store.reader().backup_to(dir.path().join("copy")).unwrap();
    assert!(!dir.path().join(".copy.copying").exists());
    let restored = dir.path().join("restored");
    Reader::open(dir.path(), "copy").unwrap().backup_to(&restored).unwrap();
    copy_folder(&restored, &dir.path().join("plain"));
    assert_eq!(Store::open(dir.path(), "plain").unwrap().len().unwrap(), 3000);
}
