//! Lanes of killed writers, and reads of files that compaction unlinks.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tensorcask::storage::{AppendFile, DirEntry, LockGuard, MemoryStorage, ReadFile, Storage};
use tensorcask::{Compaction, Lane, Options, Result, Store, Value};

const DIR: &str = "TENSORCASK_ADOPTION_DIR";

/// Not a test by itself: a writer that is killed.
#[test]
fn child_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let store = Options::new().lane(Lane::Auto).open(dir, "m").unwrap();
    for key in 0..50_u64 {
        store.put(1000 + key, Value::Int(key as i64)).unwrap();
        store.flush().unwrap();
    }
    println!("\nin lane {}", store.lane());
    std::thread::sleep(Duration::from_secs(600));
}

/// Starts a writer, kills it after its rows are flushed, and returns its lane.
fn killed_writer(dir: &Path) -> u16 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "adoption::child_process", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let lane = lines.into_iter().find_map(|line| line.strip_prefix("in lane ")?.parse().ok()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    lane
}

fn active_segments(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir.join("m/segments")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".open")).count()
}

#[test]
fn the_lane_of_a_killed_writer_is_adopted_by_the_next_opening() {
    for others_are_open in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let open = || Options::new().lane(Lane::Auto).open(dir.path(), "m").unwrap();
        let (first, second) = (open(), open());
        assert_eq!(killed_writer(dir.path()), 2);
        if !others_are_open {
            first.close().unwrap();
            second.close().unwrap();
            drop((first, second));
        }
        assert!(active_segments(dir.path()) >= 1);
        let next = open();
        assert_eq!(next.lane(), 2, "others open: {others_are_open}");
        assert!(next.open_report().is_clean() && next.open_report().rows_recovered >= 50, "{:?}", next.open_report());
        for key in 0..50_u64 {
            assert_eq!(next.get(1000 + key).unwrap(), Some(Value::Int(key as i64)));
        }
        // A lane with a writer is not taken.
        let another = open();
        assert_eq!(another.lane(), if others_are_open { 3 } else { 0 });
        another.close().unwrap();
        next.close().unwrap();
        drop((next, another));
        assert_eq!(active_segments(dir.path()), 0, "the segments of the killed writer are sealed");
        let store = open();
        assert_eq!((store.len().unwrap(), store.open_report().rows_recovered), (50, 0));
        assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    }
}

/// A storage that maps nothing: each read opens the file by its name, as on a disk beyond the number of maps.
#[derive(Debug, Clone)]
struct Unmapped(MemoryStorage);

#[derive(Debug)]
struct ByName {
    storage: MemoryStorage,
    path: PathBuf,
    len_bytes: u64,
}

impl ReadFile for ByName {
    fn len_bytes(&self) -> Result<u64> {
        Ok(self.len_bytes)
    }

    fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        self.storage.open(&self.path, 0)?.bytes(offset, len_bytes)
    }

    fn copy(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        self.bytes(offset, len_bytes)
    }
}

impl Storage for Unmapped {
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.0.create_dir(path)
    }
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        self.0.list(path)
    }
    fn len_bytes(&self, path: &Path) -> Result<u64> {
        self.0.len_bytes(path)
    }
    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>> {
        self.0.create(path)
    }
    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>> {
        self.0.open_append(path, len_bytes)
    }
    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>> {
        if capacity_bytes > 0 {
            return self.0.open(path, capacity_bytes);
        }
        let len_bytes = self.0.open(path, 0)?.len_bytes()?;
        Ok(Arc::new(ByName { storage: self.0.clone(), path: path.into(), len_bytes }))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.0.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
        self.0.try_lock(path)
    }
    fn describe(&self, path: &Path) -> PathBuf {
        self.0.describe(path)
    }
}

fn put(store: &Store, version: f32) {
    let keys: Vec<u64> = (0..400).collect();
    let rows: Vec<f32> = keys.iter().flat_map(|key| [*key as f32, version]).collect();
    for (keys, rows) in keys.chunks(50).zip(rows.chunks(100)) {
        store.put_rows(keys, &[2], rows).unwrap();
        store.flush().unwrap();
    }
    store.compact(&Compaction::new().live_share(1.0)).unwrap();
}

#[test]
fn a_get_of_a_file_that_was_unlinked_looks_again() {
    let memory = MemoryStorage::new();
    let writer = Options::new().segment_rows(100).open_on(Arc::new(memory.clone())).unwrap();
    put(&writer, 0.0);
    // No refresh is due during the test.
    let never = Options::new().refresh_interval(Duration::from_secs(1000));
    let open = || never.clone().open_reader_on(Arc::new(Unmapped(memory.clone()))).unwrap();
    let readers = [open(), open(), open(), open()];
    let before = memory.list(Path::new("segments")).unwrap();
    put(&writer, 1.0);
    assert!(!memory.list(Path::new("segments")).unwrap().iter().any(|entry| before.contains(entry)));
    let keys: Vec<u64> = (0..400).collect();
    let (mut out, mut found) = (vec![0.0_f32; 800], vec![false; 400]);
    assert_eq!(readers[0].get_batch_into(&keys, &[2], &mut out, &mut found).unwrap(), 400);
    assert!(out.chunks(2).zip(&keys).all(|(row, key)| row == [*key as f32, 1.0]));
    assert!(readers[1].get_batch(&keys).unwrap().into_iter().all(|value| value.unwrap().is_some()));
    assert_eq!(readers[2].contains_batch(&keys).unwrap(), [true; 400]);
    assert!(readers[3].get(7_u64).unwrap().is_some());
}

#[test]
fn readers_that_open_while_segments_are_unlinked_find_all_rows() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Options::new().segment_rows(100).open(dir.path(), "m").unwrap();
    put(&writer, 0.0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let keys: Vec<u64> = (0..400).collect();
            let (mut opened, mut newest) = (0, 0.0);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let reader = Options::new().open_reader(dir.path(), "m").unwrap();
                let report = reader.open_report();
                assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{report:?}");
                let (mut out, mut found) = (vec![0.0_f32; 800], vec![false; 400]);
                assert_eq!(reader.get_batch_into(&keys, &[2], &mut out, &mut found).unwrap(), 400);
                assert!(out[799] >= newest);
                (opened, newest) = (opened + 1, out[799]);
            }
            opened
        });
        (1..30).for_each(|version| put(&writer, version as f32));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reading.join().unwrap() > 3);
    });
}
