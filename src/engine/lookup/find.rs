//! From a key to its newest row.

use std::sync::Arc;

use crate::engine::lookup::query::{Found, Located, Query};
use crate::engine::lookup::stages::{GROUP, Stages};
use crate::engine::lookup::unread::{Newest, Unread};
use crate::engine::rows::row::{Holder, Row, Source};
use crate::engine::runs::publish::replace_damaged_run;
use crate::engine::state::State;
use crate::engine::state::versions::{LoadedRun, Version};
use crate::error::Result;
use crate::index::entries::Entry;

/// What the memtable has of a batch of keys.
pub(crate) struct InMemtable {
    rows: Vec<Option<Row<'static>>>,
    /// Positions of keys of which a row cannot be read, and the timestamp that it is not above.
    undecided: Vec<(usize, u64)>,
}

/// Whether anything in the index has this hash (or, in a run, its tag).
pub(crate) fn may_hold(state: &State, hash: u64) -> bool {
    let mut any = false;
    state.memtable().find(hash, &mut |_| any = true);
    // A damaged run may hold anything.
    any || state.versions().load().runs().iter().any(|run| run.run().find(hash, &mut |_| any = true).is_err() || any)
}

/// The newest row of `key`, tombstones included. The hash proposes; the key's bytes decide. Expected O(1).
///
/// The memtable is read before the version: rows move from the first to the second, in that order.
///
/// # Errors
/// [`crate::Error::Corrupt`] if a row that may be the key's cannot be read, and none that is newer was found.
pub(crate) fn locate(state: &State, hash: u64, key: &[u8]) -> Result<Option<Found<'static>>> {
    locate_after(state, hash, key, || locate_in_memtable(state, hash, key))
}

/// The newest row of `key` that a run has: as [`locate`], without a look at the memtable.
pub(crate) fn locate_merged(state: &State, hash: u64, key: &[u8]) -> Result<Option<Row<'static>>> {
    locate_after(state, hash, key, Newest::default).map(|found| found.map(|found| found.row))
}

fn locate_after(state: &State, hash: u64, key: &[u8], memtable: impl Fn() -> Newest) -> Result<Option<Found<'static>>> {
    loop {
        let newest = memtable();
        let version = state.versions().load();
        match locate_in_runs(state, version.runs(), hash, key, newest) {
            Ok(newest) => return newest.settle(),
            // A damaged run is replaced, and never served from: its rows are in the segments.
            Err(damaged) => {
                let damaged = damaged.run().path().to_path_buf();
                drop(version);
                replace_damaged_run(state, &damaged)?;
            }
        }
    }
}

/// What the memtable knows of `queries`: the first half of a lookup, to be followed by [`locate_in_version`] with a
/// version that is loaded after it.
pub(crate) fn newest_in_memtable(state: &State, queries: &[Query<'_>]) -> InMemtable {
    let mut rows: Vec<Option<Row<'static>>> = Vec::new();
    rows.resize_with(queries.len(), || None);
    let mut undecided = Vec::new();
    if state.memtable().is_empty() {
        return InMemtable { rows, undecided };
    }
    let mut entries: Vec<(usize, Entry)> = Vec::with_capacity(queries.len());
    for (position, query) in queries.iter().enumerate() {
        state.memtable().find(query.hash, &mut |entry| entries.push((position, entry)));
    }
    // The lock is held to copy references, not while rows are read.
    let batches = state.memtable().batches();
    let sources: Vec<Option<Source>> =
        entries.iter().map(|(_, entry)| batches.get(entry.batch).map(|batch| batch.source.clone())).collect();
    drop(batches);
    for ((position, entry), source) in entries.iter().zip(&sources) {
        // A batch that is gone was merged into a run, which the version that is loaded next has.
        let Some(source) = source else { continue };
        let (Some(query), Some(newest)) = (queries.get(*position), rows.get_mut(*position)) else { continue };
        match source.row(entry.batch, entry.row) {
            Ok(Some(row)) => {
                if query.key.with_bytes(|bytes| row.key() == Some(bytes))
                    && newest.as_ref().is_none_or(|found: &Row<'_>| row.version() > found.version())
                {
                    *newest = Some(row);
                }
            }
            Ok(None) => {}
            Err(_) => undecided.push((*position, source.version(entry.row).timestamp)),
        }
    }
    InMemtable { rows, undecided }
}

/// The newest rows of `queries`, in their order: as [`locate`], in stages over groups of keys so that waits for
/// memory overlap. `memtable` is what [`newest_in_memtable`] said before `version` was loaded.
pub(crate) fn locate_in_version<'v>(
    state: &State,
    version: &'v Version,
    queries: &[Query<'_>],
    memtable: InMemtable,
) -> Located<'v> {
    let mut rows: Vec<Option<Row<'v>>> = memtable.rows;
    let mut stages = Stages::new(queries.len());
    stages.undecided = memtable.undecided;
    for (number, (queries, rows)) in queries.chunks(GROUP).zip(rows.chunks_mut(GROUP)).enumerate() {
        let first = number * GROUP;
        if stages.locate(version.runs(), queries, rows, first).is_err() {
            // A damaged run: nothing is known of these keys.
            stages.undecided.extend((first..first + queries.len()).map(|position| (position, u64::MAX)));
        }
    }
    let mut located = Located { rows, errors: Vec::new() };
    if !stages.undecided.is_empty() {
        decide(state, &mut located, queries, stages.undecided);
    }
    located
}

/// Looks again, one by one, for the keys at `undecided` positions, of which a row up to that timestamp could not be
/// read: unless a newer row was found, so that damage is an answer of its own key only.
#[cold]
fn decide(state: &State, located: &mut Located<'_>, queries: &[Query<'_>], mut undecided: Vec<(usize, u64)>) {
    undecided.sort_unstable();
    undecided.reverse();
    // The highest timestamp of each position is left.
    undecided.dedup_by_key(|(position, _)| *position);
    for (position, timestamp) in undecided.into_iter().rev() {
        let (Some(row), Some(query)) = (located.rows.get_mut(position), queries.get(position)) else { continue };
        if row.as_ref().is_some_and(|row| row.version().timestamp > timestamp) {
            continue;
        }
        *row = match query.key.with_bytes(|bytes| locate(state, query.hash, bytes)) {
            Ok(found) => found.map(|found| found.row),
            Err(error) => {
                located.errors.push((position, error));
                None
            }
        };
    }
}

fn locate_in_memtable(state: &State, hash: u64, key: &[u8]) -> Newest {
    let mut newest = Newest::default();
    if state.memtable().is_empty() {
        return newest;
    }
    let mut first: Option<Entry> = None;
    let mut more: Vec<Entry> = Vec::new();
    state.memtable().find(hash, &mut |entry| match first {
        None => first = Some(entry),
        Some(_) => more.push(entry),
    });
    for entry in first.into_iter().chain(more) {
        let source = state.memtable().source(entry.batch);
        // A batch that is gone was merged into a run, which the version that is loaded next has.
        let Some(source) = source else { continue };
        match source.row(entry.batch, entry.row) {
            Ok(Some(row)) if row.key() == Some(key) => {
                newest.add(Found { row, entry: Some((entry.batch, entry.row)) });
            }
            Ok(_) => {}
            Err(error) => newest.add_unread(Unread { version: source.version(entry.row), error }),
        }
    }
    newest
}

/// The newest of `newest` and the rows of `key` in `runs`, which are sorted by their newest timestamp. The error is a
/// run that is damaged.
fn locate_in_runs<'a>(
    state: &State,
    runs: &'a [Arc<LoadedRun>],
    hash: u64,
    key: &[u8],
    mut newest: Newest,
) -> Result<Newest, &'a LoadedRun> {
    for loaded in runs {
        if newest.is_above(loaded.run().max_stamp()) {
            break;
        }
        let locator = loaded.locator();
        let probed = loaded.run().find(hash, &mut |run_row| {
            let place = locator.place(run_row);
            match locator.cached_batch(loaded.segments(), place) {
                Ok(batch) if batch.batch.columns.key(place.row as usize) == Some(key) => {
                    let holder = Holder::Batch(Arc::clone(&batch.batch), batch.lane);
                    newest.add(Found { row: Row { holder, row: place.row as usize }, entry: None });
                }
                Ok(_) => {}
                Err(error) => newest.consider_damaged(state, loaded, run_row, (hash, key), error),
            }
        });
        if probed.is_err() {
            return Err(loaded);
        }
    }
    Ok(newest)
}
