//! The read methods of a [`Store`], which call those of its [`Reader`].

use std::ops::RangeBounds;

use crate::dtype::Dtype;
use crate::engine::read::locate::Location;
use crate::engine::read::range::Range;
use crate::engine::read::scan::{Entries, KeysIter};
use crate::engine::read::survey::Survey;
use crate::engine::read::wanted::LeafBuffer;
#[cfg(doc)]
use crate::engine::reader::Reader;
use crate::engine::report::{Lookup, OpenReport, Preloaded, SchemaUse, Stats, VerifyReport};
use crate::engine::store::Store;
use crate::error::Result;
use crate::key::{AsKey, KeyKind, Keys};
use crate::schema::Schema;
use crate::tensor::Element;
use crate::value::Value;

impl Store {
    /// The value of `key`; see [`Reader::get`].
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn get(&self, key: impl AsKey) -> Result<Option<Value>> {
        self.reader().get(key)
    }

    /// The values of `keys`; see [`Reader::get_batch`].
    ///
    /// # Errors
    /// As [`Reader::get_batch`].
    pub fn get_batch<'a>(&self, keys: impl Into<Keys<'a>>) -> Result<Vec<Lookup>> {
        self.reader().get_batch(keys)
    }

    /// Copies the rows of `keys` into a buffer; see [`Reader::get_batch_into`].
    ///
    /// # Errors
    /// As [`Reader::get_batch_into`].
    pub fn get_batch_into<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        row_shape: &[usize],
        out: &mut [T],
        found: &mut [bool],
    ) -> Result<usize> {
        self.reader().get_batch_into(keys, row_shape, out, found)
    }

    /// Copies the rows of `keys` into bytes; see [`Reader::get_batch_into_bytes`].
    ///
    /// # Errors
    /// As [`Reader::get_batch_into_bytes`].
    pub fn get_batch_into_bytes<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        dtype: Dtype,
        row_shape: &[usize],
        out: &mut [u8],
        found: &mut [bool],
    ) -> Result<usize> {
        self.reader().get_batch_into_bytes(keys, dtype, row_shape, out, found)
    }

    /// Copies leaves of values into buffers; see [`Reader::get_leaves_into`].
    ///
    /// # Errors
    /// As [`Reader::get_leaves_into`].
    pub fn get_leaves_into<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        leaves: &mut [LeafBuffer<'_>],
        found: &mut [bool],
    ) -> Result<usize> {
        self.reader().get_leaves_into(keys, leaves, found)
    }

    /// Copies whole values of one structure into buffers; see [`Reader::get_values_into`].
    ///
    /// # Errors
    /// As [`Reader::get_values_into`].
    pub fn get_values_into<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        schema: &Schema,
        outs: &mut [&mut [u8]],
        found: &mut [bool],
    ) -> Result<usize> {
        self.reader().get_values_into(keys, schema, outs, found)
    }

    /// Copies tensors whose first dimension differs into one buffer; see [`Reader::get_ragged_into`].
    ///
    /// # Errors
    /// As [`Reader::get_ragged_into`].
    pub fn get_ragged_into<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        path: &str,
        entry_shape: &[usize],
        out: &mut Vec<T>,
        offsets: &mut Vec<usize>,
        found: &mut [bool],
    ) -> Result<usize> {
        self.reader().get_ragged_into(keys, path, entry_shape, out, offsets, found)
    }

    /// Copies such tensors into bytes; see [`Reader::get_ragged_into_bytes`].
    ///
    /// # Errors
    /// As [`Reader::get_ragged_into`].
    #[expect(clippy::too_many_arguments, reason = "the dtype, which the other form takes from the buffer")]
    pub fn get_ragged_into_bytes<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        path: &str,
        dtype: Dtype,
        entry_shape: &[usize],
        out: &mut Vec<u8>,
        offsets: &mut Vec<usize>,
        found: &mut [bool],
    ) -> Result<usize> {
        self.reader().get_ragged_into_bytes(keys, path, dtype, entry_shape, out, offsets, found)
    }

    /// The shape of a leaf of each key; see [`Reader::shapes`].
    ///
    /// # Errors
    /// As [`Reader::shapes`].
    pub fn shapes<'a>(&self, keys: impl Into<Keys<'a>>, path: &str) -> Result<Vec<Option<Vec<usize>>>> {
        self.reader().shapes(keys, path)
    }

    /// The structures of values in the store; see [`Reader::schemas`].
    ///
    /// # Errors
    /// As [`Reader::schemas`].
    pub fn schemas(&self) -> Result<Vec<SchemaUse>> {
        self.reader().schemas()
    }

    /// Which of `keys` exist; see [`Reader::contains_batch`].
    ///
    /// # Errors
    /// As [`Reader::contains_batch`].
    pub fn contains_batch<'a>(&self, keys: impl Into<Keys<'a>>) -> Result<Vec<bool>> {
        self.reader().contains_batch(keys)
    }

    /// Whether `key` exists.
    ///
    /// # Errors
    /// As [`Reader::contains_batch`].
    pub fn contains(&self, key: impl AsKey) -> Result<bool> {
        self.reader().contains(key)
    }

    /// The number of keys; see [`Reader::len`].
    ///
    /// # Errors
    /// As [`Reader::len`].
    pub fn len(&self) -> Result<u64> {
        self.reader().len()
    }

    /// Whether there are no keys.
    ///
    /// # Errors
    /// As [`Reader::len`].
    pub fn is_empty(&self) -> Result<bool> {
        self.reader().is_empty()
    }

    /// All keys; see [`Reader::keys`].
    #[must_use]
    pub fn keys(&self) -> KeysIter {
        self.reader().keys()
    }

    /// All keys and their values; see [`Reader::iter`].
    #[must_use]
    pub fn iter(&self) -> Entries {
        self.reader().iter()
    }

    /// The keys that start with `prefix`, in order; see [`Reader::prefix`].
    #[must_use]
    pub fn prefix(&self, prefix: impl AsKey) -> Range {
        self.reader().prefix(prefix)
    }

    /// The number of keys that start with `prefix`; see [`Reader::count_prefix`].
    ///
    /// # Errors
    /// As [`Reader::count_prefix`].
    pub fn count_prefix(&self, prefix: impl AsKey) -> Result<u64> {
        self.reader().count_prefix(prefix)
    }

    /// The keys of a range, in order; see [`Reader::range`].
    #[must_use]
    pub fn range<K: AsKey>(&self, range: impl RangeBounds<K>) -> Range {
        self.reader().range(range)
    }

    /// Preloads index and rows into memory; see [`Reader::preload`].
    ///
    /// # Errors
    /// As [`Reader::preload`].
    pub fn preload(&self, limit_bytes: u64) -> Result<Preloaded> {
        self.reader().preload(limit_bytes)
    }

    /// Reads what other writers have committed; see [`Reader::refresh`].
    ///
    /// # Errors
    /// As [`Reader::refresh`].
    pub fn refresh(&self) -> Result<bool> {
        self.reader().refresh()
    }

    /// As [`Reader::locate`].
    ///
    /// # Errors
    /// As [`Reader::locate`].
    pub fn locate(&self, key: impl AsKey) -> Result<Location> {
        self.reader().locate(key)
    }

    /// As [`Reader::survey`].
    ///
    /// # Errors
    /// As [`Reader::survey`].
    pub fn survey(&self, rows: u64, run_rows: u32) -> Result<Survey> {
        self.reader().survey(rows, run_rows)
    }

    /// Sizes and counters; see [`Reader::stats`].
    ///
    /// # Errors
    /// As [`Reader::stats`].
    pub fn stats(&self) -> Result<Stats> {
        self.reader().stats()
    }

    /// Reads and validates every byte; see [`Reader::verify`].
    ///
    /// # Errors
    /// As [`Reader::verify`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport> {
        self.reader().verify(progress)
    }

    /// The kind of the store's keys; `None` until the first put.
    #[must_use]
    pub fn key_kind(&self) -> Option<KeyKind> {
        self.reader().key_kind()
    }

    /// The report of opening the store.
    #[must_use]
    pub fn open_report(&self) -> &OpenReport {
        self.reader().open_report()
    }

    /// Drops everything from the value cache.
    pub fn clear_value_cache(&self) {
        self.reader().clear_value_cache();
    }
}
