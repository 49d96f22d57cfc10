//! Figures that the system reports on this process and on a folder.

use std::io;
use std::path::Path;

/// Resident anonymous and file-backed memory of this process, in bytes.
pub(crate) fn resident_bytes() -> io::Result<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    let both = field("RssAnon:").zip(field("RssFile:"));
    both.ok_or_else(|| io::Error::other("/proc/self/status has no RssAnon and RssFile"))
}

/// Bytes of all files under `path`.
pub(crate) fn folder_bytes(path: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}
