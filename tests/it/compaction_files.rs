//! Files of segments that compaction replaced, beside those that replaced them: from a crash, or from a backup.

use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::{FaultStorage, MemoryStorage};
use tensorcask::{Compaction, Reader};

use crate::compaction::{Model, check, closed_history, delete, history, names, options, put, row};
use crate::compaction_stops::killed;

/// Each key is found as it should be, or its damage is reported.
fn no_wrong_value(reader: &Reader, model: &Model, what: &str) {
    for (key, version) in model {
        let number: u32 = key["key-".len()..].parse().unwrap();
        match reader.get(key.as_str()) {
            Ok(found) => {
                let found = found.map(|value| value.into_tensor().unwrap().to_vec::<f32>().unwrap());
                assert_eq!(found, version.map(|version| row(number, version)), "{key}: {what}");
            }
            Err(error) => assert!(error.is_corrupt(), "{key}: {what}: {error:?}"),
        }
    }
}

fn segments(storage: &MemoryStorage) -> Vec<(String, bytes::Bytes)> {
    let names = names(storage, "segments").into_iter().filter(|name| name.ends_with(".arrow"));
    names.map(|name| (name.clone(), storage.read(Path::new("segments").join(name)).unwrap())).collect()
}

#[test]
fn replaced_files_that_come_back_change_nothing() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let mut model = history(&store);
    store.close().unwrap();
    drop(store);
    let mut backup = segments(&storage);
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    store.compact(&Compaction::new()).unwrap();
    backup.extend(segments(&storage));
    delete(&store, &mut model, (0..400).step_by(2));
    store.compact(&Compaction::new()).unwrap();
    let there = segments(&storage);
    let back: Vec<_> = backup.into_iter().filter(|(name, _)| !there.iter().any(|(other, _)| other == name)).collect();
    assert!(back.len() > 3);
    for (name, bytes) in &back {
        storage.write(Path::new("segments").join(name), bytes).unwrap();
    }
    // Handles that are open, and those that are opened.
    store.refresh().unwrap();
    check(store.reader(), &model);
    let reader = options().open_reader_on(Arc::new(storage.clone())).unwrap();
    no_wrong_value(&reader, &model, "a reader");
    store.compact(&Compaction::new()).unwrap();
    store.close().unwrap();
    drop(store);
    for turn in 0..2 {
        let store = options().open_on(Arc::new(storage.clone())).unwrap();
        assert!(store.open_report().missing.is_empty(), "{:?}", store.open_report());
        no_wrong_value(store.reader(), &model, "a writer");
        put(&store, &mut model, 500 + turn..510 + turn, 9);
        store.compact(&Compaction::new()).unwrap();
        no_wrong_value(store.reader(), &model, "a writer that compacts");
        store.close().unwrap();
    }
}

#[test]
fn a_damaged_compacted_segment_beside_what_it_replaces_shows_no_wrong_value() {
    let (storage, model) = closed_history();
    let before = segments(&storage);
    let mut tried = 0;
    for operations in 0..60 {
        let copy = killed(&storage);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        faults.faults().fail_after_operations(operations);
        let _failed = store.compact(&Compaction::new());
        let _failed = store.close();
        drop(store);
        let new: Vec<_> = segments(&copy).into_iter().filter(|segment| !before.contains(segment)).collect();
        let is_crash = before.iter().all(|segment| segments(&copy).contains(segment));
        let Some((name, bytes)) = new.first().filter(|_| is_crash) else { continue };
        for at in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
            tried += 1;
            let damaged = killed(&copy);
            damaged.corrupt(Path::new("segments").join(name), at as u64, 0x55).unwrap();
            let what = format!("{operations} operations, byte {at} of {}", bytes.len());
            let reader = options().open_reader_on(Arc::new(damaged.clone())).unwrap();
            no_wrong_value(&reader, &model, &what);
            for _ in 0..2 {
                let store = options().open_on(Arc::new(damaged.clone())).unwrap();
                no_wrong_value(store.reader(), &model, &what);
                store.compact(&Compaction::new()).unwrap();
                no_wrong_value(store.reader(), &model, &what);
                store.close().unwrap();
            }
        }
    }
    assert!(tried > 0);
}

#[test]
fn row_maps_of_another_copy_of_the_store_are_not_used() {
    let storage = MemoryStorage::new();
    let store = options().open_on(Arc::new(storage.clone())).unwrap();
    let model = history(&store);
    store.merge_index().unwrap();
    store.close().unwrap();
    drop(store);
    // Stopped between the first step and the merge that needs no row maps any more.
    let maps = |storage: &MemoryStorage| names(storage, "runs").into_iter().find(|name| name.ends_with(".moved"));
    let stopped = (0..2000).find_map(|operations| {
        let copy = killed(&storage);
        let faults = FaultStorage::new(Arc::new(copy.clone()));
        let store = options().open_on(Arc::new(faults.clone())).unwrap();
        faults.faults().fail_after_operations(operations);
        drop(store.compact(&Compaction::new()));
        std::mem::forget(store);
        let left = killed(&copy);
        let published = maps(&left).filter(|name| names(&left, "segments").contains(&name.replace(".moved", ".arrow")));
        published.map(|name| (left, format!("runs/{name}")))
    });
    let (left, path) = stopped.unwrap();
    let indexed = |storage: MemoryStorage| {
        let store = options().open_on(Arc::new(storage)).unwrap();
        no_wrong_value(store.reader(), &model, "row maps");
        assert_eq!(store.len().unwrap(), model.values().flatten().count() as u64);
        store.open_report().rows_indexed
    };
    assert!(indexed(killed(&left)) <= 16);
    let mut bytes = left.read(&path).unwrap().to_vec();
    // The fingerprint.
    bytes[48] ^= 1;
    let end = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    left.write(&path, &bytes).unwrap();
    assert!(indexed(left) > 100);
}
