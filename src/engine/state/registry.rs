//! What is known of the segments folder beside the view: files that are followed, left where they are, or missing.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::engine::files::quarantine::MissingIds;
use crate::engine::report::Quarantined;
use crate::error::Error;
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
    /// Stamp of the last batch.
    pub stamp: u64,
    /// Length of the file, and how much of it was known to be synced, when what lies behind `end_offset` was last
    /// searched, in vain.
    pub searched: Option<(u64, Option<u64>)>,
    /// Whether it was ever searched there.
    pub looked: bool,
    /// Where batches of it were last left out.
    pub damaged_at: Option<u64>,
}

/// What is known of the segments folder beside the view.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Segments that this handle writes or has written; it publishes them itself.
    pub own: HashSet<SegmentId>,
    pub followed: HashMap<SegmentId, Followed>,
    /// Active segments without a whole front, and how long they were when nothing was found in them.
    pub begun: HashMap<SegmentId, u64>,
    /// Files that are damaged, or another store's, so that they are not tried again at every miss.
    pub bad: HashSet<SegmentId>,
    /// Active segments whose numbers files have that are damaged, or another store's.
    pub hidden: HashSet<SegmentId>,
    /// What was left where it is although it is damaged.
    pub damage: Vec<Quarantined>,
    /// Files that were left where they are because they are another store's.
    pub foreign: Vec<Quarantined>,
    /// Segments that opening found missing.
    pub missing: Vec<MissingIds>,
    /// When the folder had changed last, as it was listed last; `None` where that is not known for sure.
    pub listed: Option<SystemTime>,
    /// When the folder of locks had changed last, as no other lane had a lock in it; `None` where that is not known.
    pub alone: Option<SystemTime>,
}

/// Damage that stays where it is.
pub(crate) fn left_in_place(error: &Error, rows_saved: u64, rows_lost: Option<u64>) -> Quarantined {
    let path = error.path().unwrap_or(Path::new("")).to_path_buf();
    Quarantined { path, moved_to: None, why: error.to_string(), rows_saved, rows_lost }
}

impl Followed {
    /// Whether anything but zeros follows the last batch that was taken in.
    pub(crate) fn has_begun_more(&self) -> bool {
        self.file.copy(self.end_offset, 8).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0))
    }

    /// Goes on behind a batch.
    pub(crate) fn passed(&mut self, frame: Frame) {
        self.end_offset = frame.end_offset();
        self.rows = frame.first_row + u64::from(frame.rows);
        self.stamp = frame.stamp;
        self.searched = None;
    }

    /// Notes that what lies behind the last batch was searched.
    pub(crate) fn looked(&mut self, prefix: &Prefix, synced: Option<u64>) {
        self.searched = Some((prefix.len_bytes, synced));
        self.looked = true;
    }
}

impl Known {
    /// Notes a segment of this handle's own.
    pub(crate) fn own(&mut self, id: SegmentId) {
        self.own.insert(id);
    }

    /// Notes a file that does not check out.
    pub(crate) fn bad(&mut self, id: SegmentId) {
        self.bad.insert(id);
    }

    /// Notes an active segment that a bad file with the sealed name of its number stands before.
    pub(crate) fn follow_hidden(&mut self, id: SegmentId) {
        self.hidden.insert(id);
    }

    /// How many files do not check out.
    pub(crate) fn bad_files(&self) -> usize {
        self.bad.len() + self.followed.values().filter(|followed| followed.damaged_at.is_some()).count()
    }

    /// Notes damage that stays where it is, with the rows that are served all the same, and those that are lost.
    pub(crate) fn leave(&mut self, error: &Error, rows_saved: u64, rows_lost: Option<u64>) {
        self.damage.push(left_in_place(error, rows_saved, rows_lost));
    }

    /// Notes that `id` is a segment of another store. Nothing tells whether it is the file that is in the wrong place, or
    /// `store.json`, so nobody knows whether rows are lost.
    pub(crate) fn leave_foreign(&mut self, id: SegmentId, error: &Error) {
        self.bad.insert(id);
        self.foreign.push(left_in_place(error, 0, None));
    }

    /// Notes what has the name of a file of the store and is none.
    pub(crate) fn leave_not_file(&mut self, path: PathBuf, why: String) {
        self.foreign.push(Quarantined { path, moved_to: None, why, rows_saved: 0, rows_lost: None });
    }

    /// Notes segments that are missing.
    pub(crate) fn miss(&mut self, missing: Vec<MissingIds>) {
        self.missing.extend(missing);
    }

    /// What was left where it is: damaged files, and those of another store.
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
