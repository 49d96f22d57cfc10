//! Shared read-only maps of files that may still grow: the only unsafe code of the io layer.
//!
//! A map may reserve more address space than the file has bytes. Pages beyond the end of the file fault when they are
//! touched, so a slice is only ever formed below a length that the file has been seen to have. Reserving costs address
//! space, no memory, and lets an append-only segment be mapped once while it grows (the idea is LMDB's `mapsize`).
//!
//! **What this cannot guard against**: a foreign program that truncates a mapped file. The next touch of a cut page
//! raises SIGBUS. The library itself only unlinks published files, which leaves maps intact, and cuts zeros after the
//! appended bytes, which no reader asks for.
#![expect(unsafe_code, reason = "a slice of mapped memory cannot be formed without it")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::RwLock;

/// Files up to this size are read into memory if many maps are in use.
const SMALL_LEN_BYTES: usize = 64 << 10;
/// The number of maps that Linux allows a process by default (`vm.max_map_count`).
const DEFAULT_MAX_MAPS: usize = 65_530;

/// Maps of this process that this module made.
static MAPS: AtomicUsize = AtomicUsize::new(0);

/// How many maps the system allows this process.
fn max_maps() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let found = std::fs::read_to_string("/proc/sys/vm/max_map_count");
        found.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_MAX_MAPS)
    })
}

/// Whether so few maps are in use that a file is mapped when it is opened, before its bytes are asked for.
fn maps_are_few() -> bool {
    MAPS.load(Ordering::Relaxed) < max_maps() / 8
}

/// Whether the process can spare one more map: the other half is for its own allocations, threads and libraries.
fn maps_are_left() -> bool {
    MAPS.load(Ordering::Relaxed) < max_maps() / 2
}

/// Opens the regular file at `path` for reading. Fails for anything else; never blocks.
///
/// # Errors
/// The system's error; [`io::ErrorKind::InvalidInput`] for what is neither a file nor a folder.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let non_blocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(non_blocking).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

/// A map that is counted.
#[derive(Debug)]
struct Counted(MmapRaw);

impl Counted {
    fn new(file: &File, len_bytes: usize) -> Option<Self> {
        let map = MmapOptions::new().len(len_bytes).map_raw_read_only(file).ok()?;
        MAPS.fetch_add(1, Ordering::Relaxed);
        // By default a fault reads all around it (megabytes, if the disk is set to read that far ahead), for a row that
        // is found by its hash. A sequential reader calls `residency::read_ahead`. Advice only: it may be refused.
        #[cfg(unix)]
        let _advice_only = map.advise(memmap2::Advice::Random);
        Some(Self(map))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        MAPS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the bytes of a file are accessible without a system call.
#[derive(Debug)]
enum Held {
    Map(Counted),
    /// A small file, read whole.
    Heap(Bytes),
    /// Nowhere: the file is empty, the process has too many maps, or the system refused one. Reads go through `pread`.
    Nowhere,
}

/// A file, mapped up to its capacity, that hands out bytes below the length it is known to have.
///
/// A file that is not expected to grow is mapped when its bytes are first asked for, and has no descriptor from then
/// on: thousands of open segments would otherwise exceed the limit on open files. Until then it is read by `pread`,
/// which for a look at its ends takes less time than faults do, and leaves nothing to unmap. The number of maps is
/// limited too: if many files are open, small ones are read into memory when they are first asked for, and beyond half
/// of the system's limit nothing more is mapped. Those files are opened again by their path.
#[derive(Debug)]
pub(crate) struct GrowingMap {
    held: OnceLock<Held>,
    file: RwLock<Option<File>>,
    path: PathBuf,
    reserved_bytes: usize,
    is_frozen: bool,
    /// The file had at least this many bytes at some moment; never shrinks.
    seen_len_bytes: AtomicU64,
}

impl GrowingMap {
    /// Maps `file`, which was opened at `path`, up to the greater of its length and `capacity_bytes`; `capacity_bytes`
    /// 0 freezes its length.
    ///
    /// # Errors
    /// The system's error if the length cannot be read, or it is a folder. A refused map is no error: reads are copies
    /// then.
    pub(crate) fn new(file: File, path: PathBuf, capacity_bytes: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let is_frozen = capacity_bytes == 0;
        let map = Self {
            held: OnceLock::new(),
            reserved_bytes: usize::try_from(metadata.len().max(capacity_bytes)).unwrap_or(0),
            file: RwLock::new(Some(file)),
            path,
            is_frozen,
            seen_len_bytes: AtomicU64::new(metadata.len()),
        };
        if !is_frozen || map.reserved_bytes == 0 {
            map.hold();
        }
        Ok(map)
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file's bytes are held, which the first call decides; `None` if the file cannot be opened again for
    /// that.
    fn hold(&self) -> Option<&Held> {
        if let Some(held) = self.held.get() {
            return Some(held);
        }
        let mut file = self.file.write();
        let held = match (&*file, self.reserved_bytes) {
            (_, 0) => Held::Nowhere,
            (Some(file), _) => self.find_place(file),
            (None, _) => self.find_place(&self.open_again().ok()?),
        };
        let held = self.held.get_or_init(|| held);
        if self.is_frozen && (matches!(held, Held::Map(_) | Held::Heap(_)) || self.reserved_bytes == 0) {
            file.take();
        }
        Some(held)
    }

    fn find_place(&self, file: &File) -> Held {
        if self.is_frozen && self.reserved_bytes <= SMALL_LEN_BYTES && !maps_are_few() {
            let mut bytes = vec![0; self.reserved_bytes];
            return match file.read_exact_at(&mut bytes, 0) {
                Ok(()) => Held::Heap(bytes.into()),
                Err(_) => Held::Nowhere,
            };
        }
        let wanted = maps_are_left().then_some(file);
        wanted.and_then(|file| Counted::new(file, self.reserved_bytes)).map_or(Held::Nowhere, Held::Map)
    }

    /// Opens the file again, whose descriptor was closed. It must have the same length; another file of its name has
    /// other checksums.
    fn open_again(&self) -> io::Result<File> {
        let file = open_regular(&self.path)?;
        if file.metadata()?.len() != self.seen_len_bytes.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another file has taken its place"));
        }
        Ok(file)
    }

    /// Closes the descriptor: the file will not grow any more. Bytes that are held by then stay as they are.
    pub(crate) fn settle(&self) {
        if self.is_frozen {
            if maps_are_few() {
                self.hold();
            }
        } else if self.len_bytes().is_err() {
            return;
        }
        self.file.write().take();
    }

    /// Whether the file's length was fixed when it was opened, and it is mapped: then copying it saves nothing.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_frozen && matches!(self.held.get(), Some(Held::Map(_) | Held::Heap(_)))
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

    /// The bytes at `offset`, zero-copy and without a system call. `None` if they do not lie below both the last seen
    /// length and the end of what is held.
    pub(crate) fn bytes(self: &Arc<Self>, offset: u64, len_bytes: usize) -> Option<Bytes> {
        let end = offset.checked_add(u64::try_from(len_bytes).ok()?)?;
        if end > self.seen_len_bytes.load(Ordering::Acquire) {
            return None;
        }
        if len_bytes == 0 {
            return Some(Bytes::new());
        }
        let (offset, end) = (usize::try_from(offset).ok()?, usize::try_from(end).ok()?);
        match self.hold()? {
            Held::Map(map) if end <= map.0.len() => {
                Some(Bytes::from_owner(MappedRange { map: Arc::clone(self), offset, len_bytes }))
            }
            Held::Heap(bytes) if end <= bytes.len() => Some(bytes.slice(offset..end)),
            _ => None,
        }
    }

    /// Fills `out` from `offset` by `pread`, for bytes that lie in the file but beyond what is held.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        match &*self.file.read() {
            Some(file) => file.read_exact_at(out, offset),
            None if out.is_empty() => Ok(()),
            None => self.open_again()?.read_exact_at(out, offset),
        }
    }
}

/// Keeps the map alive as long as bytes of it. Only [`GrowingMap::bytes`] makes it, after checking the range.
struct MappedRange {
    map: Arc<GrowingMap>,
    offset: usize,
    len_bytes: usize,
}

impl AsRef<[u8]> for MappedRange {
    fn as_ref(&self) -> &[u8] {
        let Some(Held::Map(Counted(map))) = self.map.held.get() else { return &[] };
        // SAFETY: `GrowingMap::bytes` is the only maker of this type and checked that `offset + len_bytes` is neither
        // beyond the end of the map nor beyond a length the file was seen to have. So the range is mapped, and its
        // pages are backed by the file. The pointer is not null and u8 needs no alignment. The map lives as long as
        // `self`, since `self` holds an `Arc` of its owner and nothing unmaps earlier. The bytes do not change: by the
        // contract in io/mod.rs, appended bytes are not written again and are cut only before anything maps them, and
        // no other bytes are asked for (see the module's docs for foreign programs). memmap2 refuses maps longer than
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
        let map = GrowingMap::new(file.try_clone().unwrap(), PathBuf::new(), capacity_bytes).unwrap();
        (file, Arc::new(map))
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
        assert!(map.file.read().is_none() && !map.is_settled());
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

    #[test]
    fn a_settled_file_has_no_descriptor_and_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"abcdef").unwrap();
        for capacity_bytes in [0, 1 << 20] {
            let map = Arc::new(GrowingMap::new(File::open(&path).unwrap(), path.clone(), capacity_bytes).unwrap());
            map.settle();
            assert!(map.file.read().is_none());
            assert_eq!(map.bytes(1, 3).unwrap(), &b"bcd"[..]);
            assert_eq!(map.len_bytes().unwrap(), 6);
        }
        // Without a map, each read opens the file by its path, and its length must be unchanged.
        let map = GrowingMap::new(File::open(&path).unwrap(), path.clone(), 0).unwrap();
        map.held.set(Held::Nowhere).unwrap();
        map.settle();
        let mut out = [0; 2];
        map.read_exact_at(&mut out, 2).unwrap();
        assert_eq!(&out, b"cd");
        std::fs::write(&path, b"abcdefg").unwrap();
        assert_eq!(map.read_exact_at(&mut out, 2).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(open_regular(&path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open_regular(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert!(open_regular(Path::new("/dev/zero")).is_err());
    }
}
