//! The size of the files below a folder, and when they were last written.

use std::path::Path;
use std::time::SystemTime;

/// Bytes of all files below `folder`. Files that vanish during the scan are skipped.
#[must_use]
pub fn folder_len_bytes(folder: &Path) -> u64 {
    measure(folder).0
}

/// Bytes of all files below `folder`, and when the newest of them was written. Links are not followed.
pub(crate) fn measure(folder: &Path) -> (u64, Option<SystemTime>) {
    let Ok(list) = std::fs::read_dir(folder) else { return (0, None) };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => measure(&entry.path()),
        Ok(metadata) => (metadata.len(), metadata.modified().ok()),
        Err(_) => (0, None),
    };
    list.flatten().map(of).fold((0, None), |all, one| (all.0 + one.0, all.1.max(one.1)))
}
