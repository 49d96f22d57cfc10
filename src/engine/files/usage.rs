//! The bytes of all files of a store.

use std::path::Path;

use crate::engine::files::replace::list_if_exists;
use crate::error::Result;
use crate::io::Storage;
use crate::names;

/// The lengths of the files of a store, by folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Sealed, active and unfinished segments.
    pub segments: u64,
    /// Runs and row maps.
    pub runs: u64,
    pub quarantine: u64,
    /// Locks, sync logs, and the files beside the folders.
    pub others: u64,
}

impl Usage {
    /// Measures the files. `known` knows the lengths of some segments by name, for which the system is not asked.
    /// O(files).
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn of(storage: &dyn Storage, known: impl Fn(&str) -> Option<u64>) -> Result<Self> {
        let folder_bytes = |folder: &str| {
            let files = list_if_exists(storage, folder)?.into_iter().filter(|entry| entry.kind.is_file());
            let known = |name: &str| if folder == names::SEGMENTS { known(name) } else { None };
            let sizes = files.map(|entry| match known(&entry.name) {
                Some(len_bytes) => Ok(len_bytes),
                None => match storage.len_bytes(&Path::new(folder).join(entry.name)) {
                    // Renamed or removed since.
                    Err(error) if error.is_not_found() => Ok(0),
                    len_bytes => len_bytes,
                },
            });
            sizes.sum::<Result<u64>>()
        };
        Ok(Self {
            segments: folder_bytes(names::SEGMENTS)?,
            runs: folder_bytes(names::RUNS)?,
            quarantine: folder_bytes(names::QUARANTINE)?,
            others: folder_bytes(names::LANES)? + folder_bytes("")?,
        })
    }

    /// All of them.
    pub(crate) const fn total(&self) -> u64 {
        self.segments + self.runs + self.quarantine + self.others
    }
}
