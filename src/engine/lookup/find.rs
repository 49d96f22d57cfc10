//! From a key to its newest row.

use std::sync::Arc;

use crate::engine::lookup::unread::{Newest, Unread};
use crate::engine::rows::locator::RowPlace;
use crate::engine::rows::row::{Holder, Row, Source};
use crate::engine::state::{Core, LoadedRun, View};
use crate::error::{Error, Result};
use crate::index::entries::Entry;
use crate::index::run_layout::EMPTY;
use crate::key::KeyRef;

/// Keys that go through the stages of a lookup together: enough for their waits for memory to overlap, and few enough
/// for what was asked for to be there still when its stage comes.
const GROUP: usize = 128;

/// A row that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found<'v> {
    pub row: Row<'v>,
    /// Its entry in the delta, if it was found there: (slot, row).
    pub entry: Option<(u32, u32)>,
}

/// A key of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub key: KeyRef<'a>,
    pub hash: u64,
}

/// What the delta has of a batch of keys.
pub(crate) struct InDelta {
    rows: Vec<Option<Row<'static>>>,
    /// Positions of keys of which a row cannot be read, and the stamp that it is not above.
    undecided: Vec<(usize, u64)>,
}

/// The rows of a batch of keys, tombstones included, and the positions at which damage hides the answer.
pub(crate) struct Located<'v> {
    pub rows: Vec<Option<Row<'v>>>,
    pub errors: Vec<(usize, Error)>,
}

impl<'v> Located<'v> {
    /// Positions that have neither a row nor damage. O(keys).
    pub(crate) fn missing(&self) -> Vec<usize> {
        let mut open: Vec<bool> = self.rows.iter().map(Option::is_none).collect();
        for (position, _) in &self.errors {
            if let Some(open) = open.get_mut(*position) {
                *open = false;
            }
        }
        open.iter().enumerate().filter(|(_, open)| **open).map(|(at, _)| at).collect()
    }

    /// Takes in what was found for the keys at `positions`.
    pub(crate) fn add(&mut self, positions: &[usize], found: Located<'v>) {
        for (at, row) in positions.iter().zip(found.rows) {
            if let Some(slot) = self.rows.get_mut(*at) {
                *slot = row;
            }
        }
        let errors = found.errors.into_iter();
        self.errors.extend(errors.filter_map(|(at, error)| Some((*positions.get(at)?, error))));
    }

    /// Deleted keys have no row.
    pub(crate) fn forget_deleted(&mut self) {
        for row in &mut self.rows {
            if row.as_ref().is_some_and(Row::is_tombstone) {
                *row = None;
            }
        }
    }
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
    /// [`crate::Error::Corrupt`] if a row that may be the key's cannot be read, and none that is newer was found.
    pub(crate) fn locate(&self, hash: u64, key: &[u8]) -> Result<Option<Found<'static>>> {
        self.locate_after(hash, key, || self.locate_in_delta(hash, key))
    }

    /// The newest row of `key` that a run has: as [`Core::locate`], without a look at the delta.
    pub(crate) fn locate_merged(&self, hash: u64, key: &[u8]) -> Result<Option<Row<'static>>> {
        self.locate_after(hash, key, Newest::default).map(|found| found.map(|found| found.row))
    }

    fn locate_after(&self, hash: u64, key: &[u8], in_delta: impl Fn() -> Newest) -> Result<Option<Found<'static>>> {
        loop {
            let newest = in_delta();
            let view = self.view.load();
            match self.locate_in_runs(&view.runs, hash, key, newest) {
                Ok(newest) => return newest.settle(),
                // A damaged run is replaced, and never served from: its rows are in the segments.
                Err(damaged) => {
                    let damaged = damaged.run.path().to_path_buf();
                    drop(view);
                    self.replace_damaged_run(&damaged)?;
                }
            }
        }
    }

    /// What the delta knows of `asked`: the first half of a lookup, to be followed by [`Core::locate_in_view`] with a
    /// view that is loaded after it.
    pub(crate) fn newest_in_delta(&self, asked: &[Asked<'_>]) -> InDelta {
        let mut rows: Vec<Option<Row<'static>>> = Vec::new();
        rows.resize_with(asked.len(), || None);
        let mut undecided = Vec::new();
        if self.delta.is_empty() {
            return InDelta { rows, undecided };
        }
        let mut entries: Vec<(usize, Entry)> = Vec::with_capacity(asked.len());
        for (position, asked) in asked.iter().enumerate() {
            self.delta.find(asked.hash, &mut |entry| entries.push((position, entry)));
        }
        // The lock is held to copy references, not while rows are read.
        let slots = self.slots.read();
        let sources: Vec<Option<Source>> =
            entries.iter().map(|(_, entry)| slots.get(entry.slot).map(|slot| slot.source.clone())).collect();
        drop(slots);
        for ((position, entry), source) in entries.iter().zip(&sources) {
            // A slot that is gone was merged into a run, which the view that is loaded next has.
            let Some(source) = source else { continue };
            let (Some(asked), Some(newest)) = (asked.get(*position), rows.get_mut(*position)) else { continue };
            match source.row(entry.slot, entry.row) {
                Ok(Some(row)) => {
                    if asked.key.with_bytes(|bytes| row.key() == Some(bytes))
                        && newest.as_ref().is_none_or(|found: &Row<'_>| row.age() > found.age())
                    {
                        *newest = Some(row);
                    }
                }
                Ok(None) => {}
                Err(_) => undecided.push((*position, source.age(entry.row).stamp)),
            }
        }
        InDelta { rows, undecided }
    }

    /// The newest rows of `asked`, in their order: as [`Core::locate`], in stages over groups of keys so that waits for
    /// memory overlap. `delta` is what [`Core::newest_in_delta`] said before `view` was loaded.
    pub(crate) fn locate_in_view<'v>(&self, view: &'v View, asked: &[Asked<'_>], delta: InDelta) -> Located<'v> {
        let mut rows: Vec<Option<Row<'v>>> = delta.rows;
        let mut stages = Stages::new(asked.len());
        stages.undecided = delta.undecided;
        for (number, (asked, rows)) in asked.chunks(GROUP).zip(rows.chunks_mut(GROUP)).enumerate() {
            let first = number * GROUP;
            if stages.locate(&view.runs, asked, rows, first).is_err() {
                // A damaged run: nothing is known of these keys.
                stages.undecided.extend((first..first + asked.len()).map(|position| (position, u64::MAX)));
            }
        }
        let mut located = Located { rows, errors: Vec::new() };
        if !stages.undecided.is_empty() {
            self.decide(&mut located, asked, stages.undecided);
        }
        located
    }

    /// Looks again, one by one, for the keys at `undecided` positions, of which a row up to that stamp could not be read:
    /// unless a newer row was found, so that damage is an answer of its own key only.
    #[cold]
    fn decide(&self, located: &mut Located<'_>, asked: &[Asked<'_>], mut undecided: Vec<(usize, u64)>) {
        undecided.sort_unstable();
        undecided.reverse();
        // The highest stamp of each position is left.
        undecided.dedup_by_key(|(position, _)| *position);
        for (position, stamp) in undecided.into_iter().rev() {
            let (Some(row), Some(asked)) = (located.rows.get_mut(position), asked.get(position)) else { continue };
            if row.as_ref().is_some_and(|row| row.age().stamp > stamp) {
                continue;
            }
            *row = match asked.key.with_bytes(|bytes| self.locate(asked.hash, bytes)) {
                Ok(found) => found.map(|found| found.row),
                Err(error) => {
                    located.errors.push((position, error));
                    None
                }
            };
        }
    }

    fn locate_in_delta(&self, hash: u64, key: &[u8]) -> Newest {
        let mut newest = Newest::default();
        if self.delta.is_empty() {
            return newest;
        }
        let mut first: Option<Entry> = None;
        let mut more: Vec<Entry> = Vec::new();
        self.delta.find(hash, &mut |entry| match first {
            None => first = Some(entry),
            Some(_) => more.push(entry),
        });
        for entry in first.into_iter().chain(more) {
            // The lock is held to copy a reference, not while rows are read.
            let source = self.slots.read().get(entry.slot).map(|slot| slot.source.clone());
            // A slot that is gone was merged into a run, which the view read next has.
            let Some(source) = source else { continue };
            match source.row(entry.slot, entry.row) {
                Ok(Some(row)) if row.key() == Some(key) => {
                    newest.add(Found { row, entry: Some((entry.slot, entry.row)) });
                }
                Ok(_) => {}
                Err(error) => newest.add_unread(Unread { age: source.age(entry.row), error }),
            }
        }
        newest
    }

    /// The newest of `newest` and the rows of `key` in `runs`, which are sorted by their newest stamp. The error is a run
    /// that is damaged.
    fn locate_in_runs<'a>(
        &self,
        runs: &'a [Arc<LoadedRun>],
        hash: u64,
        key: &[u8],
        mut newest: Newest,
    ) -> Result<Newest, &'a LoadedRun> {
        for loaded in runs {
            if newest.is_above(loaded.run.max_stamp()) {
                break;
            }
            let directory = loaded.directory();
            let probed = loaded.run.find(hash, &mut |run_row| {
                let place = directory.place(run_row);
                match directory.head(&loaded.segments, place) {
                    Ok(head) if head.batch.columns.key(place.row as usize) == Some(key) => {
                        let holder = Holder::Batch(Arc::clone(&head.batch), head.lane);
                        newest.add(Found { row: Row { holder, row: place.row as usize }, entry: None });
                    }
                    Ok(_) => {}
                    Err(error) => newest.consider_damaged(self, loaded, run_row, (hash, key), error),
                }
            });
            if probed.is_err() {
                return Err(loaded);
            }
        }
        Ok(newest)
    }
}

/// A list to which items are added that may not count: without a branch, as nobody guesses which do.
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

/// The stages of a lookup in runs, and what passes from one to the next beside the position in the group. Each stage asks
/// for what the next one reads.
#[derive(Debug)]
struct Stages {
    /// Hashes whose home buckets are full, and how many buckets their rows went on.
    spilled: Counted<(u32, u64, u64)>,
    run_rows: Counted<(u32, u64)>,
    places: Vec<(u32, RowPlace)>,
    /// As [`InDelta::undecided`], of all groups.
    undecided: Vec<(usize, u64)>,
}

impl Stages {
    /// For batches of `keys`.
    fn new(keys: usize) -> Self {
        let group = keys.min(GROUP);
        // Few tags match without their keys.
        let room = group + group / 4;
        Self {
            spilled: Counted::with_room(group),
            run_rows: Counted::with_room(room),
            places: Vec::with_capacity(room),
            undecided: Vec::new(),
        }
    }

    /// Puts the newest rows of a group of keys into `newest`; the group begins at position `first` of the batch.
    fn locate<'v>(
        &mut self,
        runs: &'v [Arc<LoadedRun>],
        asked: &[Asked<'_>],
        newest: &mut [Option<Row<'v>>],
        first: usize,
    ) -> Result<()> {
        for loaded in runs {
            asked.iter().for_each(|asked| loaded.run.prefetch(asked.hash));
        }
        for loaded in runs {
            self.match_tags(loaded, asked, newest)?;
            self.find_places(loaded);
            self.ask_for_keys(loaded, asked);
            self.compare_keys(loaded, asked, newest, first);
        }
        Ok(())
    }

    #[inline]
    fn match_tags(&mut self, loaded: &LoadedRun, asked: &[Asked<'_>], newest: &[Option<Row<'_>>]) -> Result<()> {
        let directory = loaded.directory();
        (self.run_rows.len, self.spilled.len) = (0, 0);
        let mut add = |position, run_row| {
            directory.prefetch(run_row);
            self.run_rows.add((position, run_row), run_row != EMPTY);
        };
        for (position, (asked, newest)) in (0_u32..).zip(asked.iter().zip(newest)) {
            // What was found is newer than all that this run holds.
            if newest.as_ref().is_some_and(|row| row.age().stamp > loaded.run.max_stamp()) {
                continue;
            }
            let reach = loaded.run.find_at_home(asked.hash, &mut |run_row| add(position, run_row))?;
            // Every other home bucket is full.
            self.spilled.add((position, asked.hash, reach), reach > 0);
        }
        for (position, hash, reach) in self.spilled.iter() {
            loaded.run.find_spilled(*hash, *reach, &mut |run_row| add(*position, run_row))?;
        }
        Ok(())
    }

    #[inline]
    fn find_places(&mut self, loaded: &LoadedRun) {
        let directory = loaded.directory();
        self.places.clear();
        let places = self.run_rows.iter().map(|(position, run_row)| (*position, directory.place(*run_row)));
        self.places.extend(places);
    }

    #[inline]
    fn ask_for_keys(&self, loaded: &LoadedRun, asked: &[Asked<'_>]) {
        let directory = loaded.directory();
        let heads = || self.places.iter().map(|(_, place)| (directory.head(&loaded.segments, *place), place));
        for (head, place) in heads() {
            if let Ok(head) = head {
                head.prefetch_key(place.row as usize);
            }
        }
        // Keys of several lengths are found in two steps.
        if !matches!(asked.first(), Some(Asked { key: KeyRef::U64(_), .. })) {
            for (head, place) in heads() {
                if let Ok(head) = head {
                    head.prefetch_variable_key(place.row as usize);
                }
            }
        }
    }

    #[inline]
    fn compare_keys<'v>(
        &mut self,
        loaded: &'v LoadedRun,
        asked: &[Asked<'_>],
        newest: &mut [Option<Row<'v>>],
        first: usize,
    ) {
        let directory = loaded.directory();
        for (position, place) in &self.places {
            let (position, row) = (*position as usize, place.row as usize);
            let (Some(asked), Some(newest)) = (asked.get(position), newest.get_mut(position)) else { continue };
            let Ok(head) = directory.head(&loaded.segments, *place) else {
                let stamp = directory.newest_stamp(&loaded.segments, *place);
                self.undecided.push((first + position, stamp));
                continue;
            };
            if head.holds(row, asked.key) {
                let row = Row { holder: Holder::Viewed(head), row };
                if newest.as_ref().is_none_or(|found| row.age() > found.age()) {
                    *newest = Some(row);
                }
            }
        }
    }
}
