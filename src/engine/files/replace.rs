//! Files of the store's own: opened or listed if they are there, replaced in one step. What lies in their way and is no
//! file is moved to quarantine, never removed.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::{DirEntry, Durability, FileKind, ReadFile, Storage};
use crate::names;

/// A name in quarantine that is free, for what is called as `path` is.
///
/// # Errors
/// IO errors.
pub(crate) fn free_place(storage: &dyn Storage, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let taken = storage.list(Path::new(names::QUARANTINE))?;
    let is_taken = |path: &Path| taken.iter().any(|entry| path.file_name().is_some_and(|name| *name == *entry.name));
    let mut places = (0..=u32::MAX).map(|attempt| names::quarantined(&name, attempt));
    // Nor may an older note lie there.
    let free = places.find(|target| !is_taken(target) && !is_taken(&names::note(target)));
    free.ok_or_else(|| Error::invalid(format!("the quarantine folder is full of files called {name}")))
}

/// Moves what lies at `path` to quarantine if it is no regular file; returns where it is then. A file of the store's
/// own is about to take its place.
///
/// # Errors
/// IO errors.
pub(crate) fn set_aside_unless_file(storage: &dyn Storage, path: &Path) -> Result<Option<PathBuf>> {
    if storage.kind(path)?.is_none_or(|kind| kind == FileKind::File) {
        return Ok(None);
    }
    storage.create_dir(Path::new(names::QUARANTINE))?;
    let target = free_place(storage, path)?;
    storage.rename(path, &target)?;
    Ok(Some(target))
}

/// Makes the name `path` of a temporary file free: removes the file that an earlier writer left there, sets aside
/// anything else.
///
/// # Errors
/// IO errors.
pub(crate) fn clear(storage: &dyn Storage, path: &Path) -> Result<()> {
    set_aside_unless_file(storage, path)?;
    match storage.remove(path) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Lists a folder; one that is not there has nothing in it.
///
/// # Errors
/// IO errors.
pub(crate) fn list_if_exists(storage: &dyn Storage, folder: &str) -> Result<Vec<DirEntry>> {
    match storage.list(Path::new(folder)) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        entries => entries,
    }
}

/// Opens a file; `None` if there is none of that name.
///
/// # Errors
/// IO errors.
pub(crate) fn open_if_exists(storage: &dyn Storage, path: &Path) -> Result<Option<Arc<dyn ReadFile>>> {
    match storage.open(path, 0) {
        Err(error) if error.is_not_found() || error.is_no_file() => Ok(None),
        file => file.map(Some),
    }
}

/// Puts a file of these bytes at `path`, in the place of a former one, in one step.
///
/// # Errors
/// IO errors; the former file is then still there.
pub(crate) fn replace_file(storage: &dyn Storage, path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(names::TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(temporary);
    clear(storage, &temporary)?;
    let mut file = storage.create(&temporary)?;
    file.append(&[IoSlice::new(bytes)])?;
    file.sync(durability)?;
    set_aside_unless_file(storage, path)?;
    storage.rename(&temporary, path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    if durability > Durability::Buffered { storage.sync_dir(folder) } else { Ok(()) }
}
