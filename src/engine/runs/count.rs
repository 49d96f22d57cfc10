//! Counts the live keys after a crash that left several runs.

use crate::engine::rows::row::Source;
use crate::engine::runs::hashes::hash_block;
use crate::engine::runs::sources::{Sources, all_sources};
use crate::engine::state::State;
use crate::engine::state::memtable::Inserting;
use crate::error::{Error, Result};
use crate::index::block::{self, HashBlock};
use crate::index::merge::merge_blocks;

/// The number of live keys. O(1), or O(rows) once after a crash.
pub(crate) fn len(state: &State) -> Result<u64> {
    state.check_fork()?;
    match state.live().get() {
        Some(keys) => Ok(keys),
        None => {
            // Keeps a refresh from also counting the rows that are seen here.
            let _known = state.registry().lock();
            let inserting = state.memtable().lock_inserts();
            let keys = count(state, &inserting)?;
            state.live().set(Some(keys));
            Ok(keys)
        }
    }
}

/// Counts the keys whose newest row is a value: a merge of everything there is, into nothing.
fn count(state: &State, inserting: &Inserting<'_>) -> Result<u64> {
    let mut sources = Sources::new(state);
    let mut blocks = Vec::new();
    for (number, batch) in all_sources(state, inserting) {
        let start = sources.add(number, batch.clone());
        if let Source::Sealed(segment) = &batch.source {
            blocks.push((hash_block(state, segment)?, start));
            continue;
        }
        let mut pairs = Vec::with_capacity(batch.rows as usize);
        for row in 0..batch.rows {
            if let Some(found) = batch.source.row(number, row)?
                && let Some(key) = found.key()
            {
                pairs.push((state.hasher().hash(key), row));
            }
        }
        let block = HashBlock::parse(block::encode(pairs.into_iter()).into()).map_err(Error::invalid)?;
        blocks.push((block, start));
    }
    let mut keys = 0_u64;
    merge_blocks(&blocks, &mut |rows| sources.keep_newest(rows), &mut |entries| {
        keys += sources.count_values(entries);
        Ok(())
    })?;
    Ok(keys)
}
