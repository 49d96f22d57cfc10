//! Segments that are sealed beside the writer.
//!
//! Sealing brings a whole segment to the medium: puts of what comes after, and flushes that promise no more than to have
//! handed it to the system, need not wait for that. Until it is done, rows are found as they were before: by their slots.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::engine::state::Core;
use crate::engine::threads;
use crate::engine::write::lane::{Active, seal_active};
use crate::error::{Error, Result};
use crate::names;
use crate::segment::reader::Segment;

/// Segments that are being sealed, or were; by default, none.
#[derive(Debug, Default)]
pub(crate) struct Sealing {
    state: Mutex<State>,
    rows: u64,
    process_id: u32,
}

#[derive(Debug)]
enum State {
    Running(JoinHandle<Result<()>>),
    Done(Result<()>),
}

impl Default for State {
    fn default() -> Self {
        Self::Done(Ok(()))
    }
}

impl Sealing {
    /// Begins to seal `actives` on a thread of its own. Where none can be started, they are sealed when this returns.
    pub(crate) fn start(core: &Arc<Core>, actives: Vec<Active>) -> Self {
        let rows = actives.iter().map(|active| active.writer.rows()).sum();
        // Whoever comes first takes them.
        let work = Arc::new(Mutex::new(actives));
        let run = {
            let (core, work) = (Arc::clone(core), Arc::clone(&work));
            move || seal_all(&core, std::mem::take(&mut *work.lock()))
        };
        let state = match threads::spawn("tensorcask-seal", run) {
            Ok(thread) => State::Running(thread),
            Err(_) => State::Done(seal_all(core, std::mem::take(&mut *work.lock()))),
        };
        Self { state: Mutex::new(state), rows, process_id: std::process::id() }
    }

    /// Returns when the segments are sealed and published.
    ///
    /// # Errors
    /// What kept one from being sealed, at every call.
    pub(crate) fn wait(&self) -> Result<()> {
        // A forked child has no such thread.
        if self.process_id != std::process::id() {
            return Ok(());
        }
        let mut state = self.state.lock();
        let sealed = match std::mem::take(&mut *state) {
            State::Running(thread) => {
                thread.join().unwrap_or_else(|_| Err(Error::invalid("the thread that seals segments panicked")))
            }
            State::Done(sealed) => sealed,
        };
        *state = State::Done(sealed.clone());
        sealed
    }

    /// Whether [`Sealing::wait`] would return at once.
    pub(crate) fn is_finished(&self) -> bool {
        match self.state.try_lock().as_deref() {
            Some(State::Running(thread)) => thread.is_finished(),
            Some(State::Done(_)) => true,
            // Somebody waits.
            None => false,
        }
    }

    /// Rows of the segments.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }
}

/// Seals and publishes each. Their rows stay where the delta finds them.
pub(crate) fn seal_all(core: &Core, actives: Vec<Active>) -> Result<()> {
    actives.into_iter().try_for_each(|active| {
        let id = active.writer.id();
        seal_active(core, active, Vec::new())?;
        let segment = Arc::new(Segment::open(&*core.storage, &names::sealed(id), id)?);
        core.change_view(|view| {
            view.segments.insert(id, Arc::clone(&segment));
        });
        core.let_go_of_active(&segment);
        Ok(())
    })
}
