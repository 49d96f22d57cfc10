//! The known contents of the segments folder beyond the published version: files that are followed, left in place, or
//! missing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;

use crate::engine::files::quarantine::MissingIds;
use crate::engine::lock_order::{Rank, RankedGuard, RankedMutex};
use crate::engine::report::Quarantined;
use crate::error::{Error, Result};
use crate::io::ReadFile;
use crate::names::SegmentId;
use crate::segment::layout::Frame;
use crate::segment::scan::{Front, Prefix};

/// An active segment of another writer.
#[derive(Debug)]
pub(crate) struct Followed {
    pub front: Front,
    pub file: Arc<dyn ReadFile>,
    pub described: Arc<Path>,
    pub end_offset: u64,
    pub rows: u64,
    /// Commit timestamp of the last batch.
    pub timestamp: u64,
    /// Length of the file, and of its synced part if known, at the last search after `end_offset` that found nothing.
    pub searched: Option<(u64, Option<u64>)>,
    /// Whether the file was ever searched there.
    pub looked: bool,
    /// The offset at which damaged batches were last left out.
    pub damaged_at: Option<u64>,
}

/// The registry of segment files, and of refreshes.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Held during a refresh, and while a file gets its number.
    known: RankedMutex<Known>,
    refreshed: RankedMutex<Instant>,
    /// Why the last refresh was incomplete.
    failed: ArcSwapOption<Error>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            known: RankedMutex::new(Rank::Registry, Known::default()),
            refreshed: RankedMutex::new(Rank::Refreshed, Instant::now()),
            failed: ArcSwapOption::empty(),
        }
    }
}

impl Registry {
    /// Locks the registry. A refresh and opening hold it across IO.
    pub(crate) fn lock(&self) -> RankedGuard<'_, Known> {
        self.known.lock()
    }

    /// As `lock`, if no other thread holds it.
    pub(crate) fn try_lock(&self) -> Option<RankedGuard<'_, Known>> {
        self.known.try_lock()
    }

    /// Whether the last refresh is at least `interval` ago. If so, the caller must refresh; other callers are told that
    /// none is due.
    pub(crate) fn refresh_is_due(&self, interval: Duration) -> bool {
        self.refreshed.try_lock().is_some_and(|mut last| {
            let due = last.elapsed() >= interval;
            if due {
                *last = Instant::now();
            }
            due
        })
    }

    /// Notes that a refresh begins.
    pub(crate) fn refresh_begins(&self) {
        *self.refreshed.lock() = Instant::now();
    }

    /// Notes how a refresh ended.
    pub(crate) fn refresh_ended<T>(&self, result: &Result<T>) {
        self.failed.store(result.as_ref().err().cloned().map(Arc::new));
    }

    /// Fails if the last refresh failed: a missing key may be in a file that was not read.
    ///
    /// # Errors
    /// The error of that refresh.
    pub(crate) fn check_refreshed(&self) -> Result<()> {
        match &*self.failed.load() {
            Some(error) => Err(Error::clone(error)),
            None => Ok(()),
        }
    }
}

/// The known contents of the segments folder beyond the published version.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Segments that this handle writes or has written, and publishes itself.
    own: HashSet<SegmentId>,
    followed: HashMap<SegmentId, Followed>,
    /// Active segments without a complete front, and their length when that was found.
    begun: HashMap<SegmentId, u64>,
    /// Files that are damaged or another store's, so that a miss does not try them again.
    bad: HashSet<SegmentId>,
    /// Segments that others replace, whether or not their files are gone.
    replaced: HashSet<SegmentId>,
    /// Sealed segments that this handle has synced itself, since their writers may not have.
    durable: HashSet<SegmentId>,
    /// Unfinished compacted segments of this handle that it could not remove.
    begun_and_left: Vec<SegmentId>,
    /// Segments that this handle replaced but has not unlinked yet.
    replaced_and_there: BTreeSet<SegmentId>,
    /// Active segments whose numbers files have that are damaged, or another store's.
    hidden: HashSet<SegmentId>,
    /// Damaged files that were left in place.
    damage: Vec<Quarantined>,
    /// Files of another store that were left in place.
    foreign: Vec<Quarantined>,
    /// Segments that opening found missing.
    missing: Vec<MissingIds>,
    /// The change time of the folder at its last listing; `None` if it is not certain.
    listed: Option<SystemTime>,
    /// The change time of the folder of locks, when no other lane had a lock in it; `None` if unknown.
    alone: Option<SystemTime>,
}

/// The report of damage that stays in place.
pub(crate) fn left_in_place(error: &Error, rows_saved: u64, rows_lost: Option<u64>) -> Quarantined {
    let path = error.path().unwrap_or(Path::new("")).to_path_buf();
    Quarantined { path, moved_to: None, why: error.to_string(), rows_saved, rows_lost }
}

impl Followed {
    /// Whether anything but zeros follows the last batch that was read.
    pub(crate) fn has_begun_more(&self) -> bool {
        self.file.copy(self.end_offset, 8).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0))
    }

    /// Advances past a batch.
    pub(crate) fn passed(&mut self, frame: Frame) {
        self.end_offset = frame.end_offset();
        self.rows = frame.first_row + u64::from(frame.rows);
        self.timestamp = frame.timestamp;
        self.searched = None;
    }

    /// Notes that the bytes after the last batch were searched.
    pub(crate) fn looked(&mut self, prefix: &Prefix, synced: Option<u64>) {
        self.searched = Some((prefix.len_bytes, synced));
        self.looked = true;
    }
}

impl Known {
    /// Whether this handle writes segment `id`, or has written it.
    pub(crate) fn is_own(&self, id: SegmentId) -> bool {
        self.own.contains(&id)
    }

    /// Whether the file of segment `id` is damaged or another store's.
    pub(crate) fn is_bad(&self, id: SegmentId) -> bool {
        self.bad.contains(&id)
    }

    /// Whether another segment replaces segment `id`.
    pub(crate) fn is_replaced(&self, id: SegmentId) -> bool {
        self.replaced.contains(&id)
    }

    /// Notes that other segments replace these.
    pub(crate) fn replace(&mut self, ids: impl Iterator<Item = SegmentId>) {
        self.replaced.extend(ids);
    }

    /// Notes an unfinished compacted segment that could not be removed.
    pub(crate) fn leave_begun(&mut self, id: SegmentId) {
        self.begun_and_left.push(id);
    }

    /// Unfinished compacted segments that could not be removed.
    pub(crate) fn begun_and_left(&self) -> &[SegmentId] {
        &self.begun_and_left
    }

    /// Notes that an unfinished compacted segment was removed.
    pub(crate) fn begun_is_gone(&mut self, id: SegmentId) {
        self.begun_and_left.retain(|other| *other != id);
    }

    /// Notes segments that this handle has replaced and will unlink.
    pub(crate) fn replaced_are_there(&mut self, ids: impl Iterator<Item = SegmentId>) {
        self.replaced_and_there.extend(ids);
    }

    /// Replaced segments that are not unlinked yet.
    pub(crate) fn replaced_and_there(&self) -> impl Iterator<Item = SegmentId> {
        self.replaced_and_there.iter().copied()
    }

    /// Notes that a replaced segment was unlinked.
    pub(crate) fn replaced_is_gone(&mut self, id: SegmentId) {
        self.replaced_and_there.remove(&id);
    }

    /// Whether this handle has synced the sealed segment `id`.
    pub(crate) fn is_durable(&self, id: SegmentId) -> bool {
        self.durable.contains(&id)
    }

    /// Notes that this handle has synced sealed segments.
    pub(crate) fn note_durable(&mut self, ids: impl IntoIterator<Item = SegmentId>) {
        self.durable.extend(ids);
    }

    /// Whether the active segment `id` of another writer is followed.
    pub(crate) fn is_followed(&self, id: SegmentId) -> bool {
        self.followed.contains_key(&id)
    }

    /// Whether the sealed name of the active segment `id` is taken by a bad file.
    pub(crate) fn is_hidden(&self, id: SegmentId) -> bool {
        self.hidden.contains(&id)
    }

    /// Takes out an active segment of another writer, to examine it; the caller must [follow](Known::follow) it again.
    pub(crate) fn take_followed(&mut self, id: SegmentId) -> Option<Followed> {
        self.followed.remove(&id)
    }

    /// Follows an active segment of another writer.
    pub(crate) fn follow(&mut self, id: SegmentId, followed: Followed) {
        self.followed.insert(id, followed);
    }

    /// The active segments of other writers.
    pub(crate) fn followed(&self) -> impl Iterator<Item = &Followed> {
        self.followed.values()
    }

    /// Whether the active segment `id` was found empty when it was `len_bytes` long.
    pub(crate) fn has_only_begun(&self, id: SegmentId, len_bytes: u64) -> bool {
        self.begun.get(&id) == Some(&len_bytes)
    }

    /// Notes that the active segment `id`, which is `len_bytes` long, is empty.
    pub(crate) fn note_begun(&mut self, id: SegmentId, len_bytes: u64) {
        self.begun.insert(id, len_bytes);
    }

    /// Notes the change time of the folder at this listing; `None` if it is not certain.
    pub(crate) fn note_listed(&mut self, changed: Option<SystemTime>) {
        self.listed = changed;
    }

    /// Whether the folder is unchanged since the last listing, by its change time.
    pub(crate) fn is_as_listed(&self, changed: impl FnOnce() -> Option<SystemTime>) -> bool {
        self.listed.is_some() && changed() == self.listed
    }

    /// The change time of the folder of locks when no other lane had a lock in it.
    pub(crate) fn alone_since(&self) -> Option<SystemTime> {
        self.alone
    }

    /// Sets that time; `None` if another lane has a lock, or it is unknown.
    pub(crate) fn note_alone(&mut self, changed: Option<SystemTime>) {
        self.alone = changed;
    }

    /// Notes damage as it is reported.
    pub(crate) fn leave_reported(&mut self, damage: Quarantined) {
        self.damage.push(damage);
    }

    /// Notes a segment of this handle's own.
    pub(crate) fn own(&mut self, id: SegmentId) {
        self.own.insert(id);
    }

    /// Notes that this handle has given up a segment that it wrote: it is followed like those of other writers.
    pub(crate) fn disown(&mut self, id: SegmentId) {
        self.own.remove(&id);
    }

    /// Notes a file that is damaged, or another store's.
    pub(crate) fn bad(&mut self, id: SegmentId) {
        self.bad.insert(id);
    }

    /// Notes an active segment whose sealed name is taken by a bad file.
    pub(crate) fn follow_hidden(&mut self, id: SegmentId) {
        self.hidden.insert(id);
    }

    /// How many files are damaged, or another store's.
    pub(crate) fn bad_files(&self) -> usize {
        self.bad.len() + self.followed.values().filter(|followed| followed.damaged_at.is_some()).count()
    }

    /// Notes damage that stays in place, with the number of rows still served and of rows lost.
    pub(crate) fn leave(&mut self, error: &Error, rows_saved: u64, rows_lost: Option<u64>) {
        self.damage.push(left_in_place(error, rows_saved, rows_lost));
    }

    /// Notes that `id` is a segment of another store. Either this file or `store.json` may be in the wrong place, so it
    /// is unknown whether rows are lost.
    pub(crate) fn leave_foreign(&mut self, id: SegmentId, error: &Error) {
        self.bad.insert(id);
        self.foreign.push(left_in_place(error, 0, None));
    }

    /// Notes an entry that has the name of a file of the store and is none.
    pub(crate) fn leave_not_file(&mut self, path: PathBuf, why: String) {
        self.foreign.push(Quarantined { path, moved_to: None, why, rows_saved: 0, rows_lost: None });
    }

    /// Notes segments that are missing.
    pub(crate) fn miss(&mut self, missing: Vec<MissingIds>) {
        self.missing.extend(missing);
    }

    /// All files left in place: damaged files, and those of another store.
    pub(crate) fn in_place(&self) -> Vec<Quarantined> {
        self.foreign.iter().chain(&self.damage).cloned().collect()
    }

    /// The files of another store.
    pub(crate) fn foreign(&self) -> &[Quarantined] {
        &self.foreign
    }

    /// Segments that were missing when the store was opened.
    pub(crate) fn missing(&self) -> &[MissingIds] {
        &self.missing
    }
}
