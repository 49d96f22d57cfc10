//! Special files, symbolic links, and names at the numeric limit.

use std::path::Path;
use std::time::Duration;

use tensorcask::{Durability, Lane, Options, Value};

use crate::storages::files_in;

fn options() -> Options {
    Options::new().durability(Durability::Buffered).flush_interval(Duration::from_millis(10))
}

/// Creates a special file or a folder at `path`.
fn make(kind: &str, path: &Path) {
    use rustix::fs::{CWD, Mode};
    use std::os::unix::fs::symlink;
    match kind {
        "folder" => std::fs::create_dir(path).unwrap(),
        "pipe" => rustix::fs::mkfifoat(CWD, path, Mode::RWXU).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "dangling link" => symlink("nowhere", path).unwrap(),
        "circle" => symlink(path, path).unwrap(),
        "link to a folder" => symlink("..", path).unwrap(),
        "link to a device" => symlink("/dev/zero", path).unwrap(),
        other => unreachable!("{other}"),
    }
}

const NO_FILES: [&str; 7] =
    ["folder", "pipe", "socket", "dangling link", "circle", "link to a folder", "link to a device"];

#[test]
fn what_is_no_file_is_left_out_and_told() {
    const NAMES: [&str; 10] = [
        "segments/0000-0000000007.arrow",
        "segments/0000-0000000008.arrow.open",
        "segments/0003-0000000001.arrow.open",
        "segments/0000-0000000009.arrow.tmp",
        "runs/0000-0000000007.run",
        "runs/0000-0000000008.run.tmp",
        "lanes/0000.synced",
        "lanes/0000.synced.tmp",
        "store.json",
        "store.json.tmp",
    ];
    for kind in NO_FILES {
        for name in NAMES {
            let dir = tempfile::tempdir().unwrap();
            let open = || Options::new().durability(Durability::Buffered).segment_rows(2).open(dir.path(), "m");
            let store = open().unwrap();
            store.put(1_u64, Value::Int(1)).unwrap();
            store.close().unwrap();
            drop(store);
            let path = dir.path().join("m").join(name);
            let _there = std::fs::remove_file(&path);
            make(kind, &path);
            let told = |report: &tensorcask::OpenReport| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let named = |path: &Path| path.to_string_lossy().contains(name);
                report.quarantined.iter().any(|file| named(&file.path) || file.moved_to.as_deref().is_some_and(named))
            };
            let is_segment = name.starts_with("segments") || name.ends_with(".run");
            let reader = Options::new().open_reader(dir.path(), "m").unwrap();
            assert_eq!(reader.get(1_u64).unwrap(), Some(Value::Int(1)), "{kind} {name}");
            assert!(!is_segment || told(reader.open_report()), "{kind} {name}: {:?}", reader.open_report());
            reader.refresh().unwrap();
            let store = open().unwrap();
            let is_temporary = name.ends_with("json.tmp") || name.ends_with("run.tmp");
            assert!(is_temporary || told(store.open_report()), "{kind} {name}: {:?}", store.open_report());
            assert_eq!(store.get(1_u64).unwrap(), Some(Value::Int(1)), "{kind} {name}");
            // Up to the segment number that is occupied, and beyond it.
            for key in 2..20_u64 {
                store.put(key, Value::Int(key as i64)).unwrap();
                store.flush_with(Durability::SyncData).unwrap();
            }
            store.merge_index().unwrap();
            store.close().unwrap();
            drop(store);
            let store = open().unwrap();
            for key in 1..20_u64 {
                assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)), "{kind} {name}");
            }
            let told_until_acknowledged = store.acknowledge_damage().unwrap() > 0;
            assert!(told_until_acknowledged || is_temporary, "{kind} {name}");
            assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
            store.close().unwrap();
            // It is still there or was quarantined, as the store removes only files that it made.
            let aside = dir.path().join("m/quarantine").join(path.file_name().unwrap());
            let is_there = |path: &Path| path.symlink_metadata().is_ok_and(|found| !found.file_type().is_file());
            assert!(is_there(&path) || is_there(&aside), "{kind} {name}");
        }
    }
}

#[test]
fn a_lock_that_is_no_file_is_an_error_and_waits_for_nobody() {
    for kind in NO_FILES {
        for name in ["lanes/0000.lock", "lanes/open.lock"] {
            let dir = tempfile::tempdir().unwrap();
            Options::new().open(dir.path(), "m").unwrap().close().unwrap();
            let path = dir.path().join("m").join(name);
            std::fs::remove_file(&path).unwrap();
            make(kind, &path);
            let error = Options::new().open(dir.path(), "m").unwrap_err();
            assert_eq!(error.path(), Some(&*path), "{kind} {name}: {error}");
            assert!(error.to_string().contains("move it away"), "{error}");
            let free = Options::new().lane(Lane::Auto).open(dir.path(), "m");
            assert_eq!(free.is_ok_and(|store| store.lane() == 1), name == "lanes/0000.lock", "{kind} {name}");
            assert!(path.symlink_metadata().is_ok_and(|found| !found.file_type().is_file()));
        }
    }
}

#[test]
fn linked_files_are_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().segment_rows(2).open(dir.path(), "m").unwrap();
    for key in 0..5_u64 {
        store.put(key, Value::Int(key as i64)).unwrap();
        store.flush_with(Durability::SyncData).unwrap();
    }
    // A copy in which each file is a link, as in download caches: two sealed segments and an active one.
    let (from, to) = (dir.path().join("m"), dir.path().join("links"));
    for folder in ["segments", "runs", "lanes", "quarantine"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
    }
    assert_eq!(files_in(&from.join("segments"), ".arrow"), 2);
    let segments = std::fs::read_dir(from.join("segments")).unwrap().map(|entry| entry.unwrap().path());
    let before: Vec<_> = segments.map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    for (_, path) in &before {
        std::os::unix::fs::symlink(path, to.join(path.strip_prefix(&from).unwrap())).unwrap();
    }
    std::os::unix::fs::symlink(from.join("store.json"), to.join("store.json")).unwrap();
    let check = |reader: &tensorcask::Reader| {
        for key in 0..5_u64 {
            assert_eq!(reader.get(key).unwrap(), Some(Value::Int(key as i64)));
        }
    };
    check(&Options::new().open_reader(dir.path(), "links").unwrap());
    let other = options().open(dir.path(), "links").unwrap();
    check(other.reader());
    other.put(9_u64, Value::Int(9)).unwrap();
    other.close().unwrap();
    check(&Options::new().open_reader(dir.path(), "links").unwrap());
    assert!(before.iter().all(|(bytes, path)| std::fs::read(path).unwrap() == *bytes));
}

#[test]
fn names_at_the_numeric_limit_use_up_nothing() {
    const NUMBERS: [&str; 4] =
        ["18446744073709551615", "18446744073709551614", "9223372036854775807", "281474976710656"];
    for number in NUMBERS {
        for name in
            ["segments/0000-N.arrow", "segments/0000-N.arrow.open", "runs/0000-N.run", "quarantine/0000-N.arrow"]
        {
            let dir = tempfile::tempdir().unwrap();
            let open = || Options::new().durability(Durability::Buffered).open(dir.path(), "m");
            for key in 1..4_u64 {
                let store = open().unwrap();
                for earlier in 1..key {
                    assert_eq!(store.get(earlier).unwrap(), Some(Value::Int(1)), "{name} {number}");
                }
                store.put(key, Value::Int(1)).unwrap();
                store.flush().unwrap();
                store.merge_index().unwrap();
                store.close().unwrap();
                // Before the second opening, and again before the third if it was moved away.
                std::fs::write(dir.path().join("m").join(name.replace('N', number)), b"no segment").unwrap();
            }
            let names = std::fs::read_dir(dir.path().join("m/segments")).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let low = names.filter(|name| name.starts_with("0000-00000000")).count();
            assert_eq!(low, 3, "{name} {number}");
        }
    }
    // A name in quarantine reserves its own number, but not those before it.
    let dir = tempfile::tempdir().unwrap();
    Options::new().open(dir.path(), "m").unwrap().close().unwrap();
    std::fs::write(dir.path().join("m/quarantine/0000-281474976710655.arrow"), b"").unwrap();
    std::fs::write(dir.path().join("m/quarantine/0000-0000000001.arrow"), b"").unwrap();
    let store = Options::new().open(dir.path(), "m").unwrap();
    store.put(1_u64, Value::Int(1)).unwrap();
    store.close().unwrap();
    assert!(dir.path().join("m/segments/0000-0000000002.arrow").exists());
}
