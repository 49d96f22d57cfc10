//! Which tombstones are needed: those of keys of which an older row may be somewhere.

use std::sync::Arc;

use crate::engine::compact::context::Context;
use crate::engine::compact::live::Live;
use crate::engine::rows::row::RowVersion;
use crate::engine::runs::hashes::hash_block;
use crate::engine::state::State;
use crate::error::Result;
use crate::index::block::HashBlock;
use crate::segment::reader::Segment;

/// The hashes of the tombstones that are needed, in order; `None` if all are.
#[derive(Debug)]
pub(crate) struct Tombstones {
    hashes: Option<Vec<u64>>,
    /// Commit timestamp of this writer's oldest row that is not sealed: newer tombstones may be of such rows.
    oldest_unsealed: u64,
}

impl Tombstones {
    /// Of the tombstones in `found`, those that are needed: an older row may be in any segment of values, so all index
    /// blocks are read. Where rows may be that no index block tells of (in a segment that is damaged, missing, or
    /// active in another lane), all are needed; so they are unless this writer is `alone`. Of this writer's own rows that
    /// are not sealed yet, tombstones may be that are newer. O(rows of the store), sequential.
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

    /// Has the tombstones of `segment` count no more that are not needed. Returns how many.
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

/// Marks the hashes that `block` has.
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
