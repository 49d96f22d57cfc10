//! Finds the newest rows of keys, tombstones included. The hash selects candidates, then the key's bytes are compared.
//! Expected O(1) a key.
//!
//! The memtable is read before the version, since rows move from the memtable to the version. One key is a batch of
//! one.

use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::lookup::query::{Found, Located, Query};
use crate::engine::lookup::stages::{GROUP, Stages};
use crate::engine::lookup::unread::Unread;
use crate::engine::rows::row::{BatchId, Row, Source};
use crate::engine::runs::publish::replace_damaged_run;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::state::versions::Version;
use crate::error::{Error, Result};
use crate::index::entries::Entry;

/// Whether the memtable has this hash, or a run its tag.
pub(crate) fn may_hold(state: &State, hash: u64) -> bool {
    let mut any = false;
    state.memtable().find(hash, &mut |_| any = true);
    any || in_runs(state.versions().load().runs(), hash)
}

/// Whether a run has the tag of `hash`. A damaged run may have any.
pub(crate) fn in_runs(runs: &[Arc<LoadedRun>], hash: u64) -> bool {
    let mut any = false;
    runs.iter().any(|loaded| loaded.run().find(hash, &mut |_| any = true).is_err() || any)
}

/// Where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Everything,
    Runs,
}

/// Calls `use_rows` with the newest rows of `queries`. The rows borrow from the version in which they were found, so
/// they cannot be returned.
pub(crate) fn find<T>(state: &State, queries: &[Query<'_>], use_rows: impl FnOnce(Located<'_>) -> T) -> T {
    Finder::new(queries.len()).find_in(state, Scope::Everything, queries, use_rows)
}

/// A run that could not be replaced, and why.
type Failed = Option<(PathBuf, Error)>;

/// Replaces a damaged run, which is never served from, by one built from its segments.
#[cold]
fn replace(state: &State, damaged: &LoadedRun) -> Failed {
    let path = damaged.run().path();
    replace_damaged_run(state, path).err().map(|error| (path.to_path_buf(), error))
}

/// The error to report for a key in a damaged run: why the run could not be replaced, since its rows may be intact.
fn cause(error: Error, failed: &Failed) -> Error {
    match failed {
        Some((path, cause)) if error.path() == Some(path) => cause.clone(),
        _ => error,
    }
}

/// Looks keys up. Reuses its buffers between lookups of few keys.
#[derive(Debug)]
pub(crate) struct Finder {
    entries: Vec<(usize, Entry)>,
    sources: Vec<Option<Source>>,
    stages: Stages,
    /// Positions of keys, each with a row that may be the key's but cannot be read.
    unread: Vec<(usize, Unread)>,
}

impl Finder {
    /// Reserves buffers for batches of `keys`. They grow for larger batches; 0 allocates nothing.
    pub(crate) fn new(keys: usize) -> Self {
        Self { entries: Vec::new(), sources: Vec::new(), stages: Stages::new(keys), unread: Vec::new() }
    }

    /// As [`find`], but without the memtable.
    pub(crate) fn find_merged<T>(
        &mut self,
        state: &State,
        queries: &[Query<'_>],
        use_rows: impl FnOnce(Located<'_>) -> T,
    ) -> T {
        self.find_in(state, Scope::Runs, queries, use_rows)
    }

    #[inline]
    fn find_in<T>(
        &mut self,
        state: &State,
        scope: Scope,
        queries: &[Query<'_>],
        use_rows: impl FnOnce(Located<'_>) -> T,
    ) -> T {
        let mut failed = None;
        loop {
            let mut rows: Vec<Option<Row<'static>>> = Vec::new();
            rows.resize_with(queries.len(), || None);
            self.unread.clear();
            if scope == Scope::Everything {
                self.look_in_memtable(state, queries, &mut rows, |_, _| {});
            }
            let version = state.versions().load();
            let mut rows: Vec<Option<Row<'_>>> = rows;
            match self.look_in_runs(state, &version, queries, &mut rows) {
                Some(damaged) if failed.is_none() => failed = replace(state, damaged),
                _ => {
                    let mut errors = self.settle(&mut rows);
                    errors = errors.into_iter().map(|(at, error)| (at, cause(error, &failed))).collect();
                    return use_rows(Located { rows, errors });
                }
            }
        }
    }

    /// Calls `use_row` with the newest row of a key.
    ///
    /// # Errors
    /// Passes [`Error::Corrupt`] on if a row that may be the key's cannot be read and no newer row was found.
    pub(crate) fn find_one<T>(
        &mut self,
        state: &State,
        query: Query<'_>,
        use_row: impl FnOnce(Result<Option<Found<'_>>>) -> T,
    ) -> T {
        let mut failed = None;
        loop {
            let (mut in_memtable, mut entry) = ([None], None);
            self.unread.clear();
            self.look_in_memtable(state, &[query], &mut in_memtable, |_, found| entry = Some(found));
            let newest = in_memtable.first().and_then(|row| row.as_ref().map(Row::version));
            let version = state.versions().load();
            let mut rows: [Option<Row<'_>>; 1] = in_memtable;
            match self.look_in_runs(state, &version, &[query], &mut rows) {
                Some(damaged) if failed.is_none() => failed = replace(state, damaged),
                _ => {
                    let error = self.settle(&mut rows).into_iter().next();
                    let [row] = rows;
                    let row = row.map(|row| Found { entry: entry.filter(|_| newest == Some(row.version())), row });
                    return use_row(error.map_or(Ok(row), |(_, error)| Err(cause(error, &failed))));
                }
            }
        }
    }

    /// Fills `rows` with the newest rows in the memtable; calls `newest` with the entry of each.
    #[inline]
    fn look_in_memtable(
        &mut self,
        state: &State,
        queries: &[Query<'_>],
        rows: &mut [Option<Row<'static>>],
        mut newest: impl FnMut(usize, (BatchId, u32)),
    ) {
        if state.memtable().is_empty() {
            return;
        }
        self.entries.clear();
        self.entries.reserve(queries.len());
        for (position, query) in queries.iter().enumerate() {
            state.memtable().find(query.hash, &mut |entry| self.entries.push((position, entry)));
        }
        self.sources.clear();
        // The lock is held to copy references, not while rows are read.
        let batches = state.memtable().batches();
        let source = |entry: &Entry| batches.get(entry.batch).map(|batch| batch.source.clone());
        self.sources.extend(self.entries.iter().map(|(_, entry)| source(entry)));
        drop(batches);
        if self.sources.iter().any(Option::is_none) {
            self.look_again(state, queries);
        }
        for ((position, entry), source) in self.entries.iter().zip(self.sources.drain(..)) {
            // The batch was merged into a run, which the version that is loaded next has.
            let Some(source) = source else { continue };
            let (Some(query), Some(row)) = (queries.get(*position), rows.get_mut(*position)) else { continue };
            match source.row(entry.batch, entry.row) {
                Ok(Some(found)) => {
                    if query.key.with_bytes(|bytes| found.key() == Some(bytes)) && found.is_newer(row.as_ref()) {
                        *row = Some(found);
                        newest(*position, (entry.batch, entry.row));
                    }
                }
                Ok(None) => {}
                Err(error) => self.unread.push((*position, Unread { version: source.version(entry.row), error })),
            }
        }
    }

    /// Looks up again the keys whose batches are gone: if compaction replaced a segment, their entries now point to
    /// another batch.
    #[cold]
    fn look_again(&mut self, state: &State, queries: &[Query<'_>]) {
        let gone = self.entries.iter().zip(&self.sources).filter(|(_, source)| source.is_none());
        let mut gone: Vec<(usize, Entry)> = gone.map(|(entry, _)| *entry).collect();
        gone.sort_unstable_by_key(|(position, _)| *position);
        gone.dedup_by_key(|(position, _)| *position);
        for (position, query) in gone.iter().filter_map(|(position, _)| Some((*position, queries.get(*position)?))) {
            state.memtable().find(query.hash, &mut |entry| self.entries.push((position, entry)));
        }
        let batches = state.memtable().batches();
        let new = self.entries.iter().skip(self.sources.len());
        let new: Vec<_> = new.map(|(_, entry)| batches.get(entry.batch).map(|batch| batch.source.clone())).collect();
        self.sources.extend(new);
    }

    /// Fills `rows` with newer rows from the runs, in stages over groups of keys so that memory accesses overlap.
    /// Returns a damaged run, if there is one: nothing is known then of the keys in its damaged buckets.
    #[inline]
    fn look_in_runs<'v>(
        &mut self,
        state: &State,
        version: &'v Version,
        queries: &[Query<'_>],
        rows: &mut [Option<Row<'v>>],
    ) -> Option<&'v LoadedRun> {
        let mut damaged = None;
        for (number, (queries, rows)) in queries.chunks(GROUP).zip(rows.chunks_mut(GROUP)).enumerate() {
            let found = self.stages.look(state, version.runs(), (number * GROUP, queries), rows, &mut self.unread);
            damaged = damaged.or(found);
        }
        damaged
    }

    /// Removes each row that an unreadable row of its key may supersede. Returns the errors of these unreadable rows,
    /// in order of position.
    fn settle(&mut self, rows: &mut [Option<Row<'_>>]) -> Vec<(usize, Error)> {
        let mut errors: Vec<(usize, Error)> = Vec::new();
        if self.unread.is_empty() {
            return errors;
        }
        // Newest first for each key.
        self.unread.sort_by(|a, b| (a.0, b.1.version).cmp(&(b.0, a.1.version)));
        self.unread.dedup_by_key(|(position, _)| *position);
        for (position, unread) in self.unread.drain(..) {
            let Some(row) = rows.get_mut(position) else { continue };
            if row.as_ref().is_none_or(|row| row.version() <= unread.version) {
                *row = None;
                errors.push((position, unread.error));
            }
        }
        errors
    }
}
