//! Reading in what a batch will touch, where it lies on disk, before it is touched.
//!
//! What a batch touches (buckets, then keys, then rows) is known before it is touched, and how much of that is in
//! memory can be measured. So what is missing is asked for at once, and waited for once, not faulted row by row. Asking
//! costs a system call a row, which a warm batch must not pay: a few rows of large batches, and of some small ones, are
//! looked at instead, and if one of them is missing, the next batches are looked at whole. Until then, small batches of a
//! store that went cold fault.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;

use crate::engine::lookup::find::Asked;
use crate::engine::rows::row::{Holder, Row};
use crate::engine::state::{Core, LoadedRun};
use crate::error::{Error, Result};
use crate::io::residency::{Wanted, bring_in, is_resident};
use crate::segment::batch::{Batch, Verify};
use crate::segment::columns::{KeyColumn, LeafColumn};
use crate::segment::reader::Segment;

/// What a batch touches, stage by stage. Each is watched by itself: rows that are read in order from a disk, batch by
/// batch, say nothing of an index that is in memory, and looking at each of its buckets would cost more than they do.
#[derive(Debug, Default)]
pub(crate) struct ColdWatch {
    buckets: Watch,
    keys: Watch,
    rows: Watch,
}

impl ColdWatch {
    /// Pages that batches wanted, that were not in memory, and that were read in together.
    pub(crate) fn pages_read(&self) -> u64 {
        [&self.buckets, &self.keys, &self.rows].map(|watch| watch.pages_read.load(Ordering::Relaxed)).iter().sum()
    }

    /// Whether something was missing lately.
    pub(crate) fn is_suspected(&self) -> bool {
        [&self.buckets, &self.keys, &self.rows].into_iter().any(Watch::is_suspected)
    }
}

/// Whether the next batches are looked at whole, and what was read in.
#[derive(Debug)]
struct Watch {
    /// So many looks are still whole.
    suspicion: AtomicU32,
    pages_read: AtomicU64,
}

/// Looks that are whole after one that missed something.
const SUSPICION: u32 = 16;
/// The same for a store that was just opened.
const FIRST_SUSPICION: u32 = 8;
/// Rows for one look at a row of a warm store: it takes two microseconds, and copying so many of 3 KB takes 350.
const ROWS_A_LOOK: usize = 1024;
/// The index is a small part of a store and stays in memory longest.
const KEYS_A_LOOK: usize = 4096;
/// A batch of so many has a look at each stage.
const LARGE_BATCH: usize = 1024;

impl Default for Watch {
    fn default() -> Self {
        Self { suspicion: AtomicU32::new(FIRST_SUSPICION), pages_read: AtomicU64::new(0) }
    }
}

impl Watch {
    /// Whether something was missing lately.
    fn is_suspected(&self) -> bool {
        self.suspicion.load(Ordering::Relaxed) > 0
    }

    /// Whether a stage of a batch of `keys` is to be looked at whole: because something was missing lately, or because
    /// it is at one of a few positions, chosen by `salt`, which differs from batch to batch.
    fn suspects(&self, keys: usize, keys_a_look: usize, salt: u64, is_resident: impl Fn(usize) -> bool) -> bool {
        if self.is_suspected() {
            return true;
        }
        // The remainder decides whether a small batch is looked at, the rest where.
        let (start, turn) = (salt as usize / keys_a_look, salt as usize % keys_a_look);
        if turn >= keys && keys < LARGE_BATCH {
            return false;
        }
        let looks = (0..keys.div_ceil(keys_a_look)).map(|look| (start + look * keys_a_look) % keys);
        let missing = looks.into_iter().any(|position| !is_resident(position));
        if missing {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
        }
        missing
    }

    /// Brings in `ranges`; `path_of` says which file a range is in.
    fn bring_in<'a, 'p>(
        &self,
        ranges: impl Iterator<Item = Option<&'a [u8]>>,
        path_of: impl Fn(usize) -> Option<&'p Path>,
    ) -> Result<()> {
        let wanted = ranges.enumerate().filter_map(|(position, bytes)| Some(Wanted { bytes: bytes?, position }));
        let mut wanted: Vec<_> = wanted.collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let brought = bring_in(&mut wanted);
        let missing_pages = brought
            .map_err(|(position, error)| Error::io("read", path_of(position).unwrap_or(Path::new("")), error))?;
        let suspicion = self.suspicion.load(Ordering::Relaxed);
        if missing_pages > 0 {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
            self.pages_read.fetch_add(missing_pages as u64, Ordering::Relaxed);
        } else {
            self.suspicion.store(suspicion.saturating_sub(1), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Core {
    /// Brings in what looking up `asked` touches: buckets, the tables of batches that were not parsed yet, and keys.
    ///
    /// # Errors
    /// [`Error::Io`] if some of it cannot be read.
    pub(crate) fn bring_in_index(&self, asked: &[Asked<'_>]) -> Result<()> {
        let view = self.view.load();
        let runs = &view.runs;
        let of_all_runs = |at: usize, resident: fn(&LoadedRun, &Asked<'_>) -> bool| {
            asked.get(at).is_none_or(|asked| runs.iter().all(|run| resident(run, asked)))
        };
        let watch = &self.cold.buckets;
        if watch.suspects(asked.len(), KEYS_A_LOOK, salt(asked), |at| of_all_runs(at, bucket_is_resident)) {
            let buckets = runs.iter().flat_map(|loaded| asked.iter().map(|asked| loaded.run.bucket_bytes(asked.hash)));
            watch.bring_in(buckets, |at| runs.get(at / asked.len().max(1)).map(|loaded| loaded.run.path()))?;
        }
        let watch = &self.cold.keys;
        if !watch.suspects(asked.len(), KEYS_A_LOOK, salt(asked), |at| of_all_runs(at, key_is_resident)) {
            return Ok(());
        }
        let places: Vec<Place<'_>> = runs.iter().flat_map(|loaded| places(loaded, asked)).collect();
        self.bring_in_tables(&places)?;
        let path = |at: usize| places.get(at).map(|place| &**place.segment.described());
        let keys = || places.iter().map(|place| Some((&place.batch()?.columns.keys, place.within)));
        watch.bring_in(keys().map(|key| key.and_then(|(column, row)| key_offsets(column, row))), path)?;
        watch.bring_in(keys().map(|key| key.and_then(|(column, row)| column.get(row))), path)
    }

    /// Parsing a batch for the first time reads its keys, row checksums and offsets.
    fn bring_in_tables(&self, places: &[Place<'_>]) -> Result<()> {
        let mut unread: Vec<(&Segment, usize)> = places
            .iter()
            .filter(|place| !place.segment.is_parsed(place.number))
            .map(|place| (place.segment, place.number))
            .collect();
        unread.sort_unstable_by_key(|(segment, number)| (segment.id, *number));
        unread.dedup_by_key(|(segment, number)| (segment.id, *number));
        // What lies beyond the end of its file is for parsing to report.
        let table = |(segment, number): &(&Segment, usize)| match segment.structure_bytes(*number) {
            Err(error) if !error.is_corrupt() => Err(error),
            bytes => Ok(bytes.unwrap_or_default()),
        };
        let tables: Vec<Bytes> = unread.iter().map(table).collect::<Result<_>>()?;
        let path = |at: usize| unread.get(at).map(|(segment, _)| &**segment.described());
        self.cold.keys.bring_in(tables.iter().map(|bytes| Some(&**bytes)), path)
    }

    /// Brings in the rows of `located`: what tells where their values are, then values and row checksums.
    ///
    /// # Errors
    /// [`Error::Io`] if some of it cannot be read.
    pub(crate) fn bring_in_rows(&self, asked: &[Asked<'_>], rows: &[Option<Row<'_>>]) -> Result<()> {
        let at = |position: usize| rows.get(position).and_then(Option::as_ref);
        let resident = |position| at(position).is_none_or(|row| values(row).all(is_resident));
        if !self.cold.rows.suspects(rows.len(), ROWS_A_LOOK, salt(asked), resident) {
            return Ok(());
        }
        let verify = self.options.verify;
        let found: Vec<&Row<'_>> = rows.iter().flatten().collect();
        // Rows of one length tell where they are; others have to be asked first.
        self.bring_in_each(&found, |row| offsets(row).collect())?;
        self.bring_in_each(&found, |row| crc(row, verify).into_iter().chain(values(row)).collect())
    }

    fn bring_in_each<'a>(&self, rows: &[&'a Row<'_>], ranges: impl Fn(&'a Row<'_>) -> Vec<&'a [u8]>) -> Result<()> {
        let ranges: Vec<_> =
            rows.iter().flat_map(|row| ranges(row).into_iter().map(move |bytes| (*row, bytes))).collect();
        self.cold.rows.bring_in(ranges.iter().map(|(_, bytes)| Some(*bytes)), |at| path_of(ranges.get(at)?.0))
    }
}

/// A number that differs from batch to batch.
fn salt(asked: &[Asked<'_>]) -> u64 {
    asked.first().map_or(0, |asked| asked.hash)
}

/// Where a key that a run proposes is.
struct Place<'a> {
    segment: &'a Segment,
    /// Of the batch in the segment.
    number: usize,
    within: usize,
}

impl<'a> Place<'a> {
    /// `None` if it is damaged, which locating reports.
    fn batch(&self) -> Option<&'a Batch> {
        self.segment.batch(self.number).ok().map(|batch| &**batch)
    }
}

/// The places of the rows whose tags match. What is damaged has none: locating reports it.
fn places<'a>(loaded: &'a LoadedRun, asked: &[Asked<'_>]) -> Vec<Place<'a>> {
    let mut places = Vec::with_capacity(asked.len());
    for asked in asked {
        let _damaged = loaded.run.find(asked.hash, &mut |run_row| places.extend(place(loaded, run_row)));
    }
    places
}

fn place(loaded: &LoadedRun, run_row: u64) -> Option<Place<'_>> {
    let (segment, number, within) = loaded.directory().source(run_row)?;
    Some(Place { segment: loaded.segments.get(segment)?, number, within })
}

fn bucket_is_resident(loaded: &LoadedRun, asked: &Asked<'_>) -> bool {
    loaded.run.bucket_bytes(asked.hash).is_none_or(is_resident)
}

/// Whether comparing the keys that the run proposes for `asked` touches nothing that is not in memory.
fn key_is_resident(loaded: &LoadedRun, asked: &Asked<'_>) -> bool {
    let in_memory = |bytes: Option<&[u8]>| bytes.is_none_or(is_resident);
    places(loaded, std::slice::from_ref(asked)).iter().all(|place| {
        place.segment.is_parsed(place.number)
            && place.batch().is_none_or(|batch| {
                let keys = &batch.columns.keys;
                in_memory(key_offsets(keys, place.within)) && in_memory(keys.get(place.within))
            })
    })
}

/// What tells where a key lies, for keys of several lengths.
fn key_offsets(column: &KeyColumn, row: usize) -> Option<&[u8]> {
    match column {
        KeyColumn::U64(_) => None,
        KeyColumn::Variable { offsets, .. } => offset_pair(offsets, row),
    }
}

fn offset_pair(offsets: &[u8], row: usize) -> Option<&[u8]> {
    let start = row.checked_mul(4)?;
    offsets.get(start..start.checked_add(8)?)
}

/// The row's checksum, if it will be compared. Rows in memory have none.
fn crc<'a>(row: &'a Row<'_>, verify: Verify) -> Option<&'a [u8]> {
    match &row.holder {
        Holder::Pending(..) => None,
        Holder::Batch(batch, _) => batch.crc_to_compare(row.row, verify),
        Holder::Viewed(head) => head.batch.crc_to_compare(row.row, verify),
    }
}

/// What tells where the row's values lie, for values of several lengths.
fn offsets<'a>(row: &'a Row<'_>) -> impl Iterator<Item = &'a [u8]> {
    let of_leaf = |leaf: &'a LeafColumn| match leaf {
        LeafColumn::Variable { offsets, dims, rank, .. } => {
            let width = rank.saturating_mul(4);
            let start = row.row.saturating_mul(width);
            [offset_pair(offsets, row.row), dims.get(start..start.saturating_add(width))]
        }
        LeafColumn::Fixed { .. } | LeafColumn::Bits(_) => [None, None],
    };
    row.columns().leaves.iter().flat_map(of_leaf).flatten()
}

/// The stored bytes of a row.
fn values<'a>(row: &'a Row<'_>) -> impl Iterator<Item = &'a [u8]> {
    row.columns().leaves.iter().filter_map(|leaf| Some(leaf.get(row.row)?.as_slice()))
}

fn path_of<'a>(row: &'a Row<'_>) -> Option<&'a Path> {
    match &row.holder {
        Holder::Pending(..) => None,
        Holder::Batch(batch, _) => Some(batch.path()),
        Holder::Viewed(head) => Some(head.batch.path()),
    }
}
