//! Active segments whose last page is filled with zeros end where their batches end.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// A store of 2,480 rows, 10 MB in buffered batches, in a file that ends at a page boundary.
fn filled(dir: &Path) -> Store {
    let store = Store::open(dir, "m").unwrap();
    (0..31).for_each(|part| put(&store, part * 80..(part + 1) * 80, Durability::Buffered));
    assert!(len_bytes(dir).is_multiple_of(LARGE_PAGE_BYTES));
    assert!(len_bytes(dir) > 2480 * 4096);
    store
}

#[test]
fn after_a_crash_zeros_are_no_torn_tail() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(dir.path());
    crate::storages::copy_folder(&dir.path().join("m"), &crashed.path().join("m"));
    let strict = || Options::new().recovery(Recovery::Strict);
    let again = strict().open(crashed.path(), "m").unwrap();
    let report = again.open_report();
    assert!(report.is_clean() && report.rows_recovered == 2480, "{report:?}");
    put(&again, 2480..2500, Durability::Buffered);
    check(again.reader(), 0..2500);
    again.close().unwrap();
    // After sealing, the file has the batches and the index, and no zeros.
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
    // A batch is damaged before a reader has seen it, and before it was synced.
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
    // The next batch is synced together with the damaged one. Both fit into the filled page, so the file does not grow.
    put(&store, 2491..2492, Durability::SyncData);
    assert_eq!(len_bytes(dir.path()), filled_bytes);
    reader.refresh().unwrap();
    check(&reader, 2491..2492);
    assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
}

/// A store whose last batches were written over zeros: rows from 2,480 on were synced, rows from 2,490 on were not.
/// Also returns the offsets of the last three frames.
fn written_over(dir: &Path) -> (Store, [u64; 3]) {
    let store = filled(dir);
    put(&store, 2480..2490, Durability::SyncData);
    put(&store, 2490..2500, Durability::Buffered);
    let bytes = std::fs::read(dir.join(ACTIVE)).unwrap();
    let frames = bytes.windows(8).enumerate().filter(|(_, window)| window == b"TCFRAME1").map(|(at, _)| at as u64);
    (store, *frames.collect::<Vec<_>>().last_chunk().unwrap())
}

/// A copy of the store as after a crash, with `bytes` of the active segment changed.
fn crashed(dir: &Path, bytes: std::ops::Range<u64>, change: impl Fn(u8) -> u8) -> tempfile::TempDir {
    let crashed = tempfile::tempdir().unwrap();
    crate::storages::copy_folder(&dir.join("m"), &crashed.path().join("m"));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(crashed.path().join(ACTIVE)).unwrap();
    for at in bytes {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[change(byte[0])], at).unwrap();
    }
    crashed
}

#[test]
fn a_batch_over_zeros_that_was_not_promised_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, [_, before, last]) = written_over(dir.path());
    let begin = before + 96;
    // Only the first bytes were written, or there is a hole in the message, in a value, or in the frame.
    for lost in [begin + 1000..last + 96, begin..begin + 8, last - 5000..last - 4900, last + 50..last + 60] {
        let crashed = crashed(dir.path(), lost.clone(), |_| 0);
        let store = Options::new().recovery(Recovery::Strict).open(crashed.path(), "m").unwrap();
        let report = store.open_report();
        assert!(report.bytes_cut > 0 && report.rows_recovered == 2490, "{lost:?}: {report:?}");
        check(store.reader(), 0..2490);
        put(&store, 2490..2495, Durability::Buffered);
        check(store.reader(), 2490..2495);
        assert_eq!(store.len().unwrap(), 2495);
    }
}

#[test]
fn a_batch_over_zeros_that_was_promised_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, [before, promised, _]) = written_over(dir.path());
    for lost in [before + 96 + 200..before + 96 + 201, promised + 50..promised + 51] {
        let crashed = crashed(dir.path(), lost.clone(), |byte| byte ^ 0x15);
        let strict = Options::new().recovery(Recovery::Strict).open(crashed.path(), "m");
        assert!(strict.unwrap_err().is_corrupt(), "{lost:?}");
        let store = Store::open(crashed.path(), "m").unwrap();
        assert_eq!(store.open_report().quarantined.len(), 1, "{lost:?}");
        check(store.reader(), 0..2480);
        check(store.reader(), 2490..2500);
        // Rows of the damaged batch whose checksums match are saved.
        let saved: Vec<u64> = (2480..2490_u64).filter(|key| store.contains(*key).unwrap()).collect();
        saved.iter().for_each(|key| check(store.reader(), *key..*key + 1));
        assert_eq!(store.len().unwrap(), 2490 + saved.len() as u64);
        assert_eq!(store.open_report().quarantined[0].rows_lost, Some(10 - saved.len() as u64));
    }
}

#[test]
fn a_segment_is_sealed_under_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().durability(Durability::Buffered).segment_bytes(9 << 20).open(dir.path(), "m").unwrap();
    put(&store, 0..80, Durability::Buffered);
    let reader = Reader::open(dir.path(), "m").unwrap();
    let there = AtomicU64::new(80);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in 1..150 {
                put(&store, part * 80..(part + 1) * 80, Durability::Buffered);
                there.store((part + 1) * 80, Ordering::SeqCst);
            }
        });
        loop {
            let keys = there.load(Ordering::SeqCst);
            reader.refresh().unwrap();
            let last: Vec<u64> = (keys - 80..keys).collect();
            assert!(reader.contains_batch(&last).unwrap().iter().all(|there| *there), "{keys}");
            if keys == 150 * 80 {
                break;
            }
        }
    });
}

const CHILD: &str = "TENSORCASK_FILLING_CHILD";

/// Not a test: the code of the child process of the next test, whose files cannot grow beyond the size of the rows.
#[test]
#[expect(unsafe_code, reason = "the libraries set no limits")]
fn child_without_room() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let limit = libc::rlimit { rlim_cur: 2545 * 4096, rlim_max: 2545 * 4096 };
    // SAFETY: both calls take numbers and a pointer to a structure that outlives them.
    let results = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit)
    };
    assert_eq!(results, 0);
    let store = Store::open(&dir, "m").unwrap();
    (0..31).for_each(|part| put(&store, part * 80..(part + 1) * 80, Durability::Buffered));
    assert!(len_bytes(Path::new(&dir)) < 2545 * 4096);
    check(store.reader(), 0..2480);
    // There is no space for the index. The process ends as if it was killed.
    std::process::exit(7);
}

#[test]
fn zeros_for_which_there_is_no_room_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "filling::child_without_room", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir.path())
        .status();
    assert_eq!(status.unwrap().code(), Some(7));
    assert!(len_bytes(dir.path()) > 2480 * 4096);
    let store = Options::new().recovery(Recovery::Strict).open(dir.path(), "m").unwrap();
    assert!(store.open_report().is_clean());
    check(store.reader(), 0..2480);
}
