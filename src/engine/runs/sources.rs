//! Rows of several sources under one numbering.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::rows::row::{BatchId, Row, RowVersion, Source};
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::engine::state::memtable::Inserting;
use crate::error::Result;
use crate::index::merge::HashRow;

/// All sources of rows, each once: sealed segments, and batches whose rows are in none. No segment is replaced while
/// the caller holds the insert lock.
pub(crate) fn all_sources(state: &State, _: &Inserting<'_>) -> Vec<(BatchId, MemBatch)> {
    // Batches first: rows move from batches to the version.
    let batches = state.memtable().sorted();
    let version = state.versions().load();
    // A batch may have been written meanwhile, and be in the version. Newest first: once a batch is found written,
    // those put before it have been written too.
    let batches =
        batches.into_iter().rev().map(|(number, batch)| (number, MemBatch { source: batch.source.now(), ..batch }));
    let mut all: Vec<(BatchId, MemBatch)> = version
        .segments()
        .values()
        .map(|segment| (0, MemBatch { source: Source::Sealed(Arc::clone(segment)), rows: segment.rows() }))
        .collect();
    // A compacted segment that is not published yet has rows of segments that are.
    let is_entering = |source: &Source| matches!(source, Source::Sealed(segment) if segment.front.header.compacted);
    all.extend(batches.filter(|(_, batch)| {
        let is_sealed = batch.source.segment().is_some_and(|id| version.segments().contains_key(&id));
        !is_sealed && !is_entering(&batch.source)
    }));
    all
}

/// Rows of several sources under one numbering, as in a run.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Whether rows with one hash are of one key.
    hash_is_key: bool,
    batches: Vec<(BatchId, MemBatch)>,
    starts: Vec<u64>,
    end: u64,
    /// The tombstones, in order: a source has only tombstones, or none.
    tombstones: Vec<Range<u64>>,
}

impl Sources {
    /// Starts without rows.
    pub(crate) fn new(state: &State) -> Self {
        let hash_is_key = state.hasher().is_whole();
        Self { hash_is_key, batches: Vec::new(), starts: Vec::new(), end: 0, tombstones: Vec::new() }
    }

    /// Adds a source; returns the number of its first row.
    pub(crate) fn add(&mut self, number: BatchId, batch: MemBatch) -> u64 {
        let start = self.end;
        self.end += u64::from(batch.rows);
        if batch.source.is_tombstones() {
            self.tombstones.push(start..self.end);
        }
        self.starts.push(start);
        self.batches.push((number, batch));
        start
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> u64 {
        self.end
    }

    fn at(&self, row: u64) -> Option<(&(BatchId, MemBatch), u32)> {
        let position = self.starts.partition_point(|start| *start <= row).checked_sub(1)?;
        let within = row - self.starts.get(position)?;
        Some((self.batches.get(position)?, u32::try_from(within).ok()?))
    }

    fn row(&self, row: u64) -> Result<Option<Row<'static>>> {
        match self.at(row) {
            Some(((number, batch), within)) => batch.source.row(*number, within),
            None => Ok(None),
        }
    }

    /// How many of `entries` are not tombstones. O(entries · log tombstone sources).
    pub(crate) fn count_values(&self, entries: &[HashRow]) -> u64 {
        if self.tombstones.is_empty() {
            return entries.len() as u64;
        }
        let is_value = |row: u64| {
            let before = self.tombstones.partition_point(|rows| rows.start <= row).checked_sub(1);
            before.and_then(|last| self.tombstones.get(last)).is_none_or(|rows| !rows.contains(&row))
        };
        entries.iter().filter(|(_, row)| is_value(*row)).count() as u64
    }

    /// Keeps the newest row of each key among rows that share a hash. An unreadable row stays unless a newer row with
    /// its hash can be read: while it may hide something, its lookup must report the damage.
    pub(crate) fn keep_newest(&self, rows: &mut Vec<u64>) -> Result<()> {
        let mut newest: Vec<(Row<'static>, u64)> = Vec::with_capacity(rows.len());
        let mut unread: Vec<(RowVersion, u64)> = Vec::new();
        for &number in rows.iter() {
            let Ok(Some(row)) = self.row(number) else {
                let version =
                    self.at(number).map_or(RowVersion::NEWEST, |((_, batch), within)| batch.source.version(within));
                unread.push((version, number));
                continue;
            };
            match newest.iter_mut().find(|(kept, _)| kept.key() == row.key()) {
                Some(kept) if kept.0.version() < row.version() => *kept = (row, number),
                Some(_) => {}
                None => newest.push((row, number)),
            }
        }
        if self.hash_is_key && !unread.is_empty() {
            // All rows are of one key: the newest stays, readable or not.
            unread.sort_unstable();
            unread.drain(..unread.len() - 1);
            unread.retain(|(version, _)| newest.iter().all(|(row, _)| row.version() < *version));
            newest.retain(|(row, _)| unread.iter().all(|(version, _)| *version < row.version()));
        }
        rows.clear();
        rows.extend(newest.into_iter().map(|(_, number)| number).chain(unread.into_iter().map(|(_, number)| number)));
        rows.sort_unstable();
        Ok(())
    }
}
