//! Opening moves files that it cannot interpret and never unlinks them. Files that are left out are reported until the
//! loss is acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tensorcask::{Durability, Error, Lane, Options, Recovery, Store, Value};

use crate::storages::copy_folder;

fn options() -> Options {
    Options::new().synchronous(true)
}

fn open(dir: &Path) -> Store {
    options().open(dir, "m").unwrap()
}

fn put(store: &Store, keys: std::ops::Range<u64>) {
    for key in keys {
        store.put(key, Value::Int(key as i64 * 10)).unwrap();
    }
    store.flush().unwrap();
}

/// A closed store of `segments` sealed segments with ten rows each.
fn sealed(dir: &Path, segments: u64) {
    for number in 0..segments {
        let store = open(dir);
        put(&store, number * 10..number * 10 + 10);
        store.close().unwrap();
    }
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("m/segments/0000-{number:010}.arrow"))
}

fn active(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("m/segments/0000-{number:010}.arrow.open"))
}

fn flip(path: &Path, offset: u64, bits: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset as usize] ^= bits;
    std::fs::write(path, bytes).unwrap();
}

fn flip_from_end(path: &Path, back: u64) {
    let len_bytes = std::fs::metadata(path).unwrap().len();
    flip(path, len_bytes - back, 0x41);
}

/// All files below `dir` with their bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.extend(tree(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// The state that a kill would leave at this moment.
fn killed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&dir.join("m"), &copy.path().join("m"));
    copy
}

fn damage_of(dir: &Path) -> usize {
    let reader = options().open_reader(dir, "m").unwrap();
    reader.verify(&mut |_, _| {}).unwrap().damage.len()
}

/// In strict mode, every way of opening is refused, and no byte or name changes.
fn strict_changes_nothing(dir: &Path) -> Error {
    let before = tree(dir);
    let strict = || options().recovery(Recovery::Strict);
    let refused = strict().open(dir, "m").unwrap_err();
    assert!(refused.is_corrupt(), "{refused}");
    assert!(strict().lane(Lane::Auto).open(dir, "m").unwrap_err().is_corrupt());
    assert!(strict().lane(Lane::Number(7)).open(dir, "m").unwrap_err().is_corrupt());
    assert!(strict().open_reader(dir, "m").unwrap_err().is_corrupt());
    assert!(tree(dir) == before, "a refused opening left something behind");
    refused
}

#[test]
fn a_segment_number_is_never_given_out_twice() {
    for empty_quarantine in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        sealed(dir.path(), 1);
        flip_from_end(&segment(dir.path(), 1), 2);
        let store = options().lane(Lane::Number(1)).open(dir.path(), "m").unwrap();
        assert_eq!(store.open_report().quarantined.len(), 1);
        store.close().unwrap();
        drop(store);
        if empty_quarantine {
            for entry in std::fs::read_dir(dir.path().join("m/quarantine")).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        let store = open(dir.path());
        assert_eq!(store.open_report().is_clean(), empty_quarantine, "{:?}", store.open_report());
        put(&store, 100..110);
        store.close().unwrap();
        drop(store);
        assert!(!segment(dir.path(), 1).exists());
        let store = open(dir.path());
        for key in (0..10).chain(100..110) {
            assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64 * 10)), "{key}");
        }
        assert_eq!(store.open_report().is_clean(), empty_quarantine);
    }
}

#[test]
fn numbers_of_removed_files_are_void_and_no_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Two structures need two active segments. Of one, only the beginning is left, as after a kill.
    put(&store, 0..5);
    let copy = killed(dir.path());
    let bytes = std::fs::read(active(copy.path(), 1)).unwrap();
    std::fs::write(active(copy.path(), 2), &bytes[..500]).unwrap();
    std::fs::write(active(copy.path(), 3), b"").unwrap();
    std::fs::write(active(copy.path(), 4), vec![0; 10_000]).unwrap();
    let first = open(copy.path());
    let names: Vec<_> = std::fs::read_dir(copy.path().join("m/segments")).unwrap().collect();
    assert_eq!(names.len(), 1, "what holds nothing is removed: {names:?}");
    put(&first, 5..8);
    first.close().unwrap();
    drop(first);
    for _ in 0..3 {
        let again = open(copy.path());
        put(&again, 8..9);
        assert!(again.open_report().is_clean(), "{:?}", again.open_report());
        again.close().unwrap();
        drop(again);
        assert_eq!(damage_of(copy.path()), 0);
        assert!(options().recovery(Recovery::Strict).open_reader(copy.path(), "m").is_ok());
    }
}

#[test]
fn only_a_segment_of_this_store_replaces_others() {
    let (healthy, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sealed(healthy.path(), 1);
    sealed(other.path(), 1);
    flip_from_end(&segment(other.path(), 1), 2);
    // Opening replaces the damaged segment; the replacement names (0, 1) as replaced.
    drop(open(other.path()));
    assert!(segment(other.path(), 2).exists());
    std::fs::copy(segment(other.path(), 2), segment(healthy.path(), 2)).unwrap();
    let whole = std::fs::read(segment(healthy.path(), 1)).unwrap();

    let refused = strict_changes_nothing(healthy.path());
    assert!(refused.to_string().contains("belongs to store"), "{refused}");
    for _ in 0..2 {
        let store = open(healthy.path());
        assert_eq!(store.len().unwrap(), 10);
        let [left] = store.open_report().quarantined.as_slice() else { panic!("{:?}", store.open_report()) };
        assert!(left.why.contains("belongs to store") && left.moved_to.is_none(), "{left:?}");
        assert!(!store.open_report().is_clean());
        assert_eq!(store.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
        assert_eq!(std::fs::read(segment(healthy.path(), 1)).unwrap(), whole);
        assert!(segment(healthy.path(), 2).exists());
        store.close().unwrap();
        assert_eq!(damage_of(healthy.path()), 1);
    }
    let store = open(healthy.path());
    assert_eq!(store.acknowledge_damage().unwrap(), 1);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    store.close().unwrap();
    drop(store);
    assert!(open(healthy.path()).open_report().is_clean());
    assert!(segment(healthy.path(), 2).exists(), "acknowledging deletes nothing");
}

#[test]
fn a_foreign_active_segment_is_left_where_it_is() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(from.path());
    put(&store, 0..10);
    let from = killed(from.path());
    sealed(to.path(), 1);
    let foreign = std::fs::read(active(from.path(), 1)).unwrap();
    for number in [1, 2, 9] {
        let to = killed(to.path());
        std::fs::write(active(to.path(), number), &foreign).unwrap();
        strict_changes_nothing(to.path());
        for turn in 0..2 {
            let store = open(to.path());
            assert_eq!(store.len().unwrap(), 10 + turn * 5);
            assert!(!store.open_report().is_clean(), "{number}: {:?}", store.open_report());
            let kept = tree(to.path()).into_values().any(|bytes| bytes == foreign);
            assert!(kept, "{number}: the file is gone");
            put(&store, 100..105);
            store.close().unwrap();
            assert_eq!(damage_of(to.path()), 1);
        }
    }
    // The same with only the identity file replaced. No file is written next to it.
    let exchanged = killed(from.path());
    std::fs::copy(to.path().join("m/store.json"), exchanged.path().join("m/store.json")).unwrap();
    let refused = strict_changes_nothing(exchanged.path());
    assert!(refused.to_string().contains("belongs to store"), "{refused}");
    let store = open(exchanged.path());
    assert!(!store.open_report().is_clean());
    assert!(matches!(store.put(1_u64, Value::Int(1)), Err(Error::ReadOnly { .. })));
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
    drop(store);
    assert_eq!(std::fs::read(active(exchanged.path(), 1)).unwrap(), foreign);
    // With the right identity file, every row is found again.
    std::fs::copy(from.path().join("m/store.json"), exchanged.path().join("m/store.json")).unwrap();
    let store = options().recovery(Recovery::Strict).open(exchanged.path(), "m").unwrap();
    assert_eq!(store.len().unwrap(), 10);
}

#[test]
fn an_exchanged_identity_file_is_no_empty_store() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sealed(dir.path(), 2);
    sealed(other.path(), 1);
    let own = std::fs::read(dir.path().join("m/store.json")).unwrap();
    std::fs::copy(other.path().join("m/store.json"), dir.path().join("m/store.json")).unwrap();
    strict_changes_nothing(dir.path());
    let before: Vec<_> = tree(&dir.path().join("m/segments")).into_iter().collect();
    let store = open(dir.path());
    assert_eq!(store.open_report().quarantined.len(), 2);
    let error = store.put(1_u64, Value::Int(1)).unwrap_err();
    assert!(error.to_string().contains("belongs to store"), "{error}");
    drop(store);
    assert_eq!(damage_of(dir.path()), 2);
    assert_eq!(tree(&dir.path().join("m/segments")).into_iter().collect::<Vec<_>>(), before);
    std::fs::write(dir.path().join("m/store.json"), own).unwrap();
    let store = options().recovery(Recovery::Strict).open(dir.path(), "m").unwrap();
    assert_eq!(store.len().unwrap(), 20);
    assert!(store.open_report().is_clean());
    // A damaged identity file is quarantined, and recreated from the segments.
    drop(store);
    flip(&dir.path().join("m/store.json"), 20, 1);
    strict_changes_nothing(dir.path());
    let store = open(dir.path());
    assert_eq!(store.len().unwrap(), 20);
    assert!(!store.open_report().is_clean());
    assert!(dir.path().join("m/quarantine/store.json").exists());
}

#[test]
fn two_lanes_agree_on_the_kind_of_keys_before_either_commits() {
    for flushed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let first = options().open(dir.path(), "m").unwrap();
        let second = options().lane(Lane::Number(1)).open(dir.path(), "m").unwrap();
        // A refused put does not fix the kind of keys.
        let twice = Value::Map(vec![("a".into(), Value::Null), ("a".into(), Value::Null)]);
        assert!(first.put("text", &twice).is_err());
        first.put(7_u64, Value::Int(1)).unwrap();
        if flushed {
            first.flush().unwrap();
        }
        assert!(matches!(second.put("seven", Value::Int(2)), Err(Error::KeyKind { expected: "u64", found: "str" })));
        second.put(8_u64, Value::Int(2)).unwrap();
        first.close().unwrap();
        second.close().unwrap();
        let store = options().recovery(Recovery::Strict).open(dir.path(), "m").unwrap();
        assert_eq!(store.len().unwrap(), 2);
        assert!(store.open_report().is_clean());
    }
}

#[test]
fn an_empty_sealed_file_is_damage_like_any_other() {
    for len_bytes in [0, 1, 9, 10, 300] {
        let dir = tempfile::tempdir().unwrap();
        sealed(dir.path(), 2);
        let early = options().refresh_interval(std::time::Duration::ZERO).open_reader(dir.path(), "m").unwrap();
        let bytes = std::fs::read(segment(dir.path(), 2)).unwrap();
        std::fs::write(segment(dir.path(), 2), &bytes[..len_bytes]).unwrap();
        std::fs::write(segment(dir.path(), 3), b"").unwrap();
        assert!(early.get(99_u64).unwrap().is_none(), "a miss goes on");
        early.refresh().unwrap();
        strict_changes_nothing(dir.path());
        let reader = options().open_reader(dir.path(), "m").unwrap();
        assert_eq!(reader.get(3_u64).unwrap(), Some(Value::Int(30)));
        assert!(!reader.open_report().is_clean());
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 2);
        let store = open(dir.path());
        assert_eq!(store.get(3_u64).unwrap(), Some(Value::Int(30)));
        assert_eq!(store.open_report().quarantined.len(), 2);
        put(&store, 200..201);
        store.close().unwrap();
    }
}

#[test]
fn a_flipped_bit_in_the_front_costs_no_row() {
    let dir = tempfile::tempdir().unwrap();
    sealed(dir.path(), 1);
    for offset in [0, 5, 8, 12, 100, 400, 520, 590] {
        let copy = killed(dir.path());
        flip(&segment(copy.path(), 1), offset, 4);
        strict_changes_nothing(copy.path());
        let reader = options().open_reader(copy.path(), "m").unwrap();
        assert_eq!(reader.len().unwrap(), 10, "byte {offset}");
        assert!((0..10_u64).all(|key| reader.get(key).unwrap() == Some(Value::Int(key as i64 * 10))));
        assert_eq!(reader.open_report().quarantined[0].rows_saved, 10);
        assert!(!reader.verify(&mut |_, _| {}).unwrap().is_clean());
        let store = open(copy.path());
        assert_eq!(store.len().unwrap(), 10, "byte {offset}");
        let [moved] = store.open_report().quarantined.as_slice() else { panic!("{:?}", store.open_report()) };
        assert_eq!((moved.rows_saved, moved.rows_lost), (10, Some(0)));
        assert!((0..10_u64).all(|key| store.get(key).unwrap() == Some(Value::Int(key as i64 * 10))));
    }
}

#[test]
fn a_reader_serves_what_is_whole_of_a_damaged_sealed_file_and_tells_of_it() {
    let dir = tempfile::tempdir().unwrap();
    sealed(dir.path(), 1);
    flip_from_end(&segment(dir.path(), 1), 2);
    let reader = options().open_reader(dir.path(), "m").unwrap();
    assert!((0..10_u64).all(|key| reader.get(key).unwrap() == Some(Value::Int(key as i64 * 10))));
    let [left] = reader.open_report().quarantined.as_slice() else { panic!("{:?}", reader.open_report()) };
    assert_eq!((left.rows_saved, left.rows_lost, &left.moved_to), (10, Some(0), &None));
    assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
}

#[test]
fn loss_is_told_at_every_opening_until_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for key in 0..5 {
        put(&store, key..key + 1);
    }
    let copy = killed(dir.path());
    // The third batch of an active segment, which was synced.
    let path = active(copy.path(), 1);
    let bytes = std::fs::read(&path).unwrap();
    let frames: Vec<usize> = (0..bytes.len() - 8).filter(|at| bytes[*at..].starts_with(b"TCFRAME1")).collect();
    // Its frame records the offset of its message.
    let place = bytes[frames[3] + 40..].first_chunk::<8>().map(|place| u64::from_le_bytes(*place)).unwrap();
    flip(&path, place + 50, 0x11);
    strict_changes_nothing(copy.path());
    let reader = options().open_reader(copy.path(), "m").unwrap();
    assert_eq!(reader.open_report().quarantined[0].rows_lost, Some(1));
    for turn in 0..3 {
        let store = open(copy.path());
        let [lost] = store.open_report().quarantined.as_slice() else { panic!("{:?}", store.open_report()) };
        assert_eq!((lost.rows_saved, lost.rows_lost), (4, Some(1)), "opening {turn}");
        assert_eq!(store.verify(&mut |_, _| {}).unwrap().damage.iter().map(|damage| damage.rows).sum::<u64>(), 1);
        assert_eq!(store.len().unwrap(), 4);
        store.close().unwrap();
        drop(store);
        assert_eq!(damage_of(copy.path()), 1);
    }
    let store = open(copy.path());
    assert_eq!(store.acknowledge_damage().unwrap(), 1);
    assert_eq!(store.acknowledge_damage().unwrap(), 0);
    store.close().unwrap();
    drop(store);
    assert!(open(copy.path()).open_report().is_clean());
    assert_eq!(damage_of(copy.path()), 0);
    assert!(copy.path().join("m/quarantine/0000-0000000001.arrow.open").exists());
}

#[test]
fn segments_that_are_missing_are_told() {
    let dir = tempfile::tempdir().unwrap();
    sealed(dir.path(), 4);
    for gone in [vec![1], vec![2], vec![4], vec![3, 4], vec![1, 2, 3, 4]] {
        for merged in [false, true] {
            let copy = killed(dir.path());
            if merged {
                let store = open(copy.path());
                store.merge_index().unwrap();
                store.close().unwrap();
            }
            gone.iter().for_each(|number| std::fs::remove_file(segment(copy.path(), *number)).unwrap());
            let refused = strict_changes_nothing(copy.path());
            assert!(refused.to_string().contains("is missing"), "{refused}");
            let count = |missing: &[tensorcask::Missing]| missing.iter().map(|missing| missing.segments).sum::<u64>();
            let reader = options().open_reader(copy.path(), "m").unwrap();
            assert_eq!(count(&reader.open_report().missing), gone.len() as u64, "{gone:?}, {merged}");
            assert!(!reader.open_report().is_clean());
            assert!(!reader.verify(&mut |_, _| {}).unwrap().is_clean());
            assert_eq!(reader.stats().unwrap().missing, gone.len() as u64);
            if merged {
                let rows: Option<u64> = reader.open_report().missing.iter().map(|missing| missing.rows).sum();
                assert_eq!(rows, Some(10 * gone.len() as u64));
            }
            for _ in 0..2 {
                let store = open(copy.path());
                assert_eq!(count(&store.open_report().missing), gone.len() as u64, "{gone:?}, {merged}");
                assert!(!store.verify(&mut |_, _| {}).unwrap().is_clean());
                put(&store, 500..501);
                store.close().unwrap();
                drop(store);
                assert!(gone.iter().all(|number| !segment(copy.path(), *number).exists()), "a number came back");
                strict_changes_nothing(copy.path());
            }
            // A file that is restored is not missing any more; the loss of the others is acknowledged.
            std::fs::copy(segment(dir.path(), gone[0]), segment(copy.path(), gone[0])).unwrap();
            let store = open(copy.path());
            assert_eq!(store.get((gone[0] - 1) * 10).unwrap(), Some(Value::Int((gone[0] as i64 - 1) * 100)));
            let left = count(&store.open_report().missing);
            store.acknowledge_damage().unwrap();
            store.close().unwrap();
            drop(store);
            assert!(left < gone.len() as u64 || !merged, "{left} of {gone:?}");
            assert!(open(copy.path()).open_report().is_clean());
            assert_eq!(damage_of(copy.path()), 0);
        }
    }
}

#[test]
fn marks_of_a_number_that_was_lost_damage_no_new_segment() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, 0..50);
    let copy = killed(dir.path());
    std::fs::remove_file(active(copy.path(), 1)).unwrap();
    let store = open(copy.path());
    assert_eq!(store.open_report().missing.len(), 1, "{:?}", store.open_report());
    put(&store, 0..1);
    let again = killed(copy.path());
    let store = open(again.path());
    assert_eq!(store.get(0_u64).unwrap(), Some(Value::Int(0)));
    assert!(store.open_report().quarantined.is_empty(), "{:?}", store.open_report());
}

#[test]
fn a_flush_into_a_folder_that_is_gone_says_so() {
    for synchronous in [true, false] {
        for remove in [true, false] {
            for durability in [Durability::Buffered, Durability::SyncData] {
                let dir = tempfile::tempdir().unwrap();
                let store = Options::new().synchronous(synchronous).open(dir.path(), "m").unwrap();
                put(&store, 0..10);
                store.put(10_u64, Value::Int(1)).unwrap();
                if remove {
                    std::fs::remove_dir_all(dir.path().join("m")).unwrap();
                } else {
                    std::fs::rename(dir.path().join("m"), dir.path().join("n")).unwrap();
                }
                let error = store.flush_with(durability).unwrap_err();
                assert!(error.to_string().contains("moved or removed"), "{error}");
                let error = store.close().unwrap_err();
                assert!(error.to_string().contains("moved or removed"), "{error}");
                assert!(!dir.path().join("m").exists());
            }
        }
        // Without a flush, `close` reports it. Another store at the same path is detected, too.
        let dir = tempfile::tempdir().unwrap();
        let store = Options::new().synchronous(synchronous).open(dir.path(), "m").unwrap();
        put(&store, 0..10);
        std::fs::rename(dir.path().join("m"), dir.path().join("n")).unwrap();
        sealed(dir.path(), 1);
        store.put(10_u64, Value::Int(1)).unwrap();
        let error = store.close().unwrap_err();
        assert!(error.to_string().contains("moved or removed"), "{error}");
        drop(store);
        assert_eq!(open(dir.path()).len().unwrap(), 10);
    }
}

#[test]
fn names_that_only_look_like_ours_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    sealed(dir.path(), 1);
    let odd = ["segments/0000-notes.tmp", "segments/notes.arrow", "runs/0000-notes.run.tmp", "segments/0000-1.arrow"];
    odd.iter().for_each(|name| std::fs::write(dir.path().join("m").join(name), b"mine").unwrap());
    let store = open(dir.path());
    store.close().unwrap();
    assert!(odd.iter().all(|name| std::fs::read(dir.path().join("m").join(name)).unwrap() == b"mine"));
    // A run of another store is not removed either.
    let other = tempfile::tempdir().unwrap();
    sealed(other.path(), 1);
    let foreign = open(other.path());
    foreign.merge_index().unwrap();
    foreign.close().unwrap();
    let run = std::fs::read(other.path().join("m/runs/0000-0000000001.run")).unwrap();
    std::fs::write(dir.path().join("m/runs/0000-0000000009.run"), &run).unwrap();
    let store = open(dir.path());
    assert_eq!(store.open_report().runs_dropped, 1);
    assert_eq!(std::fs::read(dir.path().join("m/runs/0000-0000000009.run")).unwrap(), run);
}
