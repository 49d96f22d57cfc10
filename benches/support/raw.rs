//! The control of every read: rows copied out of a memory map of a plain file, by known numbers.
#![expect(unsafe_code, reason = "a memory map, and the prefetch instruction")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Rows are asked for at least so many bytes ahead of the copy, as far as whole rows go.
const AHEAD_BYTES: usize = 2048;
/// Lines of a row that are asked for: the processor's own prefetcher goes on from there.
const LINES: usize = 8;

/// Maps a file that nothing changes.
pub(crate) fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the file is a benchmark's own, in its own folder, and nothing changes it while it is mapped.
    unsafe { Mmap::map(&file) }
}

/// Copies the rows with these numbers, asking for the next ones while one is copied.
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
    // SAFETY: a prefetch reads nothing architecturally and cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast());
    }
    let _ = byte;
}
