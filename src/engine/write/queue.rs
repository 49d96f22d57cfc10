//! The queue between `put` and the writer: bounded, in order, with a barrier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::observe::writer_stopped;
use crate::engine::report::Waiting;
use crate::engine::rows::row::QueuedBatch;
use crate::engine::threads::later;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::sync::Condvar;

/// After this long without work, the writer is at rest.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Contents {
    waiting: Vec<QueuedBatch>,
    rows: usize,
    /// Bytes that wait or are being written.
    bytes: usize,
    /// Puts that wait for room.
    blocked: usize,
    oldest: Option<Instant>,
    /// Batches ever pushed, and how many of them were committed.
    pushed: u64,
    committed: u64,
    /// The durability level of the barrier that was asked for, if any.
    asked: Option<Durability>,
    /// For each durability level, up to which batch everything is written.
    reached: [u64; 3],
    /// Whether a flush followed the last put, or nothing was put yet.
    flushed: bool,
    /// Whether the writer thread should check the state of the store, although nothing has to be written.
    look: bool,
    closing: bool,
    failed: Option<Error>,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    contents: RankedMutex<Contents>,
    /// Something waits, a barrier is asked for, or the store closes.
    work: Condvar,
    /// Room was made, a barrier was reached, or the writer failed.
    done: Condvar,
    flush_rows: usize,
    flush_bytes: usize,
    flush_interval: Duration,
    buffer_bytes: usize,
}

/// The writer's next work.
#[derive(Debug)]
pub(crate) struct Work {
    pub waiting: Vec<QueuedBatch>,
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

impl Contents {
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
            contents: RankedMutex::new(Rank::Queue, Contents { flushed: true, ..Contents::default() }),
            work: Condvar::new(),
            done: Condvar::new(),
            flush_rows,
            flush_bytes,
            flush_interval,
            buffer_bytes,
        }
    }

    /// Fails if the writer has failed, or the store is closed.
    pub(crate) fn check(&self) -> Result<()> {
        self.contents.lock().check()
    }

    /// Reserves `bytes` of the buffer; blocks while it is full. A batch larger than the buffer is accepted alone.
    pub(crate) fn reserve(&self, bytes: usize, may_block: bool) -> Result<bool> {
        let mut contents = self.contents.lock();
        loop {
            contents.check()?;
            if contents.bytes == 0 || contents.bytes.saturating_add(bytes) <= self.buffer_bytes {
                contents.bytes = contents.bytes.saturating_add(bytes);
                return Ok(true);
            }
            if !may_block {
                return Ok(false);
            }
            // The writer makes room, even if there are fewer rows than it normally starts for.
            contents.blocked += 1;
            self.work.notify_one();
            contents.wait(&self.done);
            contents.blocked -= 1;
        }
    }

    /// Releases the reservation of a batch that is not pushed.
    pub(crate) fn release(&self, bytes: usize) {
        let mut contents = self.contents.lock();
        contents.bytes = contents.bytes.saturating_sub(bytes);
        drop(contents);
        self.done.notify_all();
    }

    /// Adds a batch whose bytes were reserved. Returns whether there is enough for the writer to start.
    ///
    /// # Errors
    /// The writer failed or the store was closed after the bytes were reserved: nobody may be left to write them.
    pub(crate) fn push(&self, waiting: QueuedBatch) -> Result<bool> {
        let mut contents = self.contents.lock();
        contents.check()?;
        contents.rows += waiting.1.columns.rows;
        contents.pushed += 1;
        contents.flushed = false;
        contents.oldest.get_or_insert_with(Instant::now);
        contents.waiting.push(waiting);
        let enough = self.enough(&contents);
        // The first batch starts the flush interval, so the writer must be notified too.
        if enough || contents.waiting.len() == 1 {
            self.work.notify_one();
        }
        Ok(enough)
    }

    fn enough(&self, contents: &Contents) -> bool {
        contents.rows >= self.flush_rows || contents.bytes >= self.flush_bytes
    }

    /// Waits until there is work: enough rows, rows that are old enough or that block puts, a barrier, or the close.
    /// Calls `quiet` when there was no work for a while.
    pub(crate) fn wait_for_work(&self, quiet: impl Fn()) {
        let mut contents = self.contents.lock();
        let mut at_rest = false;
        loop {
            let due = contents.oldest.map(|oldest| later(oldest, self.flush_interval));
            let now = Instant::now();
            if (self.enough(&contents) || contents.blocked > 0) && !contents.waiting.is_empty()
                || contents.asked.is_some()
                || contents.look
                || contents.closing
                || due.is_some_and(|due| due <= now)
            {
                return;
            }
            match due {
                Some(due) => contents.wait_until(&self.work, due),
                None if at_rest => contents.wait(&self.work),
                None => {
                    // Whether or not the wait timed out, work may have come before the lock was acquired again.
                    at_rest = contents.wait_for(&self.work, QUIET);
                    if at_rest {
                        drop(contents);
                        quiet();
                        contents = self.contents.lock();
                    }
                }
            }
        }
    }

    /// Drains the queue. The caller holds the lane, so batches are written in the order in which they came.
    pub(crate) fn take_work(&self) -> Work {
        let mut contents = self.contents.lock();
        contents.rows = 0;
        contents.look = false;
        contents.oldest = None;
        let waiting = std::mem::take(&mut contents.waiting);
        let bytes = waiting.iter().map(|(_, pending)| pending.len_bytes).sum();
        Work { waiting, barrier: contents.asked.take(), closing: contents.closing, bytes, up_to: contents.pushed }
    }

    /// Reports the result of `work`.
    pub(crate) fn finish(&self, work: &Work, result: Result<()>) {
        let mut contents = self.contents.lock();
        contents.bytes = contents.bytes.saturating_sub(work.bytes);
        match result {
            Ok(()) => {
                contents.committed = work.up_to;
                let reached_level = work.barrier.map_or(0, level);
                for reached in contents.reached.iter_mut().take(reached_level + 1) {
                    *reached = work.up_to;
                }
            }
            Err(error) => {
                contents.failed.get_or_insert(error);
            }
        }
        drop(contents);
        self.done.notify_all();
    }

    /// Stops the writer: every later call returns the error.
    pub(crate) fn fail(&self, error: Error) {
        writer_stopped(&error);
        self.contents.lock().failed.get_or_insert(error);
        self.done.notify_all();
    }

    /// Asks for a barrier after everything pushed so far; returns what to wait for. The thread that writes next reaches
    /// it.
    pub(crate) fn ask(&self, durability: Durability) -> Result<u64> {
        let mut contents = self.contents.lock();
        contents.check()?;
        contents.asked = Some(contents.asked.map_or(durability, |asked| asked.max(durability)));
        contents.flushed = true;
        Ok(contents.pushed)
    }

    /// Whether a flush followed the last put (or is `expected` to), and everything that was pushed is written.
    pub(crate) fn flushed(&self, expected: bool) -> Result<bool> {
        let contents = self.contents.lock();
        contents.check()?;
        Ok((contents.flushed || expected) && contents.committed == contents.pushed)
    }

    /// Counts a batch that was written without the queue. It comes after those pushed meanwhile.
    pub(crate) fn wrote(&self) {
        let mut contents = self.contents.lock();
        if contents.committed == contents.pushed {
            contents.committed += 1;
        }
        contents.pushed += 1;
        contents.flushed = false;
    }

    /// Wakes the writer thread, to look for work.
    pub(crate) fn wake(&self) {
        self.work.notify_one();
    }

    /// Makes the writer thread check the store.
    pub(crate) fn look(&self) {
        self.contents.lock().look = true;
        self.work.notify_one();
    }

    /// Waits until the barrier is reached.
    pub(crate) fn wait_for_barrier(&self, up_to: u64, durability: Durability) -> Result<()> {
        let mut contents = self.contents.lock();
        loop {
            if contents.reached.get(level(durability)).is_some_and(|reached| *reached >= up_to) {
                return Ok(());
            }
            if let Some(cause) = &contents.failed {
                return Err(Error::Poisoned { cause: Arc::new(cause.clone()) });
            }
            contents.wait(&self.done);
        }
    }

    /// Refuses further puts; the writer finishes what waits.
    pub(crate) fn close(&self) {
        self.contents.lock().closing = true;
        self.work.notify_all();
        self.done.notify_all();
    }

    /// The failure that stopped the writer.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.contents.lock().failed.clone()
    }

    /// Rows and bytes that wait or are being written.
    pub(crate) fn depth(&self) -> Waiting {
        let contents = self.contents.lock();
        Waiting { rows: contents.rows, bytes: contents.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::write::schemas::Schemas;
    use crate::engine::write::testing::batch;
    use crate::value::Value;

    fn queue() -> Queue {
        Queue::new(10, 1000, Duration::from_secs(3600), 1000)
    }

    fn push(queue: &Queue, id: u32, rows: u64) -> Result<bool> {
        let keys: Vec<u64> = (0..rows).collect();
        let batch = batch(&mut Schemas::default(), id, &keys, &Value::Int(1));
        queue.reserve(batch.1.len_bytes, false)?;
        queue.push(batch)
    }

    fn taken(work: &Work) -> Vec<u32> {
        work.waiting.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn the_buffer_is_bounded_but_for_one_batch_alone() {
        let queue = queue();
        assert!(queue.reserve(5000, false).unwrap(), "larger than the buffer, and alone");
        assert!(!queue.reserve(1, false).unwrap());
        queue.release(5000);
        assert!(queue.reserve(600, false).unwrap() && queue.reserve(400, false).unwrap());
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| queue.reserve(1, true));
            queue.release(600);
            assert!(blocked.join().unwrap().unwrap());
        });
    }

    #[test]
    fn a_put_that_waits_for_room_is_not_kept_waiting_for_more_rows() {
        let queue = Queue::new(100, usize::MAX, Duration::from_secs(3600), 1000);
        push(&queue, 0, 6).unwrap();
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| queue.reserve(600, true));
            queue.wait_for_work(|| {});
            queue.finish(&queue.take_work(), Ok(()));
            assert!(blocked.join().unwrap().unwrap());
        });
    }

    #[test]
    fn batches_are_taken_in_order_and_a_barrier_is_reached_with_its_durability() {
        let queue = queue();
        assert!(!push(&queue, 0, 1).unwrap() && !push(&queue, 1, 1).unwrap() && push(&queue, 2, 8).unwrap());
        assert_eq!(queue.depth(), Waiting { rows: 10, bytes: 1000 });
        queue.wait_for_work(|| {});
        let up_to = queue.ask(Durability::SyncData).unwrap();
        let work = queue.take_work();
        assert_eq!((taken(&work), work.barrier, work.closing), (vec![0, 1, 2], Some(Durability::SyncData), false));
        queue.finish(&work, Ok(()));
        queue.wait_for_barrier(up_to, Durability::SyncData).unwrap();
        queue.wait_for_barrier(up_to, Durability::Buffered).unwrap();
        assert!(queue.depth().is_empty());
        // A higher level has to be asked for.
        let reached = queue.contents.lock().reached;
        assert_eq!(reached, [3, 3, 0]);
    }

    #[test]
    fn a_barrier_asked_for_twice_takes_the_higher_level() {
        let queue = queue();
        queue.ask(Durability::SyncAll).unwrap();
        queue.ask(Durability::Buffered).unwrap();
        assert_eq!(queue.take_work().barrier, Some(Durability::SyncAll));
        assert_eq!(queue.take_work().barrier, None);
    }

    #[test]
    fn zero_copy_writes_are_due_after_a_flush_with_nothing_behind_it() {
        let queue = queue();
        assert!(queue.flushed(false).unwrap(), "nothing was put yet");
        queue.wrote();
        assert!(!queue.flushed(false).unwrap() && queue.flushed(true).unwrap());
        queue.ask(Durability::Buffered).unwrap();
        assert!(queue.flushed(false).unwrap());
        push(&queue, 0, 1).unwrap();
        assert!(!queue.flushed(true).unwrap(), "a batch waits");
        queue.finish(&queue.take_work(), Ok(()));
        assert!(queue.flushed(true).unwrap());
    }

    #[test]
    fn a_failure_is_told_to_everybody_and_work_that_waits_is_not_lost_on_closing() {
        let queue = queue();
        push(&queue, 0, 1).unwrap();
        queue.close();
        assert!(matches!(push(&queue, 1, 1), Err(Error::Closed)));
        queue.wait_for_work(|| {});
        let work = queue.take_work();
        assert_eq!((taken(&work), work.closing), (vec![0], true));
        queue.finish(&work, Err(Error::invalid("full")));
        assert!(matches!(queue.check(), Err(Error::Poisoned { .. })) && queue.failure().is_some());
        assert!(matches!(queue.wait_for_barrier(1, Durability::Buffered), Err(Error::Poisoned { .. })));
    }
}
