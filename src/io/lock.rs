//! A lock on a file, which one of several processes holds.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::LockGuard;

/// Holds the `flock`. A forked child shares it: its copy of this guard must not release the parent's, nor keep it, as
/// every child does until it runs another program.
#[derive(Debug)]
pub(super) struct DiskLock {
    file: File,
    path: PathBuf,
    is_writable: bool,
    process_id: u32,
}

impl DiskLock {
    /// Guards the lock that this process holds on `file`, at `path`; `is_writable`: whether it may write the file.
    pub(super) fn new(file: File, path: PathBuf, is_writable: bool) -> Self {
        Self { file, path, is_writable, process_id: std::process::id() }
    }
}

impl LockGuard for DiskLock {
    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn is_in_place(&self) -> bool {
        is_named(&self.file, &self.path)
    }
}

/// Whether `path` names `file`. Two system calls. On systems other than Unix, whether `path` names any file.
pub(super) fn is_named(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
        (open.dev(), open.ino()) == (named.dev(), named.ino())
    }
    #[cfg(not(unix))]
    {
        let _any = file;
        path.exists()
    }
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        if self.process_id == std::process::id() {
            // If this fails, closing the file releases the lock.
            let _closed_next = self.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_released_although_a_child_has_the_file_and_by_its_own_process_only() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::create(folder.path().join("lock")).unwrap();
        let is_free = || open().try_lock().is_ok();
        let lock = |process_id| {
            let file = open();
            file.try_lock().unwrap();
            // As after `fork`: one open file, two descriptors.
            let inherited = file.try_clone().unwrap();
            (DiskLock { file, path: folder.path().join("lock"), is_writable: true, process_id }, inherited)
        };
        let (held, inherited) = lock(std::process::id());
        assert!(!is_free() && held.is_in_place());
        drop(held);
        assert!(is_free());
        drop(inherited);
        let (copy, parents) = lock(std::process::id() + 1);
        drop(copy);
        assert!(!is_free());
        drop(parents);
        assert!(is_free());
    }
}
