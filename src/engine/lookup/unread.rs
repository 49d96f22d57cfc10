//! Rows that damage keeps from being read: what they may be the rows of, and what makes them count no more.
//!
//! A row that cannot be read may be the newest of any key with its hash, so neither a miss nor an older row is true
//! beside it. A newer row is: commit timestamps say how new an unreadable row can be at the most.

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
    /// How new it is, or can be.
    pub version: RowVersion,
    pub error: Error,
}

impl Unread {
    /// Any row, the newest there can be included.
    pub(crate) fn any(error: Error) -> Self {
        Self { version: RowVersion::NEWEST, error }
    }

    /// Row `row` of `segment`.
    pub(crate) fn of_segment(segment: &Segment, row: u32, error: Error) -> Self {
        Self { version: RowVersion::of_segment(segment, row), error }
    }
}

/// The key hash of a row that cannot be read, where the index block or the ordered keys tell it. O(1), but O(rows) the
/// first time.
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

/// Whether a row that cannot be read may be of a key with this hash.
pub(crate) fn may_be(state: &State, segment: &Segment, row: u32, hash: u64) -> bool {
    row_hash(state, segment, row).is_none_or(|known| known == hash)
}

/// Whether row `row` of `segment`, which cannot be read, does not count any more: a row with its hash is newer, and
/// can be read. (A hash of which tests keep a few bits tells nothing.)
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

/// The keys of some rows of `segment` that cannot be read, as far as anything tells them: the ordered keys, or bytes in
/// their place that have their hash, or had it before one of them was changed. O(keys of the segment).
pub(crate) fn keys_of_unread(state: &State, segment: &Segment, rows: &[u32]) -> Vec<Key> {
    /// Rows of which changed bytes are tried: each takes some microseconds.
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

/// The bytes in the place of a key, if they have the row's hash, or have it with one of them changed, which is one of
/// the `tries`.
fn mended_key(state: &State, segment: &Segment, row: u32, tries: &mut usize) -> Option<Vec<u8>> {
    /// Bytes of a key that are tried: integers, and short names.
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

/// Whether row `row` of a source cannot be read and does not count any more.
pub(crate) fn is_superseded_in(state: &State, source: &Source, row: u32) -> bool {
    matches!(source, Source::Sealed(segment) if is_superseded(state, segment, row))
}
