//! One step of compaction: writes the live rows of a few segments to a new segment, which replaces them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::compact::context::Context;
use crate::engine::compact::live::{batch, is_whole};
use crate::engine::compact::plan::Candidate;
use crate::engine::compact::recode::{is_of_rows, recode};
use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::files::row_maps::{self, MovedSegment, RowMaps};
use crate::engine::options::Compaction;
use crate::engine::replace::replace_segments;
use crate::engine::report::{CompactReport, Skipped};
use crate::engine::rows::row_map::{RowMap, RowMapBuilder};
use crate::engine::state::State;
use crate::engine::state::replaced::Gone;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::names::{self, SegmentId};
use crate::segment::batch::Batch;
use crate::segment::columns::BatchPart;
use crate::segment::reader::Segment;
use crate::segment::writer::SegmentWriter;

/// Rewrites `group`, whose rows will have one schema. If a live row of them is damaged, or cannot be stored as asked,
/// the whole group is skipped.
///
/// # Errors
/// IO errors. The segments are then either all unchanged or all replaced.
pub(crate) fn rewrite(
    context: Context<'_>,
    group: Vec<Candidate>,
    options: &Compaction,
    report: &mut CompactReport,
) -> Result<()> {
    let before: u64 = group.iter().map(|candidate| candidate.segment.len_bytes).sum();
    let rows: u64 = group.iter().map(|candidate| u64::from(candidate.segment.rows())).sum();
    let live: u64 = group.iter().map(|candidate| candidate.live.count()).sum();
    if !options.dry_run {
        let written = match write_group(context, &group, options) {
            Ok(written) => written,
            Err(error) if is_of_rows(&error) => {
                let first = || group.first().map_or(Path::new(""), |first| first.segment.described());
                let path = error.path().unwrap_or_else(first).to_path_buf();
                report.skipped.push(Skipped { path, why: error.to_string() });
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        report.bytes_written += written.len_bytes;
        report.bytes_freed += before.saturating_sub(written.len_bytes);
    } else {
        // Assumes rows of equal size.
        report.bytes_freed += (u128::from(before) * u128::from(rows - live) / u128::from(rows.max(1))) as u64;
    }
    report.segments_rewritten += group.len();
    report.segments_written += 1;
    report.rows_dropped += rows - live;
    let recoded = group.iter().filter(|candidate| candidate.is_recoded());
    report.rows_recoded += recoded.map(|candidate| candidate.live.count()).sum::<u64>();
    report.tombstones_dropped += group.iter().map(|candidate| candidate.needless).sum::<u64>();
    Ok(())
}

/// Writes, validates and publishes the new segment, and unlinks the segments that it replaces.
fn write_group(context: Context<'_>, group: &[Candidate], options: &Compaction) -> Result<Arc<Segment>> {
    let state = context.state;
    // The lane is held: no later number is given out before the file exists, since a gap counts as a missing segment.
    let (id, created) = context.writer.with_lane(|lane| {
        let id = lane.next_id(state)?;
        Ok((id, create(state, id, group)))
    })?;
    state.registry().lock().own(id);
    let written = created.and_then(|active| write_rows(context, active, group, options));
    let published = written.and_then(|(active, maps)| seal(state, active, group, &maps));
    let (segment, replaced) = match published {
        Ok(published) => published,
        Err(error) => {
            remove_begun(context, id, group);
            return Err(error);
        }
    };
    let mut known = state.registry().lock();
    if let Err(error) = replace_segments(state, &segment, &replaced, true) {
        drop(known);
        remove_begun(context, id, group);
        return Err(error);
    }
    known.replace(segment.replaces.iter().copied());
    drop(known);
    unlink(state, group.iter().map(|candidate| candidate.segment.id))?;
    Ok(segment)
}

/// Removes the new segment of a failed step. The old segments still have all rows.
fn remove_begun(context: Context<'_>, id: SegmentId, group: &[Candidate]) {
    let state = context.state;
    if !remove_sealed(state, id, group).is_ok_and(|is_gone| is_gone) {
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
fn remove_sealed(state: &State, id: SegmentId, group: &[Candidate]) -> Result<bool> {
    let is_there = |id: SegmentId| Ok(state.storage().kind(&names::sealed(id))?.is_some());
    if !is_there(id)? {
        return Ok(true);
    }
    let _opening = wait_for_open_lock(state.storage())?;
    for candidate in group {
        if !is_there(candidate.segment.id)? {
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

/// Limits the write rate to `bytes_per_s` by sleeping.
struct Pace {
    start: Instant,
    bytes: u64,
    bytes_per_s: Option<u64>,
}

impl Pace {
    fn written(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(bytes_per_s) = self.bytes_per_s {
            let due = Duration::from_secs_f64(self.bytes as f64 / bytes_per_s.max(1) as f64);
            std::thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
    }
}

/// Creates the temporary file of the new segment.
fn create(state: &State, id: SegmentId, group: &[Candidate]) -> Result<Active> {
    let first = group.first().ok_or_else(|| Error::internal("no segment is to be rewritten"))?;
    let capacity: u64 = group.iter().map(Candidate::most_bytes).sum();
    let writer = SegmentWriter::create(
        state.shared_storage(),
        state.identity().recorded(),
        (id, true),
        &names::temporary_segment(id),
        &first.target,
        capacity.saturating_mul(2) + SegmentWriter::overhead_bytes(),
    )?;
    Ok(Active::new(writer))
}

/// Copies the live rows in commit order, so that commit timestamps ascend as in every segment.
fn write_rows(
    context: Context<'_>,
    mut active: Active,
    group: &[Candidate],
    options: &Compaction,
) -> Result<(Active, Vec<RowMap>)> {
    let mut maps: Vec<RowMapBuilder> =
        group.iter().map(|candidate| RowMap::builder(candidate.segment.rows())).collect();
    let mut commits = Vec::new();
    for (at, candidate) in group.iter().enumerate() {
        let frames = candidate.segment.batches()?.frames().iter().enumerate();
        commits.extend(frames.map(|(number, frame)| (frame.timestamp, candidate.segment.id, number, at)));
    }
    commits.sort_unstable();
    let mut pace = Pace { start: Instant::now(), bytes: 0, bytes_per_s: options.bytes_per_s };
    for (timestamp, _, number, at) in commits {
        (context.stop)()?;
        let (Some(candidate), Some(map)) = (group.get(at), maps.get_mut(at)) else { continue };
        let before = active.len_bytes();
        copy_batch(context, &mut active, (candidate, options), (number, timestamp), map)?;
        pace.written(active.len_bytes() - before);
    }
    Ok((active, maps.into_iter().map(RowMapBuilder::finish).collect()))
}

/// Copies the live rows of a batch.
///
/// # Errors
/// [`Error::Corrupt`] if a live row does not match its checksum: its copy would get a matching one.
fn copy_batch(
    context: Context<'_>,
    active: &mut Active,
    (candidate, options): (&Candidate, &Compaction),
    (number, timestamp): (usize, u64),
    map: &mut RowMapBuilder,
) -> Result<()> {
    let state = context.state;
    let batch: Arc<Batch> = batch(&candidate.segment, number)?;
    let first = batch.frame.first_row as u32;
    let rows: Vec<usize> = (0..batch.columns.rows).filter(|row| candidate.live.contains(first + *row as u32)).collect();
    if let Some(damaged) = batch.damaged_rows().into_iter().find(|row| rows.binary_search(row).is_ok()) {
        candidate.segment.note_damaged();
        return Err(batch.corrupt(damaged, "the checksum of a row does not match"));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let copies = if candidate.is_recoded() {
        let codec = options.codec.unwrap_or_default();
        recode(state.options(), (&batch, candidate.segment.id.lane), &rows, (&candidate.target, codec))?
    } else if rows.len() == batch.columns.rows {
        vec![batch.columns.clone()]
    } else {
        vec![batch.columns.take(&rows).ok_or_else(|| batch.corrupt(0, "a row is out of bounds"))?]
    };
    for (to, row) in (active.rows() as u32..).zip(&rows) {
        map.set(first + *row as u32, to);
    }
    for columns in &copies {
        if !active.has_room(columns.rows, columns.len_bytes()) {
            let (found, limit) = (active.len_bytes() + columns.len_bytes() as u64, active.len_bytes());
            return Err(Error::TooLarge { what: "a segment of unpacked rows in bytes".into(), found, limit });
        }
        active.append(&[BatchPart::from(columns)], timestamp, columns.hashes(state.hasher()).into_iter())?;
    }
    Ok(())
}

/// Seals the new segment with at least [`Durability::SyncData`], and validates it before it is published.
fn seal(state: &State, active: Active, group: &[Candidate], maps: &[RowMap]) -> Result<(Arc<Segment>, Vec<Gone>)> {
    let durability = state.options().durability.max(Durability::SyncData);
    let (id, rows, fingerprint) = (active.id(), active.rows(), active.fingerprint());
    let moved = group.iter().zip(maps).map(|(candidate, map)| MovedSegment {
        id: candidate.segment.id,
        seal_crc: candidate.segment.seal.crc,
        map: map.clone(),
    });
    RowMaps { target: id, rows, fingerprint, moved: moved.collect() }.write(
        state.storage(),
        state.identity().store(),
        durability,
    )?;
    // The files of segments replaced earlier may come back, from a backup for example, so they are listed too.
    let mut replaces: Vec<SegmentId> =
        group.iter().flat_map(|candidate| candidate.segment.replaces.iter().copied()).collect();
    replaces.sort_unstable();
    replaces.dedup();
    replaces.extend(group.iter().map(|candidate| candidate.segment.id));
    active.seal(&state.options().clone().durability(durability), replaces, &|| {})?;
    let segment = Segment::open(state.storage(), &names::sealed(id), id)?;
    if !is_whole(&segment)? {
        return Err(Error::corrupt(&**segment.described(), 0, "what was written is not what is read"));
    }
    let replaced = group.iter().zip(maps).map(|(candidate, map)| Gone {
        id: candidate.segment.id,
        segment: Some(Arc::clone(&candidate.segment)),
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
