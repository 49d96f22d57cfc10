//! Damaged segments: what still checks out is copied to a new segment, the file is moved away, nothing is deleted.

use std::path::Path;
use std::sync::Arc;

use super::core::Core;
use super::lane::{Active, Lane, seal_active};
use super::report::{OpenReport, Quarantined};
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::names::{self, SegmentId};
use crate::segment::batch::Batch;
use crate::segment::reader::Segment;
use crate::segment::scan::{read_front, salvage};
use crate::segment::writer::SegmentWriter;

/// Copies the whole rows of the damaged file at `path` to a new segment that replaces it, then moves the file to
/// quarantine. In this order: a crash in between leaves the file where it was, replaced. Returns the new segment, which
/// is published, but not indexed.
pub(crate) fn quarantine(
    core: &Core,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
    error: &Error,
    report: &mut OpenReport,
) -> Result<Option<Arc<Segment>>> {
    let saved = save_rows(core, lane, id, path)?;
    core.known.lock().bad(id);
    move_away(core, path, error, saved.as_ref().map_or(0, |segment| u64::from(segment.rows())), report)?;
    Ok(saved)
}

/// Moves a file to quarantine under a name that is free there.
pub(crate) fn move_away(core: &Core, path: &Path, error: &Error, saved: u64, report: &mut OpenReport) -> Result<()> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let taken = core.storage.list(Path::new(names::QUARANTINE))?;
    let target = (0..)
        .map(|attempt| names::quarantined(&name, attempt))
        .find(|target| !taken.iter().any(|entry| target.file_name().is_some_and(|name| *name == *entry.name)))
        .unwrap_or_else(|| names::quarantined(&name, u32::MAX));
    core.storage.rename(path, &target)?;
    if core.options.durability > Durability::Buffered {
        core.storage.sync_dir(Path::new(names::QUARANTINE))?;
        core.storage.sync_dir(Path::new(names::SEGMENTS))?;
    }
    report.quarantined.push(Quarantined {
        path: core.storage.describe(path),
        moved_to: Some(core.storage.describe(&target)),
        why: error.to_string(),
        rows_saved: saved,
    });
    Ok(())
}

fn save_rows(core: &Core, lane: &mut Lane, id: SegmentId, path: &Path) -> Result<Option<Arc<Segment>>> {
    let described: Arc<Path> = core.storage.describe(path).into();
    let file = core.storage.open(path, 0)?;
    // Without its structure no row of it can be understood.
    let Ok(front) = read_front(&described, &*file, id) else { return Ok(None) };
    if core.check_belongs(&front, &described).is_err() {
        return Ok(None);
    }
    let mut whole = Vec::new();
    for frame in salvage(&*file, front.seed, front.frame.end_offset(), file.len_bytes()?)? {
        let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        let Ok(batch) = Batch::parse(&described, &front.schema, frame, &message, true) else { continue };
        let damaged = batch.damaged_rows();
        let rows: Vec<usize> = (0..batch.columns.rows).filter(|row| damaged.binary_search(row).is_err()).collect();
        if let Some(columns) = batch.columns.take(&rows).filter(|columns| columns.rows > 0) {
            whole.push((frame.stamp, columns));
        }
    }
    if whole.is_empty() {
        return Ok(None);
    }
    let new_id = lane.next_id()?;
    let temporary = names::temporary_segment(new_id);
    let capacity = file.len_bytes()? * 2 + SegmentWriter::overhead_bytes();
    let writer = SegmentWriter::create(&core.storage, core.identity, new_id, &temporary, &front.schema, capacity)?;
    let mut active = Active::new(writer);
    for (stamp, columns) in &whole {
        let batch = active.writer.append(&[columns.into()], *stamp, 0)?;
        let keys = (0..columns.rows).filter_map(|row| columns.key(row));
        active.hashes.extend(keys.map(|key| core.hasher.hash(key)));
        active.batches.push(Arc::new(batch));
        lane.last_stamp = lane.last_stamp.max(*stamp);
    }
    seal_active(core, active, vec![id])?;
    let segment = Arc::new(Segment::open(&*core.storage, &names::sealed(new_id), new_id)?);
    core.change_view(|view| {
        view.segments.insert(new_id, Arc::clone(&segment));
    });
    Ok(Some(segment))
}
