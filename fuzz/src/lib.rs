//! The bodies of the fuzz targets, so that `cargo test` can replay them without a fuzzer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::{FaultStorage, MemoryStorage, Storage};
use tensorcask::{Key, LeafBuffer, Options, Reader, Value};

fn options() -> Options {
    Options::new().synchronous(true).segment_rows(12).memtable_keys(20).flush_every(4, 1 << 16)
}

/// Reads all rows through every interface.
fn read_all(storage: &MemoryStorage) {
    if let Ok(reader) = options().open_reader_on(Arc::new(storage.power_loss())) {
        let keys: Vec<_> = reader.keys().take(1000).filter_map(Result::ok).collect();
        let _ = reader.get_batch(&keys);
        read_leaves(&reader, &keys);
        reader.range("".."\u{10FFFF}").for_each(drop);
        reader.iter().for_each(drop);
        let _ = reader.len();
        let _ = reader.verify(&mut |_, _| {});
    }
    if let Ok(store) = options().open_on(Arc::new(storage.clone())) {
        let keys: Vec<_> = store.keys().take(1000).filter_map(Result::ok).collect();
        let _ = store.get_batch(&keys);
        let _ = store.merge_index();
        let _ = store.close();
    }
}

/// Reads the leaves of all structures, and parts of them.
fn read_leaves(reader: &Reader, keys: &[Key]) {
    const MOST_BYTES: usize = 1 << 16;
    for used in reader.schemas().unwrap_or_default() {
        for leaf in used.schema.leaves() {
            let _ = reader.shapes(keys, leaf.path());
            let (Some(dtype), Some(shape)) = (leaf.dtype(), leaf.shape()) else { continue };
            let Some(width) = dtype.tensor_len_bytes(shape).filter(|width| *width <= MOST_BYTES) else { continue };
            let (mut out, mut found) = (vec![0; width * keys.len()], vec![false; keys.len()]);
            let _ =
                reader.get_leaves_into(keys, &mut [LeafBuffer::bytes(leaf.path(), dtype, shape, &mut out)], &mut found);
            let _ = reader.get_values_into(keys, &used.schema, &mut [&mut out], &mut found);
            let (entry_shape, mut offsets) = (shape.get(1..).unwrap_or_default(), Vec::new());
            let _ =
                reader.get_ragged_into_bytes(keys, leaf.path(), dtype, entry_shape, &mut out, &mut offsets, &mut found);
        }
    }
}

/// Opens any bytes as a sealed segment, an active segment, or a run: no panics, no hangs.
pub fn open_segment(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let storage = MemoryStorage::new();
    for folder in ["", "segments", "runs", "lanes", "quarantine"] {
        let _ = storage.create_dir(Path::new(folder));
    }
    let path = match kind % 3 {
        0 => "segments/0000-0000000001.arrow",
        1 => "segments/0000-0000000001.arrow.open",
        _ => "runs/0000-0000000001.run",
    };
    let _ = storage.write(path, bytes);
    read_all(&storage);
}

fn value(seed: u8) -> Value {
    match seed % 3 {
        0 => Value::Int(seed.into()),
        1 => Value::Str("v".repeat(seed.into())),
        _ => Value::Tensor(
            tensorcask::Tensor::from_slice(&[usize::from(seed % 7)], &vec![f32::from(seed); usize::from(seed % 7)])
                .expect("the shape fits"),
        ),
    }
}

fn key(number: u8) -> String {
    format!("key {}", number % 64)
}

/// Changes bytes of a valid store: every read returns the right value or an error, or the row was reported as lost.
pub fn mutate_store(data: &[u8]) {
    let storage = MemoryStorage::new();
    {
        let store = options().open_on(Arc::new(storage.clone())).expect("a store in memory");
        for number in 0..40 {
            store.put(&key(number), &value(number)).expect("a put in memory");
        }
        store.close().expect("a close in memory");
    }
    let files: Vec<(String, u64)> = ["segments", "runs"]
        .iter()
        .flat_map(|folder| {
            let entries = storage.list(Path::new(folder)).expect("a folder");
            let storage = &storage;
            entries.into_iter().map(move |entry| {
                let path = format!("{folder}/{}", entry.name);
                let len_bytes = storage.len_bytes(Path::new(&path)).expect("a file");
                (path, len_bytes)
            })
        })
        .collect();
    // Five bytes per change: the file, the position in it (two bytes, scaled), the bits to flip, and whether to
    // truncate there.
    for change in data.chunks_exact(5).take(8) {
        let [file, high, low, flip, cut] = change else { continue };
        let (path, len) = &files[usize::from(*file) % files.len()];
        let offset = (u64::from(*high) << 8 | u64::from(*low)) * len / 65_536;
        let _ = storage.corrupt(path, offset, *flip);
        if *cut == 255 {
            let _ = storage.truncate(path, offset);
        }
    }
    let copy = storage.power_loss();
    let store = options().open_on(Arc::new(copy)).expect("quiet recovery opens");
    for number in 0..40 {
        match store.get(&key(number)) {
            Ok(Some(found)) => assert_eq!(found, value(number)),
            Ok(None) => assert!(!store.open_report().is_clean() || !store.open_report().notes.is_empty()),
            Err(error) => assert!(error.is_corrupt(), "{error}"),
        }
    }
    read_all(&storage);
}

/// Compares a store, whose disk fails after a while, with a map. The store answers as the map does until it returns an
/// error, and afterwards still has everything that was flushed.
pub fn operations(data: &[u8]) {
    let Some((countdown, script)) = data.split_first() else { return };
    let memory = MemoryStorage::new();
    let faulty = FaultStorage::new(Arc::new(memory.clone()));
    let mut store = options().open_on(Arc::new(faulty.clone())).expect("a store in memory");
    if *countdown < 200 {
        faulty.faults().fail_after_operations(u64::from(*countdown));
    }
    let mut model: BTreeMap<String, Value> = BTreeMap::new();
    let mut flushed = model.clone();
    let mut touched: Vec<String> = Vec::new();
    for step in script.chunks_exact(3).take(200) {
        let [op, number, seed] = step else { continue };
        let name = key(*number);
        let done = match op % 8 {
            0..=3 => store.put(&name, &value(*seed)).map(|()| {
                model.insert(name.clone(), value(*seed));
                touched.push(name);
            }),
            4 => store.delete(&name).map(|_| {
                model.remove(&name);
                touched.push(name);
            }),
            5 => store.flush().map(|()| {
                flushed = model.clone();
                touched.clear();
            }),
            6 => store.close().and_then(|()| {
                flushed = model.clone();
                touched.clear();
                store = options().open_on(Arc::new(faulty.clone()))?;
                Ok(())
            }),
            _ => {
                assert_eq!(store.get(&name).expect("reads go on"), model.get(&name).cloned());
                Ok(())
            }
        };
        if done.is_err() {
            touched.push(key(*number));
            break;
        }
    }
    faulty.faults().clear();
    drop(store);
    let store = options().open_on(Arc::new(memory)).expect("it opens again");
    for number in 0..64 {
        let name = key(number);
        let found = store.get(&name).expect("nothing is damaged");
        if !touched.contains(&name) {
            assert_eq!(found, flushed.get(&name).cloned(), "{name}");
        }
    }
}
