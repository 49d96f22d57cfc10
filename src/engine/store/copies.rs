//! Copies and snapshots of a store that is written to, and merging other stores into it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::backup::first_loss;
use crate::engine::compact::context::Context;
use crate::engine::files::locks::wait_for_compact_lock;
use crate::engine::follow::refresh;
use crate::engine::merge_stores::{common_key_kind, merge_stores};
use crate::engine::options::{Backup, Merge};
use crate::engine::reader::Reader;
use crate::engine::report::{BackupReport, MergeReport};
use crate::engine::runs::plan::Purpose;
use crate::engine::state::State;
use crate::engine::store::Store;
use crate::error::{Error, Result};
use crate::io::Durability;

/// How long a merge waits for a process that compacts the store.
const COMPACTION_PATIENCE: Duration = Duration::from_secs(60);

impl Store {
    /// A reader of what was put until now; see [`Reader::snapshot`]. Flushes first, with [`Durability::Buffered`].
    ///
    /// # Errors
    /// As [`Store::flush`] and [`Reader::snapshot`].
    pub fn snapshot(&self) -> Result<Reader> {
        self.flush_with(Durability::Buffered)?;
        self.reader().snapshot()
    }

    /// Copies the store; see [`Reader::backup_to`]. Flushes first, so the copy has every row that was put before.
    ///
    /// # Errors
    /// As [`Store::flush`] and [`Reader::backup_to`].
    pub fn backup_to(&self, dir: impl AsRef<Path>) -> Result<BackupReport> {
        self.backup_with(dir, &Backup::new(), &mut |_, _| {})
    }

    /// [`Store::backup_to`] with options; see [`Reader::backup_with`].
    ///
    /// # Errors
    /// As [`Store::backup_to`].
    pub fn backup_with(
        &self,
        dir: impl AsRef<Path>,
        options: &Backup,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BackupReport> {
        self.flush()?;
        self.reader().backup_with(dir, options, progress)
    }

    /// Merges other stores into this one: copies the rows of `sources` that are newer than the rows of their keys here.
    /// The commit timestamp decides, also between sources; of equal ones, this store's row counts, then that of the
    /// first source. Deletions count like rows, unless compaction has dropped them. Rows keep their commit timestamps
    /// and codecs. The sources are not changed, and may be written to: what is committed now is merged.
    ///
    /// What the caps of the options leave no room for is evicted at the end, not before.
    ///
    /// A merge that fails or is killed has merged a part of the rows; merge again to complete it. `progress` is called
    /// with the rows done and the total. O(rows of the sources · stores) lookups, and O(bytes of the copied rows).
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{Merge, Reader, Store};
    ///
    /// # let other = Store::open(dir.path(), "from-another-machine")?;
    /// # other.put("b", 2_i64)?;
    /// # other.close()?;
    /// let store = Store::open(dir.path(), "encoder")?;
    /// store.put("a", 1_i64)?;
    /// let other = Reader::open(dir.path(), "from-another-machine")?;
    /// let report = store.merge_from(&[other], &Merge::new(), &mut |_, _| {})?;
    /// assert_eq!((report.rows_merged, report.conflicts, store.len()?), (1, 0, 2));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::KeyKind`] if the stores have different kinds of keys, [`Error::Invalid`] if a source is this
    /// store, [`Error::Corrupt`] or [`Error::MissingSegment`] if a source has lost rows, [`Error::Conflict`] if
    /// [`Merge::fail_on_conflict`] is on: nothing is merged then. [`Error::Corrupt`] if a row of a source turns out to
    /// be damaged; [`Error::Io`] of kind `TimedOut` if another process compacts the store for a minute;
    /// [`Error::Poisoned`], [`Error::Closed`], IO errors.
    pub fn merge_from(
        &self,
        sources: &[Reader],
        options: &Merge,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<MergeReport> {
        let inner = &self.inner;
        inner.puts.check_process()?;
        inner.state.access().check_writes()?;
        sources.iter().try_for_each(|source| self.check_other(source))?;
        let sources: Vec<Reader> = sources.iter().map(Reader::snapshot).collect::<Result<_>>()?;
        if let (Some(loss), false) =
            (sources.iter().find_map(|source| first_loss(source.open_report())), options.damaged)
        {
            return Err(loss);
        }
        let sources: Vec<Arc<State>> = sources.iter().map(|source| Arc::clone(source.state())).collect();
        let kind = common_key_kind(std::iter::once(&*inner.state).chain(sources.iter().map(|source| &**source)))?;
        self.flush_with(Durability::SyncData)?;
        // A compaction could drop a tombstone that was put after its older row was chosen here.
        let compacting = (!options.dry_run).then(|| wait_for_compact_lock(inner.state.storage(), COMPACTION_PATIENCE));
        let lock = compacting.transpose()?;
        refresh(&inner.state)?;
        let stop = || inner.queue.check();
        let context = Context { state: &inner.state, writer: &inner.writer, lane: inner.lane, stop: &stop };
        let sealed = || if inner.merger.memtable_is_full() { inner.merger.merge(Purpose::Rest) } else { Ok(()) };
        let merged = merge_stores(context, (&sources, kind), options, &sealed, progress)?;
        drop(lock);
        // The caps held for what was there.
        inner.room.settle()?;
        Ok(merged)
    }

    /// Fails if `source` reads this store.
    fn check_other(&self, source: &Reader) -> Result<()> {
        let place = |state: &State| state.storage().local_path(Path::new(""))?.canonicalize().ok();
        let own = place(&self.inner.state);
        if own.is_some() && own == place(source.state()) {
            let folder = source.state().storage().describe(Path::new(""));
            return Err(Error::invalid(format!("{} cannot be merged into itself", folder.display())));
        }
        Ok(())
    }
}
