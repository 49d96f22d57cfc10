//! Temporary folders, which are removed at the latest by another process. A process that is killed or calls
//! `process::exit` leaves its folder behind. The next process that creates one removes the folders whose lock is free.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use parking_lot::Mutex;

use tensorcask::{Error, Result};

/// The prefix of the names, followed by 32 hexadecimal digits.
const PREFIX: &str = "tensorcask-";
const LOCK: &str = "lock";
/// The content of the lock file.
const MARK: &str = "a temporary folder of tensorcask: removed by the next process once nobody holds this lock\n";

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    /// The operating system releases the lock when the process ends in any way.
    _lock: Option<File>,
}

impl TemporaryFolder {
    /// Creates a folder under `parent`, or under the system's folder for temporary files.
    ///
    /// # Errors
    /// IO errors.
    pub fn new(parent: Option<&Path>) -> Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        sweep(&parent);
        let path = parent.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
        let lock = locked(&path).inspect_err(|error| {
            tracing::warn!(folder = %path.display(), %error, "a temporary folder could not be locked: it stays if the process is killed");
        });
        Ok(Self { path, _lock: lock.ok() })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a temporary store could not be removed");
        }
    }
}

/// Creates the lock file. It is locked before it gets its name, so that a process that finds it unlocked may remove the
/// folder.
fn locked(folder: &Path) -> std::io::Result<File> {
    let part = folder.join("lock.part");
    std::fs::write(&part, MARK)?;
    let lock = File::open(&part)?;
    lock.try_lock().map_err(std::io::Error::from)?;
    std::fs::rename(&part, folder.join(LOCK))?;
    Ok(lock)
}

/// Removes the folders in `parent` of processes that have ended. It lists all of `parent`, so it runs once per process
/// and parent.
fn sweep(parent: &Path) {
    static SWEPT: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);
    let news = SWEPT.lock().insert(parent.to_path_buf());
    let Some(list) = news.then(|| std::fs::read_dir(parent).ok()).flatten() else { return };
    for entry in list.flatten() {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).unwrap_or_default();
        let is_ours = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_if_free(&entry.path());
        }
    }
}

fn remove_if_free(folder: &Path) {
    let path = folder.join(LOCK);
    let Ok(lock) = OpenOptions::new().read(true).open(&path) else { return };
    if lock.try_lock().is_ok() && std::fs::read(&path).is_ok_and(|text| text == MARK.as_bytes()) {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => {
                tracing::info!(folder = %folder.display(), "a temporary folder of a process that is gone was removed")
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "an old temporary folder could not be removed")
            }
        }
    }
}
