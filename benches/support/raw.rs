//! The control of every read: copies rows by number from a memory map of a plain file.
#![expect(unsafe_code, reason = "a memory map, and the prefetch instruction")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Rows are prefetched at least this many bytes before they are copied, rounded to whole rows.
const AHEAD_BYTES: usize = 2048;
/// The number of cache lines of a row that are prefetched; the processor's own prefetcher continues.
const LINES: usize = 8;

/// Maps a file that nothing changes.
pub(crate) fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the benchmark owns the file and its folder, and nothing changes it while it is mapped.
    unsafe { Mmap::map(&file) }
}

/// Copies the rows with these numbers, and prefetches the following rows meanwhile.
pub(crate) fn gather(all: &[u8], numbers: &[u64], row_bytes: usize, out: &mut [u8]) {
    let ahead = (AHEAD_BYTES / row_bytes).max(1);
    for (position, (number, place)) in numbers.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
        if let Some(next) = numbers.get(position + ahead) {
            for line in 0..row_bytes.div_ceil(64).min(LINES) {
                prefetch(all, *next as usize * row_bytes + line * 64);
            }
        }
        let start = *number as usize * row_bytes;
        if let Some(row) = all.get(start..start + row_bytes) {
            place.copy_from_slice(row);
        }
    }
}

fn prefetch(all: &[u8], at: usize) {
    let Some(byte) = all.get(at) else { return };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no architectural effect and cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast());
    }
    let _ = byte;
}
