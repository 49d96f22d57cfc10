//! From a key to its newest row.

use super::core::{Core, LoadedRun};
use super::rows::Row;
use crate::error::Result;
use crate::index::delta::Entry;
use crate::key::Keys;
use crate::prefetch::prefetch_read;
use crate::segment::columns::KeyColumn;

/// A row that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub row: Row,
    /// Its entry in the delta, if it was found there: (slot, row).
    pub entry: Option<(u32, u32)>,
}

impl Core {
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

    /// The newest rows of the keys at `wanted` positions, in their order: as [`Core::locate`], in stages over the whole
    /// batch so that waits for memory overlap (asking for buckets, then for keys, then comparing).
    pub(crate) fn locate_batch(&self, keys: Keys<'_>, hashes: &[u64], wanted: &[usize]) -> Vec<Result<Option<Row>>> {
        let wanted = || wanted.iter().filter_map(|position| Some((keys.get(*position)?, *hashes.get(*position)?)));
        let view = self.view.load();
        for (_, hash) in wanted() {
            view.runs.iter().for_each(|loaded| loaded.run.prefetch(hash));
        }
        for (_, hash) in wanted() {
            for loaded in &view.runs {
                // Whatever is wrong with the run comes to light when the key is looked up.
                let _ = loaded.run.find(hash, &mut |run_row| prefetch_key(loaded, run_row));
            }
        }
        drop(view);
        wanted()
            .map(|(key, hash)| {
                key.with_bytes(|bytes| self.locate(hash, bytes)).map(|found| found.map(|found| found.row))
            })
            .collect()
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
    runs: &'a [std::sync::Arc<LoadedRun>],
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

/// Asks for the bytes of a key that will be compared.
fn prefetch_key(loaded: &LoadedRun, run_row: u64) {
    if let Some((number, row)) = loaded.run.resolve(run_row)
        && let Some(segment) = loaded.segments.get(number)
        && let Some((batch, within)) = segment.locate(row)
        && let Ok(batch) = segment.batch(batch)
    {
        match &batch.columns.keys {
            KeyColumn::U64(data) => prefetch_read(data, within * 8),
            KeyColumn::Variable { offsets, .. } => prefetch_read(offsets, within * 4),
        }
    }
}
