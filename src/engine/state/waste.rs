//! How much of the sealed segments counts no more.

use crate::engine::state::State;

/// Sizes of the sealed segments, and how many of their rows count no more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waste {
    pub rows: u64,
    pub bytes: u64,
    /// At the least: keys that are in no sealed segment yet count as if they were.
    pub dead_rows: u64,
}

impl Waste {
    /// `None` if the number of live keys is not known. O(segments).
    pub(crate) fn of(state: &State) -> Option<Self> {
        let live = state.live().get()?;
        let version = state.versions().load();
        let (mut rows, mut bytes) = (0_u64, 0_u64);
        for segment in version.segments().values() {
            rows += segment.seal.rows;
            bytes += segment.len_bytes;
        }
        Some(Self { rows, bytes, dead_rows: rows.saturating_sub(live) })
    }

    /// Bytes that these rows take, if rows are of one size.
    pub(crate) fn dead_bytes(&self) -> u64 {
        (u128::from(self.bytes) * u128::from(self.dead_rows) / u128::from(self.rows.max(1))) as u64
    }
}
