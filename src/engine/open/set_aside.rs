//! Moves damaged and replaced files away at opening, and voids their numbers.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::engine::compact::live::is_whole;
use crate::engine::files::listing::Listing;
use crate::engine::files::quarantine::{move_away, told};
use crate::engine::files::row_maps::RowMaps;
use crate::engine::files::sync_log::SyncLogs;
use crate::engine::follow::leave_damaged;
use crate::engine::open::inventory::Inventory;
use crate::engine::open::look::Found;
use crate::engine::open::moved_rows::belong;
use crate::engine::open::salvage;
use crate::engine::state::State;
use crate::engine::write::lane::Lane;
use crate::error::Result;
use crate::names::{self, SegmentId};

/// Voids the numbers of compacted segments that the lane's previous writer did not finish, and returns their files. The
/// segments that they would have replaced still have all rows.
pub(crate) fn unfinished(found: &Found, lane: &mut Lane) -> Result<Vec<PathBuf>> {
    let is_stray = |id: &SegmentId| found.inventory.strays.iter().any(|(stray, _)| stray == id);
    let own = found.listing.temporary.iter().filter(|id| id.lane == lane.number() && !is_stray(id));
    let own: Vec<SegmentId> = own.copied().collect();
    own.iter().try_for_each(|id| lane.void(&found.state, *id))?;
    Ok(own.into_iter().map(names::temporary_segment).collect())
}

/// Voids the numbers of files that earlier openings moved away, in case one of these was interrupted before it did so.
pub(crate) fn note_set_aside(state: &State, lane: &mut Lane, listing: &Listing) -> Result<()> {
    let there: HashSet<SegmentId> = listing.ids().collect();
    let noted = SyncLogs::read(state.storage())?;
    let lanes = there.iter().map(|id| id.lane);
    let noted: HashSet<(SegmentId, bool)> = noted.segments(state.identity().store(), lanes).into_iter().collect();
    let moved = told(state.storage())?.segments.into_iter().filter(|id| !there.contains(id));
    let mut new = moved.filter(|id| !noted.contains(&(*id, true)));
    new.try_for_each(|id| lane.void(state, id))
}

/// Moves damaged files away, after saving their undamaged rows, and replaced files. Unreadable files stay in place.
pub(crate) fn set_aside(state: &State, lane: &mut Lane, found: Inventory) -> Result<()> {
    let (storage, durability) = (state.storage(), state.options().durability);
    for (id, error) in &found.unreadable {
        leave_damaged(state, &mut state.registry().lock(), *id, error)?;
    }
    let compacted = compacted(state, &found)?;
    if !compacted.is_empty() {
        // The name of what replaces them is to be durable before they go.
        storage.sync_dir(Path::new(names::SEGMENTS))?;
    }
    for segment in &found.replaced {
        if compacted.contains(&segment.id) {
            storage.remove(&names::sealed(segment.id))?;
            continue;
        }
        move_away(
            storage,
            durability,
            &names::sealed(segment.id),
            "another segment replaces it",
            (segment.seal.rows, Some(0)),
            false,
        )?;
    }
    for (id, error) in &found.damaged_replaced {
        state.registry().lock().bad(*id);
        move_away(
            storage,
            durability,
            &names::sealed(*id),
            &format!("another segment replaces it: {error}"),
            (0, Some(0)),
            false,
        )?;
    }
    for (id, error) in &found.damaged {
        salvage::quarantine(state, lane, *id, &names::sealed(*id), error)?;
    }
    for segment in &found.segments {
        if let Some(error) = segment.front_damage() {
            salvage::quarantine(state, lane, segment.id, &names::sealed(segment.id), error)?;
        }
    }
    Ok(())
}

/// Segments that compaction replaced but did not remove before it was stopped. All their live rows are in an undamaged
/// compacted segment, whose row maps show that it was written from these files. Other files with their numbers come
/// from a copy of the store. O(bytes of the compacted segments).
fn compacted(state: &State, found: &Inventory) -> Result<HashSet<SegmentId>> {
    let mut compacted = HashSet::new();
    if found.replaced.is_empty() {
        return Ok(compacted);
    }
    let left: HashSet<(SegmentId, u32)> = found.replaced.iter().map(|segment| (segment.id, segment.seal.crc)).collect();
    for maps in RowMaps::read(state.storage(), state.identity().store())? {
        let Some(segment) = found.segments.iter().find(|segment| segment.id == maps.target) else { continue };
        let moved = maps.moved.iter().filter(|moved| left.contains(&(moved.id, moved.seal_crc)));
        let moved: Vec<SegmentId> = moved.map(|moved| moved.id).collect();
        if !moved.is_empty() && belong(&maps, segment) && is_whole(segment)? {
            compacted.extend(moved);
        }
    }
    Ok(compacted)
}
