//! Deleting keys.

use std::collections::HashSet;
use std::ops::RangeBounds;

use crate::codec::Codec;
use crate::engine::follow::refresh;
use crate::engine::lookup::find::find;
use crate::engine::lookup::query::Query;
use crate::engine::read::range::Range;
#[cfg(doc)]
use crate::engine::reader::Reader;
use crate::engine::store::Store;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, Keys};
use crate::schema::RowSchema;
use crate::segment::build::ColumnsBuilder;

/// The number of keys of a range that one batch deletes.
const KEYS: usize = 8192;

impl Store {
    /// Deletes keys: writes a tombstone for each key that exists. Returns how many existed. If a key is not found, a
    /// [`Reader::refresh`] reads what other writers have committed before the key is looked up again.
    ///
    /// # Errors
    /// As [`Store::put_batch`]; [`Error::Item`] with [`Error::Corrupt`] if a batch that may hold a key is damaged.
    pub fn delete_batch<'a>(&self, keys: impl Into<Keys<'a>>) -> Result<usize> {
        let keys = keys.into();
        let puts = &self.inner.puts;
        let Some(kind) = puts.begin(keys)? else { return Ok(0) };
        let state = &*self.inner.state;
        let queries: Vec<Query<'_>> =
            keys.iter().map(|key| Query { key, hash: state.hasher().hash_key(key) }).collect();
        let are_there = || {
            find(state, &queries, |located| match located.errors.into_iter().next() {
                Some((at, error)) => Err(keys.item_error(at, error)),
                None => {
                    Ok(located.rows.iter().map(|row| row.as_ref().is_some_and(|row| !row.is_tombstone())).collect())
                }
            })
        };
        let mut there: Vec<bool> = are_there()?;
        if there.contains(&false) && refresh(state)? {
            there.iter_mut().zip(are_there()?).for_each(|(there, now)| *there |= now);
        }
        let schema = puts.intern(RowSchema::tombstones(kind));
        let mut column = ColumnsBuilder::new(schema, Codec::None)?;
        let mut seen = HashSet::new();
        for (key, _) in keys.iter().zip(there).filter(|(_, there)| *there) {
            if seen.insert(key) {
                column.push(key, &[])?;
            }
        }
        let deleted = column.rows();
        if deleted > 0 {
            let columns = column.finish();
            let _admitted = self.inner.room.make_for_deletes(columns.len_bytes(), deleted)?;
            puts.put(columns)?;
        }
        Ok(deleted)
    }

    /// Deletes one key; returns whether it existed.
    ///
    /// # Errors
    /// As [`Store::put`]; [`Error::Corrupt`] if a batch that may hold the key is damaged.
    pub fn delete(&self, key: impl AsKey) -> Result<bool> {
        self.delete_batch(&[key.as_key()?]).map(|deleted| deleted == 1).map_err(Error::into_cause)
    }

    /// Deletes all keys that start with `prefix`, as [`Reader::prefix`] finds them, in batches. Returns how many. Keys
    /// that are put meanwhile may stay.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["train/1", "train/2", "test/1"], &[1], &[1.0_f32, 2.0, 3.0])?;
    /// assert_eq!(store.delete_prefix("train/")?, 2);
    /// assert_eq!(store.len()?, 1);
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Reader::prefix`] and [`Store::put`]. The keys of earlier batches are deleted in that case.
    pub fn delete_prefix(&self, prefix: impl AsKey) -> Result<u64> {
        self.refresh()?;
        self.delete_all(self.reader().prefix(prefix))
    }

    /// Deletes all keys of a range, as [`Reader::range`] finds them, in batches. Returns how many. Keys that are put
    /// meanwhile may stay.
    ///
    /// # Errors
    /// As [`Store::delete_prefix`].
    pub fn delete_range<K: AsKey>(&self, range: impl RangeBounds<K>) -> Result<u64> {
        self.refresh()?;
        self.delete_all(self.reader().range(range))
    }

    fn delete_all(&self, keys: Range) -> Result<u64> {
        let mut deleted = 0;
        let mut batch: Vec<Key> = Vec::new();
        for key in keys {
            batch.push(key?);
            if batch.len() == KEYS {
                deleted += self.delete_batch(&batch)? as u64;
                batch.clear();
            }
        }
        Ok(deleted + self.delete_batch(&batch)? as u64)
    }
}
