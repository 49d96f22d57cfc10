//! Names in the store's folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::engine::files::replace::list_if_exists;
use crate::error::Result;
use crate::io::{FileKind, Storage};
use crate::names::{self, SegmentId, SegmentName};

/// Names in the segments folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub sealed: Vec<SegmentId>,
    /// Active segments without a sealed file of the same number.
    pub active: Vec<SegmentId>,
    pub temporary: Vec<SegmentId>,
    /// Active files with a sealed file of the same number. Sealing renames, so these are copies.
    pub copies: Vec<SegmentId>,
    /// Entries with a segment's name that no writer makes: folders, pipes, and links, which must not be written
    /// through.
    pub not_files: Vec<(SegmentId, String)>,
}

impl Listing {
    /// The ids of all files except copies.
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

/// Entries that have the name of a file of the store but that no writer of it made, and what each is: segments (as in
/// `listing`), runs, locks, sync logs and `store.json`.
///
/// # Errors
/// IO errors.
pub(crate) fn not_files(storage: &dyn Storage, listing: &Listing) -> Result<Vec<(PathBuf, String)>> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for (_, name) in &listing.not_files {
        found.push((Path::new(names::SEGMENTS).join(name), "it is not a file that a writer of this store made".into()));
    }
    let runs =
        list_if_exists(storage, names::RUNS)?.into_iter().filter(|entry| names::parse_run(&entry.name).is_some());
    let runs = runs.map(|entry| (Path::new(names::RUNS).join(entry.name), entry.kind));
    let lanes = list_if_exists(storage, names::LANES)?.into_iter();
    let lanes = lanes.map(|entry| (Path::new(names::LANES).join(entry.name), entry.kind));
    let identity = storage.kind(Path::new(names::IDENTITY))?.map(|kind| (names::IDENTITY.into(), kind));
    for (path, kind) in runs.chain(lanes).chain(identity).filter(|(_, kind)| !kind.is_file()) {
        found.push((path, format!("it is {}, and is not used as the file of its name", kind.name())));
    }
    Ok(found)
}
