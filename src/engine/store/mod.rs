//! The store: a reader that can also write.

mod absent;
mod background;
mod compute;
mod copies;
mod deletes;
mod maintenance;
mod reads;
mod room;

use std::path::Path;
use std::sync::Arc;

use crate::buffers::Buffers;
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::engine::compact::remove_row_maps;
use crate::engine::flight::claims::Flight;
use crate::engine::leases::Leases;
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::observe::Operation;
use crate::engine::open::open_writer;
use crate::engine::options::Options;
use crate::engine::reader::Reader;
use crate::engine::repair::repair;
use crate::engine::report::Waiting;
use crate::engine::runs::plan::Purpose;
use crate::engine::state::State;
use crate::engine::store::background::{Background, compact_at_close};
use crate::engine::store::room::{Admitted, Room};
use crate::engine::threads;
use crate::engine::write::merger::Merger;
use crate::engine::write::put::{Puts, check_len, check_size};
use crate::engine::write::queue::Queue;
use crate::engine::write::schemas::Schemas;
use crate::engine::write::writer::Writer;
use crate::error::{Error, Result};
use crate::io::disk::DiskStorage;
use crate::io::{Durability, Storage};
use crate::key::{AsKey, Keys};
use crate::names;
use crate::schema::{RowLayout, RowSchema, derive, single_tensor_schema};
use crate::segment::build::{ColumnsBuilder, KeyBuilder, MAX_COLUMN_LEN_BYTES, with_data, without_data};
use crate::segment::columns::Columns;
use crate::sync::JoinHandle;
use crate::tensor::{Element, TensorView};
use crate::value::{AsValue, ValueView};

/// A store that is open for reading and writing.
///
/// Cheap to clone; all clones share one handle. Dropping the last clone closes the store as [`Store::close`] does, but
/// cannot report an error: call `close` where that matters.
#[derive(Debug, Clone)]
pub struct Store {
    reader: Reader,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<State>,
    queue: Arc<Queue>,
    puts: Puts,
    writer: Arc<Writer>,
    merger: Arc<Merger>,
    lane: u16,
    thread: RankedMutex<Option<JoinHandle<()>>>,
    background: Arc<Background>,
    flight: Flight,
    leases: Leases,
    room: Room,
}

/// Puts rows, either complete or without their data, which are passed beside them.
type PutChunk<'a> = &'a mut dyn FnMut(Columns, Option<&[u8]>) -> Result<()>;

impl Store {
    /// Opens the store of `module_id` under `cache_dir` with default [`Options`]; creates or recovers it if needed.
    ///
    /// # Errors
    /// As [`Options::open`].
    pub fn open(cache_dir: impl AsRef<Path>, module_id: &str) -> Result<Self> {
        Options::new().open(cache_dir, module_id)
    }

    pub(crate) fn open_on(storage: Arc<dyn Storage>, options: Options) -> Result<Self> {
        options.check()?;
        let (state, lane, report) = open_writer(storage, options.under_caps())?;
        let options = state.options();
        let mut schemas = Schemas::default();
        for segment in state.versions().load().segments().values() {
            schemas.intern(RowSchema::clone(segment.schema()));
        }
        for schema in lane.schemas() {
            schemas.intern(RowSchema::clone(schema));
        }
        let buffers = Buffers::new(options.flush_bytes.saturating_mul(2).min(options.buffer_bytes));
        let queue = Queue::new(options.flush_rows, options.flush_bytes, options.flush_interval, options.buffer_bytes);
        let (queue, number) = (Arc::new(queue), lane.number());
        let merger = Arc::new(Merger::new(Arc::clone(&state), Arc::clone(&queue), number));
        let writer =
            Writer::new(Arc::clone(&state), Arc::clone(&queue), lane, Arc::clone(&merger), Arc::clone(&buffers));
        let writer = Arc::new(writer);
        let thread = if options.synchronous { None } else { Some(start_writer(&state, &writer)?) };
        let puts = Puts::new(
            Arc::clone(&state),
            Arc::clone(&queue),
            Arc::clone(&writer),
            Arc::clone(&merger),
            buffers,
            schemas,
        );
        let thread = RankedMutex::new(Rank::Close, thread);
        let reader = Reader::new(Arc::clone(&state), report);
        let room = Room::new(&state, &queue, &writer, number);
        let background = Background::start((&state, &queue), &writer, &merger, number, room.is_wanted());
        let leases = Leases::new(Arc::clone(&state), number);
        let flight = Flight::default();
        let inner =
            Inner { state, queue, puts, writer, merger, lane: number, thread, background, flight, leases, room };
        let store = Self { reader, inner: Arc::new(inner) };
        store.inner.room.settle()?;
        Ok(store)
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
    /// [`Error::KeyKind`], [`Error::TooLarge`], [`Error::Invalid`] for values that cannot be stored (a map with a
    /// duplicate name, a byte of a BOOL tensor that is not 0 or 1); [`Error::Poisoned`], [`Error::Closed`],
    /// [`Error::ReadOnly`] if the handle cannot write; [`Error::Full`] if the caps of the options leave no room.
    pub fn put(&self, key: impl AsKey, value: impl AsValue) -> Result<()> {
        self.put_batch(&[key.as_key()?], &[value]).map_err(Error::into_cause)
    }

    /// Puts values of any structure. If a key occurs twice, the last value wins. Blocks while the buffer is full.
    ///
    /// # Errors
    /// As [`Store::put`], but an error of one key or value is an [`Error::Item`]; [`Error::Full`] under a cap;
    /// [`Error::Invalid`] if the numbers of keys and values differ. Nothing is put then.
    pub fn put_batch<'a>(&self, keys: impl Into<Keys<'a>>, values: &[impl AsValue]) -> Result<()> {
        let built = self.build(keys.into(), values)?;
        let _admitted = self.admit(&built)?;
        built.into_iter().try_for_each(|columns| self.inner.puts.put(columns))
    }

    /// Makes room for `built` under the caps.
    fn admit(&self, built: &[Columns]) -> Result<Admitted<'_>> {
        let format = self.inner.state.identity().recorded().format;
        let of_layout = |columns: &Columns| RowLayout::new(format, false, &columns.schema).len_bytes(columns.rows);
        let len_bytes = || built.iter().map(|columns| columns.len_bytes() + of_layout(columns)).sum();
        self.inner.room.make(len_bytes, built.iter().map(|columns| columns.rows).sum(), built.len())
    }

    /// The rows of values of any structure, in order, as batches of one structure each.
    fn build(&self, keys: Keys<'_>, values: &[impl AsValue]) -> Result<Vec<Columns>> {
        if keys.len() != values.len() {
            return Err(Error::invalid(format!(
                "{} keys were passed with {} values: pass one value a key",
                keys.len(),
                values.len()
            )));
        }
        let puts = &self.inner.puts;
        let Some(kind) = puts.begin(keys)? else { return Ok(Vec::new()) };
        let options = self.inner.state.options();
        let mut built: Vec<Columns> = Vec::new();
        let mut builder: Option<(Arc<RowSchema>, ColumnsBuilder)> = None;
        for (position, (key, value)) in keys.iter().zip(values).enumerate() {
            let at_fault = |error| keys.item_error(position, error);
            let view = value.as_value();
            let (schema, leaves) = derive(&view, kind, options.store_as, options.codec).map_err(at_fault)?;
            check_size(options, &view).map_err(at_fault)?;
            let schema = match &builder {
                Some((current, _)) if **current == schema => Arc::clone(current),
                _ => puts.intern(schema),
            };
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
                rows.push(key, &leaves).map_err(at_fault)?;
            }
        }
        built.extend(builder.map(|(_, rows)| rows.finish()));
        Ok(built)
    }

    /// The fast path: puts one contiguous `[keys, …row_shape]` tensor, one row for each key. A row costs no allocation,
    /// and no work except for its key and its index entry. If a key occurs twice, the last row wins.
    ///
    /// Copies the rows for the writer thread and returns. If no earlier rows wait to be flushed, a batch of 256 KiB or
    /// more is written directly from `rows` before this returns, since the caller is likely to flush it as well.
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
    /// As [`Store::put_batch`]; [`Error::Invalid`] if the number of elements in `rows` does not fit the keys and the
    /// shape.
    pub fn put_rows<'a, T: Element>(&self, keys: impl Into<Keys<'a>>, row_shape: &[usize], rows: &[T]) -> Result<()> {
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
        let (puts, mut zero_copy) = (&self.inner.puts, false);
        self.in_chunks(keys.into(), dtype, row_shape, rows, &mut |columns, values| {
            let Some(values) = values else { return puts.put(columns) };
            let is_stored_so = columns.schema.single_tensor().is_some_and(|(stored, _, _)| stored == dtype);
            zero_copy = is_stored_so && puts.put_zero_copy(&columns, values, zero_copy)?;
            if zero_copy { Ok(()) } else { puts.put(with_data(columns, dtype, values, puts.buffers())?) }
        })
    }

    /// Passes one contiguous `[keys, …row_shape]` tensor to `put`, in order, in chunks of about one write of the writer,
    /// so that the buffer's bound holds for calls of any size.
    fn in_chunks(
        &self,
        keys: Keys<'_>,
        dtype: Dtype,
        row_shape: &[usize],
        rows: &[u8],
        put: PutChunk<'_>,
    ) -> Result<()> {
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
        if dtype.check_elements(rows).is_err() {
            let each = rows.chunks(width).map(|row| dtype.check_elements(row)).enumerate();
            each.into_iter().try_for_each(|(row, checked)| checked.map_err(|error| keys.item_error(row, error)))?;
        }
        let puts = &self.inner.puts;
        let Some(kind) = puts.begin(keys)? else { return Ok(()) };
        let options = self.inner.state.options();
        check_len(options, width)?;
        let schema = single_tensor_schema(kind, dtype, row_shape, options.store_as, options.codec)?;
        schema.check().map_err(Error::invalid)?;
        let schema = puts.intern(schema);
        let stored = schema.single_tensor().map(|(dtype, _, _)| dtype);
        if stored.is_none() || options.codec != Codec::None {
            let views = (0..keys.len()).map(|row| {
                let row = part(rows, row * width, (row + 1) * width)?;
                TensorView::with_shape_of(dtype, row_shape, row).map(ValueView::Tensor)
            });
            let built = self.build(keys, &views.collect::<Result<Vec<_>>>()?)?;
            let _admitted = self.admit(&built)?;
            return built.into_iter().try_for_each(|columns| put(columns, None));
        }
        let most_bytes = options.flush_bytes.min(MAX_COLUMN_LEN_BYTES / 2);
        let most_rows = (most_bytes / width.max(8)).clamp(1, 1 << 20);
        let batches = rows.len() / most_bytes + 1;
        let _admitted = self.inner.room.make(|| rows.len() + keys_len_bytes(keys), keys.len(), batches)?;
        let mut start = 0;
        while start < keys.len() {
            let mut end = start;
            let mut column = KeyBuilder::new(kind, most_rows.min(keys.len() - start));
            if let Some(integers) = keys.integers() {
                end = integers.len().min(start + most_rows);
                column.push_integers(part(integers, start, end)?)?;
            }
            while let Some(key) = keys.get(end).filter(|_| end - start < most_rows && column.len_bytes() <= most_bytes)
            {
                key.with_bytes(|bytes| column.push_bytes(bytes))?;
                end += 1;
            }
            let values = part(rows, start * width, end * width)?;
            let columns = without_data(Arc::clone(&schema), column.finish(), end - start)?;
            put(columns, Some(values))?;
            start = end;
        }
        Ok(())
    }

    /// Waits until all earlier puts are on disk, at the durability level of the options.
    ///
    /// # Errors
    /// [`Error::Poisoned`] with the failure of any write since the store was opened.
    pub fn flush(&self) -> Result<()> {
        self.flush_with(self.inner.state.options().durability)
    }

    /// [`Store::flush`] with the given durability level.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub fn flush_with(&self, durability: Durability) -> Result<()> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        inner.state.metrics().flushed();
        let _span = inner.state.metrics().begin(Operation::Flush);
        let up_to = inner.queue.ask(durability)?;
        inner.writer.reach_barrier();
        inner.queue.wait_for_barrier(up_to, durability)?;
        inner.merger.check()
    }

    /// Writes and seals everything, merges the index, and releases the lane. All clones of the handle are closed; reads
    /// through them still work.
    ///
    /// # Errors
    /// The first failure of any write since the store was opened.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }

    /// The lane that this handle writes in.
    #[must_use]
    pub fn lane(&self) -> u16 {
        self.inner.lane
    }

    /// The numbers of rows and bytes that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        // In a forked child, none do.
        if self.inner.state.check_fork().is_err() { Waiting::default() } else { self.inner.queue.depth() }
    }

    /// The number of merges of the index that this handle runs in the background. O(1).
    #[must_use]
    pub fn merges_running(&self) -> usize {
        self.inner.merger.running()
    }

    /// The reader of this store, for code that only reads. It sees puts through this handle at once, and may outlive
    /// the handle.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl Inner {
    fn compact_at_close(&self) -> Result<()> {
        self.writer.with_lane(|lane| lane.seal_all(&self.state))?;
        compact_at_close(&self.state, &self.writer, &self.merger, self.lane)
    }

    fn close(&self) -> Result<()> {
        // The parent's thread does not exist in a forked child, and its files are the parent's.
        if self.puts.check_process().is_err() {
            return Ok(());
        }
        self.queue.close();
        // Held to the end, so that a concurrent call waits until this one is done.
        let mut thread = self.thread.lock();
        let joined = thread.take().map(JoinHandle::join);
        if let Some(Err(_)) = joined {
            self.queue.fail(Error::Internal { what: "the writer thread panicked".into() });
        }
        if joined.is_none() && self.state.options().synchronous && self.writer.is_open() {
            self.writer.step();
        }
        self.merger.join();
        self.background.join();
        if self.queue.failure().is_none() && self.writer.is_open() {
            self.merger.note(self.compact_at_close());
        }
        let lane = self.writer.take_lane();
        if let Some(cause) = self.queue.failure() {
            return Err(Error::Poisoned { cause: Arc::new(cause) });
        }
        let (state, Some(mut lane)) = (&self.state, lane) else { return Ok(()) };
        lane.seal_all(state).map_err(|error| lane.first_failure(state, error))?;
        lane.check_in_place(state)?;
        let repaired = repair(state, &mut lane)?;
        if let Some(purpose) = repaired.then_some(Purpose::One).or_else(|| self.merger.purpose_at_close()) {
            self.merger.merge(purpose)?;
        }
        // Repairs damage that the merge found.
        if repair(state, &mut lane)? {
            self.merger.merge(Purpose::One)?;
        }
        remove_row_maps(state, self.lane)?;
        self.merger.check()
    }
}

fn keys_len_bytes(keys: Keys<'_>) -> usize {
    match keys.integers() {
        Some(integers) => size_of_val(integers),
        None => keys.iter().map(|key| key.with_bytes(<[u8]>::len)).sum(),
    }
}

/// A part of the caller's data, whose length was checked before.
fn part<T>(all: &[T], start: usize, end: usize) -> Result<&[T]> {
    all.get(start..end).ok_or_else(|| Error::internal(format!("{start}..{end} of {} elements", all.len())))
}

fn start_writer(state: &State, writer: &Arc<Writer>) -> Result<JoinHandle<()>> {
    let writer = Arc::clone(writer);
    let thread = threads::spawn("tensorcask-writer", move || writer.run());
    thread.map_err(|error| Error::io("start the writer thread of", state.storage().describe(Path::new("")), error))
}

impl Options {
    /// Opens the store of `module_id` under `cache_dir` for reading and writing; creates or recovers it if needed.
    ///
    /// O(segments) after a clean close; after a crash also O(rows that no index run covers).
    ///
    /// # Errors
    /// [`Error::Invalid`] for unusable options or module ids, [`Error::LaneBusy`], [`Error::NewerFormat`], IO errors,
    /// and [`Error::Corrupt`] with [`Recovery::Strict`](crate::Recovery::Strict).
    pub fn open(self, cache_dir: impl AsRef<Path>, module_id: &str) -> Result<Store> {
        names::check_module_id(module_id)?;
        let storage = DiskStorage::new(cache_dir.as_ref().join(module_id)).group_writable(self.group_writable);
        Store::open_on(Arc::new(storage), self)
    }

    /// Opens a store on the caller's [`Storage`], whose root is the store's folder. Unstable, like all of
    /// [`storage`](crate::storage).
    ///
    /// # Errors
    /// As [`Options::open`].
    #[cfg(feature = "unstable-storage")]
    pub fn open_on(self, storage: Arc<dyn Storage>) -> Result<Store> {
        Store::open_on(storage, self)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // An error cannot be returned here; `Store::close` reports it.
        let _ = self.close();
    }
}
