//! Damaged segments: copies their intact rows to a new segment and moves the file away. Nothing is deleted.

use std::path::Path;
use std::sync::Arc;

use crate::checksum::segment_seed;
use crate::engine::files::quarantine::move_away;
use crate::engine::state::State;
use crate::engine::write::active::Active;
use crate::engine::write::lane::Lane;
use crate::engine::write::seal::seal_and_publish;
use crate::error::{Error, Result};
use crate::names::{self, SegmentId};
use crate::segment::columns::Columns;
use crate::segment::damaged;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::{Front, frames_in_place, read_front};
use crate::segment::writer::{NewSegment, SegmentWriter};

/// Copies the intact rows of the damaged file at `path` to a new segment that replaces it, then moves the file to
/// quarantine. In this order, a crash in between leaves the file where it was, replaced. Returns the new segment, which
/// is published but not indexed.
///
/// # Errors
/// IO errors.
pub(crate) fn quarantine(
    state: &State,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
    error: &Error,
) -> Result<Option<Arc<Segment>>> {
    set_aside(state, lane, id, path, &error.to_string(), false)
}

/// As [`quarantine`], with a note that is `acknowledged` from the start if no loss has to be reported.
///
/// # Errors
/// IO errors.
pub(crate) fn set_aside(
    state: &State,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
    why: &str,
    acknowledged: bool,
) -> Result<Option<Arc<Segment>>> {
    let (saved, rows_lost) = save_rows(state, lane, id, path)?;
    state.registry().lock().bad(id);
    lane.void(state, id)?;
    let rows_saved = saved.as_ref().map_or(0, |segment| u64::from(segment.rows()));
    move_away(state.storage(), state.options().durability, path, why, (rows_saved, rows_lost), acknowledged)?;
    Ok(saved)
}

/// The readable parts of a damaged file.
struct Remains {
    front: Option<Front>,
    /// The frames of its batches, in order, each from an intact copy: after the batch or in the frame table.
    frames: Vec<Frame>,
    /// How many rows it had.
    rows: Option<u64>,
    /// The segments that it replaces.
    replaces: Vec<SegmentId>,
}

fn remains(state: &State, id: SegmentId, path: &Path) -> Result<Remains> {
    let described: Arc<Path> = state.storage().describe(path).into();
    let file = state.storage().open(path, 0)?;
    let seed = segment_seed(state.identity().store().as_bytes(), id);
    let mut frames = frames_in_place(&*file, seed, 0, file.len_bytes()?)?;
    if let Ok(segment) = Segment::open(state.storage(), path, id) {
        frames.extend_from_slice(segment.batches()?.frames());
        frames.sort_by_key(|frame| frame.offset);
        frames.dedup_by_key(|frame| frame.offset);
        let front = Some(segment.front.clone());
        return Ok(Remains { front, frames, rows: Some(segment.seal.rows), replaces: segment.replaces });
    }
    let rows = frames.iter().map(|frame| frame.first_row.saturating_add(u64::from(frame.rows))).max();
    // Without the schema, no row can be decoded.
    let front = read_front(&described, &*file, id).ok();
    let front = front.filter(|front| state.identity().check_belongs(front, &described).is_ok());
    Ok(Remains { front, frames, rows, replaces: Vec::new() })
}

/// The rows whose checksums match, with the commit timestamps of their batches, in order.
fn whole_rows(state: &State, front: &Front, frames: &[Frame], path: &Path) -> Result<Vec<(u64, Columns)>> {
    let described: Arc<Path> = state.storage().describe(path).into();
    let file = state.storage().open(path, 0)?;
    let mut whole = Vec::new();
    for frame in frames {
        let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        let parsed = damaged::parse(&described, front.rows(), *frame, &message)?;
        let (batch, rows) = match &parsed {
            Ok(batch) => {
                let damaged = batch.damaged_rows();
                (batch, (0..batch.columns.rows).filter(|row| damaged.binary_search(row).is_err()).collect())
            }
            Err(damaged) => match damaged.readable() {
                Some(readable) => readable,
                None => continue,
            },
        };
        if let Some(columns) = batch.columns.take(&rows).filter(|columns| columns.rows > 0) {
            whole.push((frame.timestamp, columns));
        }
    }
    // Timestamps ascend in every segment, but forged frames may violate that.
    whole.sort_by_key(|(timestamp, _)| *timestamp);
    Ok(whole)
}

/// Returns the segment with the saved rows, if there are any, and the number of lost rows, if known.
fn save_rows(
    state: &State,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
) -> Result<(Option<Arc<Segment>>, Option<u64>)> {
    let Remains { front, frames, rows, mut replaces } = remains(state, id, path)?;
    let Some(front) = front else { return Ok((None, rows)) };
    let whole = whole_rows(state, &front, &frames, path)?;
    let saved: u64 = whole.iter().map(|(_, columns)| columns.rows as u64).sum();
    let rows_lost = rows.map(|rows| rows.saturating_sub(saved));
    if whole.is_empty() {
        return Ok((None, rows_lost));
    }
    let new_id = lane.next_id(state)?;
    let temporary = names::temporary_segment(new_id);
    let capacity = state.storage().len_bytes(path)? * 2 + SegmentWriter::overhead_bytes();
    let writer = SegmentWriter::create(
        state.shared_storage(),
        state.identity().recorded(),
        NewSegment { row_times: front.header.row_times, ..new_id.into() },
        &temporary,
        &front.schema,
        capacity,
    )?;
    let mut active = Active::new(writer);
    for (timestamp, columns) in &whole {
        let keys = (0..columns.rows).filter_map(|row| columns.key(row));
        active.append(&[columns.into()], *timestamp, keys.map(|key| state.hasher().hash(key)))?;
        lane.saw(*timestamp);
    }
    replaces.push(id);
    Ok((Some(seal_and_publish(state, active, replaces)?), rows_lost))
}
