//! An index run with the segments that its rows are in.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, OnceLock};

use crate::engine::rows::locator::RowLocator;
use crate::engine::rows::row_map::RowMap;
use crate::engine::state::replaced::Replaced;
use crate::engine::state::segments::Segments;
use crate::index::run::Run;
use crate::index::run_layout::Covered;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// A run and the segments that its rows are in.
///
/// A run numbers the rows of its covered segments consecutively. If compaction replaced one of them, a row map
/// translates its numbers to those of the segment that replaced it, which come after all others.
#[derive(Debug)]
pub(crate) struct LoadedRun {
    run: Arc<Run>,
    name: Option<SegmentId>,
    segments: Vec<Arc<Segment>>,
    /// The number of the first row of each segment.
    starts: Vec<u64>,
    /// Sorted by `start`.
    moved: Vec<Moved>,
    /// Built at the first lookup, so that opening stays O(segments).
    locator: OnceLock<RowLocator>,
}

/// The row numbers of a covered segment that was replaced.
#[derive(Debug)]
struct Moved {
    id: SegmentId,
    target: SegmentId,
    start: u64,
    end: u64,
    map: Arc<RowMap>,
    /// The number of the first row of the target.
    target_start: u64,
}

impl LoadedRun {
    /// `run` with `segments`, the covered segments in the order of its coverage list. Without a `name`, the run is in
    /// memory only.
    pub(crate) fn new(run: Run, name: Option<SegmentId>, segments: Vec<Arc<Segment>>) -> Self {
        let mut start = 0;
        let starts = segments.iter().map(|segment| {
            let next = start + u64::from(segment.rows());
            std::mem::replace(&mut start, next)
        });
        Self {
            run: Arc::new(run),
            name,
            starts: starts.collect(),
            segments,
            moved: Vec::new(),
            locator: OnceLock::new(),
        }
    }

    /// Finds the covered segments of `run` in `segments`, or through the row maps in `replaced`. `None` if one of them
    /// is in neither.
    pub(crate) fn resolve(run: Run, name: Option<SegmentId>, segments: &Segments, replaced: &Replaced) -> Option<Self> {
        let find = |id| replaced.get(id).map(|moved| (moved.target, Arc::clone(&moved.map)));
        Self::resolve_with(Arc::new(run), name, segments, find)
    }

    /// Resolves the same run again, after more segments were `replaced`.
    pub(crate) fn resolve_again(&self, segments: &Segments, replaced: &Replaced) -> Option<Self> {
        let find = |id| {
            if let Some(moved) = replaced.get(id) {
                return Some((moved.target, Arc::clone(&moved.map)));
            }
            let before = self.moved.iter().find(|moved| moved.id == id)?;
            match replaced.get(before.target) {
                Some(next) => Some((next.target, Arc::new(before.map.then(&next.map)))),
                None => Some((before.target, Arc::clone(&before.map))),
            }
        };
        Self::resolve_with(Arc::clone(&self.run), self.name, segments, find)
    }

    fn resolve_with(
        run: Arc<Run>,
        name: Option<SegmentId>,
        segments: &Segments,
        find: impl Fn(SegmentId) -> Option<(SegmentId, Arc<RowMap>)>,
    ) -> Option<Self> {
        let (mut found, mut starts, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        let mut end = 0_u64;
        for covered in run.covered() {
            let (id, start) = (covered.id(), end);
            end += covered.rows;
            match segments.get(&id) {
                Some(segment) => {
                    found.push(Arc::clone(segment));
                    starts.push(start);
                }
                None => {
                    let (target, map) = find(id)?;
                    moved.push(Moved { id, target, start, end, map, target_start: 0 });
                }
            }
        }
        let mut targets: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for moved in &mut moved {
            moved.target_start = match targets.entry(moved.target) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(place) => {
                    let target = segments.get(&moved.target)?;
                    found.push(Arc::clone(target));
                    starts.push(end);
                    end += u64::from(target.rows());
                    *place.insert(end - u64::from(target.rows()))
                }
            };
        }
        Some(Self { run, name, segments: found, starts, moved, locator: OnceLock::new() })
    }

    /// The run itself.
    #[inline]
    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// Whether `other` is the same run, perhaps resolved to other segments.
    pub(crate) fn is_same_run(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }

    /// The id of its file; `None` for a run that is in memory only.
    pub(crate) fn name(&self) -> Option<SegmentId> {
        self.name
    }

    /// The segments whose rows [`LoadedRun::locator`] numbers.
    #[inline]
    pub(crate) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// The segments in its coverage list, some of which may have been replaced.
    pub(crate) fn covered(&self) -> impl Iterator<Item = SegmentId> {
        self.run.covered().iter().map(Covered::id)
    }

    /// Whether some of the segments that it covers were replaced.
    #[inline]
    pub(crate) fn has_moved_rows(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Whether rows that it covers may have been evicted: then a segment of tombstones replaced theirs. So may have
    /// compaction, which drops only rows that do not count.
    pub(crate) fn may_have_evicted_rows(&self) -> bool {
        let mut targets = self.segments.iter().filter(|segment| self.moved.iter().any(|of| of.target == segment.id));
        targets.any(|target| target.schema().is_tombstones())
    }

    /// Translates row number `run_row` of the run to that of the locator; `None` if compaction dropped the row. O(1),
    /// or O(log replaced segments).
    #[inline]
    pub(crate) fn current(&self, run_row: u64) -> Option<u64> {
        let before = self.moved.partition_point(|moved| moved.start <= run_row);
        let moved = before.checked_sub(1).and_then(|last| self.moved.get(last));
        let Some(moved) = moved.filter(|moved| run_row < moved.end) else { return Some(run_row) };
        let row = moved.map.get((run_row - moved.start) as u32)?;
        Some(moved.target_start + u64::from(row))
    }

    /// Whether it has rows of segment `id`.
    pub(crate) fn has_rows_of(&self, id: SegmentId) -> bool {
        self.segments.iter().any(|segment| segment.id == id)
    }

    /// The row locator of the run.
    #[inline]
    pub(crate) fn locator(&self) -> &RowLocator {
        self.locator.get_or_init(|| RowLocator::new(&self.segments, &self.starts))
    }
}
