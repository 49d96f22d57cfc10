//! The writer thread, and what it shares with the callers of `put`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::core::{Core, Counters};
use super::lane::Lane;
use super::maintain::{build_run, remembered_live, uncovered};
use super::merges::{MAX_RUNS_AT_REST, Merges, Purpose};
use super::options::HotFill;
use super::pending::{Queue, Work};
use super::rows::{PendingBatch, Source};
use crate::error::{Error, Result};
use crate::key::{KeyKind, Keys};
use crate::schema::RowSchema;
use crate::segment::build::MAX_COLUMN_LEN_BYTES;
use crate::segment::columns::Columns;
use crate::value::ValueView;

/// Different shapes of one structure that get segments of their own; rows of further shapes share segments in which
/// every row has its own shape.
const FIXED_SHAPES: usize = 4;

/// Rows of a put whose places in the index are asked for together: their waits for memory overlap.
const ASKED_AHEAD: usize = 32;

/// What the writer thread sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub core: Arc<Core>,
    pub queue: Queue,
    pub lane: Mutex<Option<Lane>>,
    pub lane_number: u16,
    /// Held by the one merge that takes in what no run covers: puts may wait for it.
    pub merging: Mutex<()>,
    pub merges: Merges,
    pub merger: Mutex<Option<JoinHandle<()>>>,
    /// The thread of the merge that only `close` waits for.
    pub long_merger: Mutex<Option<JoinHandle<()>>>,
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

/// Whether to merge before closing: because rows that no run covers are so many that indexing them at the next open would be
/// felt, because runs are too many, or because none of them says how many keys are alive.
pub(crate) fn worth_a_run(core: &Core) -> bool {
    const FEW_ROWS: u64 = 4096;
    const FEW_SEGMENTS: usize = 8;
    let view = core.view.load();
    let uncovered = uncovered(&view);
    let covered = || view.runs.iter().flat_map(|run| run.segments.iter());
    let counted = || view.runs.iter().any(|run| remembered_live(&run.run, covered()).is_some());
    uncovered.len() >= FEW_SEGMENTS
        || uncovered.iter().map(|segment| u64::from(segment.rows())).sum::<u64>() >= FEW_ROWS
        || view.runs.len() > MAX_RUNS_AT_REST
        || !view.runs.is_empty() && !counted()
}

impl Shared {
    /// Checks that this handle may write `keys`; returns their kind, or `None` if there are none.
    pub(crate) fn begin(&self, keys: Keys<'_>) -> Result<Option<KeyKind>> {
        self.check_process()?;
        self.queue.check()?;
        let Some(kind) = keys.check()? else { return Ok(None) };
        self.core.fix_key_kind(kind)?;
        Ok(Some(kind))
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
        self.wait_for_merge();
        let hashes: Vec<u64> =
            (0..columns.rows).map(|row| columns.key(row).map_or(0, |key| core.hasher.hash(key))).collect();
        let len_bytes = columns.len_bytes() + hashes.len() * 8;
        while !self.queue.reserve(len_bytes, !core.options.synchronous)? {
            self.step();
        }
        Counters::add(&core.counters.rows_put, columns.rows);
        let pending = Arc::new(PendingBatch { columns, hashes, len_bytes });
        // Held until the rows are in the queue: of two puts of one key, the one that is read is the one that is
        // written last.
        let admission = core.admission();
        let enough = match self.admit(&pending) {
            Ok(slot) => self.queue.push((slot, pending)),
            Err(error) => {
                self.queue.release(len_bytes);
                return Err(error);
            }
        };
        drop(admission);
        if enough && core.options.synchronous {
            self.step();
        }
        Ok(())
    }

    /// Keeps the delta near its bound: at twice the bound, puts wait for the merge that runs. The writer thread does not,
    /// so that what was put before can be flushed meanwhile.
    fn wait_for_merge(&self) {
        let options = &self.core.options;
        if !options.synchronous && self.core.delta.len() >= options.delta_keys.max(1).saturating_mul(2) {
            drop(self.merging.lock());
        }
    }

    /// Enters rows into the delta. The caller holds the admission lock.
    fn admit(&self, pending: &Arc<PendingBatch>) -> Result<u32> {
        let core = &self.core;
        let columns = &pending.columns;
        let tombstone = columns.schema.is_tombstones();
        core.epoch.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let slot = core.add_slot(Source::Pending(Arc::clone(pending)), columns.rows as u32)?;
        for (first, hashes) in (0_u32..).step_by(ASKED_AHEAD).zip(pending.hashes.chunks(ASKED_AHEAD)) {
            core.prefetch(hashes);
            for (row, hash) in (first..).zip(hashes) {
                core.admit(*hash, slot, row, tombstone, || Source::Pending(Arc::clone(pending)).row(slot, row));
            }
        }
        if core.hot.is_some() && !tombstone && core.options.hot_fill != HotFill::OnRead {
            super::read::fill_hot(core, pending);
        }
        Ok(slot)
    }

    /// The writer thread.
    pub(crate) fn run(self: Arc<Self>) {
        loop {
            let work = self.queue.wait_for_work();
            let closing = work.closing;
            self.work_on(&mut self.lane.lock(), &work);
            if closing {
                return;
            }
            self.bound_delta();
        }
    }

    /// One step of the writer on the caller's thread.
    pub(crate) fn step(&self) {
        let mut lane = self.lane.lock();
        let work = self.queue.take_work();
        self.work_on(&mut lane, &work);
        if !work.closing && self.delta_is_full() {
            match self.seal_for_merge(&mut lane) {
                Ok(true) => self.note_merge(self.merge(Purpose::Rest)),
                Ok(false) => {}
                Err(error) => self.queue.fail(error),
            }
        }
    }

    fn work_on(&self, lane: &mut Option<Lane>, work: &Work) {
        let result = match lane.as_mut() {
            Some(lane) if self.queue.failure().is_none() => lane
                .commit(&self.core, &work.waiting)
                .and_then(|()| work.barrier.map_or(Ok(()), |durability| lane.sync(&self.core, durability))),
            // After a failure nothing is tried again on the same files.
            _ => Err(Error::Closed),
        };
        self.queue.finish(work, result);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lane.lock().is_some()
    }

    fn delta_is_full(&self) -> bool {
        self.core.delta.len() >= self.core.options.delta_keys.max(1)
    }

    /// Seals the lane's active segments, since only what is sealed can go into a run. Returns whether a merge is worth
    /// it: what fills the delta may be rows that other lanes have not sealed yet.
    fn seal_for_merge(&self, lane: &mut Option<Lane>) -> Result<bool> {
        let Some(lane) = lane else { return Ok(false) };
        let sealed: u64 = uncovered(&self.core.view.load()).iter().map(|segment| u64::from(segment.rows())).sum();
        let active: u64 = lane.actives.iter().map(|active| active.writer.rows()).sum();
        if sealed + active < self.core.options.delta_keys as u64 / 4 {
            return Ok(false);
        }
        lane.seal_all(&self.core)?;
        Ok(true)
    }

    pub(crate) fn merge(&self, purpose: Purpose) -> Result<()> {
        let _merging = self.merging.lock();
        build_run(&self.core, self.lane_number, &self.merges, purpose).map(|_| ())
    }

    /// Brings large runs together, until there are few or the store closes.
    fn merge_long(&self) -> Result<()> {
        while self.queue.check().is_ok() && build_run(&self.core, self.lane_number, &self.merges, Purpose::Long)? {}
        Ok(())
    }

    fn note_merge(&self, merged: Result<()>) {
        if let Err(error) = merged {
            self.merge_failure.lock().get_or_insert(error);
        }
    }

    /// Starts a merge in the background when the delta has grown to its bound, unless one is running.
    fn bound_delta(self: &Arc<Self>) {
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
        match self.seal_for_merge(&mut self.lane.lock()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.queue.fail(error),
        }
        *merger = self.spawn_merge("tensorcask-merge", |shared| {
            let merged = shared.merge(Purpose::Short);
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
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let merged = merge(&shared);
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
