//! Groups the segments whose live rows go into one new segment.

use std::sync::Arc;

use crate::engine::compact::live::Live;
use crate::engine::compact::recode::{target, unpacked_bytes};
use crate::engine::options::{Compaction, Options};
use crate::schema::RowSchema;
use crate::segment::reader::Segment;

/// A segment that may be rewritten.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub segment: Arc<Segment>,
    pub live: Live,
    /// Tombstones that are dead only because they are no longer needed.
    pub needless: u64,
    /// The structure of its rows after compaction.
    pub target: Arc<RowSchema>,
    /// Its share of live rows is low enough to rewrite it, or its rows are to be stored in another way.
    is_due: bool,
}

impl Candidate {
    /// `None` if enough rows of the segment are live and `options` do not join segments.
    pub(crate) fn new(segment: Arc<Segment>, live: Live, options: &Compaction) -> Option<Self> {
        let (rows, live_rows) = (u64::from(segment.rows()), live.count());
        let target = target(segment.schema(), options);
        let is_sparse = live_rows < rows && (live_rows as f64) <= options.live_share * rows as f64;
        let is_due = is_sparse || target != *segment.schema();
        (is_due || options.join).then_some(Self { segment, live, needless: 0, target, is_due })
    }

    /// Whether its rows are to be stored in another way.
    pub(crate) fn is_recoded(&self) -> bool {
        self.target != *self.segment.schema()
    }

    /// At most about so many bytes its rows take after compaction.
    pub(crate) fn most_bytes(&self) -> u64 {
        let len_bytes = self.segment.len_bytes;
        if self.is_recoded() {
            len_bytes.saturating_add(unpacked_bytes(&self.target, self.live.count()))
        } else {
            len_bytes
        }
    }

    /// The approximate size of its live rows in bytes.
    fn live_bytes(&self) -> u64 {
        let rows = u64::from(self.segment.rows()).max(1);
        (u128::from(self.segment.len_bytes) * u128::from(self.live.count()) / u128::from(rows)) as u64
    }
}

/// Groups segments whose rows will have one schema. A group becomes one new segment, so one rename replaces all of it.
pub(crate) fn groups(candidates: Vec<Candidate>, store: &Options, options: &Compaction) -> Vec<Vec<Candidate>> {
    let mut kinds: Vec<Vec<Candidate>> = Vec::new();
    for candidate in candidates {
        let same = |kind: &&mut Vec<Candidate>| kind.first().is_some_and(|first| first.target == candidate.target);
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.push(candidate),
            None => kinds.push(vec![candidate]),
        }
    }
    kinds.into_iter().flat_map(|kind| groups_of_kind(kind, store, options)).collect()
}

fn groups_of_kind(mut candidates: Vec<Candidate>, store: &Options, options: &Compaction) -> Vec<Vec<Candidate>> {
    // Rows that were put at about the same time stay close together.
    candidates.sort_by_key(|candidate| (candidate.segment.seal.first_timestamp, candidate.segment.id));
    let mut groups: Vec<Vec<Candidate>> = Vec::new();
    let (mut bytes, mut rows) = (u64::MAX, u64::MAX);
    for candidate in candidates {
        // A segment that live rows fill by more than half is not joined.
        let is_small = candidate.live_bytes() <= store.segment_bytes / 2;
        if !(candidate.is_due || options.join && is_small) {
            continue;
        }
        let (more_bytes, more_rows) = (candidate.live_bytes(), candidate.live.count());
        let fits = bytes.saturating_add(more_bytes) <= store.segment_bytes
            && rows.saturating_add(more_rows) <= u64::from(store.segment_rows);
        match groups.last_mut().filter(|_| fits) {
            Some(group) => group.push(candidate),
            None => {
                (bytes, rows) = (0, 0);
                groups.push(vec![candidate]);
            }
        }
        bytes += more_bytes;
        rows += more_rows;
    }
    groups.retain(|group| group.len() > 1 || group.iter().any(|candidate| candidate.is_due));
    groups
}
