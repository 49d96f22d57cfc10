//! Asking the processor for memory before it is needed.
#![expect(unsafe_code, reason = "the prefetch instruction takes a raw pointer; measured in benches/index.rs")]

/// Asks for the cache line at `offset` of `bytes`. Does nothing beyond the end, or where there is no such instruction.
#[inline]
pub(crate) fn prefetch_read(bytes: &[u8], offset: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if let Some(byte) = bytes.get(offset) {
        // SAFETY: a prefetch reads nothing architecturally and cannot fault; the pointer is in bounds all the same.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast())
        };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (bytes, offset);
}
