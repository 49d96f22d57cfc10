//! The published state of the store: which index runs and sealed segments there are.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use crate::engine::lock_order::{Rank, RankedGuard, RankedMutex};
use crate::engine::rows::locator::RowLocator;
use crate::engine::state::segments::Segments;
use crate::index::run::Run;
use crate::names::SegmentId;
use crate::segment::reader::Segment;
use crate::sync::{ArcSwap, Guard};

/// A run and the segments its rows are in.
#[derive(Debug)]
pub(crate) struct LoadedRun {
    run: Run,
    name: Option<SegmentId>,
    segments: Vec<Arc<Segment>>,
    /// Made when a row is first looked for, so that opening stays O(segments).
    locator: OnceLock<RowLocator>,
}

impl LoadedRun {
    /// `run`, whose rows are those of `segments`, in the order of the run's coverage list. Without a `name` it is in
    /// memory only.
    pub(crate) fn new(run: Run, name: Option<SegmentId>, segments: Vec<Arc<Segment>>) -> Self {
        Self { run, name, segments, locator: OnceLock::new() }
    }

    /// The index.
    #[inline]
    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// Its file; `None` for a run that is in memory only.
    pub(crate) fn name(&self) -> Option<SegmentId> {
        self.name
    }

    /// In the order of the run's coverage list.
    #[inline]
    pub(crate) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Whether it has the rows of segment `id`.
    pub(crate) fn covers(&self, id: SegmentId) -> bool {
        self.segments.iter().any(|segment| segment.id == id)
    }

    /// The batches of its rows.
    #[inline]
    pub(crate) fn locator(&self) -> &RowLocator {
        self.locator.get_or_init(|| RowLocator::new(&self.segments))
    }
}

/// One published state. It is replaced as a whole, so that a reader sees one from the start of a call to its end.
#[derive(Debug, Default)]
pub(crate) struct Version {
    runs: Vec<Arc<LoadedRun>>,
    segments: Segments,
}

impl Version {
    /// Index runs, those with the newest rows first.
    #[inline]
    pub(crate) fn runs(&self) -> &[Arc<LoadedRun>] {
        &self.runs
    }

    /// Sealed segments.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Segments that no run covers.
    pub(crate) fn uncovered(&self) -> Vec<Arc<Segment>> {
        let covered: HashSet<SegmentId> =
            self.runs.iter().flat_map(|run| run.segments.iter().map(|segment| segment.id)).collect();
        self.segments.values().filter(|segment| !covered.contains(&segment.id)).cloned().collect()
    }
}

/// The newest [`Version`], and what changes it.
#[derive(Debug)]
pub(crate) struct Versions {
    newest: ArcSwap<Version>,
    /// Held while a run is built in memory, so that no two are of the same rows.
    rebuild: RankedMutex<()>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { newest: ArcSwap::default(), rebuild: RankedMutex::new(Rank::Rebuild, ()) }
    }
}

impl Versions {
    /// The newest version, for the length of a call.
    #[inline]
    pub(crate) fn load(&self) -> Guard<Arc<Version>> {
        self.newest.load()
    }

    /// The newest version, for longer.
    pub(crate) fn load_full(&self) -> Arc<Version> {
        self.newest.load_full()
    }

    fn change(&self, change: impl Fn(&mut Version)) {
        self.newest.rcu(|version| {
            let mut next = Version { runs: version.runs.clone(), segments: version.segments.clone() };
            change(&mut next);
            next.runs.sort_by_key(|run| Reverse(run.run.max_timestamp()));
            next
        });
    }

    /// Publishes a sealed segment.
    pub(crate) fn add_segment(&self, segment: &Arc<Segment>) {
        self.change(|next| next.segments.insert(segment.id, Arc::clone(segment)));
    }

    /// Publishes sealed segments together.
    pub(crate) fn add_segments<'a>(&self, segments: impl Iterator<Item = &'a Arc<Segment>> + Clone) {
        self.change(|next| segments.clone().for_each(|segment| next.segments.insert(segment.id, Arc::clone(segment))));
    }

    /// Takes out a segment that was replaced, and the runs that name it.
    pub(crate) fn remove_segment(&self, id: SegmentId) {
        self.change(|next| {
            next.segments.remove(&id);
            next.runs.retain(|run| !run.covers(id));
        });
    }

    /// Publishes `run` in the place of `absorbed`, the rows of which it has.
    pub(crate) fn replace_runs(&self, run: &Arc<LoadedRun>, absorbed: &[Arc<LoadedRun>]) {
        self.change(|next| {
            next.runs.retain(|old| !absorbed.iter().any(|gone| Arc::ptr_eq(old, gone)));
            next.runs.push(Arc::clone(run));
        });
    }

    /// Publishes the runs that opening found.
    pub(crate) fn set_runs(&self, runs: &[Arc<LoadedRun>]) {
        self.change(|next| next.runs = runs.to_vec());
    }

    /// Held while a run is built in memory.
    pub(crate) fn lock_rebuild(&self) -> RankedGuard<'_, ()> {
        self.rebuild.lock()
    }

    /// The same, if nobody builds one now.
    pub(crate) fn try_lock_rebuild(&self) -> Option<RankedGuard<'_, ()>> {
        self.rebuild.try_lock()
    }
}
