//! What lies in the way of a file of the store's own and is no file of it: moved to quarantine, never removed.

use std::path::{Path, PathBuf};

use crate::engine::open::inventory::Listing;
use crate::error::{Error, Result};
use crate::io::{FileKind, Storage};
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

/// What has the name of a file of the store and is no file that a writer of it made, and what it is: names of segments
/// (as in `listing`), runs, locks and marks, and `store.json`.
///
/// # Errors
/// IO errors.
pub(crate) fn not_files(storage: &dyn Storage, listing: &Listing) -> Result<Vec<(PathBuf, String)>> {
    let in_folder = |folder: &'static str| match storage.list(Path::new(folder)) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        entries => entries,
    };
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for (_, name) in &listing.not_files {
        found.push((Path::new(names::SEGMENTS).join(name), "it is no file that a writer of this store made".into()));
    }
    let runs = in_folder(names::RUNS)?.into_iter().filter(|entry| names::parse_run(&entry.name).is_some());
    let runs = runs.map(|entry| (Path::new(names::RUNS).join(entry.name), entry.kind));
    let lanes = in_folder(names::LANES)?.into_iter();
    let lanes = lanes.map(|entry| (Path::new(names::LANES).join(entry.name), entry.kind));
    let identity = storage.kind(Path::new(names::IDENTITY))?.map(|kind| (names::IDENTITY.into(), kind));
    for (path, kind) in runs.chain(lanes).chain(identity).filter(|(_, kind)| !kind.is_file()) {
        found.push((path, format!("it is {}, and is not used as the file of its name", kind.name())));
    }
    Ok(found)
}
