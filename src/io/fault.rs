//! A [`Storage`] that fails on command, for tests of full disks, failed syncs and crashes halfway.

use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{AppendFile, DirEntry, Durability, FileKind, LockGuard, PositionLocks, ReadFile, Storage};
use crate::error::{Error, Result};

/// Forwards everything to another storage until its [`Faults`] say otherwise. Clones share them.
#[derive(Debug, Clone)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    faults: Faults,
}

/// The handle that arms the faults of a [`FaultStorage`]; faults stay armed until [`Faults::clear`]. As on a real
/// disk, a file that failed once refuses everything from then on, even when the fault is cleared.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    bytes_left: Option<u64>,
    operations_left: Option<u64>,
    operations: u64,
    fail_syncs: bool,
    fail_renames: bool,
    denied: Vec<PathBuf>,
}

impl Faults {
    /// The disk is full after `bytes` more: the append that does not fit writes the part that does (a torn write), then
    /// fails with [`ErrorKind::StorageFull`].
    pub fn fail_after_bytes(&self, bytes: u64) {
        self.state.lock().bytes_left = Some(bytes);
    }

    /// Whether syncs of files (except [`Durability::Buffered`] ones, which do nothing) and folders fail.
    pub fn fail_syncs(&self, fail: bool) {
        self.state.lock().fail_syncs = fail;
    }

    /// Whether renames fail.
    pub fn fail_renames(&self, fail: bool) {
        self.state.lock().fail_renames = fail;
    }

    /// Opening the files at `paths` fails with [`ErrorKind::PermissionDenied`], as for another user's files.
    pub fn deny(&self, paths: impl IntoIterator<Item = impl Into<PathBuf>>) {
        self.state.lock().denied = paths.into_iter().map(Into::into).collect();
    }

    /// `operations` more operations succeed, all further ones fail. Operations that change the storage are counted:
    /// making folders, creating, opening for append, appending, cutting zeros off, syncing, renaming, removing.
    pub fn fail_after_operations(&self, operations: u64) {
        self.state.lock().operations_left = Some(operations);
    }

    /// Operations attempted so far, counted as for [`Self::fail_after_operations`]: a test runs once, then fails at
    /// each.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Disarms all faults.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        *state = State { operations: state.operations, ..State::default() };
    }

    fn operation(&self) -> Result<(), ErrorKind> {
        let mut state = self.state.lock();
        state.operations += 1;
        match &mut state.operations_left {
            Some(0) => Err(ErrorKind::Other),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), ErrorKind> {
        self.operation()?;
        if self.state.lock().fail_syncs { Err(ErrorKind::Other) } else { Ok(()) }
    }

    fn rename(&self) -> Result<(), ErrorKind> {
        self.operation()?;
        if self.state.lock().fail_renames { Err(ErrorKind::Other) } else { Ok(()) }
    }

    fn access(&self, path: &Path) -> Result<(), ErrorKind> {
        let denied = self.state.lock().denied.iter().any(|denied| denied == path);
        if denied { Err(ErrorKind::PermissionDenied) } else { Ok(()) }
    }

    /// Takes as many of `bytes` as still fit; returns how many.
    fn take_bytes(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock();
        let Some(left) = &mut state.bytes_left else { return bytes };
        let fit = bytes.min(*left);
        *left -= fit;
        fit
    }
}

impl FaultStorage {
    /// `inner`, with no fault armed.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, faults: Faults::default() }
    }

    /// The handle that arms faults.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    fn error(&self, action: &'static str, path: &Path, kind: ErrorKind) -> Error {
        injected(action, &self.inner.describe(path), kind)
    }

    fn wrap(&self, path: &Path, inner: Box<dyn AppendFile>) -> Box<dyn AppendFile> {
        let path = self.inner.describe(path);
        Box::new(FaultFile { inner, path, faults: self.faults.clone(), failed: None })
    }
}

fn injected(action: &'static str, path: &Path, kind: ErrorKind) -> Error {
    Error::io(action, path, std::io::Error::new(kind, format!("{kind} (injected fault)")))
}

impl Storage for FaultStorage {
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.faults.operation().map_err(|kind| self.error("create the folder", path, kind))?;
        self.inner.create_dir(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        self.inner.list(path)
    }

    fn len_bytes(&self, path: &Path) -> Result<u64> {
        self.inner.len_bytes(path)
    }

    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>> {
        self.faults.operation().map_err(|kind| self.error("create", path, kind))?;
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>> {
        let allowed = self.faults.operation().and_then(|()| self.faults.access(path));
        allowed.map_err(|kind| self.error("open for appending", path, kind))?;
        Ok(self.wrap(path, self.inner.open_append(path, len_bytes)?))
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>> {
        self.faults.access(path).map_err(|kind| self.error("open", path, kind))?;
        self.inner.open(path, capacity_bytes)
    }

    fn changed(&self, path: &Path) -> Result<Option<std::time::SystemTime>> {
        self.inner.changed(path)
    }

    fn kind(&self, path: &Path) -> Result<Option<FileKind>> {
        self.inner.kind(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.faults.rename().map_err(|kind| self.error("rename", from, kind))?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.faults.operation().map_err(|kind| self.error("remove", path, kind))?;
        self.inner.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.faults.sync().map_err(|kind| self.error("sync the folder", path, kind))?;
        self.inner.sync_dir(path)
    }

    fn local_path(&self, path: &Path) -> Option<PathBuf> {
        self.inner.local_path(path)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        self.faults.operation().map_err(|kind| self.error("link", to, kind))?;
        self.inner.link(from, to)
    }

    fn clone_file(&self, from: &Path, to: &Path) -> Result<bool> {
        self.faults.operation().map_err(|kind| self.error("copy a segment to", to, kind))?;
        let len_bytes = std::fs::metadata(from).map_or(0, |file| file.len());
        if self.faults.take_bytes(len_bytes) < len_bytes {
            return Err(self.error("copy a segment to", to, ErrorKind::StorageFull));
        }
        self.inner.clone_file(from, to)
    }

    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
        self.faults.access(path).map_err(|kind| self.error("open the lock file", path, kind))?;
        self.inner.try_lock(path)
    }

    fn position_locks(&self, path: &Path) -> Result<Option<Box<dyn PositionLocks>>> {
        self.faults.access(path).map_err(|kind| self.error("open the lock file", path, kind))?;
        self.inner.position_locks(path)
    }

    fn describe(&self, path: &Path) -> PathBuf {
        self.inner.describe(path)
    }
}

#[derive(Debug)]
struct FaultFile {
    inner: Box<dyn AppendFile>,
    path: PathBuf,
    faults: Faults,
    failed: Option<Error>,
}

impl FaultFile {
    fn latched(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        run(self).inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn try_append(&mut self, parts: &[IoSlice<'_>]) -> Result<()> {
        self.faults.operation().map_err(|kind| injected("append to", &self.path, kind))?;
        let wanted: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let fit = self.faults.take_bytes(wanted);
        if fit == wanted {
            return self.inner.append(parts);
        }
        let mut left = fit as usize;
        let torn = parts.iter().map(|part| {
            let part: &[u8] = part;
            let kept = part.get(..left).unwrap_or(part);
            left -= kept.len();
            IoSlice::new(kept)
        });
        self.inner.append(&torn.collect::<Vec<_>>())?;
        Err(injected("append to", &self.path, ErrorKind::StorageFull))
    }

    fn try_sync(&mut self, durability: Durability) -> Result<()> {
        if durability > Durability::Buffered {
            self.faults.sync().map_err(|kind| injected("sync", &self.path, kind))?;
        }
        self.inner.sync(durability)
    }
}

impl AppendFile for FaultFile {
    fn write_early(&mut self, early: bool) {
        self.inner.write_early(early);
    }

    fn is_in_place(&self) -> bool {
        self.inner.is_in_place()
    }

    fn fill_pages(&mut self, fill: bool) -> Result<()> {
        self.latched(|file| {
            if !fill {
                file.faults.operation().map_err(|kind| injected("cut zeros off", &file.path, kind))?;
            }
            file.inner.fill_pages(fill)
        })
    }

    fn append(&mut self, parts: &[IoSlice<'_>]) -> Result<()> {
        self.latched(|file| file.try_append(parts))
    }

    fn sync(&mut self, durability: Durability) -> Result<()> {
        self.latched(|file| file.try_sync(durability))
    }

    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStorage;
    use super::*;

    fn new() -> (MemoryStorage, FaultStorage, Faults) {
        let memory = MemoryStorage::new();
        let storage = FaultStorage::new(Arc::new(memory.clone()));
        let faults = storage.faults();
        (memory, storage, faults)
    }

    fn kind(result: Result<()>) -> ErrorKind {
        match result.unwrap_err() {
            Error::Io { source, .. } => source.kind(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_disk_tears_the_write() {
        let (memory, storage, faults) = new();
        let mut file = storage.create(Path::new("f")).unwrap();
        faults.fail_after_bytes(7);
        file.append(&[IoSlice::new(b"abc")]).unwrap();
        let parts = [IoSlice::new(b"de"), IoSlice::new(b"fgh"), IoSlice::new(b"ij")];
        assert_eq!(kind(file.append(&parts)), ErrorKind::StorageFull);
        assert_eq!(memory.read("f").unwrap(), &b"abcdefg"[..]);
        assert_eq!(file.len_bytes(), 7);
        faults.clear();
        assert_eq!(kind(file.append(&[IoSlice::new(b"x")])), ErrorKind::StorageFull, "latched");
        assert_eq!(kind(file.sync(Durability::SyncData)), ErrorKind::StorageFull);
        let mut file = storage.open_append(Path::new("f"), 7).unwrap();
        file.append(&[IoSlice::new(b"x")]).unwrap();
    }

    #[test]
    fn syncs_and_renames_fail() {
        let (memory, storage, faults) = new();
        let mut file = storage.create(Path::new("f")).unwrap();
        faults.fail_syncs(true);
        faults.fail_renames(true);
        file.append(&[IoSlice::new(b"abc")]).unwrap();
        file.sync(Durability::Buffered).unwrap();
        assert!(file.sync(Durability::SyncData).is_err());
        assert!(storage.sync_dir(Path::new("")).is_err());
        assert!(storage.rename(Path::new("f"), Path::new("g")).is_err());
        assert!(memory.power_loss().list(Path::new("")).unwrap().is_empty());
        faults.clear();
        assert!(file.sync(Durability::SyncData).is_err(), "latched");
        storage.sync_dir(Path::new("")).unwrap();
        storage.rename(Path::new("f"), Path::new("g")).unwrap();
        assert_eq!(memory.power_loss().read("f").unwrap().len(), 0);
    }

    #[test]
    fn operations_run_out() {
        let (_, storage, faults) = new();
        storage.create_dir(Path::new("d")).unwrap();
        assert_eq!(faults.operations(), 1);
        faults.fail_after_operations(1);
        storage.list(Path::new("d")).unwrap();
        let mut file = storage.create(Path::new("f")).unwrap();
        assert!(file.append(&[IoSlice::new(b"abc")]).is_err());
        assert!(storage.remove(Path::new("f")).is_err());
        assert_eq!((file.len_bytes(), faults.operations()), (0, 4));
    }
}
