//! Inserts rows into the memtable: compares each with the newest row of its key, keeps the count of live keys, and
//! drops superseded values from the value cache.

use std::path::Path;
use std::sync::Arc;

use crate::engine::lookup::find::{Finder, in_runs, may_hold};
use crate::engine::lookup::query::{Found, Query};
use crate::engine::rows::row::{BatchId, Row, Source};
use crate::engine::runs::hashes::hash_block;
use crate::engine::state::State;
use crate::engine::state::memtable::Inserting;
use crate::error::Result;
use crate::index::block::HashBlock;
use crate::io::ReadFile;
use crate::key::KeyRef;
use crate::segment::batch::Batch;
use crate::segment::columns::Columns;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::Front;

/// Rows of a put whose buckets are prefetched together, so that their memory accesses overlap.
const PREFETCHED: usize = 32;

/// A row to insert: its hash, its batch and its number there, and whether it is a tombstone.
#[derive(Debug, Clone, Copy)]
struct Entering {
    hash: u64,
    batch: BatchId,
    row: u32,
    tombstone: bool,
}

/// Inserts a row into the memtable if it is the newest of its key. `fetch` reads the row, which is only needed when its
/// hash is there already.
///
/// Never fails: if damage hides what the row supersedes, the row is inserted anyway, and the count of live keys is
/// marked as unknown.
fn admit(
    state: &State,
    (inserting, finder): (&Inserting<'_>, &mut Finder),
    entering: Entering,
    fetch: impl FnOnce() -> Result<Option<Row<'static>>>,
) {
    let hash = entering.hash;
    if !may_hold(state, hash) {
        return entering.enter(state, inserting);
    }
    let new = match fetch() {
        Ok(Some(new)) => new,
        Ok(None) => return,
        // Insert without a comparison: a lookup of the key must report the damage and not serve an older row.
        Err(_) => return entering.enter_unweighed(state, inserting),
    };
    // The key offsets are forged.
    let Some(key) = new.key() else { return entering.enter_unweighed(state, inserting) };
    let query = Query { key: KeyRef::Bytes(key), hash };
    let superseded = finder.find_one(state, query, |found| match found {
        Ok(Some(found)) => entering.supersede(state, inserting, &new, &found),
        Ok(None) => {
            entering.enter(state, inserting);
            false
        }
        Err(_) => {
            entering.enter(state, inserting);
            state.live().set(None);
            true
        }
    });
    if superseded {
        state.value_cache().supersede(std::iter::once((hash, key)));
    }
}

impl Entering {
    /// Inserts the row as that of a new key.
    fn enter(self, state: &State, inserting: &Inserting<'_>) {
        state.memtable().insert(inserting, self.hash, (self.batch, self.row));
        state.live().add(i64::from(!self.tombstone));
    }

    /// Inserts the row although its key cannot be read.
    fn enter_unweighed(self, state: &State, inserting: &Inserting<'_>) {
        self.enter(state, inserting);
        state.value_cache().supersede_all();
        state.live().set(None);
    }

    /// Inserts the row, which is `new`, if it is newer than `found`. Returns whether it is.
    fn supersede(self, state: &State, inserting: &Inserting<'_>, new: &Row<'_>, found: &Found<'_>) -> bool {
        let Self { hash, batch, row, tombstone } = self;
        if found.row.version() >= new.version() {
            // The waiting row that was found may at this moment get an older timestamp than this row of another lane.
            if found.row.waits() && !new.waits() {
                state.memtable().insert(inserting, hash, (batch, row));
                if tombstone != found.row.is_tombstone() {
                    state.live().set(None);
                }
            }
            return false;
        }
        let replaced = found.entry.is_some_and(|old| state.memtable().replace(inserting, hash, old, (batch, row)));
        if !replaced {
            state.memtable().insert(inserting, hash, (batch, row));
        }
        state.live().add(i64::from(!tombstone) - i64::from(!found.row.is_tombstone()));
        true
    }
}

/// Inserts the rows of a put, which are newer than all others, as batch `batch`. When it returns, lookups find them.
pub(crate) fn admit_put(
    state: &State,
    inserting: &Inserting<'_>,
    hashes: &[u64],
    columns: &Columns,
    (batch, source): (BatchId, &Source),
) {
    let entered = enter_new(state, inserting, hashes, batch);
    admit_rest(state, inserting, hashes, columns, (batch, source), entered);
}

/// The rows of a put that need a closer look, in ascending order.
#[derive(Debug)]
pub(crate) struct Entered {
    /// Their hash was in the memtable, so they are not inserted yet.
    occupied: Vec<u32>,
    /// They are inserted, and their hash may be in a run.
    in_runs: Vec<u32>,
}

/// The first half of [`admit_put`], which needs no keys.
///
/// Most keys of a put are new, so rows are inserted together, without looking at what they may supersede. Only rows
/// whose hash was there are compared one by one, which keeps one entry per key however often it is overwritten. Then
/// the runs are searched, only for the count of live keys: their rows are older and stay where they are.
pub(crate) fn enter_new(state: &State, inserting: &Inserting<'_>, hashes: &[u64], batch: BatchId) -> Entered {
    let occupied = state.memtable().insert_new(inserting, hashes, batch);
    let mut in_runs_too = Vec::new();
    let version = state.versions().load();
    let runs = version.runs();
    if !runs.is_empty() {
        for (first, chunk) in (0..).step_by(PREFETCHED).zip(hashes.chunks(PREFETCHED)) {
            runs.iter().for_each(|loaded| chunk.iter().for_each(|hash| loaded.run().prefetch(*hash)));
            let rows = (first..).zip(chunk).filter(|(_, hash)| in_runs(runs, **hash)).map(|(row, _)| row);
            in_runs_too.extend(rows.filter(|row| occupied.binary_search(row).is_err()));
        }
    }
    Entered { occupied, in_runs: in_runs_too }
}

/// The second half of [`admit_put`].
pub(crate) fn admit_rest(
    state: &State,
    inserting: &Inserting<'_>,
    hashes: &[u64],
    columns: &Columns,
    (batch, source): (BatchId, &Source),
    entered: Entered,
) {
    let tombstone = columns.schema.is_tombstones();
    let Entered { occupied, in_runs } = entered;
    let values = if tombstone { 0 } else { (hashes.len() - occupied.len()) as i64 };
    match values_in_runs(state, hashes, columns, &in_runs) {
        Some(superseded) => state.live().add(values - superseded),
        // Damage hides what a row supersedes.
        None => state.live().set(None),
    }
    if !occupied.is_empty() {
        let mut finder = Finder::new(0);
        for row in occupied {
            if let Some(&hash) = hashes.get(row as usize) {
                let entering = Entering { hash, batch, row, tombstone };
                admit(state, (inserting, &mut finder), entering, || source.row(batch, row));
            }
        }
    }
    let keys = hashes.iter().enumerate().filter_map(|(row, hash)| Some((*hash, columns.key(row)?)));
    state.value_cache().supersede(keys);
}

/// How many of the keys of `rows` have a value in the runs; `None` if damage hides that.
fn values_in_runs(state: &State, hashes: &[u64], columns: &Columns, rows: &[u32]) -> Option<i64> {
    let query = |row: &u32| {
        let row = *row as usize;
        Some(Query { key: KeyRef::Bytes(columns.key(row)?), hash: *hashes.get(row)? })
    };
    let queries: Vec<Query<'_>> = rows.iter().filter_map(query).collect();
    if queries.is_empty() {
        return Some(0);
    }
    Finder::new(0).find_merged(state, &queries, |found| {
        let values = found.rows.iter().flatten().filter(|row| !row.is_tombstone()).count();
        found.errors.is_empty().then_some(values as i64)
    })
}

/// Inserts all rows of a sealed segment. O(rows).
///
/// # Errors
/// As [`hash_block`].
pub(crate) fn admit_segment(state: &State, segment: &Arc<Segment>) -> Result<()> {
    admit_block(state, segment, &hash_block(state, segment)?)
}

/// As [`admit_segment`], with the segment's hashes.
///
/// # Errors
/// [`crate::Error::ReadOnly`] when the batch ids are used up.
pub(crate) fn admit_block(state: &State, segment: &Arc<Segment>, block: &HashBlock) -> Result<()> {
    let batch = state.memtable().add_batch(Source::Sealed(Arc::clone(segment)), segment.rows())?;
    let tombstone = segment.schema().is_tombstones();
    let mut finder = Finder::new(0);
    let inserting = state.memtable().lock_inserts();
    for (hash, row) in block.iter() {
        let entering = Entering { hash, batch, row, tombstone };
        admit(state, (&inserting, &mut finder), entering, || Row::of_segment(segment, row));
    }
    Ok(())
}

/// Inserts the rows of one committed batch.
///
/// # Errors
/// IO errors, [`crate::Error::Corrupt`] if the batch is damaged.
pub(crate) fn admit_batch(
    state: &State,
    front: &Front,
    file: &dyn ReadFile,
    path: &Arc<Path>,
    frame: Frame,
) -> Result<Arc<Batch>> {
    state.clock().saw(frame.timestamp);
    let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
    let batch = Arc::new(Batch::parse(path, front.rows(), frame, &message, false)?);
    let source = Source::Committed { segment: front.header.id(), batch: Arc::clone(&batch), first: 0 };
    let id = state.memtable().add_batch(source.clone(), frame.rows)?;
    let tombstone = front.schema.is_tombstones();
    let mut finder = Finder::new(0);
    let inserting = state.memtable().lock_inserts();
    for row in 0..frame.rows {
        if let Some(key) = batch.columns.key(row as usize) {
            let entering = Entering { hash: state.hasher().hash(key), batch: id, row, tombstone };
            admit(state, (&inserting, &mut finder), entering, || source.row(id, row));
        }
    }
    Ok(batch)
}
