//! Upkeep of a store: its index, its segments, and what is known to be lost.

use crate::engine::compact::context::Context;
use crate::engine::compact::{compact, remove_row_maps};
use crate::engine::findings::acknowledge;
use crate::engine::options::Compaction;
#[cfg(doc)]
use crate::engine::reader::Reader;
use crate::engine::report::CompactReport;
use crate::engine::runs::plan::Purpose;
use crate::engine::store::Store;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::io::Durability;

impl Store {
    /// Merges the index of everything that is sealed into one run now (while rows are put, into few). `close` does that
    /// only where the handle put a quarter of the rows or more, and else leaves up to three runs, since it is not to
    /// take long; every lookup in a large store pays for each of them. Does nothing if there is one. O(keys): about 0.1
    /// µs a key.
    ///
    /// # Errors
    /// IO errors; the store stays as it was.
    pub fn merge_index(&self) -> Result<()> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        inner.queue.check()?;
        inner.merger.join();
        inner.merger.merge(Purpose::One)
    }

    /// Writes segments anew without rows that were overwritten or deleted, joins small ones, and merges the index. Readers
    /// and writers go on meanwhile, in this process and in others. A crash leaves what was there before, or what is there
    /// after. O(rows) lookups, and O(bytes of the segments that are rewritten).
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
    /// [`Error::Poisoned`], [`Error::Closed`], IO errors. What was finished stays, and the rest is as it was.
    pub fn compact(&self, options: &Compaction) -> Result<CompactReport> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        options.check()?;
        if !options.dry_run {
            self.flush_with(Durability::SyncData)?;
            let seals = inner.writer.with_lane(|lane| lane.start_seals(&inner.state))?;
            seals.wait()?;
            self.merge_index()?;
        }
        let stop = || inner.queue.check();
        let context = Context { state: &inner.state, writer: &inner.writer, lane: inner.lane, stop: &stop };
        let report = compact(context, options)?;
        if report.segments_written > 0 && !options.dry_run {
            self.merge_index()?;
            remove_row_maps(&inner.state, inner.lane)?;
        }
        Ok(report)
    }

    /// Acknowledges what is lost: damaged files that were set aside, segments that are missing, files of other stores.
    /// Reports of opening and of [`Reader::verify`] are clean of it from now on. Nothing is deleted: damaged files stay
    /// in `quarantine/`. Returns how many things it was.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] in a forked child; IO errors.
    pub fn acknowledge_damage(&self) -> Result<usize> {
        self.inner.puts.check_process()?;
        acknowledge(&self.inner.state)
    }
}
