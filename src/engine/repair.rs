//! Segments whose damage costs no row: what can be made anew of them is damaged (an index block, the ordered keys, a second
//! copy of a frame or the header). They are written anew when the store is closed, so that the next damage finds every
//! copy whole again, and `verify` is clean.

use std::sync::Arc;

use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::open::salvage;
use crate::engine::read::verify::{VerifyReport, verify_segment};
use crate::engine::runs::build::{drop_from_delta, memory_run, publish_run};
use crate::engine::state::{Core, LoadedRun};
use crate::engine::write::lane::Lane;
use crate::error::Result;
use crate::names;
use crate::segment::reader::Segment;

/// Most keys of a run that is built anew in memory for one of its segments.
const MOST_KEYS: u64 = 1 << 24;

/// Writes segments anew in which damage was found that costs no row. Others stay as they are: reads and `verify` tell of
/// the rows that are lost. Returns whether any was written. O(bytes of segments in which damage was found).
///
/// # Errors
/// IO errors.
pub(crate) fn repair(core: &Core, lane: &mut Lane) -> Result<bool> {
    let damaged: Vec<Arc<Segment>> =
        core.view.load().segments.values().filter(|segment| segment.take_damaged()).cloned().collect();
    if damaged.is_empty() {
        return Ok(false);
    }
    let _opening = wait_for_open_lock(&*core.storage)?;
    let mut repaired = false;
    for segment in damaged {
        let mut found = VerifyReport::default();
        verify_segment(core, &segment, &mut found, &mut |_| {})?;
        segment.take_damaged();
        // Another process may have moved it since.
        let is_there = core.storage.kind(&names::sealed(segment.id))?.is_some();
        let costs_nothing = found.damage.iter().all(|damage| damage.rows == 0);
        let run = core.view.load().runs.iter().find(|run| run.covers(segment.id)).cloned();
        let is_small = run.as_ref().is_none_or(|run| run.run.keys() <= MOST_KEYS);
        if let (Some(first), true) = (found.damage.first(), is_there && costs_nothing && is_small) {
            replace(core, lane, &segment, &first.what, run)?;
            repaired = true;
        }
    }
    Ok(repaired)
}

/// Puts a copy of `segment`, which `run` covers, in its place, on disk and in the view.
fn replace(core: &Core, lane: &mut Lane, segment: &Arc<Segment>, why: &str, run: Option<Arc<LoadedRun>>) -> Result<()> {
    let copy = salvage::set_aside(core, lane, segment.id, &names::sealed(segment.id), why, true)?;
    let others = run.iter().flat_map(|run| &run.segments).filter(|other| other.id != segment.id).cloned();
    let segments: Vec<Arc<Segment>> = others.chain(copy).collect();
    // In this order, so that a reader finds every row in one place or the other.
    if !segments.is_empty() {
        publish_run(core, Arc::new(memory_run(core, segments, false)?), run.as_slice());
    }
    core.change_view(|view| {
        view.segments.remove(&segment.id);
        view.runs.retain(|run| !run.covers(segment.id));
    });
    drop_from_delta(core, &|id| id == segment.id);
    // It names a segment that is gone. Runs of other lanes are found stale.
    match run.and_then(|run| run.name).filter(|name| name.lane == lane.number) {
        Some(name) => core.storage.remove(&names::run(name)),
        None => Ok(()),
    }
}
