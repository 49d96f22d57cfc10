//! The published state of the store: its index runs and sealed segments.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, Weak};

use crate::engine::lock_order::{Rank, RankedGuard, RankedMutex};
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::state::replaced::{Gone, Replaced};
use crate::engine::state::segments::Segments;
use crate::names::SegmentId;
use crate::segment::reader::Segment;
use crate::sync::{ArcSwap, Guard};

/// One published state. It is immutable, so a reader sees the same state for a whole call.
#[derive(Debug, Default)]
pub(crate) struct Version {
    runs: Vec<Arc<LoadedRun>>,
    segments: Segments,
    replaced: Arc<Replaced>,
}

impl Version {
    /// Index runs, newest rows first.
    #[inline]
    pub(crate) fn runs(&self) -> &[Arc<LoadedRun>] {
        &self.runs
    }

    /// Sealed segments.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Segments that no run covers, neither directly nor through segments that they replaced.
    pub(crate) fn uncovered(&self) -> Vec<Arc<Segment>> {
        let covered: HashSet<SegmentId> = self.runs.iter().flat_map(|run| run.covered()).collect();
        let is_covered = |id: SegmentId| covered.contains(&id) || self.replaced.is_indexed(id);
        self.segments.values().filter(|segment| !is_covered(segment.id)).cloned().collect()
    }

    /// The segment that replaced segment `id`, and the number there of its row `row`.
    pub(crate) fn moved(&self, id: SegmentId, row: u32) -> Option<(SegmentId, u32)> {
        let moved = self.replaced.get(id)?;
        Some((moved.target, moved.map.get(row)?))
    }

    /// Whether a run names segment `id`.
    pub(crate) fn is_covered(&self, id: SegmentId) -> bool {
        self.runs.iter().any(|run| run.covered().any(|covered| covered == id))
    }

    /// `run` resolved to the segments of this version. Unchanged if one of its segments was removed and not replaced:
    /// the run still holds it.
    fn current(&self, run: &Arc<LoadedRun>) -> Arc<LoadedRun> {
        if run.segments().iter().all(|segment| self.segments.contains_key(&segment.id)) {
            return Arc::clone(run);
        }
        let resolved = run.resolve_again(&self.segments, &self.replaced);
        resolved.map_or_else(|| Arc::clone(run), Arc::new)
    }
}

/// Holds the newest [`Version`], and publishes new ones.
#[derive(Debug)]
pub(crate) struct Versions {
    newest: ArcSwap<Version>,
    /// Held while a run is built in memory, so that no two such runs have the same rows.
    rebuild: RankedMutex<()>,
    /// Held by scans: they list segments that may be replaced while they run.
    scans: Arc<()>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { newest: ArcSwap::default(), rebuild: RankedMutex::new(Rank::Rebuild, ()), scans: Arc::default() }
    }
}

impl Versions {
    /// The newest version, for the length of a call.
    #[inline]
    pub(crate) fn load(&self) -> Guard<Arc<Version>> {
        self.newest.load()
    }

    /// The newest version, for longer use.
    pub(crate) fn load_full(&self) -> Arc<Version> {
        self.newest.load_full()
    }

    fn change(&self, change: impl Fn(&mut Version)) {
        self.newest.rcu(|version| {
            let mut next = Version {
                runs: version.runs.clone(),
                segments: version.segments.clone(),
                replaced: Arc::clone(&version.replaced),
            };
            change(&mut next);
            next.runs.sort_by_key(|run| Reverse(run.run().max_timestamp()));
            next
        });
    }

    /// Publishes a sealed segment.
    pub(crate) fn add_segment(&self, segment: &Arc<Segment>) {
        self.change(|next| next.segments.insert(segment.id, Arc::clone(segment)));
    }

    /// Publishes sealed segments in one change.
    pub(crate) fn add_segments<'a>(&self, segments: impl Iterator<Item = &'a Arc<Segment>> + Clone) {
        self.change(|next| segments.clone().for_each(|segment| next.segments.insert(segment.id, Arc::clone(segment))));
    }

    /// Removes a damaged segment and the runs that have rows of it.
    pub(crate) fn remove_segment(&self, id: SegmentId) {
        self.change(|next| {
            next.segments.remove(&id);
            let (gone, kept): (Vec<_>, Vec<_>) = next.runs.drain(..).partition(|run| run.has_rows_of(id));
            next.runs = kept;
            let replaced = Arc::make_mut(&mut next.replaced);
            gone.iter().flat_map(|run| run.segments()).for_each(|segment| replaced.set_indexed(segment.id, false));
        });
    }

    /// Publishes `segment` in the place of `old` ones. What lookups found in those they find in this. `has_all`: whether
    /// it has no rows but theirs.
    pub(crate) fn replace_segments(&self, segment: &Arc<Segment>, old: &[Gone], has_all: bool) {
        self.change(|next| {
            let indexed = has_all && old.iter().all(|old| next.is_covered(old.id));
            let replaced = Arc::make_mut(&mut next.replaced);
            if Arc::strong_count(&self.scans) == 1 {
                replaced.forget_unheld();
            }
            for old in old {
                next.segments.remove(&old.id);
                let held = old.segment.as_ref().map_or_else(Weak::new, Arc::downgrade);
                replaced.insert(old.id, segment.id, Arc::clone(&old.map), held);
            }
            replaced.set_indexed(segment.id, indexed);
            next.segments.insert(segment.id, Arc::clone(segment));
            let runs = next.runs.iter().map(|run| next.current(run)).collect();
            next.runs = runs;
        });
    }

    /// Keeps all row maps of replaced segments until it is dropped.
    pub(crate) fn scan(&self) -> Arc<()> {
        Arc::clone(&self.scans)
    }

    /// Publishes `run` in the place of `absorbed`, the rows of which it has. What was replaced since it was begun, it
    /// has where it is now.
    pub(crate) fn replace_runs(&self, run: &Arc<LoadedRun>, absorbed: &[Arc<LoadedRun>]) {
        self.change(|next| {
            next.runs.retain(|old| !absorbed.iter().any(|gone| old.is_same_run(gone)));
            next.runs.push(next.current(run));
        });
    }

    /// Publishes the runs that opening found, and the segments that they cover only through replaced ones (`indexed`).
    pub(crate) fn set_runs(&self, runs: &[Arc<LoadedRun>], indexed: &[SegmentId]) {
        self.change(|next| {
            next.runs = runs.to_vec();
            let replaced = Arc::make_mut(&mut next.replaced);
            indexed.iter().for_each(|id| replaced.set_indexed(*id, true));
        });
    }

    /// Acquires the lock that is held while a run is built in memory.
    pub(crate) fn lock_rebuild(&self) -> RankedGuard<'_, ()> {
        self.rebuild.lock()
    }

    /// As [`Versions::lock_rebuild`], if no other thread holds the lock.
    pub(crate) fn try_lock_rebuild(&self) -> Option<RankedGuard<'_, ()>> {
        self.rebuild.try_lock()
    }
}
