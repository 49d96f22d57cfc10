//! Recognises a segment file that its writer had only begun to create: its front cannot be read, and nothing was
//! committed to it.

use super::layout::{ARROW_MAGIC, FRAME_LEN_BYTES, Frame};
use super::scan::find_frames;
use crate::error::Result;
use crate::io::ReadFile;

/// Bytes up to the last nonzero one, if the file holds nothing but the front of the segment of `seed`, in part or with
/// holes from a power failure; `None` if it holds anything else. O(bytes).
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn begun_bytes(file: &dyn ReadFile, seed: u32) -> Result<Option<u64>> {
    let len_bytes = file.len_bytes()?;
    let written_bytes = written_bytes(file, len_bytes)?;
    let frames = find_frames(file, 0, len_bytes)?;
    let is_own_front = |frame: &Frame| frame.seed == seed && frame.rows == 0;
    let is_begun = if frames.is_empty() { is_part(file, written_bytes)? } else { frames.iter().all(is_own_front) };
    Ok(is_begun.then_some(written_bytes))
}

fn written_bytes(file: &dyn ReadFile, len_bytes: u64) -> Result<u64> {
    const WINDOW: u64 = 8 << 20;
    let mut end = len_bytes;
    while end > 0 {
        let start = end.saturating_sub(WINDOW);
        let window = file.copy(start, (end - start) as usize)?;
        if let Some(last) = window.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Whether the first `written_bytes` of a file may be part of a front, and end where it ends.
fn is_part(file: &dyn ReadFile, written_bytes: u64) -> Result<bool> {
    const PREFIX_LEN_BYTES: u64 = ARROW_MAGIC.len() as u64 + 8;
    let start = file.copy(0, written_bytes.min(PREFIX_LEN_BYTES) as usize)?;
    let magic_matches = start.iter().zip(ARROW_MAGIC).all(|(found, expected)| found == expected);
    if written_bytes <= PREFIX_LEN_BYTES {
        return Ok(magic_matches);
    }
    let metadata_len_bytes = start.get(12..16).and_then(|len| len.try_into().ok()).map_or(0, u32::from_le_bytes);
    let front_len_bytes = PREFIX_LEN_BYTES + u64::from(metadata_len_bytes) + FRAME_LEN_BYTES as u64;
    Ok(magic_matches && written_bytes <= front_len_bytes)
}
