//! Seals segments in the background.
//!
//! Sealing syncs a whole segment. Later puts, and flushes that promise no more than handing data to the system, need
//! not wait for that. Until it is done, rows are found by their batch ids as before.

use std::sync::Arc;

use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::observe::{Counter, Operation};
use crate::engine::state::State;
use crate::engine::threads;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;
use crate::sync::{JoinHandle, Mutex};

/// Segments that are being sealed, or were; none by default.
#[derive(Debug)]
pub(crate) struct Sealing {
    progress: RankedMutex<Progress>,
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
        Self { progress: RankedMutex::new(Rank::Sealing, Progress::default()), rows: 0, process_id: 0 }
    }
}

impl Sealing {
    /// Begins to seal `actives` on a thread of its own. If none can be started, they are sealed when this returns.
    pub(crate) fn start(state: &Arc<State>, actives: Vec<Active>) -> Self {
        let rows = actives.iter().map(Active::rows).sum();
        // Taken by the thread, or by the caller if no thread could be started.
        let work = Arc::new(Mutex::new(actives));
        let run = {
            let (state, work) = (Arc::clone(state), Arc::clone(&work));
            move || seal_all(&state, std::mem::take(&mut *work.lock()))
        };
        let progress = match threads::spawn("tensorcask-seal", run) {
            Ok(thread) => Progress::Running(thread),
            Err(_) => Progress::Done(seal_all(state, std::mem::take(&mut *work.lock()))),
        };
        Self { progress: RankedMutex::new(Rank::Sealing, progress), rows, process_id: std::process::id() }
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
    actives.into_iter().try_for_each(|active| {
        let segment = seal_and_publish(state, active, Vec::new())?;
        state.memtable().segment_sealed(&segment);
        Ok(())
    })
}

/// Seals and publishes one segment, which replaces the segments `replaces`.
///
/// # Errors
/// IO errors.
pub(crate) fn seal_and_publish(state: &State, active: Active, replaces: Vec<SegmentId>) -> Result<Arc<Segment>> {
    let id = active.id();
    let span = state.metrics().begin(Operation::Seal);
    span.record("rows", active.rows());
    span.record("bytes", active.len_bytes());
    active.seal(state.options(), replaces)?;
    let segment = Arc::new(Segment::open(state.storage(), &names::sealed(id), id)?);
    state.versions().add_segment(&segment);
    state.metrics().instruments().add(Counter::Seals, 1);
    Ok(segment)
}
