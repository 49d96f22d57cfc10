//! Locks on positions of a file that exclude other processes: "open file description locks" (`man 2 fcntl`).
//!
//! The kernel keeps one list of locks for each file, and searches it from the front, so a lock takes time in proportion
//! to the number of locks that are held.

use std::fs::File;
use std::path::PathBuf;

use super::PositionLocks;
use crate::error::{Error, Result};

/// Whether this system has such locks.
pub(super) const SUPPORTED: bool = cfg!(all(target_os = "linux", target_pointer_width = "64", not(miri)));

/// The locks of one opening of a file. A forked child shares them: its copy must not release the parent's.
#[derive(Debug)]
pub(super) struct DiskPositions {
    file: File,
    path: PathBuf,
    process_id: u32,
}

impl DiskPositions {
    /// Locks on `file`, at `path`, which is open for writing.
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        Self { file, path, process_id: std::process::id() }
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::io("lock a position of", &self.path, source)
    }
}

impl PositionLocks for DiskPositions {
    fn try_lock(&self, position: u64) -> Result<bool> {
        system::try_lock(&self.file, position).map_err(|error| self.error(error))
    }

    fn is_free(&self, position: u64) -> Result<bool> {
        system::is_free(&self.file, position).map_err(|error| self.error(error))
    }

    fn unlock(&self, position: u64) -> Result<()> {
        if self.process_id != std::process::id() {
            return Ok(());
        }
        system::unlock(&self.file, position).map_err(|error| self.error(error))
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod system {
    use std::fs::File;
    use std::io::{Error, ErrorKind, Result};
    use std::os::fd::AsRawFd;

    use libc::{F_OFD_GETLK, F_OFD_SETLK, F_UNLCK, F_WRLCK, c_int, c_short};

    /// A command on the lock of one byte; returns the kind of lock that the system fills in.
    #[expect(unsafe_code, reason = "rustix has no locks of open file descriptions")]
    fn control(file: &File, command: c_int, kind: c_int, position: u64) -> Result<c_int> {
        let start = libc::off_t::try_from(position).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
        let (l_type, l_whence) = (kind as c_short, libc::SEEK_SET as c_short);
        let mut lock = libc::flock { l_type, l_whence, l_start: start, l_len: 1, l_pid: 0 };
        // SAFETY: the descriptor is open, and the call accesses no memory but `lock`, which lives until it returns.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
            -1 => Err(Error::last_os_error()),
            _ => Ok(c_int::from(lock.l_type)),
        }
    }

    pub(super) fn try_lock(file: &File, position: u64) -> Result<bool> {
        match control(file, F_OFD_SETLK, F_WRLCK, position) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_free(file: &File, position: u64) -> Result<bool> {
        control(file, F_OFD_GETLK, F_WRLCK, position).map(|kind| kind == F_UNLCK)
    }

    pub(super) fn unlock(file: &File, position: u64) -> Result<()> {
        control(file, F_OFD_SETLK, F_UNLCK, position).map(|_| ())
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
mod system {
    use std::fs::File;
    use std::io::{ErrorKind, Result};

    pub(super) fn try_lock(_: &File, _: u64) -> Result<bool> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn is_free(_: &File, _: u64) -> Result<bool> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn unlock(_: &File, _: u64) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}
