//! Takes over the active segments that a lane's former writer left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::segment_seed;
use crate::engine::admit::{admit_batch, admit_segment};
use crate::engine::files::sync_log;
use crate::engine::open::inventory::Inventory;
use crate::engine::open::salvage;
use crate::engine::report::OpenReport;
use crate::engine::state::State;
use crate::engine::write::active::Active;
use crate::engine::write::lane::Lane;
use crate::error::{Error, Result};
use crate::io::ReadFile;
use crate::names::{self, SegmentId};
use crate::segment::begun::begun_bytes;
use crate::segment::scan::{self, Front, Prefix, Rest, read_front};
use crate::segment::writer::SegmentWriter;

/// The state of an active segment of this lane whose writer is gone.
#[derive(Debug)]
pub(crate) enum Judged {
    /// It can be appended to after its committed prefix.
    Resumable(Box<Resumable>),
    /// Nothing was committed to it.
    Empty { torn_bytes: u64, has_front: bool },
    /// Something that was committed is damaged.
    Damaged(Error),
}

impl Judged {
    /// `self`, unless another file has the sealed name of segment `id`: then the result is damage, and the rows need a
    /// new number.
    pub(crate) fn behind(self, state: &State, found: &Inventory, id: SegmentId) -> Self {
        if !found.hidden.contains(&id) || matches!(self, Self::Damaged(_)) {
            return self;
        }
        let path = state.storage().describe(&names::active(id));
        Self::Damaged(Error::corrupt(path, 0, "another file has the sealed name of its number"))
    }

    /// The damage, if there is any.
    pub(crate) fn damage(&self) -> Option<&Error> {
        match self {
            Self::Damaged(error) => Some(error),
            Self::Resumable(_) | Self::Empty { .. } => None,
        }
    }
}

/// An active segment that can be appended to.
#[derive(Debug)]
pub(crate) struct Resumable {
    front: Front,
    prefix: Prefix,
    synced: Option<u64>,
    torn_bytes: u64,
    described: Arc<Path>,
}

/// Examines an active segment of this lane, which is not of another store. Changes nothing.
///
/// # Errors
/// [`Error::NewerFormat`], IO errors.
pub(crate) fn judge(state: &State, id: SegmentId) -> Result<Judged> {
    let path = names::active(id);
    let described: Arc<Path> = state.storage().describe(&path).into();
    let file = state.storage().open(&path, 0)?;
    let seed = segment_seed(state.identity().store().as_bytes(), id);
    let synced = sync_log::synced(state.storage(), seed, id)?;
    let front = match read_front(&described, &*file, id) {
        Ok(front) => front,
        Err(error @ Error::Corrupt { .. }) => return without_front(&*file, seed, synced, error),
        Err(error) => return Err(error),
    };
    let prefix = scan::recover(&described, &*file, &front, synced)?;
    if let Rest::Damaged { why } = &prefix.rest {
        return Ok(Judged::Damaged(Error::corrupt(&*described, prefix.end_offset, why.clone())));
    }
    let torn_bytes = scan::torn_bytes(&*file, &prefix)?;
    if prefix.frames.is_empty() {
        return Ok(Judged::Empty { torn_bytes, has_front: true });
    }
    Ok(Judged::Resumable(Box::new(Resumable { front, prefix, synced, torn_bytes, described })))
}

/// The state of a file whose front cannot be read: its writer was killed while creating it, or it is damaged, or not a
/// file of a store.
fn without_front(file: &dyn ReadFile, seed: u32, synced: Option<u64>, error: Error) -> Result<Judged> {
    if synced.is_some_and(|synced| synced > 0) {
        return Ok(Judged::Damaged(error));
    }
    Ok(match begun_bytes(file, seed)? {
        Some(torn_bytes) => Judged::Empty { torn_bytes, has_front: false },
        None => Judged::Damaged(error),
    })
}

/// Handles an active segment according to its state. Files without rows are added to `empty`; they are removed once the
/// lane has noted that their numbers are void.
///
/// # Errors
/// IO errors.
pub(crate) fn recover_active(
    state: &State,
    lane: &mut Lane,
    id: SegmentId,
    judged: Judged,
    (report, empty): (&mut OpenReport, &mut Vec<PathBuf>),
) -> Result<()> {
    let path = names::active(id);
    match judged {
        Judged::Damaged(error) => match salvage::quarantine(state, lane, id, &path, &error)? {
            // All other sealed segments are indexed by now.
            Some(saved) => admit_segment(state, &saved),
            None => Ok(()),
        },
        Judged::Empty { torn_bytes, has_front } => {
            report.bytes_cut += torn_bytes;
            if torn_bytes > 0 || !has_front {
                let path = state.storage().describe(&path);
                report.notes.push(format!("removed {}, to which nothing was committed", path.display()));
            }
            lane.void(state, id)?;
            empty.push(path);
            Ok(())
        }
        Judged::Resumable(found) => {
            report.bytes_cut += found.torn_bytes;
            let active = resume(state, &found)?;
            let newest = found.prefix.frames.last().map_or(0, |frame| frame.timestamp);
            lane.saw(newest);
            report.rows_recovered += active.rows();
            lane.take_over(active);
            Ok(())
        }
    }
}

fn resume(state: &State, found: &Resumable) -> Result<Active> {
    let Resumable { front, prefix, synced, described, .. } = found;
    let capacity = (state.options().segment_bytes + SegmentWriter::overhead_bytes()).max(prefix.end_offset);
    let writer = SegmentWriter::resume(state.shared_storage(), front, prefix, capacity)?;
    let mut active = Active::new(writer);
    let file = state.storage().open(&names::active(front.header.id()), capacity)?;
    for frame in &prefix.frames {
        let batch = admit_batch(state, front, &*file, described, *frame)?;
        let mut hashes = Vec::with_capacity(frame.rows as usize);
        for row in 0..frame.rows as usize {
            let key = batch.columns.key(row).ok_or_else(|| batch.corrupt(row, "the key is out of bounds"))?;
            hashes.push(state.hasher().hash(key));
        }
        active.take_over(batch, hashes.into_iter());
    }
    Ok(active.synced_before(*synced))
}
