//! Finds the tombstones that are still needed: those of keys of which an older row may exist.

use std::sync::Arc;

use crate::engine::compact::context::Context;
use crate::engine::compact::live::Live;
use crate::engine::rows::row::RowVersion;
use crate::engine::runs::hashes::hash_block;
use crate::engine::state::State;
use crate::error::Result;
use crate::index::block::HashBlock;
use crate::segment::reader::Segment;

/// The sorted key hashes of the needed tombstones; `None` if all are needed.
#[derive(Debug)]
pub(crate) struct Tombstones {
    hashes: Option<Vec<u64>>,
    /// Commit timestamp of this writer's oldest row that is not sealed: newer tombstones may be of such rows.
    oldest_unsealed: u64,
}

impl Tombstones {
    /// Finds the needed tombstones in `found`. An older row may be in any segment of values, so this reads all index
    /// blocks. All tombstones are needed unless this writer is `alone`, runs cover all segments, and no segment is
    /// damaged, missing or active in another lane. Tombstones that are newer than this writer's oldest unsealed row are
    /// needed too. O(rows of the store), sequential.
    ///
    /// # Errors
    /// IO errors, [`crate::Error::Corrupt`].
    pub(crate) fn needed(context: Context<'_>, alone: bool, found: &[(Arc<Segment>, Live)]) -> Result<Self> {
        let state = context.state;
        // Before the version is loaded: what is sealed meanwhile is in there.
        let oldest_unsealed = context.writer.with_lane(|lane| Ok(lane.oldest_unsealed()))?.unwrap_or(u64::MAX);
        let known = state.registry().lock();
        let all_is_known = known.bad_files() == 0 && known.missing().is_empty() && known.followed().next().is_none();
        drop(known);
        let version = state.versions().load_full();
        if !all_is_known || !version.uncovered().is_empty() || !alone {
            return Ok(Self { hashes: None, oldest_unsealed });
        }
        let mut hashes: Vec<u64> = Vec::new();
        for (segment, live) in found {
            let block = hash_block(state, segment)?;
            hashes.extend(block.iter().filter(|(_, row)| live.contains(*row)).map(|(hash, _)| hash));
        }
        hashes.sort_unstable();
        hashes.dedup();
        let mut needed = vec![false; hashes.len()];
        for segment in version.segments().values().filter(|segment| !segment.schema().is_tombstones()) {
            mark(&hashes, &hash_block(state, segment)?, &mut needed);
        }
        let mut flags = needed.into_iter();
        hashes.retain(|_| flags.next() == Some(true));
        Ok(Self { hashes: Some(hashes), oldest_unsealed })
    }

    /// Marks the tombstones of `segment` that are not needed as dead, and returns their number.
    ///
    /// # Errors
    /// As [`hash_block`].
    pub(crate) fn forget_others(&self, state: &State, segment: &Segment, live: &mut Live) -> Result<u64> {
        let Some(needed) = &self.hashes else { return Ok(0) };
        let before = live.count();
        for (hash, row) in hash_block(state, segment)?.iter() {
            let is_older = RowVersion::of_segment(segment, row).timestamp < self.oldest_unsealed;
            if is_older && needed.binary_search(&hash).is_err() {
                live.remove(row);
            }
        }
        Ok(before - live.count())
    }
}

/// Sets `found` for those of `hashes` that are in `block`. Both are sorted.
fn mark(hashes: &[u64], block: &HashBlock, found: &mut [bool]) {
    let mut wanted = hashes.iter().zip(found).peekable();
    for (hash, _) in block.iter() {
        while wanted.next_if(|(other, _)| **other < hash).is_some() {}
        match wanted.peek_mut() {
            Some((other, found)) if **other == hash => **found = true,
            Some(_) => {}
            None => return,
        }
    }
}
