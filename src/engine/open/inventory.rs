//! Classifies the files in the segments folder: of this store or another, whole or damaged, current or replaced.
//! Changes nothing.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::checksum::segment_seed;
use crate::engine::files::listing::Listing;
use crate::engine::files::sync_log;
use crate::engine::state::State;
use crate::engine::threads::in_shares;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::names::{self, SegmentId};
use crate::segment::begun::begun_bytes;
use crate::segment::reader::Segment;
use crate::segment::scan::{read_any_front, walk};

/// Sealed segments of any store, and files that are damaged or that this user may not read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub segments: Vec<Arc<Segment>>,
    pub damaged: Vec<(SegmentId, Error)>,
    pub unreadable: Vec<(SegmentId, Error)>,
    /// Whether a file was removed after it was listed.
    pub is_outdated: bool,
}

/// Opens segments; uses a few threads for many of them.
///
/// # Errors
/// [`Error::NewerFormat`], IO errors.
pub(crate) fn load(storage: &dyn Storage, sealed: &[SegmentId]) -> Result<Loaded> {
    /// Segments that take longer to open than a thread takes to start.
    const WORTH_A_THREAD: usize = 32;
    let opened = in_shares(sealed, WORTH_A_THREAD, |id| (*id, Segment::open(storage, &names::sealed(*id), *id)));
    let mut loaded = Loaded::default();
    for (id, segment) in opened {
        match segment {
            Ok(segment) => loaded.segments.push(Arc::new(segment)),
            Err(error @ Error::Corrupt { .. }) => loaded.damaged.push((id, error)),
            Err(error) if error.is_denied() => loaded.unreadable.push((id, error)),
            Err(error) if error.is_not_found() => loaded.is_outdated = true,
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// Segment files, by how opening handles them.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Sealed segments in use.
    pub segments: Vec<Arc<Segment>>,
    /// Whole sealed segments that others of this store replace.
    pub replaced: Vec<Arc<Segment>>,
    /// The ids in the lists of replaced segments.
    pub replaced_ids: HashSet<SegmentId>,
    /// Damaged sealed files, not replaced and replaced.
    pub damaged: Vec<(SegmentId, Error)>,
    pub damaged_replaced: Vec<(SegmentId, Error)>,
    /// Sealed files that this user may not read. Other users can, so they stay where they are.
    pub unreadable: Vec<(SegmentId, Error)>,
    /// Files of another store, or of another kind of keys.
    pub foreign: Vec<(SegmentId, Error)>,
    /// Active files of this store.
    pub active: BTreeSet<SegmentId>,
    /// Active files whose sealed name is taken by a damaged file, or by one of another store.
    pub hidden: BTreeSet<SegmentId>,
    /// Files named like unfinished repairs that are none, and what each is.
    pub strays: Vec<(SegmentId, String)>,
}

impl Inventory {
    /// Classifies the files that were found. Only a segment of this store replaces others.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn take(state: &State, listing: &Listing, loaded: Loaded) -> Result<Self> {
        let mut found = Self { unreadable: loaded.unreadable, ..Self::default() };
        let mut own = Vec::with_capacity(loaded.segments.len());
        for segment in loaded.segments {
            match state.identity().check_belongs(&segment.front, segment.described()) {
                Ok(()) => own.push(segment),
                Err(error) => found.foreign.push((segment.id, error)),
            }
        }
        found.replaced_ids = own.iter().flat_map(|segment| segment.replaces.iter().copied()).collect();
        let replaced = |id: &SegmentId| found.replaced_ids.contains(id);
        (found.replaced, found.segments) = own.into_iter().partition(|segment| replaced(&segment.id));
        (found.damaged_replaced, found.damaged) = loaded.damaged.into_iter().partition(|(id, _)| replaced(id));
        for &id in &listing.active {
            match active_belongs(state, id) {
                Ok(true) => found.active.extend([id]),
                Ok(false) => {}
                Err(error) if error.is_corrupt() => found.foreign.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        for &id in &listing.copies {
            found.take_copy(state, id)?;
        }
        for &id in &listing.temporary {
            let stray = stray(state, listing, id)?;
            found.strays.extend(stray.map(|why| (id, why)));
        }
        Ok(found)
    }

    /// Classifies an active file with a sealed one of its number. Copying a folder while its writer seals leaves both;
    /// the sealed file then has all rows of the active one.
    fn take_copy(&mut self, state: &State, id: SegmentId) -> Result<()> {
        match active_belongs(state, id) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.is_corrupt() => {
                self.foreign.push((id, error));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let whole = self.segments.iter().chain(&self.replaced).find(|segment| segment.id == id);
        let Some(segment) = whole else {
            let is_bad = self.damaged.iter().chain(&self.damaged_replaced).chain(&self.foreign).any(|bad| bad.0 == id);
            if is_bad {
                self.active.insert(id);
                self.hidden.insert(id);
            }
            return Ok(());
        };
        let path = names::active(id);
        let file = match state.storage().open(&path, 0) {
            Err(error) if error.is_not_found() || error.is_denied() => return Ok(()),
            file => file?,
        };
        let frames = walk(&*file, segment.front.seed, segment.front.frame.end_offset(), 0)?.frames;
        let sealed = segment.batches()?.frames();
        if !sealed.starts_with(&frames) {
            let error = "it has batches that the sealed segment of its number has not: of two copies of a store that were \
                         both written to, each has rows of its own";
            self.foreign.push((id, Error::corrupt(state.storage().describe(&path), 0, error)));
        }
        Ok(())
    }

    /// Whether there are segments and all of them are another store's: then `store.json` was exchanged.
    pub(crate) fn is_all_foreign(&self) -> bool {
        let own =
            self.segments.len() + self.replaced.len() + self.damaged.len() + self.unreadable.len() + self.active.len();
        own == 0 && !self.foreign.is_empty()
    }

    /// The segments of this store.
    pub(crate) fn own(&self) -> impl Iterator<Item = SegmentId> {
        let sealed = self.segments.iter().chain(&self.replaced).map(|segment| segment.id);
        sealed.chain(self.active.iter().copied())
    }
}

/// Describes the file named like the unfinished repair `id` if it holds more than an interrupted repair can. `None` if
/// it is such a repair: its rows are those of a file that still exists, and no sync record names it.
fn stray(state: &State, listing: &Listing, id: SegmentId) -> Result<Option<String>> {
    let path = names::temporary_segment(id);
    let file = match state.storage().open(&path, 0) {
        // Finished since the listing.
        Err(error) if error.is_not_found() || error.is_denied() => return Ok(None),
        file => file?,
    };
    let seed = segment_seed(state.identity().store().as_bytes(), id);
    let front = read_any_front(&state.storage().describe(&path), &*file);
    let own = front.is_ok_and(|front| state.identity().check_is(&front, id, &path).is_ok());
    if !own && begun_bytes(&*file, seed)?.is_none() {
        return Ok(Some("it is no segment that a repair of this store was writing".into()));
    }
    if sync_log::synced(state.storage(), seed, id)?.is_some_and(|len_bytes| len_bytes > 0) {
        return Ok(Some("it is a segment that was written to, under the name of an unfinished repair".into()));
    }
    let replaces = Segment::open(state.storage(), &path, id).map(|segment| segment.replaces);
    let is_there = |id: &SegmentId| listing.ids().any(|other| other == *id);
    let whole = replaces.is_ok_and(|replaces| !replaces.last().is_some_and(is_there));
    Ok(whole.then(|| "it is a whole segment under the name of an unfinished repair".into()))
}

/// Whether the front of an active file names this store; `false` if the front cannot or may not be read.
///
/// # Errors
/// [`Error::Corrupt`] if it names another store.
fn active_belongs(state: &State, id: SegmentId) -> Result<bool> {
    let path = names::active(id);
    let file = match state.storage().open(&path, 0) {
        Ok(file) => file,
        // Sealed or removed since the listing.
        Err(error) if error.is_not_found() || error.is_denied() => return Ok(false),
        Err(error) => return Err(error),
    };
    let described = state.storage().describe(&path);
    match read_any_front(&described, &*file) {
        Ok(front) => state.identity().check_is(&front, id, &described).map(|()| true),
        Err(Error::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
