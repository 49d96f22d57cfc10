//! The writer thread, and what it shares with the callers of `put`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Mutex, MutexGuard};

use crate::buffers::Buffers;
use crate::engine::options::HotFill;
use crate::engine::read::parallel::beside;
use crate::engine::rows::row::{PendingBatch, Source};
use crate::engine::runs::build::{build_run, remembered_live, uncovered};
use crate::engine::runs::plan::{MAX_RUNS_AT_REST, Merges, Purpose};
use crate::engine::state::{Core, Counters};
use crate::engine::threads;
use crate::engine::write::lane::Lane;
use crate::engine::write::queue::{Queue, Work};
use crate::engine::write::seal::Sealing;
use crate::error::{Error, Result};
use crate::key::{KeyKind, Keys};
use crate::schema::RowSchema;
use crate::segment::build::MAX_COLUMN_LEN_BYTES;
use crate::segment::columns::{BatchPart, Columns};
use crate::value::ValueView;

/// Different shapes of one structure that get segments of their own; rows of further shapes share segments in which
/// every row has its own shape.
const FIXED_SHAPES: usize = 4;

/// Bytes from which on rows may be written from the caller's memory. Fewer are gathered.
const WORTH_LENDING: usize = 256 << 10;

/// Rows that enter the index on a thread of their own: starting one takes as long as entering some thousands.
const WORTH_A_THREAD: usize = 1 << 14;

/// What the writer thread sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub core: Arc<Core>,
    pub queue: Queue,
    /// For the values of rows that wait.
    pub buffers: Arc<Buffers>,
    pub lane: Mutex<Option<Lane>>,
    pub lane_number: u16,
    /// Held by the one merge that takes in what no run covers: puts may wait for it.
    pub merging: Mutex<()>,
    pub merges: Merges,
    pub merger: Mutex<Option<JoinHandle<()>>>,
    /// The thread of the merge that only `close` waits for.
    pub long_merger: Mutex<Option<JoinHandle<()>>>,
    /// Merges that run in the background.
    pub merges_running: AtomicUsize,
    pub merge_failure: Mutex<Option<Error>>,
    pub schemas: Mutex<Schemas>,
    /// A forked child must not write into its parent's segments.
    pub process_id: u32,
}

/// Row structures in use.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    interned: HashMap<RowSchema, Arc<RowSchema>>,
    /// How many shapes each structure (with its shapes taken out) has had.
    shapes: HashMap<RowSchema, usize>,
}

impl Schemas {
    /// The one instance of `schema`, or of its twin with variable shapes if there were too many shapes already.
    pub(crate) fn intern(&mut self, schema: RowSchema) -> Arc<RowSchema> {
        if let Some(known) = self.interned.get(&schema) {
            return Arc::clone(known);
        }
        let variable = schema.with_variable_shapes();
        let shapes = self.shapes.entry(variable.clone()).or_default();
        let chosen = if *shapes < FIXED_SHAPES || variable == schema { schema } else { variable };
        *shapes += 1;
        Arc::clone(self.interned.entry(chosen.clone()).or_insert_with(|| Arc::new(chosen)))
    }
}

/// What to merge for before closing: for one run, if the handle put a quarter of the rows or more, so that each row put
/// pays for few; else for few runs, because rows that no run covers are so many that indexing them at the next open
/// would be felt, because runs are too many, or because none of them says how many keys are alive.
pub(crate) fn merge_at_close(core: &Core) -> Option<Purpose> {
    const FEW_ROWS: u64 = 4096;
    const FEW_SEGMENTS: usize = 8;
    const ROWS_MERGED_A_ROW_PUT: u64 = 4;
    let view = core.view.load();
    let rows: u64 = view.segments.values().map(|segment| u64::from(segment.rows())).sum();
    let put_many = rows <= core.counters.rows_put.load(Ordering::Relaxed).saturating_mul(ROWS_MERGED_A_ROW_PUT);
    if put_many && view.runs.len() > 1 {
        return Some(Purpose::One);
    }
    let uncovered = uncovered(&view);
    let covered = || view.runs.iter().flat_map(|run| run.segments.iter());
    let counted = || view.runs.iter().any(|run| remembered_live(&run.run, covered()).is_some());
    let worth_a_run = uncovered.len() >= FEW_SEGMENTS
        || uncovered.iter().map(|segment| u64::from(segment.rows())).sum::<u64>() >= FEW_ROWS
        || view.runs.len() > MAX_RUNS_AT_REST
        || !view.runs.is_empty() && !counted();
    worth_a_run.then_some(if put_many { Purpose::One } else { Purpose::Rest })
}

impl Shared {
    /// Checks that this handle may write `keys`; returns their kind, or `None` if there are none.
    pub(crate) fn begin(&self, keys: Keys<'_>) -> Result<Option<KeyKind>> {
        self.check_process()?;
        self.queue.check()?;
        self.core.check_writes()?;
        let Some(kind) = keys.check()? else { return Ok(None) };
        if let Some(fixed) = self.core.key_kind() {
            fixed.expect(kind)?;
        }
        Ok(Some(kind))
    }

    /// Fixes the kind of keys with the first put. A disk that does not take that stops the writer, as with any write.
    fn claim_key_kind(&self, kind: KeyKind) -> Result<()> {
        self.core.claim_key_kind(kind).or_else(|error| match &error {
            Error::Io { source, .. } if source.kind() != std::io::ErrorKind::TimedOut => {
                self.queue.fail(error);
                self.queue.check()
            }
            _ => Err(error),
        })
    }

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

    pub(crate) fn check_len(&self, len_bytes: usize) -> Result<()> {
        let limit = self.core.options.max_value_bytes.min(MAX_COLUMN_LEN_BYTES / 2);
        if len_bytes <= limit {
            Ok(())
        } else {
            Err(Error::TooLarge { what: "a value in bytes".into(), found: len_bytes as u64, limit: limit as u64 })
        }
    }

    pub(crate) fn check_size(&self, view: &ValueView<'_>) -> Result<()> {
        match view {
            ValueView::Tensor(tensor) => self.check_len(tensor.data().len()),
            ValueView::Str(text) => self.check_len(text.len()),
            ValueView::Bytes(bytes) => self.check_len(bytes.len()),
            ValueView::Map(items) => items.iter().try_for_each(|(_, item)| self.check_size(item)),
            ValueView::List(items) | ValueView::Tuple(items) => items.iter().try_for_each(|item| self.check_size(item)),
            ValueView::Null | ValueView::Bool(_) | ValueView::Int(_) | ValueView::Float(_) => Ok(()),
        }
    }

    /// Makes rows readable and hands them to the writer.
    pub(crate) fn put(&self, columns: Columns) -> Result<()> {
        let core = &self.core;
        self.claim_key_kind(columns.schema.key)?;
        self.wait_for_merge();
        let hashes = columns.hashes(core.hasher);
        let len_bytes = columns.len_bytes() + hashes.len() * 8;
        while !self.queue.reserve(len_bytes, !core.options.synchronous)? {
            self.step();
        }
        let pending = Arc::new(PendingBatch { columns, hashes, len_bytes, written: OnceLock::new() });
        // Held from the queue to the index: of two puts of one key, the one that is read is the one that is written last.
        let admission = core.admission();
        let slot = match core.add_slot(Source::Pending(Arc::clone(&pending)), pending.columns.rows as u32) {
            Ok(slot) => slot,
            Err(error) => {
                self.queue.release(len_bytes);
                return Err(error);
            }
        };
        // The writer may begin while the rows enter the index: they are found by their slot, wherever they are.
        let enough = self.queue.push((slot, Arc::clone(&pending))).inspect_err(|_| {
            core.slots.write().remove(|number| number == slot);
            self.queue.release(len_bytes);
        })?;
        self.admit(slot, &pending);
        drop(admission);
        Counters::add(&core.counters.rows_put, pending.columns.rows);
        if enough && core.options.synchronous {
            self.step();
        }
        Ok(())
    }

    /// Writes rows from the caller's memory at once, if nothing waits before them and the caller is likely to wait for
    /// that: it flushed what it put last, if anything, or `lent` the rows before these in the same call. Then a copy for the
    /// writer thread would be in vain. Returns whether it did; `columns` lack the data of their one leaf, which are
    /// `values`.
    ///
    /// # Errors
    /// Those of writing, which stop the writer.
    pub(crate) fn put_lent(&self, columns: &Columns, values: &[u8], lent: bool) -> Result<bool> {
        let core = &self.core;
        let fills_hot = core.hot.is_some() && core.options.hot_fill != HotFill::OnRead;
        let too_few = values.len() < WORTH_LENDING && !lent;
        if too_few || core.options.synchronous || fills_hot {
            return Ok(false);
        }
        self.claim_key_kind(columns.schema.key)?;
        self.wait_for_merge();
        let Some(mut guard) = self.lane.try_lock() else { return Ok(false) };
        // With the lane in hand: whatever is put from now on is written later.
        let (Some(lane), true) = (guard.as_mut(), self.queue.flushed(lent)?) else { return Ok(false) };
        let written = self.write_lent(lane, columns, values).map_err(|error| lane.first_failure(&self.core, error));
        drop(guard);
        if let Err(error) = written {
            self.queue.fail(error);
            self.queue.check()?;
        }
        Counters::add(&core.counters.rows_put, columns.rows);
        self.queue.wrote();
        Ok(true)
    }

    /// The rows enter the index while they are written: entries lead nowhere until the slot is filled.
    fn write_lent(&self, lane: &mut Lane, columns: &Columns, values: &[u8]) -> Result<()> {
        let core = &self.core;
        let hashes = columns.hashes(core.hasher);
        let part = BatchPart::lent(columns, values);
        lane.make_room(core, &part)?;
        let admission = core.admission();
        let slot = core.reserve_slot()?;
        let enter = || core.delta.insert_new(&hashes, slot);
        let (taken, written) =
            beside(hashes.len() >= WORTH_A_THREAD, enter, || lane.write(core, &[part], hashes.iter()));
        let (segment, batch) = written.inspect_err(|_| core.delta.prune(|entry| entry.slot != slot))?;
        let source = Source::Committed { segment, batch, first: 0 };
        core.slots.write().fill(slot, source.clone(), columns.rows as u32);
        core.admit_taken(&hashes, columns, slot, &source, taken);
        drop(admission);
        // Only now: a run that had these rows already would make them look like rows that are put again.
        lane.seal_full(core)
    }

    /// Keeps the delta near its bound: at twice the bound, puts wait for the merge that runs. The writer thread does not,
    /// so that what was put before can be flushed meanwhile. A small bound is not worth a wait for the disk.
    fn wait_for_merge(&self) {
        /// They take about 9 MiB. Small puts, one after another, are fewer while a merge is synced.
        const FREE_KEYS: usize = 1 << 18;
        let most_keys = || self.core.delta_bound().saturating_mul(2).max(FREE_KEYS);
        if !self.core.options.synchronous && self.core.delta.len() >= most_keys() {
            drop(self.merging.lock());
        }
    }

    /// Makes rows readable. The caller holds the admission lock.
    fn admit(&self, slot: u32, pending: &Arc<PendingBatch>) {
        let core = &self.core;
        let columns = &pending.columns;
        core.admit_put(&pending.hashes, columns, slot, &Source::Pending(Arc::clone(pending)));
        if core.hot.is_some() && !columns.schema.is_tombstones() && core.options.hot_fill != HotFill::OnRead {
            crate::engine::read::get::fill_hot(core, pending);
        }
    }

    /// The writer thread.
    pub(crate) fn run(self: Arc<Self>) {
        loop {
            self.queue.wait_for_work(|| self.buffers.clear());
            if self.work_once(&mut self.lane.lock()) {
                return;
            }
            self.bound_delta();
        }
    }

    /// Writes what waits; returns whether the store is closing. Work is taken with the lane in hand, so that it is done in
    /// the order in which it was asked for, whichever thread does it.
    fn work_once(&self, lane: &mut Option<Lane>) -> bool {
        let work = self.queue.take_work();
        self.work_on(lane, &work);
        work.closing
    }

    /// Has a barrier that was asked for reached: on this thread if the lane is free, since handing over to the writer
    /// thread and back takes longer than a small write; else by whoever has it.
    pub(crate) fn reach_barrier(&self) {
        if self.core.options.synchronous {
            return self.step();
        }
        match self.lane.try_lock() {
            Some(mut lane) => {
                self.work_once(&mut lane);
                drop(lane);
                let bound = self.core.delta_bound();
                if self.core.delta.len() >= bound || self.core.delta.lacks_room(bound) {
                    self.queue.look();
                }
            }
            None => self.queue.wake(),
        }
    }

    /// One step of the writer on the caller's thread.
    pub(crate) fn step(&self) {
        let mut lane = self.lane.lock();
        let closing = self.work_once(&mut lane);
        if !closing && self.delta_is_full() {
            match self.seal_for_merge(&mut lane) {
                Ok(Some(_)) => self.note_merge(self.merge(Purpose::Rest)),
                Ok(None) => {}
                Err(error) => self.queue.fail(error),
            }
        }
    }

    fn work_on(&self, lane: &mut Option<Lane>, work: &Work) {
        let result = match lane.as_mut() {
            Some(lane) if self.queue.failure().is_none() => lane
                .commit(&self.core, &work.waiting)
                .and_then(|()| work.barrier.map_or(Ok(()), |durability| lane.sync(&self.core, durability)))
                .map_err(|error| lane.first_failure(&self.core, error)),
            // Closed when all was written.
            None if work.waiting.is_empty() && work.barrier.is_none() => return,
            // After a failure nothing is tried again on the same files.
            _ => Err(Error::Closed),
        };
        self.queue.finish(work, result);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lane.lock().is_some()
    }

    fn delta_is_full(&self) -> bool {
        self.core.delta.len() >= self.core.delta_bound()
    }

    /// Begins to seal the lane's active segments, since only what is sealed can go into a run; returns what is to be waited
    /// for. `None` if a merge is not worth it: what fills the delta may be rows that other lanes have not sealed yet.
    fn seal_for_merge(&self, lane: &mut Option<Lane>) -> Result<Option<Arc<Sealing>>> {
        let Some(lane) = lane else { return Ok(None) };
        lane.check_seals()?;
        let sealed: u64 = uncovered(&self.core.view.load()).iter().map(|segment| u64::from(segment.rows())).sum();
        if sealed + lane.unsealed_rows() < self.core.delta_bound() as u64 / 4 {
            return Ok(None);
        }
        lane.start_seals(&self.core).map(Some)
    }

    pub(crate) fn merge(&self, purpose: Purpose) -> Result<()> {
        self.merge_with(&self.merging.lock(), purpose)
    }

    fn merge_with(&self, _merging: &MutexGuard<'_, ()>, purpose: Purpose) -> Result<()> {
        build_run(&self.core, self.lane_number, &self.merges, purpose).map(|_| ())
    }

    /// Brings large runs together, until there are few or the store closes.
    fn merge_long(&self) -> Result<()> {
        while self.queue.check().is_ok() && build_run(&self.core, self.lane_number, &self.merges, Purpose::Long)? {}
        Ok(())
    }

    /// Waits for the merges that run in the background.
    pub(crate) fn join_merges(&self) {
        // The short one may start the long one.
        for merger in [&self.merger, &self.long_merger] {
            let merger = merger.lock().take();
            drop(merger.map(JoinHandle::join));
        }
    }

    fn note_merge(&self, merged: Result<()>) {
        if let Err(error) = merged {
            self.merge_failure.lock().get_or_insert(error);
        }
    }

    /// Starts a merge in the background when the delta has grown to its bound, unless one is running.
    fn bound_delta(self: &Arc<Self>) {
        self.core.delta.make_room(self.core.delta_bound());
        if !self.delta_is_full() || self.queue.failure().is_some() {
            return;
        }
        let mut merger = self.merger.lock();
        if let Some(running) = merger.take() {
            if !running.is_finished() {
                *merger = Some(running);
                return;
            }
            drop(running.join());
            if !self.delta_is_full() {
                return;
            }
        }
        let seals = match self.seal_for_merge(&mut self.lane.lock()) {
            Ok(Some(seals)) => seals,
            Ok(None) => return,
            Err(error) => return self.queue.fail(error),
        };
        *merger = self.spawn_merge("tensorcask-merge", move |shared| {
            // From here on puts may have to wait.
            let merging = shared.merging.lock();
            // Why a segment could not be sealed, the lane reports.
            if seals.wait().is_err() {
                return Ok(());
            }
            let merged = shared.merge_with(&merging, Purpose::Short);
            drop(merging);
            shared.start_long_merge();
            merged
        });
    }

    fn start_long_merge(self: &Arc<Self>) {
        let mut merger = self.long_merger.lock();
        match merger.take() {
            Some(running) if !running.is_finished() => *merger = Some(running),
            finished => {
                drop(finished.map(JoinHandle::join));
                *merger = self.spawn_merge("tensorcask-merge-runs", |shared| shared.merge_long());
            }
        }
    }

    fn spawn_merge(
        self: &Arc<Self>,
        name: &str,
        merge: impl FnOnce(&Arc<Self>) -> Result<()> + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let shared = Arc::clone(self);
        let thread = threads::spawn(name, move || {
            shared.merges_running.fetch_add(1, Ordering::Relaxed);
            let merged = merge(&shared);
            shared.merges_running.fetch_sub(1, Ordering::Relaxed);
            shared.note_merge(merged);
        });
        let describe = || self.core.storage.describe(Path::new(""));
        thread.map_err(|error| self.note_merge(Err(Error::io("start a merge thread of", describe(), error)))).ok()
    }

    pub(crate) fn merge_failure(&self) -> Result<()> {
        match self.merge_failure.lock().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
