//! [`Storage`] over the file system.

use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::append::DiskAppend;
use super::group::{share_file, share_folder, unless_denied};
use super::lock::DiskLock;
use super::mmap::{GrowingMap, open_regular};
use super::positions::{self, DiskPositions};
use super::{AppendFile, DirEntry, FileKind, LockGuard, PositionLocks, ReadFile, Storage};
use crate::error::{Error, Result};

/// A folder of the file system, and what lies below it.
#[derive(Debug, Clone)]
pub struct DiskStorage {
    root: PathBuf,
    group_writable: bool,
}

impl DiskStorage {
    /// The storage below `root`, which need not exist yet: `create_dir("")` creates it.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), group_writable: false }
    }

    /// Lets the folder's group write files that are created from now on, whatever the umask is (see
    /// [`crate::Options::group_writable`]).
    #[must_use]
    pub fn group_writable(mut self, group_writable: bool) -> Self {
        self.group_writable = group_writable;
        self
    }

    /// The name of the network file system of the root (or of its nearest existing ancestor); `None` on a local one,
    /// and on systems other than Linux. There, `mmap`, `flock` and `fsync` are not reliable across machines. FUSE
    /// counts as local, since it often is.
    ///
    /// # Errors
    /// [`Error::Io`] if the file system cannot be asked.
    pub(crate) fn file_system_is_network(&self) -> Result<Option<&'static str>> {
        let found = self.root.ancestors().map(non_empty).find(|ancestor| ancestor.exists());
        network_name(found.unwrap_or(Path::new("/")))
    }

    fn resolve(&self, path: &Path) -> Result<PathBuf> {
        Ok(self.root.join(relative(path)?))
    }

    /// Creates the root, and makes its missing ancestors' names durable: the engine cannot, since its paths start at
    /// the root.
    fn create_root(&self) -> Result<()> {
        let missing: Vec<&Path> = self.root.ancestors().take_while(|ancestor| !non_empty(ancestor).exists()).collect();
        self.create_folders(&self.root)?;
        missing.iter().filter_map(|folder| folder.parent()).try_for_each(|parent| sync_folder(non_empty(parent)))
    }

    /// Creates a folder and its missing ancestors; shares those from the root on with the group, if they should be.
    fn create_folders(&self, full: &Path) -> Result<()> {
        let missing: Vec<&Path> = full.ancestors().take_while(|ancestor| !non_empty(ancestor).exists()).collect();
        fs::create_dir_all(full).map_err(|e| Error::io("create the folder", full, e))?;
        if missing.is_empty() && self.group_writable {
            return unless_denied(share_folder(full, true));
        }
        let own = missing.into_iter().rev().filter(|folder| folder.starts_with(&self.root));
        own.into_iter().try_for_each(|folder| share_folder(folder, self.group_writable))
    }
}

impl Storage for DiskStorage {
    fn create_dir(&self, path: &Path) -> Result<()> {
        let full = self.resolve(path)?;
        self.create_root()?;
        self.create_folders(&full)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let full = self.resolve(path)?;
        let fail = |e| Error::io("list the folder", &full, e);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&full).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            // The directory entry has the kind, without a look at each file.
            let kind = match entry.file_type() {
                Ok(found) => kind_of(&entry.path(), found),
                // Another process has unlinked it.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("look at", entry.path(), e)),
            };
            // A name that is not UTF-8 is not ours; its lossy form does not parse.
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(DirEntry { name, kind });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn len_bytes(&self, path: &Path) -> Result<u64> {
        let path = self.resolve(path)?;
        let metadata = fs::metadata(&path);
        metadata.map(|metadata| metadata.len()).map_err(|e| Error::io("look at", path, e))
    }

    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>> {
        let path = self.resolve(path)?;
        let opened = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = opened.map_err(|e| Error::io("create", &path, e))?;
        share_file(&file, &path, self.group_writable)?;
        Ok(Box::new(DiskAppend::new(file, path, 0)))
    }

    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>> {
        let path = self.resolve(path)?;
        let fail = |e| Error::io("open for appending", &path, e);
        let mut file = open_own(OpenOptions::new().read(true).write(true), &path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        if found < len_bytes {
            return Err(shorter_than_kept(&path, len_bytes, found));
        }
        if found > len_bytes {
            file.set_len(len_bytes).map_err(|e| Error::io("cut the torn tail of", &path, e))?;
        }
        file.seek(SeekFrom::Start(len_bytes)).map_err(fail)?;
        Ok(Box::new(DiskAppend::new(file, path, len_bytes)))
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>> {
        let path = self.resolve(path)?;
        let fail = |e| Error::io("open", &path, e);
        let file = open_regular(&path).map_err(|e| fail(explained(&path, e)))?;
        let map = GrowingMap::new(file, path.clone(), capacity_bytes).map_err(fail)?;
        Ok(Arc::new(DiskRead { map: Arc::new(map) }))
    }

    fn changed(&self, path: &Path) -> Result<Option<std::time::SystemTime>> {
        let path = self.resolve(path)?;
        let changed = fs::metadata(&path).and_then(|folder| folder.modified());
        changed.map(Some).map_err(|e| Error::io("look at", path, e))
    }

    fn kind(&self, path: &Path) -> Result<Option<FileKind>> {
        let path = self.resolve(path)?;
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(Some(kind_of(&path, found.file_type()))),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::io("look at", path, e)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (self.resolve(from)?, self.resolve(to)?);
        fs::rename(&from, to).map_err(|e| Error::io("rename", from, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let path = self.resolve(path)?;
        fs::remove_file(&path).map_err(|e| Error::io("remove", path, e))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        sync_folder(&self.resolve(path)?)
    }

    fn local_path(&self, path: &Path) -> Option<PathBuf> {
        self.resolve(path).ok()
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        let to = self.resolve(to)?;
        // A symbolic link would be linked itself.
        match fs::canonicalize(from).and_then(|file| fs::hard_link(file, &to)) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(Error::io("link", from, e)),
            // Another file system, one without links, too many links, or a file that this user may not link.
            Err(_) => return Ok(false),
        }
        // Its writer may not have synced it. A descriptor for reading is enough.
        let synced = open_regular(&to).and_then(|file| file.sync_data());
        synced.map(|()| true).map_err(|e| Error::io("sync", to, e))
    }

    fn clone_file(&self, from: &Path, to: &Path) -> Result<bool> {
        let mut source = open_regular(from).map_err(|e| Error::io("open", from, e))?;
        let to = self.resolve(to)?;
        let fail = |e| Error::io("copy a segment to", &to, e);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&to).map_err(fail)?;
        share_file(&file, &to, self.group_writable)?;
        let copied = io::copy(&mut source, &mut file).and_then(|_| file.sync_data());
        copied.map(|()| true).map_err(fail)
    }

    fn network(&self) -> Result<Option<&'static str>> {
        self.file_system_is_network()
    }

    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
        let path = self.resolve(path)?;
        let opened = open_own(OpenOptions::new().create(true).truncate(false).write(true), &path);
        let (opened, is_writable) = match opened {
            // Another user's file: opening it is enough to lock it.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                (open_own(OpenOptions::new().read(true), &path).map_err(|_| e), false)
            }
            opened => (opened, true),
        };
        let file = opened.map_err(|e| Error::io("open the lock file", &path, e))?;
        unless_denied(share_file(&file, &path, self.group_writable))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(DiskLock::new(file, path, is_writable)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
        }
    }

    fn position_locks(&self, path: &Path) -> Result<Option<Box<dyn PositionLocks>>> {
        if !positions::SUPPORTED {
            return Ok(None);
        }
        let path = self.resolve(path)?;
        let opened = open_own(OpenOptions::new().create(true).truncate(false).write(true), &path);
        let file = opened.map_err(|e| Error::io("open the lock file", &path, e))?;
        unless_denied(share_file(&file, &path, self.group_writable))?;
        Ok(Some(Box::new(DiskPositions::new(file, path))))
    }

    fn describe(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }
}

/// The kind of the name `path`, whose own type is `found`.
fn kind_of(path: &Path, found: FileType) -> FileKind {
    if found.is_symlink() {
        return match fs::metadata(path) {
            Ok(target) if target.is_file() => FileKind::Link,
            Ok(target) if target.is_dir() => FileKind::Folder,
            // A link to nothing, in a circle, or to where access is denied.
            _ => FileKind::Other,
        };
    }
    match (found.is_file(), found.is_dir()) {
        (true, _) => FileKind::File,
        (_, true) => FileKind::Folder,
        _ => FileKind::Other,
    }
}

/// Opens a regular file of the store for writing. Follows no link, so that nothing outside is changed, and never
/// blocks.
fn open_own(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    options.custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    let opened = options.open(path).and_then(|file| match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(ErrorKind::InvalidInput.into()),
    });
    opened.map_err(|error| match fs::symlink_metadata(path).map(|found| kind_of(path, found.file_type())) {
        Ok(kind) if kind != FileKind::File => io::Error::new(
            ErrorKind::AlreadyExists,
            format!("a file of the store belongs there, found {}", kind.name()),
        ),
        _ => error,
    })
}

/// The error of opening what is neither a file nor a folder, which the system reports in many ways.
fn explained(path: &Path, error: io::Error) -> io::Error {
    match fs::symlink_metadata(path).map(|found| kind_of(path, found.file_type())) {
        Ok(FileKind::Other) if error.kind() != ErrorKind::PermissionDenied => {
            io::Error::new(ErrorKind::InvalidInput, "it is no regular file")
        }
        _ => error,
    }
}

#[derive(Debug)]
struct DiskRead {
    map: Arc<GrowingMap>,
}

impl ReadFile for DiskRead {
    fn len_bytes(&self) -> Result<u64> {
        self.map.len_bytes().map_err(|e| Error::io("look at", self.map.path(), e))
    }

    fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        if let Some(bytes) = self.map.bytes(offset, len_bytes) {
            return Ok(bytes);
        }
        let found = self.len_bytes()?;
        if offset.checked_add(len_bytes as u64).is_none_or(|end| end > found) {
            return Err(beyond_end(self.map.path(), offset, len_bytes, found));
        }
        if let Some(bytes) = self.map.bytes(offset, len_bytes) {
            return Ok(bytes);
        }
        self.read(offset, len_bytes)
    }

    fn copy(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        let found = self.len_bytes()?;
        if offset.checked_add(len_bytes as u64).is_none_or(|end| end > found) {
            return Err(beyond_end(self.map.path(), offset, len_bytes, found));
        }
        // A file that is not expected to grow is published, so nobody truncates it.
        if self.map.is_settled() {
            return self.bytes(offset, len_bytes);
        }
        match self.read(offset, len_bytes) {
            // Meanwhile, another thread has mapped and closed it.
            Err(_) if self.map.is_settled() => self.bytes(offset, len_bytes),
            read => read,
        }
    }

    fn settle(&self) {
        self.map.settle();
    }
}

impl DiskRead {
    fn read(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        let fail = |e| Error::io("read", self.map.path(), e);
        let mut out = Vec::new();
        out.try_reserve_exact(len_bytes).map_err(|_| fail(ErrorKind::OutOfMemory.into()))?;
        out.resize(len_bytes, 0);
        self.map.read_exact_at(&mut out, offset).map_err(fail)?;
        Ok(Bytes::from(out))
    }
}

/// `path` without `.`, if it stays below the root.
pub(super) fn relative(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                let path = path.display();
                return Err(Error::invalid(format!(
                    "the path {path} leaves the store: pass one below its root, without `..`"
                )));
            }
        }
    }
    Ok(clean)
}

/// The error of a read beyond the end: the file is shorter than a reference into it.
pub(super) fn beyond_end(path: &Path, offset: u64, len_bytes: usize, found: u64) -> Error {
    let end = u128::from(offset) + len_bytes as u128;
    Error::corrupt(path, offset, format!("expected at least {end} bytes in the file, found {found}"))
}

/// The error of a file that lacks bytes known to be committed.
pub(super) fn shorter_than_kept(path: &Path, expected: u64, found: u64) -> Error {
    Error::corrupt(path, found, format!("expected at least {expected} bytes to append after, found {found}"))
}

/// `ancestors` of a relative root end with the empty path, which means the working directory.
fn non_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn sync_folder(full: &Path) -> Result<()> {
    let synced = File::open(full).and_then(|folder| folder.sync_all());
    synced.map_err(|e| Error::io("sync the folder", full, e))
}

#[cfg(not(target_os = "linux"))]
fn network_name(_path: &Path) -> Result<Option<&'static str>> {
    Ok(None)
}

/// Magic numbers from `linux/magic.h` and the file systems' own sources.
#[cfg(target_os = "linux")]
fn network_name(path: &Path) -> Result<Option<&'static str>> {
    let found = rustix::fs::statfs(path).map_err(|e| Error::io("ask for the file system of", path, e.into()))?;
    // Some architectures hold it in a signed word: only the low 32 bits mean the same everywhere.
    Ok(match found.f_type as u32 {
        0x0000_6969 => Some("NFS"),
        0x0000_517B => Some("SMB"),
        0xFF53_4D42 => Some("CIFS"),
        0xFE53_4D42 => Some("SMB2"),
        0x0000_564C => Some("NCP"),
        0x5346_414F | 0x6B41_4653 => Some("AFS"),
        0x7375_7245 => Some("Coda"),
        0x00C3_6400 => Some("Ceph"),
        0x0BD0_0BD0 => Some("Lustre"),
        0x4750_4653 => Some("GPFS"),
        0x1983_0326 => Some("BeeGFS"),
        0xAAD7_AAEA => Some("PanFS"),
        0x0102_1997 => Some("9P"),
        0x786F_4256 => Some("vboxsf"),
        _ => None,
    })
}

/// Runs the contract of `io/mod.rs` over every storage.
#[cfg(test)]
mod tests;
