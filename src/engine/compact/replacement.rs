//! Replaces segments by a new one: the steps that compaction and eviction share.
//!
//! The new segment is written under a temporary name, synced, renamed, validated in full and published; then the
//! replaced ones are unlinked. Its seal lists them, so the rename replaces them all.

use std::path::Path;
use std::sync::Arc;

use crate::engine::compact::context::Context;
use crate::engine::compact::live::is_whole;
use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::files::row_maps::{self, MovedSegment, RowMaps};
use crate::engine::replace::replace_segments;
use crate::engine::rows::row_map::RowMap;
use crate::engine::state::State;
use crate::engine::state::replaced::Gone;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::names::{self, SegmentId};
use crate::schema::RowSchema;
use crate::segment::reader::Segment;
use crate::segment::writer::{NewSegment, SegmentWriter};

/// The new segment with the rows of `sources` that stay, and for each of them where its rows are now.
pub(crate) type Written = (Active, Vec<RowMap>);

/// The rows of the new segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRows<'a> {
    pub schema: &'a Arc<RowSchema>,
    /// At most about so many bytes they take.
    pub most_bytes: u64,
    /// Whether they have commit timestamps of their own.
    pub row_times: bool,
}

/// Replaces `sources` by a new segment with `rows`. `write` appends those that stay. `before_publishing` is called once,
/// while no thread can insert rows and the sources are still published. Returns the new segment, and whether the files
/// of the sources could be unlinked; the next step tries again.
///
/// # Errors
/// Those of `write`; IO errors. Nothing is replaced then.
pub(crate) fn replace(
    context: Context<'_>,
    sources: &[Arc<Segment>],
    rows: NewRows<'_>,
    write: impl FnOnce(Active) -> Result<Written>,
    before_publishing: impl FnOnce(),
) -> Result<(Arc<Segment>, Result<()>)> {
    let state = context.state;
    // The lane is held: no later number is given out before the file exists, since a gap counts as a missing segment.
    let (id, created) = context.writer.with_lane(|lane| {
        let id = lane.next_id(state)?;
        Ok((id, create(state, id, rows)))
    })?;
    state.registry().lock().own(id);
    let published = created.and_then(write).and_then(|(active, maps)| seal(state, active, sources, &maps));
    let (segment, replaced) = match published {
        Ok(published) => published,
        Err(error) => {
            remove_begun(context, id, sources);
            return Err(error);
        }
    };
    let mut known = state.registry().lock();
    if let Err(error) = replace_segments(state, &segment, &replaced, true, before_publishing) {
        drop(known);
        remove_begun(context, id, sources);
        return Err(error);
    }
    known.replace(segment.replaces.iter().copied());
    drop(known);
    let unlinked = unlink(state, sources.iter().map(|source| source.id));
    Ok((segment, unlinked))
}

/// Removes the new segment of a failed step. The old segments still have all rows.
fn remove_begun(context: Context<'_>, id: SegmentId, sources: &[Arc<Segment>]) {
    let state = context.state;
    if !remove_sealed(state, id, sources).is_ok_and(|is_gone| is_gone) {
        // Other processes use it, and so does the next opening. Its rows need their tombstones.
        state.registry().lock().bad(id);
    } else if remove(state, &names::temporary_segment(id)).is_err() {
        state.registry().lock().leave_begun(id);
    } else {
        let _number = context.writer.with_lane(|lane| lane.void(state, id));
    }
    let _maps = row_maps::remove(state.storage(), id);
}

/// Removes the files that an earlier step could not remove. An unfinished segment has no rows of its own as long as the
/// segments exist that it was meant to replace.
///
/// # Errors
/// IO errors.
pub(crate) fn remove_left(context: Context<'_>) -> Result<()> {
    let state = context.state;
    let left: Vec<SegmentId> = state.registry().lock().begun_and_left().to_vec();
    for id in left {
        remove(state, &names::temporary_segment(id))?;
        context.writer.with_lane(|lane| lane.void(state, id))?;
        state.registry().lock().begun_is_gone(id);
    }
    let any = state.registry().lock().replaced_and_there().next().is_some();
    if any { unlink(state, std::iter::empty()) } else { Ok(()) }
}

/// Removes a segment that was renamed but not published, unless another process has opened the store since and removed
/// segments that it replaces. Returns whether it is gone.
fn remove_sealed(state: &State, id: SegmentId, sources: &[Arc<Segment>]) -> Result<bool> {
    let is_there = |id: SegmentId| Ok(state.storage().kind(&names::sealed(id))?.is_some());
    if !is_there(id)? {
        return Ok(true);
    }
    let _opening = wait_for_open_lock(state.storage())?;
    for source in sources {
        if !is_there(source.id)? {
            return Ok(false);
        }
    }
    remove(state, &names::sealed(id)).map(|()| true)
}

/// Removes a file, if it is there.
fn remove(state: &State, path: &Path) -> Result<()> {
    match state.storage().remove(path) {
        Err(error) if !error.is_not_found() && state.storage().kind(path)?.is_some() => Err(error),
        _ => Ok(()),
    }
}

/// Creates the temporary file of the new segment.
fn create(state: &State, id: SegmentId, rows: NewRows<'_>) -> Result<Active> {
    let writer = SegmentWriter::create(
        state.shared_storage(),
        state.identity().recorded(),
        NewSegment { id, compacted: true, row_times: rows.row_times },
        &names::temporary_segment(id),
        rows.schema,
        rows.most_bytes.saturating_mul(2) + SegmentWriter::overhead_bytes(),
    )?;
    Ok(Active::new(writer))
}

/// Seals the new segment with at least [`Durability::SyncData`], and validates it before it is published.
fn seal(state: &State, active: Active, sources: &[Arc<Segment>], maps: &[RowMap]) -> Result<(Arc<Segment>, Vec<Gone>)> {
    let durability = state.options().durability.max(Durability::SyncData);
    let (id, rows, fingerprint) = (active.id(), active.rows(), active.fingerprint());
    let moved = sources.iter().zip(maps).map(|(source, map)| MovedSegment {
        id: source.id,
        seal_crc: source.seal.crc,
        map: map.clone(),
    });
    RowMaps { target: id, rows, fingerprint, moved: moved.collect() }.write(
        state.storage(),
        state.identity().store(),
        durability,
    )?;
    // The files of segments replaced earlier may come back, from a backup for example, so they are listed too.
    let mut replaces: Vec<SegmentId> = sources.iter().flat_map(|source| source.replaces.iter().copied()).collect();
    replaces.sort_unstable();
    replaces.dedup();
    replaces.extend(sources.iter().map(|source| source.id));
    active.seal(&state.options().clone().durability(durability), replaces, &|| {})?;
    let segment = Segment::open(state.storage(), &names::sealed(id), id)?;
    if !is_whole(&segment)? {
        return Err(Error::corrupt(&**segment.described(), 0, "what was written is not what is read"));
    }
    let replaced = sources.iter().zip(maps).map(|(source, map)| Gone {
        id: source.id,
        segment: Some(Arc::clone(source)),
        map: Arc::new(map.clone()),
    });
    Ok((Arc::new(segment), replaced.collect()))
}

/// Unlinks replaced segments, and those that could not be unlinked before.
fn unlink(state: &State, ids: impl Iterator<Item = SegmentId>) -> Result<()> {
    state.registry().lock().replaced_are_there(ids);
    // No process opens the store meanwhile, so a file that an opening has listed still exists when it is read.
    let _opening = wait_for_open_lock(state.storage())?;
    let left: Vec<SegmentId> = state.registry().lock().replaced_and_there().collect();
    for id in left {
        remove(state, &names::sealed(id))?;
        state.registry().lock().replaced_is_gone(id);
    }
    state.storage().sync_dir(Path::new(names::SEGMENTS))
}
