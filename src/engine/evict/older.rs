//! Finds the rows whose key may have an older row elsewhere. If such a row just disappeared, the older one would count
//! again, so a tombstone has to take its place.

use std::sync::Arc;

use crate::engine::rows::row::{RowVersion, Source};
use crate::engine::runs::hashes::hash_block;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::engine::state::versions::Version;
use crate::error::Result;
use crate::segment::reader::Segment;

/// A row that is evicted.
#[derive(Debug)]
struct Leaving {
    hash: u64,
    version: RowVersion,
    source: usize,
    row: u32,
    /// Whether an older row of its key may exist elsewhere.
    hides: bool,
}

/// The rows of `sources`, as (number of the source, row), that may hide an older row outside of them, in commit order.
/// All rows, while files are damaged or missing, since their rows may come back. Only hashes are compared, so a few rows
/// are named needlessly.
///
/// O(rows of the sources), and O(rows) of each segment with rows older than the newest of theirs: all sequential. A
/// store that nobody overwrites, and that evicts its oldest segments, has no such segments.
///
/// # Errors
/// IO errors; [`crate::Error::Corrupt`] if hashes or keys cannot be read.
pub(super) fn rows_that_hide(state: &State, sources: &[Arc<Segment>]) -> Result<Vec<(usize, u32)>> {
    let newest = sources.iter().map(|source| source.seal.last_timestamp).max().unwrap_or(0);
    let known = state.registry().lock();
    let all = known.bad_files() > 0 || !known.missing().is_empty();
    drop(known);
    // In this order, since rows move from the memtable to the version.
    let batches = state.memtable().sorted();
    let version = state.versions().load_full();
    let is_source = |segment: &Segment| sources.iter().any(|source| source.id == segment.id);
    let others: Vec<&Arc<Segment>> = version
        .segments()
        .values()
        .filter(|other| !other.schema().is_tombstones() && other.seal.first_timestamp <= newest && !is_source(other))
        .collect();
    let unsealed: Vec<MemBatch> =
        batches.into_iter().filter_map(|(_, batch)| older_unsealed(batch, &version, newest)).collect();
    if !all && others.is_empty() && unsealed.is_empty() {
        return Ok(Vec::new());
    }
    let mut leaving = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let block = hash_block(state, source)?;
        leaving.extend(block.iter().map(|(hash, row)| {
            let version = RowVersion::of_segment(source, row);
            Leaving { hash, version, source: number, row, hides: all }
        }));
    }
    leaving.sort_unstable_by_key(|row| row.hash);
    if !all {
        others.iter().try_for_each(|other| mark_segment(state, &mut leaving, other))?;
        unsealed.iter().try_for_each(|batch| mark_batch(state, &mut leaving, batch))?;
    }
    leaving.retain(|row| row.hides);
    leaving.sort_unstable_by_key(|row| (row.version.timestamp, row.source, row.row));
    Ok(leaving.into_iter().map(|row| (row.source, row.row)).collect())
}

/// A batch of values that is in no segment of `version` but committed, with a row as old as `newest`: in an active
/// segment, or in a damaged one.
fn older_unsealed(mut batch: MemBatch, version: &Version, newest: u64) -> Option<MemBatch> {
    batch.source = batch.source.now();
    match &batch.source {
        Source::Committed { segment, batch: committed, .. } => {
            let is_older = committed.first_timestamp() <= newest && !batch.source.is_tombstones();
            (is_older && !version.segments().contains_key(segment)).then_some(batch)
        }
        // Rows that wait get later timestamps.
        Source::Pending(_) | Source::Sealed(_) => None,
    }
}

/// Marks the rows of which `other` may have an older one. Both are sorted by hash.
fn mark_segment(state: &State, leaving: &mut [Leaving], other: &Segment) -> Result<()> {
    let block = hash_block(state, other)?;
    let mut from = 0;
    for (hash, row) in block.iter() {
        while leaving.get(from).is_some_and(|leaving| leaving.hash < hash) {
            from += 1;
        }
        if leaving.get(from).is_none_or(|leaving| leaving.hash != hash) {
            continue;
        }
        let version = RowVersion::of_segment(other, row);
        mark(leaving.iter_mut().skip(from), hash, version);
    }
    Ok(())
}

/// Marks the rows of which a batch that is not sealed may have an older one.
fn mark_batch(state: &State, leaving: &mut [Leaving], batch: &MemBatch) -> Result<()> {
    for row in 0..batch.rows {
        let Some(found) = batch.source.row(0, row)? else { continue };
        let Some(key) = found.key() else { continue };
        let hash = state.hasher().hash(key);
        let from = leaving.partition_point(|leaving| leaving.hash < hash);
        mark(leaving.iter_mut().skip(from), hash, found.version());
    }
    Ok(())
}

fn mark<'l>(leaving: impl Iterator<Item = &'l mut Leaving>, hash: u64, version: RowVersion) {
    let same = leaving.take_while(|leaving| leaving.hash == hash);
    same.for_each(|leaving| leaving.hides |= leaving.version > version);
}
