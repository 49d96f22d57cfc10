//! What lies in the way of a file of the store's own and is no file of it: moved to quarantine, never removed.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::io::{FileKind, Storage};
use crate::names;

/// A name in quarantine that is free, for what is called as `path` is.
///
/// # Errors
/// IO errors.
pub(crate) fn free_place(storage: &dyn Storage, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let taken = storage.list(Path::new(names::QUARANTINE))?;
    let is_free = |target: &PathBuf| !taken.iter().any(|entry| target.file_name().is_some_and(|n| *n == *entry.name));
    let mut places = (0..u32::MAX).map(|attempt| names::quarantined(&name, attempt));
    Ok(places.find(is_free).unwrap_or_else(|| names::quarantined(&name, u32::MAX)))
}

/// Moves what lies at `path` to quarantine if it is no regular file; returns where it is then. A file of the store's own
/// is about to take its place.
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
