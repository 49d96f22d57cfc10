//! Reading: by the store's own process through [`crate::Store`], by other processes through [`Reader`].

use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

use crate::dtype::Dtype;
use crate::engine::follow::refresh;
use crate::engine::open::open_reader;
use crate::engine::options::Options;
use crate::engine::read::again::unless_gone;
use crate::engine::read::copy::get_leaves_into;
use crate::engine::read::get::{contains_batch, get_batch};
use crate::engine::read::locate::{Location, locate};
use crate::engine::read::preload::preload;
use crate::engine::read::ragged::{Ragged, get_ragged_into};
use crate::engine::read::range::Range;
use crate::engine::read::scan::{Entries, KeysIter};
use crate::engine::read::schemas::schemas;
use crate::engine::read::shapes::shapes;
use crate::engine::read::stats::stats;
use crate::engine::read::survey::{Survey, survey};
use crate::engine::read::verify::verify;
use crate::engine::read::wanted::{LeafBuffer, Wanted, WantedLeaf};
use crate::engine::report::{Lookup, OpenReport, Preloaded, SchemaUse, Stats, VerifyReport};
use crate::engine::runs::count::len;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::io::disk::DiskStorage;
use crate::key::{AsKey, KeyKind, Keys};
use crate::names;
use crate::schema::{ROOT, Schema};
use crate::tensor::Element;
use crate::value::Value;

/// A store that is open for reading.
///
/// It takes no lock and writes nothing, so any number of processes may read while others write. A reader sees what was
/// committed when it was opened or last refreshed ([`Reader::refresh`]). A lookup that misses a key refreshes by
/// itself, at most once in [`Options::refresh_interval`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    state: Arc<State>,
    report: Arc<OpenReport>,
}

impl Reader {
    /// Opens the store of `module_id` under `cache_dir`.
    ///
    /// # Errors
    /// As [`Options::open_reader`].
    pub fn open(cache_dir: impl AsRef<Path>, module_id: &str) -> Result<Self> {
        Options::new().open_reader(cache_dir, module_id)
    }

    pub(crate) fn open_on(storage: Arc<dyn Storage>, options: Options) -> Result<Self> {
        options.check()?;
        let (state, report) = open_reader(storage, options)?;
        Ok(Self::new(state, report))
    }

    pub(crate) fn new(state: Arc<State>, report: OpenReport) -> Self {
        Self { state, report: Arc::new(report) }
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The value of `key`, or `None`. An unpacked tensor is zero-copy: it shares the mapped segment's memory. Expected
    /// O(1).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the row is damaged, [`Error::KeyKind`], IO errors.
    pub fn get(&self, key: impl AsKey) -> Result<Option<Value>> {
        let mut values = self.get_batch(&[key.as_key()?]).map_err(Error::into_cause)?;
        values.pop().unwrap_or(Ok(None)).map_err(Error::into_cause)
    }

    /// The values of `keys`, in their order. A damaged row is an error ([`Error::Item`]) at its own position only.
    ///
    /// # Errors
    /// [`Error::Item`] for a key that cannot be used: of another kind ([`Error::KeyKind`]), too long
    /// ([`Error::TooLarge`]) or negative ([`Error::Invalid`]); IO errors.
    pub fn get_batch<'a>(&self, keys: impl Into<Keys<'a>>) -> Result<Vec<Lookup>> {
        let keys = keys.into();
        unless_gone(&self.state, || get_batch(&self.state, keys))
    }

    /// Copies the rows of `keys` into the caller's contiguous `[keys, …row_shape]` buffer: the fastest read. `found`
    /// says which keys exist; the places of missing rows are left unchanged. Returns the number of rows found.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// let (mut rows, mut found) = ([0.0_f32; 6], [false; 3]);
    /// assert_eq!(store.get_batch_into(&["b", "?", "a"], &[2], &mut rows, &mut found)?, 2);
    /// assert_eq!((rows, found), ([3.0, 4.0, 0.0, 0.0, 1.0, 2.0], [true, false, true]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Reader::get_batch`]; [`Error::Invalid`] if buffer or mask have the wrong length; [`Error::Item`] with
    /// [`Error::Mismatch`] if a row is of another dtype or shape; [`Error::DamagedRows`] if rows are damaged: all
    /// others were copied, and `found` is valid.
    pub fn get_batch_into<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        row_shape: &[usize],
        out: &mut [T],
        found: &mut [bool],
    ) -> Result<usize> {
        self.get_batch_into_bytes(keys, T::DTYPE, row_shape, bytemuck::cast_slice_mut(out), found)
    }

    /// [`Reader::get_batch_into`] for any dtype, into little-endian bytes.
    ///
    /// # Errors
    /// As [`Reader::get_batch_into`].
    pub fn get_batch_into_bytes<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        dtype: Dtype,
        row_shape: &[usize],
        out: &mut [u8],
        found: &mut [bool],
    ) -> Result<usize> {
        self.copy(keys.into(), vec![WantedLeaf::new(ROOT, dtype, row_shape)], vec![out], found)
    }

    fn copy(
        &self,
        keys: Keys<'_>,
        leaves: Vec<WantedLeaf<'_>>,
        mut outs: Vec<&mut [u8]>,
        found: &mut [bool],
    ) -> Result<usize> {
        let wanted = Wanted::new(leaves, keys.len(), &outs, found.len())?;
        self.copy_wanted(keys, &wanted, &mut outs, found)
    }

    fn copy_wanted(
        &self,
        keys: Keys<'_>,
        wanted: &Wanted<'_>,
        outs: &mut [&mut [u8]],
        found: &mut [bool],
    ) -> Result<usize> {
        unless_gone(&self.state, || {
            let outs = outs.iter_mut().map(|out| &mut **out).collect();
            get_leaves_into(&self.state, keys, wanted, outs, found)
        })
    }

    /// [`Reader::get_batch_into`] for values of several leaves: copies each leaf that has a buffer, in one pass over the
    /// keys. Other leaves are not copied. A scalar is a leaf too: an integer is an `i64`, a float an `f64`, a boolean a
    /// byte ([`LeafBuffer::bytes`]).
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{LeafBuffer, Store, Tensor, Value};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// let value = |pooled: [f32; 2], label: i64| -> tensorcask::Result<Value> {
    ///     let pooled = Tensor::from_slice(&[2], &pooled)?;
    ///     Ok(Value::from([("pooled", Value::from(pooled)), ("label", label.into()), ("text", "not read".into())]))
    /// };
    /// store.put_batch(&["a", "b"], &[value([1.0, 2.0], 7)?, value([3.0, 4.0], 8)?])?;
    ///
    /// let (mut pooled, mut labels, mut found) = ([0.0_f32; 4], [0_i64; 2], [false; 2]);
    /// let mut leaves = [
    ///     LeafBuffer::new("value/pooled", &[2], &mut pooled),
    ///     LeafBuffer::new("value/label", &[], &mut labels),
    /// ];
    /// assert_eq!(store.get_leaves_into(&["b", "a"], &mut leaves, &mut found)?, 2);
    /// assert_eq!((pooled, labels), ([3.0, 4.0, 1.0, 2.0], [8, 7]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Reader::get_batch_into`]; [`Error::Mismatch`] also if a value has no such leaf.
    pub fn get_leaves_into<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        leaves: &mut [LeafBuffer<'_>],
        found: &mut [bool],
    ) -> Result<usize> {
        let (wanted, outs) = leaves.iter_mut().map(LeafBuffer::split).unzip();
        self.copy(keys.into(), wanted, outs, found)
    }

    /// Copies whole values, all of the structure `schema`: one contiguous `[keys, …shape]` buffer of little-endian bytes
    /// for each of its leaves, in their order. In contrast to [`Reader::get_leaves_into`], values with other leaves are
    /// a mismatch.
    ///
    /// # Errors
    /// As [`Reader::get_leaves_into`]; [`Error::Invalid`] if a leaf of `schema` differs in size from row to row.
    pub fn get_values_into<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        schema: &Schema,
        outs: &mut [&mut [u8]],
        found: &mut [bool],
    ) -> Result<usize> {
        let keys = keys.into();
        let restores = self.state.options().restore_dtype;
        let wanted = Wanted::whole(schema, restores, keys.len(), outs, found.len())?;
        self.copy_wanted(keys, &wanted, outs, found)
    }

    /// Copies tensors whose first dimension differs from row to row, such as tokens × width, one after another into
    /// `out`, which grows to what they need. `path` is a leaf ([`crate::Leaf::path`]; `value` for values that are a
    /// tensor), `entry_shape` the other dimensions. Row `i` has the entries from `offsets[i]` to `offsets[i + 1]`, each
    /// of as many elements as `entry_shape` has; keys that do not exist have none. `found` says which exist. Returns how
    /// many do. Buffers that are passed again are not allocated again.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{Store, TensorView};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// store.put("a", TensorView::from_slice(&[1, 2], &[1.0_f32, 2.0])?)?;
    /// store.put("b", TensorView::from_slice(&[3, 2], &[3.0_f32, 4.0, 5.0, 6.0, 7.0, 8.0])?)?;
    /// let (mut tokens, mut offsets, mut found) = (Vec::<f32>::new(), Vec::new(), [false; 3]);
    /// assert_eq!(store.get_ragged_into(&["a", "?", "b"], "value", &[2], &mut tokens, &mut offsets, &mut found)?, 2);
    /// assert_eq!((tokens, offsets), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], vec![0, 1, 1, 4]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Reader::get_leaves_into`]. After [`Error::DamagedRows`] all other rows are there; damaged ones have no
    /// entries.
    pub fn get_ragged_into<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        path: &str,
        entry_shape: &[usize],
        out: &mut Vec<T>,
        offsets: &mut Vec<usize>,
        found: &mut [bool],
    ) -> Result<usize> {
        let (keys, ragged) = (keys.into(), Ragged { path, dtype: T::DTYPE, entry_shape });
        unless_gone(&self.state, || get_ragged_into(&self.state, keys, ragged, out, offsets, found))
    }

    /// [`Reader::get_ragged_into`] for any dtype, into little-endian bytes. Offsets are in entries all the same.
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
        let (keys, ragged) = (keys.into(), Ragged { path, dtype, entry_shape });
        unless_gone(&self.state, || get_ragged_into(&self.state, keys, ragged, out, offsets, found))
    }

    /// The shape of the leaf at `path` ([`crate::Leaf::path`]; `value` for values that are a tensor) of each key; `None`
    /// for keys that do not exist. Reads no elements.
    ///
    /// # Errors
    /// Those of [`Reader::contains_batch`]; [`Error::Item`] with [`Error::Mismatch`] if a value has no such leaf, or it
    /// is a string or a byte string.
    pub fn shapes<'a>(&self, keys: impl Into<Keys<'a>>, path: &str) -> Result<Vec<Option<Vec<usize>>>> {
        let keys = keys.into();
        unless_gone(&self.state, || shapes(&self.state, keys, path))
    }

    /// Every structure of values in the store, with the numbers of its rows and segments; those with most rows first.
    /// A value of another structure, dtype or shape is put next to the existing ones, into segments of its own.
    /// O(segments).
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// store.put("label", tensorcask::Value::Int(7))?;
    /// let found: Vec<_> = store.schemas()?.iter().map(|used| (used.schema.to_string(), used.rows)).collect();
    /// assert_eq!(found, [("F32 [2]".to_owned(), 2), ("int".to_owned(), 1)]);
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn schemas(&self) -> Result<Vec<SchemaUse>> {
        schemas(&self.state)
    }

    /// Which of `keys` exist. Reads keys, not values.
    ///
    /// # Errors
    /// Those of [`Reader::get_batch`]; [`Error::Item`] with [`Error::Corrupt`] if a batch that may hold a key is
    /// damaged.
    pub fn contains_batch<'a>(&self, keys: impl Into<Keys<'a>>) -> Result<Vec<bool>> {
        let keys = keys.into();
        unless_gone(&self.state, || contains_batch(&self.state, keys))
    }

    /// Whether `key` exists.
    ///
    /// # Errors
    /// As [`Reader::contains_batch`].
    pub fn contains(&self, key: impl AsKey) -> Result<bool> {
        let found = self.contains_batch(&[key.as_key()?]).map_err(Error::into_cause)?;
        Ok(found.first().copied().unwrap_or(false))
    }

    /// The number of keys. O(1); O(rows) once after a crash that left several index runs.
    ///
    /// # Errors
    /// IO errors.
    pub fn len(&self) -> Result<u64> {
        len(&self.state)
    }

    /// Whether there are no keys.
    ///
    /// # Errors
    /// As [`Reader::len`].
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|keys| keys == 0)
    }

    /// All keys, in no order. Keys that are overwritten or deleted during the iteration may be left out. O(rows) in
    /// total, O(1) memory.
    #[must_use]
    pub fn keys(&self) -> KeysIter {
        KeysIter::new(Arc::clone(&self.state))
    }

    /// All keys and their values, in storage order: files are read from front to back. Keys that are overwritten or
    /// deleted during the iteration may be left out. O(bytes) in total, O(value) memory.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// for entry in store.iter() {
    ///     let (key, value) = entry?;
    ///     println!("{key}: {value:?}");
    /// }
    /// # store.close()
    /// # }
    /// ```
    #[must_use]
    pub fn iter(&self) -> Entries {
        Entries::new(Arc::clone(&self.state))
    }

    /// The keys that start with `prefix`, in byte order. They are read through the segments' FSTs, in chunks of a
    /// thousand keys and more: O(keys) for sealed rows, O(rows) for others. Keys that are put, overwritten or deleted
    /// during the iteration may be returned or left out. An error is an item and ends the iteration: [`Error::KeyKind`]
    /// or [`Error::Invalid`] unless keys are strings or bytes, IO errors, [`Error::Corrupt`].
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["cat/1", "cat/2", "dog/1"], &[1], &[1.0_f32, 2.0, 3.0])?;
    /// let first = store.prefix("cat/").next().transpose()?;
    /// assert_eq!(first.as_ref().and_then(|key| key.as_str()), Some("cat/1"));
    /// let all = store.range("cat/2"..).collect::<tensorcask::Result<Vec<_>>>()?;
    /// assert_eq!(all.len(), 2);
    /// # store.close()
    /// # }
    /// ```
    #[must_use]
    pub fn prefix(&self, prefix: impl AsKey) -> Range {
        Range::prefix(Arc::clone(&self.state), &prefix)
    }

    /// The number of keys that start with `prefix`. O(keys) as [`Reader::prefix`].
    ///
    /// # Errors
    /// Those of [`Reader::prefix`].
    pub fn count_prefix(&self, prefix: impl AsKey) -> Result<u64> {
        self.prefix(prefix).try_fold(0, |count, key| key.map(|_| count + 1))
    }

    /// The keys of a range, in order: byte order for strings and bytes, as for [`Reader::prefix`]; numeric order for
    /// integers. Segments do not keep integers in order, so the whole range is read at the first key: O(rows). Errors
    /// are items, as for [`Reader::prefix`].
    #[must_use]
    pub fn range<K: AsKey>(&self, range: impl RangeBounds<K>) -> Range {
        Range::between(Arc::clone(&self.state), &range)
    }

    /// Preloads the index, then the sealed rows from the oldest on, into memory, up to `limit_bytes`, and returns what
    /// was read. Data that are not in memory are read sequentially, at the speed of the disk.
    ///
    /// Where the kernel and the file system support large pages in the page cache (tried on ext4 under Linux 6.18),
    /// preloaded data lie in pages of 2 MiB. Data in small pages, because they were read row by row or written in small
    /// batches, are read again for that. All processes share the page cache, so one of them has to call this. It may be
    /// called while others read and write. A limit beyond free memory evicts what was read first.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// # store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// # store.close()?;
    /// let reader = tensorcask::Reader::open(dir.path(), "encoder")?;
    /// let preloaded = reader.preload(8 << 30)?;
    /// assert!(preloaded.segment_bytes > 0 && preloaded.left_bytes == 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if something cannot be read.
    pub fn preload(&self, limit_bytes: u64) -> Result<Preloaded> {
        self.preload_with(limit_bytes, &mut |_| {})
    }

    /// As [`Reader::preload`]; calls `progress` with the bytes that are in memory, after each file.
    ///
    /// # Errors
    /// As [`Reader::preload`].
    pub fn preload_with(&self, limit_bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<Preloaded> {
        preload(&self.state, limit_bytes, progress)
    }

    /// Looks for what other writers committed. Returns whether there was anything new.
    ///
    /// # Errors
    /// IO errors, [`Error::Corrupt`] for a damaged segment.
    pub fn refresh(&self) -> Result<bool> {
        refresh(&self.state)
    }

    /// Where the newest row of `key` is, or why there is none. Reads what other writers have committed first. Expected
    /// O(1), after the refresh. For people who wonder about a miss; it does not count as a read.
    ///
    /// # Errors
    /// IO errors; [`Error::KeyKind`] for a key of another kind.
    pub fn locate(&self, key: impl AsKey) -> Result<Location> {
        locate(&self.state, (&[key.as_key()?]).into()).map_err(Error::into_cause)
    }

    /// Describes all segments, and samples about `rows` rows: how many of them are live, and the keys of those. Runs of
    /// `run_rows` rows follow each other on disk; 1 estimates shares best, and more shows how fast reads in order are.
    /// The same state of a store gives the same sample. O(segments) and O(sampled rows); keys of the batches that the
    /// sample touches are read.
    ///
    /// # Errors
    /// IO errors. Damaged rows are counted.
    pub fn survey(&self, rows: u64, run_rows: u32) -> Result<Survey> {
        survey(&self.state, rows, run_rows)
    }

    /// Sizes and counters. O(segments), and cheap enough to call every second: no file but the folders is looked at.
    ///
    /// # Errors
    /// IO errors.
    pub fn stats(&self) -> Result<Stats> {
        stats(&self.state)
    }

    /// Reads and checks every byte that is sealed or committed: structure, frames, row checksums, index blocks, FSTs
    /// and runs. `progress` is called with the rows done and the total. O(bytes).
    ///
    /// # Errors
    /// IO errors. Damage is not an error of this call; the report lists it.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport> {
        verify(&self.state, progress)
    }

    /// The kind of the store's keys; `None` while it holds nothing.
    #[must_use]
    pub fn key_kind(&self) -> Option<KeyKind> {
        self.state.identity().key_kind()
    }

    /// The report of opening the store.
    #[must_use]
    pub fn open_report(&self) -> &OpenReport {
        &self.report
    }

    /// Drops everything from the value cache.
    pub fn clear_value_cache(&self) {
        if self.state.check_fork().is_ok() {
            self.state.value_cache().clear();
        }
    }
}

impl Options {
    /// Opens the store of `module_id` under `cache_dir` for reading only, without any lock.
    ///
    /// # Errors
    /// As [`Options::open`]; an IO error of kind `NotFound` if there is no such store.
    pub fn open_reader(self, cache_dir: impl AsRef<Path>, module_id: &str) -> Result<Reader> {
        names::check_module_id(module_id)?;
        Reader::open_on(Arc::new(DiskStorage::new(cache_dir.as_ref().join(module_id))), self)
    }

    /// Opens a reader on a [`Storage`] of the caller's. Unstable, as all of [`storage`](crate::storage).
    ///
    /// # Errors
    /// As [`Options::open_reader`].
    #[cfg(feature = "unstable-storage")]
    pub fn open_reader_on(self, storage: Arc<dyn Storage>) -> Result<Reader> {
        Reader::open_on(storage, self)
    }
}
