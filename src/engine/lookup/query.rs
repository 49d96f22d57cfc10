//! Queries, and their results.

use crate::engine::rows::row::{BatchId, Row};
use crate::error::Error;
use crate::key::KeyRef;

/// A row that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found<'v> {
    pub row: Row<'v>,
    /// Its entry in the memtable, if it was found there: (batch id, row).
    pub entry: Option<(BatchId, u32)>,
}

/// A key of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    pub key: KeyRef<'a>,
    pub hash: u64,
}

/// The rows of a batch of keys, tombstones included, and the positions at which damage hides the answer.
pub(crate) struct Located<'v> {
    pub rows: Vec<Option<Row<'v>>>,
    pub errors: Vec<(usize, Error)>,
}

impl<'v> Located<'v> {
    /// Positions that have neither a row nor damage. O(keys).
    pub(crate) fn missing(&self) -> Vec<usize> {
        let mut open: Vec<bool> = self.rows.iter().map(Option::is_none).collect();
        for (position, _) in &self.errors {
            if let Some(open) = open.get_mut(*position) {
                *open = false;
            }
        }
        open.iter().enumerate().filter(|(_, open)| **open).map(|(at, _)| at).collect()
    }

    /// Merges the results for the keys at `positions`.
    pub(crate) fn add(&mut self, positions: &[usize], found: Located<'v>) {
        for (at, row) in positions.iter().zip(found.rows) {
            if let Some(place) = self.rows.get_mut(*at) {
                *place = row;
            }
        }
        let errors = found.errors.into_iter();
        self.errors.extend(errors.filter_map(|(at, error)| Some((*positions.get(at)?, error))));
    }

    /// Removes tombstones: deleted keys have no row.
    pub(crate) fn forget_deleted(&mut self) {
        for row in &mut self.rows {
            if row.as_ref().is_some_and(Row::is_tombstone) {
                *row = None;
            }
        }
    }
}
