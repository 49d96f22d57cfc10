//! Syncs the rows that supersede others, before those are removed.

use std::path::Path;

use crate::engine::state::State;
use crate::error::Result;
use crate::io::Durability;
use crate::names::{self, SegmentId};

/// Syncs sealed segments, since their writers may have used [`Durability::Buffered`]. Call it after the live rows were
/// found. A handle syncs each segment once. O(segments).
///
/// # Errors
/// IO errors; also if a segment cannot be opened for writing.
pub(crate) fn sync_sealed(state: &State) -> Result<()> {
    let version = state.versions().load_full();
    // Compacted segments were synced before they were renamed.
    let written =
        version.segments().values().filter(|segment| !segment.front.header.compacted).map(|segment| segment.id);
    let known = state.registry().lock();
    let new: Vec<SegmentId> = written.filter(|id| !known.is_durable(*id)).collect();
    drop(known);
    if new.is_empty() {
        return Ok(());
    }
    let storage = state.storage();
    for &id in &new {
        let path = names::sealed(id);
        let synced =
            storage.len_bytes(&path).and_then(|len| storage.open_append(&path, len)?.sync(Durability::SyncData));
        match synced {
            // Another process has just replaced it, with one that is synced.
            Err(error) if error.is_not_found() => {}
            synced => synced?,
        }
    }
    storage.sync_dir(Path::new(names::SEGMENTS))?;
    state.registry().lock().note_durable(new);
    Ok(())
}
