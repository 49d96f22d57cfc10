//! A file of the file system that grows at its end.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::path::PathBuf;

use super::{AppendFile, Durability};
use crate::error::{Error, Result};

/// Most parts that one `writev` takes (Linux `IOV_MAX`).
const PARTS_A_WRITE: usize = 1024;
/// Pieces in which bytes that will be synced are given to the disk: those of a large page, aligned as such, so that the
/// page cache keeps them as one.
pub(super) const EARLY_BYTES: u64 = 2 << 20;

/// The first `len_bytes` of `parts`.
fn front<'a>(parts: &'a [IoSlice<'a>], len_bytes: usize) -> Vec<IoSlice<'a>> {
    let mut room = len_bytes;
    let taken = parts.iter().map_while(|part| {
        let taken = part.get(..room).unwrap_or(part);
        room -= taken.len();
        (!taken.is_empty()).then(|| IoSlice::new(taken))
    });
    taken.collect()
}

/// Has the system begin to write these bytes to the medium, and does not wait.
#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "the libraries have no sync_file_range; measured in benches/writes.rs")]
fn start_writing(file: &File, offset: u64, len_bytes: u64) {
    use std::os::fd::AsRawFd;
    let (Ok(offset), Ok(len_bytes)) = (i64::try_from(offset), i64::try_from(len_bytes)) else { return };
    // SAFETY: the call takes numbers, touches no memory of this process, and the descriptor is open.
    let _the_sync_will_tell =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len_bytes, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn start_writing(_file: &File, _offset: u64, _len_bytes: u64) {}

/// Open for appending; the file's cursor stays at its end.
#[derive(Debug)]
pub(super) struct DiskAppend {
    file: File,
    path: PathBuf,
    len_bytes: u64,
    /// Whether the disk is given its work piece by piece, as it is appended.
    writes_early: bool,
    /// The first failure, which every later call repeats (redb latches in the same way): after a failed `fsync` the
    /// kernel may have marked the lost pages clean, so that a second one would succeed over lost data.
    failed: Option<Error>,
}

impl DiskAppend {
    /// Goes on with `file`, at `path`, whose cursor is at its end, `len_bytes` from its start.
    pub(super) fn new(file: File, path: PathBuf, len_bytes: u64) -> Self {
        Self { file, path, len_bytes, writes_early: false, failed: None }
    }

    fn latched(&mut self, action: &'static str, run: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        run(self).map_err(|e| self.failed.insert(Error::io(action, &self.path, e)).clone())
    }

    /// All of `parts`, in as many writes as the system makes of it. O(parts) + O(bytes).
    fn write_parts(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // Empty parts would make a write of nothing look like a full disk.
        let mut owned: Vec<IoSlice<'_>> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        let mut rest = owned.as_mut_slice();
        while !rest.is_empty() {
            let piece;
            let next = if self.writes_early {
                piece = front(rest, (EARLY_BYTES - self.len_bytes % EARLY_BYTES) as usize);
                &piece
            } else {
                &*rest
            };
            match self.file.write_vectored(next.get(..PARTS_A_WRITE).unwrap_or(next)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.len_bytes += written as u64;
                    // A piece that is whole is not written to again.
                    if self.writes_early && self.len_bytes.is_multiple_of(EARLY_BYTES) {
                        start_writing(&self.file, self.len_bytes - EARLY_BYTES, EARLY_BYTES);
                    }
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AppendFile for DiskAppend {
    fn append(&mut self, parts: &[IoSlice<'_>]) -> Result<()> {
        self.latched("append to", |file| file.write_parts(parts))
    }

    fn write_early(&mut self, early: bool) {
        self.writes_early = early;
    }

    fn sync(&mut self, durability: Durability) -> Result<()> {
        self.latched("sync", |file| match durability {
            Durability::Buffered => Ok(()),
            Durability::SyncData => file.file.sync_data(),
            Durability::SyncAll => file.file.sync_all(),
        })
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}
