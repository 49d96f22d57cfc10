//! One step of compaction: writes the live rows of a few segments to a new segment, which replaces them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::compact::context::Context;
use crate::engine::compact::live::batch;
use crate::engine::compact::plan::Candidate;
use crate::engine::compact::recode::{is_of_rows, recode};
use crate::engine::compact::replacement::{Written, replace};
use crate::engine::options::Compaction;
use crate::engine::report::{CompactReport, Skipped};
use crate::engine::rows::row_map::{RowMap, RowMapBuilder};
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::segment::batch::Batch;
use crate::segment::columns::BatchPart;
use crate::segment::reader::Segment;

/// A segment may grow to this part of a cap on bytes when its rows are unpacked.
const PARTS_OF_CAP: u64 = 4;

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

/// Writes the new segment in the place of the segments of `group`.
fn write_group(context: Context<'_>, group: &[Candidate], options: &Compaction) -> Result<Arc<Segment>> {
    let first = group.first().ok_or_else(|| Error::internal("no segment is to be rewritten"))?;
    let sources: Vec<Arc<Segment>> = group.iter().map(|candidate| Arc::clone(&candidate.segment)).collect();
    let write = |active| write_rows(context, active, group, options);
    let most_bytes = group.iter().map(Candidate::most_bytes).sum();
    let (segment, unlinked) = replace(context, &sources, (&first.target, most_bytes), write, || {})?;
    unlinked.map(|()| segment)
}

/// Limits the write rate to `bytes_per_s` by sleeping.
struct Pace {
    start: Instant,
    bytes: u64,
    bytes_per_s: Option<u64>,
}

impl Pace {
    /// Sleeps after `bytes` were written, until it is to end as `stop` says.
    fn written(&mut self, bytes: u64, stop: &dyn Fn() -> Result<()>) -> Result<()> {
        const NAP: Duration = Duration::from_millis(50);
        self.bytes += bytes;
        let Some(bytes_per_s) = self.bytes_per_s else { return Ok(()) };
        let due = Duration::from_secs_f64(self.bytes as f64 / bytes_per_s.max(1) as f64);
        while let Some(left) = due.checked_sub(self.start.elapsed()).filter(|left| !left.is_zero()) {
            stop()?;
            std::thread::sleep(left.min(NAP));
        }
        Ok(())
    }
}

/// Copies the live rows in commit order, so that commit timestamps ascend as in every segment.
fn write_rows(context: Context<'_>, mut active: Active, group: &[Candidate], options: &Compaction) -> Result<Written> {
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
        pace.written(active.len_bytes() - before, context.stop)?;
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
    // Segments stay small against a cap: otherwise evicting one would empty the store.
    let cap = state.options().caps.disk_bytes.filter(|_| candidate.is_recoded());
    let limit = cap.map_or(u64::MAX, |cap| (cap / PARTS_OF_CAP).max(candidate.segment.len_bytes));
    for columns in &copies {
        let found = active.len_bytes() + columns.len_bytes() as u64;
        if found > limit {
            return Err(Error::TooLarge {
                what: "a segment of unpacked rows in bytes, under a cap".into(),
                found,
                limit,
            });
        }
        if !active.has_room(columns.rows, columns.len_bytes()) {
            let limit = active.len_bytes();
            return Err(Error::TooLarge { what: "a segment of unpacked rows in bytes".into(), found, limit });
        }
        active.append(&[BatchPart::from(columns)], timestamp, columns.hashes(state.hasher()).into_iter())?;
    }
    Ok(())
}
