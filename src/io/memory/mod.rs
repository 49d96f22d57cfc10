//! [`Storage`] in memory that can simulate a power failure.

mod positions;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use self::positions::Positions;
use super::disk::{beyond_end, relative, shorter_than_kept};
use super::{AppendFile, DirEntry, Durability, FileKind, LockGuard, PositionLocks, ReadFile, Storage};
use crate::error::{Error, Result};

/// A folder tree in memory, for stores that need not outlive the process and for tests. Clones share the tree.
///
/// It tracks what is there, and what [`MemoryStorage::power_loss`] would leave. The latter follows the contract
/// strictly: bytes that were not synced, and names whose folder was not synced, are gone. (A file moved between folders
/// is under both names, or under none, while only one of the two folders is synced.)
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    tree: Arc<Mutex<Tree>>,
    positions: Positions,
}

#[derive(Debug, Default)]
struct Tree {
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    locks: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone)]
enum Node {
    Dir,
    File(Arc<RwLock<Body>>),
}

/// A file: one chunk an append, so that a read within one append is zero-copy.
#[derive(Default)]
struct Body {
    /// Non-empty chunks in order, each with its offset in the file.
    chunks: Vec<(u64, Bytes)>,
    len_bytes: u64,
    synced_len_bytes: u64,
    writers: usize,
}

/// Prints the length, not the bytes.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} synced", self.len_bytes, self.synced_len_bytes)
    }
}

impl Body {
    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            let offset = self.len_bytes;
            self.len_bytes += chunk.len() as u64;
            self.chunks.push((offset, chunk));
        }
    }

    /// O(log chunks), plus the copy if the range spans chunks. `None` beyond the end.
    fn bytes(&self, offset: u64, len_bytes: usize) -> Option<Bytes> {
        let end = offset.checked_add(len_bytes as u64).filter(|&end| end <= self.len_bytes)?;
        if len_bytes == 0 {
            return Some(Bytes::new());
        }
        let first = self.chunks.partition_point(|(start, _)| *start <= offset).checked_sub(1)?;
        let touched = self.chunks.get(first..)?.iter().take_while(|(start, _)| *start < end);
        let mut pieces = touched.map(|(start, chunk)| {
            let from = offset.saturating_sub(*start) as usize;
            chunk.slice(from..chunk.len().min((end - start) as usize))
        });
        let head = pieces.next()?;
        if head.len() == len_bytes {
            return Some(head);
        }
        let mut joined = BytesMut::with_capacity(len_bytes);
        joined.extend_from_slice(&head);
        pieces.for_each(|piece| joined.extend_from_slice(&piece));
        Some(joined.freeze())
    }

    fn all(&self) -> Bytes {
        self.bytes(0, self.len_bytes as usize).unwrap_or_default()
    }

    fn truncate(&mut self, len_bytes: u64) {
        self.chunks.retain(|(start, _)| *start < len_bytes);
        if let Some((start, chunk)) = self.chunks.last_mut() {
            chunk.truncate((len_bytes - *start) as usize);
        }
        self.len_bytes = self.len_bytes.min(len_bytes);
        self.synced_len_bytes = self.synced_len_bytes.min(self.len_bytes);
    }

    /// Joins all chunks, so that later reads are zero-copy. Not while the file is being written: each open would copy
    /// it all.
    fn coalesce(&mut self) {
        if self.writers == 0 && self.chunks.len() > 1 {
            self.chunks = vec![(0, self.all())];
        }
    }
}

impl Tree {
    /// Checks that the folder of `path` exists.
    fn check_parent(&self, path: &Path) -> Result<(), ErrorKind> {
        path.parent().map_or(Ok(()), |parent| self.check_dir(parent))
    }

    /// Checks a folder from the root down, as a file system does: the first name that is missing or not a folder gives
    /// the error.
    fn check_dir(&self, path: &Path) -> Result<(), ErrorKind> {
        let mut folders: Vec<&Path> = path.ancestors().filter(|folder| !folder.as_os_str().is_empty()).collect();
        while let Some(folder) = folders.pop() {
            match self.live.get(folder) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(ErrorKind::NotADirectory),
                None => return Err(ErrorKind::NotFound),
            }
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Result<Arc<RwLock<Body>>, ErrorKind> {
        self.check_parent(path)?;
        match self.live.get(path) {
            Some(Node::File(body)) => Ok(Arc::clone(body)),
            Some(Node::Dir) => Err(ErrorKind::IsADirectory),
            None if path.as_os_str().is_empty() => Err(ErrorKind::IsADirectory),
            None => Err(ErrorKind::NotFound),
        }
    }

    fn create(&mut self, path: &Path) -> Result<Arc<RwLock<Body>>, ErrorKind> {
        self.check_parent(path)?;
        if path.as_os_str().is_empty() || self.live.contains_key(path) {
            return Err(ErrorKind::AlreadyExists);
        }
        let body = Arc::<RwLock<Body>>::default();
        self.live.insert(path.to_owned(), Node::File(Arc::clone(&body)));
        Ok(body)
    }

    fn create_dir(&mut self, path: &Path) -> Result<(), ErrorKind> {
        let mut missing: Vec<&Path> = path.ancestors().filter(|folder| !folder.as_os_str().is_empty()).collect();
        while let Some(folder) = missing.pop() {
            match self.live.entry(folder.to_owned()).or_insert(Node::Dir) {
                Node::Dir => {}
                Node::File(_) if folder == path => return Err(ErrorKind::AlreadyExists),
                Node::File(_) => return Err(ErrorKind::NotADirectory),
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), ErrorKind> {
        let body = self.file(from)?;
        self.check_parent(to)?;
        if to.as_os_str().is_empty() || matches!(self.live.get(to), Some(Node::Dir)) {
            return Err(ErrorKind::IsADirectory);
        }
        self.live.remove(from);
        self.live.insert(to.to_owned(), Node::File(body));
        Ok(())
    }

    fn sync_dir(&mut self, path: &Path) -> Result<(), ErrorKind> {
        self.check_dir(path)?;
        self.durable.retain(|name, _| name.parent() != Some(path));
        let names = self.live.iter().filter(|(name, _)| name.parent() == Some(path));
        self.durable.extend(names.map(|(name, node)| (name.clone(), node.clone())));
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, ErrorKind> {
        self.check_dir(path)?;
        let below = self.live.range(path.to_owned()..).take_while(|(name, _)| name.starts_with(path));
        let inside = below.filter(|(name, _)| name.parent() == Some(path));
        Ok(inside
            .map(|(name, node)| DirEntry {
                name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                kind: if matches!(node, Node::Dir) { FileKind::Folder } else { FileKind::File },
            })
            .collect())
    }
}

impl MemoryStorage {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The tree that a power failure at this moment would leave: synced bytes under synced names. `self` is unchanged.
    #[must_use]
    pub fn power_loss(&self) -> Self {
        self.power_loss_keeping(|_, synced_len_bytes, _| synced_len_bytes)
    }

    /// As [`Self::power_loss`], but `keep(path, synced_len_bytes, len_bytes)` returns how many bytes of each file
    /// survive, since unsynced bytes may be on disk too. Its result is clamped to the two lengths.
    #[must_use]
    pub fn power_loss_keeping(&self, mut keep: impl FnMut(&Path, u64, u64) -> u64) -> Self {
        let durable = self.tree.lock().durable.clone();
        let mut left = Tree::default();
        // Parents come before what is in them.
        for (path, node) in durable {
            if left.check_parent(&path).is_err() {
                continue;
            }
            let node = match node {
                Node::Dir => Node::Dir,
                Node::File(body) => {
                    let body = body.read();
                    let (synced, len) = (body.synced_len_bytes, body.len_bytes);
                    let kept = keep(&path, synced, len).clamp(synced, len);
                    new_file(body.bytes(0, kept as usize).unwrap_or_default())
                }
            };
            left.live.insert(path, node);
        }
        left.durable = left.live.clone();
        Self { tree: Arc::new(Mutex::new(left)), positions: Positions::default() }
    }

    /// Test help: flips the bits `xor` of the byte at `offset`. Bytes handed out before are unchanged.
    ///
    /// # Errors
    /// As [`Storage::open`]; [`Error::Corrupt`] beyond the end.
    pub fn corrupt(&self, path: impl AsRef<Path>, offset: u64, xor: u8) -> Result<()> {
        let path = path.as_ref();
        let body = self.with("corrupt", path, |tree, path| tree.file(path))?;
        let mut body = body.write();
        let found = body.len_bytes;
        let mut changed = body.all().to_vec();
        let byte = usize::try_from(offset).ok().and_then(|offset| changed.get_mut(offset));
        *byte.ok_or_else(|| beyond_end(&self.describe(path), offset, 1, found))? ^= xor;
        body.chunks = vec![(0, Bytes::from(changed))];
        Ok(())
    }

    /// Test help: cuts the file to `len_bytes`, if it is longer, also for those who have it open.
    ///
    /// # Errors
    /// As [`Storage::open`].
    pub fn truncate(&self, path: impl AsRef<Path>, len_bytes: u64) -> Result<()> {
        let body = self.with("truncate", path.as_ref(), |tree, path| tree.file(path))?;
        body.write().truncate(len_bytes);
        Ok(())
    }

    /// Test help: all bytes of the file.
    ///
    /// # Errors
    /// As [`Storage::open`].
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Bytes> {
        let body = self.with("read", path.as_ref(), |tree, path| tree.file(path))?;
        let bytes = body.read().all();
        Ok(bytes)
    }

    /// Test help: puts a file of these bytes, and its folders, at `path`, as if they had always been there (durable).
    /// Readers that have the former file open keep it.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder has the name, or a file has a folder's.
    pub fn write(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        self.with("write", path.as_ref(), |tree, path| {
            tree.create_dir(path.parent().unwrap_or(Path::new("")))?;
            if path.as_os_str().is_empty() || matches!(tree.live.get(path), Some(Node::Dir)) {
                return Err(ErrorKind::IsADirectory);
            }
            let file = new_file(Bytes::copy_from_slice(bytes));
            tree.live.insert(path.to_owned(), file.clone());
            tree.durable.insert(path.to_owned(), file);
            for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
                tree.durable.insert(folder.to_owned(), Node::Dir);
            }
            Ok(())
        })
    }

    fn with<T>(
        &self,
        action: &'static str,
        path: &Path,
        run: impl FnOnce(&mut Tree, &Path) -> Result<T, ErrorKind>,
    ) -> Result<T> {
        let clean = relative(path)?;
        run(&mut self.tree.lock(), &clean).map_err(|kind| Error::io(action, self.describe(path), kind.into()))
    }
}

/// A file whose bytes are all synced.
fn new_file(bytes: Bytes) -> Node {
    let mut body = Body::default();
    body.push(bytes);
    body.synced_len_bytes = body.len_bytes;
    Node::File(Arc::new(RwLock::new(body)))
}

impl Storage for MemoryStorage {
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.with("create the folder", path, Tree::create_dir)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        self.with("list the folder", path, |tree, path| tree.list(path))
    }

    fn len_bytes(&self, path: &Path) -> Result<u64> {
        let body = self.with("look at", path, |tree, path| tree.file(path))?;
        let len_bytes = body.read().len_bytes;
        Ok(len_bytes)
    }

    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>> {
        let body = self.with("create", path, Tree::create)?;
        body.write().writers += 1;
        Ok(Box::new(MemoryAppend { body }))
    }

    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>> {
        let body = self.with("open for appending", path, |tree, path| tree.file(path))?;
        let mut open = body.write();
        if open.len_bytes < len_bytes {
            return Err(shorter_than_kept(&self.describe(path), len_bytes, open.len_bytes));
        }
        open.truncate(len_bytes);
        open.writers += 1;
        drop(open);
        Ok(Box::new(MemoryAppend { body }))
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>> {
        let body = self.with("open", path, |tree, path| tree.file(path))?;
        let mut open = body.write();
        open.coalesce();
        // As on disk: a reader that expects no growth sees none.
        let end = if capacity_bytes == 0 { open.len_bytes } else { u64::MAX };
        drop(open);
        Ok(Arc::new(MemoryRead { body, end, path: self.describe(path) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let to = relative(to)?;
        self.with("rename", from, |tree, from| tree.rename(from, &to))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.with("remove", path, |tree, path| {
            tree.file(path)?;
            tree.live.remove(path);
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.with("sync the folder", path, Tree::sync_dir)
    }

    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
        self.with("lock", path, |tree, path| {
            match tree.create(path) {
                Ok(_) | Err(ErrorKind::AlreadyExists) => {}
                Err(kind) => return Err(kind),
            }
            tree.file(path)?;
            if !tree.locks.insert(path.to_owned()) {
                return Ok(None);
            }
            let guard = MemoryLock { tree: Arc::clone(&self.tree), path: path.to_owned() };
            Ok(Some(Box::new(guard) as Box<dyn LockGuard>))
        })
    }

    fn position_locks(&self, path: &Path) -> Result<Option<Box<dyn PositionLocks>>> {
        self.with("lock", path, |tree, path| {
            match tree.create(path) {
                Ok(_) | Err(ErrorKind::AlreadyExists) => {}
                Err(kind) => return Err(kind),
            }
            tree.file(path)?;
            Ok(Some(Box::new(self.positions.open(path)) as Box<dyn PositionLocks>))
        })
    }

    fn describe(&self, path: &Path) -> PathBuf {
        Path::new("memory:").join(path)
    }
}

#[derive(Debug)]
struct MemoryAppend {
    body: Arc<RwLock<Body>>,
}

impl AppendFile for MemoryAppend {
    fn append(&mut self, parts: &[IoSlice<'_>]) -> Result<()> {
        let mut chunk = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| chunk.extend_from_slice(part));
        self.body.write().push(chunk.freeze());
        Ok(())
    }

    fn sync(&mut self, durability: Durability) -> Result<()> {
        if durability >= Durability::SyncData {
            let mut body = self.body.write();
            body.synced_len_bytes = body.len_bytes;
        }
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.body.read().len_bytes
    }
}

impl Drop for MemoryAppend {
    fn drop(&mut self) {
        self.body.write().writers -= 1;
    }
}

#[derive(Debug)]
struct MemoryRead {
    body: Arc<RwLock<Body>>,
    /// Bytes after it are not visible.
    end: u64,
    path: PathBuf,
}

impl ReadFile for MemoryRead {
    fn len_bytes(&self) -> Result<u64> {
        Ok(self.body.read().len_bytes.min(self.end))
    }

    fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        let body = self.body.read();
        let visible = offset.checked_add(len_bytes as u64).is_some_and(|end| end <= self.end);
        let found = || body.len_bytes.min(self.end);
        let bytes = if visible { body.bytes(offset, len_bytes) } else { None };
        bytes.ok_or_else(|| beyond_end(&self.path, offset, len_bytes, found()))
    }

    fn copy(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        // Chunks are immutable: bytes that were handed out stay valid even if the file is cut.
        self.bytes(offset, len_bytes)
    }
}

#[derive(Debug)]
struct MemoryLock {
    tree: Arc<Mutex<Tree>>,
    path: PathBuf,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.tree.lock().locks.remove(&self.path);
    }
}

impl LockGuard for MemoryLock {}

#[cfg(test)]
mod tests;
