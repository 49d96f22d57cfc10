//! How many keys are alive. Kept exact by every put and delete; after a crash that left several runs behind it is
//! not known, and counted when somebody asks.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::engine::read::scan::sources as everything;
use crate::engine::rows::row::Source;
use crate::engine::runs::build::{Sources, hash_block};
use crate::engine::state::Core;
use crate::error::{Error, Result};
use crate::index::block::{self, HashBlock};
use crate::index::merge::merge_blocks;

/// The count of live keys.
#[derive(Debug)]
pub(crate) struct LiveCount {
    exact: AtomicBool,
    count: AtomicI64,
}

impl Default for LiveCount {
    fn default() -> Self {
        Self { exact: AtomicBool::new(true), count: AtomicI64::new(0) }
    }
}

impl LiveCount {
    /// Counts keys that came (or went).
    pub(crate) fn add(&self, keys: i64) {
        self.count.fetch_add(keys, Ordering::Relaxed);
    }

    /// Sets the count; `None` if it is not known.
    pub(crate) fn set(&self, keys: Option<u64>) {
        self.count.store(keys.map_or(0, |keys| i64::try_from(keys).unwrap_or(i64::MAX)), Ordering::Relaxed);
        self.exact.store(keys.is_some(), Ordering::Release);
    }

    /// The count, if it is known.
    pub(crate) fn get(&self) -> Option<u64> {
        let exact = self.exact.load(Ordering::Acquire);
        exact.then(|| u64::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(0))
    }
}

/// The number of live keys. O(1), or O(rows) once after a crash.
pub(crate) fn len(core: &Core) -> Result<u64> {
    core.check_fork()?;
    match core.live.get() {
        Some(keys) => Ok(keys),
        None => {
            // No refresh counts rows that are seen here as well.
            let _known = core.known.lock();
            let _admission = core.admission();
            let keys = count(core)?;
            core.live.set(Some(keys));
            Ok(keys)
        }
    }
}

/// Counts the keys whose newest row is a value: a merge of everything there is, into nothing.
fn count(core: &Core) -> Result<u64> {
    let mut sources = Sources::new(core);
    let mut blocks = Vec::new();
    for (number, slot) in everything(core) {
        let start = sources.add(number, slot.clone());
        if let Source::Sealed(segment) = &slot.source {
            blocks.push((hash_block(core, segment)?, start));
            continue;
        }
        let mut pairs = Vec::with_capacity(slot.rows as usize);
        for row in 0..slot.rows {
            if let Some(found) = slot.source.row(number, row)?
                && let Some(key) = found.key()
            {
                pairs.push((core.hasher.hash(key), row));
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
