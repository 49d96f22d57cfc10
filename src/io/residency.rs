//! Which bytes of a map are in memory, and prefaulting those that are not, many at a time.
//!
//! A page fault reads one place and waits for it, so rows that lie on disk and are faulted one by one take the disk's
//! latency each. `madvise(MADV_WILLNEED)` starts a read and does not wait: given all ranges of a batch first, the disk
//! works on them concurrently. It needs no descriptor (sealed segments keep none) and fills the page cache, so that the
//! next epoch finds the rows there. io_uring was measured against it and was no faster: see `reports/tuning.md`.
//!
//! `MADV_POPULATE_READ` then waits for the pages and maps them. If a page cannot be read, it returns an error, so the
//! touch that would have raised SIGBUS never happens.
//!
//! All functions take slices, which stay mapped as long as they live. Bytes on the heap count as being in memory, and
//! so does everything on systems other than Linux.

use std::io;

/// Bytes that are about to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub bytes: &'a [u8],
    /// The caller's number for the bytes, for errors.
    pub position: usize,
}

/// Whether all pages of `bytes` are in memory, as far as the system tells. One system call for each 2 MiB.
pub(crate) fn is_resident(bytes: &[u8]) -> bool {
    let mut missing = false;
    let pages = Pages::of(bytes);
    pages.each_missing(&mut |_| missing = true);
    !missing
}

/// Prefaults the parts of `wanted` that are not in memory, all at once, and returns their number of pages. Sorts
/// `wanted` by address. O(ranges log ranges), and two system calls a range that is missing.
///
/// # Errors
/// The position of bytes that cannot be read, and why.
pub(crate) fn prefault(wanted: &mut [Wanted<'_>]) -> Result<usize, (usize, io::Error)> {
    wanted.sort_unstable_by_key(|wanted| wanted.bytes.as_ptr());
    let mut missing_pages = 0;
    let mut late: Vec<&[Wanted<'_>]> = Vec::new();
    for near in wanted.chunk_by(|one, next| Pages::of(one.bytes).is_near(Pages::of(next.bytes))) {
        let before = missing_pages;
        Pages::around(near).each_missing(&mut |missing| {
            missing_pages += missing.len_bytes() / PAGE_BYTES;
            missing.start_reading();
        });
        if missing_pages > before {
            late.push(near);
        }
    }
    // Not earlier: waiting for the first range before the last is asked for would serialise the reads.
    for near in late {
        if Pages::around(near).wait().is_err() {
            // One of these failed.
            for wanted in near {
                Pages::of(wanted.bytes).wait().map_err(|error| (wanted.position, error))?;
            }
        }
    }
    Ok(missing_pages)
}

/// Starts to read the parts of `bytes` that are not in memory, and does not wait: for sequential reads. Maps of files
/// are advised against reading ahead by themselves, see [`super::mmap`].
pub(crate) fn read_ahead(bytes: &[u8]) {
    let pages = Pages::of(bytes);
    // The first touch reads a single page.
    if pages.len_bytes() > PAGE_BYTES {
        pages.each_missing(&mut Pages::start_reading);
    }
}

/// The unit of residency. A system with larger pages refuses to tell about parts of one; everything then counts as
/// being in memory.
const PAGE_BYTES: usize = 4096;
/// Ranges this close are checked and read as one: for a disk, 16 KiB more take less time than one more request.
const NEAR_BYTES: usize = 4 * PAGE_BYTES;
/// Pages that one `mincore` tells about.
const PAGES_A_CALL: usize = 512;
/// Bytes that one `MADV_WILLNEED` reads for certain: the kernel cuts longer ones to the device's read-ahead, 128 KiB by
/// default.
const READ_BYTES: usize = 128 << 10;

/// A range of addresses that starts and ends on page boundaries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pages {
    pub start: usize,
    pub end: usize,
}

impl Pages {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let address = bytes.as_ptr().addr();
        let start = address - address % PAGE_BYTES;
        // Empty bytes lie in no page, but keep their address: a range around them and their neighbours must not reach
        // to 0.
        let end = if bytes.is_empty() { start } else { address.saturating_add(bytes.len()) };
        Self { start, end: end.next_multiple_of(PAGE_BYTES) }
    }

    /// From the first of `wanted` to the last.
    fn around(wanted: &[Wanted<'_>]) -> Self {
        wanted.iter().map(|wanted| Self::of(wanted.bytes)).reduce(Self::joined).unwrap_or_default()
    }

    pub(super) fn len_bytes(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    fn is_near(self, next: Self) -> bool {
        next.start <= self.end.saturating_add(NEAR_BYTES)
    }

    fn joined(self, next: Self) -> Self {
        Self { start: self.start.min(next.start), end: self.end.max(next.end) }
    }

    /// The parts before, between and after the first and the last multiple of `len_bytes`.
    pub(super) fn split_at_multiples(self, len_bytes: usize) -> [Self; 3] {
        let first = self.start.next_multiple_of(len_bytes).min(self.end);
        let last = (self.end - self.end % len_bytes).max(first);
        [(self.start, first), (first, last), (last, self.end)].map(|(start, end)| Self { start, end })
    }

    /// Pieces of at most `len_bytes`, in order.
    pub(super) fn pieces(self, len_bytes: usize) -> impl Iterator<Item = Self> {
        (self.start..self.end)
            .step_by(len_bytes)
            .map(move |start| Self { start, end: start.saturating_add(len_bytes).min(self.end) })
    }

    /// Calls `missing` with each run of pages that are not in memory; runs that lie near each other are joined.
    pub(super) fn each_missing(self, missing: &mut impl FnMut(Self)) {
        let mut run: Option<Self> = None;
        for piece in self.pieces(PAGES_A_CALL * PAGE_BYTES) {
            let mut flags = [0_u8; PAGES_A_CALL];
            system::resident(piece, &mut flags);
            for (page, flag) in piece.pieces(PAGE_BYTES).zip(flags) {
                if flag & 1 == 1 {
                    continue;
                }
                run = match run {
                    Some(before) if before.is_near(page) => Some(before.joined(page)),
                    before => {
                        before.into_iter().for_each(&mut *missing);
                        Some(page)
                    }
                };
            }
        }
        run.into_iter().for_each(missing);
    }

    /// Bytes of the pages that are not in memory, and of the pages between them that are joined to them.
    pub(super) fn missing_bytes(self) -> usize {
        let mut missing_bytes = 0;
        self.each_missing(&mut |missing| missing_bytes += missing.len_bytes());
        missing_bytes
    }

    /// Starts to read the pages, and does not wait.
    pub(super) fn start_reading(self) {
        self.pieces(READ_BYTES).for_each(system::start_reading);
    }

    /// Waits until the pages are in memory, and maps them.
    pub(super) fn wait(self) -> io::Result<()> {
        if self.len_bytes() == 0 { Ok(()) } else { system::wait(self) }
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "mincore and madvise take raw addresses; measured in benches/cold.rs")]
mod system {
    use std::io;
    use std::ptr::without_provenance_mut;

    use super::{PAGES_A_CALL, Pages};

    /// Sets the lowest bit of the flag of each page that is in memory: of none if the pages span a hole between two
    /// maps, of all if the system refuses to tell.
    pub(super) fn resident(pages: Pages, flags: &mut [u8; PAGES_A_CALL]) {
        debug_assert!(pages.len_bytes() <= PAGES_A_CALL * super::PAGE_BYTES);
        // SAFETY: mincore reads no memory at the address, mapped or not (it fails with ENOMEM if nothing is mapped),
        // and writes one byte a page of the range to `flags`, which has room for PAGES_A_CALL: `pieces` made the range.
        let refused =
            unsafe { libc::mincore(without_provenance_mut(pages.start), pages.len_bytes(), flags.as_mut_ptr()) } != 0;
        if refused && io::Error::last_os_error().raw_os_error() != Some(libc::ENOMEM) {
            flags.fill(1);
        }
    }

    fn advise(pages: Pages, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: callers pass MADV_WILLNEED and MADV_POPULATE_READ. Neither changes what any address holds nor whether
        // it may be accessed: they only read pages sooner, and fail where nothing is mapped.
        match unsafe { libc::madvise(without_provenance_mut(pages.start), pages.len_bytes(), advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn start_reading(pages: Pages) {
        // A failure costs nothing: the pages are waited for below, or faulted.
        let _advice_only = advise(pages, libc::MADV_WILLNEED);
    }

    pub(super) fn wait(pages: Pages) -> io::Result<()> {
        match advise(pages, libc::MADV_POPULATE_READ) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EHWPOISON)) => {
                Err(io::Error::other("a page cannot be read: the disk failed, or the file was cut short"))
            }
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Err(error),
            // Linux before 5.14 has no such advice (EINVAL): the first touch waits then.
            _ => Ok(()),
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use std::io;

    use super::{PAGES_A_CALL, Pages};

    pub(super) fn resident(_pages: Pages, flags: &mut [u8; PAGES_A_CALL]) {
        flags.fill(1);
    }

    pub(super) fn start_reading(_pages: Pages) {}

    pub(super) fn wait(_pages: Pages) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", not(miri)))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    const PAGES: usize = 600;

    /// A file of [`PAGES`] pages, each full of its number, written to the disk, and its map.
    fn map() -> (File, memmap2::Mmap) {
        let mut file = tempfile::tempfile().unwrap();
        for page in 0..PAGES {
            file.write_all(&[page as u8; PAGE_BYTES]).unwrap();
        }
        file.sync_all().unwrap();
        #[expect(unsafe_code, reason = "a map of the test's own")]
        // SAFETY: nobody else has the file.
        let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
        (file, map)
    }

    /// Drops the file from memory; `false` where the file system keeps it there.
    fn drop_from_memory(file: &File, map: &memmap2::Mmap) -> bool {
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let dropped = !is_resident(map);
        if !dropped {
            eprintln!("NOT TESTED: this file system keeps all files in memory");
        }
        dropped
    }

    fn page(map: &[u8], number: usize) -> Wanted<'_> {
        Wanted { bytes: &map[number * PAGE_BYTES + 100..][..8], position: number }
    }

    #[test]
    fn what_is_missing_is_prefaulted_and_nothing_else() {
        let (file, map) = map();
        assert!(is_resident(&map));
        if !drop_from_memory(&file, &map) {
            return;
        }
        let mut wanted = [page(&map, 599), page(&map, 7), page(&map, 300), page(&map, 7)];
        assert_eq!(prefault(&mut wanted).unwrap(), 3);
        assert!(wanted.iter().all(|wanted| is_resident(wanted.bytes)));
        assert!(![6, 8, 299, 598].into_iter().any(|number| is_resident(page(&map, number).bytes)));
        assert_eq!(prefault(&mut wanted).unwrap(), 0);
        assert_eq!(wanted.map(|wanted| wanted.bytes[0]), [7, 7, 44, 87], "sorted by address");
    }

    #[test]
    fn near_pages_are_read_as_one_and_long_ranges_whole() {
        let (file, map) = map();
        if !drop_from_memory(&file, &map) {
            return;
        }
        assert_eq!(prefault(&mut [page(&map, 10), page(&map, 14)]).unwrap(), 5);
        assert!(is_resident(page(&map, 12).bytes));
        let long = Wanted { bytes: &map[20 * PAGE_BYTES..], position: 0 };
        assert_eq!(prefault(&mut [long]).unwrap(), PAGES - 20);
        assert!(is_resident(long.bytes) && !is_resident(&map));
    }

    #[test]
    fn bytes_on_the_heap_are_in_memory() {
        let heap = vec![1_u8; 3 * PAGE_BYTES];
        assert!(is_resident(&heap) && is_resident(&[]));
        assert_eq!(
            prefault(&mut [Wanted { bytes: &heap, position: 0 }, Wanted { bytes: &[], position: 1 }]).unwrap(),
            0
        );
        assert_eq!(prefault(&mut []).unwrap(), 0);
        let among = [&heap[..9], &heap[9..9], &heap[9..]].map(|bytes| Wanted { bytes, position: 0 });
        assert_eq!(prefault(&mut among.clone()).unwrap(), 0);
    }

    #[test]
    fn a_page_that_cannot_be_read_is_an_error_and_no_signal() {
        let (file, map) = map();
        file.set_len(8 * PAGE_BYTES as u64).unwrap();
        let (position, error) = prefault(&mut [page(&map, 9), page(&map, 3)]).unwrap_err();
        assert_eq!(position, 9);
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
