//! The interface between the engine and its storage: everything the engine does to files goes through [`Storage`].

mod append;
pub mod disk;
#[cfg(any(test, feature = "unstable-storage"))]
pub mod fault;
mod group;
pub(crate) mod large_pages;
mod lock;
#[cfg(any(test, feature = "unstable-storage"))]
pub mod memory;
pub(crate) mod mmap;
mod positions;
pub(crate) mod residency;

use std::fmt::Debug;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;

/// The size of a large page of the page cache.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// How durable bytes are when a call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Handed to the operating system: survives a crash of the process, not of the machine.
    Buffered,
    /// `fdatasync`: survives power loss.
    #[default]
    SyncData,
    /// `fsync`: the file's metadata (times) too.
    SyncAll,
}

/// The kind of a name in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A symbolic link to a regular file. It is read like the file, but never written to, locked or cut.
    Link,
    /// A folder, or a link to one.
    Folder,
    /// Anything else: a pipe, a socket, a device, a link to one of them or to nothing.
    Other,
}

impl FileKind {
    /// Whether it can be read as a file.
    #[must_use]
    pub const fn is_file(self) -> bool {
        matches!(self, Self::File | Self::Link)
    }

    /// The kind's name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Link => "a link to a file",
            Self::Folder => "a folder",
            Self::Other => "a special file or a dangling link",
        }
    }
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without its folder.
    pub name: String,
    /// Its kind.
    pub kind: FileKind,
}

/// A folder tree that the engine lives in. Everything the engine does to files goes through it, so that memory, a fault
/// injector or a simulated disk can stand in for a real one. The contract:
///
/// - **Paths** are relative to the storage's root. `/`-separated, no `..`.
/// - **A published file is write-once.** A file is created, appended to, synced and renamed; it is never truncated or
///   rewritten in place afterwards, only unlinked. There are two exceptions: [`Storage::open_append`] cuts the torn
///   tail of an unpublished file before anything maps it, and [`AppendFile::fill_pages`] cuts the zeros that it wrote
///   after the end of the file.
/// - **Durability**: bytes survive power loss after [`AppendFile::sync`] with at least [`Durability::SyncData`]; a
///   created, renamed or removed *name* survives after [`Storage::sync_dir`] of its folder.
/// - **Bytes handed out stay valid and unchanged**, if they had been appended, for as long as their [`Bytes`] lives,
///   whatever happens to the name.
/// - **After a failed append or sync the file is finished**: the engine never retries on it, since the kernel may have
///   marked the lost pages clean.
pub trait Storage: Send + Sync + Debug {
    /// Creates the folder at `path` and its parents; no error if it exists. `""` is the root itself.
    fn create_dir(&self, path: &Path) -> Result<()>;
    /// The names in the folder at `path`, sorted. A missing folder is an IO error of kind `NotFound`.
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>>;
    /// Bytes in the file at `path` now.
    fn len_bytes(&self, path: &Path) -> Result<u64>;
    /// Creates a new empty file; it is an error (`AlreadyExists`) if the name is taken.
    fn create(&self, path: &Path) -> Result<Box<dyn AppendFile>>;
    /// Opens an unpublished file for appending after its first `len_bytes`, cutting what follows.
    fn open_append(&self, path: &Path, len_bytes: u64) -> Result<Box<dyn AppendFile>>;
    /// Opens a file for reading. If it grows, at least `capacity_bytes` can be read (0: only what is there now). A
    /// folder is an IO error of kind `IsADirectory`, anything else that is not a file one of kind `InvalidInput`;
    /// opening them never blocks.
    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Arc<dyn ReadFile>>;
    /// The kind of `path`; links are followed as [`FileKind`] says. `None` if nothing is there.
    fn kind(&self, path: &Path) -> Result<Option<FileKind>> {
        let entries = match self.list(path.parent().unwrap_or(Path::new(""))) {
            Err(error) if error.is_not_found() => return Ok(None),
            entries => entries?,
        };
        let found = entries.into_iter().find(|entry| path.file_name().is_some_and(|name| *name == *entry.name));
        Ok(found.map(|entry| entry.kind))
    }
    /// When a name in the folder at `path` was last created, renamed or removed; `None` if that is not known.
    fn changed(&self, path: &Path) -> Result<Option<std::time::SystemTime>> {
        let _unknown = path;
        Ok(None)
    }
    /// Renames a file, replacing the target if there is one, atomically.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Unlinks a file. Readers that have it open keep it.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Where the file at `path` is in the file system; `None` if the storage is not in one.
    fn local_path(&self, path: &Path) -> Option<PathBuf> {
        let _unknown = path;
        None
    }
    /// Makes the published file at `from`, a path of the file system, this storage's file `to` as well, by a hard link.
    /// Its bytes are durable afterwards. Returns whether it did: not if the file system or the file's owner forbids it.
    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        let _unsupported = (from, to);
        Ok(false)
    }
    /// As [`Storage::link`], by a copy that the file system makes (which may share blocks).
    fn clone_file(&self, from: &Path, to: &Path) -> Result<bool> {
        let _unsupported = (from, to);
        Ok(false)
    }
    /// Takes the exclusive lock on the file at `path` (created when missing), or returns `None` if it is held.
    /// Dropping the guard, or the end of the process, releases it.
    fn try_lock(&self, path: &Path) -> Result<Option<Box<dyn LockGuard>>>;
    /// Opens the file at `path` (created when missing) for locks on its positions. `None` if the storage has no such
    /// locks, as by default.
    fn position_locks(&self, path: &Path) -> Result<Option<Box<dyn PositionLocks>>> {
        let _none = path;
        Ok(None)
    }
    /// The name of the network file system that the storage lies on, if it does.
    fn network(&self) -> Result<Option<&'static str>> {
        Ok(None)
    }
    /// The full path, for error messages.
    fn describe(&self, path: &Path) -> PathBuf;
}

/// A file that grows at its end.
pub trait AppendFile: Send + Debug {
    /// Appends all `parts` in order (vectored: they are not joined in memory first).
    fn append(&mut self, parts: &[IoSlice<'_>]) -> Result<()>;
    /// Announces whether data appended from now on will be synced soon. Then they may be written to disk while more are
    /// appended, instead of only by the sync.
    fn write_early(&mut self, _early: bool) {}
    /// Announces whether much data will be appended that is read at random. Then the file may be longer than what was
    /// appended: zeros fill it up to a multiple of [`LARGE_PAGE_BYTES`], and later bytes replace them, so that the
    /// system keeps it in large pages. `false` cuts the zeros that are left; call it after the last append, before the
    /// file is published.
    fn fill_pages(&mut self, _fill: bool) -> Result<()> {
        Ok(())
    }
    /// Whether the file still has the name under which it was opened. If it was unlinked, or moved with its folder,
    /// nobody who opens that name finds what is appended.
    fn is_in_place(&self) -> bool {
        true
    }
    /// Returns when what was appended is as durable as `durability` says.
    fn sync(&mut self, durability: Durability) -> Result<()>;
    /// Bytes that were appended.
    fn len_bytes(&self) -> u64;
}

/// An open file.
pub trait ReadFile: Send + Sync + Debug {
    /// Bytes in the file now.
    fn len_bytes(&self) -> Result<u64>;
    /// `len_bytes` bytes from `offset`, zero-copy if the storage allows it. A range beyond the end of the file is an
    /// error, never a fault. Ask only for bytes that are known to have been appended: in a file that is being written,
    /// later bytes may change or be cut ([`AppendFile::fill_pages`]).
    fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes>;
    /// A copy of `len_bytes` bytes from `offset`: for bytes that are not committed yet, which the writer or its
    /// successor may replace or cut off during the read.
    fn copy(&self, offset: u64, len_bytes: usize) -> Result<Bytes>;
    /// Announces that the file is complete and will not grow. It can be read as before, but keeps no descriptor.
    fn settle(&self) {}
}

/// Holds a lock until it is dropped.
pub trait LockGuard: Send + Sync + Debug {
    /// Whether this user may write the lock file, and so what it guards. A file that this user may only read can be
    /// locked too.
    fn is_writable(&self) -> bool {
        true
    }
    /// Whether the lock file still has its name: if not, the folder was moved or removed, or another file took its
    /// place.
    fn is_in_place(&self) -> bool {
        true
    }
}

/// Exclusive locks on single positions of a file, which need not exist in it. The locks of a handle exclude those of
/// all other handles of the file, in this process and in others. Dropping the handle, or the end of the process,
/// releases them. No call waits.
pub trait PositionLocks: Send + Sync + Debug {
    /// Locks a position below 2^63, or returns `false` if another handle holds it.
    fn try_lock(&self, position: u64) -> Result<bool>;
    /// Whether no other handle holds the position now.
    fn is_free(&self, position: u64) -> Result<bool>;
    /// Releases a position.
    fn unlock(&self, position: u64) -> Result<()>;
}
