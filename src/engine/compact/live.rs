//! Finds the live rows of a sealed segment: those whose key has no newer row in an index run.

use std::sync::Arc;

use crate::engine::lookup::find::{Finder, find};
use crate::engine::lookup::query::{Located, Query};
use crate::engine::rows::row::RowVersion;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::KeyRef;
use crate::segment::batch::Batch;
use crate::segment::reader::Segment;

/// The number of keys in one lookup.
const KEYS: usize = 4096;

/// The live rows of a segment, as one bit a row.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    bits: Vec<u64>,
}

impl Live {
    fn none(rows: u32) -> Self {
        Self { bits: vec![0; (rows as usize).div_ceil(64)] }
    }

    /// Whether `row` is live.
    pub(crate) fn contains(&self, row: u32) -> bool {
        self.bits.get(row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    fn add(&mut self, row: u32) {
        if let Some(word) = self.bits.get_mut(row as usize / 64) {
            *word |= 1 << (row % 64);
        }
    }

    /// Marks `row` as dead.
    pub(crate) fn remove(&mut self, row: u32) {
        if let Some(word) = self.bits.get_mut(row as usize / 64) {
            *word &= !(1 << (row % 64));
        }
    }

    /// The number of live rows.
    pub(crate) fn count(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Where to look for newer rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newer {
    /// In the sealed segments that index runs cover.
    Sealed,
    /// Also in the memtable. For dry runs, which change nothing.
    Anywhere,
}

/// Finds the live rows of `segment`. O(rows) lookups.
///
/// # Errors
/// [`Error::Corrupt`] if a row of the segment, or a row that may be newer, cannot be read; IO errors.
pub(crate) fn live_rows(state: &State, segment: &Segment, newer: Newer) -> Result<Live> {
    let mut live = Live::none(segment.rows());
    let mut finder = Finder::new(KEYS);
    for batch in batches(segment)? {
        let batch = batch?;
        let first_row = batch.frame.first_row as u32;
        find_live((state, &mut finder, newer), segment, &batch, 1, &mut |row| live.add(first_row + row))?;
    }
    Ok(live)
}

/// Whether a sample of a few hundred rows suggests that at most `share` of the rows of `segment` are live.
pub(crate) fn sample_is_sparse(state: &State, segment: &Segment, share: f64) -> bool {
    const BATCHES: usize = 16;
    const ROWS_A_BATCH: usize = 32;
    let Ok(frames) = segment.batches().map(|batches| batches.frames()) else { return false };
    let mut finder = Finder::new(ROWS_A_BATCH);
    let (mut live, mut looked_at) = (0_u32, 0_u32);
    for number in (0..frames.len()).step_by(frames.len().div_ceil(BATCHES).max(1)) {
        let Ok(batch) = batch(segment, number) else { return false };
        let step = batch.columns.rows.div_ceil(ROWS_A_BATCH).max(1);
        looked_at += batch.columns.rows.div_ceil(step) as u32;
        if find_live((state, &mut finder, Newer::Sealed), segment, &batch, step, &mut |_| live += 1).is_err() {
            return false;
        }
    }
    // A sample of this size estimates the share to within a few hundredths.
    f64::from(live) <= (share + 0.05) * f64::from(looked_at)
}

/// Examines every `step`-th row of a batch, and calls `live` with those that are live.
fn find_live(
    (state, finder, newer): (&State, &mut Finder, Newer),
    segment: &Segment,
    batch: &Batch,
    step: usize,
    live: &mut dyn FnMut(u32),
) -> Result<()> {
    let rows: Vec<u32> = (0..batch.columns.rows as u32).step_by(step).collect();
    let keys: Option<Vec<Query<'_>>> = rows
        .iter()
        .map(|row| {
            let key = batch.columns.key(*row as usize)?;
            Some(Query { key: KeyRef::Bytes(key), hash: state.hasher().hash(key) })
        })
        .collect();
    let keys = keys.ok_or_else(|| batch.corrupt(0, "a row has no key"))?;
    for (rows, queries) in rows.chunks(KEYS).zip(keys.chunks(KEYS)) {
        let note = |located: Located<'_>| {
            if let Some((_, error)) = located.errors.into_iter().next() {
                return Err(error);
            }
            for (row, found) in rows.iter().zip(&located.rows) {
                let order = batch.frame.first_row + u64::from(*row);
                let version = RowVersion { timestamp: batch.timestamp(*row as usize), lane: segment.id.lane, order };
                if found.as_ref().is_none_or(|found| found.version() <= version) {
                    live(*row);
                }
            }
            Ok(())
        };
        match newer {
            Newer::Sealed => finder.find_merged(state, queries, note)?,
            Newer::Anywhere => find(state, queries, note)?,
        }
    }
    Ok(())
}

/// All batches of a segment, in order. Each is parsed anew and not cached.
///
/// # Errors
/// IO errors; [`Error::Corrupt`] if rows are lost. An item is [`Error::Corrupt`] if its batch is damaged.
pub(crate) fn batches(segment: &Segment) -> Result<impl Iterator<Item = Result<Arc<Batch>>>> {
    let frames = segment.batches()?.frames();
    let rows: u64 = frames.iter().map(|frame| u64::from(frame.rows)).sum();
    if rows != u64::from(segment.rows()) {
        return Err(segment.lost());
    }
    Ok((0..frames.len()).map(|number| batch(segment, number)))
}

/// Batch `number` of a segment, parsed anew and not cached.
///
/// # Errors
/// [`Error::Corrupt`] if it is damaged; IO errors.
pub(crate) fn batch(segment: &Segment, number: usize) -> Result<Arc<Batch>> {
    segment.parse_anew(number)?.map_err(|damaged| Error::clone(damaged.error()))
}

/// Validates every byte of a segment, and returns whether all of it is undamaged. O(bytes).
///
/// # Errors
/// IO errors.
pub(crate) fn is_whole(segment: &Segment) -> Result<bool> {
    if segment.front_damage().is_some() || !segment.check_structure().is_empty() {
        return Ok(false);
    }
    for batch in batches(segment)? {
        match batch {
            Ok(batch) if batch.damaged_rows().is_empty() => {}
            Err(error) if !error.is_corrupt() => return Err(error),
            _ => return Ok(false),
        }
    }
    Ok(true)
}
