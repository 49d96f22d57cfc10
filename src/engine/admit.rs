//! Rows enter the memtable: each is weighed against the newest row of its key, counted, and supersedes cached values.

use std::path::Path;
use std::sync::Arc;

use crate::engine::lookup::find::{locate, locate_merged, may_hold};
use crate::engine::rows::row::{BatchId, Row, Source};
use crate::engine::runs::hashes::hash_block;
use crate::engine::state::State;
use crate::engine::state::memtable::Inserting;
use crate::engine::state::versions::LoadedRun;
use crate::error::Result;
use crate::index::block::HashBlock;
use crate::io::ReadFile;
use crate::segment::batch::Batch;
use crate::segment::columns::Columns;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::Front;

/// Rows of a put whose buckets are prefetched together: their waits for memory overlap.
const PREFETCHED: usize = 32;

/// A row that enters: its hash, its batch and its number there, and whether it says that its key was deleted.
#[derive(Debug, Clone, Copy)]
struct Entering {
    hash: u64,
    batch: BatchId,
    row: u32,
    tombstone: bool,
}

/// Whether a run has the tag of `hash`. A damaged one may hold anything.
fn in_runs(runs: &[Arc<LoadedRun>], hash: u64) -> bool {
    let mut any = false;
    runs.iter().any(|loaded| loaded.run().find(hash, &mut |_| any = true).is_err() || any)
}

/// Enters a row into the memtable if it is the newest of its key. `fetch` gets the row itself, which is only needed
/// when its hash is there already.
///
/// Never fails: where damage keeps it from finding what the row supersedes, the row enters all the same, and the count
/// of live keys is marked as unknown.
fn admit(
    state: &State,
    inserting: &Inserting<'_>,
    entering: Entering,
    fetch: impl FnOnce() -> Result<Option<Row<'static>>>,
) {
    let Entering { hash, batch, row, tombstone } = entering;
    let enter = || {
        state.memtable().insert(inserting, hash, (batch, row));
        state.live().add(i64::from(!tombstone));
    };
    if !may_hold(state, hash) {
        return enter();
    }
    let new = match fetch() {
        Ok(Some(new)) => new,
        Ok(None) => return,
        // The row enters unweighed: a lookup of its key must report the damage, and not serve an older row.
        Err(_) => {
            enter();
            state.value_cache().supersede_all();
            return state.live().set(None);
        }
    };
    let Some(key) = new.key() else { return };
    let supersede = || state.value_cache().supersede(std::iter::once((hash, key)));
    let found = match locate(state, hash, key) {
        Ok(Some(found)) => found,
        Ok(None) => return enter(),
        Err(_) => {
            enter();
            supersede();
            return state.live().set(None);
        }
    };
    if found.row.version() >= new.version() {
        // What waits here may be getting an older timestamp just now than this row of another lane has.
        if found.row.waits() && !new.waits() {
            state.memtable().insert(inserting, hash, (batch, row));
            if tombstone != found.row.is_tombstone() {
                state.live().set(None);
            }
        }
        return;
    }
    let replaced = found.entry.is_some_and(|old| state.memtable().replace(inserting, hash, old, (batch, row)));
    if !replaced {
        state.memtable().insert(inserting, hash, (batch, row));
    }
    state.live().add(i64::from(!tombstone) - i64::from(!found.row.is_tombstone()));
    supersede();
}

/// Enters the rows of a put, which are newer than all others, as batch `batch`. Returns when each is the one that is
/// read.
///
/// Most keys of a put are new. So rows enter together, without a look at what they may supersede; only those whose hash
/// was there are weighed one by one. That keeps one entry per key however often it is overwritten. Then the runs are
/// asked, for the count of live keys alone: a row in them is older, and stays where it is.
pub(crate) fn admit_put(
    state: &State,
    inserting: &Inserting<'_>,
    hashes: &[u64],
    columns: &Columns,
    (batch, source): (BatchId, &Source),
) {
    let taken = state.memtable().insert_new(inserting, hashes, batch);
    admit_taken(state, inserting, hashes, columns, (batch, source), taken);
}

/// The second half of [`admit_put`], with what the first one, [`Memtable::insert_new`], left over.
///
/// [`Memtable::insert_new`]: crate::engine::state::memtable::Memtable::insert_new
pub(crate) fn admit_taken(
    state: &State,
    inserting: &Inserting<'_>,
    hashes: &[u64],
    columns: &Columns,
    (batch, source): (BatchId, &Source),
    taken: Vec<u32>,
) {
    let tombstone = columns.schema.is_tombstones();
    let entered = hashes.len() - taken.len();
    settle(state, hashes, columns, &taken, if tombstone { 0 } else { entered as i64 });
    for row in taken {
        if let Some(&hash) = hashes.get(row as usize) {
            admit(state, inserting, Entering { hash, batch, row, tombstone }, || source.row(batch, row));
        }
    }
    let keys = hashes.iter().enumerate().filter_map(|(row, hash)| Some((*hash, columns.key(row)?)));
    state.value_cache().supersede(keys);
}

/// Counts `entered` more live keys, less those that the runs have already. Rows of `taken` (ascending) are not looked
/// at.
fn settle(state: &State, hashes: &[u64], columns: &Columns, taken: &[u32], entered: i64) {
    let version = state.versions().load();
    let runs = version.runs();
    let mut superseded = 0;
    if !runs.is_empty() {
        for (first, chunk) in (0..).step_by(PREFETCHED).zip(hashes.chunks(PREFETCHED)) {
            runs.iter().for_each(|loaded| chunk.iter().for_each(|hash| loaded.run().prefetch(*hash)));
            for (row, hash) in (first..).zip(chunk) {
                if taken.binary_search(&row).is_ok() || !in_runs(runs, *hash) {
                    continue;
                }
                let Some(key) = columns.key(row as usize) else { continue };
                match locate_merged(state, *hash, key) {
                    Ok(found) => superseded += i64::from(found.is_some_and(|row| !row.is_tombstone())),
                    // Damage hides what the row supersedes.
                    Err(_) => return state.live().set(None),
                }
            }
        }
    }
    state.live().add(entered - superseded);
}

/// Enters all rows of a sealed segment. O(rows).
///
/// # Errors
/// As [`hash_block`].
pub(crate) fn admit_segment(state: &State, segment: &Arc<Segment>) -> Result<()> {
    admit_block(state, segment, &hash_block(state, segment)?)
}

/// The same, with the segment's hashes.
///
/// # Errors
/// [`crate::Error::ReadOnly`] when the batch ids are used up.
pub(crate) fn admit_block(state: &State, segment: &Arc<Segment>, block: &HashBlock) -> Result<()> {
    let batch = state.memtable().add_batch(Source::Sealed(Arc::clone(segment)), segment.rows())?;
    let tombstone = segment.schema().is_tombstones();
    let inserting = state.memtable().lock_inserts();
    for (hash, row) in block.iter() {
        let entering = Entering { hash, batch, row, tombstone };
        admit(state, &inserting, entering, || Row::of_segment(segment, row));
    }
    Ok(())
}

/// Enters the rows of one committed batch.
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
    state.clock().saw(frame.stamp);
    let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
    let batch = Arc::new(Batch::parse(path, &front.schema, frame, &message, false)?);
    let source = Source::Committed { segment: front.header.id(), batch: Arc::clone(&batch), first: 0 };
    let id = state.memtable().add_batch(source.clone(), frame.rows)?;
    let tombstone = front.schema.is_tombstones();
    let inserting = state.memtable().lock_inserts();
    for row in 0..frame.rows {
        if let Some(key) = batch.columns.key(row as usize) {
            let entering = Entering { hash: state.hasher().hash(key), batch: id, row, tombstone };
            admit(state, &inserting, entering, || source.row(id, row));
        }
    }
    Ok(batch)
}
