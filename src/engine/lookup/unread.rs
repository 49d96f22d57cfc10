//! Rows that damage keeps from being read: what they may be the rows of, and what makes them count no more.
//!
//! A row that cannot be read may be the newest of any key with its hash, so neither a miss nor an older row is true
//! beside it. A newer row is: stamps say how new an unreadable row can be at the most.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::lookup::find::Found;
use crate::engine::rows::row::{Age, Row, Source};
use crate::engine::state::{Core, LoadedRun};
use crate::error::{Error, Result};
use crate::index::block::HashBlock;
use crate::index::keys_fst::KeysFst;
use crate::key::Key;
use crate::segment::reader::Segment;

/// A row that cannot be read.
#[derive(Debug)]
pub(crate) struct Unread {
    /// How new it is, or can be.
    pub age: Age,
    pub error: Error,
}

impl Unread {
    /// Row `row` of `segment`.
    pub(crate) fn of_segment(segment: &Segment, row: u32, error: Error) -> Self {
        Self { age: Age::of_segment(segment, row), error }
    }
}

/// The newest row of a key that was found, and the newest one that may be the key's and cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    found: Option<Found<'static>>,
    unread: Option<Unread>,
}

impl Newest {
    /// Takes in a row of the key.
    pub(crate) fn add(&mut self, found: Found<'static>) {
        if self.found.as_ref().is_none_or(|newest| found.row.age() > newest.row.age()) {
            self.found = Some(found);
        }
    }

    /// Takes in a row that cannot be read.
    pub(crate) fn add_unread(&mut self, unread: Unread) {
        if self.unread.as_ref().is_none_or(|newest| unread.age > newest.age) {
            self.unread = Some(unread);
        }
    }

    /// Takes in row `row` of a sealed segment, if it is one of `key` or cannot be read.
    fn consider(&mut self, core: &Core, segment: &Segment, row: u32, hash: u64, key: &[u8]) {
        match Row::of_segment(segment, row) {
            Ok(Some(row)) if row.key() == Some(key) => self.add(Found { row, entry: None }),
            Ok(_) => {}
            Err(error) if core.may_be(segment, row, hash) => self.add_unread(Unread::of_segment(segment, row, error)),
            Err(_) => {}
        }
    }

    /// Takes in row `run_row` of a run, whose batch cannot be read for `error`.
    #[cold]
    pub(crate) fn consider_damaged(
        &mut self,
        core: &Core,
        loaded: &LoadedRun,
        run_row: u64,
        (hash, key): (u64, &[u8]),
        error: Error,
    ) {
        match loaded.directory().segment_row(&loaded.segments, run_row) {
            Some((segment, row)) => self.consider(core, segment, row, hash, key),
            // Nothing of this run can be believed.
            None => self.add_unread(Unread { age: Age::NEWEST, error }),
        }
    }

    /// Whether the row that was found is newer than everything up to `stamp`.
    pub(crate) fn is_above(&self, stamp: u64) -> bool {
        self.found.as_ref().is_some_and(|found| found.row.age().stamp > stamp)
    }

    /// The newest row of the key.
    ///
    /// # Errors
    /// Why a row that may be a newer one of the key cannot be read.
    pub(crate) fn settle(self) -> Result<Option<Found<'static>>> {
        match self.unread {
            Some(unread) if self.found.as_ref().is_none_or(|found| found.row.age() <= unread.age) => Err(unread.error),
            _ => Ok(self.found),
        }
    }
}

impl Core {
    /// The key hash of a row that cannot be read, where the index block or the ordered keys tell it. O(1), but O(rows) the
    /// first time.
    pub(crate) fn row_hash(&self, segment: &Segment, row: u32) -> Option<u64> {
        let hashes = segment.row_hashes.get_or_init(|| self.row_hashes(segment).unwrap_or_default().into());
        hashes.get(row as usize).copied().flatten()
    }

    fn row_hashes(&self, segment: &Segment) -> Option<Vec<Option<u64>>> {
        let rows = segment.rows() as usize;
        let mut hashes: Vec<Option<u64>> = Vec::new();
        hashes.try_reserve_exact(rows).ok()?;
        hashes.resize(rows, None);
        let mut tell = |row: u32, hash: u64| {
            if let Some(place) = hashes.get_mut(row as usize) {
                *place = Some(hash);
            }
        };
        match segment.index_block().ok().and_then(|bytes| HashBlock::parse(bytes).ok()) {
            Some(block) if block.len() == rows => block.iter().for_each(|(hash, row)| tell(row, hash)),
            _ => {
                let fst = ordered_keys(segment)?;
                let walked = fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
                    tell(row, self.hasher.hash(key));
                    Ok(ControlFlow::Continue(()))
                });
                walked.ok()?;
            }
        }
        Some(hashes)
    }

    /// Whether a row that cannot be read may be of a key with this hash.
    pub(crate) fn may_be(&self, segment: &Segment, row: u32, hash: u64) -> bool {
        self.row_hash(segment, row).is_none_or(|known| known == hash)
    }

    /// Whether row `row` of `segment`, which cannot be read, does not count any more: a row with its hash is newer, and
    /// can be read. (A hash of which tests keep a few bits tells nothing.)
    pub(crate) fn is_superseded(&self, segment: &Segment, row: u32) -> bool {
        let Some(hash) = self.row_hash(segment, row).filter(|_| self.hasher.is_whole()) else { return false };
        let age = Age::of_segment(segment, row);
        let newer = |row: &Row<'_>| row.age() > age && row.key().is_some_and(|key| self.hasher.hash(key) == hash);
        let mut entries = Vec::new();
        self.delta.find(hash, &mut |entry| entries.push(entry));
        let in_delta = entries.into_iter().any(|entry| {
            let source = self.slots.read().get(entry.slot).map(|slot| slot.source.clone());
            let row = source.and_then(|source| source.row(entry.slot, entry.row).ok().flatten());
            row.is_some_and(|row| newer(&row))
        });
        let in_run = |loaded: &Arc<LoadedRun>| {
            let mut any = false;
            let _damaged = loaded.run.find(hash, &mut |run_row| {
                let place = loaded.directory().segment_row(&loaded.segments, run_row);
                let row = place.and_then(|(segment, row)| Row::of_segment(segment, row).ok().flatten());
                any |= row.is_some_and(|row| newer(&row));
            });
            any
        };
        in_delta || self.view.load().runs.iter().any(in_run)
    }

    /// The keys of some rows of `segment` that cannot be read, as far as anything tells them: the ordered keys, or bytes in
    /// their place that have their hash, or had it before one of them was changed. O(keys of the segment).
    pub(crate) fn keys_of_unread(&self, segment: &Segment, rows: &[u32]) -> Vec<Key> {
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
                && let Some(key) = self.mended_key(segment, row, &mut tries).and_then(|key| kind.decode(&key))
            {
                keys.insert(row, key);
            }
        }
        keys.into_values().collect()
    }

    /// The bytes in the place of a key, if they have the row's hash, or have it with one of them changed, which is one of the
    /// `tries`.
    fn mended_key(&self, segment: &Segment, row: u32, tries: &mut usize) -> Option<Vec<u8>> {
        /// Bytes of a key that are tried: integers, and short names.
        const MOST_BYTES: usize = 16;
        let hash = self.row_hash(segment, row).filter(|_| self.hasher.is_whole())?;
        let (number, within) = segment.locate(row).ok().flatten()?;
        let damaged = segment.parsed(number).ok()?.as_ref().err()?;
        let mut key = damaged.unchecked_key(within)?.to_vec();
        if self.hasher.hash(&key) == hash {
            return Some(key);
        }
        *tries = tries.checked_sub(1)?;
        for at in 0..key.len().min(MOST_BYTES) {
            let found = key.get(at).copied()?;
            for byte in 0..=u8::MAX {
                *key.get_mut(at)? = byte;
                if self.hasher.hash(&key) == hash {
                    return Some(key);
                }
            }
            *key.get_mut(at)? = found;
        }
        None
    }

    /// Whether row `row` of a source cannot be read and does not count any more.
    pub(crate) fn is_superseded_in(&self, source: &Source, row: u32) -> bool {
        matches!(source, Source::Sealed(segment) if self.is_superseded(segment, row))
    }
}

/// The ordered keys of a segment, if it has them and they are whole.
pub(crate) fn ordered_keys(segment: &Segment) -> Option<KeysFst> {
    ordered_keys_of(segment).ok().flatten().map(|(_, fst)| fst)
}

/// The ordered keys of a segment and where they lie, if it has them.
///
/// # Errors
/// [`Error::Corrupt`] if they are damaged.
pub(crate) fn ordered_keys_of(segment: &Segment) -> Result<Option<(u64, KeysFst)>> {
    let Some((offset, bytes)) = segment.keys_block()? else { return Ok(None) };
    let fst = KeysFst::open(segment.described().to_path_buf(), offset, bytes, segment.rows())?;
    Ok(Some((offset, fst)))
}
