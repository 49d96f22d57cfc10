//! Rows that cannot be read because of damage: which keys they may have, and when they no longer matter.
//!
//! An unreadable row may be the newest of any key with its hash, so neither a miss nor an older row is a correct
//! answer. A newer row is: commit timestamps bound how new an unreadable row can be.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::rows::ordered_keys::ordered_keys;
use crate::engine::rows::row::{Row, RowVersion, Source};
use crate::engine::runs::hashes::whole_block;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::Error;
use crate::key::Key;
use crate::segment::reader::Segment;

/// A row that cannot be read.
#[derive(Debug)]
pub(crate) struct Unread {
    /// How new it is, or can be at most.
    pub version: RowVersion,
    pub error: Error,
}

impl Unread {
    /// Stands for any row, even the newest.
    pub(crate) fn any(error: Error) -> Self {
        Self { version: RowVersion::NEWEST, error }
    }

    /// Row `row` of `segment`.
    pub(crate) fn of_segment(segment: &Segment, row: u32, error: Error) -> Self {
        Self { version: RowVersion::of_segment(segment, row), error }
    }
}

/// The key hash of an unreadable row, if the index block or the ordered keys have it. O(rows) at the first call, O(1)
/// after that.
pub(crate) fn row_hash(state: &State, segment: &Segment, row: u32) -> Option<u64> {
    let hashes = segment.row_hashes.get_or_init(|| row_hashes(state, segment).unwrap_or_default().into());
    hashes.get(row as usize).copied().flatten()
}

fn row_hashes(state: &State, segment: &Segment) -> Option<Vec<Option<u64>>> {
    let rows = segment.rows() as usize;
    let mut hashes: Vec<Option<u64>> = Vec::new();
    hashes.try_reserve_exact(rows).ok()?;
    hashes.resize(rows, None);
    let mut tell = |row: u32, hash: u64| {
        if let Some(place) = hashes.get_mut(row as usize) {
            *place = Some(hash);
        }
    };
    match whole_block(segment) {
        Some(block) => block.iter().for_each(|(hash, row)| tell(row, hash)),
        None => {
            let fst = ordered_keys(segment)?;
            let walked = fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
                tell(row, state.hasher().hash(key));
                Ok(ControlFlow::Continue(()))
            });
            walked.ok()?;
        }
    }
    Some(hashes)
}

/// Whether an unreadable row may have a key with this hash.
pub(crate) fn may_be(state: &State, segment: &Segment, row: u32, hash: u64) -> bool {
    row_hash(state, segment, row).is_none_or(|known| known == hash)
}

/// Whether `row` of `segment`, which cannot be read, no longer matters: a newer row with its hash can be read. Always
/// false if tests keep only a few bits of the hash.
pub(crate) fn is_superseded(state: &State, segment: &Segment, row: u32) -> bool {
    let Some(hash) = row_hash(state, segment, row).filter(|_| state.hasher().is_whole()) else { return false };
    let version = RowVersion::of_segment(segment, row);
    let newer =
        |row: &Row<'_>| row.version() > version && row.key().is_some_and(|key| state.hasher().hash(key) == hash);
    let mut entries = Vec::new();
    state.memtable().find(hash, &mut |entry| entries.push(entry));
    let in_memtable = entries.into_iter().any(|entry| {
        let source = state.memtable().source(entry.batch);
        let row = source.and_then(|source| source.row(entry.batch, entry.row).ok().flatten());
        row.is_some_and(|row| newer(&row))
    });
    let in_run = |loaded: &Arc<LoadedRun>| {
        let mut any = false;
        let _damaged = loaded.run().find(hash, &mut |run_row| {
            let row = loaded.current(run_row);
            let place = row.and_then(|row| loaded.locator().segment_row(loaded.segments(), row));
            let row = place.and_then(|(segment, row)| Row::of_segment(segment, row).ok().flatten());
            any |= row.is_some_and(|row| newer(&row));
        });
        any
    };
    in_memtable || state.versions().load().runs().iter().any(in_run)
}

/// The known keys of `rows` of `segment`, which cannot be read: from the ordered keys, or from the key's bytes if they
/// match the row's hash, possibly after one byte is changed. O(keys of the segment).
pub(crate) fn keys_of_unread(state: &State, segment: &Segment, rows: &[u32]) -> Vec<Key> {
    /// Rows whose key is tried with one byte changed, which takes some microseconds each.
    const MOST_MENDED: usize = 1 << 14;
    let kind = segment.schema().key;
    let mut keys: BTreeMap<u32, Key> = BTreeMap::new();
    if let Some(fst) = ordered_keys(segment) {
        let _malformed = fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
            if rows.binary_search(&row).is_ok()
                && let Some(key) = kind.decode(key)
            {
                keys.insert(row, key);
            }
            Ok(ControlFlow::Continue(()))
        });
    }
    let mut tries = MOST_MENDED;
    for &row in rows {
        if !keys.contains_key(&row)
            && let Some(key) = mended_key(state, segment, row, &mut tries).and_then(|key| kind.decode(&key))
        {
            keys.insert(row, key);
        }
    }
    keys.into_values().collect()
}

/// The bytes of an unreadable row's key, if they match the row's hash, possibly after one byte is changed. Trying to
/// change bytes takes one of `tries`.
fn mended_key(state: &State, segment: &Segment, row: u32, tries: &mut usize) -> Option<Vec<u8>> {
    /// Key bytes that are tried: integers and short names.
    const MOST_BYTES: usize = 16;
    let hash = row_hash(state, segment, row).filter(|_| state.hasher().is_whole())?;
    let (number, within) = segment.locate(row).ok().flatten()?;
    let damaged = segment.parsed(number).ok()?.as_ref().err()?;
    let mut key = damaged.unchecked_key(within)?.to_vec();
    if state.hasher().hash(&key) == hash {
        return Some(key);
    }
    *tries = tries.checked_sub(1)?;
    for at in 0..key.len().min(MOST_BYTES) {
        let found = key.get(at).copied()?;
        for byte in 0..=u8::MAX {
            *key.get_mut(at)? = byte;
            if state.hasher().hash(&key) == hash {
                return Some(key);
            }
        }
        *key.get_mut(at)? = found;
    }
    None
}

/// Whether row `row` of a source cannot be read and no longer matters.
pub(crate) fn is_superseded_in(state: &State, source: &Source, row: u32) -> bool {
    matches!(source, Source::Sealed(segment) if is_superseded(state, segment, row))
}
