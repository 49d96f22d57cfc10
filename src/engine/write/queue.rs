//! The queue between `put` and the writer: bounded, in order, with a barrier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::engine::write::lane::Waiting;
use crate::error::{Error, Result};
use crate::io::Durability;

/// After so long without work, the writer is at rest.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiting>,
    rows: usize,
    /// Bytes that wait or are being written.
    bytes: usize,
    oldest: Option<Instant>,
    /// Batches ever pushed, and how many of them were committed.
    pushed: u64,
    committed: u64,
    /// The barrier that was asked for: up to which batch, how firmly; and the one that was reached.
    asked: Option<Durability>,
    /// Up to which batch everything is written, by firmness.
    reached: [u64; 3],
    /// Whether a flush followed what was put last, or nothing was put yet.
    flushed: bool,
    /// Whether the writer thread is to look at the state of the store, though nothing is to be written.
    look: bool,
    closing: bool,
    failed: Option<Error>,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Something waits, a barrier is asked for, or the store closes.
    work: Condvar,
    /// Room was made, a barrier was reached, or the writer failed.
    done: Condvar,
    flush_rows: usize,
    flush_bytes: usize,
    flush_interval: Duration,
    buffer_bytes: usize,
}

/// What the writer is to do next.
#[derive(Debug)]
pub(crate) struct Work {
    pub waiting: Vec<Waiting>,
    pub barrier: Option<Durability>,
    pub closing: bool,
    bytes: usize,
    up_to: u64,
}

fn level(durability: Durability) -> usize {
    match durability {
        Durability::Buffered => 0,
        Durability::SyncData => 1,
        Durability::SyncAll => 2,
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(cause) => Err(Error::Poisoned { cause: Arc::new(cause.clone()) }),
            None if self.closing => Err(Error::Closed),
            None => Ok(()),
        }
    }
}

impl Queue {
    /// An empty queue.
    pub(crate) fn new(flush_rows: usize, flush_bytes: usize, flush_interval: Duration, buffer_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State { flushed: true, ..State::default() }),
            work: Condvar::new(),
            done: Condvar::new(),
            flush_rows,
            flush_bytes,
            flush_interval,
            buffer_bytes,
        }
    }

    /// Fails if the writer did, or the store is closed.
    pub(crate) fn check(&self) -> Result<()> {
        self.state.lock().check()
    }

    /// Reserves `bytes` of the buffer; blocks while it is full. One batch larger than the buffer passes alone.
    pub(crate) fn reserve(&self, bytes: usize, may_block: bool) -> Result<bool> {
        let mut state = self.state.lock();
        loop {
            state.check()?;
            if state.bytes == 0 || state.bytes.saturating_add(bytes) <= self.buffer_bytes {
                state.bytes = state.bytes.saturating_add(bytes);
                return Ok(true);
            }
            if !may_block {
                return Ok(false);
            }
            self.work.notify_one();
            self.done.wait(&mut state);
        }
    }

    /// Gives back what was reserved for a batch that is not pushed after all.
    pub(crate) fn release(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        drop(state);
        self.done.notify_all();
    }

    /// Adds a batch whose bytes were reserved. Returns whether there is enough for the writer to start.
    ///
    /// # Errors
    /// The writer failed, or the store is closed: since the bytes were reserved, nobody may be left to write them.
    pub(crate) fn push(&self, waiting: Waiting) -> Result<bool> {
        let mut state = self.state.lock();
        state.check()?;
        state.rows += waiting.1.columns.rows;
        state.pushed += 1;
        state.flushed = false;
        state.oldest.get_or_insert_with(Instant::now);
        state.waiting.push(waiting);
        let enough = self.enough(&state);
        // The first batch starts the clock, so the writer has to learn of it too.
        if enough || state.waiting.len() == 1 {
            self.work.notify_one();
        }
        Ok(enough)
    }

    fn enough(&self, state: &State) -> bool {
        state.rows >= self.flush_rows || state.bytes >= self.flush_bytes
    }

    /// Waits until there is something to do: rows that are enough or old enough, a barrier, or the end.
    /// Calls `quiet` when nothing was to be done for a while.
    pub(crate) fn wait_for_work(&self, quiet: impl Fn()) {
        let mut state = self.state.lock();
        let mut at_rest = false;
        loop {
            let due = state.oldest.map(|oldest| oldest + self.flush_interval);
            let now = Instant::now();
            if self.enough(&state) && !state.waiting.is_empty()
                || state.asked.is_some()
                || state.look
                || state.closing
                || due.is_some_and(|due| due <= now)
            {
                return;
            }
            match due {
                Some(due) => {
                    self.work.wait_until(&mut state, due);
                }
                None if at_rest => self.work.wait(&mut state),
                None => {
                    // Whether it timed out or not, something may have come before the lock was taken again.
                    at_rest = self.work.wait_for(&mut state, QUIET).timed_out();
                    if at_rest {
                        quiet();
                    }
                }
            }
        }
    }

    /// Takes what there is. The caller holds the lane, so that batches are written in the order in which they came.
    pub(crate) fn take_work(&self) -> Work {
        let mut state = self.state.lock();
        state.rows = 0;
        state.look = false;
        state.oldest = None;
        let waiting = std::mem::take(&mut state.waiting);
        let bytes = waiting.iter().map(|(_, pending)| pending.len_bytes).sum();
        Work { waiting, barrier: state.asked.take(), closing: state.closing, bytes, up_to: state.pushed }
    }

    /// Reports that `work` was done, or why not.
    pub(crate) fn finish(&self, work: &Work, result: Result<()>) {
        let mut state = self.state.lock();
        state.bytes = state.bytes.saturating_sub(work.bytes);
        match result {
            Ok(()) => {
                state.committed = work.up_to;
                let firm = work.barrier.map_or(0, level);
                for reached in state.reached.iter_mut().take(firm + 1) {
                    *reached = work.up_to;
                }
            }
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
        drop(state);
        self.done.notify_all();
    }

    /// Stops the writer: every later call says why.
    pub(crate) fn fail(&self, error: Error) {
        self.state.lock().failed.get_or_insert(error);
        self.done.notify_all();
    }

    /// Asks for a barrier behind everything that was pushed; returns what to wait for. Whoever works next reaches it.
    pub(crate) fn ask(&self, durability: Durability) -> Result<u64> {
        let mut state = self.state.lock();
        state.check()?;
        state.asked = Some(state.asked.map_or(durability, |asked| asked.max(durability)));
        state.flushed = true;
        Ok(state.pushed)
    }

    /// Whether a flush followed what was put last, if anything was (or is `expected` to), and all of it is written.
    pub(crate) fn flushed(&self, expected: bool) -> Result<bool> {
        let state = self.state.lock();
        state.check()?;
        Ok((state.flushed || expected) && state.committed == state.pushed)
    }

    /// Counts a batch that was written without the queue: it is behind those that were pushed meanwhile.
    pub(crate) fn wrote(&self) {
        let mut state = self.state.lock();
        if state.committed == state.pushed {
            state.committed += 1;
        }
        state.pushed += 1;
        state.flushed = false;
    }

    /// Wakes the writer thread, to look for work.
    pub(crate) fn wake(&self) {
        self.work.notify_one();
    }

    /// Has the writer thread look after the store.
    pub(crate) fn look(&self) {
        self.state.lock().look = true;
        self.work.notify_one();
    }

    /// Waits until the barrier is reached.
    pub(crate) fn wait_for_barrier(&self, up_to: u64, durability: Durability) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if state.reached.get(level(durability)).is_some_and(|reached| *reached >= up_to) {
                return Ok(());
            }
            if let Some(cause) = &state.failed {
                return Err(Error::Poisoned { cause: Arc::new(cause.clone()) });
            }
            self.done.wait(&mut state);
        }
    }

    /// No more puts; the writer finishes what waits. Returns whether this call was the first.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state.lock();
        let first = !state.closing;
        state.closing = true;
        drop(state);
        self.work.notify_all();
        self.done.notify_all();
        first
    }

    /// The failure that stopped the writer.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.state.lock().failed.clone()
    }

    /// Rows and bytes that wait or are being written.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.rows, state.bytes)
    }
}
