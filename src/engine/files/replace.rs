//! Opens, lists and replaces files of the store's own; replacing is atomic. An entry in the way that is not a file is
//! moved to quarantine, never removed.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::{DirEntry, Durability, FileKind, ReadFile, Storage};
use crate::names;

/// A free name in quarantine for the file name of `path`.
///
/// # Errors
/// IO errors.
pub(crate) fn free_place(storage: &dyn Storage, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let taken = storage.list(Path::new(names::QUARANTINE))?;
    let is_taken = |path: &Path| taken.iter().any(|entry| path.file_name().is_some_and(|name| *name == *entry.name));
    let mut places = (0..=u32::MAX).map(|attempt| names::quarantined(&name, attempt));
    // The name of its note must be free too.
    let free = places.find(|target| !is_taken(target) && !is_taken(&names::note(target)));
    free.ok_or_else(|| Error::invalid(format!("the quarantine folder is full of files called {name}")))
}

/// Moves the entry at `path` to quarantine if it is not a regular file, and returns its new path. The caller is about
/// to write a file of the store in its place.
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

/// Frees the temporary name `path`: removes a file that an earlier writer left there, and quarantines anything else.
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

/// Lists a folder; a missing folder is empty.
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

/// Writes `bytes` to `path` atomically, replacing a former file.
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
