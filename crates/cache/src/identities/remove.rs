//! Removes an identity's folder. It is scanned, its stores are locked, and it is renamed and scanned again; only then
//! the files that were found are removed, one by one.

use std::fs::{File, FileType, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::stored::{Stays, StoredIdentity};
use crate::identity::names::{self, KINDS};
use crate::store::space::is_open;
use tensorcask::Error;
use tensorcask::folder::{FOLDERS, OPEN_LOCK, QUARANTINE, is_file_of_store};

type Taken<T> = std::result::Result<T, Stays>;

/// The contents of a folder, all of which tensorcask made.
#[derive(Debug, Default)]
pub(super) struct Contents {
    files: Vec<PathBuf>,
    /// Parents before their subfolders.
    folders: Vec<PathBuf>,
    pub len_bytes: u64,
}

/// Locks of the writers of an identity's stores, with their paths in its folder.
type Locks = Vec<(PathBuf, File)>;

/// Removes an identity; with `dry_run`, only checks that it could be removed.
pub(super) fn take(identity: &StoredIdentity, dry_run: bool) -> Taken<Contents> {
    let folder = &identity.folder;
    if is_open(folder) {
        return Err(Stays::Open("a handle of this process has it open".to_owned()));
    }
    let contents = look_through(folder)?;
    let is_stamped =
        |path: &Path| path == Path::new(names::RECORD) || KINDS.iter().any(|kind| path.starts_with(kind.name()));
    if !contents.files.iter().any(|path| is_stamped(path)) {
        return Err(Stays::Foreign("nothing in it tells that the caching layer made it".to_owned()));
    }
    let mut locks = lock(folder, &contents, &[])?;
    let away = folder.with_file_name(names::pruned(&identity.id));
    if std::fs::symlink_metadata(&away).is_ok() && !(dry_run && look_through(&away).is_ok()) {
        return Err(Stays::Failed(format!("{} is in the way: move it away", away.display())));
    }
    if dry_run {
        return Ok(contents);
    }
    std::fs::rename(folder, &away).map_err(failed("rename", folder))?;
    // Writers cannot find the folder any more. The second scan detects one that opened it before the rename.
    let again = look_through(&away).and_then(|contents| {
        locks.extend(lock(&away, &contents, &locks)?);
        Ok(contents)
    });
    match again {
        Ok(contents) => remove(&away, contents),
        Err(why) => match std::fs::rename(&away, folder) {
            Ok(()) => Err(why),
            Err(error) => Err(Stays::Failed(format!("{why}; it is left at {}: {error}", away.display()))),
        },
    }
}

/// Completes an interrupted removal in `folder`; with `dry_run`, only checks that it could be completed.
pub(super) fn finish(folder: &Path, dry_run: bool) -> Taken<Contents> {
    let contents = look_through(folder)?;
    let _locks = lock(folder, &contents, &[])?;
    if dry_run { Ok(contents) } else { remove(folder, contents) }
}

/// Removes only the files that were found in `folder`. If a file was added since, the folder stays.
fn remove(folder: &Path, contents: Contents) -> Taken<Contents> {
    let is_there = |error: &std::io::Error| error.kind() != std::io::ErrorKind::NotFound;
    // The record identifies the folder, so it is removed last.
    let (last, first): (Vec<_>, Vec<_>) = contents.files.iter().partition(|path| **path == Path::new(names::RECORD));
    for path in first.into_iter().chain(last) {
        let path = folder.join(path);
        std::fs::remove_file(&path)
            .or_else(|e| if is_there(&e) { Err(e) } else { Ok(()) })
            .map_err(failed("remove", &path))?;
    }
    for path in contents.folders.iter().rev().map(|path| folder.join(path)).chain([folder.to_path_buf()]) {
        std::fs::remove_dir(&path)
            .or_else(|e| if is_there(&e) { Err(e) } else { Ok(()) })
            .map_err(failed("remove", &path))?;
    }
    Ok(contents)
}

/// Opens a regular file for reading. Anything else is an error; opening a pipe does not block.
fn open_regular(path: &Path) -> std::io::Result<File> {
    let non_blocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(non_blocking).open(path)?;
    if !file.metadata()?.file_type().is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Stays + use<'a> {
    move |error| Stays::Failed(Error::io(action, path, error).to_string())
}

/// The names in `folder`, sorted, with their types and lengths. Links are not followed.
fn entries(folder: &Path) -> Taken<Vec<(String, FileType, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        let entry = entry.map_err(failed("list", folder))?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("look at", &entry.path())(error)),
        };
        // tensorcask makes no names that are not UTF-8, so the lossy form cannot match one.
        found.push((entry.file_name().to_string_lossy().into_owned(), metadata.file_type(), metadata.len()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Scans the folder of an identity.
fn look_through(folder: &Path) -> Taken<Contents> {
    let mut contents = Contents::default();
    contents.add(folder, Path::new(""), names::is_file_of_identity, &KINDS.map(|kind| kind.name()))?;
    for store in contents.folders.clone() {
        contents.add(folder, &store, |name| is_file_of_store("", name), &FOLDERS)?;
    }
    let within: Vec<PathBuf> = contents.folders.iter().filter(|path| path.components().count() == 2).cloned().collect();
    for path in within {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        contents.add(folder, &path, |file| is_file_of_store(&name, file), &[])?;
    }
    Ok(contents)
}

impl Contents {
    /// Adds the contents of the folder `within`, which may hold files that `is_file` accepts and the subfolders
    /// `folders`.
    fn add(&mut self, root: &Path, within: &Path, is_file: impl Fn(&str) -> bool, folders: &[&str]) -> Taken<()> {
        for (name, kind, len_bytes) in entries(&root.join(within))? {
            let path = within.join(&name);
            if kind.is_dir() && folders.contains(&name.as_str()) {
                self.folders.push(path);
            } else if kind.is_file() && is_file(&name) {
                self.files.push(path);
                self.len_bytes += len_bytes;
            } else if within.ends_with(QUARANTINE) {
                return Err(Stays::Foreign(format!(
                    "{} was set aside by the store: look at it, and remove it or move it away first",
                    path.display()
                )));
            } else {
                return Err(Stays::Foreign(format!("{} in it is no file of tensorcask", path.display())));
            }
        }
        Ok(())
    }
}

/// Acquires the locks of all stores in `folder`, except those in `held`. The locks for opening come first, so that no
/// writer can start; then the locks of the lanes.
fn lock(folder: &Path, contents: &Contents, held: &[(PathBuf, File)]) -> Taken<Locks> {
    let is_opening = |path: &Path| path.file_name().is_some_and(|name| name == OPEN_LOCK);
    let is_lock = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "lock");
    let mut paths: Vec<&PathBuf> = contents.files.iter().filter(is_lock).collect();
    paths.retain(|path| held.iter().all(|(taken, _)| taken != *path));
    paths.sort_by_key(|path| !is_opening(path));
    let mut locks = Vec::with_capacity(paths.len());
    for path in paths {
        let full = folder.join(path);
        let file = open_regular(&full).map_err(failed("open the lock file", &full))?;
        match file.try_lock() {
            Ok(()) => locks.push((path.clone(), file)),
            Err(TryLockError::WouldBlock) => return Err(Stays::Open("a writer has it open".to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &full)(error)),
        }
    }
    Ok(locks)
}
