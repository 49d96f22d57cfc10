//! Drops the files of a store from the page cache.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Advice, fadvise, fdatasync};

use crate::failure::Failure;

/// Asks the system to drop the pages of all segments and index runs. Pages that are not on disk yet are written first,
/// since the system drops no others.
pub(super) fn drop_cache(store: &Path) -> Result<(), Failure> {
    for folder in ["segments", "runs"] {
        let folder = store.join(folder);
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| Failure::io(&folder, &error))?,
        };
        for entry in entries {
            let path = entry.map_err(|error| Failure::io(&folder, &error))?.path();
            if !path.is_file() {
                continue;
            }
            let file = match File::open(&path) {
                // Renamed or removed since.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                file => file.map_err(|error| Failure::io(&path, &error))?,
            };
            let dropped = fdatasync(&file).and_then(|()| fadvise(&file, 0, None, Advice::DontNeed));
            dropped.map_err(|error| Failure::io(&path, &error.into()))?;
        }
    }
    Ok(())
}
