//! Maintenance of a store: merging its index, compacting its segments, and acknowledging losses.

use crate::engine::caps::Prune;
use crate::engine::compact::context::Context;
use crate::engine::compact::{compact, remove_row_maps};
use crate::engine::findings::acknowledge;
use crate::engine::options::Compaction;
#[cfg(doc)]
use crate::engine::reader::Reader;
use crate::engine::report::{CompactReport, CompactionProgress, PruneReport};
use crate::engine::runs::plan::Purpose;
use crate::engine::store::Store;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::io::Durability;

impl Store {
    /// Merges the index of all sealed segments into one run (while rows are put, into a few). `close` does so only if
    /// the handle put at least a quarter of the rows; otherwise it leaves up to three runs, so that it returns quickly.
    /// In a large store, each run adds to the cost of every lookup. Does nothing if there is only one run. O(keys):
    /// about 0.1 µs a key.
    ///
    /// # Errors
    /// IO errors; the store stays as it was.
    pub fn merge_index(&self) -> Result<()> {
        self.merge_all()?;
        self.inner.merger.keep_up();
        Ok(())
    }

    fn merge_all(&self) -> Result<()> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        inner.queue.check()?;
        inner.writer.with_lane(|lane| Ok(lane.running_seals()))?.wait()?;
        inner.merger.join();
        inner.merger.merge(Purpose::One)
    }

    /// Rewrites segments without overwritten and deleted rows, joins small segments, and merges the index. Readers and
    /// writers, in this process and in others, continue meanwhile. A crash leaves each segment either unchanged or
    /// replaced. O(rows) lookups, and O(bytes of the rewritten segments).
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{Compaction, Store};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// for _ in 0..4 {
    ///     store.put_rows(&[1_u64, 2, 3], &[256], &[0.5_f32; 3 * 256])?;
    /// }
    /// let report = store.compact(&Compaction::new())?;
    /// assert_eq!((report.live_rows, report.rows_dropped), (3, 9));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] of kind `TimedOut` if another process compacts the store for longer than [`Compaction::patience`];
    /// [`Error::Poisoned`], [`Error::Closed`], IO errors. Finished steps are kept, and the rest is unchanged.
    pub fn compact(&self, options: &Compaction) -> Result<CompactReport> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        options.check()?;
        if !options.dry_run {
            self.flush_with(Durability::SyncData)?;
            let seals = inner.writer.with_lane(|lane| lane.start_seals(&inner.state))?;
            seals.wait()?;
            self.merge_all()?;
        }
        let stop = || inner.queue.check();
        let context = Context { state: &inner.state, writer: &inner.writer, lane: inner.lane, stop: &stop };
        let report = compact(context, options)?;
        if report.segments_written > 0 && !options.dry_run {
            self.merge_all()?;
            remove_row_maps(&inner.state, inner.lane)?;
            // Unpacked rows take more space.
            inner.room.settle()?;
        }
        Ok(report)
    }

    /// How far the compaction is that runs in a [`Store::compact`] of another thread or in the background; `None` if
    /// none runs.
    #[must_use]
    pub fn compaction_progress(&self) -> Option<CompactionProgress> {
        self.inner.state.metrics().compacting().progress()
    }

    /// Evicts whole segments by age, or until the store is small enough, and unlinks their files. Their keys do not exist
    /// any more; an older row of such a key never comes back. Readers and writers, in this process and in others,
    /// continue meanwhile, and batches that are being read keep their files. A crash leaves each segment either
    /// unchanged or evicted. O(segments), and O(rows of the evicted segments) lookups; no values are read.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{Prune, Store};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&[1_u64, 2, 3], &[256], &[0.5_f32; 3 * 256])?;
    /// let report = store.prune(&Prune::new().to_rows(2))?;
    /// assert_eq!((report.keys_evicted, store.len()?), (3, 0));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] of kind `TimedOut` if another process compacts or prunes the store for longer than
    /// [`Prune::patience`]; [`Error::Invalid`] for [`Eviction::Stop`]; [`Error::Poisoned`], [`Error::Closed`], IO
    /// errors. Finished steps are kept, and the rest is unchanged.
    ///
    /// [`Eviction::Stop`]: crate::Eviction::Stop
    pub fn prune(&self, options: &Prune) -> Result<PruneReport> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        options.check()?;
        if !options.dry_run {
            self.flush_with(Durability::SyncData)?;
            inner.writer.with_lane(|lane| lane.start_seals(&inner.state))?.wait()?;
        }
        let report = inner.room.prune(options)?;
        if inner.state.versions().load().runs().iter().any(|run| run.has_moved_rows()) && !options.dry_run {
            self.merge_all()?;
            remove_row_maps(&inner.state, inner.lane)?;
        }
        Ok(report)
    }

    /// Acknowledges losses: damaged files that were set aside, missing segments, files of other stores. The reports of
    /// opening and of [`Reader::verify`] leave them out from now on. Nothing is deleted: damaged files stay in
    /// `quarantine/`. Returns the number of losses acknowledged.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] in a forked child; IO errors.
    pub fn acknowledge_damage(&self) -> Result<usize> {
        self.inner.puts.check_process()?;
        acknowledge(&self.inner.state)
    }
}
