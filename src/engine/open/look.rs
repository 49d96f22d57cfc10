//! Examines and classifies what is on disk. Changes nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::files::history::signs_of_other_copies;
use crate::engine::files::identity::{self, Recorded};
use crate::engine::files::listing::{Listing, list};
use crate::engine::files::quarantine::{MissingIds, told};
use crate::engine::findings::findings;
use crate::engine::open::identity::find_identity;
use crate::engine::open::index_runs::Runs;
use crate::engine::open::inventory::{Inventory, load};
use crate::engine::open::missing::{Numbers, missing};
use crate::engine::open::recover::{Judged, judge};
use crate::engine::options::{Options, Recovery};
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;
use crate::segment::writer::StoreIdentity;

/// The examined and classified contents of the store's folder.
pub(crate) struct Found {
    pub state: State,
    pub recorded: Recorded,
    pub listing: Listing,
    pub inventory: Inventory,
    pub runs: Runs,
    pub missing: Vec<MissingIds>,
    pub numbers: Numbers,
    /// Files that show that another copy of the store, or another store, was copied over this one, and why.
    pub other_copies: Vec<(PathBuf, String)>,
}

/// The maximum number of looks at a store that keeps changing.
const LOOKS: usize = 20;

/// Examines everything and changes nothing. `invent` makes the identity of a store that does not exist yet. Looks again
/// if another process compacts meanwhile: a reader locks nothing, and a listing may show neither a new segment nor those
/// that it replaced.
pub(crate) fn look(
    storage: Arc<dyn Storage>,
    options: Options,
    read_only: bool,
    invent: impl Fn(&Options) -> Option<StoreIdentity>,
) -> Result<Found> {
    for _ in 1..LOOKS {
        let (found, is_outdated) = look_once(Arc::clone(&storage), options.clone(), read_only, &invent)?;
        if !is_outdated && (found.missing.is_empty() || list(&*storage)? == found.listing) {
            return Ok(found);
        }
    }
    look_once(storage, options, read_only, &invent).map(|(found, _)| found)
}

/// Returns what there is, and whether a segment was removed after it was listed.
fn look_once(
    storage: Arc<dyn Storage>,
    options: Options,
    read_only: bool,
    invent: &impl Fn(&Options) -> Option<StoreIdentity>,
) -> Result<(Found, bool)> {
    // Read runs before segments: the segments that a run covers were sealed before the run was made.
    let runs = Runs::read(&*storage)?;
    let listing = list(&*storage).map_err(|error| match identity::read(&*storage) {
        Ok(Recorded::Absent) if error.is_not_found() => no_store(&*storage),
        _ => error,
    })?;
    let loaded = load(&*storage, &listing.sealed)?;
    let is_outdated = loaded.is_outdated;
    let recorded = match identity::read(&*storage) {
        // A reader uses the identity in the segments. A writer would replace the file.
        Err(error) if read_only && error.is_denied() => Recorded::Damaged(error),
        recorded => recorded?,
    };
    let identity = find_identity(&*storage, &recorded, &loaded, &listing.active);
    let identity = identity.or_else(|| invent(&options)).ok_or_else(|| no_store(&*storage))?;
    let state = State::new(storage, options, identity, read_only)?;
    let inventory = Inventory::take(&state, &listing, loaded)?;
    let runs = runs.of_store(&state);
    let (missing, numbers) = missing(&state, &inventory, &listing, &runs.covered())?;
    let other_copies = signs_of_other_copies(state.storage(), state.identity().store())?;
    let found = Found { state, recorded, listing, inventory, runs, missing, numbers, other_copies };
    Ok((found, is_outdated))
}

impl Found {
    /// Fails on damage that [`Recovery::Strict`] refuses: damage that shows without walking active segments, and files
    /// that are left out or missing.
    pub(crate) fn refuse(&self) -> Result<()> {
        if self.state.options().recovery != Recovery::Strict {
            return Ok(());
        }
        let found = &self.inventory;
        let fronts = found.segments.iter().filter_map(|segment| segment.front_damage());
        let files = found.damaged.iter().chain(&found.damaged_replaced).chain(&found.foreign).chain(&found.unreadable);
        let files = files.map(|(_, error)| error).chain(self.runs.unreadable());
        if let Recorded::Damaged(error) = &self.recorded {
            return Err(error.clone());
        }
        if let Some(error) = files.chain(fronts).next() {
            return Err(error.clone());
        }
        if let Some((id, why)) = found.strays.first() {
            return Err(Error::corrupt(self.state.storage().describe(&names::temporary_segment(*id)), 0, why.clone()));
        }
        if let Some((_, name)) = self.listing.not_files.first() {
            let path = self.state.storage().describe(&Path::new(names::SEGMENTS).join(name));
            return Err(Error::corrupt(path, 0, "it is not a file that a writer of this store made"));
        }
        let acknowledged = told(self.state.storage())?.left_acknowledged;
        if let Some((path, why)) = self.other_copies.iter().find(|(path, _)| !acknowledged.contains(path)) {
            return Err(Error::corrupt(self.state.storage().describe(path), 0, why.clone()));
        }
        let known = findings(&self.state)?.missing;
        let new = self.missing.iter().map(|missing| missing.describe(self.state.storage()));
        known.into_iter().chain(new).next().map_or(Ok(()), |missing| Err(missing.error()))
    }

    /// The active segments that the former writer of `lane` left, each with its state.
    pub(crate) fn judge(&self, lane: u16) -> Result<Vec<(SegmentId, Judged)>> {
        let foreign: HashSet<SegmentId> = self.inventory.foreign.iter().map(|(id, _)| *id).collect();
        let own = self.listing.active.iter().filter(|id| !foreign.contains(id)).chain(&self.inventory.hidden);
        let own = own.filter(|id| id.lane == lane);
        let judge = |id| judge(&self.state, id).map(|judged| (id, judged.behind(&self.state, &self.inventory, id)));
        let judged = own.map(|id| judge(*id)).collect::<Result<Vec<_>>>()?;
        if self.state.options().recovery == Recovery::Strict
            && let Some(error) = judged.iter().find_map(|(_, judged)| judged.damage())
        {
            return Err(error.clone());
        }
        Ok(judged)
    }

    /// Publishes the segments, and notes the files that are left in place.
    pub(crate) fn publish(&self) {
        self.state.registry().lock().replace(self.inventory.replaced_ids.iter().copied());
        let state = &self.state;
        let mut known = state.registry().lock();
        self.inventory.foreign.iter().for_each(|(id, error)| known.leave_foreign(*id, error));
        self.inventory.hidden.iter().for_each(|id| known.follow_hidden(*id));
        for (id, why) in &self.inventory.strays {
            known.leave_not_file(state.storage().describe(&names::temporary_segment(*id)), why.clone());
        }
        for (path, why) in &self.other_copies {
            known.leave_not_file(state.storage().describe(path), why.clone());
        }
        for segment in &self.inventory.segments {
            state.clock().saw(segment.seal.last_timestamp);
        }
        drop(known);
        // A writer is about to rewrite segments whose front is damaged.
        let served = |segment: &&Arc<Segment>| state.access().is_read_only() || segment.front_damage().is_none();
        state.versions().add_segments(self.inventory.segments.iter().filter(served));
    }
}

/// Fails if no store was ever written in the folder.
///
/// # Errors
/// [`Error::Io`] of kind `NotFound`.
pub(crate) fn check_exists(storage: &dyn Storage) -> Result<()> {
    if !matches!(identity::read(storage)?, Recorded::Absent) {
        return Ok(());
    }
    match list(storage) {
        Ok(listing) if !(listing.sealed.is_empty() && listing.active.is_empty()) => Ok(()),
        Err(error) if !error.is_not_found() => Err(error),
        _ => Err(no_store(storage)),
    }
}

fn no_store(storage: &dyn Storage) -> Error {
    let folder = storage.describe(Path::new(""));
    let what = match (folder.file_name(), folder.parent()) {
        (Some(name), Some(parent)) => format!("there is no store {} in {}", name.display(), parent.display()),
        _ => "there is no store".to_owned(),
    };
    Error::io("open", folder, std::io::Error::new(std::io::ErrorKind::NotFound, what))
}
