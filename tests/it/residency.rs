//! Stores that are on disk and not in memory: a batch is prefaulted together, and rows that cannot be read are errors.
#![cfg(target_os = "linux")]

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use tensorcask::{Error, LeafBuffer, Options, Reader, Tensor, Value, Verify};

const ROWS: usize = 20_000;
const WIDTH: usize = 512;

fn row(number: usize) -> impl Iterator<Item = u8> {
    (0..WIDTH).map(move |at| (number * 31 + at * 7) as u8)
}

/// A closed store of `ROWS` rows in several sealed segments. Keys are strings of various lengths, or integers.
fn store(dir: &Path, strings: bool) {
    let store = Options::new().segment_bytes(4 << 20).open(dir, "m").unwrap();
    for first in (0..ROWS).step_by(1000) {
        let bytes: Vec<u8> = (first..first + 1000).flat_map(row).collect();
        if strings {
            let keys: Vec<String> = (first..first + 1000).map(name).collect();
            store.put_rows(&keys, &[WIDTH], &bytes).unwrap();
        } else {
            let keys: Vec<u64> = (first as u64..first as u64 + 1000).collect();
            store.put_rows(&keys, &[WIDTH], &bytes).unwrap();
        }
    }
    store.close().unwrap();
}

fn name(number: usize) -> String {
    format!("{number}{}", "x".repeat(number % 30))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let folder = |name: &str| std::fs::read_dir(dir.join("m").join(name)).unwrap().map(|entry| entry.unwrap().path());
    folder("segments").chain(folder("runs")).collect()
}

/// Drops the store's files from memory. They must not be mapped.
fn drop_from_memory(dir: &Path) {
    for path in files(dir) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

fn numbers() -> Vec<usize> {
    (0..1024_usize).map(|position| position.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (ROWS + 500)).collect()
}

/// The number of pages in which the rows of [`numbers`] start.
fn row_pages() -> u64 {
    let mut pages: Vec<usize> =
        numbers().iter().filter(|number| **number < ROWS).map(|row| row * WIDTH / 4096).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.len() as u64
}

/// Reads [`numbers`] and checks every byte. Returns the number of pages that were not in memory.
fn read(reader: &Reader, strings: bool) -> u64 {
    let numbers = numbers();
    let (mut out, mut found) = (vec![0_u8; numbers.len() * WIDTH], vec![false; numbers.len()]);
    let before = reader.stats().unwrap().prefaulted_pages;
    let hits = if strings {
        let keys: Vec<String> = numbers.iter().map(|number| name(*number)).collect();
        reader.get_batch_into(&keys, &[WIDTH], &mut out, &mut found).unwrap()
    } else {
        let keys: Vec<u64> = numbers.iter().map(|number| *number as u64).collect();
        reader.get_batch_into(&keys, &[WIDTH], &mut out, &mut found).unwrap()
    };
    assert_eq!(hits, numbers.iter().filter(|number| **number < ROWS).count());
    for ((number, found), bytes) in numbers.iter().zip(&found).zip(out.chunks(WIDTH)) {
        assert_eq!(*found, *number < ROWS, "{number}");
        assert!(!found || bytes.iter().copied().eq(row(*number)), "{number}");
    }
    reader.stats().unwrap().prefaulted_pages - before
}

#[test]
fn a_cold_store_is_read_in_together_and_is_in_memory_then() {
    for strings in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), strings);
        drop_from_memory(dir.path());
        let reader = Reader::open(dir.path(), "m").unwrap();
        let cold = read(&reader, strings);
        if cold == 0 {
            eprintln!("NOT TESTED: this file system keeps all files in memory");
            return;
        }
        assert!((row_pages()..3000).contains(&cold), "{cold} pages");
        assert_eq!(read(&reader, strings), 0, "the second time everything is in memory");
    }
}

/// Pages that are missing in all of a store of which the first rows are read all the time; `None` where the system keeps
/// all files in memory.
fn cold_beside_preloaded_rows() -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), false);
    drop_from_memory(dir.path());
    let reader = Reader::open(dir.path(), "m").unwrap();
    let in_memory: Vec<u64> = (0..256).collect();
    // Repeated until the reader assumes that everything is in memory.
    (0..40).for_each(|_| drop(reader.get_batch(&in_memory).unwrap()));
    let before = reader.stats().unwrap().prefaulted_pages;
    (0..10).for_each(|_| drop(reader.get_batch(&in_memory).unwrap()));
    assert_eq!(reader.stats().unwrap().prefaulted_pages, before);
    let cold = read(&reader, false);
    (before > 0).then_some(cold)
}

#[test]
fn a_part_of_the_store_that_is_cold_is_noticed() {
    // The rows that made the store look preloaded are a hundredth of it. A busy system may not drop what it is told to.
    let noticed = |_| cold_beside_preloaded_rows().is_none_or(|cold| cold > row_pages() / 2);
    assert!((0..4).any(noticed), "{:?} pages", cold_beside_preloaded_rows());
}

#[test]
fn a_store_that_was_preloaded_is_in_memory() {
    for strings in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), strings);
        drop_from_memory(dir.path());
        let reader = Reader::open(dir.path(), "m").unwrap();
        // The limit is respected, and the index is preloaded first.
        let part = reader.preload(1 << 20).unwrap();
        let index_bytes = reader.stats().unwrap().run_bytes;
        assert!((index_bytes * 9 / 10..=index_bytes).contains(&part.index_bytes), "{part:?}");
        assert_eq!(part.index_bytes + part.segment_bytes, 1 << 20);
        let values = (ROWS * WIDTH) as u64;
        assert!(part.left_bytes > values - (1 << 20), "{part:?}");

        let all = reader.preload(u64::MAX).unwrap();
        assert!(all.segment_bytes > values && all.left_bytes == 0, "{all:?}");
        if all.read_bytes == 0 {
            eprintln!("NOT TESTED: this file system keeps all files in memory");
            return;
        }
        assert!(all.read_bytes > values / 2, "{all:?}");
        assert_eq!(read(&reader, strings), 0, "all is in memory");
    }
}

#[test]
fn preloading_what_was_cut_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), false);
    let reader = Reader::open(dir.path(), "m").unwrap();
    let segment = files(dir.path()).into_iter().find(|path| path.to_string_lossy().contains("segments")).unwrap();
    OpenOptions::new().write(true).open(&segment).unwrap().set_len(8192).unwrap();
    let error = reader.preload(u64::MAX).unwrap_err();
    let Error::Io { path, .. } = &error else { panic!("{error}") };
    assert_eq!(path.file_name(), segment.file_name());
}

#[test]
fn a_segment_that_was_cut_under_its_reader_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), false);
    let reader = Reader::open(dir.path(), "m").unwrap();
    let segment = files(dir.path()).into_iter().find(|path| path.to_string_lossy().contains("segments")).unwrap();
    OpenOptions::new().write(true).open(&segment).unwrap().set_len(8192).unwrap();
    let keys: Vec<u64> = (0..ROWS as u64).collect();
    let (mut out, mut found) = (vec![0_u8; ROWS * WIDTH], vec![false; ROWS]);
    let error = reader.get_batch_into(&keys, &[WIDTH], &mut out, &mut found).unwrap_err();
    let Error::Io { path, .. } = &error else { panic!("{error}") };
    assert_eq!(path.file_name(), segment.file_name());
    assert!(reader.get_batch(&keys).is_err());
}

#[test]
fn of_a_part_of_a_value_the_rest_is_not_read() {
    const LARGE: usize = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().open(dir.path(), "m").unwrap();
    let keys: Vec<u64> = (0..100).collect();
    let value = |key: &u64| {
        let large = Tensor::from_slice(&[LARGE / 256, 256], &vec![*key as u8; LARGE]).unwrap();
        Value::from([("large", Value::from(large)), ("small", (*key as i64).into())])
    };
    store.put_batch(&keys, &keys.iter().map(value).collect::<Vec<_>>()).unwrap();
    store.close().unwrap();
    drop(store);
    // Leaves have checksums of their own.
    for verify in [Verify::Never, Verify::FirstRead, Verify::Always] {
        drop_from_memory(dir.path());
        let reader = Options::new().verify(verify).open_reader(dir.path(), "m").unwrap();
        let (mut small, mut found) = ([0_i64; 100], [false; 100]);
        let mut leaves = [LeafBuffer::new("value/small", &[], &mut small)];
        assert_eq!(reader.get_leaves_into(&keys, &mut leaves, &mut found).unwrap(), 100);
        assert!(small.iter().zip(&keys).all(|(found, key)| *found as u64 == *key));
        let pages = reader.stats().unwrap().prefaulted_pages;
        assert!(pages < 200, "{verify:?}: {pages} pages");
        reader.get_batch(&keys).unwrap();
        let pages = reader.stats().unwrap().prefaulted_pages;
        assert!((1500..2000).contains(&pages), "{verify:?}: {pages} pages");
    }
}
