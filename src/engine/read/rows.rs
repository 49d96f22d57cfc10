//! The newest rows of a batch of keys, other writers' included.

use std::cell::Cell;

use crate::engine::caps::Eviction;
use crate::engine::follow::{refresh, refresh_if_due};
use crate::engine::lookup::find::find;
use crate::engine::lookup::prefault::prefault_index;
use crate::engine::lookup::query::{Located, Query};
use crate::engine::rows::row::Row;
use crate::engine::state::State;
use crate::error::Result;
use crate::key::{KeyRef, Keys};

/// Calls `use_rows` with the newest rows of `queries`. If some are missing, it looks once for what other writers
/// committed. Deleted keys have no row. Rows borrow from the version, so they cannot be returned.
pub(crate) fn with_rows<T>(state: &State, queries: &[Query<'_>], use_rows: impl FnOnce(Located<'_>) -> T) -> Result<T> {
    prefault_index(state, queries)?;
    let use_rows = |located: Located<'_>| {
        sample_reads(state, &located);
        use_rows(located)
    };
    find(state, queries, |mut located| {
        // A file that was not mapped yet may just have been replaced or evicted.
        if located.errors.iter().any(|(_, error)| error.is_not_found()) {
            refresh(state)?;
            return find(state, queries, |mut located| {
                located.forget_deleted();
                Ok(use_rows(located))
            });
        }
        // Another writer may have put a deleted key again.
        located.forget_deleted();
        if located.rows.iter().all(Option::is_some) || !refresh_if_due(state)? {
            return Ok(use_rows(located));
        }
        let missing = located.missing();
        let again: Vec<Query<'_>> = missing.iter().filter_map(|at| queries.get(*at).copied()).collect();
        find(state, &again, |newer| {
            let mut located: Located<'_> = located;
            located.add(&missing, newer);
            located.forget_deleted();
            Ok(use_rows(located))
        })
    })
}

/// In one of 16 calls of a thread, counts reads of the batches of a few rows, if they decide what is evicted.
#[inline]
fn sample_reads(state: &State, located: &Located<'_>) {
    const CALLS: u32 = 16;
    const ROWS: usize = 16;
    if state.options().caps.eviction != Eviction::ColdestFirst {
        return;
    }
    thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });
    let count = COUNT.get();
    COUNT.set(count.wrapping_add(1));
    if count.is_multiple_of(CALLS) {
        let step = located.rows.len().div_ceil(ROWS).max(1);
        located.rows.iter().step_by(step).flatten().for_each(Row::note_read);
    }
}

/// The keys with their hashes, or `None` if the store holds nothing yet.
///
/// # Errors
/// Those of [`Keys::check`].
pub(crate) fn queries<'k>(state: &State, keys: Keys<'k>) -> Result<Option<Vec<Query<'k>>>> {
    state.check_fork()?;
    if state.identity().key_kind().is_none() && !keys.is_empty() {
        refresh_if_due(state)?;
    }
    let kind = state.identity().key_kind();
    if keys.check(kind)?.and(kind).is_none() {
        return Ok(None);
    }
    let query = |key| Query { key, hash: state.hasher().hash_key(key) };
    Ok(Some(match keys.integers() {
        // Skips the check of each key's kind.
        Some(integers) => integers.iter().map(|integer| query(KeyRef::U64(*integer))).collect(),
        None => keys.iter().map(query).collect(),
    }))
}
