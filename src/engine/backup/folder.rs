//! The folder of a copy: it is made under another name, and gets its own when it is complete.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::Storage;
use crate::io::disk::DiskStorage;
use crate::names;

/// A folder that is being made. Dropping it before it is published removes what was made.
#[derive(Debug)]
pub(crate) struct NewFolder {
    target: PathBuf,
    temporary: PathBuf,
    storage: Arc<dyn Storage>,
    /// The temporary folder, locked against other processes that make the same copy.
    _lock: File,
    /// Folders above it that did not exist, lowest first.
    made: Vec<PathBuf>,
    is_published: bool,
}

impl NewFolder {
    /// Begins to make the folder of a copy of the store in `source` (if that is in the file system). `target` must be
    /// absent, or an empty folder. What a killed process left of an earlier copy is removed.
    ///
    /// No store can be opened under the temporary name, since it starts with a dot.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a store cannot have that name or place; [`Error::Io`] of kind `AlreadyExists` if something
    /// is there, and of kind `WouldBlock` if another process is making it.
    pub(crate) fn begin(target: &Path, source: Option<&Path>, group_writable: bool) -> Result<Self> {
        let target = std::path::absolute(target).map_err(|e| Error::io("find", target, e))?;
        let name = target.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::invalid(format!("{} does not name a folder", target.display())))?;
        names::check_module_id(name)?;
        check_free(&target)?;
        let temporary = folder_of(&target).join(format!(".{name}.copying"));
        check_outside(&target, source)?;
        remove_left(&temporary)?;
        let above = folder_of(&target).ancestors();
        let made = above.take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
        let storage = DiskStorage::new(&temporary).group_writable(group_writable);
        storage.create_dir(Path::new(""))?;
        let lock = lock(&temporary)?;
        Ok(Self { target, temporary, storage: Arc::new(storage), _lock: lock, made, is_published: false })
    }

    /// The storage of the folder under its temporary name.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Gives the folder its name, durably.
    ///
    /// # Errors
    /// IO errors; the target is then as it was, unless only its name could not be synced.
    pub(crate) fn publish(mut self) -> Result<()> {
        check_free(&self.target)?;
        fs::rename(&self.temporary, &self.target).map_err(|e| Error::io("rename", &self.temporary, e))?;
        self.is_published = true;
        let parent = folder_of(&self.target);
        let synced = File::open(parent).and_then(|folder| folder.sync_all());
        synced.map_err(|e| Error::io("sync the folder", parent, e))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.is_published {
            // The copy has failed already; the next copy removes what is left.
            let _left = fs::remove_dir_all(&self.temporary);
            // Those that others use are not empty.
            let _emptied = self.made.iter().try_for_each(fs::remove_dir);
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Locks a folder, without a file of its own. Network file systems may not lock folders: then it is not locked, and of
/// two processes that make the same copy, one or both fail.
fn lock(folder: &Path) -> Result<File> {
    let file = File::open(folder).map_err(|e| Error::io("open the folder", folder, e))?;
    match file.try_lock() {
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let busy = std::io::Error::new(ErrorKind::WouldBlock, "another process is making the same copy");
            Err(Error::io("lock", folder, busy))
        }
    }
}

/// Removes what a killed process left of an earlier copy.
fn remove_left(temporary: &Path) -> Result<()> {
    let _lock = match lock(temporary) {
        Err(error) if error.is_not_found() => return Ok(()),
        lock => lock?,
    };
    fs::remove_dir_all(temporary).map_err(|e| Error::io("remove the unfinished copy", temporary, e))
}

/// Fails if `target` is anything but absent or an empty folder.
fn check_free(target: &Path) -> Result<()> {
    let taken = |what| Err(Error::io("copy a store to", target, std::io::Error::new(ErrorKind::AlreadyExists, what)));
    match fs::symlink_metadata(target) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", target, e)),
        Ok(found) if !found.is_dir() => taken("it is not a folder"),
        Ok(_) => match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(false) => Ok(()),
            Ok(true) => taken("the folder is not empty"),
            Err(e) => Err(Error::io("list the folder", target, e)),
        },
    }
}

/// Fails if `target` would lie in the folder of the store that is copied.
fn check_outside(target: &Path, source: Option<&Path>) -> Result<()> {
    // Folders that do not exist yet are in those that do.
    let existing = target.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
    let source = source.and_then(|source| source.canonicalize().ok());
    match (existing, source) {
        (Some(existing), Some(source)) if existing.starts_with(&source) => Err(Error::invalid(format!(
            "{} lies in the folder of the store that is to be copied: choose another folder",
            target.display()
        ))),
        _ => Ok(()),
    }
}
