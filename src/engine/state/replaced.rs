//! Segments that compaction removed from the version while an index run, or a merge that began earlier, still refers to
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use crate::engine::rows::row_map::RowMap;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// A segment that is to be replaced, and where its rows will be.
#[derive(Debug, Clone)]
pub(crate) struct Gone {
    pub id: SegmentId,
    /// `None` if it was followed while it was active.
    pub segment: Option<Arc<Segment>>,
    pub map: Arc<RowMap>,
}

/// Where the rows of a replaced segment are.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub target: SegmentId,
    pub map: Arc<RowMap>,
    /// While anything holds the segment, its rows may be looked up.
    segment: Weak<Segment>,
}

/// Replaced segments, and the segments that have their rows now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replaced {
    moves: BTreeMap<SegmentId, Move>,
    /// Segments whose rows are all reachable through the segments that they replaced, so no run has to cover them.
    indexed: BTreeSet<SegmentId>,
}

impl Replaced {
    /// Where the rows of `id` are, if it was replaced.
    pub(crate) fn get(&self, id: SegmentId) -> Option<&Move> {
        self.moves.get(&id)
    }

    /// Notes that the rows of `old` are in `target`, until nothing holds its `segment` any more.
    pub(crate) fn insert(
        &mut self,
        old: SegmentId,
        mut target: SegmentId,
        mut map: Arc<RowMap>,
        segment: Weak<Segment>,
    ) {
        // Rows that moved twice are mapped to the last target.
        for moved in self.moves.values_mut().filter(|moved| moved.target == old) {
            (moved.target, moved.map) = (target, Arc::new(moved.map.then(&map)));
        }
        if let Some(next) = self.moves.get(&target) {
            (target, map) = (next.target, Arc::new(map.then(&next.map)));
        }
        self.indexed.remove(&old);
        self.moves.insert(old, Move { target, map, segment });
    }

    /// Forgets segments that nothing holds any more.
    pub(crate) fn forget_unheld(&mut self) {
        self.moves.retain(|_, moved| moved.segment.strong_count() > 0);
    }

    /// Whether no run has to cover `id`.
    pub(crate) fn is_indexed(&self, id: SegmentId) -> bool {
        self.indexed.contains(&id)
    }

    /// Notes whether `id` is `indexed`, so that no run has to cover it.
    pub(crate) fn set_indexed(&mut self, id: SegmentId, indexed: bool) {
        if indexed {
            self.indexed.insert(id)
        } else {
            self.indexed.remove(&id)
        };
    }
}
