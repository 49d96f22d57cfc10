//! The known damage of a store: quarantined files, damaged files that this handle left in place, and missing segments.
//! The report of opening, `verify` and `stats` all read it here, so that they agree.

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

/// The known damage that is not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub files: Vec<Quarantined>,
    pub missing: Vec<Missing>,
    /// Files in the quarantine folder.
    pub quarantined: usize,
}

/// The damage known now. O(files in quarantine).
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

/// Whether the damage of a file left in place is acknowledged.
fn is_left(state: &State, told: &Told, file: &Quarantined) -> bool {
    let folder = state.storage().describe(Path::new(""));
    file.path.strip_prefix(&folder).is_ok_and(|path| told.left_acknowledged.contains(path))
}

/// Acknowledges the known damage that cannot be repaired; later reports omit it. Files stay where they are. Returns how
/// many things were acknowledged.
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

/// The segments of `missing` that are still missing.
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

/// Whether the loss of `missing` is acknowledged.
fn is_acknowledged(told: &Told, missing: &MissingIds) -> bool {
    let last = SegmentId { sequence: missing.last, ..missing.first };
    told.missing_acknowledged.iter().any(|known| known.contains(missing.first) && known.contains(last))
}
