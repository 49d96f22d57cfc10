//! What the file system of a folder can do. The checks use the engine's own storage, on a file that is removed again.

use std::io::IoSlice;
use std::path::Path;
use std::time::Instant;

use tensorcask::Durability;
use tensorcask::storage::{DiskStorage, Storage};

use super::Finding;
use crate::output::bytes;

/// Syncs of the check.
const SYNCS: u32 = 5;
/// A sync that takes longer slows down each flush.
const SLOW_SYNC_MS: f64 = 100.0;
const FEW_BYTES: u64 = 1 << 30;
const TOO_FEW_BYTES: u64 = 64 << 20;
const FEW_INODES: u64 = 10_000;

/// All checks of the file system.
pub(super) fn check(folder: &Path) -> Vec<Finding> {
    let storage = DiskStorage::new(folder);
    let mut findings = vec![file_system(folder, &storage)];
    findings.extend(space(folder));
    let probe = Probe::new(&storage, folder);
    findings.push(probe.locks());
    findings.extend(probe.files());
    findings
}

fn file_system(folder: &Path, storage: &DiskStorage) -> Finding {
    const CHECK: &str = "file system";
    match storage.network() {
        Err(error) => return Finding::bad(CHECK, error.to_string(), "check the disk"),
        Ok(Some(name)) => {
            let advice = "locks, maps and syncs may not hold what they promise: use a local disk for writing";
            return Finding::bad(CHECK, format!("{name}, a network file system"), advice);
        }
        Ok(None) => {}
    }
    match file_system_type(folder) {
        Some("tmpfs" | "ramfs") => {
            Finding::warn(CHECK, "tmpfs, which lies in memory", "rows are gone when the machine restarts: use a disk")
        }
        Some("overlayfs") => Finding::warn(
            CHECK,
            "overlayfs",
            "in a container, rows are gone with the container: use a volume, unless that is intended",
        ),
        Some("FUSE") => {
            let advice = "locks and maps depend on the program behind it: see the checks below, and test it";
            Finding::warn(CHECK, "FUSE", advice)
        }
        Some(name) => Finding::ok(CHECK, name),
        None => Finding::ok(CHECK, "a local file system of a type that is not known here"),
    }
}

/// Magic numbers from `linux/magic.h`.
#[cfg(target_os = "linux")]
fn file_system_type(folder: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(folder).ok()?.f_type as u32 {
        0xEF53 => Some("ext4"),
        0x5846_5342 => Some("XFS"),
        0x9123_683E => Some("Btrfs"),
        0xCA45_1A4E => Some("bcachefs"),
        0x2FC1_2FC1 => Some("ZFS"),
        0xF2F5_2010 => Some("F2FS"),
        0x0102_1994 => Some("tmpfs"),
        0x8584_58F6 => Some("ramfs"),
        0x794C_7630 => Some("overlayfs"),
        0x6573_5546 => Some("FUSE"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn file_system_type(_folder: &Path) -> Option<&'static str> {
    None
}

fn space(folder: &Path) -> Vec<Finding> {
    let found = match rustix::fs::statvfs(folder) {
        Ok(found) => found,
        Err(error) => return vec![Finding::bad("free space", error.to_string(), "check the disk")],
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let all = found.f_blocks.saturating_mul(found.f_frsize);
    let said = format!("{} of {} free", bytes(free), bytes(all));
    let advice = "free space: a full disk stops the writer, and compaction needs room for what it rewrites";
    let space = match free {
        0..TOO_FEW_BYTES => Finding::bad("free space", said, advice),
        TOO_FEW_BYTES..FEW_BYTES => Finding::warn("free space", said, advice),
        _ => Finding::ok("free space", said),
    };
    // Some file systems have no fixed number of inodes.
    let inodes = match (found.f_files, found.f_favail) {
        (0, _) => Finding::ok("free inodes", "as many as needed"),
        (all, free) if free < FEW_INODES => {
            Finding::warn("free inodes", format!("{free} of {all} free"), "remove small files: each segment is a file")
        }
        (all, free) => Finding::ok("free inodes", format!("{free} of {all} free")),
    };
    vec![space, inodes]
}

/// A file for the checks. It is removed when this is dropped.
struct Probe<'a> {
    storage: &'a DiskStorage,
    folder: &'a Path,
    name: String,
}

impl<'a> Probe<'a> {
    fn new(storage: &'a DiskStorage, folder: &'a Path) -> Self {
        Self { storage, folder, name: format!(".tensorcask-doctor-{}.tmp", std::process::id()) }
    }

    fn path(&self) -> &Path {
        Path::new(&self.name)
    }

    /// Two descriptors cannot have one lock.
    fn locks(&self) -> Finding {
        let lock = match self.storage.try_lock(self.path()) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Finding::warn("locks", "another `doctor` is checking them", "run it again"),
            Err(error) => {
                return Finding::warn(
                    "locks",
                    error.to_string(),
                    "this user can only read here, so they are not checked",
                );
            }
        };
        let second = self.storage.try_lock(self.path());
        drop(lock);
        let free_again = self.storage.try_lock(self.path());
        match (second, free_again) {
            (Ok(None), Ok(Some(_))) => Finding::ok("locks", "one writer a lane is enforced"),
            _ => Finding::bad(
                "locks",
                "two descriptors can have the same lock, or a lock is not released",
                "two writers of a lane would damage each other's rows: use a file system with flock",
            ),
        }
    }

    /// Syncs, maps and links.
    fn files(&self) -> Vec<Finding> {
        match self.try_files() {
            Ok(findings) => findings,
            Err(error) if error.is_denied() => {
                vec![Finding::warn("syncs", error.to_string(), "this user can only read here, so they are not checked")]
            }
            Err(error) => vec![Finding::bad("syncs", error.to_string(), "check the disk")],
        }
    }

    fn try_files(&self) -> tensorcask::Result<Vec<Finding>> {
        const PAGE: [u8; 4096] = [7; 4096];
        let _absent = self.storage.remove(self.path());
        let mut file = self.storage.create(self.path())?;
        let mut slowest_ms = 0.0_f64;
        for _ in 0..SYNCS {
            file.append(&[IoSlice::new(&PAGE)])?;
            let start = Instant::now();
            file.sync(Durability::SyncAll)?;
            slowest_ms = slowest_ms.max(start.elapsed().as_secs_f64() * 1e3);
        }
        let said = format!("{slowest_ms:.2} ms at most, of {SYNCS}");
        let syncs = if slowest_ms > SLOW_SYNC_MS {
            Finding::warn("syncs", said, "flush less often, or with Durability::Buffered")
        } else {
            Finding::ok("syncs", said)
        };
        let read = self.storage.open(self.path(), 0)?.bytes(0, PAGE.len())?;
        let maps = match (read == PAGE[..], self.is_mapped()) {
            (false, _) => Finding::bad("memory maps", "a file does not read back as it was written", "check the disk"),
            (true, Some(false)) => {
                Finding::warn("memory maps", "files cannot be mapped", "reads are copies: use another file system")
            }
            (true, _) => Finding::ok("memory maps", "files can be mapped"),
        };
        drop(read);
        let link = self.folder.join(format!("{}.link", self.name));
        let links = match std::fs::hard_link(self.folder.join(&self.name), &link) {
            Ok(()) => Finding::ok("hard links", "copies of stores take no space"),
            Err(error) => Finding::ok("hard links", format!("none ({error}): copies of stores take space")),
        };
        let _absent = std::fs::remove_file(link);
        Ok(vec![syncs, maps, links])
    }

    /// Whether this process maps the file; `None` if the system does not tell.
    fn is_mapped(&self) -> Option<bool> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        Some(maps.contains(&self.name))
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        // It may never have been made.
        let _absent = self.storage.remove(self.path());
    }
}
