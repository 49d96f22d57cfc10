//! From a key to its newest row.

use std::sync::Arc;

use super::core::{Core, LoadedRun};
use super::rows::{Age, Holder, Row};
use crate::error::{Error, Result};
use crate::index::delta::Entry;
use crate::key::KeyRef;
use crate::prefetch::prefetch_read;
use crate::segment::batch::Batch;
use crate::segment::columns::{Columns, KeyColumn, LeafColumn};

/// A row that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub row: Row,
    /// Its entry in the delta, if it was found there: (slot, row).
    pub entry: Option<(u32, u32)>,
}

impl Core {
    /// Asks for what looking up each hash touches first.
    pub(crate) fn prefetch(&self, hashes: &[u64]) {
        let view = self.view.load();
        view.runs.iter().for_each(|loaded| hashes.iter().for_each(|hash| loaded.run.prefetch(*hash)));
    }

    /// Whether anything in the index has this hash (or, in a run, its tag).
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        let mut any = false;
        self.delta.find(hash, &mut |_| any = true);
        // A damaged run may hold anything.
        any || self.view.load().runs.iter().any(|run| run.run.find(hash, &mut |_| any = true).is_err() || any)
    }

    /// The newest row of `key`, tombstones included. The hash proposes; the key's bytes decide. Expected O(1).
    ///
    /// The delta is read before the view: rows move from the first to the second, in that order.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] if a batch that may hold the key does not check out.
    pub(crate) fn locate(&self, hash: u64, key: &[u8]) -> Result<Option<Found>> {
        loop {
            let newest = self.locate_in_delta(hash, key)?;
            let view = self.view.load();
            match locate_in_runs(&view.runs, hash, key, newest)? {
                Ok(found) => return Ok(found),
                // A damaged run is replaced, and never served from: its rows are in the segments.
                Err(damaged) => {
                    let damaged = damaged.run.path().to_path_buf();
                    drop(view);
                    self.replace_damaged_run(&damaged)?;
                }
            }
        }
    }

    /// The newest rows of `asked`, in their order: as [`Core::locate`], in stages over the whole batch so that waits for
    /// memory overlap (asking for buckets, then for keys, then comparing).
    pub(crate) fn locate_batch(&self, asked: &[Asked<'_>]) -> Located {
        let mut located = Located { rows: Vec::new(), errors: Vec::new() };
        located.rows.resize_with(asked.len(), || None);
        if self.locate_staged(asked, &mut located.rows).is_err() {
            // One by one, so that damage is an answer of its own key only.
            for ((position, asked), row) in asked.iter().enumerate().zip(&mut located.rows) {
                match asked.key.with_bytes(|bytes| self.locate(asked.hash, bytes)) {
                    Ok(found) => *row = found.map(|found| found.row),
                    Err(error) => {
                        *row = None;
                        located.errors.push((position, error));
                    }
                }
            }
        }
        located
    }

    fn locate_staged(&self, asked: &[Asked<'_>], newest: &mut [Option<Row>]) -> Result<()> {
        if !self.delta.is_empty() {
            for (asked, newest) in asked.iter().zip(newest.iter_mut()) {
                let found = asked.key.with_bytes(|bytes| self.locate_in_delta(asked.hash, bytes))?;
                *newest = found.map(|found| found.row);
            }
        }
        let view = self.view.load();
        for loaded in &view.runs {
            asked.iter().for_each(|asked| loaded.run.prefetch(asked.hash));
        }
        let mut candidates: Vec<Candidate<'_>> = Vec::with_capacity(asked.len());
        for loaded in &view.runs {
            candidates.clear();
            let newer = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.age.stamp > loaded.run.max_stamp());
            for (position, (asked, _)) in asked.iter().zip(newest.iter()).enumerate().filter(|(_, (_, n))| !newer(n)) {
                let mut failed = None;
                loaded.run.find(asked.hash, &mut |run_row| match candidate(loaded, run_row, position) {
                    Ok(found) => candidates.extend(found),
                    Err(error) => failed = Some(error),
                })?;
                if let Some(error) = failed {
                    return Err(error);
                }
            }
            for candidate in &candidates {
                let (Some(asked), Some(newest)) = (asked.get(candidate.position), newest.get_mut(candidate.position))
                else {
                    continue;
                };
                let same = asked.key.with_bytes(|bytes| candidate.batch.columns.key(candidate.within) == Some(bytes));
                if same && newest.as_ref().is_none_or(|row| candidate.age() > row.age) {
                    *newest = Some(candidate.row());
                }
            }
        }
        Ok(())
    }

    fn locate_in_delta(&self, hash: u64, key: &[u8]) -> Result<Option<Found>> {
        if self.delta.is_empty() {
            return Ok(None);
        }
        let mut first: Option<Entry> = None;
        let mut more: Vec<Entry> = Vec::new();
        self.delta.find(hash, &mut |entry| match first {
            None => first = Some(entry),
            Some(_) => more.push(entry),
        });
        let mut newest: Option<Found> = None;
        for entry in first.into_iter().chain(more) {
            // The lock is held to copy a reference, not while rows are read.
            let source = self.slots.read().get(entry.slot).map(|slot| slot.source.clone());
            // A slot that is gone was merged into a run, which the view read next has.
            let Some(row) = source.map(|source| source.row(entry.slot, entry.row)).transpose()?.flatten() else {
                continue;
            };
            if row.key() == Some(key) && newest.as_ref().is_none_or(|found| row.age > found.row.age) {
                newest = Some(Found { row, entry: Some((entry.slot, entry.row)) });
            }
        }
        Ok(newest)
    }
}

/// The newest of `newest` and the rows of `key` in `runs`, which are sorted by their newest stamp. The inner error is
/// a run that is damaged.
fn locate_in_runs<'a>(
    runs: &'a [Arc<LoadedRun>],
    hash: u64,
    key: &[u8],
    mut newest: Option<Found>,
) -> Result<Result<Option<Found>, &'a LoadedRun>> {
    for loaded in runs {
        if newest.as_ref().is_some_and(|found| found.row.age.stamp > loaded.run.max_stamp()) {
            break;
        }
        let mut failed = None;
        let probed = loaded.run.find(hash, &mut |run_row| {
            if failed.is_some() {
                return;
            }
            match run_row_of(loaded, run_row) {
                Ok(Some(row)) if row.key() == Some(key) => {
                    if newest.as_ref().is_none_or(|found| row.age > found.row.age) {
                        newest = Some(Found { row, entry: None });
                    }
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        });
        if probed.is_err() {
            return Ok(Err(loaded));
        }
        // A batch that cannot be read may hold the key: neither a miss nor an older row is true then.
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(Ok(newest))
}

fn run_row_of(loaded: &LoadedRun, run_row: u64) -> Result<Option<Row>> {
    match loaded.run.resolve(run_row) {
        Some((number, row)) => match loaded.segments.get(number) {
            Some(segment) => Row::of_segment(segment, row),
            None => Ok(None),
        },
        None => Ok(None),
    }
}

/// Asks for the first cache lines of a row; the hardware follows from there.
#[inline]
pub(crate) fn prefetch_row(columns: &Columns, row: usize) {
    const LINE: usize = 64;
    const LINES: usize = 8;
    if let Some(LeafColumn::Fixed { width, data }) = columns.leaves.first() {
        let start = row.saturating_mul(*width);
        for line in 0..width.div_ceil(LINE).min(LINES) {
            prefetch_read(data, start + line * LINE);
        }
    }
}

/// A key of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub key: KeyRef<'a>,
    pub hash: u64,
}

/// The rows of a batch of keys, tombstones included, and the positions at which damage hides the answer.
pub(crate) struct Located {
    pub rows: Vec<Option<Row>>,
    pub errors: Vec<(usize, Error)>,
}

/// A row whose tag matched.
struct Candidate<'a> {
    /// Of the key in the batch.
    position: usize,
    batch: &'a Arc<Batch>,
    within: usize,
    segment_row: u32,
    lane: u16,
}

impl Candidate<'_> {
    fn age(&self) -> Age {
        Age { stamp: self.batch.frame.stamp, lane: self.lane, order: u64::from(self.segment_row) }
    }

    fn row(&self) -> Row {
        Row { holder: Holder::Batch(Arc::clone(self.batch)), row: self.within, age: self.age() }
    }
}

/// The row behind a run row, after asking for the bytes of its key.
#[inline]
fn candidate(loaded: &LoadedRun, run_row: u64, position: usize) -> Result<Option<Candidate<'_>>> {
    let Some((number, segment_row)) = loaded.run.resolve(run_row) else { return Ok(None) };
    let Some(segment) = loaded.segments.get(number) else { return Ok(None) };
    let Some((batch, within)) = segment.locate(segment_row) else { return Ok(None) };
    let batch = segment.batch(batch)?;
    match &batch.columns.keys {
        KeyColumn::U64(data) => prefetch_read(data, within * 8),
        KeyColumn::Variable { offsets, .. } => prefetch_read(offsets, within * 4),
    }
    Ok(Some(Candidate { position, batch, within, segment_row, lane: segment.id.lane }))
}
