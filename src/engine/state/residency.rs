//! How much of what batches touch was in memory lately.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::io::residency::{self, Wanted};

/// What a batch touches, stage by stage. Each is watched by itself: rows that are read in order from a disk, batch by
/// batch, say nothing of an index that is in memory, and looking at each of its buckets would cost more than they do.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    buckets: Watch,
    keys: Watch,
    rows: Watch,
}

impl Residency {
    /// Of the buckets of index runs.
    #[inline]
    pub(crate) fn buckets(&self) -> &Watch {
        &self.buckets
    }

    /// Of keys, and what tells where they are.
    #[inline]
    pub(crate) fn keys(&self) -> &Watch {
        &self.keys
    }

    /// Of rows.
    #[inline]
    pub(crate) fn rows(&self) -> &Watch {
        &self.rows
    }

    /// Pages that batches wanted, that were not in memory, and that were prefaulted together.
    pub(crate) fn prefaulted_pages(&self) -> u64 {
        [&self.buckets, &self.keys, &self.rows].map(|watch| watch.prefaulted_pages.load(Ordering::Relaxed)).iter().sum()
    }

    /// Whether something was missing lately.
    pub(crate) fn is_suspected(&self) -> bool {
        [&self.buckets, &self.keys, &self.rows].into_iter().any(Watch::is_suspected)
    }
}

/// Whether the next batches are looked at whole, and what was read in.
#[derive(Debug)]
pub(crate) struct Watch {
    /// So many looks are still whole.
    suspicion: AtomicU32,
    prefaulted_pages: AtomicU64,
}

/// Looks that are whole after one that missed something.
const SUSPICION: u32 = 16;
/// The same for a store that was just opened.
const FIRST_SUSPICION: u32 = 8;
/// Rows for one look at a row of a store in memory: it takes two microseconds, and copying so many of 3 KB takes 350.
pub(crate) const ROWS_A_LOOK: usize = 1024;
/// The index is a small part of a store and stays in memory longest.
pub(crate) const KEYS_A_LOOK: usize = 4096;
/// A batch of so many has a look at each stage.
const LARGE_BATCH: usize = 1024;

impl Default for Watch {
    fn default() -> Self {
        Self { suspicion: AtomicU32::new(FIRST_SUSPICION), prefaulted_pages: AtomicU64::new(0) }
    }
}

impl Watch {
    /// Whether something was missing lately.
    #[inline]
    fn is_suspected(&self) -> bool {
        self.suspicion.load(Ordering::Relaxed) > 0
    }

    /// Whether a stage of a batch of `keys` is to be looked at whole: because something was missing lately, or because
    /// it is at one of a few positions, chosen by `salt`, which differs from batch to batch.
    pub(crate) fn suspects(
        &self,
        keys: usize,
        keys_a_look: usize,
        salt: u64,
        is_resident: impl Fn(usize) -> bool,
    ) -> bool {
        if self.is_suspected() {
            return true;
        }
        // The remainder decides whether a small batch is looked at, the rest where.
        let (start, turn) = (salt as usize / keys_a_look, salt as usize % keys_a_look);
        if turn >= keys && keys < LARGE_BATCH {
            return false;
        }
        let looks = (0..keys.div_ceil(keys_a_look)).map(|look| (start + look * keys_a_look) % keys);
        let missing = looks.into_iter().any(|position| !is_resident(position));
        if missing {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
        }
        missing
    }

    /// Reads in `ranges`; `path_of` says which file a range is in.
    pub(crate) fn prefault<'a, 'p>(
        &self,
        ranges: impl Iterator<Item = Option<&'a [u8]>>,
        path_of: impl Fn(usize) -> Option<&'p Path>,
    ) -> Result<()> {
        let wanted = ranges.enumerate().filter_map(|(position, bytes)| Some(Wanted { bytes: bytes?, position }));
        let mut wanted: Vec<_> = wanted.collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let missing_pages = residency::prefault(&mut wanted)
            .map_err(|(position, error)| Error::io("read", path_of(position).unwrap_or(Path::new("")), error))?;
        let suspicion = self.suspicion.load(Ordering::Relaxed);
        if missing_pages > 0 {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
            self.prefaulted_pages.fetch_add(missing_pages as u64, Ordering::Relaxed);
        } else {
            self.suspicion.store(suspicion.saturating_sub(1), Ordering::Relaxed);
        }
        Ok(())
    }
}
