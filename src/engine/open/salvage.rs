//! Damaged segments: what is whole of them is copied to a new segment, the file is moved away, nothing is deleted.

use std::path::Path;
use std::sync::Arc;

use crate::checksum::segment_seed;
use crate::engine::files::quarantine::move_away;
use crate::engine::state::Core;
use crate::engine::write::lane::{Active, Lane, seal_active};
use crate::error::{Error, Result};
use crate::names::{self, SegmentId};
use crate::segment::columns::Columns;
use crate::segment::damaged;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::{Front, frames_in_place, read_front};
use crate::segment::writer::SegmentWriter;

/// Copies the whole rows of the damaged file at `path` to a new segment that replaces it, then moves the file to
/// quarantine. In this order: a crash in between leaves the file where it was, replaced. Returns the new segment, which
/// is published, but not indexed.
///
/// # Errors
/// IO errors.
pub(crate) fn quarantine(
    core: &Core,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
    error: &Error,
) -> Result<Option<Arc<Segment>>> {
    set_aside(core, lane, id, path, &error.to_string(), false)
}

/// The same, with a note that is `acknowledged` already if nothing is lost that anybody has to know of.
///
/// # Errors
/// IO errors.
pub(crate) fn set_aside(
    core: &Core,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
    why: &str,
    acknowledged: bool,
) -> Result<Option<Arc<Segment>>> {
    let (saved, rows_lost) = save_rows(core, lane, id, path)?;
    core.known.lock().bad(id);
    lane.void(core, id)?;
    let rows_saved = saved.as_ref().map_or(0, |segment| u64::from(segment.rows()));
    move_away(core, path, why, (rows_saved, rows_lost), acknowledged)?;
    Ok(saved)
}

/// What a damaged file tells of itself.
struct Remains {
    front: Option<Front>,
    /// Of its batches, in order, from wherever one is whole: behind the batch, or in the frame table.
    frames: Vec<Frame>,
    /// How many rows it had.
    rows: Option<u64>,
    /// The segments that it replaces.
    replaces: Vec<SegmentId>,
}

fn remains(core: &Core, id: SegmentId, path: &Path) -> Result<Remains> {
    let described: Arc<Path> = core.storage.describe(path).into();
    let file = core.storage.open(path, 0)?;
    let seed = segment_seed(core.identity.store.as_bytes(), id);
    let mut frames = frames_in_place(&*file, seed, 0, file.len_bytes()?)?;
    if let Ok(segment) = Segment::open(&*core.storage, path, id) {
        frames.extend_from_slice(segment.batches()?.frames());
        frames.sort_by_key(|frame| frame.offset);
        frames.dedup_by_key(|frame| frame.offset);
        let front = Some(segment.front.clone());
        return Ok(Remains { front, frames, rows: Some(segment.seal.rows), replaces: segment.replaces });
    }
    let rows = frames.iter().map(|frame| frame.first_row.saturating_add(u64::from(frame.rows))).max();
    // Without its structure no row of it can be understood.
    let front = read_front(&described, &*file, id).ok();
    let front = front.filter(|front| core.check_belongs(front, &described).is_ok());
    Ok(Remains { front, frames, rows, replaces: Vec::new() })
}

/// The rows of a file whose checksums match, with the stamps of their batches, in order.
fn whole_rows(core: &Core, front: &Front, frames: &[Frame], path: &Path) -> Result<Vec<(u64, Columns)>> {
    let described: Arc<Path> = core.storage.describe(path).into();
    let file = core.storage.open(path, 0)?;
    let mut whole = Vec::new();
    for frame in frames {
        let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        let parsed = damaged::parse(&described, &front.schema, *frame, &message)?;
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
            whole.push((frame.stamp, columns));
        }
    }
    // As in any segment: bytes that were changed with their checksums may say otherwise.
    whole.sort_by_key(|(stamp, _)| *stamp);
    Ok(whole)
}

/// Returns the segment with what could be saved, if anything could, and how many rows are lost, if anything tells.
fn save_rows(core: &Core, lane: &mut Lane, id: SegmentId, path: &Path) -> Result<(Option<Arc<Segment>>, Option<u64>)> {
    let Remains { front, frames, rows, mut replaces } = remains(core, id, path)?;
    let Some(front) = front else { return Ok((None, rows)) };
    let whole = whole_rows(core, &front, &frames, path)?;
    let saved: u64 = whole.iter().map(|(_, columns)| columns.rows as u64).sum();
    let rows_lost = rows.map(|rows| rows.saturating_sub(saved));
    if whole.is_empty() {
        return Ok((None, rows_lost));
    }
    let new_id = lane.next_id(core)?;
    let temporary = names::temporary_segment(new_id);
    let capacity = core.storage.len_bytes(path)? * 2 + SegmentWriter::overhead_bytes();
    let writer = SegmentWriter::create(&core.storage, core.identity, new_id, &temporary, &front.schema, capacity)?;
    let mut active = Active::new(writer);
    for (stamp, columns) in &whole {
        let batch = active.writer.append(&[columns.into()], *stamp, 0)?;
        let keys = (0..columns.rows).filter_map(|row| columns.key(row));
        active.hashes.extend(keys.map(|key| core.hasher.hash(key)));
        active.batches.push(Arc::new(batch));
        lane.last_stamp = lane.last_stamp.max(*stamp);
    }
    replaces.push(id);
    seal_active(core, active, replaces)?;
    let segment = Arc::new(Segment::open(&*core.storage, &names::sealed(new_id), new_id)?);
    core.change_view(|view| {
        view.segments.insert(new_id, Arc::clone(&segment));
    });
    Ok((Some(segment), rows_lost))
}
