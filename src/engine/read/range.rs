//! Keys in order: those that start with a prefix, and those between two bounds.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;

use crate::engine::follow::refresh_if_due;
use crate::engine::lookup::find::Finder;
use crate::engine::read::scan::{live_row, sources_of_scan};
use crate::engine::rows::ordered_keys::ordered_keys;
use crate::engine::rows::row::{BatchId, Row, Source};
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::error::{Error, Result};
use crate::index::keys_fst::KeysFst;
use crate::key::{AsKey, Key, KeyKind, KeyRef};

/// Keys of the first chunk. Each chunk is a pass over all unordered rows, so the chunk size doubles.
const FIRST_CHUNK: usize = 1024;

/// An iterator over keys in order; see [`crate::Reader::range`].
#[derive(Debug)]
pub struct Range {
    state: Arc<State>,
    /// The remaining range; `None` at the end.
    bounds: Option<Bounds>,
    chunk: std::vec::IntoIter<Key>,
    /// Keys of the next chunk.
    most: usize,
    /// An error that was not returned yet.
    failed: Option<Error>,
}

impl Range {
    /// Keys that start with `prefix`.
    pub(crate) fn prefix(state: Arc<State>, prefix: &impl AsKey) -> Self {
        Self::new(state, prefix.as_key().and_then(Bounds::prefix))
    }

    /// Keys of `range`.
    pub(crate) fn between<K: AsKey>(state: Arc<State>, range: &impl RangeBounds<K>) -> Self {
        Self::new(state, Bounds::between(range))
    }

    fn new(state: Arc<State>, bounds: Result<Bounds>) -> Self {
        let (bounds, failed) = match bounds.and_then(|bounds| bounds.check(&state)) {
            Ok(bounds) => (bounds, None),
            Err(error) => (None, Some(error)),
        };
        Self { state, bounds, chunk: Vec::new().into_iter(), most: FIRST_CHUNK, failed }
    }

    /// Reads the next keys. Segments keep integers in no order, so all keys between two integers are one chunk.
    fn read_chunk(&mut self) -> Result<Option<Key>> {
        let Some(bounds) = self.bounds.take() else { return Ok(None) };
        self.state.check_fork()?;
        let most = if bounds.kind == Some(KeyKind::U64) { usize::MAX } else { self.most };
        self.most = most.saturating_mul(2);
        let keys = keys_within(&self.state, &bounds, most)?;
        if let (true, Some(last)) = (keys.len() >= most, keys.last()) {
            let from = Bound::Excluded(last.as_ref().with_bytes(<[u8]>::to_vec));
            self.bounds = Some(Bounds { from, ..bounds });
        }
        self.chunk = keys.into_iter();
        Ok(self.chunk.next())
    }
}

impl Iterator for Range {
    type Item = Result<Key>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        match self.chunk.next() {
            Some(key) => Some(Ok(key)),
            None => self.read_chunk().transpose(),
        }
    }
}

/// Two bounds, as canonical bytes; integers are big-endian, so that byte order is numeric order.
#[derive(Debug)]
struct Bounds {
    /// The kind of the bounds; `None` if there are none.
    kind: Option<KeyKind>,
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
}

impl Bounds {
    fn prefix(prefix: KeyRef<'_>) -> Result<Self> {
        if prefix.kind() == KeyKind::U64 {
            return Err(Error::invalid("integer keys have no prefixes: use range"));
        }
        let from = prefix.with_bytes(<[u8]>::to_vec);
        // The smallest bytes above all that start with the prefix: cut after the last byte below 0xFF, and increment
        // it.
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
        Ok(Self { kind: Some(prefix.kind()), from: Bound::Included(from), to })
    }

    fn between<K: AsKey>(range: &impl RangeBounds<K>) -> Result<Self> {
        let mut kind = None;
        let mut end = |bound: Bound<&K>| -> Result<Bound<Vec<u8>>> {
            let mut bytes = |key: &K| -> Result<Vec<u8>> {
                let key = key.as_key()?;
                kind.unwrap_or(key.kind()).expect(key.kind())?;
                kind = Some(key.kind());
                Ok(match key {
                    KeyRef::U64(number) => number.to_be_bytes().to_vec(),
                    _ => key.with_bytes(<[u8]>::to_vec),
                })
            };
            Ok(match bound {
                Bound::Included(key) => Bound::Included(bytes(key)?),
                Bound::Excluded(key) => Bound::Excluded(bytes(key)?),
                Bound::Unbounded => Bound::Unbounded,
            })
        };
        let (from, to) = (end(range.start_bound())?, end(range.end_bound())?);
        Ok(Self { kind, from, to })
    }

    /// `None` if no key of the store can be within the bounds.
    fn check(self, state: &State) -> Result<Option<Self>> {
        state.check_fork()?;
        refresh_if_due(state)?;
        let Some(expected) = state.identity().key_kind() else { return Ok(None) };
        expected.expect(self.kind.unwrap_or(expected))?;
        let is_empty = match (&self.from, &self.to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
            _ => false,
        };
        Ok((!is_empty).then_some(Self { kind: Some(expected), ..self }))
    }

    fn holds(&self, canonical: &[u8]) -> bool {
        let number = <[u8; 8]>::try_from(canonical).map(u64::from_le_bytes).map(u64::to_be_bytes);
        let key = match &number {
            Ok(number) if self.kind == Some(KeyKind::U64) => number,
            _ => canonical,
        };
        let ends: (Bound<&[u8]>, Bound<&[u8]>) =
            (self.from.as_ref().map(Vec::as_slice), self.to.as_ref().map(Vec::as_slice));
        RangeBounds::<[u8]>::contains(&ends, key)
    }
}

/// The first `most` live keys within `bounds`, in order. O(keys) for sealed segments of strings or bytes, through their
/// FSTs; O(rows) for all else.
fn keys_within(state: &State, bounds: &Bounds, most: usize) -> Result<Vec<Key>> {
    let mut found = Smallest { keys: BTreeSet::new(), most, finder: Finder::new(1) };
    let (sources, _scan) = sources_of_scan(state);
    for (number, batch) in sources {
        let ordered = match (&batch.source, bounds.kind) {
            (Source::Sealed(segment), Some(KeyKind::Str | KeyKind::Bytes)) => ordered_keys(segment),
            _ => None,
        };
        let is_ordered = match ordered {
            Some(fst) => found.add_ordered(state, bounds, number, &batch, &fst)?,
            None => false,
        };
        if !is_ordered {
            found.add_unordered(state, bounds, number, &batch)?;
        }
    }
    Ok(found.keys.into_iter().collect())
}

/// The smallest keys found so far.
struct Smallest {
    keys: BTreeSet<Key>,
    most: usize,
    finder: Finder,
}

impl Smallest {
    fn add(&mut self, key: Key) {
        self.keys.insert(key);
        if self.keys.len() > self.most {
            self.keys.pop_last();
        }
    }

    /// Whether a key would be dropped at once.
    fn is_full_below(&self, key: &[u8]) -> bool {
        let last = self.keys.last().filter(|_| self.keys.len() >= self.most);
        last.is_some_and(|last| last.as_ref().with_bytes(|last| key > last))
    }

    /// Adds the keys of a sealed segment, in order. Returns `false` if its FST names a row of another key: such an FST
    /// must neither reverse the iteration nor end it.
    fn add_ordered(
        &mut self,
        state: &State,
        bounds: &Bounds,
        number: BatchId,
        batch: &MemBatch,
        fst: &KeysFst,
    ) -> Result<bool> {
        let (from, to) = (bounds.from.as_ref().map(Vec::as_slice), bounds.to.as_ref().map(Vec::as_slice));
        let (mut left, mut is_right) = (self.most, true);
        fst.range(from, to, &mut |ordered, row| {
            if self.is_full_below(ordered) {
                return Ok(ControlFlow::Break(()));
            }
            let Some((key, _)) = live_row(state, &mut self.finder, number, batch, row)? else {
                return Ok(ControlFlow::Continue(()));
            };
            is_right = key.as_ref().with_bytes(|key| key == ordered);
            if is_right {
                self.add(key);
                left -= 1;
            }
            Ok(if left == 0 || !is_right { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(is_right)
    }

    fn add_unordered(&mut self, state: &State, bounds: &Bounds, number: BatchId, batch: &MemBatch) -> Result<()> {
        for row in 0..batch.rows {
            let found = batch.source.row(number, row);
            // Rows that cannot be read may lie inside.
            let is_outside = |found: &Option<Row<'_>>| {
                let key = found.as_ref().and_then(Row::key);
                key.is_none_or(|key| {
                    !bounds.holds(key) || (bounds.kind != Some(KeyKind::U64) && self.is_full_below(key))
                })
            };
            if !found.is_ok_and(|found| is_outside(&found))
                && let Some((key, _)) = live_row(state, &mut self.finder, number, batch, row)?
            {
                self.add(key);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_bytes_that_can_be_counted_up() {
        let held = |prefix: &[u8], key: &[u8]| Bounds::prefix(KeyRef::Bytes(prefix)).unwrap().holds(key);
        for (prefix, inside, outside) in [
            (&b"ab"[..], &[&b"ab"[..], b"ab\0", b"ab\xFF\xFF"][..], &[&b"aa"[..], b"a", b"ac", b""][..]),
            (b"a\xFF", &[b"a\xFF", b"a\xFF\xFF"], &[b"a\xFE", b"b"]),
            (b"\xFF\xFF", &[b"\xFF\xFF", b"\xFF\xFFz"], &[b"\xFF", b"\xFF\xFEz"]),
            (b"", &[b"", b"a", b"\xFF"], &[]),
        ] {
            assert!(inside.iter().all(|key| held(prefix, key)), "{prefix:?}");
            assert!(!outside.iter().any(|key| held(prefix, key)), "{prefix:?}");
        }
        assert!(Bounds::prefix(KeyRef::U64(1)).is_err());
    }

    #[test]
    fn integers_are_compared_as_numbers() {
        let bounds = Bounds::between(&(200_u64..=u64::MAX)).unwrap();
        for (number, within) in [(199_u64, false), (200, true), (256, true), (u64::MAX, true)] {
            assert_eq!(bounds.holds(&number.to_le_bytes()), within, "{number}");
        }
        assert!(Bounds::between(&(-1_i64..)).is_err());
    }
}
