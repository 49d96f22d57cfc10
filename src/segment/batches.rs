//! The batches of a sealed segment: where they are, and those that were parsed.

use std::sync::{Arc, OnceLock};

use super::batch::Batch;
use super::layout::{Frame, Seal};

/// All batches of a segment, in order.
#[derive(Debug)]
pub(crate) struct Batches {
    frames: Vec<Frame>,
    first_rows: Vec<u32>,
    rows: u64,
    parsed: Vec<OnceLock<Arc<Batch>>>,
}

impl Batches {
    /// Batches with these frames; `None` if they are not those of a segment with this seal, or reach beyond the end of its
    /// file. O(batches).
    pub(crate) fn new(frames: Vec<Frame>, seal: &Seal, len_bytes: u64) -> Option<Self> {
        let mut rows = 0_u64;
        let fits = frames.iter().all(|frame| {
            let follows = frame.first_row == rows;
            rows = rows.saturating_add(u64::from(frame.rows));
            follows && frame.rows > 0 && frame.seed == seal.seed && frame.end_offset() <= len_bytes
        });
        if !fits || rows != seal.rows {
            return None;
        }
        Some(Self {
            parsed: frames.iter().map(|_| OnceLock::new()).collect(),
            first_rows: frames.iter().map(|frame| frame.first_row as u32).collect(),
            rows,
            frames,
        })
    }

    /// Their commit frames.
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The place of batch `number`, once it was parsed; `None` if there is no such batch.
    #[inline]
    pub(crate) fn parsed(&self, number: usize) -> Option<&OnceLock<Arc<Batch>>> {
        self.parsed.get(number)
    }

    /// The batch and the row in it that `row` of the segment is; `None` past the end.
    #[inline]
    pub(crate) fn locate(&self, row: u32) -> Option<(usize, usize)> {
        // Batches mostly have as many rows as the first.
        let guess = self.frames.first().map_or(0, |first| row / first.rows.max(1)) as usize;
        let starts_after = |number: usize| self.first_rows.get(number).is_none_or(|first| *first > row);
        let number = if !starts_after(guess) && starts_after(guess + 1) {
            guess
        } else {
            self.first_rows.partition_point(|first| *first <= row).checked_sub(1)?
        };
        let within = row - self.first_rows.get(number)?;
        (u64::from(row) < self.rows).then_some((number, within as usize))
    }
}
