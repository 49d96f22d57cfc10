//! The store: a reader that can also write.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::buffers::Buffers;
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::engine::options::Options;
use crate::engine::reader::Reader;
use crate::engine::repair::repair;
use crate::engine::report::OpenReport;
use crate::engine::runs::plan::{Merges, Purpose};
use crate::engine::state::Counters;
use crate::engine::threads;
use crate::engine::write::put::{Schemas, Shared, merge_at_close};
use crate::engine::write::queue::Queue;
use crate::error::{Error, Result};
use crate::io::{Durability, Storage};
use crate::key::{KeyRef, Keys};
use crate::schema::{RowSchema, derive, single_tensor_schema};
use crate::segment::build::{ColumnsBuilder, KeyBuilder, MAX_COLUMN_LEN_BYTES, with_data, without_data};
use crate::segment::columns::Columns;
use crate::value::{AsValue, ValueView};

/// A store that is open for writing, and for reading through [`Reader`], to which it derefs.
///
/// Cheap to clone; all clones are one handle. The last clone to be dropped closes the store as [`Store::close`] does,
/// but cannot report an error: call `close` where that matters.
#[derive(Debug, Clone)]
pub struct Store {
    reader: Reader,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Deref for Store {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Store {
    /// Opens the store of `module_id` under `cache_dir` with default [`Options`]; creates and recovers it.
    ///
    /// # Errors
    /// As [`Options::open`].
    pub fn open(cache_dir: impl AsRef<Path>, module_id: &str) -> Result<Self> {
        Options::new().open(cache_dir, module_id)
    }

    pub(crate) fn open_on(storage: Arc<dyn Storage>, options: Options) -> Result<Self> {
        let (core, lane, report) = crate::engine::open::open_writer(storage, options)?;
        let options = &core.options;
        let synchronous = options.synchronous;
        let mut schemas = Schemas::default();
        for segment in core.view.load().segments.values() {
            schemas.intern(RowSchema::clone(segment.schema()));
        }
        for active in &lane.actives {
            schemas.intern(RowSchema::clone(active.writer.schema()));
        }
        let shared = Arc::new(Shared {
            buffers: Buffers::new(options.flush_bytes.saturating_mul(2).min(options.buffer_bytes)),
            queue: Queue::new(options.flush_rows, options.flush_bytes, options.flush_interval, options.buffer_bytes),
            lane_number: lane.number,
            lane: Mutex::new(Some(lane)),
            merging: Mutex::new(()),
            merges: Merges::default(),
            merger: Mutex::new(None),
            long_merger: Mutex::new(None),
            merges_running: AtomicUsize::new(0),
            merge_failure: Mutex::new(None),
            schemas: Mutex::new(schemas),
            process_id: std::process::id(),
            core: Arc::clone(&core),
        });
        let thread = if synchronous {
            None
        } else {
            let shared = Arc::clone(&shared);
            let thread = threads::spawn("tensorcask-writer", move || shared.run());
            Some(thread.map_err(|error| {
                Error::io("start the writer thread of", core.storage.describe(Path::new("")), error)
            })?)
        };
        Ok(Self { reader: Reader::new(core, report), inner: Arc::new(Inner { shared, thread: Mutex::new(thread) }) })
    }

    /// Puts one value. Copies it and returns; the row can be read at once. See [`Store::put_rows`] for many.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{Store, TensorView};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// store.put("sample-7", TensorView::from_slice(&[3], &[1.0_f32, 2.0, 3.0])?)?;
    /// let value = store.get("sample-7")?.and_then(|value| value.into_tensor());
    /// assert_eq!(value.map(|tensor| tensor.to_vec::<f32>()).transpose()?, Some(vec![1.0, 2.0, 3.0]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::KeyKind`], [`Error::TooLarge`], [`Error::Invalid`] for values that cannot be stored (a map with a name
    /// twice, a byte of a BOOL tensor that is not 0 or 1);
    /// [`Error::Poisoned`], [`Error::Closed`], [`Error::ReadOnly`] if the handle cannot write.
    pub fn put<'a>(&self, key: impl Into<KeyRef<'a>>, value: impl Into<ValueView<'a>>) -> Result<()> {
        self.put_batch(&[key.into()], &[value.into()])
    }

    /// Puts values of any structure. If a key stands twice, the last value wins. Blocks while the buffer is full.
    ///
    /// # Errors
    /// As [`Store::put`]; [`Error::Invalid`] if there are not as many values as keys. Nothing is put then.
    pub fn put_batch<'a>(&self, keys: impl Into<Keys<'a>>, values: &[impl AsValue]) -> Result<()> {
        let keys = keys.into();
        if keys.len() != values.len() {
            return Err(Error::invalid(format!(
                "{} keys were passed with {} values: pass one value a key",
                keys.len(),
                values.len()
            )));
        }
        let Some(kind) = self.inner.shared.begin(keys)? else { return Ok(()) };
        let options = &self.inner.shared.core.options;
        let mut built: Vec<Columns> = Vec::new();
        let mut builder: Option<(Arc<RowSchema>, ColumnsBuilder)> = None;
        for (key, value) in keys.iter().zip(values) {
            let view = value.as_value();
            let (schema, leaves) = derive(&view, kind, options.store_as, options.codec)?;
            self.inner.shared.check_size(&view)?;
            let schema = self.inner.shared.schemas.lock().intern(schema);
            let fits = builder.as_ref().is_some_and(|(current, rows)| {
                *current == schema
                    && rows.largest_column_len_bytes() < options.flush_bytes.min(MAX_COLUMN_LEN_BYTES / 2)
            });
            if !fits {
                built.extend(builder.take().map(|(_, full)| full.finish()));
                let fresh = ColumnsBuilder::new(Arc::clone(&schema), options.codec)?;
                builder = Some((schema, fresh));
            }
            if let Some((_, rows)) = &mut builder {
                rows.push(key, &leaves)?;
            }
        }
        built.extend(builder.map(|(_, rows)| rows.finish()));
        built.into_iter().try_for_each(|columns| self.inner.shared.put(columns))
    }

    /// The fast path: puts one contiguous `[keys, …row_shape]` tensor, a row a key. No allocation and no work a row
    /// beyond the key and its place in the index. If a key stands twice, the last row wins.
    ///
    /// Copies the rows for the writer thread, and returns. Where no rows wait to be flushed, a batch of 256 KiB or more is
    /// written from `rows` before this returns, since it is likely to be flushed as well.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// let embeddings = vec![0.5_f32; 4 * 384];
    /// store.put_rows(&[10_u64, 11, 12, 13], &[384], &embeddings)?;
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Store::put`]; [`Error::Invalid`] if `rows` has not as many elements as keys and shape ask for.
    pub fn put_rows<'a, T: crate::tensor::Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        row_shape: &[usize],
        rows: &[T],
    ) -> Result<()> {
        self.put_rows_bytes(keys, T::DTYPE, row_shape, bytemuck::cast_slice(rows))
    }

    /// [`Store::put_rows`] for any dtype, from little-endian bytes.
    ///
    /// # Errors
    /// As [`Store::put_rows`].
    pub fn put_rows_bytes<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        dtype: Dtype,
        row_shape: &[usize],
        rows: &[u8],
    ) -> Result<()> {
        let keys = keys.into();
        let width = dtype.tensor_len_bytes(row_shape).ok_or_else(|| {
            Error::invalid(format!(
                "a {dtype} row cannot have shape {row_shape:?}: its size overflows or fills no whole bytes"
            ))
        })?;
        if width.checked_mul(keys.len()) != Some(rows.len()) {
            return Err(Error::invalid(format!(
                "{} keys with {dtype} rows of shape {row_shape:?} take {width} bytes each, but {} bytes were passed: \
                 pass one contiguous [keys, …shape] tensor",
                keys.len(),
                rows.len()
            )));
        }
        dtype.check_elements(rows)?;
        let shared = &self.inner.shared;
        let Some(kind) = shared.begin(keys)? else { return Ok(()) };
        shared.check_len(width)?;
        let options = &shared.core.options;
        let schema = single_tensor_schema(kind, dtype, row_shape, options.store_as, options.codec)?;
        schema.check().map_err(Error::invalid)?;
        let schema = shared.schemas.lock().intern(schema);
        let stored = schema.single_tensor().map(|(dtype, _, _)| dtype);
        let Some(stored) = stored.filter(|_| options.codec == Codec::None) else {
            let views = (0..keys.len()).map(|row| {
                let row = rows.get(row * width..(row + 1) * width).unwrap_or(&[]);
                crate::tensor::TensorView::new(dtype, row_shape, row).map(ValueView::Tensor)
            });
            return self.put_batch(keys, &views.collect::<Result<Vec<_>>>()?);
        };
        // Chunks of about what the writer writes at once, so that the buffer's bound holds for any call.
        let most_bytes = options.flush_bytes.min(MAX_COLUMN_LEN_BYTES / 2);
        let most_rows = (most_bytes / width.max(8)).clamp(1, 1 << 20);
        let (mut start, mut lent) = (0, false);
        while start < keys.len() {
            let mut end = start;
            let mut column = KeyBuilder::new(kind, most_rows.min(keys.len() - start));
            if let Keys::U64(integers) = keys {
                end = integers.len().min(start + most_rows);
                column.push_integers(integers.get(start..end).unwrap_or(&[]))?;
            }
            while let Some(key) = keys.get(end).filter(|_| end - start < most_rows && column.len_bytes() <= most_bytes)
            {
                key.with_bytes(|bytes| column.push_bytes(bytes))?;
                end += 1;
            }
            let values = rows.get(start * width..end * width).unwrap_or(&[]);
            let columns = without_data(Arc::clone(&schema), column.finish(), end - start)?;
            lent = stored == dtype && shared.put_lent(&columns, values, lent)?;
            if !lent {
                shared.put(with_data(columns, dtype, values, &shared.buffers)?)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Deletes keys: writes a tombstone for each that is there. Returns how many were. Before a key counts as not there,
    /// what other writers have committed is taken in: a batch with such a key costs a [`Reader::refresh`].
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn delete_batch<'a>(&self, keys: impl Into<Keys<'a>>) -> Result<usize> {
        let keys = keys.into();
        let shared = &self.inner.shared;
        let Some(kind) = shared.begin(keys)? else { return Ok(0) };
        let core = &shared.core;
        let is_there = |key: KeyRef<'_>| {
            let found = key.with_bytes(|bytes| core.locate(core.hasher.hash(bytes), bytes))?;
            Ok::<bool, Error>(found.is_some_and(|found| !found.row.is_tombstone()))
        };
        let mut there = keys.iter().map(is_there).collect::<Result<Vec<bool>>>()?;
        if there.contains(&false) && core.refresh()? {
            for (key, there) in keys.iter().zip(&mut there).filter(|(_, there)| !**there) {
                *there = is_there(key)?;
            }
        }
        let schema = shared.schemas.lock().intern(RowSchema::tombstones(kind));
        let mut column = ColumnsBuilder::new(schema, Codec::None)?;
        let mut seen = std::collections::HashSet::new();
        for (key, _) in keys.iter().zip(there).filter(|(_, there)| *there) {
            if seen.insert(key) {
                column.push(key, &[])?;
            }
        }
        let deleted = column.rows();
        if deleted > 0 {
            shared.put(column.finish())?;
        }
        Ok(deleted)
    }

    /// Deletes one key; returns whether it was there.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn delete<'a>(&self, key: impl Into<KeyRef<'a>>) -> Result<bool> {
        self.delete_batch(&[key.into()]).map(|deleted| deleted == 1)
    }

    /// Returns when everything put before is on disk, as durable as the options say.
    ///
    /// # Errors
    /// [`Error::Poisoned`] with the failure of any write since the store was opened.
    pub fn flush(&self) -> Result<()> {
        self.flush_with(self.inner.shared.core.options.durability)
    }

    /// [`Store::flush`] with a durability of its own.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub fn flush_with(&self, durability: Durability) -> Result<()> {
        let shared = &self.inner.shared;
        shared.check_process()?;
        Counters::add(&shared.core.counters.flushes, 1);
        let up_to = shared.queue.ask(durability)?;
        shared.reach_barrier();
        shared.queue.wait_for_barrier(up_to, durability)?;
        shared.merge_failure()
    }

    /// Merges the index of everything that is sealed into one run now (while rows are put, into few). `close` does that
    /// only where the handle put a quarter of the rows or more, and else leaves up to three runs, since it is not to take
    /// long; whoever reads a large store many times pays for each of them with every key. Does nothing if there is one.
    /// O(keys): about 0.1 µs a key.
    ///
    /// # Errors
    /// IO errors; the store stays as it was.
    pub fn merge_index(&self) -> Result<()> {
        let shared = &self.inner.shared;
        shared.check_process()?;
        shared.queue.check()?;
        shared.join_merges();
        shared.merge(Purpose::One)
    }

    /// Acknowledges what is lost: damaged files that were set aside, segments that are missing, files of other stores.
    /// Reports of opening and of [`Reader::verify`] are clean of it from now on. Nothing is deleted: damaged files stay in
    /// `quarantine/`. Returns how many things it was.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] in a forked child; IO errors.
    pub fn acknowledge_damage(&self) -> Result<usize> {
        self.inner.shared.check_process()?;
        crate::engine::findings::acknowledge(&self.inner.shared.core)
    }

    /// Writes and seals everything, merges the index, and releases the lane. All clones of the handle are closed;
    /// reads through them go on.
    ///
    /// # Errors
    /// The first failure of any write since the store was opened.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }

    /// The lane that this handle writes in.
    #[must_use]
    pub fn lane(&self) -> u16 {
        self.inner.shared.lane_number
    }

    /// Rows and bytes that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        // In a forked child nothing does.
        if self.inner.shared.core.check_fork().is_err() { (0, 0) } else { self.inner.shared.queue.depth() }
    }

    /// How many merges of the index run in the background of this handle. O(1).
    #[must_use]
    pub fn merges_running(&self) -> usize {
        self.inner.shared.merges_running.load(Ordering::Relaxed)
    }

    /// What opening found.
    #[must_use]
    pub fn open_report(&self) -> &OpenReport {
        self.reader.open_report()
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        let shared = &self.shared;
        // The parent's thread does not exist in a forked child, and its files are the parent's.
        if shared.check_process().is_err() {
            return Ok(());
        }
        shared.queue.close();
        // Held to the end: who closes at the same time waits for what this call does.
        let mut thread = self.thread.lock();
        match thread.take() {
            Some(thread) => drop(thread.join()),
            None if shared.core.options.synchronous && shared.is_open() => shared.step(),
            None => {}
        }
        shared.join_merges();
        if let Some(cause) = shared.queue.failure() {
            shared.lane.lock().take();
            return Err(Error::Poisoned { cause: Arc::new(cause) });
        }
        let Some(mut lane) = shared.lane.lock().take() else { return Ok(()) };
        lane.seal_all(&shared.core).map_err(|error| lane.first_failure(&shared.core, error))?;
        lane.check_in_place(&shared.core)?;
        let repaired = repair(&shared.core, &mut lane)?;
        if let Some(purpose) = repaired.then_some(Purpose::One).or_else(|| merge_at_close(&shared.core)) {
            shared.merge(purpose)?;
        }
        // What the merge found.
        if repair(&shared.core, &mut lane)? {
            shared.merge(Purpose::One)?;
        }
        shared.merge_failure()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to be told; `Store::close` reports.
        let _ = self.close();
    }
}
