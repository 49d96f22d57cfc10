//! How much of the sealed segments is dead.

use crate::engine::state::State;

/// The total size of the sealed segments, and the number of their dead rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waste {
    pub rows: u64,
    pub bytes: u64,
    /// A lower bound: live keys that are in no sealed segment yet are subtracted too.
    pub dead_rows: u64,
}

impl Waste {
    /// `None` if the number of live keys is unknown. O(segments).
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

    /// The bytes of the dead rows, if all rows have the same size.
    pub(crate) fn dead_bytes(&self) -> u64 {
        (u128::from(self.bytes) * u128::from(self.dead_rows) / u128::from(self.rows.max(1))) as u64
    }
}
