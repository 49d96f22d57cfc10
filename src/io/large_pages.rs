//! Reads whole files into memory, in pages of 2 MiB if the system supports them.
//!
//! A lookup waits for address translation as long as for memory: in a store that is cached in pages of 4 KiB, each key
//! and each row needs a page of its own. Data written in large pieces are in large pages, except at the seams. Data
//! read row by row, or by read-ahead, are in small ones, and the kernel does not join them. So small pages are dropped
//! and read again as a whole: a mapping advised `MADV_HUGEPAGE` reads 2 MiB a fault into one page, if the file system
//! has large folios (tried on ext4 under Linux 6.18).
//!
//! `PAGEMAP_SCAN` (Linux 6.7) tells which pages are small; before that, those in memory stay as they are. As in
//! [`super::residency`], bytes on the heap count as being in memory, and systems other than Linux do nothing.

use std::io;

use super::LARGE_PAGE_BYTES;
use super::residency::Pages;

const LARGE_BYTES: usize = LARGE_PAGE_BYTES as usize;
/// Bytes that are examined and read at a time.
const WINDOW_BYTES: usize = 16 * LARGE_BYTES;

/// Preloads all of `bytes`, in large pages if possible, and returns how many bytes were read for it. Whole 2 MiB pages
/// of a file that are cached in small pages are read again. O(bytes).
///
/// # Errors
/// The system's error for a page that cannot be read.
pub(crate) fn preload(bytes: &[u8]) -> io::Result<usize> {
    let [front, large, back] = Pages::of(bytes).split_at_multiples(LARGE_BYTES);
    let mut read_bytes = 0;
    if large.len_bytes() > 0 {
        system::advise_large(large);
        for window in large.pieces(WINDOW_BYTES) {
            read_bytes += preload_window(window)?;
        }
    }
    for small in [front, back] {
        read_bytes += small.missing_bytes();
        small.each_missing(&mut Pages::start_reading);
        small.wait()?;
    }
    Ok(read_bytes)
}

fn preload_window(window: Pages) -> io::Result<usize> {
    let mut read_bytes = 0;
    for page in window.pieces(LARGE_BYTES) {
        // A page that is partly in memory would be completed with small pages.
        match page.missing_bytes() {
            0 => continue,
            missing if missing < page.len_bytes() => system::drop_from_memory(page),
            _ => {}
        }
        read_bytes += page.len_bytes();
    }
    window.wait()?;
    // A large page may be mapped as small ones, if its range was touched before it was read.
    let small: Vec<Pages> = window.pieces(LARGE_BYTES).filter(|page| system::is_small(*page)).collect();
    small.iter().try_for_each(|page| {
        system::unmap(*page);
        page.wait()
    })?;
    for page in small.into_iter().filter(|page| system::is_small(*page)) {
        system::drop_from_memory(page);
        // Pages that other processes have mapped, or that are not on disk yet, stay.
        read_bytes += page.missing_bytes();
        system::unmap(page);
        page.wait()?;
    }
    Ok(read_bytes)
}

#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "madvise takes raw addresses, PAGEMAP_SCAN a structure; measured in benches/scaling")]
mod system {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::ptr::{from_mut, without_provenance_mut};
    use std::sync::OnceLock;

    use super::Pages;

    fn advise(pages: Pages, advice: libc::c_int) {
        // SAFETY: callers pass MADV_HUGEPAGE, MADV_PAGEOUT and MADV_DONTNEED. The first two change neither what any
        // address holds nor whether it may be accessed: pages change their size, or are written back and read again
        // when they are touched. The same holds for the last one on mapped files, as this library maps them (shared,
        // for reading); `unmap` calls it for such pages only.
        let _advice_only = unsafe { libc::madvise(without_provenance_mut(pages.start), pages.len_bytes(), advice) };
    }

    pub(super) fn advise_large(pages: Pages) {
        advise(pages, libc::MADV_HUGEPAGE);
    }

    pub(super) fn drop_from_memory(pages: Pages) {
        advise(pages, libc::MADV_PAGEOUT);
    }

    /// Unmaps pages that [`is_small`] found to be of a file: the next touch maps them anew, without the table of small
    /// pages (Linux 6.14).
    pub(super) fn unmap(pages: Pages) {
        advise(pages, libc::MADV_DONTNEED);
    }

    /// `struct pm_scan_arg` of linux/fs.h.
    #[repr(C)]
    #[derive(Default)]
    struct Scan {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        regions: u64,
        regions_len: u64,
        most_pages: u64,
        inverted: u64,
        all_of: u64,
        any_of: u64,
        returned: u64,
    }

    /// `struct page_region`.
    #[repr(C)]
    #[derive(Default)]
    struct Region {
        start: u64,
        end: u64,
        categories: u64,
    }

    /// `_IOWR('f', 16, struct pm_scan_arg)`.
    const PAGEMAP_SCAN: libc::Ioctl = 0xC060_6610_u32 as libc::Ioctl;
    const IS_FILE: u64 = 1 << 2;
    const IS_PRESENT: u64 = 1 << 3;
    const IS_HUGE: u64 = 1 << 6;

    /// Whether some of `pages` are mapped pages of a file that are not large.
    pub(super) fn is_small(pages: Pages) -> bool {
        static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
        let Some(pagemap) = PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()) else { return false };
        let mut region = Region::default();
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: pages.start as u64,
            end: pages.end as u64,
            regions: from_mut(&mut region).expose_provenance() as u64,
            regions_len: 1,
            inverted: IS_HUGE,
            all_of: IS_FILE | IS_PRESENT | IS_HUGE,
            returned: IS_HUGE,
            ..Scan::default()
        };
        // SAFETY: the kernel reads `scan`, whose layout is that of its `struct pm_scan_arg`, writes its `walk_end`, and
        // writes at most `regions_len` = 1 regions to `region`, which lives; it only looks at the pages.
        let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, from_mut(&mut scan)) };
        found > 0
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use super::Pages;

    pub(super) fn advise_large(_pages: Pages) {}

    pub(super) fn drop_from_memory(_pages: Pages) {}

    pub(super) fn unmap(_pages: Pages) {}

    pub(super) fn is_small(_pages: Pages) -> bool {
        false
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", not(miri)))]
mod tests {
    use super::*;
    use crate::io::residency::is_resident;
    use std::fs::File;
    use std::io::Write;

    const LEN_BYTES: usize = 3 * LARGE_BYTES + 12_345;

    /// A file that was written in small pieces, and its map.
    fn map() -> (File, memmap2::Mmap) {
        let mut file = tempfile::tempfile().unwrap();
        for piece in (0..LEN_BYTES as u32).step_by(4 * 1000) {
            let words: Vec<u8> = (piece..piece + 4000).step_by(4).flat_map(u32::to_le_bytes).collect();
            file.write_all(&words).unwrap();
        }
        file.set_len(LEN_BYTES as u64).unwrap();
        file.sync_all().unwrap();
        #[expect(unsafe_code, reason = "a map of the test's own")]
        // SAFETY: nobody else has the file.
        let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
        (file, map)
    }

    fn word(map: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(map[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn all_is_preloaded_and_nothing_changes() {
        let (file, map) = map();
        // In memory, in any pages; not in memory; with a single page in memory.
        preload(&map).unwrap();
        for kept in [None, Some(LARGE_BYTES + 9000)] {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            system::drop_from_memory(Pages::of(&map));
            kept.into_iter().for_each(|kept| assert_eq!(word(&map, kept), kept as u32));
            let was_dropped = !is_resident(&map);
            let read_bytes = preload(&map).unwrap();
            assert!(is_resident(&map));
            assert!(!was_dropped || read_bytes > 0, "nothing was counted as read");
            assert!((0..LEN_BYTES - 4).step_by(4).all(|at| word(&map, at) == at as u32));
        }
        // All is in memory, and in pages as large as possible, or refused: nothing is read again forever.
        let again = preload(&map).unwrap();
        assert!(again <= LEN_BYTES.next_multiple_of(4096), "{again}");
    }

    #[test]
    fn a_part_and_the_heap() {
        let (_file, map) = map();
        preload(&map[LARGE_BYTES - 5..2 * LARGE_BYTES + 5]).unwrap();
        preload(&map[..0]).unwrap();
        let heap = vec![5_u8; 2 * LARGE_BYTES + 100];
        assert_eq!(preload(&heap).unwrap(), 0);
        assert!(heap.iter().all(|byte| *byte == 5));
    }

    #[test]
    fn a_page_that_cannot_be_read_is_an_error_and_no_signal() {
        let (file, map) = map();
        file.set_len(LARGE_BYTES as u64).unwrap();
        assert!(preload(&map).is_err());
    }
}
