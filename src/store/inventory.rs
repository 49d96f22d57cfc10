//! What lies in the segments folder: of this store or of another, whole or damaged, counted or replaced. Looks, and
//! changes nothing.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::core::Core;
use super::gather::in_shares;
use crate::error::{Error, Result};
use crate::io::{FileKind, Storage};
use crate::names::{self, SegmentId, SegmentName};
use crate::segment::reader::Segment;
use crate::segment::scan::read_any_front;

/// Names in the segments folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub sealed: Vec<SegmentId>,
    /// Without those that a sealed file of the same number makes copies: sealing renames.
    pub active: Vec<SegmentId>,
    pub temporary: Vec<SegmentId>,
    /// Active files beside a sealed one of their number.
    pub copies: Vec<SegmentId>,
    /// What has a segment's name and is no file of a writer's: folders, pipes, links that are not to be written through.
    pub not_files: Vec<(SegmentId, String)>,
}

impl Listing {
    /// All numbers that files have.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SegmentId> {
        let not_files = self.not_files.iter().map(|(id, _)| *id);
        self.sealed.iter().chain(&self.active).chain(&self.temporary).copied().chain(not_files)
    }
}

/// Lists the segments folder.
///
/// # Errors
/// IO errors.
pub(crate) fn list(storage: &dyn Storage) -> Result<Listing> {
    let mut listing = Listing::default();
    for entry in storage.list(Path::new(names::SEGMENTS))? {
        match names::parse_segment(&entry.name) {
            SegmentName::Active(id) | SegmentName::Temporary(id) if entry.kind != FileKind::File => {
                listing.not_files.push((id, entry.name));
            }
            SegmentName::Sealed(id) if !entry.kind.is_file() => listing.not_files.push((id, entry.name)),
            SegmentName::Sealed(id) => listing.sealed.push(id),
            SegmentName::Active(id) => listing.active.push(id),
            SegmentName::Temporary(id) => listing.temporary.push(id),
            SegmentName::Foreign => {}
        }
    }
    let sealed: HashSet<SegmentId> = listing.sealed.iter().copied().collect();
    (listing.copies, listing.active) = listing.active.iter().partition(|id| sealed.contains(id));
    Ok(listing)
}

/// Sealed segments of any store, and the files that are damaged, or that this user may not read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub segments: Vec<Arc<Segment>>,
    pub damaged: Vec<(SegmentId, Error)>,
    pub unreadable: Vec<(SegmentId, Error)>,
}

/// Opens segments, many of them on a few threads.
///
/// # Errors
/// [`Error::NewerFormat`], IO errors.
pub(crate) fn load(storage: &dyn Storage, sealed: &[SegmentId]) -> Result<Loaded> {
    /// Segments that take longer to open than a thread to start.
    const WORTH_A_THREAD: usize = 32;
    let opened = in_shares(sealed, WORTH_A_THREAD, |id| (*id, Segment::open(storage, &names::sealed(*id), *id)));
    let mut loaded = Loaded::default();
    for (id, segment) in opened {
        match segment {
            Ok(segment) => loaded.segments.push(Arc::new(segment)),
            Err(error @ Error::Corrupt { .. }) => loaded.damaged.push((id, error)),
            Err(error) if error.is_denied() => loaded.unreadable.push((id, error)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// Segment files, by what is to be done with them.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Sealed segments that count.
    pub segments: Vec<Arc<Segment>>,
    /// Sealed segments that are whole, and that others of this store replace.
    pub replaced: Vec<Arc<Segment>>,
    /// What the lists of replaced segments name.
    pub replaced_ids: HashSet<SegmentId>,
    /// Sealed files that are damaged; those among them that are replaced.
    pub damaged: Vec<(SegmentId, Error)>,
    pub damaged_replaced: Vec<(SegmentId, Error)>,
    /// Sealed files that this user may not read. They are whole for others, so they stay where they are.
    pub unreadable: Vec<(SegmentId, Error)>,
    /// Files of another store, or of another kind of keys.
    pub foreign: Vec<(SegmentId, Error)>,
    /// Active files of this store.
    pub active: BTreeSet<SegmentId>,
}

impl Inventory {
    /// Sorts out what was found. Only a segment of this store replaces others.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn take(core: &Core, listing: &Listing, loaded: Loaded) -> Result<Self> {
        let mut found = Self { unreadable: loaded.unreadable, ..Self::default() };
        let mut own = Vec::with_capacity(loaded.segments.len());
        for segment in loaded.segments {
            match core.check_belongs(&segment.front, segment.described()) {
                Ok(()) => own.push(segment),
                Err(error) => found.foreign.push((segment.id, error)),
            }
        }
        found.replaced_ids = own.iter().flat_map(|segment| segment.replaces.iter().copied()).collect();
        let replaced = |id: &SegmentId| found.replaced_ids.contains(id);
        (found.replaced, found.segments) = own.into_iter().partition(|segment| replaced(&segment.id));
        (found.damaged_replaced, found.damaged) = loaded.damaged.into_iter().partition(|(id, _)| replaced(id));
        for &id in &listing.active {
            match active_belongs(core, id) {
                Ok(true) => found.active.extend([id]),
                Ok(false) => {}
                Err(error) if error.is_corrupt() => found.foreign.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Whether there are segments, and all of them are another store's: then it is `store.json` that was exchanged.
    pub(crate) fn is_all_foreign(&self) -> bool {
        let own =
            self.segments.len() + self.replaced.len() + self.damaged.len() + self.unreadable.len() + self.active.len();
        own == 0 && !self.foreign.is_empty()
    }

    /// Segments of this store that are there.
    pub(crate) fn own(&self) -> impl Iterator<Item = SegmentId> {
        let sealed = self.segments.iter().chain(&self.replaced).map(|segment| segment.id);
        sealed.chain(self.active.iter().copied())
    }
}

/// Whether the front of an active file says that it is of this store; `false` if it cannot, or may not, be read.
///
/// # Errors
/// [`Error::Corrupt`] if it says that it is of another.
fn active_belongs(core: &Core, id: SegmentId) -> Result<bool> {
    let path = names::active(id);
    let file = match core.storage.open(&path, 0) {
        Ok(file) => file,
        // Sealed or removed since it was listed.
        Err(error) if error.is_not_found() || error.is_denied() => return Ok(false),
        Err(error) => return Err(error),
    };
    let described = core.storage.describe(&path);
    match read_any_front(&described, &*file) {
        Ok(front) => core.check_is(&front, id, &described).map(|()| true),
        Err(Error::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
