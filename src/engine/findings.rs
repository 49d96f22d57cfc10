//! What is wrong with a store as far as it is known: what the quarantine folder tells, what this handle left where it
//! is, and what is missing. The report of opening, `verify` and `stats` all ask here, so that none is cleaner than
//! another.

use std::collections::HashSet;
use std::path::Path;

use crate::engine::files::listing::list;
use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::files::quarantine::{self, MissingIds, Told, told};
use crate::engine::report::{Missing, Quarantined};
use crate::engine::state::State;
use crate::error::Result;
use crate::io::Storage;
use crate::names::SegmentId;

/// What is wrong, less what was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub files: Vec<Quarantined>,
    pub missing: Vec<Missing>,
    /// Files in the quarantine folder.
    pub quarantined: usize,
}

/// What is known to be wrong now. O(files in quarantine).
///
/// # Errors
/// IO errors.
pub(crate) fn findings(state: &State) -> Result<Findings> {
    let storage = state.storage();
    let mut told = told(storage)?;
    let (in_place, mut missing) = {
        let known = state.registry().lock();
        (known.in_place(), known.missing().to_vec())
    };
    missing.retain(|missing| !is_acknowledged(&told, missing) && !told.missing.contains(missing));
    missing.append(&mut told.missing);
    let missing: Vec<MissingIds> = still(storage, missing)?;
    let in_place: Vec<Quarantined> = in_place.into_iter().filter(|file| !is_left(state, &told, file)).collect();
    let (mut files, quarantined) = (told.files, told.file_count);
    files.extend(in_place);
    Ok(Findings { files, quarantined, missing: missing.iter().map(|missing| missing.describe(storage)).collect() })
}

/// Whether a file stays where it is with acknowledgement.
fn is_left(state: &State, told: &Told, file: &Quarantined) -> bool {
    let folder = state.storage().describe(Path::new(""));
    file.path.strip_prefix(&folder).is_ok_and(|path| told.left_acknowledged.contains(path))
}

/// Acknowledges what is known to be wrong and cannot be put right: reports are clean of it from now on. Files stay
/// where they are. Returns how many things it was.
///
/// # Errors
/// IO errors.
pub(crate) fn acknowledge(state: &State) -> Result<usize> {
    let _opening = wait_for_open_lock(state.storage())?;
    let foreign = state.registry().lock().foreign().to_vec();
    let told = told(state.storage())?;
    let new: Vec<Quarantined> = foreign.into_iter().filter(|file| !is_left(state, &told, file)).collect();
    quarantine::acknowledge(state.storage(), state.options().durability, &told, &new)
}

/// Of `missing`, those that are still not there.
fn still(storage: &dyn Storage, missing: Vec<MissingIds>) -> Result<Vec<MissingIds>> {
    if missing.is_empty() {
        return Ok(missing);
    }
    let present: HashSet<SegmentId> = match list(storage) {
        Ok(listing) => listing.ids().collect(),
        Err(error) if error.is_not_found() => HashSet::new(),
        Err(error) => return Err(error),
    };
    let is_back = |missing: &MissingIds| {
        let there = present.iter().filter(|id| missing.contains(**id)).count() as u64;
        there == (missing.last - missing.first.sequence).saturating_add(1)
    };
    Ok(missing.into_iter().filter(|missing| !is_back(missing)).collect())
}

/// Whether somebody acknowledged that `missing` are lost.
fn is_acknowledged(told: &Told, missing: &MissingIds) -> bool {
    let last = SegmentId { sequence: missing.last, ..missing.first };
    told.missing_acknowledged.iter().any(|known| known.contains(missing.first) && known.contains(last))
}
