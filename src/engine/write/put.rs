//! Puts rows: checks them, makes them readable, and hands them to the writer, or writes them from the caller's memory.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use crate::buffers::Buffers;
use crate::codec::Decoder;
use crate::engine::admit::{admit_put, admit_rest, enter_new};
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::lookup::find::find;
use crate::engine::lookup::query::Query;
use crate::engine::options::Options;
use crate::engine::rows::decode::value_of;
use crate::engine::rows::row::{Holder, PendingBatch, Row, Source};
use crate::engine::state::State;
use crate::engine::state::memtable::Inserting;
use crate::engine::threads::concurrently;
use crate::engine::write::key_kind::claim_key_kind;
use crate::engine::write::lane::Lane;
use crate::engine::write::merger::Merger;
use crate::engine::write::queue::Queue;
use crate::engine::write::schemas::Schemas;
use crate::engine::write::writer::Writer;
use crate::error::{Error, Result};
use crate::key::{KeyKind, KeyRef, Keys};
use crate::schema::RowSchema;
use crate::segment::build::MAX_COLUMN_LEN_BYTES;
use crate::segment::columns::{BatchPart, Columns};
use crate::value::ValueView;

/// Smallest size of rows that may be written from the caller's memory. Smaller ones are batched.
const WORTH_ZERO_COPY: usize = 256 << 10;

/// From this many rows on, a thread of its own inserts into the index: starting one takes as long as inserting some
/// thousands.
const WORTH_A_THREAD: usize = 1 << 14;

/// The state that the puts of one handle share.
#[derive(Debug)]
pub(crate) struct Puts {
    state: Arc<State>,
    queue: Arc<Queue>,
    writer: Arc<Writer>,
    merger: Arc<Merger>,
    /// Holds the values of waiting rows.
    buffers: Arc<Buffers>,
    schemas: RankedMutex<Schemas>,
    /// A forked child must not write into its parent's segments.
    process_id: u32,
}

impl Puts {
    /// Puts through `writer`; `schemas` are already in use.
    pub(crate) fn new(
        state: Arc<State>,
        queue: Arc<Queue>,
        writer: Arc<Writer>,
        merger: Arc<Merger>,
        buffers: Arc<Buffers>,
        schemas: Schemas,
    ) -> Self {
        let schemas = RankedMutex::new(Rank::Schemas, schemas);
        Self { state, queue, writer, merger, buffers, schemas, process_id: std::process::id() }
    }

    /// Checks that this handle may write `keys`; returns their kind, or `None` if there are none.
    ///
    /// # Errors
    /// The reason why it may not.
    pub(crate) fn begin(&self, keys: Keys<'_>) -> Result<Option<KeyKind>> {
        self.check_process()?;
        self.queue.check()?;
        self.state.access().check_writes()?;
        keys.check(self.state.identity().key_kind())
    }

    /// Fails in a forked child.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.process_id == std::process::id() {
            Ok(())
        } else {
            Err(Error::ReadOnly {
                why:
                    "it was opened by the parent of this forked process: open the store again in the child, in a lane \
                      of its own (Lane::Auto)"
                        .into(),
            })
        }
    }

    /// The one instance of a structure of rows.
    pub(crate) fn intern(&self, schema: RowSchema) -> Arc<RowSchema> {
        self.schemas.lock().intern(schema)
    }

    /// The buffers for the values of waiting rows.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Fixes the kind of keys at the first put. If that cannot be written, the writer stops, as after any failed write.
    fn claim_key_kind(&self, kind: KeyKind) -> Result<()> {
        claim_key_kind(&self.state, kind).or_else(|error| match &error {
            Error::Io { source, .. } if source.kind() != std::io::ErrorKind::TimedOut => {
                self.queue.fail(error);
                self.queue.check()
            }
            _ => Err(error),
        })
    }

    /// Makes rows readable and hands them to the writer.
    ///
    /// # Errors
    /// [`Error::Poisoned`], [`Error::Closed`], and those of fixing the kind of keys.
    pub(crate) fn put(&self, columns: Columns) -> Result<()> {
        let hashes = self.make_room(&columns)?;
        // Held from the queue to the index: of two puts of one key, lookups find the one that is written last.
        self.enter(self.state.memtable().lock_inserts(), columns, hashes)
    }

    /// As [`Puts::put`], but only the rows whose keys have no row yet; of rows with one key, the first. Returns which
    /// were put. `at_fault` makes the error of a row.
    ///
    /// # Errors
    /// As [`Puts::put`]; [`Error::Corrupt`] if damage hides whether a key has a row. Then nothing is put.
    pub(crate) fn put_absent(
        &self,
        columns: Columns,
        at_fault: impl FnOnce(usize, Error) -> Error,
    ) -> Result<Vec<bool>> {
        let hashes = self.make_room(&columns)?;
        let reserved = len_bytes(&columns, &hashes);
        // Nobody puts a row between the lookup and the put.
        let inserting = self.state.memtable().lock_inserts();
        let absent = absent(&self.state, &columns, &hashes).map_err(|(row, error)| at_fault(row, error));
        let absent = absent.inspect_err(|_| self.queue.release(reserved))?;
        let rows: Vec<usize> = absent.iter().enumerate().filter(|(_, absent)| **absent).map(|(row, _)| row).collect();
        if rows.len() == absent.len() {
            self.enter(inserting, columns, hashes)?;
        } else {
            let taken = columns.take(&rows).ok_or_else(|| Error::internal("rows of a put are out of bounds"));
            let taken = taken.inspect_err(|_| self.queue.release(reserved))?;
            let hashes: Vec<u64> = rows.iter().filter_map(|row| hashes.get(*row).copied()).collect();
            self.queue.release(reserved - if rows.is_empty() { 0 } else { len_bytes(&taken, &hashes) });
            if !rows.is_empty() {
                self.enter(inserting, taken, hashes)?;
            }
        }
        Ok(absent)
    }

    /// Reserves bytes of the queue for rows to put; returns their hashes.
    fn make_room(&self, columns: &Columns) -> Result<Vec<u64>> {
        self.claim_key_kind(columns.schema.key)?;
        self.merger.hold_back_puts();
        let hashes = columns.hashes(self.state.hasher());
        while !self.queue.reserve(len_bytes(columns, &hashes), !self.state.options().synchronous)? {
            self.writer.step();
        }
        Ok(hashes)
    }

    /// Pushes rows, for which bytes are reserved, to the queue, and inserts them into the index.
    fn enter(&self, inserting: Inserting<'_>, columns: Columns, hashes: Vec<u64>) -> Result<()> {
        let state = &self.state;
        let len_bytes = len_bytes(&columns, &hashes);
        let pending = Arc::new(PendingBatch { columns, hashes, len_bytes, written: OnceLock::new() });
        let source = Source::Pending(Arc::clone(&pending));
        let added = state.memtable().add_batch(source.clone(), pending.columns.rows as u32);
        let id = added.inspect_err(|_| self.queue.release(len_bytes))?;
        // The writer may begin while the rows are inserted into the index: lookups find them by batch id, wherever they
        // are.
        let enough = self.queue.push((id, Arc::clone(&pending))).inspect_err(|_| {
            state.memtable().remove_batch(id);
            self.queue.release(len_bytes);
        })?;
        admit_put(state, &inserting, &pending.hashes, &pending.columns, (id, &source));
        if state.value_cache().fills_on_put() && !pending.columns.schema.is_tombstones() {
            self.cache_values(&pending);
        }
        drop(inserting);
        state.metrics().put(pending.columns.rows);
        if enough && state.options().synchronous {
            self.writer.step();
        }
        Ok(())
    }

    /// Caches the values of rows that were just inserted.
    fn cache_values(&self, pending: &Arc<PendingBatch>) {
        let mut decoder = Decoder::new();
        for (row, hash) in pending.hashes.iter().enumerate() {
            let row = Row { holder: Holder::Pending(Arc::clone(pending), 0), row };
            if let (Some(key), Ok(value)) = (row.key(), value_of(self.state.options(), &row, &mut decoder)) {
                self.state.value_cache().keep_put(*hash, key, &value);
            }
        }
    }

    /// Writes rows zero-copy from the caller's memory, if nothing waits before them and the caller is likely to wait
    /// for the write: it flushed its last put, if any, or wrote the previous rows of the same call in this way
    /// (`continued`). Then a copy for the writer thread would gain nothing. Returns whether it wrote them. `columns`
    /// lack the data of their one leaf, which are `values`.
    ///
    /// # Errors
    /// Those of writing, which stop the writer.
    pub(crate) fn put_zero_copy(&self, columns: &Columns, values: &[u8], continued: bool) -> Result<bool> {
        let state = &self.state;
        let too_few = values.len() < WORTH_ZERO_COPY && !continued;
        if too_few || state.options().synchronous || state.value_cache().fills_on_put() {
            return Ok(false);
        }
        self.claim_key_kind(columns.schema.key)?;
        self.merger.hold_back_puts();
        let Some(mut guard) = self.writer.try_lane() else { return Ok(false) };
        // The lane is held: later puts are written later.
        let (Some(lane), true) = (guard.as_mut(), self.queue.flushed(continued)?) else { return Ok(false) };
        let written = self.write_zero_copy(lane, columns, values).map_err(|error| lane.first_failure(state, error));
        drop(guard);
        if let Err(error) = written {
            self.queue.fail(error);
            self.queue.check()?;
        }
        state.metrics().put(columns.rows);
        self.queue.wrote();
        Ok(true)
    }

    /// Inserts the rows into the index while they are written: the entries have no row until the batch is filled.
    fn write_zero_copy(&self, lane: &mut Lane, columns: &Columns, values: &[u8]) -> Result<()> {
        let state = &self.state;
        let hashes = columns.hashes(state.hasher());
        let part = BatchPart::zero_copy(columns, values);
        lane.make_room(state, &part)?;
        let inserting = state.memtable().lock_inserts();
        let id = state.memtable().reserve_batch()?;
        let enter = || enter_new(state, &inserting, &hashes, id);
        let write = || lane.write(state, &[part], hashes.iter().copied());
        let (entered, written) = concurrently(hashes.len() >= WORTH_A_THREAD, enter, write);
        let (segment, batch) = written.inspect_err(|_| state.memtable().abandon(&inserting, id))?;
        let source = Source::Committed { segment, batch, first: 0 };
        state.memtable().fill_batch(id, source.clone(), columns.rows as u32);
        admit_rest(state, &inserting, &hashes, columns, (id, &source), entered);
        drop(inserting);
        // Not earlier: if a run already had these rows, they would look like rows that are put again.
        lane.seal_full(state)
    }
}

/// Bytes of the queue that rows take.
fn len_bytes(columns: &Columns, hashes: &[u64]) -> usize {
    columns.len_bytes() + hashes.len() * 8
}

/// For each row, whether it is the first of its key and the store has no row of that key.
///
/// # Errors
/// A row, and the damage that hides whether its key has one.
fn absent(state: &State, columns: &Columns, hashes: &[u64]) -> Result<Vec<bool>, (usize, Error)> {
    let key = |row| KeyRef::Bytes(columns.key(row).unwrap_or_default());
    let queries: Vec<Query<'_>> =
        hashes.iter().enumerate().map(|(row, hash)| Query { key: key(row), hash: *hash }).collect();
    find(state, &queries, |located| match located.errors.into_iter().next() {
        Some(damaged) => Err(damaged),
        None => {
            let mut seen = HashSet::new();
            let is_absent = |row: &Option<Row<'_>>| row.as_ref().is_none_or(Row::is_tombstone);
            Ok(located.rows.iter().zip(&queries).map(|(row, query)| is_absent(row) && seen.insert(query.key)).collect())
        }
    })
}

/// Fails if a value of `len_bytes` is larger than the options allow.
///
/// # Errors
/// [`Error::TooLarge`].
pub(crate) fn check_len(options: &Options, len_bytes: usize) -> Result<()> {
    let limit = options.max_value_bytes.min(MAX_COLUMN_LEN_BYTES / 2);
    if len_bytes <= limit {
        Ok(())
    } else {
        Err(Error::TooLarge { what: "a value in bytes".into(), found: len_bytes as u64, limit: limit as u64 })
    }
}

/// Fails if a part of a value is larger than the options allow.
///
/// # Errors
/// As [`check_len`].
pub(crate) fn check_size(options: &Options, view: &ValueView<'_>) -> Result<()> {
    match view {
        ValueView::Tensor(tensor) => check_len(options, tensor.data().len()),
        ValueView::Str(text) => check_len(options, text.len()),
        ValueView::Bytes(bytes) => check_len(options, bytes.len()),
        ValueView::Map(items) => items.iter().try_for_each(|(_, item)| check_size(options, item)),
        ValueView::List(items) | ValueView::Tuple(items) => items.iter().try_for_each(|item| check_size(options, item)),
        ValueView::Null | ValueView::Bool(_) | ValueView::Int(_) | ValueView::Float(_) => Ok(()),
    }
}
