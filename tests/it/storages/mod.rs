//! The storages that tests on damaged stores use: files are flipped, truncated and copied in memory or on a disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tempfile::TempDir;
use tensorcask::storage::{AppendFile, DirEntry, DiskStorage, FileKind, LockGuard, MemoryStorage, ReadFile, Storage};
use tensorcask::{Options, Result};

/// The kind of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Disk,
}

impl Kind {
    /// An empty storage.
    pub fn empty(self) -> TestStorage {
        match self {
            Self::Memory => TestStorage::Memory(MemoryStorage::new()),
            Self::Disk => TestStorage::Disk(Arc::new(tempfile::tempdir().unwrap())),
        }
    }

    /// The number of repetitions on this storage, given the number in memory.
    pub fn tries(self, tries: usize) -> usize {
        match self {
            Self::Memory => tries,
            Self::Disk => tries / 4,
        }
    }

    /// The distance between damaged bytes on this storage, given the distance in memory. It is larger on a disk, which
    /// is slower.
    pub fn step(self, step: usize) -> usize {
        match self {
            Self::Memory => step,
            Self::Disk => step * 5 + 2,
        }
    }
}

/// A storage whose files tests can damage.
#[derive(Debug, Clone)]
pub enum TestStorage {
    Memory(MemoryStorage),
    Disk(Arc<TempDir>),
}

impl TestStorage {
    /// Merges the index of its closed store to one run.
    pub fn merge(&self, options: Options) {
        let store = options.open_on(self.storage()).unwrap();
        store.merge_index().unwrap();
        store.close().unwrap();
    }

    /// The storage to open a store on.
    pub fn storage(&self) -> Arc<dyn Storage> {
        match self {
            Self::Memory(memory) => Arc::new(memory.clone()),
            Self::Disk(dir) => Arc::new(Held::new(Arc::new(DiskStorage::new(dir.path())), Some(dir))),
        }
    }

    /// The same, together with a counter of the bytes of segments that are read through it.
    pub fn counting(&self) -> (Arc<dyn Storage>, Arc<AtomicU64>) {
        let held = Held::new(self.storage(), None);
        let asked = Arc::clone(&held.asked);
        (Arc::new(held), asked)
    }

    /// A copy with the files that a crash would leave (on a disk: everything that was written).
    pub fn copy(&self) -> Self {
        match self {
            Self::Memory(memory) => Self::Memory(memory.power_loss()),
            Self::Disk(dir) => {
                let copy = tempfile::tempdir().unwrap();
                copy_folder(dir.path(), copy.path());
                Self::Disk(Arc::new(copy))
            }
        }
    }

    /// A copy with everything that was written, synced or not.
    pub fn whole_copy(&self) -> Self {
        match self {
            Self::Memory(memory) => Self::Memory(memory.power_loss_keeping(|_, _, len_bytes| len_bytes)),
            Self::Disk(_) => self.copy(),
        }
    }

    fn at(dir: &TempDir, path: impl AsRef<Path>) -> PathBuf {
        dir.path().join(path)
    }

    /// All bytes of the file.
    pub fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        match self {
            Self::Memory(memory) => memory.read(path).unwrap().to_vec(),
            Self::Disk(dir) => std::fs::read(Self::at(dir, path)).unwrap(),
        }
    }

    /// Writes `bytes` to a file at `path`.
    pub fn write(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        match self {
            Self::Memory(memory) => memory.write(path, bytes).unwrap(),
            Self::Disk(dir) => {
                // Creates a new file, so that handles of the former one keep it.
                let path = Self::at(dir, path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let _absent = std::fs::remove_file(&path);
                std::fs::write(path, bytes).unwrap();
            }
        }
    }

    /// Flips the bits `xor` of the byte at `offset`.
    pub fn corrupt(&self, path: impl AsRef<Path>, offset: u64, xor: u8) {
        match self {
            Self::Memory(memory) => memory.corrupt(path, offset, xor).unwrap(),
            Self::Disk(dir) => {
                use std::os::unix::fs::FileExt;
                let file = std::fs::OpenOptions::new().read(true).write(true).open(Self::at(dir, path)).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).unwrap();
                file.write_all_at(&[byte[0] ^ xor], offset).unwrap();
            }
        }
    }

    /// Truncates the file to `len_bytes`. It must not be mapped.
    pub fn truncate(&self, path: impl AsRef<Path>, len_bytes: u64) {
        match self {
            Self::Memory(memory) => memory.truncate(path, len_bytes).unwrap(),
            Self::Disk(dir) => {
                let file = std::fs::OpenOptions::new().write(true).open(Self::at(dir, path)).unwrap();
                file.set_len(len_bytes).unwrap();
            }
        }
    }

    /// Removes a file.
    pub fn remove(&self, path: impl AsRef<Path>) {
        self.storage().remove(path.as_ref()).unwrap();
    }

    /// The files in a folder, with the folder's name.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let entries = self.storage().list(folder.as_ref()).unwrap().into_iter();
        entries.filter(|entry| entry.kind.is_file()).map(|entry| format!("{folder}/{}", entry.name)).collect()
    }

    /// Bytes of all files of the store.
    pub fn len_bytes(&self) -> u64 {
        let storage = self.storage();
        let folders = ["segments", "runs", "lanes", "quarantine"];
        folders.iter().flat_map(|folder| self.files(folder)).map(|path| storage.len_bytes(path.as_ref()).unwrap()).sum()
    }
}

/// A storage that keeps its folder until it is dropped, and counts the bytes that are read from segments.
#[derive(Debug)]
struct Held {
    inner: Arc<dyn Storage>,
    asked: Arc<AtomicU64>,
    _dir: Option<Arc<TempDir>>,
}

impl Held {
    fn new(inner: Arc<dyn Storage>, dir: Option<&Arc<TempDir>>) -> Self {
        Self { inner, asked: Arc::default(), _dir: dir.cloned() }
    }
}

#[derive(Debug)]
struct CountingFile {
    inner: Arc<dyn ReadFile>,
    asked: Arc<AtomicU64>,
}

impl ReadFile for CountingFile {
    fn settle(&self) {
        self.inner.settle();
    }
    fn len_bytes(&self) -> Result<u64> {
        self.inner.len_bytes()
    }
    fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        self.asked.fetch_add(len_bytes as u64, Ordering::Relaxed);
        self.inner.bytes(offset, len_bytes)
    }
    fn copy(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        self.asked.fetch_add(len_bytes as u64, Ordering::Relaxed);
        self.inner.copy(offset, len_bytes)
    }
}

impl Storage for Held {
    fn kind(&self, path: &Path) -> Result<Option<FileKind>> {
        self.inner.kind(path)
    }
    fn changed(&self, path: &Path) -> Result<Option<std::time::SystemTime>> {
        self.inner.changed(path)
    }
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.inner.create_dir(path)
    }
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        self.inner.list(path)
    }
    fn len_bytes(&self, path: &Path) -> Result<u64> {
        self.inner.len_bytes(path)
    }
    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>> {
        self.inner.create(path)
    }
    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>> {
        self.inner.open_append(path, len_bytes)
    }
    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>> {
        let inner = self.inner.open(path, capacity_bytes)?;
        if !path.starts_with("segments") {
            return Ok(inner);
        }
        Ok(Arc::new(CountingFile { inner, asked: Arc::clone(&self.asked) }))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.inner.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.inner.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
        self.inner.try_lock(path)
    }
    fn network(&self) -> Result<Option<&'static str>> {
        self.inner.network()
    }
    fn describe(&self, path: &Path) -> PathBuf {
        self.inner.describe(path)
    }
}

/// Copies a folder with all contents.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Batches are committed on the caller's thread.
pub fn options() -> Options {
    Options::new().synchronous(true).flush_every(8, 1 << 20)
}

/// The number of files in a folder whose names end with `end`.
pub fn files_in(dir: &Path, end: &str) -> usize {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(end)).count()
}

/// Defines a test for each storage from functions of a [`Kind`].
#[macro_export]
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        $(mod $test {
            #[test]
            fn in_memory() {
                super::$test($crate::storages::Kind::Memory);
            }

            #[test]
            fn on_disk() {
                super::$test($crate::storages::Kind::Disk);
            }
        })*
    };
}
