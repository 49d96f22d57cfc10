//! Shared read-only maps of files that may still grow: the only unsafe code of the io layer.
//!
//! A map may reserve more address space than the file has bytes. Pages beyond the end of the file fault when they
//! are touched, so a slice is only ever formed below a length that the file has been seen to have. Reserving costs
//! address space, no memory, and lets an append-only segment be mapped once while it grows (the idea is LMDB's
//! `mapsize`).
//!
//! **What this cannot guard against**: a foreign program that truncates a mapped file. The next touch of a cut page
//! raises SIGBUS. The library itself only unlinks published files, which leaves maps intact, and cuts zeros behind what
//! was appended, which nobody asks for.
#![expect(unsafe_code, reason = "a slice of mapped memory cannot be formed without it")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::RwLock;

/// A file, mapped as far as its capacity, that hands out bytes below the length it was seen to have.
///
/// One that is not expected to grow is mapped when bytes of it are first asked for, and has no descriptor from then on:
/// thousands of open segments would otherwise run into the limit on open files. Until then it can be read by `pread`,
/// which for a look at its ends takes less time than faults do, and leaves nothing to unmap.
#[derive(Debug)]
pub(crate) struct GrowingMap {
    /// `None` within where nothing is to be mapped, or the system refused (no `mmap` on this file system, too many maps):
    /// reads then go through `pread`.
    map: OnceLock<Option<MmapRaw>>,
    file: RwLock<Option<File>>,
    reserved_bytes: usize,
    is_frozen: bool,
    /// The file had at least this many bytes at some moment; never shrinks.
    seen_len_bytes: AtomicU64,
}

impl GrowingMap {
    /// Maps `file` up to the greater of its length and `capacity_bytes`; `capacity_bytes` 0 freezes its length.
    ///
    /// # Errors
    /// The system's word if the length cannot be read, or it is a folder. A refused map is no error: reads are copies then.
    pub(crate) fn new(file: File, capacity_bytes: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let is_frozen = capacity_bytes == 0;
        let map = Self {
            map: OnceLock::new(),
            reserved_bytes: usize::try_from(metadata.len().max(capacity_bytes)).unwrap_or(0),
            file: RwLock::new(Some(file)),
            is_frozen,
            seen_len_bytes: AtomicU64::new(metadata.len()),
        };
        if !is_frozen || map.reserved_bytes == 0 {
            map.mapped();
        }
        Ok(map)
    }

    /// The map, made by the first call.
    fn mapped(&self) -> Option<&MmapRaw> {
        let map = self.map.get_or_init(|| {
            let file = self.file.read();
            let wanted = file.as_ref().filter(|_| self.reserved_bytes > 0);
            let map = wanted.and_then(|file| MmapOptions::new().len(self.reserved_bytes).map_raw_read_only(file).ok());
            // By itself a fault reads all around it, megabytes where the disk is set to read that far ahead, for a row
            // that is found by its hash. Whoever reads in order says so: `residency::read_ahead`. Advice only: it may be
            // refused.
            #[cfg(unix)]
            let _advice_only = map.as_ref().map(|map| map.advise(memmap2::Advice::Random));
            drop(file);
            if self.is_frozen && (map.is_some() || self.reserved_bytes == 0) {
                self.file.write().take();
            }
            map
        });
        map.as_ref()
    }

    /// Whether the file's length was fixed when it was opened, and it is mapped: copies of it save nothing.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_frozen && self.map.get().is_some_and(Option::is_some)
    }

    /// Bytes in the file now (one `fstat`), or when it was opened if it is not expected to grow.
    pub(crate) fn len_bytes(&self) -> io::Result<u64> {
        let seen = || self.seen_len_bytes.load(Ordering::Acquire);
        if self.is_frozen {
            return Ok(seen());
        }
        let len_bytes =
            self.file.read().as_ref().map_or(Ok(seen()), |file| file.metadata().map(|found| found.len()))?;
        self.seen_len_bytes.fetch_max(len_bytes, Ordering::AcqRel);
        Ok(len_bytes)
    }

    /// The mapped bytes at `offset`, without a copy and without a system call. `None` if they do not lie below both
    /// the last seen length and the end of the map.
    pub(crate) fn bytes(self: &Arc<Self>, offset: u64, len_bytes: usize) -> Option<Bytes> {
        let end = offset.checked_add(u64::try_from(len_bytes).ok()?)?;
        if end > self.seen_len_bytes.load(Ordering::Acquire) {
            return None;
        }
        if len_bytes == 0 {
            return Some(Bytes::new());
        }
        let mapped = self.mapped()?;
        if usize::try_from(end).ok()? > mapped.len() {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        Some(Bytes::from_owner(MappedRange { map: Arc::clone(self), offset, len_bytes }))
    }

    /// Fills `out` from `offset` by `pread`, for bytes that lie in the file but beyond the map.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        match &*self.file.read() {
            Some(file) => file.read_exact_at(out, offset),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Keeps the map alive for as long as bytes of it are. Made by [`GrowingMap::bytes`] only, which checks the range.
struct MappedRange {
    map: Arc<GrowingMap>,
    offset: usize,
    len_bytes: usize,
}

impl AsRef<[u8]> for MappedRange {
    fn as_ref(&self) -> &[u8] {
        let Some(Some(map)) = self.map.map.get() else { return &[] };
        // SAFETY: `GrowingMap::bytes` is the only maker of this type and checked that `offset + len_bytes` is neither
        // beyond the end of the map nor beyond a length the file was seen to have. So the range is mapped, and its
        // pages are backed by the file. The pointer is not null and u8 needs no alignment. The map lives as long as
        // `self`, since `self` holds an `Arc` of its owner and nothing unmaps earlier. The bytes do not change: by
        // the contract in io/mod.rs what was appended is not written again, is cut only before anything maps it, and
        // nothing else is asked for (see the module's docs for foreign programs). memmap2 refuses maps longer than
        // isize::MAX.
        unsafe { std::slice::from_raw_parts(map.as_ptr().add(self.offset), self.len_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn map_of(content: &[u8], capacity_bytes: u64) -> (File, Arc<GrowingMap>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        (file.try_clone().unwrap(), Arc::new(GrowingMap::new(file, capacity_bytes).unwrap()))
    }

    #[test]
    fn grows_within_its_capacity() {
        let (mut file, map) = map_of(b"abc", 1 << 20);
        let early = map.bytes(1, 2).unwrap();
        assert!(map.bytes(1, 3).is_none());
        file.write_all(&[7; 10_000]).unwrap();
        assert!(map.bytes(3, 10_000).is_none(), "not seen yet");
        assert_eq!(map.len_bytes().unwrap(), 10_003);
        assert_eq!(map.bytes(3, 10_000).unwrap(), vec![7; 10_000]);
        drop(map);
        assert_eq!(early, &b"bc"[..]);
    }

    #[test]
    fn beyond_the_map_is_read_by_copy() {
        let (mut file, map) = map_of(b"", 4096);
        file.write_all(&[9; 5000]).unwrap();
        assert_eq!(map.len_bytes().unwrap(), 5000);
        assert!(map.bytes(4000, 1000).is_none());
        let mut out = [0; 1000];
        map.read_exact_at(&mut out, 4000).unwrap();
        assert_eq!(out, [9; 1000]);
    }

    #[test]
    fn empty_and_frozen_files_hold_no_descriptor() {
        let (mut file, map) = map_of(b"", 0);
        assert!(map.file.read().is_none() && map.mapped().is_none());
        file.write_all(b"later").unwrap();
        assert_eq!(map.len_bytes().unwrap(), 0);
        assert_eq!(map.bytes(0, 0).unwrap(), Bytes::new());
        assert!(map.bytes(0, 1).is_none() && map.bytes(1, 0).is_none() && map.bytes(u64::MAX, 1).is_none());
        let (_file, map) = map_of(b"x", 0);
        assert!(map.file.read().is_some() && !map.is_settled());
        let mut out = [0];
        map.read_exact_at(&mut out, 0).unwrap();
        assert_eq!(map.bytes(0, 1).unwrap(), &out[..]);
        assert!(map.file.read().is_none() && map.is_settled());
    }
}
