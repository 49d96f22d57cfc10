//! The batches of the stores that are merged, in the order of their commit timestamps.

use std::sync::Arc;

use crate::engine::compact::live::batch;
use crate::engine::rows::row::{RowVersion, Source};
use crate::engine::runs::sources::all_sources;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::names::SegmentId;
use crate::segment::batch::Batch;
use crate::segment::reader::Segment;

/// A batch of a source.
#[derive(Debug)]
pub(super) struct Piece {
    /// No row of it is newer.
    pub timestamp: u64,
    pub rows: u32,
    /// The number of its source.
    pub source: usize,
    id: SegmentId,
    first_row: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Batch of this number.
    Sealed(Arc<Segment>, usize),
    Open(Arc<Batch>),
    /// Rows of the segment that no frame locates.
    Lost(Arc<Segment>),
}

impl Piece {
    /// The batch, parsed anew and not cached if it is sealed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged; IO errors.
    pub(super) fn batch(&self) -> Result<Arc<Batch>> {
        match &self.place {
            Place::Sealed(segment, number) => batch(segment, *number),
            Place::Open(batch) => Ok(Arc::clone(batch)),
            Place::Lost(segment) => Err(segment.lost()),
        }
    }

    /// The lane of its rows.
    pub(super) fn lane(&self) -> u16 {
        self.id.lane
    }

    /// The version of row `row` of `batch`, which is that of the piece.
    pub(super) fn version(&self, batch: &Batch, row: usize) -> RowVersion {
        RowVersion { timestamp: batch.timestamp(row), lane: self.id.lane, order: self.first_row + row as u64 }
    }

    /// Whether its rows have commit timestamps of their own.
    pub(super) fn has_times(&self) -> bool {
        match &self.place {
            Place::Sealed(segment, _) | Place::Lost(segment) => segment.front.header.row_times,
            Place::Open(batch) => batch.columns.times.is_some(),
        }
    }
}

/// The batches of `sources`, oldest first. O(batches · log batches).
///
/// # Errors
/// IO errors.
pub(super) fn pieces(sources: &[Arc<State>]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for (source, state) in sources.iter().enumerate() {
        for (_, rows) in all_sources(state, &state.memtable().lock_inserts()) {
            match rows.source {
                Source::Sealed(segment) => add_segment(&mut pieces, source, &segment)?,
                Source::Committed { segment: id, batch, first: 0 } => pieces.push(Piece {
                    timestamp: batch.frame.timestamp,
                    rows: batch.frame.rows,
                    source,
                    id,
                    first_row: batch.frame.first_row,
                    place: Place::Open(batch),
                }),
                Source::Committed { .. } | Source::Pending(_) => {
                    return Err(Error::internal("a reader has rows that its process writes"));
                }
            }
        }
    }
    pieces.sort_by_key(|piece| (piece.timestamp, piece.source, piece.id, piece.first_row));
    Ok(pieces)
}

fn add_segment(pieces: &mut Vec<Piece>, source: usize, segment: &Arc<Segment>) -> Result<()> {
    let frames = segment.batches()?.frames();
    for (number, frame) in frames.iter().enumerate() {
        pieces.push(Piece {
            timestamp: frame.timestamp,
            rows: frame.rows,
            source,
            id: segment.id,
            first_row: frame.first_row,
            place: Place::Sealed(Arc::clone(segment), number),
        });
    }
    let located: u64 = frames.iter().map(|frame| u64::from(frame.rows)).sum();
    let lost = u64::from(segment.rows()).saturating_sub(located);
    if lost > 0 {
        pieces.push(Piece {
            timestamp: segment.seal.last_timestamp,
            rows: lost as u32,
            source,
            id: segment.id,
            first_row: u64::from(segment.rows()),
            place: Place::Lost(Arc::clone(segment)),
        });
    }
    Ok(())
}
