//! Groups the segments whose live rows go into one new segment.

use std::sync::Arc;

use crate::engine::compact::live::{Live, batch};
use crate::engine::compact::recode::{target, unpacked_bytes};
use crate::engine::options::{Compaction, Options};
use crate::error::Result;
use crate::schema::{ROW_LAYOUT_VERSION, RowSchema};
use crate::segment::batch::Batch;
use crate::segment::reader::Segment;

/// Under a cap, a segment grows to this part of it at most: of bytes, when rows are unpacked or sorted; of time, when
/// segments are joined.
pub(crate) const PARTS_OF_CAP: u64 = 4;

/// A segment that may be rewritten.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub segment: Arc<Segment>,
    pub live: Live,
    /// The approximate size of its live rows in bytes.
    live_bytes: u64,
    /// Tombstones that are dead only because they are no longer needed.
    pub needless: u64,
    /// The structure of its rows after compaction.
    pub target: Arc<RowSchema>,
    /// Its share of live rows is low enough to rewrite it, or its rows are to be stored in another way.
    pub is_due: bool,
    /// Its batches are so small that they are joined.
    pub is_fragmented: bool,
}

impl Candidate {
    /// `None` if enough rows of the segment are live and `options` neither join nor sort segments.
    pub(crate) fn new(segment: Arc<Segment>, live: Live, options: &Compaction) -> Option<Self> {
        let (rows, live_rows) = (u64::from(segment.rows()), live.count());
        let target = target(segment.schema(), options);
        let is_sparse = live_rows < rows && (live_rows as f64) <= options.live_share * rows as f64;
        let is_fragmented = is_fragmented(&segment);
        let is_due = is_sparse || is_fragmented || target != *segment.schema();
        let is_candidate = is_due || options.join || options.sort.is_some();
        is_candidate.then(|| {
            let live_bytes = live_len_bytes(&segment, &live);
            Self { segment, live, live_bytes, needless: 0, target, is_due, is_fragmented }
        })
    }

    /// The live rows of `batch`, which is one of the segment's.
    pub(crate) fn live_rows(&self, batch: &Batch) -> Vec<usize> {
        let first = batch.frame.first_row as u32;
        (0..batch.columns.rows).filter(|row| self.live.contains(first + *row as u32)).collect()
    }

    /// Compares the checksums of `rows` of `batch`, which is one of the segment's.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if one does not match: a copy of the row would get a matching one.
    pub(crate) fn check_rows(&self, batch: &Batch, rows: &[usize]) -> Result<()> {
        match batch.damaged_rows().into_iter().find(|row| rows.binary_search(row).is_ok()) {
            Some(damaged) => {
                self.segment.note_damaged();
                Err(batch.corrupt(damaged, "the checksum of a row does not match"))
            }
            None => Ok(()),
        }
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
}

/// Whether the batches of `segment` are so many, and so small, that it is rewritten to join them: rows that were flushed
/// one by one have a batch each, with a few hundred bytes that are no rows.
pub(crate) fn is_fragmented(segment: &Segment) -> bool {
    can_be_joined(segment) && is_in_fragments(batches(segment), segment.len_bytes)
}

/// Whether the rows of `group` would be in so many small batches, if their batches were copied as they are. Then the next
/// compaction would rewrite them again.
pub(crate) fn stays_fragmented(group: &[Candidate]) -> bool {
    let number: usize = group.iter().map(|candidate| batches(&candidate.segment)).sum();
    let len_bytes = group.iter().map(|candidate| candidate.live_bytes).sum();
    group.iter().all(|candidate| can_be_joined(&candidate.segment)) && is_in_fragments(number, len_bytes)
}

fn is_in_fragments(batches: usize, len_bytes: u64) -> bool {
    const MANY: usize = 16;
    const SMALL_LEN_BYTES: u64 = 16 << 10;
    batches >= MANY && len_bytes / (batches as u64) < SMALL_LEN_BYTES
}

/// Whether rows of several commits can be in one batch of its store.
fn can_be_joined(segment: &Segment) -> bool {
    segment.front.header.format >= ROW_LAYOUT_VERSION
}

/// The number of batches of `segment`. Damage is reported where rows are read.
fn batches(segment: &Segment) -> usize {
    segment.batches().map_or(0, |batches| batches.frames().len())
}

/// The approximate size of the `live` rows of `segment` in bytes, without the metadata of batches that are joined.
fn live_len_bytes(segment: &Segment, live: &Live) -> u64 {
    if is_fragmented(segment)
        && let Ok(len_bytes) = rows_len_bytes(segment, live)
    {
        return len_bytes;
    }
    let rows = u64::from(segment.rows()).max(1);
    (u128::from(segment.len_bytes) * u128::from(live.count()) / u128::from(rows)) as u64
}

/// Bytes of the `live` rows of `segment`, with those of the index. O(rows).
fn rows_len_bytes(segment: &Segment, live: &Live) -> Result<u64> {
    const OF_INDEX: usize = 12;
    let mut len_bytes = 0;
    for number in 0..batches(segment) {
        let batch = batch(segment, number)?;
        let rows = (0..batch.columns.rows).filter(|row| live.contains(batch.frame.first_row as u32 + *row as u32));
        len_bytes += rows.filter_map(|row| batch.row_len_bytes(row)).map(|len| (len + OF_INDEX) as u64).sum::<u64>();
    }
    Ok(len_bytes)
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
    let (most_bytes, most_rows) = limits(store, options);
    let most_us = most_us(store);
    let mut groups: Vec<Vec<Candidate>> = Vec::new();
    let (mut bytes, mut rows, mut span) = (u64::MAX, u64::MAX, (0, 0));
    for candidate in candidates {
        // A segment that live rows fill by more than half is not joined.
        let is_small = candidate.live_bytes <= store.segment_bytes / 2;
        if !(candidate.is_due || options.sort.is_some() || options.join && is_small) {
            continue;
        }
        let (more_bytes, more_rows) = (candidate.live_bytes, candidate.live.count());
        let (first, last) = (candidate.segment.seal.first_timestamp, candidate.segment.seal.last_timestamp);
        let fits = bytes.saturating_add(more_bytes) <= most_bytes
            && rows.saturating_add(more_rows) <= most_rows
            && span.1.max(last).saturating_sub(span.0) <= most_us;
        match groups.last_mut().filter(|_| fits) {
            Some(group) => group.push(candidate),
            None => {
                (bytes, rows, span) = (0, 0, (first, last));
                groups.push(vec![candidate]);
            }
        }
        bytes += more_bytes;
        rows += more_rows;
        span.1 = span.1.max(last);
    }
    groups.retain(|group| group.len() > 1 || options.sort.is_some() || group.iter().any(|candidate| candidate.is_due));
    groups
}

/// At most so many microseconds lie between the commits of rows that get into one segment from several: a segment is
/// evicted when all its rows are too old, so old rows would stay as long as new ones join them.
fn most_us(store: &Options) -> u64 {
    store.caps.age.map_or(u64::MAX, |age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX) / PARTS_OF_CAP)
}

/// At most so many bytes and rows a new segment gets from several.
fn limits(store: &Options, options: &Compaction) -> (u64, u64) {
    if options.sort.is_none() {
        return (store.segment_bytes, u64::from(store.segment_rows));
    }
    // Segments stay small against a cap: otherwise evicting one would empty the store.
    let most = store.caps.disk_bytes.map_or(u64::MAX, |cap| cap / PARTS_OF_CAP);
    (options.sorted_segment_bytes.min(most), u64::from(u32::MAX) / 2)
}
