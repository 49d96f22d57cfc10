//! Going on with the active segments that a lane's former writer left.

use std::path::Path;
use std::sync::Arc;

use super::core::Core;
use super::lane::{Active, Lane};
use super::marks;
use super::options::Recovery;
use super::report::OpenReport;
use super::salvage;
use crate::checksum::segment_seed;
use crate::error::{Error, Result};
use crate::names::{self, SegmentId};
use crate::segment::scan::{self, Prefix, Rest, read_front};
use crate::segment::writer::SegmentWriter;

/// Goes on with an active segment of this lane, whose writer is gone.
pub(crate) fn recover_active(core: &Core, lane: &mut Lane, id: SegmentId, report: &mut OpenReport) -> Result<()> {
    let path = names::active(id);
    let described: Arc<Path> = core.storage.describe(&path).into();
    let file = core.storage.open(&path, 0)?;
    let len_bytes = file.len_bytes()?;
    let seed = segment_seed(core.identity.store.as_bytes(), id);
    let synced = marks::synced(&*core.storage, seed, id)?;
    let front = match read_front(&described, &*file, id).and_then(|front| {
        core.check_belongs(&front, &described)?;
        Ok(front)
    }) {
        Ok(front) => front,
        Err(error @ Error::Corrupt { .. }) => {
            if synced.is_none_or(|synced| synced == 0) && scan::salvage(&*file, seed, 0, len_bytes)?.is_empty() {
                // Killed while it made the file: nothing was ever committed to it.
                report.bytes_cut += len_bytes;
                report.notes.push(format!("removed {}, to which nothing was committed", described.display()));
                return core.storage.remove(&path);
            }
            return damaged(core, lane, id, &path, error, report);
        }
        Err(error) => return Err(error),
    };
    let prefix = scan::recover(&described, &*file, &front, synced)?;
    if let Rest::Damaged { why } = &prefix.rest {
        drop(file);
        return damaged(core, lane, id, &path, Error::corrupt(&*described, prefix.end_offset, why.clone()), report);
    }
    report.bytes_cut += scan::torn_bytes(&*file, &prefix)?;
    drop(file);
    if prefix.frames.is_empty() {
        return core.storage.remove(&path);
    }
    core.known.lock().own(id);
    let active = resume(core, &front, &prefix, &described)?.marked(synced);
    lane.last_stamp = lane.last_stamp.max(prefix.frames.last().map_or(0, |frame| frame.stamp));
    report.rows_recovered += active.writer.rows();
    lane.actives.push(active);
    Ok(())
}

fn damaged(
    core: &Core,
    lane: &mut Lane,
    id: SegmentId,
    path: &Path,
    error: Error,
    report: &mut OpenReport,
) -> Result<()> {
    match core.options.recovery {
        Recovery::Strict => Err(error),
        Recovery::Quiet => match salvage::quarantine(core, lane, id, path, &error, report)? {
            // Everything else that is sealed is indexed by now.
            Some(saved) => core.admit_segment(&saved),
            None => Ok(()),
        },
    }
}

fn resume(core: &Core, front: &scan::Front, prefix: &Prefix, described: &Arc<Path>) -> Result<Active> {
    let capacity = (core.options.segment_bytes + SegmentWriter::overhead_bytes()).max(prefix.end_offset);
    let writer = SegmentWriter::resume(&core.storage, front, prefix, capacity)?;
    let mut active = Active::new(writer);
    let file = core.storage.open(&names::active(front.header.id()), capacity)?;
    for frame in &prefix.frames {
        let batch = core.admit_batch(front, &*file, described, *frame)?;
        for row in 0..frame.rows {
            let key = batch
                .columns
                .key(row as usize)
                .ok_or_else(|| batch.corrupt(row as usize, "the key is out of bounds"))?;
            active.hashes.push(core.hasher.hash(key));
        }
        active.batches.push(batch);
    }
    Ok(active)
}
