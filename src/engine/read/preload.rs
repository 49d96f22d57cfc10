//! Preloads a store into memory.

use crate::engine::report::Preloaded;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::large_pages;

/// Reads runs into memory, then sealed segments from the oldest on, up to `limit_bytes`. Calls `progress` with the bytes
/// done so far.
pub(crate) fn preload(state: &State, limit_bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<Preloaded> {
    state.check_fork()?;
    let version = state.versions().load();
    let mut preloaded = Preloaded::default();
    for loaded in version.runs() {
        let bytes = loaded.run().bucket_area();
        let kept = preloaded.take(bytes, limit_bytes);
        preloaded.read_bytes +=
            large_pages::preload(kept).map_err(|error| Error::io("read", loaded.run().path(), error))? as u64;
        preloaded.index_bytes += kept.len() as u64;
        progress(preloaded.index_bytes);
    }
    for segment in version.segments().values() {
        let bytes = segment.rows_area()?;
        let kept = preloaded.take(&bytes, limit_bytes);
        let read = large_pages::preload(kept).map_err(|error| Error::io("read", &**segment.described(), error))?;
        preloaded.read_bytes += read as u64;
        preloaded.segment_bytes += kept.len() as u64;
        progress(preloaded.index_bytes + preloaded.segment_bytes);
    }
    Ok(preloaded)
}

impl Preloaded {
    /// The part of `bytes` that fits the limit; counts the rest as left.
    fn take<'a>(&mut self, bytes: &'a [u8], limit_bytes: u64) -> &'a [u8] {
        let room = limit_bytes.saturating_sub(self.index_bytes + self.segment_bytes);
        let (kept, left) = bytes.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()));
        self.left_bytes += left.len() as u64;
        kept
    }
}
