//! The identities of a wrapped module. Each is a folder `<cache dir>/<module id>/<identity>` with the outputs of one
//! combination of weights, version and configuration. Wrapping a module creates its identity.
//!
//! ```
//! # fn main() -> tensorcask::Result<()> {
//! # let cache_dir = tempfile::tempdir().unwrap();
//! # let cache_dir = cache_dir.path();
//! use tensorcask_cache::identities;
//!
//! let module = cache_dir.join("vit-b16");
//! let latest = identities::list(&module)?.into_iter().next().map(|identity| identity.id);
//!
//! // Remove all identities except the last used one. The first round is a dry run.
//! for dry_run in [true, false] {
//!     let pruned = identities::prune(&module, dry_run, |identity| latest.as_ref() != Some(&identity.id))?;
//!     println!("{} identities, {} bytes", pruned.removed.len(), pruned.freed_bytes());
//!     pruned.kept.iter().for_each(|(identity, why)| println!("{} stays: {why}", identity.id));
//! }
//! # Ok(())
//! # }
//! ```

mod remove;
mod stored;

use std::path::{Path, PathBuf};

use self::remove::{finish, take};
pub use self::stored::{Stays, StoredIdentity};
use crate::identity::names::{self, KINDS};
use crate::identity::record::Identity;
use crate::identity::size;
use tensorcask::{Error, KeyKind, Options, Result};

/// The result of pruning, or of a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// Identities whose folders were removed.
    pub removed: Vec<StoredIdentity>,
    /// Remains of interrupted removals that were removed as well.
    pub finished: Vec<StoredIdentity>,
    /// Identities that were selected but stay, each with the reason.
    pub kept: Vec<(StoredIdentity, Stays)>,
}

impl Pruned {
    /// Whether anything was removed.
    #[must_use]
    pub fn is_more_room(&self) -> bool {
        !self.removed.is_empty() || !self.finished.is_empty()
    }

    /// Bytes of the files that were removed.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.removed.iter().chain(&self.finished).map(|identity| identity.bytes).sum()
    }
}

/// The identities in the folder of a module, `<cache dir>/<module id>`, the last used one first. Empty if the folder
/// does not exist.
///
/// # Errors
/// IO errors.
pub fn list(module_folder: impl AsRef<Path>) -> Result<Vec<StoredIdentity>> {
    list_beside(module_folder.as_ref(), None)
}

/// The remains of interrupted removals in the folder of a module. They take up space until the next [`prune`] removes
/// them.
///
/// # Errors
/// IO errors.
pub fn interrupted(module_folder: impl AsRef<Path>) -> Result<Vec<StoredIdentity>> {
    let found = folders(module_folder.as_ref(), names::parse_pruned)?;
    Ok(found.into_iter().map(|(id, folder)| look(id, folder, false)).collect())
}

/// Removes the identities in the folder of a module that `remove` selects, and completes interrupted removals. With
/// `dry_run`, nothing is removed.
///
/// An identity stays whole if a writer of any process or a handle of this process has it open, or if its folder
/// contains anything other than the files of a store and of the caching layer. Files in the quarantine of its stores
/// count as such. No other process may read an identity while it is removed.
///
/// # Errors
/// IO errors of listing; errors of a removal are in [`Pruned::kept`].
pub fn prune(
    module_folder: impl AsRef<Path>,
    dry_run: bool,
    remove: impl FnMut(&StoredIdentity) -> bool,
) -> Result<Pruned> {
    let module = module_folder.as_ref();
    prune_listed(module, list(module)?, dry_run, remove)
}

/// [`list`], with each identity's differences from `ours`.
///
/// # Errors
/// As [`list`].
pub fn list_beside(module: &Path, ours: Option<&Identity>) -> Result<Vec<StoredIdentity>> {
    let mut found: Vec<StoredIdentity> = folders(module, |name| names::is_identity(name).then_some(name))?
        .into_iter()
        .map(|(id, folder)| look(id, folder, true))
        .collect();
    found.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.id.cmp(&b.id)));
    let parsed = |identity: &StoredIdentity| serde_json::from_str::<Identity>(identity.record.as_deref()?).ok();
    let latest = found.iter().find_map(parsed);
    let compared = ours.or(latest.as_ref());
    for identity in &mut found {
        identity.differences = match (compared, parsed(identity)) {
            (Some(compared), Some(record)) => compared.differences(&record),
            _ => vec!["its record cannot be read".to_owned()],
        };
    }
    Ok(found)
}

/// [`prune`], for identities that were listed before.
///
/// # Errors
/// As [`prune`].
pub fn prune_listed(
    module: &Path,
    identities: Vec<StoredIdentity>,
    dry_run: bool,
    mut remove: impl FnMut(&StoredIdentity) -> bool,
) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    for mut left in interrupted(module)? {
        match finish(&left.folder, dry_run) {
            Ok(contents) => {
                left.bytes = contents.len_bytes;
                pruned.finished.push(left);
            }
            Err(why) => pruned.kept.push((left, why)),
        }
    }
    let (chosen, others): (Vec<_>, Vec<_>) = identities.into_iter().partition(|identity| remove(identity));
    for mut identity in chosen {
        match take(&identity, dry_run) {
            Ok(contents) => {
                identity.bytes = contents.len_bytes;
                pruned.removed.push(identity);
            }
            Err(why) => pruned.kept.push((identity, why)),
        }
    }
    if !dry_run && pruned.is_more_room() {
        // Space was freed, so no identity is full any more.
        for other in others.iter().chain(pruned.kept.iter().map(|(identity, _)| identity)) {
            let full = other.folder.join(names::FULL);
            if std::fs::symlink_metadata(&full).is_ok_and(|found| found.is_file()) {
                let _derived = std::fs::remove_file(full);
            }
        }
    }
    Ok(pruned)
}

/// The subfolders of a module's folder whose names `id_of` parses, with their identities. Symbolic links are skipped.
fn folders(module: &Path, id_of: impl Fn(&str) -> Option<&str>) -> Result<Vec<(String, PathBuf)>> {
    let fail = |error| Error::io("list", module, error);
    let entries = match std::fs::read_dir(module) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        if let Some(id) = name.to_str().and_then(&id_of)
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            found.push((id.to_owned(), entry.path()));
        }
    }
    Ok(found)
}

fn look(id: String, folder: PathBuf, is_whole: bool) -> StoredIdentity {
    let (bytes, last_used) = size::measure(&folder);
    let rows = if is_whole { rows(&folder) } else { None };
    let record = std::fs::read_to_string(folder.join(names::RECORD)).ok();
    let record = record.filter(|text| serde_json::from_str::<serde_json::Value>(text).is_ok());
    StoredIdentity { id, folder, bytes, rows, last_used, differences: Vec::new(), record }
}

fn rows(folder: &Path) -> Option<u64> {
    let stores = KINDS.into_iter().filter(|kind| folder.join(kind.name()).is_dir());
    let len = |kind: KeyKind| Options::new().open_reader(folder, kind.name()).and_then(|reader| reader.len()).ok();
    stores.map(len).sum()
}
