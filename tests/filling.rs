//! Active segments whose last page was filled with zeros: they end where their batches end.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as expected")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tensorcask::{Durability, Options, Reader, Recovery, Store};

const DIMS: usize = 1024;
const ACTIVE: &str = "m/segments/0000-0000000001.arrow.open";
const LARGE_PAGE_BYTES: u64 = 2 << 20;

fn put(store: &Store, keys: std::ops::Range<u64>, durability: Durability) {
    let keys: Vec<u64> = keys.collect();
    let rows: Vec<f32> = keys.iter().flat_map(|key| (0..DIMS).map(move |at| (key * 1000) as f32 + at as f32)).collect();
    store.put_rows(&keys, &[DIMS], &rows).unwrap();
    store.flush_with(durability).unwrap();
}

fn check(reader: &Reader, keys: std::ops::Range<u64>) {
    for key in keys {
        let row = reader.get(key).unwrap().unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
        assert!(row.iter().enumerate().all(|(at, value)| *value == (key * 1000) as f32 + at as f32), "{key}");
    }
}

fn len_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(ACTIVE)).unwrap().len()
}

/// A store of 2,480 rows, 10 MB in batches that are handed to the system, in a file that ends with its last page.
fn filled(dir: &Path) -> Store {
    let store = Store::open(dir, "m").unwrap();
    (0..31).for_each(|part| put(&store, part * 80..(part + 1) * 80, Durability::Buffered));
    assert!(len_bytes(dir).is_multiple_of(LARGE_PAGE_BYTES));
    assert!(len_bytes(dir) > 2480 * 4096);
    store
}

fn copy(from: PathBuf, to: PathBuf) {
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() { copy(entry.path(), to) } else { drop(std::fs::copy(entry.path(), to)) }
    }
}

#[test]
fn after_a_crash_zeros_are_no_torn_tail() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(dir.path());
    copy(dir.path().join("m"), crashed.path().join("m"));
    let strict = || Options::new().recovery(Recovery::Strict);
    let again = strict().open(crashed.path(), "m").unwrap();
    let report = again.open_report();
    assert!(report.is_clean() && report.rows_recovered == 2480, "{report:?}");
    put(&again, 2480..2500, Durability::Buffered);
    check(&again, 0..2500);
    again.close().unwrap();
    // What sealing leaves are the batches and the index, and no zeros.
    store.close().unwrap();
    for (dir, rows) in [(dir, 2480), (crashed, 2500)] {
        let reader = strict().open_reader(dir.path(), "m").unwrap();
        check(&reader, 0..rows);
        assert!(reader.verify(&mut |_, _| {}).unwrap().is_clean());
        let sealed = dir.path().join(ACTIVE).with_extension("");
        assert!(std::fs::metadata(sealed).unwrap().len() < rows * 4200 + 100_000);
    }
}

#[test]
fn readers_see_what_is_written_into_a_filled_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let reader = Reader::open(dir.path(), "m").unwrap();
    assert!(reader.open_report().is_clean());
    let filled_bytes = len_bytes(dir.path());
    put(&store, 2480..2490, Durability::Buffered);
    reader.refresh().unwrap();
    check(&reader, 0..2490);
    // A batch is damaged before it is seen. Nobody was promised it yet.
    let active = dir.path().join(ACTIVE);
    let frames = |bytes: &[u8]| bytes.windows(8).filter(|window| window == b"TCFRAME1").count();
    put(&store, 2490..2491, Durability::Buffered);
    let bytes = std::fs::read(&active).unwrap();
    assert_eq!(frames(&bytes), 1 + 31 + 2);
    let frame = bytes.windows(8).rposition(|window| window == b"TCFRAME1").unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&active).unwrap();
    file.write_all_at(&[bytes[frame + 60] ^ 0x15], frame as u64 + 60).unwrap();
    reader.refresh().unwrap();
    assert!(!reader.contains(2490_u64).unwrap());
    // The file does not grow by the next one, which was promised, and the one before it.
    put(&store, 2491..2492, Durability::SyncData);
    assert_eq!(len_bytes(dir.path()), filled_bytes);
    reader.refresh().unwrap();
    check(&reader, 2491..2492);
    assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
}
