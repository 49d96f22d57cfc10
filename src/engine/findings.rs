//! What is wrong with a store as far as it is known: what the quarantine folder tells, what this handle left where it
//! is, and what is missing. The report of opening, `verify` and `stats` all ask here, so that none is cleaner than another.

use std::path::Path;

use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::files::quarantine::{self, MissingIds, Told, told};
use crate::engine::open::missing::{is_acknowledged, still};
use crate::engine::report::{Missing, Quarantined};
use crate::engine::state::Core;
use crate::error::{Error, Result};

/// What is wrong, less what was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub files: Vec<Quarantined>,
    pub missing: Vec<Missing>,
}

/// What is known to be wrong now. O(files in quarantine).
///
/// # Errors
/// IO errors.
pub(crate) fn findings(core: &Core) -> Result<Findings> {
    let storage = &*core.storage;
    let mut told = told(storage)?;
    let (in_place, mut missing) = {
        let known = core.known.lock();
        (known.in_place(), known.missing().to_vec())
    };
    missing.retain(|missing| !is_acknowledged(&told, missing) && !told.missing.contains(missing));
    missing.append(&mut told.missing);
    let missing: Vec<MissingIds> = still(storage, missing)?;
    let in_place: Vec<Quarantined> = in_place.into_iter().filter(|file| !is_left(core, &told, file)).collect();
    let mut files = told.files;
    files.extend(in_place);
    Ok(Findings { files, missing: missing.iter().map(|missing| missing.describe(storage)).collect() })
}

/// Whether a file stays where it is with acknowledgement.
fn is_left(core: &Core, told: &Told, file: &Quarantined) -> bool {
    let folder = core.storage.describe(Path::new(""));
    file.path.strip_prefix(&folder).is_ok_and(|path| told.left_acknowledged.contains(path))
}

/// Acknowledges what is known to be wrong and cannot be put right: reports are clean of it from now on. Files stay where
/// they are. Returns how many things it was.
///
/// # Errors
/// IO errors.
pub(crate) fn acknowledge(core: &Core) -> Result<usize> {
    let _opening = wait_for_open_lock(&*core.storage)?;
    let foreign = core.known.lock().foreign().to_vec();
    let told = told(&*core.storage)?;
    let new: Vec<Quarantined> = foreign.into_iter().filter(|file| !is_left(core, &told, file)).collect();
    quarantine::acknowledge(core, &new)
}

impl Missing {
    /// It as an error, for opening with [`crate::Recovery::Strict`].
    pub(crate) fn error(&self) -> Error {
        Error::MissingSegment { path: self.path.clone(), what: self.to_string() }
    }
}
