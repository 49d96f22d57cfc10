//! Compaction in the background, after a merge of the index or when the store is idle, if enough rows are dead.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::engine::compact::compact;
use crate::engine::compact::context::Context;
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::options::Compaction;
use crate::engine::runs::plan::Purpose;
use crate::engine::state::State;
use crate::engine::state::waste::Waste;
use crate::engine::threads;
use crate::engine::write::merger::Merger;
use crate::engine::write::queue::Queue;
use crate::engine::write::writer::Writer;
use crate::error::{Error, Result};
use crate::sync::JoinHandle;

/// A smaller store is never compacted automatically.
const LEAST_BYTES: u64 = 1 << 20;
/// Closing compacts stores up to this size, which takes a fraction of a second.
const MOST_BYTES_AT_CLOSE: u64 = 64 << 20;

/// The compaction thread and its inputs. It holds no handle of the store, so it never closes it.
pub(super) struct Background {
    state: Arc<State>,
    queue: Arc<Queue>,
    writer: Weak<Writer>,
    merger: Weak<Merger>,
    lane: u16,
    thread: RankedMutex<Option<JoinHandle<()>>>,
    /// The numbers of dead rows and of merges when a compaction last found no segment to rewrite.
    in_vain: (AtomicU64, AtomicU64),
    /// Whether a put waits for the lock of compaction, to evict.
    is_in_the_way: Arc<AtomicBool>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

/// Whether in some segment probably at most `share` of the rows are live.
fn is_worth_a_look(waste: &Waste, share: f64) -> bool {
    share > 0.0 && waste.bytes >= LEAST_BYTES && waste.dead_rows as f64 >= (1.0 - share) / 2.0 * waste.rows as f64
}

impl Background {
    /// Makes the store compact after merges and when it is idle. It stops while `is_in_the_way`.
    pub(super) fn start(
        (state, queue): (&Arc<State>, &Arc<Queue>),
        writer: &Arc<Writer>,
        merger: &Arc<Merger>,
        lane: u16,
        is_in_the_way: &Arc<AtomicBool>,
    ) -> Arc<Self> {
        let background = Arc::new(Self {
            state: Arc::clone(state),
            queue: Arc::clone(queue),
            writer: Arc::downgrade(writer),
            merger: Arc::downgrade(merger),
            lane,
            thread: RankedMutex::new(Rank::Compaction, None),
            in_vain: Default::default(),
            is_in_the_way: Arc::clone(is_in_the_way),
        });
        let weak = Arc::downgrade(&background);
        merger.set_upkeep(move || {
            if let Some(background) = Weak::upgrade(&weak) {
                background.look();
            }
        });
        background
    }

    /// Starts the thread if compaction is worthwhile and the thread is not running.
    fn look(self: &Arc<Self>) {
        let Some(waste) = Waste::of(&self.state) else { return };
        // After a compaction that found nothing to rewrite, waits for a tenth more dead rows, or for a merge: rows are
        // dead once a run has their successors.
        let (dead, merges) = (self.in_vain.0.load(Ordering::Relaxed), self.in_vain.1.load(Ordering::Relaxed));
        let runs_built = self.state.metrics().runs_built();
        let is_in_vain = waste.dead_rows <= dead + dead / 10 && runs_built == merges;
        if is_in_vain || !is_worth_a_look(&waste, self.state.options().compaction_live_share) {
            return;
        }
        let Some(mut thread) = self.thread.try_lock() else { return };
        if thread.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let background = Arc::clone(self);
        // If the thread cannot be started, the next call tries again.
        *thread = threads::spawn("tensorcask-compact", move || background.run((waste.dead_rows, runs_built))).ok();
    }

    fn run(&self, (dead_rows, runs_built): (u64, u64)) {
        let (Some(writer), Some(merger)) = (self.writer.upgrade(), self.merger.upgrade()) else { return };
        let stop = || match self.is_in_the_way.load(Ordering::Relaxed) {
            true => Err(Error::Closed),
            false => self.queue.check(),
        };
        let context = Context { state: &self.state, writer: &writer, lane: self.lane, stop: &stop };
        let options = self.state.options();
        let options = Compaction::in_background(options.compaction_live_share, options.compaction_bytes_per_s);
        match compact(context, &options) {
            Ok(report) if report.segments_rewritten == 0 => {
                self.in_vain.0.store(dead_rows, Ordering::Relaxed);
                self.in_vain.1.store(runs_built, Ordering::Relaxed);
            }
            Ok(_) => {}
            // The store is closing, a put evicts, or another process is compacting.
            Err(error) if matches!(error, Error::Closed) || stop().is_err() || error.is_timed_out() => {}
            Err(error) => merger.note(Err(error)),
        }
    }

    /// Waits for the thread, which ends soon once the queue is closed.
    pub(super) fn join(&self) {
        // A panic was printed already. The store is in the state before or after the step.
        let _ended = self.thread.lock().take().map(JoinHandle::join);
    }
}

/// Compacts a small store at close if half of its rows are dead.
pub(super) fn compact_at_close(state: &Arc<State>, writer: &Writer, merger: &Merger, lane: u16) -> Result<()> {
    let share = state.options().compaction_live_share;
    let is_worth = |waste: &Waste| {
        is_worth_a_look(waste, share) && waste.dead_rows >= waste.rows / 2 && waste.bytes <= MOST_BYTES_AT_CLOSE
    };
    if !Waste::of(state).is_some_and(|waste| is_worth(&waste)) {
        return Ok(());
    }
    merger.merge(Purpose::One)?;
    let context = Context { state, writer, lane, stop: &|| Ok(()) };
    match compact(context, &Compaction::in_background(state.options().compaction_live_share, None)) {
        Ok(report) if report.segments_written > 0 => merger.merge(Purpose::One),
        Err(error) if !error.is_timed_out() => Err(error),
        _ => Ok(()),
    }
}
