//! The queue: back-pressure, barriers, failure and close.
//!
//! Mutations that these checks detect: a notification that is missing or reaches only one of several threads (push,
//! commit, released bytes, close); a writer that waits after a timeout without checking again; a put that waits for
//! room while the writer waits for more rows; a barrier that is reached too early or at too high a level; a push into a
//! closed queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shuttle::thread;

use crate::engine::model::check;
use crate::engine::rows::row::{BatchId, PendingBatch};
use crate::engine::write::queue::Queue;
use crate::engine::write::schemas::Schemas;
use crate::engine::write::testing::batch;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::sync::{Condvar, Mutex};
use crate::value::Value;

/// Bytes of a batch of one row.
const BATCH: usize = 100;

/// A queue, and a stand-in for the lane.
struct Shared {
    queue: Queue,
    lane: Mutex<Lane>,
    wrote: Condvar,
    batch: Arc<PendingBatch>,
    /// The batches that the queue accepted.
    taken: parking_lot::Mutex<BTreeSet<BatchId>>,
}

#[derive(Default)]
struct Lane {
    written: Vec<BatchId>,
    /// How many of them were written at each durability level.
    synced: [usize; 3],
    /// Every write fails.
    full: bool,
}

impl Shared {
    /// Two batches fill the buffer. The writer starts at `flush_rows`.
    fn new(flush_rows: usize, batch: &Arc<PendingBatch>) -> Arc<Self> {
        Self::with_interval(flush_rows, Duration::from_secs(3600), batch)
    }

    fn with_interval(flush_rows: usize, flush_interval: Duration, batch: &Arc<PendingBatch>) -> Arc<Self> {
        let queue = Queue::new(flush_rows, usize::MAX, flush_interval, 2 * BATCH);
        let (lane, wrote, taken) = (Mutex::default(), Condvar::new(), parking_lot::Mutex::default());
        Arc::new(Self { queue, lane, wrote, batch: Arc::clone(batch), taken })
    }

    /// As `Puts::put`.
    fn put(&self, id: BatchId) -> Result<()> {
        assert!(self.queue.reserve(BATCH, true)?);
        self.queue.push((id, Arc::clone(&self.batch))).inspect_err(|_| self.queue.release(BATCH))?;
        self.taken.lock().insert(id);
        Ok(())
    }

    /// As `Writer::work_once`.
    fn work_once(&self, lane: &mut Lane) -> bool {
        let work = self.queue.take_work();
        let fails = self.queue.failure().is_some() || lane.full && !work.waiting.is_empty();
        let result = if fails { Err(Error::invalid("full")) } else { Ok(()) };
        if result.is_ok() {
            lane.written.extend(work.waiting.iter().map(|(id, _)| *id));
            let level = work.barrier.map_or(0, |durability| durability as usize);
            lane.synced.iter_mut().take(level + 1).for_each(|synced| *synced = lane.written.len());
        }
        self.queue.finish(&work, result);
        self.wrote.notify_all();
        work.closing
    }

    /// As `Writer::run`.
    fn write(&self) {
        loop {
            self.queue.wait_for_work(|| {});
            if self.work_once(&mut self.lane.lock()) {
                return;
            }
        }
    }

    /// As `Store::flush_with`.
    fn flush(&self, durability: Durability) -> Result<()> {
        let up_to = self.queue.ask(durability)?;
        match self.lane.try_lock() {
            Some(mut lane) => drop(self.work_once(&mut lane)),
            None => self.queue.wake(),
        }
        self.queue.wait_for_barrier(up_to, durability)
    }

    fn is_written(&self, id: BatchId, durability: Durability) -> bool {
        let lane = self.lane.lock();
        lane.written.iter().take(lane.synced[durability as usize]).any(|written| *written == id)
    }
}

/// Runs `puts` concurrently with a writer, on threads of their own, and `meanwhile` on this one. Closes the queue, and
/// returns what was written.
fn run(shared: &Arc<Shared>, puts: [fn(&Shared); 2], meanwhile: fn(&Shared)) -> Vec<BatchId> {
    let spawn = |work: fn(&Shared)| {
        let shared = Arc::clone(shared);
        thread::spawn(move || work(&shared))
    };
    let writer = spawn(Shared::write);
    let puts = puts.map(spawn);
    meanwhile(shared);
    puts.into_iter().for_each(|put| put.join().unwrap());
    shared.queue.close();
    writer.join().unwrap();
    assert!(shared.queue.depth().is_empty());
    std::mem::take(&mut shared.lane.lock().written)
}

fn one_row() -> Arc<PendingBatch> {
    let (_, batch) = batch(&mut Schemas::default(), 0, &[1], &Value::Int(1));
    assert_eq!(batch.len_bytes, BATCH);
    batch
}

#[test]
fn a_flush_returns_when_what_was_put_before_it_is_written_as_durably() {
    let batch = one_row();
    check(800, move || {
        // The writer thread does nothing unasked.
        let shared = Shared::new(100, &batch);
        let put = |shared: &Shared| {
            for (id, durability) in [(0, Durability::SyncAll), (1, Durability::Buffered)] {
                shared.put(id).unwrap();
                shared.flush(durability).unwrap();
                assert!(shared.is_written(id, durability), "{durability:?}");
            }
        };
        let other = |shared: &Shared| {
            shared.put(2).unwrap();
            shared.flush(Durability::SyncData).unwrap();
            assert!(shared.is_written(2, Durability::SyncData));
        };
        assert_eq!(run(&shared, [put, other], |_| {}).len(), 3);
    });
}

/// Puts, then waits for the writer without asking for a barrier.
fn put_and_wait<const ID: BatchId>(shared: &Shared) {
    shared.put(ID).unwrap();
    let mut lane = shared.lane.lock();
    while !lane.written.contains(&ID) {
        shared.wrote.wait(&mut lane);
    }
}

#[test]
fn the_writer_starts_when_there_is_enough_or_it_is_time() {
    let batch = one_row();
    for (flush_rows, flush_interval) in [(2, Duration::from_secs(3600)), (100, Duration::ZERO)] {
        let batch = Arc::clone(&batch);
        check(300, move || {
            let shared = Shared::with_interval(flush_rows, flush_interval, &batch);
            assert_eq!(run(&shared, [put_and_wait::<0>, put_and_wait::<1>], |_| {}).len(), 2);
        });
    }
}

#[test]
fn a_put_that_waits_for_room_gets_it() {
    let batch = one_row();
    // The writer starts at each batch, or only when there is no room for another.
    for flush_rows in [1, 100] {
        let batch = Arc::clone(&batch);
        check(400, move || {
            let shared = Shared::new(flush_rows, &batch);
            let put = |shared: &Shared| (0..3).for_each(|id| shared.put(id).unwrap());
            let other = |shared: &Shared| {
                (10..13).for_each(|id| shared.put(id).unwrap());
                // As a put that reserves and then fails.
                assert!(shared.queue.reserve(2 * BATCH, true).unwrap());
                shared.queue.release(2 * BATCH);
            };
            let written = run(&shared, [put, other], |_| {});
            let (own, others): (Vec<BatchId>, Vec<BatchId>) = written.iter().partition(|id| **id < 10);
            assert_eq!((own, others), (vec![0, 1, 2], vec![10, 11, 12]), "in order");
        });
    }
}

/// Puts and flushes; returns the first error.
fn put_and_flush(shared: &Shared, first: BatchId) -> Result<()> {
    (first..first + 3).try_for_each(|id| shared.put(id))?;
    shared.flush(Durability::SyncData)?;
    assert!(shared.is_written(first + 2, Durability::SyncData));
    Ok(())
}

fn closed<const FIRST: BatchId>(shared: &Shared) {
    let ended = put_and_flush(shared, FIRST);
    assert!(matches!(ended, Ok(()) | Err(Error::Closed)), "{ended:?}");
}

fn poisoned<const FIRST: BatchId>(shared: &Shared) {
    let ended = put_and_flush(shared, FIRST);
    assert!(matches!(ended, Ok(()) | Err(Error::Poisoned { .. })), "{ended:?}");
}

#[test]
fn closing_ends_what_waits_and_loses_no_batch_that_was_taken() {
    let batch = one_row();
    check(800, move || {
        let shared = Shared::new(2, &batch);
        let written = run(&shared, [closed::<0>, closed::<10>], |shared| shared.queue.close());
        assert_eq!(BTreeSet::from_iter(written), *shared.taken.lock());
    });
}

#[test]
fn the_failure_of_the_writer_ends_what_waits() {
    let batch = one_row();
    // The writer finds the failure, or another thread reports it.
    let causes: [fn(&Shared); 2] =
        [|shared| shared.lane.lock().full = true, |shared| shared.queue.fail(Error::invalid("full"))];
    for cause in causes {
        let batch = Arc::clone(&batch);
        check(400, move || {
            let shared = Shared::new(100, &batch);
            run(&shared, [poisoned::<0>, poisoned::<10>], cause);
        });
    }
}
