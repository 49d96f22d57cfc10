//! Copies single files of a store.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::files::replace::open_if_exists;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::Result;
use crate::io::{Durability, ReadFile, Storage};
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;

/// Bytes that are read at a time.
const PIECE_BYTES: u64 = 4 << 20;

/// From where, to where, and whether by hard links where possible.
#[derive(Clone, Copy)]
pub(super) struct Copy<'a> {
    pub source: &'a Arc<dyn Storage>,
    pub target: &'a Arc<dyn Storage>,
    pub link: bool,
}

impl Copy<'_> {
    /// Links or clones a published file. `None` if neither is possible; else whether it was linked.
    ///
    /// # Errors
    /// IO errors, of kind `NotFound` if it is gone.
    fn share(self, path: &Path) -> Result<Option<bool>> {
        let Some(from) = self.source.local_path(path) else { return Ok(None) };
        if self.link && self.target.link(&from, path)? {
            return Ok(Some(true));
        }
        Ok(self.target.clone_file(&from, path)?.then_some(false))
    }
}

/// Copies a sealed segment, durably; returns whether it was linked. A segment that was unlinked meanwhile is copied
/// from its map.
///
/// # Errors
/// IO errors, of kind `NotFound` if it is gone and not mapped.
pub(super) fn copy_sealed(copy: Copy<'_>, segment: &Segment) -> Result<bool> {
    let path = names::sealed(segment.id);
    match copy.share(&path) {
        Ok(Some(linked)) => return Ok(linked),
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let write = || write(&**copy.target, &path, segment.len_bytes, |offset, len| segment.file_bytes(offset, len));
    write().map(|()| false).inspect_err(|_| drop(copy.target.remove(&path)))
}

/// Copies the first `len_bytes` of an active segment.
///
/// # Errors
/// IO errors.
pub(super) fn copy_active(target: &dyn Storage, file: &dyn ReadFile, id: SegmentId, len_bytes: u64) -> Result<()> {
    write(target, &names::active(id), len_bytes, |offset, len| file.bytes(offset, len))
}

/// Copies an index run with the row maps that it needs. A copy that is not complete is found when the copy is opened.
///
/// # Errors
/// IO errors.
pub(super) fn copy_run(copy: Copy<'_>, run: &LoadedRun) -> Result<()> {
    let Some(name) = run.name() else { return Ok(()) };
    let maps = run.segments().iter().map(|segment| names::row_maps(segment.id)).filter(|_| run.has_moved_rows());
    for path in std::iter::once(names::run(name)).chain(maps) {
        if copy.target.kind(&path)?.is_some() {
            continue;
        }
        match copy.share(&path) {
            Ok(None) => copy_bytes(copy, &path)?,
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Copies a file that may change later, so that it cannot be linked. A file that does not exist is skipped.
///
/// # Errors
/// IO errors.
pub(super) fn copy_whole(copy: Copy<'_>, path: &Path) -> Result<()> {
    match (Copy { link: false, ..copy }).share(path) {
        Ok(None) => copy_bytes(copy, path),
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn copy_bytes(copy: Copy<'_>, path: &Path) -> Result<()> {
    let Some(file) = open_if_exists(&**copy.source, path)? else { return Ok(()) };
    write(&**copy.target, path, file.len_bytes()?, |offset, len| file.copy(offset, len))
}

fn write(target: &dyn Storage, path: &Path, len_bytes: u64, read: impl Fn(u64, usize) -> Result<Bytes>) -> Result<()> {
    let mut file = target.create(path)?;
    let mut offset = 0;
    while offset < len_bytes {
        let piece = read(offset, (len_bytes - offset).min(PIECE_BYTES) as usize)?;
        file.append(&[IoSlice::new(&piece)])?;
        offset += piece.len() as u64;
    }
    file.sync(Durability::SyncData)
}
