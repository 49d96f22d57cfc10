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

/// A run and the segments its rows are in.
///
/// A run numbers the rows of the segments that it covers one after another. Where compaction replaced one of them, its
/// numbers stay unused: rows that are looked for there are found in the segment that replaced it, which has numbers
/// behind all others.
#[derive(Debug)]
pub(crate) struct LoadedRun {
    run: Arc<Run>,
    name: Option<SegmentId>,
    segments: Vec<Arc<Segment>>,
    /// The number of the first row of each.
    starts: Vec<u64>,
    /// In order.
    moved: Vec<Moved>,
    /// Made when a row is first looked for, so that opening stays O(segments).
    locator: OnceLock<RowLocator>,
}

/// Numbers of a covered segment that was replaced.
#[derive(Debug)]
struct Moved {
    id: SegmentId,
    target: SegmentId,
    start: u64,
    end: u64,
    map: Arc<RowMap>,
    /// The number of the first row of the segment that replaced it.
    target_start: u64,
}

impl LoadedRun {
    /// `run`, whose rows are those of `segments`, in the order of the run's coverage list. Without a `name` it is in
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

    /// `run` as its rows lie in `segments`, after some of those that it covers were `replaced`. `None` if one of them
    /// is in neither.
    pub(crate) fn resolve(run: Run, name: Option<SegmentId>, segments: &Segments, replaced: &Replaced) -> Option<Self> {
        let find = |id| replaced.get(id).map(|moved| (moved.target, Arc::clone(&moved.map)));
        Self::resolve_with(Arc::new(run), name, segments, find)
    }

    /// The same run as its rows lie in `segments`, after more segments were `replaced`.
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

    /// The index.
    #[inline]
    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// Whether it is `other`, perhaps with other segments.
    pub(crate) fn is_same_run(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }

    /// Its file; `None` for a run that is in memory only.
    pub(crate) fn name(&self) -> Option<SegmentId> {
        self.name
    }

    /// Those that [`LoadedRun::locator`] numbers the rows of.
    #[inline]
    pub(crate) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// What its file says that it covers, which may have been replaced.
    pub(crate) fn covered(&self) -> impl Iterator<Item = SegmentId> {
        self.run.covered().iter().map(Covered::id)
    }

    /// Whether rows of it are in segments that replaced those that it covers.
    #[inline]
    pub(crate) fn has_moved_rows(&self) -> bool {
        !self.moved.is_empty()
    }

    /// The number of the row that the run calls `run_row`, for the locator; `None` if the row is gone. O(1), or O(log
    /// replaced segments).
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

    /// The batches of its rows.
    #[inline]
    pub(crate) fn locator(&self) -> &RowLocator {
        self.locator.get_or_init(|| RowLocator::new(&self.segments, &self.starts))
    }
}
