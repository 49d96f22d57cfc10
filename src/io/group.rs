//! Gives the group of a folder rights in the files created in it, so that users of one group can share a store.
//!
//! The umask removes these rights from new files even if the folder grants them, and then one user's lock or segment
//! blocks another user. So a file follows its folder: if the folder's group may write, and is also the file's group, it
//! may read and write the file. A folder with the sticky bit, such as `/tmp`, protects its users from each other and
//! gives no rights.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};

/// Gives the group its rights in a file: always if `forced`, otherwise as the file's folder does.
pub(super) fn share_file(file: &File, path: &Path, forced: bool) -> Result<()> {
    let fail = |e| Error::io("set the permissions of", path, e);
    let folder = fs::metadata(folder_of(path)).map_err(fail)?;
    let found = file.metadata().map_err(fail)?;
    match unix::wanted(&found, &folder, unix::READ_AND_WRITE, forced) {
        Some(mode) => file.set_permissions(mode).map_err(fail),
        None => Ok(()),
    }
}

/// Gives the group its rights in a folder: it may list the folder and create files there, which belong to the group.
pub(super) fn share_folder(full: &Path, forced: bool) -> Result<()> {
    let fail = |e| Error::io("set the permissions of", full, e);
    let folder = fs::metadata(folder_of(full)).map_err(fail)?;
    let found = fs::metadata(full).map_err(fail)?;
    match unix::wanted(&found, &folder, unix::ALL_AND_SETGID, forced) {
        Some(mode) => fs::set_permissions(full, mode).map_err(fail),
        None => Ok(()),
    }
}

/// Ignores a denied change: only the owner may change a file's permissions, so another user's file stays as it is.
pub(super) fn unless_denied(shared: Result<()>) -> Result<()> {
    match shared {
        Err(error) if error.is_denied() => Ok(()),
        shared => shared,
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(unix)]
mod unix {
    use std::fs::{Metadata, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    pub(super) const READ_AND_WRITE: u32 = 0o060;
    pub(super) const ALL_AND_SETGID: u32 = 0o2070;
    const WRITE: u32 = 0o020;
    const STICKY: u32 = 0o1000;

    /// The permissions with `rights` added, if they are wanted and not there.
    pub(super) fn wanted(found: &Metadata, folder: &Metadata, rights: u32, forced: bool) -> Option<Permissions> {
        let follows = folder.mode() & (WRITE | STICKY) == WRITE && folder.gid() == found.gid();
        let mode = found.mode() & 0o7777;
        ((forced || follows) && mode & rights != rights).then(|| Permissions::from_mode(mode | rights))
    }
}

#[cfg(not(unix))]
mod unix {
    use std::fs::{Metadata, Permissions};

    pub(super) const READ_AND_WRITE: u32 = 0;
    pub(super) const ALL_AND_SETGID: u32 = 0;

    /// This system has no groups.
    pub(super) fn wanted(_found: &Metadata, _folder: &Metadata, _rights: u32, _forced: bool) -> Option<Permissions> {
        None
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Storage;
    use super::super::disk::DiskStorage;
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Creates a store's folder and files in a folder of `mode`; returns the modes of folder, file and lock.
    fn made(folder_mode: u32, forced: bool) -> [u32; 3] {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), folder_mode);
        let root = folder.path().join("store");
        let storage = DiskStorage::new(&root).group_writable(forced);
        storage.create_dir(Path::new("lanes")).unwrap();
        storage.create(Path::new("lanes/file")).unwrap();
        storage.try_lock(Path::new("lanes/lock")).unwrap();
        assert_eq!(mode(&root), mode(&root.join("lanes")));
        [mode(&root), mode(&root.join("lanes/file")), mode(&root.join("lanes/lock"))]
    }

    #[test]
    fn files_follow_their_folder() {
        for folder_mode in [0o775, 0o2775, 0o2770] {
            let [folder, file, lock] = made(folder_mode, false);
            assert_eq!((folder & 0o2070, file & 0o060, lock & 0o060), (0o2070, 0o060, 0o060), "{folder_mode:o}");
        }
        // A private folder gives no rights, nor does one with the sticky bit.
        for folder_mode in [0o755, 0o700, 0o1777] {
            let plain = tempfile::tempdir().unwrap();
            fs::create_dir(plain.path().join("folder")).unwrap();
            File::create(plain.path().join("file")).unwrap();
            let [folder, file] = ["folder", "file"].map(|name| mode(&plain.path().join(name)));
            assert_eq!(made(folder_mode, false), [folder, file, file], "{folder_mode:o}");
            let [folder, file, lock] = made(folder_mode, true);
            assert_eq!((folder & 0o2070, file & 0o060, lock & 0o060), (0o2070, 0o060, 0o060), "forced {folder_mode:o}");
        }
    }

    #[test]
    fn an_old_store_is_shared_when_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        DiskStorage::new(&root).create_dir(Path::new("segments")).unwrap();
        for path in [&root, &root.join("segments")] {
            set_mode(path, 0o755);
        }
        DiskStorage::new(&root).create_dir(Path::new("segments")).unwrap();
        assert_eq!(mode(&root), 0o755);
        DiskStorage::new(&root).group_writable(true).create_dir(Path::new("segments")).unwrap();
        assert_eq!((mode(&root), mode(&root.join("segments"))), (0o2775, 0o2775));
    }
}
