//! Copies and snapshots of a store that is written to.

use std::path::Path;

use crate::engine::options::Backup;
use crate::engine::reader::Reader;
use crate::engine::report::BackupReport;
use crate::engine::store::Store;
use crate::error::Result;
use crate::io::Durability;

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
}
