//! Listing keys: all of them, or an ordered range of them.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::follow::refresh_if_due;
use crate::engine::lookup::find::Finder;
use crate::engine::lookup::query::Query;
use crate::engine::lookup::unread::is_superseded_in;
use crate::engine::rows::ordered_keys::ordered_keys;
use crate::engine::rows::row::{BatchId, Row, Source};
use crate::engine::runs::sources::all_sources;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::error::{Error, Result};
use crate::key::{Key, KeyKind, KeyRef};

/// The key in row `row` of a source, if that row is the newest of its key and no tombstone.
fn live_key(state: &State, finder: &mut Finder, number: BatchId, batch: &MemBatch, row: u32) -> Result<Option<Key>> {
    let found = match batch.source.row(number, row) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        // Its key is listed where its newer row is.
        Err(_) if is_superseded_in(state, &batch.source, row) => return Ok(None),
        Err(error) => return Err(error),
    };
    if found.is_tombstone() {
        return Ok(None);
    }
    let Some(bytes) = found.key() else { return Err(Error::invalid(format!("row {row} has no key"))) };
    let query = Query { key: KeyRef::Bytes(bytes), hash: state.hasher().hash(bytes) };
    let current =
        finder.find_one(state, query, |newest| newest?.map_or(Ok(false), |newest| found.is_still(&newest.row)))?;
    Ok(current.then(|| found.columns().schema.key.decode(bytes)).flatten())
}

/// An iterator over all keys; see [`crate::Reader::keys`].
#[derive(Debug)]
pub struct KeysIter {
    state: Arc<State>,
    finder: Finder,
    sources: std::vec::IntoIter<(BatchId, MemBatch)>,
    current: Option<(BatchId, MemBatch, u32)>,
    /// Why there is nothing to iterate over, until it was said.
    forked: Option<Error>,
}

impl KeysIter {
    pub(crate) fn new(state: Arc<State>) -> Self {
        let forked = state.check_fork().err();
        let sources = if forked.is_some() { Vec::new() } else { all_sources(&state) }.into_iter();
        Self { state, finder: Finder::new(1), sources, current: None, forked }
    }
}

impl Iterator for KeysIter {
    type Item = Result<Key>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(forked) = self.forked.take() {
            return Some(Err(forked));
        }
        let is_over = self.current.is_none() && self.sources.len() == 0;
        if let (Err(forked), false) = (self.state.check_fork(), is_over) {
            (self.sources, self.current) = (Vec::new().into_iter(), None);
            return Some(Err(forked));
        }
        loop {
            let (number, batch, row) = match &mut self.current {
                Some(current) if current.2 < current.1.rows => current,
                _ => {
                    let (number, batch) = self.sources.next()?;
                    self.current = Some((number, batch, 0));
                    continue;
                }
            };
            let this = *row;
            *row += 1;
            if let Some(key) = live_key(&self.state, &mut self.finder, *number, batch, this).transpose() {
                return Some(key);
            }
        }
    }
}

/// A range of keys, by canonical bytes (or by number).
#[derive(Debug)]
pub(crate) enum Bounds {
    Bytes(Bound<Vec<u8>>, Bound<Vec<u8>>),
    Numbers(u64, u64),
}

impl Bounds {
    /// All keys that start with `prefix`.
    pub(crate) fn prefix(prefix: KeyRef<'_>) -> Self {
        let from = prefix.with_bytes(<[u8]>::to_vec);
        // The first bytes that are above all that start with the prefix: its last byte below 0xFF, counted up.
        let mut after = from.clone();
        while after.last() == Some(&0xFF) {
            after.pop();
        }
        let to = match after.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(after)
            }
            None => Bound::Unbounded,
        };
        Self::Bytes(Bound::Included(from), to)
    }

    /// All keys from `from` up to and without `to`.
    pub(crate) fn range(from: KeyRef<'_>, to: KeyRef<'_>) -> Self {
        match (from, to) {
            (KeyRef::U64(from), KeyRef::U64(to)) => Self::Numbers(from, to),
            _ => Self::Bytes(
                Bound::Included(from.with_bytes(<[u8]>::to_vec)),
                Bound::Excluded(to.with_bytes(<[u8]>::to_vec)),
            ),
        }
    }

    fn holds(&self, key: &[u8]) -> bool {
        match self {
            Self::Bytes(from, to) => {
                let above = match from {
                    Bound::Included(from) => key >= from.as_slice(),
                    Bound::Excluded(from) => key > from.as_slice(),
                    Bound::Unbounded => true,
                };
                let below = match to {
                    Bound::Included(to) => key <= to.as_slice(),
                    Bound::Excluded(to) => key < to.as_slice(),
                    Bound::Unbounded => true,
                };
                above && below
            }
            Self::Numbers(from, to) => {
                key.try_into().is_ok_and(|bytes| (*from..*to).contains(&u64::from_le_bytes(bytes)))
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Bytes(Bound::Included(from), Bound::Excluded(to)) => from >= to,
            Self::Bytes(..) => false,
            Self::Numbers(from, to) => from >= to,
        }
    }
}

/// The live keys within `bounds`, in order.
pub(crate) fn scan(state: &State, kind: KeyKind, bounds: Bounds) -> Result<Vec<Key>> {
    refresh_if_due(state)?;
    match state.identity().key_kind() {
        None => return Ok(Vec::new()),
        Some(expected) => expected.expect(kind)?,
    }
    if bounds.is_empty() {
        return Ok(Vec::new());
    }
    let (mut keys, mut finder) = (BTreeSet::new(), Finder::new(1));
    for (number, batch) in all_sources(state) {
        let mut consider = |row: u32| -> Result<()> {
            keys.extend(live_key(state, &mut finder, number, &batch, row)?);
            Ok(())
        };
        let ordered = match &batch.source {
            Source::Sealed(segment) => ordered_keys(segment),
            _ => None,
        };
        match (ordered, &bounds) {
            (Some(fst), Bounds::Bytes(from, to)) => {
                fst.range(from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice), &mut |_, row| {
                    consider(row)?;
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            _ => {
                for row in 0..batch.rows {
                    let found = batch.source.row(number, row);
                    // Of what cannot be read nothing says that it lies outside.
                    let is_outside = |found: &Option<Row<'_>>| {
                        found.as_ref().is_none_or(|found| !found.key().is_some_and(|key| bounds.holds(key)))
                    };
                    if !found.is_ok_and(|found| is_outside(&found)) {
                        consider(row)?;
                    }
                }
            }
        }
    }
    Ok(keys.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_bytes_that_can_be_counted_up() {
        let held = |prefix: &[u8], key: &[u8]| Bounds::prefix(KeyRef::Bytes(prefix)).holds(key);
        for (prefix, inside, outside) in [
            (&b"ab"[..], &[&b"ab"[..], b"ab\0", b"ab\xFF\xFF"][..], &[&b"aa"[..], b"a", b"ac", b""][..]),
            (b"a\xFF", &[b"a\xFF", b"a\xFF\xFF"], &[b"a\xFE", b"b"]),
            (b"\xFF\xFF", &[b"\xFF\xFF", b"\xFF\xFFz"], &[b"\xFF", b"\xFF\xFEz"]),
            (b"", &[b"", b"a", b"\xFF"], &[]),
        ] {
            assert!(inside.iter().all(|key| held(prefix, key)), "{prefix:?}");
            assert!(!outside.iter().any(|key| held(prefix, key)), "{prefix:?}");
        }
    }

    #[test]
    fn ranges_are_of_bytes_or_of_numbers_and_may_be_empty() {
        let text = Bounds::range(KeyRef::Str("b"), KeyRef::Str("d"));
        assert_eq!([&b"a"[..], b"b", b"c\xFF", b"d"].map(|key| text.holds(key)), [false, true, true, false]);
        // In the order of numbers: as bytes, 256 would come before 2.
        let numbers = Bounds::range(KeyRef::U64(2), KeyRef::U64(300));
        let held = [1_u64, 2, 256, 299, 300].map(|key| numbers.holds(&key.to_le_bytes()));
        assert_eq!(held, [false, true, true, true, false]);
        assert!(!numbers.holds(b"short"));
        assert!(!text.is_empty() && !numbers.is_empty() && !Bounds::prefix(KeyRef::Bytes(b"")).is_empty());
        assert!(Bounds::range(KeyRef::Str("b"), KeyRef::Str("b")).is_empty());
        assert!(Bounds::range(KeyRef::U64(5), KeyRef::U64(4)).is_empty());
    }
}
