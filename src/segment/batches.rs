//! The batches of a sealed segment: their places, and those that were parsed.

use std::sync::OnceLock;

use super::damaged::Parsed;
use super::layout::{Frame, Seal};

/// The batches of a segment, in order. In a damaged segment, rows between them may be in no batch.
#[derive(Debug)]
pub(crate) struct Batches {
    frames: Vec<Frame>,
    first_rows: Vec<u32>,
    parsed: Vec<OnceLock<Parsed>>,
}

impl Batches {
    /// Batches with these frames, except frames that do not follow the one before, do not match the seal, or reach
    /// beyond the end of the file. O(batches).
    pub(crate) fn new(mut frames: Vec<Frame>, seal: &Seal, len_bytes: u64) -> Self {
        let mut end_row = 0_u64;
        frames.retain(|frame| {
            let end = frame.first_row.saturating_add(u64::from(frame.rows));
            let fits = frame.first_row >= end_row && frame.rows > 0 && end <= seal.rows;
            let fits = fits && frame.seed == seal.seed && frame.end_offset() <= len_bytes;
            end_row = if fits { end } else { end_row };
            fits
        });
        Self {
            parsed: frames.iter().map(|_| OnceLock::new()).collect(),
            first_rows: frames.iter().map(|frame| frame.first_row as u32).collect(),
            frames,
        }
    }

    /// Their commit frames.
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The place for batch `number` once it is parsed; `None` if there is no such batch.
    #[inline]
    pub(crate) fn parsed(&self, number: usize) -> Option<&OnceLock<Parsed>> {
        self.parsed.get(number)
    }

    /// The batch of `row` of the segment, and the row in it; `None` if it is in no batch.
    #[inline]
    pub(crate) fn locate(&self, row: u32) -> Option<(usize, usize)> {
        // Most batches have as many rows as the first.
        let guess = self.frames.first().map_or(0, |first| row / first.rows.max(1)) as usize;
        let starts_after = |number: usize| self.first_rows.get(number).is_none_or(|first| *first > row);
        let number = if !starts_after(guess) && starts_after(guess + 1) {
            guess
        } else {
            self.first_rows.partition_point(|first| *first <= row).checked_sub(1)?
        };
        let within = row - self.first_rows.get(number)?;
        self.frames.get(number).filter(|frame| within < frame.rows).map(|_| (number, within as usize))
    }
}
