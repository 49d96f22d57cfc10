//! Bringing a store into memory before it is read.

use crate::engine::report::Warmed;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::large_pages::bring_in_large;

/// Reads in runs, then sealed segments from the oldest on, as far as `limit_bytes` go.
pub(crate) fn warm(state: &State, limit_bytes: u64) -> Result<Warmed> {
    state.check_fork()?;
    let version = state.versions().load();
    let mut warmed = Warmed::default();
    for loaded in version.runs() {
        let bytes = loaded.run().bucket_area();
        let kept = warmed.take(bytes, limit_bytes);
        warmed.read_bytes +=
            bring_in_large(kept).map_err(|error| Error::io("read", loaded.run().path(), error))? as u64;
        warmed.index_bytes += kept.len() as u64;
    }
    for segment in version.segments().values() {
        let bytes = segment.rows_area()?;
        let kept = warmed.take(&bytes, limit_bytes);
        let read = bring_in_large(kept).map_err(|error| Error::io("read", &**segment.described(), error))?;
        warmed.read_bytes += read as u64;
        warmed.segment_bytes += kept.len() as u64;
    }
    Ok(warmed)
}

impl Warmed {
    /// The part of `bytes` that the limit has room for; counts the rest as left.
    fn take<'a>(&mut self, bytes: &'a [u8], limit_bytes: u64) -> &'a [u8] {
        let room = limit_bytes.saturating_sub(self.index_bytes + self.segment_bytes);
        let (kept, left) = bytes.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()));
        self.left_bytes += left.len() as u64;
        kept
    }
}
