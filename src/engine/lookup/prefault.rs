//! Prefaults the pages on disk that a batch will touch.
//!
//! A lookup knows which buckets, then keys, then rows a batch will touch, and it can measure which of them are in
//! memory. So it requests all missing pages at once and waits once, instead of faulting row by row. Measuring costs a
//! system call a row, which a batch in memory must not pay. So only a few rows of large batches, and of some small
//! ones, are sampled. If a sampled row is not in memory, the next batches are measured completely. Until then, small
//! batches of a store that was evicted from memory fault row by row.

use std::path::Path;

use bytes::Bytes;

use crate::engine::lookup::query::Query;
use crate::engine::rows::row::{Holder, Row};
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::state::residency::{KEYS_A_LOOK, ROWS_A_LOOK};
use crate::error::Result;
use crate::io::residency::is_resident;
use crate::segment::batch::{Batch, Verify};
use crate::segment::columns::{KeyColumn, LeafColumn};
use crate::segment::reader::Segment;

/// Prefaults what a lookup of `queries` touches: buckets, the tables of batches that are not parsed yet, and keys.
///
/// # Errors
/// [`crate::Error::Io`] if some of it cannot be read.
pub(crate) fn prefault_index(state: &State, queries: &[Query<'_>]) -> Result<()> {
    let version = state.versions().load();
    let runs = version.runs();
    let of_all_runs = |at: usize, resident: fn(&LoadedRun, &Query<'_>) -> bool| {
        queries.get(at).is_none_or(|query| runs.iter().all(|run| resident(run, query)))
    };
    let watch = state.residency().buckets();
    if watch.suspects(queries.len(), KEYS_A_LOOK, salt(queries), |at| of_all_runs(at, bucket_is_resident)) {
        let buckets = runs.iter().flat_map(|loaded| queries.iter().map(|query| loaded.run().bucket_bytes(query.hash)));
        watch.prefault(buckets, |at| runs.get(at / queries.len().max(1)).map(|loaded| loaded.run().path()))?;
    }
    let watch = state.residency().keys();
    if !watch.suspects(queries.len(), KEYS_A_LOOK, salt(queries), |at| of_all_runs(at, key_is_resident)) {
        return Ok(());
    }
    let places: Vec<Place<'_>> = runs.iter().flat_map(|loaded| places(loaded, queries)).collect();
    prefault_tables(state, &places)?;
    let path = |at: usize| places.get(at).map(|place| &**place.segment.described());
    let keys = || places.iter().map(|place| Some((&place.batch()?.columns.keys, place.within)));
    watch.prefault(keys().map(|key| key.and_then(|(column, row)| key_offsets(column, row))), path)?;
    watch.prefault(keys().map(|key| key.and_then(|(column, row)| column.get(row))), path)
}

/// Prefaults what the first parse of a batch reads: keys, row checksums and offsets.
fn prefault_tables(state: &State, places: &[Place<'_>]) -> Result<()> {
    let mut unread: Vec<(&Segment, usize)> = places
        .iter()
        .filter(|place| !place.segment.is_parsed(place.number))
        .map(|place| (place.segment, place.number))
        .collect();
    unread.sort_unstable_by_key(|(segment, number)| (segment.id, *number));
    unread.dedup_by_key(|(segment, number)| (segment.id, *number));
    // Parsing reports a table that lies beyond the end of its file.
    let table = |(segment, number): &(&Segment, usize)| match segment.structure_bytes(*number) {
        Err(error) if !error.is_corrupt() => Err(error),
        bytes => Ok(bytes.unwrap_or_default()),
    };
    let tables: Vec<Bytes> = unread.iter().map(table).collect::<Result<_>>()?;
    let path = |at: usize| unread.get(at).map(|(segment, _)| &**segment.described());
    state.residency().keys().prefault(tables.iter().map(|bytes| Some(&**bytes)), path)
}

/// Prefaults located rows: first the offsets of their values, then values and row checksums. `reads` says which leaves of
/// a row are read. If the checksum of a row will be compared, so are all leaves without checksums of their own.
///
/// # Errors
/// [`crate::Error::Io`] if some of it cannot be read.
pub(crate) fn prefault_rows(
    state: &State,
    queries: &[Query<'_>],
    rows: &[Option<Row<'_>>],
    reads: &dyn Fn(&Row<'_>, usize) -> bool,
) -> Result<()> {
    let verify = state.options().verify;
    let reads = |row: &Row<'_>, leaf| reads(row, leaf) || !row.is_checked(verify) && row.is_checked_with(leaf);
    let at = |position: usize| rows.get(position).and_then(Option::as_ref);
    let resident = |position| at(position).is_none_or(|row| values(row, &reads).all(is_resident));
    if !state.residency().rows().suspects(rows.len(), ROWS_A_LOOK, salt(queries), resident) {
        return Ok(());
    }
    let found: Vec<&Row<'_>> = rows.iter().flatten().collect();
    // Rows of variable length are located by their offsets, so those are read first.
    prefault_each(state, &found, |row| offsets(row))?;
    prefault_each(state, &found, |row| crc(row, verify).into_iter().chain(values(row, &reads)))
}

fn prefault_each<'a, 'v: 'a, I: IntoIterator<Item = &'a [u8]>>(
    state: &State,
    rows: &[&'a Row<'v>],
    ranges: impl Fn(&'a Row<'v>) -> I,
) -> Result<()> {
    let ranges: Vec<_> = rows.iter().flat_map(|row| ranges(row).into_iter().map(move |bytes| (*row, bytes))).collect();
    state.residency().rows().prefault(ranges.iter().map(|(_, bytes)| Some(*bytes)), |at| path_of(ranges.get(at)?.0))
}

/// A number that differs from batch to batch.
fn salt(queries: &[Query<'_>]) -> u64 {
    queries.first().map_or(0, |query| query.hash)
}

/// The place of a candidate key from a run.
struct Place<'a> {
    segment: &'a Segment,
    /// The batch's number in the segment.
    number: usize,
    within: usize,
}

impl<'a> Place<'a> {
    /// `None` if it is damaged; the lookup reports that.
    fn batch(&self) -> Option<&'a Batch> {
        self.segment.batch(self.number).ok().map(|batch| &**batch)
    }
}

/// The places of the rows whose tags match, without damaged ones: the lookup reports those.
fn places<'a>(loaded: &'a LoadedRun, queries: &[Query<'_>]) -> Vec<Place<'a>> {
    let mut places = Vec::with_capacity(queries.len());
    for query in queries {
        let _damaged = loaded.run().find(query.hash, &mut |run_row| places.extend(place(loaded, run_row)));
    }
    places
}

fn place(loaded: &LoadedRun, run_row: u64) -> Option<Place<'_>> {
    let (segment, number, within) = loaded.locator().source(loaded.current(run_row)?)?;
    Some(Place { segment: loaded.segments().get(segment)?, number, within })
}

fn bucket_is_resident(loaded: &LoadedRun, query: &Query<'_>) -> bool {
    loaded.run().bucket_bytes(query.hash).is_none_or(is_resident)
}

/// Whether the candidate keys of `query` can be compared without touching a page that is not in memory.
fn key_is_resident(loaded: &LoadedRun, query: &Query<'_>) -> bool {
    let in_memory = |bytes: Option<&[u8]>| bytes.is_none_or(is_resident);
    places(loaded, std::slice::from_ref(query)).iter().all(|place| {
        place.segment.is_parsed(place.number)
            && place.batch().is_none_or(|batch| {
                let keys = &batch.columns.keys;
                in_memory(key_offsets(keys, place.within)) && in_memory(keys.get(place.within))
            })
    })
}

/// The offsets of a key of variable length.
fn key_offsets(column: &KeyColumn, row: usize) -> Option<&[u8]> {
    match column {
        KeyColumn::U64(_) => None,
        KeyColumn::Variable { offsets, .. } => offset_pair(offsets, row),
    }
}

fn offset_pair(offsets: &[u8], row: usize) -> Option<&[u8]> {
    let start = row.checked_mul(4)?;
    offsets.get(start..start.checked_add(8)?)
}

/// The row's checksum, if it will be compared. Rows in memory have none.
fn crc<'a>(row: &'a Row<'_>, verify: Verify) -> Option<&'a [u8]> {
    match &row.holder {
        Holder::Pending(..) => None,
        Holder::Batch(batch, _) => batch.crc_to_compare(row.row, verify),
        Holder::Cached(cached) => cached.batch.crc_to_compare(row.row, verify),
    }
}

/// The offsets of the row's values of variable length.
fn offsets<'a>(row: &'a Row<'_>) -> impl Iterator<Item = &'a [u8]> {
    let of_leaf = |leaf: &'a LeafColumn| match leaf {
        LeafColumn::Variable { offsets, dims, rank, .. } => {
            let width = rank.saturating_mul(4);
            let start = row.row.saturating_mul(width);
            [offset_pair(offsets, row.row), dims.get(start..start.saturating_add(width))]
        }
        LeafColumn::Fixed { .. } | LeafColumn::Bits(_) => [None, None],
    };
    row.columns().leaves.iter().flat_map(of_leaf).flatten()
}

/// The stored bytes of the leaves of a row that are read.
fn values<'a, 'v>(row: &'a Row<'v>, reads: &impl Fn(&Row<'v>, usize) -> bool) -> impl Iterator<Item = &'a [u8]> {
    let leaves = row.columns().leaves.iter().enumerate().filter(|(leaf, _)| reads(row, *leaf));
    leaves.filter_map(|(_, leaf)| Some(leaf.get(row.row)?.as_slice()))
}

fn path_of<'a>(row: &'a Row<'_>) -> Option<&'a Path> {
    match &row.holder {
        Holder::Pending(..) => None,
        Holder::Batch(batch, _) => Some(batch.path()),
        Holder::Cached(cached) => Some(cached.batch.path()),
    }
}
