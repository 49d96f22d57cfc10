//! Copies and snapshots of a store that is read.

use std::path::Path;
use std::sync::Arc;

use crate::engine::backup::backup;
use crate::engine::backup::folder::NewFolder;
use crate::engine::open::open_reader;
use crate::engine::options::Backup;
use crate::engine::reader::Reader;
use crate::engine::report::BackupReport;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
#[cfg(feature = "unstable-storage")]
use crate::io::Storage;

impl Reader {
    /// A reader of what is committed now: it never refreshes, so it shows the same rows as long as it lives, whatever
    /// writers and compaction do. Segments stay on disk while it maps them, even if they are unlinked. O(segments), and
    /// O(rows that no index run covers).
    ///
    /// From an eighth of the maps that the system allows (`vm.max_map_count`), further segments are mapped when they
    /// are first read. Rows of such a segment cannot be read if it was compacted before that.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put("a", 1_i64)?;
    /// let snapshot = store.snapshot()?;
    /// store.put("a", 2_i64)?;
    /// assert_eq!(snapshot.get("a")?.and_then(|value| value.as_int()), Some(1));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn snapshot(&self) -> Result<Self> {
        self.state().check_fork()?;
        let (state, report) = open_reader(Arc::clone(self.state().shared_storage()), self.state().options().clone())?;
        state.access().pin();
        Ok(Self::new(state, report))
    }

    /// Copies the store to the folder `dir`, `<cache dir>/<module id>` of the copy, which must be absent or empty. The
    /// copy is a store of its own. It has every row that was flushed, by any process, before this call began; writers
    /// and compaction may continue meanwhile. Sealed segments become hard links where the file system allows it. See
    /// [`Reader::backup_with`] for other ways, and for restoring a store: copy the copy back.
    ///
    /// A copy that fails or is killed leaves no store: the folder gets its name when everything in it is durable. The
    /// copy has the identity of the source. If both are written to, their files must not be mixed; opening reports it
    /// if one was copied over the other.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// let report = store.backup_to(dir.path().join("backup"))?;
    /// assert_eq!(report.rows, 2);
    /// assert_eq!(tensorcask::Reader::open(dir.path(), "backup")?.len()?, 2);
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if `dir` cannot name a store or lies in this one; [`Error::Io`] of kind
    /// `AlreadyExists` if it is neither absent nor empty; [`Error::Corrupt`] or [`Error::MissingSegment`] if the store
    /// has lost rows; IO errors.
    pub fn backup_to(&self, dir: impl AsRef<Path>) -> Result<BackupReport> {
        self.backup_with(dir, &Backup::new(), &mut |_, _| {})
    }

    /// [`Reader::backup_to`] with options. `progress` is called with the bytes done and the total. O(segments) if they
    /// are linked, else O(bytes).
    ///
    /// # Errors
    /// As [`Reader::backup_to`].
    pub fn backup_with(
        &self,
        dir: impl AsRef<Path>,
        options: &Backup,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BackupReport> {
        let state = self.state();
        state.check_fork()?;
        let source = state.storage().local_path(Path::new(""));
        let folder = NewFolder::begin(dir.as_ref(), source.as_deref(), state.options().group_writable)?;
        let report = backup(state.shared_storage(), folder.storage(), (state.options(), options), progress)?;
        folder.publish()?;
        Ok(report)
    }

    /// [`Reader::backup_with`] to the caller's [`Storage`], which must be empty. The caller has to discard it if this
    /// fails. Unstable, like all of [`storage`](crate::storage).
    ///
    /// # Errors
    /// As [`Reader::backup_to`].
    #[cfg(feature = "unstable-storage")]
    pub fn backup_on(&self, target: &Arc<dyn Storage>, options: &Backup) -> Result<BackupReport> {
        let state = self.state();
        state.check_fork()?;
        backup(state.shared_storage(), target, (state.options(), options), &mut |_, _| {})
    }
}
