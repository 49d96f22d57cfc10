//! Reading: by the store's own process through [`crate::Store`], by other processes through [`Reader`].

mod buffers;

use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

use crate::engine::follow::refresh;
use crate::engine::open::open_reader;
use crate::engine::options::Options;
use crate::engine::read::again::unless_gone;
use crate::engine::read::get::{contains_batch, get_batch};
use crate::engine::read::locate::{Location, locate};
use crate::engine::read::preload::preload;
use crate::engine::read::range::Range;
use crate::engine::read::scan::{Entries, KeysIter};
use crate::engine::read::stats::stats;
use crate::engine::read::survey::{Survey, survey};
use crate::engine::read::verify::verify;
use crate::engine::report::{Lookup, OpenReport, Preloaded, Stats, VerifyReport};
use crate::engine::runs::count::len;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::io::disk::DiskStorage;
use crate::key::{AsKey, KeyKind, Keys};
use crate::names;
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
