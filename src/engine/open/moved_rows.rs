//! Reads the row maps at opening, through which index runs find the rows of replaced segments.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};

use crate::engine::files::row_maps::{self, RowMaps};
use crate::engine::runs::hashes::whole_block;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::state::replaced::Replaced;
use crate::engine::state::segments::Segments;
use crate::error::Result;
use crate::index::block;
use crate::index::run::Run;
use crate::index::run_layout::Covered;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// The content of all row map files.
pub(crate) struct MovedRows {
    replaced: Replaced,
    /// The seal CRC and the number of rows of each replaced segment.
    seals: BTreeMap<SegmentId, (u32, u64)>,
    /// The segments that each target replaced.
    sources: BTreeMap<SegmentId, Vec<SegmentId>>,
}

/// Whether `maps` were written together with `segment`. A power failure may take a segment, and another gets its number;
/// a copy of the store may have a segment of its own under that number. O(rows).
pub(crate) fn belong(maps: &RowMaps, segment: &Segment) -> bool {
    segment.front.header.compacted
        && segment.seal.rows == maps.rows
        && maps.moved.iter().all(|moved| segment.replaces.contains(&moved.id))
        && whole_block(segment).is_some_and(|block| block::fingerprint(block.iter()) == maps.fingerprint)
}

impl MovedRows {
    /// Reads all row map files, if one of `runs` covers a segment that does not exist. Rows that moved several times are
    /// mapped to the last target. O(rows moved).
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn read(state: &State, segments: &Segments, runs: &[(SegmentId, Run)]) -> Result<Self> {
        let mut found = Self { replaced: Replaced::default(), seals: BTreeMap::new(), sources: BTreeMap::new() };
        let mut covered = runs.iter().flat_map(|(_, run)| run.covered());
        if covered.all(|covered| segments.contains_key(&covered.id())) {
            return Ok(found);
        }
        for maps in RowMaps::read(state.storage(), state.identity().store())? {
            if segments.get(&maps.target).is_some_and(|segment| !belong(&maps, segment)) {
                continue;
            }
            let RowMaps { target, moved, .. } = maps;
            found.sources.insert(target, moved.iter().map(|moved| moved.id).collect());
            for moved in moved {
                let rows = moved.map.as_bytes().len() as u64 / 4;
                found.seals.insert(moved.id, (moved.seal_crc, rows));
                found.replaced.insert(moved.id, target, Arc::new(moved.map), Weak::new());
            }
        }
        Ok(found)
    }

    /// The replaced segments and their row maps.
    pub(crate) fn replaced(&self) -> &Replaced {
        &self.replaced
    }

    /// Whether a covered segment exists unchanged, or row maps say where its rows are.
    pub(crate) fn has(&self, segments: &Segments, covered: &Covered) -> bool {
        let id = covered.id();
        let found = segments.get(&id).map(|segment| (segment.seal.crc, segment.seal.rows));
        found.or_else(|| self.seals.get(&id).copied()) == Some((covered.seal_crc, covered.rows))
    }

    /// Segments whose rows are all reachable through the segments that they replaced, because runs cover these.
    pub(crate) fn indexed(&self, segments: &Segments, covered: &HashSet<SegmentId>) -> Vec<SegmentId> {
        let mut targets = self.targets_of(covered, |sources, is_found| sources.iter().all(is_found));
        // A target that does not exist was never finished, and its number may be given out again.
        targets.retain(|target| segments.contains_key(target));
        targets
    }

    /// The targets whose sources satisfy `count`. It gets a test of whether a source is in `known` or is itself such a
    /// target.
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

    /// Removes the row map files of `lane` that none of `runs` needs.
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
