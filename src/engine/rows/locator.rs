//! From a row of a run to its batch, in a few steps that do not grow with the store.
//!
//! A run numbers the rows of its segments consecutively. A lookup needs the batch of a row number, but a search over
//! segments and then batches costs branches that the processor mispredicts. Instead, one table holds all batches of a
//! run, and row numbers are divided into equal cells. A cell says in which batch and row it begins, and where in the
//! cell the next batch begins. Except for very small batches among large ones, a lookup reads one cache line.

use std::hint::select_unpredictable;
use std::sync::{Arc, OnceLock};

use crate::engine::rows::cached_batch::CachedBatch;
use crate::engine::threads::in_shares;
use crate::error::{Error, Result};
use crate::prefetch::{prefetch_read, prefetch_ref};
use crate::segment::batches::Batches;
use crate::segment::reader::Segment;

/// Fewest cells a batch: batches down to the same fraction of the mean size need one look.
const CELLS_PER_BATCH: usize = 2;

/// A batch of a run: its segment's position in the run, its number in the segment, and, once it is parsed, its cached
/// descriptor.
#[derive(Debug)]
#[repr(C, align(128))]
struct Place {
    cached: OnceLock<CachedBatch>,
    segment: u32,
    number: u32,
}

const _: () = assert!(size_of::<Place>() == 128, "a place is two cache lines");

/// The place of a row: the position of its batch in the locator, and the row in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchRow {
    batch: u32,
    /// Row in the batch.
    pub row: u32,
}

/// The batches of a run.
#[derive(Debug)]
pub(crate) struct RowLocator {
    places: Box<[Place]>,
    /// The run row at which each batch begins, and the end of rows.
    starts: Box<[u64]>,
    /// The run row at which each segment begins.
    segment_starts: Box<[u64]>,
    /// One cell for each 2^`shift` rows.
    cells: Box<[Cell]>,
    last_cell: u64,
    shift: u32,
}

/// The batches of consecutive rows of a run.
#[derive(Debug, Clone, Copy)]
#[repr(align(16))]
struct Cell {
    /// The batch of the first row, and that row in the batch.
    first: BatchRow,
    /// How many rows lie in that batch.
    in_first: u32,
    /// How many rows lie in that batch and the next one.
    in_both: u32,
}

impl RowLocator {
    /// The locator of the rows of `segments`, which are numbered from `segment_starts` on (ascending). O(batches).
    pub(crate) fn new(segments: &[Arc<Segment>], segment_starts: &[u64]) -> Self {
        /// Segments whose tables take longer to read than a thread takes to start.
        const WORTH_A_THREAD: usize = 32;
        let read = in_shares(segments, WORTH_A_THREAD, |segment| segment.batches().map_or(&[][..], Batches::frames));
        let batches = read.iter().map(|frames| frames.len()).sum();
        let (mut places, mut starts) = (Vec::with_capacity(batches), Vec::with_capacity(batches + 1));
        let mut end = 0_u64;
        for (((position, segment), &start), frames) in (0_u32..).zip(segments).zip(segment_starts).zip(read) {
            if start > end {
                starts.push(end);
                places.push(Place { cached: OnceLock::new(), segment: position, number: Place::LOST });
            }
            let mut add = |first_row: u64, number: u32| {
                starts.push(start + first_row);
                places.push(Place { cached: OnceLock::new(), segment: position, number });
            };
            let mut end_row = 0;
            for (number, frame) in (0_u32..).zip(frames) {
                if frame.first_row > end_row {
                    add(end_row, Place::LOST);
                }
                add(frame.first_row, number);
                end_row = frame.first_row + u64::from(frame.rows);
            }
            if u64::from(segment.rows()) > end_row {
                add(end_row, Place::LOST);
            }
            end = start + u64::from(segment.rows());
        }
        starts.push(end);
        Self { segment_starts: segment_starts.into(), ..Self::of_places(places, starts) }
    }

    fn of_places(places: Vec<Place>, starts: Vec<u64>) -> Self {
        let rows = starts.last().copied().unwrap_or(0);
        let rows_per_cell = (rows / (starts.len() * CELLS_PER_BATCH) as u64).max(1);
        let shift = rows_per_cell.ilog2();
        let start_of = |batch: usize| starts.get(batch).copied().unwrap_or(rows);
        let mut at = 0;
        let cells = (0..(rows + (1 << shift) - 1) >> shift).map(|cell| {
            let first_row = cell << shift;
            while at + 1 < places.len() && start_of(at + 1) <= first_row {
                at += 1;
            }
            // Counts stop at the end of rows, so that later rows are in no batch.
            let room = |end: u64| end.saturating_sub(first_row).min(1 << shift) as u32;
            Cell {
                first: BatchRow { batch: at as u32, row: (first_row - start_of(at)) as u32 },
                in_first: room(start_of(at + 1)),
                in_both: room(start_of(at + 2)),
            }
        });
        let cells: Box<[Cell]> = cells.collect();
        let last_cell = cells.len().saturating_sub(1) as u64;
        let segment_starts = Box::default();
        Self { cells, last_cell, segment_starts, starts: starts.into(), places: places.into(), shift }
    }

    /// Caches the descriptors of all batches that are parsed already, or whose segments are `wanted`, so that the first
    /// lookups do not have to. Lookups report damage. O(batches), and O(keys) of the batches that are parsed here.
    pub(crate) fn cache_batches(&self, segments: &[Arc<Segment>], wanted: impl Fn(&Segment) -> bool) {
        for place in &self.places {
            let segment = segments.get(place.segment as usize);
            if segment.is_some_and(|segment| segment.is_parsed(place.number as usize) || wanted(segment)) {
                let _reported_by_lookups = place.load(segments);
            }
        }
    }

    /// Prefetches what [`RowLocator::place`] reads. Past the end, it prefetches the last cell.
    #[inline]
    pub(crate) fn prefetch(&self, run_row: u64) {
        prefetch_read(&self.cells, (run_row >> self.shift).min(self.last_cell) as usize);
    }

    #[inline]
    fn cell(&self, run_row: u64) -> Option<&Cell> {
        self.cells.get(usize::try_from(run_row >> self.shift).ok()?)
    }

    /// The place of `run_row`; past the end, it is in no batch. Prefetches what [`RowLocator::cached_batch`] reads.
    /// O(1), but O(log batches) in cells of more than two batches.
    #[inline]
    pub(crate) fn place(&self, run_row: u64) -> BatchRow {
        let within = (run_row & ((1 << self.shift) - 1)) as u32;
        let place = match self.cell(run_row) {
            Some(cell) if within < cell.in_both => {
                let in_first = BatchRow { batch: cell.first.batch, row: cell.first.row.wrapping_add(within) };
                let in_second = BatchRow { batch: cell.first.batch + 1, row: within.wrapping_sub(cell.in_first) };
                select_unpredictable(within < cell.in_first, in_first, in_second)
            }
            _ => self.search(run_row),
        };
        if let Some(place) = self.places.get(place.batch as usize) {
            prefetch_ref(place);
            prefetch_ref(&place.number);
        }
        place
    }

    #[cold]
    fn search(&self, run_row: u64) -> BatchRow {
        let batch = self.starts.partition_point(|start| *start <= run_row).saturating_sub(1);
        // The last start is the end of rows: no batch begins there.
        let row = run_row - self.starts.get(batch).copied().unwrap_or(run_row);
        BatchRow { batch: batch as u32, row: row as u32 }
    }

    /// For `run_row`: its segment's position in the run, its batch's number in the segment, and its row in the batch.
    /// Parses nothing.
    pub(crate) fn source(&self, run_row: u64) -> Option<(usize, usize, usize)> {
        let place = self.place(run_row);
        let batch = self.places.get(place.batch as usize)?;
        Some((batch.segment as usize, batch.number as usize, place.row as usize))
    }

    /// The segment of `run_row` and its row there, whether or not its batch can be read. O(log segments).
    pub(crate) fn segment_row<'a>(
        &self,
        segments: &'a [Arc<Segment>],
        run_row: u64,
    ) -> Option<(&'a Arc<Segment>, u32)> {
        let position = self.segment_starts.partition_point(|start| *start <= run_row).checked_sub(1)?;
        let row = u32::try_from(run_row - self.segment_starts.get(position)?).ok()?;
        segments.get(position).filter(|segment| row < segment.rows()).map(|segment| (segment, row))
    }

    /// The run row at `place`.
    pub(crate) fn run_row(&self, place: BatchRow) -> Option<u64> {
        self.starts.get(place.batch as usize)?.checked_add(u64::from(place.row))
    }

    /// The batch at `place`. `segments` are those that the locator was made for.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged.
    #[inline]
    pub(crate) fn cached_batch(&self, segments: &[Arc<Segment>], place: BatchRow) -> Result<&CachedBatch> {
        let Some(at) = self.places.get(place.batch as usize) else {
            return Err(Error::invalid("a row was looked for that the run does not have"));
        };
        match at.cached.get() {
            Some(cached) => Ok(cached),
            None => at.load(segments),
        }
    }
}

impl Place {
    /// The batch number of rows that are in no batch. No batch has it, so a lookup of such a row reports an error.
    const LOST: u32 = u32::MAX;

    #[cold]
    fn load(&self, segments: &[Arc<Segment>]) -> Result<&CachedBatch> {
        let Some(segment) = segments.get(self.segment as usize) else {
            return Err(Error::internal("a row was looked for in another run's segments"));
        };
        let batch = segment.batch(self.number as usize)?;
        // Segments of one structure share one instance, so that reads recognize the structure by its address.
        let own = segment.schema();
        let schema = segments.iter().map(|segment| segment.schema()).find(|schema| *schema == own).unwrap_or(own);
        Ok(self.cached.get_or_init(|| CachedBatch::new(batch, schema, segment.id.lane)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A locator over batches of these many rows.
    fn of(rows: &[u64]) -> RowLocator {
        let place = |number| Place { cached: OnceLock::new(), segment: 0, number };
        let mut starts = vec![0];
        rows.iter().for_each(|rows| starts.push(starts[starts.len() - 1] + rows));
        RowLocator::of_places((0..rows.len() as u32).map(place).collect(), starts)
    }

    #[test]
    fn finds_the_batch_of_every_row() {
        let mut skewed = vec![1; 1000];
        skewed.extend([100_000, 3, 1, 50_000]);
        for sizes in [vec![], vec![1], vec![2048; 100], vec![7, 1, 1, 1, 1, 1, 1, 1, 900, 2], skewed] {
            let locator = of(&sizes);
            let mut run_row = 0;
            for (batch, size) in (0_u32..).zip(&sizes) {
                for row in 0..*size as u32 {
                    assert_eq!(locator.place(run_row), BatchRow { batch, row }, "{sizes:?}");
                    run_row += 1;
                }
            }
            for past in [run_row, u64::MAX] {
                assert!(locator.source(past).is_none());
                assert!(locator.cached_batch(&[], locator.place(past)).is_err());
            }
        }
    }
}
