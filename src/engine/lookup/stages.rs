//! Looks up a batch of keys in the index runs, in stages.

use std::sync::Arc;

use crate::engine::lookup::query::Query;
use crate::engine::lookup::unread::{Unread, may_be};
use crate::engine::rows::locator::BatchRow;
use crate::engine::rows::row::{Holder, Row};
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::Error;
use crate::index::run_layout::EMPTY;
use crate::key::KeyRef;

/// Keys that pass the stages of a lookup together: enough for memory accesses to overlap, and few enough that
/// prefetched lines are still cached at the next stage.
pub(crate) const GROUP: usize = 128;

/// A list with conditional additions that do not branch, since the condition is unpredictable.
#[derive(Debug)]
struct Counted<T> {
    items: Vec<T>,
    len: usize,
}

impl<T: Copy + Default> Counted<T> {
    fn with_room(items: usize) -> Self {
        Self { items: vec![T::default(); items], len: 0 }
    }

    #[inline]
    fn add(&mut self, item: T, counts: bool) {
        match self.items.get_mut(self.len) {
            Some(place) => *place = item,
            None => self.items.push(item),
        }
        self.len += usize::from(counts);
    }

    fn iter(&self) -> std::iter::Take<std::slice::Iter<'_, T>> {
        self.items.iter().take(self.len)
    }
}

/// The stages of a lookup in runs, and the items that pass from one to the next, each with its position in the group.
/// Each stage prefetches what the next one reads.
#[derive(Debug)]
pub(crate) struct Stages {
    /// Hashes whose home buckets are full, and how many buckets further their rows reach.
    spilled: Counted<(u32, u64, u64)>,
    run_rows: Counted<(u32, u64)>,
    places: Vec<(u32, BatchRow)>,
}

impl Stages {
    /// For batches of `keys`.
    pub(crate) fn new(keys: usize) -> Self {
        let group = keys.min(GROUP);
        // Few tags match although the keys differ.
        let room = group + group / 4;
        Self {
            spilled: Counted::with_room(group),
            run_rows: Counted::with_room(room),
            places: Vec::with_capacity(room),
        }
    }

    /// Puts the newest rows of a group of keys into `newest`, and rows that cannot be read into `unread`. The group
    /// begins at position `first` of the batch. Returns a damaged run, if there is one.
    pub(crate) fn look<'v>(
        &mut self,
        state: &State,
        runs: &'v [Arc<LoadedRun>],
        (first, queries): (usize, &[Query<'_>]),
        newest: &mut [Option<Row<'v>>],
        unread: &mut Vec<(usize, Unread)>,
    ) -> Option<&'v LoadedRun> {
        let mut damaged = None;
        for loaded in runs {
            queries.iter().for_each(|query| loaded.run().prefetch(query.hash));
        }
        for loaded in runs {
            let before = unread.len();
            self.match_tags(loaded, (first, queries), newest, unread);
            if unread.len() > before {
                damaged = Some(&**loaded);
            }
            self.find_places(loaded);
            self.prefetch_keys(loaded, queries);
            self.compare_keys(state, loaded, (first, queries), newest, unread);
        }
        damaged
    }

    #[inline]
    fn match_tags(
        &mut self,
        loaded: &LoadedRun,
        (first, queries): (usize, &[Query<'_>]),
        newest: &[Option<Row<'_>>],
        unread: &mut Vec<(usize, Unread)>,
    ) {
        let locator = loaded.locator();
        (self.run_rows.len, self.spilled.len) = (0, 0);
        let mut add = |position, run_row| {
            locator.prefetch(run_row);
            self.run_rows.add((position, run_row), run_row != EMPTY);
        };
        // A damaged page of buckets may hold any row.
        let mut failed = |position: u32, error| unread.push((first + position as usize, Unread::any(error)));
        for (position, (query, newest)) in (0_u32..).zip(queries.iter().zip(newest)) {
            // The row that was found is newer than all rows of this run.
            if newest.as_ref().is_some_and(|row| row.version().timestamp > loaded.run().max_timestamp()) {
                continue;
            }
            match loaded.run().find_at_home(query.hash, &mut |run_row| add(position, run_row)) {
                // Every other home bucket is full.
                Ok(reach) => self.spilled.add((position, query.hash, reach), reach > 0),
                Err(error) => failed(position, error),
            }
        }
        for (position, hash, reach) in self.spilled.iter() {
            if let Err(error) = loaded.run().find_spilled(*hash, *reach, &mut |run_row| add(*position, run_row)) {
                failed(*position, error);
            }
        }
    }

    #[inline]
    fn find_places(&mut self, loaded: &LoadedRun) {
        let locator = loaded.locator();
        self.places.clear();
        if loaded.has_moved_rows() {
            let current = self.run_rows.iter().filter_map(|(position, row)| Some((*position, loaded.current(*row)?)));
            self.places.extend(current.map(|(position, row)| (position, locator.place(row))));
        } else {
            let places = self.run_rows.iter().map(|(position, row)| (*position, locator.place(*row)));
            self.places.extend(places);
        }
    }

    #[inline]
    fn prefetch_keys(&self, loaded: &LoadedRun, queries: &[Query<'_>]) {
        let locator = loaded.locator();
        let batches = || self.places.iter().map(|(_, place)| (locator.cached_batch(loaded.segments(), *place), place));
        for (batch, place) in batches() {
            if let Ok(batch) = batch {
                batch.prefetch_key(place.row as usize);
            }
        }
        // Keys of variable length are found in two steps.
        if !matches!(queries.first(), Some(Query { key: KeyRef::U64(_), .. })) {
            for (batch, place) in batches() {
                if let Ok(batch) = batch {
                    batch.prefetch_variable_key(place.row as usize);
                }
            }
        }
    }

    #[inline]
    fn compare_keys<'v>(
        &mut self,
        state: &State,
        loaded: &'v LoadedRun,
        (first, queries): (usize, &[Query<'_>]),
        newest: &mut [Option<Row<'v>>],
        unread: &mut Vec<(usize, Unread)>,
    ) {
        let locator = loaded.locator();
        for (position, place) in &self.places {
            let (position, row) = (*position as usize, place.row as usize);
            let (Some(query), Some(newest)) = (queries.get(position), newest.get_mut(position)) else { continue };
            match locator.cached_batch(loaded.segments(), *place) {
                Ok(batch) if batch.holds(row, query.key) => {
                    let row = Row { holder: Holder::Cached(batch), row };
                    if row.is_newer(newest.as_ref()) {
                        *newest = Some(row);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    let error = read_damaged(state, loaded, *place, *query, error, newest);
                    unread.extend(error.map(|error| (first + position, error)));
                }
            }
        }
    }
}

/// Reads the row at `place`, whose batch is damaged by `error`, into `newest` if it can be read, has the key, and is
/// newer. Returns it if it may have the key and cannot be read.
#[cold]
fn read_damaged(
    state: &State,
    loaded: &LoadedRun,
    place: BatchRow,
    query: Query<'_>,
    error: Error,
    newest: &mut Option<Row<'_>>,
) -> Option<Unread> {
    let locator = loaded.locator();
    let found = locator.run_row(place).and_then(|run_row| locator.segment_row(loaded.segments(), run_row));
    // Without a segment, nothing in this run can be trusted.
    let Some((segment, row)) = found else { return Some(Unread::any(error)) };
    match Row::of_segment(segment, row) {
        Ok(Some(row)) => {
            if query.key.with_bytes(|bytes| row.key() == Some(bytes)) && row.is_newer(newest.as_ref()) {
                *newest = Some(row);
            }
            None
        }
        Ok(None) => None,
        Err(error) => may_be(state, segment, row, query.hash).then(|| Unread::of_segment(segment, row, error)),
    }
}
