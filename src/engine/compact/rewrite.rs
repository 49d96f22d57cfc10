//! One step of compaction: writes the live rows of a few segments to a new segment, which replaces them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::compact::context::Context;
use crate::engine::compact::live::batch;
use crate::engine::compact::plan::Candidate;
use crate::engine::compact::replacement::{Written, replace};
use crate::engine::options::Compaction;
use crate::engine::report::{CompactReport, Skipped};
use crate::engine::rows::row_map::{RowMap, RowMapBuilder};
use crate::engine::state::State;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::segment::batch::Batch;
use crate::segment::columns::{BatchPart, Columns};
use crate::segment::reader::Segment;

/// Rewrites `group`, whose segments have one schema. If a live row of them is damaged, the whole group is skipped.
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
            Err(error) if error.is_corrupt() => {
                let path = error.path().unwrap_or(Path::new("")).to_path_buf();
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
    report.tombstones_dropped += group.iter().map(|candidate| candidate.needless).sum::<u64>();
    Ok(())
}

/// Writes the new segment in the place of the segments of `group`.
fn write_group(context: Context<'_>, group: &[Candidate], options: &Compaction) -> Result<Arc<Segment>> {
    let first = group.first().ok_or_else(|| Error::internal("no segment is to be rewritten"))?;
    let sources: Vec<Arc<Segment>> = group.iter().map(|candidate| Arc::clone(&candidate.segment)).collect();
    let write = |active| write_rows(context, active, group, options);
    let (segment, unlinked) = replace(context, &sources, first.segment.schema(), write, || {})?;
    unlinked.map(|()| segment)
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

/// Copies the live rows in commit order, so that commit timestamps ascend as in every segment.
fn write_rows(context: Context<'_>, mut active: Active, group: &[Candidate], options: &Compaction) -> Result<Written> {
    let state = context.state;
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
        copy_batch(state, &mut active, candidate, number, timestamp, map)?;
        pace.written(active.len_bytes() - before);
    }
    Ok((active, maps.into_iter().map(RowMapBuilder::finish).collect()))
}

/// Copies the live rows of a batch.
///
/// # Errors
/// [`Error::Corrupt`] if a live row does not match its checksum: its copy would get a matching one.
fn copy_batch(
    state: &State,
    active: &mut Active,
    candidate: &Candidate,
    number: usize,
    timestamp: u64,
    map: &mut RowMapBuilder,
) -> Result<()> {
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
    let some: Columns;
    let columns = if rows.len() == batch.columns.rows {
        &batch.columns
    } else {
        let taken = batch.columns.take(&rows);
        some = taken.ok_or_else(|| batch.corrupt(0, "a row is out of bounds"))?;
        &some
    };
    for (to, row) in (active.rows() as u32..).zip(&rows) {
        map.set(first + *row as u32, to);
    }
    active.append(&[BatchPart::from(columns)], timestamp, columns.hashes(state.hasher()).into_iter())?;
    Ok(())
}
