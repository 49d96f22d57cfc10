//! Replaces segments by a compacted one in the version and the memtable, both in the process that wrote it and in
//! processes that follow its lane.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::engine::lookup::find::Finder;
use crate::engine::lookup::query::{Found, Query};
use crate::engine::rows::row::{BatchId, Row};
use crate::engine::rows::row_map::RowMap;
use crate::engine::runs::hashes::hash_block;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::engine::state::replaced::Gone;
use crate::error::Result;
use crate::index::block::HashBlock;
use crate::key::KeyRef;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// Publishes `segment` in the place of others. `has_all`: whether it has no rows but theirs. The caller holds the
/// registry, so that nobody enters rows of these segments meanwhile. `before` is called first, while no thread can insert
/// rows. O(entries of the memtable) if it has rows of them.
///
/// # Errors
/// [`crate::Error::ReadOnly`] when the batch ids are used up; nothing is changed then.
pub(crate) fn replace_segments(
    state: &State,
    segment: &Arc<Segment>,
    old: &[Gone],
    has_all: bool,
    before: impl FnOnce(),
) -> Result<()> {
    let by_id: HashMap<SegmentId, &RowMap> = old.iter().map(|old| (old.id, &*old.map)).collect();
    let inserting = state.memtable().lock_inserts();
    before();
    state.memtable().replace_segments(&inserting, segment, |id| by_id.get(&id).copied())?;
    let all_sealed = old.iter().all(|old| old.segment.is_some());
    state.versions().replace_segments(segment, old, has_all && all_sealed);
    drop(inserting);
    Ok(())
}

/// Whether a row of the old segments has no copy in `new` although this process knows no newer row of its key. Then the
/// key was deleted since the last refresh, and its tombstone is gone too, or the row was evicted. True if a row cannot
/// be read. O(rows).
pub(crate) fn hides_deletion(state: &State, new: &Segment, old: &[Gone]) -> bool {
    // Eviction maps a row to a tombstone.
    let keeps_values = !new.schema().is_tombstones();
    old.iter().any(|old| {
        let Some(segment) = &old.segment else { return true };
        let mut finder = Finder::new(1);
        let mut gone = (0..segment.rows()).filter(|row| !keeps_values || old.map.get(*row).is_none());
        !segment.schema().is_tombstones()
            && gone.any(|row| {
                let Ok(Some(row)) = Row::of_segment(segment, row) else { return true };
                let Some(key) = row.key() else { return true };
                let query = Query { key: KeyRef::Bytes(key), hash: state.hasher().hash(key) };
                let newest = |found: Result<Option<Found<'_>>>| {
                    found.map_or(true, |found| found.is_some_and(|found| found.row.version() <= row.version()))
                };
                finder.find_one(state, query, newest)
            })
    })
}

/// Where the rows of the sealed segment `old` are in `new`, which was written from it and others. O(rows).
///
/// # Errors
/// IO errors; [`crate::Error::Corrupt`] if the index or the keys of either segment cannot be read.
pub(crate) fn join(state: &State, old: &Segment, new: &Segment) -> Result<RowMap> {
    let rows: Vec<(u64, u32)> = hash_block(state, old)?.iter().collect();
    join_rows(&rows, old.rows(), |row| Row::of_segment(old, row), new, &hash_block(state, new)?)
}

/// As [`join`], for a segment `old` that was followed while it was active, so that its rows are in the memtable.
///
/// # Errors
/// As [`join`].
pub(crate) fn join_active(state: &State, old: SegmentId, new: &Segment) -> Result<RowMap> {
    let batches = state.memtable().sorted().into_iter().filter(|(_, batch)| batch.source.segment() == Some(old));
    let batches: BTreeMap<u64, (BatchId, MemBatch)> =
        batches.filter_map(|(id, batch)| Some((batch.source.first_row()?.1, (id, batch)))).collect();
    let find = |row: u32| {
        let Some((first, (id, batch))) = batches.range(..=u64::from(row)).next_back() else { return Ok(None) };
        batch.source.row(*id, (u64::from(row) - first) as u32)
    };
    let mut rows: Vec<(u64, u32)> = Vec::new();
    for (first, (id, batch)) in &batches {
        for row in 0..batch.rows {
            if let Some(found) = batch.source.row(*id, row)?
                && let Some(key) = found.key()
            {
                rows.push((state.hasher().hash(key), *first as u32 + row));
            }
        }
    }
    rows.sort_unstable();
    let end = rows.iter().map(|(_, row)| row + 1).max().unwrap_or(0);
    join_rows(&rows, end, find, new, &hash_block(state, new)?)
}

/// Joins on key and commit timestamp, which a row shares with its copy. `rows` are sorted by hash.
fn join_rows(
    rows: &[(u64, u32)],
    len: u32,
    find: impl Fn(u32) -> Result<Option<Row<'static>>>,
    new: &Segment,
    block: &HashBlock,
) -> Result<RowMap> {
    let mut map = RowMap::builder(len);
    let mut candidates = block.iter().peekable();
    let mut same: Vec<(u64, u32)> = Vec::new();
    for &(hash, row) in rows {
        if same.first().is_none_or(|(other, _)| *other != hash) {
            same.clear();
            while candidates.next_if(|(other, _)| *other < hash).is_some() {}
            same.extend(std::iter::from_fn(|| candidates.next_if(|(other, _)| *other == hash)));
        }
        if same.is_empty() {
            continue;
        }
        let Some(found) = find(row)? else { continue };
        for &(_, candidate) in &same {
            let copy = Row::of_segment(new, candidate)?;
            let is_copy =
                |copy: &Row<'_>| copy.version().timestamp == found.version().timestamp && copy.key() == found.key();
            if copy.is_some_and(|copy| is_copy(&copy)) {
                map.set(row, candidate);
            }
        }
    }
    Ok(map.finish())
}
