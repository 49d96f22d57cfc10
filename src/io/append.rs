//! A file of the file system that is appended to.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::lock::is_named;
use super::{AppendFile, Durability, LARGE_PAGE_BYTES};
use crate::error::{Error, Result};

/// Most parts that one `writev` takes (Linux `IOV_MAX`).
const PARTS_A_WRITE: usize = 1024;
/// Pages are filled once this much was appended since the last sync: a sync then writes at most a quarter more.
const WORTH_FILLING: u64 = 4 * LARGE_PAGE_BYTES;
/// Zeros to fill pages with, piece by piece.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

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

/// Makes the system begin to write these bytes to disk, and does not wait.
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

/// A file open for appending. The cursor stays at the end of what was appended.
#[derive(Debug)]
pub(super) struct DiskAppend {
    file: File,
    path: PathBuf,
    len_bytes: u64,
    /// Bytes up to the last sync.
    synced_len_bytes: u64,
    /// Whether data are handed to the disk piece by piece while they are appended.
    writes_early: bool,
    fills_pages: bool,
    /// Where the zeros end.
    filled_len_bytes: u64,
    /// The first failure, which every later call repeats (redb latches in the same way): after a failed `fsync` the
    /// kernel may have marked the lost pages clean, so that a second one would succeed over lost data.
    failed: Option<Error>,
}

impl DiskAppend {
    /// Continues with `file`, at `path`, whose cursor is at its end, `len_bytes` from its start.
    pub(super) fn new(file: File, path: PathBuf, len_bytes: u64) -> Self {
        Self {
            file,
            path,
            len_bytes,
            synced_len_bytes: len_bytes,
            writes_early: false,
            fills_pages: false,
            filled_len_bytes: 0,
            failed: None,
        }
    }

    fn latched(&mut self, action: &'static str, run: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        run(self).map_err(|e| self.failed.insert(Error::io(action, &self.path, e)).clone())
    }

    /// Zeros for the rest of the large page in which an append ends at `end`. The page cache uses pages as large as the
    /// first write to them, so the next batch then begins in a large page.
    fn filling(&self, end: u64) -> Vec<IoSlice<'static>> {
        let worth_it = end - self.synced_len_bytes >= WORTH_FILLING && end > self.filled_len_bytes;
        if !self.fills_pages || self.writes_early || !worth_it {
            return Vec::new();
        }
        let mut missing = (end.next_multiple_of(LARGE_PAGE_BYTES) - end) as usize;
        let pieces = std::iter::from_fn(|| {
            let piece = ZEROS.get(..missing).unwrap_or(&ZEROS);
            missing -= piece.len();
            (!piece.is_empty()).then(|| IoSlice::new(piece))
        });
        pieces.collect()
    }

    /// Writes all of `parts`, in as many system calls as needed. O(parts) + O(bytes).
    fn write_parts(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let end = self.len_bytes + parts.iter().map(|part| part.len() as u64).sum::<u64>();
        // Empty parts would make a write of nothing look like a full disk.
        let mut owned: Vec<IoSlice<'_>> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        owned.extend(self.filling(end));
        let mut rest = owned.as_mut_slice();
        while !rest.is_empty() {
            let piece;
            // A piece is one large page of the page cache.
            let next = if self.writes_early {
                piece = front(rest, (LARGE_PAGE_BYTES - self.len_bytes % LARGE_PAGE_BYTES) as usize);
                &piece
            } else {
                &*rest
            };
            match self.file.write_vectored(next.get(..PARTS_A_WRITE).unwrap_or(next)) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // If there is no room for the zeros, give their space back: others may need it.
                Ok(0) | Err(_) if self.len_bytes >= end => {
                    self.fills_pages = false;
                    self.file.set_len(end)?;
                    break;
                }
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.len_bytes += written as u64;
                    // A complete piece is not written again.
                    if self.writes_early && self.len_bytes.is_multiple_of(LARGE_PAGE_BYTES) {
                        start_writing(&self.file, self.len_bytes - LARGE_PAGE_BYTES, LARGE_PAGE_BYTES);
                    }
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(e) => return Err(e),
            }
        }
        if self.len_bytes > end {
            self.filled_len_bytes = self.len_bytes;
            self.len_bytes = end;
            self.file.seek(SeekFrom::Start(end))?;
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

    fn is_in_place(&self) -> bool {
        is_named(&self.file, &self.path)
    }

    fn fill_pages(&mut self, fill: bool) -> Result<()> {
        self.fills_pages = fill;
        if fill || self.filled_len_bytes <= self.len_bytes {
            return Ok(());
        }
        self.filled_len_bytes = 0;
        self.latched("cut zeros off", |file| file.file.set_len(file.len_bytes))
    }

    fn sync(&mut self, durability: Durability) -> Result<()> {
        self.latched("sync", |file| {
            match durability {
                Durability::Buffered => return Ok(()),
                Durability::SyncData => file.file.sync_data(),
                Durability::SyncAll => file.file.sync_all(),
            }?;
            file.synced_len_bytes = file.len_bytes;
            Ok(())
        })
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pages_are_filled_and_cut() {
        const MIB: usize = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let content: Vec<u8> = (0..(24 * MIB) as u32 / 4).flat_map(u32::to_le_bytes).collect();
        let mut start = 0;
        let mut append_to = |file: &mut DiskAppend, end: usize, len_bytes: usize| {
            file.append(&[IoSlice::new(&content[start..end])]).unwrap();
            assert_eq!(file.len_bytes(), end as u64);
            let found = fs::read(&path).unwrap();
            assert!(found.len() == len_bytes && found[..end] == content[..end], "{} at {end}", found.len());
            assert!(found[end..].iter().all(|byte| *byte == 0));
            start = end;
        };
        let mut file = DiskAppend::new(File::create(&path).unwrap(), path.clone(), 0);
        file.fill_pages(true).unwrap();
        // Pages are filled from 8 MiB after the last sync on.
        let ends = [(5, 5), (9 * MIB, 10 * MIB), (9 * MIB + 5, 10 * MIB), (10 * MIB, 10 * MIB), (13 * MIB, 14 * MIB)];
        ends.iter().for_each(|(end, len_bytes)| append_to(&mut file, *end, *len_bytes));
        file.sync(Durability::SyncData).unwrap();
        append_to(&mut file, 13 * MIB + 5, 14 * MIB);
        append_to(&mut file, 15 * MIB, 15 * MIB);
        append_to(&mut file, 23 * MIB + 5, 24 * MIB);
        file.fill_pages(false).unwrap();
        append_to(&mut file, 24 * MIB - 5, 24 * MIB - 5);
    }

    #[test]
    fn a_failed_file_stays_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, b"x").unwrap();
        let mut file = DiskAppend::new(File::open(&path).unwrap(), path, 1);
        let first = file.append(&[IoSlice::new(b"y")]).unwrap_err().to_string();
        assert_eq!(file.sync(Durability::SyncData).unwrap_err().to_string(), first);
    }
}
