//! Asking the processor for memory before it is needed.
#![expect(unsafe_code, reason = "the prefetch instruction takes a raw pointer; measured in benches/index.rs")]

/// Asks for the cache line at `offset` of `bytes`. Does nothing beyond the end, or where there is no such instruction.
#[inline]
pub(crate) fn prefetch_read(bytes: &[u8], offset: usize) {
    bytes.get(offset).into_iter().for_each(prefetch_ref);
}

/// Asks for the first cache lines of `bytes`; the hardware follows from there.
#[inline]
pub(crate) fn prefetch_start(bytes: &[u8]) {
    const LINE: usize = 64;
    const LINES: usize = 8;
    let (lines, rest) = bytes.as_chunks::<LINE>();
    lines.iter().take(LINES).for_each(prefetch_ref);
    if lines.len() < LINES {
        rest.first().into_iter().for_each(prefetch_ref);
    }
}

/// Asks for the first cache line of `item`.
#[inline]
pub(crate) fn prefetch_ref<T>(item: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing architecturally and cannot fault; the pointer is that of a reference all the same.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(item).cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = item;
}
