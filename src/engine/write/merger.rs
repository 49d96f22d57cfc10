//! Merges of the index, and their threads.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::engine::lock_order::{Rank, RankedGuard, RankedMutex};
use crate::engine::observe::background_failed;
use crate::engine::runs::build::remembered_live;
use crate::engine::runs::merge::merge_runs;
use crate::engine::runs::plan::{MAX_RUNS_AT_REST, Merges, Purpose};
use crate::engine::state::State;
use crate::engine::threads;
use crate::engine::write::queue::Queue;
use crate::engine::write::seal::Sealing;
use crate::error::{Error, Result};
use crate::sync::JoinHandle;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// What is done when the store is at rest, and after merges.
type Upkeep = Box<dyn Fn() + Send + Sync>;

/// Keeps the memtable near its bound, and the number of runs low.
pub(crate) struct Merger {
    state: Arc<State>,
    /// Tells when the store closes, or its writer has failed.
    queue: Arc<Queue>,
    lane: u16,
    /// Held by the one merge that covers segments without a run; puts may wait for it.
    merging: RankedMutex<()>,
    merges: Merges,
    /// The thread of that merge.
    short: RankedMutex<Option<JoinHandle<()>>>,
    /// The thread of the merge that only `close` waits for.
    long: RankedMutex<Option<JoinHandle<()>>>,
    /// Merges that run in the background.
    running: AtomicUsize,
    failure: RankedMutex<Option<Error>>,
    upkeep: OnceLock<Upkeep>,
}

impl fmt::Debug for Merger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merger").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Merger {
    /// The merger of the writer of lane `lane`.
    pub(crate) fn new(state: Arc<State>, queue: Arc<Queue>, lane: u16) -> Self {
        Self {
            state,
            queue,
            lane,
            merging: RankedMutex::new(Rank::Merging, ()),
            merges: Merges::default(),
            short: RankedMutex::new(Rank::ShortMerge, None),
            long: RankedMutex::new(Rank::LongMerge, None),
            running: AtomicUsize::new(0),
            failure: RankedMutex::new(Rank::MergeFailure, None),
            upkeep: OnceLock::new(),
        }
    }

    /// Says what is to be done when the store is at rest, and after merges. It must return soon.
    pub(crate) fn set_upkeep(&self, upkeep: impl Fn() + Send + Sync + 'static) {
        let first = self.upkeep.set(Box::new(upkeep)).is_ok();
        debug_assert!(first, "what is to be done is said once");
    }

    /// Does it.
    pub(crate) fn keep_up(&self) {
        self.upkeep.get().into_iter().for_each(|upkeep| upkeep());
    }

    /// Whether the memtable has reached its bound.
    pub(crate) fn memtable_is_full(&self) -> bool {
        self.state.memtable().len() >= self.state.memtable_bound()
    }

    /// At twice the memtable's bound, waits for the running merge. Only puts wait, not the writer thread, so that
    /// earlier puts can be flushed meanwhile. A small bound is not worth a wait for the disk.
    pub(crate) fn hold_back_puts(&self) {
        /// These keys take about 9 MiB. Sequential small puts add fewer while a merge is synced.
        const FREE_KEYS: usize = 1 << 18;
        let most_keys = || self.state.memtable_bound().saturating_mul(2).max(FREE_KEYS);
        if !self.state.options().synchronous && self.state.memtable().len() >= most_keys() {
            drop(self.merging.lock());
        }
    }

    /// Merges on this thread.
    ///
    /// # Errors
    /// IO errors; the store stays as it was.
    pub(crate) fn merge(&self, purpose: Purpose) -> Result<()> {
        self.merge_with(&self.merging.lock(), purpose)
    }

    fn merge_with(&self, _merging: &RankedGuard<'_, ()>, purpose: Purpose) -> Result<()> {
        merge_runs(&self.state, self.lane, &self.merges, purpose).map(|_| ())
    }

    /// Starts a merge in the background, unless one is running. `seal` begins to seal the segments to merge, and
    /// returns what to wait for, or `None` if a merge is not worth it.
    ///
    /// # Errors
    /// Those of `seal`.
    pub(crate) fn start(self: &Arc<Self>, seal: impl FnOnce() -> Result<Option<Arc<Sealing>>>) -> Result<()> {
        let mut short = self.short.lock();
        if let Some(running) = short.take() {
            if !running.is_finished() {
                *short = Some(running);
                return Ok(());
            }
            self.join_merge(running);
            if !self.memtable_is_full() {
                return Ok(());
            }
        }
        let Some(seals) = seal()? else { return Ok(()) };
        *short = self.spawn("tensorcask-merge", move |merger| {
            // From here on puts may have to wait.
            let merging = merger.merging.lock();
            // The lane reports why a segment could not be sealed.
            if seals.wait().is_err() {
                return Ok(());
            }
            let merged = merger.merge_with(&merging, Purpose::Short);
            drop(merging);
            merger.start_long();
            merged
        });
        Ok(())
    }

    fn start_long(self: &Arc<Self>) {
        let mut long = self.long.lock();
        match long.take() {
            Some(running) if !running.is_finished() => *long = Some(running),
            finished => {
                finished.into_iter().for_each(|finished| self.join_merge(finished));
                *long = self.spawn("tensorcask-merge-runs", |merger| merger.merge_long());
            }
        }
    }

    /// Merges large runs until few are left or the store closes.
    fn merge_long(&self) -> Result<()> {
        while self.queue.check().is_ok() && merge_runs(&self.state, self.lane, &self.merges, Purpose::Long)? {}
        self.keep_up();
        Ok(())
    }

    fn spawn(
        self: &Arc<Self>,
        name: &str,
        merge: impl FnOnce(&Arc<Self>) -> Result<()> + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let merger = Arc::clone(self);
        let thread = threads::spawn(name, move || {
            merger.running.fetch_add(1, Ordering::Relaxed);
            let merged = merge(&merger);
            merger.running.fetch_sub(1, Ordering::Relaxed);
            merger.note(merged);
        });
        let describe = || self.state.storage().describe(Path::new(""));
        thread.map_err(|error| self.note(Err(Error::io("start a merge thread of", describe(), error)))).ok()
    }

    fn join_merge(&self, merger: JoinHandle<()>) {
        if merger.join().is_err() {
            self.note(Err(Error::Internal { what: "a merge thread panicked".into() }));
        }
    }

    /// Waits for the merges that run in the background.
    pub(crate) fn join(&self) {
        // The short merge may start the long one.
        for merger in [&self.short, &self.long] {
            let merger = merger.lock().take();
            merger.into_iter().for_each(|merger| self.join_merge(merger));
        }
    }

    /// How many merges run in the background.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Keeps the failure of a merge for the next call that can report it.
    pub(crate) fn note(&self, merged: Result<()>) {
        if let Err(error) = merged {
            background_failed(&error);
            self.failure.lock().get_or_insert(error);
        }
    }

    /// Reports the failure of a merge, once.
    ///
    /// # Errors
    /// That failure.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    /// The merge to run before closing. One run, if the handle put a quarter of the rows or more, so that few rows are
    /// merged for each row put. Otherwise few runs, if rows without a run are too many to index at the next open, if
    /// there are too many runs, or if no run records the number of live keys.
    pub(crate) fn purpose_at_close(&self) -> Option<Purpose> {
        const FEW_ROWS: u64 = 4096;
        const FEW_SEGMENTS: usize = 8;
        const ROWS_MERGED_PER_ROW_PUT: u64 = 4;
        let version = self.state.versions().load();
        let rows: u64 = version.segments().values().map(|segment| u64::from(segment.rows())).sum();
        let put_many = rows <= self.state.metrics().rows_put().saturating_mul(ROWS_MERGED_PER_ROW_PUT);
        let has_moved_rows = version.runs().iter().any(|run| run.has_moved_rows());
        if put_many && (version.runs().len() > 1 || has_moved_rows) {
            return Some(Purpose::One);
        }
        let uncovered = version.uncovered();
        let runs = || version.runs().iter().map(|run| run.run());
        let counted = || runs().any(|run| remembered_live(run, runs()).is_some());
        let worth_a_run = uncovered.len() >= FEW_SEGMENTS
            || uncovered.iter().map(|segment| u64::from(segment.rows())).sum::<u64>() >= FEW_ROWS
            || version.runs().len() > MAX_RUNS_AT_REST
            || !version.runs().is_empty() && !counted();
        worth_a_run.then_some(if put_many { Purpose::One } else { Purpose::Rest })
    }
}
