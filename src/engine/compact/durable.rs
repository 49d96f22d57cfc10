//! Makes durable what replaces other rows, before these go.

use std::path::Path;

use crate::engine::state::State;
use crate::error::Result;
use crate::io::Durability;
use crate::names::{self, SegmentId};

/// Syncs the sealed segments that may not be: their writers may have asked for no more than to hand them to the system.
/// To be called once it is known which rows count. Each is synced once by a handle. O(segments).
///
/// # Errors
/// IO errors; also where a segment may not be opened for this.
pub(crate) fn sync_sealed(state: &State) -> Result<()> {
    let version = state.versions().load_full();
    // What compaction wrote was synced before it got its name.
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
