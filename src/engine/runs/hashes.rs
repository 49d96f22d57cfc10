//! The sorted hashes of a sealed segment.

use std::io::ErrorKind;
use std::ops::{Bound, ControlFlow};

use crate::engine::rows::ordered_keys::ordered_keys;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::index::block::{self, HashBlock};
use crate::segment::reader::Segment;

/// The sorted hashes of a segment: its index block, or, if that is damaged, hashes computed from the keys.
pub(crate) fn hash_block(state: &State, segment: &Segment) -> Result<HashBlock> {
    if let Some(block) = whole_block(segment) {
        return Ok(block);
    }
    let (mut pairs, mut unread) = (room_for_hashes(segment)?, Vec::new());
    for (number, frame) in segment.batches()?.frames().iter().enumerate() {
        for (row, within) in (frame.first_row as u32..).zip(0..frame.rows as usize) {
            let batch = segment.batch_of_row(number, within);
            match batch.as_ref().ok().and_then(|batch| batch.columns.key(within)) {
                Some(key) => pairs.push((state.hasher().hash(key), row)),
                None => unread.push(row),
            }
        }
    }
    // Unreadable rows have no keys, unless the ordered keys have them.
    if !unread.is_empty()
        && let Some(fst) = ordered_keys(segment)
    {
        let walked = fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
            if unread.binary_search(&row).is_ok() {
                pairs.push((state.hasher().hash(key), row));
            }
            Ok(ControlFlow::Continue(()))
        });
        drop(walked);
    }
    HashBlock::parse(block::encode(pairs.into_iter()).into())
        .map_err(|what| Error::corrupt(&**segment.described(), 0, what))
}

/// The index block of `segment`, if it is intact and has all its rows.
pub(crate) fn whole_block(segment: &Segment) -> Option<HashBlock> {
    let block = HashBlock::parse(segment.index_block().ok()?).ok()?;
    (block.len() == segment.rows() as usize).then_some(block)
}

/// An empty list with capacity for the hash and the number of each row.
///
/// # Errors
/// [`Error::Io`] of kind `OutOfMemory`.
pub(crate) fn room_for_hashes(segment: &Segment) -> Result<Vec<(u64, u32)>> {
    let mut pairs = Vec::new();
    // The length of the index block bounds the seal's count.
    pairs.try_reserve_exact(segment.rows() as usize).map_err(|_| {
        let what = format!("{} rows do not fit into memory", segment.rows());
        Error::io("hash the keys of", &**segment.described(), std::io::Error::new(ErrorKind::OutOfMemory, what))
    })?;
    Ok(pairs)
}
