//! Prefetches memory into the processor's caches.
#![expect(unsafe_code, reason = "the prefetch instruction takes a raw pointer; measured in benches/index.rs")]

const LINE: usize = 64;

/// Prefetches the first cache line of the item at `position`. Past the end, this is useless but harmless.
#[inline]
pub(crate) fn prefetch_read<T>(items: &[T], position: usize) {
    prefetch(items.as_ptr().wrapping_add(position).cast());
}

/// How many cache lines to prefetch from the start of `len_bytes` bytes on; the hardware continues from there.
#[inline]
pub(crate) fn lines_at_start(len_bytes: usize) -> usize {
    const LINES: usize = 8;
    len_bytes.div_ceil(LINE).min(LINES)
}

/// Prefetches `lines` cache lines from the start of `bytes` on.
#[inline]
pub(crate) fn prefetch_lines(bytes: &[u8], lines: usize) {
    (0..lines).for_each(|line| prefetch(bytes.as_ptr().wrapping_add(line * LINE)));
}

/// Prefetches the first cache line of `item`.
#[inline]
pub(crate) fn prefetch_ref<T>(item: &T) {
    prefetch(std::ptr::from_ref(item).cast());
}

#[inline]
fn prefetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing architecturally and cannot fault, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}
