//! Reuses large buffers: the first touch of fresh memory costs several times the copy into it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Smaller copies use the allocator, which reuses memory of that size by itself.
const LARGE: usize = 256 << 10;
/// A free buffer is not reused for a copy smaller than this fraction of its capacity.
const MOST_SLACK: usize = 4;

/// Free buffers, up to a bound in bytes.
#[derive(Debug)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    most_bytes: usize,
}

/// A buffer that returns to the free list when its last reader drops it.
struct Reused {
    buffer: Vec<u8>,
    owner: Arc<Buffers>,
}

impl Buffers {
    /// Starts empty and keeps at most `most_bytes`.
    pub(crate) fn new(most_bytes: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), most_bytes })
    }

    /// A copy of `bytes`.
    pub(crate) fn copy(self: &Arc<Self>, bytes: &[u8]) -> Bytes {
        if bytes.len() < LARGE {
            return Bytes::copy_from_slice(bytes);
        }
        let mut buffer = self.take(bytes.len());
        buffer.clear();
        buffer.extend_from_slice(bytes);
        Bytes::from_owner(Reused { buffer, owner: Arc::clone(self) })
    }

    fn take(&self, len_bytes: usize) -> Vec<u8> {
        let mut free = self.free.lock();
        let fits = |buffer: &Vec<u8>| (len_bytes..=len_bytes.saturating_mul(MOST_SLACK)).contains(&buffer.capacity());
        match free.iter().position(fits) {
            Some(position) => free.swap_remove(position),
            None => Vec::with_capacity(len_bytes),
        }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock();
        free.push(buffer);
        let mut kept: usize = free.iter().map(Vec::capacity).sum();
        // Drop the oldest first: their size is out of use.
        while kept > self.most_bytes && !free.is_empty() {
            kept -= free.remove(0).capacity();
        }
    }

    /// Frees all buffers.
    pub(crate) fn clear(&self) {
        self.free.lock().clear();
    }
}

impl AsRef<[u8]> for Reused {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Reused {
    fn drop(&mut self) {
        self.owner.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bounded() {
        let buffers = Buffers::new(5 * LARGE);
        let first = buffers.copy(&vec![1; 2 * LARGE]);
        let (address, clone) = (first.as_ptr(), first.clone());
        drop(first);
        assert_ne!(buffers.copy(&vec![2; 2 * LARGE]).as_ptr(), address, "it is still read");
        assert!(clone.iter().all(|byte| *byte == 1));
        drop(clone);
        let again = [buffers.copy(&vec![3; LARGE]), buffers.copy(&vec![4; LARGE])];
        assert!(again.iter().any(|bytes| bytes.as_ptr() == address));
        assert!(again.iter().zip([3, 4]).all(|(bytes, value)| bytes.iter().all(|byte| *byte == value)));
        let many: Vec<Bytes> = (0..10).map(|_| buffers.copy(&vec![5; LARGE])).collect();
        drop((many, again));
        let kept = |buffers: &Buffers| buffers.free.lock().iter().map(Vec::capacity).sum::<usize>();
        assert!(kept(&buffers) > 0 && kept(&buffers) <= 5 * LARGE);
        buffers.clear();
        assert_eq!(kept(&buffers), 0);
    }
}
