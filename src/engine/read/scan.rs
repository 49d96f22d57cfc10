//! Listing keys: all of them, or an ordered range of them.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::follow::refresh_if_due;
use crate::engine::lookup::find::locate;
use crate::engine::lookup::unread::is_superseded_in;
use crate::engine::rows::ordered_keys::ordered_keys;
use crate::engine::rows::row::{BatchId, Row, Source};
use crate::engine::runs::sources::all_sources;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::error::{Error, Result};
use crate::key::{Key, KeyKind, KeyRef};

/// The key in row `row` of a source, if that row is the newest of its key and no tombstone.
fn live_key(state: &State, number: BatchId, batch: &MemBatch, row: u32) -> Result<Option<Key>> {
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
    let newest = locate(state, state.hasher().hash(bytes), bytes)?;
    let current = newest.map_or(Ok(false), |newest| found.is_still(&newest.row))?;
    Ok(current.then(|| found.columns().schema.key.decode(bytes)).flatten())
}

/// An iterator over all keys; see [`crate::Reader::keys`].
#[derive(Debug)]
pub struct KeysIter {
    state: Arc<State>,
    sources: std::vec::IntoIter<(BatchId, MemBatch)>,
    current: Option<(BatchId, MemBatch, u32)>,
    /// Why there is nothing to iterate over, until it was said.
    forked: Option<Error>,
}

impl KeysIter {
    pub(crate) fn new(state: Arc<State>) -> Self {
        let forked = state.check_fork().err();
        let sources = if forked.is_some() { Vec::new() } else { all_sources(&state) }.into_iter();
        Self { state, sources, current: None, forked }
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
            if let Some(key) = live_key(&self.state, *number, batch, this).transpose() {
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
    let mut keys = BTreeSet::new();
    for (number, batch) in all_sources(state) {
        let mut consider = |row: u32| -> Result<()> {
            keys.extend(live_key(state, number, &batch, row)?);
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
