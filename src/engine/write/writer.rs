//! The writer: writes the queued batches to the lane, on its own thread or on that of a caller that finds the lane
//! free.

use std::sync::Arc;

use crate::buffers::Buffers;
use crate::engine::lock_order::{Rank, RankedGuard, RankedMutex};
use crate::engine::runs::plan::Purpose;
use crate::engine::state::State;
use crate::engine::write::lane::Lane;
use crate::engine::write::merger::Merger;
use crate::engine::write::queue::{Queue, Work};
use crate::engine::write::seal::Sealing;
use crate::error::{Error, Result};

/// The writer of a store.
#[derive(Debug)]
pub(crate) struct Writer {
    state: Arc<State>,
    queue: Arc<Queue>,
    /// `None` once the store is closed.
    lane: RankedMutex<Option<Lane>>,
    merger: Arc<Merger>,
    /// Freed when the writer is at rest.
    buffers: Arc<Buffers>,
}

impl Writer {
    /// The writer of `lane`.
    pub(crate) fn new(
        state: Arc<State>,
        queue: Arc<Queue>,
        lane: Lane,
        merger: Arc<Merger>,
        buffers: Arc<Buffers>,
    ) -> Self {
        Self { state, queue, lane: RankedMutex::new(Rank::Lane, Some(lane)), merger, buffers }
    }

    /// The writer thread.
    pub(crate) fn run(&self) {
        loop {
            self.queue.wait_for_work(|| {
                self.buffers.clear();
                self.merger.keep_up();
            });
            if self.work_once(&mut self.lane.lock()) {
                return;
            }
            self.bound_memtable();
        }
    }

    /// Writes the queued batches; returns whether the store is closing. The lane lock is acquired before the queue is
    /// drained, so batches are written in the order in which they were pushed, whichever thread writes them.
    fn work_once(&self, lane: &mut Option<Lane>) -> bool {
        let work = self.queue.take_work();
        self.work_on(lane, &work);
        work.closing
    }

    fn work_on(&self, lane: &mut Option<Lane>, work: &Work) {
        let result = match lane.as_mut() {
            Some(lane) if self.queue.failure().is_none() => lane
                .commit(&self.state, &work.waiting)
                .and_then(|()| work.barrier.map_or(Ok(()), |durability| lane.sync(&self.state, durability)))
                .map_err(|error| lane.first_failure(&self.state, error)),
            // The lane was closed after everything was written.
            None if work.waiting.is_empty() && work.barrier.is_none() => return,
            // After a failure, nothing is retried on the same files.
            _ => Err(Error::Closed),
        };
        self.queue.finish(work, result);
    }

    /// Makes sure that a barrier is reached: on this thread if the lane is free, since a handover to the writer thread
    /// and back takes longer than a small write; else on the thread that holds the lane.
    pub(crate) fn reach_barrier(&self) {
        if self.state.options().synchronous {
            return self.step();
        }
        match self.lane.try_lock() {
            Some(mut lane) => {
                self.work_once(&mut lane);
                drop(lane);
                let bound = self.state.memtable_bound();
                if self.state.memtable().len() >= bound || self.state.memtable().lacks_room(bound) {
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
        if !closing && self.merger.memtable_is_full() {
            match self.seal_for_merge(&mut lane) {
                Ok(Some(_)) => self.merger.note(self.merger.merge(Purpose::Rest)),
                Ok(None) => {}
                Err(error) => self.queue.fail(error),
            }
        }
    }

    /// Begins to seal the lane's active segments, since only sealed segments can go into a run; returns what to wait
    /// for. `None` if a merge is not worth it: the memtable may be full of rows that other lanes have not sealed yet.
    fn seal_for_merge(&self, lane: &mut Option<Lane>) -> Result<Option<Arc<Sealing>>> {
        let Some(lane) = lane else { return Ok(None) };
        lane.check_seals()?;
        let uncovered = self.state.versions().load().uncovered();
        let sealed: u64 = uncovered.iter().map(|segment| u64::from(segment.rows())).sum();
        if sealed + lane.unsealed_rows() < self.state.memtable_bound() as u64 / 4 {
            return Ok(None);
        }
        lane.start_seals(&self.state).map(Some)
    }

    /// Starts a merge in the background if the memtable has reached its bound, unless one is running.
    fn bound_memtable(&self) {
        self.state.memtable().make_room(self.state.memtable_bound());
        if !self.merger.memtable_is_full() || self.queue.failure().is_some() {
            return;
        }
        if let Err(error) = self.merger.start(|| self.seal_for_merge(&mut self.lane.lock())) {
            self.queue.fail(error);
        }
    }

    /// Calls `with` with the lane.
    ///
    /// # Errors
    /// [`Error::Closed`] once the store is; those of `with`.
    pub(crate) fn with_lane<T>(&self, with: impl FnOnce(&mut Lane) -> Result<T>) -> Result<T> {
        with(self.lane.lock().as_mut().ok_or(Error::Closed)?)
    }

    /// The lane, if no other thread holds it.
    pub(crate) fn try_lane(&self) -> Option<RankedGuard<'_, Option<Lane>>> {
        self.lane.try_lock()
    }

    /// Takes the lane out, to close it.
    pub(crate) fn take_lane(&self) -> Option<Lane> {
        self.lane.lock().take()
    }

    /// Whether the lane is still open.
    pub(crate) fn is_open(&self) -> bool {
        self.lane.lock().is_some()
    }
}
