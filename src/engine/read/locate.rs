//! Where the row of a key is, or why there is none.

use std::path::PathBuf;

use crate::engine::follow::refresh;
use crate::engine::lookup::find::find;
use crate::engine::read::rows::queries;
use crate::engine::rows::row::{Holder, Row};
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::Keys;

/// Where the newest row of a key is; see [`crate::Reader::locate`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Location {
    /// No row of the key is known. It was never put, or it was deleted and compaction has dropped the tombstone.
    Absent,
    /// The key has a value in this row.
    Present(RowPlace),
    /// The key was deleted by this tombstone, which is its newest row.
    Deleted(RowPlace),
    /// The newest row of the key cannot be read, or damage hides whether there is one.
    Damaged(Error),
}

/// The place of a row.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RowPlace {
    /// The segment's file; `None` if the row waits to be written.
    pub path: Option<PathBuf>,
    /// Its commit timestamp in seconds since 1970; `None` if the row waits to be written.
    pub committed_s: Option<f64>,
}

/// Finds the newest row of the only key of `keys`, and compares its checksum.
pub(crate) fn locate(state: &State, keys: Keys<'_>) -> Result<Location> {
    refresh(state)?;
    let Some(queries) = queries(state, keys)? else { return Ok(Location::Absent) };
    find(state, &queries, |located| {
        if let Some((_, error)) = located.errors.into_iter().next() {
            return if error.is_corrupt() { Ok(Location::Damaged(error)) } else { Err(error) };
        }
        let Some(row) = located.rows.into_iter().flatten().next() else { return Ok(Location::Absent) };
        match row.check(state.options().verify) {
            Err(error) if error.is_corrupt() => return Ok(Location::Damaged(error)),
            checked => checked?,
        }
        let place = place(&row);
        Ok(if row.is_tombstone() { Location::Deleted(place) } else { Location::Present(place) })
    })
}

fn place(row: &Row<'_>) -> RowPlace {
    let batch = match &row.holder {
        Holder::Pending(..) => return RowPlace::default(),
        Holder::Batch(batch, _) => batch,
        Holder::Cached(cached) => &cached.batch,
    };
    RowPlace { path: Some(batch.path().to_path_buf()), committed_s: Some(batch.timestamp(row.row) as f64 / 1e6) }
}
