//! Seals segments in the background.
//!
//! Sealing syncs a whole segment. Later puts, and flushes that promise no more than handing data to the system, need
//! not wait for that. A flush that promises durability waits for the data, which are synced first, but not for the
//! index. Until sealing is done, rows are found by their batch ids as before.

use std::sync::Arc;

use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::observe::{Counter, Operation};
use crate::engine::state::State;
use crate::engine::threads;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;
use crate::sync::{Condvar, JoinHandle, Mutex};

/// Segments that are being sealed, or were; none by default.
#[derive(Debug)]
pub(crate) struct Sealing {
    progress: RankedMutex<Progress>,
    data: Arc<SealedData>,
    rows: u64,
    process_id: u32,
}

#[derive(Debug)]
enum Progress {
    Running(JoinHandle<Result<()>>),
    Done(Result<()>),
}

impl Default for Progress {
    fn default() -> Self {
        Self::Done(Ok(()))
    }
}

impl Default for Sealing {
    fn default() -> Self {
        let progress = RankedMutex::new(Rank::Sealing, Progress::default());
        Self { progress, data: Arc::default(), rows: 0, process_id: 0 }
    }
}

/// Whether the data of segments that are being sealed are synced.
#[derive(Debug, Default)]
struct SealedData {
    progress: Mutex<DataProgress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct DataProgress {
    /// Segments whose data are not synced.
    left: usize,
    failed: bool,
}

impl SealedData {
    fn of(segments: usize) -> Arc<Self> {
        let progress = Mutex::new(DataProgress { left: segments, failed: false });
        Arc::new(Self { progress, changed: Condvar::new() })
    }

    /// The data of one segment are synced.
    fn synced(&self) {
        let mut progress = self.progress.lock();
        progress.left = progress.left.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Waits until all are; returns whether that succeeded.
    fn wait(&self) -> bool {
        let mut progress = self.progress.lock();
        while progress.left > 0 {
            self.changed.wait(&mut progress);
        }
        !progress.failed
    }
}

/// Wakes those who wait for data, however sealing ends.
struct Sealed<'a>(&'a SealedData);

impl Drop for Sealed<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress.lock();
        progress.failed |= progress.left > 0;
        progress.left = 0;
        self.0.changed.notify_all();
    }
}

impl Sealing {
    /// Begins to seal `actives` on a thread of its own. If none can be started, they are sealed when this returns.
    pub(crate) fn start(state: &Arc<State>, actives: Vec<Active>) -> Self {
        let rows = actives.iter().map(Active::rows).sum();
        let data = SealedData::of(actives.len());
        // Taken by the thread, or by the caller if no thread could be started.
        let work = Arc::new(Mutex::new(actives));
        let run = {
            let (state, work, data) = (Arc::clone(state), Arc::clone(&work), Arc::clone(&data));
            move || seal_with(&state, std::mem::take(&mut *work.lock()), &data)
        };
        let progress = match threads::spawn("tensorcask-seal", run) {
            Ok(thread) => Progress::Running(thread),
            Err(_) => Progress::Done(seal_with(state, std::mem::take(&mut *work.lock()), &data)),
        };
        Self { progress: RankedMutex::new(Rank::Sealing, progress), data, rows, process_id: std::process::id() }
    }

    /// Waits until the data of the segments are as durable as the options say. Returns whether they are; if not,
    /// [`Sealing::wait`] returns the error.
    pub(crate) fn wait_for_data(&self) -> bool {
        self.process_id != std::process::id() || self.data.wait()
    }

    /// Waits until the segments are sealed and published.
    ///
    /// # Errors
    /// The error that kept a segment from being sealed. Every call returns it.
    pub(crate) fn wait(&self) -> Result<()> {
        // A forked child has no such thread.
        if self.process_id != std::process::id() {
            return Ok(());
        }
        let mut progress = self.progress.lock();
        let sealed = match std::mem::take(&mut *progress) {
            Progress::Running(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(Error::Internal { what: "the thread that seals segments panicked".into() })),
            Progress::Done(sealed) => sealed,
        };
        *progress = Progress::Done(sealed.clone());
        sealed
    }

    /// Whether [`Sealing::wait`] would return at once.
    pub(crate) fn is_finished(&self) -> bool {
        match self.progress.try_lock().as_deref() {
            Some(Progress::Running(thread)) => thread.is_finished(),
            Some(Progress::Done(_)) => true,
            // Another thread waits.
            None => false,
        }
    }

    /// Rows of the segments.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }
}

/// Seals and publishes each segment. The memtable still finds their rows.
pub(crate) fn seal_all(state: &State, actives: Vec<Active>) -> Result<()> {
    seal_with(state, actives, &SealedData::default())
}

fn seal_with(state: &State, actives: Vec<Active>, data: &SealedData) -> Result<()> {
    let _wakes = Sealed(data);
    actives.into_iter().try_for_each(|active| {
        let segment = seal_and_publish_with(state, active, Vec::new(), &|| data.synced())?;
        state.memtable().segment_sealed(&segment);
        Ok(())
    })
}

/// Seals and publishes one segment, which replaces the segments `replaces`.
///
/// # Errors
/// IO errors.
pub(crate) fn seal_and_publish(state: &State, active: Active, replaces: Vec<SegmentId>) -> Result<Arc<Segment>> {
    seal_and_publish_with(state, active, replaces, &|| {})
}

fn seal_and_publish_with(
    state: &State,
    active: Active,
    replaces: Vec<SegmentId>,
    data_synced: &(dyn Fn() + Sync),
) -> Result<Arc<Segment>> {
    let id = active.id();
    let span = state.metrics().begin(Operation::Seal);
    span.record("rows", active.rows());
    span.record("bytes", active.len_bytes());
    active.seal(state.options(), replaces, data_synced)?;
    let segment = Arc::new(Segment::open(state.storage(), &names::sealed(id), id)?);
    state.versions().add_segment(&segment);
    state.metrics().instruments().add(Counter::Seals, 1);
    Ok(segment)
}
