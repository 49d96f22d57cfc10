//! Where the rows are that index runs look for in segments that were replaced.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};

use crate::engine::files::row_maps::{self, RowMaps};
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::state::replaced::Replaced;
use crate::engine::state::segments::Segments;
use crate::error::Result;
use crate::index::run_layout::Covered;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// What the files of row maps say.
pub(crate) struct MovedRows {
    replaced: Replaced,
    /// Of each segment that was replaced: its seal's CRC and its rows.
    seals: BTreeMap<SegmentId, (u32, u64)>,
    /// Of each segment that replaced others, which these were.
    sources: BTreeMap<SegmentId, Vec<SegmentId>>,
}

impl MovedRows {
    /// Reads them. Rows that were moved several times are in the last of the segments. O(rows moved).
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn read(state: &State, segments: &Segments) -> Result<Self> {
        let mut found = Self { replaced: Replaced::default(), seals: BTreeMap::new(), sources: BTreeMap::new() };
        for RowMaps { target, rows, moved } in RowMaps::read(state.storage(), state.identity().store())? {
            // A number may have been given to another segment, where a power failure took the one that was begun.
            let is_of = |segment: &Arc<Segment>| {
                segment.front.header.compacted
                    && segment.seal.rows == rows
                    && moved.iter().all(|moved| segment.replaces.contains(&moved.id))
            };
            if segments.get(&target).is_some_and(|segment| !is_of(segment)) {
                continue;
            }
            found.sources.insert(target, moved.iter().map(|moved| moved.id).collect());
            for moved in moved {
                let rows = moved.map.as_bytes().len() as u64 / 4;
                found.seals.insert(moved.id, (moved.seal_crc, rows));
                found.replaced.insert(moved.id, target, Arc::new(moved.map), Weak::new());
            }
        }
        Ok(found)
    }

    /// Where rows are.
    pub(crate) fn replaced(&self) -> &Replaced {
        &self.replaced
    }

    /// Whether what a run covers is there, or it is known where its rows are.
    pub(crate) fn has(&self, segments: &Segments, covered: &Covered) -> bool {
        let id = covered.id();
        let found = segments.get(&id).map(|segment| (segment.seal.crc, segment.seal.rows));
        found.or_else(|| self.seals.get(&id).copied()) == Some((covered.seal_crc, covered.rows))
    }

    /// Segments all of whose rows are found by way of those that they replaced, where runs cover these.
    pub(crate) fn indexed(&self, segments: &Segments, covered: &HashSet<SegmentId>) -> Vec<SegmentId> {
        let mut targets = self.targets_of(covered, |sources, is_found| sources.iter().all(is_found));
        // One that is not there was never finished, and its number is free.
        targets.retain(|target| segments.contains_key(target));
        targets
    }

    /// The targets whose sources `count`, when those count that are in `known` or are such targets themselves.
    fn targets_of(
        &self,
        known: &HashSet<SegmentId>,
        count: impl Fn(&[SegmentId], &dyn Fn(&SegmentId) -> bool) -> bool,
    ) -> Vec<SegmentId> {
        let mut found: HashSet<SegmentId> = HashSet::new();
        loop {
            let is_known = |id: &SegmentId| known.contains(id) || found.contains(id);
            let new = self.sources.iter().filter(|(target, _)| !found.contains(target));
            let new: Vec<SegmentId> =
                new.filter(|(_, sources)| count(sources, &is_known)).map(|(target, _)| *target).collect();
            if new.is_empty() {
                return found.into_iter().collect();
            }
            found.extend(new);
        }
    }

    /// Removes the files of `lane` by way of which none of `runs` finds a row.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn remove_unused(&self, state: &State, lane: u16, runs: &[Arc<LoadedRun>]) -> Result<()> {
        let covered = runs.iter().filter(|run| run.has_moved_rows()).flat_map(|run| run.covered()).collect();
        let needed = self.targets_of(&covered, |sources, is_known| sources.iter().any(is_known));
        let targets = row_maps::targets(state.storage(), state.identity().store())?;
        let mut unused = targets.into_iter().filter(|target| target.lane == lane && !needed.contains(target));
        unused.try_for_each(|target| row_maps::remove(state.storage(), target))
    }
}
