//! One step of compaction: writes the live rows of a few segments to a new segment, which replaces them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::compact::arrange::{Arranged, BATCH_ROWS, Commit, LiveRow, commits};
use crate::engine::compact::context::Context;
use crate::engine::compact::live::batch;
use crate::engine::compact::plan::{Candidate, PARTS_OF_CAP, stays_fragmented};
use crate::engine::compact::recode::{codec_of, is_of_rows, recode};
use crate::engine::compact::replacement::{NewRows, Written, replace};
use crate::engine::options::Compaction;
use crate::engine::report::{CompactReport, Skipped};
use crate::engine::rows::row_map::{RowMap, RowMapBuilder};
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::segment::batch::Batch;
use crate::segment::columns::{BatchPart, Columns};
use crate::segment::reader::Segment;

/// What became of a group.
enum Step {
    /// Its rows are as they should be already.
    Unchanged,
    /// It would be rewritten.
    Planned,
    Written(Arc<Segment>),
}

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
    match rewrite_group(context, &group, options) {
        Ok(Step::Unchanged) => return Ok(()),
        // Assumes rows of equal size.
        Ok(Step::Planned) => {
            report.bytes_freed += (u128::from(before) * u128::from(rows - live) / u128::from(rows.max(1))) as u64;
        }
        Ok(Step::Written(written)) => {
            report.bytes_written += written.len_bytes;
            report.bytes_freed += before.saturating_sub(written.len_bytes);
        }
        Err(error) if is_of_rows(&error) => {
            let first = || group.first().map_or(Path::new(""), |first| first.segment.described());
            let path = error.path().unwrap_or_else(first).to_path_buf();
            report.skipped.push(Skipped { path, why: error.to_string() });
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    report.segments_rewritten += group.len();
    report.segments_written += 1;
    report.rows_dropped += rows - live;
    report.rows_sorted += options.sort.as_ref().map_or(0, |_| live);
    let recoded = group.iter().filter(|candidate| candidate.is_recoded());
    report.rows_recoded += recoded.map(|candidate| candidate.live.count()).sum::<u64>();
    report.tombstones_dropped += group.iter().map(|candidate| candidate.needless).sum::<u64>();
    Ok(())
}

/// Puts the live rows of `group` in order if rows may come in any order and have to; else `None`.
fn arrange(context: Context<'_>, group: &[Candidate], options: &Compaction) -> Result<Option<Arranged>> {
    let is_timed = |candidate: &Candidate| candidate.segment.front.header.row_times;
    let has_to_be = |one: &Candidate| is_timed(one) || one.is_fragmented;
    let is_arranged = options.sort.is_some() || group.iter().any(has_to_be) || stays_fragmented(group);
    is_arranged.then(|| Arranged::in_commit_order(group, context.stop)).transpose()
}

/// Writes the new segment in the place of the segments of `group`.
fn rewrite_group(context: Context<'_>, group: &[Candidate], options: &Compaction) -> Result<Step> {
    let first = group.first().ok_or_else(|| Error::internal("no segment is to be rewritten"))?;
    let mut arranged = arrange(context, group, options)?;
    if let (Some(arranged), Some(order)) = (&mut arranged, &options.sort) {
        let in_order = arranged.sort(context.state, order)?;
        if in_order && matches!(group, [only] if !only.is_due) {
            return Ok(Step::Unchanged);
        }
    }
    if options.dry_run {
        return Ok(Step::Planned);
    }
    let sources: Vec<Arc<Segment>> = group.iter().map(|candidate| Arc::clone(&candidate.segment)).collect();
    let write = |active| {
        let mut rewriting = Rewriting::new(context, active, group, options);
        match &arranged {
            Some(arranged) => rewriting.copy_arranged(arranged)?,
            None => rewriting.copy_batches()?,
        }
        Ok(rewriting.finish())
    };
    let most_bytes = group.iter().map(Candidate::most_bytes).sum();
    let rows = NewRows { schema: &first.target, most_bytes, row_times: arranged.is_some() };
    let (segment, unlinked) = replace(context, &sources, rows, write, || {})?;
    unlinked.map(|()| Step::Written(segment))
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

/// One new segment that is being written.
struct Rewriting<'a> {
    context: Context<'a>,
    group: &'a [Candidate],
    options: &'a Compaction,
    active: Active,
    /// One a segment of the group.
    maps: Vec<RowMapBuilder>,
    pace: Pace,
}

impl<'a> Rewriting<'a> {
    fn new(context: Context<'a>, active: Active, group: &'a [Candidate], options: &'a Compaction) -> Self {
        Self {
            context,
            group,
            options,
            active,
            maps: group.iter().map(|candidate| RowMap::builder(candidate.segment.rows())).collect(),
            pace: Pace { start: Instant::now(), bytes: 0, bytes_per_s: options.bytes_per_s },
        }
    }

    fn finish(self) -> Written {
        (self.active, self.maps.into_iter().map(RowMapBuilder::finish).collect())
    }

    fn first(&self) -> Result<&'a Candidate> {
        self.group.first().ok_or_else(|| Error::internal("no segment is to be rewritten"))
    }

    /// Copies the live rows batch by batch, in commit order.
    fn copy_batches(&mut self) -> Result<()> {
        for Commit { timestamp, segment, candidate, number } in commits(self.group)? {
            (self.context.stop)()?;
            let batch = batch(&candidate.segment, number)?;
            let rows = candidate.live_rows(&batch);
            candidate.check_rows(&batch, &rows)?;
            if rows.is_empty() {
                continue;
            }
            let mut places = rows.iter().map(|row| (segment, batch.frame.first_row as u32 + *row as u32));
            if candidate.is_recoded() {
                let rows = rows.iter().map(|row| Ok((&batch, candidate.segment.id.lane, *row)));
                self.recode(rows, usize::MAX, |this, columns| {
                    this.append(&columns, places.by_ref().take(columns.rows), timestamp)
                })?;
            } else if rows.len() == batch.columns.rows {
                self.append(&batch.columns, places, timestamp)?;
            } else {
                let some = batch.columns.take(&rows).ok_or_else(|| batch.corrupt(0, "a row is out of bounds"))?;
                self.append(&some, places, timestamp)?;
            }
        }
        Ok(())
    }

    /// Copies the rows as they are arranged, each with its commit timestamp.
    fn copy_arranged(&mut self, arranged: &Arranged) -> Result<()> {
        let first = self.first()?;
        arranged.check_rows(self.group, self.context.stop)?;
        if self.group.iter().any(Candidate::is_recoded) {
            let mut rest = arranged.rows();
            let rows = arranged.rows().iter().map(|row| {
                let source = arranged.source(*row)?;
                Ok((&source.batch, source.lane, row.row as usize))
            });
            return self.recode(rows, BATCH_ROWS, |this, columns| {
                let split = rest.split_at_checked(columns.rows);
                let (rows, others) =
                    split.ok_or_else(|| Error::internal("more rows were stored anew than there are"))?;
                rest = others;
                this.append_arranged(arranged, rows, columns)
            });
        }
        for rows in arranged.batches() {
            let sources = rows.iter().map(|row| Ok((arranged.source(*row)?, row.row as usize)));
            let sources = sources.collect::<Result<Vec<_>>>()?;
            let like = sources.first().map(|(source, _)| source.batch.columns.without_times());
            let rows_of = sources.iter().map(|(source, row)| (&source.batch.columns, *row));
            let copy = like.and_then(|like| like.gather(rows_of)).ok_or_else(|| first.segment.lost())?;
            self.append_arranged(arranged, rows, copy)?;
        }
        Ok(())
    }

    /// Appends `columns`, the copies of `rows`, with their commit timestamps.
    fn append_arranged(&mut self, arranged: &Arranged, rows: &[LiveRow], columns: Columns) -> Result<()> {
        (self.context.stop)()?;
        let (mut times, mut places) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in rows {
            let source = arranged.source(*row)?;
            times.push(source.batch.timestamp(row.row as usize));
            places.push((source.segment, source.batch.frame.first_row as u32 + row.row));
        }
        self.append(&columns.with_times(&times), places.into_iter(), 0)
    }

    /// Calls `write` with parts of `rows`, stored as asked.
    fn recode<'r>(
        &mut self,
        rows: impl Iterator<Item = Result<(&'r Arc<Batch>, u16, usize)>>,
        most_rows: usize,
        mut write: impl FnMut(&mut Self, Columns) -> Result<()>,
    ) -> Result<()> {
        let target = &self.first()?.target;
        let target = (target, codec_of(target, self.options));
        recode(self.context.state.options(), rows, target, most_rows, &mut |columns| write(self, columns))
    }

    /// Appends the copies of rows. `places` are their segments in the group and their rows there.
    fn append(&mut self, columns: &Columns, places: impl Iterator<Item = (usize, u32)>, timestamp: u64) -> Result<()> {
        for (to, (segment, row)) in (self.active.rows() as u32..).zip(places) {
            if let Some(map) = self.maps.get_mut(segment) {
                map.set(row, to);
            }
        }
        let state = self.context.state;
        // Segments stay small against a cap: otherwise evicting one would empty the store.
        let grows = self.group.iter().any(Candidate::is_recoded);
        let cap = state.options().caps.disk_bytes.filter(|_| grows);
        let largest = self.group.iter().map(|candidate| candidate.segment.len_bytes).max().unwrap_or(0);
        let limit = cap.map_or(u64::MAX, |cap| (cap / PARTS_OF_CAP).max(largest));
        let before = self.active.len_bytes();
        let found = before + columns.len_bytes() as u64;
        if found > limit {
            return Err(Error::TooLarge {
                what: "a segment of unpacked rows in bytes, under a cap".into(),
                found,
                limit,
            });
        }
        if !self.active.has_room(columns.rows, columns.len_bytes()) {
            return Err(Error::TooLarge { what: "a segment of unpacked rows in bytes".into(), found, limit: before });
        }
        let hashes = columns.hashes(state.hasher()).into_iter();
        self.active.append(&[BatchPart::from(columns)], timestamp, hashes)?;
        self.pace.written(self.active.len_bytes() - before, self.context.stop)
    }
}
