//! Rewrites segments whose damage costs no row: the damaged part can be derived again (an index block, the ordered
//! keys, a second copy of a frame or the header). This happens when the store is closed, so that `verify` is clean and
//! the next damage finds every copy intact.

use std::sync::Arc;

use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::open::salvage;
use crate::engine::read::verify::verify_segment;
use crate::engine::report::VerifyReport;
use crate::engine::runs::build::memory_run;
use crate::engine::runs::publish::publish_run;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::write::lane::Lane;
use crate::error::Result;
use crate::names;
use crate::segment::reader::Segment;

/// Most keys of a run that is rebuilt in memory for one of its segments.
const MOST_KEYS: u64 = 1 << 24;

/// Rewrites segments with damage that costs no row. Segments with lost rows stay as they are: reads and `verify` report
/// those rows. Returns whether any was rewritten. O(bytes of segments in which damage was found).
///
/// # Errors
/// IO errors.
pub(crate) fn repair(state: &State, lane: &mut Lane) -> Result<bool> {
    let damaged: Vec<Arc<Segment>> =
        state.versions().load().segments().values().filter(|segment| segment.take_damaged()).cloned().collect();
    if damaged.is_empty() {
        return Ok(false);
    }
    let _opening = wait_for_open_lock(state.storage())?;
    let mut repaired = false;
    for segment in damaged {
        let mut found = VerifyReport::default();
        verify_segment(state, &segment, &mut found, &mut |_| {})?;
        segment.take_damaged();
        // Another process may have moved it since.
        let is_there = state.storage().kind(&names::sealed(segment.id))?.is_some();
        let costs_nothing = found.damage.iter().all(|damage| damage.rows == 0);
        let run = state.versions().load().runs().iter().find(|run| run.has_rows_of(segment.id)).cloned();
        let is_small = run.as_ref().is_none_or(|run| run.run().keys() <= MOST_KEYS);
        if let (Some(first), true) = (found.damage.first(), is_there && costs_nothing && is_small) {
            replace(state, lane, &segment, &first.what, run)?;
            repaired = true;
        }
    }
    Ok(repaired)
}

/// Replaces `segment`, which `run` covers, by a copy, on disk and in the version.
fn replace(
    state: &State,
    lane: &mut Lane,
    segment: &Arc<Segment>,
    why: &str,
    run: Option<Arc<LoadedRun>>,
) -> Result<()> {
    let copy = salvage::set_aside(state, lane, segment.id, &names::sealed(segment.id), why, true)?;
    let others = run.iter().flat_map(|run| run.segments()).filter(|other| other.id != segment.id).cloned();
    let segments: Vec<Arc<Segment>> = others.chain(copy).collect();
    // In this order, a reader finds every row in one place or the other.
    if !segments.is_empty() {
        publish_run(state, &Arc::new(memory_run(state, segments, false)?), run.as_slice());
    }
    state.versions().remove_segment(segment.id);
    state.memtable().drop_segments(&|id| id == segment.id);
    // The run names a segment that is gone. Runs of other lanes are found stale.
    match run.and_then(|run| run.name()).filter(|name| name.lane == lane.number()) {
        Some(name) => state.storage().remove(&names::run(name)),
        None => Ok(()),
    }
}
